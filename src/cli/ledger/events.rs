//! `taskpass ledger events`: writes an exported log as the events that sinks receive.
//!
//! It serves entries that are older than a sink, and shows the events that a sink would receive. It
//! reads the log twice: first to verify it, then to write the events.
//!
//! A log that does not verify is [`CliError::Refused`], and no event of it is written. A file that
//! cannot be read twice is [`CliError::Usage`]. `crate::export` has the forms of events.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{CliError, output};
use crate::clock::Timestamp;
use crate::config::ExportFormat;
use crate::domain::leaf::Leaf;
use crate::export::{Message, RecordedLeaf};
use crate::merkle::{LogFileError, LogReader, VerifierKey};

#[derive(Args, Debug)]
pub(super) struct Events {
    /// The log, written by `taskpass ledger export`
    file: PathBuf,
    /// A verifier key of the log; may be given several times
    #[arg(long = "key", value_name = "VKEY", value_parser = super::vkey, required_unless_present = "key_file")]
    keys: Vec<VerifierKey>,
    /// A file with verifier keys, one a line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The broker's issuer, which is the source in events
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The format of the events
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// Omit entries that were decided earlier
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    since: Option<Timestamp>,
}

impl Events {
    pub(super) fn run(self) -> Result<(), CliError> {
        let keys = super::keys_of(&self.keys, self.key_file.as_deref())?;
        let file = open(&self.file)?;
        let mut log = read(&file, &keys)?;
        let mut old = None;
        while let Some(entry) = log.next_entry().map_err(failure)? {
            let leaf = entry.leaf.as_deref();
            if self.since.is_some_and(|since| is_before(leaf, since)) {
                old = Some(entry.index);
            }
        }
        log.finish().map_err(failure)?;

        let failed = |error: std::io::Error| CliError::Unavailable(error.to_string());
        (&file).rewind().map_err(failed)?;
        let mut log = read(&file, &keys)?;
        let origin = log.checkpoint().origin.clone();
        let mut out = BufWriter::new(std::io::stdout().lock());
        while let Some(entry) = log.next_entry().map_err(failure)? {
            let leaf = entry.leaf.as_deref();
            let at = leaf.and_then(time);
            // A pruned entry has no time. It is old only if a later entry is old.
            let left_out = match (at, self.since) {
                (_, None) => false,
                (Some(at), Some(since)) => at < since,
                (None, Some(_)) => old.is_some_and(|old| entry.index < old),
            };
            if left_out {
                continue;
            }
            let message = Message::write(
                self.format,
                RecordedLeaf {
                    issuer: &self.issuer,
                    origin: &origin,
                    index: entry.index,
                    hash: &entry.hash,
                    body: leaf,
                    at,
                    subject: None,
                    free_text: None,
                },
            )
            .map_err(CliError::unavailable)?;
            out.write_all(&message.body).map_err(failed)?;
            out.write_all(b"\n").map_err(failed)?;
        }
        log.finish().map_err(failure)?;
        out.flush().map_err(failed)
    }
}

/// The time of a leaf's decision.
fn time(leaf: &[u8]) -> Option<Timestamp> {
    serde_json::from_slice(leaf).ok().map(|leaf: Leaf| leaf.at)
}

fn is_before(leaf: Option<&[u8]>, since: Timestamp) -> bool {
    leaf.and_then(time).is_some_and(|at| at < since)
}

fn open(file: &Path) -> Result<File, CliError> {
    let name = file.display();
    let unread =
        |error: std::io::Error| CliError::Unavailable(format!("cannot read {name}: {error}"));
    let opened = File::open(file).map_err(unread)?;
    if !opened.metadata().map_err(unread)?.is_file() {
        return Err(CliError::Usage(format!(
            "{name} is not a regular file, and the log is read twice: write it to a file first"
        )));
    }
    Ok(opened)
}

fn read<'a>(
    file: &'a File,
    keys: &[VerifierKey],
) -> Result<LogReader<BufReader<&'a File>>, CliError> {
    LogReader::open(BufReader::with_capacity(256 * 1024, file), keys).map_err(failure)
}

fn failure(error: LogFileError) -> CliError {
    match error {
        LogFileError::Io(error) => CliError::Unavailable(format!("cannot read the log: {error}")),
        other => CliError::Refused(format!(
            "the log cannot be verified: {}",
            output::printable(&other.to_string())
        )),
    }
}
