//! `taskpass ledger`: checking receipts and whole logs offline, taking a log away, its present head,
//! and whether it stays the log that it was.

mod events;
mod export;
pub(super) mod new_origin;
pub(super) mod verify;
mod watch;

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use self::verify::{Asked, Consistency, Given};
use super::Failure;
use super::client::{Connection, read_file, read_secret};
use super::output::{self, Form};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::ids::DecisionId;
use crate::merkle::{Receipt, Trust, VerifierKey, WitnessKey};

/// The longest checkpoint, proof or list of keys that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Check receipts and logs offline; take the log away; show its head
#[derive(Args, Debug)]
pub(super) struct Ledger {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a receipt, a 201 body, a tlog-proof or a whole log, with keys that you trust and
    /// nothing else
    #[command(
        after_help = "Exits 0 only when all holds that was asked, whoever reads the output. Keys must come from somewhere that you trust, not from the broker that is checked. A whole log names the keys of its credentials itself; a receipt needs --jwks for that.\n\nExamples:\n  \
        taskpass ledger verify answer.json --key 'broker.example/log+1a2b3c4d+AQ…' --jwks jwks.json\n  \
        taskpass ledger verify receipt.json --key-file log.vkey --credential-file token.jwt --jwks jwks.json\n  \
        taskpass ledger verify log.jsonl --key-file log.vkey --credential-file token.jwt\n  \
        taskpass ledger verify receipt.json --key-file log.vkey --witness 'witness.example/w+…' --used-at 2026-11-01T12:00:00Z\n  \
        taskpass ledger verify old-receipt.json --key-file log.vkey --checkpoint newest.note --consistency proof.json"
    )]
    Verify(Box<Verify>),
    /// Show a leaf with the proof that it is under a signed checkpoint
    #[command(
        after_help = "With --witnessed it is the oldest checkpoint over it that a witness signed: the receipt then shows by whose clock the leaf was there when. A witness is told about once a second.\n\nExamples:\n  \
        taskpass ledger receipt 0198b2a0-0000-7000-8000-000000000001 --token-file auditor-token > receipt.json\n  \
        taskpass ledger receipt 4711 --tlog-proof --token-file auditor-token > leaf.tlog-proof && taskpass ledger verify leaf.tlog-proof --key-file log.vkey\n  \
        taskpass ledger receipt 4711 --witness witness.example/w --token-file auditor-token > receipt.json && taskpass ledger verify receipt.json --key-file log.vkey --witness 'witness.example/w+…' --used-at 2026-11-01T12:00:00Z"
    )]
    Receipt(ReceiptOf),
    /// Take the whole log away, to be verified by whoever has the key
    #[command(
        after_help = "What people wrote, and what was pruned, is not in it.\n\nExample:\n  \
        taskpass ledger export --output log.jsonl --token-file auditor-token && taskpass ledger verify log.jsonl --key-file log.vkey"
    )]
    Export(export::Export),
    /// Write a verified log's entries as events of OCSF or CloudEvents
    #[command(
        after_help = "The same events, with the same ids, as a sink of [[export]] gets (docs/export.md). Nothing is written before the whole log was found to be what was signed.\n\nExample:\n  \
        taskpass ledger events log.jsonl --key-file log.vkey --issuer https://broker.example --format ocsf --since 2026-11-01T00:00:00Z > events.jsonl"
    )]
    Events(events::Events),
    /// Show the proof that the log of one size continues that of another
    #[command(
        after_help = "Example:\n  taskpass ledger consistency --from 4711 --token-file auditor-token > proof.json"
    )]
    Consistency(ConsistencyOf),
    /// Delete what somebody wrote with a decision: its purpose, or a revocation's reason
    #[command(
        after_help = "The entry stays with its salted digest, so every proof holds, and what was decided upon stays: receipts verify and `policy explain` says the same. It cannot be undone. Sinks that asked for free text, and backups, have copies of their own.\n\nExample:\n  taskpass ledger forget 0198b2a0-0000-7000-8000-000000000001 --token-file admin-token"
    )]
    Forget(Forget),
    /// Accept the broker's time although its ledger has seen a later one
    #[command(
        after_help = "For when a broker is closed because its clock was set, or lies before its newest entry: a clock that was ahead has dated entries. Set the clock right first. What was permitted under a later date ends, and so do its tasks. The entry has both times and who accepted.\n\nExample:\n  taskpass ledger accept-time --reason 'the clock was a month ahead after the outage' --token-file admin-token"
    )]
    AcceptTime(AcceptTime),
    /// Begin a new log after leaves were lost
    #[command(
        after_help = "For when a broker stops because its store was rewound: a backup was restored, or a standby took over that lagged. The new configuration names an empty store and another ledger.origin; the old store stays as it is. What it did is in the new log's first leaf.\n\nExamples:\n  \
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
    /// Follow a log that is not yours, and shout when it contradicts itself
    #[command(
        after_help = "Exits 0 when the log continues what it signed before, 1 when it contradicts that or is not the pinned log (the evidence is beside the state, and the state stays), 2 for the command line or a state file that is not this log's, 3 when it could not be told: unreachable, unreadable, stale or unwitnessed. Without --once it goes on after 3 and ends at 1. Of a first contact nothing is known, and it says so.\n\nExamples:\n  \
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
    /// The credential that the receipt must be for. Other processes can read arguments: where that
    /// matters, use --credential-file
    #[arg(long, value_name = "JWT", conflicts_with = "credential_file")]
    credential: Option<String>,
    /// The file that holds the credential
    #[arg(long, value_name = "FILE")]
    credential_file: Option<PathBuf>,
    /// A JWK set to check the credential's signature with
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// Put up with a credential whose signature nothing here can check: whoever has the receipt
    /// could have written its claims
    #[arg(long, conflicts_with = "jwks")]
    unchecked_signature: bool,
    /// The key of a witness, whose clock says when a checkpoint was there; may be given several
    /// times
    #[arg(long = "witness", value_name = "VKEY", value_parser = witness)]
    witnesses: Vec<WitnessKey>,
    /// Another signed checkpoint of the log, which must not contradict the file; may be given
    /// several times
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A signed checkpoint, and when it was public by the clock of whoever kept it; may be given
    /// several times
    #[arg(long, value_name = "TIME=FILE", value_parser = published)]
    published: Vec<(Timestamp, PathBuf)>,
    /// The proof that one checkpoint continues another, as `ledger consistency` prints it; may be
    /// given several times
    #[arg(long, value_name = "FILE")]
    consistency: Vec<PathBuf>,
    /// When the credential was used, by the clock of whoever recorded that: the decision must have
    /// been logged before
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
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// What time it is [default: by this machine's clock]
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Timestamp>,
    #[command(flatten)]
    connection: Connection,
}

impl AcceptTime {
    async fn run(self, form: Form) -> Result<(), Failure> {
        let time = self.time.unwrap_or_else(|| SystemClock.now());
        let ask = json!({"time": time, "reason": self.reason});
        let client = self.connection.client()?;
        let answer = client.post("/v1/ledger/accept-time", &ask).await?;
        if form.is_json() {
            return output::json(&answer);
        }
        let text = |name: &str| {
            let value = answer.get(name).and_then(Value::as_str);
            output::printable(value.unwrap_or("?"))
        };
        output::line(format!(
            "{} is accepted after {}; what was permitted under a later date is over",
            text("accepted_time"),
            text("recorded_time")
        ))
    }
}

#[derive(Args, Debug)]
struct ConsistencyOf {
    #[command(flatten)]
    connection: Connection,
    /// Leaves in the earlier tree
    #[arg(long, value_name = "SIZE")]
    from: u64,
    /// Leaves in the later tree [default: the newest]
    #[arg(long, value_name = "SIZE")]
    to: Option<u64>,
}

#[derive(Args, Debug)]
struct ReceiptOf {
    #[command(flatten)]
    connection: Connection,
    /// A decision's id, or a leaf's place in the log
    #[arg(value_name = "DECISION|INDEX")]
    leaf: String,
    /// Under the oldest checkpoint that a witness signed [default: under the newest]
    #[arg(long)]
    witnessed: bool,
    /// Under the oldest checkpoint that the witness of this name signed
    #[arg(long, value_name = "NAME")]
    witness: Option<String>,
    /// Print it as C2SP's tlog-proof, with the leaf as its extra data
    #[arg(long)]
    tlog_proof: bool,
}

impl ReceiptOf {
    async fn run(self) -> Result<(), Failure> {
        let receipt = self.fetch().await?;
        if !self.tlog_proof {
            return output::json(&receipt);
        }
        let broken = |why: &dyn std::fmt::Display| {
            Failure::Unestablished(format!(
                "the broker sent a receipt that does not hold: {why}"
            ))
        };
        let receipt: Receipt = serde_json::from_value(receipt).map_err(|error| broken(&error))?;
        // That text has neither the leaf's hash nor the tree's size: what they were has to fit.
        receipt.unsigned().map_err(|error| broken(&error))?;
        output::raw(receipt.to_tlog_proof().to_string().as_bytes())
    }

    async fn fetch(&self) -> Result<Value, Failure> {
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
            let receipt = client.get(&path).await?;
            if receipt.get("leaf").is_none() {
                let told = format!("the body of leaf {index} was pruned; its hash stays");
                return Err(Failure::Unestablished(told));
            }
            return Ok(receipt);
        }
        let id: DecisionId = self.leaf.parse().map_err(|_| {
            Failure::Usage(format!("`{}` is no decision's id, nor an index", self.leaf))
        })?;
        let mut shown = client.get(&format!("/v1/decisions/{id}?{query}")).await?;
        let receipt = shown.get_mut("receipt").map(Value::take);
        Ok(receipt.unwrap_or_default())
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a time as RFC 3339 has it, with its offset"))
}

fn witness(text: &str) -> Result<WitnessKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

fn published(text: &str) -> Result<(Timestamp, PathBuf), String> {
    let (time, file) = text
        .split_once('=')
        .ok_or("a time and a file, as TIME=FILE")?;
    Ok((self::time(time)?, file.into()))
}

pub(super) fn vkey(text: &str) -> Result<VerifierKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

impl Ledger {
    pub(super) async fn run(self, form: Form) -> Result<(), Failure> {
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
                client.send(Method::DELETE, &path, None).await?.success()?;
                form.write(
                    &json!({"id": id, "forgotten": true}),
                    format!("what was written with {id} is deleted; its entry stays"),
                )
            }
            Command::Consistency(asked) => {
                let to = asked.to.map(|to| format!("&to={to}")).unwrap_or_default();
                let path = format!("/v1/ledger/consistency?from={}{to}", asked.from);
                output::json(&asked.connection.client()?.get(&path).await?)
            }
            Command::Checkpoint(checkpoint) => {
                let client = checkpoint.connection.client()?;
                let note = client.get_text("/v1/ledger/checkpoint").await?;
                if form.is_json() {
                    return output::json(&json!({"checkpoint": note}));
                }
                // A note is text in which a signature vouches for every byte: shown as it is, save
                // that nothing in it may move the cursor.
                let lines: Vec<String> = note.lines().map(output::printable).collect();
                output::line(lines.join("\n"))
            }
            Command::Keys(keys) => {
                let answer = keys.connection.client()?.get("/v1/ledger/keys").await?;
                if form.is_json() {
                    return output::json(&answer);
                }
                let list = answer.get("vkeys").and_then(Value::as_array);
                for key in list.into_iter().flatten().filter_map(Value::as_str) {
                    output::line(output::printable(key))?;
                }
                Ok(())
            }
        }
    }
}

impl Verify {
    fn run(self, form: Form) -> Result<(), Failure> {
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
        let asked = Asked {
            trust: &trust,
            credential: credential.as_ref().map(ExposeSecret::expose_secret),
            jwks: jwks.as_deref(),
            unchecked_signature: self.unchecked_signature,
            given: &self.given()?,
            proofs: &self.proofs()?,
            used_at: self.used_at,
        };
        let place = self.file.display();
        let file: Box<dyn Read> =
            if self.file == Path::new("-") {
                Box::new(std::io::stdin().lock())
            } else {
                let opened = std::fs::File::open(&self.file);
                Box::new(opened.map_err(|error| {
                    Failure::Unestablished(format!("cannot read {place}: {error}"))
                })?)
            };
        let verdict = verify::verify(BufReader::with_capacity(256 * 1024, file), &asked);
        output::even_unread(if form.is_json() {
            output::json(&verdict)
        } else {
            output::line(verdict.to_string())
        })?;
        if verdict.holds() {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }

    fn given(&self) -> Result<Vec<Given>, Failure> {
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

    fn proofs(&self) -> Result<Vec<Consistency>, Failure> {
        let read = |file: &PathBuf| {
            serde_json::from_slice(&read_file(file, MAX_FILE_BYTES)?).map_err(|error| {
                Failure::Usage(format!("{}: not a proof: {error}", file.display()))
            })
        };
        self.consistency.iter().map(read).collect()
    }

    fn keys(&self) -> Result<Vec<VerifierKey>, Failure> {
        keys_of(&self.keys, self.key_file.as_deref())
    }
}

/// The keys of the command line and of a file with one a line.
fn keys_of(given: &[VerifierKey], file: Option<&Path>) -> Result<Vec<VerifierKey>, Failure> {
    let mut keys = given.to_vec();
    if let Some(file) = file {
        let text = String::from_utf8(read_file(file, MAX_FILE_BYTES)?)
            .map_err(|_| Failure::Usage(format!("{} is not text", file.display())))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let key = vkey(line);
            keys.push(key.map_err(|e| Failure::Usage(format!("{}: {e}", file.display())))?);
        }
    }
    if keys.is_empty() {
        return Err(Failure::Usage("no verifier key was given".into()));
    }
    Ok(keys)
}
