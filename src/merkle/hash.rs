//! SHA-256 as in RFC 9162 §2.1.
//!
//! [`struct@Hash`] is a hash of the tree; [`leaf_hash`] and [`node_hash`] compute it with different first
//! bytes, so that an inner node cannot pass as a leaf. [`root_of`] is the root over a list.
//!
//! A text or bytes that are not a hash are a [`HashError`]; a hash has one text only, in standard
//! base64 with padding. Hashing cannot fail. All of `merkle` uses this file. It compares hashes as
//! public values, not in constant time.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The root of the empty tree: SHA-256 of no bytes.
pub const EMPTY_ROOT: Hash = Hash([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// A hash of the tree: of a leaf or an inner node, or a root. `Display` and serde write it in
/// standard base64 with padding, as in checkpoints; `Debug` writes hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; Self::BYTES]);

impl Hash {
    /// Length of a hash.
    pub const BYTES: usize = 32;

    /// The hash with these bytes. An error unless there are exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, HashError> {
        bytes.try_into().map(Self).map_err(|_| HashError)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// A value that is not a hash: not 32 bytes, or in text not standard base64 with padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 32 bytes in standard base64")]
pub struct HashError;

impl From<[u8; Hash::BYTES]> for Hash {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 32 bytes have 44 characters. Do not decode longer texts.
        if text.len() != 44 {
            return Err(HashError);
        }
        Self::from_slice(&STANDARD.decode(text).map_err(|_| HashError)?)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; Hash::BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    Hash(hash)
}

/// The hash of a leaf: of the byte 0 and the leaf's bytes.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    sha256(&[&[0], leaf])
}

/// The hash of an inner node: of the byte 1 and both children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], &left.0, &right.0])
}

/// The root over `hashes`, each the hash of a leaf or the root of an equally large perfect subtree.
///
/// Pairing neighbours level by level, with a last unpaired one moving up unchanged, gives the same
/// tree as splitting at the largest power of two.
#[must_use]
pub fn root_of(hashes: &[Hash]) -> Hash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node_hash(left, right),
                [odd] => *odd,
                _ => EMPTY_ROOT,
            })
            .collect();
    }
    level.first().copied().unwrap_or(EMPTY_ROOT)
}

/// The root over perfect subtrees of decreasing size.
pub(super) fn fold_peaks(peaks: &[Hash]) -> Hash {
    peaks
        .iter()
        .rev()
        .copied()
        .reduce(|right, left| node_hash(&left, &right))
        .unwrap_or(EMPTY_ROOT)
}

/// The first `N` bytes of SHA-256 over `parts`, for key identifiers. `N` is at most 32.
pub(super) fn digest_prefix<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let hash = sha256(parts);
    let mut prefix = [0; N];
    for (to, from) in prefix.iter_mut().zip(hash.0) {
        *to = from;
    }
    prefix
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{hex, reference_leaves, reference_root};
    use super::*;

    #[test]
    fn the_empty_root_is_sha256_of_nothing() {
        assert_eq!(sha256(&[]), EMPTY_ROOT);
        assert_eq!(root_of(&[]), EMPTY_ROOT);
        assert_eq!(
            format!("{EMPTY_ROOT:?}"),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn leaves_and_nodes_are_told_apart_by_their_first_byte() {
        // The published hashes of the empty leaf and of the reference tree's second leaf.
        assert_eq!(
            leaf_hash(b""),
            hex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d")
        );
        assert_eq!(
            leaf_hash(&[0]),
            hex("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7")
        );
        let (left, right) = (leaf_hash(b"l"), leaf_hash(b"r"));
        let spliced = [left.0, right.0].concat();
        assert_ne!(leaf_hash(&spliced), node_hash(&left, &right));
    }

    #[test]
    fn roots_of_the_reference_tree_are_the_published_ones() {
        let published = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let leaves = reference_leaves();
        for (size, root) in published.iter().enumerate() {
            assert_eq!(root_of(&leaves[..size]), hex(root), "size {size}");
            assert_eq!(reference_root(&leaves[..size]), hex(root), "size {size}");
        }
    }

    #[test]
    fn text_that_is_not_exactly_a_hash_is_refused() {
        let good = EMPTY_ROOT.to_string();
        assert_eq!(good.parse(), Ok(EMPTY_ROOT));
        let json = serde_json::to_string(&EMPTY_ROOT).unwrap();
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), EMPTY_ROOT);
        for bad in [
            "",
            "=",
            good.trim_end_matches('='),
            &good.replace('/', "_").replace('+', "-"),
            &format!("{good} "),
            &good.replace("FU=", "FV="),
            &STANDARD.encode([0; 31]),
            &STANDARD.encode([0; 33]),
        ] {
            assert_eq!(bad.parse::<Hash>(), Err(HashError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn pairing_from_below_is_splitting_from_above(size in 0_usize..600) {
            let leaves = super::super::testing::leaves(size);
            prop_assert_eq!(root_of(&leaves), reference_root(&leaves));
        }

        #[test]
        fn any_text_is_a_hash_or_an_error(text in "\\PC{0,60}") {
            if let Ok(hash) = text.parse::<Hash>() {
                prop_assert_eq!(hash.to_string(), text);
            }
        }
    }
}
