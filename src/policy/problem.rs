//! Problems of a generation, with the remedies that a person can apply.
//!
//! [`PolicyProblem`] is one problem: the file or part of the configuration, line and column,
//! message and remedy. It is the error of every function that loads policies or runs their tests.
//! Functions that find several problems return them all, up to about `MAX_PROBLEMS` for each check.
//!
//! A problem without a single line has line 0 and column 0; one that a person can understand
//! without a remedy has an empty one. The CLI prints problems, and `http` returns them to an admin.

use std::fmt;

use cedar_policy::ffi::{DetailedError, SourceLocation};
use serde::Serialize;

use crate::domain::generation::PolicyFile;
use crate::domain::limits::MAX_PROBLEMS;

/// A problem that keeps a generation from loading.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct PolicyProblem {
    /// The file, or the part of the configuration, for example `resources`.
    pub file: String,
    /// Line number from 1; 0 if the problem has no single line.
    pub line: usize,
    /// Column in characters from 1; 0 if the problem has no single line.
    pub column: usize,
    pub message: String,
    /// The remedy; empty if the message suffices.
    pub remedy: String,
}

impl PolicyProblem {
    /// A problem of a whole file or part.
    #[must_use]
    pub fn of_file(
        file: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// A problem at a byte offset of a file.
    pub(super) fn at(
        file: &PolicyFile,
        offset: usize,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let before = file.text.get(..offset).unwrap_or(&file.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            file: file.name.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Cedar's diagnosis with its related errors. `offset` is used for an error without a location.
    pub(super) fn from_cedar(file: &PolicyFile, offset: usize, error: &DetailedError) -> Vec<Self> {
        let place = |error: &DetailedError| {
            let first: Option<SourceLocation> = error.source_locations.first().map(|l| l.loc);
            first.map_or(offset, |loc| loc.start)
        };
        std::iter::once(error)
            .chain(&error.related)
            .take(MAX_PROBLEMS)
            .map(|e| {
                let remedy = e.help.clone().unwrap_or_default();
                Self::at(file, place(e), e.message.clone(), remedy)
            })
            .collect()
    }
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "\n    {}", self.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_by_line_and_character() {
        let file = PolicyFile {
            name: "a.cedar".into(),
            text: "one\n\u{e9}\u{e9}two".into(),
        };
        let problem = PolicyProblem::at(&file, file.text.find("two").unwrap(), "m", "r");
        assert_eq!((problem.line, problem.column), (2, 3));
        assert_eq!(problem.to_string(), "a.cedar:2:3: m\n    r");
    }
}
