//! Sessions of AWS roles.
//!
//! [`AwsMinter`] creates them. A mint is one call of STS, either with a token of the broker that
//! AWS trusts (`web_identity`: the broker holds no AWS key) or with the credentials of the
//! replica's host (`assume_role`). The session policy limits the session's rights ([`policy`]) and
//! ends it, because AWS creates no session shorter than 15 minutes.
//!
//! Every session has its own name, `tp-` and the session's id, and carries the hash of its
//! decision's leaf as its source identity. So a line in `CloudTrail` leads to the proof of its
//! decision, and a denial can name exactly this session. To revoke a session, the broker writes a
//! policy of its role that denies it (`deny`), if it may write one.
//!
//! A grant whose policy would be too long is refused before the decision ([`Minter::fits`]). Every
//! answer of STS other than a definite refusal is [`MintError::Unknown`]: it is treated as if a
//! session exists. `broker::issuance` calls this minter, and `broker::revocation` its deny list.

mod clients;
mod deny;
pub mod federation;
mod http_client;
mod own_credentials;
pub mod policy;
mod sts;
pub mod trust;

pub use own_credentials::own_credentials;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;

use self::clients::Clients;
use self::deny::OwnSessions;
use self::federation::Federation;
use self::policy::{bounded_text, session_policy};
use self::sts::Asked;
use super::{Credential, DenyList, EndOutcome, MintError, MintMode, Minter};
use crate::clock::Timestamp;
use crate::crypto::keyring::KeySchedule;
use crate::crypto::loaded::LoadedKeys;
use crate::domain::catalog::Resource;
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::kind::aws::{AwsMode, AwsRole};
use crate::domain::permit::Permit;
use crate::domain::revocability::Revocability;
use crate::domain::session::Session;
use crate::endpoints::EndpointTable;
use crate::ids::SessionId;

/// The shortest session that STS creates.
const MIN_SESSION_SECONDS: u64 = 900;

/// Seconds after which a mint is considered failed: longer than all attempts with their pauses.
const LEASE_SECONDS: u64 = 60;

/// The refusal of a resource of another kind.
const NO_ROLE: &str = "it has no role";
/// AWS verifies its sessions, so no use of one reads the broker's store.
const NO_READ_LEASE: u64 = 0;

/// The key id in the leaves of credentials that STS signs.
const NO_KEY: &str = "sts";

/// Creates sessions of roles.
pub struct AwsMinter {
    federation: Federation,
    clients: Clients,
    own_sessions: OwnSessions,
    mark: String,
}

impl AwsMinter {
    /// A minter for a broker with this issuer, these federation keys and these endpoints.
    #[must_use]
    pub fn new(
        issuer: &str,
        keys: LoadedKeys,
        schedule: KeySchedule,
        endpoints: Arc<EndpointTable>,
    ) -> Self {
        Self {
            federation: Federation::new(issuer, keys, schedule),
            clients: Clients::new(endpoints),
            own_sessions: OwnSessions::default(),
            mark: deny::mark(issuer),
        }
    }

    async fn make(&self, permit: &Permit, role: &AwsRole) -> Result<Credential, MintError> {
        let session = permit.session();
        let refuse = |why: &str| MintError::Refused(why.to_owned());
        let document = session_policy(role, &session.grant, session.expires_at);
        let policy = bounded_text(&document).map_err(|error| refuse(&error.to_string()))?;
        let life = session.issued_at.seconds_until(session.expires_at);
        let asked = Asked {
            session_name: session_name(session.id),
            source_identity: URL_SAFE_NO_PAD.encode(permit.leaf_hash()),
            session_id: session.id.to_string(),
            policy,
            seconds: i32::try_from(life.max(MIN_SESSION_SECONDS))
                .map_err(|_| refuse("the session is too long"))?,
            at: session.issued_at,
        };
        let made = match role.mode {
            AwsMode::WebIdentity => {
                let token = self.federation.token(session, &asked).await?;
                self.clients.with_web_identity(role, &asked, &token).await?
            }
            AwsMode::AssumeRole => self.clients.assume_role(role, &asked).await?,
        };
        Ok(Credential::AwsSts {
            access_key_id: made.access_key_id,
            secret_access_key: made.secret_access_key,
            session_token: made.session_token,
            // AWS lets the session live longer; its policy does not.
            expiration: session.expires_at.min(made.expiration),
            region: role.region.clone(),
        })
    }
}

/// The name of a session at AWS, which denials use.
#[must_use]
pub fn session_name(id: SessionId) -> String {
    format!("tp-{}", id.uuid().simple())
}

impl Minter for AwsMinter {
    fn kind(&self) -> MinterKind {
        MinterKind::Aws
    }

    fn mode(&self) -> MintMode {
        MintMode::External {
            lease_seconds: LEASE_SECONDS,
        }
    }

    fn revocability(&self, resource: &Resource) -> Revocability {
        resource.kind.revocability(NO_READ_LEASE)
    }

    fn fits(&self, resource: &Resource, grant: &Grant) -> Result<(), String> {
        let role = resource.kind.aws_role().ok_or(NO_ROLE)?;
        // Every date has the same length, so any date serves.
        let document = session_policy(role, grant, Timestamp::EPOCH);
        let text = bounded_text(&document);
        text.map(drop).map_err(|error| error.to_string())
    }

    fn signing_key(&self, resource: &Resource, now: Timestamp) -> Option<String> {
        match resource.kind.aws_role()?.mode {
            AwsMode::WebIdentity => self.federation.signing_key(now),
            AwsMode::AssumeRole => Some(NO_KEY.to_owned()),
        }
    }

    fn mint<'a>(&'a self, permit: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>> {
        Box::pin(async move {
            let role = permit.resource().kind.aws_role();
            let role = role.ok_or_else(|| MintError::Refused(NO_ROLE.into()))?;
            self.make(permit, role).await
        })
    }

    fn end<'a>(&'a self, _session: &'a Session, _now: Timestamp) -> BoxFuture<'a, EndOutcome> {
        Box::pin(async move { EndOutcome::Impossible })
    }

    fn deny_list(&self) -> Option<&dyn DenyList> {
        Some(self)
    }
}

/// Creates the minter as a trait object.
#[must_use]
pub fn minter(
    issuer: &str,
    keys: LoadedKeys,
    schedule: KeySchedule,
    endpoints: Arc<EndpointTable>,
) -> Arc<dyn Minter> {
    Arc::new(AwsMinter::new(issuer, keys, schedule, endpoints))
}
