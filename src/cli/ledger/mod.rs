//! `taskpass ledger`: verifies receipts and whole logs offline, exports a log, shows its head, and
//! monitors its consistency.
//!
//! A proof that does not hold is exit code 1, an unusable argument or file is [`CliError::Usage`].
//! [`crate::audit::verify`] verifies; `events`, `export`, `new_origin` and `watch` have their own
//! files.

mod events;
mod export;
pub(super) mod new_origin;
mod watch;

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use super::CliError;
use super::connection::Connection;
use super::output::{self, Form};
use crate::audit::verify::{self, Consistency, Given};
use crate::client::{Reply, read_file, read_secret};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::ids::DecisionId;
use crate::merkle::{Receipt, Trust, VerifierKey, WitnessKey};
use crate::wire::decisions::DecisionProofBody;
use crate::wire::ledger::{
    AcceptTimeAsk, AcceptTimeBody, ConsistencyBody, InclusionBody, VkeysBody,
};

/// The longest checkpoint, proof or list of keys that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Verify receipts and logs offline; export the log; show its head
#[derive(Args, Debug)]
pub(super) struct Ledger {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify a receipt, a 201 body, a tlog-proof or a whole log with trusted keys only
    #[command(
        after_help = "Exits with 0 only if everything that was asked holds, even if the output is closed early. Get the keys from a source that you trust, not from the broker that you verify. A whole log names the keys of its credentials itself; a receipt needs --jwks for that.\n\nExamples:\n  \
        taskpass ledger verify answer.json --key 'broker.example/log+1a2b3c4d+AQ…' --jwks jwks.json\n  \
        taskpass ledger verify receipt.json --key-file log.vkey --credential-file token.jwt --jwks jwks.json\n  \
        taskpass ledger verify log.jsonl --key-file log.vkey --credential-file token.jwt\n  \
        taskpass ledger verify receipt.json --key-file log.vkey --witness 'witness.example/w+…' --used-at 2026-11-01T12:00:00Z\n  \
        taskpass ledger verify old-receipt.json --key-file log.vkey --checkpoint newest.note --consistency proof.json"
    )]
    Verify(Box<Verify>),
    /// Show a leaf with the proof that it is under a signed checkpoint
    #[command(
        after_help = "With --witnessed the receipt has the oldest checkpoint over the leaf that a witness signed: it then shows a time by which the leaf was logged, and whose clock that is. Witnesses receive a checkpoint about once a second.\n\nExamples:\n  \
        taskpass ledger receipt 0198b2a0-0000-7000-8000-000000000001 --token-file auditor-token > receipt.json\n  \
        taskpass ledger receipt 4711 --tlog-proof --token-file auditor-token > leaf.tlog-proof && taskpass ledger verify leaf.tlog-proof --key-file log.vkey\n  \
        taskpass ledger receipt 4711 --witness witness.example/w --token-file auditor-token > receipt.json && taskpass ledger verify receipt.json --key-file log.vkey --witness 'witness.example/w+…' --used-at 2026-11-01T12:00:00Z"
    )]
    Receipt(ReceiptOf),
    /// Export the whole log, for verification by any holder of its key
    #[command(
        after_help = "The export omits text written by people, and pruned bodies.\n\nExample:\n  \
        taskpass ledger export --output log.jsonl --token-file auditor-token && taskpass ledger verify log.jsonl --key-file log.vkey"
    )]
    Export(export::Export),
    /// Write a verified log's entries as events of OCSF or CloudEvents
    #[command(
        after_help = "The events and their ids are those that a sink of [[export]] receives (docs/reference/events.md). The whole log is verified before the first event is written.\n\nExample:\n  \
        taskpass ledger events log.jsonl --key-file log.vkey --issuer https://broker.example --format ocsf --since 2026-11-01T00:00:00Z > events.jsonl"
    )]
    Events(events::Events),
    /// Show the proof that the log of one size continues that of another
    #[command(
        after_help = "Example:\n  taskpass ledger consistency --from 4711 --token-file auditor-token > proof.json"
    )]
    Consistency(ConsistencyOf),
    /// Delete the text that a person wrote for a decision: its purpose, or a revocation's reason
    #[command(
        after_help = "The entry stays with its salted digest, so every proof holds. The decision's facts stay, too: receipts verify and `policy explain` prints the same. The deletion cannot be undone. Sinks that receive free text, and backups, have their own copies.\n\nExample:\n  taskpass ledger forget 0198b2a0-0000-7000-8000-000000000001 --token-file admin-token"
    )]
    Forget(Forget),
    /// Accept the broker's time although its ledger has a later entry
    #[command(
        after_help = "For a broker that is closed because its clock was set, or shows a time before its newest entry: an earlier clock that was ahead dated those entries. Correct the clock first. Sessions permitted under a later date end, and so do their tasks. The ledger entry holds both times and the admin.\n\nExample:\n  taskpass ledger accept-time --reason 'the clock was a month ahead after the outage' --token-file admin-token"
    )]
    AcceptTime(AcceptTime),
    /// Begin a new log after leaves were lost
    #[command(
        after_help = "For a broker that stopped because its store was rewound: a backup was restored, or a lagging standby took over. The new configuration names an empty store and another ledger.origin; the old store stays unchanged. The new log's first leaf records the succession.\n\nExamples:\n  \
        taskpass ledger new-origin --config new.toml --old-config taskpass.toml\n  \
        taskpass ledger new-origin --config new.toml --old-config taskpass.toml --checkpoint kept.note --yes"
    )]
    NewOrigin(new_origin::NewOrigin),
    /// Show the log's signed checkpoint
    #[command(after_help = "Example:\n  taskpass ledger checkpoint --token-file admin-token")]
    Checkpoint(Checkpoint),
    /// Show the log's verifier keys, the current one first
    #[command(after_help = "Example:\n  taskpass ledger keys --token-file admin-token")]
    Keys(Checkpoint),
    /// Monitor another operator's log, and raise an alarm when it contradicts itself
    #[command(
        after_help = "Exits with 0 if the log continues its earlier checkpoints; 1 if it contradicts them or is not the pinned log (the evidence is next to the state, which stays unchanged); 2 if the command line is wrong or the state file is not this log's; 3 if that could not be established: unreachable, unreadable, stale or unwitnessed. Without --once it continues after 3 and ends at 1. On the first contact there is no earlier checkpoint, which it reports.\n\nExamples:\n  \
        taskpass ledger watch --url https://broker.example/ledger --key 'broker.example/log+1a2b3c4d+AQ…' --state broker.note --once\n  \
        taskpass ledger watch --url https://broker.example/ledger --key 'broker.example/log+1a2b3c4d+AQ…' --state broker.note --every 5m --stale 2h --json\n  \
        taskpass ledger watch --check broker.note.evidence-20261101T120000Z --key 'broker.example/log+1a2b3c4d+AQ…'"
    )]
    Watch(Box<watch::Watch>),
    Coverage(Box<super::coverage::Coverage>),
}

#[derive(Args, Debug)]
struct Verify {
    /// A receipt, the body of a 201 or of a refusal, a tlog-proof or an exported log; `-` is
    /// standard input
    file: PathBuf,
    /// A verifier key of the log; may be given several times
    #[arg(
        long = "key",
        value_name = "VKEY",
        value_parser = vkey,
        required_unless_present = "key_file"
    )]
    keys: Vec<VerifierKey>,
    /// A file with verifier keys, one a line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The credential that the receipt must be for. Other processes can read arguments: prefer
    /// --credential-file
    #[arg(long, value_name = "JWT", conflicts_with = "credential_file")]
    credential: Option<String>,
    /// The file with the credential
    #[arg(long, value_name = "FILE")]
    credential_file: Option<PathBuf>,
    /// A file with the JWK set that verifies the credential's signature
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// Accept a credential whose signature cannot be verified here: any holder of the receipt could
    /// have written its claims
    #[arg(long, conflicts_with = "jwks")]
    unchecked_signature: bool,
    /// The key of a witness, whose clock shows when a checkpoint existed; may be given several
    /// times
    #[arg(long = "witness", value_name = "VKEY", value_parser = witness)]
    witnesses: Vec<WitnessKey>,
    /// Another signed checkpoint of the log, which must not contradict the file; may be given
    /// several times
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A signed checkpoint, and the time at which it was public by the clock of the person who kept
    /// it; may be given several times
    #[arg(long, value_name = "TIME=FILE", value_parser = published)]
    published: Vec<(Timestamp, PathBuf)>,
    /// The proof that one checkpoint continues another, as `ledger consistency` prints it; may be
    /// given several times
    #[arg(long, value_name = "FILE")]
    consistency: Vec<PathBuf>,
    /// The time at which the credential was used, by the clock that recorded the use: the decision
    /// must have been logged before
    #[arg(long, value_name = "TIME", value_parser = time)]
    used_at: Option<Timestamp>,
}

#[derive(Args, Debug)]
struct Checkpoint {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct Forget {
    /// A decision's id, or a revocation's
    #[arg(value_name = "DECISION|REVOCATION")]
    id: Uuid,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
struct AcceptTime {
    /// The reason, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The current time [default: this machine's clock]
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Timestamp>,
    #[command(flatten)]
    connection: Connection,
}

impl AcceptTime {
    async fn run(self, form: Form) -> Result<(), CliError> {
        let ask = AcceptTimeAsk {
            time: self.time.unwrap_or_else(|| SystemClock.now()),
            reason: self.reason,
        };
        let client = self.connection.client()?;
        let reply: Reply<AcceptTimeBody> = client.post("/v1/ledger/accept-time", &ask).await?;
        if form.is_json() {
            return output::json(reply.json()?);
        }
        let accepted = reply.read()?;
        output::line(format!(
            "{} is accepted after {}; sessions permitted under a later date have ended",
            accepted.accepted_time, accepted.recorded_time
        ))
    }
}

#[derive(Args, Debug)]
struct ConsistencyOf {
    #[command(flatten)]
    connection: Connection,
    /// The number of leaves in the earlier tree
    #[arg(long, value_name = "SIZE")]
    from: u64,
    /// The number of leaves in the later tree [default: the newest]
    #[arg(long, value_name = "SIZE")]
    to: Option<u64>,
}

#[derive(Args, Debug)]
struct ReceiptOf {
    #[command(flatten)]
    connection: Connection,
    /// A decision's id, or a leaf's index in the log
    #[arg(value_name = "DECISION|INDEX")]
    leaf: String,
    /// Use the oldest checkpoint over the leaf that a witness signed [default: the newest one]
    #[arg(long)]
    witnessed: bool,
    /// Use the oldest checkpoint over the leaf that the witness of this name signed
    #[arg(long, value_name = "NAME")]
    witness: Option<String>,
    /// Print it as C2SP's tlog-proof, with the leaf as its extra data
    #[arg(long)]
    tlog_proof: bool,
}

impl ReceiptOf {
    async fn run(self) -> Result<(), CliError> {
        let receipt = self.fetch().await?;
        if !self.tlog_proof {
            return output::json(&receipt);
        }
        let broken = |why: &dyn std::fmt::Display| {
            CliError::Unavailable(format!(
                "the broker sent a receipt that cannot be verified: {why}"
            ))
        };
        let receipt: Receipt = serde_json::from_value(receipt).map_err(|error| broken(&error))?;
        // The tlog-proof omits the leaf's hash and the tree's size, so they must be consistent
        // here.
        receipt.unsigned().map_err(|error| broken(&error))?;
        output::raw(receipt.to_tlog_proof().to_string().as_bytes())
    }

    /// The receipt as it was received.
    async fn fetch(&self) -> Result<Value, CliError> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if self.witnessed {
            query.append_pair("witnessed", "true");
        }
        if let Some(name) = &self.witness {
            query.append_pair("witness", name);
        }
        let query = query.finish();
        let client = self.connection.client()?;
        if let Ok(index) = self.leaf.parse::<u64>() {
            let path = format!("/v1/ledger/entries/{index}/proof?{query}");
            let reply: Reply<InclusionBody> = client.get(&path).await?;
            if reply.read()?.leaf.is_none() {
                let told = format!("the body of leaf {index} was pruned; its hash stays");
                return Err(CliError::Unavailable(told));
            }
            return Ok(reply.raw().clone());
        }
        let id: DecisionId = self.leaf.parse().map_err(|_| {
            CliError::Usage(format!(
                "`{}` is neither a decision's id nor an index",
                self.leaf
            ))
        })?;
        let path = format!("/v1/decisions/{id}?{query}");
        let reply: Reply<DecisionProofBody> = client.get(&path).await?;
        reply.read()?;
        // Print the receipt as it was received: this version may not know each of its members.
        Ok(reply.raw()["receipt"].clone())
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an RFC 3339 time with an offset"))
}

fn witness(text: &str) -> Result<WitnessKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

fn published(text: &str) -> Result<(Timestamp, PathBuf), String> {
    let (time, file) = text
        .split_once('=')
        .ok_or("give a time and a file, as TIME=FILE")?;
    Ok((self::time(time)?, file.into()))
}

pub(super) fn vkey(text: &str) -> Result<VerifierKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

impl Ledger {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        match self.command {
            Command::Verify(verify) => verify.run(form),
            Command::Coverage(coverage) => coverage.run(form),
            Command::Watch(watch) => Box::pin(watch.run(form)).await,
            Command::Export(export) => export.run(form).await,
            Command::Receipt(receipt) => receipt.run().await,
            Command::AcceptTime(accept) => accept.run(form).await,
            Command::NewOrigin(new) => Box::pin(new.run(form)).await,
            Command::Events(events) => events.run(),
            Command::Forget(Forget { id, connection }) => {
                let path = format!("/v1/decisions/{id}/purpose");
                let client = connection.client()?;
                client.send(Method::DELETE, &path).await?.done()?;
                form.write(
                    &json!({"id": id, "forgotten": true}),
                    format!("the text written for {id} is deleted; its entry stays"),
                )
            }
            Command::Consistency(asked) => {
                let to = asked.to.map(|to| format!("&to={to}")).unwrap_or_default();
                let path = format!("/v1/ledger/consistency?from={}{to}", asked.from);
                let client = asked.connection.client()?;
                let reply: Reply<ConsistencyBody> = client.get(&path).await?;
                output::json(reply.json()?)
            }
            Command::Checkpoint(checkpoint) => {
                let client = checkpoint.connection.client()?;
                let note = client.get_text("/v1/ledger/checkpoint").await?;
                if form.is_json() {
                    return output::json(&json!({"checkpoint": note}));
                }
                // The signature covers every byte of a note, so it is printed unchanged, except for
                // characters that could move the cursor.
                let lines: Vec<String> = note.lines().map(output::printable).collect();
                output::line(lines.join("\n"))
            }
            Command::Keys(keys) => {
                let path = "/v1/ledger/keys";
                let reply: Reply<VkeysBody> = keys.connection.client()?.get(path).await?;
                if form.is_json() {
                    return output::json(reply.json()?);
                }
                for key in reply.read()?.vkeys {
                    output::line(output::printable(&key))?;
                }
                Ok(())
            }
        }
    }
}

impl Verify {
    fn run(self, form: Form) -> Result<(), CliError> {
        let trust = Trust {
            keys: self.keys()?,
            witnesses: self.witnesses.clone(),
        };
        let credential = match (&self.credential, &self.credential_file) {
            (Some(text), _) => Some(SecretString::from(text.trim())),
            (None, Some(file)) => Some(read_secret(file)?),
            (None, None) => None,
        };
        let jwks = match &self.jwks {
            Some(file) => Some(read_file(file, MAX_FILE_BYTES)?),
            None => None,
        };
        let request = verify::Request {
            trust: &trust,
            credential: credential.as_ref().map(ExposeSecret::expose_secret),
            jwks: jwks.as_deref(),
            unchecked_signature: self.unchecked_signature,
            given: &self.given()?,
            proofs: &self.proofs()?,
            used_at: self.used_at,
        };
        let name = self.file.display();
        let file: Box<dyn Read> =
            if self.file == Path::new("-") {
                Box::new(std::io::stdin().lock())
            } else {
                let opened = std::fs::File::open(&self.file);
                Box::new(opened.map_err(|error| {
                    CliError::Unavailable(format!("cannot read {name}: {error}"))
                })?)
            };
        let verdict = verify::verify(BufReader::with_capacity(256 * 1024, file), &request);
        output::even_unread(if form.is_json() {
            output::json(&verdict)
        } else {
            output::line(verdict.to_string())
        })?;
        if verdict.holds() {
            Ok(())
        } else {
            Err(CliError::AlreadyReported)
        }
    }

    fn given(&self) -> Result<Vec<Given>, CliError> {
        let unpublished = self.checkpoints.iter().map(|file| (None, file));
        let published = self.published.iter();
        unpublished
            .chain(published.map(|(at, file)| (Some(*at), file)))
            .map(|(published, file)| {
                Ok(Given {
                    name: file.display().to_string(),
                    note: read_file(file, MAX_FILE_BYTES)?,
                    published,
                })
            })
            .collect()
    }

    fn proofs(&self) -> Result<Vec<Consistency>, CliError> {
        let read = |file: &PathBuf| {
            serde_json::from_slice(&read_file(file, MAX_FILE_BYTES)?).map_err(|error| {
                CliError::Usage(format!("{}: not a proof: {error}", file.display()))
            })
        };
        self.consistency.iter().map(read).collect()
    }

    fn keys(&self) -> Result<Vec<VerifierKey>, CliError> {
        keys_of(&self.keys, self.key_file.as_deref())
    }
}

/// The keys of the command line and of a file with one a line.
fn keys_of(given: &[VerifierKey], file: Option<&Path>) -> Result<Vec<VerifierKey>, CliError> {
    let mut keys = given.to_vec();
    if let Some(file) = file {
        let text = String::from_utf8(read_file(file, MAX_FILE_BYTES)?)
            .map_err(|_| CliError::Usage(format!("{} is not UTF-8", file.display())))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let key = vkey(line);
            keys.push(key.map_err(|e| CliError::Usage(format!("{}: {e}", file.display())))?);
        }
    }
    if keys.is_empty() {
        return Err(CliError::Usage("no verifier key was given".into()));
    }
    Ok(keys)
}
