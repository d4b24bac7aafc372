//! Status lists: one bit for each credential, for servers that poll instead of asking at each use
//! (the IETF's Token Status List).
//!
//! [`StatusListIndex`] is the position of a credential's bit, [`StatusBits`] the content of one
//! list. The position follows from the index of the credential's leaf, so it is unique and need not
//! be stored. It reveals the index, which is not secret: receipts contain it.
//!
//! A list starts with every bit set (invalid), and a bit is cleared only for a credential that is
//! shown to be valid. Nothing here returns an error; [`StatusBits::set`] ignores an index beyond
//! the list. The minter of JWTs writes the position into tokens. `broker::verification` fills the
//! lists and decides by [`super::validity`] which credentials are valid.

/// Number of credentials in one list: 8 KiB of bits before compression.
pub const STATUS_LIST_SIZE: u64 = 65_536;

/// How long a list may be used after the store was read for it. A revoked credential can be
/// accepted for this time.
pub const STATUS_LIST_SECONDS: u64 = 30;

/// The position of a credential's bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusListIndex {
    /// Number of the list.
    pub list: u64,
    /// Index of the bit in the list.
    pub index: u64,
}

impl StatusListIndex {
    /// The position for the credential whose decision has the leaf index `leaf_index`. `first` is
    /// the number of the log's first list.
    #[must_use]
    pub fn of(leaf_index: u64, first: u64) -> Self {
        Self {
            list: first.saturating_add(leaf_index / STATUS_LIST_SIZE),
            index: leaf_index % STATUS_LIST_SIZE,
        }
    }

    /// The `status` claim of a token with this position.
    #[must_use]
    pub fn claim(self, issuer: &str) -> serde_json::Value {
        serde_json::json!({"status_list": {"idx": self.index, "uri": self.uri(issuer)}})
    }

    /// The URL of the list.
    #[must_use]
    pub fn uri(self, issuer: &str) -> String {
        list_uri(issuer, self.list)
    }
}

/// The URL of a list, which is also its name (the `sub` of its token).
#[must_use]
pub fn list_uri(issuer: &str, list: u64) -> String {
    format!("{issuer}/status/{list}")
}

/// The bits of one list; the first one is the least significant bit of the first byte. A set bit
/// marks an invalid credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusBits(Vec<u8>);

impl StatusBits {
    /// A list whose first `count` bits are set (invalid). `count` covers every leaf of the log: a
    /// credential is valid only if a row shows that it is.
    #[must_use]
    pub fn invalid_first(count: u64) -> Self {
        let size = usize::try_from(STATUS_LIST_SIZE / 8).unwrap_or_default();
        let mut bits = Self(vec![0_u8; size]);
        for index in 0..count.min(STATUS_LIST_SIZE) {
            bits.set(index, true);
        }
        bits
    }

    /// Sets whether the credential at `index` is invalid. Ignores an index beyond the list.
    pub fn set(&mut self, index: u64, invalid: bool) {
        let byte_index = usize::try_from(index / 8).ok();
        if let Some(byte) = byte_index.and_then(|at| self.0.get_mut(at)) {
            let bit = 1 << (index % 8);
            if invalid {
                *byte |= bit;
            } else {
                *byte &= !bit;
            }
        }
    }

    /// The packed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_as_in_the_drafts_example() {
        let mut bits = StatusBits::invalid_first(0);
        for index in [0, 3, 4, 5, 7, 8, 9, 13, 15] {
            bits.set(index, true);
        }
        assert_eq!(bits.as_bytes()[..2], [0xb9, 0xa3]);
        let before = bits.clone();
        bits.set(STATUS_LIST_SIZE, true);
        assert_eq!(bits, before, "an index beyond the list is ignored");
        bits.set(STATUS_LIST_SIZE - 1, true);
        assert_eq!(bits.as_bytes().last(), Some(&0x80));
    }

    #[test]
    fn positions_start_invalid_up_to_the_end_of_the_log() {
        let mut bits = StatusBits::invalid_first(11);
        assert_eq!(bits.as_bytes()[..3], [0xff, 0x07, 0]);
        bits.set(1, false);
        bits.set(8, false);
        assert_eq!(bits.as_bytes()[..2], [0xfd, 0x06]);
        for whole in [STATUS_LIST_SIZE, u64::MAX] {
            let bits = StatusBits::invalid_first(whole);
            assert!(bits.as_bytes().iter().all(|byte| *byte == 0xff));
        }
    }

    #[test]
    fn every_leaf_has_a_place_of_its_own() {
        assert_eq!(
            StatusListIndex::of(65_535, 0),
            StatusListIndex {
                list: 0,
                index: 65_535
            }
        );
        assert_eq!(
            StatusListIndex::of(65_536, 0),
            StatusListIndex { list: 1, index: 0 }
        );
        assert_eq!(
            StatusListIndex::of(65_536, 0).uri("https://b"),
            "https://b/status/1"
        );
        assert_eq!(
            StatusListIndex::of(65_536, 16),
            StatusListIndex { list: 17, index: 0 }
        );
    }
}
