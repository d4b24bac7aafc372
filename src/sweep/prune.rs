//! Pruning: deletes rows that are no longer needed, children before parents, a bounded number at
//! once.
//!
//! [`Pruner::round`] runs one round over all tables; `patrol` looks for openings behind leaves that
//! are dated ahead; `scrub` empties SQLite's journal.
//!
//! On PostgreSQL one replica prunes at a time; the others find nothing to do.
//!
//! The rule: the present is the horizon, never the clock, because a deletion cannot be undone. No
//! row is deleted that another row refers to. Failures: a failed deletion does not stop the others;
//! it rests for [`REST`], and [`Pruned::failed`] has the first error. `Pruned::more` says whether
//! to continue at once. `sweep` calls this module with the retention of the active generation;
//! `store::prune` has the statements.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::generation::Retention;
use crate::domain::limits::{
    ENDINGS_KEPT_SECONDS, MAX_DEADLINE_SECONDS, MAX_TTL_SECONDS, ONE_TIME_KEPT_SECONDS,
};
use crate::ids::{SessionId, TaskId};

/// The largest number of rows that one statement deletes.
const BATCH_ROWS: u32 = 1_000;

/// The largest number of statements of one kind in a round, so that a backlog in one table does not
/// delay the others, and other writers get their turn.
const MAX_BATCHES: u32 = 10;

/// The pause after a statement that failed. Its locks may delay others at each try: on PostgreSQL
/// no body is appended while the drop of a table of bodies waits.
const REST: Duration = Duration::from_mins(1);

/// How many earlier heads are kept: enough to find the outcome of the commit of any batch.
const KEPT_HEADS: u64 = 1_000_000;

/// Walks over the rows of one table, at most [`MAX_BATCHES`] steps. A walk passes over rows that
/// other rows refer to, and goes on behind them in the next step or round. After a walk that
/// deleted rows another one begins, since each deletion may make further rows deletable.
macro_rules! walk {
    ($pruner:ident, $store:ident, $pruned:ident, $statement:ident($before:expr), $walk:ident) => {
        let mut deleted = 0;
        for batch in 1..=MAX_BATCHES {
            if $pruner.rests(stringify!($statement)) {
                break;
            }
            match $store.$statement($before, $pruner.$walk, BATCH_ROWS).await {
                // Another replica prunes.
                Ok(None) => break,
                Ok(Some(walked)) => {
                    $pruned.rows += walked.rows;
                    deleted += walked.rows;
                    $pruner.$walk = walked.next;
                    if walked.next.is_none() {
                        if deleted == 0 {
                            break;
                        }
                        deleted = 0;
                    }
                    $pruned.more |= batch == MAX_BATCHES;
                }
                Err(error) => $pruner.failed(stringify!($statement), error, &mut $pruned),
            }
        }
    };
}

/// The result of a round.
#[derive(Debug)]
pub struct Pruned {
    /// The number of deleted rows.
    pub rows: u64,
    /// Whether more rows may be deletable now.
    pub more: bool,
    /// The first error; it does not stop the other deletions.
    pub failed: Result<(), BrokerError>,
}

/// Prunes in rounds.
#[derive(Debug)]
pub struct Pruner {
    stop: CancellationToken,
    /// The statements that failed, and when.
    resting: BTreeMap<&'static str, Instant>,
    /// The leaf from which the next patrol of the openings continues.
    patrol: u64,
    /// The last sessions and tasks that the walks over them have passed. `None` at the beginning.
    sessions: Option<(Timestamp, SessionId)>,
    tasks: Option<(Timestamp, TaskId)>,
}

impl Pruner {
    /// A pruner that ends its round early at `stop`, after the current statement.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            resting: BTreeMap::new(),
            patrol: 0,
            sessions: None,
            tasks: None,
        }
    }

    /// Deletes rows past their retention, at most [`MAX_BATCHES`] statements of each kind. `now` is
    /// the horizon (`Core::horizon`), never the clock, because a deletion cannot be undone.
    pub async fn round(&mut self, broker: &Broker, retention: Retention, now: Timestamp) -> Pruned {
        let store = broker.core.store();
        let ago = |days: u32| now.minus_seconds(u64::from(days) * 86_400);
        let over = ago(retention.sessions_days);
        let opened = ago(retention.openings_days);
        let written = ago(retention.bodies_days);
        // A cutoff is kept as long as any session or task that it ends could be valid.
        let cutoff = now.minus_seconds(MAX_TTL_SECONDS + MAX_DEADLINE_SECONDS);
        let followed = now.minus_seconds(ENDINGS_KEPT_SECONDS);
        // A slow clock may accept evidence that a correct one would refuse as expired.
        let forgotten = now.minus_seconds(ONE_TIME_KEPT_SECONDS);
        let heads = broker.core.ledger().basis().saturating_sub(KEPT_HEADS);
        let mut pruned = Pruned {
            rows: 0,
            more: false,
            failed: Ok(()),
        };
        // Sessions before their tasks, derived sessions before their parents, children before
        // parents: no statement deletes a row that another row refers to.
        macro_rules! some_of {
            ($statement:ident($($argument:expr),*)) => {
                for batch in 1..=MAX_BATCHES {
                    if self.rests(stringify!($statement)) {
                        break;
                    }
                    match store.$statement($($argument,)* BATCH_ROWS).await {
                        // Repeats until nothing is deleted: each deletion may make further rows
                        // deletable.
                        Ok(0) => break,
                        Ok(rows) => {
                            pruned.rows += rows;
                            pruned.more |= batch == MAX_BATCHES;
                        }
                        // A deletion that fails must not prevent the others.
                        Err(error) => self.failed(stringify!($statement), error, &mut pruned),
                    }
                }
            };
        }
        some_of!(prune_one_time(forgotten));
        some_of!(prune_retries(forgotten));
        some_of!(prune_delegations(forgotten));
        walk!(self, store, pruned, prune_sessions(over), sessions);
        some_of!(prune_denied(over));
        walk!(self, store, pruned, prune_tasks(over), tasks);
        some_of!(prune_cutoffs(cutoff, now));
        some_of!(prune_endings(followed));
        some_of!(prune_openings(opened));
        self.patrol(broker, opened, &mut pruned).await;
        some_of!(prune_bodies(written));
        some_of!(prune_heads(heads));
        some_of!(prune_cosigned());
        self.scrub(broker, &mut pruned).await;
        pruned
    }

    /// Walks through all openings, some in each round. The oldest openings are at the beginning of
    /// the log, except those that a fast clock dated ahead: a full page of these would hide the old
    /// ones behind them until that time has come.
    async fn patrol(&mut self, broker: &Broker, before: Timestamp, pruned: &mut Pruned) {
        for _ in 0..MAX_BATCHES {
            if self.rests("patrol_openings") {
                return;
            }
            let patrolled = broker
                .core
                .store()
                .patrol_openings(before, self.patrol, BATCH_ROWS);
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
        // While a connection reads the log, the deletion waits for the next round.
        if !self.rests("scrub")
            && let Err(error) = broker.core.store().scrub().await
        {
            self.failed("scrub", error, pruned);
        }
    }

    /// Whether to skip a statement now.
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

/// Runs a single round.
pub async fn prune(
    broker: &Broker,
    retention: Retention,
    now: Timestamp,
) -> Result<u64, BrokerError> {
    let mut by_itself = Pruner::new(CancellationToken::new());
    let Pruned { rows, failed, .. } = by_itself.round(broker, retention, now).await;
    failed.map(|()| rows)
}
