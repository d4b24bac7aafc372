//! A task: the unit of work that a credential is for, and that takes its credentials with it when
//! it ends.
//!
//! `open → completed | aborted | expired`, and no way back. Whether a task is alive is judged at
//! use: its own state, its deadline, its silence, and the same of everything that it is part of.
//! The sweeper writes down later what was already true.

use serde::{Deserialize, Serialize};

use super::session::EndReason;
use super::workload::{Identity, Instance};
use crate::clock::Timestamp;
use crate::ids::TaskId;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Work may go on.
    Open,
    /// Its owner said that it is done.
    Completed,
    /// Its owner, an admin or its parent's end broke it off.
    Aborted,
    /// Its deadline passed, or it fell silent.
    Expired,
}

impl TaskState {
    /// The name on the wire and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Completed, Self::Aborted, Self::Expired]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Why the sessions of a task end that ended in this way.
    #[must_use]
    pub fn end_reason(self) -> EndReason {
        match self {
            Self::Completed => EndReason::Completed,
            Self::Open | Self::Aborted => EndReason::Revoked,
            Self::Expired => EndReason::Expired,
        }
    }
}

/// How a task is ended. There is no other way out of `open`. It is written as the state that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskEnd {
    /// Done.
    #[serde(rename = "completed")]
    Complete,
    /// Broken off.
    #[serde(rename = "aborted")]
    Abort,
    /// Past its deadline or silent; only the sweeper says so.
    #[serde(rename = "expired")]
    Expire,
}

impl TaskEnd {
    /// The state that follows.
    #[must_use]
    pub fn state(self) -> TaskState {
        match self {
            Self::Complete => TaskState::Completed,
            Self::Abort => TaskState::Aborted,
            Self::Expire => TaskState::Expired,
        }
    }
}

/// What decides whether a task is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLife {
    /// Which task.
    pub id: TaskId,
    /// Its recorded state.
    pub state: TaskState,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it is over in any case.
    pub deadline: Timestamp,
    /// The longest silence, where there is one.
    pub heartbeat_seconds: Option<u64>,
    /// When it was last heard of.
    pub heard_at: Timestamp,
    /// When it ended, on record.
    pub ended_at: Option<Timestamp>,
}

impl TaskLife {
    /// The first instant at which it is over unless it is heard of before: its deadline, or the
    /// end of the silence that it may keep.
    #[must_use]
    pub fn over_at(&self) -> Timestamp {
        match self.heartbeat_seconds {
            Some(seconds) => self.deadline.min(self.heard_at.plus_seconds(seconds)),
            None => self.deadline,
        }
    }

    /// Its state at `now`: a task that is open on record but over by the clock is expired.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        match self.state {
            TaskState::Open if now >= self.over_at() => TaskState::Expired,
            state => state,
        }
    }
}

/// A task and everything that it is part of, from itself up to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskChain(pub Vec<TaskLife>);

impl TaskChain {
    /// The state of the whole at `now`: that of the first link that is not open, dead
    /// intermediates included. An empty chain is nobody's, and over.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        self.over_at(now)
            .map_or(TaskState::Open, |(state, _)| state)
    }

    /// How and when the whole ended, if it is over at `now`.
    #[must_use]
    pub fn over_at(&self, now: Timestamp) -> Option<(TaskState, Timestamp)> {
        if self.0.is_empty() {
            return Some((TaskState::Aborted, now));
        }
        self.0.iter().find_map(|life| match life.state_at(now) {
            TaskState::Open => None,
            state => Some((state, life.ended_at.unwrap_or_else(|| life.over_at()))),
        })
    }

    /// The earliest deadline of the chain: no credential under it may live longer.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let deadlines = self.0.iter().map(|life| life.deadline);
        deadlines.min().unwrap_or(Timestamp::EPOCH)
    }

    /// The ids of the parents, nearest first.
    #[must_use]
    pub fn parents(&self) -> Vec<TaskId> {
        self.0.iter().skip(1).map(|life| life.id).collect()
    }
}

/// A task's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which.
    pub id: TaskId,
    /// The registered type's name.
    pub task_type: String,
    /// The attestor of its owner.
    pub attestor: String,
    /// The digest of what that attestor's identities rested on when the task was opened.
    pub attestor_digest: [u8; 32],
    /// Who opened it.
    pub owner: Identity,
    /// Which run of its owner.
    pub owner_instance: Option<Instance>,
    /// The task that it is part of.
    pub parent: Option<TaskId>,
    /// Its place in the chain; a root has 1.
    pub depth: u8,
    /// Its recorded state.
    pub state: TaskState,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it is over in any case.
    pub deadline: Timestamp,
    /// The longest silence.
    pub heartbeat_seconds: Option<u64>,
    /// When it was last heard of.
    pub heard_at: Timestamp,
    /// When it ended, on record.
    pub ended_at: Option<Timestamp>,
    /// SHA-256 of its handle.
    pub handle_digest: [u8; 32],
    /// The key that the opening request proved, which every use of the handle must prove too.
    pub handle_key: Option<String>,
    /// Credentials that may still be issued under it.
    pub sessions_left: u32,
    /// The leaf that opened it.
    pub leaf_index: u64,
}

impl Task {
    /// What decides whether it is alive.
    #[must_use]
    pub fn life(&self) -> TaskLife {
        TaskLife {
            id: self.id,
            state: self.state,
            opened_at: self.opened_at,
            deadline: self.deadline,
            heartbeat_seconds: self.heartbeat_seconds,
            heard_at: self.heard_at,
            ended_at: self.ended_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn life(state: TaskState, deadline: i64, heartbeat: Option<u64>) -> TaskLife {
        TaskLife {
            id: TaskId::from(Uuid::from_u128(1)),
            state,
            opened_at: Timestamp::EPOCH,
            deadline: Timestamp::from_seconds(deadline),
            heartbeat_seconds: heartbeat,
            heard_at: Timestamp::from_seconds(100),
            ended_at: None,
        }
    }

    #[test]
    fn a_deadline_or_a_silence_ends_a_task_without_anybody_writing_it_down() {
        let at = Timestamp::from_seconds;
        let task = life(TaskState::Open, 1_000, Some(30));
        assert_eq!(task.state_at(at(129)), TaskState::Open);
        assert_eq!(task.state_at(at(130)), TaskState::Expired);
        let quiet = life(TaskState::Open, 1_000, None);
        assert_eq!(quiet.state_at(at(999)), TaskState::Open);
        assert_eq!(quiet.state_at(at(1_000)), TaskState::Expired);
    }

    #[test]
    fn a_dead_intermediate_is_walked_through() {
        let chain = TaskChain(vec![
            life(TaskState::Open, 1_000, None),
            life(TaskState::Aborted, 1_000, None),
            life(TaskState::Open, 1_000, None),
        ]);
        assert_eq!(chain.state_at(Timestamp::EPOCH), TaskState::Aborted);
        assert_eq!(
            TaskChain(vec![]).state_at(Timestamp::EPOCH),
            TaskState::Aborted
        );
    }

    proptest! {
        #[test]
        fn once_over_a_chain_stays_over(deadlines in prop::collection::vec(1_i64..1_000, 1..8), now in 0_i64..2_000, later in 0_i64..2_000) {
            let chain = TaskChain(deadlines.iter().map(|d| life(TaskState::Open, *d, None)).collect());
            let over = |t| chain.state_at(Timestamp::from_seconds(t)) != TaskState::Open;
            if over(now) {
                prop_assert!(over(now + later));
            }
            prop_assert_eq!(over(now), now >= *deadlines.iter().min().unwrap());
        }
    }
}
