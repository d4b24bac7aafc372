//! The end of many tasks by the sweeper, in one leaf.
//!
//! The sweeper read the tasks before. Under the lock each is judged again, with its last heartbeat.
//! So a heartbeat in between keeps its task open, and the leaf lists only the tasks that it ends.
//! If none is left, nothing is recorded.

use super::{Draft, EntryKind};
use crate::clock::Timestamp;
use crate::domain::leaf::Event;
use crate::domain::task::TaskEnd;
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::Needs;

/// The actor that the leaf names.
const BY: &str = "sweeper";

/// The end of many tasks by the sweeper.
#[derive(Clone, Debug)]
pub struct EndTasks {
    /// The tasks, at most
    /// [`MAX_TASKS_IN_LEAF`](crate::domain::limits::MAX_TASKS_IN_LEAF).
    pub tasks: Vec<TaskId>,
    /// Why they end. A task for which this does not hold under the lock stays as it is.
    pub cause: SweepCause,
}

/// Why the sweeper ends a task with a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepCause {
    /// It had expired by this instant, because it was silent for too long.
    ExpiredBy(Timestamp),
    /// A clock opened it that was ahead of a time that an admin accepted later.
    DatedAhead,
}

impl SweepCause {
    fn end(self) -> TaskEnd {
        match self {
            Self::ExpiredBy(_) => TaskEnd::Expire,
            Self::DatedAhead => TaskEnd::Abort,
        }
    }

    /// Whether the task ends for this cause, by the state under the lock.
    fn holds(self, state: &LockedState<'_>, task: TaskId) -> bool {
        match self {
            Self::ExpiredBy(by) => state.has_expired_by(task, by),
            Self::DatedAhead => state.is_dated_ahead(task),
        }
    }
}

impl EndTasks {
    fn event_of(&self, tasks: Vec<TaskId>) -> Event {
        Event::TasksEnded {
            tasks,
            end: self.cause.end(),
            by: BY.into(),
        }
    }
}

impl EntryKind for EndTasks {
    fn event(&self) -> Option<Event> {
        Some(self.event_of(self.tasks.clone()))
    }

    /// The tasks may have several owners.
    fn subject(&self) -> Option<&Identity> {
        None
    }

    fn needs_free_space(&self) -> bool {
        false
    }

    fn need(&self, needs: &mut Needs) {
        needs.tasks.extend(&self.tasks);
        needs.held_tasks.extend(&self.tasks);
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        let end = self.cause.end().state();
        let mut ended = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            if self.cause.holds(state, *task) && state.end_task(*task, end) {
                ended.push(*task);
            }
        }
        Ok(if ended.is_empty() {
            Outcome::Unchanged
        } else if ended.len() == self.tasks.len() {
            Outcome::recorded()
        } else {
            Outcome::Recorded(Draft::Other(Box::new(self.event_of(ended))))
        })
    }
}
