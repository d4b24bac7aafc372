//! OpenID Connect tokens of one issuer: CI systems, clusters, clouds.
//!
//! [`Oidc`] is the attestor. The token must be from exactly this issuer, for exactly this audience
//! alone, of the expected type, and signed with an algorithm that the configuration permits. Then
//! the required claims must be equal, and every declared claim must have its declared type: an id
//! that is a text in one token and a number in the next would be two values to policy. Identity and
//! instance are rendered from immutable claims ([`super::template`]).
//!
//! A token that fails a condition is [`Refused`], with the reason for its holder only if the
//! signature verified. An issuer or a cluster that cannot be reached is a transient error.
//! [`super::jwks`] fetches the keys, [`super::review`] asks a cluster last, and
//! [`super::Attestors`] calls this file. Single use and proofs of possession are not checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::checks::{AttestorConfigError, refuse_endpoint};
use super::error::Refused;
use super::explain::Conditions;
use super::jwks::{self, KeyError, KeySource, KeyUse};
use super::review::Review;
use super::template::Template;
use super::{AttestContext, AttestError, Attestor, Presented, one_time};
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::{
    Claims, VerifiedClaims, check_expiry, check_issued_at, check_not_before, check_times,
};
use crate::domain::endpoint::{EndpointName, EndpointUse};
use crate::domain::limits::MAX_CLAIM_BYTES;
use crate::domain::trust::{ClaimType, OidcSpec};
use crate::domain::workload::{ClaimValue, Identity, Instance, OneTime, Workload};

/// An attestor for the tokens of one issuer.
pub(super) struct Oidc {
    spec: OidcSpec,
    algorithms: Vec<Algorithm>,
    identity: Template,
    instance: Option<Template>,
    keys: Arc<KeySource>,
    review: Option<Review>,
}

impl Oidc {
    /// Creates an attestor from a specification that passed [`super::check`].
    pub(super) fn new(
        spec: &OidcSpec,
        context: &AttestContext,
    ) -> Result<Self, AttestorConfigError> {
        let refuse = |key: &'static str, problem: String| AttestorConfigError {
            attestor: spec.name.clone(),
            key,
            problem,
            remedy: "correct it as the example configuration shows".into(),
        };
        let template = |key: &'static str, text: &str| {
            Template::parse(text).map_err(|error| refuse(key, error.to_string()))
        };
        let algorithms = spec.algorithms.iter().map(|name| name.parse::<Algorithm>());
        let endpoint = |key: &'static str, name: &Option<EndpointName>, used_for: EndpointUse| {
            let found = name
                .as_ref()
                .map(|name| context.endpoints.find(name, used_for));
            found
                .transpose()
                .map_err(|unfit| refuse_endpoint(&spec.name, key, &unfit))
        };
        let discovery = endpoint("discovery", &spec.discovery, EndpointUse::Discovery)?;
        let keys = match endpoint("keys_from", &spec.keys_from, EndpointUse::Keys)? {
            Some(endpoint) => KeySource::at(
                &spec.name,
                endpoint,
                KeyUse::Signatures,
                spec.max_stale_seconds,
                context.tracker.clone(),
            ),
            None => KeySource::discovered(
                &spec.name,
                &spec.issuer,
                discovery,
                spec.max_stale_seconds,
                context.tracker.clone(),
            )
            .map_err(|error| refuse("issuer", error.to_string()))?,
        };
        let review = endpoint("token_review", &spec.token_review, EndpointUse::TokenReview)?;
        Ok(Self {
            algorithms: algorithms
                .collect::<Result<_, _>>()
                .map_err(|error| refuse("algorithms", error.to_string()))?,
            identity: template("identity", &spec.identity)?,
            instance: spec
                .instance
                .as_deref()
                .map(|text| template("instance", text))
                .transpose()?,
            keys,
            review: review.map(|endpoint| Review::new(&spec.name, &spec.audience, endpoint)),
            spec: spec.clone(),
        })
    }

    async fn appraise_token(
        &self,
        presented: &Presented<'_>,
        now: Timestamp,
    ) -> Result<Workload, Refused> {
        let token = presented.token()?;
        let algorithm = token.unverified_algorithm();
        // Before the key lookup: a token that can never verify must not cause a fetch.
        if !self.algorithms.contains(&algorithm) {
            return Err(AttestError::WrongAlgorithm.into());
        }
        let keys = self.keys.keys(token.unverified_kid(), algorithm, now).await;
        let keys = keys.map_err(|error| match error {
            KeyError::Unknown => AttestError::UnknownKey,
            KeyError::Unreachable => AttestError::IssuerUnreachable,
        })?;
        let claims = jwks::verify_with(token, &keys, &self.algorithms)?;
        // From here on its holder may learn the reason of a refusal.
        let judged = self.judge(presented, &claims, now).await;
        judged.map_err(Refused::signed)
    }

    async fn judge(
        &self,
        presented: &Presented<'_>,
        claims: &VerifiedClaims,
        now: Timestamp,
    ) -> Result<Workload, AttestError> {
        self.conditions(claims, now).hold()?;
        let leeway = self.spec.leeway_seconds;
        let times = check_times(claims, now, leeway, self.spec.max_age_seconds)?;
        let typed = self.typed_claims(claims)?;
        let (identity, instance) = self.names(&typed)?;
        // Last: a cluster receives only tokens that its own keys have signed for this broker.
        if let Some(review) = &self.review {
            let bearer = presented.evidence().bearer.as_ref();
            let bearer = bearer.ok_or(AttestError::Missing)?;
            review.check(bearer, &typed).await?;
        }
        let expires_at = times.expires_at.plus_seconds(leeway).plus_seconds(1);
        Ok(Workload {
            attestor: self.spec.name.clone(),
            identity,
            instance,
            evidence: self.evidence_id(claims, times.issued_at..expires_at)?,
            claims: self.visible(typed),
            issued_at: times.issued_at,
            reuse: self.spec.reuse,
            proofs: Vec::new(),
            key: None,
        })
    }

    fn names(
        &self,
        typed: &BTreeMap<String, ClaimValue>,
    ) -> Result<(Identity, Option<Instance>), AttestError> {
        let identity = format!("{}:{}", self.spec.name, render(&self.identity, typed)?);
        let identity = Identity::try_from(identity).map_err(|_| AttestError::Identity)?;
        let instance = match &self.instance {
            Some(template) => Some(render(template, typed)?),
            None => None,
        };
        let instance = instance.map(Instance::try_from).transpose();
        Ok((identity, instance.map_err(|_| AttestError::Identity)?))
    }

    /// Checks that the token has the right type, comes from this issuer and is for this broker
    /// alone.
    fn check_addressing(&self, claims: &Claims, conditions: &mut Conditions) {
        let right_type = match &self.spec.typ {
            Some(typ) => claims.is_type(typ),
            None => !claims.has_type() || claims.is_type("JWT"),
        };
        conditions.check(
            "typ",
            right_type.then_some(()).ok_or(AttestError::WrongType),
        );
        let issuer = claims.issuer().map_err(AttestError::from);
        let issuer = issuer.and_then(|issuer| {
            let own = issuer == self.spec.issuer;
            own.then_some(()).ok_or(AttestError::UnknownIssuer)
        });
        conditions.check("iss", issuer);
        let audiences = claims.audiences().map_err(|_| AttestError::WrongAudience);
        let audience = audiences.and_then(|audiences| match audiences.as_slice() {
            [only] if *only == self.spec.audience => Ok(()),
            _ => Err(AttestError::WrongAudience),
        });
        conditions.check("aud", audience);
    }

    /// The value of a claim at its configured position in the token.
    fn find<'c>(&self, claims: &'c Claims, name: &str) -> Option<&'c Value> {
        let declared = self.spec.claims.get(name);
        match declared.and_then(|claim| claim.from.as_deref()) {
            None => claims.get(name),
            Some(pointer) => {
                let rest = pointer.strip_prefix('/')?;
                let (first, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                // In a pointer `~1` is a slash and `~0` a tilde, to be decoded in this order.
                let first = first.replace("~1", "/").replace("~0", "~");
                claims.get(&first)?.pointer(below)
            }
        }
    }

    /// Checks the conditions that are independent of the workload.
    fn check_claims(&self, claims: &Claims, conditions: &mut Conditions) {
        let mut check = |name: &String, holds: bool| {
            let result = holds.then_some(());
            let result = result.ok_or_else(|| AttestError::RequiredClaim(name.clone()));
            conditions.check(name.clone(), result);
        };
        for (name, required) in &self.spec.required {
            check(name, self.find(claims, name) == Some(required));
        }
        for (name, allowed) in &self.spec.allowed {
            let value = self.find(claims, name).and_then(Value::as_str);
            check(name, value.is_some_and(|value| allowed.contains(value)));
        }
        for (name, other) in &self.spec.equal {
            let second = self.find(claims, other);
            let equal = second.is_none() || second == self.find(claims, name);
            check(other, equal);
        }
        for name in self.spec.claims.keys() {
            conditions.check(name.clone(), self.typed_claim(claims, name).map(drop));
        }
    }

    /// The value of a declared claim in its declared type; `None` for an optional one that is
    /// missing.
    fn typed_claim(&self, claims: &Claims, name: &str) -> Result<Option<ClaimValue>, AttestError> {
        let wrong = || AttestError::ClaimType(name.to_owned());
        let declared = self.spec.claims.get(name).ok_or_else(wrong)?;
        match self.find(claims, name) {
            None if declared.optional => Ok(None),
            None => Err(wrong()),
            Some(value) => typed_value(value, declared.kind)
                .map(Some)
                .ok_or_else(wrong),
        }
    }

    fn typed_claims(&self, claims: &Claims) -> Result<BTreeMap<String, ClaimValue>, AttestError> {
        let mut typed = BTreeMap::new();
        for name in self.spec.claims.keys() {
            if let Some(value) = self.typed_claim(claims, name)? {
                typed.insert(name.clone(), value);
            }
        }
        Ok(typed)
    }

    fn visible(&self, mut typed: BTreeMap<String, ClaimValue>) -> BTreeMap<String, ClaimValue> {
        typed.retain(|name, _| self.spec.claims.get(name).is_some_and(|spec| !spec.hidden));
        typed
    }

    /// The token's one-time id. It does not cover the signature, because one token has many valid
    /// ones.
    fn evidence_id(
        &self,
        claims: &VerifiedClaims,
        lives: Range<Timestamp>,
    ) -> Result<OneTime, AttestError> {
        let issuer = self.spec.issuer.as_bytes();
        if let Some(id) = claims.token_id()? {
            return Ok(one_time("oidc-jti", &[issuer, id.as_bytes()], lives));
        }
        let hash = claims.signing_input_hash();
        Ok(one_time("oidc-token", &[issuer, &hash], lives))
    }
}

fn typed_value(value: &Value, kind: ClaimType) -> Option<ClaimValue> {
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| text.len() <= MAX_CLAIM_BYTES)
            .map(str::to_owned)
    };
    match kind {
        ClaimType::String => text(value).map(ClaimValue::String),
        ClaimType::Long => value.as_i64().map(ClaimValue::Long),
        ClaimType::Bool => value.as_bool().map(ClaimValue::Bool),
        ClaimType::Set => {
            let items = value.as_array()?.iter().map(text);
            items.collect::<Option<BTreeSet<_>>>().map(ClaimValue::Set)
        }
    }
}

fn render(
    template: &Template,
    typed: &BTreeMap<String, ClaimValue>,
) -> Result<String, AttestError> {
    let value_of = |name: &str| match typed.get(name)? {
        ClaimValue::String(text) => Some(text.clone()),
        ClaimValue::Long(number) => Some(number.to_string()),
        ClaimValue::Bool(truth) => Some(truth.to_string()),
        ClaimValue::Set(_) => None,
    };
    template
        .render(value_of)
        .map_err(|missing| AttestError::ClaimType(missing.0))
}

impl Attestor for Oidc {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    fn conditions(&self, claims: &Claims, now: Timestamp) -> Conditions {
        let mut conditions = Conditions::default();
        self.check_addressing(claims, &mut conditions);
        let leeway = self.spec.leeway_seconds;
        let issued = check_issued_at(claims, now, leeway, self.spec.max_age_seconds);
        conditions.check("iat", issued.map(drop).map_err(Into::into));
        let expiry = check_expiry(claims, now, leeway);
        conditions.check("exp", expiry.map(drop).map_err(Into::into));
        let not_before = check_not_before(claims, now, leeway);
        conditions.check("nbf", not_before.map(drop).map_err(Into::into));
        self.check_claims(claims, &mut conditions);
        conditions.check("jti", claims.token_id().map(drop).map_err(Into::into));
        if let Ok(typed) = self.typed_claims(claims) {
            conditions.check("identity", self.names(&typed).map(drop));
        }
        conditions
    }

    fn expected(&self, name: &str) -> Option<String> {
        let spec = &self.spec;
        match name {
            "alg" => return Some(format!("one of {}", spec.algorithms.join(", "))),
            "typ" => {
                let typ = spec.typ.as_deref();
                return Some(typ.unwrap_or("JWT, or none").to_owned());
            }
            "iss" => return Some(spec.issuer.clone()),
            "aud" => return Some(format!("{} alone", spec.audience)),
            "iat" => {
                let age = spec.max_age_seconds;
                return Some(format!("at most {age} seconds ago"));
            }
            "exp" => return Some("later than now, and than `iat`".into()),
            "nbf" => return Some("not later than now".into()),
            "identity" => return Some(format!("{}:{}", spec.name, spec.identity)),
            _ => {}
        }
        if let Some(required) = spec.required.get(name) {
            return Some(required.to_string());
        }
        if let Some(allowed) = spec.allowed.get(name) {
            let values: Vec<&str> = allowed.iter().map(String::as_str).collect();
            return Some(format!("one of {}", values.join(", ")));
        }
        if let Some((one, _)) = spec.equal.iter().find(|(_, other)| other == name) {
            return Some(format!("the value of `{one}`"));
        }
        let declared = spec.claims.get(name)?;
        Some(declared.kind.as_str().to_owned())
    }

    fn could_name(&self, name: &str) -> bool {
        self.identity.could_render(name)
    }

    fn is_reviewed(&self) -> bool {
        self.review.is_some()
    }

    fn leeway_seconds(&self) -> u64 {
        self.spec.leeway_seconds
    }

    fn recognises(&self, presented: &Presented<'_>) -> bool {
        let audience = self.spec.audience.as_str();
        self.issued(presented)
            && presented
                .token()
                .is_ok_and(|token| token.unverified_audiences().contains(&audience))
    }

    fn issued(&self, presented: &Presented<'_>) -> bool {
        presented.token().is_ok_and(|token| {
            // An assertion is for registered keys, even if both attestors have one audience.
            !token.unverified_is_type(super::key::ASSERTION)
                && token.unverified_issuer() == Some(self.spec.issuer.as_str())
        })
    }

    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>> {
        Box::pin(async move { self.appraise_token(presented, now).await })
    }
}
