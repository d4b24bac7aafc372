//! A permit: a decision whose leaf is durable. Minters take nothing else.

use std::sync::Arc;

use super::catalog::Resource;
use super::session::Session;
use super::workload::Identity;

/// The proof, inside this process, that the decision was committed before anything is made.
///
/// It cannot be put together by hand: only the ledger makes one, after the commit of the leaf. A
/// test reads the source for other callers of [`Permit::committed`].
#[derive(Debug)]
pub struct Permit {
    session: Session,
    resource: Arc<Resource>,
    delegators: Vec<Identity>,
    leaf_hash: [u8; 32],
}

impl Permit {
    pub(crate) fn committed(
        session: Session,
        resource: Arc<Resource>,
        delegators: Vec<Identity>,
        leaf_hash: [u8; 32],
    ) -> Self {
        Self {
            session,
            resource,
            delegators,
            leaf_hash,
        }
    }

    /// The session that was permitted, as it was recorded.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The resource, as it was registered when that was decided.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// On whose behalf it is, nearest first: the holders of the sessions that it was derived from.
    #[must_use]
    pub fn delegators(&self) -> &[Identity] {
        &self.delegators
    }

    /// The hash of the decision's leaf, which the credential has to carry.
    #[must_use]
    pub fn leaf_hash(&self) -> &[u8; 32] {
        &self.leaf_hash
    }

    /// Ends the permit's use; what is left is the record.
    #[must_use]
    pub fn into_session(self) -> Session {
        self.session
    }
}
