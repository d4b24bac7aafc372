//! `taskpass admins`: the roles of identities.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::administration`
//! decides; this file sends the request and prints the answer.

use clap::{Args, Subcommand};
use serde_json::json;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use super::task::print_rows;

/// Bind identities to roles, and unbind them
#[derive(Args, Debug)]
pub(super) struct Admins {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give a role to an identity
    #[command(
        after_help = "Example:\n  taskpass admins bind workload:oncall --role admin --token-file bootstrap-token"
    )]
    Bind(Change),
    /// Take a role away
    #[command(
        after_help = "Example:\n  taskpass admins unbind workload:oncall --role admin --token-file admin-token"
    )]
    Unbind(Change),
    /// List the identities and their roles
    #[command(after_help = "Example:\n  taskpass admins list --token-file admin-token")]
    List(List),
}

#[derive(Args, Debug)]
struct Change {
    /// The identity, as attestations yield it
    identity: String,
    /// The role
    #[arg(long, default_value = "admin")]
    role: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
}

impl Admins {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Bind(change) => change.run(form, true).await,
            Command::Unbind(change) => change.run(form, false).await,
            Command::List(list) => {
                let answer = list.connection.client()?.get("/v1/admins").await?;
                if form.is_json() {
                    return output::json(&answer);
                }
                print_rows(&answer, "admins", &["workload", "role"])
            }
        }
    }
}

impl Change {
    async fn run(self, form: Form, bind: bool) -> Result<(), CliError> {
        let body = json!({"workload": self.identity, "role": self.role});
        let client = self.connection.client()?;
        let now = if bind {
            client.post("/v1/admins", &body).await?;
            "has"
        } else {
            client.delete("/v1/admins", &body).await?;
            "no longer has"
        };
        form.write(
            &json!({"workload": self.identity, "role": self.role, "bound": bind}),
            format!("{} {now} the role {}", self.identity, self.role),
        )
    }
}
