//! Verifies signatures with a public key.
//!
//! [`VerificationKey`] is made of a [`PublicJwk`], so it passed every check, and uses only the
//! algorithms of its key. Each failure is [`BadSignature`], without a reason.
//!
//! `crypto::jwt` and the attestors verify with it.

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::super::jwt_provider::PROVIDER;
use super::{Algorithm, JwkError, Point, PublicJwk};

/// The signature does not fit key, algorithm and message. The error does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// A public key, prepared for verification.
#[derive(Clone)]
pub struct VerificationKey {
    jwk: PublicJwk,
    thumbprint: String,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey")
            .field("thumbprint", &self.thumbprint)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl From<PublicJwk> for VerificationKey {
    fn from(jwk: PublicJwk) -> Self {
        let uncompressed = |x: &[u8], y: &[u8]| [&[4], x, y].concat();
        let key = match &jwk.point {
            Point::P256 { x, y } => DecodingKey::from_ec_der(&uncompressed(x, y)),
            Point::P384 { x, y } => DecodingKey::from_ec_der(&uncompressed(x, y)),
            Point::Ed25519 { x } => DecodingKey::from_ed_der(x),
            Point::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
        };
        Self {
            thumbprint: jwk.thumbprint(),
            algorithms: jwk.algorithms(),
            jwk,
            key,
        }
    }
}

impl VerificationKey {
    /// Parses a JWK.
    pub fn parse(json: &[u8]) -> Result<Self, JwkError> {
        PublicJwk::parse(json).map(Self::from)
    }

    /// The public key.
    #[must_use]
    pub fn jwk(&self) -> &PublicJwk {
        &self.jwk
    }

    /// Its `kid`, if it has one.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.jwk.kid()
    }

    /// Its thumbprint (RFC 7638).
    #[must_use]
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The algorithms that it may verify.
    #[must_use]
    pub fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// Verifies that `signature` is a signature of `message` by this key, with an algorithm that
    /// the key permits.
    pub fn verify_signature(
        &self,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadSignature> {
        if !self.algorithms.contains(&algorithm) {
            return Err(BadSignature);
        }
        (PROVIDER.verifier_factory)(&algorithm.in_library(), &self.key)
            .map_err(|_| BadSignature)?
            .verify(message, &signature.to_vec())
            .map_err(|_| BadSignature)
    }
}
