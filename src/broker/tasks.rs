//! Tasks: opened without a credential, kept alive, ended, and lent to children.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tracing::instrument;

use super::access::{Actor, Unverified};
use super::admit::{DELEGATION_PREFIX, key_fits, owner_withdrawn};
use super::issue::{Case, DecisionSummary, IssuedTask, before_policy};
use super::sessions::SessionReport;
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::crypto::digest::{digests_equal, sha256};
use crate::crypto::random::{random_token, token_digest};
use crate::domain::decision::{Decision, Outcome, Refusal};
use crate::domain::limits::{DEFAULT_PAGE, MAX_DELEGATION_SECONDS, MAX_PAGE};
use crate::domain::request::NewTask;
use crate::domain::task::{Task, TaskChain, TaskEnd, TaskState};
use crate::domain::workload::{Identity, Reuse};
use crate::ids::{DecisionId, TaskId};
use crate::ledger::entry::{Decide, Delegate, EndTask, Entry, OneTimeUse, Request};
use crate::ledger::{Appended, blocked_caller};
use crate::merkle::Receipt;
use crate::policy::{AdminAction, record};

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

/// A task that was opened without a credential.
#[derive(Debug)]
pub struct Opened {
    /// The task, with its handle.
    pub task: IssuedTask,
    /// The decision.
    pub decision: DecisionSummary,
    /// The proof that it is on record.
    pub receipt: Receipt,
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
    task: Task,
    chain: TaskChain,
    actor: Actor<'c>,
}

impl Broker {
    /// Opens a task without a credential.
    #[instrument(skip_all)]
    pub async fn open_task(
        &self,
        evidence: &Evidence,
        new: NewTask,
    ) -> Result<Opened, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.open_task_by(unverified, new.clone()))
            .await
    }

    async fn open_task_by(
        &self,
        unverified: Unverified<'_>,
        new: NewTask,
    ) -> Result<Opened, BrokerError> {
        let basis = self.ledger().basis();
        let now = self.now();
        let active = self.active()?;
        let requester = unverified.request(&active, now).await?;
        let workload = requester.workload();
        let case = Case {
            active: &active,
            requester: &requester,
            workload,
            basis,
            now,
        };
        let purpose = new.purpose.clone();
        let admitted = if requester.is_blocked().await? {
            Err(blocked_caller())
        } else {
            match active.catalog().resolve_task(new) {
                Ok(open) => self.admit_new(&case, &open).await?,
                Err(refusal) => Err(refusal),
            }
        };
        let admitted = match admitted {
            Ok(admission) if !self.owners_stand(&active, &admission.parents).await? => {
                Err(owner_withdrawn())
            }
            other => other,
        };
        let (decision, mut admission) = match admitted {
            Ok(admission) => {
                let roles = self.roles_asked_for(&case).await?;
                let facts = admission.facts.clone();
                let policy = active.policy();
                let decision = policy.decide_open_task(workload, roles.as_ref(), facts, now);
                (decision, Some(admission))
            }
            Err(refusal) => (before_policy(refusal, &active), None),
        };
        if decision.verdict.is_err() {
            self.spend_denial(&case)?;
        }
        let permitted = decision.verdict.is_ok();
        let plan = admission.as_ref().filter(|_| permitted);
        let decide = Decide {
            id: DecisionId::new(now, &self.random)?,
            basis,
            identity: workload.identity.clone(),
            instance: workload.instance.clone(),
            attestor: workload.attestor.clone(),
            outcome: decision.outcome(),
            refusal: decision.verdict.as_ref().err().cloned(),
            policies: decision.policies.clone(),
            observed: decision.observed.clone(),
            generation: decision.generation,
            resource: None,
            input: self.commitment(record::committed(&decision))?,
            purpose: match purpose {
                Some(purpose) => Some(self.commitment(purpose.into_bytes())?),
                None => None,
            },
            task: admission
                .as_ref()
                .map(|own| (own.task, own.parents.clone())),
            plan: plan.map(|admission| admission.plan.clone()),
            session: None,
            retry: None,
        };
        let id = decide.id;
        if workload.reuse == Reuse::PerTask
            && let Some(admission) = &mut admission
        {
            admission.evidence_binding = Some(sha256(admission.task.uuid().as_bytes()));
        }
        let entry = Entry::Decide(Box::new(decide));
        let appended = requester.append_with(entry, now, |one_time| {
            if let Some(admission) = &admission {
                admission.adjust(one_time);
            }
        });
        let appended = appended.await?;
        let handle = admission
            .as_mut()
            .and_then(|admission| admission.handle.take());
        self.opened(appended, id, decision, admission, handle)
    }

    fn opened(
        &self,
        appended: Appended,
        id: DecisionId,
        decision: Decision,
        admission: Option<super::admit::Admission>,
        handle: Option<SecretString>,
    ) -> Result<Opened, BrokerError> {
        let refused =
            |refusal: Refusal, receipt: Receipt| self.denied(id, refusal, &decision, receipt);
        match appended {
            Appended::Recorded(recorded) => {
                let (_, receipt) = recorded.into_permit();
                if let Err(refusal) = &decision.verdict {
                    return Err(refused(refusal.clone(), receipt));
                }
                let admission =
                    admission.ok_or_else(|| BrokerError::FailClosed("a task was lost".into()))?;
                self.metrics().decision(Outcome::Permit);
                Ok(Opened {
                    task: IssuedTask {
                        id: admission.task,
                        task_type: admission.facts.task_type,
                        state: TaskState::Open,
                        deadline: admission.deadline,
                        heartbeat_seconds: admission.heartbeat_seconds,
                        handle,
                    },
                    decision: DecisionSummary {
                        id,
                        outcome: Outcome::Permit,
                        policies: decision.policies,
                        generation: decision.generation,
                        observed: decision.observed,
                    },
                    receipt,
                })
            }
            Appended::Refused(recorded, refusal) => {
                let (_, receipt) = recorded.into_permit();
                Err(refused(refusal, receipt))
            }
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            Appended::Stale | Appended::Superseded => Err(BrokerError::Superseded),
            Appended::Unchanged
            | Appended::Blocked(_)
            | Appended::Forgotten
            | Appended::RetryTaken(_) => {
                Err(BrokerError::FailClosed("nothing was recorded".into()))
            }
        }
    }

    /// Notes that a task is alive. One that is over stays over.
    #[instrument(skip_all)]
    pub async fn heartbeat(
        &self,
        id: TaskId,
        authority: TaskAuthority,
    ) -> Result<TaskWithSessions, BrokerError> {
        let call = self.call(authority.evidence());
        call.run(|unverified| self.heartbeat_by(unverified, id, &authority))
            .await
    }

    async fn heartbeat_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
        authority: &TaskAuthority,
    ) -> Result<TaskWithSessions, BrokerError> {
        let now = self.now();
        let owner = self.owner(unverified, id, authority, None, now).await?;
        owner.actor.use_up().await?;
        self.check_owners(&owner).await?;
        let alive = owner.chain.state_at(now) == TaskState::Open;
        if !alive || !self.store().heartbeat(id, now).await? {
            return Err(BrokerError::TaskEnded);
        }
        self.with_sessions(id, now).await
    }

    async fn with_sessions(
        &self,
        id: TaskId,
        now: Timestamp,
    ) -> Result<TaskWithSessions, BrokerError> {
        let sessions = self.store().sessions_under(id, MAX_PAGE).await?;
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
        let call = self.call(authority.evidence());
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
        let now = self.now();
        let owner = self
            .owner(unverified, id, authority, Some(AdminAction::EndTask), now)
            .await?;
        let entry = EndTask {
            task: id,
            end,
            by: owner.actor.name(),
            owner: owner.task.owner.clone(),
        };
        let appended = owner.actor.append(Entry::EndTask(entry), now).await?;
        let ended_now = match appended {
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            Appended::Recorded(_) => true,
            _ => false,
        };
        let told = self.with_sessions(id, self.now()).await?;
        if ended_now {
            self.wake_sweeper();
            let over = told.sessions.iter();
            for reason in over.filter_map(|report| report.standing.end_reason) {
                self.metrics().sessions_ended(reason, 1);
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
        let call = self.call(authority.evidence());
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
        let now = self.now();
        let owner = self.owner(unverified, id, authority, None, now).await?;
        if owner.chain.state_at(now) != TaskState::Open {
            return Err(BrokerError::TaskEnded);
        }
        self.check_owners(&owner).await?;
        if !self.active()?.could_attest(&child) {
            return Err(BrokerError::Invalid {
                pointer: "/workload",
                detail: format!(
                    "no attestor of the active generation gives the identity {child}, so that no \
                     workload could use the delegation"
                ),
            });
        }
        if sessions == 0 || sessions > owner.task.sessions_left {
            return Err(BrokerError::Invalid {
                pointer: "/max_credentials",
                detail: format!("1 to {} credentials are left", owner.task.sessions_left),
            });
        }
        let seconds = expires_in_seconds.unwrap_or(MAX_DELEGATION_SECONDS);
        if seconds == 0 || seconds > MAX_DELEGATION_SECONDS {
            return Err(BrokerError::Invalid {
                pointer: "/expires_in_seconds",
                detail: format!("1 to {MAX_DELEGATION_SECONDS} seconds"),
            });
        }
        let expires_at = now.plus_seconds(seconds).min(owner.chain.deadline());
        let token = random_token(DELEGATION_PREFIX, &self.random)?;
        let entry = Entry::Delegate(Delegate {
            digest: token_digest(token.expose_secret()),
            task: id,
            child,
            sessions,
            expires_at,
            owner: owner.task.owner,
        });
        let appended = owner.actor.append(entry, now).await?;
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
        let call = self.call(evidence);
        call.run(|unverified| self.task_by(unverified, id)).await
    }

    async fn task_by(
        &self,
        unverified: Unverified<'_>,
        id: TaskId,
    ) -> Result<TaskReport, BrokerError> {
        let reader = unverified.read().await?;
        let task = self.store().task(id).await?;
        let task = task.ok_or(BrokerError::NotFound("task"))?;
        let own = reader.owns(&task.owner, task.owner_instance.as_ref());
        if !own && !reader.may(AdminAction::ListTasks)? {
            return Err(BrokerError::NotFound("task"));
        }
        self.report(id, self.now()).await
    }

    /// The tasks of a listing: everybody's for an admin, a workload's own otherwise.
    pub async fn list_tasks(
        &self,
        evidence: &Evidence,
        filter: crate::store::tasks::TaskFilter,
    ) -> Result<Vec<TaskReport>, BrokerError> {
        let call = self.call(evidence);
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
        let now = self.now();
        let tasks = self.store().tasks(&filter).await?;
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
        let chains = self.store().task_chains(&ids).await?;
        Ok(tasks
            .into_iter()
            .map(|task| {
                let chain = chains.get(&task.id).cloned();
                task_report(task, &chain.unwrap_or(TaskChain(Vec::new())), now)
            })
            .collect())
    }

    async fn report(&self, id: TaskId, now: Timestamp) -> Result<TaskReport, BrokerError> {
        let found = self.task_with_chain(id).await?;
        let (task, chain) = found.ok_or(BrokerError::NotFound("task"))?;
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
                let bearer = unverified.with_handle(now)?;
                let digest = token_digest(handle.expose_secret());
                let found = self.task_with_chain(id).await?.filter(|(task, _)| {
                    digests_equal(&digest, &task.handle_digest) && key_fits(task, bearer.key())
                });
                let (task, chain) = found.ok_or_else(not_found)?;
                let actor = bearer.for_task(&task);
                Owner { task, chain, actor }
            }
            TaskAuthority::Owner(_) => {
                let actor = unverified.authenticate().await?.act().await?;
                // To end a task is not to keep it alive, nor to lend what it has.
                let admin = match admins {
                    Some(action) => actor.may(action)?,
                    None => false,
                };
                // Without an instance every run of the workload looks alike: the handle is needed.
                let found = self.task_with_chain(id).await?.filter(|(task, _)| {
                    let owner = task.owner_instance.as_ref();
                    let own = owner.is_some() && actor.caller().owns(&task.owner, owner);
                    own || admin
                });
                let (task, chain) = found.ok_or_else(not_found)?;
                Owner { task, chain, actor }
            }
        };
        if admins.is_none() {
            owner.actor.keeps_alive(id);
        }
        Ok(owner)
    }

    /// What keeps a task alive or lends what it has needs an owner who could still be attested, here
    /// and above. A handle alone may end a task whose attestor was removed, and nothing more.
    async fn check_owners(&self, owner: &Owner<'_>) -> Result<(), BrokerError> {
        let active = self.active()?;
        let above = owner.chain.parents();
        if active.attests(&owner.task) && self.owners_stand(&active, &above).await? {
            return Ok(());
        }
        Err(BrokerError::OwnerWithdrawn)
    }

    /// Ends a task on the sweeper's word.
    pub async fn sweep_task(
        self: &Arc<Self>,
        task: &Task,
        end: TaskEnd,
    ) -> Result<bool, BrokerError> {
        let appended = self
            .ledger()
            .append(Request {
                entry: Entry::EndTask(EndTask {
                    task: task.id,
                    end,
                    by: "sweeper".into(),
                    owner: task.owner.clone(),
                }),
                one_time: OneTimeUse::default(),
                at: self.now(),
            })
            .await?;
        Ok(matches!(appended, Appended::Recorded(_)))
    }
}

fn task_report(task: Task, chain: &TaskChain, now: Timestamp) -> TaskReport {
    let over = chain.over_at(now);
    TaskReport {
        task,
        state: over.map_or(TaskState::Open, |(state, _)| state),
        ended_at: over.map(|(_, at)| at),
    }
}
