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
use super::policy::{denied_by, deny_document, over_role};
use super::sts::failure;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{DeniedSessions, DenyPolicyTarget};
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
    async fn iam(&self, parts: &TargetParts<'_>, now: Timestamp) -> Result<Client, MintError> {
        let own = match (parts.role.mode, &parts.list.role_arn) {
            (AwsMode::WebIdentity, Some(writer)) => {
                Some(self.own_session(parts, writer, now).await?)
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
            .iam(&parts.role, &parts.list, credentials)
            .await
    }

    async fn own_session(
        &self,
        parts: &TargetParts<'_>,
        writer: &str,
        now: Timestamp,
    ) -> Result<OwnSession, MintError> {
        let known = self.own_sessions.lock().ok();
        let known = known.and_then(|known| known.get(parts.registration).cloned());
        if let Some(own) = known
            && now.plus_seconds(SPARE_SECONDS) < own.expiration
        {
            return Ok(own);
        }
        let token = self.federation.revoker_token(writer, now).await?;
        let policy = over_role(&parts.role.role_arn).to_json();
        let policy = policy.map_err(|error| MintError::Refused(error.to_string()))?;
        let made = self
            .clients
            .own_session(&parts.role, writer, &token, &policy)
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
            known.insert(parts.registration.to_owned(), own.clone());
        }
        Ok(own)
    }

    /// Forgets a session that AWS refused, since its role may have changed.
    fn forget_own_session(&self, parts: &TargetParts<'_>) {
        if let Ok(mut known) = self.own_sessions.lock() {
            known.remove(parts.registration);
        }
    }
}

/// The parts of a deny target.
struct TargetParts<'a> {
    role: AwsRole,
    list: AwsRevocation,
    name: &'a str,
    /// The text of the registration.
    registration: &'a str,
}

impl<'a> TargetParts<'a> {
    fn of(target: &'a DenyPolicyTarget) -> Result<Self, MintError> {
        let unreadable = || MintError::Refused("the role's registration is unreadable".into());
        let role: AwsRole = serde_json::from_str(&target.registration).map_err(|_| unreadable())?;
        let list = role.revocation.clone().ok_or_else(unreadable)?;
        let name = RoleArn::parse(&target.name).ok_or_else(unreadable)?.name;
        Ok(Self {
            role,
            list,
            name,
            registration: &target.registration,
        })
    }
}

impl DenyList for AwsMinter {
    fn deny_target(&self, resource: &Resource) -> Option<DenyPolicyTarget> {
        let role = resource.kind.aws_role()?;
        let list = role.revocation.as_ref()?;
        Some(DenyPolicyTarget {
            minter: MinterKind::Aws,
            name: role.role_arn.clone(),
            registration: serde_json::to_string(role).ok()?,
            capacity: list.max_entries,
            propagation_seconds: list.propagation_seconds,
        })
    }

    fn check(&self, target: &DenyPolicyTarget) -> Result<(), String> {
        let parts = TargetParts::of(target).map_err(|error| error.to_string())?;
        self.clients.check(&parts.role, &parts.list)
    }

    fn needs_federation(&self, target: &DenyPolicyTarget) -> bool {
        TargetParts::of(target).is_ok_and(|parts| parts.role.mode == AwsMode::WebIdentity)
    }

    fn read<'a>(
        &'a self,
        target: &'a DenyPolicyTarget,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<DeniedSessions>, MintError>> {
        Box::pin(async move {
            let parts = TargetParts::of(target)?;
            let iam = self.iam(&parts, now).await?;
            let request = iam
                .get_role_policy()
                .role_name(parts.name)
                .policy_name(&parts.list.policy_name);
            let answer = match request.send().await {
                Ok(answer) => answer,
                // The role itself may be missing; a write will show it.
                Err(failed) if failed.code() == Some("NoSuchEntity") => return Ok(None),
                Err(failed) => {
                    self.forget_own_session(&parts);
                    return Err(failure(failed));
                }
            };
            // IAM returns documents percent-encoded (RFC 3986).
            let text = percent_decode_str(answer.policy_document()).decode_utf8_lossy();
            let denied = denied_by(&self.mark, &text);
            if denied.is_none() {
                if text.contains("\"Taskpass") && !text.contains(&self.mark) {
                    error!(
                        role = target.name,
                        policy = parts.list.policy_name,
                        "another broker writes this policy; give each broker its own policy_name"
                    );
                    return Err(MintError::Refused("another broker's policy".into()));
                }
                warn!(
                    role = target.name,
                    policy = parts.list.policy_name,
                    "another party changed the policy; the broker overwrites it"
                );
            }
            Ok(denied)
        })
    }

    fn write<'a>(
        &'a self,
        target: &'a DenyPolicyTarget,
        denied: &'a DeniedSessions,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<(), DenyWriteError>> {
        Box::pin(async move {
            let parts = TargetParts::of(target)?;
            let text = deny_document(&self.mark, denied).to_json();
            let text = text.map_err(|error| MintError::Refused(error.to_string()))?;
            let iam = self.iam(&parts, now).await?;
            let request = iam
                .put_role_policy()
                .role_name(parts.name)
                .policy_name(&parts.list.policy_name)
                .policy_document(text);
            match request.send().await {
                Ok(_) => Ok(()),
                // All inline policies of a role share 10,240 characters.
                Err(failed) if failed.code() == Some("LimitExceeded") => {
                    Err(DenyWriteError::TooLarge(failure(failed).to_string()))
                }
                Err(failed) => {
                    self.forget_own_session(&parts);
                    Err(failure(failed).into())
                }
            }
        })
    }
}
