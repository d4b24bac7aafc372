//! A session: our record of one credential. The credential itself is never kept.
//!
//! `minting → active → ending → ended`. Only `active` is valid, and whether an active session *is*
//! valid is judged at use ([`super::validity`]): by the clock, the tasks above it, the sessions that
//! it was derived from, and the cutoffs.

use serde::{Deserialize, Serialize};

use super::generation::GenerationDigest;
use super::grant::Grant;
use super::kind::MinterKind;
use super::revocability::{Revocability, RevocationClass};
use super::workload::{Identity, Instance, KeyBinding};
use crate::clock::Timestamp;
use crate::ids::{DecisionId, SessionId, TaskId};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Decided and recorded; a back end is making the credential.
    Minting,
    /// Released.
    Active,
    /// Over for us; the back end has yet to confirm it.
    Ending,
    /// Over.
    Ended,
}

impl SessionState {
    /// The name on the wire and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minting => "minting",
            Self::Active => "active",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Minting, Self::Active, Self::Ending, Self::Ended]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its task was completed.
    Completed,
    /// Somebody revoked it, its task, or what it was derived from.
    Revoked,
    /// Its time, or its task's, was up.
    Expired,
    /// A retry of its request got another in its place.
    Superseded,
    /// It never came to be.
    Failed,
}

impl EndReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Completed,
        Self::Revoked,
        Self::Expired,
        Self::Superseded,
        Self::Failed,
    ];

    /// The name on the wire and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// A session's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Which; also the credential's `jti`.
    pub id: SessionId,
    /// The task that it is for.
    pub task_id: TaskId,
    /// The session of the parent task that covers this one.
    pub parent: Option<SessionId>,
    /// The decision that permitted it.
    pub decision_id: DecisionId,
    /// That decision's leaf.
    pub leaf_index: u64,
    /// The attestor of the workload.
    pub attestor: String,
    /// Who holds it.
    pub workload: Identity,
    /// Which run of it.
    pub instance: Option<Instance>,
    /// The resource's name.
    pub resource: String,
    /// What was granted.
    pub grant: Grant,
    /// The `aud`.
    pub audience: String,
    /// The kind of the minter that made it, and that alone can end it.
    pub minter: MinterKind,
    /// The key that it is bound to.
    pub key: Option<KeyBinding>,
    /// The key that signed it.
    pub kid: String,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// What its revocation achieves.
    pub revocability: Revocability,
    /// When it was decided.
    pub issued_at: Timestamp,
    /// When it is over in any case.
    pub expires_at: Timestamp,
    /// Its recorded state.
    pub state: SessionState,
    /// Why it is over, on record.
    pub end_reason: Option<EndReason>,
    /// When it was ended, on record.
    pub ended_at: Option<Timestamp>,
    /// When the back end confirmed the end.
    pub confirmed_at: Option<Timestamp>,
}

impl Session {
    /// Whether status lists tell servers whether it is good.
    #[must_use]
    pub fn is_in_status_lists(&self) -> bool {
        let bounded = matches!(self.revocability.class, RevocationClass::Bounded { .. });
        bounded && self.minter.makes_access_tokens()
    }
}
