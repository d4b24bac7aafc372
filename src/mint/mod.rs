//! Minters: the back ends that create credentials of one kind and can end them.
//!
//! [`Minter`] is a back end, [`Credential`] its result, and [`DenyList`] a back end that ends
//! sessions by a document. A minter accepts only a [`Permit`], so no credential is created before
//! its decision is recorded. It states the true effect of revoking its credentials.
//!
//! A *local* minter cannot fail outside this process: its session is committed `active`, and the
//! credential is created after the commit. For an *external* one, the session is committed
//! `minting` with a lease, the back end is called, and the session is activated by compare-and-set.
//! The sweeper ends sessions that a crash left behind.
//!
//! A failed mint says whether a credential may exist: only [`MintError::Unknown`] means that it
//! may. `broker::issuance` then ends the session at the back end. `broker::issuance` calls the
//! minters, and `broker::revocation` the deny lists; neither decides about policy here.

pub mod aws;
pub mod jwt;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{DeniedSessions, DenyPolicyTarget};
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::permit::Permit;
use crate::domain::revocability::Revocability;
use crate::domain::session::Session;

/// A released credential. It exists only in this process until it is handed to the caller.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum Credential {
    /// A JWT access token (RFC 9068).
    Jwt {
        access_token: SecretString,
        /// `Bearer`, or `DPoP` if the token is bound to a key.
        token_type: &'static str,
        /// Whole seconds until the token expires.
        expires_in: u64,
    },
    /// A session of an AWS role.
    AwsSts {
        /// The id of the key.
        access_key_id: String,
        secret_access_key: SecretString,
        /// The session token of the key.
        session_token: SecretString,
        /// Expiry of the session.
        expiration: Timestamp,
        /// The default region for its use.
        region: String,
    },
}

/// Where a credential is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MintMode {
    /// The credential is created in this process.
    Local,
    /// The credential is created at a back end.
    External {
        /// Seconds after which the mint is considered failed.
        lease_seconds: u64,
    },
}

/// A failed mint.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The back end definitely refused. No credential exists.
    #[error("the back end refused: {0}")]
    Refused(String),
    /// The back end definitely refused because of the session's size. No credential exists, and the
    /// same request would be refused again.
    #[error("the back end refused the session as too large: {told}")]
    TooManyRights {
        /// The back end's message, for the operator.
        told: String,
        /// The message for the caller.
        detail: &'static str,
    },
    /// The back end limits the rate of requests. No credential exists, and a later attempt can
    /// succeed.
    #[error("the back end limits the rate of requests: {0}")]
    Throttled(String),
    /// A credential may exist.
    #[error("the back end's answer is unknown: {0}")]
    Unknown(String),
}

/// A failed write of a document of denied sessions.
#[derive(Debug, thiserror::Error)]
pub enum DenyWriteError {
    /// The back end refused the document because of its size. The previous one is still in effect.
    #[error("the document is too large for the back end: {0}")]
    TooLarge(String),
    /// Any other failure; the write may have taken effect.
    #[error(transparent)]
    Other(#[from] MintError),
}

/// The result of an attempt to end a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOutcome {
    /// The back end confirmed the end.
    Confirmed,
    /// Not ended yet; try again.
    Pending,
    /// Not before this instant; try again then.
    NotBefore(Timestamp),
    /// The back end cannot end it. It lives until it expires.
    Impossible,
}

/// A back end for credentials of one kind.
pub trait Minter: Send + Sync {
    /// The kind of resource that it serves.
    fn kind(&self) -> MinterKind;

    /// Where it creates credentials.
    fn mode(&self) -> MintMode;

    /// The effect of revoking a credential for this resource.
    fn revocability(&self, resource: &Resource) -> Revocability;

    /// Checks that the back end can serve the grant. The error is a message for the caller. Called
    /// before the decision.
    fn fits(&self, _resource: &Resource, _grant: &Grant) -> Result<(), String> {
        Ok(())
    }

    /// The id of the key that would sign for this resource at `now`, for the decision's leaf.
    /// `None` if no key may sign; then nothing is granted.
    fn signing_key(&self, resource: &Resource, now: Timestamp) -> Option<String>;

    /// Creates the credential of a permit.
    fn mint<'a>(&'a self, permit: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>>;

    /// Ends a credential, or a mint of unknown outcome, by its session's name.
    fn end<'a>(&'a self, session: &'a Session, now: Timestamp) -> BoxFuture<'a, EndOutcome>;

    /// The deny list of the back end; `None` if it does not end sessions by one.
    fn deny_list(&self) -> Option<&dyn DenyList> {
        None
    }
}

/// A back end that denies sessions by documents of its own. The broker decides which sessions to
/// deny and when a denial is confirmed; this trait only reads and writes the documents.
pub trait DenyList: Send + Sync {
    /// The target whose document denies sessions of this resource; `None` if they cannot be denied.
    fn deny_target(&self, resource: &Resource) -> Option<DenyPolicyTarget>;

    /// Checks that this replica's configuration permits reading and writing a target's document.
    /// The error has the reason and the remedy. Does not call the back end.
    fn check(&self, _target: &DenyPolicyTarget) -> Result<(), String> {
        Ok(())
    }

    /// Whether a target's document is read and written with tokens that the federation keys sign.
    fn needs_federation(&self, _target: &DenyPolicyTarget) -> bool {
        false
    }

    /// Reads the present document; `None` if there is none that the broker could have written.
    fn read<'a>(
        &'a self,
        target: &'a DenyPolicyTarget,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<DeniedSessions>, MintError>>;

    /// Replaces the present document with this one.
    fn write<'a>(
        &'a self,
        target: &'a DenyPolicyTarget,
        denied: &'a DeniedSessions,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<(), DenyWriteError>>;
}

/// The minters, by kind.
#[derive(Clone, Default)]
pub struct Minters(BTreeMap<MinterKind, Arc<dyn Minter>>);

impl Minters {
    /// Creates the collection. Of two minters of one kind, the later one is kept.
    #[must_use]
    pub fn new(minters: impl IntoIterator<Item = Arc<dyn Minter>>) -> Self {
        let named = minters.into_iter().map(|minter| (minter.kind(), minter));
        Self(named.collect())
    }

    /// The available kinds.
    pub fn kinds(&self) -> impl Iterator<Item = MinterKind> + '_ {
        self.0.keys().copied()
    }

    /// The minter of a kind; `None` if the configuration has none.
    #[must_use]
    pub fn of_kind(&self, kind: MinterKind) -> Option<&Arc<dyn Minter>> {
        self.0.get(&kind)
    }
}
