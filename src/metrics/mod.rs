//! The metrics for Prometheus.
//!
//! [`Metrics`] has one method for each event or measurement. Callers report in terms of the domain
//! and do not depend on Prometheus. Every label has a small set of values: an enumeration, text
//! from the source code, or a name that an admin or the configuration chose, such as that of an
//! attestor, a sink or an observing policy. The digest of a generation is one only while it is
//! active. Ids of workloads, tasks and sessions are never labels: they are unbounded, and not every
//! scraper may see them.
//!
//! Reporting never fails. A series whose labels are known in advance begins with the value zero,
//! because the first event of a series that starts with it would be no increase. Series whose
//! labels depend on the configuration are created by the methods `…_begins`. If the text cannot be
//! written, [`Metrics::render`] returns an empty one, so that a partial one does not look complete.
//! Who may read it is decided by [`crate::http`].
//!
//! Each group of metrics registers its own, and has its methods of [`Metrics`] in its file:
//! `decisions`, `requests`, `revocations`, `ledger`, `exports` and `process`.

mod decisions;
mod exports;
mod ledger;
mod process;
mod registrar;
mod requests;
mod revocations;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use decisions::DecisionMetrics;
use exports::ExportMetrics;
use ledger::LedgerMetrics;
use process::ProcessMetrics;
use registrar::Registrar;
use requests::RequestMetrics;
use revocations::RevocationMetrics;

pub use process::Reloaded;
pub use requests::{RateLimit, Stage};
pub use revocations::RevocationLag;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The result of an operation that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Ended {
    Ok,
    Failed,
}

impl Ended {
    const ALL: [Self; 2] = [Self::Ok, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

impl<T, E> From<&Result<T, E>> for Ended {
    fn from(result: &Result<T, E>) -> Self {
        if result.is_ok() {
            Self::Ok
        } else {
            Self::Failed
        }
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: DecisionMetrics,
    requests: RequestMetrics,
    revocations: RevocationMetrics,
    ledger: LedgerMetrics,
    exports: ExportMetrics,
    process: ProcessMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, with their initial values.
    #[must_use]
    pub fn new() -> Self {
        let mut r = Registrar::new();
        Self {
            decisions: DecisionMetrics::new(&mut r),
            requests: RequestMetrics::new(&mut r),
            revocations: RevocationMetrics::new(&mut r),
            ledger: LedgerMetrics::new(&mut r),
            exports: ExportMetrics::new(&mut r),
            process: ProcessMetrics::new(&mut r),
            registry: r.into_registry(),
        }
    }

    /// The present values in the format [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // Writing to a string does not fail; a partial answer must not look complete.
            tracing::error!("metrics could not be written");
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests;
