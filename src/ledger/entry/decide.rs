//! A decision on a request for a credential or a task, with the rows of a permit.
//!
//! Every decision is a permit of a credential, a permit of a task without one, or a refusal
//! ([`Decided`]). The `…_leaf` functions write the leaf, and `check` repeats the facts under the
//! lock.
//!
//! The rule: a permit is recorded only if every fact that it depends on is still true under the
//! lock; otherwise the decision is recorded as a refusal, or made again. A blocked caller learns
//! nothing else. Outcomes: `Stale` if the generation or a cutoff came in between, `RetryTaken` if
//! another request used the `Idempotency-Key`, `Refused` for a task or budget that ended. None of
//! these is an error. `broker::issuance` and `broker::tasks` make the entries; `permit` holds the
//! rows, and `locked` the state.

use super::permit::{CredentialPlan, OpenPlan, Overtaken, PermitPlan, SessionPlan, TaskPermit};
use super::{Blocked, Draft, EntryKind, EntryOpenings, RequestCaller};
use crate::domain::cutoff::{Selector, True};
use crate::domain::decision::{Observed, Outcome as PolicyOutcome, Refusal, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::leaf::{Commitment, DecisionLeaf, Event, Opening, TaskLeaf};
use crate::domain::workload::{Identity, Instance};
use crate::ids::{DecisionId, TaskId};
use crate::ledger::cutoffs::CutoffTarget;
use crate::ledger::locked::LockedState;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::store::append::Needs;

/// A decision on a request for a credential or a task.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Decide {
    pub id: DecisionId,
    /// The size of the log when the request began: a cutoff that came since then refuses it.
    pub basis: u64,
    /// The identity of the caller.
    pub identity: Identity,
    /// The run of the caller.
    pub instance: Option<Instance>,
    /// The attestor that verified the caller.
    pub attestor: String,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The outcome under the policies that only observe.
    pub observed: Option<Box<Observed>>,
    /// The commitment to the evaluation's input, and its opening.
    pub input: (Commitment, Opening),
    /// The commitment to the purpose, and its opening.
    pub purpose: Option<(Commitment, Opening)>,
    pub decided: Decided,
}

/// The outcome of a decision, with everything that is recorded of it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Decided {
    Permit(PermitPlan),
    Refuse(Box<RefusalRecord>),
}

/// A recorded refusal.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct RefusalRecord {
    pub refusal: Refusal,
    /// The resource, if the request named one that exists.
    pub resource: Option<String>,
    /// The task and its parents, nearest first, if the request was admitted to one.
    pub task: Option<(TaskId, Vec<TaskId>)>,
}

/// The refusal of a blocked caller, which may learn nothing more.
#[must_use]
pub(crate) fn blocked_caller() -> Refusal {
    Refusal::new(RefusalCode::Blocked, "a revocation blocks this caller")
}

impl EntryKind for Decide {
    fn event(&self) -> Option<Event> {
        Some(match &self.decided {
            Decided::Permit(PermitPlan::Credential(plan)) => {
                Event::Decision(Box::new(self.credential_leaf(plan)))
            }
            Decided::Permit(PermitPlan::Task(permit)) => {
                Event::TaskOpened(Box::new(self.task_leaf(permit)))
            }
            Decided::Refuse(record) => Event::Decision(Box::new(self.refusal_leaf(record))),
        })
    }

    fn subject(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    fn needs_free_space(&self) -> bool {
        true
    }

    fn decision(&self) -> Option<DecisionId> {
        Some(self.id)
    }

    fn openings(&self) -> EntryOpenings<'_> {
        EntryOpenings {
            input: Some(&self.input.1),
            purpose: self.purpose.as_ref().map(|(_, opening)| opening),
        }
    }

    fn need(&self, needs: &mut Needs) {
        match &self.decided {
            Decided::Permit(plan) => plan.need(needs),
            Decided::Refuse(_) => {}
        }
    }

    /// A decision is judged by its own identity when it is settled, and recorded as a refusal.
    fn blocked(&self, _by: &RequestCaller, _state: &LockedState<'_>) -> Option<Blocked> {
        None
    }

    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError> {
        if state.generation() != Some(self.generation) {
            return Ok(Outcome::Stale);
        }
        let is_blocked = state.is_blocked(&self.identity, &self.attestor);
        match &self.decided {
            Decided::Refuse(record) => {
                // A blocked caller learns that it is blocked, and no result of policy.
                if is_blocked && record.refusal.code != RefusalCode::Blocked {
                    return Ok(Outcome::Stale);
                }
                Ok(Outcome::recorded())
            }
            Decided::Permit(plan) => {
                if is_blocked {
                    // The leaf would reveal which policies observe. Decided again, the request is
                    // refused before policy.
                    if self.observed.is_some() {
                        return Ok(Outcome::Stale);
                    }
                    return Ok(self.refused(plan, blocked_caller()));
                }
                Ok(match self.check(plan, state) {
                    Ok(()) => Outcome::Recorded(Draft::Prepared(plan.apply(state))),
                    Err(Overtaken::Stale) => Outcome::Stale,
                    Err(Overtaken::RetryTaken(facts)) => Outcome::RetryTaken(facts),
                    Err(Overtaken::Refused(refusal)) => self.refused(plan, refusal),
                })
            }
        }
    }
}

/// Leaves.
impl Decide {
    /// Records the permit as a refusal.
    fn refused(&self, plan: &PermitPlan, refusal: Refusal) -> Outcome<Draft> {
        let record = RefusalRecord {
            refusal: refusal.clone(),
            resource: plan.session().map(|session| session.resource.clone()),
            task: Some(plan.task_path()),
        };
        let event = Event::Decision(Box::new(self.refusal_leaf(&record)));
        Outcome::Refused(Draft::Other(Box::new(event)), refusal)
    }

    fn purpose_commitment(&self) -> Option<Commitment> {
        let purpose = self.purpose.as_ref();
        purpose.map(|(commitment, _)| commitment.clone())
    }

    fn refusal_leaf(&self, record: &RefusalRecord) -> DecisionLeaf {
        let (task, task_parents) = record.task.clone().unzip();
        DecisionLeaf {
            decision: self.id,
            outcome: record.refusal.outcome(),
            refusal: Some(record.refusal.code),
            workload: self.identity.clone(),
            instance: self.instance.clone(),
            attestor: self.attestor.clone(),
            resource: record.resource.clone(),
            task,
            task_parents: task_parents.unwrap_or_default(),
            session: None,
            parent_session: None,
            delegators: Vec::new(),
            supersedes: None,
            grant: None,
            audience: None,
            cnf: None,
            expires_at: None,
            minter: None,
            kid: None,
            issuer: None,
            first_status_list: None,
            revocability: None,
            generation: self.generation,
            // The leaf commits to them instead.
            policies: Vec::new(),
            observed: self.observed.clone(),
            input: self.input.0.clone(),
            purpose: self.purpose_commitment(),
        }
    }

    fn credential_leaf(&self, plan: &CredentialPlan) -> DecisionLeaf {
        let SessionPlan {
            session,
            delegators,
            token,
            ..
        } = &plan.session;
        let replaced = plan
            .retry
            .as_ref()
            .and_then(|retry| retry.replaces.as_ref());
        DecisionLeaf {
            decision: self.id,
            outcome: PolicyOutcome::Permit,
            refusal: None,
            workload: self.identity.clone(),
            instance: self.instance.clone(),
            attestor: self.attestor.clone(),
            resource: Some(session.resource.clone()),
            task: Some(plan.task.id()),
            task_parents: plan.task.parents().to_vec(),
            session: Some(session.id),
            parent_session: session.parent,
            delegators: delegators.clone(),
            supersedes: replaced.map(|facts| facts.session),
            grant: Some(session.grant.clone()),
            audience: Some(session.audience.clone()),
            cnf: session.key.clone(),
            expires_at: Some(session.expires_at),
            minter: Some(session.minter.as_str().to_owned()),
            kid: Some(session.kid.clone()),
            issuer: token.as_ref().map(|token| token.issuer.clone()),
            first_status_list: token.as_ref().and_then(|token| token.first_status_list),
            revocability: Some(session.revocability),
            generation: self.generation,
            policies: session.policies.clone(),
            observed: self.observed.clone(),
            input: self.input.0.clone(),
            purpose: self.purpose_commitment(),
        }
    }

    fn task_leaf(&self, permit: &TaskPermit) -> TaskLeaf {
        let OpenPlan { task, parents, .. } = &permit.open;
        TaskLeaf {
            decision: self.id,
            task: task.id,
            task_type: task.task_type.clone(),
            task_parents: parents.clone(),
            workload: self.identity.clone(),
            instance: self.instance.clone(),
            attestor: self.attestor.clone(),
            deadline: task.deadline,
            generation: self.generation,
            policies: permit.policies.clone(),
            input: self.input.0.clone(),
            purpose: self.purpose_commitment(),
        }
    }
}

/// Checks under the lock.
impl Decide {
    /// Whether every fact that a permit depends on still holds.
    fn check(&self, plan: &PermitPlan, state: &LockedState<'_>) -> Result<(), Overtaken> {
        if let Some(retry) = plan.retry() {
            retry.check(state)?;
        }
        state.check_cutoffs(&self.cutoff_target(plan))?;
        if plan
            .under()
            .is_some_and(|task| state.chain_is_blocked(task))
        {
            return Err(Overtaken::Refused(Refusal::new(
                RefusalCode::Blocked,
                "a revocation blocks the task or one of its ancestors",
            )));
        }
        plan.check(state)
    }

    /// The permit in the form that cutoffs match.
    fn cutoff_target(&self, plan: &PermitPlan) -> CutoffTarget {
        let (task, parents) = plan.task_path();
        let session = plan.session();
        let mut selectors = vec![
            Selector::All(True),
            Selector::Workload(self.identity.clone()),
            Selector::Attestor(self.attestor.clone()),
            Selector::Generation(self.generation),
        ];
        selectors.extend(session.map(|own| Selector::Resource(own.resource.clone())));
        selectors.extend(plan.policies().iter().cloned().map(Selector::Policy));
        selectors.push(Selector::Task(task));
        selectors.extend(parents.into_iter().map(Selector::Task));
        selectors.extend(session.map(|own| Selector::SigningKey(own.kid.clone())));
        CutoffTarget {
            selectors,
            basis: self.basis,
            derived: session.is_some_and(|own| own.parent.is_some()),
        }
    }
}
