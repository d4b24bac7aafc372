//! Whether a task is open at an instant: its own record, its deadline and heartbeats, and the ends
//! of its ancestors.
//!
//! `TaskLife::state_at` judges one record, `TaskChain::state_at` a task with its ancestors. A chain
//! with a missing link, or longer than permitted, is empty and counts as aborted, so a missing row
//! never keeps a task open. Nothing here returns an error.
//!
//! The rule for sessions in [`super`] takes the ends from here. `store/validity_sql.rs` mirrors
//! `expires_at` and `lived_at` in SQL.

use super::{EndCause, Ending};
use crate::clock::Timestamp;
use crate::domain::limits::MAX_CHAIN_DEPTH;
use crate::domain::session::EndReason;
use crate::domain::task::{TaskChain, TaskEnd, TaskLife, TaskState};
use crate::ids::TaskId;

impl TaskEnd {
    /// The end reason of the sessions of a task that ends in this way.
    #[must_use]
    pub fn end_reason(self) -> EndReason {
        match self {
            Self::Complete => EndReason::Completed,
            Self::Abort => EndReason::Revoked,
            Self::Expire => EndReason::Expired,
        }
    }
}

impl TaskState {
    /// The way in which a task in this state ended; `None` while it is open.
    #[must_use]
    pub fn end(self) -> Option<TaskEnd> {
        match self {
            Self::Open => None,
            Self::Completed => Some(TaskEnd::Complete),
            Self::Aborted => Some(TaskEnd::Abort),
            Self::Expired => Some(TaskEnd::Expire),
        }
    }
}

impl TaskLife {
    /// The instant at which an open task expires without a further heartbeat: its deadline, or the
    /// end of its heartbeat interval.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        match self.heartbeat_seconds {
            Some(seconds) => self.deadline.min(self.heard_at.plus_seconds(seconds)),
            None => self.deadline,
        }
    }

    /// Its state at `now`. A task whose record is open may have expired.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        self.end_at(now)
            .map_or(TaskState::Open, |(end, _)| end.state())
    }

    /// Whether it can be brought into this state at `now`. A task that has expired can only end as
    /// expired, and no other task can.
    #[must_use]
    pub fn can_end_as(&self, state: TaskState, now: Timestamp) -> bool {
        let has_expired = now >= self.expires_at();
        self.state == TaskState::Open && has_expired == (state == TaskState::Expired)
    }

    /// Whether it was open at `at` by its record and its deadline, ignoring heartbeats. An end that
    /// is recorded at `at` or later counts as a later one.
    #[must_use]
    pub fn lived_at(&self, at: Timestamp) -> bool {
        let on_record = match self.state {
            TaskState::Open => true,
            TaskState::Completed | TaskState::Aborted | TaskState::Expired => {
                self.ended_at.is_some_and(|ended| ended >= at)
            }
        };
        on_record && at < self.deadline
    }

    fn end_at(&self, now: Timestamp) -> Option<(TaskEnd, Timestamp)> {
        let end = match self.state.end() {
            Some(end) => end,
            None if now >= self.expires_at() => TaskEnd::Expire,
            None => return None,
        };
        Some((end, self.ended_at.unwrap_or_else(|| self.expires_at())))
    }
}

/// A task with the id of its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct TaskLink {
    pub life: TaskLife,
    pub parent: Option<TaskId>,
}

impl TaskChain {
    /// The chain of the task `id`, whose links `link` looks up. Empty, and so ended, if a link is
    /// missing or the chain is longer than permitted.
    #[must_use]
    pub fn of(id: TaskId, link: impl Fn(TaskId) -> Option<TaskLink>) -> Self {
        let mut lives = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            match link(id) {
                Some(link) if lives.len() <= usize::from(MAX_CHAIN_DEPTH) => {
                    lives.push(link.life);
                    next = link.parent;
                }
                _ => return Self(Vec::new()),
            }
        }
        Self(lives)
    }

    /// The state of the task at `now`: that of the nearest link that is not open, ended
    /// intermediate tasks included.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        self.ends(now)
            .next()
            .map_or(TaskState::Open, |(_, end, _)| end.state())
    }

    /// The end of the nearest link that has ended at `now`; `None` if the task is alive.
    #[must_use]
    pub fn ended(&self, now: Timestamp) -> Option<Ending> {
        self.endings(now).next()
    }

    /// The earliest deadline of the chain. No credential under it may live longer.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let deadlines = self.0.iter().map(|life| life.deadline);
        deadlines.min().unwrap_or(Timestamp::EPOCH)
    }

    pub(super) fn endings(&self, now: Timestamp) -> impl Iterator<Item = Ending> {
        self.ends(now).map(|(above, end, at)| Ending {
            at,
            cause: EndCause::Task(end),
            inherited: above > 0,
        })
    }

    /// Every link that has ended at `now`, nearest first, with its distance.
    fn ends(&self, now: Timestamp) -> impl Iterator<Item = (usize, TaskEnd, Timestamp)> {
        let missing = self.0.is_empty().then_some((0, TaskEnd::Abort, now));
        let links = self.0.iter().enumerate();
        let ended = links.filter_map(move |(above, life)| {
            let (end, at) = life.end_at(now)?;
            Some((above, end, at))
        });
        missing.into_iter().chain(ended)
    }
}
