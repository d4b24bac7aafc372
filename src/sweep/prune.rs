//! Pruning: what nothing needs any more, children before parents, in bounded bites.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::generation::Retention;
use crate::domain::limits::{MAX_DEADLINE_SECONDS, MAX_TTL_SECONDS, ONE_TIME_KEPT_SECONDS};

/// Rows that one statement deletes at most.
const BITE: u32 = 1_000;

/// Statements of one kind in a round: a table with a backlog keeps the others no longer than this,
/// and whoever else writes comes in between.
const BITES: u32 = 10;

/// How long a statement that failed is left alone. What it waits for may cost others something each
/// time: on PostgreSQL no body is appended while a table of them waits to be dropped.
const REST: Duration = Duration::from_mins(1);

/// Heads that are kept beside the newest: long enough to find the outcome of the commit of any batch.
const KEPT_HEADS: u64 = 1_000_000;

/// What a round came to.
#[derive(Debug)]
pub struct Pruned {
    /// Rows that went.
    pub rows: u64,
    /// Whether there may be more that can go now.
    pub more: bool,
    /// The first thing that could not go; it keeps nothing else.
    pub failed: Result<(), BrokerError>,
}

/// Prunes round by round.
#[derive(Debug)]
pub struct Pruner {
    stop: CancellationToken,
    /// What failed, and when.
    resting: BTreeMap<&'static str, Instant>,
    /// From which opening on it looks for old ones behind young ones.
    patrol: u64,
}

impl Pruner {
    /// One that ends its round early at `stop`, after the statement that is under way.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            resting: BTreeMap::new(),
            patrol: 0,
        }
    }

    /// Deletes what is past its time, up to [`BITES`] bites of each kind. `now` is the horizon
    /// (`Core::horizon`), never the clock: what is deleted is gone for good.
    pub async fn round(&mut self, broker: &Broker, retention: Retention, now: Timestamp) -> Pruned {
        let store = broker.core.store();
        let ago = |days: u32| now.minus_seconds(u64::from(days) * 86_400);
        let over = ago(retention.sessions_days);
        let opened = ago(retention.openings_days);
        let written = ago(retention.bodies_days);
        // A cutoff is needed for as long as anything could live that it kills.
        let cutoff = now.minus_seconds(MAX_TTL_SECONDS + MAX_DEADLINE_SECONDS);
        // A clock that is wrong may take for fresh what we would refuse already.
        let forgotten = now.minus_seconds(ONE_TIME_KEPT_SECONDS);
        let heads = broker.core.ledger().basis().saturating_sub(KEPT_HEADS);
        let mut pruned = Pruned {
            rows: 0,
            more: false,
            failed: Ok(()),
        };
        // Sessions before their tasks, derived ones before what they were derived from, children
        // before parents: each statement leaves alone what something still points at.
        macro_rules! some_of {
            ($statement:ident($($argument:expr),+)) => {
                for bite in 1..=BITES {
                    if self.rests(stringify!($statement)) {
                        break;
                    }
                    match store.$statement($($argument,)+ BITE).await {
                        // Until nothing is left: what a bite took may have been all that kept another.
                        Ok(0) => break,
                        Ok(rows) => {
                            pruned.rows += rows;
                            pruned.more |= bite == BITES;
                        }
                        // One that cannot go now must not keep the others.
                        Err(error) => self.failed(stringify!($statement), error, &mut pruned),
                    }
                }
            };
        }
        some_of!(prune_one_time(forgotten));
        some_of!(prune_retries(forgotten));
        some_of!(prune_delegations(forgotten));
        some_of!(prune_sessions(over));
        some_of!(prune_denied(over));
        some_of!(prune_tasks(over));
        some_of!(prune_cutoffs(cutoff, now));
        some_of!(prune_openings(opened));
        self.patrol(broker, opened, &mut pruned).await;
        some_of!(prune_bodies(written));
        some_of!(prune_heads(heads));
        self.scrub(broker, &mut pruned).await;
        pruned
    }

    /// Walks through all openings, a little each round. The oldest are where the log begins, but for
    /// what was dated ahead by a clock that was wrong: behind a bite full of that, text would stay
    /// until that time had come.
    async fn patrol(&mut self, broker: &Broker, before: Timestamp, pruned: &mut Pruned) {
        for _ in 0..BITES {
            if self.rests("patrol_openings") {
                return;
            }
            let patrolled = broker
                .core
                .store()
                .patrol_openings(before, self.patrol, BITE);
            match patrolled.await {
                Ok((rows, next)) => {
                    pruned.rows += rows;
                    self.patrol = next.unwrap_or(0);
                    if next.is_none() {
                        return;
                    }
                }
                Err(error) => self.failed("patrol_openings", error, pruned),
            }
        }
    }

    async fn scrub(&mut self, broker: &Broker, pruned: &mut Pruned) {
        // While somebody reads the log it stays, until the next round.
        if !self.rests("scrub")
            && let Err(error) = broker.core.store().scrub().await
        {
            self.failed("scrub", error, pruned);
        }
    }

    /// Whether a statement is not to be tried now.
    fn rests(&self, statement: &str) -> bool {
        let failed = self.resting.get(statement);
        self.stop.is_cancelled() || failed.is_some_and(|at| at.elapsed() < REST)
    }

    fn failed(
        &mut self,
        statement: &'static str,
        error: impl Into<BrokerError>,
        pruned: &mut Pruned,
    ) {
        self.resting.insert(statement, Instant::now());
        if pruned.failed.is_ok() {
            pruned.failed = Err(error.into());
        }
    }
}

/// One round by itself.
pub async fn prune(
    broker: &Broker,
    retention: Retention,
    now: Timestamp,
) -> Result<u64, BrokerError> {
    let mut by_itself = Pruner::new(CancellationToken::new());
    let Pruned { rows, failed, .. } = by_itself.round(broker, retention, now).await;
    failed.map(|()| rows)
}
