//! A session: our record of one credential. The credential itself is never kept.
//!
//! `minting → active → ending → ended`. Only `active` is valid, and whether an active one *is*
//! valid is judged at use, by [`SessionView::standing_at`]: the clock, the tasks above it, the
//! sessions that it was derived from, the cutoffs.

use serde::{Deserialize, Serialize};

use super::generation::GenerationDigest;
use super::grant::Grant;
use super::revocability::{Revocability, RevocationClass};
use super::task::TaskChain;
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

/// The minter that makes credentials in this process: what becomes of them is what we say.
pub const LOCAL_MINTER: &str = "jwt";

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
    pub minter: String,
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

/// One session that another was derived from, with what decides about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Which.
    pub id: SessionId,
    /// Who holds it.
    pub workload: Identity,
    /// Its recorded state.
    pub state: SessionState,
    /// When it was ended, on record.
    pub ended_at: Option<Timestamp>,
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
    /// When the first cutoff was committed that matches it, an ancestor, or a task above one.
    pub cut_off_at: Option<Timestamp>,
}

/// How a session truly stands at some instant, whatever its record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its state. Anything but `Active` is not valid.
    pub state: SessionState,
    /// Why it is over.
    pub end_reason: Option<EndReason>,
    /// When it was over for us.
    pub ended_at: Option<Timestamp>,
    /// When it was over for everybody.
    pub confirmed_at: Option<Timestamp>,
}

impl SessionView {
    /// How it stands at `now`: by its record, the clock, its tasks, its ancestors, the cutoffs.
    #[must_use]
    pub fn standing_at(&self, now: Timestamp) -> Standing {
        let session = &self.session;
        let recorded = Standing {
            state: session.state,
            end_reason: session.end_reason,
            ended_at: session.ended_at,
            confirmed_at: session.confirmed_at,
        };
        if session.state == SessionState::Ended {
            return recorded;
        }
        let over = match session.end_reason {
            Some(reason) => Some((reason, session.ended_at.unwrap_or(now))),
            None => self.over_at(now),
        };
        // Expiry ends it for everybody, whether or not a back end ever confirmed anything.
        if now >= session.expires_at {
            let (reason, at) = over.unwrap_or((EndReason::Expired, session.expires_at));
            return Standing {
                state: SessionState::Ended,
                end_reason: Some(reason),
                ended_at: Some(at.min(session.expires_at)),
                confirmed_at: Some(session.expires_at),
            };
        }
        let Some((reason, at)) = over else {
            return recorded;
        };
        // Where every use asks us it is over with our word, where our lists are polled, when the last
        // one that did not know is too old to be believed; elsewhere, when that is confirmed.
        let known_everywhere = match session.revocability.class {
            RevocationClass::Immediate { .. } => Some(at),
            RevocationClass::Bounded { bound_seconds } if session.minter == LOCAL_MINTER => {
                Some(at.plus_seconds(bound_seconds))
            }
            RevocationClass::Bounded { .. } | RevocationClass::ExpiryOnly => None,
        };
        let confirmed_at = known_everywhere
            .filter(|confirmed| session.state == SessionState::Active && *confirmed <= now);
        Standing {
            state: match confirmed_at {
                Some(_) => SessionState::Ended,
                None => SessionState::Ending,
            },
            end_reason: Some(reason),
            ended_at: Some(at),
            confirmed_at,
        }
    }

    /// Whether the credential is good at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.standing_at(now).state == SessionState::Active
    }

    /// Why and since when it is over by something other than its own record and expiry.
    fn over_at(&self, now: Timestamp) -> Option<(EndReason, Timestamp)> {
        if let Some(at) = self.cut_off_at {
            return Some((EndReason::Revoked, at));
        }
        if let Some((state, at)) = self.tasks.over_at(now) {
            return Some((state.end_reason(), at));
        }
        self.ancestors.iter().find_map(|ancestor| {
            if ancestor.state != SessionState::Active {
                Some((EndReason::Revoked, ancestor.ended_at.unwrap_or(now)))
            } else if now >= ancestor.expires_at {
                Some((EndReason::Expired, ancestor.expires_at))
            } else {
                None
            }
        })
    }
}
