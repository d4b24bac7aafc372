//! SHA-256, and the MAC that protects rows against parties that can write to the database.
//!
//! A [`Mac`] covers the log's origin, a purpose and a list of fields. The length precedes each, so
//! different inputs never have the same bytes, and a tag for one log or purpose is invalid for
//! another. [`sha256_parts`] frames its input in the same way without a key.
//!
//! [`Mac::verify`] distinguishes three failures: bytes that are no tag, a tag whose key is not
//! configured ([`MacError::NoSuchKey`]: the operator adds the key), and a changed row
//! ([`MacError::Mismatch`]: an incident). A tag contains the id of its key for this purpose.
//! [`super::sealer`] derives the keys. The rows' own modules choose purpose and fields, and their
//! readers in `store` and `ledger` refuse a row that does not verify.

use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::{digest, hmac};
use subtle::ConstantTimeEq as _;

use super::key_id::KeyId;

/// Length of a tag: the key's id and an HMAC-SHA-256.
pub const TAG_BYTES: usize = KeyId::BYTES + 32;

const MAC_DOMAIN: &[u8] = b"taskpass mac v1";
const PARTS_DOMAIN: &[u8] = b"taskpass digest v1";

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0_u8; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of several fields for one purpose. Different lists of fields and different purposes
/// never have the same input.
#[must_use]
pub fn sha256_parts(purpose: &str, fields: &[&[u8]]) -> [u8; 32] {
    sha256(&framed(PARTS_DOMAIN, purpose, fields))
}

/// The digest of a salted commitment to `bytes`, in hexadecimal.
#[must_use]
pub fn salted(salt: &[u8; 16], bytes: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt);
    context.update(bytes);
    let hash = context.finish();
    let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    hex.collect()
}

/// Compares two digests in constant time.
#[must_use]
pub fn digests_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// The reason why a tag was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// The tag does not have [`TAG_BYTES`].
    #[error("the authentication tag has the wrong length")]
    Malformed,
    /// The key that made the tag is not configured.
    #[error("no sealing key {0} is configured: add the key that authenticated the record")]
    NoSuchKey(KeyId),
    /// The fields are not those for which the tag was made.
    #[error("the record was changed: its authentication tag does not match")]
    Mismatch,
}

/// HMAC-SHA-256 over a log's origin, a purpose and fields. The first key makes tags; every key
/// verifies. Clones share their keys.
#[derive(Clone)]
pub struct Mac {
    origin: Arc<str>,
    keys: Arc<ArcSwap<Vec<(KeyId, hmac::Key)>>>,
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.keys.load().iter().map(|(id, _)| id))
            .finish()
    }
}

impl Mac {
    pub(super) fn new(
        origin: &str,
        first: (KeyId, hmac::Key),
        others: Vec<(KeyId, hmac::Key)>,
    ) -> Self {
        let mut keys = Vec::with_capacity(1 + others.len());
        keys.push(first);
        keys.extend(others);
        Self {
            origin: origin.into(),
            keys: Arc::new(ArcSwap::from_pointee(keys)),
        }
    }

    /// Replaces the keys with those of `newer`, in all clones.
    pub fn take_over(&self, newer: &Self) {
        self.keys.store(newer.keys.load_full());
    }

    /// The tag of `fields` for `purpose`, made with the first key.
    #[must_use]
    pub fn tag(&self, purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::with_capacity(TAG_BYTES);
        // There is always a first key: `new` takes it as a separate argument.
        if let Some((id, key)) = self.keys.load().first() {
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(hmac::sign(key, &self.message(purpose, fields)).as_ref());
        }
        out
    }

    /// Checks in constant time that `tag` was made over exactly `fields` for `purpose`.
    pub fn verify(&self, purpose: &str, fields: &[&[u8]], tag: &[u8]) -> Result<(), MacError> {
        if tag.len() != TAG_BYTES {
            return Err(MacError::Malformed);
        }
        let (id, value) = tag
            .split_first_chunk::<{ KeyId::BYTES }>()
            .ok_or(MacError::Malformed)?;
        let id = KeyId::from_bytes(*id);
        let keys = self.keys.load();
        let (_, key) = keys
            .iter()
            .find(|(known, _)| *known == id)
            .ok_or(MacError::NoSuchKey(id))?;
        hmac::verify(key, &self.message(purpose, fields), value).map_err(|_| MacError::Mismatch)
    }

    /// Whether `tag` was made with another key than the first, so that it should be replaced.
    #[must_use]
    pub fn is_outdated(&self, tag: &[u8]) -> bool {
        self.keys
            .load()
            .first()
            .is_none_or(|(id, _)| !tag.starts_with(id.as_bytes()))
    }

    fn message(&self, purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
        let mut domain = MAC_DOMAIN.to_vec();
        push_prefixed(&mut domain, self.origin.as_bytes());
        framed(&domain, purpose, fields)
    }
}

fn framed(domain: &[u8], purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut out = domain.to_vec();
    push_prefixed(&mut out, purpose.as_bytes());
    for field in fields {
        push_prefixed(&mut out, field);
    }
    out
}

/// Appends `field` after its length in eight bytes.
pub(super) fn push_prefixed(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&(field.len() as u64).to_be_bytes());
    out.extend_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(keys: &[u8]) -> Mac {
        let mut keys = keys.iter().map(|byte| {
            (
                KeyId::from_bytes([*byte; KeyId::BYTES]),
                hmac::Key::new(hmac::HMAC_SHA256, &[*byte; 32]),
            )
        });
        Mac::new("o", keys.next().unwrap(), keys.collect())
    }

    #[test]
    fn sha256_of_abc_is_the_published_one() {
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert!(digests_equal(&sha256(b"abc"), &sha256(b"abc")));
        assert!(!digests_equal(&sha256(b"abc"), &sha256(b"abd")));
    }

    #[test]
    fn a_digest_of_parts_depends_on_where_they_end() {
        let digests = [
            sha256_parts("use", &[b"ab", b"c"]),
            sha256_parts("use", &[b"a", b"bc"]),
            sha256_parts("use", &[b"abc"]),
            sha256_parts("use", &[b"ab", b"c", b""]),
            sha256_parts("use", &[]),
            sha256_parts("other", &[b"ab", b"c"]),
            sha256_parts("usea", &[b"b", b"c"]),
            sha256(b"abc"),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "{index}");
        }
        assert_eq!(digests[0], sha256_parts("use", &[b"ab", b"c"]));
    }

    #[test]
    fn a_tag_holds_for_its_purpose_and_fields_only() {
        let mac = mac(&[1]);
        let tag = mac.tag("row", &[b"ab", b"c"]);
        assert_eq!(tag.len(), TAG_BYTES);
        assert_eq!(mac.verify("row", &[b"ab", b"c"], &tag), Ok(()));
        for (purpose, fields) in [
            ("other", vec![&b"ab"[..], b"c"]),
            ("row", vec![b"a", b"bc"]),
            ("row", vec![b"abc"]),
            ("row", vec![b"ab", b"c", b""]),
            ("row", vec![]),
        ] {
            assert_eq!(mac.verify(purpose, &fields, &tag), Err(MacError::Mismatch));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_tag_is_noticed() {
        let mac = mac(&[1]);
        let tag = mac.tag("row", &[b"x"]);
        for index in 0..tag.len() {
            let mut bad = tag.clone();
            bad[index] ^= 1;
            assert!(mac.verify("row", &[b"x"], &bad).is_err());
        }
        assert_eq!(
            mac.verify("row", &[b"x"], &tag[1..]),
            Err(MacError::Malformed)
        );
        assert_eq!(mac.verify("row", &[b"x"], &[]), Err(MacError::Malformed));
    }

    #[test]
    fn an_older_key_verifies_and_a_missing_one_is_named() {
        let tag = mac(&[1]).tag("row", &[b"x"]);
        let newer = mac(&[2, 1]);
        assert_eq!(newer.verify("row", &[b"x"], &tag), Ok(()));
        assert!(newer.is_outdated(&tag));
        assert!(!newer.is_outdated(&newer.tag("row", &[b"x"])));
        assert_eq!(
            mac(&[2]).verify("row", &[b"x"], &tag),
            Err(MacError::NoSuchKey(KeyId::from_bytes([1; KeyId::BYTES])))
        );
    }
}
