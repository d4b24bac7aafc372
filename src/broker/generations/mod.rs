//! Checks and loads generations, and follows the active one of the store.
//!
//! A generation is checked, stored whole under its digest, and activated by an admin's act, which
//! is a leaf. From that leaf on, the ledger compares generations on every append: a request that
//! another generation decided is decided again. Each replica compiles the document from the store;
//! policy files on the replica's host never decide.
//!
//! `check_for_call` checks a document for an admin. `follow` loads the active generation of the
//! store, and `take_over` makes it decide here. `loads` limits the replica to one load at a time.
//!
//! The rule: a generation that does not compile, whose activation has a wrong MAC, or whose
//! document does not match its digest never replaces one that decides.
//!
//! Failures: `follow` then returns `FailClosed`, and `behind` says why until it succeeds; readiness
//! reports that text. A call that waits too long for its load gets `Overloaded`. A generation that
//! cannot decide is `Unfit`.
//!
//! [`Generations`] knows no callers: [`super::administration`] holds the acts of admins on
//! generations. `broker::check` does the check itself. The sweeper, `access` and `app` call
//! `follow`.

mod loads;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{error, warn};

use self::loads::{LoadSlot, Loads};
use super::active::Active;
use super::check::{Unfit, check_generation};
use super::core::Core;
use super::error::BrokerError;
use super::keys::Keys;
use crate::attest::{AttestContext, AttestError, NO_ATTESTOR, WorkloadKeys};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, sha256};
use crate::domain::endpoint::EndpointsDigest;
use crate::domain::generation::Generation;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::trust::AttestorSpec;
use crate::endpoints::EndpointTable;

/// The inputs of attestors that their specification does not hold.
#[derive(Clone)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct AttestationTrust {
    /// The broker's own issuers and audiences. No attestor and no resource may have one of them.
    pub own_audiences: Vec<String>,
    /// Evidence that was issued earlier is refused. `None` if there is no such limit.
    pub not_before: Option<Timestamp>,
    /// The registered keys of workloads.
    pub workload_keys: Arc<dyn WorkloadKeys>,
    /// Tracks the refreshes of issuers' keys.
    pub tracker: tokio_util::task::TaskTracker,
    pub endpoints: Arc<EndpointTable>,
    /// Whether issuers may have http URLs: only in development mode.
    pub plain_issuers: bool,
}

/// Checks generations, and follows the active one.
pub struct Generations {
    core: Core,
    keys: Arc<Keys>,
    mac: Mac,
    trust: AttestationTrust,
    loads: Loads,
    /// Why this replica is behind the active generation of the store. `None` if it is not behind.
    behind: ArcSwap<Option<String>>,
}

impl Generations {
    /// Loads no generation yet: [`Self::follow`] does.
    pub(super) fn new(core: Core, keys: Arc<Keys>, mac: Mac, trust: AttestationTrust) -> Self {
        let unattributed = [NO_ATTESTOR].into_iter();
        core.metrics()
            .attestors(unattributed, &AttestError::REASONS);
        Self {
            core,
            keys,
            mac,
            trust,
            loads: Loads::default(),
            behind: ArcSwap::from_pointee(None),
        }
    }

    /// The digest of this replica's endpoints.
    #[must_use]
    pub fn endpoints_digest(&self) -> EndpointsDigest {
        self.trust.endpoints.digest()
    }

    /// Why this replica is behind the active generation of the store. `None` if it is not behind.
    pub(super) fn behind(&self) -> Option<String> {
        self.behind.load().as_ref().clone()
    }

    /// Checks everything that activation would check, and returns the generation, ready to decide.
    ///
    /// Waits until no other generation is being loaded, without a limit.
    async fn check_generation(&self, generation: Generation) -> Result<Active, Unfit> {
        let slot = self.loads.slot().await;
        self.check_in(slot, generation).await
    }

    /// Checks a generation for a call, and returns it, ready to decide. Waits for another load at
    /// most `LOAD_WAIT_SECONDS`; after that the call fails as overloaded.
    pub(super) async fn check_for_call(
        &self,
        generation: Generation,
    ) -> Result<Active, BrokerError> {
        let slot = self.loads.slot_for_call().await?;
        Ok(self.check_in(slot, generation).await?)
    }

    async fn check_in(&self, slot: LoadSlot, generation: Generation) -> Result<Active, Unfit> {
        let trust = self.trust.clone();
        let issuer = self.core.issuer().to_owned();
        load(generation, trust, issuer, slot).await
    }

    /// Makes the active generation of the store decide on this replica.
    pub async fn follow(&self) -> Result<(), BrokerError> {
        let Some(activation) = self.core.store().active_generation().await? else {
            return Ok(());
        };
        let digest = activation.sealed.claimed();
        let fell_behind = |why: String| {
            error!(generation = %digest, %why, "this replica cannot follow the active generation");
            self.set_behind(Some(format!(
                "behind the active generation {digest}: {why}"
            )));
            BrokerError::policy("behind the active generation")
        };
        // Write access to the table must not suffice to choose the generation that decides, or to
        // keep an old one.
        let genuine = activation.sealed.open(&self.mac);
        genuine.map_err(|_| fell_behind("the broker did not activate it".into()))?;
        if self.core.active_digest() == Some(digest) {
            self.set_behind(None);
            return Ok(());
        }
        let bytes = self.core.store().generation(digest).await?;
        let bytes = bytes.ok_or_else(|| fell_behind("its document is missing".into()))?;
        if GenerationDigest::new(sha256(&bytes)) != digest {
            return Err(fell_behind("its document does not fit its digest".into()));
        }
        let generation: Generation =
            serde_json::from_slice(&bytes).map_err(|error| fell_behind(error.to_string()))?;
        let compiled = self.check_generation(generation).await;
        let active = compiled.map_err(|unfit| {
            fell_behind(match unfit {
                // Readiness shows this text to every client.
                Unfit::Policy(problems) => {
                    format!("{} problem(s) in the generation", problems.len())
                }
                other => other.to_string(),
            })
        })?;
        self.take_over(active).await;
        Ok(())
    }

    /// Makes a generation decide on this replica that is active in the store.
    pub(super) async fn take_over(&self, active: Active) {
        let now = self.core.now();
        self.core.metrics().generation_active(&active.digest());
        self.core
            .metrics()
            .observing(active.policy().observing(now));
        let names = active.policy().attestors().iter().map(AttestorSpec::name);
        let names = names.chain([NO_ATTESTOR]);
        self.core.metrics().attestors(names, &AttestError::REASONS);
        for (policy, until) in active.policy().observing(now) {
            warn!(%policy, enforced_from = %until, "a policy only observes: not enforced yet");
        }
        self.core.set_active(active);
        self.set_behind(None);
        self.keys.prepare_federation().await;
    }

    fn set_behind(&self, why: Option<String>) {
        self.core.metrics().generation_behind(why.is_some());
        self.behind.store(Arc::new(why));
    }
}

async fn load(
    generation: Generation,
    trust: AttestationTrust,
    issuer: String,
    slot: LoadSlot,
) -> Result<Active, Unfit> {
    let context = AttestContext {
        own_issuer: issuer,
        own_issuers: trust.own_audiences,
        not_before: trust.not_before,
        tracker: trust.tracker,
        workload_keys: trust.workload_keys,
        endpoints: trust.endpoints,
        plain_issuers: trust.plain_issuers,
    };
    // Parsing and validating take much CPU time, so they do not run on async threads.
    let checked = tokio::task::spawn_blocking(move || {
        // The load continues even if its caller disconnects, so the slot stays taken until its end.
        let _slot = slot;
        check_generation(&generation, context, None)
    });
    let checked = checked.await;
    let fit = checked.map_err(|error| Unfit::Unchecked(error.to_string()))??;
    Ok(Active::new(fit.compiled, fit.attestors))
}
