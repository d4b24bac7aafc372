//! Is this token good, now? Asked by a resource's verifiers before they serve (RFC 7662).
//!
//! The signature shows that the token is ours; everything else is read from the primary store: its
//! session, that session's tasks and ancestors, the cutoffs. Whoever may not know gets the same
//! answer as for a token that is no good.

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

/// A signed answer. It has neither `sub` nor `exp`, so that nobody takes it for a token.
#[derive(Serialize)]
struct Statement<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    token_introspection: &'a Value,
}

/// What was found out, and for whom.
#[derive(Debug)]
pub struct Answer {
    /// What they learn.
    pub introspection: Introspection,
    /// Who asked.
    pub asker: String,
}

/// What a verifier learns.
#[derive(Debug)]
pub enum Introspection {
    /// Nothing but that it is not good, or not the verifier's to know.
    Inactive,
    /// It is good now.
    Active(Box<ActiveToken>),
}

/// A token that is good now.
#[derive(Debug)]
pub struct ActiveToken {
    /// The session, with what decided about it.
    pub view: SessionView,
    /// On whose behalf it is, nearest first.
    pub delegators: Vec<Identity>,
    /// The hash of its decision's leaf, as the token carries it.
    pub decision_hash: String,
}

impl Verification {
    /// Judges a token for a verifier of its resource, or an admin.
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

    /// Signs an answer for whoever asked (RFC 9701): what was true of the token at this moment.
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

    /// The session of a token that we signed, with the decision hash that it carries.
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
