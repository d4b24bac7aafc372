//! OpenID Connect tokens of one issuer: CI systems, clusters, clouds.
//!
//! The token must be from exactly this issuer, for exactly this audience and nobody else, of the
//! expected type, and signed with an algorithm that the configuration allows. Then the required
//! claims must be equal, and every declared claim must have its declared type: an id that is text
//! in one token and a number in the next would be two values to policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::checks::{AttestorConfigError, refuse_endpoint};
use super::jwks::{KeyError, KeySource, KeyUse};
use super::review::Review;
use super::template::Template;
use super::{AttestContext, AttestError, Attestor, Presented, one_time};
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::{VerifiedClaims, check_times, verify};
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
    /// From a specification that passed [`super::check`].
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
    ) -> Result<Workload, AttestError> {
        let token = presented.token()?;
        let algorithm = token.unverified_algorithm();
        // Before the key: a token that can never verify must not cause a fetch.
        if !self.algorithms.contains(&algorithm) {
            return Err(AttestError::WrongAlgorithm);
        }
        let key = self.keys.key(token.unverified_kid(), algorithm, now).await;
        let key = key.map_err(|error| match error {
            KeyError::Unknown => AttestError::UnknownKey,
            KeyError::Unreachable => AttestError::IssuerUnreachable,
        })?;
        let claims = verify(token, &key, &self.algorithms)?;
        self.check_addressing(&claims)?;
        let leeway = self.spec.leeway_seconds;
        let times = check_times(&claims, now, leeway, self.spec.max_age_seconds)?;
        self.check_conditions(&claims)?;
        let typed = self.typed_claims(&claims)?;
        let identity = format!("{}:{}", self.spec.name, render(&self.identity, &typed)?);
        let instance = match &self.instance {
            Some(template) => Some(render(template, &typed)?),
            None => None,
        };
        // Last: a cluster is shown only what its own keys have signed, for us.
        if let Some(review) = &self.review {
            let bearer = presented.evidence().bearer.as_ref();
            let bearer = bearer.ok_or(AttestError::Missing)?;
            review.check(bearer, &typed).await?;
        }
        let expires_at = times.expires_at.plus_seconds(leeway).plus_seconds(1);
        Ok(Workload {
            attestor: self.spec.name.clone(),
            identity: Identity::try_from(identity).map_err(|_| AttestError::Identity)?,
            instance: instance
                .map(Instance::try_from)
                .transpose()
                .map_err(|_| AttestError::Identity)?,
            evidence: self.evidence_id(&claims, expires_at)?,
            claims: self.visible(typed),
            issued_at: times.issued_at,
            reuse: self.spec.reuse,
            proofs: Vec::new(),
            key: None,
        })
    }

    /// Whether the token is of the right kind, from this issuer and for us alone.
    fn check_addressing(&self, claims: &VerifiedClaims) -> Result<(), AttestError> {
        let right_type = match &self.spec.typ {
            Some(typ) => claims.is_type(typ),
            None => !claims.has_type() || claims.is_type("JWT"),
        };
        if !right_type {
            return Err(AttestError::WrongType);
        }
        if claims.issuer()? != self.spec.issuer {
            return Err(AttestError::UnknownIssuer);
        }
        match claims.audiences()?.as_slice() {
            [only] if *only == self.spec.audience => Ok(()),
            _ => Err(AttestError::WrongAudience),
        }
    }

    /// A claim's value, wherever in the token it stands.
    fn find<'c>(&self, claims: &'c VerifiedClaims, name: &str) -> Option<&'c Value> {
        let declared = self.spec.claims.get(name);
        match declared.and_then(|claim| claim.from.as_deref()) {
            None => claims.get(name),
            Some(pointer) => {
                let rest = pointer.strip_prefix('/')?;
                let (first, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                // Within a pointer `~1` is a slash and `~0` a tilde, to be read in this order.
                let first = first.replace("~1", "/").replace("~0", "~");
                claims.get(&first)?.pointer(below)
            }
        }
    }

    /// What must hold whoever the workload is.
    fn check_conditions(&self, claims: &VerifiedClaims) -> Result<(), AttestError> {
        let refused = |name: &String| Err(AttestError::RequiredClaim(name.clone()));
        for (name, required) in &self.spec.required {
            if self.find(claims, name) != Some(required) {
                return refused(name);
            }
        }
        for (name, allowed) in &self.spec.allowed {
            let value = self.find(claims, name).and_then(Value::as_str);
            if !value.is_some_and(|value| allowed.contains(value)) {
                return refused(name);
            }
        }
        for (name, other) in &self.spec.equal {
            let second = self.find(claims, other);
            if second.is_some() && second != self.find(claims, name) {
                return refused(other);
            }
        }
        Ok(())
    }

    fn typed_claims(
        &self,
        claims: &VerifiedClaims,
    ) -> Result<BTreeMap<String, ClaimValue>, AttestError> {
        let mut typed = BTreeMap::new();
        for (name, declared) in &self.spec.claims {
            let value = match self.find(claims, name) {
                Some(value) => typed_value(value, declared.kind),
                None if declared.optional => continue,
                None => None,
            };
            let value = value.ok_or_else(|| AttestError::ClaimType(name.clone()))?;
            typed.insert(name.clone(), value);
        }
        Ok(typed)
    }

    fn visible(&self, mut typed: BTreeMap<String, ClaimValue>) -> BTreeMap<String, ClaimValue> {
        typed.retain(|name, _| self.spec.claims.get(name).is_some_and(|spec| !spec.hidden));
        typed
    }

    /// The token's one-time id. It never covers the signature: one token has many good ones.
    fn evidence_id(
        &self,
        claims: &VerifiedClaims,
        expires_at: Timestamp,
    ) -> Result<OneTime, AttestError> {
        let issuer = self.spec.issuer.as_bytes();
        if let Some(id) = claims.token_id()? {
            return Ok(one_time("oidc-jti", &[issuer, id.as_bytes()], expires_at));
        }
        let hash = claims.signing_input_hash();
        Ok(one_time("oidc-token", &[issuer, &hash], expires_at))
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

    fn leeway_seconds(&self) -> u64 {
        self.spec.leeway_seconds
    }

    fn recognises(&self, presented: &Presented<'_>) -> bool {
        presented.token().is_ok_and(|token| {
            // An assertion is for registered keys, even where both have one audience.
            !token.unverified_is_type(super::key::ASSERTION)
                && token.unverified_issuer() == Some(self.spec.issuer.as_str())
                && token
                    .unverified_audiences()
                    .contains(&self.spec.audience.as_str())
        })
    }

    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, AttestError>> {
        Box::pin(async move { self.appraise_token(presented, now).await })
    }
}
