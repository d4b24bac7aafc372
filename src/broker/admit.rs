//! Admission: which task a request is for, and what that task leaves to it.
//!
//! A new task is within its type and, if it has a parent, within the parent: its deadline, its
//! budget, and for a credential a single one of the parent's own that covers it. Joining needs the
//! handle and the owner's own identity. A retry finds the task of its first try.
//!
//! What is admitted here was read without the ledger's lock. The append reads what matters again
//! under it.

use secrecy::{ExposeSecret, SecretString};

use super::error::NotRepeated;
use super::generations::Active;
use super::issue::Case;
use super::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::crypto::digest::{digests_equal, sha256};
use crate::crypto::random::{random_token, token_digest};
use crate::domain::catalog::{TaskType, too_many_steps};
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::limits::{
    IDEMPOTENCY_SECONDS, MAX_CHAIN_DEPTH, MAX_DELEGATION_SECONDS, MAX_REQUEST_STEPS, MAX_SUPERSEDES,
};
use crate::domain::pattern::Budget;
use crate::domain::request::{
    Ask, OpenTask, ParentRef, RetryKey, TaskAsk, check_resource_fits, deadline_too_long,
};
use crate::domain::revocability::RevocationClass;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::{Task, TaskChain, TaskState};
use crate::domain::workload::{Identity, KeyBinding, OneTime, Reuse, Workload};
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::ledger::entry::{ParentPlan, RetryPlan, TaskPlan};
use crate::policy::TaskFacts;
use crate::store::append::RetryFacts;

/// The prefix of a handle.
pub(super) const HANDLE_PREFIX: &str = "tph_";
/// The prefix of a delegation token.
pub(super) const DELEGATION_PREFIX: &str = "tpd_";

/// Sessions of a parent that are looked through for one that covers a child.
const MAX_COVERING: u32 = 200;

/// A request, admitted.
pub(super) struct Admission {
    /// The task.
    pub(super) task: TaskId,
    /// Everything that it is part of, nearest first.
    pub(super) parents: Vec<TaskId>,
    /// What the append does to tasks.
    pub(super) plan: TaskPlan,
    /// What policy may know of it.
    pub(super) facts: TaskFacts,
    /// The task's deadline.
    pub(super) deadline: Timestamp,
    /// The longest silence.
    pub(super) heartbeat_seconds: Option<u64>,
    /// No credential may live longer than this.
    pub(super) not_after: Timestamp,
    /// A new handle, to be released with the credential.
    pub(super) handle: Option<SecretString>,
    /// The parent's credential that covers this one.
    pub(super) covered_by: Option<Covering>,
    /// What else is used up.
    pub(super) one_time: Vec<OneTime>,
    /// What the evidence is bound to, where it may come again.
    pub(super) evidence_binding: Option<[u8; 32]>,
    /// Whether the evidence must never have been used, not even for this task.
    pub(super) evidence_must_be_new: bool,
    /// The use of an `Idempotency-Key`.
    pub(super) retry: Option<RetryPlan>,
    /// The decision, once it is recorded.
    pub(super) decision: Option<DecisionId>,
}

impl Admission {
    /// Adds what else is used up, and binds the evidence where it may come again.
    pub(super) fn adjust(&self, one_time: &mut Vec<OneTime>) {
        if let Some(evidence) = one_time.first_mut() {
            evidence.binding = self.evidence_binding.or(evidence.binding);
            evidence.must_be_new = self.evidence_must_be_new;
        }
        one_time.extend(self.one_time.iter().copied());
    }
}

/// A parent's credential that covers a child's.
pub(super) struct Covering {
    pub(super) session: SessionId,
    pub(super) expires_at: Timestamp,
    pub(super) delegators: Vec<Identity>,
}

/// A parent task that lets this caller in.
struct ParentTask {
    task: Task,
    chain: TaskChain,
    sessions: u32,
    one_time: OneTime,
}

impl Broker {
    /// Admits a request to its task. The inner error is a refusal, to be recorded.
    pub(super) async fn admit(
        &self,
        case: &Case<'_>,
        ask: &Ask,
    ) -> Result<Result<Admission, Refusal>, BrokerError> {
        let first = match &ask.retry {
            Some(retry) => self.first_try(case, retry).await?,
            None => None,
        };
        let admitted = match (&ask.task, &first) {
            (TaskAsk::Open(_), Some(first)) => self.readmit(case, first).await?,
            (TaskAsk::Open(open), None) => self.admit_new(case, open).await?,
            (TaskAsk::Join { id, handle }, _) => self.admit_join(case, *id, handle).await?,
        };
        let mut admission = match admitted {
            Ok(admission) => admission,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !self.owners_stand(case.active, &admission.parents).await? {
            return Ok(Err(owner_withdrawn()));
        }
        if let Err(refusal) = resource_fits(case, ask, &admission.facts.task_type) {
            return Ok(Err(refusal));
        }
        if let Some(parent) = admission.parents.first().copied() {
            let covering = match self.covering(case, ask, parent).await? {
                Ok(covering) => covering,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let Some(covering) = covering else {
                return Ok(Err(Refusal::new(
                    RefusalCode::ExceedsParent,
                    "the parent task holds no valid credential that covers this",
                )));
            };
            admission.not_after = admission.not_after.min(covering.expires_at);
            admission.covered_by = Some(covering);
        }
        if let Some(retry) = &ask.retry {
            if let Some(first) = &first {
                admission.not_after = admission.not_after.min(first.expires_at);
            }
            admission.retry = Some(RetryPlan {
                key: retry_key(case.workload, &retry.key),
                fingerprint: retry.fingerprint,
                expires_at: first.as_ref().map_or_else(
                    || case.now.plus_seconds(IDEMPOTENCY_SECONDS),
                    |first| first.facts.expires_at,
                ),
                replaces: first.map(|first| first.facts),
            });
        }
        if case.workload.reuse == Reuse::PerTask {
            admission.evidence_binding = Some(sha256(admission.task.uuid().as_bytes()));
        }
        Ok(Ok(admission))
    }

    /// What the first request with this key got, if this is not the first.
    async fn first_try(
        &self,
        case: &Case<'_>,
        retry: &RetryKey,
    ) -> Result<Option<FirstTry>, BrokerError> {
        let key = retry_key(case.workload, &retry.key);
        let Some(facts) = self.store().retry(&key, case.now).await? else {
            return Ok(None);
        };
        if facts.fingerprint != retry.fingerprint {
            return Err(BrokerError::RetryMismatch);
        }
        let Some(view) = self.store().session_view(facts.session).await? else {
            return Err(BrokerError::AlreadyIssued(facts.session, NotRepeated::Over));
        };
        let standing = view.standing_at(case.now);
        // A superseded session has a successor, whose request came in between.
        let succeeded = standing.end_reason == Some(EndReason::Superseded);
        if standing.state == SessionState::Minting || succeeded {
            return Err(BrokerError::InProgress);
        }
        // Good still, or ended because its caller had gone before it was handed over or because its
        // back end did not make it: the cases for which there are retries.
        let unclaimed =
            standing.state == SessionState::Ended && standing.end_reason == Some(EndReason::Failed);
        let immediate = matches!(
            view.session.revocability.class,
            RevocationClass::Immediate { .. }
        );
        let can_be_taken_back = (unclaimed || immediate && standing.state == SessionState::Active)
            && facts.supersedes < MAX_SUPERSEDES;
        if !can_be_taken_back {
            let over = standing.state == SessionState::Ended && !unclaimed;
            let why = if over {
                NotRepeated::Over
            } else {
                NotRepeated::NotSuperseded
            };
            return Err(BrokerError::AlreadyIssued(facts.session, why));
        }
        Ok(Some(FirstTry {
            expires_at: view.session.expires_at,
            facts,
        }))
    }

    /// A retry of a request that opened a task: the same task, with a new handle.
    async fn readmit(
        &self,
        case: &Case<'_>,
        first: &FirstTry,
    ) -> Result<Result<Admission, Refusal>, BrokerError> {
        let refused = |why| Err(BrokerError::AlreadyIssued(first.facts.session, why));
        let Some((task, chain)) = self.task_with_chain(first.facts.task).await? else {
            return refused(NotRepeated::Over);
        };
        // The retry is answered with a handle: it takes what the first request took to have one.
        if !case.workload.is(&task.owner, task.owner_instance.as_ref())
            || !key_fits(&task, case.workload.key.as_ref())
        {
            return refused(NotRepeated::AnotherKey);
        }
        // Where nothing tells one run of the workload from another, another's key would do.
        if task.owner_instance.is_none() && task.handle_key.is_none() {
            return refused(NotRepeated::NoInstance);
        }
        if chain.state_at(case.now) != TaskState::Open {
            return Ok(Err(task_ended()));
        }
        let handle = random_token(HANDLE_PREFIX, &self.random)?;
        let digest = token_digest(handle.expose_secret());
        let mut admission = joined(case, &task, &chain, Some(digest));
        admission.handle = Some(handle);
        // Else the very same bytes, captured, would get the credential and the handle. Where the
        // task has a key, the fresh proof by it is what was not captured.
        admission.evidence_must_be_new = task.handle_key.is_none();
        Ok(Ok(admission))
    }

    /// A new task.
    pub(super) async fn admit_new(
        &self,
        case: &Case<'_>,
        open: &OpenTask,
    ) -> Result<Result<Admission, Refusal>, BrokerError> {
        let parent = match &open.parent {
            None => None,
            Some(parent) => Some(self.parent(case, parent).await?),
        };
        let task_type = &open.task_type;
        let mut max = task_type.max_deadline_seconds;
        if let Some(parent) = &parent {
            if parent.chain.state_at(case.now) != TaskState::Open {
                return Ok(Err(task_ended()));
            }
            max = max.min(case.now.seconds_until(parent.chain.deadline()));
        }
        let seconds = open.deadline_seconds.unwrap_or(max);
        if seconds > max {
            return Ok(Err(deadline_too_long(&task_type.name, max)));
        }
        if seconds == 0 {
            return Ok(Err(task_ended()));
        }
        let depth = parent.as_ref().map_or(1, |parent| parent.task.depth + 1);
        if depth > MAX_CHAIN_DEPTH {
            return Ok(Err(Refusal::new(
                RefusalCode::TooDeep,
                format!("tasks are nested at most {MAX_CHAIN_DEPTH} deep"),
            )));
        }
        let handle = random_token(HANDLE_PREFIX, &self.random)?;
        let task = Task {
            id: TaskId::new(case.now, &self.random)?,
            task_type: task_type.name.clone(),
            attestor: case.workload.attestor.clone(),
            attestor_digest: case.active.attestor_digest(&case.workload.attestor),
            owner: case.workload.identity.clone(),
            owner_instance: case.workload.instance.clone(),
            parent: parent.as_ref().map(|parent| parent.task.id),
            depth,
            state: TaskState::Open,
            opened_at: case.now,
            deadline: case.now.plus_seconds(seconds),
            heartbeat_seconds: open.heartbeat_seconds,
            heard_at: case.now,
            ended_at: None,
            handle_digest: token_digest(handle.expose_secret()),
            handle_key: case.workload.key.as_ref().map(KeyBinding::to_text),
            sessions_left: budget(task_type, parent.as_ref()),
            leaf_index: 0,
        };
        Ok(Ok(opened(case, task, task_type, parent, handle)))
    }

    /// The parent that a child names, if its delegation token lets this caller in.
    async fn parent(&self, case: &Case<'_>, parent: &ParentRef) -> Result<ParentTask, BrokerError> {
        let digest = token_digest(parent.delegation.expose_secret());
        let found = self.store().delegation(&digest).await?;
        let fits = found.filter(|delegation| {
            delegation.task == parent.id
                && delegation.child == case.workload.identity.as_str()
                && delegation.expires_at > case.now
        });
        // Whoever has no token for it learns nothing of it, not even that it is.
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
        case: &Case<'_>,
        id: TaskId,
        handle: &SecretString,
    ) -> Result<Result<Admission, Refusal>, BrokerError> {
        if case.workload.reuse == Reuse::PerTask {
            // Evidence that serves this task already serves it still, whatever comes of this.
            case.call.bind(sha256(id.uuid().as_bytes()));
        }
        let not_found = || BrokerError::NotFound("task");
        let (task, chain) = self.task_with_chain(id).await?.ok_or_else(not_found)?;
        let digest = token_digest(handle.expose_secret());
        let own = digests_equal(&digest, &task.handle_digest)
            && case.workload.is(&task.owner, task.owner_instance.as_ref())
            && key_fits(&task, case.workload.key.as_ref());
        if !own {
            return Err(not_found());
        }
        if chain.state_at(case.now) != TaskState::Open {
            return Ok(Err(task_ended()));
        }
        Ok(Ok(joined(case, &task, &chain, None)))
    }

    /// The parent's valid credential on this resource that covers what is asked and lives longest. The
    /// inner error is the refusal of a request whose patterns take too long to compare.
    async fn covering(
        &self,
        case: &Case<'_>,
        ask: &Ask,
        parent: TaskId,
    ) -> Result<Result<Option<Covering>, Refusal>, BrokerError> {
        let filter = crate::store::sessions::SessionFilter {
            task: Some(parent),
            resource: Some(ask.resource.name.clone()),
            live_at: Some(case.now),
            limit: MAX_COVERING,
            ..Default::default()
        };
        let views = self.store().list_sessions(&filter).await?;
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let covering = views
            .into_iter()
            .filter(|view| view.is_valid_at(case.now))
            .filter(|view| view.session.grant.covers_within(&ask.grant, &budget))
            .max_by_key(|view| view.session.expires_at);
        if budget.is_exhausted() {
            return Ok(Err(too_many_steps()));
        }
        Ok(Ok(covering.map(|view| {
            let above = view
                .ancestors
                .iter()
                .map(|ancestor| ancestor.workload.clone());
            Covering {
                session: view.session.id,
                expires_at: view.session.expires_at,
                delegators: std::iter::once(view.session.workload.clone())
                    .chain(above)
                    .collect(),
            }
        })))
    }

    /// Whether the owners of these tasks could still be attested by what decides now. One whose
    /// attestor is gone must not go on through those it let in.
    pub(super) async fn owners_stand(
        &self,
        active: &Active,
        tasks: &[TaskId],
    ) -> Result<bool, BrokerError> {
        for id in tasks {
            let task = self.store().task(*id).await?;
            if !task.is_some_and(|task| active.attests(&task)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) async fn task_with_chain(
        &self,
        id: TaskId,
    ) -> Result<Option<(Task, TaskChain)>, BrokerError> {
        let Some(task) = self.store().task(id).await? else {
            return Ok(None);
        };
        let mut chains = self.store().task_chains(&[id]).await?;
        let chain = chains.remove(&id).unwrap_or(TaskChain(Vec::new()));
        Ok(Some((task, chain)))
    }
}

fn resource_fits(case: &Case<'_>, ask: &Ask, task_type: &str) -> Result<(), Refusal> {
    let known = case.active.catalog().task_type(task_type);
    let task_type = known.ok_or_else(|| {
        Refusal::new(
            RefusalCode::UnknownTaskType,
            format!("there is no task type `{task_type}` any more"),
        )
    })?;
    check_resource_fits(task_type, &ask.resource)
}

/// What a first try got.
struct FirstTry {
    facts: RetryFacts,
    expires_at: Timestamp,
}

/// Where an `Idempotency-Key` is looked up: it means something only with its sender.
fn retry_key(workload: &Workload, key: &str) -> [u8; 32] {
    let instance = workload.instance.as_ref().map_or("", |own| own.as_str());
    // None of the three can hold a line feed.
    sha256(format!("retry\n{}\n{instance}\n{key}", workload.identity).as_bytes())
}

/// Whether the key that opened the task is the one that was proved now.
pub(super) fn key_fits(task: &Task, proved: Option<&KeyBinding>) -> bool {
    match &task.handle_key {
        None => true,
        Some(bound) => proved.is_some_and(|key| key.to_text() == *bound),
    }
}

pub(super) fn task_ended() -> Refusal {
    Refusal::new(
        RefusalCode::TaskEnded,
        "the task, or one that it is part of, is over",
    )
}

pub(super) fn owner_withdrawn() -> Refusal {
    Refusal::new(
        RefusalCode::OwnerWithdrawn,
        "the owner of a task that this one is part of is attested no more",
    )
}

fn budget(task_type: &TaskType, parent: Option<&ParentTask>) -> u32 {
    parent.map_or(task_type.max_sessions, |parent| {
        task_type.max_sessions.min(parent.sessions)
    })
}

fn opened(
    case: &Case<'_>,
    task: Task,
    task_type: &TaskType,
    parent: Option<ParentTask>,
    handle: SecretString,
) -> Admission {
    let parents = parent.as_ref().map_or_else(Vec::new, |parent| {
        parent.chain.0.iter().map(|life| life.id).collect()
    });
    let facts = TaskFacts {
        task_type: task.task_type.clone(),
        depth: task.depth,
        deadline_seconds_left: case.now.seconds_until(task.deadline),
        has_parent: parent.is_some(),
        opens: true,
    };
    let parent_plan = parent.as_ref().map(|parent| ParentPlan {
        task: parent.task.id,
        sessions: task.sessions_left,
    });
    Admission {
        task: task.id,
        parents,
        facts,
        deadline: task.deadline,
        heartbeat_seconds: task.heartbeat_seconds,
        not_after: task.deadline,
        handle: Some(handle),
        covered_by: None,
        one_time: parent.map(|parent| parent.one_time).into_iter().collect(),
        evidence_binding: None,
        evidence_must_be_new: false,
        retry: None,
        decision: None,
        plan: TaskPlan::Open {
            max_open: task_type.max_open_per_workload,
            task: Box::new(task),
            parent: parent_plan,
        },
    }
}

fn joined(
    case: &Case<'_>,
    task: &Task,
    chain: &TaskChain,
    new_handle: Option<[u8; 32]>,
) -> Admission {
    let deadline = chain.deadline();
    Admission {
        task: task.id,
        parents: chain.parents(),
        facts: TaskFacts {
            task_type: task.task_type.clone(),
            depth: task.depth,
            deadline_seconds_left: case.now.seconds_until(deadline),
            has_parent: task.parent.is_some(),
            opens: false,
        },
        deadline: task.deadline,
        heartbeat_seconds: task.heartbeat_seconds,
        not_after: deadline,
        handle: None,
        covered_by: None,
        one_time: Vec::new(),
        evidence_binding: None,
        evidence_must_be_new: false,
        retry: None,
        decision: None,
        plan: TaskPlan::Join {
            task: task.id,
            new_handle,
        },
    }
}
