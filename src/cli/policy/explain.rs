//! `taskpass policy explain`: evaluates a recorded decision again, with the same generation and
//! input, and explains its outcome.
//!
//! A record that does not match the log is [`CliError::Refused`]; a missing or pruned one is
//! [`CliError::Unavailable`]. `super::source` fetches, and `crate::policy` evaluates.

use std::fmt;

use clap::Args;
use serde::Serialize;

use super::super::CliError;
use super::super::connection::Connection;
use super::super::output::{self, Form, printable};
use super::source::{decider, open, unavailable};
use crate::client::{Client, Reply};
use crate::clock::Timestamp;
use crate::domain::decision::{Observed, Outcome, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::record::Record;
use crate::ids::DecisionId;
use crate::policy::explain::{Explanation, SourceLocation};
use crate::policy::generation::engine;
use crate::policy::record::{DecidedBy, Recorded};
use crate::wire::decisions::DecisionRecordBody;

/// The arguments of `explain`.
#[derive(Args, Debug)]
pub(super) struct Explain {
    /// The decision's id, as in answers and logs
    decision: DecisionId,
    #[command(flatten)]
    connection: Connection,
}

/// The explanation, as printed.
#[derive(Debug, Serialize)]
struct ExplanationOutput {
    decision: DecisionId,
    index: u64,
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<RefusalCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    granted_ttl_seconds: Option<u64>,
    generation: GenerationDigest,
    /// The origin of the outcome: `policy` decided; `never`: refused before policy was asked; or
    /// `overtaken`: the log refused a permit of policy.
    decided_by: &'static str,
    /// Whether the second evaluation yields the recorded bytes.
    reproduced: bool,
    /// The policy engine that decided, if it is not this version's.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_engine: Option<String>,
    /// The findings of policies that only observe.
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<Box<Observed>>,
    /// The explanation that the caller received.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
}

/// The record in an answer. It is verified when it is opened.
fn record_of(reply: &Reply<DecisionRecordBody>) -> Result<Record, CliError> {
    let body = reply.read()?;
    Ok(Record {
        index: body.index,
        leaf_hash: body.leaf_hash,
        leaf: body.leaf,
        salt: body.salt,
        input: body.input,
    })
}

impl Explain {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let client = self.connection.client()?;
        let path = format!("/v1/decisions/{}/record", self.decision);
        let reply = client.get(&path).await.map_err(unavailable)?;
        let record = record_of(&reply)?;
        let recorded = open(&record)?;
        if recorded.decision() != Some(self.decision) {
            return Err(CliError::Refused(format!(
                "FAILED: the broker returned a record that is not the record of decision {}",
                self.decision
            )));
        }
        let report = self.tell(&recorded, &client).await?;
        if form.is_json() {
            return output::json(&report);
        }
        output::line(report.to_string())
    }

    async fn tell(
        &self,
        recorded: &Recorded,
        client: &Client,
    ) -> Result<ExplanationOutput, CliError> {
        let generation = recorded
            .generation()
            .ok_or_else(|| CliError::Refused("FAILED: the leaf names no generation".into()))?;
        let (outcome, refusal) = recorded.outcome();
        let mut report = ExplanationOutput {
            decision: self.decision,
            index: recorded.index,
            at: recorded.at(),
            workload: recorded.workload().map(ToString::to_string),
            resource: recorded.resource().map(str::to_owned),
            outcome,
            refusal,
            granted_ttl_seconds: recorded.granted_seconds(),
            generation,
            decided_by: match recorded.decided_by() {
                DecidedBy::Policy => "policy",
                DecidedBy::Never(_) => "never",
                DecidedBy::Overtaken(_) => "overtaken",
            },
            reproduced: false,
            other_engine: None,
            observed: None,
            detail: None,
            explanation: None,
        };
        if let DecidedBy::Never(_) = recorded.decided_by() {
            return Ok(report);
        }
        let decider = decider(client, generation).await?;
        let theirs = &decider.generation.engine;
        report.other_engine = (*theirs != engine()).then(|| theirs.clone());
        let again = recorded.reproduce(&decider.compiled);
        let again = again.map_err(|error| match &report.other_engine {
            None => CliError::Refused(format!("FAILED: {error}")),
            // Another engine may interpret the same text differently, so this does not prove a
            // fault.
            Some(theirs) => CliError::Unavailable(format!(
                "{theirs} decided it, and {} decides it differently: {error}",
                engine()
            )),
        })?;
        if let Some(decision) = again {
            let files = &decider.generation.policies;
            let explanation = decider.compiled.explain(recorded.input(), &decision, files);
            report.reproduced = true;
            report.observed.clone_from(&decision.observed);
            report.explanation = Some(explanation.map_err(CliError::unavailable)?);
            report.detail = decision.verdict.err().map(|refusal| refusal.detail);
        }
        Ok(report)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {name:<11}{}", printable(text))
}

impl fmt::Display for ExplanationOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome.as_str();
        let code = self.refusal.map(|code| format!(" ({})", code.as_str()));
        let code = code.unwrap_or_default();
        writeln!(f, "decision {}: {outcome}{code}", self.decision)?;
        line(f, "at:", &self.at.to_string())?;
        line(
            f,
            "workload:",
            self.workload.as_deref().unwrap_or("unknown"),
        )?;
        if let Some(resource) = &self.resource {
            line(f, "resource:", resource)?;
        }
        if let Some(seconds) = self.granted_ttl_seconds {
            line(f, "granted:", &format!("{seconds} s"))?;
        }
        line(f, "generation:", &format!(" {}", self.generation))?;
        line(f, "leaf:", &format!("index {}", self.index))?;
        if let Some(detail) = &self.detail {
            line(f, "said:", detail)?;
        }
        if let Some(observed) = &self.observed {
            line(f, "observed:", &format!("{observed}; not enforced"))?;
        }
        f.write_str("\n")?;
        let code = self.refusal.map_or("", RefusalCode::as_str);
        match self.decided_by {
            "never" => {
                return write!(
                    f,
                    "refused before policy was asked: {code}. There is nothing to evaluate again."
                );
            }
            "overtaken" => writeln!(
                f,
                "Policy permitted it; the log refused it when it was to be recorded: {code}. \
                 The evaluation was repeated with the same input and generation, and policy's part is \
                 byte for byte the recorded one. The state of the log at that moment is not \
                 evaluated again."
            )?,
            _ => writeln!(
                f,
                "Evaluated again with the same input and generation: the result is byte for byte the \
                 recorded one."
            )?,
        }
        if let Some(engine) = &self.other_engine {
            writeln!(
                f,
                "{} decided it; this version's engine evaluated it again.",
                printable(engine)
            )?;
        }
        let turned = match self.decided_by {
            "overtaken" => "policy's permit",
            _ => "it",
        };
        match &self.explanation {
            Some(explanation) => show(f, explanation, turned),
            None => Ok(()),
        }
    }
}

fn show_source(f: &mut fmt::Formatter<'_>, source: &SourceLocation) -> fmt::Result {
    writeln!(
        f,
        "  {}:{} {} `{}`: {}",
        printable(&source.file),
        source.line,
        source.effect,
        source.policy,
        printable(&source.description)
    )
}

fn show(f: &mut fmt::Formatter<'_>, explanation: &Explanation, turned: &str) -> fmt::Result {
    if explanation.policies.is_empty() {
        writeln!(
            f,
            "\nNo policy determined the outcome: none permits the request."
        )?;
    } else {
        writeln!(f, "\nDetermined by")?;
    }
    for policy in &explanation.policies {
        show_source(f, policy)?;
    }
    if !explanation.observed.is_empty() {
        writeln!(f, "\nObserved, not enforced, by")?;
    }
    for policy in &explanation.observed {
        show_source(f, policy)?;
    }
    for right in &explanation.refused {
        let what = format!("{} at {}", right.action, right.location);
        writeln!(f, "\nRefused: {}", printable(&what))?;
        if !right.forbidden_by.is_empty() {
            writeln!(f, " forbidden by")?;
        }
        for forbid in &right.forbidden_by {
            show_source(f, forbid)?;
        }
        if right.forbidden_by.is_empty() && right.nearest.is_empty() {
            writeln!(f, " no policy is close to permitting it")?;
        }
        if !right.nearest.is_empty() {
            writeln!(f, " no policy permits it; the closest ones are")?;
        }
        for near in &right.nearest {
            show_source(f, &near.source)?;
            for condition in &near.does_not_hold {
                writeln!(f, "    does not hold: {}", printable(condition))?;
            }
        }
    }
    f.write_str("\n")?;
    if explanation.changes.is_empty() {
        write!(
            f,
            "No single change was found that would have turned {turned} ({} tried).",
            explanation.tried
        )?;
    } else {
        write!(
            f,
            "Single changes that would have turned {turned} ({} tried):",
            explanation.tried
        )?;
    }
    for change in &explanation.changes {
        let text = format!("{}: {} -> {}", change.fact, change.from, change.to);
        write!(f, "\n  {} ({})", printable(&text), change.outcome.as_str())?;
    }
    if explanation.cut_short {
        f.write_str("\n  the search stopped at its limit; there may be more")?;
    }
    Ok(())
}
