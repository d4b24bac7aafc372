//! Pruning: what nothing needs any more, children before parents, in bounded bites.

use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::generation::Retention;
use crate::domain::limits::{MAX_DEADLINE_SECONDS, MAX_TTL_SECONDS};

/// Rows that one statement deletes at most.
const BITE: u32 = 1_000;

/// Heads that are kept beside the newest: long enough to find the fate of any batch.
const KEPT_HEADS: u64 = 1_000_000;

/// How much longer than anybody could use them one-time ids are kept: far more than the clocks of
/// two ready replicas can differ.
const ONE_TIME_MARGIN_SECONDS: u64 = 60;

/// Deletes what is past its time; says how many rows that were.
pub async fn prune(
    broker: &Broker,
    retention: Retention,
    now: Timestamp,
) -> Result<u64, BrokerError> {
    let store = broker.store();
    let ago = |days: u32| now.minus_seconds(u64::from(days) * 86_400);
    let over = ago(retention.sessions_days);
    let opened = ago(retention.openings_days);
    let written = ago(retention.bodies_days);
    // A cutoff is needed for as long as anything could live that it kills.
    let cutoff = now.minus_seconds(MAX_TTL_SECONDS + MAX_DEADLINE_SECONDS);
    let size = broker.ledger().basis();
    let mut rows = 0;
    let mut failed = Ok(());
    // Room for what is to come, first: it must not depend on what can go.
    store.ensure_partitions(size).await?;
    // Sessions before their tasks, derived ones before what they were derived from, children
    // before parents: each statement leaves alone what something still points at.
    macro_rules! all_of {
        ($statement:expr) => {
            loop {
                match $statement.await {
                    // Until nothing is left: what a bite took may have been all that kept another.
                    Ok(0) => break,
                    Ok(pruned) => rows += pruned,
                    // One that cannot go now must not keep the others.
                    Err(error) => {
                        failed = failed.and(Err(error));
                        break;
                    }
                }
            }
        };
    }
    // A replica whose clock is behind ours may take for fresh what we would refuse already.
    let forgotten = now.minus_seconds(ONE_TIME_MARGIN_SECONDS);
    all_of!(store.prune_one_time(forgotten, BITE));
    all_of!(store.prune_retries(now, BITE));
    all_of!(store.prune_delegations(now, BITE));
    all_of!(store.prune_sessions(over, BITE));
    all_of!(store.prune_denied(over, BITE));
    all_of!(store.prune_tasks(over, BITE));
    all_of!(store.prune_cutoffs(cutoff, now, BITE));
    all_of!(store.prune_openings(opened, BITE));
    all_of!(store.prune_bodies(written, BITE));
    rows += store.prune_heads(size.saturating_sub(KEPT_HEADS)).await?;
    failed?;
    Ok(rows)
}
