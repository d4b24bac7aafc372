//! The short id of a sealing key, which envelopes and tags carry.
//!
//! [`KeyId`] says which configured key made an envelope or a tag. It is not secret, and it proves
//! nothing: the envelope or the tag is verified with the key itself. Nothing here can fail.
//! [`super::sealer`] derives the ids, and [`super::digest`] finds the key of a tag by its id.

use std::fmt;

/// The short id of a sealing key, computed from it. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; Self::BYTES]);

impl KeyId {
    /// Length of an id.
    pub const BYTES: usize = 8;

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}
