//! Verification: reports whether a credential is valid now, to callers that may know.
//!
//! It reads, and signs its answers. It makes no credentials, and has no minter and no sealing key.

pub mod introspect;
mod list_builds;
pub mod sessions;
mod signed_statements;
pub mod status_lists;

use std::sync::Arc;

use self::list_builds::ListBuilds;
pub(super) use self::signed_statements::StatementKeys;
use super::access::Access;
use super::core::Core;

/// Reports whether credentials are valid now.
pub struct Verification {
    core: Core,
    access: Arc<Access>,
    keys: Arc<StatementKeys>,
    status_lists: Arc<ListBuilds>,
}

impl Verification {
    /// `keys` verify the signatures of tokens and sign answers.
    pub(super) fn new(core: Core, access: Arc<Access>, keys: StatementKeys) -> Self {
        Self {
            core,
            access,
            keys: Arc::new(keys),
            status_lists: Arc::default(),
        }
    }
}
