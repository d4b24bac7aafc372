//! From evidence to what a caller may do. This file is the only way from one to the other.
//!
//! A public method of the broker begins a [`Call`] and runs its story in [`Call::run`]. The story gets
//! [`Unverified`]: evidence that nobody has verified. Its methods consume it, so a story verifies once:
//!
//! - [`Unverified::authenticate`] gives [`Authenticated`]: an admin's token, or an attested workload.
//!   That is of no use by itself. It becomes a [`Reader`] or an [`Actor`], and both judge the caller by
//!   the cutoffs first.
//! - A [`Reader`] exists only after the evidence was used up. It answers what the caller may read.
//! - An [`Actor`] appends. The entry carries the one-time ids with it, so the usual act costs one
//!   append.
//! - [`Unverified::request`] gives a [`Requester`], whose denial by policy or by a cutoff is recorded
//!   as a decision.
//! - [`Unverified::with_handle`] gives a [`HandleBearer`], which becomes an [`Actor`] for the task.
//!
//! No value of these types can be made elsewhere, and a call ends in `run` alone. `run` uses up what
//! was verified and not yet used up, before the caller gets the answer, on each way out of the story
//! (a 404, a 409, a 429, a failed read): evidence that was seen once cannot be sent again when it
//! would get further. If that append fails the answer is the 503.
//!
//! Each entry carries the caller too, and is refused under the ledger's lock while a cutoff blocks it.
//! The answer to a blocked caller is always that refusal, whatever else the story found.
//!
//! Each entry also carries the premises of the call: the generation and the role bindings by which the
//! caller was let in. If they have changed under the ledger's lock, nothing is recorded, and the whole
//! story runs again by what is valid then.
//!
//! A caller that disconnects, or a story that panics, never reaches the end of `run`. Then dropping
//! the call queues the consumption.
//!
//! A failure of the broker (503) uses verified evidence up like every other. Where the append that
//! carried it failed because the store could not be written or too many requests waited, the ledger
//! keeps the one-time ids, refuses them, and records their use later.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use tracing::info;

use super::admin::{ADMIN_PREFIX, Caller, only_as_bearer};
use super::generations::Active;
use super::{Broker, BrokerError};
use crate::attest::{AttestError, AttestFailure, Evidence, VerifiedEvidence, certificate, dpop};
use crate::clock::Timestamp;
use crate::domain::generation::GenerationDigest;
use crate::domain::task::Task;
use crate::domain::workload::{Identity, Instance, KeyBinding, OneTime, Workload};
use crate::ids::TaskId;
use crate::ledger::entry::{Entry, OneTimeUse, Premises, Request, RequestCaller};
use crate::ledger::{AppendError, Appended};
use crate::metrics::RateLimit;
use crate::policy::AdminAction;

/// How often a call is judged by what decides then, before it is given up.
const JUDGED_AT_MOST: u32 = 5;

/// A call under way.
pub(super) struct Call<'a> {
    broker: &'a Broker,
    evidence: &'a Evidence,
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

impl Broker {
    /// Begins a call that presents this evidence.
    pub(super) fn call<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        Call {
            broker: self,
            evidence,
            any_clock: false,
            verified: Mutex::new(Verified {
                premises: self.premises(),
                ..Verified::default()
            }),
        }
    }

    /// What decides now, as this replica knows it.
    fn premises(&self) -> Premises {
        Premises {
            generation: self.active.load().as_ref().map(|active| active.digest()),
            bindings_as_of: Some(self.ledger().basis()),
        }
    }

    /// Whether a caller that was let in before may go on: no cutoff blocks it meanwhile.
    pub(super) async fn check_not_blocked(&self, by: &RequestCaller) -> Result<(), BrokerError> {
        let nothing = Evidence::default();
        let call = self.call(&nothing);
        call.acts_as(by.clone());
        call.consume().await
    }

    /// Begins the one call that goes by a clock that is in doubt: the one that ends the doubt.
    pub(super) fn call_by_any_clock<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        let mut call = self.call(evidence);
        call.any_clock = true;
        call
    }
}

impl<'a> Call<'a> {
    /// Refuses while no evidence and no handle can be judged: while the clock is in doubt, and while
    /// so much evidence waits to be recorded as used that the replica can keep no more.
    fn check_open(&self) -> Result<(), BrokerError> {
        self.broker.ledger().check_evidence_room()?;
        if self.any_clock {
            return Ok(());
        }
        self.broker.check_clock()
    }

    /// Verifies the evidence of a workload. From here on it is used up on every way out.
    async fn appraise(&self, active: &Active, now: Timestamp) -> Result<Workload, BrokerError> {
        self.check_open()?;
        let broker = self.broker;
        let appraised = active.attestors.appraise(self.evidence, now).await;
        let workload = appraised.map_err(|mut failure| {
            if let Some(verified) = failure.verified.take() {
                self.unproven(*verified);
            }
            broker.refuse_evidence(self.evidence, failure)
        })?;
        self.attested(&workload);
        broker
            .parts
            .identities
            .check(&workload.identity)
            .inspect_err(|_| broker.metrics().rate_limited(RateLimit::Identity))?;
        Ok(workload)
    }

    /// Refuses a blocked caller before anything is looked up for it. Each entry that it appends is
    /// judged again under the ledger's lock.
    async fn refuse_if_blocked(&self, caller: &Caller) -> Result<(), BrokerError> {
        if !self.may_be_blocked() {
            return Ok(());
        }
        let may_lift = self.broker.may(caller, AdminAction::LiftCutoff);
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
    fn proved(&self, proof: OneTime) {
        let mut state = self.state();
        if !state.settled {
            state.unspent = vec![proof];
        }
    }

    /// Registers the caller, to be judged by the cutoffs with each entry.
    fn acts_as(&self, by: RequestCaller) {
        self.state().by = Some(by);
    }

    /// The caller, if it is one that cutoffs can match.
    fn by(&self) -> Option<RequestCaller> {
        self.state().by.clone()
    }

    /// Registers the task that the call keeps alive or lends from.
    fn acts_for(&self, task: TaskId) {
        if let Some(by) = &mut self.state().by {
            by.task = Some(task);
        }
    }

    /// Names what the call is about, for a refusal.
    fn name_act(&self, act: &'static str) {
        if let Some(by) = &mut self.state().by {
            by.act = act;
        }
    }

    /// Registers that no generation lets the caller in, so that none can shut it out.
    fn rests_on_no_generation(&self) {
        self.state().premises.generation = None;
    }

    /// Registers whether policy lets the caller lift cutoffs.
    fn may_lift(&self, may_lift: bool) {
        if let Some(by) = &mut self.state().by {
            by.may_lift = may_lift;
        }
    }

    /// Whether a cutoff blocks the caller, as far as this replica knows.
    fn may_be_blocked(&self) -> bool {
        let ledger = self.broker.ledger();
        let state = self.state();
        let by = state.by.as_ref();
        by.is_some_and(|by| ledger.may_block(&by.identity, &by.attestor))
    }

    /// Whether a cutoff blocks the caller of a decision. Where this replica knows of none, the
    /// append that records the decision tells.
    async fn is_blocked(&self) -> Result<bool, BrokerError> {
        if !self.may_be_blocked() {
            return Ok(false);
        }
        let request = Request {
            entry: Entry::Consume,
            one_time: OneTimeUse {
                by: self.by(),
                ..OneTimeUse::default()
            },
            at: self.broker.now(),
        };
        let appended = self.broker.ledger().append(request).await?;
        Ok(matches!(appended, Appended::Blocked(_)))
    }

    /// Binds the evidence, however the call ends: what was used with this binding before may be used
    /// with it again.
    fn bind(&self, binding: [u8; 32]) {
        if let Some(evidence) = self.state().unspent.first_mut() {
            evidence.binding = Some(binding);
        }
    }

    /// Appends an entry, with the call's evidence if no other entry has used that up.
    async fn append(&self, entry: Entry, at: Timestamp) -> Result<Appended, BrokerError> {
        self.append_with(entry, at, |_| {}).await
    }

    /// The same, after `adjust` has added to the one-time ids or bound the evidence's own.
    async fn append_with(
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
        let appended = self.broker.ledger().append(request).await;
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
                self.broker.metrics().blocked_call(blocked.act);
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
    async fn consume(&self) -> Result<(), BrokerError> {
        {
            let state = self.state();
            if state.unspent.is_empty() && (state.by.is_none() || state.judged) {
                return Ok(());
            }
        }
        match self.append(Entry::Consume, self.broker.now()).await? {
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Ok(()),
        }
    }

    /// Whether the call has no evidence that an append must record as used.
    fn uses_nothing_up(&self) -> bool {
        self.state().unspent.is_empty()
    }

    /// Whether the caller is let in by the generation that decides, or by none.
    fn rests_on(&self, decides: Option<GenerationDigest>) -> bool {
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
    pub(super) async fn run<'c, T, S>(
        &'c self,
        story: impl Fn(Unverified<'c>) -> S,
    ) -> Result<T, BrokerError>
    where
        S: Future<Output = Result<T, BrokerError>>,
    {
        let mut judged = 0;
        loop {
            let superseded = match self.tell(story(Unverified { call: self })).await {
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
        self.broker.follow_generation().await?;
        self.state().premises = self.broker.premises();
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
        self.broker.note_failure(self.evidence, &failure);
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
        self.broker.note_failure(self.evidence, &failure);
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
        self.broker.note_failure(self.evidence, &failure);
        next_at.map_or(BrokerError::Replayed, |next_at| BrokerError::UsedUp {
            next_at,
        })
    }
}

/// Evidence that a caller presents and that nobody has verified yet.
#[must_use]
pub(super) struct Unverified<'c> {
    call: &'c Call<'c>,
}

impl<'c> Unverified<'c> {
    /// Verifies who calls: an administrator's token, or an attested workload, whose roles are read.
    pub(super) async fn authenticate(self) -> Result<Authenticated<'c>, BrokerError> {
        let call = self.call;
        call.check_open()?;
        let (broker, evidence) = (call.broker, call.evidence);
        if let Some(token) = &evidence.bearer
            && token.expose_secret().starts_with(ADMIN_PREFIX)
        {
            let bearer = broker.token_bearer(token.expose_secret(), evidence, broker.now());
            let caller = bearer.await?;
            only_as_bearer(evidence)
                .map_err(|failure| broker.refuse_evidence(evidence, failure))?;
            return Ok(Authenticated { call, caller });
        }
        let active = broker.active()?;
        let workload = call.appraise(&active, broker.now()).await?;
        let roles = broker.roles(&workload.identity).await?;
        let caller = Caller::workload(workload, roles);
        Ok(Authenticated { call, caller })
    }

    /// A caller that reads what is its own, or what its rights allow.
    pub(super) async fn read(self) -> Result<Reader<'c>, BrokerError> {
        self.authenticate().await?.read().await
    }

    /// A caller that reads by this right. Without the right it is refused.
    pub(super) async fn read_as(self, action: AdminAction) -> Result<Reader<'c>, BrokerError> {
        self.act_as(action).await?.into_reader().await
    }

    /// A caller that acts by this right. Without the right it is refused.
    pub(super) async fn act_as(self, action: AdminAction) -> Result<Actor<'c>, BrokerError> {
        self.authenticate().await?.act_as(action).await
    }

    /// A workload that requests a task or a credential. Its roles are not read.
    pub(super) async fn request(
        self,
        active: &Active,
        now: Timestamp,
    ) -> Result<Requester<'c>, BrokerError> {
        let call = self.call;
        let workload = call.appraise(active, now).await?;
        Ok(Requester { call, workload })
    }

    /// Verifies the key that is proved beside a task's handle. The handle itself is the story's to
    /// compare.
    pub(super) fn with_handle(self, now: Timestamp) -> Result<HandleBearer<'c>, BrokerError> {
        let call = self.call;
        call.check_open()?;
        let evidence = call.evidence;
        let proof = dpop::of_request(evidence, now).map_err(|error| {
            call.broker
                .refuse_evidence(evidence, AttestFailure::of_proof(error))
        })?;
        if let Some(proof) = &proof {
            call.proved(proof.one_time);
        }
        let key = match proof {
            Some(proof) => Some(proof.key),
            None => certificate::key(evidence),
        };
        Ok(HandleBearer { call, key })
    }
}

/// A caller whose evidence was verified and is not used up yet.
#[must_use]
pub(super) struct Authenticated<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl<'c> Authenticated<'c> {
    /// A caller that reads. Its evidence is used up.
    pub(super) async fn read(self) -> Result<Reader<'c>, BrokerError> {
        self.act().await?.into_reader().await
    }

    /// A caller that acts on what is its own, or by rights that the story asks for.
    pub(super) async fn act(self) -> Result<Actor<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.refuse_if_blocked(&caller).await?;
        Ok(Actor { call, caller })
    }

    /// A caller that acts by this right. Without the right it is refused.
    pub(super) async fn act_as(self, action: AdminAction) -> Result<Actor<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.name_act(action.as_str());
        // The append of a lift judges whether a blocked admin may lift this very cutoff.
        let lifts = action == AdminAction::LiftCutoff;
        if !lifts {
            call.refuse_if_blocked(&caller).await?;
        }
        if caller.is_bootstrap() && action.always_open_to_bootstrap() {
            call.rests_on_no_generation();
        }
        if call.broker.may(&caller, action)? {
            call.may_lift(lifts);
            return Ok(Actor { call, caller });
        }
        Err(BrokerError::Forbidden(action.as_str()))
    }
}

/// A caller that shows a task's handle.
#[must_use]
pub(super) struct HandleBearer<'c> {
    call: &'c Call<'c>,
    key: Option<KeyBinding>,
}

impl<'c> HandleBearer<'c> {
    /// The key that it proved.
    pub(super) fn key(&self) -> Option<&KeyBinding> {
        self.key.as_ref()
    }

    /// The same, once the story has found the handle to be that of `task`.
    pub(super) fn for_task(self, task: &Task) -> Actor<'c> {
        let call = self.call;
        call.acts_as(RequestCaller::by_handle(task));
        let caller = Caller::by_handle();
        Actor { call, caller }
    }
}

/// A caller whose evidence was used up, and which no cutoff blocked then.
pub(super) struct Reader<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl Reader<'_> {
    /// Whether it may act on the broker in this way.
    pub(super) fn may(&self, action: AdminAction) -> Result<bool, BrokerError> {
        self.call.broker.may(&self.caller, action)
    }

    /// Whether something of this identity and instance is its own.
    pub(super) fn owns(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        self.caller.owns(identity, instance)
    }

    /// Its identity, where it has one.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.caller.identity()
    }

    /// The caller.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The caller, as cutoffs match it.
    pub(super) fn as_matched(&self) -> Option<RequestCaller> {
        self.call.by()
    }
}

/// A caller that appends. Each entry uses its evidence up, if nothing has yet.
#[must_use]
pub(super) struct Actor<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl<'c> Actor<'c> {
    /// Whether it may act on the broker in this way.
    pub(super) fn may(&self, action: AdminAction) -> Result<bool, BrokerError> {
        self.call.broker.may(&self.caller, action)
    }

    /// The caller.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The name under which its acts are recorded.
    pub(super) fn name(&self) -> String {
        self.caller.name()
    }

    /// Registers the task that the call keeps alive or lends from: a cutoff that blocks it, or a task
    /// above it, refuses the call.
    pub(super) fn keeps_alive(&self, task: TaskId) {
        self.call.acts_for(task);
    }

    /// Appends an entry.
    pub(super) async fn append(
        &self,
        entry: Entry,
        at: Timestamp,
    ) -> Result<Appended, BrokerError> {
        self.call.append(entry, at).await
    }

    /// Appends an act that either is recorded or changes nothing.
    pub(super) async fn record(&self, entry: Entry) -> Result<(), BrokerError> {
        match self.append(entry, self.call.broker.now()).await? {
            Appended::Recorded(_) | Appended::Unchanged => Ok(()),
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::FailClosed("the act was not recorded".into())),
        }
    }

    /// Whether the store can judge the caller together with its act, so that no append has to: the
    /// call has no evidence that an append must record as used, and it rests on the generation that
    /// decides, or on none.
    pub(super) fn can_be_judged_by_the_store(&self, decides: Option<GenerationDigest>) -> bool {
        self.call.uses_nothing_up() && self.call.rests_on(decides)
    }

    /// Ends a call of such a caller: the store has judged it by the cutoffs, and done the act.
    pub(super) fn was_judged_by_the_store(self) {
        self.call.state().judged = true;
    }

    /// Uses the evidence up before the act: for an act that writes, reads or computes much first.
    pub(super) async fn use_up(&self) -> Result<(), BrokerError> {
        self.call.consume().await
    }

    /// The same caller, which reads and appends no more.
    pub(super) async fn into_reader(self) -> Result<Reader<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.consume().await?;
        Ok(Reader { call, caller })
    }
}

/// A workload that requests a task or a credential.
#[must_use]
pub(super) struct Requester<'c> {
    call: &'c Call<'c>,
    workload: Workload,
}

impl Requester<'_> {
    /// The workload that was attested.
    pub(super) fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether a cutoff blocks it. Where this replica knows of none, the append of the decision tells.
    pub(super) async fn is_blocked(&self) -> Result<bool, BrokerError> {
        self.call.is_blocked().await
    }

    /// Binds its evidence, however the call ends: what was used with this binding before may be used
    /// with it again.
    pub(super) fn bind(&self, binding: [u8; 32]) {
        self.call.bind(binding);
    }

    /// Appends the decision, after `adjust` has added to the one-time ids or bound the evidence's own.
    pub(super) async fn append_with(
        &self,
        entry: Entry,
        at: Timestamp,
        adjust: impl FnOnce(&mut Vec<OneTime>),
    ) -> Result<Appended, BrokerError> {
        self.call.append_with(entry, at, adjust).await
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let one_time = std::mem::take(&mut self.state().unspent);
        if one_time.is_empty() {
            return;
        }
        let request = Request {
            entry: Entry::Consume,
            one_time: one_time.into(),
            at: self.broker.now(),
        };
        // One poll puts the entry into the queue, and nobody has to wait for what becomes of it.
        if let Some(Err(error)) = self.broker.ledger().append(request).now_or_never() {
            tracing::warn!(%error, "the evidence of a call that broke off was not used up");
        }
    }
}
