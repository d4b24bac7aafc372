//! Revokes one session, or all sessions that a selector matches.
//!
//! A mass revocation is one row, a cutoff, for any number of sessions. From its commit on, the
//! broker reports all of them as ended. [`deny_lists::DenyLists`] then makes external back ends
//! deny them.

pub mod deny_lists;
pub mod orphans;
mod reconcile;
mod revoke;
mod selectors;

use std::sync::Arc;

use self::deny_lists::DenyLists;
use self::orphans::OrphanSearch;
pub use self::revoke::{BlastRadius, RevokeRequest, Revoked};
pub use self::selectors::BlockRequest;
use super::access::Access;
use super::core::Core;
use super::verification::Verification;

/// Ends sessions.
pub struct Revocation {
    core: Core,
    access: Arc<Access>,
    /// Finds the session of a token that is to be revoked.
    verification: Arc<Verification>,
    deny_lists: Arc<DenyLists>,
    orphan_search: Arc<OrphanSearch>,
}

impl Revocation {
    pub(super) fn new(
        core: Core,
        access: Arc<Access>,
        verification: Arc<Verification>,
        deny_lists: Arc<DenyLists>,
        orphan_search: Arc<OrphanSearch>,
    ) -> Self {
        Self {
            core,
            access,
            verification,
            deny_lists,
            orphan_search,
        }
    }

    /// The deny lists at back ends.
    #[must_use]
    pub fn deny_lists(&self) -> &DenyLists {
        &self.deny_lists
    }

    /// The progress of the search for orphaned sessions.
    #[must_use]
    pub fn orphan_search(&self) -> &OrphanSearch {
        &self.orphan_search
    }
}
