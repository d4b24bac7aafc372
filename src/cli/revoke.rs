//! `taskpass revoke`: ends everything that a selector matches.
//!
//! A selector that cannot be parsed is [`CliError::Usage`]; a refusal of the broker is the
//! command's error. `broker::revocation` revokes, and `super::revocations` shows the progress.

use clap::Args;
use serde_json::{Map, Value, json};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::print_rows;
use crate::domain::cutoff::Selector;

/// End everything that a selector matches
#[derive(Args, Debug)]
#[command(
    after_help = "A selector is workload=…, task=…, resource=…, attestor=…, generation=…, policy=…, signing_key=… or all.\n\
    Workloads, attestors and `all` are blocked for an hour unless another time is given.\n\nExamples:\n  \
    taskpass revoke workload=github:repo:1234 --dry-run --reason \"who is affected?\" --token-file admin-token\n  \
    taskpass revoke all --until-lifted --reason \"incident 7\" --token-file admin-token"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a separate switch")]
pub(super) struct Revoke {
    /// The selector: `kind=value`, or `all`
    selector: Selector,
    #[command(flatten)]
    connection: Connection,
    /// Print the sessions that would end, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Block new credentials for this time; 0 for no block
    #[arg(long, value_name = "SECONDS", conflicts_with = "until_lifted")]
    block_seconds: Option<u64>,
    /// Block new credentials until `taskpass lift`
    #[arg(long)]
    until_lifted: bool,
    /// Make AWS refuse all earlier sessions of the broker on the resource's role, not only those
    /// for which the deny policy has room
    #[arg(long)]
    deny_all_earlier_sessions: bool,
    /// Revoke even if the broker has no record of the selector's value
    #[arg(long)]
    allow_unknown: bool,
    /// The reason, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Revoke {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let answer = self
            .connection
            .client()?
            .post("/v1/revocations", &self.body()?)
            .await?;
        if form.is_json() {
            return output::json(&answer);
        }
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        let has_more = answer.get("has_more").and_then(Value::as_bool) == Some(true);
        let more = if has_more { "more than " } else { "" };
        if self.dry_run {
            if answer.get("matched").is_none() {
                return output::line(
                    "the sessions that would end could not be counted in time; nothing was changed",
                );
            }
            output::line(format!(
                "{more}{} session(s) would end; nothing was changed",
                number("matched")
            ))?;
            if number("matched") == 0 {
                return Ok(());
            }
            let columns = ["id", "state", "workload", "resource", "expires_at"];
            return print_rows(&answer, "sessions", &columns);
        }
        let id = answer.get("id").and_then(Value::as_str).unwrap_or("?");
        let id = output::printable(id);
        if answer.get("matched").is_none() {
            return output::line(format!(
                "revocation {id} is in force; the sessions that it ends could not be counted"
            ));
        }
        output::line(format!(
            "revocation {id}: {more}{} session(s) matched, {} ended, {} ending; {}",
            number("matched"),
            number("ended"),
            number("ending"),
            kept_out(&answer, &self.selector),
        ))
    }

    fn body(&self) -> Result<Value, CliError> {
        let selector = serde_json::to_value(&self.selector)
            .map_err(|error| CliError::Usage(error.to_string()))?;
        let mut body = Map::new();
        body.insert("selector".into(), selector);
        body.insert("reason".into(), json!(self.reason));
        body.insert("dry_run".into(), json!(self.dry_run));
        if self.allow_unknown {
            body.insert("allow_unknown".into(), json!(true));
        }
        if self.deny_all_earlier_sessions {
            body.insert("deny_all_earlier_sessions".into(), json!(true));
        }
        if self.until_lifted {
            body.insert("block_seconds".into(), json!("until_lifted"));
        } else if let Some(seconds) = self.block_seconds {
            body.insert("block_seconds".into(), json!(seconds));
        }
        Ok(Value::Object(body))
    }
}

/// Describes the block of a revocation.
fn kept_out(answer: &Value, selector: &Selector) -> String {
    match answer.get("blocked_until").and_then(Value::as_str) {
        None => "nothing new is refused".to_owned(),
        Some("until_lifted") => {
            format!("{selector} gets nothing new until the revocation is lifted")
        }
        Some(until) => format!(
            "{selector} gets nothing new until {}",
            output::printable(until)
        ),
    }
}
