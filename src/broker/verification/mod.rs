//! Verification: reports whether a credential is valid now, to callers that may know.
//!
//! It reads, and signs its answers. It makes no credentials, and has no minter and no sealing key.

pub mod introspect;
pub mod sessions;
mod signed_statements;
pub mod status_lists;

use std::sync::Arc;

pub(super) use self::signed_statements::StatementKeys;
use self::status_lists::StatusLists;
use super::access::Access;
use super::core::Core;

/// Reports whether credentials are valid now.
pub struct Verification {
    core: Core,
    access: Arc<Access>,
    keys: StatementKeys,
    status_lists: StatusLists,
}

impl Verification {
    /// `keys` verify the signatures of tokens and sign answers.
    pub(super) fn new(core: Core, access: Arc<Access>, keys: StatementKeys) -> Self {
        Self {
            core,
            access,
            keys,
            status_lists: StatusLists::default(),
        }
    }
}
