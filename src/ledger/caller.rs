//! The caller of a request as the ledger judges it: the evidence that it presents, the cutoffs that
//! may block it, and the state of the broker that let it in.

use crate::domain::generation::GenerationDigest;
use crate::domain::task::Task;
use crate::domain::workload::{Identity, OneTime, Workload};
use crate::ids::{CutoffId, TaskId};

/// The caller of a request, as cutoffs match it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestCaller {
    /// Its identity. With a task's handle alone, the identity of the task's owner.
    pub identity: Identity,
    /// The attestor that verified it, or that verified the task's owner.
    pub attestor: String,
    /// The task that the request keeps alive or lends from. A cutoff that blocks this task, one
    /// above it or the owner of either refuses the request too.
    pub task: Option<TaskId>,
    /// The act, for the refusal: the name of an admin's action, or `the request`.
    pub act: &'static str,
    /// Whether policy lets the caller lift cutoffs. Then a refusal names the one that it may lift.
    pub may_lift: bool,
}

/// The act of a caller that is no admin's action.
pub const ANY_REQUEST: &str = "the request";

impl RequestCaller {
    /// A caller that attested who it is.
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

    /// A caller that shows the handle of a task, and so speaks for its owner.
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

/// The state of the broker upon which a caller was let in. A call appends nothing once that state has
/// changed: it is judged anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Premises {
    /// The generation that decided. `None` where the call rests on none.
    pub generation: Option<GenerationDigest>,
    /// The size of the log before role bindings and registered keys were read. A later entry may have
    /// changed a binding or removed a key.
    pub bindings_as_of: Option<u64>,
}

/// The one-time ids that a request uses up, and the caller that presented them.
#[derive(Clone, Debug, Default)]
pub struct OneTimeUse {
    /// The ids. If one was used before, nothing is appended.
    pub ids: Vec<OneTime>,
    /// The caller: while a cutoff blocks it, nothing is appended. `None` for the broker's own work,
    /// and for the tokens of the configuration, which no selector names.
    pub by: Option<RequestCaller>,
    /// The state that must not have changed since the caller was let in.
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
    /// The act that was refused.
    pub act: &'static str,
    /// The cutoff, if the caller may lift it; otherwise the caller may not know which one it is.
    pub liftable: Option<CutoffId>,
}
