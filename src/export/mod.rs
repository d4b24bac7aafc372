//! Sends the ledger's leaves to external sinks: files, standard output, webhooks.
//!
//! The log is the outbox. Every decision and every act is a leaf before it takes effect, and leaves
//! have an order without gaps, so each sink only needs a cursor. A separate worker reads the leaves
//! after the cursor, delivers them and advances the cursor (`round`, `tell`). No request waits for
//! a sink: a sink that hangs, fails or is gone only shows in the lag.
//!
//! - **At least once.** The cursor advances after the delivery, so an interrupted delivery is
//!   repeated with the same id.
//! - **In order.** A file has the order of the log. Among concurrent requests, events of one
//!   session are sent one after the other, and an event of no session or of several is sent alone.
//!   A duplicate from a frozen replica may arrive late; a first delivery does not.
//! - **One replica at a time** delivers to a sink: the replica with the sink's lease, which expires
//!   some seconds after the longest attempt would have ended. A replica whose clock is wrong takes
//!   no lease, and the times that it wrote before that was detected bind others no longer than
//!   correct times would.
//! - A failed delivery is repeated without end, with growing pauses: skipping an event would hide
//!   it from the receiver. Only a sink that answers 410 gets nothing more, with an alarm.
//!
//! A sink that cannot be set up is a [`SinkError`] at the start. `app` runs the exporter;
//! `store::exports` keeps the cursors, `event` writes the events, `writer` and `webhook` deliver
//! them.

mod checkpoints;
mod cloudevents;
mod delivery;
mod event;
mod ocsf;
mod reading;
mod sink;
mod webhook;
mod writer;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::delivery::Ahead;
pub use self::event::Message;
pub use self::reading::RecordedLeaf;
pub use self::sink::SinkError;
use self::sink::{Sink, SinkOutput, believed_at};
use self::webhook::{MAX_PAUSE_SECONDS, Undelivered};
use crate::clock::{SharedClock, Timestamp};
use crate::config::{Config, ExportFrom};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::store::exports::ExportCursor;
use crate::store::heads::HeadError;
use crate::store::{Store, StoreError};

/// The intervals of deliveries and of lag measurements, and the pause when the store does not
/// answer.
const INTERVAL: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_secs(1);
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// How often a replica records that it is running, and how long no replica with the registered
/// settings may have done so before a replica with other settings takes the sink over.
const SEEN: Duration = Duration::from_secs(10);
const GONE_SECONDS: u64 = 60;

/// Within this time after a log succeeded another, a sink that starts at `now` starts with the
/// first leaf instead, because that leaf reports the loss.
const SUCCESSION_NEWS_SECONDS: u64 = 86_400;

/// How long a delivery in progress may continue at shutdown.
const GRACE: Duration = Duration::from_secs(3);

/// The longest pause after a failure, unless the receiver asks for a longer one.
const MAX_BACKOFF_SECONDS: u64 = 300;

/// From this number of consecutive failures on, they are logged as errors instead of warnings.
const ALARMING: u32 = 5;

/// The parts of an exporter.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ExporterParts {
    /// The log, whose store has the cursors.
    pub ledger: Ledger,
    /// The name of this replica.
    pub replica: String,
    pub clock: SharedClock,
    /// Whether the clock agrees with the database's. By another clock no lease may count as
    /// expired.
    pub goes_by_the_right_clock: Box<dyn Fn() -> bool + Send + Sync>,
    pub metrics: Arc<Metrics>,
}

/// Sends the log's leaves to the sinks.
pub struct Exporter {
    parts: ExporterParts,
    issuer: String,
    sinks: Vec<Sink>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("an event could not be written")]
    Event(#[from] serde_json::Error),
    #[error("{why}")]
    Undelivered {
        /// The id of the event that was not delivered.
        event: String,
        why: Undelivered,
    },
    #[error("another replica has the sink's lease")]
    Lost,
}

impl Exporter {
    /// An exporter with the sinks of the configuration.
    pub fn new(config: &Config, mut parts: ExporterParts) -> Result<Self, SinkError> {
        if let Store::Sqlite(_) = parts.ledger.store() {
            // There is only one process, so it takes over a lease of its predecessor at once.
            "embedded".clone_into(&mut parts.replica);
        }
        for export in &config.export {
            parts.metrics.sink_begins(&export.name);
        }
        let sinks = config
            .export
            .iter()
            .map(|export| Sink::new(export, config, &parts.metrics))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            parts,
            issuer: config.server.issuer.clone(),
            sinks,
        })
    }

    /// Serves all sinks independently of each other, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        if self.sinks.is_empty() {
            stop.cancelled().await;
        }
        let seen_to = self.sinks.iter().map(|sink| async {
            // Concurrently, so that the lag is measured also while a delivery hangs.
            tokio::join!(
                self.follow(sink, &stop),
                self.watch(sink, &stop),
                self.tell_checkpoints(sink, &stop)
            );
        });
        join_all(seen_to).await;
        Ok(())
    }

    async fn follow(&self, sink: &Sink, stop: &CancellationToken) {
        let mut registered = false;
        let mut ahead = Ahead::default();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = INTERVAL;
            if !(self.parts.goes_by_the_right_clock)() {
                continue;
            }
            let round = async {
                if !registered {
                    self.register(sink).await?;
                    registered = true;
                }
                self.round(sink, &mut ahead, stop).await
            };
            let ended = tokio::select! {
                ended = round => ended,
                () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => {
                    let store = self.store();
                    drop(store.release_export(&sink.key, &self.parts.replica, None).await);
                    return;
                }
            };
            match ended {
                Ok(()) => {}
                Err(RoundError::Lost) => {
                    info!(sink = sink.key.name, "another replica has the sink's lease");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(
                        sink = sink.key.name,
                        error, "a sink could not be served; it is tried again"
                    );
                    pause = STORE_PAUSE;
                }
            }
        }
    }

    /// Measures how far a sink lags.
    async fn watch(&self, sink: &Sink, stop: &CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEASURE) => {}
            }
            if let SinkOutput::Lines(writer) = &sink.to {
                writer.queue_compare();
            }
            // The delivery reports a store that does not answer.
            if !matches!(self.measure(sink).await, Ok(true)) {
                self.parts.metrics.export_unmeasured(&sink.key.name);
            }
        }
    }

    fn store(&self) -> &Store {
        self.parts.ledger.store()
    }

    /// The number of leaves under the newest head; leaves behind it are not part of the log.
    async fn size(&self) -> Result<u64, HeadError> {
        let head = self.parts.ledger.head().await?;
        Ok(head.map_or(0, |head| head.size))
    }

    async fn register(&self, sink: &Sink) -> Result<(), RoundError> {
        let store = self.store();
        let now = self.parts.clock.now();
        let start = match sink.from {
            ExportFrom::Now if !self.tells_of_a_loss(now).await? => self.size().await?,
            _ => 0,
        };
        store
            .register_export(&sink.key, &sink.registration, start, now)
            .await?;
        Ok(())
    }

    /// Whether the log succeeded another one not long ago.
    async fn tells_of_a_loss(&self, now: Timestamp) -> Result<bool, StoreError> {
        let store = self.store();
        if store.succession().await?.is_none() {
            return Ok(false);
        }
        let first = store.leaf(0).await?;
        Ok(first.is_none_or(|leaf| leaf.at.plus_seconds(SUCCESSION_NEWS_SECONDS) > now))
    }

    /// Delivers all outstanding leaves to a sink, if it is due and no other replica holds it.
    async fn round(
        &self,
        sink: &Sink,
        ahead: &mut Ahead,
        stop: &CancellationToken,
    ) -> Result<(), RoundError> {
        let store = self.store();
        let ExporterParts {
            replica,
            clock,
            metrics,
            ..
        } = &self.parts;
        let Some(cursor) = store.export_cursor(&sink.key).await? else {
            return self.register(sink).await;
        };
        let now = clock.now();
        let believed = believed_at(now);
        let foreign = cursor.registration != sink.registration;
        let told = sink.told_foreign.swap(foreign, Ordering::Relaxed);
        if foreign {
            if !told {
                warn!(
                    sink = sink.key.name,
                    "another replica was started later with other settings for this sink, and \
                     delivers by them; this replica takes over when that one was not running for \
                     {GONE_SECONDS} s"
                );
            }
            return self.take_over(sink, &cursor, now).await;
        }
        let waits = cursor.due_at > now && cursor.due_at <= believed.due_at;
        if waits || cursor.disabled_at.is_some() {
            return Ok(());
        }
        if cursor.next >= self.size().await? {
            return Ok(());
        }
        let until = sink.leased_from(now);
        let claimed = store
            .claim_export(&sink.key, &sink.registration, replica, now, until, believed)
            .await?;
        let Some(next) = claimed else {
            return Ok(());
        };
        ahead.go_on_at(next);
        let told = self.tell(sink, next, ahead, stop).await;
        let now = clock.now();
        match told {
            Err(RoundError::Undelivered {
                event,
                why: Undelivered::Gone,
            }) => {
                error!(
                    sink = sink.key.name,
                    event,
                    "the sink answered 410 and gets nothing more; raise its `revision` to try again"
                );
                metrics.export_failed(&sink.key.name);
                store
                    .disable_export(&sink.key, &sink.registration, now)
                    .await?;
            }
            Err(RoundError::Undelivered {
                event,
                why: Undelivered::Later { why, pause_seconds },
            }) => {
                metrics.export_failed(&sink.key.name);
                // A partial delivery has reset the count.
                let attempts = store.export_cursor(&sink.key).await?;
                let attempts = attempts.map_or(0, |cursor| cursor.attempts);
                let pause = backoff_seconds(attempts).max(pause_seconds.unwrap_or(0));
                if attempts + 1 >= ALARMING {
                    error!(
                        sink = sink.key.name,
                        event,
                        why,
                        attempts = attempts + 1,
                        pause,
                        "a delivery failed again; the sink misses events until it succeeds"
                    );
                } else {
                    warn!(
                        sink = sink.key.name,
                        event,
                        why,
                        attempts = attempts + 1,
                        pause,
                        "a delivery failed; it is tried again"
                    );
                }
                // A wrong clock would make other replicas wait for the wrong time.
                let again = (self.parts.goes_by_the_right_clock)().then(|| now.plus_seconds(pause));
                store.release_export(&sink.key, replica, again).await?;
            }
            Err(error) => {
                // Ends the lease now, so that other replicas need not wait for its expiry.
                store.release_export(&sink.key, replica, None).await?;
                return Err(error);
            }
            Ok(()) => store.release_export(&sink.key, replica, None).await?,
        }
        Ok(())
    }

    /// Delivers by this replica's settings if no replica with the registered settings is running.
    async fn take_over(
        &self,
        sink: &Sink,
        cursor: &ExportCursor,
        now: Timestamp,
    ) -> Result<(), RoundError> {
        let gone = now.minus_seconds(GONE_SECONDS);
        let believed = believed_at(now);
        if cursor.seen_at > gone && cursor.seen_at <= believed.lease_until {
            return Ok(());
        }
        let (key, store) = (&sink.key, &self.store());
        let taken = store.take_over_export(key, &sink.registration, now, gone, believed);
        if taken.await? {
            warn!(
                sink = key.name,
                "the replica with other settings for this sink was not running for {GONE_SECONDS} \
                 s; this replica delivers to it now"
            );
        }
        Ok(())
    }

    /// Measures how far a sink lags, and records that this replica is running. Returns whether the
    /// lag could be measured.
    async fn measure(&self, sink: &Sink) -> Result<bool, RoundError> {
        let store = self.store();
        if !(self.parts.goes_by_the_right_clock)() {
            return Ok(false);
        }
        let Some(cursor) = store.export_cursor(&sink.key).await? else {
            return Ok(false);
        };
        let now = self.parts.clock.now();
        if cursor.registration == sink.registration && cursor.seen_at.distance(now) >= SEEN {
            store.see_export(&sink.key, &sink.registration, now).await?;
        }
        let behind = self.size().await?.saturating_sub(cursor.next);
        let oldest = match behind {
            0 => None,
            _ => store.leaf(cursor.next).await?,
        };
        let age = oldest.map_or(0, |leaf| leaf.at.seconds_until(now));
        let age = Duration::from_secs(age);
        let disabled = cursor.disabled_at.is_some();
        let metrics = &self.parts.metrics;
        metrics.export_lag(&sink.key.name, behind, age, disabled);
        Ok(true)
    }
}

/// Doubles from one second up to [`MAX_BACKOFF_SECONDS`].
fn backoff_seconds(attempts: u32) -> u64 {
    let pause = 1_u64.checked_shl(attempts.min(16));
    pause
        .unwrap_or(MAX_BACKOFF_SECONDS)
        .min(MAX_BACKOFF_SECONDS)
}

const _: () = assert!(MAX_BACKOFF_SECONDS <= MAX_PAUSE_SECONDS);

#[cfg(test)]
mod tests;
