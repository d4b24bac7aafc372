//! The parts that the broker's services share: the store, the ledger, the clock, the generation
//! that decides, and a few more.
//!
//! `Core` is a cheap handle to the shared parts. After plain access come three groups: the active
//! generation (`active`, `set_active`), the clock (`now`, `certain_now`, `check_clock`) and the
//! horizon, which deletions use as the present. The rule: while the clock is in doubt, nothing is
//! expired or deleted by it. `horizon` then returns the epoch, so that a deletion finds nothing.
//!
//! Failures: `active` is `NoGeneration` until a generation was loaded; `check_clock` is
//! `FailClosed` while the clock is in doubt. `None` of `certain_now` means the same doubt.
//! Everything that needs the store or randomness returns `FailClosed` if they fail. All services of
//! `broker`, `sweep`, `http` and `app` use it. `ledger::clock_watch` judges the clock,
//! `broker::horizon` computes the horizon, and `broker::generations` sets the active generation.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::active::Active;
use super::error::BrokerError;
use super::horizon::{HORIZON_STEP_SECONDS, Horizon};
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::salted;
use crate::crypto::random::SystemRandom;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::leaf::{Commitment, Opening};
use crate::ids::Random;
use crate::ledger::Ledger;
use crate::ledger::clock_watch::ClockDoubt;
use crate::ledger::follower::Awaited;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// The parts that the services share. Clones share them too, and are cheap.
#[derive(Clone)]
pub struct Core(Arc<Shared>);

struct Shared {
    parts: CoreParts,
    random: SystemRandom,
    /// `None` until this replica has found an active generation.
    active: ArcSwapOption<Active>,
    horizon: Horizon,
    /// The signals that end the pauses of workers.
    wakes: Wakes,
}

/// A worker of the sweeper that a signal wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The search for external sessions that something else ended.
    OrphanedSessions,
    /// The worker that ends sessions at back ends.
    Endings,
    /// The worker that follows the active generation.
    GenerationSync,
    /// The worker that follows the signing keys.
    Keys,
}

/// One signal for each worker that can be woken.
#[derive(Default)]
struct Wakes {
    orphaned_sessions: Notify,
    endings: Notify,
    generation_sync: Notify,
    keys: Notify,
}

impl Wakes {
    fn of(&self, wake: Wake) -> &Notify {
        match wake {
            Wake::OrphanedSessions => &self.orphaned_sessions,
            Wake::Endings => &self.endings,
            Wake::GenerationSync => &self.generation_sync,
            Wake::Keys => &self.keys,
        }
    }
}

/// The parts of a [`Core`] that a start opens.
pub(super) struct CoreParts {
    /// The broker's base URL, as its clients know it.
    pub(super) issuer: String,
    /// The name of this process in leases.
    pub(super) replica: String,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    pub(super) clock: SharedClock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
}

impl Core {
    /// A core without an active generation.
    pub(super) fn new(parts: CoreParts) -> Self {
        Self(Arc::new(Shared {
            parts,
            random: SystemRandom::new(),
            active: ArcSwapOption::empty(),
            horizon: Horizon::default(),
            wakes: Wakes::default(),
        }))
    }

    /// The database that all replicas share.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.parts.store
    }

    /// The log, which this replica appends to.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.0.parts.ledger
    }

    /// The metrics of this process.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.parts.metrics
    }

    /// The broker's base URL, as its clients know it.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.0.parts.issuer
    }

    /// The name of this process in leases.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.0.parts.replica
    }

    /// Tracks work that a shutdown waits for.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.0.parts.shutdown
    }

    /// The system's source of randomness.
    pub(super) fn random(&self) -> &SystemRandom {
        &self.0.random
    }

    /// Resolves when this worker has work before its interval has passed. Each signal is for one
    /// waiting task; one that comes while none waits is kept for the next.
    pub async fn woken(&self, wake: Wake) {
        self.0.wakes.of(wake).notified().await;
    }

    /// Ends the pause of a worker.
    pub(crate) fn wake(&self, wake: Wake) {
        self.0.wakes.of(wake).notify_one();
    }

    /// Ends the pauses of all workers that finish ended tasks and sessions.
    pub(crate) fn wake_sweeper(&self) {
        self.wake(Wake::OrphanedSessions);
        self.wake(Wake::Endings);
    }

    /// Ends the pauses of all workers that wait for one of these acts of any replica.
    pub(crate) fn wake_for(&self, awaited: Awaited) {
        if awaited.cutoff {
            self.wake_sweeper();
        }
        if awaited.activation {
            self.wake(Wake::GenerationSync);
        }
        if awaited.key {
            self.wake(Wake::Keys);
        }
    }

    /// The generation that decides on this replica.
    pub(crate) fn active(&self) -> Result<Arc<Active>, BrokerError> {
        self.0.active.load_full().ok_or(BrokerError::NoGeneration)
    }

    /// The digest of the generation that decides on this replica. `None` if there is none.
    pub(super) fn active_digest(&self) -> Option<GenerationDigest> {
        self.0.active.load().as_ref().map(|active| active.digest())
    }

    /// Makes a generation decide on this replica.
    pub(super) fn set_active(&self, active: Active) {
        self.0.active.store(Some(Arc::new(active)));
    }

    /// Replaces the attestors of the generation that decides.
    #[cfg(test)]
    pub(super) fn replace_attestors(&self, attestors: crate::attest::Attestors) {
        let active = self.0.active.swap(None).and_then(Arc::into_inner).unwrap();
        self.set_active(Active {
            attestors,
            ..active
        });
    }

    /// Commits to bytes under a fresh salt.
    pub(super) fn commitment(&self, bytes: Vec<u8>) -> Result<(Commitment, Opening), BrokerError> {
        let mut salt = [0_u8; 16];
        self.random().fill(&mut salt)?;
        Ok(commit(salt, bytes))
    }
}

impl Core {
    /// The present instant.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.parts.clock.now()
    }

    /// The reason not to rely on the clock now. `None` if it can be relied on.
    #[must_use]
    pub fn clock_doubt(&self) -> Option<ClockDoubt> {
        self.ledger().clock().doubt()
    }

    /// The present instant. `None` while the clock is in doubt.
    pub(super) fn certain_now(&self) -> Option<Timestamp> {
        let reading = self.ledger().clock().judge();
        reading.doubt.is_none().then_some(reading.now)
    }

    /// Fails while the clock is in doubt: neither evidence nor a credential can then be verified.
    pub(super) fn check_clock(&self) -> Result<(), BrokerError> {
        match self.clock_doubt() {
            None => Ok(()),
            Some(doubt) => Err(in_doubt(&doubt)),
        }
    }

    /// Whether the clock can be relied on. While it is in doubt, the broker expires and deletes
    /// nothing.
    pub(crate) fn goes_by_the_right_clock(&self) -> bool {
        self.clock_doubt().is_none()
    }

    /// The instant that deletions use as the present: the stored horizon. This call first advances
    /// it as far as the pace allows. While the clock is in doubt, it returns the epoch.
    pub async fn horizon(&self) -> Result<Timestamp, BrokerError> {
        let horizon = &self.0.horizon;
        let reading = self.ledger().clock().judge();
        if reading.doubt.is_some() {
            horizon.forget();
            return Ok(Timestamp::EPOCH);
        }
        let now = reading.now;
        let Some(stored) = self.store().horizon().await? else {
            return Ok(Timestamp::EPOCH);
        };
        let may_be = horizon.may_be(stored, self.0.parts.clock.running(), now);
        if may_be >= stored.plus_seconds(HORIZON_STEP_SECONDS)
            && self.store().advance_horizon(stored, may_be).await?
        {
            horizon.moved_to(may_be);
        }
        self.metrics().horizon_lag(may_be.seconds_until(now));
        Ok(may_be)
    }

    /// The horizon as the last call of [`Self::horizon`] computed it. Does not query the store.
    pub(super) fn known_horizon(&self) -> Timestamp {
        self.0.horizon.known().min(self.now())
    }

    /// The sweeper records the expiry of tasks that expired before this instant. A clock that is
    /// wrong when the process starts must not end a task that is open by the correct clock.
    pub(crate) fn tasks_over_by(&self, now: Timestamp) -> Timestamp {
        let running = self.0.parts.clock.running();
        self.0.horizon.tasks_over_by(running, now)
    }
}

/// The error of a call while the clock is in doubt.
pub(super) fn in_doubt(doubt: &ClockDoubt) -> BrokerError {
    BrokerError::host(format!("the clock is in doubt: {doubt}"))
}

/// The commitment to `bytes` under `salt`.
#[must_use]
pub fn commit(salt: [u8; 16], bytes: Vec<u8>) -> (Commitment, Opening) {
    let commitment = Commitment(salted(&salt, &bytes));
    (commitment, Opening { salt, bytes })
}
