//! The digest of a generation, by which decisions, leaves and the store name the generation.
//!
//! [`GenerationDigest`] is the SHA-256 of the document's bytes, written `sha256:` and 64 hex digits.
//! Generations with the same digest decide alike. A text in another form is an [`InvalidDigest`].
//! This file computes no hash: `policy::generation` hashes the document, which
//! [`super::generation`] defines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// SHA-256 of a generation's document, written `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GenerationDigest([u8; 32]);

/// A text that is not `sha256:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a generation is `sha256:` and 64 hex digits")]
pub struct InvalidDigest;

impl GenerationDigest {
    /// Creates a digest from the hash.
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for GenerationDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = text.strip_prefix("sha256:").ok_or(InvalidDigest)?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidDigest);
        }
        let mut hash = [0_u8; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            let pair = hex.get(index * 2..index * 2 + 2).ok_or(InvalidDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| InvalidDigest)?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for GenerationDigest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<GenerationDigest> for String {
    fn from(digest: GenerationDigest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = GenerationDigest::new([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in [
            "",
            "sha256:",
            "sha256:zz",
            &format!("md5:{}", "a".repeat(64)),
            &format!("sha256:{}", "a".repeat(63)),
        ] {
            assert_eq!(bad.parse::<GenerationDigest>(), Err(InvalidDigest), "{bad}");
        }
    }
}
