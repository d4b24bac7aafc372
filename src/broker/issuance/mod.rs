//! Handles requests for credentials, from the evidence to the answer.
//!
//! Start with `issue.rs`: its functions follow the order in which a request is handled.
//! [`super::tasks`] uses the same admission for new tasks and records its decisions in the same
//! way.

mod admit;
mod admitted;
mod decisions;
mod issue;
mod mint;
mod retry;

use std::sync::Arc;

pub(super) use self::admit::DELEGATION_PREFIX;
pub(super) use self::admitted::{AdmittedTask, Unadmitted};
pub(super) use self::decisions::{DecisionContext, Evaluated, Evaluation, RefusedRequest};
pub(super) use self::issue::issued_task;
pub use self::issue::{DecisionSummary, Issued, IssuedTask};
use super::access::Access;
use super::core::Core;
use super::revocation::deny_lists::DenyLists;
use super::revocation::orphans::OrphanSearch;
use crate::ledger::denials::Denials;
use crate::mint::Minters;

/// Decides on requests and makes credentials.
pub struct Issuance {
    core: Core,
    access: Arc<Access>,
    minters: Minters,
    /// Used to check that a new credential could be ended, and to end one that was lost.
    deny_lists: Arc<DenyLists>,
    orphan_search: Arc<OrphanSearch>,
    denials: Denials,
}

impl Issuance {
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

    /// The budget of recorded denials.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }
}
