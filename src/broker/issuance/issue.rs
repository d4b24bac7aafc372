//! `POST /v1/credentials`, in order: verify the evidence, resolve the request, admit it to a task,
//! decide, commit, and only then mint, activate and release.
//!
//! Each step returns a value that the next step requires. `CredentialPermit` is a request that
//! policy permits and that is not committed yet. Only the commit returns a [`Permit`], and a minter
//! accepts only that one. A refusal is also committed, before its caller gets `Denied`. All steps
//! run in a tracked async task. If the caller disconnects or times out, the work continues. A
//! credential whose caller no longer waits for it (`Unclaimed`) is ended at once.
//!
//! Failures: a refusal is `Denied` with its receipt. If a resource has no key that may sign, or the
//! task ended without a result, the caller gets `FailClosed`, and no credential is released. If
//! minting fails, `mint::not_made` ends the session and chooses the error. The neighbours: `access`
//! verifies, `admit` finds the task, `policy` decides, `decisions` records, `mint` mints. A local
//! minter's session is active at its commit; an external one starts as `minting` under a lease,
//! because its back end must first answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use secrecy::SecretString;
use tracing::instrument;

use super::Issuance;
use super::admit::Admission;
use super::admitted::{AdmittedTask, Unadmitted};
use super::decisions::{DecisionContext, Evaluated, Evaluation, RefusedRequest};
use crate::attest::Evidence;
use crate::broker::access::Unverified;
use crate::broker::error::BrokerError;
use crate::broker::minters::minter_of;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Observed, Outcome, Permitted, Refusal, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::permit::Permit;
use crate::domain::request::{CredentialRequest, ResolvedRequest};
use crate::domain::revocability::Revocability;
use crate::domain::session::{Session, SessionState};
use crate::domain::task::{Task, TaskState};
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::ledger::blocked_caller;
use crate::ledger::entry::{
    CredentialPlan, OpenPlan, PermitPlan, SessionPlan, TaskPlan, TokenPlan,
};
use crate::merkle::Receipt;
use crate::metrics::Stage;
use crate::mint::{Credential, MintMode};
use crate::policy::{Bounds, Question};
use crate::store::append::MintLease;

/// A released credential, with its session, task, decision and receipt.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Issued {
    /// The secret. The broker keeps no other copy.
    pub credential: Credential,
    pub session: Session,
    pub task: IssuedTask,
    pub decision: DecisionSummary,
    /// The receipt of the decision's leaf.
    pub receipt: Receipt,
}

/// The task of a credential, as the answer names it.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct IssuedTask {
    pub id: TaskId,
    pub task_type: String,
    pub state: TaskState,
    /// The latest end of the task.
    pub deadline: Timestamp,
    /// Seconds without a heartbeat after which the task expires. `None` if it needs no heartbeats.
    pub heartbeat_seconds: Option<u64>,
    /// The new handle of the task. `None` if the task keeps the handle that it has.
    pub handle: Option<SecretString>,
}

/// The decision that permitted the request, as its subject may read it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DecisionSummary {
    pub id: DecisionId,
    pub outcome: Outcome,
    /// The ids of the policies that determined the decision.
    pub policies: Vec<String>,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The effect that observing policies would have had. `None` if there are none.
    pub observed: Option<Box<Observed>>,
}

/// A permitted request for a credential, with all data that is recorded and released.
pub(super) struct CredentialPermit {
    terms: Permitted,
    evaluation: Evaluation,
    pub(super) request: ResolvedRequest,
    admission: Admission,
}

impl CredentialPermit {
    /// The task that the permit opens and that is lost without the answer, which alone holds its
    /// handle. `None` if the permit opens no task, or if the request has an `Idempotency-Key`: a
    /// retry with that key then gets a new handle for the task.
    pub(super) fn opens(&self) -> Option<&Task> {
        match (&self.admission.task.plan, &self.admission.retry) {
            (TaskPlan::Open(OpenPlan { task, .. }), None) => Some(task),
            (TaskPlan::Open(_) | TaskPlan::Join(_), _) => None,
        }
    }

    /// Whether its session supersedes an earlier one.
    fn supersedes(&self) -> bool {
        let retry = self.admission.retry.as_ref();
        retry.is_some_and(|retry| retry.replaces.is_some())
    }
}

/// A credential that the caller has not received yet. Dropping it before it is claimed ends the
/// credential: its caller has disconnected.
struct Unclaimed {
    issuance: Arc<Issuance>,
    issued: Option<Issued>,
}

impl Unclaimed {
    fn new(issuance: Arc<Issuance>, issued: Issued) -> Self {
        Self {
            issuance,
            issued: Some(issued),
        }
    }

    fn claim(mut self) -> Result<Issued, BrokerError> {
        self.issued.take().ok_or_else(lost)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(unclaimed) = self.issued.take() {
            let issuance = Arc::clone(&self.issuance);
            let ending = async move { issuance.end_unclaimed(unclaimed).await };
            // Dropping the handle does not stop the work.
            drop(self.issuance.core.shutdown().spawn("unclaimed", ending));
        }
    }
}

fn lost() -> BrokerError {
    BrokerError::bug("the request ended without a result; try again")
}

impl Issuance {
    /// Answers a request for a credential.
    #[instrument(skip_all)]
    pub async fn issue(
        self: &Arc<Self>,
        evidence: Evidence,
        request: CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let issuance = Arc::clone(self);
        // Dropping the handle does not stop the work.
        drop(self.core.shutdown().spawn("issue", async move {
            let result = issuance.issue_tracked(&evidence, &request).await;
            // If the caller has disconnected, `send` returns the result, which is then dropped.
            drop(answer.send(result.map(|issued| Unclaimed::new(issuance, issued))));
        }));
        match answered.await {
            Ok(result) => result.and_then(Unclaimed::claim),
            Err(_) => Err(lost()),
        }
    }

    async fn issue_tracked(
        &self,
        evidence: &Evidence,
        request: &CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        let call = self.access.call(evidence);
        // `run` calls the handler again if its premises changed, so each run gets its own copy.
        Box::pin(call.run(|unverified| self.issue_by(unverified, request.clone()))).await
    }

    async fn issue_by(
        &self,
        unverified: Unverified<'_>,
        request: CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        // Read the size of the log before anything else. The ledger compares it under its lock, and
        // refuses the request if a cutoff in a later leaf matches it.
        let basis = self.core.ledger().basis();
        let now = self.core.now();
        let active = self.core.active()?;

        // Verifies the evidence.
        let appraising = Instant::now();
        let requester = unverified.request(&active, now).await?;
        self.core
            .metrics()
            .stage(Stage::Appraise, appraising.elapsed());

        let context = DecisionContext {
            active: &active,
            requester: &requester,
            workload: requester.workload(),
            basis,
            now,
        };
        let permit = match self.evaluate(&context, request).await? {
            Evaluated::Permit(permit) => *permit,
            Evaluated::Refuse(refused) => {
                let committing = Instant::now();
                let denied = self.record_refusal(&context, &refused).await?;
                self.core
                    .metrics()
                    .stage(Stage::Commit, committing.elapsed());
                return Err(BrokerError::Denied(Box::new(denied)));
            }
        };
        let (to_mint, receipt) = self.commit(&context, &permit).await?;
        match self.mint_and_activate(to_mint).await {
            Ok((credential, session)) => Ok(released(credential, session, permit, receipt)),
            Err(failed) => Err(self.not_made(&context, &permit, failed).await),
        }
    }

    /// Refuses a blocked caller, resolves the request, admits it to a task, and decides.
    async fn evaluate(
        &self,
        context: &DecisionContext<'_>,
        request: CredentialRequest,
    ) -> Result<Evaluated<Box<CredentialPermit>>, BrokerError> {
        let active = context.active;
        let named = active.catalog().select(&request.resource);
        let resource = named.map(|resource| resource.name.clone());
        let refuse = |refusal: Refusal, purpose: Option<String>| {
            let refused = RefusedRequest::before_policy(refusal, active, resource.clone(), purpose);
            Ok(Evaluated::Refuse(Box::new(refused)))
        };
        if context.requester.is_blocked().await? {
            return refuse(blocked_caller(), None);
        }
        let resolving = Instant::now();
        let request = match active.catalog().resolve(request) {
            Ok(request) => request,
            Err(refusal) => return refuse(refusal, None),
        };
        self.core
            .metrics()
            .stage(Stage::Resolve, resolving.elapsed());
        let purpose = request.task.purpose().map(ToOwned::to_owned);
        let admission = match self.admit_mintable(context, &request).await {
            Ok(admission) => admission,
            // A refusal is recorded; any other error fails the call.
            Err(unadmitted) => return refuse(unadmitted.refusal()?, purpose),
        };
        let deciding = Instant::now();
        let roles = self
            .access
            .roles_asked_for(active, &context.workload.identity)
            .await?;
        let minter = minter_of(&self.minters, request.resource.kind.minter())?;
        let revocability = minter.revocability(&request.resource);
        let decision = decide(context, roles.as_ref(), &request, revocability, &admission);
        self.core.metrics().stage(Stage::Decide, deciding.elapsed());
        self.core.metrics().evaluation(decision.reused);
        let (verdict, evaluation) = Evaluation::of(decision);
        Ok(match verdict {
            Ok(terms) => Evaluated::Permit(Box::new(CredentialPermit {
                terms,
                evaluation,
                request,
                admission,
            })),
            Err(refusal) => Evaluated::Refuse(Box::new(RefusedRequest {
                refusal,
                evaluation,
                resource,
                purpose,
                task: Some(admission.task.plan.path()),
                evidence: admission.task.evidence,
            })),
        })
    }

    /// Admits a request to its task. Refuses it if its minter could not make or end the credential.
    async fn admit_mintable(
        &self,
        context: &DecisionContext<'_>,
        request: &ResolvedRequest,
    ) -> Result<Admission, Unadmitted> {
        let resource = &request.resource;
        let minter = minter_of(&self.minters, resource.kind.minter())?;
        if let Err(why) = minter.fits(resource, &request.grant) {
            return Err(Refusal::new(RefusalCode::TooManyRights, why).into());
        }
        self.deny_lists
            .ensure_revocation_capacity(resource, context.now)
            .await?;
        let admitting = Instant::now();
        let admission = self.admit(context, request).await?;
        self.core.metrics().stage(Stage::Admit, admitting.elapsed());
        Ok(admission)
    }

    /// Records the permit. Minting requires the [`Permit`] that this returns.
    async fn commit(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
    ) -> Result<(Permit, Receipt), BrokerError> {
        let committing = Instant::now();
        let id = DecisionId::new(context.now, self.core.random())?;
        let plan = CredentialPlan {
            session: self.session_plan(context, id, permit)?,
            task: permit.admission.task.plan.clone(),
            retry: permit.admission.retry.clone(),
        };
        let recorded = self.record_permit(
            context,
            id,
            &permit.evaluation,
            permit.request.task.purpose(),
            PermitPlan::Credential(Box::new(plan)),
            &permit.admission.task.evidence,
        );
        let recorded = recorded.await;
        self.core
            .metrics()
            .stage(Stage::Commit, committing.elapsed());
        let recorded = recorded?;
        if permit.supersedes() {
            // The permit also ended the earlier session. The search for ended sessions reads the
            // leaves of ends, and this end has none, so all sessions must be searched.
            self.orphan_search.demand();
        }
        match recorded.into_permit() {
            (Some(to_mint), receipt) => Ok((to_mint, receipt)),
            (None, _) => Err(BrokerError::bug("a permit without a session was recorded")),
        }
    }

    fn session_plan(
        &self,
        context: &DecisionContext<'_>,
        decision: DecisionId,
        permit: &CredentialPermit,
    ) -> Result<SessionPlan, BrokerError> {
        let DecisionContext { workload, now, .. } = *context;
        let CredentialPermit {
            terms,
            evaluation,
            request,
            admission,
        } = permit;
        let resource = &request.resource;
        let minter = minter_of(&self.minters, resource.kind.minter())?;
        // A local minter signs the token with this key; an external one uses it to authenticate the
        // broker to its back end.
        let kid = minter.signing_key(resource, now).ok_or_else(|| {
            let name = &resource.name;
            BrokerError::keys(format!("no key may sign now for `{name}`"))
        })?;
        let issued_at = now.floor_to_second();
        let (state, lease) = match minter.mode() {
            MintMode::Local => (SessionState::Active, None),
            MintMode::External { lease_seconds } => {
                let lease = MintLease {
                    until: now.plus_seconds(lease_seconds),
                    holder: self.core.replica().to_owned(),
                };
                (SessionState::Minting, Some(lease))
            }
        };
        let covered_by = admission.covered_by.as_ref();
        let session = Session {
            id: SessionId::new(now, self.core.random())?,
            task_id: admission.task.plan.id(),
            parent: covered_by.map(|parent| parent.session),
            decision_id: decision,
            // The commit sets it.
            leaf_index: 0,
            attestor: workload.attestor.clone(),
            workload: workload.identity.clone(),
            instance: workload.instance.clone(),
            resource: resource.name.clone(),
            grant: request.grant.clone(),
            audience: resource.audience().to_owned(),
            minter: minter.kind(),
            key: workload.key.clone(),
            kid,
            generation: evaluation.generation,
            policies: evaluation.policies.clone(),
            revocability: minter.revocability(resource),
            issued_at,
            expires_at: issued_at.plus_seconds(terms.ttl_seconds),
            state,
            end_reason: None,
            ended_at: None,
            confirmed_at: None,
        };
        let listed = session.is_in_status_lists();
        let token = session.minter.makes_access_tokens().then(|| TokenPlan {
            issuer: self.core.issuer().to_owned(),
            first_status_list: listed.then(|| self.core.ledger().first_status_list()),
        });
        Ok(SessionPlan {
            session,
            resource: Arc::clone(resource),
            delegators: covered_by.map_or_else(Vec::new, |parent| parent.delegators.clone()),
            lease,
            token,
        })
    }
}

/// The decision of policy. The admission's `not_after` bounds it: the earliest end of the task, the
/// parent's credential and the superseded one.
fn decide(
    context: &DecisionContext<'_>,
    roles: Option<&BTreeSet<String>>,
    request: &ResolvedRequest,
    revocability: Revocability,
    admission: &Admission,
) -> Decision {
    let retry = admission.retry.as_ref();
    context.active.policy().decide(&Question {
        workload: context.workload,
        roles,
        ask: request,
        revocability,
        task: admission.task.facts.clone(),
        bounds: Some(Bounds {
            not_after: admission.not_after,
            // Only for a retry that supersedes a credential.
            retried: retry.is_some_and(|retry| retry.replaces.is_some()),
        }),
        now: context.now,
    })
}

/// An admitted task, as the answer names it. `P` is the plan of a task that the request opens, or
/// of one that it opens or joins.
pub(in crate::broker) fn issued_task<P>(id: TaskId, task: AdmittedTask<P>) -> IssuedTask {
    IssuedTask {
        id,
        task_type: task.facts.task_type,
        state: TaskState::Open,
        deadline: task.deadline,
        heartbeat_seconds: task.heartbeat_seconds,
        handle: task.handle,
    }
}

fn released(
    credential: Credential,
    session: Session,
    permit: CredentialPermit,
    receipt: Receipt,
) -> Issued {
    Issued {
        credential,
        task: issued_task(session.task_id, permit.admission.task),
        decision: DecisionSummary {
            id: session.decision_id,
            outcome: Outcome::Permit,
            policies: session.policies.clone(),
            generation: session.generation,
            observed: permit.evaluation.observed,
        },
        session,
        receipt,
    }
}
