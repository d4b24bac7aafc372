//! A task: the unit of work that a credential is for, and that takes its credentials with it when
//! it ends.
//!
//! `open → completed | aborted | expired`, and no way back. Whether a task is alive is judged at use
//! ([`super::validity`]): by its own state, its deadline, its silence, and the same of every task
//! above it. The sweeper records later what was already true.

use serde::{Deserialize, Serialize};

use super::workload::{Identity, Instance, KeyBinding};
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

/// A task and every task above it, from itself up to the root. It is empty where a link is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskChain(pub Vec<TaskLife>);

impl TaskChain {
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
    /// Whether `proved` is the key that its handle is bound to, if the handle is bound to one.
    #[must_use]
    pub fn fits_key(&self, proved: Option<&KeyBinding>) -> bool {
        match &self.handle_key {
            None => true,
            Some(bound) => proved.is_some_and(|key| key.to_text() == *bound),
        }
    }

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
