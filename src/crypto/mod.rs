//! Cryptography: the only module that signs, seals and verifies tokens, and the only user of
//! jsonwebtoken. `merkle` uses *ring* too, to hash the tree and to verify notes, and `policy` to
//! hash a generation.
//!
//! It implements no primitives. It decides which primitives are used, with which keys and over
//! which bytes, and gives the rest of the crate types that are hard to misuse.
//!
//! # Input
//! A token is first an [`jwt::UnverifiedJwt`]: parsed, of limited size, and readable only through
//! names that contain *unverified*. [`jwt::verify`] turns it into [`jwt::VerifiedClaims`] with a
//! [`jwk::VerificationKey`] and the caller's list of algorithms. [`jwt::check_times`] then checks
//! the dates at an instant that is a parameter. Both are implemented here because jsonwebtoken
//! reads the machine's clock, ignores `iat`, and accepts a token without the claim that it should
//! compare. Its interface for back ends is used: [`jwt_provider`] implements it on *ring* without
//! any HMAC algorithm, so a public key can never serve as a shared secret.
//!
//! # Output
//! A [`signer::Signer`] signs and a [`sealer::Sealer`] encrypts. Both are asynchronous, so that a
//! key service can implement them; [`signer::LocalSigner`] and [`sealer::SealingKeys`] are the
//! local implementations. The public half of a key is always computed from the opened private half,
//! never read from another column. [`keyring`] decides, without access to secrets, which key signs
//! at an instant, which keys are published, and when the next one is due.
//!
//! # One secret, several uses
//! An operator supplies only sealing keys. Three values are derived from each under different
//! labels: the key of one envelope (HKDF, with a random salt), the key of the [`digest::Mac`] over
//! rows, and the short id in both. None of them reveals another.
//!
//! # Secrets and text
//! Types that hold a secret have a `Debug` that does not print it, erase their bytes when dropped
//! as far as *ring* permits, and compare in constant time. Errors describe the fault of an input
//! and never quote it.

mod curve;
pub mod digest;
pub mod jwk;
pub mod jwt;
pub mod jwt_provider;
pub mod key_id;
pub mod keyring;
pub mod loaded;
pub mod random;
mod roca;
pub mod sealer;
pub mod signer;
mod small_order;
pub(crate) mod strict_json;
pub mod webhook;

#[cfg(test)]
mod test_keys;

pub use digest::{Mac, MacError, sha256};
pub use jwk::{Algorithm, JwkError, PublicJwk, VerificationKey};
pub use jwt::{JwtError, TimeError, Times, UnverifiedJwt, VerifiedClaims, check_times, verify};
pub use keyring::{KeyPurpose, KeySchedule, SigningKeyRecord};
pub use random::{SystemRandom, random_token, token_digest};
pub use sealer::{OpenError, SealContext, SealError, Sealer, SealingKeys};
pub use signer::{LocalSigner, PrivateKey, SignError, Signer, sign_jwt};
pub use small_order::is_small_order;
