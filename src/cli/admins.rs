//! `taskpass admins`: who has which role.

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::Connection;
use super::task::Page;
use super::{Failure, output};

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
        after_help = "Example:\n  taskpass admins bind github:user:42 --role admin --token-file bootstrap-token"
    )]
    Bind(Change),
    /// Take a role away
    #[command(
        after_help = "Example:\n  taskpass admins unbind github:user:42 --role admin --token-file admin-token"
    )]
    Unbind(Change),
    /// List who has which role
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
    #[command(flatten)]
    page: Page,
}

impl Admins {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Bind(change) => change.run("bind", "has").await,
            Command::Unbind(change) => change.run("unbind", "no longer has").await,
            Command::List(list) => {
                let path = format!("/v1/admins{}", list.page.query(&[]));
                let answer = list.connection.client()?.get(&path).await?;
                list.page.print(&answer, "admins", &["identity", "role"])
            }
        }
    }
}

impl Change {
    async fn run(self, act: &str, now: &str) -> Result<(), Failure> {
        let body = json!({"identity": self.identity, "role": self.role});
        let client = self.connection.client()?;
        client.post(&format!("/v1/admins/{act}"), &body).await?;
        output::line(format!("{} {now} the role {}", self.identity, self.role))
    }
}
