//! Metrics of the ledger: its size, its key, its batches, the shared checkpoint and the witnesses.
//!
//! `crate::ledger` reports these. The names of witnesses come from the configuration, and their
//! series begin when they are known. Reporting never fails.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor as _};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::Metrics;
use super::registrar::{
    BATCH_ENTRIES, Buckets, Counters, Labels, Registrar, STEP_SECONDS, begin, count, to_gauge,
};
use crate::clock::Timestamp;

/// The value of the metric of the ledger key's end if it has no end: a century.
const ENDLESS_DAYS: u64 = 36_500;

/// Metrics of the ledger and of the checkpoints outside the store.
#[derive(Debug)]
pub(super) struct LedgerMetrics {
    size: Gauge,
    key_days: Gauge,
    batch_entries: Histogram,
    queue_depth: Gauge,
    unrecorded_evidence: Gauge,
    commit: Histogram,
    endings_view: EndingsView,
    shared_checkpoint: SharedCheckpoint,
    witnesses: Witnesses,
}

impl LedgerMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        let metrics = Self {
            size: r.gauge("ledger_size", "Leaves in the ledger, as last seen"),
            key_days: r.gauge(
                "ledger_key_days_left",
                "Days until the current ledger key ends; 36500 where it has no end",
            ),
            batch_entries: r.add(
                "ledger_batch_entries",
                "Number of entries in a batch",
                Buckets(BATCH_ENTRIES).new_metric(),
            ),
            queue_depth: r.gauge("ledger_queue_depth", "Entries that wait for a batch"),
            unrecorded_evidence: r.gauge(
                "ledger_unrecorded_evidence",
                "One-time ids that are refused and whose use is still to be recorded",
            ),
            commit: r.add(
                "ledger_commit_seconds",
                "Duration of a batch, from lock to commit",
                Buckets(STEP_SECONDS).new_metric(),
            ),
            endings_view: EndingsView::new(r),
            shared_checkpoint: SharedCheckpoint::new(r),
            witnesses: Witnesses::new(r),
        };
        metrics.key_days.set(to_gauge(ENDLESS_DAYS));
        metrics
    }
}

/// Metrics of the endings that this replica knows.
#[derive(Debug)]
struct EndingsView {
    size: Gauge,
    age: Gauge<f64, AtomicU64>,
    known: Gauge,
}

impl EndingsView {
    fn new(r: &mut Registrar) -> Self {
        Self {
            size: r.gauge(
                "endings_view_size",
                "Leaves below which this replica knows every ending",
            ),
            age: r.add(
                "endings_view_age_seconds",
                "Time since the last read after which this replica knew every ending",
                Gauge::default(),
            ),
            known: r.gauge("endings_view_endings", "Endings that are kept in memory"),
        }
    }
}

/// Metrics of the checkpoint outside the store that all replicas share.
#[derive(Debug)]
struct SharedCheckpoint {
    size: Gauge,
    time: Gauge,
    failures: Counter,
}

impl SharedCheckpoint {
    fn new(r: &mut Registrar) -> Self {
        Self {
            size: r.gauge(
                "shared_checkpoint_size",
                "Leaves under the shared checkpoint, as last published or read",
            ),
            time: r.gauge(
                "shared_checkpoint_timestamp_seconds",
                "When the shared checkpoint was last published or read",
            ),
            failures: r.add(
                "shared_checkpoint_failures",
                "Checkpoints that could not be published for all replicas",
                Counter::default(),
            ),
        }
    }
}

/// Metrics of the witnesses.
#[derive(Debug)]
struct Witnesses {
    size: Family<Labels<1>, Gauge>,
    time: Family<Labels<1>, Gauge>,
    failures: Counters<2>,
}

impl Witnesses {
    fn new(r: &mut Registrar) -> Self {
        Self {
            size: r.add(
                "witness_size",
                "Leaves under the largest checkpoint that a witness signed",
                Family::default(),
            ),
            time: r.add(
                "witness_timestamp_seconds",
                "When a witness last signed a checkpoint for this replica, by the witness's clock",
                Family::default(),
            ),
            failures: r.counters(
                "witness_failures",
                "Checkpoints that a witness did not sign, by reason",
            ),
        }
    }
}

impl Metrics {
    /// Creates the series of this witness and these reasons.
    pub fn witness_begins(&self, witness: &str, reasons: &[&'static str]) {
        let name = || Cow::Owned(witness.to_owned());
        drop(
            self.ledger
                .witnesses
                .size
                .get_or_create(&[("witness", name())]),
        );
        for reason in reasons {
            let labels = [("witness", name()), ("reason", (*reason).into())];
            begin(&self.ledger.witnesses.failures, &labels);
        }
    }

    /// The size of the largest checkpoint that a witness signed.
    pub fn witness_size(&self, witness: &str, leaves: u64) {
        let labels = [("witness", witness.to_owned().into())];
        let size = self.ledger.witnesses.size.get_or_create(&labels);
        size.set(to_gauge(leaves));
    }

    /// A witness signed a checkpoint, at this time by its own clock.
    pub fn witness_signed(&self, witness: &str, seconds: u64) {
        let labels = [("witness", witness.to_owned().into())];
        let time = self.ledger.witnesses.time.get_or_create(&labels);
        time.set(to_gauge(seconds));
    }

    /// A witness signed nothing, for this reason.
    pub fn witness_failed(&self, witness: &str, reason: &'static str) {
        let labels = [
            ("witness", witness.to_owned().into()),
            ("reason", reason.into()),
        ];
        count(&self.ledger.witnesses.failures, &labels);
    }

    /// The number of leaves in the ledger.
    pub fn ledger_size(&self, leaves: u64) {
        self.ledger.size.set(to_gauge(leaves));
    }

    /// The time until the current ledger key ends. `None` if it has no end.
    pub fn ledger_key_left(&self, seconds: Option<u64>) {
        let days = seconds.map_or(ENDLESS_DAYS, |seconds| seconds / 86_400);
        self.ledger.key_days.set(to_gauge(days));
    }

    /// A batch of this many entries was committed.
    pub fn ledger_batch(&self, entries: usize, took: Duration) {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        self.ledger.batch_entries.observe(f64::from(entries));
        self.ledger.commit.observe(took.as_secs_f64());
    }

    /// The leaves below which every ending is known, the time since the last complete read (`None`
    /// before the first), and the number of endings in memory.
    pub fn endings_view(&self, leaves: u64, age: Option<Duration>, known: usize) {
        let view = &self.ledger.endings_view;
        view.size.set(to_gauge(leaves));
        view.age.set(age.unwrap_or_default().as_secs_f64());
        view.known.set(to_gauge(known as u64));
    }

    /// The number of entries in the queue.
    pub fn ledger_queue_depth(&self, entries: usize) {
        self.ledger.queue_depth.set(to_gauge(entries as u64));
    }

    /// The number of one-time ids whose use is yet to be recorded.
    pub fn unrecorded_evidence(&self, ids: usize) {
        self.ledger.unrecorded_evidence.set(to_gauge(ids as u64));
    }

    /// The size of the shared checkpoint, and when it was published or read.
    pub fn shared_checkpoint(&self, leaves: u64, now: Timestamp) {
        self.ledger.shared_checkpoint.size.set(to_gauge(leaves));
        self.ledger.shared_checkpoint.time.set(now.seconds());
    }

    /// A checkpoint could not be published.
    pub fn shared_checkpoint_failed(&self) {
        self.ledger.shared_checkpoint.failures.inc();
    }
}
