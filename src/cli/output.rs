//! Writes everything that a command prints on standard output, and reports its error.
//!
//! If the reader closes the output, as `head` does, the command ends quietly. Every other failure
//! to write is an error.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::CliError;
pub(super) use crate::domain::text::{printable, printable_lines};

/// The form in which a command writes its result on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Sentences and tables for people.
    Text,
    /// One JSON document for programs.
    Json,
}

impl Form {
    pub(super) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Writes `value` as JSON, or `sentence`, which has the same content.
    pub(super) fn write(
        self,
        value: &impl Serialize,
        sentence: impl AsRef<str>,
    ) -> Result<(), CliError> {
        match self {
            Self::Json => json(value),
            Self::Text => line(sentence),
        }
    }
}

/// Writes one or several lines.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    Ok(out.flush()?)
}

/// Writes bytes without changing them.
pub(super) fn raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Writes one line on standard error for people. Failures are ignored: neither the result nor the
/// exit code of a command depends on a note.
pub(super) fn note(text: impl AsRef<str>) {
    alert(text).ok();
}

/// Receives the notes of the client library.
pub(super) fn notify(text: &str) {
    note(text);
}

/// Writes one line on standard error, and fails if it cannot be written. It serves monitors,
/// questions to the user, and values that are shown only once.
pub(super) fn alert(text: impl AsRef<str>) -> Result<(), CliError> {
    let text = printable_lines(text.as_ref());
    writeln!(io::stderr().lock(), "{text}")
        .map_err(|error| CliError::Unavailable(format!("cannot write on standard error: {error}")))
}

/// Ignores a closed output, for a command whose exit code carries the result as well.
pub(super) fn even_unread(told: Result<(), CliError>) -> Result<(), CliError> {
    match told {
        Err(CliError::BrokenPipe) => Ok(()),
        other => other,
    }
}

/// Whether a JSON document was written on standard output.
static JSON_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Whether a result was written as JSON; no other document may follow it.
fn is_json_written() -> bool {
    JSON_WRITTEN.load(Ordering::Relaxed)
}

/// Writes JSON with indentation.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    JSON_WRITTEN.store(true, Ordering::Relaxed);
    line(pretty(value)?)
}

/// Writes JSON on one line, for programs that read line by line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    JSON_WRITTEN.store(true, Ordering::Relaxed);
    line(serde_json::to_string(value).map_err(|error| unwritable(&error))?)
}

fn pretty(value: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))
}

fn unwritable(error: &serde_json::Error) -> CliError {
    CliError::Unavailable(format!("cannot write the output as JSON: {error}"))
}

/// Reports the error: as JSON on standard output, in place of the result, or as sentences on
/// standard error. `exec` leaves standard output to its command. If a result was already written,
/// it stays the only document there.
pub(super) fn report(error: &CliError, form: Form, own_output: bool) {
    let Some(kind) = error.kind() else {
        return;
    };
    // The text may quote other servers.
    let text = printable_lines(&error.to_string());
    let written = match form {
        Form::Json if is_json_written() => {
            writeln!(io::stderr().lock(), "taskpass: {text}")
        }
        Form::Text => writeln!(io::stderr().lock(), "taskpass: {text}"),
        Form::Json => {
            let mut document = serde_json::json!({
                "kind": kind, "exit_code": kind.code(), "detail": text,
            });
            if let CliError::Answered { problem, .. } = error {
                document["problem"] = problem.clone();
            }
            let line = serde_json::json!({ "error": document });
            if own_output {
                writeln!(io::stdout().lock(), "{line:#}")
            } else {
                writeln!(io::stderr().lock(), "{line}")
            }
        }
    };
    // If this cannot be written either, there is no way to report it.
    drop(written);
}

/// The widest column, in characters. A wider cell overflows and does not move other rows.
const MAX_COLUMN_CHARS: usize = 300;

/// Writes a table with `columns` as its heading, in capitals.
pub(super) fn listing<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), CliError> {
    let heading = columns.map(str::to_uppercase);
    let rows = rows.into_iter().map(Vec::from);
    let rows: Vec<Vec<String>> = std::iter::once(Vec::from(heading)).chain(rows).collect();
    table(&rows)
}

/// A value as a cell of a table; `-` for an absent one.
pub(super) fn cell(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Writes a table with aligned columns; its first row is the heading. Control characters are
/// replaced, so that a name from elsewhere cannot move the cursor.
pub(super) fn table(rows: &[Vec<String>]) -> Result<(), CliError> {
    aligned(rows).into_iter().try_for_each(line)
}

fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count().min(MAX_COLUMN_CHARS);
            match widths.get_mut(column) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let row = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_of_any_length_can_be_shown() {
        let cells = |one: &str| vec![one.to_owned(), "x".to_owned()];
        let long = "r".repeat(70_000);
        let rows = aligned(&[cells("a"), cells(&long), cells("b")]);
        assert_eq!(rows[1], format!("{long}  x"));
        assert_eq!(rows[0].len(), MAX_COLUMN_CHARS + 3);
        assert_eq!(aligned(&[cells("a"), cells("bcd")]), ["a    x", "bcd  x"]);
    }

    #[test]
    fn a_verdict_holds_when_nobody_reads_it() {
        even_unread(Err(CliError::BrokenPipe)).unwrap();
        let full = even_unread(Err(CliError::Unavailable("full".into())));
        assert!(matches!(full, Err(CliError::Unavailable(_))));
    }
}
