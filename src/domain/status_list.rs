//! Status lists: one bit for each credential, for servers that poll instead of asking at each use
//! (the IETF's Token Status List).
//!
//! A credential's place follows from its leaf's: no place is given twice, and none has to be kept.
//! A leaf's place is no secret; it stands in the receipt.

/// Credentials in one list: 8 KiB of bits before compression.
pub const STATUS_LIST_SIZE: u64 = 65_536;

/// How long a list may be believed after the store was read for it: how long a credential that was
/// revoked can still be taken for good.
pub const STATUS_LIST_SECONDS: u64 = 30;

/// Where a credential's bit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusPlace {
    /// Which list.
    pub list: u64,
    /// Which bit of it.
    pub index: u64,
}

impl StatusPlace {
    /// The place of the credential whose decision is the leaf at `leaf_index` of a log whose lists
    /// begin with `first`.
    #[must_use]
    pub fn of(leaf_index: u64, first: u64) -> Self {
        Self {
            list: first.saturating_add(leaf_index / STATUS_LIST_SIZE),
            index: leaf_index % STATUS_LIST_SIZE,
        }
    }

    /// The `status` of a token that has this place.
    #[must_use]
    pub fn claim(self, issuer: &str) -> serde_json::Value {
        serde_json::json!({"status_list": {"idx": self.index, "uri": self.uri(issuer)}})
    }

    /// Where the list is served.
    #[must_use]
    pub fn uri(self, issuer: &str) -> String {
        list_uri(issuer, self.list)
    }
}

/// Where a list is served: its name, too.
#[must_use]
pub fn list_uri(issuer: &str, list: u64) -> String {
    format!("{issuer}/status/{list}")
}

/// The bits of one list, the first in the lowest place of the first byte. A set bit is an invalid
/// credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusBits(Vec<u8>);

impl StatusBits {
    /// A list whose first `count` positions are invalid and whose others are valid. Without a row
    /// that shows it to be good, no credential may count as good: `count` covers every leaf that
    /// the log holds.
    #[must_use]
    pub fn invalid_first(count: u64) -> Self {
        let size = usize::try_from(STATUS_LIST_SIZE / 8).unwrap_or_default();
        let mut bits = Self(vec![0_u8; size]);
        for index in 0..count.min(STATUS_LIST_SIZE) {
            bits.set(index, true);
        }
        bits
    }

    /// Says of one position whether its credential is invalid. A position beyond the list changes
    /// nothing.
    pub fn set(&mut self, index: u64, invalid: bool) {
        let place = usize::try_from(index / 8).ok();
        if let Some(byte) = place.and_then(|at| self.0.get_mut(at)) {
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
        assert_eq!(bits, before, "beyond the list is nothing");
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
            StatusPlace::of(65_535, 0),
            StatusPlace {
                list: 0,
                index: 65_535
            }
        );
        assert_eq!(
            StatusPlace::of(65_536, 0),
            StatusPlace { list: 1, index: 0 }
        );
        assert_eq!(
            StatusPlace::of(65_536, 0).uri("https://b"),
            "https://b/status/1"
        );
        assert_eq!(
            StatusPlace::of(65_536, 16),
            StatusPlace { list: 17, index: 0 }
        );
    }
}
