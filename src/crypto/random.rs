//! Randomness, and opaque tokens made from it.
//!
//! Without randomness of the system, a token is [`NoRandomness`], and the caller must create
//! nothing. [`crate::ids`] has the trait.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SecureRandom as _;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::ids::{NoRandomness, Random};

use super::digest::sha256;

/// The system's source of randomness.
#[derive(Clone, Debug)]
pub struct SystemRandom(ring::rand::SystemRandom);

impl SystemRandom {
    /// Creates the source.
    #[must_use]
    pub fn new() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.0.fill(bytes).map_err(|_| NoRandomness)
    }
}

/// A bearer secret of 256 random bits: `prefix` and 43 characters of base64url.
///
/// The prefix (`tph_`, `tpd_`, `tpa_`) lets scanners find leaked tokens, and prevents the use of
/// one kind as another.
pub fn random_token(prefix: &str, random: &dyn Random) -> Result<SecretString, NoRandomness> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    random.fill(bytes.as_mut_slice())?;
    // Allocate the whole length at once: a string that grows leaves copies behind.
    let mut text = String::with_capacity(prefix.len() + 44);
    text.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
    Ok(text.into())
}

/// The SHA-256 of a token, by which it is stored and looked up. The token has 256 random bits, so a
/// slow hash would add nothing, and a lookup by digest leaks no prefix by its timing.
#[must_use]
pub fn token_digest(token: &str) -> [u8; 32] {
    sha256(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    struct Broken;

    impl Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }

    #[test]
    fn a_token_has_its_prefix_and_256_bits_and_comes_once() {
        let random = SystemRandom::new();
        let one = random_token("tph_", &random).unwrap();
        let two = random_token("tph_", &random).unwrap();
        assert_ne!(one.expose_secret(), two.expose_secret());
        let body = one.expose_secret().strip_prefix("tph_").unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(body).unwrap().len(), 32);
        assert_eq!(
            token_digest(one.expose_secret()),
            sha256(one.expose_secret().as_bytes())
        );
        assert!(!format!("{one:?}").contains(body));
    }

    #[test]
    fn without_randomness_there_is_no_token() {
        assert!(random_token("tph_", &Broken).is_err());
    }
}
