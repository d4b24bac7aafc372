//! The rounds of one worker: when the next one begins, how long one may take, and whether the
//! worker may run at all.
//!
//! [`every`] is the loop of one worker. [`bounded`] ends a round that takes too long. [`Work`] says
//! whether a worker may run while the clock is in doubt, and [`Worker::round`] heeds it.
//!
//! The rule: a worker that expires, ends or deletes by the clock gets the present instant from
//! here, and only while the clock can be relied on. A worker does a bounded amount of work in each
//! round and says whether there is more, so that the clock is judged again in between. No failure
//! ends a loop. `sweep` has the table of workers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::core::Wake;
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::metrics::Ended;

/// How often most workers run without a signal. No first round begins later.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a round of most workers may take. Statements and appends end much earlier.
const PATIENCE: Duration = Duration::from_mins(1);

/// The least time between two rounds, however many signals come: each round costs some statements,
/// and finds everything that ended since the last one.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// The pause between two rounds while there is more to do. Other writers get their turn.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause after a round that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The result of a round that did not fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// The number of rows that it changed, for the metrics.
    pub(super) rows: u64,
    /// Whether it stopped at its bound, so that there may be more to do.
    pub(super) more: bool,
}

impl Swept {
    /// A round that had everything in its reach.
    pub(super) fn all(rows: u64) -> Self {
        Self { rows, more: false }
    }
}

/// The result of any round.
pub(super) type Outcome = Result<Swept, BrokerError>;

/// The work of a worker in one round.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// It goes by no clock, so it also runs while the clock is in doubt.
    ByNoClock(for<'b> fn(&'b Arc<Broker>) -> BoxFuture<'b, Outcome>),
    /// It expires, ends or deletes by the given instant, for every replica. So it must not run by a
    /// clock that is in doubt.
    ByTheClock(for<'b> fn(&'b Arc<Broker>, Timestamp) -> BoxFuture<'b, Outcome>),
}

/// A worker with a loop of its own.
#[derive(Clone, Copy)]
pub(super) struct Worker {
    /// Its name, as the label of metrics.
    pub(super) name: &'static str,
    /// The time between two rounds if nothing wakes it and there is no more to do.
    interval: Duration,
    /// The longest time that a round may take.
    patience: Duration,
    /// The signal that ends its pause; `None` if only time does.
    woken_by: Option<Wake>,
    work: Work,
}

/// When the next round of a worker begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At once: there may be more to do.
    Soon,
    /// After the worker's interval.
    Later,
    /// After the worker's interval, but not much later than this.
    AfterFailure,
}

impl Worker {
    /// A worker that runs every second.
    pub(super) const fn new(name: &'static str, work: Work) -> Self {
        Self {
            name,
            interval: INTERVAL,
            patience: PATIENCE,
            woken_by: None,
            work,
        }
    }

    /// The worker with another interval.
    pub(super) const fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// The worker with another limit of a round's time.
    pub(super) const fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The worker with a signal that ends its pause.
    pub(super) const fn woken_by(self, wake: Wake) -> Self {
        Self {
            woken_by: Some(wake),
            ..self
        }
    }

    /// Runs rounds until `stop`.
    pub(super) async fn run<'r>(&'r self, broker: &'r Arc<Broker>, stop: &CancellationToken) {
        let woken = || -> BoxFuture<'r, ()> {
            match self.woken_by {
                Some(wake) => Box::pin(broker.core.woken(wake)),
                None => Box::pin(std::future::pending()),
            }
        };
        let round = || -> BoxFuture<'r, Next> { Box::pin(self.round(broker, broker.core.now())) };
        every(self.interval, stop, woken, round).await;
    }

    /// Runs one round at `now`, and reports it.
    pub(super) async fn round(&self, broker: &Arc<Broker>, now: Timestamp) -> Next {
        let work = match self.work {
            Work::ByNoClock(work) => work(broker),
            Work::ByTheClock(work) if may_go_by_the_clock(broker) => work(broker, now),
            Work::ByTheClock(_) => return Next::Later,
        };
        let done = bounded(self.patience, work).await;
        let next = match &done {
            Ok(swept) if swept.more => Next::Soon,
            Ok(_) => Next::Later,
            Err(_) => Next::AfterFailure,
        };
        report(broker, self.name, done.map(|swept| swept.rows));
        next
    }
}

/// Whether work may expire, end or delete anything by the clock: only while the clock is not in
/// doubt.
pub(super) fn may_go_by_the_clock(broker: &Broker) -> bool {
    broker.core.goes_by_the_right_clock()
}

/// Runs a worker's rounds until `stop`. A round that has begun is not cut off by it.
pub(super) async fn every<'r>(
    interval: Duration,
    stop: &CancellationToken,
    woken: impl Fn() -> BoxFuture<'r, ()>,
    round: impl Fn() -> BoxFuture<'r, Next>,
) {
    let mut pause = interval.min(INTERVAL);
    loop {
        let least = pause.min(LEAST_INTERVAL);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(least) => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = woken() => {}
            () = tokio::time::sleep(pause.saturating_sub(least)) => {}
        }
        pause = match round().await {
            Next::Soon => BATCH_PAUSE,
            Next::Later => interval,
            Next::AfterFailure => interval.min(RETRY_PAUSE),
        };
    }
}

/// Waits for a round, and ends it if it takes longer than `patience`. Every worker may be ended at
/// any point, like the process.
async fn bounded(patience: Duration, round: impl Future<Output = Outcome>) -> Outcome {
    let done = tokio::time::timeout(patience, round).await;
    done.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(BrokerError::bug(format!(
            "the round was ended after {seconds} s"
        )))
    })
}

/// Counts and logs a round of a worker, by the number of rows that it changed.
pub(super) fn report(broker: &Broker, worker: &'static str, result: Result<u64, BrokerError>) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const ROUNDS: u32 = 20;

    fn never<'r>() -> BoxFuture<'r, ()> {
        Box::pin(std::future::pending())
    }

    #[tokio::test]
    async fn a_worker_that_hangs_stops_no_other_and_is_tried_again() {
        let stop = CancellationToken::new();
        let (hung, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let hangs = every(SHORT, &stop, never, || {
            Box::pin(async {
                hung.fetch_add(1, Ordering::SeqCst);
                match bounded(SHORT, std::future::pending()).await {
                    Err(BrokerError::FailClosed(_)) => Next::AfterFailure,
                    other => panic!("{other:?}"),
                }
            })
        });
        let works = every(SHORT, &stop, never, || {
            Box::pin(async {
                let rounds = done.fetch_add(1, Ordering::SeqCst) + 1;
                if rounds >= ROUNDS && hung.load(Ordering::SeqCst) >= 2 {
                    stop.cancel();
                }
                Next::Later
            })
        });
        tokio::join!(hangs, works);
    }

    #[tokio::test]
    async fn the_other_workers_go_on_while_a_round_hangs() {
        let (stop, released) = (CancellationToken::new(), Notify::new());
        let done = AtomicU32::new(0);
        // This round lasts until the other worker has done its rounds.
        let hangs = every(SHORT, &stop, never, || {
            Box::pin(async {
                released.notified().await;
                stop.cancel();
                Next::Later
            })
        });
        let works = every(SHORT, &stop, never, || {
            Box::pin(async {
                if done.fetch_add(1, Ordering::SeqCst) + 1 == ROUNDS {
                    released.notify_one();
                }
                Next::Later
            })
        });
        tokio::join!(hangs, works);
        assert!(done.load(Ordering::SeqCst) >= ROUNDS);
    }

    #[tokio::test]
    async fn a_signal_and_more_work_end_a_long_pause() {
        let (stop, signal) = (CancellationToken::new(), Notify::new());
        let rounds = AtomicU32::new(0);
        signal.notify_one();
        // Neither the pause of an hour nor a missing signal delays the second round.
        every(
            Duration::from_hours(1),
            &stop,
            || Box::pin(signal.notified()),
            || {
                Box::pin(async {
                    if rounds.fetch_add(1, Ordering::SeqCst) == 0 {
                        return Next::Soon;
                    }
                    stop.cancel();
                    Next::Later
                })
            },
        )
        .await;
        assert_eq!(rounds.load(Ordering::SeqCst), 2);
    }
}
