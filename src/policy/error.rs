//! The error of an evaluation that gives no verdict.
//!
//! [`PolicyError`] is returned for acts on the broker and for recorded inputs; a request gets an
//! indeterminate decision instead. The rule: such an evaluation permits nothing, and the broker
//! fails closed.
//!
//! The text names policies by `@id`, or the value that does not fit; it is for the logs and for
//! authors of policies. `input`, [`super::decide`], [`super::explain`] and [`super::unused`] return
//! the error; `broker::error` maps it.

use super::mapping::Unmappable;

/// An evaluation without a verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Policies whose evaluation failed, by `@id`.
    #[error("policies that could not be evaluated: {}", .0.join(", "))]
    Evaluation(Vec<String>),
    /// The request does not fit the schema. The text names the value.
    #[error("the request does not fit the schema: {0}")]
    Unmappable(String),
    /// The recorded bytes are not the input of an evaluation.
    #[error("not the input of an evaluation: {0}")]
    Input(String),
}

impl From<Unmappable> for PolicyError {
    fn from(error: Unmappable) -> Self {
        Self::Unmappable(error.0)
    }
}
