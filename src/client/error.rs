//! Why a request to a broker, or the preparation of one, failed.

use serde_json::Value;

use crate::wire::words::PROBLEM_URN;

/// The text of each variant is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// An argument, a variable or a file is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A server refused.
    #[error("{0}")]
    Refused(String),
    /// A server could not be reached, or its answer is not usable.
    #[error("{0}")]
    Unavailable(String),
    /// The broker or another server answered with an error.
    #[error("{text}")]
    Answered {
        /// Always [`AnswerKind::Unavailable`] if the answer is not a problem document of the
        /// broker.
        kind: AnswerKind,
        /// The answer as sentences.
        text: String,
        /// The answer's body; null if it was not JSON.
        problem: Value,
    },
}

/// The class of an error answer, which follows from its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    /// The broker refused the request, or does not know its subject.
    Refused,
    /// The request is wrong.
    Invalid,
    /// The broker cannot answer now, or another server answered.
    Unavailable,
}

impl ClientError {
    /// A failure to get or to use something, with its cause.
    pub(crate) fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::Unavailable(error.to_string())
    }

    /// The kind of problem in the broker's answer; empty if the error is not such an answer.
    pub(crate) fn slug(&self) -> &str {
        match self {
            Self::Answered { problem, .. } => slug(problem),
            Self::Invalid(_) | Self::Refused(_) | Self::Unavailable(_) => "",
        }
    }
}

/// The kind of a problem document of the broker; empty for any other document.
pub(super) fn slug(problem: &Value) -> &str {
    let kind = problem.get("type").and_then(Value::as_str);
    kind.and_then(|kind| kind.strip_prefix(PROBLEM_URN))
        .unwrap_or_default()
}
