//! Evaluates and records decisions, in the same way for a credential and for a task without one.
//!
//! `DecisionContext` holds the fixed facts of a request. `Evaluated` is its evaluation, a permit or
//! a refusal, each with all data that is recorded. `record_permit` and `record_refusal` append it.
//! The rule: each decision is a leaf before its caller learns of it. The ledger makes the final
//! decision under its lock: it can record a permit as a refusal, or require that the request be
//! decided again.
//!
//! Failures: `Denied` is a refusal that is in the ledger. An identity that has spent its budget of
//! denials gets `RateLimited`, and its refusal is not recorded. `Superseded` means that the handler
//! runs again; `Replayed` and `InProgress` come from used evidence and a concurrent retry; anything
//! else is `FailClosed`. `issue`, `mint` and `tasks::open` call this module. Policy's answer comes
//! from `policy`; `ledger::denials` keeps the budget.

use tracing::{info, warn};

use super::Issuance;
use crate::broker::access::Requester;
use crate::broker::active::Active;
use crate::broker::error::{BrokerError, Denied, Exceeded};
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Observed, Outcome, Permitted, Refusal};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::workload::{OneTime, Workload};
use crate::ids::{DecisionId, TaskId};
use crate::ledger::denials::DenialBudget;
use crate::ledger::entry::{Decide, Decided, Entry, PermitPlan, RefusalRecord};
use crate::ledger::{Appended, Recorded};
use crate::merkle::Receipt;
use crate::metrics::RateLimit;
use crate::policy::record;

/// The facts that do not change while one request is decided.
pub(in crate::broker) struct DecisionContext<'a> {
    pub(in crate::broker) active: &'a Active,
    pub(in crate::broker) requester: &'a Requester<'a>,
    pub(in crate::broker) workload: &'a Workload,
    /// The size of the log when the request began.
    pub(in crate::broker) basis: u64,
    pub(in crate::broker) now: Timestamp,
}

/// The evaluation of a request. `P` holds all data that a permit needs to be recorded and carried
/// out.
pub(in crate::broker) enum Evaluated<P> {
    Permit(P),
    Refuse(Box<RefusedRequest>),
}

/// A refused request, with all data that is recorded of it.
pub(in crate::broker) struct RefusedRequest {
    pub(in crate::broker) refusal: Refusal,
    pub(in crate::broker) evaluation: Evaluation,
    /// The resource. `None` if the request named none that exists.
    pub(in crate::broker) resource: Option<String>,
    pub(in crate::broker) purpose: Option<String>,
    /// The task and its ancestors, nearest first. `None` if the request was not admitted to a task.
    pub(in crate::broker) task: Option<(TaskId, Vec<TaskId>)>,
    pub(in crate::broker) evidence: EvidenceUse,
}

impl RefusedRequest {
    /// A request that is refused without an evaluation of policy.
    pub(in crate::broker) fn before_policy(
        refusal: Refusal,
        active: &Active,
        resource: Option<String>,
        purpose: Option<String>,
    ) -> Self {
        let (_, evaluation) = Evaluation::of(Decision {
            input: record::before_policy(refusal.code),
            verdict: Err(refusal.clone()),
            policies: Vec::new(),
            generation: active.digest(),
            observed: None,
            reused: false,
        });
        Self {
            refusal,
            evaluation,
            resource,
            purpose,
            task: None,
            evidence: EvidenceUse::default(),
        }
    }
}

/// The part of an evaluation that is recorded for permits and refusals alike.
pub(in crate::broker) struct Evaluation {
    /// The policies that determined the verdict. The leaf of a refusal only commits to them.
    pub(in crate::broker) policies: Vec<String>,
    pub(in crate::broker) generation: GenerationDigest,
    pub(in crate::broker) observed: Option<Box<Observed>>,
    /// The bytes that the leaf commits to.
    committed: Vec<u8>,
}

impl Evaluation {
    /// Splits a decision of policy into its verdict and the remaining data.
    pub(in crate::broker) fn of(decision: Decision) -> (Result<Permitted, Refusal>, Self) {
        let committed = record::committed(&decision);
        let Decision {
            verdict,
            policies,
            generation,
            input: _,
            observed,
            reused: _,
        } = decision;
        let evaluation = Self {
            policies,
            generation,
            observed,
            committed,
        };
        (verdict, evaluation)
    }
}

/// The way in which an admitted request uses its evidence.
#[derive(Default)]
pub(in crate::broker) struct EvidenceUse {
    /// One-time ids that are used up in addition to those of the evidence.
    pub(in crate::broker) one_time: Vec<OneTime>,
    /// The binding with which the evidence may be used again. `None` if it may not.
    pub(in crate::broker) binding: Option<[u8; 32]>,
    /// Whether earlier use of the evidence is refused even with the same binding.
    pub(in crate::broker) must_be_new: bool,
}

impl EvidenceUse {
    fn adjust(&self, one_time: &mut Vec<OneTime>) {
        if let Some(evidence) = one_time.first_mut() {
            evidence.binding = self.binding.or(evidence.binding);
            evidence.must_be_new = self.must_be_new;
        }
        one_time.extend(self.one_time.iter().copied());
    }
}

/// A decision that is in the ledger.
enum OnRecord {
    AsDecided(Recorded),
    /// A permit that the ledger recorded as a refusal.
    Refused(Recorded, Refusal),
}

impl Issuance {
    /// Records a permit. The error is the refusal if the ledger recorded one instead.
    pub(in crate::broker) async fn record_permit(
        &self,
        context: &DecisionContext<'_>,
        id: DecisionId,
        evaluation: &Evaluation,
        purpose: Option<&str>,
        plan: PermitPlan,
        evidence: &EvidenceUse,
    ) -> Result<Recorded, BrokerError> {
        let permit = Decided::Permit(plan);
        let decide = self.decide_entry(context, id, evaluation, purpose, permit)?;
        match self.append_decision(context, decide, evidence).await? {
            OnRecord::AsDecided(recorded) => {
                self.core.metrics().decision(Outcome::Permit);
                self.report_observed(id, evaluation, Outcome::Permit);
                Ok(recorded)
            }
            OnRecord::Refused(recorded, refusal) => {
                self.report_observed(id, evaluation, Outcome::Permit);
                let denied = self.denied(id, evaluation, refusal, recorded.receipt);
                Err(BrokerError::Denied(Box::new(denied)))
            }
        }
    }

    /// Records a refusal, if the identity's budget of denials allows it.
    pub(in crate::broker) async fn record_refusal(
        &self,
        context: &DecisionContext<'_>,
        refused: &RefusedRequest,
    ) -> Result<Denied, BrokerError> {
        self.spend_denial(context)?;
        let decide = self.refusal_entry(context, refused)?;
        let id = decide.id;
        let appended = self.append_decision(context, decide, &refused.evidence);
        let (recorded, refusal) = match appended.await? {
            OnRecord::AsDecided(recorded) => (recorded, refused.refusal.clone()),
            OnRecord::Refused(recorded, refusal) => (recorded, refusal),
        };
        Ok(self.refusal_on_record(id, refused, refusal, recorded.receipt))
    }

    /// Logs and counts a refusal that is in the ledger.
    pub(super) fn refusal_on_record(
        &self,
        id: DecisionId,
        refused: &RefusedRequest,
        refusal: Refusal,
        receipt: Receipt,
    ) -> Denied {
        self.report_observed(id, &refused.evaluation, refused.refusal.outcome());
        self.denied(id, &refused.evaluation, refusal, receipt)
    }

    fn denied(
        &self,
        decision: DecisionId,
        evaluation: &Evaluation,
        refusal: Refusal,
        receipt: Receipt,
    ) -> Denied {
        let outcome = refusal.outcome();
        self.core.metrics().decision(outcome);
        self.core.metrics().refusal(refusal.code);
        info!(%decision, outcome = outcome.as_str(), code = refusal.code.as_str(), "refused");
        Denied {
            decision,
            outcome,
            refusal,
            generation: evaluation.generation,
            observed: evaluation.observed.clone(),
            receipt,
        }
    }

    /// Logs and counts the outcome that observing policies would have caused.
    fn report_observed(&self, id: DecisionId, evaluation: &Evaluation, outcome: Outcome) {
        let Some(observed) = &evaluation.observed else {
            return;
        };
        for policy in &observed.policies {
            let name = &policy.policy;
            self.core
                .metrics()
                .observed(name, outcome, observed.outcome_if_enforced);
        }
        warn!(decision = %id, outcome = outcome.as_str(), %observed, "observed, not enforced");
    }

    pub(super) fn spend_denial(&self, context: &DecisionContext<'_>) -> Result<(), BrokerError> {
        let DecisionContext { workload, now, .. } = context;
        let identity = workload.identity.as_str();
        let limits = context.active.limits();
        let budget = self
            .denials
            .count(&workload.attestor, identity, &limits, *now);
        match budget {
            DenialBudget::Leaf => Ok(()),
            DenialBudget::Spent { until } => {
                self.core.metrics().rate_limited(RateLimit::IdentityDenials);
                Err(BrokerError::RateLimited(Exceeded {
                    policy: "denials",
                    quota: limits.denials_per_identity,
                    window_seconds: limits.denial_window_seconds,
                    retry_seconds: now.seconds_until(until) + 1,
                }))
            }
        }
    }

    pub(super) fn refusal_entry(
        &self,
        context: &DecisionContext<'_>,
        refused: &RefusedRequest,
    ) -> Result<Decide, BrokerError> {
        let id = DecisionId::new(context.now, self.core.random())?;
        let record = Decided::Refuse(Box::new(RefusalRecord {
            refusal: refused.refusal.clone(),
            resource: refused.resource.clone(),
            task: refused.task.clone(),
        }));
        let purpose = refused.purpose.as_deref();
        self.decide_entry(context, id, &refused.evaluation, purpose, record)
    }

    fn decide_entry(
        &self,
        context: &DecisionContext<'_>,
        id: DecisionId,
        evaluation: &Evaluation,
        purpose: Option<&str>,
        decided: Decided,
    ) -> Result<Decide, BrokerError> {
        let purpose = match purpose {
            Some(purpose) => Some(self.core.commitment(purpose.as_bytes().to_vec())?),
            None => None,
        };
        let workload = context.workload;
        Ok(Decide {
            id,
            basis: context.basis,
            identity: workload.identity.clone(),
            instance: workload.instance.clone(),
            attestor: workload.attestor.clone(),
            generation: evaluation.generation,
            observed: evaluation.observed.clone(),
            input: self.core.commitment(evaluation.committed.clone())?,
            purpose,
            decided,
        })
    }

    async fn append_decision(
        &self,
        context: &DecisionContext<'_>,
        decide: Decide,
        evidence: &EvidenceUse,
    ) -> Result<OnRecord, BrokerError> {
        let entry = Entry::Decide(Box::new(decide));
        let adjust = |one_time: &mut Vec<OneTime>| evidence.adjust(one_time);
        let appended = context.requester.append_with(entry, context.now, adjust);
        match appended.await? {
            Appended::Recorded(recorded) => Ok(OnRecord::AsDecided(recorded)),
            Appended::Refused(recorded, refusal) => Ok(OnRecord::Refused(recorded, refusal)),
            Appended::Stale | Appended::Superseded => Err(BrokerError::Superseded),
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            Appended::RetryTaken(_) => Err(BrokerError::InProgress),
            Appended::Unchanged | Appended::Blocked(_) | Appended::Forgotten => {
                Err(BrokerError::ledger("the decision was not recorded"))
            }
        }
    }
}
