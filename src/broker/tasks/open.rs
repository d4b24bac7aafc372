//! Opens a task without a credential.
//!
//! `open_task` follows the order of `issuance::issue`: read the log's size, verify the evidence,
//! admit (`admit_task`), decide (`evaluate_task`), and commit. There is nothing to mint.
//!
//! The rule: the task exists only from the commit on, and its handle is released only with the
//! receipt of that leaf. Failures: a refusal by admission or policy is recorded and returned as
//! `Denied`. Errors without a decision, such as `NotFound` for a delegation token, are not
//! recorded. The work does not continue if the caller disconnects; a task that was committed then
//! is open without a known handle until it expires. `http::tasks` calls this module; it uses the
//! admission and the records of `issuance`.

use tracing::instrument;

use super::Tasks;
use crate::attest::Evidence;
use crate::broker::access::Unverified;
use crate::broker::error::BrokerError;
use crate::broker::issuance::{
    AdmittedTask, DecisionContext, DecisionSummary, Evaluated, Evaluation, IssuedTask,
    RefusedRequest, Unadmitted, issued_task,
};
use crate::domain::decision::Outcome;
use crate::domain::request::NewTask;
use crate::ids::DecisionId;
use crate::ledger::blocked_caller;
use crate::ledger::entry::{OpenPlan, PermitPlan, TaskPermit};
use crate::merkle::Receipt;

/// A task that was opened without a credential.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Opened {
    /// The task, with its handle.
    pub task: IssuedTask,
    pub decision: DecisionSummary,
    /// The proof that the decision is in the ledger.
    pub receipt: Receipt,
}

/// A permitted request for a task, with all data that is recorded and released.
struct TaskPermitted {
    evaluation: Evaluation,
    purpose: Option<String>,
    task: AdmittedTask<OpenPlan>,
}

impl Tasks {
    /// Opens a task without a credential.
    #[instrument(skip_all)]
    pub async fn open_task(
        &self,
        evidence: &Evidence,
        new: NewTask,
    ) -> Result<Opened, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.open_task_by(unverified, new.clone()))
            .await
    }

    async fn open_task_by(
        &self,
        unverified: Unverified<'_>,
        new: NewTask,
    ) -> Result<Opened, BrokerError> {
        let basis = self.core.ledger().basis();
        let now = self.core.now();
        let active = self.core.active()?;
        let requester = unverified.request(&active, now).await?;
        let context = DecisionContext {
            active: &active,
            requester: &requester,
            workload: requester.workload(),
            basis,
            now,
        };
        let permit = match self.evaluate_task(&context, new).await? {
            Evaluated::Permit(permit) => *permit,
            Evaluated::Refuse(refused) => {
                let denied = self.issuance.record_refusal(&context, &refused).await?;
                return Err(BrokerError::Denied(Box::new(denied)));
            }
        };
        let TaskPermitted {
            evaluation,
            purpose,
            task,
        } = permit;
        let id = DecisionId::new(now, self.core.random())?;
        let plan = PermitPlan::Task(Box::new(TaskPermit {
            open: task.plan.clone(),
            policies: evaluation.policies.clone(),
        }));
        let purpose = purpose.as_deref();
        let recorded =
            self.issuance
                .record_permit(&context, id, &evaluation, purpose, plan, &task.evidence);
        let recorded = recorded.await?;
        Ok(Opened {
            task: issued_task(task.plan.task.id, task),
            decision: DecisionSummary {
                id,
                outcome: Outcome::Permit,
                policies: evaluation.policies,
                generation: evaluation.generation,
                observed: evaluation.observed,
            },
            receipt: recorded.receipt,
        })
    }

    /// Admits the request and decides.
    async fn evaluate_task(
        &self,
        context: &DecisionContext<'_>,
        new: NewTask,
    ) -> Result<Evaluated<Box<TaskPermitted>>, BrokerError> {
        let active = context.active;
        let purpose = new.purpose.clone();
        let task = match self.admit_task(context, new).await {
            Ok(task) => task,
            Err(unadmitted) => {
                let refusal = unadmitted.refusal()?;
                let refused = RefusedRequest::before_policy(refusal, active, None, purpose);
                return Ok(Evaluated::Refuse(Box::new(refused)));
            }
        };
        let roles = self
            .access
            .roles_asked_for(active, &context.workload.identity)
            .await?;
        let decision = active.policy().decide_open_task(
            context.workload,
            roles.as_ref(),
            task.facts.clone(),
            context.now,
        );
        self.core.metrics().evaluation(decision.reused);
        let (verdict, evaluation) = Evaluation::of(decision);
        Ok(match verdict {
            Ok(_) => Evaluated::Permit(Box::new(TaskPermitted {
                evaluation,
                purpose,
                task,
            })),
            Err(refusal) => Evaluated::Refuse(Box::new(RefusedRequest {
                refusal,
                evaluation,
                resource: None,
                purpose,
                task: Some(task.plan.path()),
                evidence: task.evidence,
            })),
        })
    }

    async fn admit_task(
        &self,
        context: &DecisionContext<'_>,
        new: NewTask,
    ) -> Result<AdmittedTask<OpenPlan>, Unadmitted> {
        if context.requester.is_blocked().await? {
            return Err(blocked_caller().into());
        }
        let open = context.active.catalog().resolve_task(new)?;
        let task = self.issuance.admit_new(context, &open).await?;
        self.issuance
            .check_owners_above(context.active, &task.plan.parents)
            .await?;
        Ok(task)
    }
}
