//! Everything that a command says on standard output goes through here.
//!
//! A reader that went away, as `head` does, is no failure of ours: the command ends quietly. Any
//! other failure to write is one.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::Failure;
use crate::domain::text::is_unprintable;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::Unestablished(format!("cannot write the output: {error}"))
    }
}

/// How a command writes its result on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Sentences and tables.
    Text,
    /// One JSON document.
    Json,
}

impl Form {
    pub(super) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Writes `value` as JSON, or the sentence that says the same.
    pub(super) fn write(
        self,
        value: &impl Serialize,
        sentence: impl AsRef<str>,
    ) -> Result<(), Failure> {
        match self {
            Self::Json => json(value),
            Self::Text => line(sentence),
        }
    }
}

/// Writes one line, or several.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    Ok(out.flush()?)
}

/// Writes bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Writes one line on standard error, for people and not for scripts. A failure is ignored: neither the
/// result nor the exit code of a command depends on a note.
pub(super) fn note(text: impl AsRef<str>) {
    alert(text).ok();
}

/// Writes one line on standard error. Fails if it cannot be written: for a monitor, a question to the
/// user, and values that the user needs and that are shown once.
pub(super) fn alert(text: impl AsRef<str>) -> Result<(), Failure> {
    let text = printable_lines(text.as_ref());
    writeln!(io::stderr().lock(), "{text}")
        .map_err(|error| Failure::Unestablished(format!("cannot write on standard error: {error}")))
}

/// What was told, where the exit code tells it too: that holds whether or not somebody read on.
pub(super) fn even_unread(told: Result<(), Failure>) -> Result<(), Failure> {
    match told {
        Err(Failure::ReaderGone) => Ok(()),
        other => other,
    }
}

/// Whether a JSON document was written on standard output.
static JSON_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Whether a result was written as JSON, so that no other document may follow it.
pub(super) fn is_json_written() -> bool {
    JSON_WRITTEN.load(Ordering::Relaxed)
}

/// Writes JSON for people.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    JSON_WRITTEN.store(true, Ordering::Relaxed);
    line(pretty(value)?)
}

/// Writes JSON on one line, for programs that read line by line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    JSON_WRITTEN.store(true, Ordering::Relaxed);
    line(serde_json::to_string(value).map_err(|error| unwritable(&error))?)
}

fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::Unestablished(format!("cannot write the output as JSON: {error}"))
}

/// The widest column. What is wider stands out of its own, and moves no other row.
const MAX_COLUMN_CHARS: usize = 300;

/// A table with its columns aligned, the first row its heading. What came from elsewhere is shown
/// without control characters: a name must not be able to move the cursor.
pub(super) fn table(rows: &[Vec<String>]) -> Result<(), Failure> {
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

/// The text without what could move the cursor or turn the order around in which it is read.
pub(super) fn printable(text: &str) -> String {
    let shown = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// The same of a text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    let shown = |c: char| {
        if is_unprintable(c) && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        let lines = printable_lines("a\n\u{1b}]0;b\u{7}\r\u{202e}c\n");
        assert_eq!(lines, "a\n\u{fffd}]0;b\u{fffd}\u{fffd}\u{fffd}c\n");
    }

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
        even_unread(Err(Failure::ReaderGone)).unwrap();
        let full = even_unread(Err(Failure::Unestablished("full".into())));
        assert!(matches!(full, Err(Failure::Unestablished(_))));
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(gone, Failure::ReaderGone));
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, Failure::Unestablished(_)));
    }
}
