//! Presets of attestors, configured as an operator would, against tokens of an issuer over HTTP:
//! the resulting identity, and the refusal of every known impersonation.

mod clouds;
mod common;
mod github;
mod gitlab;
mod kubernetes;
mod loading;
mod policies;
mod spiffe;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskpass::attest::{AttestContext, Attestors, Evidence, WorkloadKeys, WorkloadKeysUnavailable};
use taskpass::clock::Timestamp;
use taskpass::config::{Config, ConfigErrors, Mode};
use taskpass::domain::workload::{ClaimValue, Instance, Workload};
use tokio_util::task::TaskTracker;

use super::support::configuration::{Configuration, JOB, ORDERS_API};
use super::support::issuer::{Issuer, unix_seconds};
use super::support::keys::Algorithm;
use super::support::rig::bearer;

/// The audience that the operator chose, for this broker only.
const AUDIENCE: &str = "https://broker.example";

/// The rest of the configuration.
fn frame() -> String {
    Configuration {
        issuer: "http://127.0.0.1:8443",
        origin: "dev.taskpass.local/pipelines",
        tables: &format!(
            "{ORDERS_API}actions = [\"orders:read\"]\nverification = \"introspection\"\n{JOB}"
        ),
        ..Configuration::default()
    }
    .text()
}

/// The document's examples, in order.
fn examples() -> Vec<&'static str> {
    let document = include_str!("../../../docs/reference/attestors.md");
    let blocks = document.split("```toml\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

struct NoKeys;

impl WorkloadKeys for NoKeys {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Value>, WorkloadKeysUnavailable>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn config(attestors: &str) -> Result<Config, ConfigErrors> {
    let text = frame() + attestors;
    Config::parse(
        Path::new("/etc/taskpass/taskpass.toml"),
        &text,
        &BTreeMap::new(),
        Mode::Dev,
    )
}

/// Loads attestors as the broker does, or returns the error.
fn load(attestors: &str) -> Result<Attestors, String> {
    let config = config(attestors).map_err(|errors| errors.to_string())?;
    let context = AttestContext {
        own_issuer: config.server.issuer.clone(),
        own_issuers: Vec::new(),
        not_before: None,
        tracker: TaskTracker::new(),
        workload_keys: Arc::new(NoKeys),
        endpoints: config.endpoints,
        plain_issuers: false,
    };
    Attestors::new(&config.attestors, context).map_err(|error| error.to_string())
}

/// One attestor, an issuer that it trusts, and the claims of a valid token.
struct World {
    issuer: Issuer,
    attestors: Attestors,
    good: Value,
}

impl World {
    /// Starts an issuer under the name that `attestor` states.
    fn new(attestor: &str, good: Value) -> Self {
        let issuer = Issuer::start_as(Algorithm::Rs256, issuer_of(attestor));
        Self {
            attestors: load(&issuer.served(attestor)).unwrap(),
            issuer,
            good,
        }
    }

    /// The valid claims with `over` on top; `null` removes a claim.
    fn claims(&self, over: &Value) -> Value {
        let mut claims = json!({"aud": AUDIENCE});
        for from in [&self.good, over] {
            for (name, value) in from.as_object().unwrap() {
                claims[name] = value.clone();
            }
        }
        claims
    }

    fn token(&self, over: Value) -> String {
        self.issuer.token(self.claims(&over))
    }

    async fn appraise(&self, token: &str) -> Result<Workload, &'static str> {
        appraise(&self.attestors, token).await
    }

    async fn see(&self, over: Value) -> Result<Workload, &'static str> {
        self.appraise(&self.token(over)).await
    }

    /// Asserts that each of these changes makes a valid token refused, for this reason.
    async fn refuses(&self, cases: &[(Value, &str)]) {
        self.see(json!({}))
            .await
            .expect("the valid token is accepted");
        for (over, reason) in cases {
            let seen = self.see(over.clone()).await.map(|w| w.identity);
            assert_eq!(seen, Err(*reason), "{over}");
        }
    }
}

/// The issuer in an attestor's configuration.
fn issuer_of(attestor: &str) -> &str {
    let line = attestor
        .lines()
        .find_map(|line| line.strip_prefix("issuer = \""));
    line.unwrap().trim_end_matches('"')
}

fn now() -> Timestamp {
    Timestamp::from_seconds(unix_seconds())
}

async fn appraise(attestors: &Attestors, token: &str) -> Result<Workload, &'static str> {
    let evidence: Evidence = bearer(token);
    let appraised = attestors.appraise(&evidence, now()).await;
    appraised.map_err(|error| error.reason())
}

fn text(value: &str) -> ClaimValue {
    ClaimValue::String(value.to_owned())
}

fn instance(workload: &Workload) -> Option<&str> {
    workload.instance.as_ref().map(Instance::as_str)
}
