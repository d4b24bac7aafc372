//! `taskpass task`: sends heartbeats, ends, shows and lists tasks.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::tasks` decides;
//! [`crate::cli::exec`] opens tasks.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::retry_args::RetryArgs;
use crate::client::retry::retried;
use crate::client::{Client, read_secret};
use crate::config::{Environment, ProcessEnvironment};
use crate::ids::TaskId;

/// Heartbeat, complete, abort, show and list tasks
#[derive(Args, Debug)]
pub(super) struct Task {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send a heartbeat: the task is still at work
    #[command(after_help = "Example:\n  taskpass task heartbeat 0198… --handle-file handle")]
    Heartbeat(TaskArgs),
    /// End the task and every session under it: the work is done
    #[command(after_help = "Example:\n  TASKPASS_HANDLE=tph_… taskpass task complete 0198…")]
    Complete(TaskArgs),
    /// End the task and every session under it: the work was abandoned
    #[command(after_help = "Example:\n  taskpass task abort 0198… --handle-file handle")]
    Abort(TaskArgs),
    /// Show one task
    #[command(after_help = "Example:\n  taskpass task show 0198… --token-file admin-token")]
    Show(Show),
    /// List tasks
    #[command(after_help = "Example:\n  taskpass task list --state open --token-file admin-token")]
    List(List),
}

#[derive(Args, Debug)]
struct TaskArgs {
    /// The id of the task
    id: TaskId,
    #[command(flatten)]
    connection: Connection,
    /// The file with the task's handle, `-` for standard input; without it `TASKPASS_HANDLE` is
    /// used, and without that the owner's attestation from --token-file or `TASKPASS_TOKEN`
    #[arg(long, value_name = "FILE")]
    handle_file: Option<PathBuf>,
    #[command(flatten)]
    retry: RetryArgs,
}

#[derive(Args, Debug)]
struct Show {
    /// The id of the task
    id: TaskId,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// Only tasks in this state
    #[arg(long, value_parser = ["open", "completed", "aborted", "expired"])]
    state: Option<String>,
    /// Only tasks of this identity
    #[arg(long, value_name = "IDENTITY")]
    owner: Option<String>,
    #[command(flatten)]
    page: Page,
}

/// The part of a listing to print.
#[derive(Args, Debug)]
pub(super) struct Page {
    /// The cursor at the end of the previous page
    #[arg(long)]
    cursor: Option<String>,
    /// The most rows of the page
    #[arg(long)]
    limit: Option<u32>,
}

impl Page {
    /// The query string of a listing.
    pub(super) fn query(&self, filter: &[(&str, Option<&String>)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in filter {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(cursor) = &self.cursor {
            query.append_pair("cursor", cursor);
        }
        if let Some(limit) = self.limit {
            query.append_pair("limit", &limit.to_string());
        }
        match query.finish() {
            query if query.is_empty() => query,
            query => format!("?{query}"),
        }
    }

    /// Prints the listing: as JSON, or the rows under `name` as a table of `columns`.
    pub(super) fn print(
        form: Form,
        answer: &Value,
        name: &str,
        columns: &[&str],
    ) -> Result<(), CliError> {
        if form.is_json() {
            return output::json(answer);
        }
        print_rows(answer, name, columns)?;
        if let Some(cursor) = answer.get("next_cursor").and_then(Value::as_str) {
            output::note(format!(
                "there are more: --cursor {}",
                output::printable(cursor)
            ));
        }
        Ok(())
    }
}

/// Prints the rows under `name` as a table of `columns`.
pub(super) fn print_rows(answer: &Value, name: &str, columns: &[&str]) -> Result<(), CliError> {
    let heading = columns.iter().map(|name| name.to_uppercase()).collect();
    let mut rows: Vec<Vec<String>> = vec![heading];
    let items = answer.get(name).and_then(Value::as_array);
    for item in items.into_iter().flatten() {
        let cell = |column: &&str| match item.get(*column) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => "-".into(),
            Some(other) => other.to_string(),
        };
        rows.push(columns.iter().map(cell).collect());
    }
    output::table(&rows)
}

impl Task {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Heartbeat(one) => one.act(form, "heartbeat").await,
            Command::Complete(one) => one.act(form, "complete").await,
            Command::Abort(one) => one.act(form, "abort").await,
            Command::Show(show) => {
                let client = show.connection.client()?;
                output::json(&client.get(&format!("/v1/tasks/{}", show.id)).await?)
            }
            Command::List(list) => {
                let filter = [
                    ("state", list.state.as_ref()),
                    ("owner", list.owner.as_ref()),
                ];
                let path = format!("/v1/tasks{}", list.page.query(&filter));
                let answer = list.connection.client()?.get(&path).await?;
                let columns = ["id", "state", "type", "owner", "deadline"];
                Page::print(form, &answer, "tasks", &columns)
            }
        }
    }
}

impl TaskArgs {
    fn client(&self) -> Result<Client, CliError> {
        let handle = match &self.handle_file {
            Some(file) => Some(read_secret(file)?),
            None => match ProcessEnvironment.get("TASKPASS_HANDLE") {
                Ok(handle) => handle.map(Into::into),
                Err(_) => return Err(CliError::Usage("TASKPASS_HANDLE is not UTF-8".into())),
            },
        };
        match handle {
            Some(handle) => {
                let client = self.connection.address.client()?;
                Ok(client.with_authorization("Handle", &handle)?)
            }
            None => self.connection.client(),
        }
    }

    async fn act(&self, form: Form, what: &str) -> Result<(), CliError> {
        let path = format!("/v1/tasks/{}/{what}", self.id);
        let client = self.client()?;
        let nothing = Value::Object(serde_json::Map::new());
        let answer = retried(self.retry.limit(), client.notify(), async || {
            let sent = client.try_once(Method::POST, &path, Some(&nothing), None);
            Ok(sent.await?.success()?)
        });
        let answer = answer.await?;
        if form.is_json() {
            return output::json(&answer);
        }
        let state = answer.pointer("/task/state").and_then(Value::as_str);
        let sessions = answer.get("sessions").and_then(Value::as_array);
        output::line(format!(
            "task {} is {}; {} session(s)",
            self.id,
            output::printable(state.unwrap_or("?")),
            sessions.map_or(0, Vec::len)
        ))?;
        for session in sessions.into_iter().flatten() {
            let text = |name: &str| session.get(name).and_then(Value::as_str).unwrap_or("-");
            output::line(format!(
                "  {} {} {}",
                output::printable(text("id")),
                output::printable(text("state")),
                output::printable(text("end_reason"))
            ))?;
        }
        Ok(())
    }
}
