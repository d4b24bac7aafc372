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

/// Bits, the first in the lowest place of the first byte.
#[must_use]
pub fn packed(invalid: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let size = usize::try_from(STATUS_LIST_SIZE / 8).unwrap_or_default();
    let mut bits = vec![0_u8; size];
    for index in invalid {
        if let Some(byte) = usize::try_from(index / 8)
            .ok()
            .and_then(|at| bits.get_mut(at))
        {
            *byte |= 1 << (index % 8);
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_as_in_the_drafts_example() {
        let ones = [0, 3, 4, 5, 7, 8, 9, 13, 15];
        assert_eq!(packed(ones)[..2], [0xb9, 0xa3]);
        assert_eq!(
            packed([STATUS_LIST_SIZE]),
            packed([]),
            "beyond the list is nothing"
        );
        assert_eq!(packed([STATUS_LIST_SIZE - 1]).last(), Some(&0x80));
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
