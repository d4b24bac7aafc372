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
    pub why: Why,
    /// The verifier key that nobody may believe any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_key: Option<String>,
    /// When it was given up: what was attested before counts no more, for which of it was used is
    /// not known.
    pub at: Timestamp,
}

impl Succession {
    /// The first status list of the new log. The old one's lists, with room for those of leaves
    /// that were lost, call everything invalid from now on.
    #[must_use]
    pub fn first_status_list(&self) -> u64 {
        self.size / STATUS_LIST_SIZE + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_a_new_log_are_none_of_the_old_ones() {
        let after = |size| Succession {
            origin: "old.example/log".into(),
            size,
            root: String::new(),
            why: Why::Lost,
            revoked_key: None,
            at: Timestamp::EPOCH,
        };
        assert_eq!(after(0).first_status_list(), 16);
        assert_eq!(after(STATUS_LIST_SIZE - 1).first_status_list(), 16);
        assert_eq!(after(STATUS_LIST_SIZE).first_status_list(), 17);
    }
}
