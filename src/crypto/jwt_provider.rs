//! The back end of jsonwebtoken on *ring*: verifies RS, PS, ES256, ES384 and Ed25519, and signs
//! ES256, Ed25519 and RS256.
//!
//! [`PROVIDER`] is the back end, and `KeyPair` a parsed private key. The back end has no HMAC, so
//! a token that claims HS256 and was made with one of the broker's public keys fails with an
//! unknown algorithm. A key of another family than the algorithm is refused too.
//!
//! Errors are those of jsonwebtoken; they quote no key. [`super::jwk`] verifies and
//! [`super::signer`] signs with this file directly. [`install`] serves libraries that call
//! jsonwebtoken themselves, whose first call would otherwise panic. If another back end was
//! installed before, it only logs a warning.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey,
};

/// The back end.
pub static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: rsa_components_of_private,
        rsa_pub_components_from_public_key: |_| unsupported(),
        ec_pub_components_from_private_key: ec_components_of_private,
        ed_pub_components_from_private_key: ed_component_of_private,
        compute_digest,
    },
};

/// Makes [`PROVIDER`] the default of the process. May be called repeatedly.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if PROVIDER.install_default().is_err() {
            tracing::warn!("another JWT back end was installed before ours; ours is used directly");
        }
    });
}

fn unsupported<T>() -> Result<T> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

enum PublicKey {
    Rsa {
        parameters: &'static signature::RsaParameters,
        key: PublicKeyComponents<Vec<u8>>,
    },
    Other(UnparsedPublicKey<Vec<u8>>),
}

struct RingVerifier {
    algorithm: Algorithm,
    key: PublicKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), SignatureError> {
        match &self.key {
            PublicKey::Rsa { parameters, key } => key.verify(parameters, message, signature),
            PublicKey::Other(key) => key.verify(message, signature),
        }
        .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the library fixes the signature"
)]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let parsed = match algorithm.family() {
        AlgorithmFamily::Rsa => PublicKey::Rsa {
            parameters: rsa_parameters(*algorithm)?,
            key: match key.kind() {
                DecodingKeyKind::RsaModulusExponent { n, e } => PublicKeyComponents {
                    n: n.clone(),
                    e: e.clone(),
                },
                DecodingKeyKind::SecretOrDer(_) => return Err(ErrorKind::InvalidKeyFormat.into()),
            },
        },
        AlgorithmFamily::Ec | AlgorithmFamily::Ed => {
            let how: &'static dyn signature::VerificationAlgorithm = match algorithm {
                Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
                Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
                Algorithm::EdDSA => &signature::ED25519,
                _ => return unsupported(),
            };
            PublicKey::Other(UnparsedPublicKey::new(
                how,
                key.try_get_as_bytes()?.to_vec(),
            ))
        }
        AlgorithmFamily::Hmac => return unsupported(),
    };
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        key: parsed,
    }))
}

fn rsa_parameters(algorithm: Algorithm) -> Result<&'static signature::RsaParameters> {
    Ok(match algorithm {
        Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return unsupported(),
    })
}

/// A parsed private key of one of the three signing algorithms.
pub(super) enum KeyPair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    /// RSA, PKCS#1 v1.5 with SHA-256.
    Rsa(Box<RsaKeyPair>),
}

impl KeyPair {
    /// Parses PKCS#8. *ring* checks that both halves of the key belong together.
    pub(super) fn from_pkcs8(
        algorithm: Algorithm,
        pkcs8: &[u8],
        random: &SystemRandom,
    ) -> Result<Self> {
        match algorithm {
            Algorithm::ES256 => {
                EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, random)
                    .map(Self::Ecdsa)
                    .map_err(|_| ErrorKind::InvalidEcdsaKey.into())
            }
            // A version 1 file, as OpenSSL writes it, has no public half to compare with.
            Algorithm::EdDSA => Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
                .map(Self::Ed25519)
                .map_err(|_| ErrorKind::InvalidEddsaKey.into()),
            Algorithm::RS256 => RsaKeyPair::from_pkcs8(pkcs8)
                .map(|pair| Self::Rsa(Box::new(pair)))
                .map_err(|_| ErrorKind::InvalidRsaKey("rejected".into()).into()),
            _ => unsupported(),
        }
    }

    /// Signs `message`; ECDSA uses the fixed encoding of JWS.
    pub(super) fn sign(
        &self,
        message: &[u8],
        random: &SystemRandom,
    ) -> std::result::Result<Vec<u8>, ring::error::Unspecified> {
        match self {
            Self::Ecdsa(pair) => Ok(pair.sign(random, message)?.as_ref().to_vec()),
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, random, message, &mut out)?;
                Ok(out)
            }
        }
    }
}

struct RingSigner {
    algorithm: Algorithm,
    key: KeyPair,
    random: SystemRandom,
}

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, SignatureError> {
        self.key
            .sign(message, &self.random)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the library fixes the signature"
)]
fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let random = SystemRandom::new();
    Ok(Box::new(RingSigner {
        algorithm: *algorithm,
        key: KeyPair::from_pkcs8(*algorithm, key.as_bytes(), &random)?,
        random,
    }))
}

fn rsa_components_of_private(pkcs8: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let pair =
        RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| ErrorKind::InvalidRsaKey("rejected".into()))?;
    let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
    Ok((public.n, public.e))
}

fn ec_components_of_private(
    pkcs8: &[u8],
    algorithm: Algorithm,
) -> Result<(EllipticCurve, Vec<u8>, Vec<u8>)> {
    let (curve, how, size) = match algorithm {
        Algorithm::ES256 => (
            EllipticCurve::P256,
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            32,
        ),
        Algorithm::ES384 => (
            EllipticCurve::P384,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            48,
        ),
        _ => return unsupported(),
    };
    let pair = EcdsaKeyPair::from_pkcs8(how, pkcs8, &SystemRandom::new())
        .map_err(|_| ErrorKind::InvalidEcdsaKey)?;
    // The uncompressed point: 0x04, x, y.
    let (x, y) = pair
        .public_key()
        .as_ref()
        .get(1..)
        .and_then(|point| point.split_at_checked(size))
        .ok_or(ErrorKind::InvalidEcdsaKey)?;
    Ok((curve, x.to_vec(), y.to_vec()))
}

fn ed_component_of_private(pkcs8: &[u8], curve: &EllipticCurve) -> Result<Vec<u8>> {
    if *curve != EllipticCurve::Ed25519 {
        return unsupported();
    }
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
        .map(|pair| pair.public_key().as_ref().to_vec())
        .map_err(|_| ErrorKind::InvalidEddsaKey.into())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the library fixes the signature"
)]
fn compute_digest(bytes: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>> {
    let algorithm = match hash {
        ThumbprintHash::SHA256 => &ring::digest::SHA256,
        ThumbprintHash::SHA384 => &ring::digest::SHA384,
        ThumbprintHash::SHA512 => &ring::digest::SHA512,
        _ => return unsupported(),
    };
    Ok(ring::digest::digest(algorithm, bytes).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_keys;
    use serde_json::{Value, json};

    /// A new P-256 key: private and public half.
    fn p256() -> (Vec<u8>, Vec<u8>) {
        let random = SystemRandom::new();
        let how = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        (document.as_ref().to_vec(), public)
    }

    #[test]
    fn install_is_idempotent_and_serves_the_library_itself() {
        install();
        install();
        let (private, public) = p256();
        let token = jsonwebtoken::encode(
            &jsonwebtoken::Header::new(Algorithm::ES256),
            &json!({"sub": "x"}),
            &EncodingKey::from_ec_der(&private),
        )
        .unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let check = |key: &DecodingKey, algorithm| {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm)
        };
        let key = DecodingKey::from_ec_der(&public);
        assert!(check(&key, Algorithm::ES256).unwrap());
        assert!(!check(&key, Algorithm::ES384).unwrap());
        assert!(check(&key, Algorithm::EdDSA).is_err());
        assert!(check(&key, Algorithm::HS256).is_err());
        assert!(check(&DecodingKey::from_secret(&public), Algorithm::HS256).is_err());
    }

    #[test]
    fn hmac_cannot_be_had() {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            assert!(
                (PROVIDER.signer_factory)(&algorithm, &EncodingKey::from_secret(b"x")).is_err()
            );
            assert!(
                (PROVIDER.verifier_factory)(&algorithm, &DecodingKey::from_secret(b"x")).is_err()
            );
        }
    }

    #[test]
    fn thumbprints_and_public_keys_of_private_ones_agree() {
        install();
        let rsa = test_keys::rsa_pkcs8();
        for (key, algorithm) in [
            (EncodingKey::from_ec_der(&p256().0), Algorithm::ES256),
            (EncodingKey::from_rsa_der(&rsa), Algorithm::RS256),
        ] {
            let theirs = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, algorithm).unwrap();
            let mut members: Value = serde_json::to_value(&theirs).unwrap();
            members
                .as_object_mut()
                .unwrap()
                .retain(|_, value| !value.is_null());
            let ours: crate::crypto::PublicJwk = serde_json::from_value(members).unwrap();
            assert_eq!(
                theirs.thumbprint(ThumbprintHash::SHA256).unwrap(),
                ours.thumbprint()
            );
        }
    }
}
