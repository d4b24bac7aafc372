//! `taskpass task`: sends heartbeats, ends, shows and lists tasks.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::tasks` decides;
//! [`crate::cli::exec`] opens tasks.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::retry_args::RetryArgs;
use crate::client::retry::retried;
use crate::client::{Client, Nothing, Reply, read_secret};
use crate::config::{Environment, ProcessEnvironment};
use crate::ids::TaskId;
use crate::wire::tasks::{TaskOnlyBody, TaskPage, TaskSessionsBody};

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

    /// Tells how to get the next page, if there is one.
    pub(super) fn note_next(next_cursor: Option<&str>) {
        if let Some(cursor) = next_cursor {
            output::note(format!(
                "there are more: --cursor {}",
                output::printable(cursor)
            ));
        }
    }
}

impl Task {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Heartbeat(one) => one.act(form, "heartbeat").await,
            Command::Complete(one) => one.act(form, "complete").await,
            Command::Abort(one) => one.act(form, "abort").await,
            Command::Show(show) => {
                let client = show.connection.client()?;
                let path = format!("/v1/tasks/{}", show.id);
                let reply: Reply<TaskOnlyBody> = client.get(&path).await?;
                output::json(reply.json()?)
            }
            Command::List(list) => {
                let filter = [
                    ("state", list.state.as_ref()),
                    ("owner", list.owner.as_ref()),
                ];
                let path = format!("/v1/tasks{}", list.page.query(&filter));
                let reply = list.connection.client()?.get(&path).await?;
                print_page(form, &reply)
            }
        }
    }
}

fn print_page(form: Form, reply: &Reply<TaskPage>) -> Result<(), CliError> {
    if form.is_json() {
        return output::json(reply.json()?);
    }
    let page = reply.read()?;
    let rows = page.tasks.iter().map(|task| {
        [
            task.id.to_string(),
            task.state.to_string(),
            task.kind.clone(),
            task.owner.to_string(),
            task.deadline.to_string(),
        ]
    });
    output::listing(["id", "state", "type", "owner", "deadline"], rows)?;
    Page::note_next(page.next_cursor.as_deref());
    Ok(())
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
        let nothing = Nothing {};
        let answered = retried(self.retry.limit(), client.notify(), async || {
            let sent = client.try_once(Method::POST, &path, &nothing, None);
            Ok(sent.await?.success()?)
        });
        let reply: Reply<TaskSessionsBody> = answered.await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let answer = reply.read()?;
        output::line(format!(
            "task {} is {}; {} session(s)",
            self.id,
            output::printable(&answer.task.state.to_string()),
            answer.sessions.len()
        ))?;
        for session in &answer.sessions {
            output::line(format!(
                "  {} {} {}",
                session.id,
                output::printable(&session.state.to_string()),
                output::printable(&output::cell(session.end_reason.as_ref()))
            ))?;
        }
        Ok(())
    }
}
