//! Everything that a command says on standard output goes through here.
//!
//! A reader that went away, as `head` does, is no failure of ours: the command ends quietly. Any
//! other failure to write is one.

use std::io::{self, Write};

use serde::Serialize;

use super::Failure;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::Unestablished(format!("cannot write the output: {error}"))
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

/// Writes one line on standard error: what a person should know and a script need not.
pub(super) fn note(text: impl AsRef<str>) -> Result<(), Failure> {
    let text = printable_lines(text.as_ref());
    Ok(writeln!(io::stderr().lock(), "{text}")?)
}

/// Writes JSON for people.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(pretty(value)?)
}

/// Writes JSON on one line, for programs that read line by line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(serde_json::to_string(value).map_err(|error| unwritable(&error))?)
}

fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::Unestablished(format!("cannot write the output as JSON: {error}"))
}

/// A table with its columns aligned, the first row its heading. What came from elsewhere is shown
/// without control characters: a name must not be able to move the cursor.
pub(super) fn table(rows: &[Vec<String>]) -> Result<(), Failure> {
    let mut widths: Vec<usize> = Vec::new();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The text without what could move the cursor or turn the order around in which it is read.
pub(super) fn printable(text: &str) -> String {
    let shown = |c: char| if moves(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// The same of a text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    let shown = |c: char| if moves(c) && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

fn moves(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control()
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
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(gone, Failure::ReaderGone));
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, Failure::Unestablished(_)));
    }
}
