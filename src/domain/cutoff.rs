//! A cutoff: one row that ends everything a selector matches whose leaf precedes the cutoff's leaf.
//! It can also block new grants to the selector, until a time or until it is lifted.
//!
//! [`Selector`] says which sessions and tasks end, [`Block`] for how long new grants are refused,
//! and [`Cutoff`] is the record. The kill switch and every mass revocation are one cutoff each,
//! regardless of the number of sessions. The end of a task is a cutoff too; the task's own row
//! records it.
//!
//! A text that is no selector is refused with [`NoSelector`], as is `issued_after`, which only the
//! acceptance of a time creates. [`Selector::from_parts`] answers `None` for a stored value that it
//! cannot read. Whether a cutoff ends a given session is decided in [`super::validity`].
//! `broker::revocation` creates cutoffs; the ledger commits them and enforces their blocks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::generation_digest::GenerationDigest;
use super::workload::Identity;
use crate::clock::Timestamp;
use crate::ids::{CutoffId, TaskId};

/// The [`Selector::kind`] of [`Selector::IssuedAfter`].
pub const ISSUED_AFTER: &str = "issued_after";

/// Selects the sessions and tasks that a cutoff ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selector {
    /// Everything of this identity.
    Workload(Identity),
    /// This task and everything under it.
    Task(TaskId),
    /// Everything for this resource.
    Resource(String),
    /// Everything of the identities of this attestor.
    Attestor(String),
    /// Everything that this generation permitted.
    Generation(GenerationDigest),
    /// Everything that this policy permitted.
    Policy(String),
    /// Everything that this key signed.
    SigningKey(String),
    /// Everything with a date later than this time. Only the acceptance of a time creates it;
    /// callers cannot request it.
    #[serde(skip_deserializing)]
    IssuedAfter(Timestamp),
    /// Every session and task.
    All(True),
}

/// The JSON value `true` and no other: `{"all": false}` is an error, not a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "bool", into = "bool")]
pub struct True;

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value {
            Ok(Self)
        } else {
            Err("`all` can only be true")
        }
    }
}

impl From<True> for bool {
    fn from(_: True) -> Self {
        true
    }
}

impl Selector {
    /// Every kind of selector.
    pub const KINDS: [&'static str; 9] = [
        "workload",
        "task",
        "resource",
        "attestor",
        "generation",
        "policy",
        "signing_key",
        ISSUED_AFTER,
        "all",
    ];

    /// The selector's kind, as stored.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Workload(_) => "workload",
            Self::Task(_) => "task",
            Self::Resource(_) => "resource",
            Self::Attestor(_) => "attestor",
            Self::Generation(_) => "generation",
            Self::Policy(_) => "policy",
            Self::SigningKey(_) => "signing_key",
            Self::IssuedAfter(_) => ISSUED_AFTER,
            Self::All(_) => "all",
        }
    }

    /// The selector's value, as stored; empty for [`Self::All`].
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::Workload(identity) => identity.to_string(),
            Self::Task(id) => id.to_string(),
            Self::Resource(text)
            | Self::Attestor(text)
            | Self::Policy(text)
            | Self::SigningKey(text) => text.clone(),
            Self::Generation(digest) => digest.to_string(),
            Self::IssuedAfter(at) => at.to_string(),
            Self::All(_) => String::new(),
        }
    }

    /// The inverse of [`Self::kind`] and [`Self::value`]. `None` if the kind is unknown or the
    /// value does not fit it.
    #[must_use]
    pub fn from_parts(kind: &str, value: &str) -> Option<Self> {
        Some(match kind {
            "workload" => Self::Workload(value.to_owned().try_into().ok()?),
            "task" => Self::Task(value.parse().ok()?),
            "resource" => Self::Resource(value.to_owned()),
            "attestor" => Self::Attestor(value.to_owned()),
            "generation" => Self::Generation(value.parse().ok()?),
            "policy" => Self::Policy(value.to_owned()),
            "signing_key" => Self::SigningKey(value.to_owned()),
            ISSUED_AFTER => Self::IssuedAfter(value.parse().ok()?),
            "all" => Self::All(True),
            _ => return None,
        })
    }

    /// Whether a cutoff blocks new grants by default: true where the ended workload could request
    /// new ones at once.
    #[must_use]
    pub fn blocks_by_default(&self) -> bool {
        match self {
            Self::Workload(_) | Self::Attestor(_) | Self::All(_) => true,
            Self::Task(_)
            | Self::Resource(_)
            | Self::Generation(_)
            | Self::Policy(_)
            | Self::SigningKey(_)
            | Self::IssuedAfter(_) => false,
        }
    }

    /// Whether a cutoff with this selector may block every admin. A blocked admin may lift such a
    /// cutoff, because there may be no other admin.
    #[must_use]
    pub fn may_block_every_admin(&self) -> bool {
        match self {
            Self::Attestor(_) | Self::All(_) => true,
            Self::Workload(_)
            | Self::Task(_)
            | Self::Resource(_)
            | Self::Generation(_)
            | Self::Policy(_)
            | Self::SigningKey(_)
            | Self::IssuedAfter(_) => false,
        }
    }

    /// The identity of [`Self::Workload`]; `None` for other kinds.
    #[must_use]
    pub fn workload(&self) -> Option<&Identity> {
        let Self::Workload(identity) = self else {
            return None;
        };
        Some(identity)
    }

    /// The task of [`Self::Task`]; `None` for other kinds.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        let Self::Task(id) = self else {
            return None;
        };
        Some(*id)
    }

    /// The digest of [`Self::Generation`]; `None` for other kinds.
    #[must_use]
    pub fn generation(&self) -> Option<GenerationDigest> {
        let Self::Generation(digest) = self else {
            return None;
        };
        Some(*digest)
    }

    /// The accepted time of [`Self::IssuedAfter`]; `None` for other kinds.
    #[must_use]
    pub fn issued_after(&self) -> Option<Timestamp> {
        let Self::IssuedAfter(at) = self else {
            return None;
        };
        Some(*at)
    }
}

/// A text that is not a selector which callers may request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a selector is kind=value with a kind of workload, task, resource, attestor, generation, policy or \
     signing_key; or the word all"
)]
pub struct NoSelector;

/// Writes `kind=value`, or `all`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(_) => f.write_str(self.kind()),
            Self::Workload(_)
            | Self::Task(_)
            | Self::Resource(_)
            | Self::Attestor(_)
            | Self::Generation(_)
            | Self::Policy(_)
            | Self::SigningKey(_)
            | Self::IssuedAfter(_) => write!(f, "{}={}", self.kind(), self.value()),
        }
    }
}

/// Parses the selectors that callers may request.
impl FromStr for Selector {
    type Err = NoSelector;

    fn from_str(text: &str) -> Result<Self, NoSelector> {
        if text == "all" {
            return Ok(Self::All(True));
        }
        let (kind, value) = text.split_once('=').ok_or(NoSelector)?;
        if value.is_empty() || kind == ISSUED_AFTER || kind == "all" {
            return Err(NoSelector);
        }
        Self::from_parts(kind, value).ok_or(NoSelector)
    }
}

/// The values of a session that selectors match, other than its tasks and its date.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields of `Session` with the same names")]
pub struct SelectorSubject<'a> {
    pub workload: &'a Identity,
    pub attestor: &'a str,
    pub resource: &'a str,
    pub generation: GenerationDigest,
    pub policies: &'a [String],
    /// `None` if the record does not name the key.
    pub kid: Option<&'a str>,
}

impl SelectorSubject<'_> {
    /// Every selector that matches these values. Selectors of a task or a time can match too.
    #[must_use]
    pub fn selectors(&self) -> Vec<Selector> {
        let mut all = vec![
            Selector::All(True),
            Selector::Workload(self.workload.clone()),
            Selector::Resource(self.resource.to_owned()),
            Selector::Attestor(self.attestor.to_owned()),
            Selector::Generation(self.generation),
        ];
        all.extend(self.policies.iter().cloned().map(Selector::Policy));
        all.extend(self.kid.map(|kid| Selector::SigningKey(kid.to_owned())));
        all
    }
}

/// The selectors that match a caller, narrowest first: its identity, its attestor, everything.
#[must_use]
pub fn selectors_of_caller(identity: &Identity, attestor: &str) -> [Selector; 3] {
    [
        Selector::Workload(identity.clone()),
        Selector::Attestor(attestor.to_owned()),
        Selector::All(True),
    ]
}

/// The duration for which a cutoff blocks new grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// No block. Requests in progress are stopped even so.
    No,
    /// Blocks new grants until this instant.
    Until(Timestamp),
    /// Blocks new grants until an admin lifts it.
    UntilLifted,
}

impl Block {
    /// The form in leaves and on the wire: the end of the block; `None` without a block.
    #[must_use]
    pub fn to_text(self) -> Option<String> {
        match self {
            Self::No => None,
            Self::Until(at) => Some(at.to_string()),
            Self::UntilLifted => Some("until_lifted".to_owned()),
        }
    }
}

/// The record of a cutoff.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Cutoff {
    pub id: CutoffId,
    /// Index of its leaf. It ends sessions and tasks with an earlier leaf.
    pub index: u64,
    pub selector: Selector,
    pub block: Block,
    /// The role whose back end denies every earlier session of the role, including sessions that
    /// the selector does not match. `None` if the cutoff denies no role as a whole.
    pub deny_policy_target: Option<String>,
    /// The reason that the admin gave.
    pub reason: String,
    /// The actor that created it.
    pub by: String,
    /// The time of the request.
    pub requested_at: Timestamp,
    /// The time at which the committing replica, by its clock, decided to commit it.
    pub committed_at: Timestamp,
    /// Index of the leaf that lifted the block; `None` if no admin lifted it.
    pub lifted_index: Option<u64>,
}

impl Cutoff {
    /// The index of its leaf and the accepted time; `None` if it is not the acceptance of a time.
    #[must_use]
    pub fn accepted(&self) -> Option<(u64, Timestamp)> {
        Some((self.index, self.selector.issued_after()?))
    }

    /// Whether it stops a request that began when the ledger had `basis` leaves: one that began
    /// before the cutoff was committed, or one within its block.
    #[must_use]
    pub fn stops(&self, basis: u64, now: Timestamp) -> bool {
        self.index >= basis || self.blocks(now)
    }

    /// Whether its block is in effect at `now`.
    #[must_use]
    pub fn blocks(&self, now: Timestamp) -> bool {
        if self.lifted_index.is_some() {
            return false;
        }
        match self.block {
            Block::No => false,
            Block::Until(until) => now < until,
            Block::UntilLifted => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cutoff(block: Block) -> Cutoff {
        Cutoff {
            id: CutoffId::from(uuid::Uuid::from_u128(7)),
            index: 10,
            selector: Selector::All(True),
            block,
            reason: String::new(),
            by: String::new(),
            deny_policy_target: None,
            requested_at: Timestamp::EPOCH,
            committed_at: Timestamp::EPOCH,
            lifted_index: None,
        }
    }

    #[test]
    fn a_cutoff_stops_what_was_in_flight_even_without_a_block() {
        let now = Timestamp::from_seconds(5);
        assert!(cutoff(Block::No).stops(10, now));
        assert!(!cutoff(Block::No).stops(11, now));
    }

    #[test]
    fn a_block_ends_at_its_time_or_when_lifted() {
        let at = Timestamp::from_seconds;
        let timed = cutoff(Block::Until(at(100)));
        assert!(timed.stops(50, at(99)));
        assert!(!timed.stops(50, at(100)));
        let mut open = cutoff(Block::UntilLifted);
        assert!(open.stops(50, Timestamp::MAX));
        open.lifted_index = Some(12);
        assert!(!open.stops(50, at(1)));
        assert!(open.stops(10, at(1)), "lifting revives nothing");
    }

    #[test]
    fn a_selector_is_written_whole_or_not_at_all() {
        for text in ["all", "workload=dev:agent%3Areports", "policy=a=b"] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
        }
        for bad in [
            "",
            "all=",
            "all=x",
            "workload",
            "workload=",
            "=x",
            "everything=1",
            "issued_after=2026-11-18T11:06:40Z",
        ] {
            assert_eq!(bad.parse::<Selector>(), Err(NoSelector), "{bad}");
        }
    }

    #[test]
    fn a_selector_names_one_thing() {
        let all: Selector = serde_json::from_str(r#"{"all": true}"#).unwrap();
        assert_eq!(all, Selector::All(True));
        for bad in [
            r#"{"all": false}"#,
            r#"{"workload": "a:b", "task": "x"}"#,
            r#"{"everything": true}"#,
            r#"{"issued_after": "2026-11-18T11:06:40Z"}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Selector>(bad).is_err(), "{bad}");
        }
        let later = Selector::IssuedAfter(Timestamp::from_micros(1_795_000_000_123_456));
        for selector in [all, later] {
            let again = Selector::from_parts(selector.kind(), &selector.value());
            assert_eq!(again, Some(selector));
        }
    }
}
