//! A task: the unit of work that credentials are issued for. Its end ends its credentials.
//!
//! [`Task`] is the record, [`TaskLife`] are the facts in it that decide whether the task is alive,
//! and [`TaskChain`] holds these facts for the task and each ancestor. The state goes `open →
//! completed | aborted | expired`, with no way back.
//!
//! The recorded state may lag behind. [`super::validity`] decides at each use whether a task is
//! alive, from its state, its deadline, its heartbeat, and the same of every ancestor; the sweeper
//! records an expiry later. An empty [`TaskChain`] counts as ended. Nothing here returns an error:
//! `parse` answers `None` for an unknown name, and the store then reports a corrupt row.

use serde::{Deserialize, Serialize};

use super::workload::{Identity, Instance, KeyBinding};
use crate::clock::Timestamp;
use crate::ids::TaskId;

/// The recorded state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// The work may go on.
    Open,
    /// Its owner completed it.
    Completed,
    /// Its owner, an admin or the end of its parent aborted it.
    Aborted,
    /// Its deadline passed, or a heartbeat was missed.
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

/// A way to end a task. Written as the state that results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskEnd {
    /// The work is done.
    #[serde(rename = "completed")]
    Complete,
    /// The work was stopped.
    #[serde(rename = "aborted")]
    Abort,
    /// The deadline passed or a heartbeat was missed. Only the sweeper ends a task in this way.
    #[serde(rename = "expired")]
    Expire,
}

impl TaskEnd {
    /// The state that results.
    #[must_use]
    pub fn state(self) -> TaskState {
        match self {
            Self::Complete => TaskState::Completed,
            Self::Abort => TaskState::Aborted,
            Self::Expire => TaskState::Expired,
        }
    }
}

/// The facts that decide whether a task is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskLife {
    pub id: TaskId,
    pub state: TaskState,
    pub opened_at: Timestamp,
    /// The latest time at which it ends.
    pub deadline: Timestamp,
    /// Longest heartbeat interval in seconds; `None` if the task needs no heartbeat.
    pub heartbeat_seconds: Option<u64>,
    /// The time of the last heartbeat or other use.
    pub heard_at: Timestamp,
    /// The recorded time of its end; `None` while no end is recorded.
    pub ended_at: Option<Timestamp>,
}

/// A task and its ancestors, from the task up to the root. Empty if a link is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskChain(pub Vec<TaskLife>);

impl TaskChain {
    /// The ids of the ancestors, nearest first.
    #[must_use]
    pub fn parents(&self) -> Vec<TaskId> {
        self.0.iter().skip(1).map(|life| life.id).collect()
    }
}

/// The record of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Task {
    pub id: TaskId,
    /// The name of the registered type.
    pub task_type: String,
    /// The attestor of its owner.
    pub attestor: String,
    /// The digest of the attestor's foundation at the time of opening
    /// ([`AttestorSpec::foundation`](super::trust::AttestorSpec::foundation)).
    pub attestor_digest: [u8; 32],
    /// The identity that opened it.
    pub owner: Identity,
    /// The run of its owner, if the attestor can tell.
    pub owner_instance: Option<Instance>,
    /// The parent task, if it has one.
    pub parent: Option<TaskId>,
    /// Depth in the chain of tasks; 1 for a root.
    pub depth: u8,
    /// The recorded state; [`super::validity`] decides the effective one.
    pub state: TaskState,
    pub opened_at: Timestamp,
    /// The latest time at which it ends.
    pub deadline: Timestamp,
    /// Longest heartbeat interval in seconds; `None` if the task needs no heartbeat.
    pub heartbeat_seconds: Option<u64>,
    /// The time of the last heartbeat or other use.
    pub heard_at: Timestamp,
    /// The recorded time of its end; `None` while no end is recorded.
    pub ended_at: Option<Timestamp>,
    /// SHA-256 of its handle.
    pub handle_digest: [u8; 32],
    /// The key that the opening request proved. Every use of the handle must prove it too. `None`
    /// if the handle is bound to no key.
    pub handle_key: Option<String>,
    /// Number of credentials that can still be issued under it.
    pub sessions_left: u32,
    /// Index of the leaf that opened it.
    pub leaf_index: u64,
}

impl Task {
    /// Whether a caller that proved the key `proved` may use the handle: true if the handle is
    /// bound to no key, or to this one.
    #[must_use]
    pub fn fits_key(&self, proved: Option<&KeyBinding>) -> bool {
        match &self.handle_key {
            None => true,
            Some(bound) => proved.is_some_and(|key| key.to_text() == *bound),
        }
    }

    /// The facts that decide whether it is alive.
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
