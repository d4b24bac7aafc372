//! The end of a task, and of everything under it.

use super::{Draft, EntryKind};
use crate::domain::leaf::Event;
use crate::domain::task::TaskEnd;
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::Needs;

/// The end of a task.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndTask {
    pub task: TaskId,
    pub end: TaskEnd,
    /// The actor recorded in the ledger: an identity, or `handle`, `sweeper`, `broker`.
    pub by: String,
    /// The owner of the task.
    pub owner: Identity,
}

impl EntryKind for EndTask {
    fn event(&self) -> Option<Event> {
        Some(Event::TaskEnded {
            task: self.task,
            end: self.end,
            by: self.by.clone(),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        Some(&self.owner)
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn need(&self, needs: &mut Needs) {
        needs.tasks.push(self.task);
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        let ended = state.end_task(self.task, self.end.state());
        Ok(Outcome::recorded_if(ended))
    }
}
