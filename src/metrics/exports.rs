//! Metrics of the deliveries of events to sinks.
//!
//! `crate::export` reports these. The names of sinks come from the configuration, and their series
//! begin when they are known. A lag that is unknown has no series. Reporting never fails.

use std::borrow::Cow;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::registrar::{Counters, Labels, Registrar, begin, count, to_gauge};

/// Metrics of the deliveries to sinks.
#[derive(Debug)]
pub(super) struct ExportMetrics {
    delivered: Counters<1>,
    failures: Counters<1>,
    truncated: Counters<1>,
    lag: Family<Labels<1>, Gauge>,
    lag_seconds: Family<Labels<1>, Gauge>,
    disabled: Family<Labels<1>, Gauge>,
}

impl ExportMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        Self {
            delivered: r.counters(
                "export_delivered",
                "Entries that this replica delivered, by sink",
            ),
            failures: r.counters("export_failures", "Failed deliveries, by sink"),
            truncated: r.counters(
                "export_truncated",
                "Files of a sink that were truncated while the broker wrote to them",
            ),
            lag: r.add(
                "export_lag_entries",
                "Entries that were not delivered to a sink yet",
                Family::default(),
            ),
            lag_seconds: r.add(
                "export_lag_seconds",
                "Age of the oldest entry that a sink did not get yet; 0 when there is none",
                Family::default(),
            ),
            disabled: r.add(
                "export_disabled",
                "1 while a sink gets nothing, because it answered 410",
                Family::default(),
            ),
        }
    }
}

impl Metrics {
    /// Creates the series of this sink.
    pub fn sink_begins(&self, sink: &str) {
        let labels = [("sink", Cow::Owned(sink.to_owned()))];
        begin(&self.exports.delivered, &labels);
        begin(&self.exports.failures, &labels);
        begin(&self.exports.truncated, &labels);
    }

    /// A sink received this many more events.
    pub fn export_delivered(&self, sink: &str, entries: u64) {
        let labels = [("sink", sink.to_owned().into())];
        let delivered = self.exports.delivered.get_or_create(&labels);
        delivered.inc_by(entries);
    }

    /// A delivery to a sink failed.
    pub fn export_failed(&self, sink: &str) {
        let labels = [("sink", sink.to_owned().into())];
        count(&self.exports.failures, &labels);
    }

    /// A sink's file was truncated while the broker wrote to it.
    pub fn export_truncated(&self, sink: &str) {
        let labels = [("sink", sink.to_owned().into())];
        count(&self.exports.truncated, &labels);
    }

    /// A sink's lag, and whether its deliveries are off.
    pub fn export_lag(&self, sink: &str, entries: u64, age: Duration, disabled: bool) {
        let labels = [("sink", Cow::Owned(sink.to_owned()))];
        let set = |family: &Family<Labels<1>, Gauge>, value| {
            family.get_or_create(&labels).set(value);
        };
        set(&self.exports.lag, to_gauge(entries));
        set(&self.exports.lag_seconds, to_gauge(age.as_secs()));
        set(&self.exports.disabled, i64::from(disabled));
    }

    /// A sink's lag is unknown. Removes the series, because an old value would look current.
    pub fn export_unmeasured(&self, sink: &str) {
        let labels = [("sink", Cow::Owned(sink.to_owned()))];
        self.exports.lag.remove(&labels);
        self.exports.lag_seconds.remove(&labels);
        self.exports.disabled.remove(&labels);
    }
}
