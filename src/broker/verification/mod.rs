//! Verification: whether a credential is good now, told to those who may know.
//!
//! It reads, and signs what it tells. It makes no credential: it knows no minter and no sealing key.

pub mod introspect;
pub mod sessions;
mod statements;
pub mod status_lists;

use std::sync::Arc;

pub(super) use self::statements::StatementKeys;
use self::status_lists::StatusLists;
use super::access::Access;
use super::core::Core;

/// Answers whether credentials are good now.
pub struct Verification {
    core: Core,
    access: Arc<Access>,
    keys: StatementKeys,
    status_lists: StatusLists,
}

impl Verification {
    /// With the keys by which tokens are recognised and answers are signed.
    pub(super) fn new(core: Core, access: Arc<Access>, keys: StatementKeys) -> Self {
        Self {
            core,
            access,
            keys,
            status_lists: StatusLists::default(),
        }
    }
}
