//! The workers that finish ended and expired tasks and sessions: silent and late tasks, unfinished
//! mints, ends that no back end has confirmed, rows that are no longer needed.
//!
//! No request depends on them. The validity of a credential is judged at use, so a late or dead
//! sweeper only delays the records and permits nothing. Each worker is idempotent and handles a
//! bounded number of rows at once; any number of replicas run the workers concurrently, and on
//! PostgreSQL each skips rows that another replica has locked. A signal wakes them when a session
//! or task has just ended, and a timer otherwise. The slow workers, pruning and lists at back ends,
//! have loops of their own, so that no other worker waits for them.
//!
//! | worker | finds | does |
//! |---|---|---|
//! | `health` | whether the store answers, and whether the clock can be relied on | shows it in readiness; while the clock is in doubt, only `health`, `generation_sync`, `partitions`, `replicas` and `wal` do anything |
//! | `horizon` | how far the horizon may be | advances it; every permanent deletion uses it |
//! | `task_expiry` | open tasks whose `check_at` has come | ends those that have expired, or were opened by a fast clock; else sets the next check |
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
//! to the caller. The rule for a deletion is that it goes by the horizon and not by the clock.
//! `app` runs the loops; the workers call `broker`, which holds the rules, and `store` for the
//! rows.

mod orphans;
pub mod prune;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::prune::{Pruned, Pruner};
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{TaskEnd, TaskState};
use crate::domain::validity::is_dated_ahead;
use crate::ledger::Appended;
use crate::ledger::entry::{ConfirmEnd, DenialsOmitted, EndSession, Entry};
use crate::metrics::{Ended, Metrics, RevocationLag};
use crate::mint::EndOutcome;

/// How many rows one worker takes at once: enough to make the round trip cheap, few enough to keep
/// every statement fast.
const BATCH_ROWS: u32 = 200;

/// How often the workers run without a signal.
const INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two rounds, however many signals come: each round costs some statements,
/// and finds everything that ended since the last one.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// How long other replicas leave a claimed row alone.
const CLAIM_SECONDS: u64 = 30;

/// The longest pause between two tries to end a credential. The tries only stop when the back end
/// confirms the end, or when the credential expires.
const MAX_BACKOFF_SECONDS: u64 = 60;

/// How often rows are pruned while no backlog is left.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// The pause between two rounds of pruning while there is a backlog.
const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// How often tables for the next leaves are created: each time for many times the number of leaves
/// that can come before the next time.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(30);

/// How often a replica reports its configuration to the others.
const REPLICAS_INTERVAL: Duration = Duration::from_secs(10);

/// How long the report may take: its commit waits for a synchronous standby that may be gone, and
/// the health check runs in the same loop.
const REPLICAS_PATIENCE: Duration = Duration::from_secs(2);

/// The names of all workers, as labels of metrics.
const WORKERS: [&str; 14] = [
    "deny_lists",
    "endings",
    "generation_sync",
    "health",
    "horizon",
    "keys",
    "omitted_denials",
    "orphaned_sessions",
    "partitions",
    "prune",
    "replicas",
    "task_expiry",
    "unfinished_mints",
    "wal",
];

/// Creates the metrics of all workers with the value zero.
pub fn begin(metrics: &Metrics) {
    for worker in WORKERS {
        metrics.sweeper_begins(worker);
    }
}

/// Runs all workers but pruning and lists at back ends until `stop`.
pub async fn run(broker: Arc<Broker>, stop: CancellationToken) -> Result<(), Infallible> {
    let mut partitions_made: Option<Instant> = None;
    let mut compared: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = broker.core.woken() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if partitions_made.is_none_or(|at| at.elapsed() >= PARTITIONS_INTERVAL) {
            // Runs also while the clock is in doubt: it only depends on the size of the log.
            let ensured = broker
                .core
                .store()
                .ensure_partitions(broker.core.ledger().basis());
            let made = ensured.await.map(|()| 0).map_err(BrokerError::from);
            partitions_made = made.is_ok().then(Instant::now);
            report(&broker, "partitions", made);
        }
        report(&broker, "wal", bound_log(&broker).await);
        let began = Instant::now();
        round(&broker, broker.core.now()).await;
        if compared.is_none_or(|at| at.elapsed() >= REPLICAS_INTERVAL) {
            let comparing = broker.health.compare_replicas(broker.core.now());
            let done = tokio::time::timeout(REPLICAS_PATIENCE, comparing).await;
            let slow = || BrokerError::store("the comparison of replicas took too long");
            compared = Some(Instant::now());
            report(&broker, "replicas", done.unwrap_or_else(|_| Err(slow())));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until((began + LEAST_INTERVAL).into()) => {}
        }
    }
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
        if broker.core.goes_by_the_right_clock() {
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
                    report(broker, "prune", Err(error));
                    return false;
                }
            };
            let Pruned { rows, more, failed } = pruner.round(broker, retention, horizon).await;
            report(broker, "prune", failed.map(|()| rows));
            more
        }
        // No retention is configured yet, which readiness reports.
        Err(BrokerError::NoGeneration) => false,
        Err(error) => {
            report(broker, "prune", Err(error));
            false
        }
    }
}

/// Reconciles lists at back ends until `stop`, in a loop of its own: no other worker may wait for a
/// back end's time-outs.
pub async fn run_deny_lists(
    broker: Arc<Broker>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if broker.core.goes_by_the_right_clock() {
            report(
                &broker,
                "deny_lists",
                broker
                    .revocation
                    .deny_lists()
                    .reconcile_due_deny_lists()
                    .await,
            );
        }
    }
}

/// Runs one round of every worker but pruning, at `now`. Tests call it with their own clock.
pub async fn sweep(broker: &Arc<Broker>, now: Timestamp) {
    round(broker, now).await;
    report(
        broker,
        "deny_lists",
        broker
            .revocation
            .deny_lists()
            .reconcile_due_deny_lists()
            .await,
    );
}

async fn round(broker: &Arc<Broker>, now: Timestamp) {
    report(
        broker,
        "health",
        broker.health.check_health().await.map(|()| 0),
    );
    report(
        broker,
        "generation_sync",
        broker.generations.follow().await.map(|()| 0),
    );
    // All other workers expire, end or delete by the clock, for every replica. They must not run by
    // a wrong clock.
    if !broker.core.goes_by_the_right_clock() {
        return;
    }
    report(broker, "horizon", horizon(broker, now).await);
    report(broker, "keys", broker.keys.follow(now).await);
    report(broker, "task_expiry", task_expiry(broker, now).await);
    let unfinished = unfinished_mints(broker, now).await;
    report(broker, "unfinished_mints", unfinished);
    let orphaned = orphans::orphaned_sessions(broker, now).await;
    report(broker, "orphaned_sessions", orphaned);
    report(broker, "endings", endings(broker, now).await);
    report(
        broker,
        "omitted_denials",
        omitted_denials(broker, now).await,
    );
}

/// Keeps the write-ahead log of an embedded store short; runs also while the clock is in doubt.
async fn bound_log(broker: &Broker) -> Result<u64, BrokerError> {
    if let Some(bytes) = broker.core.store().bound_log().await? {
        broker.core.metrics().sqlite_wal(bytes);
    }
    Ok(0)
}

/// Advances the horizon, and ends a bootstrap token whose day has passed.
async fn horizon(broker: &Broker, now: Timestamp) -> Result<u64, BrokerError> {
    broker.core.horizon().await?;
    broker.access.end_bootstrap_token(now).await?;
    Ok(0)
}

fn report(broker: &Broker, worker: &'static str, result: Result<u64, BrokerError>) {
    broker
        .core
        .metrics()
        .sweep(worker, Ended::from(&result), *result.as_ref().unwrap_or(&0));
    match result {
        Ok(0) => debug!(worker, "nothing to sweep"),
        Ok(rows) => info!(worker, rows, "swept"),
        Err(error) => warn!(worker, %error, "a sweep failed; it is tried again"),
    }
}

/// Ends tasks that have expired, and schedules the next check of the others.
pub async fn task_expiry(broker: &Arc<Broker>, now: Timestamp) -> Result<u64, BrokerError> {
    let retry_at = now.plus_seconds(CLAIM_SECONDS);
    let over_by = broker.core.tasks_over_by(now);
    let mut ended = 0;
    loop {
        let due = broker
            .core
            .store()
            .claim_due_tasks(now, retry_at, BATCH_ROWS)
            .await?;
        let full = due.len() == BATCH_ROWS as usize;
        let accepted = match due.first() {
            Some(_) => broker.core.store().accepted_times().await?,
            None => Vec::new(),
        };
        for task in due {
            let dated_ahead = is_dated_ahead(task.opened_at, task.leaf_index, &accepted);
            let over = |by: Timestamp| task.life().state_at(by) == TaskState::Expired;
            let end = match dated_ahead {
                _ if over(over_by) => Some(TaskEnd::Expire),
                true if over(now) => Some(TaskEnd::Expire),
                true => Some(TaskEnd::Abort),
                false => None,
            };
            if let Some(end) = end {
                ended += u64::from(broker.tasks.sweep_task(&task, end).await?);
            } else {
                // Later than now: the task may have expired by the clock, and not yet by the
                // horizon.
                let check_at = task.life().expires_at().max(now.plus_seconds(1));
                broker.core.store().put_off_check(task.id, check_at).await?;
            }
        }
        if !full {
            return Ok(ended);
        }
    }
}

/// Ends sessions of unfinished mints: the credential may exist, so it is ended under the name that
/// the broker chose for it.
pub async fn unfinished_mints(broker: &Broker, now: Timestamp) -> Result<u64, BrokerError> {
    let mut found = 0;
    for session in broker
        .core
        .store()
        .unfinished_mints(now, BATCH_ROWS)
        .await?
    {
        begin_ending(broker, &session, EndReason::Failed, now).await?;
        found += 1;
    }
    Ok(found)
}

async fn begin_ending(
    broker: &Broker,
    session: &Session,
    reason: EndReason,
    now: Timestamp,
) -> Result<(), BrokerError> {
    let entry = Entry::EndSession(EndSession {
        session: session.id,
        state: SessionState::Ending,
        reason,
        never_made: false,
        by: "sweeper".into(),
        owner: session.workload.clone(),
    });
    broker.core.ledger().append_own(entry, now).await?;
    Ok(())
}

/// Asks back ends to end sessions in the state `ending`, and records their answers.
pub async fn endings(broker: &Broker, now: Timestamp) -> Result<u64, BrokerError> {
    let retry_at = now.plus_seconds(CLAIM_SECONDS);
    let horizon = broker.core.horizon().await?;
    let mut confirmed = 0;
    for (session, attempts) in broker
        .core
        .store()
        .claim_unconfirmed(now, retry_at, BATCH_ROWS)
        .await?
    {
        // An expired session has ended everywhere, so no confirmation is needed. Judged by the
        // horizon, because the back end uses its own clock, and the session is not checked again.
        let outcome = if horizon >= session.expires_at {
            EndOutcome::Confirmed
        } else if now >= session.expires_at {
            EndOutcome::NotBefore(now.plus_seconds(MAX_BACKOFF_SECONDS))
        } else {
            broker
                .revocation
                .deny_lists()
                .end_external(&session)
                .await
                .unwrap_or_else(|error| {
                    warn!(session = %session.id, %error, "ending it failed; it is tried again");
                    EndOutcome::Pending
                })
        };
        match outcome {
            EndOutcome::Confirmed => {
                confirm(broker, &session, now).await?;
                confirmed += 1;
            }
            EndOutcome::Pending => {
                let pause = backoff_seconds(attempts);
                broker
                    .core
                    .store()
                    .put_off_ending(session.id, now.plus_seconds(pause))
                    .await?;
            }
            EndOutcome::NotBefore(at) => broker.core.store().put_off_ending(session.id, at).await?,
            EndOutcome::Impossible => {
                broker
                    .core
                    .store()
                    .put_off_ending(session.id, session.expires_at)
                    .await?;
            }
        }
    }
    Ok(confirmed)
}

async fn confirm(broker: &Broker, session: &Session, now: Timestamp) -> Result<(), BrokerError> {
    let entry = Entry::ConfirmEnd(ConfirmEnd {
        session: session.id,
        reason: session.end_reason.unwrap_or(EndReason::Expired),
        confirmed: true,
        owner: session.workload.clone(),
    });
    if let Appended::Recorded(_) = broker.core.ledger().append_own(entry, now).await? {
        let reason = session.end_reason.unwrap_or(EndReason::Expired);
        broker.core.metrics().sessions_ended(reason, 1);
        let lag = session.ended_at.unwrap_or(now).distance(now);
        broker
            .core
            .metrics()
            .revocation_lag(RevocationLag::DurableToConfirmed, lag);
    }
    Ok(())
}

/// Doubles from one second up to a minute, without end.
fn backoff_seconds(attempts: u32) -> u64 {
    1_u64
        .checked_shl(attempts.min(16))
        .unwrap_or(MAX_BACKOFF_SECONDS)
        .min(MAX_BACKOFF_SECONDS)
}

/// Records one leaf per identity for the denials of a window that had no leaves.
pub async fn omitted_denials(broker: &Broker, now: Timestamp) -> Result<u64, BrokerError> {
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
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_rarer_and_never_stop() {
        assert_eq!(backoff_seconds(1), 2);
        assert_eq!(backoff_seconds(5), 32);
        assert_eq!(backoff_seconds(6), MAX_BACKOFF_SECONDS);
        assert_eq!(backoff_seconds(u32::MAX), MAX_BACKOFF_SECONDS);
    }
}
