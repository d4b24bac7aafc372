//! Whether a token meets one condition.
//!
//! [`super::explain`] shows the result of every condition to the operator, and
//! [`super::confirmation`] gives the one of a token's keys. Verification does not use this type: it
//! returns the first failed condition as an error, and accepts nothing that it cannot check.

use std::borrow::Cow;

use super::AttestError;

/// The result of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionResult {
    /// The token meets it.
    Holds,
    /// The token does not meet it.
    Fails(AttestError),
    /// It cannot be checked here. The text gives the reason.
    NotChecked(Cow<'static, str>),
}
