//! Signing: a seam that a key service fits behind, and keys of our own.
//!
//! [`Signer`] is asynchronous because a key service answers over the network; [`LocalSigner`]
//! answers at once. It parses its key one time and computes the public half from the private one,
//! so what is published is always what signs.
//!
//! P-256 and Ed25519 keys are generated here, by *ring* with the system's randomness: *ring* takes
//! no other source for keys, so [`crate::ids::Random`] does not reach this file. *ring* cannot
//! generate RSA keys. Who needs RS256 supplies one with [`PrivateKey::import_rsa_pem`], made by
//! `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::SecretString;
use serde::Serialize;
use zeroize::{Zeroize as _, Zeroizing};

use super::jwk::{Algorithm, PublicJwk};
use super::jwt_provider::KeyPair;

/// The largest private key that is read: RSA of 4096 bits is under 2,400 bytes.
const MAX_PRIVATE_KEY_BYTES: usize = 16 * 1024;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The primitive failed, for want of randomness as a rule.
    #[error("signing failed")]
    Failed,
    /// The key service did not answer, or refused.
    #[error("the key service did not sign")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The claims do not serialise.
    #[error("the claims cannot be written as JSON")]
    Claims(#[source] serde_json::Error),
}

/// Why a private key was refused. It says what is wrong and nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// We do not sign with it.
    #[error("keys for {0} are for verification only; sign with ES256, EdDSA or RS256")]
    NotForSigning(Algorithm),
    /// *ring* cannot make RSA keys.
    #[error("an RSA key cannot be generated here: import one in PKCS#8 form")]
    CannotGenerateRsa,
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    NoRandomness,
    /// Not PEM with `BEGIN PRIVATE KEY`.
    #[error("the key is not PEM with `BEGIN PRIVATE KEY` (PKCS#8, unencrypted)")]
    NotPem,
    /// Not a key of that algorithm, or its halves do not belong together, or it is too weak.
    #[error("the key is not a sound {0} private key in PKCS#8 form")]
    Rejected(Algorithm),
}

/// A private key as PKCS#8: to be sealed, or to sign with. Erased when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    algorithm: Algorithm,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, [redacted])", self.algorithm)
    }
}

impl PrivateKey {
    /// A new key: P-256 for ES256, or Ed25519.
    pub fn generate(algorithm: Algorithm) -> Result<Self, PrivateKeyError> {
        let random = SystemRandom::new();
        let document = match algorithm {
            Algorithm::Es256 => {
                EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            }
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(&random),
            Algorithm::Rs256 => return Err(PrivateKeyError::CannotGenerateRsa),
            other => return Err(PrivateKeyError::NotForSigning(other)),
        }
        .map_err(|_| PrivateKeyError::NoRandomness)?;
        Ok(Self {
            algorithm,
            pkcs8: Zeroizing::new(document.as_ref().to_vec()),
        })
    }

    /// A key that was kept, as an opened envelope holds it. It is parsed, so that a wrong one is
    /// found now and not at the first signature.
    pub fn from_pkcs8(
        algorithm: Algorithm,
        pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, PrivateKeyError> {
        let key = Self { algorithm, pkcs8 };
        LocalSigner::new(&key)?;
        Ok(key)
    }

    /// An RSA key that the operator made: unencrypted PKCS#8 in PEM, 2048 to 4096 bits.
    pub fn import_rsa_pem(pem: &[u8]) -> Result<Self, PrivateKeyError> {
        if pem.len() > MAX_PRIVATE_KEY_BYTES {
            return Err(PrivateKeyError::NotPem);
        }
        let mut der =
            PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| PrivateKeyError::NotPem)?;
        let pkcs8 = Zeroizing::new(der.secret_pkcs8_der().to_vec());
        der.zeroize();
        Self::from_pkcs8(Algorithm::Rs256, pkcs8)
    }

    /// What it signs with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes, for the sealer and nobody else.
    #[must_use]
    pub fn expose_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// Who signs, here or far away.
pub trait Signer: Send + Sync {
    /// With which algorithm.
    fn algorithm(&self) -> Algorithm;

    /// The public key. Its `kid` is [`Self::kid`].
    fn public_jwk(&self) -> &PublicJwk;

    /// The key's id.
    fn kid(&self) -> &str;

    /// The signature of `message`, in the form that JWS wants.
    fn sign<'a>(&'a self, message: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>>;
}

/// A key in this process, parsed once.
pub struct LocalSigner {
    algorithm: Algorithm,
    pair: KeyPair,
    random: SystemRandom,
    jwk: PublicJwk,
    kid: String,
}

impl fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSigner")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl LocalSigner {
    /// A signer with this key. Its `kid` is the public key's thumbprint.
    pub fn new(key: &PrivateKey) -> Result<Self, PrivateKeyError> {
        let algorithm = key.algorithm;
        if !matches!(
            algorithm,
            Algorithm::Es256 | Algorithm::EdDsa | Algorithm::Rs256
        ) {
            return Err(PrivateKeyError::NotForSigning(algorithm));
        }
        let rejected = PrivateKeyError::Rejected(algorithm);
        let random = SystemRandom::new();
        let pair = KeyPair::from_pkcs8(algorithm.in_library(), &key.pkcs8, &random)
            .map_err(|_| rejected)?;
        let jwk = match &pair {
            KeyPair::Ecdsa(pair) => PublicJwk::from_p256(pair.public_key().as_ref()),
            KeyPair::Ed25519(pair) => pair
                .public_key()
                .as_ref()
                .try_into()
                .map(PublicJwk::from_ed25519)
                .map_err(|_| super::jwk::JwkError::BadNumber("x")),
            KeyPair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                PublicJwk::from_rsa(public.n, public.e)
            }
        }
        .map_err(|_| rejected)?;
        Ok(Self {
            algorithm,
            pair,
            random,
            kid: jwk.thumbprint(),
            jwk,
        })
    }
}

impl Signer for LocalSigner {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn public_jwk(&self) -> &PublicJwk {
        &self.jwk
    }

    fn kid(&self) -> &str {
        &self.kid
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            self.pair
                .sign(message, &self.random)
                .map_err(|_| SignError::Failed)
        })
    }
}

#[derive(Serialize)]
struct Header<'a> {
    alg: Algorithm,
    typ: &'a str,
    kid: &'a str,
}

/// A signed JWT in compact form, with `alg`, `typ` and `kid` in its header and nothing more.
pub async fn sign_jwt(
    typ: &str,
    claims: &(impl Serialize + Sync),
    signer: &dyn Signer,
) -> Result<SecretString, SignError> {
    let header = serde_json::to_vec(&Header {
        alg: signer.algorithm(),
        typ,
        kid: signer.kid(),
    })
    .map_err(SignError::Claims)?;
    let claims = Zeroizing::new(serde_json::to_vec(claims).map_err(SignError::Claims)?);
    // Room for the longest signature (RSA, 4096 bits) too: a string that grows leaves copies.
    let capacity = (header.len() + claims.len()) / 3 * 4 + 700;
    let mut token = String::with_capacity(capacity);
    URL_SAFE_NO_PAD.encode_string(&header, &mut token);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(&*claims, &mut token);
    let signature = match signer.sign(token.as_bytes()).await {
        Ok(signature) => signature,
        Err(error) => {
            token.zeroize();
            return Err(error);
        }
    };
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
    Ok(token.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{UnverifiedJwt, VerificationKey, test_keys, verify};
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    #[tokio::test]
    async fn a_signed_jwt_verifies_with_the_published_key() {
        let rsa = PrivateKey::import_rsa_pem(test_keys::RSA_PEM.as_bytes()).unwrap();
        for key in [
            PrivateKey::generate(Algorithm::Es256).unwrap(),
            PrivateKey::generate(Algorithm::EdDsa).unwrap(),
            rsa,
        ] {
            let signer = LocalSigner::new(&key).unwrap();
            let signer: &dyn Signer = &signer;
            let claims = json!({"sub": "a"});
            let token = sign_jwt("at+jwt", &claims, signer).await.unwrap();
            let token = UnverifiedJwt::parse(token.expose_secret()).unwrap();
            assert_eq!(token.unverified_kid(), Some(signer.kid()));
            let published = serde_json::to_vec(signer.public_jwk()).unwrap();
            let public = VerificationKey::parse(&published).unwrap();
            assert_eq!(public.thumbprint(), signer.kid());
            assert_eq!(public.kid(), Some(signer.kid()));
            assert_eq!(public.algorithms(), [key.algorithm()]);
            let claims = verify(&token, &public, &[key.algorithm()]).unwrap();
            assert!(claims.is_type("at+jwt"));
        }
    }

    #[test]
    fn a_kept_key_is_the_same_key() {
        for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let pkcs8 = Zeroizing::new(key.expose_pkcs8().to_vec());
            let again = PrivateKey::from_pkcs8(algorithm, pkcs8).unwrap();
            assert_eq!(
                LocalSigner::new(&key).unwrap().kid(),
                LocalSigner::new(&again).unwrap().kid()
            );
        }
    }

    #[test]
    fn the_public_key_of_rfc_8037_follows_from_its_private_one() {
        let seed = URL_SAFE_NO_PAD
            .decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
            .unwrap();
        // PKCS#8 version 1, as OpenSSL writes it: a frame and the seed.
        let frame = [
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ];
        let pkcs8 = Zeroizing::new([&frame[..], &seed].concat());
        let key = PrivateKey::from_pkcs8(Algorithm::EdDsa, pkcs8).unwrap();
        let signer = LocalSigner::new(&key).unwrap();
        assert_eq!(signer.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn keys_that_we_cannot_make_or_use_are_refused() {
        assert_eq!(
            PrivateKey::generate(Algorithm::Rs256).unwrap_err(),
            PrivateKeyError::CannotGenerateRsa
        );
        assert_eq!(
            PrivateKey::generate(Algorithm::Ps256).unwrap_err(),
            PrivateKeyError::NotForSigning(Algorithm::Ps256)
        );
        let p256 = PrivateKey::generate(Algorithm::Es256).unwrap();
        for algorithm in [Algorithm::EdDsa, Algorithm::Rs256] {
            let pkcs8 = Zeroizing::new(p256.expose_pkcs8().to_vec());
            assert_eq!(
                PrivateKey::from_pkcs8(algorithm, pkcs8).unwrap_err(),
                PrivateKeyError::Rejected(algorithm)
            );
        }
        for pem in [
            "",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            &"x".repeat(MAX_PRIVATE_KEY_BYTES + 1),
        ] {
            assert_eq!(
                PrivateKey::import_rsa_pem(pem.as_bytes()).unwrap_err(),
                PrivateKeyError::NotPem
            );
        }
        let empty = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(
            PrivateKey::import_rsa_pem(empty.as_bytes()).unwrap_err(),
            PrivateKeyError::Rejected(Algorithm::Rs256)
        );
    }

    #[test]
    fn debug_shows_no_private_byte() {
        let key = PrivateKey::import_rsa_pem(test_keys::RSA_PEM.as_bytes()).unwrap();
        let signer = LocalSigner::new(&key).unwrap();
        let shown = format!("{key:?} {key:#?} {signer:?} {signer:#?}");
        assert!(shown.contains("redacted") && shown.contains(signer.kid()));
        // Neither as a list of bytes nor as hex nor as base64.
        assert!(!shown.contains("48, 130") && !shown.contains("3082") && !shown.contains("MII"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_key_parsers_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            drop(PrivateKey::import_rsa_pem(&bytes));
            for algorithm in Algorithm::ALL {
                drop(PrivateKey::from_pkcs8(algorithm, Zeroizing::new(bytes.clone())));
            }
        }
    }
}
