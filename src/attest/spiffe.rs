//! JWT-SVIDs of one SPIFFE trust domain.
//!
//! [`Spiffe`] is the attestor. An SVID needs no `iss`. The trust domain of `sub` determines its
//! keys: those in the domain's bundle that are for JWT-SVIDs. The identity is the attestor's name
//! and the path. [`super::spiffe_id`] splits the SPIFFE ID.
//!
//! A token that fails a condition is [`Refused`], with the reason for its holder only if the
//! signature verified. A bundle that cannot be fetched is [`AttestError::IssuerUnreachable`], which
//! is transient. [`super::jwks`] fetches the bundle, and [`super::Attestors`] calls this file.
//! Single use and proofs of possession are not checked here.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::checks::{AttestorConfigError, refuse_endpoint};
use super::error::Refused;
use super::explain::Conditions;
use super::jwks::{self, KeyError, KeySource, KeyUse};
use super::spiffe_id::SpiffeId;
use super::{AttestContext, AttestError, Attestor, Presented, one_time};
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::{
    Claims, UnverifiedJwt, VerifiedClaims, check_expiry, check_issued_at, check_not_before,
    check_times,
};
use crate::domain::endpoint::EndpointUse;
use crate::domain::trust::SpiffeSpec;
use crate::domain::workload::{ClaimValue, Identity, Workload};

/// The algorithms that the standard permits and this build supports. `EdDSA` is not among them.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Es256,
    Algorithm::Es384,
];

/// The header parameters that the standard permits.
const HEADER: &[&str] = &["alg", "kid", "typ"];

/// An attestor for one trust domain.
pub(super) struct Spiffe {
    spec: SpiffeSpec,
    keys: Arc<KeySource>,
}

impl Spiffe {
    /// Creates an attestor from a specification that passed [`super::check`].
    pub(super) fn new(
        spec: &SpiffeSpec,
        context: &AttestContext,
    ) -> Result<Self, AttestorConfigError> {
        let bundle = context.endpoints.find(&spec.bundle, EndpointUse::Keys);
        let bundle = bundle.map_err(|unfit| refuse_endpoint(&spec.name, "bundle", &unfit))?;
        Ok(Self {
            keys: KeySource::at(
                &spec.name,
                bundle,
                KeyUse::JwtSvid,
                spec.max_stale_seconds,
                context.tracker.clone(),
            ),
            spec: spec.clone(),
        })
    }

    async fn appraise_token(
        &self,
        token: &UnverifiedJwt,
        now: Timestamp,
    ) -> Result<Workload, Refused> {
        if !token.unverified_claims().header_has_only(HEADER) {
            return Err(AttestError::WrongType.into());
        }
        let algorithm = token.unverified_algorithm();
        if !ALGORITHMS.contains(&algorithm) {
            return Err(AttestError::WrongAlgorithm.into());
        }
        let keys = self.keys.keys(token.unverified_kid(), algorithm, now).await;
        let keys = keys.map_err(|error| match error {
            KeyError::Unknown => AttestError::UnknownKey,
            KeyError::Unreachable => AttestError::IssuerUnreachable,
        })?;
        let claims = jwks::verify_with(token, &keys, &ALGORITHMS)?;
        self.judge(&claims, now).map_err(Refused::signed)
    }

    fn judge(&self, claims: &VerifiedClaims, now: Timestamp) -> Result<Workload, AttestError> {
        self.conditions(claims, now).hold()?;
        let id = SpiffeId::parse(claims.subject()?).ok_or(AttestError::Identity)?;
        let leeway = self.spec.leeway_seconds;
        let times = check_times(claims, now, leeway, self.spec.max_age_seconds)?;
        let expires_at = times.expires_at.plus_seconds(leeway).plus_seconds(1);
        let lives = times.issued_at..expires_at;
        let domain = self.spec.trust_domain.as_bytes();
        let evidence = match claims.token_id()? {
            Some(id) => one_time("svid-jti", &[domain, id.as_bytes()], lives),
            None => one_time("svid-token", &[domain, &claims.signing_input_hash()], lives),
        };
        let text = |text: &str| ClaimValue::String(text.to_owned());
        Ok(Workload {
            attestor: self.spec.name.clone(),
            identity: self.identity(id)?,
            instance: None,
            claims: BTreeMap::from([
                ("path".to_owned(), text(id.path)),
                ("trust_domain".to_owned(), text(id.trust_domain)),
            ]),
            issued_at: times.issued_at,
            reuse: self.spec.reuse,
            evidence,
            proofs: Vec::new(),
            key: None,
        })
    }

    /// No character of a path needs encoding, and slashes separate its segments.
    fn identity(&self, id: SpiffeId<'_>) -> Result<Identity, AttestError> {
        let identity = format!("{}:{}", self.spec.name, id.path);
        Identity::try_from(identity).map_err(|_| AttestError::Identity)
    }

    fn check_subject(&self, claims: &Claims) -> Result<(), AttestError> {
        let id = SpiffeId::parse(claims.subject()?);
        let id = id.ok_or_else(|| AttestError::ClaimType("sub".into()))?;
        if id.trust_domain != self.spec.trust_domain {
            return Err(AttestError::RequiredClaim("sub".into()));
        }
        self.identity(id).map(drop)
    }
}

impl Attestor for Spiffe {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn leeway_seconds(&self) -> u64 {
        self.spec.leeway_seconds
    }

    fn algorithms(&self) -> &[Algorithm] {
        &ALGORITHMS
    }

    fn conditions(&self, claims: &Claims, now: Timestamp) -> Conditions {
        let mut conditions = Conditions::default();
        let typed = claims.has_type() && !claims.is_type("JWT") && !claims.is_type("JOSE");
        let right_type = claims.header_has_only(HEADER) && !typed;
        conditions.check(
            "typ",
            right_type.then_some(()).ok_or(AttestError::WrongType),
        );
        let audiences = claims.audiences().map_err(|_| AttestError::WrongAudience);
        let audience = audiences.and_then(|audiences| match audiences.as_slice() {
            [only] if *only == self.spec.audience => Ok(()),
            _ => Err(AttestError::WrongAudience),
        });
        conditions.check("aud", audience);
        conditions.check("sub", self.check_subject(claims));
        let leeway = self.spec.leeway_seconds;
        let issued = check_issued_at(claims, now, leeway, self.spec.max_age_seconds);
        conditions.check("iat", issued.map(drop).map_err(Into::into));
        let expiry = check_expiry(claims, now, leeway);
        conditions.check("exp", expiry.map(drop).map_err(Into::into));
        let not_before = check_not_before(claims, now, leeway);
        conditions.check("nbf", not_before.map(drop).map_err(Into::into));
        conditions.check("jti", claims.token_id().map(drop).map_err(Into::into));
        conditions
    }

    fn expected(&self, name: &str) -> Option<String> {
        Some(match name {
            "typ" => "JWT, JOSE, or none; otherwise only `alg` and `kid`".into(),
            "aud" => format!("{} alone", self.spec.audience),
            "sub" => format!("spiffe://{}/…", self.spec.trust_domain),
            "iat" => format!("at most {} seconds ago", self.spec.max_age_seconds),
            "exp" => "later than now, and than `iat`".into(),
            "nbf" => "not later than now".into(),
            _ => return None,
        })
    }

    fn could_name(&self, name: &str) -> bool {
        SpiffeId::parse(&format!("spiffe://{}/{name}", self.spec.trust_domain)).is_some()
    }

    fn key_use(&self) -> KeyUse {
        KeyUse::JwtSvid
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
            let id = token.unverified_subject().and_then(SpiffeId::parse);
            !token.unverified_is_type(super::key::ASSERTION)
                && id.is_some_and(|id| id.trust_domain == self.spec.trust_domain)
        })
    }

    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>> {
        Box::pin(async move { self.appraise_token(presented.token()?, now).await })
    }
}
