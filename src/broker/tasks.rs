//! Tasks: opened without a credential, kept alive, ended, and lent to children.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tracing::instrument;

use super::admit::{DELEGATION_PREFIX, key_fits, owner_withdrawn};
use super::call::Call;
use super::issue::{Case, DecisionSummary, IssuedTask, before_policy};
use super::sessions::SessionReport;
use super::{Broker, BrokerError};
use crate::attest::{AttestFailure, Evidence, certificate, dpop};
use crate::clock::Timestamp;
use crate::crypto::digest::{digests_equal, sha256};
use crate::crypto::random::{random_token, token_digest};
use crate::domain::decision::{Decision, Outcome, Refusal};
use crate::domain::limits::{DEFAULT_PAGE, MAX_DELEGATION_SECONDS, MAX_PAGE};
use crate::domain::request::NewTask;
use crate::domain::task::{Task, TaskChain, TaskEnd, TaskState};
use crate::domain::workload::{Identity, Reuse};
use crate::ids::{DecisionId, TaskId};
use crate::ledger::entry::{Decide, Delegate, EndTask, Entry, OneTimeUse, Request, RequestCaller};
use crate::ledger::{Appended, LedgerStatus, blocked_caller};
use crate::merkle::Receipt;
use crate::policy::{AdminAction, record};
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

/// A caller that was found to own a task.
struct Owner {
    task: HeldTask,
    by: String,
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
        call.run(|| self.open_task_by(&call, new.clone())).await
    }

    async fn open_task_by(&self, call: &Call<'_>, new: NewTask) -> Result<Opened, BrokerError> {
        for _ in 0..3 {
            if let Some(opened) = self.try_open_task(call, new.clone()).await? {
                return Ok(opened);
            }
            self.follow_generation().await?;
        }
        Err(BrokerError::FailClosed(
            "what decides kept changing while the request was decided".into(),
        ))
    }

    async fn try_open_task(
        &self,
        call: &Call<'_>,
        new: NewTask,
    ) -> Result<Option<Opened>, BrokerError> {
        let basis = self.ledger().basis();
        let now = self.now();
        let active = self.active()?;
        let workload = self.appraise(&active, call, now).await?;
        let case = Case {
            active: &active,
            call,
            workload: &workload,
            basis,
            now,
        };
        let purpose = new.purpose.clone();
        let admitted = if call.is_blocked().await? {
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
                let decision = policy.decide_open_task(&workload, roles.as_ref(), facts, now);
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
        let appended = call.append_with(entry, now, |one_time| {
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
    ) -> Result<Option<Opened>, BrokerError> {
        let refused =
            |refusal: Refusal, receipt: Receipt| self.denied(id, refusal, &decision, receipt);
        match appended {
            Appended::Superseded => Err(BrokerError::Superseded),
            Appended::Recorded(recorded) => {
                let (_, receipt) = recorded.into_permit();
                if let Err(refusal) = &decision.verdict {
                    return Err(refused(refusal.clone(), receipt));
                }
                let admission =
                    admission.ok_or_else(|| BrokerError::FailClosed("a task was lost".into()))?;
                self.metrics().decision(Outcome::Permit);
                Ok(Some(Opened {
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
                }))
            }
            Appended::Refused(recorded, refusal) => {
                let (_, receipt) = recorded.into_permit();
                Err(refused(refusal, receipt))
            }
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            Appended::Stale => Ok(None),
            Appended::Unchanged
            | Appended::Blocked(_)
            | Appended::Forgotten
            | Appended::RetryTaken(_) => {
                Err(BrokerError::FailClosed("nothing was recorded".into()))
            }
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
        let call = self.call(authority.evidence());
        call.run(|| self.heartbeat_by(&call, id, &authority)).await
    }

    async fn heartbeat_by(
        &self,
        call: &Call<'_>,
        id: TaskId,
        authority: &TaskAuthority,
    ) -> Result<TaskWithSessions, BrokerError> {
        let now = self.now();
        let mut task = self.owner(call, id, authority, None, now).await?.task;
        if self.is_undisputed(call, authority, &task.view, now) {
            let as_of = task.view.as_of;
            if let Some(heard) = self.hear(task, now, Some(as_of)).await? {
                call.judged_with_its_act();
                return Ok(heard);
            }
            // The task ended since it was read, or something that decides about its caller changed.
            let found = self.store().hold_task(id, now).await?;
            task = found.ok_or(BrokerError::NotFound("task"))?;
        }
        // No connection of the pool waits for an append.
        task.release();
        call.consume().await?;
        let heard = self.hear(task, now, None).await?;
        heard.ok_or(BrokerError::TaskEnded)
    }

    /// Whether a heartbeat can do without an append: it uses no evidence up, the ledger works, and by
    /// what was read with the task nothing stands against its caller.
    fn is_undisputed(
        &self,
        call: &Call<'_>,
        authority: &TaskAuthority,
        task: &TaskView,
        now: Timestamp,
    ) -> bool {
        matches!(authority, TaskAuthority::Handle(..))
            && call.uses_nothing_up()
            && matches!(self.ledger().status(), LedgerStatus::Serving)
            && call.rests_on(task.generation)
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
        if task.view.chain.state_at(now) != TaskState::Open {
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
        call.run(|| self.end_task_by(&call, id, &authority, end))
            .await
    }

    async fn end_task_by(
        &self,
        call: &Call<'_>,
        id: TaskId,
        authority: &TaskAuthority,
        end: TaskEnd,
    ) -> Result<TaskWithSessions, BrokerError> {
        let now = self.now();
        let Owner { task, by } = self
            .owner(call, id, authority, Some(AdminAction::EndTask), now)
            .await?;
        let entry = EndTask {
            task: id,
            end,
            by,
            owner: task.into_view().task.owner,
        };
        let appended = call.append(Entry::EndTask(entry), now).await?;
        let ended_now = match appended {
            Appended::Replayed(_) => return Err(BrokerError::Replayed),
            Appended::Recorded(_) => true,
            _ => false,
        };
        let told = self.with_sessions(id, self.now()).await?;
        if ended_now {
            self.wake_sweeper();
            let over = told.sessions.iter();
            for reason in over.filter_map(|report| report.status.end_reason) {
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
        call.run(|| {
            let child = child.clone();
            self.delegate_by(&call, id, &authority, child, sessions, expires_in_seconds)
        })
        .await
    }

    async fn delegate_by(
        &self,
        call: &Call<'_>,
        id: TaskId,
        authority: &TaskAuthority,
        child: Identity,
        sessions: u32,
        expires_in_seconds: Option<u64>,
    ) -> Result<Delegation, BrokerError> {
        let now = self.now();
        let owner = self.owner(call, id, authority, None, now).await?;
        let lender = owner.task.into_view();
        if lender.chain.state_at(now) != TaskState::Open {
            return Err(BrokerError::TaskEnded);
        }
        self.check_owners(&lender)?;
        if !self.active()?.could_attest(&child) {
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
        let token = random_token(DELEGATION_PREFIX, &self.random)?;
        let entry = Entry::Delegate(Delegate {
            digest: token_digest(token.expose_secret()),
            task: id,
            child,
            sessions,
            expires_at,
            owner: lender.task.owner,
        });
        let appended = call.append(entry, now).await?;
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
        call.run(|| self.task_by(&call, id)).await
    }

    async fn task_by(&self, call: &Call<'_>, id: TaskId) -> Result<TaskReport, BrokerError> {
        let caller = self.caller(call).await?;
        call.consume().await?;
        let task = self.store().task(id).await?;
        let task = task.ok_or(BrokerError::NotFound("task"))?;
        let own = caller.owns(&task.owner, task.owner_instance.as_ref());
        if !own && !self.may(&caller, AdminAction::ListTasks)? {
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
        call.run(|| self.list_tasks_by(&call, filter.clone())).await
    }

    async fn list_tasks_by(
        &self,
        call: &Call<'_>,
        mut filter: crate::store::tasks::TaskFilter,
    ) -> Result<Vec<TaskReport>, BrokerError> {
        let caller = self.caller(call).await?;
        call.consume().await?;
        if !self.may(&caller, AdminAction::ListTasks)? {
            let own = caller
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
        let found = self.store().task_view(id, now).await?;
        let TaskView { task, chain, .. } = found.ok_or(BrokerError::NotFound("task"))?;
        Ok(task_report(task, &chain, now))
    }

    /// Whether the caller may act for the task: by its handle, as its owner, or as an admin with
    /// the right that this act has, if it has one. Whoever may not learns nothing of it.
    ///
    /// An act without such a right keeps the task alive or lends from it, so it is refused too
    /// while a cutoff blocks the task or one above it. To end a task only takes away.
    async fn owner(
        &self,
        call: &Call<'_>,
        id: TaskId,
        authority: &TaskAuthority,
        admins: Option<AdminAction>,
        now: Timestamp,
    ) -> Result<Owner, BrokerError> {
        call.check_open()?;
        let not_found = || BrokerError::NotFound("task");
        match authority {
            TaskAuthority::Handle(handle, evidence) => {
                let proof = dpop::of_request(evidence, now).map_err(|error| {
                    self.refuse_evidence(evidence, AttestFailure::of_proof(error))
                })?;
                if let Some(proof) = &proof {
                    call.proved(proof.one_time);
                }
                let digest = token_digest(handle.expose_secret());
                let certificate = certificate::key(evidence);
                let proved = proof.as_ref().map(|proof| &proof.key);
                let proved = proved.or(certificate.as_ref());
                let found = self.store().hold_task(id, now).await?.filter(|held| {
                    let task = &held.view.task;
                    digests_equal(&digest, &task.handle_digest) && key_fits(task, proved)
                });
                let task = found.ok_or_else(not_found)?;
                call.acts_as(RequestCaller::by_handle(&task.view.task));
                if admins.is_none() {
                    call.acts_for(id);
                }
                Ok(Owner {
                    task,
                    by: "handle".into(),
                })
            }
            TaskAuthority::Owner(_) => {
                let caller = self.caller(call).await?;
                // To end a task is not to keep it alive, nor to lend what it has.
                let admin = match admins {
                    Some(action) => self.may(&caller, action)?,
                    None => false,
                };
                // Without an instance every run of the workload looks alike: the handle is needed.
                let found = self.store().hold_task(id, now).await?.filter(|held| {
                    let task = &held.view.task;
                    let own = task.owner_instance.is_some()
                        && caller.owns(&task.owner, task.owner_instance.as_ref());
                    own || admin
                });
                let task = found.ok_or_else(not_found)?;
                if admins.is_none() {
                    call.acts_for(id);
                }
                Ok(Owner {
                    task,
                    by: caller.name(),
                })
            }
        }
    }

    /// What keeps a task alive or lends what it has needs an owner who could still be attested, here
    /// and above. A handle alone may end a task whose attestor was removed, and nothing more.
    fn check_owners(&self, task: &TaskView) -> Result<(), BrokerError> {
        let active = self.active()?;
        let mut tasks = std::iter::once(&task.task).chain(&task.above);
        if tasks.all(|task| active.attests(task)) {
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
    TaskReport {
        task,
        state: chain.state_at(now),
        ended_at: chain.ended(now).map(|ending| ending.at),
    }
}
