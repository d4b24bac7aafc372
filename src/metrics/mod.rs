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
//! because the first event of a series that starts with it would be no increase. If the text cannot
//! be written, [`Metrics::render`] returns an empty one, so that a partial one does not look
//! complete. Who may read it is decided by [`crate::http`].

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use crate::domain::cutoff::Selector;
use crate::domain::decision::{Outcome, RefusalCode};
use crate::domain::generation::GenerationDigest;
use crate::domain::session::EndReason;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets for steps of a request, from 50 µs to 10 s.
const STEP_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
/// Buckets for requests and transactions, from 0.5 ms to 30 s.
const CALL_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Buckets for revocations, from 1 ms to one hour, because back ends may confirm late.
const LAG_SECONDS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0,
    3_600.0,
];
/// Buckets for the entries of a batch, up to its maximum.
const BATCH_ENTRIES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// A step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The evidence is verified.
    Appraise,
    /// The names in the request are resolved to registered things.
    Resolve,
    /// The task is found or opened.
    Admit,
    /// Policy evaluates the request.
    Decide,
    /// The ledger records the decision.
    Commit,
    /// The credential is minted.
    Mint,
    /// The session is activated or ended.
    Settle,
    /// The answer is written.
    Release,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Appraise,
        Self::Resolve,
        Self::Admit,
        Self::Decide,
        Self::Commit,
        Self::Mint,
        Self::Settle,
        Self::Release,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Appraise => "appraise",
            Self::Resolve => "resolve",
            Self::Admit => "admit",
            Self::Decide => "decide",
            Self::Commit => "commit",
            Self::Mint => "mint",
            Self::Settle => "settle",
            Self::Release => "release",
        }
    }
}

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

/// The limit that refused a request before anything was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests of one address.
    Address,
    /// Requests of one identity.
    Identity,
    /// Recorded denials of one identity.
    IdentityDenials,
    /// Recorded denials of all identities of one attestor.
    AttestorDenials,
}

impl RateLimit {
    const ALL: [Self; 4] = [
        Self::Address,
        Self::Identity,
        Self::IdentityDenials,
        Self::AttestorDenials,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Identity => "identity",
            Self::IdentityDenials => "identity_denials",
            Self::AttestorDenials => "attestor_denials",
        }
    }
}

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

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, Buckets>;

/// Makes histograms with these bounds.
#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: Counters<1>,
    refusals: Counters<1>,
    observed: Counters<3>,
    observing: Family<Labels<1>, Gauge>,
    attestation_failures: Counters<2>,
    unattested: Counter,
    blocked_calls: Counters<1>,
    foreign_tokens: Counter,
    mints: Counters<2>,
    sessions_ended: Counters<1>,
    revocations: Counters<1>,
    revocation_lag: Histograms<1>,
    denied: Counters<1>,
    deny_list: Family<Labels<1>, Gauge>,
    deny_list_failures: Counter,
    short_deny_lists: Gauge,
    sweeps: Counters<2>,
    swept_rows: Counters<1>,
    exports: Exports,
    witnesses: Witnesses,
    ledger_size: Gauge,
    ledger_key_days: Gauge,
    ledger_batch_entries: Histogram,
    ledger_queue_depth: Gauge,
    unrecorded_evidence: Gauge,
    shared_checkpoint: SharedCheckpoint,
    ledger_commit: Histogram,
    stages: Histograms<1>,
    http_requests: Counters<3>,
    http: Histograms<1>,
    rate_limited: Counters<1>,
    generation_active: Family<Labels<1>, Gauge>,
    generation_behind: Gauge,
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

/// Metrics of the deliveries to sinks.
#[derive(Debug)]
struct Exports {
    delivered: Counters<1>,
    failures: Counters<1>,
    truncated: Counters<1>,
    lag: Family<Labels<1>, Gauge>,
    lag_seconds: Family<Labels<1>, Gauge>,
    disabled: Family<Labels<1>, Gauge>,
}

impl Exports {
    fn new(r: &mut Registrar) -> Self {
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

/// All outcomes of a decision.
const OUTCOMES: [Outcome; 4] = [
    Outcome::Permit,
    Outcome::Deny,
    Outcome::Indeterminate,
    Outcome::Pending,
];

/// The outcomes of a session that a list at its back end is to end.
const LISTED: &str = "listed";
const EXPIRES_NATURALLY: &str = "expires_naturally";

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

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers metrics under the prefix `taskpass` and returns them.
struct Registrar(Registry);

impl Registrar {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counters<const N: usize>(&mut self, name: &str, help: &str) -> Counters<N> {
        self.add(name, help, Counters::default())
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    fn histograms(&mut self, name: &str, help: &str, bounds: &'static [f64]) -> Histograms<1> {
        let family = Family::new_with_constructor(Buckets(bounds));
        self.add(name, help, family)
    }
}

/// The value of the metric of the ledger key's end if it has no end: a century.
const ENDLESS_DAYS: u64 = 36_500;

impl Metrics {
    /// All metrics, with their initial values.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one metric after the other")]
    pub fn new() -> Self {
        let mut r = Registrar(Registry::with_prefix("taskpass"));
        let build = [("version", Cow::Borrowed(env!("CARGO_PKG_VERSION")))];
        r.0.register("build", "The version that is running", Info::new(build));
        let metrics = Self {
            decisions: r.counters("decisions", "Decisions in the ledger, by outcome"),
            refusals: r.counters("refusals", "Refused requests, by reason"),
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
            mints: r.counters("mints", "Credentials minted, by minter and result"),
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
            short_deny_lists: r.gauge(
                "deny_lists_short",
                "Lists that a back end refused for their size: nothing is issued there",
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
            sweeps: r.counters("sweeps", "Rounds of the sweepers, by worker and result"),
            swept_rows: r.counters("swept_rows", "Rows that the sweepers finished, by worker"),
            exports: Exports::new(&mut r),
            witnesses: Witnesses::new(&mut r),
            ledger_size: r.gauge("ledger_size", "Leaves in the ledger, as last seen"),
            ledger_key_days: r.gauge(
                "ledger_key_days_left",
                "Days until the current ledger key ends; 36500 where it has no end",
            ),
            ledger_batch_entries: r.add(
                "ledger_batch_entries",
                "Number of entries in a batch",
                Buckets(BATCH_ENTRIES).new_metric(),
            ),
            ledger_queue_depth: r.gauge("ledger_queue_depth", "Entries that wait for a batch"),
            unrecorded_evidence: r.gauge(
                "ledger_unrecorded_evidence",
                "One-time ids that are refused and whose use is still to be recorded",
            ),
            shared_checkpoint: SharedCheckpoint::new(&mut r),
            ledger_commit: r.add(
                "ledger_commit_seconds",
                "Duration of a batch, from lock to commit",
                Buckets(STEP_SECONDS).new_metric(),
            ),
            stages: r.histograms(
                "stage_seconds",
                "Duration of a request's stages",
                STEP_SECONDS,
            ),
            http_requests: r.counters("http_requests", "HTTP requests answered"),
            http: r.histograms(
                "http_seconds",
                "Duration of HTTP requests, by route",
                CALL_SECONDS,
            ),
            rate_limited: r.counters("rate_limited", "Requests refused with 429, by limit"),
            generation_active: r.add(
                "generation_active",
                "1 for the generation by which this replica decides",
                Family::default(),
            ),
            generation_behind: r.gauge(
                "generation_behind",
                "1 while this replica has not loaded the active generation",
            ),
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
            registry: r.0,
        };
        for outcome in [LISTED, EXPIRES_NATURALLY] {
            metrics.count_denied(outcome, 0);
        }
        metrics.begin_at_zero();
        metrics.ledger_key_left(None);
        metrics
    }

    /// Creates series with the value zero, because the first event of a series that starts with it
    /// would be no increase. Series whose labels depend on the configuration are created by the
    /// methods `…_begins`.
    fn begin_at_zero(&self) {
        for code in RefusalCode::ALL {
            begin(&self.refusals, &[("code", code.as_str().into())]);
        }
        for reason in EndReason::ALL {
            begin(&self.sessions_ended, &[("reason", reason.as_str().into())]);
        }
        for kind in Selector::KINDS {
            begin(&self.revocations, &[("selector", kind.into())]);
        }
        for part in RevocationLag::ALL {
            let labels = [("part", part.as_str().into())];
            drop(self.revocation_lag.get_or_create(&labels));
        }
        for by in RateLimit::ALL {
            begin(&self.rate_limited, &[("by", by.as_str().into())]);
        }
        for what in Reloaded::ALL {
            let labels = [("what", what.as_str().into())];
            begin(&self.reload_failures, &labels);
            drop(self.reload_pending.get_or_create(&labels));
        }
        for outcome in OUTCOMES {
            let labels = [("outcome", outcome.as_str().into())];
            drop(self.decisions.get_or_create(&labels));
        }
        for stage in Stage::ALL {
            let labels = [("stage", stage.as_str().into())];
            drop(self.stages.get_or_create(&labels));
        }
    }

    /// Creates the series of these acts, which a revocation may block.
    pub fn acts_begin(&self, acts: impl Iterator<Item = &'static str>) {
        for act in acts {
            begin(&self.blocked_calls, &[("act", act.into())]);
        }
    }

    /// Creates the series of this minter.
    pub fn minter_begins(&self, minter: &'static str) {
        for result in Ended::ALL {
            let result = result.as_str().into();
            begin(
                &self.mints,
                &[("minter", minter.into()), ("result", result)],
            );
        }
    }

    /// Creates the series of this worker.
    pub fn sweeper_begins(&self, worker: &'static str) {
        for result in Ended::ALL {
            let result = result.as_str().into();
            begin(
                &self.sweeps,
                &[("worker", worker.into()), ("result", result)],
            );
        }
        begin(&self.swept_rows, &[("worker", worker.into())]);
    }

    /// Creates the series of this sink.
    pub fn sink_begins(&self, sink: &str) {
        let labels = [("sink", Cow::Owned(sink.to_owned()))];
        begin(&self.exports.delivered, &labels);
        begin(&self.exports.failures, &labels);
        begin(&self.exports.truncated, &labels);
    }

    /// Creates the series of this witness and these reasons.
    pub fn witness_begins(&self, witness: &str, reasons: &[&'static str]) {
        let name = || Cow::Owned(witness.to_owned());
        drop(self.witnesses.size.get_or_create(&[("witness", name())]));
        for reason in reasons {
            let labels = [("witness", name()), ("reason", (*reason).into())];
            begin(&self.witnesses.failures, &labels);
        }
    }

    /// Creates the series of tracked tasks with this name.
    pub fn task_begins(&self, task: &'static str) {
        begin(&self.task_panics, &[("task", task.into())]);
    }

    /// Creates the series of this route.
    pub fn route_begins(&self, route: &str) {
        let labels = [("route", Cow::Owned(route.to_owned()))];
        drop(self.http.get_or_create(&labels));
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

    /// A decision was recorded.
    pub fn decision(&self, outcome: Outcome) {
        count(&self.decisions, &[("outcome", outcome.as_str().into())]);
    }

    /// A request was refused.
    pub fn refusal(&self, code: RefusalCode) {
        count(&self.refusals, &[("code", code.as_str().into())]);
    }

    /// An observing policy applied to a request with the outcome `outcome`; with the policy
    /// enforced it would be `outcome_if_enforced`.
    pub fn observed(&self, policy: &str, outcome: Outcome, outcome_if_enforced: Outcome) {
        count(
            &self.observed,
            &observed(policy, outcome, outcome_if_enforced),
        );
    }

    /// The observing policies, and when each is enforced. Creates their series with the value zero,
    /// so that the first request is an increase.
    pub fn observing<'a>(
        &self,
        policies: impl Iterator<Item = (&'a str, crate::clock::Timestamp)>,
    ) {
        self.observing.clear();
        for (policy, until) in policies {
            let labels = [("policy", Cow::Owned(policy.to_owned()))];
            self.observing.get_or_create(&labels).set(until.seconds());
            for (outcome, outcome_if_enforced) in OUTCOMES.into_iter().flat_map(|outcome| {
                OUTCOMES.map(|outcome_if_enforced| (outcome, outcome_if_enforced))
            }) {
                begin(
                    &self.observed,
                    &observed(policy, outcome, outcome_if_enforced),
                );
            }
        }
    }

    /// Evidence was refused.
    pub fn attestation_failure(&self, attestor: &str, reason: &'static str) {
        let labels = attestation_labels(attestor, reason);
        count(&self.attestation_failures, &labels);
    }

    /// Creates the series of these attestors and reasons with the value zero, so that the first
    /// failure is an increase.
    pub fn attestors<'a>(&self, names: impl Iterator<Item = &'a str>, reasons: &[&'static str]) {
        for name in names {
            for reason in reasons {
                let labels = attestation_labels(name, reason);
                drop(self.attestation_failures.get_or_create(&labels));
            }
        }
    }

    /// A request came without evidence.
    pub fn unattested(&self) {
        self.unattested.inc();
    }

    /// A call was refused because a revocation blocks its caller.
    pub fn blocked_call(&self, act: &'static str) {
        count(&self.blocked_calls, &[("act", act.into())]);
    }

    /// A token of another issuer was introspected.
    pub fn foreign_token(&self) {
        self.foreign_tokens.inc();
    }

    /// A minter created a credential, or failed.
    pub fn mint(&self, minter: &'static str, result: Ended) {
        let result = result.as_str().into();
        count(
            &self.mints,
            &[("minter", minter.into()), ("result", result)],
        );
    }

    /// This many sessions ended.
    pub fn sessions_ended(&self, reason: EndReason, sessions: u64) {
        let labels = [("reason", reason.as_str().into())];
        self.sessions_ended.get_or_create(&labels).inc_by(sessions);
    }

    /// A cutoff was committed.
    pub fn revocation(&self, selector: &Selector) {
        count(&self.revocations, &[("selector", selector.kind().into())]);
    }

    /// A revocation completed one part.
    pub fn revocation_lag(&self, part: RevocationLag, lag: Duration) {
        observe(&self.revocation_lag, &[("part", part.as_str().into())], lag);
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
        self.denied.get_or_create(&labels).inc_by(sessions);
    }

    /// This many targets have less room than registered.
    pub fn short_deny_lists(&self, places: u64) {
        self.short_deny_lists.set(to_gauge(places));
    }

    /// The number of sessions on a target's list.
    pub fn deny_list(&self, place: &str, sessions: u64) {
        let labels = [("place", place.to_owned().into())];
        self.deny_list
            .get_or_create(&labels)
            .set(to_gauge(sessions));
    }

    /// A list could not be reconciled.
    pub fn deny_list_failed(&self) {
        self.deny_list_failures.inc();
    }

    /// A worker's round ended, with this many rows.
    pub fn sweep(&self, worker: &'static str, result: Ended, rows: u64) {
        let labels = [
            ("worker", worker.into()),
            ("result", result.as_str().into()),
        ];
        count(&self.sweeps, &labels);
        let labels = [("worker", worker.into())];
        self.swept_rows.get_or_create(&labels).inc_by(rows);
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

    /// The size of the largest checkpoint that a witness signed.
    pub fn witness_size(&self, witness: &str, leaves: u64) {
        let labels = [("witness", witness.to_owned().into())];
        let size = self.witnesses.size.get_or_create(&labels);
        size.set(to_gauge(leaves));
    }

    /// A witness signed a checkpoint, at this time by its own clock.
    pub fn witness_signed(&self, witness: &str, seconds: u64) {
        let labels = [("witness", witness.to_owned().into())];
        let time = self.witnesses.time.get_or_create(&labels);
        time.set(to_gauge(seconds));
    }

    /// A witness signed nothing, for this reason.
    pub fn witness_failed(&self, witness: &str, reason: &'static str) {
        let labels = [
            ("witness", witness.to_owned().into()),
            ("reason", reason.into()),
        ];
        count(&self.witnesses.failures, &labels);
    }

    /// The number of leaves in the ledger.
    pub fn ledger_size(&self, leaves: u64) {
        self.ledger_size.set(to_gauge(leaves));
    }

    /// The time until the current ledger key ends. `None` if it has no end.
    pub fn ledger_key_left(&self, seconds: Option<u64>) {
        let days = seconds.map_or(ENDLESS_DAYS, |seconds| seconds / 86_400);
        self.ledger_key_days.set(to_gauge(days));
    }

    /// A batch of this many entries was committed.
    pub fn ledger_batch(&self, entries: usize, took: Duration) {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        self.ledger_batch_entries.observe(f64::from(entries));
        self.ledger_commit.observe(took.as_secs_f64());
    }

    /// The number of entries in the queue.
    pub fn ledger_queue_depth(&self, entries: usize) {
        self.ledger_queue_depth.set(to_gauge(entries as u64));
    }

    /// The number of one-time ids whose use is yet to be recorded.
    pub fn unrecorded_evidence(&self, ids: usize) {
        self.unrecorded_evidence.set(to_gauge(ids as u64));
    }

    /// The size of the shared checkpoint, and when it was published or read.
    pub fn shared_checkpoint(&self, leaves: u64, now: crate::clock::Timestamp) {
        self.shared_checkpoint.size.set(to_gauge(leaves));
        self.shared_checkpoint.time.set(now.seconds());
    }

    /// A checkpoint could not be published.
    pub fn shared_checkpoint_failed(&self) {
        self.shared_checkpoint.failures.inc();
    }

    /// A request completed a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        observe(&self.stages, &[("stage", stage.as_str().into())], took);
    }

    /// A request was answered. `route` is the router's pattern, never the requested path; `None` if
    /// no route matched.
    pub fn http_request(&self, route: Option<&str>, method: &str, status: u16, took: Duration) {
        let route: Cow<str> = Cow::Owned(route.unwrap_or("none").to_owned());
        let method = match method {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            // A client can invent any number of methods.
            _ => "other",
        };
        let labels = [
            ("route", route.clone()),
            ("method", method.into()),
            ("status", status.to_string().into()),
        ];
        count(&self.http_requests, &labels);
        observe(&self.http, &[("route", route)], took);
    }

    /// A request was refused with 429.
    pub fn rate_limited(&self, by: RateLimit) {
        count(&self.rate_limited, &[("by", by.as_str().into())]);
    }

    /// The generation by which this replica decides from now on.
    pub fn generation_active(&self, digest: &GenerationDigest) {
        self.generation_active.clear();
        let labels = [("generation", Cow::Owned(digest.to_string()))];
        self.generation_active.get_or_create(&labels).set(1);
    }

    /// Whether this replica has not loaded the active generation.
    pub fn generation_behind(&self, behind: bool) {
        self.generation_behind.set(i64::from(behind));
    }

    /// The number of running replicas with other endpoints.
    pub fn other_endpoints(&self, replicas: usize) {
        let replicas = i64::try_from(replicas).unwrap_or(i64::MAX);
        self.other_endpoints.set(replicas);
    }

    /// The lead of this replica's clock over the database's, in seconds; negative if it lags.
    pub fn clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// Whether the clock is in doubt.
    pub fn clock_in_doubt(&self, doubted: bool) {
        self.clock_in_doubt.set(i64::from(doubted));
    }

    /// The lag of the horizon behind the clock, in seconds.
    pub fn horizon_lag(&self, seconds: u64) {
        self.horizon_lag
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// The size of SQLite's write-ahead log.
    pub fn sqlite_wal(&self, bytes: u64) {
        self.sqlite_wal.set(to_gauge(bytes));
    }

    /// The end of the validity of the listener's certificate chain.
    pub fn tls_not_after(&self, not_after: crate::clock::Timestamp) {
        let labels = [("listener", "broker".into())];
        let end = self.tls_not_after.get_or_create(&labels);
        end.set(not_after.seconds());
    }

    /// Changed files could not be loaded.
    pub fn reload_failed(&self, what: Reloaded) {
        let labels = [("what", what.as_str().into())];
        count(&self.reload_failures, &labels);
        self.reload_pending.get_or_create(&labels).set(1);
    }

    /// All changed files were loaded.
    pub fn reload_succeeded(&self, what: Reloaded) {
        let labels = [("what", what.as_str().into())];
        self.reload_pending.get_or_create(&labels).set(0);
    }

    /// A tracked task panicked.
    pub fn task_panic(&self, task: &'static str) {
        count(&self.task_panics, &[("task", task.into())]);
    }
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

fn begin<const N: usize>(family: &Counters<N>, labels: &Labels<N>) {
    drop(family.get_or_create(labels));
}

fn count<const N: usize>(family: &Counters<N>, labels: &Labels<N>) {
    family.get_or_create(labels).inc();
}

fn observe<const N: usize>(family: &Histograms<N>, labels: &Labels<N>, took: Duration) {
    family.get_or_create(labels).observe(took.as_secs_f64());
}

fn to_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
