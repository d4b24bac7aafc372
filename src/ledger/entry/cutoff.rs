//! A new cutoff.

use super::{Draft, EntryKind, EntryOpenings};
use crate::domain::cutoff::Cutoff;
use crate::domain::leaf::{Commitment, Event, Opening};
use crate::domain::task::TaskState;
use crate::domain::workload::Identity;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::{ActWrite, Needs};

/// A new cutoff.
#[derive(Clone, Debug)]
pub struct NewCutoff {
    /// Its record; `index` and `committed_at` are set when it is appended.
    pub cutoff: Cutoff,
    /// The commitment to the reason, and the text that opens it.
    pub reason: (Commitment, Opening),
}

impl EntryKind for NewCutoff {
    fn event(&self) -> Option<Event> {
        let cutoff = &self.cutoff;
        Some(Event::Cutoff {
            id: cutoff.id,
            selector: cutoff.selector.clone(),
            blocked_until: cutoff.block.to_text(),
            deny_policy_target: cutoff.deny_policy_target.clone(),
            reason: self.reason.0.clone(),
            by: cutoff.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn openings(&self) -> EntryOpenings<'_> {
        EntryOpenings {
            purpose: Some(&self.reason.1),
            ..EntryOpenings::default()
        }
    }

    fn need(&self, needs: &mut Needs) {
        needs.tasks.extend(self.cutoff.selector.task());
    }

    /// A cutoff of a task ends the task, so that no request can join it afterwards.
    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if let Some(task) = self.cutoff.selector.task() {
            state.end_task(task, TaskState::Aborted);
        }
        let mut cutoff = self.cutoff.clone();
        cutoff.index = state.index();
        cutoff.committed_at = state.now();
        let sealed = state.seal_cutoff(cutoff);
        state.write(ActWrite::Cutoff(sealed));
        Ok(Outcome::recorded())
    }
}
