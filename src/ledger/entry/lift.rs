//! The lifting of a cutoff.

use super::{Blocked, Draft, EntryKind, RequestCaller};
use crate::domain::cutoff::Cutoff;
use crate::domain::leaf::Event;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::ActWrite;

/// The lifting of a cutoff.
#[derive(Clone, Debug)]
pub struct Lift {
    /// The cutoff before the lift; `lifted_index` is set when the lift is appended.
    pub cutoff: Cutoff,
    /// The actor recorded in the ledger.
    pub by: String,
}

impl EntryKind for Lift {
    fn event(&self) -> Option<Event> {
        Some(Event::CutoffLifted {
            id: self.cutoff.id,
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    /// An admin whom the cutoff itself blocks may lift it, if it could block every admin.
    fn blocked(&self, by: &RequestCaller, state: &LockedState<'_>) -> Option<Blocked> {
        let obstacle = state.obstacle(by, [state.now()])?;
        if obstacle.allows_lifting(&self.cutoff.selector) {
            return None;
        }
        Some(obstacle.blocked(by))
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if state.is_lifted(&self.cutoff) {
            return Ok(Outcome::Unchanged);
        }
        let mut cutoff = self.cutoff.clone();
        cutoff.lifted_index = Some(state.index());
        let sealed = state.seal_cutoff(cutoff);
        state.write(ActWrite::Lift(sealed));
        Ok(Outcome::recorded())
    }
}
