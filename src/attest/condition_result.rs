//! Whether a token meets one condition.
//!
//! [`super::confirmation`] judges the keys of a token with it, and [`super::explain`] every condition
//! of an attestor. A condition that cannot be checked is neither met nor failed, and the two callers
//! never treat it as met.

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
