//! Succession: a new log replaces one that cannot continue honestly, because leaves were lost or
//! its key was compromised. The first leaf of the new log names its predecessor. Everything that
//! the predecessor permitted has ended.
//!
//! The calculations here cannot fail. `app::succession` reads the predecessor and writes the first
//! leaf; `broker::administration` takes over its blocks.

use serde::{Deserialize, Serialize};

use super::status_list::STATUS_LIST_SIZE;
use crate::clock::Timestamp;

/// The reason for replacing a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuccessionReason {
    /// The store lost or changed leaves.
    Lost,
    /// Another party had the key of its checkpoints.
    KeyRevoked,
}

/// The predecessor of a log, by its last known checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Succession {
    /// The origin of the predecessor.
    pub origin: String,
    /// Number of leaves in its last known checkpoint.
    pub size: u64,
    /// The root of that checkpoint's tree, in base64 as in checkpoints.
    pub root: String,
    pub reason: SuccessionReason,
    /// The verifier key that must no longer be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_key: Option<String>,
    /// The first status list of the new log. It is beyond all lists of the predecessor, which
    /// itself may have begun beyond those of another log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_status_list: Option<u64>,
    /// The time of the succession. Evidence from before it is refused, because the broker does not
    /// know which of it was used.
    pub at: Timestamp,
}

impl Succession {
    /// The first status list of the new log. From now on, all earlier lists mark every credential
    /// as invalid.
    #[must_use]
    pub fn first_status_list(&self) -> u64 {
        let first = self.first_status_list;
        first.unwrap_or_else(|| first_list_after(0, self.size))
    }
}

/// The first status list after those of a log with `size` leaves and the first list `first`. Leaves
/// room for the lists of lost leaves.
#[must_use]
pub fn first_list_after(first: u64, size: u64) -> u64 {
    let lists = size / STATUS_LIST_SIZE + SPARE_LISTS;
    first.saturating_add(lists)
}

/// Number of lists that are skipped for lost leaves of the old log.
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
            reason: SuccessionReason::Lost,
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
        // The log has few leaves, but its first list is a late one.
        assert_eq!(first_list_after(second, 7), 52);
        assert_eq!(first_list_after(u64::MAX, u64::MAX), u64::MAX);
    }
}
