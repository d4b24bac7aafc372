//! `taskpass attest`: why a token is believed or refused, held against the configuration offline.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Failure;
use super::client::{read_file, read_secret};
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::attest::explain::{Condition, Explanation, Outcome};
use crate::attest::{AttestContext, Attestors, Evidence};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::KeyBinding;
use crate::endpoints::{EndpointSpec, EndpointTable};

/// The largest key set that is read.
const MAX_KEY_SET_BYTES: u64 = 1024 * 1024;

/// Explain attestations
#[derive(Args, Debug)]
pub(super) struct Attest {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say which conditions of the configuration a token meets, without a broker or a network
    #[command(
        after_help = "It names the attestor that the token is for, and each condition: holds, FAILS, or not checked. Without --jwks the signature is not checked, without --dpop-jkt and --x5t-s256 the key that a token is bound to is not checked, and whether the token was used before is known to the broker alone. The token is never printed.\n\nExits 0 when no condition fails, 1 when one does, 2 for a configuration or a file that is not as it must be.\n\nExamples:\n  taskpass attest check --token-file token\n  taskpass attest check --token-file token --jwks keys.json --at 2026-11-29T12:00:00Z --json\n  taskpass attest check --token-file token --dpop-jkt 0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    )]
    Check(Check),
}

#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The file that holds the token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The issuer's key set (its `jwks_uri`, or the trust domain's bundle), to check the signature
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// The RFC 7638 thumbprint of the DPoP key that the caller proves, to check a token's `cnf.jkt`
    #[arg(long, value_name = "THUMBPRINT")]
    dpop_jkt: Option<String>,
    /// The SHA-256 of the client certificate that the caller presents, in base64url, to check a
    /// token's `cnf.x5t#S256`
    #[arg(long, value_name = "HASH")]
    x5t_s256: Option<String>,
    /// The instant at which the token is judged [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

/// What of a configuration says which tokens are believed.
#[derive(Deserialize)]
struct Trusted {
    server: Server,
    #[serde(default)]
    endpoints: BTreeMap<String, EndpointSpec>,
    #[serde(default)]
    attestors: Vec<AttestorSpec>,
}

#[derive(Deserialize)]
struct Server {
    issuer: String,
}

impl Attest {
    pub(super) fn run(self, form: Form) -> Result<(), Failure> {
        match self.command {
            Command::Check(check) => check.run(form),
        }
    }
}

impl Check {
    fn run(self, form: Form) -> Result<(), Failure> {
        let attestors = self.attestors()?;
        let evidence = Evidence {
            bearer: Some(read_secret(&self.token_file)?),
            ..Evidence::default()
        };
        let keys = match &self.jwks {
            Some(file) => Some(read_file(file, MAX_KEY_SET_BYTES)?),
            None => None,
        };
        let now = self.at.unwrap_or_else(|| SystemClock.now());
        let explanation = attestors.explain(&evidence, keys.as_deref(), &self.proved(), now);
        if form.is_json() {
            output::even_unread(output::json(&as_json(&explanation)))?;
        } else {
            output::even_unread(print(&explanation))?;
        }
        if explanation.is_refused() {
            return Err(Failure::Told);
        }
        Ok(())
    }

    /// The keys that the caller proves.
    fn proved(&self) -> Vec<KeyBinding> {
        let jkt = self.dpop_jkt.clone().map(KeyBinding::Jkt);
        let x5t = self.x5t_s256.clone().map(KeyBinding::X5t);
        jkt.into_iter().chain(x5t).collect()
    }

    fn attestors(&self) -> Result<Attestors, Failure> {
        let path = self.file.path()?;
        let unusable =
            |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::Usage(format!(
                "{} cannot be read: {error}; name a configuration with --config",
                path.display()
            ))
        })?;
        let trusted: Trusted = toml::from_str(&text).map_err(|error| unusable(&error))?;
        let endpoints = EndpointTable::new(&trusted.endpoints).map_err(|errors| {
            let lines = errors.iter().map(|error| {
                let (name, key) = (&error.name, &error.key);
                let at = format!("endpoints.{name}.{key}");
                format!(
                    "`{}` {}; {}",
                    at.trim_end_matches('.'),
                    error.problem,
                    error.remedy
                )
            });
            unusable(&lines.collect::<Vec<_>>().join("\n"))
        })?;
        // Nothing is fetched here, so an issuer of the development mode is as good.
        let context =
            AttestContext::without_store(trusted.server.issuer, Arc::new(endpoints), true);
        Attestors::new(&trusted.attestors, context).map_err(|error| unusable(&error))
    }
}

/// What became of a condition, in a word; the reason; and why in words.
fn outcome(condition: &Condition) -> (&'static str, Option<&'static str>, Option<String>) {
    match &condition.outcome {
        Outcome::Holds => ("holds", None, None),
        Outcome::Fails(error) => ("fails", Some(error.reason()), Some(error.to_string())),
        Outcome::NotChecked(why) => ("not_checked", None, Some(why.clone().into_owned())),
    }
}

fn as_json(explanation: &Explanation) -> Value {
    let conditions = explanation.conditions.iter().map(|condition| {
        let (word, reason, why) = outcome(condition);
        json!({
            "name": condition.name,
            "outcome": word,
            "reason": reason,
            "why": why,
            "expected": condition.expected,
        })
    });
    json!({
        "attestor": explanation.attestor,
        "refused": explanation.is_refused(),
        "conditions": conditions.collect::<Vec<_>>(),
    })
}

fn print(explanation: &Explanation) -> Result<(), Failure> {
    output::line(match &explanation.attestor {
        Some(attestor) => format!("attestor {attestor}"),
        None => "no attestor is for this token".to_owned(),
    })?;
    let rows: Vec<Vec<String>> = explanation
        .conditions
        .iter()
        .map(|condition| {
            let (word, _, why) = outcome(condition);
            let word = match word {
                "fails" => "FAILS",
                "not_checked" => "not checked",
                other => other,
            };
            let mut text = why.unwrap_or_default();
            if matches!(condition.outcome, Outcome::Fails(_))
                && let Some(expected) = &condition.expected
            {
                text = format!("{text}; expected: {expected}");
            }
            vec![format!("  {word}"), condition.name.to_string(), text]
        })
        .collect();
    output::table(&rows)
}
