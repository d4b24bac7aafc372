//! Authenticates callers and authorizes their acts. No other module does either.
//!
//! A public method of a service begins a `Call` and passes its handler to `Call::run`. The handler
//! gets `Unverified`: evidence that was not verified yet. The methods of `Unverified` consume it,
//! so a handler verifies once:
//!
//! - `Unverified::authenticate` gives `Authenticated`: an admin's token, or an attested workload.
//!   It permits nothing by itself. It becomes a `Reader` or an `Actor`, and both first check the
//!   caller against the cutoffs.
//! - A `Reader` exists only after the evidence was used up. It reads the records that the caller
//!   may see.
//! - An `Actor` appends. The entry carries the call's one-time ids, so most acts cost one append.
//! - `Unverified::request` gives a `Requester`. If policy or a cutoff denies its request, the
//!   denial is recorded as a decision.
//! - `Unverified::with_handle` gives a `HandleBearer`, which becomes an `Actor` for the task.
//!
//! Only this module makes values of these types, and only `run` ends a call. Before the caller gets
//! an answer, `run` uses up all verified evidence that no append has used up yet. It does so on
//! each way out of the handler (a 404, a 409, a 429, a failed read), so that evidence that was
//! presented once cannot be sent again after conditions have changed. If the store cannot record
//! the use, the answer is 503; if the evidence was used before, it is 401.
//!
//! Each entry also carries the caller. The ledger refuses the entry under its lock if a cutoff
//! blocks the caller. A blocked caller gets that refusal even if the handler found another error,
//! unless that error is a failure of the broker.
//!
//! Each entry also carries the premises of the call: the generation and the role bindings by which
//! the caller was authorized. If they have changed when the ledger holds its lock, it records
//! nothing, and the whole handler runs again with the new generation and bindings.
//!
//! If a caller disconnects or a handler panics, the end of `run` is not reached. Dropping the call
//! then queues the consumption of its evidence.
//!
//! A failure of the broker (503) also uses verified evidence up. If the append that carried it
//! failed because the store could not be written or too many requests waited, the ledger keeps the
//! one-time ids, refuses them, and records their use later.
//!
//! The services of `broker` call this module. It calls `attest` to verify evidence, `policy` to
//! permit acts and the ledger to append; it renders no answer.

mod call;
mod caller;
mod evidence;
mod failures;
pub mod rate;
mod records;
mod run;
mod successors;
pub mod tokens;

use std::sync::Arc;

pub(super) use self::call::Call;
pub(super) use self::caller::Caller;
pub(super) use self::evidence::{Actor, Reader, Requester, Unverified};
use self::failures::FailureLines;
use self::rate::IdentityLimiter;
pub(super) use self::successors::Removal;
use self::tokens::AdminTokens;
use super::core::Core;
use super::error::BrokerError;
use super::generations::Generations;
use crate::attest::Evidence;
use crate::attest::nonce::DpopNonces;
use crate::ledger::entry::{Premises, RequestCaller};

/// Authenticates callers and authorizes their acts.
pub struct Access {
    core: Core,
    generations: Arc<Generations>,
    admin_tokens: AdminTokens,
    identities: IdentityLimiter,
    failure_lines: FailureLines,
    nonces: DpopNonces,
}

impl Access {
    pub(super) fn new(
        core: Core,
        generations: Arc<Generations>,
        admin_tokens: AdminTokens,
        identities: IdentityLimiter,
        nonces: DpopNonces,
    ) -> Self {
        Self {
            core,
            generations,
            admin_tokens,
            identities,
            failure_lines: FailureLines::default(),
            nonces,
        }
    }

    /// Makes and checks the nonces of DPoP proofs.
    #[must_use]
    pub fn dpop_nonces(&self) -> DpopNonces {
        self.nonces.clone()
    }

    /// Begins a call that presents this evidence.
    pub(super) fn call<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        Call::new(self, evidence, false)
    }

    /// Begins a call that is accepted while the clock is in doubt. Only the call that ends the
    /// doubt uses this.
    pub(super) fn call_by_any_clock<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        Call::new(self, evidence, true)
    }

    /// The premises of a call that begins now, as this replica knows them.
    fn premises(&self) -> Premises {
        Premises {
            generation: self.core.active_digest(),
            bindings_as_of: Some(self.core.ledger().basis()),
        }
    }

    /// Refuses a caller that was authorized earlier if a cutoff blocks it now.
    pub(super) async fn check_not_blocked(&self, by: &RequestCaller) -> Result<(), BrokerError> {
        let nothing = Evidence::default();
        let call = self.call(&nothing);
        call.acts_as(by.clone());
        call.consume().await
    }
}
