//! The error of a command, and its exit code.
//!
//! [`CliError`] is the error of every command, and [`ExitClass`] the class that decides the exit
//! code. The errors of the client, of the audits and of the output are converted to it here.
//!
//! A closed output ([`CliError::BrokenPipe`]) is no failure. [`super::output`] reports the error of a
//! command, and [`super::run`] returns its code.

use std::io;

use serde::Serialize;
use serde_json::Value;

use crate::audit::AuditError;
use crate::client::{AnswerKind, ClientError};

/// The error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Policy or a server refused, or a proof does not hold.
    #[error("{0}")]
    Refused(String),
    /// The command line, or a file that it names, is wrong.
    #[error("{0}")]
    Usage(String),
    /// A server could not be reached, or a fact could not be established.
    #[error("{0}")]
    Unavailable(String),
    /// The broker or another server answered with an error.
    #[error("{text}")]
    Answered {
        /// The class that follows from the answer's status. Always `Unavailable` if the answer is
        /// not a problem document of the broker.
        kind: ExitClass,
        /// The answer as sentences.
        text: String,
        /// The answer's body; null if it was not JSON.
        problem: Value,
    },
    /// The reader closed the output.
    #[error("the reader of the output went away")]
    BrokenPipe,
    /// A program that the command ran ended with this exit code, and reported its own errors.
    #[error("the command ended with {0}")]
    ChildExited(u8),
    /// The command's output already reported the error.
    #[error("refused")]
    AlreadyReported,
}

/// A class of errors. Each has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExitClass {
    /// A policy or the broker refused, or a proof does not hold.
    Refused,
    /// The command line, or a file that it names, is wrong.
    Usage,
    /// A server could not be reached, or a fact could not be established.
    #[serde(rename = "unestablished")]
    Unavailable,
}

impl ExitClass {
    pub(crate) const ALL: [Self; 3] = [Self::Refused, Self::Usage, Self::Unavailable];

    /// The exit code of the class.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Unavailable => 3,
        }
    }

    /// The meaning of the exit code.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Refused => "A policy or the broker refused, or a proof does not hold.",
            Self::Usage => "The command line, or a file that it names, is wrong.",
            Self::Unavailable => "Something could not be reached, read or established.",
        }
    }
}

impl CliError {
    /// A fact that could not be established, with the cause.
    pub(super) fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::Unavailable(error.to_string())
    }

    /// The class. `None` if the command's own output reported the error, or there is nothing to
    /// report.
    pub(super) fn kind(&self) -> Option<ExitClass> {
        match self {
            Self::Answered { kind, .. } => Some(*kind),
            Self::Refused(_) => Some(ExitClass::Refused),
            Self::Usage(_) => Some(ExitClass::Usage),
            Self::Unavailable(_) => Some(ExitClass::Unavailable),
            Self::BrokenPipe | Self::ChildExited(_) | Self::AlreadyReported => None,
        }
    }

    /// The exit code of the command.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::ChildExited(code) => *code,
            Self::AlreadyReported => ExitClass::Refused.code(),
            other => other.kind().unwrap_or(ExitClass::Unavailable).code(),
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Invalid(text) => Self::Usage(text),
            ClientError::Refused(text) => Self::Refused(text),
            ClientError::Unavailable(text) => Self::Unavailable(text),
            ClientError::Answered {
                kind,
                text,
                problem,
            } => Self::Answered {
                kind: kind.into(),
                text,
                problem,
            },
        }
    }
}

impl From<AnswerKind> for ExitClass {
    fn from(kind: AnswerKind) -> Self {
        match kind {
            AnswerKind::Refused => Self::Refused,
            AnswerKind::Invalid => Self::Usage,
            AnswerKind::Unavailable => Self::Unavailable,
        }
    }
}

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Input(text) => Self::Usage(text),
            AuditError::Disproven(text) => Self::Refused(text),
            AuditError::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::Unavailable(format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_answer_has_its_class_and_code() {
        for (kind, class, code) in [
            (AnswerKind::Refused, ExitClass::Refused, 1),
            (AnswerKind::Invalid, ExitClass::Usage, 2),
            (AnswerKind::Unavailable, ExitClass::Unavailable, 3),
        ] {
            let error = CliError::from(ClientError::Answered {
                kind,
                text: "told".to_owned(),
                problem: Value::Null,
            });
            assert_eq!((error.kind(), error.code()), (Some(class), code));
            assert_eq!(error.to_string(), "told");
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(gone, CliError::BrokenPipe));
        let full = CliError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, CliError::Unavailable(_)));
    }
}
