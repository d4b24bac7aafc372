//! JWT-SVIDs of one SPIFFE trust domain.
//!
//! An SVID needs no `iss`. Whose key it must be signed with follows from the trust domain of `sub`,
//! and the keys come from that domain's bundle alone, among them only those that are for JWT-SVIDs.
//! A SPIFFE ID is taken apart and compared as trust domain and path, never by how a text begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::checks::{AttestorConfigError, refuse_endpoint};
use super::jwks::{KeyError, KeySource, KeyUse};
use super::{AttestContext, AttestError, Attestor, Presented, one_time};
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::{UnverifiedJwt, check_times, verify};
use crate::domain::endpoint::EndpointUse;
use crate::domain::trust::SpiffeSpec;
use crate::domain::workload::{ClaimValue, Identity, Workload};

/// What the standard allows, as far as we can verify it. `EdDSA` is not allowed.
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

/// The longest SPIFFE ID and the longest trust domain that the standard allows.
const MAX_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A SPIFFE ID, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SpiffeId<'a> {
    trust_domain: &'a str,
    /// Without its first slash, never empty.
    path: &'a str,
}

impl<'a> SpiffeId<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("spiffe://")?;
        let (trust_domain, path) = rest.split_once('/')?;
        let segment = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
        };
        let good = text.len() <= MAX_ID_BYTES
            && is_trust_domain(trust_domain)
            && path.split('/').all(segment);
        good.then_some(Self { trust_domain, path })
    }
}

/// Whether `text` can be a trust domain's name.
pub(super) fn is_trust_domain(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len()) && text.bytes().all(plain)
}

/// An attestor for one trust domain.
pub(super) struct Spiffe {
    spec: SpiffeSpec,
    keys: Arc<KeySource>,
}

impl Spiffe {
    /// From a specification that passed [`super::check`].
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
    ) -> Result<Workload, AttestError> {
        if !token.unverified_has_only(&["alg", "kid", "typ"]) {
            return Err(AttestError::WrongType);
        }
        let algorithm = token.unverified_algorithm();
        if !ALGORITHMS.contains(&algorithm) {
            return Err(AttestError::WrongAlgorithm);
        }
        let key = self.keys.key(token.unverified_kid(), algorithm, now).await;
        let key = key.map_err(|error| match error {
            KeyError::Unknown => AttestError::UnknownKey,
            KeyError::Unreachable => AttestError::IssuerUnreachable,
        })?;
        let claims = verify(token, &key, &ALGORITHMS)?;
        if claims.has_type() && !claims.is_type("JWT") && !claims.is_type("JOSE") {
            return Err(AttestError::WrongType);
        }
        match claims.audiences()?.as_slice() {
            [only] if *only == self.spec.audience => {}
            _ => return Err(AttestError::WrongAudience),
        }
        let subject = claims.subject()?;
        let id = SpiffeId::parse(subject).ok_or(AttestError::Identity)?;
        if id.trust_domain != self.spec.trust_domain {
            return Err(AttestError::UnknownIssuer);
        }
        let leeway = self.spec.leeway_seconds;
        let times = check_times(&claims, now, leeway, self.spec.max_age_seconds)?;
        let expires_at = times.expires_at.plus_seconds(leeway).plus_seconds(1);
        let domain = self.spec.trust_domain.as_bytes();
        let evidence = match claims.token_id()? {
            Some(id) => one_time("svid-jti", &[domain, id.as_bytes()], expires_at),
            None => one_time(
                "svid-token",
                &[domain, &claims.signing_input_hash()],
                expires_at,
            ),
        };
        // Of a path's characters none needs encoding, and its slashes separate its segments.
        let identity = Identity::try_from(format!("{}:{}", self.spec.name, id.path))
            .map_err(|_| AttestError::Identity)?;
        let text = |text: &str| ClaimValue::String(text.to_owned());
        Ok(Workload {
            attestor: self.spec.name.clone(),
            identity,
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
}

impl Attestor for Spiffe {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn leeway_seconds(&self) -> u64 {
        self.spec.leeway_seconds
    }

    fn recognises(&self, presented: &Presented<'_>) -> bool {
        presented.token().is_ok_and(|token| {
            let id = token.unverified_subject().and_then(SpiffeId::parse);
            !token.unverified_is_type(super::key::ASSERTION)
                && id.is_some_and(|id| id.trust_domain == self.spec.trust_domain)
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
        Box::pin(async move { self.appraise_token(presented.token()?, now).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_taken_apart_or_refused() {
        let good = SpiffeId::parse("spiffe://acme.example/ns/prod/sa/x_1.Y").unwrap();
        assert_eq!(good.trust_domain, "acme.example");
        assert_eq!(good.path, "ns/prod/sa/x_1.Y");
        for bad in [
            "spiffe://acme.example",
            "spiffe://acme.example/",
            "spiffe://acme.example/a/",
            "spiffe://acme.example//a",
            "spiffe://acme.example/a/../b",
            "spiffe://acme.example/a/./b",
            "spiffe://acme.example/a%2fb",
            "spiffe://acme.example/a?b",
            "spiffe://acme.example/a#b",
            "spiffe://acme.example:443/a",
            "spiffe://user@acme.example/a",
            "spiffe://Acme.example/a",
            "SPIFFE://acme.example/a",
            "spiffe:///a",
            "https://acme.example/a",
            "spiffe://acme.example/\u{e9}",
        ] {
            assert_eq!(SpiffeId::parse(bad), None, "{bad}");
        }
        let long = format!("spiffe://acme.example/{}", "a".repeat(MAX_ID_BYTES));
        assert_eq!(SpiffeId::parse(&long), None);
    }
}
