//! The minter of a kind, or the failure that it is missing.

use std::sync::Arc;

use super::error::BrokerError;
use crate::domain::kind::MinterKind;
use crate::mint::{Minter, Minters};

/// The minter of a kind. Without it the call fails.
pub(super) fn minter_of(
    minters: &Minters,
    kind: MinterKind,
) -> Result<&Arc<dyn Minter>, BrokerError> {
    minters
        .of_kind(kind)
        .ok_or_else(|| BrokerError::FailClosed(format!("no minter of kind `{}`", kind.as_str())))
}
