//! From evidence to the caller: each step consumes the one before it.
//!
//! The order is `Unverified`, then `Authenticated`, `Requester` or `HandleBearer`, then `Actor`,
//! then `Reader`. The types are the guarantee: an `Actor` or a `Reader` exists only for verified
//! evidence; a `Reader` only after the evidence was used up.
//!
//! Failures: evidence that does not verify is `Attestation` or, if the broker or the issuer is at
//! fault, `AttestationUnavailable`; a missing right is `Forbidden`; a caller that a revocation
//! blocks gets `Blocked`. A handle that does not fit gives `None`, and the caller of this module
//! answers "not found". A blocked requester gets no error here: the denial is recorded as a
//! decision. The services call these methods in the handlers that they pass to `Call::run`.
//! `attest` verifies tokens and proofs, `super::tokens` the admins' tokens, and `super::call` uses
//! the evidence up.

use secrecy::{ExposeSecret as _, SecretString};

use super::call::Call;
use super::caller::Caller;
use super::tokens::{ADMIN_PREFIX, only_as_bearer};
use crate::attest::{AttestFailure, certificate, dpop};
use crate::broker::active::Active;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::digests_equal;
use crate::crypto::random::token_digest;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::task::Task;
use crate::domain::workload::{Identity, Instance, KeyBinding, OneTime, Workload};
use crate::ids::TaskId;
use crate::ledger::Appended;
use crate::ledger::entry::{Entry, RequestCaller};
use crate::policy::AdminAction;
use crate::store::Store;

/// Evidence that a caller presents and that the broker has not verified yet.
#[must_use]
pub(in crate::broker) struct Unverified<'c> {
    call: &'c Call<'c>,
}

impl<'c> Unverified<'c> {
    /// The evidence of a call.
    pub(super) fn of(call: &'c Call<'c>) -> Self {
        Self { call }
    }

    /// Authenticates the caller by an admin's token or by the attestation of a workload. It also
    /// reads the workload's roles.
    pub(in crate::broker) async fn authenticate(self) -> Result<Authenticated<'c>, BrokerError> {
        let call = self.call;
        call.check_open()?;
        let (access, evidence) = (call.access, call.evidence);
        if let Some(token) = &evidence.bearer
            && token.expose_secret().starts_with(ADMIN_PREFIX)
        {
            let bearer = access.token_bearer(token.expose_secret(), evidence, access.core.now());
            let caller = bearer.await?;
            only_as_bearer(evidence)
                .map_err(|failure| access.refuse_evidence(evidence, failure))?;
            return Ok(Authenticated { call, caller });
        }
        let active = access.core.active()?;
        let workload = call.appraise(&active, access.core.now()).await?;
        let roles = access.roles(&workload.identity).await?;
        let caller = Caller::workload(workload, roles);
        Ok(Authenticated { call, caller })
    }

    /// A caller that reads its own records, or those that its rights allow.
    pub(in crate::broker) async fn read(self) -> Result<Reader<'c>, BrokerError> {
        self.authenticate().await?.read().await
    }

    /// A caller that reads by this right. Without the right it is refused.
    pub(in crate::broker) async fn read_as(
        self,
        action: AdminAction,
    ) -> Result<Reader<'c>, BrokerError> {
        self.act_as(action).await?.into_reader().await
    }

    /// A caller that acts by this right. Without the right it is refused.
    pub(in crate::broker) async fn act_as(
        self,
        action: AdminAction,
    ) -> Result<Actor<'c>, BrokerError> {
        self.authenticate().await?.act_as(action).await
    }

    /// A workload that requests a task or a credential. Its roles are not read.
    pub(in crate::broker) async fn request(
        self,
        active: &Active,
        now: Timestamp,
    ) -> Result<Requester<'c>, BrokerError> {
        let call = self.call;
        let workload = call.appraise(active, now).await?;
        Ok(Requester { call, workload })
    }

    /// Verifies the proof of a key that accompanies a task's handle. [`HandleBearer::for_task`]
    /// compares the handle itself.
    pub(in crate::broker) fn with_handle(
        self,
        handle: &SecretString,
        now: Timestamp,
    ) -> Result<HandleBearer<'c>, BrokerError> {
        let call = self.call;
        call.check_open()?;
        let evidence = call.evidence;
        let proof = dpop::of_request(evidence, now).map_err(|error| {
            call.access
                .refuse_evidence(evidence, AttestFailure::of_proof(error))
        })?;
        if let Some(proof) = &proof {
            call.proved(proof.one_time);
        }
        let key = match proof {
            Some(proof) => Some(proof.key),
            None => certificate::key(evidence),
        };
        let digest = token_digest(handle.expose_secret());
        Ok(HandleBearer { call, digest, key })
    }
}

/// A caller whose evidence was verified and is not used up yet.
#[must_use]
pub(in crate::broker) struct Authenticated<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl<'c> Authenticated<'c> {
    /// A caller that reads. This uses its evidence up.
    pub(in crate::broker) async fn read(self) -> Result<Reader<'c>, BrokerError> {
        self.act().await?.into_reader().await
    }

    /// A caller that acts on its own records, or by rights that the handler checks.
    pub(in crate::broker) async fn act(self) -> Result<Actor<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.refuse_if_blocked(&caller).await?;
        Ok(Actor { call, caller })
    }

    /// A caller that acts by this right. Without the right it is refused.
    pub(in crate::broker) async fn act_as(
        self,
        action: AdminAction,
    ) -> Result<Actor<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.name_act(action.as_str());
        // The append of a lift decides whether a blocked admin may lift this cutoff.
        let lifts = action == AdminAction::LiftCutoff;
        if !lifts {
            call.refuse_if_blocked(&caller).await?;
        }
        if caller.is_bootstrap() && action.always_open_to_bootstrap() {
            call.rests_on_no_generation();
        }
        if call.access.may(&caller, action)? {
            call.may_lift(lifts);
            return Ok(Actor { call, caller });
        }
        Err(BrokerError::Forbidden(action.as_str()))
    }
}

/// A caller that shows a task's handle.
#[must_use]
pub(in crate::broker) struct HandleBearer<'c> {
    call: &'c Call<'c>,
    /// The digest of the handle.
    digest: [u8; 32],
    /// The key that the caller proved. `None` if it proved none.
    key: Option<KeyBinding>,
}

impl<'c> HandleBearer<'c> {
    /// An actor for the owner of `task`. `None` if the handle is not that of `task`, or if the
    /// caller did not prove the key that the handle is bound to.
    pub(in crate::broker) fn for_task(self, task: &Task) -> Option<Actor<'c>> {
        let Self { call, digest, key } = self;
        let fits = digests_equal(&digest, &task.handle_digest) && task.fits_key(key.as_ref());
        fits.then(|| {
            call.acts_as(RequestCaller::by_handle(task));
            let caller = Caller::by_handle();
            Actor { call, caller }
        })
    }
}

/// A caller whose evidence was used up and that no cutoff blocked at that moment.
pub(in crate::broker) struct Reader<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl Reader<'_> {
    /// Whether policy permits the caller this act.
    pub(in crate::broker) fn may(&self, action: AdminAction) -> Result<bool, BrokerError> {
        self.call.access.may(&self.caller, action)
    }

    /// Whether a record of this identity and instance belongs to the caller.
    pub(in crate::broker) fn owns(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        self.caller.owns(identity, instance)
    }

    pub(super) fn store(&self) -> &Store {
        self.call.access.core.store()
    }

    /// Its identity. `None` for a token or a handle.
    pub(in crate::broker) fn identity(&self) -> Option<&Identity> {
        self.caller.identity()
    }

    pub(in crate::broker) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The caller, as cutoffs match it.
    pub(in crate::broker) fn as_matched(&self) -> Option<RequestCaller> {
        self.call.by()
    }
}

/// A caller that appends. Its first entry uses its evidence up.
#[must_use]
pub(in crate::broker) struct Actor<'c> {
    call: &'c Call<'c>,
    caller: Caller,
}

impl<'c> Actor<'c> {
    /// Whether policy permits the caller this act.
    pub(in crate::broker) fn may(&self, action: AdminAction) -> Result<bool, BrokerError> {
        self.call.access.may(&self.caller, action)
    }

    pub(in crate::broker) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The name under which its acts are recorded.
    pub(in crate::broker) fn name(&self) -> String {
        self.caller.name()
    }

    /// Registers the task that the call keeps alive or lends from. The call is refused if a cutoff
    /// blocks that task or one of its ancestors.
    pub(in crate::broker) fn keeps_alive(&self, task: TaskId) {
        self.call.acts_for(task);
    }

    pub(in crate::broker) async fn append(
        &self,
        entry: Entry,
        at: Timestamp,
    ) -> Result<Appended, BrokerError> {
        self.call.append(entry, at).await
    }

    /// Appends an act. Any outcome other than recorded or unchanged is an error.
    pub(in crate::broker) async fn record(&self, entry: Entry) -> Result<(), BrokerError> {
        match self.append(entry, self.call.access.core.now()).await? {
            Appended::Recorded(_) | Appended::Unchanged => Ok(()),
            Appended::Replayed(_) => Err(BrokerError::Replayed),
            _ => Err(BrokerError::ledger("the act was not recorded")),
        }
    }

    /// Whether the store can check the caller in the statement of its act, without an append. This
    /// requires that the call has no evidence that an append must record as used, and that the
    /// caller is authorized by the generation `decides` or independently of any.
    pub(in crate::broker) fn can_be_judged_by_the_store(
        &self,
        decides: Option<GenerationDigest>,
    ) -> bool {
        self.call.uses_nothing_up() && self.call.rests_on(decides)
    }

    /// Ends the call of such a caller after the store has checked it against the cutoffs and done
    /// the act.
    pub(in crate::broker) fn was_judged_by_the_store(self) {
        self.call.was_judged();
    }

    /// Uses the evidence up before the act. Acts that first write, read or compute much do this.
    pub(in crate::broker) async fn use_up(&self) -> Result<(), BrokerError> {
        self.call.consume().await
    }

    /// Converts the actor into a reader. This uses its evidence up.
    pub(in crate::broker) async fn into_reader(self) -> Result<Reader<'c>, BrokerError> {
        let Self { call, caller } = self;
        call.consume().await?;
        Ok(Reader { call, caller })
    }
}

/// A workload that requests a task or a credential.
#[must_use]
pub(in crate::broker) struct Requester<'c> {
    call: &'c Call<'c>,
    workload: Workload,
}

impl Requester<'_> {
    /// The workload that was attested.
    pub(in crate::broker) fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether a cutoff blocks it. If this replica knows of none, the append of the decision checks
    /// it.
    pub(in crate::broker) async fn is_blocked(&self) -> Result<bool, BrokerError> {
        self.call.is_blocked().await
    }

    /// Binds its evidence, even if the call fails later: evidence that was used with this binding
    /// before may be used with it again.
    pub(in crate::broker) fn bind(&self, binding: [u8; 32]) {
        self.call.bind(binding);
    }

    /// Appends the decision, after `adjust` has added to the one-time ids or bound the evidence's
    /// own.
    pub(in crate::broker) async fn append_with(
        &self,
        entry: Entry,
        at: Timestamp,
        adjust: impl FnOnce(&mut Vec<OneTime>),
    ) -> Result<Appended, BrokerError> {
        self.call.append_with(entry, at, adjust).await
    }
}
