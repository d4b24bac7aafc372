//! `taskpass workloads`: the registered keys of workloads.
//!
//! A file that is not a public key is [`CliError::Usage`], so that no private key leaves this
//! machine. `broker::administration` registers and removes keys; `client::evidence` signs
//! assertions with them.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use crate::client::evidence::{assertion, read_key};
use crate::client::{Reply, read_file, write_new_secret};
use crate::crypto::PublicJwk;
use crate::crypto::jwk::Algorithm;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer as _};
use crate::wire::workload_keys::{
    ThumbprintBody, WorkloadKeyBody, WorkloadKeyRef, WorkloadKeysBody,
};

/// The longest JWK that is read, in bytes.
const MAX_JWK_BYTES: u64 = 16 * 1024;

/// Register, list and remove workload keys
#[derive(Args, Debug)]
pub(super) struct Workloads {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a key pair for a workload, and print its public key
    #[command(
        after_help = "The private key is written to the file, which must not exist yet. The printed line belongs into `keys` of the attestor of kind `key`; with --json it is the JWK that `taskpass workloads add` takes.\n\nExamples:\n  taskpass workloads new-key oncall --key-file oncall.pem\n  taskpass workloads new-key reports --key-file reports.pem --json > reports.jwk"
    )]
    NewKey(NewKey),
    /// Register the public key of a workload
    #[command(
        after_help = "Example:\n  taskpass workloads add reports --key-file public.jwk --token-file admin-token"
    )]
    Add(Add),
    /// List the registered keys
    #[command(after_help = "Example:\n  taskpass workloads list --token-file admin-token")]
    List(List),
    /// Print an attestation by the key of a registered workload; each is valid once, for a minute
    #[command(
        after_help = "An admin whose role is bound to a registered key can act with it even while the identity provider is down.\n\nExample:\n  taskpass workloads assert oncall --key-file oncall.pem --audience https://broker.example | taskpass policy activate --url https://broker.example --token-file -"
    )]
    Assert(Assert),
    /// Remove a key, by its thumbprint
    #[command(
        after_help = "Example:\n  taskpass workloads remove reports 3q2-7w… --token-file admin-token"
    )]
    Remove(Remove),
}

#[derive(Args, Debug)]
struct NewKey {
    /// The name of the workload
    workload: String,
    /// The file to create, with the private key as PKCS#8 PEM
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
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
    /// The file with the public key as a JWK, Ed25519 or P-256; `-` is standard input
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct Assert {
    /// The name of the workload
    workload: String,
    /// The file with the private key as PKCS#8 PEM: Ed25519 or P-256
    #[arg(long, env = "TASKPASS_KEY_FILE", value_name = "FILE")]
    key_file: PathBuf,
    /// The broker's issuer
    #[arg(long, env = "TASKPASS_AUDIENCE", value_name = "URL")]
    audience: String,
}

#[derive(Args, Debug)]
struct Remove {
    /// The name of the workload
    workload: String,
    /// The key's thumbprint; put one that begins with a hyphen last, after `--`
    thumbprint: String,
    #[command(flatten)]
    connection: Connection,
    /// The attestor of kind `key`
    #[arg(long, default_value = "workload")]
    attestor: String,
}

impl Workloads {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::NewKey(new) => new.run(form),
            Command::Add(add) => add.run(form).await,
            Command::List(list) => {
                let path = "/v1/workloads";
                let reply: Reply<WorkloadKeysBody> = list.connection.client()?.get(path).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                let rows = reply.read()?.workloads.into_iter();
                let rows = rows.map(|key| [key.attestor, key.workload, key.thumbprint]);
                output::listing(["attestor", "workload", "thumbprint"], rows)
            }
            Command::Assert(own) => {
                let signer = read_key(&own.key_file)?;
                let made = assertion(&signer, &own.workload, &own.audience).await?;
                form.write(
                    &json!({"assertion": made.expose_secret()}),
                    made.expose_secret(),
                )
            }
            Command::Remove(remove) => {
                let body = WorkloadKeyRef {
                    attestor: remove.attestor,
                    workload: remove.workload,
                    thumbprint: remove.thumbprint,
                };
                let client = remove.connection.client()?;
                client.delete("/v1/workloads", &body).await?;
                form.write(&body, format!("{} is removed", body.thumbprint))
            }
        }
    }
}

impl NewKey {
    fn run(self, form: Form) -> Result<(), CliError> {
        let key = PrivateKey::generate(Algorithm::EdDsa).map_err(CliError::unavailable)?;
        let signer = LocalSigner::new(&key).map_err(CliError::unavailable)?;
        let encoded = Zeroizing::new(STANDARD.encode(key.expose_pkcs8()));
        let mut pem = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
        for line in encoded.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        write_new_secret(&self.key_file, pem.as_bytes())?;
        let jwk = serde_json::to_value(signer.public_jwk()).map_err(CliError::unavailable)?;
        if form.is_json() {
            return output::json(&jwk);
        }
        let text = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
        output::line(format!(
            "{{ workload = {}, jwk = {{ kty = \"{}\", crv = \"{}\", x = \"{}\" }} }}",
            toml::Value::String(self.workload.clone()),
            text("kty"),
            text("crv"),
            text("x"),
        ))
    }
}

impl Add {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let bytes = read_file(&self.key_file, MAX_JWK_BYTES)?;
        // A private key must not leave this machine, not even by mistake: parsing refuses it.
        PublicJwk::parse(&bytes)
            .map_err(|error| CliError::Usage(format!("{}: {error}", self.key_file.display())))?;
        let jwk: Value = serde_json::from_slice(&bytes)
            .map_err(|error| CliError::Usage(format!("{}: {error}", self.key_file.display())))?;
        let body = WorkloadKeyBody {
            attestor: self.attestor,
            workload: self.workload,
            jwk,
        };
        let client = self.connection.client()?;
        let reply: Reply<ThumbprintBody> = client.post("/v1/workloads", &body).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        output::line(format!(
            "{}:{} may use the key {}",
            body.attestor,
            body.workload,
            output::printable(&reply.read()?.thumbprint)
        ))
    }
}
