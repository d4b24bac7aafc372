//! Issuance: a request for a credential, from the evidence to the answer.
//!
//! Start with `issue.rs`: it reads top to bottom as a request is handled. [`super::tasks`] opens tasks by
//! the same admission and records its decisions in the same way.

mod admit;
mod decisions;
mod issue;
mod mint;

use std::sync::Arc;

pub(super) use self::admit::{AdmittedTask, DELEGATION_PREFIX, Unadmitted};
pub(super) use self::decisions::{DecisionContext, Evaluated, Evaluation, RefusedRequest};
pub(super) use self::issue::issued_task;
pub use self::issue::{DecisionSummary, Issued, IssuedTask};
use super::access::Access;
use super::core::Core;
use super::revocation::deny_lists::DenyLists;
use super::revocation::orphans::OrphanSearch;
use crate::ledger::denials::Denials;
use crate::mint::Minters;

/// Decides about requests, and makes credentials.
pub struct Issuance {
    core: Core,
    access: Arc<Access>,
    minters: Minters,
    /// Whether a new credential could be ended, and the end of one that was lost.
    deny_lists: Arc<DenyLists>,
    orphan_search: Arc<OrphanSearch>,
    denials: Denials,
}

impl Issuance {
    /// With a fresh budget of denials.
    pub(super) fn new(
        core: Core,
        access: Arc<Access>,
        minters: Minters,
        deny_lists: Arc<DenyLists>,
        orphan_search: Arc<OrphanSearch>,
    ) -> Self {
        Self {
            core,
            access,
            minters,
            deny_lists,
            orphan_search,
            denials: Denials::default(),
        }
    }

    /// The budget of denials.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }
}
