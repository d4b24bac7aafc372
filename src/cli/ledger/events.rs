//! `taskpass ledger events`: a log that was taken away, as the events that sinks get.
//!
//! For what was recorded before a sink was there, and for who wants to know what it would get. The
//! log is read twice: first to see that it is what was signed, then to write it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{Failure, output};
use crate::clock::Timestamp;
use crate::config::ExportFormat;
use crate::domain::leaf::Leaf;
use crate::export::{Message, Recorded};
use crate::merkle::{LogFileError, LogReader, VerifierKey};

#[derive(Args, Debug)]
pub(super) struct Events {
    /// The log, as `taskpass ledger export` writes it
    file: PathBuf,
    /// A verifier key of the log; may be given several times
    #[arg(long = "key", value_name = "VKEY", value_parser = super::vkey, required_unless_present = "key_file")]
    keys: Vec<VerifierKey>,
    /// A file with verifier keys, one a line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The broker's issuer, which events name as their source
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// How events are written
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// Leave out what was decided before
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    since: Option<Timestamp>,
}

impl Events {
    pub(super) fn run(self) -> Result<(), Failure> {
        let keys = super::keys_of(&self.keys, self.key_file.as_deref())?;
        let mut log = open(&self.file, &keys)?;
        while log.next_entry().map_err(failure)?.is_some() {}
        log.finish().map_err(failure)?;

        let mut log = open(&self.file, &keys)?;
        let origin = log.checkpoint().origin.clone();
        let failed = |error: std::io::Error| Failure::Unestablished(error.to_string());
        let mut out = BufWriter::new(std::io::stdout().lock());
        // An entry whose bytes are gone is as old as the one before it, as far as can be told.
        let mut last = None;
        while let Some(entry) = log.next_entry().map_err(failure)? {
            let leaf = entry.leaf.as_deref();
            let at = leaf.and_then(|leaf| serde_json::from_slice::<Leaf>(leaf).ok());
            let at = at.map(|leaf| leaf.at);
            last = at.or(last);
            if self
                .since
                .is_some_and(|since| last.is_none_or(|last| last < since))
            {
                continue;
            }
            let message = Message::write(
                self.format,
                Recorded {
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
            .map_err(Failure::unestablished)?;
            out.write_all(&message.body).map_err(failed)?;
            out.write_all(b"\n").map_err(failed)?;
        }
        log.finish().map_err(failure)?;
        out.flush().map_err(failed)
    }
}

fn open(file: &Path, keys: &[VerifierKey]) -> Result<LogReader<BufReader<File>>, Failure> {
    let opened = File::open(file).map_err(|error| {
        Failure::Unestablished(format!("cannot read {}: {error}", file.display()))
    })?;
    LogReader::open(BufReader::with_capacity(256 * 1024, opened), keys).map_err(failure)
}

fn failure(error: LogFileError) -> Failure {
    match error {
        LogFileError::Io(error) => Failure::Unestablished(format!("cannot read the log: {error}")),
        other => Failure::Refused(format!(
            "the log does not hold: {}",
            output::printable(&other.to_string())
        )),
    }
}
