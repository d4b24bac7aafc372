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
mod event;
mod ocsf;
mod webhook;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::event::{Message, RecordedLeaf};
use self::webhook::{MAX_PAUSE_SECONDS, Undelivered, Webhook};
use self::writer::{SinkTarget, Truncated, Writer};
use crate::clock::{SharedClock, Timestamp};
use crate::config::{Config, Export, ExportFormat, ExportFrom, ExportTo, MAX_TIMEOUT_SECONDS};
use crate::crypto::digest::sha256_parts;
use crate::ledger::Ledger;
use crate::merkle::Hash;
use crate::metrics::Metrics;
use crate::store::exports::{BelievedTimes, ExportCursor, ExportKey};
use crate::store::heads::HeadError;
use crate::store::leaves::StoredLeaf;
use crate::store::{Store, StoreError};

/// How long requests are sent before the cursor is advanced.
const BUDGET: Duration = Duration::from_secs(2);

/// The time by which a lease exceeds [`BUDGET`] and one attempt: for reading and advancing the
/// cursor, and for clocks that differ by a second.
const LEASE_MARGIN: Duration = Duration::from_secs(4);

/// The intervals of deliveries and of lag measurements, and the pause when the store does not
/// answer.
const INTERVAL: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_secs(1);
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// How often a replica records that it is running, and how long no replica with the registered
/// settings may have done so before a replica with other settings takes the sink over.
const SEEN: Duration = Duration::from_secs(10);
const GONE_SECONDS: u64 = 60;

/// The largest difference between the clocks of two replicas that are both correct.
const CLOCKS_SECONDS: u64 = 2;

/// Within this time after a log succeeded another, a sink that starts at `now` starts with the
/// first leaf instead, because that leaf reports the loss.
const SUCCESSION_NEWS_SECONDS: u64 = 86_400;

/// How long a delivery in progress may continue at shutdown.
const GRACE: Duration = Duration::from_secs(3);

/// How many leaves are read at once: for requests, and for lines.
const REQUESTS: u64 = 64;
const LINES: u64 = 512;

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

struct Sink {
    key: ExportKey,
    registration: String,
    format: ExportFormat,
    from: ExportFrom,
    free_text: bool,
    timeout: Duration,
    concurrency: u32,
    checkpoints: bool,
    to: SinkOutput,
    /// Whether a warning was logged that another replica has other settings for this sink.
    told_foreign: AtomicBool,
}

enum SinkOutput {
    Lines(Writer),
    Webhook(Webhook),
}

/// Why the exporter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A file or a setting is not as it was when it was checked.
    #[error("the sink `{0}` {1}")]
    Unfit(String, &'static str),
    /// The sink's HTTP client could not be made.
    #[error("the HTTP client of the sink `{0}` cannot be made")]
    Client(String, #[source] reqwest::Error),
    /// The sink's thread could not be started.
    #[error("the thread of the sink `{0}` cannot be started")]
    Thread(String, #[source] std::io::Error),
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

    /// Delivers the leaves from `next` on to a sink whose lease this replica holds, until there are
    /// no more.
    async fn tell(
        &self,
        sink: &Sink,
        mut next: u64,
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
        while !stop.is_cancelled() && (self.parts.goes_by_the_right_clock)() {
            let there = self.size().await?.saturating_sub(next);
            let leaves = store.leaves(next, there.min(sink.at_once())).await?;
            let Some(last) = leaves.last() else {
                break;
            };
            let end = last.index + 1;
            let messages = self.messages(sink, &leaves).await?;
            let (until, failed) = match &sink.to {
                SinkOutput::Lines(writer) => {
                    match writer.write(lines(&messages), sink.timeout).await {
                        Ok(()) => (end, None),
                        Err(error) => (next, Some(Undelivered::later(error.to_string()))),
                    }
                }
                SinkOutput::Webhook(webhook) => {
                    self.post(sink, webhook, &messages, ahead, stop).await
                }
            };
            if until > next {
                let lease = sink.leased_from(clock.now());
                let moved = store.advance_export(&sink.key, replica, next, until, lease);
                if !moved.await? {
                    return Err(RoundError::Lost);
                }
                metrics.export_delivered(&sink.key.name, until - next);
                next = until;
                ahead.moved_to(next);
            }
            if let Some(why) = failed {
                let mut events = messages.into_iter();
                let event = events.find(|message| message.index == until);
                let event = event.map_or_else(String::new, |message| message.id);
                return Err(RoundError::Undelivered { event, why });
            }
        }
        Ok(())
    }

    /// Sends one request per message, except for messages that were delivered `ahead`; several at
    /// once where the order does not matter. Returns the first leaf that was not delivered, and
    /// why.
    async fn post(
        &self,
        sink: &Sink,
        webhook: &Webhook,
        messages: &[Message],
        ahead: &mut Ahead,
        stop: &CancellationToken,
    ) -> (u64, Option<Undelivered>) {
        let begun = Instant::now();
        let clock = &self.parts.clock;
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let (run, after) = rest.split_at(run_length(rest));
            let known = &ahead.delivered;
            let posted = lanes(run, sink.concurrency)
                .into_iter()
                .map(|lane| async move {
                    let mut delivered = Vec::new();
                    for message in lane {
                        if known.contains(&message.index) {
                            continue;
                        }
                        let over = stop.is_cancelled() || begun.elapsed() > BUDGET;
                        if over && message.index != first.index {
                            return (delivered, Some((message.index, None)));
                        }
                        if let Err(failed) = webhook.deliver(message, clock.now()).await {
                            return (delivered, Some((message.index, Some(failed))));
                        }
                        delivered.push(message.index);
                    }
                    (delivered, None)
                });
            let posted = join_all(posted).await;
            let mut undelivered = None;
            let mut failed = None;
            for (delivered, missed) in posted {
                ahead.delivered.extend(delivered);
                let Some((index, why)) = missed else {
                    continue;
                };
                undelivered = Some(undelivered.map_or(index, |least: u64| least.min(index)));
                failed = match (failed, why) {
                    (Some(Undelivered::Gone), _) | (_, Some(Undelivered::Gone)) => {
                        Some(Undelivered::Gone)
                    }
                    (old, new) => old.or(new),
                };
            }
            if let Some(index) = undelivered {
                return (index, failed);
            }
            rest = after;
            if begun.elapsed() > BUDGET || stop.is_cancelled() {
                break;
            }
        }
        let end = messages.last().map_or(0, |last| last.index + 1);
        (rest.first().map_or(end, |next| next.index), None)
    }

    async fn messages(
        &self,
        sink: &Sink,
        leaves: &[StoredLeaf],
    ) -> Result<Vec<Message>, RoundError> {
        let mut messages = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let text = if sink.free_text {
                let openings = self.store().openings(leaf.index).await?;
                let bytes = openings.purpose.map(|opening| opening.bytes);
                bytes.and_then(|bytes| String::from_utf8(bytes).ok())
            } else {
                None
            };
            messages.push(Message::write(
                sink.format,
                RecordedLeaf {
                    issuer: &self.issuer,
                    origin: &sink.key.origin,
                    index: leaf.index,
                    hash: &leaf.hash,
                    body: leaf.body.as_deref(),
                    at: Some(leaf.at),
                    subject: leaf.subject.as_deref(),
                    free_text: text.as_deref(),
                },
            )?);
        }
        Ok(messages)
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

/// Leaves that a sink received beyond its cursor, because an earlier one failed. They are not sent
/// again. Only this process knows them, so they are after a crash.
#[derive(Debug, Default)]
struct Ahead {
    cursor: u64,
    delivered: BTreeSet<u64>,
}

impl Ahead {
    /// This replica has the lease again, with the cursor at `next`. If the cursor moved meanwhile,
    /// another replica continued, or an operator set it back.
    fn go_on_at(&mut self, next: u64) {
        if next != self.cursor {
            self.delivered.clear();
        }
        self.moved_to(next);
    }

    fn moved_to(&mut self, next: u64) {
        self.cursor = next;
        self.delivered = self.delivered.split_off(&next);
    }
}

impl Sink {
    fn new(export: &Export, config: &Config, metrics: &Arc<Metrics>) -> Result<Self, SinkError> {
        let name = || export.name.clone();
        let unfit = |why| SinkError::Unfit(name(), why);
        let timeout = Duration::from_secs(export.timeout_seconds);
        let start = |target| {
            let told = tell_truncation(name(), Arc::clone(metrics));
            Writer::start(target, told).map_err(|error| SinkError::Thread(name(), error))
        };
        let (to, location) = match export.to {
            ExportTo::Stdout => (
                SinkOutput::Lines(start(SinkTarget::Stdout)?),
                "-".to_owned(),
            ),
            ExportTo::File => {
                let path = export.path.as_ref().ok_or_else(|| unfit("has no file"))?;
                let location = path.to_string_lossy().into_owned();
                (
                    SinkOutput::Lines(start(SinkTarget::File(path.clone()))?),
                    location,
                )
            }
            ExportTo::Webhook => {
                let url = export.url.as_ref().ok_or_else(|| unfit("has no url"))?;
                let secrets = config.secrets.webhooks.iter();
                let secrets = secrets.clone().find(|(of, _)| *of == export.name);
                let (_, secrets) = secrets.ok_or_else(|| unfit("has no secret"))?;
                let authorities = export.ca_file.as_ref().map(std::fs::read).transpose();
                let authorities = authorities.map_err(|_| unfit("has an unreadable ca_file"))?;
                let webhook = Webhook::new(
                    url,
                    secrets.clone(),
                    content_type(export.format),
                    timeout,
                    authorities.as_deref(),
                )
                .map_err(|error| SinkError::Client(name(), error.without_url()))?;
                (SinkOutput::Webhook(webhook), url.clone())
            }
        };
        let kind = format!("{:?}", export.to);
        let revision = export.revision.to_be_bytes();
        // The content counts like the target: a sink with another format must not continue at an
        // old cursor.
        let told = format!("{:?} {}", export.format, export.free_text);
        let parts: [&[u8]; 4] = [
            kind.as_bytes(),
            location.as_bytes(),
            &revision,
            told.as_bytes(),
        ];
        Ok(Self {
            key: ExportKey {
                name: name(),
                origin: config.ledger.origin.clone(),
            },
            // A digest, because an address may contain secrets.
            registration: Hash::from(sha256_parts("export registration", &parts)).to_string(),
            format: export.format,
            from: export.from,
            free_text: export.free_text,
            timeout,
            concurrency: export.concurrency,
            checkpoints: export.checkpoints,
            to,
            told_foreign: AtomicBool::new(false),
        })
    }

    /// The end of a lease that begins `now`.
    fn leased_from(&self, now: Timestamp) -> Timestamp {
        now.plus_seconds((BUDGET + self.timeout + LEASE_MARGIN).as_secs())
    }

    fn at_once(&self) -> u64 {
        match self.to {
            SinkOutput::Lines(_) => LINES,
            SinkOutput::Webhook(_) => REQUESTS,
        }
    }
}

/// Logs that a sink's file was truncated while the broker wrote to it.
fn tell_truncation(sink: String, metrics: Arc<Metrics>) -> impl Fn(Truncated) + Send + 'static {
    move |Truncated { was, is }| {
        metrics.export_truncated(&sink);
        error!(
            sink,
            was,
            is,
            "the file was cut while the broker wrote to it, as `copytruncate` does: lines may be \
             lost; rotate it by renaming"
        );
    }
}

/// The latest times that a replica with a correct clock can have written by `now`.
fn believed_at(now: Timestamp) -> BelievedTimes {
    let lease = BUDGET + Duration::from_secs(MAX_TIMEOUT_SECONDS) + LEASE_MARGIN;
    BelievedTimes {
        due_at: now.plus_seconds(MAX_PAUSE_SECONDS + CLOCKS_SECONDS),
        lease_until: now.plus_seconds(lease.as_secs() + CLOCKS_SECONDS),
    }
}

/// The media type of one event.
fn content_type(format: ExportFormat) -> &'static str {
    match format {
        ExportFormat::Cloudevents => cloudevents::CONTENT_TYPE,
        ExportFormat::Ocsf => ocsf::CONTENT_TYPE,
    }
}

fn lines(messages: &[Message]) -> Vec<u8> {
    let mut lines = Vec::new();
    for message in messages {
        lines.extend_from_slice(&message.body);
        lines.push(b'\n');
    }
    lines
}

/// How many of the next messages can be sent at once: one that must go alone, or all before the
/// next such message.
fn run_length(messages: &[Message]) -> usize {
    let alone = messages
        .iter()
        .position(|message| message.session.is_none());
    match alone {
        Some(0) => 1,
        Some(at) => at,
        None => messages.len(),
    }
}

/// Groups messages by session into at most `most` lanes, each in order.
fn lanes(run: &[Message], most: u32) -> Vec<Vec<&Message>> {
    let mut lanes: BTreeMap<u128, Vec<&Message>> = BTreeMap::new();
    for message in run {
        let session = message.session.map_or(0, |session| session.as_u128());
        lanes
            .entry(session % u128::from(most.max(1)))
            .or_default()
            .push(message);
    }
    lanes.into_values().collect()
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
