//! Errors of a configuration, with their remedies.
//!
//! A [`ConfigError`] is one complaint: file, position, key, problem and remedy. [`ConfigErrors`] is
//! all of them, ordered by position (those of variables come first), and never empty. Both quote
//! keys and never values; the modules that create them ensure it. The commands print them, and the
//! start ends.
//!
//! `super::check` and `super::document` make them.

use std::fmt;
use std::path::{Path, PathBuf};

/// A position in a file, counted from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// One error of a configuration. It quotes keys, never values.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ConfigError {
    /// The path of the configuration file.
    pub file: PathBuf,
    /// `None` if the error has no position in the file, as for a variable.
    pub at: Option<Position>,
    /// The key or variable; empty if the error concerns the whole file.
    pub key: String,
    /// The problem, as the rest of a sentence that begins with the key.
    pub problem: String,
    pub remedy: String,
}

impl ConfigError {
    pub(super) fn unplaced(
        file: &Path,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            at: None,
            key: key.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(at) = self.at {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        write!(f, ": ")?;
        if !self.key.is_empty() {
            write!(f, "`{}` ", self.key)?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

/// All errors of a configuration, ordered by position; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `Ok` if `errors` is empty.
    pub(super) fn check(mut errors: Vec<ConfigError>) -> Result<(), Self> {
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort_by_key(|error| error.at);
        Err(Self(errors))
    }

    /// The errors, ordered by position.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
