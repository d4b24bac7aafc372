//! The rows of the table of endings: ends and changes, in the order of the log.
//!
//! [`EndingRecord`] is one row, [`EndingsChain`] the digest of all rows up to one, and
//! [`ChainedEnding`] a row with the digest of the rows before it.
//!
//! The rule: a row is inserted in the transaction of its leaf (`store::append`), and the newest
//! head carries the digest of all rows under its MAC. So a row that was forged, changed or taken
//! out is found, although no row has a MAC of its own. Only the oldest rows are deleted
//! (`store::prune`), so a reader may begin with the first row that is left. Failures: `Unfit` for a
//! kind that a newer binary wrote; `Corrupt` for a value that no broker writes. The ledger makes
//! the rows, [`super::endings_reader`] reads them, and `crate::ledger::follower` compares the
//! digests.

use super::StoreError;
use super::codec::digest;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256_parts;
use crate::domain::cutoff::Selector;
use crate::domain::generation_digest::GenerationDigest;
use crate::ids::{SessionId, TaskId};

/// The channel on which a commit with endings notifies the other replicas.
pub(super) const CHANNEL: &str = "taskpass_endings";

/// The purpose of the digests of the chain.
const CHAIN: &str = "ending";

/// The object that ended or changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndingSubject {
    /// A task ended, and with it everything under it.
    Task(TaskId),
    /// A session ended, or began to end.
    Session(SessionId),
    /// A cutoff was committed.
    Cutoff(Selector),
    /// A cutoff with this selector was lifted. It ends nothing.
    Lift(Selector),
    /// The signing key with this id was revoked.
    SigningKey(String),
    /// A generation was activated.
    Activation(GenerationDigest),
    /// A role was given to or taken from this identity.
    Roles(String),
    /// The workload key with this thumbprint was removed.
    WorkloadKey(String),
}

impl EndingSubject {
    /// The kind, as stored.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Task(_) => "task",
            Self::Session(_) => "session",
            Self::Cutoff(_) => "cutoff",
            Self::Lift(_) => "lift",
            Self::SigningKey(_) => "signing_key",
            Self::Activation(_) => "activation",
            Self::Roles(_) => "roles",
            Self::WorkloadKey(_) => "workload_key",
        }
    }

    /// The value, as stored. A selector is its kind, `=`, and its value.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::Task(id) => id.to_string(),
            Self::Session(id) => id.to_string(),
            Self::Cutoff(selector) | Self::Lift(selector) => {
                format!("{}={}", selector.kind(), selector.value())
            }
            Self::SigningKey(text) | Self::Roles(text) | Self::WorkloadKey(text) => text.clone(),
            Self::Activation(digest) => digest.to_string(),
        }
    }

    /// The inverse of [`Self::kind`] and [`Self::value`].
    pub(super) fn from_parts(kind: &str, value: String) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt("ending");
        let selector = |value: &str| {
            let (kind, value) = value.split_once('=').ok_or_else(corrupt)?;
            Selector::from_parts(kind, value).ok_or_else(corrupt)
        };
        Ok(match kind {
            "task" => Self::Task(value.parse().map_err(|_| corrupt())?),
            "session" => Self::Session(value.parse().map_err(|_| corrupt())?),
            "cutoff" => Self::Cutoff(selector(&value)?),
            "lift" => Self::Lift(selector(&value)?),
            "signing_key" => Self::SigningKey(value),
            "activation" => Self::Activation(value.parse().map_err(|_| corrupt())?),
            "roles" => Self::Roles(value),
            "workload_key" => Self::WorkloadKey(value),
            newer => {
                return Err(StoreError::Unfit(format!(
                    "a row of the table ending has the kind `{newer}`, which this binary does not \
                     know; run a newer binary"
                )));
            }
        })
    }
}

/// The position of a row in the table: the index of its leaf, and its number among the rows of that
/// leaf, from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the type's text says it all")]
pub struct EndingPosition {
    pub index: u64,
    pub n: u64,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndingRecord {
    pub position: EndingPosition,
    pub subject: EndingSubject,
    /// After this time every session and all evidence that it ended has expired. A task that it
    /// ended may have a later deadline.
    pub matters_until: Timestamp,
}

/// The digest of all rows of the table up to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndingsChain([u8; 32]);

impl EndingsChain {
    /// The digest of no rows.
    pub const EMPTY: Self = Self([0; 32]);

    /// The digest after one more row.
    #[must_use]
    pub fn then(self, next: &EndingRecord) -> Self {
        let EndingPosition { index, n } = next.position;
        Self(sha256_parts(
            CHAIN,
            &[
                &self.0,
                &index.to_be_bytes(),
                &n.to_be_bytes(),
                next.subject.kind().as_bytes(),
                next.subject.value().as_bytes(),
                &next.matters_until.micros().to_be_bytes(),
            ],
        ))
    }

    /// The bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn from_column(bytes: &[u8]) -> Result<Self, StoreError> {
        digest("digest of endings", bytes).map(Self)
    }
}

/// A row with the digest of the rows before it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type's text says it all")]
pub struct ChainedEnding {
    pub record: EndingRecord,
    pub before: EndingsChain,
}

impl ChainedEnding {
    /// The digest of the rows up to this one.
    #[must_use]
    pub fn after(&self) -> EndingsChain {
        self.before.then(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::cutoff::True;

    fn subjects() -> Vec<EndingSubject> {
        let later = Selector::IssuedAfter(Timestamp::from_micros(1_795_000_000_123_456));
        let policy = Selector::Policy("a=b".into());
        vec![
            EndingSubject::Task(Uuid::from_u128(1).into()),
            EndingSubject::Session(Uuid::from_u128(1).into()),
            EndingSubject::Cutoff(Selector::All(True)),
            EndingSubject::Cutoff(later),
            EndingSubject::Lift(policy),
            EndingSubject::SigningKey("k1".into()),
            EndingSubject::Activation(GenerationDigest::new([7; 32])),
            EndingSubject::Roles("dev:a".into()),
            EndingSubject::WorkloadKey("thumbprint".into()),
        ]
    }

    fn record(index: u64, n: u64, subject: EndingSubject) -> EndingRecord {
        EndingRecord {
            position: EndingPosition { index, n },
            subject,
            matters_until: Timestamp::from_seconds(9),
        }
    }

    #[test]
    fn a_subject_is_read_as_it_was_written() {
        for subject in subjects() {
            let read = EndingSubject::from_parts(subject.kind(), subject.value()).unwrap();
            assert_eq!(read, subject);
        }
        let newer = EndingSubject::from_parts("weather", String::new()).unwrap_err();
        assert!(newer.to_string().contains("newer binary"), "{newer}");
        for (kind, value) in [("task", "1"), ("cutoff", "all"), ("lift", "weather=1")] {
            let told = EndingSubject::from_parts(kind, value.into()).unwrap_err();
            assert!(matches!(told, StoreError::Corrupt(_)), "{kind}: {told}");
        }
    }

    #[test]
    fn each_column_and_each_row_before_it_changes_the_digest() {
        let task = EndingSubject::Task(Uuid::from_u128(1).into());
        let first = record(3, 0, task.clone());
        let digest = EndingsChain::EMPTY.then(&first);
        let others = [
            record(4, 0, task.clone()),
            record(3, 1, task),
            record(3, 0, EndingSubject::Session(Uuid::from_u128(1).into())),
            record(3, 0, EndingSubject::Task(Uuid::from_u128(2).into())),
            EndingRecord {
                matters_until: Timestamp::from_seconds(8),
                ..first.clone()
            },
        ];
        for other in others {
            assert_ne!(EndingsChain::EMPTY.then(&other), digest, "{other:?}");
        }
        assert_ne!(digest.then(&first), digest);
    }
}
