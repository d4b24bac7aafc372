//! Metrics of requests: their stages, their answers over HTTP, their limits, and the credentials
//! that were minted.
//!
//! A label of a route is the router's pattern, and a method that HTTP does not define is `other`,
//! so that no client can create series. `crate::http` and `crate::broker` report these. Reporting
//! never fails.

use std::borrow::Cow;
use std::time::Duration;

use super::registrar::{
    CALL_SECONDS, Counters, Histograms, Registrar, STEP_SECONDS, begin, count, observe,
};
use super::{Ended, Metrics};

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

/// Metrics of requests and of their answers.
#[derive(Debug)]
pub(super) struct RequestMetrics {
    mints: Counters<2>,
    stages: Histograms<1>,
    http_requests: Counters<3>,
    http: Histograms<1>,
    rate_limited: Counters<1>,
}

impl RequestMetrics {
    pub(super) fn new(r: &mut Registrar) -> Self {
        let metrics = Self {
            mints: r.counters("mints", "Credentials minted, by minter and result"),
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
        };
        for by in RateLimit::ALL {
            begin(&metrics.rate_limited, &[("by", by.as_str().into())]);
        }
        for stage in Stage::ALL {
            let labels = [("stage", stage.as_str().into())];
            drop(metrics.stages.get_or_create(&labels));
        }
        metrics
    }
}

impl Metrics {
    /// Creates the series of this minter.
    pub fn minter_begins(&self, minter: &'static str) {
        for result in Ended::ALL {
            let result = result.as_str().into();
            begin(
                &self.requests.mints,
                &[("minter", minter.into()), ("result", result)],
            );
        }
    }

    /// Creates the series of this route.
    pub fn route_begins(&self, route: &str) {
        let labels = [("route", Cow::Owned(route.to_owned()))];
        drop(self.requests.http.get_or_create(&labels));
    }

    /// A minter created a credential, or failed.
    pub fn mint(&self, minter: &'static str, result: Ended) {
        let result = result.as_str().into();
        count(
            &self.requests.mints,
            &[("minter", minter.into()), ("result", result)],
        );
    }

    /// A request completed a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        observe(
            &self.requests.stages,
            &[("stage", stage.as_str().into())],
            took,
        );
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
        count(&self.requests.http_requests, &labels);
        observe(&self.requests.http, &[("route", route)], took);
    }

    /// A request was refused with 429.
    pub fn rate_limited(&self, by: RateLimit) {
        count(&self.requests.rate_limited, &[("by", by.as_str().into())]);
    }
}
