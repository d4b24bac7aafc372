//! Looks up the minter of a kind.

use std::sync::Arc;

use super::error::BrokerError;
use crate::domain::kind::MinterKind;
use crate::mint::{Minter, Minters};

/// The minter of a kind. Fails closed if this replica has none.
pub(super) fn minter_of(
    minters: &Minters,
    kind: MinterKind,
) -> Result<&Arc<dyn Minter>, BrokerError> {
    minters
        .of_kind(kind)
        .ok_or_else(|| BrokerError::minter(format!("no minter of kind `{}`", kind.as_str())))
}
