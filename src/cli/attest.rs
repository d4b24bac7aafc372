//! `taskpass attest`: explains why a configuration accepts or refuses a token, offline.
//!
//! A refused token is exit code 1; a configuration or file that cannot be read is
//! [`CliError::Usage`]. `attest` has the conditions.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::CliError;
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::attest::condition_result::ConditionResult;
use crate::attest::explain::{Condition, Explanation};
use crate::attest::{AttestContext, Attestors, Evidence};
use crate::client::{read_file, read_secret};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::KeyBinding;
use crate::endpoints::{EndpointSpec, EndpointTable};

/// The largest key set that is read, in bytes.
const MAX_KEY_SET_BYTES: u64 = 1024 * 1024;

/// Explain attestations
#[derive(Args, Debug)]
pub(super) struct Attest {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print which conditions of the configuration a token meets, without a broker or a network
    #[command(
        after_help = "It names the token's attestor, and each condition: holds, FAILS, or not checked. The signature is checked only with --jwks, and the key that a token is bound to only with --dpop-jkt or --x5t-s256. Only the broker knows whether the token was used before. The token is never printed.\n\nExits with 0 if no condition fails, 1 if one does, 2 if the configuration or a file is wrong.\n\nExamples:\n  taskpass attest check --token-file token\n  taskpass attest check --token-file token --jwks keys.json --at 2026-11-29T12:00:00Z --json\n  taskpass attest check --token-file token --dpop-jkt 0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    )]
    Check(Check),
}

#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The file with the token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The issuer's key set (its `jwks_uri`, or the trust domain's bundle), to check the signature
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// The RFC 7638 thumbprint of the caller's DPoP key, to check a token's `cnf.jkt`
    #[arg(long, value_name = "THUMBPRINT")]
    dpop_jkt: Option<String>,
    /// The SHA-256 of the caller's client certificate, in base64url, to check a token's
    /// `cnf.x5t#S256`
    #[arg(long, value_name = "HASH")]
    x5t_s256: Option<String>,
    /// The time at which the token is evaluated [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

/// The sections of a configuration that decide which tokens are accepted.
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
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Check(check) => check.run(form),
        }
    }
}

impl Check {
    fn run(self, form: Form) -> Result<(), CliError> {
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
            return Err(CliError::AlreadyReported);
        }
        Ok(())
    }

    /// The keys whose possession the caller proves.
    fn proved(&self) -> Vec<KeyBinding> {
        let jkt = self.dpop_jkt.clone().map(KeyBinding::Jkt);
        let x5t = self.x5t_s256.clone().map(KeyBinding::X5t);
        jkt.into_iter().chain(x5t).collect()
    }

    fn attestors(&self) -> Result<Attestors, CliError> {
        let path = self.file.path()?;
        let unusable =
            |error: &dyn std::fmt::Display| CliError::Usage(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| {
            CliError::Usage(format!(
                "{} cannot be read: {error}; give a configuration with --config",
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
        // This command makes no requests, so it may permit the issuers of the development mode.
        let context =
            AttestContext::without_store(trusted.server.issuer, Arc::new(endpoints), true);
        Attestors::new(&trusted.attestors, context).map_err(|error| unusable(&error))
    }
}

/// The result of a condition: its name, the reason's code, and the reason in words.
fn outcome(condition: &Condition) -> (&'static str, Option<&'static str>, Option<String>) {
    match &condition.outcome {
        ConditionResult::Holds => ("holds", None, None),
        ConditionResult::Fails(error) => ("fails", Some(error.reason()), Some(error.to_string())),
        ConditionResult::NotChecked(why) => ("not_checked", None, Some(why.clone().into_owned())),
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

fn print(explanation: &Explanation) -> Result<(), CliError> {
    output::line(match &explanation.attestor {
        Some(attestor) => format!("attestor {attestor}"),
        None => "no attestor accepts this kind of token".to_owned(),
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
            if matches!(condition.outcome, ConditionResult::Fails(_))
                && let Some(expected) = &condition.expected
            {
                text = format!("{text}; expected: {expected}");
            }
            vec![format!("  {word}"), condition.name.to_string(), text]
        })
        .collect();
    output::table(&rows)
}
