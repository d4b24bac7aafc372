//! Metrics of this process: its workers, its clock, its files, its database's log and its tasks.
//!
//! `crate::app`, `crate::sweep`, `crate::shutdown` and `crate::store` report these. Reporting never
//! fails.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::registrar::{Counters, Labels, Registrar, begin, count, to_gauge};
use super::{Ended, Metrics};
use crate::clock::Timestamp;

/// The files that are read again while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The listener's certificate and key.
    Tls,
    /// The log level and the files of secrets.
    Configuration,
}

impl Reloaded {
    const ALL: [Self; 2] = [Self::Tls, Self::Configuration];

    fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Configuration => "configuration",
        }
    }
}

/// Metrics of the process and of its host.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    sweeps: Counters<2>,
    swept_rows: Counters<1>,
    other_endpoints: Gauge,
    clock_skew: Gauge<f64, AtomicU64>,
    clock_in_doubt: Gauge,
    horizon_lag: Gauge,
    sqlite_wal: Gauge,
    tls_not_after: Family<Labels<1>, Gauge>,
    reload_failures: Counters<1>,
    reload_pending: Family<Labels<1>, Gauge>,
    task_panics: Counters<1>,
}

impl ProcessMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        let metrics = Self {
            sweeps: r.counters("sweeps", "Rounds of the sweepers, by worker and result"),
            swept_rows: r.counters("swept_rows", "Rows that the sweepers finished, by worker"),
            other_endpoints: r.gauge(
                "replicas_with_other_endpoints",
                "Running replicas whose table of endpoints differs from this one's",
            ),
            clock_skew: r.add(
                "clock_skew_seconds",
                "Lead of this replica's clock over the database's",
                Gauge::default(),
            ),
            clock_in_doubt: r.add(
                "clock_in_doubt",
                "1 while this replica's clock cannot be relied on and it is closed",
                Gauge::default(),
            ),
            horizon_lag: r.add(
                "horizon_lag_seconds",
                "Lag of the horizon, by which rows are deleted, behind the clock",
                Gauge::default(),
            ),
            sqlite_wal: r.gauge(
                "sqlite_wal_bytes",
                "Size of SQLite's write-ahead log; it grows while a process reads an old state",
            ),
            tls_not_after: r.add(
                "tls_certificate_not_after_timestamp_seconds",
                "End of the validity of a listener's certificate chain",
                Family::default(),
            ),
            reload_failures: r.counters(
                "reload_failures",
                "Failed tries to load changed files, by their purpose",
            ),
            reload_pending: r.add(
                "reload_pending",
                "1 while changed files are not loaded, by their purpose",
                Family::default(),
            ),
            task_panics: r.counters("task_panics", "Tracked tasks that panicked, by name"),
        };
        for what in Reloaded::ALL {
            let labels = [("what", what.as_str().into())];
            begin(&metrics.reload_failures, &labels);
            drop(metrics.reload_pending.get_or_create(&labels));
        }
        metrics
    }
}

impl Metrics {
    /// Creates the series of this worker.
    pub fn sweeper_begins(&self, worker: &'static str) {
        for result in Ended::ALL {
            let result = result.as_str().into();
            begin(
                &self.process.sweeps,
                &[("worker", worker.into()), ("result", result)],
            );
        }
        begin(&self.process.swept_rows, &[("worker", worker.into())]);
    }

    /// Creates the series of tracked tasks with this name.
    pub fn task_begins(&self, task: &'static str) {
        begin(&self.process.task_panics, &[("task", task.into())]);
    }

    /// A worker's round ended, with this many rows.
    pub fn sweep(&self, worker: &'static str, result: Ended, rows: u64) {
        let labels = [
            ("worker", worker.into()),
            ("result", result.as_str().into()),
        ];
        count(&self.process.sweeps, &labels);
        let labels = [("worker", worker.into())];
        self.process.swept_rows.get_or_create(&labels).inc_by(rows);
    }

    /// The number of running replicas with other endpoints.
    pub fn other_endpoints(&self, replicas: usize) {
        let replicas = i64::try_from(replicas).unwrap_or(i64::MAX);
        self.process.other_endpoints.set(replicas);
    }

    /// The lead of this replica's clock over the database's, in seconds; negative if it lags.
    pub fn clock_skew(&self, seconds: f64) {
        self.process.clock_skew.set(seconds);
    }

    /// Whether the clock is in doubt.
    pub fn clock_in_doubt(&self, doubted: bool) {
        self.process.clock_in_doubt.set(i64::from(doubted));
    }

    /// The lag of the horizon behind the clock, in seconds.
    pub fn horizon_lag(&self, seconds: u64) {
        self.process
            .horizon_lag
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// The size of SQLite's write-ahead log.
    pub fn sqlite_wal(&self, bytes: u64) {
        self.process.sqlite_wal.set(to_gauge(bytes));
    }

    /// The end of the validity of the listener's certificate chain.
    pub fn tls_not_after(&self, not_after: Timestamp) {
        let labels = [("listener", "broker".into())];
        let end = self.process.tls_not_after.get_or_create(&labels);
        end.set(not_after.seconds());
    }

    /// Changed files could not be loaded.
    pub fn reload_failed(&self, what: Reloaded) {
        let labels = [("what", what.as_str().into())];
        count(&self.process.reload_failures, &labels);
        self.process.reload_pending.get_or_create(&labels).set(1);
    }

    /// All changed files were loaded.
    pub fn reload_succeeded(&self, what: Reloaded) {
        let labels = [("what", what.as_str().into())];
        self.process.reload_pending.get_or_create(&labels).set(0);
    }

    /// A tracked task panicked.
    pub fn task_panic(&self, task: &'static str) {
        count(&self.process.task_panics, &[("task", task.into())]);
    }
}
