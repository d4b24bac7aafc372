//! From evidence to the acts that a caller may do. This module is the only way from one to the other.
//!
//! A public method of a service begins a `Call` and runs its story in `Call::run`. The story gets
//! `Unverified`: evidence that was not verified yet. Its methods consume it, so a story verifies once:
//!
//! - `Unverified::authenticate` gives `Authenticated`: an admin's token, or an attested workload.
//!   That is of no use by itself. It becomes a `Reader` or an `Actor`, and both judge the caller by
//!   the cutoffs first.
//! - A `Reader` exists only after the evidence was used up. It answers what the caller may read.
//! - An `Actor` appends. The entry carries the one-time ids with it, so the usual act costs one
//!   append.
//! - `Unverified::request` gives a `Requester`, whose denial by policy or by a cutoff is recorded
//!   as a decision.
//! - `Unverified::with_handle` gives a `HandleBearer`, which becomes an `Actor` for the task.
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

mod call;
mod caller;
mod evidence;
mod failures;
pub mod rate;
mod records;
mod successors;
pub mod tokens;

use std::sync::Arc;

pub(super) use self::call::Call;
pub(super) use self::caller::Caller;
pub(super) use self::evidence::{Actor, Reader, Requester, Unverified};
use self::failures::FailureLines;
use self::rate::IdentityLimiter;
pub(super) use self::successors::Gone;
use self::tokens::AdminTokens;
use super::core::Core;
use super::error::BrokerError;
use super::generations::Generations;
use crate::attest::Evidence;
use crate::attest::nonce::DpopNonces;
use crate::ledger::entry::{Premises, RequestCaller};

/// Verifies callers, and judges the acts that they may do.
pub struct Access {
    core: Core,
    generations: Arc<Generations>,
    admin_tokens: AdminTokens,
    identities: IdentityLimiter,
    failure_lines: FailureLines,
    nonces: DpopNonces,
}

impl Access {
    /// With the administrators' tokens that are configured, and the limit of requests by identity.
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

    /// Gives the nonces of DPoP proofs, and recognises them.
    #[must_use]
    pub fn dpop_nonces(&self) -> DpopNonces {
        self.nonces.clone()
    }

    /// Begins a call that presents this evidence.
    pub(super) fn call<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        Call::new(self, evidence, false)
    }

    /// Begins the one call that goes by a clock that is in doubt: the one that ends the doubt.
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

    /// Whether a caller that was let in before may go on: no cutoff blocks it meanwhile.
    pub(super) async fn check_not_blocked(&self, by: &RequestCaller) -> Result<(), BrokerError> {
        let nothing = Evidence::default();
        let call = self.call(&nothing);
        call.acts_as(by.clone());
        call.consume().await
    }
}
