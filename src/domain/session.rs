//! A session: our record of one credential. The credential itself is never kept.
//!
//! `minting → active → ending → ended`. Only `active` is valid, and whether an active one *is*
//! valid is judged at use, by [`SessionView::validity`]: the clock, the tasks above it, the
//! sessions that it was derived from, the cutoffs.

use serde::{Deserialize, Serialize};

use super::catalog::Revocability;
use super::generation::GenerationDigest;
use super::grant::Grant;
use super::task::{TaskChain, TaskState};
use super::workload::{Identity, Instance, KeyBinding};
use crate::clock::Timestamp;
use crate::ids::{DecisionId, SessionId, TaskId};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
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
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
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
    /// The key that it is bound to.
    pub key: Option<KeyBinding>,
    /// The key that signed it.
    pub kid: String,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// How soon a revocation takes effect.
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
    /// State and reason by this record and the clock alone.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> (SessionState, Option<EndReason>) {
        match self.state {
            SessionState::Ended => (SessionState::Ended, self.end_reason),
            _ if now >= self.expires_at => (
                SessionState::Ended,
                Some(self.end_reason.unwrap_or(EndReason::Expired)),
            ),
            state => (state, self.end_reason),
        }
    }
}

/// One session that another was derived from, with what decides about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Which.
    pub id: SessionId,
    /// Its recorded state.
    pub state: SessionState,
    /// When it is over in any case.
    pub expires_at: Timestamp,
}

/// A session with everything that decides whether it is valid, read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its record.
    pub session: Session,
    /// Its task and everything above.
    pub tasks: TaskChain,
    /// The sessions that it was derived from, nearest first.
    pub ancestors: Vec<Ancestor>,
    /// Whether a cutoff matches it, one of its ancestors or a task above it.
    pub cut_off: bool,
}

impl SessionView {
    /// State and reason as they truly are at `now`. Anything but `Active` is not valid.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> (SessionState, Option<EndReason>) {
        let (own, reason) = self.session.state_at(now);
        if own == SessionState::Ended || own == SessionState::Ending {
            return (own, reason);
        }
        let over = if self.cut_off {
            Some(EndReason::Revoked)
        } else {
            match self.tasks.state_at(now) {
                TaskState::Open => self.ancestor_over(now),
                ended => Some(ended.end_reason()),
            }
        };
        match over {
            None => (own, reason),
            // What a back end made is not over before the back end says so.
            Some(why) if own == SessionState::Minting => (SessionState::Ending, Some(why)),
            Some(why) => (self.ended_or_ending(), Some(why)),
        }
    }

    /// Whether the credential is good at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.state_at(now).0 == SessionState::Active
    }

    fn ancestor_over(&self, now: Timestamp) -> Option<EndReason> {
        self.ancestors.iter().find_map(|ancestor| {
            if ancestor.state != SessionState::Active {
                Some(EndReason::Revoked)
            } else if now >= ancestor.expires_at {
                Some(EndReason::Expired)
            } else {
                None
            }
        })
    }

    /// A credential whose every use asks us is over with our word; any other is over when its back
    /// end, or its expiry, confirms it.
    fn ended_or_ending(&self) -> SessionState {
        match self.session.revocability {
            Revocability::Immediate { .. } => SessionState::Ended,
            Revocability::Bounded { .. } | Revocability::ExpiryOnly => SessionState::Ending,
        }
    }
}
