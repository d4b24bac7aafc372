//! The workers that finish ended and expired tasks and sessions: silent and late tasks, unfinished
//! mints, ends that no back end has confirmed, rows that are no longer needed.
//!
//! No request depends on them. The validity of a credential is judged at use, so a late or dead
//! sweeper only delays the records and permits nothing. Each worker is idempotent and handles a
//! bounded number of rows at once; any number of replicas run the workers concurrently, and on
//! PostgreSQL each skips rows that another replica has locked. Each worker has a loop, an interval
//! and a limit of time of its own (`SWEEPERS`, `UPKEEP`, `rounds`), so that none waits for another.
//! A signal wakes the workers that end sessions at back ends, and those that follow the generation
//! and the keys of other replicas.
//!
//! | worker | finds | does |
//! |---|---|---|
//! | `health` | whether the store answers, and whether the clock can be relied on | shows it in readiness |
//! | `horizon` | how far the horizon may be | advances it; every permanent deletion uses it |
//! | `task_expiry` | open tasks whose `check_at` has come | closes those past their deadline, without a leaf; ends those that were silent, or were opened by a fast clock, many in one leaf; else sets the next check |
//! | `unfinished_mints` | `minting` sessions whose lease has expired | hands them to `endings` |
//! | `orphaned_sessions` | external sessions that a task, cutoff or ancestor ended | hands them to `endings` |
//! | `endings` | `ending` sessions that are due for a try | asks the back end to end them, records its answer |
//! | `deny_lists` | deny lists at back ends that are due | reconciles them with the records |
//! | `omitted_denials` | denials beyond the budget | records one leaf per window and identity |
//! | `partitions` | whether there are tables for the next leaves | creates them, on PostgreSQL |
//! | `prune` | rows past their retention | deletes them, children before parents |
//! | `keys` | signing keys that are due | creates the next, loads those of other replicas |
//! | `replicas` | replicas with other endpoints | shows them in readiness, deletes rows of replicas that have stopped |
//! | `wal` | the size of SQLite's write-ahead log | truncates it |
//! | `generation_sync` | another active generation | compiles it and uses it |
//!
//! A worker that fails is logged and counted, and runs again in the next round; nothing is returned
//! to the caller. While the clock is in doubt, only those workers run that go by no clock
//! (`rounds::Work`). The rule for a deletion is that it goes by the horizon and not by the clock.
//! `app` spawns the loops; the workers call `broker`, which holds the rules, and `store` for the
//! rows.

mod endings;
mod orphans;
pub mod prune;
mod rounds;
mod task_expiry;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use self::endings::{endings, unfinished_mints};
use self::orphans::orphaned_sessions;
use self::prune::{Pruned, Pruner};
use self::rounds::{Next, Outcome, Swept, Work, Worker, may_go_by_the_clock, report};
use self::task_expiry::task_expiry;
use crate::broker::core::Wake;
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::ledger::entry::{DenialsOmitted, Entry};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How many rows one worker takes at once: enough to make the round trip cheap, few enough to keep
/// every statement fast.
const BATCH_ROWS: u32 = 200;

/// How long pruning rests while it may not run.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long other replicas leave a claimed row alone.
const CLAIM_SECONDS: u64 = 30;

/// How often rows are pruned while no backlog is left.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// The pause between two rounds of pruning while there is a backlog.
const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// How often tables for the next leaves are created: each time for many times the number of leaves
/// that can come before the next time.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(30);

/// How often a replica reports its configuration to the others.
const REPLICAS_INTERVAL: Duration = Duration::from_secs(10);

/// How long the report may take: its commit waits for a synchronous standby that may be gone.
const REPLICAS_PATIENCE: Duration = Duration::from_secs(2);

/// How long a round may take that calls back ends, compiles policies, or covers all sessions.
const LONG_PATIENCE: Duration = Duration::from_mins(10);

/// The workers of [`sweep`], in its order.
static SWEEPERS: [Worker; 10] = [
    Worker::new("health", Work::ByNoClock(|broker| Box::pin(health(broker)))),
    Worker::new(
        "generation_sync",
        Work::ByNoClock(|broker| Box::pin(generation_sync(broker))),
    )
    .within(LONG_PATIENCE)
    .woken_by(Wake::GenerationSync),
    Worker::new(
        "horizon",
        Work::ByTheClock(|broker, now| Box::pin(horizon(broker, now))),
    ),
    Worker::new(
        "keys",
        Work::ByTheClock(|broker, now| Box::pin(keys(broker, now))),
    )
    .woken_by(Wake::Keys),
    Worker::new(
        "task_expiry",
        Work::ByTheClock(|broker, now| Box::pin(task_expiry(broker, now))),
    ),
    Worker::new(
        "unfinished_mints",
        Work::ByTheClock(|broker, now| Box::pin(unfinished_mints(broker, now))),
    ),
    Worker::new(
        "orphaned_sessions",
        Work::ByTheClock(|broker, now| Box::pin(orphaned_sessions(broker, now))),
    )
    .within(LONG_PATIENCE)
    .woken_by(Wake::OrphanedSessions),
    Worker::new(
        "endings",
        Work::ByTheClock(|broker, now| Box::pin(endings(broker, now))),
    )
    .within(LONG_PATIENCE)
    .woken_by(Wake::Endings),
    Worker::new(
        "omitted_denials",
        Work::ByTheClock(|broker, now| Box::pin(omitted_denials(broker, now))),
    )
    .within(LONG_PATIENCE),
    Worker::new(
        "deny_lists",
        Work::ByTheClock(|broker, _| Box::pin(deny_lists(broker))),
    )
    .within(LONG_PATIENCE),
];

/// The workers that keep a replica and its store in order. [`sweep`] leaves them out.
static UPKEEP: [Worker; 3] = [
    Worker::new(
        "partitions",
        Work::ByNoClock(|broker| Box::pin(partitions(broker))),
    )
    .every(PARTITIONS_INTERVAL),
    Worker::new(
        "replicas",
        Work::ByNoClock(|broker| Box::pin(replicas(broker))),
    )
    .every(REPLICAS_INTERVAL)
    .within(REPLICAS_PATIENCE),
    Worker::new("wal", Work::ByNoClock(|broker| Box::pin(bound_log(broker)))),
];

/// The worker whose loop is [`run_pruning`].
const PRUNE: &str = "prune";

fn workers() -> impl Iterator<Item = &'static Worker> {
    UPKEEP.iter().chain(&SWEEPERS)
}

/// Creates the metrics of all workers with the value zero.
pub fn begin(metrics: &Metrics) {
    for worker in workers() {
        metrics.sweeper_begins(worker.name);
    }
    metrics.sweeper_begins(PRUNE);
}

/// Spawns the loop of every worker, each as a task of its own.
pub fn spawn(broker: &Arc<Broker>, shutdown: &Shutdown) {
    for worker in workers() {
        let broker = Arc::clone(broker);
        drop(shutdown.spawn_worker(worker.name, move |stop| async move {
            worker.run(&broker, &stop).await;
            Ok::<(), Infallible>(())
        }));
    }
    let pruning = Arc::clone(broker);
    drop(shutdown.spawn_worker("pruning", move |stop| run_pruning(pruning, stop)));
}

/// Runs the loops of all workers but pruning until `stop`, in one task. Tests call it.
pub async fn run(broker: Arc<Broker>, stop: CancellationToken) -> Result<(), Infallible> {
    join_all(workers().map(|worker| worker.run(&broker, &stop))).await;
    Ok(())
}

/// Prunes until `stop`, in a loop of its own: a backlog takes long, and no other worker may wait
/// for it.
pub async fn run_pruning(broker: Arc<Broker>, stop: CancellationToken) -> Result<(), Infallible> {
    let mut pruner = Pruner::new(stop.clone());
    let mut pause = INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = INTERVAL;
        if may_go_by_the_clock(&broker) {
            let more = prune_as_told(&broker, &mut pruner).await;
            pause = if more { BATCH_PAUSE } else { PRUNE_INTERVAL };
        }
    }
}

/// Runs a round of pruning with the retention of the active generation. Returns whether there is
/// more.
async fn prune_as_told(broker: &Broker, pruner: &mut Pruner) -> bool {
    let retention = broker
        .core
        .active()
        .map(|active| active.policy().retention());
    match retention {
        Ok(retention) => {
            let horizon = match broker.core.horizon().await {
                Ok(horizon) => horizon,
                Err(error) => {
                    report(broker, PRUNE, Err(error));
                    return false;
                }
            };
            let Pruned { rows, more, failed } = pruner.round(broker, retention, horizon).await;
            report(broker, PRUNE, failed.map(|()| rows));
            more
        }
        // No retention is configured yet, which readiness reports.
        Err(BrokerError::NoGeneration) => false,
        Err(error) => {
            report(broker, PRUNE, Err(error));
            false
        }
    }
}

/// Runs every worker that finishes work, upkeep and pruning excepted, at `now`, one after the other, each until it has no more to
/// do. Tests call it with their own clock.
pub async fn sweep(broker: &Arc<Broker>, now: Timestamp) {
    for worker in &SWEEPERS {
        while worker.round(broker, now).await == Next::Soon {}
    }
}

async fn health(broker: &Broker) -> Outcome {
    broker.health.check_health().await?;
    Ok(Swept::all(0))
}

async fn generation_sync(broker: &Broker) -> Outcome {
    broker.generations.follow().await?;
    Ok(Swept::all(0))
}

/// Advances the horizon, and ends a bootstrap token whose day has passed.
async fn horizon(broker: &Broker, now: Timestamp) -> Outcome {
    broker.core.horizon().await?;
    broker.access.end_bootstrap_token(now).await?;
    Ok(Swept::all(0))
}

async fn keys(broker: &Broker, now: Timestamp) -> Outcome {
    broker.keys.follow(now).await.map(Swept::all)
}

async fn deny_lists(broker: &Broker) -> Outcome {
    let deny_lists = broker.revocation.deny_lists();
    let written = deny_lists.reconcile_due_deny_lists().await?;
    Ok(Swept::all(written))
}

async fn partitions(broker: &Broker) -> Outcome {
    let size = broker.core.ledger().basis();
    broker.core.store().ensure_partitions(size).await?;
    Ok(Swept::all(0))
}

async fn replicas(broker: &Broker) -> Outcome {
    let now = broker.core.now();
    broker.health.compare_replicas(now).await.map(Swept::all)
}

/// Keeps the write-ahead log of an embedded store short.
async fn bound_log(broker: &Broker) -> Outcome {
    if let Some(bytes) = broker.core.store().bound_log().await? {
        broker.core.metrics().sqlite_wal(bytes);
    }
    Ok(Swept::all(0))
}

/// Records one leaf per identity for the denials of a window that had no leaves.
async fn omitted_denials(broker: &Broker, now: Timestamp) -> Outcome {
    let omitted = broker.issuance.denials().take_omitted(now);
    let told = u64::try_from(omitted.len()).unwrap_or(u64::MAX);
    for one in omitted {
        let entry = Entry::DenialsOmitted(DenialsOmitted {
            subject: one.of,
            count: one.count,
            since: one.since,
        });
        broker.core.ledger().append_own(entry, now).await?;
    }
    Ok(Swept::all(told))
}
