//! A call in progress: the evidence that it presents, the results of its verification, and whether
//! that evidence was used up.
//!
//! Read in this order: `Verified` holds the results, `Call::appraise` verifies a workload's
//! evidence, `Call::append_with` appends an entry that carries the evidence, `Call::consume` uses
//! the evidence up if no entry carried it, and `Drop` covers an interrupted call. The rule: an
//! append that recorded the evidence, or may have, uses it up. Each entry carries the caller and
//! its premises.
//!
//! Failures: a blocked caller gets `Blocked`; used evidence gets `UsedUp`, `Replayed`, or
//! `Attestation` if only its proof was used before. `access::run` runs the handler of a call, and
//! `access::evidence` calls the rest. The module verifies no signature: `attest` does. It checks no
//! cutoff: the ledger does, under its lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tracing::info;

use super::Access;
use super::caller::Caller;
use crate::attest::{AttestError, AttestFailure, Evidence, VerifiedEvidence, dpop};
use crate::broker::active::Active;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::workload::{OneTime, Workload};
use crate::ids::TaskId;
use crate::ledger::entry::{Entry, OneTimeUse, Premises, Request, RequestCaller};
use crate::ledger::{AppendError, Appended};
use crate::metrics::RateLimit;
use crate::policy::AdminAction;

/// A call in progress.
pub(in crate::broker) struct Call<'a> {
    pub(super) access: &'a Access,
    pub(super) evidence: &'a Evidence,
    /// Whether the call is accepted while the clock is in doubt.
    any_clock: bool,
    verified: Mutex<Verified>,
}

/// The results of verifying a call's evidence.
#[derive(Default)]
struct Verified {
    /// The attestor that verified it. `None` if no attestor did.
    attestor: Option<String>,
    /// When its holder gets the next evidence. `None` if the holder can renew it at any time.
    next_at: Option<Timestamp>,
    /// One-time ids that an append has yet to carry; the evidence's own is the first.
    unspent: Vec<OneTime>,
    /// The ids were carried by an append, or the ledger keeps them because that append failed.
    used_up: bool,
    /// The caller, as cutoffs match it.
    by: Option<RequestCaller>,
    /// An append has judged the caller by the cutoffs.
    judged: bool,
    /// The state by which the caller is authorized. It is read before the caller is authorized.
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

    /// Registers that the store has checked the caller against the cutoffs.
    pub(super) fn was_judged(&self) {
        self.state().judged = true;
    }

    /// Refuses the call while no evidence and no handle can be verified: while the clock is in
    /// doubt, and while the replica has no room to keep more evidence that waits to be recorded as
    /// used.
    pub(super) fn check_open(&self) -> Result<(), BrokerError> {
        self.access.core.ledger().check_evidence_room()?;
        if self.any_clock {
            return Ok(());
        }
        self.access.core.check_clock()
    }

    /// Verifies the evidence of a workload. From here on, every outcome of the call uses it up.
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

    /// Refuses a blocked caller before the broker reads anything for it. The ledger checks the
    /// caller again under its lock for each entry.
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

    /// Registers a verified attestation and the caller that it names. A handler that runs again
    /// verifies again, which replaces the earlier registration.
    fn attested(&self, workload: &Workload) {
        let mut state = self.state();
        state.attestor = Some(workload.attestor.clone());
        state.next_at = workload.next_evidence_at();
        if !state.used_up {
            state.unspent = workload.one_time();
        }
        drop(state);
        self.acts_as(RequestCaller::of(workload));
    }

    /// Registers the verified part of evidence that is refused, so that it is used up too.
    fn unproven(&self, verified: VerifiedEvidence) {
        self.attested(&verified.workload);
        let mut state = self.state();
        if !state.used_up {
            state.unspent = verified.one_time;
        }
    }

    /// Registers a verified proof that came without an attestation.
    pub(super) fn proved(&self, proof: OneTime) {
        let mut state = self.state();
        if !state.used_up {
            state.unspent = vec![proof];
        }
    }

    /// Registers the caller, so that each entry checks it against the cutoffs.
    pub(super) fn acts_as(&self, by: RequestCaller) {
        self.state().by = Some(by);
    }

    /// The caller, as cutoffs match it. `None` if no cutoff can match it.
    pub(super) fn by(&self) -> Option<RequestCaller> {
        self.state().by.clone()
    }

    /// Registers the task that the call keeps alive or lends from.
    pub(super) fn acts_for(&self, task: TaskId) {
        if let Some(by) = &mut self.state().by {
            by.task = Some(task);
        }
    }

    /// Registers the name of the act, which a refusal shows.
    pub(super) fn name_act(&self, act: &'static str) {
        if let Some(by) = &mut self.state().by {
            by.act = act;
        }
    }

    /// Registers that the caller is authorized independently of the active generation. Activating
    /// another one then does not affect the call.
    pub(super) fn rests_on_no_generation(&self) {
        self.state().premises.generation = None;
    }

    /// Registers whether policy permits the caller to lift cutoffs.
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

    /// Whether a cutoff blocks the caller of a decision. If this replica knows of none, the append
    /// that records the decision checks it.
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

    /// Binds the evidence, even if the call fails later: evidence that was used with this binding
    /// before may be used with it again.
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

    /// Appends an entry with the call's one-time ids, after `adjust` has added further ids or bound
    /// the evidence's own.
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
            // Nothing was recorded: the handler decides again, or ends without another append.
            Ok(Appended::Stale | Appended::Superseded | Appended::RetryTaken(_))
                // Either the entry was at fault, and the store accepts another one; or the clock
                // was, and evidence can still be used up.
                | Err(AppendError::Poisoned(_)
                    | AppendError::Unwritable(_)
                    | AppendError::ClockInDoubt(_))
        );
        if !survives {
            self.mark_used_up();
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

    /// Uses up the evidence of a call that only reads, and checks its caller against the cutoffs.
    /// A second call of this method changes nothing.
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

    /// Whether the caller is authorized by the generation `decides`, or independently of any.
    pub(super) fn rests_on(&self, decides: Option<GenerationDigest>) -> bool {
        let premises = self.state().premises.generation;
        premises.is_none_or(|generation| decides == Some(generation))
    }

    /// Replaces the state by which the caller is authorized.
    pub(super) fn set_premises(&self, premises: Premises) {
        self.state().premises = premises;
    }

    /// Registers that no evidence is left to use up, and that no cutoff is left to check.
    pub(super) fn mark_used_up(&self) {
        let mut state = self.state();
        state.unspent = Vec::new();
        state.used_up = true;
        state.judged = true;
    }

    /// Logs that the store may have deleted an earlier use of the evidence, and returns the
    /// caller's error.
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

    /// Logs that the proof was used before and its attestation was not, and returns the caller's
    /// error.
    fn replayed_proof(&self) -> BrokerError {
        let failure = AttestFailure {
            attestor: self.state().attestor.clone(),
            issuer: self.evidence.claimed_issuer(),
            ..AttestFailure::of_proof(AttestError::BadProof("it was used before"))
        };
        self.access.note_failure(self.evidence, &failure);
        BrokerError::Attestation(Box::new(failure))
    }

    /// Logs that the evidence was used before, and returns the caller's error.
    pub(super) fn replayed(&self) -> BrokerError {
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
        // One poll puts the entry into the queue. Its outcome is not needed.
        if let Some(Err(error)) = self.access.core.ledger().append(request).now_or_never() {
            tracing::warn!(%error, "the evidence of an interrupted call was not recorded as used");
        }
    }
}
