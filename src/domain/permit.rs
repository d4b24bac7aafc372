//! A permit: a decision whose leaf is durable. Minters accept nothing else.

use std::sync::Arc;

use super::catalog::Resource;
use super::session::Session;
use super::workload::Identity;

/// Proof within this process that the decision was committed before a credential is created.
///
/// Only the ledger creates one, after the commit of the leaf. A test searches the source for other
/// callers of [`Permit::committed`].
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

    /// The permitted session, as recorded.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The resource, as registered at the time of the decision.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The delegators, nearest first: the holders of the sessions from which this one was derived.
    #[must_use]
    pub fn delegators(&self) -> &[Identity] {
        &self.delegators
    }

    /// The hash of the decision's leaf, which the credential must carry.
    #[must_use]
    pub fn leaf_hash(&self) -> &[u8; 32] {
        &self.leaf_hash
    }

    /// Consumes the permit and returns its record.
    #[must_use]
    pub fn into_session(self) -> Session {
        self.session
    }
}
