//! `taskpass ledger export`: writes the whole log to one file.
//!
//! A transfer that breaks off, or an incomplete log, is [`CliError::Unavailable`], and the output
//! file stays as it was. `http::ledger` serves the log; `merkle::log_file` reads it again.

use std::fs::File;
use std::io::{BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::cli::CliError;
use crate::cli::connection::Connection;
use crate::cli::output::{self, Form};
use crate::files::NewFile;
use crate::merkle::LogReader;

/// How often progress is printed on a terminal.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub(super) struct Export {
    #[command(flatten)]
    connection: Connection,
    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        let client = self.connection.client()?;
        let Some(file) = self.output else {
            let mut out = std::io::stdout().lock();
            return copy(client.stream("/v1/ledger/export").await?, &mut out).await;
        };
        // Completely or not at all: a partial log would look like a truncated one.
        let failed = |error: std::io::Error| {
            CliError::Unavailable(format!("cannot write {}: {error}", file.display()))
        };
        let answer = client.stream("/v1/ledger/export").await?;
        let mut out = std::io::BufWriter::new(NewFile::begin(&file).map_err(failed)?);
        copy(answer, &mut out).await?;
        let mut new = out
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        let size = check(new.reread().map_err(failed)?)?;
        new.keep().map_err(failed)?;
        if form.is_json() {
            return output::json(&json!({"leaves": size, "file": file.display().to_string()}));
        }
        output::note(format!("{size} leaves in {}", file.display()));
        Ok(())
    }
}

async fn copy(
    mut answer: reqwest::Response,
    out: &mut impl std::io::Write,
) -> Result<(), CliError> {
    let watched = std::io::stderr().is_terminal();
    let (mut bytes, mut told) = (0_u64, Instant::now());
    while let Some(chunk) = answer.chunk().await.map_err(|error| {
        CliError::Unavailable(format!("the transfer of the log broke off: {error}"))
    })? {
        out.write_all(&chunk)?;
        bytes += chunk.len() as u64;
        if watched && told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            write!(std::io::stderr(), "\r{} MB", bytes / 1_000_000)?;
        }
    }
    if watched && bytes >= 1_000_000 {
        writeln!(std::io::stderr(), "\r{} MB", bytes / 1_000_000)?;
    }
    Ok(out.flush()?)
}

/// Checks that the file's entries are those under its checkpoint. The checkpoint's signature is
/// checked by `ledger verify`.
fn check(file: &File) -> Result<u64, CliError> {
    let broken = |error: &dyn std::fmt::Display| {
        CliError::Unavailable(format!("the broker sent an incomplete log: {error}"))
    };
    let mut reader = LogReader::unsigned(BufReader::new(file)).map_err(|error| broken(&error))?;
    let mut bodies = false;
    while let Some(entry) = reader.next_entry().map_err(|error| broken(&error))? {
        if bodies && entry.leaf.is_none() {
            let why = format!(
                "leaf {} has no body, although earlier ones have: it may have been pruned meanwhile; try again",
                entry.index
            );
            return Err(broken(&why));
        }
        bodies |= entry.leaf.is_some();
    }
    reader.finish().map_err(|error| broken(&error))?;
    Ok(reader.checkpoint().size)
}
