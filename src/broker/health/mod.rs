//! Checks whether this replica can serve. Readiness reports the result.
//!
//! `Health::check_health` compares clocks, asks the store and checks rows. The sweeper calls it
//! once a second, in a loop of its own. `Health::unready` answers for readiness:
//! it reads no store, takes the store's fault from the last check, and judges everything else at
//! the call. The rule: a replica is unready while its clock is in doubt, its ledger fails or has
//! stopped, its store cannot be relied on or is full, its generation is missing or behind, its
//! ledger key soon expires without a successor, or a resource has no key that may sign. The first
//! of these is reported.
//!
//! Failures: `None` of `unready` means ready; readiness shows the text to every client.
//! `check_health` returns the fault as a `BrokerError`, and keeps it for `unready` until the next
//! check. While the clock is in doubt it keeps no fault, because `unready` reports the doubt
//! itself. `http::ops` calls `unready`. This module changes nothing, with one exception: it may
//! append an empty entry, to learn of other replicas' leaves or to find out whether the ledger can
//! be written. `replicas` compares endpoints.

pub mod replicas;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

use self::replicas::OtherEndpoints;
use super::core::Core;
use super::error::BrokerError;
use super::generations::Generations;
use super::keys::Keys;
use crate::domain::catalog::Resource;
use crate::domain::limits::LEDGER_KEY_WARNING_SECONDS;
use crate::ledger::LedgerStatus;
use crate::ledger::entry::Entry;
use crate::mint::Minters;

/// Every tenth check of the health, so at least every ten seconds, also checks the rows that have a
/// MAC.
const CHECKS_PER_ROW_CHECK: u32 = 10;

/// Checks this replica's health.
pub struct Health {
    core: Core,
    generations: Arc<Generations>,
    keys: Arc<Keys>,
    /// Used to find out whether a key may sign for a resource.
    minters: Minters,
    /// Why the store cannot be relied on, as of the last check. `None` if it can.
    store_fault: ArcSwap<Option<String>>,
    other_endpoints: ArcSwap<Vec<OtherEndpoints>>,
    /// The number of checks so far that got past the clock and the read lease.
    checks: AtomicU32,
}

impl Health {
    pub(super) fn new(
        core: Core,
        generations: Arc<Generations>,
        keys: Arc<Keys>,
        minters: Minters,
    ) -> Self {
        Self {
            core,
            generations,
            keys,
            minters,
            store_fault: ArcSwap::from_pointee(None),
            other_endpoints: ArcSwap::from_pointee(Vec::new()),
            checks: AtomicU32::new(0),
        }
    }

    /// Why the broker cannot serve. `None` if it can. Readiness reports the text.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if let Some(doubt) = self.core.clock_doubt() {
            return Some(format!("clock: {doubt}"));
        }
        match self.core.ledger().status() {
            LedgerStatus::Serving => {}
            LedgerStatus::Failing(why) => return Some(format!("ledger: {why}")),
            LedgerStatus::Stopped(why) => return Some(format!("ledger stopped: {why}")),
        }
        if let Some(why) = self.store_fault.load().as_ref() {
            return Some(format!("store: {why}"));
        }
        if let Some(why) = self.core.store().overfull() {
            return Some(format!("store: {why}"));
        }
        if let Some(why) = self.generations.behind() {
            return Some(format!("policy: {why}"));
        }
        if self.core.active_digest().is_none() {
            return Some("policy: no generation is active; an admin has to activate one".into());
        }
        if let Some(ends) = self.keys.ledger_key_ends()
            && ends <= self.core.now().plus_seconds(LEDGER_KEY_WARNING_SECONDS)
        {
            return Some(format!(
                "keys: the ledger key expires at {ends}, and it has no successor; run `taskpass \
                 keys rotate ledger`"
            ));
        }
        self.unsigned()
            .map(|name| format!("keys: no key may sign now for `{name}`"))
    }

    /// A resource for which no key may sign now. `None` also without an active generation, which
    /// `unready` reports before.
    fn unsigned(&self) -> Option<String> {
        let active = self.core.active().ok()?;
        let now = self.core.now();
        let unsigned = |resource: &&Arc<Resource>| {
            let minter = self.minters.of_kind(resource.kind.minter());
            minter.is_some_and(|minter| minter.signing_key(resource, now).is_none())
        };
        let found = active.catalog().resources().find(unsigned);
        found.map(|resource| resource.name.clone())
    }

    /// Checks the clock, the read lease, on every tenth call the rows, and the head of the log, in
    /// this order. Appends an empty entry if the ledger fails or other replicas have appended
    /// leaves. Readiness reports the first fault.
    pub async fn check_health(&self) -> Result<(), BrokerError> {
        let checked = self.try_check_health().await;
        // Keep no fault while the clock is in doubt: `unready` reports the doubt itself.
        let fault = checked
            .as_ref()
            .err()
            .filter(|_| self.core.clock_doubt().is_none());
        let why = fault.map(ToString::to_string);
        self.store_fault.store(Arc::new(why));
        checked
    }

    async fn try_check_health(&self) -> Result<(), BrokerError> {
        self.check_clock().await?;
        self.core.store().check_read_lease()?;
        self.check_rows().await?;
        let basis = self.core.ledger().basis();
        let head = self.core.ledger().head().await?;
        let shown = head.map_or(0, |head| head.size);
        if shown < basis {
            return Err(BrokerError::store(format!(
                "the database shows {shown} leaves, and {basis} are known to be committed; was it \
                 restored from a backup, or is it an old primary?"
            )));
        }
        // Whether this replica does not know all leaves of the database.
        let behind = shown > basis;
        // An unready replica gets no traffic, so no batch could show that the ledger can be written
        // again. An idle replica commits no batch from which it would learn of other replicas'
        // leaves. Append an empty entry in both cases; while the ledger fails, the appender commits a
        // row with it.
        if behind || matches!(self.core.ledger().status(), LedgerStatus::Failing(_)) {
            self.core
                .ledger()
                .append_own(Entry::Consume, self.core.now())
                .await?;
        }
        Ok(())
    }

    /// On every tenth call, checks that a broker of this log wrote the cutoffs, role bindings,
    /// workload keys, signing keys and the active generation. The store remembers a forged row: it
    /// stops the ledger for good, so the replica stays unready between these checks.
    async fn check_rows(&self) -> Result<(), BrokerError> {
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        if checks.is_multiple_of(CHECKS_PER_ROW_CHECK) {
            self.core.store().check_rows().await?;
        }
        Ok(())
    }

    /// Compares this replica's clock with the database's and with the newest leaf.
    async fn check_clock(&self) -> Result<(), BrokerError> {
        if let Some(apart) = self.core.ledger().clock().check(self.core.store()).await? {
            self.core.metrics().clock_skew(apart.as_secs_f64());
        }
        let checked = self.core.check_clock();
        self.core.metrics().clock_in_doubt(checked.is_err());
        if checked.is_err() {
            // The leaves of other replicas show whether an admin has accepted the time.
            self.follow_ledger().await?;
            return self.core.check_clock();
        }
        checked
    }

    /// Learns the leaves that other replicas appended, by appending an empty entry.
    async fn follow_ledger(&self) -> Result<(), BrokerError> {
        self.core
            .ledger()
            .append_own(Entry::Consume, self.core.now())
            .await?;
        Ok(())
    }
}
