//! `taskpass keys`: the first secrets of a deployment, and the broker's signing keys.
//!
//! A secret that cannot be generated is [`CliError::Unavailable`], and no existing file is
//! overwritten. `super::key_withdrawal` withdraws a key, and `super::ledger` gives a log up; the
//! broker does the rest.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use secrecy::ExposeSecret;
use serde_json::json;

use super::CliError;
use super::connection::Connection;
use super::key_withdrawal::withdraw;
use super::ledger::new_origin::{SuccessionArgs, revoke_log_key};
use super::ledger::vkey;
use super::output::{self, Form};
use super::serve::ConfigFile;
use crate::broker::access::tokens::ADMIN_PREFIX;
use crate::client::{Nothing, Reply, write_new_secret};
use crate::crypto::{SealingKeys, SystemRandom, random_token, token_digest};
use crate::merkle::VerifierKey;
use crate::wire::keys::{KeysBody, ResealedBody, RotatedKeyBody, RotatedLedgerKeyBody};

/// Create first secrets; list, rotate, revoke and reseal the broker's keys
#[derive(Args, Debug)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a bootstrap token, which can bind the first admin
    #[command(
        after_help = "The token is shown once; the configuration holds only its SHA-256. It expires one day after the first start.\n\nExamples:\n  taskpass keys bootstrap\n  taskpass keys bootstrap --token-file bootstrap-token"
    )]
    Bootstrap(Bootstrap),
    /// Create a sealing key, which encrypts the broker's keys at rest
    #[command(
        after_help = "Put it into TASKPASS_SEALING_KEYS or the file that TASKPASS_SEALING_KEYS_FILE names: the first key seals, all of them open.\n\nExample:\n  (umask 077; taskpass keys sealing-key > sealing-keys)"
    )]
    SealingKey,
    /// List the broker's keys
    #[command(after_help = "Example:\n  taskpass keys list --token-file admin-token")]
    List(List),
    /// Create the next key, which is published before it signs
    #[command(
        after_help = "Example:\n  taskpass keys rotate access-token --token-file admin-token"
    )]
    Rotate(Rotate),
    /// Withdraw a key at once, and end the sessions that it signed
    #[command(
        after_help = "Without --yes the command prints the effects and asks. A one-time attestation does not suffice for both steps: use --yes then. To revoke the log's own key, stop every broker: a new log replaces the old one, as with `taskpass ledger new-origin`.\n\nExamples:\n  taskpass keys revoke 3q2-7w… --token-file admin-token\n  taskpass keys revoke 3q2-7w… --yes --token-file admin-token\n  taskpass keys revoke --ledger 'broker.example/log+1a2b3c4d+AQ…' --config new.toml --old-config taskpass.toml --list only-by-this-key.jsonl"
    )]
    Revoke(Box<RevokeKey>),
    /// Seal the broker's keys again, under the first sealing key
    #[command(after_help = "Example:\n  taskpass keys reseal --token-file admin-token")]
    Reseal(Reseal),
}

#[derive(Args, Debug)]
struct Bootstrap {
    /// Write the token to this file, which must not exist yet, and print only its SHA-256
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    connection: Connection,
}

/// The use of a key.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Purpose {
    /// The keys that sign access tokens
    AccessToken,
    /// The checkpoints of the ledger
    Ledger,
}

#[derive(Args, Debug)]
struct Rotate {
    /// The use of the key
    #[arg(value_enum)]
    purpose: Purpose,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct RevokeKey {
    /// The key's id; put one that begins with a hyphen last, after `--`
    #[arg(required_unless_present = "ledger", conflicts_with = "ledger")]
    kid: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// The stolen verifier key of the log: a new log replaces the old one
    #[arg(long, value_name = "VKEY", value_parser = vkey, requires = "old_config")]
    ledger: Option<VerifierKey>,
    /// The old log's configuration; `TASKPASS_OLD_DATABASE_URL` or `…_FILE` gives its PostgreSQL
    /// database
    #[arg(long, value_name = "FILE", requires = "ledger")]
    old_config: Option<PathBuf>,
    /// Write the leaves that only this key covers to this file, one a line
    #[arg(long, value_name = "FILE", requires = "ledger")]
    list: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    how: SuccessionArgs,
}

#[derive(Args, Debug)]
struct Reseal {
    #[command(flatten)]
    connection: Connection,
}

impl Keys {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Bootstrap(bootstrap) => bootstrap.run(form),
            Command::SealingKey => {
                let key = SealingKeys::generate(&SystemRandom::new());
                let key = key.map_err(CliError::unavailable)?;
                let key = key.expose_secret();
                form.write(&json!({"sealing_key": key}), key)
            }
            Command::List(list) => list.run(form).await,
            Command::Rotate(rotate) => rotate.run(form).await,
            Command::Revoke(revoke) => {
                if let (Some(key), Some(old)) = (&revoke.ledger, &revoke.old_config) {
                    let list = revoke.list.as_deref();
                    let revoked = revoke_log_key(&revoke.file, old, &revoke.how, key, list, form);
                    return Box::pin(revoked).await;
                }
                let kid = revoke.kid.unwrap_or_default();
                withdraw(&revoke.connection, &kid, revoke.how.is_confirmed(), form).await
            }
            Command::Reseal(reseal) => {
                let client = reseal.connection.client()?;
                let path = "/v1/keys/reseal";
                let reply: Reply<ResealedBody> = client.post(path, &Nothing {}).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                output::line(format!("{} key(s) resealed", reply.read()?.resealed))
            }
        }
    }
}

impl List {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let reply: Reply<KeysBody> = self.connection.client()?.get("/v1/keys").await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let columns = [
            "kid",
            "purpose",
            "algorithm",
            "signing",
            "active_from",
            "retire_at",
            "revoked_at",
        ];
        let rows = reply.read()?.keys.into_iter().map(|key| {
            [
                key.kid,
                key.purpose,
                key.algorithm,
                key.signing.to_string(),
                key.active_from.to_string(),
                key.retire_at.to_string(),
                output::cell(key.revoked_at.as_ref()),
            ]
        });
        output::listing(columns, rows)
    }
}

impl Rotate {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let client = self.connection.client()?;
        let key = match self.purpose {
            Purpose::AccessToken => {
                let path = "/v1/keys/rotate";
                let reply: Reply<RotatedKeyBody> = client.post(path, &Nothing {}).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                reply.read()?.kid
            }
            Purpose::Ledger => {
                let path = "/v1/keys/rotate-ledger";
                let reply: Reply<RotatedLedgerKeyBody> = client.post(path, &Nothing {}).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                reply.read()?.vkey
            }
        };
        output::line(format!("the next key is {}", output::printable(&key)))
    }
}

impl Bootstrap {
    fn run(self, form: Form) -> Result<(), CliError> {
        let token = random_token(ADMIN_PREFIX, &SystemRandom::new());
        let token = token.map_err(CliError::unavailable)?;
        let digest = hex(&token_digest(token.expose_secret()));
        if let Some(file) = &self.token_file {
            write_new_secret(file, token.expose_secret().as_bytes())?;
            return form.write(&json!({"bootstrap_token_sha256": digest}), &digest);
        }
        if form.is_json() {
            return output::json(&json!({
                "token": token.expose_secret(),
                "bootstrap_token_sha256": digest,
            }));
        }
        output::line(token.expose_secret())?;
        output::alert(format!(
            "Keep the token; it is not shown again. Put its digest into the configuration:\n\n\
             [admin]\nbootstrap_token_sha256 = \"{digest}\""
        ))
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
