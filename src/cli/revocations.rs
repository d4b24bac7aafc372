//! `taskpass revocations` and `taskpass lift`: lists revocations, and lifts their blocks.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::revocation`
//! decides; `super::revoke` makes a revocation.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::Page;
use crate::domain::cutoff::Selector;
use crate::ids::CutoffId;

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
                output::json(&client.get(&format!("/v1/revocations/{}", show.id)).await?)
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
        let mut answer = self.connection.client()?.get(&path).await?;
        if !form.is_json() {
            write_selectors(&mut answer);
        }
        let columns = [
            "id",
            "selector",
            "block_active",
            "blocked_until",
            "by",
            "committed_at",
            "reason",
        ];
        Page::print(form, &answer, "revocations", &columns)
    }
}

/// Rewrites each selector as `kind=value`, for a table's cell.
fn write_selectors(answer: &mut Value) {
    let rows = answer.get_mut("revocations").and_then(Value::as_array_mut);
    for row in rows.into_iter().flatten() {
        let Some(selector) = row.get_mut("selector") else {
            continue;
        };
        let member = selector.as_object().and_then(|object| object.iter().next());
        let text = member.map(|(kind, value)| match value.as_str() {
            Some(value) => format!("{kind}={value}"),
            None => kind.clone(),
        });
        *selector = json!(text);
    }
}

impl Lift {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let path = format!("/v1/revocations/{}/lift", self.id);
        let answer = self.connection.client()?.post(&path, &json!({})).await?;
        if form.is_json() {
            return output::json(&answer);
        }
        output::line(format!("revocation {} is lifted", self.id))
    }
}
