//! Introspection (RFC 7662): a resource's verifiers ask whether a token is valid now.
//!
//! `introspect` answers, `sign_introspection` signs an answer (RFC 9701), and `recognise` finds the
//! session of a token. The signature shows that the broker issued the token. All other facts are
//! read from the primary store: its session, that session's tasks and ancestors, and the cutoffs.
//!
//! The rule: only a verifier of the resource, or a caller with the right `introspect`, learns that
//! a token is valid. A caller that may not know gets the same answer as for an invalid token.
//! Failures: `Inactive` stands for a foreign, unknown, ended or expired token, for a revoked
//! signing key, and for a caller without the right. Only a failure of the broker or of the caller's
//! own evidence is an error, so doubt is never reported as `Active`. `http::oauth::introspect`
//! calls this module; `revocation` uses `recognise`. Whether a session is valid is decided in
//! `domain::validity`.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use tracing::instrument;

use super::Verification;
use crate::attest::Evidence;
use crate::broker::access::{Caller, Unverified};
use crate::broker::error::BrokerError;
use crate::crypto::jwt::{ACCESS_TOKEN_TYPE, UnverifiedJwt, verify};
use crate::domain::validity::SessionView;
use crate::domain::workload::Identity;
use crate::ids::SessionId;
use crate::policy::AdminAction;

/// The `typ` of a signed answer (RFC 9701).
const INTROSPECTION_TYPE: &str = "token-introspection+jwt";

/// The claims of a signed answer. It has neither `sub` nor `exp`, so that no server accepts it as a
/// token.
#[derive(Serialize)]
struct Statement<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    token_introspection: &'a Value,
}

/// The result of an introspection, and the caller that gets it.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Answer {
    pub introspection: Introspection,
    /// The name of the caller, as the ledger records it.
    pub asker: String,
}

/// The result of an introspection.
#[derive(Debug)]
pub enum Introspection {
    /// The token is invalid, or the caller may not know.
    Inactive,
    /// The token is valid now.
    Active(Box<ActiveToken>),
}

/// A token that is valid now.
#[derive(Debug)]
pub struct ActiveToken {
    /// The session, with the facts that determine its status.
    pub view: SessionView,
    /// The workloads on whose behalf it is used, nearest first.
    pub delegators: Vec<Identity>,
    /// The hash of its decision's leaf, from the token.
    pub decision_hash: String,
}

impl Verification {
    /// Introspects a token for a verifier of its resource or an admin.
    #[instrument(skip_all)]
    pub async fn introspect(
        &self,
        evidence: &Evidence,
        token: &SecretString,
    ) -> Result<Answer, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.introspect_by(unverified, token))
            .await
    }

    async fn introspect_by(
        &self,
        unverified: Unverified<'_>,
        token: &SecretString,
    ) -> Result<Answer, BrokerError> {
        let reader = unverified.read().await?;
        Ok(Answer {
            introspection: self.introspect_for(reader.caller(), token).await?,
            asker: reader.caller().name(),
        })
    }

    /// Signs an answer for the caller `asker` (RFC 9701). It describes the token at this moment.
    pub async fn sign_introspection(
        &self,
        asker: &str,
        token_introspection: &Value,
    ) -> Result<SecretString, BrokerError> {
        let now = self.core.now();
        let statement = Statement {
            iss: self.core.issuer(),
            aud: asker,
            iat: now.seconds(),
            token_introspection,
        };
        self.keys.sign(INTROSPECTION_TYPE, &statement, now).await
    }

    async fn introspect_for(
        &self,
        caller: &Caller,
        token: &SecretString,
    ) -> Result<Introspection, BrokerError> {
        let Some((session, decision_hash)) = self.recognise(token) else {
            self.core.metrics().foreign_token();
            return Ok(Introspection::Inactive);
        };
        let Some(view) = self.core.store().session_view(session).await? else {
            return Ok(Introspection::Inactive);
        };
        let active = self.core.active()?;
        let verifier = caller.identity().is_some_and(|caller| {
            active
                .catalog()
                .resource(&view.session.resource)
                .is_some_and(|resource| resource.kind.is_verified_by(caller))
        });
        if !verifier && !self.access.may(caller, AdminAction::Introspect)? {
            return Ok(Introspection::Inactive);
        }
        if !view.is_valid_at(self.core.now()) {
            return Ok(Introspection::Inactive);
        }
        let delegators = view
            .ancestors
            .iter()
            .map(|own| own.workload.clone())
            .collect();
        Ok(Introspection::Active(Box::new(ActiveToken {
            view,
            delegators,
            decision_hash,
        })))
    }

    /// The session of a token that the broker signed, and the decision hash in the token. `None` if
    /// the broker did not sign it.
    pub(in crate::broker) fn recognise(&self, token: &SecretString) -> Option<(SessionId, String)> {
        let jwt = UnverifiedJwt::parse(token.expose_secret()).ok()?;
        if !jwt.unverified_is_type(ACCESS_TOKEN_TYPE) {
            return None;
        }
        let keys = self.keys.load();
        let kid = jwt.unverified_kid()?;
        let key = keys.iter().find(|key| key.signer.kid() == kid)?;
        if key.record.revoked_at.is_some() {
            return None;
        }
        let algorithm = key.signer.algorithm();
        let claims = verify(&jwt, &key.verifier, &[algorithm]).ok()?;
        let text = |name: &str| claims.get(name).and_then(serde_json::Value::as_str);
        if text("iss") != Some(self.core.issuer()) {
            return None;
        }
        let session = text("jti")?.parse().ok()?;
        Some((session, text("dec")?.to_owned()))
    }
}
