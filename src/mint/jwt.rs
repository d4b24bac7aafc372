//! Access tokens as JWTs (RFC 9068), signed in this process.
//!
//! [`JwtMinter`] signs the claims of a permit's session with the key that the decision's leaf
//! names. The token has exactly the recorded rights, audience, life and key binding, and carries
//! the hash of its leaf (`dec`).
//!
//! If that key was revoked since the decision, or signing fails, the mint is [`MintError::Refused`]
//! and no token exists. If no key may sign, [`Minter::signing_key`] is `None` and nothing is
//! granted. A JWT ends by the broker's record, by a status list, or by expiry, as the revocability
//! says; no back end is called. `crypto::keyring` chooses the key, and `broker::verification`
//! answers introspection.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;

use super::{Credential, EndOutcome, MintError, MintMode, Minter};
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::ACCESS_TOKEN_TYPE;
use crate::crypto::keyring::{KeyPurpose, KeySchedule, signer_preferring};
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::signer::sign_jwt;
use crate::domain::catalog::Resource;
use crate::domain::kind::MinterKind;
use crate::domain::permit::Permit;
use crate::domain::revocability::{Revocability, RevocationClass};
use crate::domain::session::Session;
use crate::domain::status_list::StatusListIndex;
use crate::domain::workload::{Identity, KeyBinding, subject_and_actor};

/// Creates JWT access tokens.
pub struct JwtMinter {
    issuer: String,
    keys: LoadedKeys,
    algorithm: Algorithm,
    schedule: KeySchedule,
    first_status_list: u64,
    read_lease_seconds: u64,
}

impl JwtMinter {
    /// A minter for tokens of this issuer, with keys of this algorithm and schedule, and status
    /// lists from `first_status_list` on. `read_lease_seconds`: the maximum age of the store's
    /// facts about a token's validity.
    #[must_use]
    pub fn new(
        issuer: String,
        keys: LoadedKeys,
        algorithm: Algorithm,
        schedule: KeySchedule,
        first_status_list: u64,
        read_lease_seconds: u64,
    ) -> Self {
        Self {
            issuer,
            keys,
            algorithm,
            schedule,
            first_status_list,
            read_lease_seconds,
        }
    }
}

/// The claims, in the order of RFC 9068.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a Identity,
    aud: &'a str,
    client_id: &'a Identity,
    iat: i64,
    exp: i64,
    jti: String,
    scope: String,
    authorization_details: &'a crate::domain::grant::Grant,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: &'a Option<KeyBinding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    task: String,
    sid: String,
    dec: String,
}

impl<'a> Claims<'a> {
    fn new(
        issuer: &'a str,
        session: &'a Session,
        delegators: &'a [Identity],
        leaf_hash: &[u8; 32],
        first_status_list: u64,
    ) -> Self {
        let (sub, act) = subject_and_actor(&session.workload, delegators);
        Self {
            iss: issuer,
            sub,
            aud: &session.audience,
            client_id: &session.workload,
            iat: session.issued_at.seconds(),
            exp: session.expires_at.seconds(),
            jti: session.id.to_string(),
            scope: session.grant.scope(),
            authorization_details: &session.grant,
            act,
            cnf: &session.key,
            status: status(issuer, session, first_status_list),
            task: session.task_id.to_string(),
            sid: session.id.to_string(),
            dec: URL_SAFE_NO_PAD.encode(leaf_hash),
        }
    }
}

/// The claims of a session's token, as they are signed.
#[cfg(test)]
pub(crate) fn claims_bytes(
    issuer: &str,
    session: &Session,
    delegators: &[Identity],
    leaf_hash: &[u8; 32],
    first_status_list: u64,
) -> Vec<u8> {
    let claims = Claims::new(issuer, session, delegators, leaf_hash, first_status_list);
    serde_json::to_vec(&claims).unwrap()
}

/// The `status` claim, for verifiers that poll status lists; `None` if no verifier ends the session
/// by them.
fn status(issuer: &str, session: &Session, first_list: u64) -> Option<Value> {
    let RevocationClass::Bounded { .. } = session.revocability.class else {
        return None;
    };
    Some(StatusListIndex::of(session.leaf_index, first_list).claim(issuer))
}

impl Minter for JwtMinter {
    fn kind(&self) -> MinterKind {
        MinterKind::Jwt
    }

    fn mode(&self) -> MintMode {
        MintMode::Local
    }

    fn revocability(&self, resource: &Resource) -> Revocability {
        resource.kind.revocability(self.read_lease_seconds)
    }

    fn signing_key(&self, _resource: &Resource, now: Timestamp) -> Option<String> {
        let keys = self.keys.load();
        let signer = signer_preferring(
            keys.iter().map(|key| &key.record),
            KeyPurpose::AccessToken,
            self.algorithm,
            &self.schedule,
            now,
        );
        signer.map(|record| record.kid.clone())
    }

    fn mint<'a>(&'a self, permit: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>> {
        Box::pin(async move {
            let session = permit.session();
            // The key was chosen before the decision was recorded; the leaf contains its id.
            let keys = self.keys.load_full();
            let key = keys.iter().find(|key| key.signer.kid() == session.kid);
            let key = key
                .filter(|key| key.record.revoked_at.is_none())
                .ok_or_else(|| MintError::Refused("the signing key was revoked".into()))?;
            let claims = Claims::new(
                &self.issuer,
                session,
                permit.delegators(),
                permit.leaf_hash(),
                self.first_status_list,
            );
            let access_token = sign_jwt(ACCESS_TOKEN_TYPE, &claims, key.signer.as_ref())
                .await
                .map_err(|error| MintError::Refused(error.to_string()))?;
            Ok(Credential::Jwt {
                access_token,
                token_type: KeyBinding::token_type(session.key.as_ref()),
                expires_in: session.issued_at.seconds_until(session.expires_at),
            })
        })
    }

    fn end<'a>(&'a self, session: &'a Session, now: Timestamp) -> BoxFuture<'a, EndOutcome> {
        // If every use asks the broker, the record ends the session. If servers poll lists, the
        // last list without the end must expire. Otherwise only expiry ends it.
        let since = session.ended_at.unwrap_or(now);
        let outcome = match session.revocability.class {
            RevocationClass::Immediate { .. } => EndOutcome::Confirmed,
            RevocationClass::Bounded { bound_seconds }
                if since.plus_seconds(bound_seconds) <= now =>
            {
                EndOutcome::Confirmed
            }
            RevocationClass::Bounded { .. } => EndOutcome::Pending,
            RevocationClass::ExpiryOnly => EndOutcome::Impossible,
        };
        Box::pin(async move { outcome })
    }
}
