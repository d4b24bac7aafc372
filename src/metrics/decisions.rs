//! Metrics of decisions: of policy, of the evidence before it, and of the active generation.
//!
//! The outcomes and the codes of refusals are enumerations. Attestors and observing policies are
//! named by an admin or the configuration, and their series begin when they are known.
//! `crate::broker` reports all of these.

use std::borrow::Cow;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::registrar::{Counters, Labels, Registrar, begin, count};
use crate::clock::Timestamp;
use crate::domain::decision::{Outcome, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;

/// All outcomes of a decision.
const OUTCOMES: [Outcome; 4] = [
    Outcome::Permit,
    Outcome::Deny,
    Outcome::Indeterminate,
    Outcome::Pending,
];

/// Metrics of decisions, of evidence, and of the active generation.
#[derive(Debug)]
pub(super) struct DecisionMetrics {
    decisions: Counters<1>,
    refusals: Counters<1>,
    evaluations: Counters<1>,
    observed: Counters<3>,
    observing: Family<Labels<1>, Gauge>,
    attestation_failures: Counters<2>,
    unattested: Counter,
    blocked_calls: Counters<1>,
    foreign_tokens: Counter,
    generation_active: Family<Labels<1>, Gauge>,
    generation_behind: Gauge,
}

impl DecisionMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        let metrics = Self {
            decisions: r.counters("decisions", "Decisions in the ledger, by outcome"),
            refusals: r.counters("refusals", "Refused requests, by reason"),
            evaluations: r.counters(
                "evaluations",
                "Requests that policy decided, by whether a kept result was reused",
            ),
            observed: r.counters(
                "observed",
                "Requests to which an observing policy applied, by their outcome and their outcome \
                 if enforced",
            ),
            observing: r.add(
                "observing_until_timestamp_seconds",
                "Policies of the active generation that only observe, and when they are enforced",
                Family::default(),
            ),
            attestation_failures: r.counters(
                "attestation_failures",
                "Evidence that was refused, by attestor and reason",
            ),
            unattested: r.add(
                "unattested",
                "Requests without any evidence; never in the ledger",
                Counter::default(),
            ),
            blocked_calls: r.counters(
                "blocked_calls",
                "Calls refused because a revocation blocks their caller, by act",
            ),
            foreign_tokens: r.add(
                "foreign_tokens",
                "Introspected tokens of other issuers; never in the ledger",
                Counter::default(),
            ),
            generation_active: r.add(
                "generation_active",
                "1 for the generation by which this replica decides",
                Family::default(),
            ),
            generation_behind: r.gauge(
                "generation_behind",
                "1 while this replica has not loaded the active generation",
            ),
        };
        for code in RefusalCode::ALL {
            begin(&metrics.refusals, &[("code", code.as_str().into())]);
        }
        for reused in [true, false] {
            begin(&metrics.evaluations, &evaluation(reused));
        }
        for outcome in OUTCOMES {
            let labels = [("outcome", outcome.as_str().into())];
            drop(metrics.decisions.get_or_create(&labels));
        }
        metrics
    }
}

impl Metrics {
    /// Creates the series of these acts, which a revocation may block.
    pub fn acts_begin(&self, acts: impl Iterator<Item = &'static str>) {
        for act in acts {
            begin(&self.decisions.blocked_calls, &[("act", act.into())]);
        }
    }

    /// A decision was recorded.
    pub fn decision(&self, outcome: Outcome) {
        count(
            &self.decisions.decisions,
            &[("outcome", outcome.as_str().into())],
        );
    }

    /// Policy decided a request. `reused`: whether by the kept result of an earlier evaluation.
    pub fn evaluation(&self, reused: bool) {
        count(&self.decisions.evaluations, &evaluation(reused));
    }

    /// A request was refused.
    pub fn refusal(&self, code: RefusalCode) {
        count(&self.decisions.refusals, &[("code", code.as_str().into())]);
    }

    /// An observing policy applied to a request with the outcome `outcome`; with the policy
    /// enforced it would be `outcome_if_enforced`.
    pub fn observed(&self, policy: &str, outcome: Outcome, outcome_if_enforced: Outcome) {
        count(
            &self.decisions.observed,
            &observed(policy, outcome, outcome_if_enforced),
        );
    }

    /// The observing policies, and when each is enforced. Creates their series with the value zero,
    /// so that the first request is an increase.
    pub fn observing<'a>(&self, policies: impl Iterator<Item = (&'a str, Timestamp)>) {
        self.decisions.observing.clear();
        for (policy, until) in policies {
            let labels = [("policy", Cow::Owned(policy.to_owned()))];
            self.decisions
                .observing
                .get_or_create(&labels)
                .set(until.seconds());
            for (outcome, outcome_if_enforced) in OUTCOMES.into_iter().flat_map(|outcome| {
                OUTCOMES.map(|outcome_if_enforced| (outcome, outcome_if_enforced))
            }) {
                begin(
                    &self.decisions.observed,
                    &observed(policy, outcome, outcome_if_enforced),
                );
            }
        }
    }

    /// Evidence was refused.
    pub fn attestation_failure(&self, attestor: &str, reason: &'static str) {
        let labels = attestation_labels(attestor, reason);
        count(&self.decisions.attestation_failures, &labels);
    }

    /// Creates the series of these attestors and reasons with the value zero, so that the first
    /// failure is an increase.
    pub fn attestors<'a>(&self, names: impl Iterator<Item = &'a str>, reasons: &[&'static str]) {
        for name in names {
            for reason in reasons {
                let labels = attestation_labels(name, reason);
                drop(self.decisions.attestation_failures.get_or_create(&labels));
            }
        }
    }

    /// A request came without evidence.
    pub fn unattested(&self) {
        self.decisions.unattested.inc();
    }

    /// A call was refused because a revocation blocks its caller.
    pub fn blocked_call(&self, act: &'static str) {
        count(&self.decisions.blocked_calls, &[("act", act.into())]);
    }

    /// A token of another issuer was introspected.
    pub fn foreign_token(&self) {
        self.decisions.foreign_tokens.inc();
    }

    /// The generation by which this replica decides from now on.
    pub fn generation_active(&self, digest: &GenerationDigest) {
        self.decisions.generation_active.clear();
        let labels = [("generation", Cow::Owned(digest.to_string()))];
        self.decisions
            .generation_active
            .get_or_create(&labels)
            .set(1);
    }

    /// Whether this replica has not loaded the active generation.
    pub fn generation_behind(&self, behind: bool) {
        self.decisions.generation_behind.set(i64::from(behind));
    }
}

fn evaluation(reused: bool) -> Labels<1> {
    let value = if reused { "yes" } else { "no" };
    [("reused", value.into())]
}

fn observed(policy: &str, outcome: Outcome, outcome_if_enforced: Outcome) -> Labels<3> {
    [
        ("policy", Cow::Owned(policy.to_owned())),
        ("outcome", outcome.as_str().into()),
        ("outcome_if_enforced", outcome_if_enforced.as_str().into()),
    ]
}

fn attestation_labels(attestor: &str, reason: &'static str) -> Labels<2> {
    [
        ("attestor", Cow::Owned(attestor.to_owned())),
        ("reason", reason.into()),
    ]
}
