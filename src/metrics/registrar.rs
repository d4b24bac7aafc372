//! Registers metrics, and the helpers with which the groups count.
//!
//! [`Registrar`] gives every metric the prefix `taskpass`. Labels are pairs of a fixed name and a
//! value. Nothing fails: a value that no gauge can hold is shown as the largest one.

use std::borrow::Cow;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// Buckets for steps of a request, from 50 µs to 10 s.
pub(super) const STEP_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
/// Buckets for requests and transactions, from 0.5 ms to 30 s.
pub(super) const CALL_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Buckets for revocations, from 1 ms to one hour, because back ends may confirm late.
pub(super) const LAG_SECONDS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0,
    3_600.0,
];
/// Buckets for the entries of a batch, up to its maximum.
pub(super) const BATCH_ENTRIES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

pub(super) type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
pub(super) type Counters<const N: usize> = Family<Labels<N>, Counter>;
pub(super) type Histograms<const N: usize> = Family<Labels<N>, Histogram, Buckets>;

/// Makes histograms with these bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buckets(pub(super) &'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Registers metrics under the prefix `taskpass` and returns them.
pub(super) struct Registrar(Registry);

impl Registrar {
    /// A registry that has only the version of the program.
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("taskpass");
        let build = [("version", Cow::Borrowed(env!("CARGO_PKG_VERSION")))];
        registry.register("build", "The version that is running", Info::new(build));
        Self(registry)
    }

    pub(super) fn into_registry(self) -> Registry {
        self.0
    }

    pub(super) fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    pub(super) fn counters<const N: usize>(&mut self, name: &str, help: &str) -> Counters<N> {
        self.add(name, help, Counters::default())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    pub(super) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        bounds: &'static [f64],
    ) -> Histograms<1> {
        let family = Family::new_with_constructor(Buckets(bounds));
        self.add(name, help, family)
    }
}

pub(super) fn begin<const N: usize>(family: &Counters<N>, labels: &Labels<N>) {
    drop(family.get_or_create(labels));
}

pub(super) fn count<const N: usize>(family: &Counters<N>, labels: &Labels<N>) {
    family.get_or_create(labels).inc();
}

pub(super) fn observe<const N: usize>(family: &Histograms<N>, labels: &Labels<N>, took: Duration) {
    family.get_or_create(labels).observe(took.as_secs_f64());
}

pub(super) fn to_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
