//! Registered workload keys, proven by a client assertion (RFC 7523bis).
//!
//! [`Keys`] is the attestor. The workload's name (`iss`) selects its keys: first those in the
//! configuration, then those that [`WorkloadKeys`] has stored. The assertion states its audience
//! and its type: `aud` is the broker's issuer alone, as one text or as a list of one (RFC 7519
//! §4.1.3), and `typ` is `client-authentication+jwt`. So an assertion for another server cannot be
//! used here, and no other token by the same key can serve as one.
//!
//! A workload without keys and a wrong signature are refused without a reason for the caller. If
//! the stored keys cannot be read, the error is [`AttestError::KeysUnavailable`], which is
//! transient. A key that may not be registered is a text with the reason ([`registrable`], which
//! `broker::administration` also calls). Single use is left to the ledger, by the id from `jti`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::checks::AttestorConfigError;
use super::error::Refused;
use super::explain::Conditions;
use super::template::Template;
use super::{AttestContext, AttestError, Attestor, Presented, WorkloadKeys, one_time};
use crate::clock::Timestamp;
use crate::crypto::jwk::{Algorithm, PublicJwk, VerificationKey};
use crate::crypto::jwt::{
    Claims, UnverifiedJwt, VerifiedClaims, check_expiry, check_issued_at, check_not_before,
    check_times, verify,
};
use crate::domain::limits::MAX_NAME_BYTES;
use crate::domain::trust::KeySpec;
use crate::domain::workload::{Identity, Instance, Reuse, Workload, encode_value};

/// The type of a client assertion.
pub(super) const ASSERTION: &str = "client-authentication+jwt";

/// The algorithms of registered keys.
pub(crate) const ALGORITHMS: [Algorithm; 2] = [Algorithm::EdDsa, Algorithm::Es256];

/// The longest life of an assertion, which is also its greatest age.
const MAX_LIFE_SECONDS: u64 = 300;

const LEEWAY_SECONDS: u64 = 10;

/// Maximum number of keys of one workload that are tried: two during a replacement, and some more.
const MAX_TRIED: usize = 8;

/// The attestor of registered keys.
pub(super) struct Keys {
    name: String,
    own_issuer: String,
    configured: BTreeMap<String, Vec<VerificationKey>>,
    stored: Arc<dyn WorkloadKeys>,
}

impl Keys {
    pub(super) fn new(
        spec: &KeySpec,
        context: &AttestContext,
    ) -> Result<Self, AttestorConfigError> {
        let mut configured = BTreeMap::<_, Vec<_>>::new();
        for registered in &spec.keys {
            let refuse = |problem: String| AttestorConfigError {
                attestor: spec.name.clone(),
                key: "keys",
                problem: format!("`{}`: {problem}", registered.workload),
                remedy: "give a short name and the public JWK of an Ed25519 or P-256 key".into(),
            };
            if registered.workload.is_empty() || registered.workload.len() > MAX_NAME_BYTES {
                return Err(refuse("the workload's name is empty or too long".into()));
            }
            let key = registrable(&registered.jwk).map_err(refuse)?;
            configured
                .entry(registered.workload.clone())
                .or_default()
                .push(key);
        }
        Ok(Self {
            name: spec.name.clone(),
            own_issuer: context.own_issuer.clone(),
            configured,
            stored: Arc::clone(&context.workload_keys),
        })
    }

    async fn appraise_assertion(
        &self,
        token: &UnverifiedJwt,
        now: Timestamp,
    ) -> Result<Workload, Refused> {
        let workload = token.unverified_issuer().unwrap_or_default();
        if workload.is_empty() || workload.len() > MAX_NAME_BYTES {
            return Err(AttestError::UnknownKey.into());
        }
        if !ALGORITHMS.contains(&token.unverified_algorithm()) {
            return Err(AttestError::WrongAlgorithm.into());
        }
        let configured = self.configured.get(workload).map_or(&[][..], Vec::as_slice);
        let claims = match try_keys(token, configured) {
            Ok(claims) => claims,
            Err(refused) => {
                let stored = self.stored.find(&self.name, workload).await;
                let stored = stored.map_err(|_| AttestError::KeysUnavailable)?;
                if stored.is_empty() {
                    return Err(refused.into());
                }
                let stored: Vec<_> = stored
                    .iter()
                    .filter_map(|jwk| registered(jwk).ok())
                    .collect();
                try_keys(token, &stored)?
            }
        };
        self.workload(&claims, workload, now)
            .map_err(Refused::signed)
    }

    /// The workload `name`, whose key signed these claims.
    fn workload(
        &self,
        claims: &VerifiedClaims,
        name: &str,
        now: Timestamp,
    ) -> Result<Workload, AttestError> {
        self.conditions(claims, now).hold()?;
        if claims.issuer()? != name {
            return Err(AttestError::RequiredClaim("iss".into()));
        }
        let times = check_times(claims, now, LEEWAY_SECONDS, MAX_LIFE_SECONDS)?;
        let id = claims.text("jti")?;
        let parts = [self.name.as_bytes(), name.as_bytes(), id.as_bytes()];
        let expires_at = times.expires_at.plus_seconds(LEEWAY_SECONDS + 1);
        let identity = format!("{}:{}", self.name, encode_value(name));
        let instance = claims.key_thumbprint().to_owned();
        Ok(Workload {
            attestor: self.name.clone(),
            identity: Identity::try_from(identity).map_err(|_| AttestError::Identity)?,
            instance: Some(Instance::try_from(instance).map_err(|_| AttestError::Identity)?),
            claims: BTreeMap::new(),
            issued_at: times.issued_at,
            reuse: Reuse::Once,
            evidence: one_time("assertion", &parts, times.issued_at..expires_at),
            proofs: Vec::new(),
            key: None,
        })
    }
}

/// Checks that the stated life of an assertion is within the limit.
fn check_life(claims: &Claims, now: Timestamp) -> Result<(), AttestError> {
    let expires_at = check_expiry(claims, now, LEEWAY_SECONDS)?;
    // If this fails, another condition reports it.
    let issued_at = check_issued_at(claims, now, LEEWAY_SECONDS, MAX_LIFE_SECONDS);
    match issued_at {
        Ok(issued_at) if issued_at.seconds_until(expires_at) > MAX_LIFE_SECONDS => {
            Err(AttestError::ClaimType("exp".into()))
        }
        _ => Ok(()),
    }
}

/// The key of this JWK, if it may be registered.
pub(crate) fn registrable(jwk: &Value) -> Result<VerificationKey, String> {
    let key = registered(jwk)?;
    let on_curve = key.jwk().check_on_curve();
    on_curve.map_err(|error| error.to_string())?;
    Ok(key)
}

/// The key of a registered JWK.
fn registered(jwk: &Value) -> Result<VerificationKey, String> {
    let members = jwk.as_object().cloned().ok_or("the key is not a JWK")?;
    let key = PublicJwk::from_members(members).map_err(|error| error.to_string())?;
    let key = VerificationKey::from(key);
    if key.algorithms().iter().all(|a| ALGORITHMS.contains(a)) {
        Ok(key)
    } else {
        Err("the key is neither Ed25519 nor P-256".into())
    }
}

/// Verifies with the key that the token names by `kid` or thumbprint, or with any key if it names
/// none.
fn try_keys(
    token: &UnverifiedJwt,
    keys: &[VerificationKey],
) -> Result<VerifiedClaims, AttestError> {
    let named = |key: &&VerificationKey| match token.unverified_kid() {
        Some(kid) => key.kid() == Some(kid) || key.thumbprint() == kid,
        None => true,
    };
    let fits = |key: &&VerificationKey| key.algorithms().contains(&token.unverified_algorithm());
    let mut refused = AttestError::UnknownKey;
    for key in keys.iter().filter(named).filter(fits).take(MAX_TRIED) {
        match verify(token, key, &ALGORITHMS) {
            Ok(claims) => return Ok(claims),
            Err(error) => refused = error.into(),
        }
    }
    Err(refused)
}

impl Attestor for Keys {
    fn name(&self) -> &str {
        &self.name
    }

    fn leeway_seconds(&self) -> u64 {
        LEEWAY_SECONDS
    }

    fn algorithms(&self) -> &[Algorithm] {
        &ALGORITHMS
    }

    fn conditions(&self, claims: &Claims, now: Timestamp) -> Conditions {
        let mut conditions = Conditions::default();
        let right_type = claims.is_type(ASSERTION);
        conditions.check(
            "typ",
            right_type.then_some(()).ok_or(AttestError::WrongType),
        );
        let own = claims.issuer().is_ok() && claims.issuer() == claims.subject();
        let subject = own.then_some(());
        let subject = subject.ok_or_else(|| AttestError::RequiredClaim("sub".into()));
        conditions.check("sub", subject);
        let audience = claims.sole_audience().map_err(AttestError::from);
        let audience = audience.and_then(|audience| {
            let ours = audience == self.own_issuer;
            ours.then_some(()).ok_or(AttestError::WrongAudience)
        });
        conditions.check("aud", audience);
        let issued = check_issued_at(claims, now, LEEWAY_SECONDS, MAX_LIFE_SECONDS);
        conditions.check("iat", issued.map(drop).map_err(Into::into));
        conditions.check("exp", check_life(claims, now));
        let not_before = check_not_before(claims, now, LEEWAY_SECONDS);
        conditions.check("nbf", not_before.map(drop).map_err(Into::into));
        conditions.check("jti", claims.text("jti").map(drop).map_err(Into::into));
        conditions
    }

    fn expected(&self, name: &str) -> Option<String> {
        Some(match name {
            "typ" => ASSERTION.into(),
            "sub" => "the same as `iss`: the workload's name".into(),
            "aud" => format!("{}, and no other", self.own_issuer),
            "iat" => format!("at most {MAX_LIFE_SECONDS} seconds ago"),
            "exp" => format!("later than now, at most {MAX_LIFE_SECONDS} seconds after `iat`"),
            "nbf" => "not later than now".into(),
            "jti" => "a text of its own".into(),
            _ => return None,
        })
    }

    fn could_name(&self, name: &str) -> bool {
        // The name of a registered workload is one encoded value.
        Template::parse("{workload}").is_ok_and(|template| template.could_render(name))
    }

    fn configured_keys(&self, token: &UnverifiedJwt) -> Vec<VerificationKey> {
        let workload = token.unverified_issuer().unwrap_or_default();
        self.configured.get(workload).cloned().unwrap_or_default()
    }

    fn recognises(&self, presented: &Presented<'_>) -> bool {
        let audience = self.own_issuer.as_str();
        self.issued(presented)
            && presented
                .token()
                .is_ok_and(|token| token.unverified_audiences().contains(&audience))
    }

    fn issued(&self, presented: &Presented<'_>) -> bool {
        presented
            .token()
            .is_ok_and(|token| token.unverified_is_type(ASSERTION))
    }

    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>> {
        Box::pin(async move { self.appraise_assertion(presented.token()?, now).await })
    }
}
