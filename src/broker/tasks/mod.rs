//! Tasks: opens them without a credential, keeps them alive, delegates to children, and ends them.
//!
//! `heartbeat`, `delegate` and `end_task` act for a task; `task` and `list_tasks` read;
//! `sweep_tasks` ends tasks for the sweeper; `open` opens. `owner` authorizes: by the handle, as
//! the owner, or as an admin.
//!
//! The rule: only the holder of the handle, or the owner with an instance, keeps a task alive or
//! delegates from it; an admin can only read and end it. An owner that can no longer be attested
//! can only end it. Failures: a wrong handle, an absent task and a task of another owner are all
//! `NotFound`. `TaskEnded` also covers an ancestor that has ended, `OwnerWithdrawn` an ancestor's
//! owner. Ending a task twice is no error. `http::tasks` calls this module. `issuance` admits and
//! records new tasks, `store::heartbeat` checks and writes a heartbeat, and the ledger ends the
//! sessions with the task.

mod open;

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tracing::instrument;

pub use self::open::Opened;
use super::access::{Access, Actor, Unverified};
use super::core::Core;
use super::error::BrokerError;
use super::issuance::{DELEGATION_PREFIX, Issuance};
use super::verification::sessions::SessionReport;
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::crypto::random::{random_token, token_digest};
use crate::domain::limits::{DEFAULT_PAGE, MAX_DELEGATION_SECONDS, MAX_PAGE};
use crate::domain::task::{Task, TaskChain, TaskEnd, TaskState};
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::ledger::entry::{Delegate, EndTask, EndTasks, Entry, SweepCause};
use crate::ledger::{AppendError, Appended, LedgerStatus};
use crate::policy::AdminAction;
use crate::store::heartbeat::{HeldTask, TaskView};

/// The proof that a caller may act for a task.
#[derive(Debug)]
pub enum TaskAuthority {
    /// The task's handle, with a DPoP proof or a client certificate if the task is bound to a key.
    Handle(SecretString, Evidence),
    /// The attestation of the owner or an admin.
    Owner(Evidence),
}

impl TaskAuthority {
    fn evidence(&self) -> &Evidence {
        match self {
            Self::Handle(_, evidence) | Self::Owner(evidence) => evidence,
        }
    }
}

/// A task with its present state.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskReport {
    pub task: Task,
    /// Its state, which also depends on its ancestors.
    pub state: TaskState,
    /// When it ended. `None` while it is open.
    pub ended_at: Option<Timestamp>,
}

/// A task, and the sessions of it and its descendants.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskWithSessions {
    pub task: TaskReport,
    /// The sessions of the task and its descendants, at most [`MAX_PAGE`].
    pub sessions: Vec<SessionReport>,
}

/// A delegation token for one child.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Delegation {
    /// The token, which can be used once.
    pub token: SecretString,
    pub expires_at: Timestamp,
    /// The number of credentials that the child may obtain.
    pub sessions: u32,
}

/// A caller that may act for a task.
struct Owner<'c> {
    task: HeldTask,
    actor: Actor<'c>,
}

/// Opens tasks, keeps them alive, delegates from them and ends them.
pub struct Tasks {
    core: Core,
    access: Arc<Access>,
    /// Admits new tasks and records the decisions on them.
    issuance: Arc<Issuance>,
}

impl Tasks {
    pub(super) fn new(core: Core, access: Arc<Access>, issuance: Arc<Issuance>) -> Self {
        Self {
            core,
            access,
            issuance,
        }
    }

    /// Records that a task is alive. A task that has ended stays ended.
    ///
    /// A heartbeat by the handle alone uses no evidence up. The broker checks it against the facts
    /// that it reads with the task, and records it only if these facts have not changed in between.
    /// That takes two statements on PostgreSQL and three on SQLite, and one more if a cutoff is newer
    /// than a session under the task. All other heartbeats, and those that fail this check, are
    /// checked by an append under the ledger's lock.
    #[instrument(skip_all)]
    pub async fn heartbeat(
        &self,
        id: TaskId,
        authority: TaskAuthority,
    ) -> Result<TaskWithSessions, BrokerError> {
        let call = self.access.call(authority.evidence());
        call.run(|unverified| self.heartbeat_by(unverified, id, &authority))
            .await
    }

    async fn heartbeat_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
        authority: &TaskAuthority,
    ) -> Result<TaskWithSessions, BrokerError> {
        let now = self.core.now();
        let Owner { task, actor } = self.owner(unverified, id, authority, None, now).await?;
        if self.is_undisputed(&actor, authority, &task.view, now) {
            let as_of = task.view.as_of;
            if let Some(heard) = self.hear(task, now, Some(as_of)).await? {
                actor.was_judged_by_the_store();
                return Ok(heard);
            }
            // The task ended after it was read, or facts on its caller changed.
        } else {
            // Release the connection, so that none of the pool waits for an append.
            drop(task);
        }
        actor.use_up().await?;
        // Read the task again: cutoffs and ends may have been committed while the append waited.
        let task = self.core.store().hold_task(id, now).await?;
        let task = task.ok_or(BrokerError::NotFound("task"))?;
        let heard = self.hear(task, now, None).await?;
        heard.ok_or(BrokerError::TaskEnded)
    }

    /// Whether a heartbeat needs no append: it uses no evidence up, the ledger serves, the store
    /// has room, and by the facts that were read with the task no cutoff blocks its caller.
    fn is_undisputed(
        &self,
        actor: &Actor<'_>,
        authority: &TaskAuthority,
        task: &TaskView,
        now: Timestamp,
    ) -> bool {
        matches!(authority, TaskAuthority::Handle(..))
            && actor.can_be_judged_by_the_store(task.generation)
            && matches!(self.core.ledger().status(), LedgerStatus::Serving)
            && self.core.store().overfull().is_none()
            && !task.is_blocked(now)
    }

    /// Records that a task is alive, if it is open. With `undisturbed_since`, returns `None` and
    /// records nothing if the facts have changed since that leaf.
    async fn hear(
        &self,
        task: HeldTask,
        now: Timestamp,
        undisturbed_since: Option<u64>,
    ) -> Result<Option<TaskWithSessions>, BrokerError> {
        self.check_owners(&task.view)?;
        if !task.view.is_open(now) {
            return Err(BrokerError::TaskEnded);
        }
        let mut record = task.view.task.clone();
        let heard = task.hear(now, undisturbed_since, MAX_PAGE).await?;
        Ok(heard.map(|heard| {
            record.heard_at = heard.heard_at;
            let sessions = heard.sessions.into_iter();
            TaskWithSessions {
                task: TaskReport {
                    task: record,
                    state: TaskState::Open,
                    ended_at: None,
                },
                sessions: sessions.map(|view| SessionReport::new(view, now)).collect(),
            }
        }))
    }

    async fn with_sessions(
        &self,
        id: TaskId,
        now: Timestamp,
    ) -> Result<TaskWithSessions, BrokerError> {
        let sessions = self.core.store().sessions_under(id, MAX_PAGE).await?;
        Ok(TaskWithSessions {
            task: self.report(id, now).await?,
            sessions: sessions
                .into_iter()
                .map(|view| SessionReport::new(view, now))
                .collect(),
        })
    }

    /// Ends a task with its sessions and descendants. Changes nothing if it has ended already.
    #[instrument(skip_all)]
    pub async fn end_task(
        &self,
        id: TaskId,
        authority: TaskAuthority,
        end: TaskEnd,
    ) -> Result<TaskWithSessions, BrokerError> {
        let call = self.access.call(authority.evidence());
        call.run(|unverified| self.end_task_by(unverified, id, &authority, end))
            .await
    }

    async fn end_task_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
        authority: &TaskAuthority,
        end: TaskEnd,
    ) -> Result<TaskWithSessions, BrokerError> {
        let now = self.core.now();
        let Owner { task, actor } = self
            .owner(unverified, id, authority, Some(AdminAction::EndTask), now)
            .await?;
        let entry = EndTask {
            task: id,
            end,
            by: actor.name(),
            owner: task.into_view().task.owner,
        };
        let appended = actor.append(Entry::EndTask(entry), now).await?;
        let ended_now = match appended {
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            Appended::Recorded(_) => true,
            _ => false,
        };
        let report = self.with_sessions(id, self.core.now()).await?;
        if ended_now {
            self.core.wake_sweeper();
            for status in report.sessions.iter().map(|session| session.status) {
                // Sessions that had ended before are counted already.
                let by_this_act = status.ended_at.is_some_and(|at| at >= now);
                if let Some(reason) = status.end_reason.filter(|_| by_this_act) {
                    self.core.metrics().sessions_ended(reason, 1);
                }
            }
        }
        Ok(report)
    }

    /// Gives a single-use token by which one identity can open a child. The token lends no more
    /// than the task's remaining credentials and time.
    #[instrument(skip_all)]
    pub async fn delegate(
        &self,
        id: TaskId,
        authority: TaskAuthority,
        child: Identity,
        sessions: u32,
        expires_in_seconds: Option<u64>,
    ) -> Result<Delegation, BrokerError> {
        let call = self.access.call(authority.evidence());
        call.run(|unverified| {
            let child = child.clone();
            self.delegate_by(
                unverified,
                id,
                &authority,
                child,
                sessions,
                expires_in_seconds,
            )
        })
        .await
    }

    async fn delegate_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
        authority: &TaskAuthority,
        child: Identity,
        sessions: u32,
        expires_in_seconds: Option<u64>,
    ) -> Result<Delegation, BrokerError> {
        let now = self.core.now();
        let Owner { task, actor } = self.owner(unverified, id, authority, None, now).await?;
        let lender = task.into_view();
        if lender.chain.state_at(now) != TaskState::Open {
            return Err(BrokerError::TaskEnded);
        }
        self.check_owners(&lender)?;
        if !self.core.active()?.could_attest(&child) {
            return Err(BrokerError::Invalid {
                pointer: "/workload",
                detail: format!(
                    "no attestor of the active generation gives the identity `{child}`, so no \
                     workload could use the delegation"
                ),
            });
        }
        if sessions == 0 || sessions > lender.task.sessions_left {
            return Err(BrokerError::Invalid {
                pointer: "/max_credentials",
                detail: match lender.task.sessions_left {
                    0 => "the task has no credentials left".to_owned(),
                    left => format!("must be 1 to {left}: the task has no more credentials left"),
                },
            });
        }
        let seconds = expires_in_seconds.unwrap_or(MAX_DELEGATION_SECONDS);
        if seconds == 0 || seconds > MAX_DELEGATION_SECONDS {
            return Err(BrokerError::Invalid {
                pointer: "/expires_in_seconds",
                detail: format!("must be 1 to {MAX_DELEGATION_SECONDS}"),
            });
        }
        let expires_at = now.plus_seconds(seconds).min(lender.chain.deadline());
        let token = random_token(DELEGATION_PREFIX, self.core.random())?;
        let entry = Entry::Delegate(Delegate {
            digest: token_digest(token.expose_secret()),
            task: id,
            child,
            sessions,
            expires_at,
            owner: lender.task.owner,
        });
        let appended = actor.append(entry, now).await?;
        match appended {
            Appended::Recorded(_) => Ok(Delegation {
                token,
                expires_at,
                sessions,
            }),
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::TaskEnded),
        }
    }

    /// A task, for its owner or an admin.
    pub async fn task(&self, id: TaskId, evidence: &Evidence) -> Result<TaskReport, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.task_by(unverified, id)).await
    }

    async fn task_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
    ) -> Result<TaskReport, BrokerError> {
        let reader = unverified.read().await?;
        let task = self.core.store().task(id).await?;
        let task = task.ok_or(BrokerError::NotFound("task"))?;
        let own = reader.owns(&task.owner, task.owner_instance.as_ref());
        if !own && !reader.may(AdminAction::ListTasks)? {
            return Err(BrokerError::NotFound("task"));
        }
        self.report(id, self.core.now()).await
    }

    /// The tasks of a listing: all for an admin, otherwise the workload's own.
    pub async fn list_tasks(
        &self,
        evidence: &Evidence,
        filter: crate::store::tasks::TaskFilter,
    ) -> Result<Vec<TaskReport>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.list_tasks_by(unverified, filter.clone()))
            .await
    }

    async fn list_tasks_by(
        &self,
        unverified: Unverified<'_>,
        mut filter: crate::store::tasks::TaskFilter,
    ) -> Result<Vec<TaskReport>, BrokerError> {
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ListTasks)? {
            let own = reader
                .identity()
                .ok_or(BrokerError::Forbidden("listTasks"))?;
            filter.owner = Some(own.to_string());
        }
        if filter.limit == 0 {
            filter.limit = DEFAULT_PAGE;
        }
        let now = self.core.now();
        let tasks = reader.tasks(&filter).await?;
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
        let chains = self.core.store().task_chains(&ids).await?;
        Ok(tasks
            .into_iter()
            .map(|task| {
                let chain = chains.get(&task.id).cloned();
                task_report(task, &chain.unwrap_or(TaskChain(Vec::new())), now)
            })
            .collect())
    }

    async fn report(&self, id: TaskId, now: Timestamp) -> Result<TaskReport, BrokerError> {
        let found = self.core.store().task_view(id, now).await?;
        let TaskView { task, chain, .. } = found.ok_or(BrokerError::NotFound("task"))?;
        Ok(task_report(task, &chain, now))
    }

    /// Authorizes the caller to act for the task: by its handle, as its owner, or as an admin with
    /// the right `admins`. `None` if admins may not perform this act. Other callers are told that
    /// the task does not exist.
    ///
    /// Acts that admins may not perform keep the task alive or delegate from it. They are refused
    /// while a cutoff blocks the task or one of its ancestors. Ending a task is not refused then.
    async fn owner<'c>(
        &self,
        unverified: Unverified<'c>,
        id: TaskId,
        authority: &TaskAuthority,
        admins: Option<AdminAction>,
        now: Timestamp,
    ) -> Result<Owner<'c>, BrokerError> {
        let not_found = || BrokerError::NotFound("task");
        let owner = match authority {
            TaskAuthority::Handle(handle, _) => {
                let bearer = unverified.with_handle(handle, now)?;
                let found = self.core.store().hold_task(id, now).await?;
                let task = found.ok_or_else(not_found)?;
                let actor = bearer.for_task(&task.view.task).ok_or_else(not_found)?;
                Owner { task, actor }
            }
            TaskAuthority::Owner(_) => {
                let actor = unverified.authenticate().await?.act().await?;
                let admin = match admins {
                    Some(action) => actor.may(action)?,
                    None => false,
                };
                // Without an instance the runs of the workload cannot be distinguished, so the
                // owner must present the handle.
                let found = self.core.store().hold_task(id, now).await?.filter(|held| {
                    let task = &held.view.task;
                    let owner = task.owner_instance.as_ref();
                    let own = owner.is_some() && actor.caller().owns(&task.owner, owner);
                    own || admin
                });
                let task = found.ok_or_else(not_found)?;
                Owner { task, actor }
            }
        };
        if admins.is_none() {
            owner.actor.keeps_alive(id);
        }
        Ok(owner)
    }

    /// Refuses to keep a task alive or to delegate from it if its owner, or the owner of an
    /// ancestor, can no longer be attested. The handle of such a task can only end it.
    fn check_owners(&self, task: &TaskView) -> Result<(), BrokerError> {
        let active = self.core.active()?;
        let mut tasks = std::iter::once(&task.task).chain(&task.above);
        if tasks.all(|task| active.attests(task)) {
            return Ok(());
        }
        Err(BrokerError::OwnerWithdrawn)
    }

    /// Ends tasks for the sweeper, in one leaf: those for which the cause still holds under the
    /// ledger's lock. At most [`MAX_TASKS_IN_LEAF`](crate::domain::limits::MAX_TASKS_IN_LEAF) tasks.
    /// Returns whether a leaf was recorded; it may list fewer tasks. The error is `Poisoned` if the
    /// store refuses the end of one of them.
    pub async fn sweep_tasks(
        &self,
        tasks: Vec<TaskId>,
        cause: SweepCause,
    ) -> Result<bool, AppendError> {
        let entry = Entry::EndTasks(EndTasks { tasks, cause });
        let appended = self
            .core
            .ledger()
            .append_own(entry, self.core.now())
            .await?;
        let recorded = matches!(appended, Appended::Recorded(_));
        if recorded {
            self.core.wake_sweeper();
        }
        Ok(recorded)
    }
}

fn task_report(task: Task, chain: &TaskChain, now: Timestamp) -> TaskReport {
    TaskReport {
        task,
        state: chain.state_at(now),
        ended_at: chain.ended(now).map(|ending| ending.at),
    }
}
