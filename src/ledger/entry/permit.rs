//! The rows of a permit: a credential under a new or an open task, or only a new task.
//!
//! [`PermitPlan`] is the whole; [`CredentialPlan`], [`TaskPlan`], [`OpenPlan`], [`JoinPlan`] and
//! [`RetryPlan`] are its parts. Each has `need` (rows to read), `check` and `apply`.
//!
//! The rule: first everything is checked against the state under the lock, and then everything is
//! applied. So a budget is never exceeded, and a key is used by one request at a time. Failures:
//! [`Overtaken`] says which fact is no longer true. `Refused` becomes a recorded refusal with its
//! code, `Stale` a new decision, `RetryTaken` an answer about the other request.
//! `broker::issuance::admit` makes the plans; `decide` calls them and checks the cutoffs; `locked`
//! holds the state.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::limits::MAX_CHAIN_DEPTH;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::Task;
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::ledger::cutoffs::Stopped;
use crate::ledger::locked::LockedState;
use crate::store::append::{MintLease, Needs, RetryFacts};

/// The rows of a permit.
#[derive(Clone, Debug)]
pub enum PermitPlan {
    /// A credential, under a new or an open task.
    Credential(Box<CredentialPlan>),
    /// A new task without a credential.
    Task(Box<TaskPermit>),
}

/// The permit of a credential.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct CredentialPlan {
    pub session: SessionPlan,
    pub task: TaskPlan,
    /// The use of an `Idempotency-Key`, if the request has one.
    pub retry: Option<RetryPlan>,
}

/// The permit of a task without a credential.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskPermit {
    pub open: OpenPlan,
    /// The policies that permitted it.
    pub policies: Vec<String>,
}

/// The task of a credential.
#[derive(Clone, Debug)]
pub enum TaskPlan {
    /// The permit opens the task.
    Open(OpenPlan),
    /// The task is open already.
    Join(JoinPlan),
}

/// A task to be opened.
#[derive(Clone, Debug)]
pub struct OpenPlan {
    /// The task's record; `leaf_index` is set when the permit is appended.
    pub task: Box<Task>,
    /// The task's ancestors, nearest first.
    pub parents: Vec<TaskId>,
    /// The number of tasks of this type that its owner may have open at once.
    pub max_open: u32,
    /// The share that the task takes of its parent's budget. `None` for a root task.
    pub parent: Option<ParentPlan>,
}

/// An open task under which the credential is issued.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct JoinPlan {
    pub task: TaskId,
    /// The task's ancestors, nearest first.
    pub parents: Vec<TaskId>,
    /// The digest of the handle that replaces the old one on a retry.
    pub new_handle: Option<[u8; 32]>,
}

/// The share that a new child takes of its parent's budget.
#[derive(Clone, Copy, Debug)]
pub struct ParentPlan {
    /// The parent task of the child.
    pub task: TaskId,
    /// The number of credentials taken from the parent's budget.
    pub sessions: u32,
}

/// The session of a permit.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    /// The session's record; `leaf_index` is set when the permit is appended.
    pub session: Session,
    /// The resource in its registered form.
    pub resource: Arc<Resource>,
    /// The identities on whose behalf the credential is issued, nearest first.
    pub delegators: Vec<Identity>,
    /// The lease of a mint at a back end. `None` for the broker's own tokens.
    pub lease: Option<MintLease>,
    /// The issuer's part of a token of the broker's own; `None` for other credentials.
    pub token: Option<TokenPlan>,
}

/// The issuer's part of a token of the broker's own.
#[derive(Clone, Debug)]
pub struct TokenPlan {
    /// The `iss` claim of the token.
    pub issuer: String,
    /// The first status list of this log, if the token is in a status list.
    pub first_status_list: Option<u64>,
}

/// The use of an `Idempotency-Key`.
#[derive(Clone, Debug)]
pub struct RetryPlan {
    /// SHA-256 of identity, instance and key.
    pub key: [u8; 32],
    /// SHA-256 of the request's body.
    pub fingerprint: [u8; 32],
    /// From this instant on the key may be used for another request.
    pub expires_at: Timestamp,
    /// The earlier use, if this is a retry. It must not have changed.
    pub replaces: Option<RetryFacts>,
}

/// A fact that a permit depends on and that is no longer true.
pub(super) enum Overtaken {
    /// The decision is to be made again.
    Stale,
    /// Another request used the `Idempotency-Key` in between.
    RetryTaken(RetryFacts),
    /// The permit is recorded as this refusal.
    Refused(Refusal),
}

impl From<Refusal> for Overtaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Stopped> for Overtaken {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Stale => Self::Stale,
            Stopped::Blocked(until) => Self::Refused(Refusal::new(
                RefusalCode::Blocked,
                format!("a revocation blocks this {until}"),
            )),
        }
    }
}

impl PermitPlan {
    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Credential(plan) => Some(&plan.session.session),
            Self::Task(_) => None,
        }
    }

    /// The policies that permitted it.
    pub(super) fn policies(&self) -> &[String] {
        match self {
            Self::Credential(plan) => &plan.session.session.policies,
            Self::Task(permit) => &permit.policies,
        }
    }

    pub(super) fn retry(&self) -> Option<&RetryPlan> {
        match self {
            Self::Credential(plan) => plan.retry.as_ref(),
            Self::Task(_) => None,
        }
    }

    /// The task and its parents, nearest first.
    pub(super) fn task_path(&self) -> (TaskId, Vec<TaskId>) {
        match self {
            Self::Credential(plan) => plan.task.path(),
            Self::Task(permit) => permit.open.path(),
        }
    }

    /// The open task that the permit depends on: the joined one, or the parent of a new one.
    pub(super) fn under(&self) -> Option<TaskId> {
        match self {
            Self::Credential(plan) => match &plan.task {
                TaskPlan::Open(open) => open.under(),
                TaskPlan::Join(join) => Some(join.task),
            },
            Self::Task(permit) => permit.open.under(),
        }
    }

    /// Adds the rows that settling depends on.
    pub(super) fn need(&self, needs: &mut Needs) {
        match self {
            Self::Credential(plan) => plan.need(needs),
            Self::Task(permit) => permit.open.need(needs),
        }
    }

    /// Whether the task, its budget and the sessions that the permit depends on are still valid.
    pub(super) fn check(&self, state: &LockedState<'_>) -> Result<(), Overtaken> {
        match self {
            Self::Credential(plan) => plan.check(state),
            Self::Task(permit) => Ok(permit.open.check(state)?),
        }
    }

    /// Adds the rows of the permit to the state, so that later entries see them. Returns the
    /// session in its recorded form.
    pub(super) fn apply(&self, state: &mut LockedState<'_>) -> Option<Box<SessionPlan>> {
        match self {
            Self::Credential(plan) => Some(Box::new(plan.apply(state))),
            Self::Task(permit) => {
                permit.open.apply(state, 0);
                None
            }
        }
    }
}

impl CredentialPlan {
    fn need(&self, needs: &mut Needs) {
        self.task.need(needs);
        needs.sessions.extend(self.session.session.parent);
        if let Some(retry) = &self.retry {
            needs.retries.push(retry.key);
            let replaced = retry.replaces.as_ref().map(|facts| facts.session);
            needs.sessions.extend(replaced);
        }
    }

    fn check(&self, state: &LockedState<'_>) -> Result<(), Overtaken> {
        match &self.task {
            TaskPlan::Open(open) => open.check(state)?,
            TaskPlan::Join(join) => check_budget(state, join.task, 1)?,
        }
        self.check_session(state)
    }

    fn check_session(&self, state: &LockedState<'_>) -> Result<(), Overtaken> {
        let session = &self.session.session;
        if session.life().is_expired(state.now()) {
            // The request waited in the queue beyond the credential's expiry.
            return Err(Overtaken::Stale);
        }
        let mut next = session.parent;
        while let Some(id) = next {
            let known = state.session(id);
            let Some(facts) = known.filter(|facts| facts.life().stands(state.now())) else {
                return Err(Overtaken::Refused(Refusal::new(
                    RefusalCode::ExceedsParent,
                    "the credential of the parent task that covers this has ended",
                )));
            };
            next = facts.parent;
        }
        let replaced = self
            .retry
            .as_ref()
            .and_then(|retry| retry.replaces.as_ref());
        if let Some(facts) = replaced
            && state.session(facts.session).is_none()
        {
            return Err(Overtaken::RetryTaken(facts.clone()));
        }
        Ok(())
    }

    fn apply(&self, state: &mut LockedState<'_>) -> SessionPlan {
        let mut plan = self.session.clone();
        plan.session.leaf_index = state.index();
        match &self.task {
            TaskPlan::Open(open) => open.apply(state, 1),
            TaskPlan::Join(join) => {
                state.take_sessions(join.task, 1);
                if let Some(handle) = join.new_handle {
                    state.set_handle(join.task, handle);
                }
            }
        }
        if let Some(retry) = &self.retry {
            retry.apply(state, &plan.session);
        }
        state.add_session(plan.session.clone(), plan.lease.clone());
        plan
    }
}

impl TaskPlan {
    /// The id of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        match self {
            Self::Open(open) => open.task.id,
            Self::Join(join) => join.task,
        }
    }

    /// The task's ancestors, nearest first.
    #[must_use]
    pub fn parents(&self) -> &[TaskId] {
        match self {
            Self::Open(open) => &open.parents,
            Self::Join(join) => &join.parents,
        }
    }

    /// The task and its parents, nearest first.
    #[must_use]
    pub fn path(&self) -> (TaskId, Vec<TaskId>) {
        (self.id(), self.parents().to_vec())
    }

    fn need(&self, needs: &mut Needs) {
        match self {
            Self::Open(open) => open.need(needs),
            Self::Join(join) => needs.tasks.push(join.task),
        }
    }
}

impl From<OpenPlan> for TaskPlan {
    fn from(open: OpenPlan) -> Self {
        Self::Open(open)
    }
}

impl OpenPlan {
    /// The task and its parents, nearest first.
    #[must_use]
    pub fn path(&self) -> (TaskId, Vec<TaskId>) {
        (self.task.id, self.parents.clone())
    }

    fn under(&self) -> Option<TaskId> {
        self.parent.map(|parent| parent.task)
    }

    fn need(&self, needs: &mut Needs) {
        let Self { task, max_open, .. } = self;
        let owner = task.owner.to_string();
        let counted = max_open.saturating_add(1);
        needs
            .open_tasks
            .push((owner, task.task_type.clone(), counted));
        needs.tasks.extend(self.under());
    }

    fn check(&self, state: &LockedState<'_>) -> Result<(), Refusal> {
        let Self { task, max_open, .. } = self;
        if state.open_tasks(task) >= *max_open {
            return Err(Refusal::new(
                RefusalCode::TooManyOpenTasks,
                format!(
                    "{max_open} tasks of type `{}` are open already",
                    task.task_type
                ),
            ));
        }
        let Some(parent) = &self.parent else {
            return Ok(());
        };
        if task.depth > MAX_CHAIN_DEPTH {
            return Err(Refusal::new(
                RefusalCode::TooDeep,
                format!("tasks are nested at most {MAX_CHAIN_DEPTH} deep"),
            ));
        }
        check_budget(state, parent.task, parent.sessions)
    }

    /// Opens the task, and takes `sessions` credentials of its own budget.
    fn apply(&self, state: &mut LockedState<'_>, sessions: u32) {
        if let Some(parent) = &self.parent {
            state.take_sessions(parent.task, parent.sessions);
        }
        let mut task = (*self.task).clone();
        task.leaf_index = state.index();
        task.sessions_left = task.sessions_left.saturating_sub(sessions);
        state.open_task(task);
    }
}

impl RetryPlan {
    /// Whether the key is still bound to the same session.
    pub(super) fn check(&self, state: &LockedState<'_>) -> Result<(), Overtaken> {
        let known = state.retry(&self.key);
        match known.filter(|facts| facts.stands(state.now())) {
            Some(facts) if self.replaces.as_ref() != Some(facts) => {
                Err(Overtaken::RetryTaken(facts.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the session that the retry replaces, and records the use of the key.
    fn apply(&self, state: &mut LockedState<'_>, session: &Session) {
        let replaced = self.replaces.as_ref();
        if let Some(facts) = replaced {
            state.end_session(facts.session, SessionState::Ended, EndReason::Superseded);
        }
        let facts = RetryFacts {
            fingerprint: self.fingerprint,
            session: session.id,
            task: session.task_id,
            supersedes: replaced.map_or(0, |facts| facts.supersedes + 1),
            expires_at: self.expires_at,
        };
        state.set_retry(self.key, facts);
    }
}

fn check_budget(state: &LockedState<'_>, task: TaskId, sessions: u32) -> Result<(), Refusal> {
    if !state.chain_is_open(task) {
        return Err(Refusal::new(
            RefusalCode::TaskEnded,
            "the task or one of its ancestors has ended",
        ));
    }
    let left = state.task(task).map_or(0, |facts| facts.sessions_left);
    if left < sessions {
        return Err(Refusal::new(
            RefusalCode::TaskBudget,
            format!("{sessions} credentials requested, {left} left for this task"),
        ));
    }
    Ok(())
}
