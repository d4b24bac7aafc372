//! `taskpass sessions`: lists, shows and revokes sessions.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::verification`
//! lists, and `broker::revocation` revokes.

use clap::{Args, Subcommand};

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::Page;
use crate::client::Reply;
use crate::ids::SessionId;
use crate::wire::sessions::{RevokeBody, SessionBody, SessionPage};

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
                let reply = list.connection.client()?.get(&path).await?;
                print_page(form, &reply)
            }
            Command::Show(show) => {
                let client = show.connection.client()?;
                let path = format!("/v1/sessions/{}", show.id);
                let reply: Reply<SessionBody> = client.get(&path).await?;
                output::json(reply.json()?)
            }
            Command::Revoke(revoke) => {
                let path = format!("/v1/sessions/{}/revoke", revoke.id);
                let client = revoke.connection.client()?;
                let body = RevokeBody {
                    reason: Some(revoke.reason),
                };
                let reply: Reply<SessionBody> = client.post(&path, &body).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                let state = reply.read()?.state.to_string();
                output::line(format!(
                    "session {} is {}",
                    revoke.id,
                    output::printable(&state)
                ))
            }
        }
    }
}

fn print_page(form: Form, reply: &Reply<SessionPage>) -> Result<(), CliError> {
    if form.is_json() {
        return output::json(reply.json()?);
    }
    let page = reply.read()?;
    let columns = [
        "id",
        "state",
        "end_reason",
        "workload",
        "resource",
        "expires_at",
    ];
    let rows = page.sessions.iter().map(|session| {
        [
            session.id.to_string(),
            session.state.to_string(),
            output::cell(session.end_reason.as_ref()),
            session.workload.to_string(),
            session.resource.clone(),
            session.expires_at.to_string(),
        ]
    });
    output::listing(columns, rows)?;
    Page::note_next(page.next_cursor.as_deref());
    Ok(())
}
