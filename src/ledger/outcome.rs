//! The outcome of one entry.
//!
//! [`Outcome`] serves both the settling of an entry, with a leaf that is yet to be written, and the
//! answer of an append, with a durable leaf. [`AppendError`] says why nothing was appended, or why
//! the outcome is unknown.
//!
//! The rule: an outcome says whether the evidence was used up (`uses_evidence_up`). Only `Stale`,
//! `Superseded` and `RetryTaken` leave it unused, because the caller decides or judges again with
//! the same evidence. After `Unknown` and `Unsigned` a leaf may exist, and nothing may be released.
//! `batch` and the entries make outcomes, the appender errors; `broker` turns both into a
//! `BrokerError`.

use std::sync::Arc;

use super::caller::Blocked;
use super::clock_watch::ClockDoubt;
use crate::domain::decision::Refusal;
use crate::store::StoreError;
use crate::store::append::RetryFacts;

/// The outcome of an entry. `T` is the type of its leaf.
#[derive(Clone, Debug)]
pub enum Outcome<T> {
    /// Recorded as it was decided.
    Recorded(T),
    /// Recorded as a refusal: a fact that the permit depends on changed after the decision.
    Refused(T, Refusal),
    /// Not recorded: the entry changes nothing.
    Unchanged,
    /// Not recorded: this one-time id of the request was used before.
    Replayed([u8; 32]),
    /// Not recorded: the store may have deleted an earlier use of the evidence.
    Forgotten,
    /// Not recorded: a cutoff blocks the caller. The evidence is used up.
    Blocked(Blocked),
    /// Not recorded: the state on which the entry was decided has changed. Decide again.
    Stale,
    /// Not recorded: the generation or the roles by which the caller was authorized have changed.
    /// Judge the caller again.
    Superseded,
    /// Not recorded: another request used the `Idempotency-Key` in between.
    RetryTaken(RetryFacts),
}

impl<T> Outcome<T> {
    /// Replaces the leaf by the one that `then` makes of it. An outcome without a leaf stays as it
    /// is.
    pub(super) fn try_map<U, E>(
        self,
        then: impl FnOnce(T) -> Result<U, E>,
    ) -> Result<Outcome<U>, E> {
        Ok(match self {
            Self::Recorded(leaf) => Outcome::Recorded(then(leaf)?),
            Self::Refused(leaf, refusal) => Outcome::Refused(then(leaf)?, refusal),
            Self::Unchanged => Outcome::Unchanged,
            Self::Replayed(id) => Outcome::Replayed(id),
            Self::Forgotten => Outcome::Forgotten,
            Self::Blocked(blocked) => Outcome::Blocked(blocked),
            Self::Stale => Outcome::Stale,
            Self::Superseded => Outcome::Superseded,
            Self::RetryTaken(facts) => Outcome::RetryTaken(facts),
        })
    }

    /// Whether the evidence of the request counts as used. An entry that must be decided or judged
    /// again is appended with the same evidence.
    #[must_use]
    pub fn uses_evidence_up(&self) -> bool {
        match self {
            Self::Recorded(_)
            | Self::Refused(..)
            | Self::Unchanged
            | Self::Replayed(_)
            | Self::Forgotten
            | Self::Blocked(_) => true,
            Self::Stale | Self::Superseded | Self::RetryTaken(_) => false,
        }
    }
}

/// Why nothing was appended, or why the outcome is unknown.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The queue is full, or too much evidence waits to be recorded.
    #[error("the ledger's queue is full; try again")]
    Overloaded,
    /// The store cannot be written now.
    #[error("the ledger cannot be written: {0}")]
    Unavailable(Arc<StoreError>),
    /// The outcome of the commit is unknown. Nothing may be released.
    #[error("the outcome of a ledger commit is unknown")]
    Unknown,
    /// The store refused exactly this entry.
    #[error("the ledger refused an entry: {0}")]
    Poisoned(Arc<StoreError>),
    /// The entry cannot be serialised as a leaf.
    #[error("an entry cannot be written as a leaf: {0}")]
    Unwritable(String),
    /// A decision was recorded, but its checkpoint could not be signed. Nothing may be released.
    #[error("the decision was recorded, but its checkpoint could not be signed")]
    Unsigned,
    /// The clock cannot be relied on, so nothing may be dated by it.
    #[error("the clock is in doubt: {0}")]
    ClockInDoubt(ClockDoubt),
    /// The ledger stopped for good.
    #[error("the ledger has stopped: {0}")]
    Stopped(String),
}

impl From<serde_json::Error> for AppendError {
    fn from(error: serde_json::Error) -> Self {
        Self::Unwritable(error.to_string())
    }
}
