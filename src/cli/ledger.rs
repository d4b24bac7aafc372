//! `taskpass ledger`: checking receipts offline, and the log's present head.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::client::{Connection, read_file, read_secret};
use super::verify::{self, Kind, Verdict};
use super::{Failure, output};
use crate::merkle::VerifierKey;

/// The longest file that is read: a 201 body with its receipt is a few kilobytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Check receipts offline; show the log's head
#[derive(Args, Debug)]
pub(super) struct Ledger {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a receipt, a 201 body or a tlog-proof, with the log's verifier key and nothing else
    #[command(
        after_help = "Exits 0 only when all holds. The key must come from somewhere that you trust, not from the broker that is checked.\n\nExamples:\n  \
        taskpass ledger verify answer.json --key 'broker.example/log+1a2b3c4d+AQ…'\n  \
        taskpass ledger verify receipt.json --key-file log.vkey --credential-file token.jwt"
    )]
    Verify(Verify),
    /// Show the log's signed checkpoint
    #[command(after_help = "Example:\n  taskpass ledger checkpoint --token-file admin-token")]
    Checkpoint(Checkpoint),
    /// Show the log's verifier keys, the current one first
    #[command(after_help = "Example:\n  taskpass ledger keys --token-file admin-token")]
    Keys(Checkpoint),
}

#[derive(Args, Debug)]
struct Verify {
    /// A receipt, the body of a 201 or of a refusal, or a tlog-proof; `-` is standard input
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
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Checkpoint {
    #[command(flatten)]
    connection: Connection,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn vkey(text: &str) -> Result<VerifierKey, String> {
    text.trim()
        .parse()
        .map_err(|error: crate::merkle::KeyError| error.to_string())
}

impl Ledger {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Verify(verify) => verify.run(),
            Command::Checkpoint(checkpoint) => {
                let client = checkpoint.connection.client()?;
                let note = client.get_text("/v1/ledger/checkpoint").await?;
                if checkpoint.json {
                    return output::json(&json!({"checkpoint": note}));
                }
                // A note is text in which a signature vouches for every byte: shown as it is, save
                // that nothing in it may move the cursor.
                let lines: Vec<String> = note.lines().map(output::printable).collect();
                output::line(lines.join("\n"))
            }
            Command::Keys(keys) => {
                let answer = keys.connection.client()?.get("/v1/ledger/keys").await?;
                if keys.json {
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
    fn run(self) -> Result<(), Failure> {
        let keys = self.keys()?;
        let credential = match (&self.credential, &self.credential_file) {
            (Some(text), _) => Some(SecretString::from(text.trim())),
            (None, Some(file)) => Some(read_secret(file)?),
            (None, None) => None,
        };
        let jwks = match &self.jwks {
            Some(file) => Some(read_file(file, MAX_FILE_BYTES)?),
            None => None,
        };
        let bytes = read_file(&self.file, MAX_FILE_BYTES)?;
        let credential = credential.as_ref().map(ExposeSecret::expose_secret);
        let verdict = verify::verify(&bytes, &keys, credential, jwks.as_deref());
        if self.json {
            output::json(&verdict)?;
        } else {
            output::line(verdict.to_string())?;
        }
        if verdict.holds() {
            return Ok(());
        }
        Err(Failure::Told)
    }

    fn keys(&self) -> Result<Vec<VerifierKey>, Failure> {
        let mut keys = self.keys.clone();
        if let Some(file) = &self.key_file {
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
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Some(Kind::Receipt) => "a receipt",
            Some(Kind::Issued) => "the answer to a request that was granted",
            Some(Kind::Refused) => "the answer to a request that was refused",
            Some(Kind::TlogProof) => "a tlog-proof",
            None => "nothing that this command knows",
        };
        writeln!(f, "file: {kind}")?;
        for (name, finding) in [
            ("decided", &self.decided),
            ("logged", &self.logged),
            ("logged before use", &self.logged_before_use),
        ] {
            writeln!(f, "{name}: {}", output::printable(finding))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {}", output::printable(note))?;
        }
        for problem in &self.problems {
            writeln!(f, "FAILED: {}", output::printable(problem))?;
        }
        f.write_str(if self.holds() {
            "all of it holds"
        } else {
            "it does not hold"
        })
    }
}
