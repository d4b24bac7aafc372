//! A session: the broker's record of one credential. The broker never stores the credential itself.
//!
//! [`Session`] is the record. Its [`SessionState`] goes `minting → active → ending → ended`, and
//! [`EndReason`] says why it ended. Only `active` can be valid. The recorded state may lag behind:
//! [`super::validity`] decides at each use whether the session *is* valid, from the clock, its task
//! and the ancestors of the task, the sessions from which it was derived, and the cutoffs.
//!
//! Nothing here returns an error. `parse` answers `None` for an unknown name; the store then
//! reports a corrupt row. `broker::issuance` makes the record, the ledger writes it together with
//! the decision's leaf, and the store reads it.

use serde::{Deserialize, Serialize};

use super::generation_digest::GenerationDigest;
use super::grant::Grant;
use super::kind::MinterKind;
use super::revocability::{Revocability, RevocationClass};
use super::workload::{Identity, Instance, KeyBinding};
use crate::clock::Timestamp;
use crate::ids::{DecisionId, SessionId, TaskId};

/// The recorded state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Permitted and recorded; a back end is creating the credential.
    Minting,
    /// The credential was released.
    Active,
    /// Ended at the broker; the back end has not confirmed it.
    Ending,
    /// Ended at the broker and the back end.
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

/// The reason for the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its task was completed.
    Completed,
    /// A party revoked the session, its task, or a session from which it was derived.
    Revoked,
    /// The session or its task expired.
    Expired,
    /// A retry of its request received another session instead.
    Superseded,
    /// Its credential was not released.
    Failed,
}

impl EndReason {
    /// Every reason.
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

/// The record of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The session's id, which is also the credential's `jti`.
    pub id: SessionId,
    /// The task of the credential.
    pub task_id: TaskId,
    /// The session of the parent task that covers this one; `None` for a task without a parent.
    pub parent: Option<SessionId>,
    /// The decision that permitted it.
    pub decision_id: DecisionId,
    /// Index of the decision's leaf.
    pub leaf_index: u64,
    /// The attestor of the workload.
    pub attestor: String,
    /// The identity of its holder.
    pub workload: Identity,
    /// The run of its holder, if the attestor can tell.
    pub instance: Option<Instance>,
    /// The name of the resource.
    pub resource: String,
    /// The rights that were granted.
    pub grant: Grant,
    /// The `aud` of the credential.
    pub audience: String,
    /// The kind of minter that created it and that can end it.
    pub minter: MinterKind,
    /// The key to which it is bound; `None` for a bearer credential.
    pub key: Option<KeyBinding>,
    /// The id of the key that signed it.
    pub kid: String,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// The effect of its revocation.
    pub revocability: Revocability,
    /// The time of the decision.
    pub issued_at: Timestamp,
    /// Expiry of the credential.
    pub expires_at: Timestamp,
    /// The recorded state; [`super::validity`] decides the effective one.
    pub state: SessionState,
    /// The recorded reason of its end; `None` while no end is recorded.
    pub end_reason: Option<EndReason>,
    /// The recorded time of its end; `None` while no end is recorded.
    pub ended_at: Option<Timestamp>,
    /// The time at which the back end confirmed the end; `None` until then.
    pub confirmed_at: Option<Timestamp>,
}

impl Session {
    /// Whether status lists contain its credential.
    #[must_use]
    pub fn is_in_status_lists(&self) -> bool {
        let bounded = matches!(self.revocability.class, RevocationClass::Bounded { .. });
        bounded && self.minter.makes_access_tokens()
    }
}
