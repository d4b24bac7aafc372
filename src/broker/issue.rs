//! `POST /v1/credentials`, top to bottom: appraise the evidence, resolve what is asked, admit it to
//! a task, decide, commit, and only then mint, activate and release.
//!
//! Each step returns the only thing that the next accepts. A [`Permit`] comes out of the commit and
//! nowhere else, and a minter takes nothing but a permit.
//!
//! The whole runs in a tracked task of its own. A caller that disconnects or times out stops
//! waiting, not the work; and a credential that nobody waits for any more is ended at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use secrecy::SecretString;
use tracing::{error, info, instrument, warn};

use super::access::Unverified;
use super::admit::{Admission, AdmittedTask, Unadmitted};
use super::decisions::{DecisionContext, Evaluated, Evaluation, RefusedRequest};
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Observed, Outcome, Permitted, Refusal, RefusalCode};
use crate::domain::generation::GenerationDigest;
use crate::domain::kind::MinterKind;
use crate::domain::permit::Permit;
use crate::domain::request::{CredentialRequest, ResolvedRequest};
use crate::domain::revocability::Revocability;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskEnd, TaskState};
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::ledger::entry::{
    CredentialPlan, EndSession, EndTask, Entry, OneTimeUse, OpenPlan, PermitPlan, Request,
    SessionPlan, TaskPlan, TokenPlan,
};
use crate::ledger::{Appended, blocked_caller};
use crate::merkle::Receipt;
use crate::metrics::{Ended, Stage};
use crate::mint::{Credential, MintError, MintPlace, Minter};
use crate::policy::{Bounds, Question};
use crate::store::append::MintLease;

/// A credential, released, with everything that goes with it.
#[derive(Debug)]
pub struct Issued {
    /// The secret. It is in no other place.
    pub credential: Credential,
    /// Its record.
    pub session: Session,
    /// Its task.
    pub task: IssuedTask,
    /// The decision.
    pub decision: DecisionSummary,
    /// The proof that the decision is on record.
    pub receipt: Receipt,
}

/// The task of an answer.
#[derive(Debug)]
pub struct IssuedTask {
    /// Which.
    pub id: TaskId,
    /// Its type.
    pub task_type: String,
    /// Its state.
    pub state: TaskState,
    /// When it is over in any case.
    pub deadline: Timestamp,
    /// The longest silence.
    pub heartbeat_seconds: Option<u64>,
    /// Its handle, when it was just made.
    pub handle: Option<SecretString>,
}

/// A permit, as its subject may read it.
#[derive(Clone, Debug)]
pub struct DecisionSummary {
    /// Which.
    pub id: DecisionId,
    /// What was decided.
    pub outcome: Outcome,
    /// By which policies.
    pub policies: Vec<String>,
    /// By which generation.
    pub generation: GenerationDigest,
    /// What policies that merely observe would have made of it.
    pub observed: Option<Box<Observed>>,
}

/// A request for a credential that policy permits, with everything that is recorded and released.
struct CredentialPermit {
    terms: Permitted,
    evaluation: Evaluation,
    request: ResolvedRequest,
    admission: Admission,
}

impl CredentialPermit {
    /// The task that the permit opens, if no retry can find it: the request has no `Idempotency-Key`.
    fn opens(&self) -> Option<&Task> {
        match (&self.admission.task.plan, &self.admission.retry) {
            (TaskPlan::Open(OpenPlan { task, .. }), None) => Some(task),
            (TaskPlan::Open(_) | TaskPlan::Join(_), _) => None,
        }
    }

    /// Whether it takes the place of an earlier session.
    fn supersedes(&self) -> bool {
        let retry = self.admission.retry.as_ref();
        retry.is_some_and(|retry| retry.replaces.is_some())
    }
}

/// Why a permitted credential was not made.
struct NotMade {
    error: BrokerError,
    /// Whether it is certain that there is none.
    never_made: bool,
    /// The back end would refuse the same request again, and this is what the caller is told.
    too_many_rights: Option<&'static str>,
}

impl From<BrokerError> for NotMade {
    fn from(error: BrokerError) -> Self {
        Self {
            error,
            never_made: false,
            too_many_rights: None,
        }
    }
}

impl From<MintError> for NotMade {
    fn from(failed: MintError) -> Self {
        let closed = || BrokerError::FailClosed("the credential was not made".into());
        let (error, never_made, too_many_rights) = match failed {
            MintError::TooManyRights { detail, .. } => (closed(), true, Some(detail)),
            MintError::Refused(_) => (closed(), true, None),
            MintError::Throttled(_) => (BrokerError::Overloaded, true, None),
            MintError::Unknown(_) => (closed(), false, None),
        };
        Self {
            error,
            never_made,
            too_many_rights,
        }
    }
}

/// A credential on its way to whoever asked for it. Where it is dropped before it is claimed, be
/// it that the caller went before it was sent or while it was under way, it is ended.
struct Unclaimed {
    broker: Arc<Broker>,
    issued: Option<Issued>,
}

impl Unclaimed {
    fn new(broker: Arc<Broker>, issued: Issued) -> Self {
        Self {
            broker,
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
            let broker = Arc::clone(&self.broker);
            let ending = async move { broker.end_unclaimed(unclaimed).await };
            // Dropping the handle does not stop the work.
            drop(self.broker.shutdown().spawn("unclaimed", ending));
        }
    }
}

fn lost() -> BrokerError {
    BrokerError::FailClosed("the request was lost".into())
}

impl Broker {
    /// Answers a request for a credential.
    #[instrument(skip_all)]
    pub async fn issue(
        self: &Arc<Self>,
        evidence: Evidence,
        request: CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let broker = Arc::clone(self);
        // Dropping the handle does not stop the work; that is what it is spawned for.
        drop(self.shutdown().spawn("issue", async move {
            let result = broker.issue_tracked(&evidence, &request).await;
            // If nobody is there any more it comes back, and is dropped here.
            drop(answer.send(result.map(|issued| Unclaimed::new(broker, issued))));
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
        let call = self.call(evidence);
        Box::pin(call.run(|unverified| self.issue_by(unverified, request.clone()))).await
    }

    async fn issue_by(
        &self,
        unverified: Unverified<'_>,
        request: CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        // The log's size comes first: whatever is cut off from here on stops this request.
        let basis = self.ledger().basis();
        let now = self.now();
        let active = self.active()?;

        let appraising = Instant::now();
        let requester = unverified.request(&active, now).await?;
        self.metrics().stage(Stage::Appraise, appraising.elapsed());

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
                self.metrics().stage(Stage::Commit, committing.elapsed());
                return Err(BrokerError::Denied(Box::new(denied)));
            }
        };
        let (proof, receipt) = self.commit(&context, &permit).await?;
        match self.mint_and_activate(proof).await {
            Ok((credential, session)) => Ok(released(credential, session, permit, receipt)),
            Err(failed) => Err(self.not_made(&context, &permit, failed).await),
        }
    }

    /// Resolve, admit, decide.
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
        self.metrics().stage(Stage::Resolve, resolving.elapsed());
        let purpose = request.task.purpose().map(ToOwned::to_owned);
        let admission = match self.admit_mintable(context, &request).await {
            Ok(admission) => admission,
            Err(unadmitted) => return refuse(unadmitted.refusal()?, purpose),
        };
        let deciding = Instant::now();
        let roles = self.roles_asked_for(context).await?;
        let minter = self.minter(request.resource.kind.minter())?;
        let revocability = minter.revocability(&request.resource);
        let decision = decide(context, roles.as_ref(), &request, revocability, &admission);
        self.metrics().stage(Stage::Decide, deciding.elapsed());
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

    /// Admits a request to its task, if its minter can make the credential and could end it.
    async fn admit_mintable(
        &self,
        context: &DecisionContext<'_>,
        request: &ResolvedRequest,
    ) -> Result<Admission, Unadmitted> {
        let resource = &request.resource;
        let minter = self.minter(resource.kind.minter())?;
        if let Err(why) = minter.fits(resource, &request.grant) {
            return Err(Refusal::new(RefusalCode::TooManyRights, why).into());
        }
        self.ensure_revocation_capacity(minter.as_ref(), resource, context.now)
            .await?;
        let admitting = Instant::now();
        let admission = self.admit(context, request).await?;
        self.metrics().stage(Stage::Admit, admitting.elapsed());
        Ok(admission)
    }

    /// Records the permit. Nothing can be minted without the [`Permit`] that comes back.
    async fn commit(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
    ) -> Result<(Permit, Receipt), BrokerError> {
        let committing = Instant::now();
        let id = DecisionId::new(context.now, &self.random)?;
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
        self.metrics().stage(Stage::Commit, committing.elapsed());
        let recorded = recorded?;
        if permit.supersedes() {
            // It ended the earlier session, by no act of its own.
            self.orphan_search.demand();
        }
        match recorded.into_permit() {
            (Some(proof), receipt) => Ok((proof, receipt)),
            (None, _) => Err(BrokerError::FailClosed(
                "a permit without a session was recorded".into(),
            )),
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
        let minter = self.minter(resource.kind.minter())?;
        let kid = minter
            .signing_key(resource, now)
            .ok_or_else(|| BrokerError::FailClosed("no key may sign now".into()))?;
        let issued_at = now.floor_to_second();
        let (state, lease) = match minter.place() {
            MintPlace::Local => (SessionState::Active, None),
            MintPlace::External { lease_seconds } => {
                let lease = MintLease {
                    until: now.plus_seconds(lease_seconds),
                    holder: self.replica().to_owned(),
                };
                (SessionState::Minting, Some(lease))
            }
        };
        let covered_by = admission.covered_by.as_ref();
        let session = Session {
            id: SessionId::new(now, &self.random)?,
            task_id: admission.task.plan.id(),
            parent: covered_by.map(|parent| parent.session),
            decision_id: decision,
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
            issuer: self.issuer().to_owned(),
            first_status_list: listed.then(|| self.ledger().first_status_list()),
        });
        Ok(SessionPlan {
            session,
            resource: Arc::clone(resource),
            delegators: covered_by.map_or_else(Vec::new, |parent| parent.delegators.clone()),
            lease,
            token,
        })
    }

    pub(super) fn minter(&self, kind: MinterKind) -> Result<&Arc<dyn Minter>, BrokerError> {
        self.minters().of_kind(kind).ok_or_else(|| {
            BrokerError::FailClosed(format!("no minter of kind `{}`", kind.as_str()))
        })
    }

    /// Makes the credential, and releases it only if its session is still to be had.
    async fn mint_and_activate(&self, permit: Permit) -> Result<(Credential, Session), NotMade> {
        let minting = Instant::now();
        let minter = Arc::clone(self.minter(permit.session().minter)?);
        let made = minter.mint(&permit).await;
        self.metrics().stage(Stage::Mint, minting.elapsed());
        self.metrics()
            .mint(minter.kind().as_str(), Ended::from(&made));
        let session = permit.into_session();
        let credential = match made {
            Ok(credential) => credential,
            Err(failed) => {
                error!(session = %session.id, error = %failed, "a mint failed");
                let failed = NotMade::from(failed);
                let state = if failed.never_made {
                    SessionState::Ended
                } else {
                    // It may exist: the sweeper ends it under the name we chose.
                    SessionState::Ending
                };
                self.end_own(&session, state, EndReason::Failed, failed.never_made)
                    .await;
                return Err(failed);
            }
        };
        if minter.place() == MintPlace::Local {
            return Ok((credential, session));
        }
        let settling = Instant::now();
        let active = self.activate_session(session).await;
        self.metrics().stage(Stage::Settle, settling.elapsed());
        // Where it was lost the secret is dropped here.
        Ok((credential, active?))
    }

    /// Finishes a request whose credential was not made. A task that it opened is ended where the back
    /// end refused for certain: its handle is in no answer. A refusal for too many rights is recorded.
    async fn not_made(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
        failed: NotMade,
    ) -> BrokerError {
        if failed.never_made
            && let Some(task) = permit.opens()
        {
            self.end_unused(task).await;
        }
        let Some(detail) = failed.too_many_rights else {
            return failed.error;
        };
        let refusal = Refusal::new(RefusalCode::TooManyRights, detail);
        let refused = self.refuse_after_permit(context, permit, refusal).await;
        refused.unwrap_or_else(|error| error)
    }

    /// Records that a request was refused after its permit, which stands in the log beside it.
    async fn refuse_after_permit(
        &self,
        context: &DecisionContext<'_>,
        permit: &CredentialPermit,
        refusal: Refusal,
    ) -> Result<BrokerError, BrokerError> {
        self.spend_denial(context)?;
        let resource = permit.request.resource.name.clone();
        let purpose = permit.request.task.purpose().map(ToOwned::to_owned);
        let active = context.active;
        let refused = RefusedRequest::before_policy(refusal, active, Some(resource), purpose);
        let decide = self.refusal_entry(context, &refused)?;
        let id = decide.id;
        let request = Request {
            entry: Entry::Decide(Box::new(decide)),
            // The permit used the evidence up.
            one_time: OneTimeUse::default(),
            at: self.now(),
        };
        match self.ledger().append(request).await? {
            Appended::Recorded(recorded) => {
                let refusal = refused.refusal.clone();
                let denied = self.refusal_on_record(id, &refused, refusal, recorded.receipt);
                Ok(BrokerError::Denied(Box::new(denied)))
            }
            _ => Err(BrokerError::FailClosed(
                "the back end refused the credential, and the refusal was not recorded".into(),
            )),
        }
    }

    /// Ends a task that a request opened in vain.
    async fn end_unused(&self, task: &Task) {
        let request = Request {
            entry: Entry::EndTask(EndTask {
                task: task.id,
                end: TaskEnd::Abort,
                by: "broker".into(),
                owner: task.owner.clone(),
            }),
            one_time: OneTimeUse::default(),
            at: self.now(),
        };
        if let Err(error) = self.ledger().append(request).await {
            warn!(task = %task.id, %error, "it stays open until its deadline");
        }
    }

    /// `minting → active`, by compare-and-set, with chain and cutoffs checked at a fresh clock.
    async fn activate_session(&self, session: Session) -> Result<Session, BrokerError> {
        let now = self.now();
        let won = self
            .store()
            .settle_mint(session.id, self.replica(), now)
            .await?;
        let view = if won {
            self.store().session_view(session.id).await?
        } else {
            None
        };
        match view {
            Some(view) if view.is_valid_at(self.now()) => Ok(view.session),
            _ => {
                warn!(session = %session.id, "a credential was lost before its release");
                self.end_own(&session, SessionState::Ending, EndReason::Revoked, false)
                    .await;
                // Whoever ended it may have asked the back end before there was anything to end.
                // Where that cannot be done at once, the sweeper does it.
                if let Err(error) = self.end_external(&session).await {
                    warn!(session = %session.id, %error, "its ending waits for the sweeper");
                }
                Err(BrokerError::FailClosed(
                    "the credential was ended before it was released".into(),
                ))
            }
        }
    }

    /// Ends a session of which nobody has the credential.
    async fn end_unclaimed(&self, issued: Issued) {
        info!(session = %issued.session.id, "its caller has gone");
        let state = issued.session.state_once_ended();
        self.end_own(&issued.session, state, EndReason::Failed, false)
            .await;
    }

    async fn end_own(
        &self,
        session: &Session,
        state: SessionState,
        reason: EndReason,
        never_made: bool,
    ) {
        let request = Request {
            entry: Entry::EndSession(EndSession {
                session: session.id,
                state,
                reason,
                never_made,
                by: "broker".into(),
                owner: session.workload.clone(),
            }),
            one_time: OneTimeUse::default(),
            at: self.now(),
        };
        match self.ledger().append(request).await {
            Ok(_) => self.metrics().sessions_ended(reason, 1),
            // The lease runs out, or it expires; either way it is on record and in nobody's hands.
            Err(error) => warn!(session = %session.id, %error, "not recorded as ended"),
        }
        self.wake_sweeper();
    }
}

/// The decision of policy, bounded by the task, a parent's credential and a retried one.
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
            retried: retry.is_some_and(|retry| retry.replaces.is_some()),
        }),
        now: context.now,
    })
}

/// The task of an answer.
pub(super) fn issued_task<P>(id: TaskId, task: AdmittedTask<P>) -> IssuedTask {
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
