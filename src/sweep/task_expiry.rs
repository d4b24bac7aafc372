//! The worker `task_expiry`: records the end of tasks that have expired, and schedules the next
//! check of the others.
//!
//! One statement checks a batch of due tasks. It also closes those whose deadline has passed:
//! nothing depends on that record, because no session outlives its task's deadline, and each use is
//! judged by the deadline itself. So it has no leaf. A silent task ends earlier than its permits
//! say, so its end is a leaf; one leaf lists many tasks. So is the end of a task that a clock that
//! was ahead had opened.
//!
//! The rule: the ledger judges each task of a leaf again under its lock, so a heartbeat in between
//! keeps its task open. Failures: tasks whose end was not recorded are checked again after
//! [`CLAIM_SECONDS`], and so is a task whose row cannot be read, which delays no other.

use std::collections::VecDeque;
use std::sync::Arc;

use super::CLAIM_SECONDS;
use super::rounds::{Outcome, Swept};
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::limits::MAX_TASKS_IN_LEAF;
use crate::domain::validity::is_dated_ahead;
use crate::ids::TaskId;
use crate::ledger::AppendError;
use crate::ledger::entry::SweepCause;
use crate::store::tasks::{DueTask, TaskCheck};

/// How many tasks one round checks.
const BATCH_TASKS: u32 = 2_000;

/// The tasks of a batch that end with a leaf, by their cause.
#[derive(Debug, Default)]
struct Due {
    /// They were silent for too long.
    silent: Vec<TaskId>,
    /// They were dated ahead, and have expired by the clock alone.
    expired_ahead: Vec<TaskId>,
    /// They were dated ahead.
    ahead: Vec<TaskId>,
}

impl Due {
    fn add(
        &mut self,
        task: &DueTask,
        over_by: Timestamp,
        now: Timestamp,
        accepted: &[(u64, Timestamp)],
    ) {
        let life = &task.life;
        let expires_at = life.expires_at();
        if expires_at <= over_by {
            self.silent.push(life.id);
        } else if is_dated_ahead(life.opened_at, task.leaf_index, accepted) {
            // A task that has expired cannot be aborted.
            let ended = if expires_at <= now {
                &mut self.expired_ahead
            } else {
                &mut self.ahead
            };
            ended.push(life.id);
        }
    }

    fn with_causes(self, over_by: Timestamp, now: Timestamp) -> [(Vec<TaskId>, SweepCause); 3] {
        [
            (self.silent, SweepCause::ExpiredBy(over_by)),
            (self.expired_ahead, SweepCause::ExpiredBy(now)),
            (self.ahead, SweepCause::DatedAhead),
        ]
    }
}

/// Ends these tasks. Returns how many, and the first failure. A failure delays no other tasks.
async fn end(
    broker: &Arc<Broker>,
    due: [(Vec<TaskId>, SweepCause); 3],
) -> (u64, Option<AppendError>) {
    let (mut ended, mut failed) = (0, None);
    let mut work: VecDeque<(Vec<TaskId>, SweepCause)> = VecDeque::new();
    for (tasks, cause) in due {
        let leaves = tasks.chunks(MAX_TASKS_IN_LEAF);
        work.extend(leaves.map(|tasks| (tasks.to_vec(), cause)));
    }
    while let Some((mut tasks, cause)) = work.pop_front() {
        let count = tasks.len();
        match broker.tasks.sweep_tasks(tasks.clone(), cause).await {
            Ok(true) => ended += u64::try_from(count).unwrap_or(u64::MAX),
            Ok(false) => {}
            // Find the task whose end the store refuses.
            Err(AppendError::Poisoned(_)) if count > 1 => {
                let rest = tasks.split_off(count / 2);
                work.push_front((rest, cause));
                work.push_front((tasks, cause));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    (ended, failed)
}

/// Ends tasks that have expired, and schedules the next check of the others.
pub(super) async fn task_expiry(broker: &Arc<Broker>, now: Timestamp) -> Outcome {
    let store = broker.core.store();
    let over_by = broker.core.tasks_over_by(now);
    let accepted = store.accepted_times().await?;
    let check = TaskCheck {
        now,
        over_by,
        retry_at: now.plus_seconds(CLAIM_SECONDS),
        accepted: &accepted,
        limit: BATCH_TASKS,
    };
    let checked = store.check_due_tasks(&check).await?;
    let mut due = Due::default();
    for task in &checked.open {
        due.add(task, over_by, now, &accepted);
    }
    let (ended, failed) = end(broker, due.with_causes(over_by, now)).await;
    let rows = checked.past_deadline + ended;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if checked.unreadable > 0 {
        let unreadable = checked.unreadable;
        return Err(BrokerError::store(format!(
            "the rows of {unreadable} due tasks cannot be read; {rows} other tasks were ended"
        )));
    }
    Ok(Swept {
        rows,
        more: checked.is_full,
    })
}
