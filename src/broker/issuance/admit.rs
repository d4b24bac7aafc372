//! Admission: determines the task of a request and the limits that the task sets.
//!
//! A new task must fit its type and, if it has a parent, the parent's deadline and budget. A
//! credential under a child must be covered by one credential of the parent. Joining a task
//! requires its handle and the owner's identity. A retry finds the task of the first request
//! ([`super::retry`]). Start with `Issuance::admit`. `admit_new` and `admit_join` give an
//! `AdmittedTask` ([`super::admitted`]); `covering` finds the parent's credential.
//!
//! Failures are an `Unadmitted`: `Refused` is recorded as a denial (a task that has ended, a limit,
//! a parent that does not cover), `Failed` is not recorded (`NotFound` for a wrong handle or
//! delegation token, `AlreadyIssued`, `InProgress`, `RetryMismatch`, a store that failed).
//! `covering` looks at the `MAX_COVERING` newest sessions only; one that is older does not count.
//! Admission reads without the ledger's lock. The append reads the facts that matter again under
//! the lock. `issue` and `tasks::open` call this module; policy and the credential's life are left
//! to `policy`.

use secrecy::{ExposeSecret, SecretString};

use super::Issuance;
use super::admitted::{AdmittedTask, HANDLE_PREFIX, Unadmitted, evidence_use, joined, task_ended};
use super::decisions::DecisionContext;
use super::retry::retry_plan;
use crate::broker::active::Active;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::{digests_equal, sha256};
use crate::crypto::random::{random_token, token_digest};
use crate::domain::catalog::{TaskType, too_many_steps};
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::limits::{MAX_CHAIN_DEPTH, MAX_DELEGATION_SECONDS, MAX_REQUEST_STEPS};
use crate::domain::pattern::Budget;
use crate::domain::request::{
    OpenTask, ParentRef, ResolvedRequest, ResolvedTask, check_resource_fits, deadline_too_long,
};
use crate::domain::task::{Task, TaskChain, TaskState};
use crate::domain::workload::{Identity, KeyBinding, OneTime, Reuse};
use crate::ids::{SessionId, TaskId};
use crate::ledger::entry::{OpenPlan, ParentPlan, RetryPlan, TaskPlan};
use crate::policy::TaskFacts;

/// The prefix of a delegation token.
pub(in crate::broker) const DELEGATION_PREFIX: &str = "tpd_";

/// The maximum number of a parent's sessions that are searched for one that covers a child's.
const MAX_COVERING: u32 = 200;

/// An admitted request for a credential.
pub(super) struct Admission {
    pub(in crate::broker) task: AdmittedTask<TaskPlan>,
    /// The credential may not expire later than this.
    pub(in crate::broker) not_after: Timestamp,
    /// The parent's credential that covers this one; `None` for a root task.
    pub(in crate::broker) covered_by: Option<Covering>,
    /// The use of the `Idempotency-Key`. `None` if the request has none.
    pub(in crate::broker) retry: Option<RetryPlan>,
}

/// A parent's credential that covers a child's.
pub(super) struct Covering {
    pub(in crate::broker) session: SessionId,
    pub(in crate::broker) expires_at: Timestamp,
    pub(in crate::broker) delegators: Vec<Identity>,
}

/// A parent task for which the caller has a delegation token.
struct ParentTask {
    task: Task,
    chain: TaskChain,
    /// The number of sessions that the delegation lends.
    sessions: u32,
    one_time: OneTime,
}

impl Issuance {
    /// Admits a request to its task.
    pub(super) async fn admit(
        &self,
        context: &DecisionContext<'_>,
        request: &ResolvedRequest,
    ) -> Result<Admission, Unadmitted> {
        let first = match &request.retry {
            Some(retry) => self.first_try(context, retry).await?,
            None => None,
        };
        let task = match (&request.task, &first) {
            (ResolvedTask::Open(_), Some(first)) => self.readmit(context, first).await?,
            (ResolvedTask::Open(open), None) => self.admit_new(context, open).await?.into(),
            (ResolvedTask::Join { id, handle }, _) => self.admit_join(context, *id, handle).await?,
        };
        let parents = task.plan.parents();
        self.check_owners_above(context.active, parents).await?;
        resource_fits(context, request, &task.facts.task_type)?;
        let covered_by = match parents.first() {
            Some(parent) => Some(self.covering(context, request, *parent).await?),
            None => None,
        };
        let of_parent = covered_by.as_ref().map(|parent| parent.expires_at);
        let of_first = first.as_ref().map(|first| first.expires_at);
        let ends = of_parent.into_iter().chain(of_first);
        let not_after = ends.fold(task.not_after, Timestamp::min);
        let retry = request.retry.as_ref();
        Ok(Admission {
            task,
            not_after,
            covered_by,
            retry: retry.map(|retry| retry_plan(context, retry, first)),
        })
    }

    /// Admits a request that opens a task.
    pub(in crate::broker) async fn admit_new(
        &self,
        context: &DecisionContext<'_>,
        open: &OpenTask,
    ) -> Result<AdmittedTask<OpenPlan>, Unadmitted> {
        let parent = match &open.parent {
            None => None,
            Some(parent) => Some(self.parent(context, parent).await?),
        };
        let task_type = &open.task_type;
        let mut max = task_type.max_deadline_seconds;
        if let Some(parent) = &parent {
            if parent.chain.state_at(context.now) != TaskState::Open {
                return Err(task_ended().into());
            }
            max = max.min(context.now.seconds_until(parent.chain.deadline()));
        }
        let seconds = open.deadline_seconds.unwrap_or(max);
        if seconds > max {
            return Err(deadline_too_long(&task_type.name, max).into());
        }
        if seconds == 0 {
            return Err(task_ended().into());
        }
        let depth = parent.as_ref().map_or(1, |parent| parent.task.depth + 1);
        if depth > MAX_CHAIN_DEPTH {
            return Err(Unadmitted::Refused(Refusal::new(
                RefusalCode::TooDeep,
                format!("tasks are nested at most {MAX_CHAIN_DEPTH} deep"),
            )));
        }
        let handle = random_token(HANDLE_PREFIX, self.core.random())?;
        let task = Task {
            id: TaskId::new(context.now, self.core.random())?,
            task_type: task_type.name.clone(),
            attestor: context.workload.attestor.clone(),
            attestor_digest: context.active.attestor_digest(&context.workload.attestor),
            owner: context.workload.identity.clone(),
            owner_instance: context.workload.instance.clone(),
            parent: parent.as_ref().map(|parent| parent.task.id),
            depth,
            state: TaskState::Open,
            opened_at: context.now,
            deadline: context.now.plus_seconds(seconds),
            heartbeat_seconds: open.heartbeat_seconds,
            heard_at: context.now,
            ended_at: None,
            handle_digest: token_digest(handle.expose_secret()),
            handle_key: context.workload.key.as_ref().map(KeyBinding::to_text),
            sessions_left: budget(task_type, parent.as_ref()),
            leaf_index: 0,
        };
        Ok(opened(context, task, task_type, parent, handle))
    }

    /// The parent that a child names. The delegation token must belong to the parent and name this
    /// caller.
    async fn parent(
        &self,
        context: &DecisionContext<'_>,
        parent: &ParentRef,
    ) -> Result<ParentTask, BrokerError> {
        let digest = token_digest(parent.delegation.expose_secret());
        let found = self.core.store().delegation(&digest).await?;
        let fits = found.filter(|delegation| {
            delegation.task == parent.id
                && delegation.child == context.workload.identity.as_str()
                && delegation.expires_at > context.now
        });
        // A caller without a token for the task must not learn whether it exists.
        let delegation = fits.ok_or(BrokerError::NotFound("task"))?;
        let (task, chain) = self
            .task_with_chain(parent.id)
            .await?
            .ok_or(BrokerError::NotFound("task"))?;
        Ok(ParentTask {
            task,
            chain,
            sessions: delegation.sessions,
            one_time: OneTime {
                must_be_new: false,
                key: digest,
                binding: None,
                issued_at: delegation.expires_at.minus_seconds(MAX_DELEGATION_SECONDS),
                expires_at: delegation.expires_at,
            },
        })
    }

    async fn admit_join(
        &self,
        context: &DecisionContext<'_>,
        id: TaskId,
        handle: &SecretString,
    ) -> Result<AdmittedTask<TaskPlan>, Unadmitted> {
        if context.workload.reuse == Reuse::PerTask {
            // Evidence that is bound to this task can be used for it again, even if this call
            // fails.
            context.requester.bind(sha256(id.uuid().as_bytes()));
        }
        let not_found = || BrokerError::NotFound("task");
        let (task, chain) = self.task_with_chain(id).await?.ok_or_else(not_found)?;
        let digest = token_digest(handle.expose_secret());
        let own = digests_equal(&digest, &task.handle_digest)
            && context
                .workload
                .is(&task.owner, task.owner_instance.as_ref())
            && task.fits_key(context.workload.key.as_ref());
        if !own {
            return Err(not_found().into());
        }
        if chain.state_at(context.now) != TaskState::Open {
            return Err(task_ended().into());
        }
        Ok(joined(context, &task, &chain, None))
    }

    /// The parent's valid credential on this resource that covers the request. If there are
    /// several, the one that expires last.
    #[expect(
        clippy::disallowed_methods,
        reason = "the caller's delegation token permits it to use the parent task"
    )]
    async fn covering(
        &self,
        context: &DecisionContext<'_>,
        request: &ResolvedRequest,
        parent: TaskId,
    ) -> Result<Covering, Unadmitted> {
        let filter = crate::store::sessions::SessionFilter {
            task: Some(parent),
            resource: Some(request.resource.name.clone()),
            live_at: Some(context.now),
            limit: MAX_COVERING,
            ..Default::default()
        };
        let views = self.core.store().list_sessions(&filter).await?;
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let covering = views
            .into_iter()
            .filter(|view| view.is_valid_at(context.now))
            .filter(|view| view.session.grant.covers_within(&request.grant, &budget))
            .max_by_key(|view| view.session.expires_at);
        if budget.is_exhausted() {
            return Err(too_many_steps().into());
        }
        let view = covering.ok_or_else(|| {
            Refusal::new(
                RefusalCode::ExceedsParent,
                "the parent task holds no valid credential that covers this",
            )
        })?;
        let above = view.ancestors.into_iter().map(|ancestor| ancestor.workload);
        Ok(Covering {
            session: view.session.id,
            expires_at: view.session.expires_at,
            delegators: std::iter::once(view.session.workload)
                .chain(above)
                .collect(),
        })
    }

    /// Refuses a request under tasks whose owners can no longer be attested. Such an owner must not
    /// continue through the children that it delegated to.
    pub(in crate::broker) async fn check_owners_above(
        &self,
        active: &Active,
        tasks: &[TaskId],
    ) -> Result<(), Unadmitted> {
        for id in tasks {
            let task = self.core.store().task(*id).await?;
            if !task.is_some_and(|task| active.attests(&task)) {
                return Err(Unadmitted::Refused(Refusal::new(
                    RefusalCode::OwnerWithdrawn,
                    "the owner of an ancestor of this task can no longer be attested",
                )));
            }
        }
        Ok(())
    }
}

fn resource_fits(
    context: &DecisionContext<'_>,
    request: &ResolvedRequest,
    task_type: &str,
) -> Result<(), Refusal> {
    let known = context.active.catalog().task_type(task_type);
    let task_type = known.ok_or_else(|| {
        Refusal::new(
            RefusalCode::UnknownTaskType,
            format!("the task type `{task_type}` no longer exists"),
        )
    })?;
    check_resource_fits(task_type, &request.resource)
}

fn budget(task_type: &TaskType, parent: Option<&ParentTask>) -> u32 {
    parent.map_or(task_type.max_sessions, |parent| {
        task_type.max_sessions.min(parent.sessions)
    })
}

fn opened(
    context: &DecisionContext<'_>,
    task: Task,
    task_type: &TaskType,
    parent: Option<ParentTask>,
    handle: SecretString,
) -> AdmittedTask<OpenPlan> {
    let parents = parent.as_ref().map_or_else(Vec::new, |parent| {
        parent.chain.0.iter().map(|life| life.id).collect()
    });
    let parent_plan = parent.as_ref().map(|parent| ParentPlan {
        task: parent.task.id,
        sessions: task.sessions_left,
    });
    let delegation = parent.map(|parent| parent.one_time).into_iter().collect();
    AdmittedTask {
        facts: TaskFacts {
            task_type: task.task_type.clone(),
            depth: task.depth,
            deadline_seconds_left: context.now.seconds_until(task.deadline),
            has_parent: parent_plan.is_some(),
            opens: true,
        },
        deadline: task.deadline,
        heartbeat_seconds: task.heartbeat_seconds,
        not_after: task.deadline,
        handle: Some(handle),
        evidence: evidence_use(context, task.id, delegation),
        plan: OpenPlan {
            parents,
            max_open: task_type.max_open_per_workload,
            task: Box::new(task),
            parent: parent_plan,
        },
    }
}
