//! Minters: the back ends that create, and can end, credentials of one kind.
//!
//! A minter is given a [`Permit`] and nothing else, so nothing can be minted that was not decided
//! and recorded before. It declares truthfully what the revocation of a credential achieves.
//!
//! A *local* minter cannot fail outside this process: its session is committed `active` and the
//! credential is made after the commit. An *external* one is committed `minting` under a lease,
//! asked, and settled by compare-and-set; what a crash leaves is ended by the sweeper.

pub mod aws;
pub mod jwt;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{Denied, DenyPlace};
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::permit::Permit;
use crate::domain::revocability::Revocability;
use crate::domain::session::Session;

/// What is released: it exists in this process until it is handed over, and nowhere else.
#[derive(Debug)]
pub enum Credential {
    /// A JWT access token (RFC 9068).
    Jwt {
        /// The token.
        access_token: SecretString,
        /// `Bearer`, or `DPoP` when it is bound to a key.
        token_type: &'static str,
        /// Whole seconds until it expires.
        expires_in: u64,
    },
    /// A session of a role in AWS.
    AwsSts {
        /// The key's public half.
        access_key_id: String,
        /// The key.
        secret_access_key: SecretString,
        /// The token that goes with it.
        session_token: SecretString,
        /// When it is over.
        expiration: Timestamp,
        /// Where to use it, unless told otherwise.
        region: String,
    },
}

/// Where a credential is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MintPlace {
    /// In this process.
    Local,
    /// Elsewhere: it may take this long, and then be taken for dead.
    External {
        /// The lease's length.
        lease_seconds: u64,
    },
}

/// Nothing was made, or nobody can say.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The back end refused for certain: nothing exists.
    #[error("the back end refused: {0}")]
    Refused(String),
    /// The back end refused for certain, because it takes no session with that much in it: nothing
    /// exists, and the same request would be refused again.
    #[error("the back end refused the session as too large: {told}")]
    TooManyRights {
        /// The back end's own words, for the operator.
        told: String,
        /// What the caller is told.
        detail: &'static str,
    },
    /// The back end has had too much of us: nothing exists, and it is worth coming again later.
    #[error("the back end asks for a pause: {0}")]
    Throttled(String),
    /// It may exist.
    #[error("the back end's answer is unknown: {0}")]
    Unknown(String),
}

/// A document of denied sessions was not written, or nobody can say.
#[derive(Debug, thiserror::Error)]
pub enum DenyWriteError {
    /// The back end refused it for its size; the one that stood stands.
    #[error("the back end has no room for it: {0}")]
    TooLarge(String),
    /// Something else.
    #[error(transparent)]
    Other(#[from] MintError),
}

/// What became of an attempt to end a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOutcome {
    /// The back end confirmed that it is dead.
    Confirmed,
    /// Not yet; ask again.
    Pending,
    /// Not before this instant; ask again then.
    NotBefore(Timestamp),
    /// The back end cannot end it: it lives until it expires.
    Impossible,
}

/// A back end for credentials of one kind.
pub trait Minter: Send + Sync {
    /// The kind of resource that it serves.
    fn kind(&self) -> MinterKind;

    /// Where it makes them.
    fn place(&self) -> MintPlace;

    /// What the revocation of a credential on this resource achieves, truthfully.
    fn revocability(&self, resource: &Resource) -> Revocability;

    /// Whether the back end takes what is asked; if not, why, in words for the caller. Asked before
    /// anything is decided.
    fn fits(&self, _resource: &Resource, _grant: &Grant) -> Result<(), String> {
        Ok(())
    }

    /// The id of the key that would sign for this resource at `now`, to be pinned in the decision's
    /// leaf. Without one nothing is granted.
    fn signing_key(&self, resource: &Resource, now: Timestamp) -> Option<String>;

    /// Makes the credential of a permit.
    fn mint<'a>(&'a self, permit: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>>;

    /// Ends a credential, or a mint of unknown outcome, under the name that its session gave it.
    fn end<'a>(&'a self, session: &'a Session, now: Timestamp) -> BoxFuture<'a, EndOutcome>;

    /// Where sessions are ended by a list of the back end's instead, that list.
    fn deny_list(&self) -> Option<&dyn DenyList> {
        None
    }
}

/// A back end that denies sessions by documents of its own. Which sessions, and what is certain
/// when, is the broker's business; a document here is read and written as it is told.
pub trait DenyList: Send + Sync {
    /// Where sessions of this resource are denied; nothing where they can't be.
    fn deny_place(&self, resource: &Resource) -> Option<DenyPlace>;

    /// Whether this replica's configuration lets it read and write a place's document; if not, why,
    /// and what to do. The back end is not asked.
    fn check(&self, _place: &DenyPlace) -> Result<(), String> {
        Ok(())
    }

    /// Whether a place's document is read and written with tokens that the federation keys sign.
    fn needs_federation(&self, _place: &DenyPlace) -> bool {
        false
    }

    /// The document as it stands; nothing where there is none, or none that we could have written.
    fn read<'a>(
        &'a self,
        place: &'a DenyPlace,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Denied>, MintError>>;

    /// Puts this document in the place of the one that stands.
    fn write<'a>(
        &'a self,
        place: &'a DenyPlace,
        denied: &'a Denied,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<(), DenyWriteError>>;
}

/// The minters, by kind.
#[derive(Clone, Default)]
pub struct Minters(BTreeMap<MinterKind, Arc<dyn Minter>>);

impl Minters {
    /// With these minters; of two of one kind the later one serves.
    #[must_use]
    pub fn new(minters: impl IntoIterator<Item = Arc<dyn Minter>>) -> Self {
        let named = minters.into_iter().map(|minter| (minter.kind(), minter));
        Self(named.collect())
    }

    /// The kinds that there are.
    pub fn kinds(&self) -> impl Iterator<Item = MinterKind> + '_ {
        self.0.keys().copied()
    }

    /// The minter of a kind.
    #[must_use]
    pub fn of_kind(&self, kind: MinterKind) -> Option<&Arc<dyn Minter>> {
        self.0.get(&kind)
    }
}
