//! A call under way: the evidence that it presents, and what was verified of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tracing::info;

use super::Access;
use super::caller::Caller;
use super::evidence::Unverified;
use crate::attest::{AttestError, AttestFailure, Evidence, VerifiedEvidence, dpop};
use crate::broker::active::Active;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::generation::GenerationDigest;
use crate::domain::workload::{OneTime, Workload};
use crate::ids::TaskId;
use crate::ledger::entry::{Entry, OneTimeUse, Premises, Request, RequestCaller};
use crate::ledger::{AppendError, Appended};
use crate::metrics::RateLimit;
use crate::policy::AdminAction;

/// How often a call is judged by what decides then, before it is given up.
const JUDGED_AT_MOST: u32 = 5;

/// A call under way.
pub(in crate::broker) struct Call<'a> {
    pub(super) access: &'a Access,
    pub(super) evidence: &'a Evidence,
    /// Whether it goes by a clock that is in doubt.
    any_clock: bool,
    verified: Mutex<Verified>,
}

/// What was verified of a call's evidence.
#[derive(Default)]
struct Verified {
    /// The attestor that verified it, where one did.
    attestor: Option<String>,
    /// When its holder gets the next, where it cannot be renewed at will.
    next_at: Option<Timestamp>,
    /// One-time ids that an append has yet to carry; the evidence's own is the first.
    unspent: Vec<OneTime>,
    /// The ids were carried by an append, or the ledger keeps them because that append failed.
    settled: bool,
    /// The caller, as cutoffs match it.
    by: Option<RequestCaller>,
    /// An append has judged the caller by the cutoffs.
    judged: bool,
    /// Upon what the caller is let in. Read before anything is judged by it.
    premises: Premises,
}

impl<'a> Call<'a> {
    /// A call that presents this evidence.
    pub(super) fn new(access: &'a Access, evidence: &'a Evidence, any_clock: bool) -> Self {
        Self {
            access,
            evidence,
            any_clock,
            verified: Mutex::new(Verified {
                premises: access.premises(),
                ..Verified::default()
            }),
        }
    }

    /// Registers that the store has judged the caller by the cutoffs.
    pub(super) fn was_judged(&self) {
        self.state().judged = true;
    }

    /// Refuses while no evidence and no handle can be judged: while the clock is in doubt, and while
    /// so much evidence waits to be recorded as used that the replica can keep no more.
    pub(super) fn check_open(&self) -> Result<(), BrokerError> {
        self.access.core.ledger().check_evidence_room()?;
        if self.any_clock {
            return Ok(());
        }
        self.access.core.check_clock()
    }

    /// Verifies the evidence of a workload. From here on it is used up on every way out.
    pub(super) async fn appraise(
        &self,
        active: &Active,
        now: Timestamp,
    ) -> Result<Workload, BrokerError> {
        self.check_open()?;
        let access = self.access;
        let appraised = active.attestors.appraise(self.evidence, now).await;
        let workload = appraised.map_err(|mut failure| {
            if let Some(verified) = failure.verified.take() {
                self.unproven(*verified);
            }
            access.refuse_evidence(self.evidence, failure)
        })?;
        self.attested(&workload);
        access
            .identities
            .check(&workload.identity)
            .inspect_err(|_| access.core.metrics().rate_limited(RateLimit::Identity))?;
        Ok(workload)
    }

    /// Refuses a blocked caller before anything is looked up for it. Each entry that it appends is
    /// judged again under the ledger's lock.
    pub(super) async fn refuse_if_blocked(&self, caller: &Caller) -> Result<(), BrokerError> {
        if !self.may_be_blocked() {
            return Ok(());
        }
        let may_lift = self.access.may(caller, AdminAction::LiftCutoff);
        self.may_lift(may_lift.unwrap_or(false));
        self.consume().await
    }

    fn state(&self) -> MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an attestation that was verified, and the caller that it names. A story that decides
    /// again verifies again, which takes the place of what was registered before.
    fn attested(&self, workload: &Workload) {
        let mut state = self.state();
        state.attestor = Some(workload.attestor.clone());
        state.next_at = workload.next_evidence_at();
        if !state.settled {
            state.unspent = workload.one_time();
        }
        drop(state);
        self.acts_as(RequestCaller::of(workload));
    }

    /// Registers what was verified of evidence that is refused: it is used up all the same.
    fn unproven(&self, verified: VerifiedEvidence) {
        self.attested(&verified.workload);
        let mut state = self.state();
        if !state.settled {
            state.unspent = verified.one_time;
        }
    }

    /// Registers a proof that was verified and that comes with no attestation.
    pub(super) fn proved(&self, proof: OneTime) {
        let mut state = self.state();
        if !state.settled {
            state.unspent = vec![proof];
        }
    }

    /// Registers the caller, to be judged by the cutoffs with each entry.
    pub(super) fn acts_as(&self, by: RequestCaller) {
        self.state().by = Some(by);
    }

    /// The caller, if it is one that cutoffs can match.
    pub(super) fn by(&self) -> Option<RequestCaller> {
        self.state().by.clone()
    }

    /// Registers the task that the call keeps alive or lends from.
    pub(super) fn acts_for(&self, task: TaskId) {
        if let Some(by) = &mut self.state().by {
            by.task = Some(task);
        }
    }

    /// Names what the call is about, for a refusal.
    pub(super) fn name_act(&self, act: &'static str) {
        if let Some(by) = &mut self.state().by {
            by.act = act;
        }
    }

    /// Registers that no generation lets the caller in, so that none can shut it out.
    pub(super) fn rests_on_no_generation(&self) {
        self.state().premises.generation = None;
    }

    /// Registers whether policy lets the caller lift cutoffs.
    pub(super) fn may_lift(&self, may_lift: bool) {
        if let Some(by) = &mut self.state().by {
            by.may_lift = may_lift;
        }
    }

    /// Whether a cutoff blocks the caller, as far as this replica knows.
    fn may_be_blocked(&self) -> bool {
        let ledger = self.access.core.ledger();
        let state = self.state();
        let by = state.by.as_ref();
        by.is_some_and(|by| ledger.may_block(&by.identity, &by.attestor))
    }

    /// Whether a cutoff blocks the caller of a decision. Where this replica knows of none, the
    /// append that records the decision tells.
    #[expect(clippy::disallowed_methods, reason = "the append of a call")]
    pub(super) async fn is_blocked(&self) -> Result<bool, BrokerError> {
        if !self.may_be_blocked() {
            return Ok(false);
        }
        let request = Request {
            entry: Entry::Consume,
            one_time: OneTimeUse {
                by: self.by(),
                ..OneTimeUse::default()
            },
            at: self.access.core.now(),
        };
        let appended = self.access.core.ledger().append(request).await?;
        Ok(matches!(appended, Appended::Blocked(_)))
    }

    /// Binds the evidence, however the call ends: what was used with this binding before may be used
    /// with it again.
    pub(super) fn bind(&self, binding: [u8; 32]) {
        if let Some(evidence) = self.state().unspent.first_mut() {
            evidence.binding = Some(binding);
        }
    }

    /// Appends an entry, with the call's evidence if no other entry has used that up.
    pub(super) async fn append(
        &self,
        entry: Entry,
        at: Timestamp,
    ) -> Result<Appended, BrokerError> {
        self.append_with(entry, at, |_| {}).await
    }

    /// The same, after `adjust` has added to the one-time ids or bound the evidence's own.
    #[expect(clippy::disallowed_methods, reason = "the append of a call")]
    pub(super) async fn append_with(
        &self,
        entry: Entry,
        at: Timestamp,
        adjust: impl FnOnce(&mut Vec<OneTime>),
    ) -> Result<Appended, BrokerError> {
        let one_time = {
            let state = self.state();
            let mut ids = state.unspent.clone();
            adjust(&mut ids);
            OneTimeUse {
                ids,
                by: state.by.clone(),
                premises: state.premises,
            }
        };
        let request = Request {
            entry,
            one_time,
            at,
        };
        let appended = self.access.core.ledger().append(request).await;
        let survives = matches!(
            &appended,
            // Nothing was recorded: the story decides again, or ends without another append.
            Ok(Appended::Stale | Appended::Superseded | Appended::RetryTaken(_))
                // The entry itself was at fault, so the store can take another; or the clock was, by
                // which evidence can still be used up.
                | Err(AppendError::Poisoned(_)
                    | AppendError::Unwritable(_)
                    | AppendError::ClockInDoubt(_))
        );
        if !survives {
            self.settle();
        }
        match appended? {
            Appended::Blocked(blocked) => {
                self.access.core.metrics().blocked_call(blocked.act);
                info!(act = blocked.act, "refused: a revocation blocks the caller");
                Err(BrokerError::Blocked(blocked))
            }
            Appended::Superseded => Err(BrokerError::Superseded),
            Appended::Forgotten => Err(self.use_forgotten()),
            Appended::Replayed(id) if dpop::shown_id(self.evidence) == Some(id) => {
                Err(self.replayed_proof())
            }
            appended => Ok(appended),
        }
    }

    /// Uses up the evidence of a call that only reads, and judges its caller by the cutoffs. Doing
    /// it again changes nothing.
    pub(super) async fn consume(&self) -> Result<(), BrokerError> {
        {
            let state = self.state();
            if state.unspent.is_empty() && (state.by.is_none() || state.judged) {
                return Ok(());
            }
        }
        match self.append(Entry::Consume, self.access.core.now()).await? {
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Ok(()),
        }
    }

    /// Whether the call has no evidence that an append must record as used.
    pub(super) fn uses_nothing_up(&self) -> bool {
        self.state().unspent.is_empty()
    }

    /// Whether the caller is let in by the generation that decides, or by none.
    pub(super) fn rests_on(&self, decides: Option<GenerationDigest>) -> bool {
        let premises = self.state().premises.generation;
        premises.is_none_or(|generation| decides == Some(generation))
    }

    fn settle(&self) {
        let mut state = self.state();
        state.unspent = Vec::new();
        state.settled = true;
        state.judged = true;
    }

    /// Runs the call's story, and uses up what it verified and did not use up, before anybody
    /// learns of the result. A story whose premises changed is run again.
    pub(in crate::broker) async fn run<'c, T, S>(
        &'c self,
        story: impl Fn(Unverified<'c>) -> S,
    ) -> Result<T, BrokerError>
    where
        S: Future<Output = Result<T, BrokerError>>,
    {
        let mut judged = 0;
        loop {
            let superseded = match self.tell(story(Unverified::of(self))).await {
                Err(superseded @ BrokerError::Superseded) => superseded,
                result => return self.end(result),
            };
            judged += 1;
            if judged == JUDGED_AT_MOST {
                return self.give_up(superseded).await;
            }
            if let Err(error) = self.renew().await {
                return self.give_up(error).await;
            }
        }
    }

    /// The story to its end, and what has to be used up then.
    async fn tell<T>(
        &self,
        story: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let result = story.await;
        if let Err(BrokerError::Superseded) = &result {
            return result;
        }
        match (result, self.consume().await) {
            (_, Err(superseded @ BrokerError::Superseded)) => Err(superseded),
            // A failure of ours stays one, whatever the consumption came to.
            (Err(error), _) if error.is_transient() => Err(error),
            (_, Err(error)) => Err(error),
            (result, Ok(())) => result,
        }
    }

    /// Takes over what decides now.
    async fn renew(&self) -> Result<(), BrokerError> {
        self.access.generations.follow().await?;
        self.state().premises = self.access.premises();
        Ok(())
    }

    /// Ends a call whose premises have changed. Its evidence is used up whatever decides.
    async fn give_up<T>(&self, error: BrokerError) -> Result<T, BrokerError> {
        self.state().premises = Premises::default();
        let consumed = self.consume().await;
        self.end(consumed.and(Err(error)))
    }

    /// What the caller is told. What cannot be consumed now is not tried again by dropping the call.
    fn end<T>(&self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        self.settle();
        result.map_err(|error| match error {
            BrokerError::Replayed => self.replayed(),
            BrokerError::Superseded => BrokerError::FailClosed(error.to_string()),
            other => other,
        })
    }

    /// Notes that the use of the evidence may have been forgotten, and gives the error that its caller
    /// gets.
    fn use_forgotten(&self) -> BrokerError {
        let failure = AttestFailure {
            error: AttestError::UseForgotten,
            attestor: self.state().attestor.clone(),
            issuer: self.evidence.claimed_issuer(),
            told: true,
            ..AttestFailure::unattributed(AttestError::UseForgotten)
        };
        self.access.note_failure(self.evidence, &failure);
        BrokerError::Attestation(Box::new(failure))
    }

    /// Notes that the proof was used before, beside an attestation that was not, and gives the error that
    /// its caller gets.
    fn replayed_proof(&self) -> BrokerError {
        let failure = AttestFailure {
            attestor: self.state().attestor.clone(),
            issuer: self.evidence.claimed_issuer(),
            ..AttestFailure::of_proof(AttestError::BadProof("it was used before"))
        };
        self.access.note_failure(self.evidence, &failure);
        BrokerError::Attestation(Box::new(failure))
    }

    /// Notes that the evidence was used before, and gives the error that its caller gets.
    fn replayed(&self) -> BrokerError {
        let state = self.state();
        let failure = AttestFailure {
            attestor: state.attestor.clone(),
            issuer: self.evidence.claimed_issuer(),
            ..AttestFailure::unattributed(AttestError::Replayed)
        };
        let next_at = state.next_at;
        drop(state);
        self.access.note_failure(self.evidence, &failure);
        next_at.map_or(BrokerError::Replayed, |next_at| BrokerError::UsedUp {
            next_at,
        })
    }
}

impl Drop for Call<'_> {
    #[expect(clippy::disallowed_methods, reason = "the append of a call")]
    fn drop(&mut self) {
        let one_time = std::mem::take(&mut self.state().unspent);
        if one_time.is_empty() {
            return;
        }
        let request = Request {
            entry: Entry::Consume,
            one_time: one_time.into(),
            at: self.access.core.now(),
        };
        // One poll puts the entry into the queue, and nobody has to wait for what becomes of it.
        if let Some(Err(error)) = self.access.core.ledger().append(request).now_or_never() {
            tracing::warn!(%error, "the evidence of a call that broke off was not used up");
        }
    }
}
