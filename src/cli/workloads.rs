//! `taskpass workloads`: registered workload keys.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::client::{Connection, read_file};
use super::evidence::{assertion, read_key};
use super::task::print_rows;
use super::{Failure, output};
use crate::crypto::PublicJwk;

/// The longest JWK that is read.
const MAX_JWK_BYTES: u64 = 16 * 1024;

/// Register, list and remove workload keys
#[derive(Args, Debug)]
pub(super) struct Workloads {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register the public key of a workload
    #[command(
        after_help = "Example:\n  taskpass workloads add reports --key-file public.jwk --token-file admin-token"
    )]
    Add(Add),
    /// List the registered keys
    #[command(after_help = "Example:\n  taskpass workloads list --token-file admin-token")]
    List(List),
    /// Print an attestation by the key of a registered workload; each is good once, for a minute
    #[command(
        after_help = "With it an admin acts whose role is bound to a registered key, on the day that the identity provider is down.\n\nExample:\n  taskpass workloads assert oncall --key-file oncall.pem --audience https://broker.example | taskpass policy activate --url https://broker.example --token-file -"
    )]
    Assert(Assert),
    /// Remove a key, by its thumbprint
    #[command(
        after_help = "Example:\n  taskpass workloads remove reports 3q2-7w… --token-file admin-token"
    )]
    Remove(Remove),
}

#[derive(Args, Debug)]
struct Add {
    /// The workload's name: its identity is `<attestor>:<name>`
    workload: String,
    #[command(flatten)]
    connection: Connection,
    /// The attestor of kind `key`
    #[arg(long, default_value = "workload")]
    attestor: String,
    /// The file that holds the public key as a JWK, Ed25519 or P-256; `-` is standard input
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Assert {
    /// The workload's name
    workload: String,
    /// The file that holds the private key, as PKCS#8 PEM: Ed25519 or P-256
    #[arg(long, env = "TASKPASS_KEY_FILE", value_name = "FILE")]
    key_file: PathBuf,
    /// The broker's issuer
    #[arg(long, env = "TASKPASS_AUDIENCE", value_name = "URL")]
    audience: String,
}

#[derive(Args, Debug)]
struct Remove {
    /// The workload's name
    workload: String,
    /// The key's thumbprint; one that begins with a hyphen comes last, after `--`
    thumbprint: String,
    #[command(flatten)]
    connection: Connection,
    /// The attestor of kind `key`
    #[arg(long, default_value = "workload")]
    attestor: String,
}

impl Workloads {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Add(add) => add.run().await,
            Command::List(list) => {
                let answer = list.connection.client()?.get("/v1/workloads").await?;
                if list.json {
                    return output::json(&answer);
                }
                print_rows(
                    &answer,
                    "workloads",
                    &["attestor", "workload", "thumbprint"],
                )
            }
            Command::Assert(own) => {
                let signer = read_key(&own.key_file)?;
                let made = assertion(&signer, &own.workload, &own.audience).await?;
                output::raw(format!("{}\n", made.expose_secret()).as_bytes())
            }
            Command::Remove(remove) => {
                let body = json!({
                    "attestor": remove.attestor,
                    "workload": remove.workload,
                    "thumbprint": remove.thumbprint,
                });
                let client = remove.connection.client()?;
                client.delete("/v1/workloads", &body).await?;
                output::line(format!("{} is removed", remove.thumbprint))
            }
        }
    }
}

impl Add {
    async fn run(self) -> Result<(), Failure> {
        let bytes = read_file(&self.key_file, MAX_JWK_BYTES)?;
        // A private key must not leave this machine, not even by mistake.
        PublicJwk::parse(&bytes)
            .map_err(|error| Failure::Usage(format!("{}: {error}", self.key_file.display())))?;
        let jwk: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Usage(format!("{}: {error}", self.key_file.display())))?;
        let body = json!({"attestor": self.attestor, "workload": self.workload, "jwk": jwk});
        let answer = self
            .connection
            .client()?
            .post("/v1/workloads", &body)
            .await?;
        if self.json {
            return output::json(&answer);
        }
        let thumbprint = answer.get("thumbprint").and_then(Value::as_str);
        output::line(format!(
            "{}:{} may use the key {}",
            self.attestor,
            self.workload,
            output::printable(thumbprint.unwrap_or("?"))
        ))
    }
}
