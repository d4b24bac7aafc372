//! The task that a request was admitted to, and the reasons why a request was not admitted.
//!
//! [`AdmittedTask`] has the plan for the append, the facts for policy and the limits of the task.
//! `joined` makes it for an open task; a new one is made in [`super::admit`]. [`Unadmitted`] is
//! either a refusal, which is recorded, or the error of a call, which is not.
//!
//! The rule: evidence that can be used repeatedly for one task is bound to that task. Reading a task
//! fails as the store does. [`super::admit`] and [`super::retry`] call this file.

use secrecy::SecretString;

use super::Issuance;
use super::decisions::{DecisionContext, EvidenceUse};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::task::{Task, TaskChain};
use crate::domain::workload::{OneTime, Reuse};
use crate::ids::{NoRandomness, TaskId};
use crate::ledger::entry::{JoinPlan, OpenPlan, TaskPlan};
use crate::policy::TaskFacts;
use crate::store::StoreError;

/// The prefix of a handle.
pub(super) const HANDLE_PREFIX: &str = "tph_";

/// Why a request was not admitted to a task.
#[derive(Debug)]
pub(in crate::broker) enum Unadmitted {
    /// The request is refused. The refusal is recorded.
    Refused(Refusal),
    /// The call fails. Nothing is recorded.
    Failed(BrokerError),
}

impl Unadmitted {
    /// The refusal, which is to be recorded, or the error of a failed call.
    pub(in crate::broker) fn refusal(self) -> Result<Refusal, BrokerError> {
        match self {
            Self::Refused(refusal) => Ok(refusal),
            Self::Failed(error) => Err(error),
        }
    }
}

impl From<Refusal> for Unadmitted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<BrokerError> for Unadmitted {
    fn from(error: BrokerError) -> Self {
        Self::Failed(error)
    }
}

impl From<StoreError> for Unadmitted {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<NoRandomness> for Unadmitted {
    fn from(error: NoRandomness) -> Self {
        Self::Failed(error.into())
    }
}

/// The task that a request was admitted to. `P` is the type of its plan.
pub(in crate::broker) struct AdmittedTask<P> {
    /// The changes that the append makes to tasks.
    pub(in crate::broker) plan: P,
    /// The facts on the task that policy can use.
    pub(in crate::broker) facts: TaskFacts,
    pub(in crate::broker) deadline: Timestamp,
    pub(in crate::broker) heartbeat_seconds: Option<u64>,
    /// The earliest deadline of the task and its ancestors. No credential under the task may expire
    /// later.
    pub(in crate::broker) not_after: Timestamp,
    /// The new handle, which the answer releases. `None` if the task keeps its handle.
    pub(in crate::broker) handle: Option<SecretString>,
    pub(in crate::broker) evidence: EvidenceUse,
}

impl From<AdmittedTask<OpenPlan>> for AdmittedTask<TaskPlan> {
    fn from(task: AdmittedTask<OpenPlan>) -> Self {
        Self {
            plan: task.plan.into(),
            facts: task.facts,
            deadline: task.deadline,
            heartbeat_seconds: task.heartbeat_seconds,
            not_after: task.not_after,
            handle: task.handle,
            evidence: task.evidence,
        }
    }
}

impl Issuance {
    /// A task, with the lives of the task and of its ancestors. `None` if there is no such task.
    pub(super) async fn task_with_chain(
        &self,
        id: TaskId,
    ) -> Result<Option<(Task, TaskChain)>, BrokerError> {
        let Some(task) = self.core.store().task(id).await? else {
            return Ok(None);
        };
        let mut chains = self.core.store().task_chains(&[id]).await?;
        let chain = chains.remove(&id).unwrap_or(TaskChain(Vec::new()));
        Ok(Some((task, chain)))
    }
}

/// The refusal of a request under a task that has ended.
pub(super) fn task_ended() -> Refusal {
    Refusal::new(
        RefusalCode::TaskEnded,
        "the task or one of its ancestors has ended",
    )
}

/// The use of the request's evidence and of `one_time`. Evidence that can be used repeatedly for
/// one task is bound to that task.
pub(super) fn evidence_use(
    context: &DecisionContext<'_>,
    task: TaskId,
    one_time: Vec<OneTime>,
) -> EvidenceUse {
    let serves_task = context.workload.reuse == Reuse::PerTask;
    EvidenceUse {
        one_time,
        binding: serves_task.then(|| sha256(task.uuid().as_bytes())),
        must_be_new: false,
    }
}

/// Admits a request to an open task. `new_handle` is the digest of a handle that replaces the
/// present one.
pub(super) fn joined(
    context: &DecisionContext<'_>,
    task: &Task,
    chain: &TaskChain,
    new_handle: Option<[u8; 32]>,
) -> AdmittedTask<TaskPlan> {
    let not_after = chain.deadline();
    AdmittedTask {
        facts: TaskFacts {
            task_type: task.task_type.clone(),
            depth: task.depth,
            deadline_seconds_left: context.now.seconds_until(not_after),
            has_parent: task.parent.is_some(),
            opens: false,
        },
        deadline: task.deadline,
        heartbeat_seconds: task.heartbeat_seconds,
        not_after,
        handle: None,
        evidence: evidence_use(context, task.id, Vec::new()),
        plan: TaskPlan::Join(JoinPlan {
            task: task.id,
            parents: chain.parents(),
            new_handle,
        }),
    }
}
