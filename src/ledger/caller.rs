//! The caller of a request as the ledger judges it: its evidence, the cutoffs that may block it,
//! and the state of the broker in which it was authorized.
//!
//! [`RequestCaller`] is the caller as cutoffs match it, [`Premises`] the state by which it was
//! authorized, [`OneTimeUse`] both with the one-time ids, and [`Blocked`] the refusal.
//!
//! The rule: a blocked caller learns which cutoff blocks it only if it may lift that cutoff. These
//! types decide nothing and cannot fail. `broker::access` fills them in; `ledger::batch` and
//! `ledger::locked` judge them under the lock. `None` as the caller means the broker's own work, or
//! a configured token: no cutoff matches them.

use crate::domain::generation_digest::GenerationDigest;
use crate::domain::task::Task;
use crate::domain::workload::{Identity, OneTime, Workload};
use crate::ids::{CutoffId, TaskId};

/// The caller of a request, as cutoffs match it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestCaller {
    /// The identity; if the caller presented only a task's handle, the identity of the task's
    /// owner.
    pub identity: Identity,
    /// The attestor that verified that identity.
    pub attestor: String,
    /// The task that the request keeps open or delegates from. A cutoff that blocks this task, an
    /// ancestor or the owner of either also refuses the request.
    pub task: Option<TaskId>,
    /// The name of the act in the refusal: an admin's action, or `the request`.
    pub act: &'static str,
    /// Whether policy permits the caller to lift cutoffs. If so, a refusal names the cutoff.
    pub may_lift: bool,
}

/// The act of a caller that performs no admin's action.
pub const ANY_REQUEST: &str = "the request";

impl RequestCaller {
    /// A caller that presented an attestation.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            identity: workload.identity.clone(),
            attestor: workload.attestor.clone(),
            task: None,
            act: ANY_REQUEST,
            may_lift: false,
        }
    }

    /// A caller that presented a task's handle and so acts for the task's owner.
    #[must_use]
    pub fn by_handle(task: &Task) -> Self {
        Self {
            identity: task.owner.clone(),
            attestor: task.attestor.clone(),
            task: None,
            act: ANY_REQUEST,
            may_lift: false,
        }
    }
}

/// The state of the broker in which a caller was authorized. If that state has changed, nothing is
/// appended and the caller is judged again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Premises {
    /// The generation that decided. `None` if the call does not depend on one.
    pub generation: Option<GenerationDigest>,
    /// The size of the log before role bindings and registered keys were read. A later entry may
    /// have changed a binding or removed a key.
    pub bindings_as_of: Option<u64>,
}

/// The one-time ids that a request uses up, and the caller that presented them.
#[derive(Clone, Debug, Default)]
pub struct OneTimeUse {
    /// The ids. If one was used before, nothing is appended.
    pub ids: Vec<OneTime>,
    /// The caller: while a cutoff blocks it, nothing is appended. `None` for the broker's own work,
    /// and for the configured tokens, which no selector matches.
    pub by: Option<RequestCaller>,
    /// The state that must not have changed since the caller was authorized.
    pub premises: Premises,
}

impl From<Vec<OneTime>> for OneTimeUse {
    fn from(ids: Vec<OneTime>) -> Self {
        Self {
            ids,
            ..Self::default()
        }
    }
}

/// An entry that was refused because a cutoff blocks its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The name of the refused act.
    pub act: &'static str,
    /// The cutoff, if the caller may lift it. Otherwise `None`: the caller may not learn which one
    /// it is.
    pub liftable: Option<CutoffId>,
}
