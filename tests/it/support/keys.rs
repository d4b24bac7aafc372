//! JOSE on ring alone: keys, their JWKs, and valid and invalid tokens. It is independent of the
//! product's signer, so that the tests check the product against a second implementation.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use serde_json::{Value, json};

use super::random_hex;

/// Made offline for these tests and published with them; it protects nothing.
const TEST_ONLY_RSA_KEY: &str = include_str!("test_only_rsa_key.pem");

/// A signature algorithm of JOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Es384,
    Rs256,
    Ps256,
    EdDsa,
}

impl Algorithm {
    pub const ALL: [Self; 5] = [
        Self::Es256,
        Self::Es384,
        Self::Rs256,
        Self::Ps256,
        Self::EdDsa,
    ];

    /// The value of `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A signing key.
pub struct Key {
    /// Its id, in its JWK and in the tokens it signs.
    pub kid: String,
    pub algorithm: Algorithm,
    signer: Signer,
    public_pem: String,
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    /// A new key with a random id. All RSA keys share the embedded pair, because ring cannot make
    /// one and doing it otherwise takes long.
    pub fn generate(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let pair = match algorithm {
            Algorithm::Es256 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::Es384 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::EdDsa => rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Algorithm::Rs256 | Algorithm::Ps256 => rcgen::KeyPair::from_pem(TEST_ONLY_RSA_KEY),
        }
        .unwrap();
        let der = pair.serialized_der();
        let ecdsa = |kind| Signer::Ecdsa(EcdsaKeyPair::from_pkcs8(kind, der, &random).unwrap());
        let signer = match algorithm {
            Algorithm::Es256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDsa => {
                Signer::Ed(Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).unwrap())
            }
            Algorithm::Rs256 | Algorithm::Ps256 => {
                Signer::Rsa(RsaKeyPair::from_pkcs8(der).unwrap())
            }
        };
        Self {
            kid: format!("{}-{}", algorithm.name().to_lowercase(), random_hex(4)),
            algorithm,
            signer,
            public_pem: pair.public_key_pem(),
        }
    }

    /// The public key as a JWK.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.signer {
            Signer::Ecdsa(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)})
            }
            Signer::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref())})
            }
            Signer::Rsa(pair) => {
                let public: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                json!({"kty": "RSA", "n": base64url(&public.n), "e": base64url(&public.e)})
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["alg"] = json!(self.algorithm.name());
        jwk["use"] = json!("sig");
        jwk
    }

    /// The public key as PEM, which an attacker uses as the "secret" when confusing HS256 with
    /// RS256.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The signature over `message`, in JOSE's format.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.signer {
            Signer::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Signer::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let padding: &'static dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                pair.sign(padding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    /// The header of this key's tokens: `alg`, `kid` and `typ`.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm.name(), "kid": self.kid, "typ": "JWT"})
    }
}

/// A JWT with exactly this header and these claims, signed by `key`, even if the header
/// names another key.
pub fn sign_jwt(header: &Value, claims: &Value, key: &Key) -> String {
    assemble(header, claims, |input| key.sign(input))
}

/// A JWT "signed" by HMAC-SHA-256 with `secret`, for instance with a public key's text.
pub fn hmac_jwt(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    assemble(header, claims, |input| {
        ring::hmac::sign(&key, input).as_ref().to_vec()
    })
}

/// A JWT with an empty signature.
pub fn unsigned_jwt(header: &Value, claims: &Value) -> String {
    assemble(header, claims, |_| Vec::new())
}

fn assemble(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| base64url(value.to_string().as_bytes());
    let input = format!("{}.{}", part(header), part(claims));
    let signature = base64url(&sign(input.as_bytes()));
    format!("{input}.{signature}")
}

/// The header and the claims of a JWT, without checking its signature.
pub fn peek(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&bytes).unwrap_or(Value::Null)
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

/// Whether `jwk` verifies `token`, with the algorithm in the token's header.
pub fn verifies(token: &str, jwk: &Value) -> bool {
    let member = |name: &str| {
        let text = jwk[name].as_str().unwrap_or_default();
        URL_SAFE_NO_PAD.decode(text).unwrap()
    };
    let (input, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (header, _) = peek(token);
    let plain = |algorithm: &'static dyn signature::VerificationAlgorithm, key: Vec<u8>| {
        signature::UnparsedPublicKey::new(algorithm, key)
            .verify(input.as_bytes(), &signature)
            .is_ok()
    };
    let rsa = |parameters: &'static signature::RsaParameters| {
        let (n, e) = (member("n"), member("e"));
        ring::rsa::PublicKeyComponents { n, e }
            .verify(parameters, input.as_bytes(), &signature)
            .is_ok()
    };
    let point = || [vec![4], member("x"), member("y")].concat();
    match header["alg"].as_str().unwrap() {
        "ES256" => plain(&signature::ECDSA_P256_SHA256_FIXED, point()),
        "ES384" => plain(&signature::ECDSA_P384_SHA384_FIXED, point()),
        "EdDSA" => plain(&signature::ED25519, member("x")),
        "RS256" => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        "PS256" => rsa(&signature::RSA_PSS_2048_8192_SHA256),
        _ => false,
    }
}

/// Unusable JWKs, on which a careless parser of a key set would fail.
pub fn odd_jwks() -> Vec<Value> {
    vec![
        json!({}),
        json!(7),
        json!({"kty": "RSA", "kid": "without-modulus", "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "tiny", "n": "AQAB", "e": "AQAB", "alg": "RS256"}),
        json!({"kty": "EC", "kid": "off-the-curve", "crv": "P-256", "x": base64url(&[1; 32]), "y": base64url(&[2; 32])}),
        json!({"kty": "EC", "kid": "unknown-curve", "crv": "P-999", "x": "AA", "y": "AA"}),
        json!({"kty": "oct", "kid": "symmetric", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}),
        json!({"kty": "AKP", "kid": "of-tomorrow", "alg": "ML-DSA-44", "pub": "AA"}),
        json!({"kty": "OKP", "kid": 5, "crv": "Ed25519", "x": "not base64url!"}),
    ]
}

/// Encodes `bytes` in base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

mod tests {
    use super::*;

    #[test]
    fn every_algorithm_signs_what_its_jwk_verifies_and_no_other_key_does() {
        for algorithm in Algorithm::ALL {
            let key = Key::generate(algorithm);
            let token = sign_jwt(&key.header(), &json!({"sub": "a"}), &key);
            assert!(verifies(&token, &key.jwk()), "{algorithm:?}");
            let (header, claims) = peek(&token);
            assert_eq!(header["kid"], json!(key.kid));
            assert_eq!(claims, json!({"sub": "a"}));

            let (head, tail) = token.split_once('.').unwrap();
            let (_, signature) = tail.split_once('.').unwrap();
            let forged = format!("{head}.{}.{signature}", base64url(b"{\"sub\":\"b\"}"));
            assert!(!verifies(&forged, &key.jwk()), "{algorithm:?}");
        }
        let (one, two) = (
            Key::generate(Algorithm::Es256),
            Key::generate(Algorithm::Es256),
        );
        let token = sign_jwt(&one.header(), &json!({}), &one);
        assert!(!verifies(&token, &two.jwk()));
    }

    #[test]
    fn bad_tokens_look_like_tokens() {
        let key = Key::generate(Algorithm::Rs256);
        assert!(key.public_pem().starts_with("-----BEGIN PUBLIC KEY-----"));
        let none = unsigned_jwt(&json!({"alg": "none"}), &json!({"sub": "a"}));
        assert!(none.ends_with('.'));
        let confused = hmac_jwt(
            &json!({"alg": "HS256", "kid": key.kid}),
            &json!({}),
            key.public_pem().as_bytes(),
        );
        assert_eq!(confused.split('.').count(), 3);
        assert!(!verifies(&confused, &key.jwk()));
    }
}
