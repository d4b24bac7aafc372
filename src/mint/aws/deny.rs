//! The list of denied sessions of a role: one inline policy of the role that belongs to the broker.
//!
//! [`AwsMinter`] implements [`DenyList`] here. In mode `web_identity` the policy is read and
//! written with a session of another role, which the broker assumes as an OpenID provider and
//! restricts to this one role's inline policies. In mode `assume_role` it is read and written with
//! the credentials of the replica's host; only their own policies restrict their other rights.
//!
//! Reading returns `None` for a policy that is missing or that another party changed, so that the
//! broker writes it again. The policy of another broker is never overwritten: it is
//! [`MintError::Refused`]. A document that is too large is [`DenyWriteError::TooLarge`], and the
//! former one stays in effect; after any other failed write, either may be in effect.
//!
//! `broker::revocation` decides which sessions to deny and when a denial is confirmed.
//! [`super::policy`] writes and reads the document.

use std::collections::BTreeMap;
use std::sync::Mutex;

use aws_sdk_iam::Client;
use aws_sdk_iam::config::Credentials;
use aws_sdk_iam::error::ProvideErrorMetadata;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use tracing::{error, warn};

use super::AwsMinter;
use super::policy::{denied_by, denying, over_role};
use super::sts::failure;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{Denied, DenyPlace};
use crate::domain::kind::MinterKind;
use crate::domain::kind::aws::{AwsMode, AwsRevocation, AwsRole, RoleArn};
use crate::mint::{DenyList, DenyWriteError, MintError};

/// The broker stops using its own session this many seconds before it ends.
const SPARE_SECONDS: u64 = 120;

/// The broker's own sessions, by the registration for which they were created: the role that they
/// may write to, the role that writes, the region and the endpoints.
pub(super) type OwnSessions = Mutex<BTreeMap<String, OwnSession>>;

/// A session of the broker itself.
#[derive(Clone)]
pub(super) struct OwnSession {
    access_key_id: String,
    secret_access_key: SecretString,
    session_token: SecretString,
    expiration: Timestamp,
}

/// The mark of this broker's policies. Policies of another broker must not be overwritten.
pub(super) fn mark(issuer: &str) -> String {
    let digest = sha256(issuer.as_bytes());
    let text = URL_SAFE_NO_PAD.encode(digest);
    let letters = text.bytes().filter(u8::is_ascii_alphanumeric).take(10);
    format!("Taskpass{}", letters.map(char::from).collect::<String>())
}

impl AwsMinter {
    async fn iam(&self, target: &Target<'_>, now: Timestamp) -> Result<Client, MintError> {
        let own = match (target.role.mode, &target.list.role_arn) {
            (AwsMode::WebIdentity, Some(writer)) => {
                Some(self.own_session(target, writer, now).await?)
            }
            _ => None,
        };
        let credentials = own.map(|own| {
            Credentials::new(
                own.access_key_id,
                own.secret_access_key.expose_secret(),
                Some(own.session_token.expose_secret().to_owned()),
                None,
                "taskpass",
            )
        });
        self.clients
            .iam(&target.role, &target.list, credentials)
            .await
    }

    async fn own_session(
        &self,
        target: &Target<'_>,
        writer: &str,
        now: Timestamp,
    ) -> Result<OwnSession, MintError> {
        let known = self.own_sessions.lock().ok();
        let known = known.and_then(|known| known.get(target.registration).cloned());
        if let Some(own) = known
            && now.plus_seconds(SPARE_SECONDS) < own.expiration
        {
            return Ok(own);
        }
        let token = self.federation.revoker_token(writer, now).await?;
        let policy = over_role(&target.role.role_arn).to_json();
        let policy = policy.map_err(|error| MintError::Refused(error.to_string()))?;
        let made = self
            .clients
            .own_session(&target.role, writer, &token, &policy)
            .await?;
        let own = OwnSession {
            access_key_id: made.access_key_id,
            secret_access_key: made.secret_access_key.into(),
            session_token: made.session_token.into(),
            expiration: Timestamp::from_seconds(made.expiration.secs()),
        };
        if let Ok(mut known) = self.own_sessions.lock() {
            // Registrations change. Remove the sessions that have ended.
            known.retain(|_, own| now < own.expiration);
            known.insert(target.registration.to_owned(), own.clone());
        }
        Ok(own)
    }

    /// Forgets a session that AWS refused, since its role may have changed.
    fn forget_own_session(&self, target: &Target<'_>) {
        if let Ok(mut known) = self.own_sessions.lock() {
            known.remove(target.registration);
        }
    }
}

/// The parts of a deny target.
struct Target<'a> {
    role: AwsRole,
    list: AwsRevocation,
    name: &'a str,
    /// The text of the registration.
    registration: &'a str,
}

impl<'a> Target<'a> {
    fn of(place: &'a DenyPlace) -> Result<Self, MintError> {
        let unreadable = || MintError::Refused("the role's registration is unreadable".into());
        let role: AwsRole = serde_json::from_str(&place.registration).map_err(|_| unreadable())?;
        let list = role.revocation.clone().ok_or_else(unreadable)?;
        let name = RoleArn::parse(&place.name).ok_or_else(unreadable)?.name;
        Ok(Self {
            role,
            list,
            name,
            registration: &place.registration,
        })
    }
}

impl DenyList for AwsMinter {
    fn deny_place(&self, resource: &Resource) -> Option<DenyPlace> {
        let role = resource.kind.aws_role()?;
        let list = role.revocation.as_ref()?;
        Some(DenyPlace {
            minter: MinterKind::Aws,
            name: role.role_arn.clone(),
            registration: serde_json::to_string(role).ok()?,
            capacity: list.max_entries,
            propagation_seconds: list.propagation_seconds,
        })
    }

    fn check(&self, place: &DenyPlace) -> Result<(), String> {
        let target = Target::of(place).map_err(|error| error.to_string())?;
        self.clients.check(&target.role, &target.list)
    }

    fn needs_federation(&self, place: &DenyPlace) -> bool {
        Target::of(place).is_ok_and(|target| target.role.mode == AwsMode::WebIdentity)
    }

    fn read<'a>(
        &'a self,
        place: &'a DenyPlace,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Denied>, MintError>> {
        Box::pin(async move {
            let target = Target::of(place)?;
            let iam = self.iam(&target, now).await?;
            let request = iam
                .get_role_policy()
                .role_name(target.name)
                .policy_name(&target.list.policy_name);
            let answer = match request.send().await {
                Ok(answer) => answer,
                // The role itself may be missing; a write will show it.
                Err(failed) if failed.code() == Some("NoSuchEntity") => return Ok(None),
                Err(failed) => {
                    self.forget_own_session(&target);
                    return Err(failure(failed));
                }
            };
            // IAM returns documents percent-encoded (RFC 3986).
            let text = percent_decode_str(answer.policy_document()).decode_utf8_lossy();
            let denied = denied_by(&self.mark, &text);
            if denied.is_none() {
                if text.contains("\"Taskpass") && !text.contains(&self.mark) {
                    error!(
                        role = place.name,
                        policy = target.list.policy_name,
                        "another broker writes this policy; give each broker its own policy_name"
                    );
                    return Err(MintError::Refused("another broker's policy".into()));
                }
                warn!(
                    role = place.name,
                    policy = target.list.policy_name,
                    "another party changed the policy; the broker overwrites it"
                );
            }
            Ok(denied)
        })
    }

    fn write<'a>(
        &'a self,
        place: &'a DenyPlace,
        denied: &'a Denied,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<(), DenyWriteError>> {
        Box::pin(async move {
            let target = Target::of(place)?;
            let text = denying(&self.mark, denied).to_json();
            let text = text.map_err(|error| MintError::Refused(error.to_string()))?;
            let iam = self.iam(&target, now).await?;
            let request = iam
                .put_role_policy()
                .role_name(target.name)
                .policy_name(&target.list.policy_name)
                .policy_document(text);
            match request.send().await {
                Ok(_) => Ok(()),
                // All inline policies of a role share 10,240 characters.
                Err(failed) if failed.code() == Some("LimitExceeded") => {
                    Err(DenyWriteError::TooLarge(failure(failed).to_string()))
                }
                Err(failed) => {
                    self.forget_own_session(&target);
                    Err(failure(failed).into())
                }
            }
        })
    }
}
