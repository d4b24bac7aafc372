//! The stories: what a call does, from the evidence to the answer.
//!
//! [`access`] leads from evidence to what its caller may do: every other file goes through it.
//!
//! Start with [`issue`]: it reads top to bottom as a request is handled. The others are shorter:
//! [`tasks`] open and end, [`revoke`] and [`introspect`] speak of sessions, [`admin`] says who may
//! do what to the broker, [`generations`] and [`keys`] keep what decides and what signs.
//!
//! Doors call these and nothing below; nothing here knows of HTTP or SQL.

mod access;
pub mod admin;
mod admit;
pub mod check;
pub mod clock;
mod decisions;
mod deny_lists;
mod deny_reconcile;
pub mod error;
pub mod failures;
pub mod generations;
pub mod introspect;
pub mod issue;
mod key_changes;
pub mod keys;
mod loads;
pub mod orphans;
pub mod proof;
pub mod rate;
pub mod replicas;
mod reseal;
pub mod revoke;
pub mod sessions;
mod statements;
pub mod status_lists;
pub mod succession;
pub mod tasks;
pub mod workloads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};

use self::admin::AdminTokens;
pub use self::error::{BrokerError, Denied, Exceeded};
use self::generations::{Active, Trust};
use self::replicas::OtherEndpoints;
use crate::attest::AttestError;
use crate::attest::nonce::DpopNonces;
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::{Mac, salted};
use crate::crypto::random::SystemRandom;
use crate::crypto::sealer::Sealer;
use crate::domain::catalog::Resource;
use crate::domain::leaf::{Commitment, Opening};
use crate::domain::limits::LEDGER_KEY_WARNING_SECONDS;
use crate::ids::Random;
use crate::ledger::denials::Denials;
use crate::ledger::entry::{ANY_REQUEST, Entry, OneTimeUse, Request};
use crate::ledger::{Ledger, LedgerStatus};
use crate::metrics::Metrics;
use crate::mint::Minters;
use crate::mint::aws::federation::FederationKeys;
use crate::mint::jwt::AccessTokenKeys;
use crate::policy::AdminAction;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// With every so many looks at its health, one a second, a replica checks all rows that decide what
/// somebody may do.
const CHECKS_A_ROW_CHECK: u32 = 10;

/// What a broker is made of.
pub struct BrokerParts {
    /// The base URL by which the world knows it.
    pub issuer: String,
    /// Names this process in leases.
    pub replica: String,
    /// Where everything is kept.
    pub store: Store,
    /// The log.
    pub ledger: Ledger,
    /// The time.
    pub clock: SharedClock,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// The back ends.
    pub minters: Minters,
    /// The keys of access tokens, shared with their minter.
    pub access_keys: AccessTokenKeys,
    /// The keys with which the broker attests to AWS.
    pub federation_keys: FederationKeys,
    /// Status lists that were built.
    pub status_lists: status_lists::StatusLists,
    /// The dates of keys.
    pub key_policy: keys::KeyPolicy,
    /// Seals our own keys.
    pub sealer: Arc<dyn Sealer>,
    /// Protects rows.
    pub mac: Mac,
    /// What attestors need beside their specification.
    pub trust: Trust,
    /// Tokens of administrators that are configured, not issued.
    pub admin_tokens: AdminTokens,
    /// The limit by identity.
    pub identities: rate::IdentityLimiter,
    /// Tracks work that must not be cut short.
    pub shutdown: Shutdown,
}

/// The broker.
pub struct Broker {
    parts: BrokerParts,
    active: ArcSwapOption<Active>,
    behind: ArcSwap<Option<String>>,
    loads: loads::Loads,
    ailing: ArcSwap<Option<String>>,
    other_endpoints: ArcSwap<Vec<OtherEndpoints>>,
    /// How often its health was looked at.
    checks: AtomicU32,
    /// When the current ledger key ends, if it does.
    ledger_key_ends: ArcSwapOption<Timestamp>,
    horizon: clock::Horizon,
    denials: Denials,
    orphan_search: orphans::OrphanSearch,
    failure_lines: failures::FailureLines,
    random: SystemRandom,
    woken: tokio::sync::Notify,
}

impl Broker {
    /// A broker without a generation: it refuses everything until [`Self::follow_generation`] has
    /// found one.
    #[must_use]
    pub fn new(parts: BrokerParts) -> Arc<Self> {
        let unattributed = [failures::NO_ATTESTOR].into_iter();
        parts.metrics.attestors(unattributed, &AttestError::REASONS);
        let acts = AdminAction::ALL.iter().map(|action| action.as_str());
        parts.metrics.acts_begin(acts.chain([ANY_REQUEST]));
        for minter in parts.minters.kinds() {
            parts.metrics.minter_begins(minter.as_str());
        }
        Arc::new(Self {
            parts,
            active: ArcSwapOption::empty(),
            behind: ArcSwap::from_pointee(None),
            loads: loads::Loads::default(),
            ailing: ArcSwap::from_pointee(None),
            other_endpoints: ArcSwap::from_pointee(Vec::new()),
            checks: AtomicU32::new(0),
            ledger_key_ends: ArcSwapOption::empty(),
            horizon: clock::Horizon::default(),
            denials: Denials::default(),
            orphan_search: orphans::OrphanSearch::default(),
            failure_lines: failures::FailureLines::default(),
            random: SystemRandom::new(),
            woken: tokio::sync::Notify::new(),
        })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.parts.ledger
    }

    /// The back ends.
    #[must_use]
    pub fn minters(&self) -> &Minters {
        &self.parts.minters
    }

    /// Figures.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.parts.metrics
    }

    /// The base URL by which the world knows it.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.parts.issuer
    }

    /// What gives nonces to those who prove a key, and knows them again.
    #[must_use]
    pub fn dpop_nonces(&self) -> DpopNonces {
        DpopNonces::new(self.parts.mac.clone())
    }

    /// The name of this process in leases.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.parts.replica
    }

    /// The present instant.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// Tracks work that must not be cut short.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.parts.shutdown
    }

    /// The budget of denials.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// How far the search for orphaned sessions has come.
    #[must_use]
    pub fn orphan_search(&self) -> &orphans::OrphanSearch {
        &self.orphan_search
    }

    /// Resolves when there is work for the sweeper before its timer says so.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    pub(crate) fn wake_sweeper(&self) {
        self.woken.notify_one();
    }

    /// Why the broker cannot serve, if it cannot: what readiness shows.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if let Some(doubt) = self.clock_doubt() {
            return Some(format!("clock: {doubt}"));
        }
        match self.parts.ledger.status() {
            LedgerStatus::Serving => {}
            LedgerStatus::Failing(why) => return Some(format!("ledger: {why}")),
            LedgerStatus::Stopped(why) => return Some(format!("ledger stopped: {why}")),
        }
        if let Some(why) = self.ailing.load().as_ref() {
            return Some(format!("store: {why}"));
        }
        if let Some(why) = self.store().overfull() {
            return Some(format!("store: {why}"));
        }
        if let Some(why) = self.behind.load().as_ref() {
            return Some(format!("policy: {why}"));
        }
        if self.active.load().is_none() {
            return Some("policy: no generation is active; an admin has to activate one".into());
        }
        if let Some(ends) = self.ledger_key_ends.load_full()
            && *ends <= self.now().plus_seconds(LEDGER_KEY_WARNING_SECONDS)
        {
            return Some(format!(
                "keys: the ledger key ends at {ends}, and none follows it; run `taskpass keys rotate ledger`"
            ));
        }
        self.unsigned()
            .map(|name| format!("keys: no key may sign now for `{name}`"))
    }

    /// A resource for which no key may sign now.
    fn unsigned(&self) -> Option<String> {
        let active = self.active.load_full()?;
        let now = self.now();
        let unsigned = |resource: &&Arc<Resource>| {
            let minter = self.parts.minters.of_kind(resource.kind.minter());
            minter.is_some_and(|minter| minter.signing_key(resource, now).is_none())
        };
        let found = active.catalog().resources().find(unsigned);
        found.map(|resource| resource.name.clone())
    }

    /// Takes note of when the current ledger key ends, for readiness and metrics.
    pub(crate) fn note_ledger_key(&self, ends: Option<Timestamp>, now: Timestamp) {
        let left = ends.map(|ends| now.seconds_until(ends));
        self.metrics().ledger_key_left(left);
        self.ledger_key_ends.store(ends.map(Arc::new));
    }

    /// Looks whether the store answers and its clock agrees with ours; readiness shows it.
    pub async fn check_health(&self) -> Result<(), BrokerError> {
        let checked = self.try_check_health().await;
        // A doubt of the clock is told as what it is at the moment, and not as a fault of the store.
        let fault = checked
            .as_ref()
            .err()
            .filter(|_| self.clock_doubt().is_none());
        let why = fault.map(ToString::to_string);
        self.ailing.store(Arc::new(why));
        checked
    }

    async fn try_check_health(&self) -> Result<(), BrokerError> {
        self.look_at_clock().await?;
        self.store().check_read_lease()?;
        self.check_rows().await?;
        let basis = self.ledger().basis();
        let head = self.ledger().head().await?;
        let shown = head.map_or(0, |head| head.size);
        if shown < basis {
            return Err(BrokerError::FailClosed(format!(
                "the database shows {shown} leaves, and {basis} are known to be committed"
            )));
        }
        let behind = shown > basis;
        // An unready replica gets no traffic, and so no batch that could show that it is well
        // again; an idle one gets none that would show it what others appended. It tries an empty
        // one.
        if behind || matches!(self.ledger().status(), LedgerStatus::Failing(_)) {
            let probe = Request {
                entry: Entry::Consume,
                one_time: OneTimeUse::default(),
                at: self.now(),
            };
            self.ledger().append(probe).await?;
        }
        Ok(())
    }

    /// Checks now and then that every row that decides what somebody may do is the broker's own.
    async fn check_rows(&self) -> Result<(), BrokerError> {
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        if checks.is_multiple_of(CHECKS_A_ROW_CHECK) {
            self.store().check_rows().await?;
        }
        Ok(())
    }

    pub(crate) fn active(&self) -> Result<Arc<Active>, BrokerError> {
        self.active.load_full().ok_or(BrokerError::NoGeneration)
    }

    /// Commits to bytes under a fresh salt.
    pub(crate) fn commitment(&self, bytes: Vec<u8>) -> Result<(Commitment, Opening), BrokerError> {
        let mut salt = [0_u8; 16];
        self.random.fill(&mut salt)?;
        Ok(commit(salt, bytes))
    }
}

/// The commitment to `bytes` under `salt`.
#[must_use]
pub fn commit(salt: [u8; 16], bytes: Vec<u8>) -> (Commitment, Opening) {
    let commitment = Commitment(salted(&salt, &bytes));
    (commitment, Opening { salt, bytes })
}

#[cfg(test)]
mod tests;
