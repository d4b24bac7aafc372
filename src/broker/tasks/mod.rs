//! Tasks: opened without a credential, kept alive, ended, and lent to children.

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
use crate::ledger::entry::{Delegate, EndTask, Entry};
use crate::ledger::{Appended, LedgerStatus};
use crate::policy::AdminAction;
use crate::store::heartbeat::{HeldTask, TaskView};

/// How a caller shows that a task is its own.
#[derive(Debug)]
pub enum TaskAuthority {
    /// By the task's handle, with a DPoP proof or the certificate where the task is bound to one.
    Handle(SecretString, Evidence),
    /// By the owner's attestation.
    Owner(Evidence),
}

impl TaskAuthority {
    fn evidence(&self) -> &Evidence {
        match self {
            Self::Handle(_, evidence) | Self::Owner(evidence) => evidence,
        }
    }
}

/// A task as it is now.
#[derive(Debug)]
pub struct TaskReport {
    /// Its record.
    pub task: Task,
    /// Its state, judged by the whole chain.
    pub state: TaskState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// A task, and every session under it.
#[derive(Debug)]
pub struct TaskWithSessions {
    /// The task.
    pub task: TaskReport,
    /// Every session under it.
    pub sessions: Vec<SessionReport>,
}

/// A delegation token for one child.
#[derive(Debug)]
pub struct Delegation {
    /// The single-use token.
    pub token: SecretString,
    /// Until when.
    pub expires_at: Timestamp,
    /// Credentials that go with it.
    pub sessions: u32,
}

/// A caller that may act for a task.
struct Owner<'c> {
    task: HeldTask,
    actor: Actor<'c>,
}

/// Opens tasks, keeps them alive, lends from them and ends them.
pub struct Tasks {
    core: Core,
    access: Arc<Access>,
    /// Admits a new task, and records the decision about it.
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

    /// Notes that a task is alive. A task that is over stays over.
    ///
    /// A heartbeat by the handle alone uses no evidence up. It is judged by what is read with the task
    /// and noted only if nothing that decides changed in between: two statements on PostgreSQL, three
    /// on SQLite. Every other heartbeat, and every one that something stands against, is judged by an
    /// append under the ledger's lock.
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
            // The task ended since it was read, or something that decides about its caller changed.
        } else {
            // No connection of the pool waits for an append.
            drop(task);
        }
        actor.use_up().await?;
        // The answer shows the cutoffs and the ends that were committed while the append waited.
        let task = self.core.store().hold_task(id, now).await?;
        let task = task.ok_or(BrokerError::NotFound("task"))?;
        let heard = self.hear(task, now, None).await?;
        heard.ok_or(BrokerError::TaskEnded)
    }

    /// Whether a heartbeat can do without an append: it uses no evidence up, the ledger works, and by
    /// what was read with the task nothing stands against its caller.
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

    /// Notes that a task is alive, if it is. `None` where the store did not note it.
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

    /// Ends a task, and with it everything under it. Ending it again changes nothing.
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
        let told = self.with_sessions(id, self.core.now()).await?;
        if ended_now {
            self.core.wake_sweeper();
            let over = told.sessions.iter();
            for reason in over.filter_map(|report| report.status.end_reason) {
                self.core.metrics().sessions_ended(reason, 1);
            }
        }
        Ok(told)
    }

    /// Lets one child in: a single-use token for one identity, within the task's own bounds.
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
                    "no attestor of the active generation gives the identity {child}, so that no \
                     workload could use the delegation"
                ),
            });
        }
        if sessions == 0 || sessions > lender.task.sessions_left {
            return Err(BrokerError::Invalid {
                pointer: "/max_credentials",
                detail: format!("1 to {} credentials are left", lender.task.sessions_left),
            });
        }
        let seconds = expires_in_seconds.unwrap_or(MAX_DELEGATION_SECONDS);
        if seconds == 0 || seconds > MAX_DELEGATION_SECONDS {
            return Err(BrokerError::Invalid {
                pointer: "/expires_in_seconds",
                detail: format!("1 to {MAX_DELEGATION_SECONDS} seconds"),
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

    /// The tasks of a listing: everybody's for an admin, a workload's own otherwise.
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

    /// Whether the caller may act for the task: by its handle, as its owner, or as an admin with
    /// the right that this act has, if it has one. Whoever may not learns nothing of it.
    ///
    /// An act without such a right keeps the task alive or lends from it, so it is refused too
    /// while a cutoff blocks the task or one above it. To end a task only takes away.
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
                // To end a task is not to keep it alive, nor to lend what it has.
                let admin = match admins {
                    Some(action) => actor.may(action)?,
                    None => false,
                };
                // Without an instance every run of the workload looks alike: the handle is needed.
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

    /// What keeps a task alive or lends what it has needs an owner who could still be attested, here
    /// and above. A handle alone may end a task whose attestor was removed, and nothing more.
    fn check_owners(&self, task: &TaskView) -> Result<(), BrokerError> {
        let active = self.core.active()?;
        let mut tasks = std::iter::once(&task.task).chain(&task.above);
        if tasks.all(|task| active.attests(task)) {
            return Ok(());
        }
        Err(BrokerError::OwnerWithdrawn)
    }

    /// Ends a task on the sweeper's word.
    pub async fn sweep_task(&self, task: &Task, end: TaskEnd) -> Result<bool, BrokerError> {
        let appended = self
            .core
            .ledger()
            .append_own(
                Entry::EndTask(EndTask {
                    task: task.id,
                    end,
                    by: "sweeper".into(),
                    owner: task.owner.clone(),
                }),
                self.core.now(),
            )
            .await?;
        Ok(matches!(appended, Appended::Recorded(_)))
    }
}

fn task_report(task: Task, chain: &TaskChain, now: Timestamp) -> TaskReport {
    TaskReport {
        task,
        state: chain.state_at(now),
        ended_at: chain.ended(now).map(|ending| ending.at),
    }
}
