//! Metrics of ended sessions, of revocations, and of the lists at back ends that deny sessions.
//!
//! `crate::broker::revocation` reports these. The label `place` of a list names its target, as
//! registered. Reporting never fails.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::registrar::{
    Counters, Histograms, LAG_SECONDS, Labels, Registrar, begin, count, observe, to_gauge,
};
use crate::domain::cutoff::Selector;
use crate::domain::session::EndReason;

/// A part of the time from a revocation's request to its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationLag {
    /// From the request to the commit, after which no session is valid.
    RequestedToDurable,
    /// From the commit to the back end's confirmation.
    DurableToConfirmed,
}

impl RevocationLag {
    const ALL: [Self; 2] = [Self::RequestedToDurable, Self::DurableToConfirmed];

    fn as_str(self) -> &'static str {
        match self {
            Self::RequestedToDurable => "requested_to_durable",
            Self::DurableToConfirmed => "durable_to_confirmed",
        }
    }
}

/// The outcomes of a session that a list at its back end is to end.
const LISTED: &str = "listed";
const EXPIRES_NATURALLY: &str = "expires_naturally";

/// Metrics of ended sessions and of revocations.
#[derive(Debug)]
pub(super) struct RevocationMetrics {
    sessions_ended: Counters<1>,
    revocations: Counters<1>,
    revocation_lag: Histograms<1>,
    denied: Counters<1>,
    deny_list: Family<Labels<1>, Gauge>,
    deny_list_failures: Counter,
    short_deny_lists: Gauge,
}

impl RevocationMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        let metrics = Self {
            sessions_ended: r.counters("sessions_ended", "Sessions ended, by reason"),
            revocations: r.counters("revocations", "Cutoffs committed, by selector"),
            revocation_lag: r.histograms(
                "revocation_lag_seconds",
                "Time from the request of a revocation to its commit, and on to confirmation",
                LAG_SECONDS,
            ),
            denied: r.counters(
                "denied_sessions",
                "Sessions that were read back from a list at their back end, or that expire \
                 naturally because the list has no room for them or they expire too soon",
            ),
            deny_list: r.add(
                "deny_list_sessions",
                "Sessions on a back end's list, by target, as last written or read",
                Family::default(),
            ),
            deny_list_failures: r.add(
                "deny_list_failures",
                "Failed tries to reconcile a back end's list",
                Counter::default(),
            ),
            short_deny_lists: r.gauge(
                "deny_lists_short",
                "Lists that a back end refused for their size: nothing is issued there",
            ),
        };
        for outcome in [LISTED, EXPIRES_NATURALLY] {
            begin(&metrics.denied, &[("outcome", outcome.into())]);
        }
        for reason in EndReason::ALL {
            begin(
                &metrics.sessions_ended,
                &[("reason", reason.as_str().into())],
            );
        }
        for kind in Selector::KINDS {
            begin(&metrics.revocations, &[("selector", kind.into())]);
        }
        for part in RevocationLag::ALL {
            let labels = [("part", part.as_str().into())];
            drop(metrics.revocation_lag.get_or_create(&labels));
        }
        metrics
    }
}

impl Metrics {
    /// This many sessions ended.
    pub fn sessions_ended(&self, reason: EndReason, sessions: u64) {
        let labels = [("reason", reason.as_str().into())];
        self.revocations
            .sessions_ended
            .get_or_create(&labels)
            .inc_by(sessions);
    }

    /// A cutoff was committed.
    pub fn revocation(&self, selector: &Selector) {
        count(
            &self.revocations.revocations,
            &[("selector", selector.kind().into())],
        );
    }

    /// A revocation completed one part.
    pub fn revocation_lag(&self, part: RevocationLag, lag: Duration) {
        observe(
            &self.revocations.revocation_lag,
            &[("part", part.as_str().into())],
            lag,
        );
    }

    /// This many sessions were read back from a list at their back end.
    pub fn denied(&self, sessions: u64) {
        self.count_denied(LISTED, sessions);
    }

    /// This many sessions are not on a list, for lack of room or because they expire too soon, and
    /// live until room becomes free or they expire.
    pub fn expires_naturally(&self, sessions: u64) {
        self.count_denied(EXPIRES_NATURALLY, sessions);
    }

    fn count_denied(&self, outcome: &'static str, sessions: u64) {
        let labels = [("outcome", outcome.into())];
        self.revocations
            .denied
            .get_or_create(&labels)
            .inc_by(sessions);
    }

    /// This many targets have less room than registered.
    pub fn short_deny_lists(&self, targets: u64) {
        self.revocations.short_deny_lists.set(to_gauge(targets));
    }

    /// The number of sessions on a target's list.
    pub fn deny_list(&self, target: &str, sessions: u64) {
        let labels = [("place", target.to_owned().into())];
        self.revocations
            .deny_list
            .get_or_create(&labels)
            .set(to_gauge(sessions));
    }

    /// A list could not be reconciled.
    pub fn deny_list_failed(&self) {
        self.revocations.deny_list_failures.inc();
    }
}
