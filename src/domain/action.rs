//! The names of actions, and patterns of them.
//!
//! [`ActionName`] is the name as the resource registers it. For AWS it may be a pattern, which is
//! compared without regard to case, as AWS does. A text with other characters, or with too many
//! wildcards, is an [`InvalidAction`].
//!
//! If a comparison's [`Budget`] runs out, it answers *not covered* or *overlapping*.
//! [`super::grant`] puts actions into grants, [`super::kind`] says which of them a kind of resource
//! permits, and [`super::pattern`] compares wildcards.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::{MAX_GRANT_TEXT_BYTES, MAX_WILDCARDS};
use super::pattern::{self, Budget};

/// The name of an action, as the resource registers it: `orders:read`. For AWS it may be a pattern,
/// such as `s3:Get*`, and covers everything that it matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionName(String);

/// A text that is not a valid action: empty, too long, with characters other than letters, digits
/// and `:._-/*?`, or with too many wildcards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an action is 1 to {MAX_GRANT_TEXT_BYTES} letters, digits, or one of : . _ - / * ?, of which \
     at most {MAX_WILDCARDS} are * or ?"
)]
pub struct InvalidAction;

impl ActionName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an AWS action or a pattern of AWS actions: a service, a colon and a name.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = |b: u8| b.is_ascii_alphanumeric() || b == b'*' || b == b'?';
        self.0.split_once(':').is_some_and(|(service, name)| {
            !service.is_empty()
                && service.bytes().all(fine)
                && !name.is_empty()
                && name.bytes().all(named)
        })
    }

    /// Whether it is a pattern.
    #[must_use]
    pub fn has_wildcards(&self) -> bool {
        pattern::has_wildcards(&self.0)
    }

    /// Whether it is `other` or a pattern that matches all of it; `false` if `budget` runs out.
    #[must_use]
    pub fn covers_within(&self, other: &Self, budget: &Budget) -> bool {
        if !budget.spend(1) {
            return false;
        }
        if self == other || !self.has_wildcards() {
            return self == other;
        }
        pattern::covers_within(&self.folded(), &other.folded(), budget)
    }

    /// Like [`Self::covers_within`] for AWS actions, ignoring case as AWS does.
    #[must_use]
    pub fn covers_on_aws(&self, other: &Self, budget: &Budget) -> bool {
        self.0.eq_ignore_ascii_case(&other.0) || self.covers_within(other, budget)
    }

    /// Whether it matches more than `other` and all of it. If `budget` runs out, discard the
    /// result.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self, budget: &Budget) -> bool {
        self.covers_within(other, budget) && !other.covers_within(self, budget)
    }

    /// Whether both cover a common action; `true` if `budget` runs out.
    #[must_use]
    pub fn overlaps_within(&self, other: &Self, budget: &Budget) -> bool {
        self == other
            || !budget.spend(1)
            || pattern::overlap_within(&self.folded(), &other.folded(), budget)
    }

    /// The name in lower case, because AWS ignores the case of actions.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl TryFrom<String> for ActionName {
    type Error = InvalidAction;

    fn try_from(text: String) -> Result<Self, InvalidAction> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b":._-/*?".contains(&b);
        if text.is_empty()
            || text.len() > MAX_GRANT_TEXT_BYTES
            || !text.bytes().all(fine)
            || pattern::count_wildcards(&text) > MAX_WILDCARDS
        {
            return Err(InvalidAction);
        }
        Ok(Self(text))
    }
}

impl From<ActionName> for String {
    fn from(action: ActionName) -> Self {
        action.0
    }
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
