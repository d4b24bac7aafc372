//! A log that takes the place of one that cannot honestly go on: leaves of it were lost, or its key
//! was somebody else's, too. The first leaf of the new one says which it succeeds, and everything
//! that the old one vouched for is over.

use serde::{Deserialize, Serialize};

use super::status_list::STATUS_LIST_SIZE;
use crate::clock::Timestamp;

/// Why a log was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The store lost or changed leaves.
    Lost,
    /// Somebody else had the key of its checkpoints.
    KeyRevoked,
}

/// The log that a new one succeeds, by the last of its checkpoints that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// Its name.
    pub origin: String,
    /// Leaves under its last known checkpoint.
    pub size: u64,
    /// The root of the tree of those, in base64, as checkpoints have it.
    pub root: String,
    /// Why it was given up.
    pub reason: Why,
    /// The verifier key that nobody may believe any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_key: Option<String>,
    /// The first status list of the new log, beyond all that the old one had, which may itself have
    /// begun beyond those of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_status_list: Option<u64>,
    /// When it was given up: what was attested before counts no more, for which of it was used is
    /// not known.
    pub at: Timestamp,
}

impl Succession {
    /// The first status list of the new log. All lists before it call everything invalid from now
    /// on.
    #[must_use]
    pub fn first_status_list(&self) -> u64 {
        let first = self.first_status_list;
        first.unwrap_or_else(|| first_list_after(0, self.size))
    }
}

/// The first status list beyond those of a log of `size` leaves whose own began with `first`, with
/// room for those of leaves that were lost.
#[must_use]
pub fn first_list_after(first: u64, size: u64) -> u64 {
    let lists = size / STATUS_LIST_SIZE + SPARE_LISTS;
    first.saturating_add(lists)
}

/// Lists that are left out for leaves of the old log of which nobody knows any more.
const SPARE_LISTS: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_a_new_log_are_none_of_the_old_ones() {
        let after = |size| Succession {
            origin: "old.example/log".into(),
            size,
            root: String::new(),
            reason: Why::Lost,
            revoked_key: None,
            first_status_list: None,
            at: Timestamp::EPOCH,
        };
        assert_eq!(after(0).first_status_list(), 16);
        assert_eq!(after(STATUS_LIST_SIZE - 1).first_status_list(), 16);
        assert_eq!(after(STATUS_LIST_SIZE).first_status_list(), 17);
    }

    #[test]
    fn the_lists_of_a_third_log_are_none_of_the_first_two() {
        let second = first_list_after(0, 20 * STATUS_LIST_SIZE);
        assert_eq!(second, 36);
        // Few leaves of its own, but its lists began far beyond.
        assert_eq!(first_list_after(second, 7), 52);
        assert_eq!(first_list_after(u64::MAX, u64::MAX), u64::MAX);
    }
}
