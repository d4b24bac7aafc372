//! `taskpass sessions`: lists, shows and revokes sessions.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::verification`
//! lists, and `broker::revocation` revokes.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::Page;
use crate::ids::SessionId;

/// List, show and revoke sessions
#[derive(Args, Debug)]
pub(super) struct Sessions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List sessions: all of them for an admin, a workload's own otherwise
    #[command(
        after_help = "Example:\n  taskpass sessions list --state active --token-file admin-token"
    )]
    List(List),
    /// Show one session
    #[command(after_help = "Example:\n  taskpass sessions show 0198… --token-file admin-token")]
    Show(Show),
    /// End one session
    #[command(
        after_help = "Example:\n  taskpass sessions revoke 0198… --reason \"leaked in a log\" --token-file admin-token"
    )]
    Revoke(RevokeOne),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// Only sessions in this state
    #[arg(long, value_parser = ["minting", "active", "ending", "ended"])]
    state: Option<String>,
    /// Only sessions of this identity
    #[arg(long, value_name = "IDENTITY")]
    workload: Option<String>,
    /// Only sessions of this task
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Only sessions for this resource
    #[arg(long, value_name = "NAME")]
    resource: Option<String>,
    #[command(flatten)]
    page: Page,
}

#[derive(Args, Debug)]
struct Show {
    /// The id of the session
    id: SessionId,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct RevokeOne {
    /// The id of the session
    id: SessionId,
    #[command(flatten)]
    connection: Connection,
    /// The reason, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Sessions {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::List(list) => {
                let filter = [
                    ("state", list.state.as_ref()),
                    ("workload", list.workload.as_ref()),
                    ("task", list.task.as_ref()),
                    ("resource", list.resource.as_ref()),
                ];
                let path = format!("/v1/sessions{}", list.page.query(&filter));
                let answer = list.connection.client()?.get(&path).await?;
                let columns = [
                    "id",
                    "state",
                    "end_reason",
                    "workload",
                    "resource",
                    "expires_at",
                ];
                Page::print(form, &answer, "sessions", &columns)
            }
            Command::Show(show) => {
                let client = show.connection.client()?;
                output::json(&client.get(&format!("/v1/sessions/{}", show.id)).await?)
            }
            Command::Revoke(revoke) => {
                let path = format!("/v1/sessions/{}/revoke", revoke.id);
                let body = json!({"reason": revoke.reason});
                let answer = revoke.connection.client()?.post(&path, &body).await?;
                if form.is_json() {
                    return output::json(&answer);
                }
                let session = answer.get("session").unwrap_or(&answer);
                let state = session.get("state").and_then(Value::as_str);
                output::line(format!(
                    "session {} is {}",
                    revoke.id,
                    output::printable(state.unwrap_or("?"))
                ))
            }
        }
    }
}
