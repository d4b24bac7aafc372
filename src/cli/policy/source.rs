//! Reads recorded decisions, and the generations that made them, from a broker or from files.
//!
//! Everything is verified. A leaf must have its stated hash, an input must open the leaf's
//! commitment, and a generation must have its digest.
//!
//! A record that does not verify is [`CliError::Refused`], a pruned one [`CliError::Unavailable`].
//! A refusal of the broker is `Unavailable` too, because it says nothing about the decision.
//! `super::explain`, `super::replay` and `super::unused` read through this file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::{CliError, ExitClass, seconds_of};
use crate::client::Client;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::crypto::digest::sha256;
use crate::domain::generation::Generation;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::record::Record;
use crate::merkle::leaf_hash;
use crate::policy::CompiledGeneration;
use crate::policy::record::{RecordError, Recorded};

/// The most decisions on one page.
const PAGE_RECORDS: u32 = 1_000;

/// A generation, with its compiled form.
pub(super) struct Decider {
    pub(super) generation: Generation,
    pub(super) compiled: CompiledGeneration,
}

/// The decisions of a broker in the order of the log, page by page.
pub(super) struct Pages {
    client: Client,
    since: Option<Timestamp>,
    from: u64,
}

impl Pages {
    /// The decisions since a time, or all.
    pub(super) fn new(client: Client, since: Option<Timestamp>) -> Self {
        Self {
            client,
            since,
            from: 0,
        }
    }

    /// The next page's lines; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<String>, CliError> {
        let since = self.since.map(|since| format!("&since={since}"));
        let (from, since) = (self.from, since.unwrap_or_default());
        let path = format!("/v1/decisions?from={from}&limit={PAGE_RECORDS}{since}");
        let page = self.client.get_text_patiently(&path).await?;
        let Some(last) = page.lines().last() else {
            return Ok(None);
        };
        let last: Record = serde_json::from_str(last).map_err(CliError::unavailable)?;
        if last.index < self.from {
            return Err(CliError::Unavailable(
                "the broker does not list decisions in the order of the log".into(),
            ));
        }
        self.from = last.index + 1;
        Ok(Some(page))
    }
}

/// Parses an age, such as `30m`, `24h` or `7d`, or a time, into a time.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Some(age) = seconds_of(text) {
        return Ok(SystemClock.now().minus_seconds(age));
    }
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "write an age, 30m, 24h or 7d, or a time, 2026-11-23T00:00:00Z".to_owned())
}

/// Checks that a leaf has the hash that the log has of it.
pub(super) fn check_leaf(record: &Record) -> Result<(), CliError> {
    if let Some(leaf) = &record.leaf {
        let bytes = STANDARD.decode(leaf).unwrap_or_default();
        if leaf_hash(&bytes).to_string() != record.leaf_hash {
            return Err(CliError::Refused(format!(
                "FAILED: the leaf at index {} does not have the hash that the log has of it",
                record.index
            )));
        }
    }
    Ok(())
}

/// Opens a record: checks the leaf against its hash, and the input against its commitment.
pub(super) fn open(record: &Record) -> Result<Recorded, CliError> {
    check_leaf(record)?;
    Recorded::open(record).map_err(|error| match error {
        RecordError::Pruned(_) => CliError::Unavailable(error.to_string()),
        _ => CliError::Refused(format!("FAILED: index {}: {error}", record.index)),
    })
}

/// Turns a broker's refusal into a failure to establish facts: it says nothing about a decision.
pub(super) fn unavailable(failure: impl Into<CliError>) -> CliError {
    match failure.into() {
        CliError::Refused(text) => CliError::Unavailable(text),
        CliError::Answered { text, problem, .. } => CliError::Answered {
            kind: ExitClass::Unavailable,
            text,
            problem,
        },
        other => other,
    }
}

/// Fetches a generation, and checks its digest.
pub(super) async fn decider(
    client: &Client,
    digest: GenerationDigest,
) -> Result<Decider, CliError> {
    let text = client
        .get_text(&format!("/v1/generations/{digest}"))
        .await
        .map_err(unavailable)?;
    if GenerationDigest::new(sha256(text.as_bytes())) != digest {
        return Err(CliError::Refused(format!(
            "FAILED: the broker returned a generation that is not {digest}: its bytes have another digest"
        )));
    }
    let generation: Generation = serde_json::from_str(&text).map_err(|error| {
        CliError::Unavailable(format!("generation {digest} cannot be read: {error}"))
    })?;
    let compiled =
        CompiledGeneration::compile_recorded(&generation, digest).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let problems = problems.join("\n  ");
            CliError::Unavailable(format!(
                "generation {digest} does not load in this version:\n  {problems}"
            ))
        })?;
    Ok(Decider {
        generation,
        compiled,
    })
}
