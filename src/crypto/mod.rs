//! The only door to *ring* and to jsonwebtoken.
//!
//! Nothing here is a primitive of our own. The module decides which primitives are used, with
//! which keys, over which bytes, and gives the rest of the crate types that are hard to misuse.
//!
//! # What comes in
//! A token is first an [`jwt::UnverifiedJwt`]: parsed, bounded, and readable only through names
//! that say *unverified*. [`jwt::verify`] turns it into [`jwt::VerifiedClaims`] with a
//! [`jwk::VerificationKey`] and the caller's list of algorithms; [`jwt::check_times`] then judges
//! the dates at an instant that is a parameter. Both are ours because jsonwebtoken reads the
//! machine's clock, never looks at `iat`, and accepts a token that lacks the claim it was told to
//! compare. It still lends its seam for back ends: [`jwt_provider`] implements that on *ring*
//! without any HMAC algorithm. A public key can therefore never be taken for a shared secret.
//!
//! # What goes out
//! A [`signer::Signer`] signs and a [`sealer::Sealer`] encrypts. Both are asynchronous, so that a
//! key service can stand behind them; [`signer::LocalSigner`] and [`sealer::SealingKeys`] are the
//! local ones. The public half of a key is always computed from the private half that was opened,
//! never read from a column beside it. [`keyring`] says, without any secret in its hands, which key
//! signs at an instant, which are published, and when the next one is due.
//!
//! # One secret, several uses
//! An operator supplies sealing keys and nothing else. From each one three things are derived
//! under different labels: the key of one envelope (HKDF, with a random salt), the key of the
//! [`digest::Mac`] over rows, and the short id by which both name it. None of them reveals another.
//!
//! # Secrets and text
//! Types that hold a secret have a `Debug` that does not print it, erase their bytes when dropped
//! as far as *ring* allows, and compare in constant time. Errors say what is wrong with an input
//! and never quote it.

mod curve;
pub mod digest;
pub mod jwk;
pub mod jwt;
pub mod jwt_provider;
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
