//! `taskpass admins`: the roles of identities.
//!
//! A refusal of the broker is the command's error ([`super::CliError`]). `broker::administration`
//! decides; this file sends the request and prints the answer.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use crate::client::Reply;
use crate::domain::workload::Identity;
use crate::wire::admins::{AdminBody, AdminsBody};

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
                let path = "/v1/admins";
                let reply: Reply<AdminsBody> = list.connection.client()?.get(path).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                let rows = reply.read()?.admins.into_iter();
                let rows = rows.map(|bound| [bound.workload, bound.role]);
                output::listing(["workload", "role"], rows)
            }
        }
    }
}

impl Change {
    async fn run(self, form: Form, bind: bool) -> Result<(), CliError> {
        let (identity, role) = (&self.identity, &self.role);
        let workload = Identity::try_from(identity.clone());
        let body = AdminBody {
            workload: workload
                .map_err(|error| CliError::Usage(format!("`{identity}`: {error}")))?,
            role: role.clone(),
        };
        let client = self.connection.client()?;
        let (method, now) = if bind {
            (Method::POST, "has")
        } else {
            (Method::DELETE, "no longer has")
        };
        let answer = client.send_json(method, "/v1/admins", &body).await?;
        answer.done()?;
        form.write(
            &json!({"workload": identity, "role": role, "bound": bind}),
            format!("{identity} {now} the role {role}"),
        )
    }
}
