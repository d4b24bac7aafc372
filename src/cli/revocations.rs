//! `taskpass revocations` and `taskpass lift`: lists revocations, and lifts their blocks.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::revocation`
//! decides; `super::revoke` makes a revocation.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::Page;
use crate::client::{Nothing, Reply};
use crate::domain::cutoff::Selector;
use crate::ids::CutoffId;
use crate::wire::open::Open;
use crate::wire::revocations::{CutoffBody, RevocationBody, RevocationPage};

/// List and show revocations, and lift their blocks
#[derive(Args, Debug)]
pub(super) struct Revocations {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List revocations, newest first
    #[command(
        after_help = "Examples:\n  taskpass revocations list --standing --token-file admin-token\n  \
        taskpass revocations list --selector workload=github:repo:1234 --token-file admin-token"
    )]
    List(List),
    /// Show one revocation with the sessions that it ends
    #[command(after_help = "Example:\n  taskpass revocations show 0198… --token-file admin-token")]
    Show(Show),
    Lift(Lift),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// Only revocations that block new credentials now
    #[arg(long)]
    standing: bool,
    /// Only revocations with this selector: `kind=value`, or `all`
    #[arg(long, value_name = "SELECTOR")]
    selector: Option<Selector>,
    #[command(flatten)]
    page: Page,
}

#[derive(Args, Debug)]
struct Show {
    /// The id of the revocation
    id: CutoffId,
    #[command(flatten)]
    connection: Connection,
}

/// Lift the block of a revocation
#[derive(Args, Debug)]
#[command(
    after_help = "Sessions that the revocation ended stay ended.\n\nExample:\n  taskpass lift 0198… --token-file admin-token"
)]
pub(super) struct Lift {
    /// The id of the revocation
    id: CutoffId,
    #[command(flatten)]
    connection: Connection,
}

impl Revocations {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::List(list) => list.run(form).await,
            Command::Show(show) => {
                let client = show.connection.client()?;
                let path = format!("/v1/revocations/{}", show.id);
                let reply: Reply<RevocationBody> = client.get(&path).await?;
                output::json(reply.json()?)
            }
            Command::Lift(lift) => lift.run(form).await,
        }
    }
}

impl List {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let standing = self.standing.then(|| "true".to_owned());
        let selector = self.selector.as_ref().map(Selector::to_string);
        let filter = [
            ("standing", standing.as_ref()),
            ("selector", selector.as_ref()),
        ];
        let path = format!("/v1/revocations{}", self.page.query(&filter));
        let reply: Reply<RevocationPage> = self.connection.client()?.get(&path).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let page = reply.read()?;
        let columns = [
            "id",
            "selector",
            "block_active",
            "blocked_until",
            "by",
            "committed_at",
            "reason",
        ];
        let rows = page.revocations.iter().map(|cutoff| {
            [
                cutoff.id.to_string(),
                selector_text(&cutoff.selector),
                cutoff.block_active.to_string(),
                output::cell(cutoff.blocked_until.as_ref()),
                cutoff.by.clone(),
                cutoff.committed_at.to_string(),
                cutoff.reason.clone(),
            ]
        });
        output::listing(columns, rows)?;
        Page::note_next(page.next_cursor.as_deref());
        Ok(())
    }
}

/// The selector as `kind=value`, also if this version does not know its kind.
fn selector_text(selector: &Open<Selector>) -> String {
    let value = match selector {
        Open::Known(selector) => return selector.to_string(),
        Open::Unknown(value) => value,
    };
    let member = value.as_object().and_then(|object| object.iter().next());
    match member {
        Some((kind, Value::String(value))) => format!("{kind}={value}"),
        Some((kind, _)) => kind.clone(),
        None => selector.to_string(),
    }
}

impl Lift {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let path = format!("/v1/revocations/{}/lift", self.id);
        let client = self.connection.client()?;
        let reply: Reply<CutoffBody> = client.post(&path, &Nothing {}).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let lifted = reply.read()?;
        output::line(format!("revocation {} is lifted", lifted.id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_is_shown_as_one_text() {
        let known = |text: &str| Open::Known(text.parse::<Selector>().unwrap());
        for (selector, text) in [
            (known("workload=ci:a"), "workload=ci:a"),
            (known("all"), "all"),
            (Open::Unknown(json!({"region": "eu"})), "region=eu"),
            (Open::Unknown(json!({"every": true})), "every"),
        ] {
            assert_eq!(selector_text(&selector), text);
        }
    }
}
