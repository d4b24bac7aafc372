//! The use of evidence by a call that only reads: no leaf.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};

/// Uses evidence up and judges its caller by the cutoffs. The batch does both for every entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Consume;

impl EntryKind for Consume {
    fn event(&self) -> Option<Event> {
        None
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        true
    }

    /// A wrong clock can only refuse the evidence too early.
    fn goes_by_any_clock(&self) -> bool {
        true
    }

    fn settle(&self, _state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        Ok(Outcome::Unchanged)
    }
}
