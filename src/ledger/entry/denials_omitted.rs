//! The number of denials beyond the budget, which have no leaf of their own.

use super::{Draft, EntryKind};
use crate::clock::Timestamp;
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};

/// The number of denials that have no leaf of their own.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DenialsOmitted {
    /// The identity, or the attestor for all its identities together.
    pub subject: String,
    pub count: u64,
    /// The beginning of the window.
    pub since: Timestamp,
}

impl EntryKind for DenialsOmitted {
    fn event(&self) -> Option<Event> {
        Some(Event::DenialsOmitted {
            subject: self.subject.clone(),
            count: self.count,
            since: self.since,
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        true
    }

    fn settle(&self, _state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        Ok(Outcome::recorded())
    }
}
