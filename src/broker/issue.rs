//! `POST /v1/credentials`, top to bottom: appraise the evidence, resolve what is asked, admit it to
//! a task, decide, commit, and only then mint, settle and release.
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

use super::admit::Admission;
use super::call::Call;
use super::error::Denied;
use super::generations::Active;
use super::{Broker, BrokerError, Exceeded};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Observed, Outcome, Permitted, Refusal, RefusalCode};
use crate::domain::generation::GenerationDigest;
use crate::domain::permit::Permit;
use crate::domain::request::{Ask, CredentialRequest, TaskAsk};
use crate::domain::revocability::{Revocability, RevocationClass};
use crate::domain::session::{EndReason, LOCAL_MINTER, Session, SessionState};
use crate::domain::task::{Task, TaskEnd, TaskState};
use crate::domain::workload::Workload;
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::ledger::denials::Budget;
use crate::ledger::entry::{
    Decide, EndSession, EndTask, Entry, OneTimeUse, Request, RetryPlan, SessionPlan, TaskPlan,
    TokenPlan,
};
use crate::ledger::{Appended, blocked_caller};
use crate::merkle::Receipt;
use crate::metrics::{Ended, RateLimit, Stage};
use crate::mint::{Credential, MintError, MintPlace, Minter};
use crate::policy::{Bounds, Question, record};
use crate::store::append::MintLease;

/// How often a request is decided again because something changed while it was decided.
const TRIES: u32 = 3;

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

/// What one try came to.
enum Attempt {
    Released(Box<Issued>),
    /// Something changed meanwhile: decide again.
    Stale,
}

/// What does not change while one request is decided.
pub(super) struct Case<'a> {
    pub(super) active: &'a Active,
    pub(super) call: &'a Call<'a>,
    pub(super) workload: &'a Workload,
    pub(super) basis: u64,
    pub(super) now: Timestamp,
}

/// A request, judged: what is to be recorded of it.
struct Judged {
    decision: Decision,
    resource: Option<String>,
    purpose: Option<String>,
    admission: Option<Admission>,
    ask: Option<Ask>,
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
        Box::pin(call.run(|| self.issue_by(&call, request))).await
    }

    async fn issue_by(
        &self,
        call: &Call<'_>,
        request: &CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        for _ in 0..TRIES {
            match self.try_issue(call, request.clone()).await? {
                Attempt::Released(issued) => return Ok(*issued),
                Attempt::Stale => self.follow_generation().await?,
            }
        }
        Err(BrokerError::FailClosed(
            "what decides kept changing while the request was decided".into(),
        ))
    }

    /// The story.
    async fn try_issue(
        &self,
        call: &Call<'_>,
        request: CredentialRequest,
    ) -> Result<Attempt, BrokerError> {
        // The log's size comes first: whatever is cut off from here on stops this request.
        let basis = self.ledger().basis();
        let now = self.now();
        let active = self.active()?;

        let appraising = Instant::now();
        let workload = self.appraise(&active, call, now).await?;
        self.metrics().stage(Stage::Appraise, appraising.elapsed());

        let case = Case {
            active: &active,
            call,
            workload: &workload,
            basis,
            now,
        };
        let judged = self.judge(&case, request).await?;
        let Some((permit, receipt, judged)) = self.commit(&case, judged).await? else {
            return Ok(Attempt::Stale);
        };
        match self.mint_and_settle(permit).await {
            Ok((credential, session)) => Ok(Attempt::Released(Box::new(released(
                credential, session, judged, receipt,
            )))),
            Err(failed) => Err(self.not_made(&case, &judged, failed).await),
        }
    }

    /// Resolve, admit, decide.
    async fn judge(
        &self,
        case: &Case<'_>,
        request: CredentialRequest,
    ) -> Result<Judged, BrokerError> {
        let named = case.active.catalog().select(&request.resource);
        let resource = named.map(|resource| resource.name.clone());
        let refused = |refusal: Refusal, purpose: Option<String>, active: &Active| Judged {
            decision: before_policy(refusal, active),
            resource: resource.clone(),
            purpose,
            admission: None,
            ask: None,
        };

        if case.call.is_blocked().await? {
            return Ok(refused(blocked_caller(), None, case.active));
        }
        let resolving = Instant::now();
        let ask = match case.active.catalog().resolve(request) {
            Ok(ask) => ask,
            Err(refusal) => return Ok(refused(refusal, None, case.active)),
        };
        self.metrics().stage(Stage::Resolve, resolving.elapsed());
        let purpose = match &ask.task {
            TaskAsk::Open(open) => open.purpose.clone(),
            TaskAsk::Join { .. } => None,
        };
        let minter = self.minter(&ask.resource.kind)?;
        if let Err(why) = minter.fits(&ask.resource, &ask.grant) {
            let refusal = Refusal::new(RefusalCode::TooManyRights, why);
            return Ok(refused(refusal, purpose, case.active));
        }
        self.ensure_revocation_capacity(minter.as_ref(), &ask.resource, case.now)
            .await?;

        let admitting = Instant::now();
        let admission = match self.admit(case, &ask).await? {
            Ok(admission) => admission,
            Err(refusal) => return Ok(refused(refusal, purpose, case.active)),
        };
        self.metrics().stage(Stage::Admit, admitting.elapsed());

        let deciding = Instant::now();
        let roles = self.roles_asked_for(case).await?;
        let revocability = minter.revocability(&ask.resource);
        let decision = decide(case, roles.as_ref(), &ask, revocability, &admission);
        self.metrics().stage(Stage::Decide, deciding.elapsed());
        Ok(Judged {
            decision,
            resource,
            purpose,
            admission: Some(admission),
            ask: Some(ask),
        })
    }

    /// Records the decision. Only what comes back from here can be minted; `None` means that it
    /// has to be decided again.
    async fn commit(
        &self,
        case: &Case<'_>,
        judged: Judged,
    ) -> Result<Option<(Permit, Receipt, Judged)>, BrokerError> {
        let committing = Instant::now();
        if judged.decision.verdict.is_err() {
            self.spend_denial(case)?;
        }
        let decide = self.entry(case, &judged)?;
        let id = decide.id;
        let entry = Entry::Decide(Box::new(decide));
        let appended = case.call.append_with(entry, case.now, |one_time| {
            if let Some(admission) = &judged.admission {
                admission.adjust(one_time);
            }
        });
        let appended = appended.await?;
        self.metrics().stage(Stage::Commit, committing.elapsed());
        match appended {
            Appended::Superseded => Err(BrokerError::Superseded),
            Appended::Recorded(recorded) => {
                let (permit, receipt) = recorded.into_permit();
                match (permit, judged.decision.verdict.clone()) {
                    (Some(permit), Ok(_)) => {
                        self.metrics().decision(Outcome::Permit);
                        self.observed(id, &judged.decision);
                        let mut judged = judged;
                        if let Some(admission) = &mut judged.admission {
                            admission.decision = Some(id);
                            let superseded = |retry: &RetryPlan| retry.replaces.is_some();
                            if admission.retry.as_ref().is_some_and(superseded) {
                                // One was superseded, by no act of its own.
                                self.orphan_search.demand();
                            }
                        }
                        Ok(Some((permit, receipt, judged)))
                    }
                    (_, Err(refusal)) => Err(self.denied(id, refusal, &judged.decision, receipt)),
                    (None, Ok(_)) => Err(BrokerError::FailClosed(
                        "a permit without a session was recorded".into(),
                    )),
                }
            }
            Appended::Refused(recorded, refusal) => {
                let (_, receipt) = recorded.into_permit();
                Err(self.denied(id, refusal, &judged.decision, receipt))
            }
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            Appended::Stale => Ok(None),
            Appended::RetryTaken(_) => Err(BrokerError::InProgress),
            Appended::Unchanged | Appended::Blocked(_) | Appended::Forgotten => {
                Err(BrokerError::FailClosed("nothing was recorded".into()))
            }
        }
    }

    pub(super) fn denied(
        &self,
        decision: DecisionId,
        refusal: Refusal,
        judged: &Decision,
        receipt: Receipt,
    ) -> BrokerError {
        self.observed(decision, judged);
        let outcome = refusal.outcome();
        self.metrics().decision(outcome);
        self.metrics().refusal(refusal.code);
        info!(%decision, outcome = outcome.as_str(), code = refusal.code.as_str(), "refused");
        BrokerError::Denied(Box::new(Denied {
            decision,
            outcome,
            refusal,
            generation: judged.generation,
            observed: judged.observed.clone(),
            receipt,
        }))
    }

    /// Says aloud what policies that merely observe would have done.
    fn observed(&self, id: DecisionId, decision: &Decision) {
        let Some(observed) = &decision.observed else {
            return;
        };
        for policy in &observed.policies {
            let outcome = decision.outcome();
            let name = &policy.policy;
            self.metrics()
                .observed(name, outcome, observed.outcome_if_enforced);
        }
        warn!(decision = %id, outcome = decision.outcome().as_str(), %observed, "observed, not enforced");
    }

    pub(super) fn spend_denial(&self, case: &Case<'_>) -> Result<(), BrokerError> {
        let identity = case.workload.identity.as_str();
        let limits = case.active.limits();
        let budget = self
            .denials()
            .count(&case.workload.attestor, identity, &limits, case.now);
        match budget {
            Budget::Leaf => Ok(()),
            Budget::Spent { until } => {
                self.metrics().rate_limited(RateLimit::IdentityDenials);
                Err(BrokerError::RateLimited(Exceeded {
                    policy: "denials",
                    quota: limits.denials_per_identity,
                    window_seconds: limits.denial_window_seconds,
                    retry_seconds: case.now.seconds_until(until) + 1,
                }))
            }
        }
    }

    fn entry(&self, case: &Case<'_>, judged: &Judged) -> Result<Decide, BrokerError> {
        let purpose = match &judged.purpose {
            Some(purpose) => Some(self.commitment(purpose.clone().into_bytes())?),
            None => None,
        };
        let admission = judged.admission.as_ref();
        let permitted = judged.decision.verdict.as_ref().ok();
        let session = match (permitted, admission, &judged.ask) {
            (Some(permitted), Some(admission), Some(ask)) => Some((*permitted, admission, ask)),
            _ => None,
        };
        let id = DecisionId::new(case.now, &self.random)?;
        let plan = match session {
            Some((permitted, admission, ask)) => {
                Some(self.session_plan(case, id, permitted, admission, ask, judged)?)
            }
            None => None,
        };
        Ok(Decide {
            id,
            basis: case.basis,
            identity: case.workload.identity.clone(),
            instance: case.workload.instance.clone(),
            attestor: case.workload.attestor.clone(),
            outcome: judged.decision.outcome(),
            refusal: judged.decision.verdict.as_ref().err().cloned(),
            policies: judged.decision.policies.clone(),
            observed: judged.decision.observed.clone(),
            generation: judged.decision.generation,
            resource: judged.resource.clone(),
            input: self.commitment(record::committed(&judged.decision))?,
            purpose,
            task: admission.map(|admission| (admission.task, admission.parents.clone())),
            plan: session.map(|(_, admission, _)| admission.plan.clone()),
            session: plan,
            retry: session.and_then(|(_, admission, _)| admission.retry.clone()),
        })
    }

    fn session_plan(
        &self,
        case: &Case<'_>,
        decision: DecisionId,
        permitted: Permitted,
        admission: &Admission,
        ask: &Ask,
        judged: &Judged,
    ) -> Result<SessionPlan, BrokerError> {
        let minter = self.minter(&ask.resource.kind)?;
        let kid = minter
            .signing_key(&ask.resource, case.now)
            .ok_or_else(|| BrokerError::FailClosed("no key may sign now".into()))?;
        let issued_at = case.now.floor_to_second();
        let place = minter.place();
        let lease = match place {
            MintPlace::Local => None,
            MintPlace::External { lease_seconds } => Some(MintLease {
                until: case.now.plus_seconds(lease_seconds),
                holder: self.replica().to_owned(),
            }),
        };
        let session = Session {
            id: SessionId::new(case.now, &self.random)?,
            task_id: admission.task,
            parent: admission.covered_by.as_ref().map(|parent| parent.session),
            decision_id: decision,
            leaf_index: 0,
            attestor: case.workload.attestor.clone(),
            workload: case.workload.identity.clone(),
            instance: case.workload.instance.clone(),
            resource: ask.resource.name.clone(),
            grant: ask.grant.clone(),
            audience: ask.resource.audience().to_owned(),
            minter: minter.kind().to_owned(),
            key: case.workload.key.clone(),
            kid,
            generation: judged.decision.generation,
            policies: judged.decision.policies.clone(),
            revocability: minter.revocability(&ask.resource),
            issued_at,
            expires_at: issued_at.plus_seconds(permitted.ttl_seconds),
            state: match place {
                MintPlace::Local => SessionState::Active,
                MintPlace::External { .. } => SessionState::Minting,
            },
            end_reason: None,
            ended_at: None,
            confirmed_at: None,
        };
        let listed = matches!(session.revocability.class, RevocationClass::Bounded { .. });
        let token = (session.minter == LOCAL_MINTER).then(|| TokenPlan {
            issuer: self.issuer().to_owned(),
            first_status_list: listed.then(|| self.ledger().first_status_list()),
        });
        Ok(SessionPlan {
            session,
            resource: Arc::clone(&ask.resource),
            delegators: admission
                .covered_by
                .as_ref()
                .map(|parent| parent.delegators.clone())
                .unwrap_or_default(),
            lease,
            token,
        })
    }

    pub(super) fn minter(&self, kind: &str) -> Result<&Arc<dyn Minter>, BrokerError> {
        self.minters()
            .of_kind(kind)
            .ok_or_else(|| BrokerError::FailClosed(format!("no minter of kind `{kind}`")))
    }

    /// Makes the credential, and releases it only if its session is still to be had.
    async fn mint_and_settle(&self, permit: Permit) -> Result<(Credential, Session), NotMade> {
        let minting = Instant::now();
        let minter = Arc::clone(self.minter(&permit.session().minter)?);
        let made = minter.mint(&permit).await;
        self.metrics().stage(Stage::Mint, minting.elapsed());
        self.metrics().mint(minter.kind(), Ended::from(&made));
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
        let settled = self.settle(session).await;
        self.metrics().stage(Stage::Settle, settling.elapsed());
        // Where it was lost the secret is dropped here.
        Ok((credential, settled?))
    }

    /// Finishes a request whose credential was not made. A task that it opened is ended where the back
    /// end refused for certain: its handle is in no answer. A refusal for too many rights is recorded.
    async fn not_made(&self, case: &Case<'_>, judged: &Judged, failed: NotMade) -> BrokerError {
        if failed.never_made
            && let Some(admission) = &judged.admission
            && admission.retry.is_none()
            && let TaskPlan::Open { task, .. } = &admission.plan
        {
            self.end_unused(task).await;
        }
        let Some(detail) = failed.too_many_rights else {
            return failed.error;
        };
        let refusal = Refusal::new(RefusalCode::TooManyRights, detail);
        let refused = self.record_refusal(case, judged, refusal).await;
        refused.unwrap_or_else(|error| error)
    }

    /// Records that a request was refused after its permit, which stands in the log beside it.
    async fn record_refusal(
        &self,
        case: &Case<'_>,
        judged: &Judged,
        refusal: Refusal,
    ) -> Result<BrokerError, BrokerError> {
        self.spend_denial(case)?;
        let refused = Judged {
            decision: before_policy(refusal.clone(), case.active),
            resource: judged.resource.clone(),
            purpose: judged.purpose.clone(),
            admission: None,
            ask: None,
        };
        let decide = self.entry(case, &refused)?;
        let id = decide.id;
        let request = Request {
            entry: Entry::Decide(Box::new(decide)),
            // The permit used the evidence up.
            one_time: OneTimeUse::default(),
            at: self.now(),
        };
        match self.ledger().append(request).await? {
            Appended::Recorded(recorded) => {
                let (_, receipt) = recorded.into_permit();
                Ok(self.denied(id, refusal, &refused.decision, receipt))
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
    async fn settle(&self, session: Session) -> Result<Session, BrokerError> {
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
        let state = super::revoke::ending_state(&issued.session);
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

/// Policy's word, bounded by what the task, a parent's credential or a retried one leave.
fn decide(
    case: &Case<'_>,
    roles: Option<&BTreeSet<String>>,
    ask: &Ask,
    revocability: Revocability,
    admission: &Admission,
) -> Decision {
    let retry = admission.retry.as_ref();
    case.active.policy().decide(&Question {
        workload: case.workload,
        roles,
        ask,
        revocability,
        task: admission.facts.clone(),
        bounds: Some(Bounds {
            not_after: admission.not_after,
            retried: retry.is_some_and(|retry| retry.replaces.is_some()),
        }),
        now: case.now,
    })
}

/// A refusal that policy was never asked about.
pub(super) fn before_policy(refusal: Refusal, active: &Active) -> Decision {
    Decision {
        input: record::before_policy(refusal.code),
        verdict: Err(refusal),
        policies: Vec::new(),
        generation: active.digest(),
        observed: None,
    }
}

fn released(credential: Credential, session: Session, judged: Judged, receipt: Receipt) -> Issued {
    let observed = judged.decision.observed;
    let admission = judged.admission;
    let task = IssuedTask {
        id: session.task_id,
        task_type: admission
            .as_ref()
            .map(|admission| admission.facts.task_type.clone())
            .unwrap_or_default(),
        state: TaskState::Open,
        deadline: admission
            .as_ref()
            .map_or(session.expires_at, |admission| admission.deadline),
        heartbeat_seconds: admission
            .as_ref()
            .and_then(|admission| admission.heartbeat_seconds),
        handle: admission.and_then(|admission| admission.handle),
    };
    Issued {
        credential,
        task,
        decision: DecisionSummary {
            id: session.decision_id,
            outcome: Outcome::Permit,
            policies: session.policies.clone(),
            generation: session.generation,
            observed,
        },
        session,
        receipt,
    }
}
