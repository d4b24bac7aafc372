//! `taskpass revoke` and `taskpass lift`: the end of everything that a selector matches, and its
//! undoing for what is yet to come.

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::Connection;
use super::{Failure, output};
use crate::domain::cutoff::{ISSUED_AFTER, Selector};
use crate::ids::CutoffId;

/// End everything that a selector matches
#[derive(Args, Debug)]
#[command(
    after_help = "A selector is workload=…, task=…, resource=…, attestor=…, generation=…, policy=…, signing_key=… or all.\n\
    Workloads, attestors and `all` are kept out for an hour unless said otherwise.\n\nExamples:\n  \
    taskpass revoke workload=github:repo:1234 --dry-run --reason \"what would die?\" --token-file admin-token\n  \
    taskpass revoke all --until-lifted --reason \"incident 7\" --token-file admin-token"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct Revoke {
    /// What to end: `kind=value`, or `all`
    #[arg(value_parser = selector)]
    selector: Selector,
    #[command(flatten)]
    connection: Connection,
    /// Say what would die, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Grant nothing new for so long; 0 for no block
    #[arg(long, value_name = "SECONDS", conflicts_with = "until_lifted")]
    block_seconds: Option<u64>,
    /// Grant nothing new until `taskpass lift`
    #[arg(long)]
    until_lifted: bool,
    /// Have AWS refuse every earlier session of ours on the resource's role, not only as many as a
    /// list has room for
    #[arg(long)]
    widen: bool,
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Let in again what a revocation keeps out
#[derive(Args, Debug)]
#[command(
    after_help = "What was ended stays ended.\n\nExample:\n  taskpass lift 0198… --token-file admin-token"
)]
pub(super) struct Lift {
    /// The revocation
    id: CutoffId,
    #[command(flatten)]
    connection: Connection,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn selector(text: &str) -> Result<Selector, String> {
    let (kind, value) = text.split_once('=').unwrap_or((text, ""));
    let empty = value.is_empty() && kind != "all";
    Selector::from_parts(kind, value)
        .filter(|_| !empty && kind != ISSUED_AFTER && (kind != "all" || text == "all"))
        .ok_or_else(|| {
            "it is kind=value with a kind of workload, task, resource, attestor, generation, policy \
             or signing_key; or the word all"
                .to_owned()
        })
}

impl Revoke {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let answer = self
            .connection
            .client()?
            .post("/v1/revocations", &self.body()?)
            .await?;
        if self.json {
            return output::json(&answer);
        }
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        if self.dry_run {
            return output::line(format!(
                "{} session(s) would end; nothing was touched",
                number("matched")
            ));
        }
        let id = answer.get("id").and_then(Value::as_str).unwrap_or("?");
        let id = output::printable(id);
        if answer.get("matched").is_none() {
            return output::line(format!(
                "revocation {id} stands; what it ends could not be counted just now"
            ));
        }
        output::line(format!(
            "revocation {id}: {} session(s) matched, {} ended, {} ending",
            number("matched"),
            number("ended"),
            number("ending"),
        ))
    }

    fn body(&self) -> Result<Value, Failure> {
        let selector = serde_json::to_value(&self.selector)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let mut body = Map::new();
        body.insert("selector".into(), selector);
        body.insert("reason".into(), json!(self.reason));
        body.insert("dry_run".into(), json!(self.dry_run));
        if self.widen {
            body.insert("widen".into(), json!(true));
        }
        if self.until_lifted {
            body.insert("block_seconds".into(), json!("until_lifted"));
        } else if let Some(seconds) = self.block_seconds {
            body.insert("block_seconds".into(), json!(seconds));
        }
        Ok(Value::Object(body))
    }
}

impl Lift {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let path = format!("/v1/revocations/{}/lift", self.id);
        let answer = self.connection.client()?.post(&path, &json!({})).await?;
        if self.json {
            return output::json(&answer);
        }
        output::line(format!("revocation {} is lifted", self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_named_whole_or_not_at_all() {
        assert!(selector("all").is_ok());
        assert!(selector("workload=dev:agent%3Areports").is_ok());
        assert_eq!(
            selector("policy=a=b").unwrap(),
            Selector::Policy("a=b".into())
        );
        for bad in [
            "",
            "all=",
            "all=x",
            "workload",
            "workload=",
            "=x",
            "everything=1",
        ] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
