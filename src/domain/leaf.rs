//! The leaves of the ledger: the bytes that are hashed.
//!
//! [`Leaf`] is an [`Event`] with the log's origin, a time and a format version; [`DecisionLeaf`] is
//! the most important event. A leaf is serialised once, as JSON; these bytes are stored, hashed and
//! served, and comparisons use them and never a second serialisation. A leaf has no ledger index
//! and no commit time, because both are properties of the log.
//!
//! The leaf of a permit identifies exactly one credential. Values that its subject may not read,
//! and values that a person may ask to delete, are present only as salted [`Commitment`]s; the
//! openings are stored separately.
//!
//! Bytes of another format version are [`LeafError::Earlier`] or [`LeafError::Later`], other
//! unreadable bytes [`LeafError::Malformed`]. `ledger::entry` writes leaves. Their readers use
//! [`Event::facets`], so that they need no match on every kind of event. Hashes and proofs are in
//! `merkle`.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::cutoff::Selector;
use super::decision::{Observed, Outcome, RefusalCode};
use super::endpoint::EndpointsDigest;
use super::generation_digest::GenerationDigest;
use super::grant::Grant;
use super::revocability::Revocability;
use super::session::EndReason;
use super::succession::Succession;
use super::task::TaskEnd;
use super::workload::{Identity, Instance, KeyBinding};
use crate::clock::Timestamp;
use crate::ids::{CutoffId, DecisionId, SessionId, TaskId};

/// SHA-256 of a 16-byte salt followed by the committed bytes, as 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Commitment(pub String);

/// The opening of a [`Commitment`]. It can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The salt. Without it, the committed text could be guessed.
    pub salt: [u8; 16],
    /// The bytes that the commitment covers.
    pub bytes: Vec<u8>,
}

/// [`Leaf::VERSION`].
const LEAF_VERSION: u32 = 2;

/// Bytes that this build cannot read as a leaf.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The leaf has an earlier format.
    #[error(
        "format version {found} was made by an earlier development build; this build reads version \
         {LEAF_VERSION}"
    )]
    Earlier {
        /// The version in the leaf.
        found: u32,
    },
    /// The leaf has a later format.
    #[error(
        "format version {found} was made by a later build; this build reads version {LEAF_VERSION}"
    )]
    Later {
        /// The version in the leaf.
        found: u32,
    },
    /// The bytes are not the JSON of a leaf of this format.
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
}

impl LeafError {
    /// The error for a version; `None` for the present one.
    fn of_version(found: u32) -> Option<Self> {
        match found.cmp(&LEAF_VERSION) {
            Ordering::Less => Some(Self::Earlier { found }),
            Ordering::Equal => None,
            Ordering::Greater => Some(Self::Later { found }),
        }
    }
}

/// The version of a leaf of any format.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// A leaf of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Leaf {
    /// The version of its format: [`Self::VERSION`].
    pub v: u32,
    /// The log to which this leaf belongs.
    pub origin: String,
    /// The time of the event, by the deciding replica's clock.
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

impl Leaf {
    /// The version of the format that this build reads and writes. Raise it with every change of a
    /// member: `golden` compares the bytes of every kind of leaf with a fixture.
    pub const VERSION: u32 = LEAF_VERSION;

    /// Reads a leaf. Refuses another version as such, regardless of its members.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LeafError> {
        match serde_json::from_slice::<Self>(bytes) {
            Ok(leaf) => LeafError::of_version(leaf.v).map_or(Ok(leaf), Err),
            Err(error) => {
                let version = serde_json::from_slice::<Versioned>(bytes).ok();
                let other = version.and_then(|version| LeafError::of_version(version.v));
                Err(other.unwrap_or(LeafError::Malformed(error)))
            }
        }
    }

    /// The bytes of the leaf.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// The event that a leaf records: a decision, or an act that changes the rights of some party.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum Event {
    /// The first leaf of the log.
    Genesis {
        /// Verifier key of the log's checkpoints.
        vkey: String,
        /// The log that this one replaces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predecessor: Option<Succession>,
        /// Whether every head of the log carries the broker's MAC. A checkpoint then authenticates
        /// every leaf below it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        heads_authenticated: bool,
    },
    /// A decision about a request.
    Decision(Box<DecisionLeaf>),
    /// A task was opened without a credential.
    TaskOpened(Box<TaskLeaf>),
    /// A task and everything under it ended.
    TaskEnded {
        task: TaskId,
        /// The kind of end.
        #[serde(rename = "state")]
        end: TaskEnd,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// The sweeper ended several tasks of one cause, each with everything under it. A task whose
    /// deadline passed has no leaf: its permits carry no later expiry.
    TasksEnded {
        /// The tasks, at most [`MAX_TASKS_IN_LEAF`](super::limits::MAX_TASKS_IN_LEAF).
        tasks: Vec<TaskId>,
        /// The kind of end: `expired` for tasks that were silent for too long, `aborted` for tasks
        /// that a clock that was ahead had opened.
        #[serde(rename = "state")]
        end: TaskEnd,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A parent task permitted a child.
    Delegated {
        /// The parent, which permits the child.
        task: TaskId,
        /// The identity that may open the child.
        child: Identity,
        /// Expiry of the permission.
        expires_at: Timestamp,
        /// Credentials that the child receives from the parent's budget.
        max_credentials: u32,
    },
    /// A session ended before its expiry.
    SessionEnded {
        session: SessionId,
        reason: EndReason,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A back end confirmed the end of a session, or could not.
    EndConfirmed {
        session: SessionId,
        /// Whether the end was confirmed.
        confirmed: bool,
    },
    /// A cutoff ends everything that its selector matches, and may block new grants for a time.
    Cutoff {
        id: CutoffId,
        selector: Selector,
        /// The end of the block: a time, or `until_lifted`. `None` without a block.
        #[serde(skip_serializing_if = "Option::is_none")]
        blocked_until: Option<String>,
        /// The role whose back end denies every earlier session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deny_policy_target: Option<String>,
        /// A commitment to the admin's reason.
        reason: Commitment,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// The block of a cutoff was lifted.
    CutoffLifted {
        id: CutoffId,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// An admin accepted the time that the broker's clock shows, although the ledger or this
    /// process had seen another time. Everything that earlier leaves permitted with a date later
    /// than `accepted_time` ends.
    TimeAccepted {
        /// The id of the resulting cutoff.
        id: CutoffId,
        /// The time in the newest leaf before this one.
        recorded_time: Timestamp,
        /// The accepted time of the broker's clock.
        accepted_time: Timestamp,
        /// A commitment to the admin's reason.
        reason: Commitment,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A generation was activated. It decides from this leaf on.
    Activated {
        generation: GenerationDigest,
        /// The digest of the activating replica's endpoints, which its endpoint names refer to.
        endpoints: EndpointsDigest,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A key of the broker was added, revoked or removed.
    Key {
        /// Its use: `access_token` or `ledger`.
        purpose: String,
        /// The id of the key.
        kid: String,
        /// `added`, `revoked` or `removed`.
        change: String,
        /// Its public part if added: the text of a JWK, or a signed-note verifier key.
        #[serde(skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
        /// Ids of the ledger keys that the added one replaces. They also sign until they end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        retired_kids: Vec<String>,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// Another change by an admin.
    Admin {
        /// One of `admin_bound`, `admin_unbound`, `workload_key_added`, `workload_key_removed`,
        /// `keys_resealed`, `retention`.
        change: String,
        /// The identity or thing that was changed.
        subject: String,
        /// The new value, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A count of the denials beyond the budget, which have no leaves of their own.
    DenialsOmitted {
        /// The identity, or the attestor for all its identities together.
        subject: String,
        /// Number of omitted denials.
        count: u64,
        /// The time of the first of them.
        since: Timestamp,
    },
}

/// The parts of an event that its readers need, independent of its kind. The readers are the
/// exports, the offline verifier, the coverage report, the search for orphaned sessions and the
/// replay of decisions.
#[derive(Clone, Debug)]
pub struct Facets<'e> {
    /// The decision that it records, if it records one.
    pub decision: Option<RecordedDecision<'e>>,
    /// The subject of the event.
    pub about: About<'e>,
    /// The session that it names, if it names one.
    pub session: Option<SessionId>,
    /// Its effect on the rights that the log permits.
    pub effect: Effect<'e>,
}

/// A recorded decision.
#[derive(Clone, Copy, Debug)]
pub enum RecordedDecision<'e> {
    /// The decision about a credential, or any refusal.
    Request(&'e DecisionLeaf),
    /// The permit to open a task without a credential.
    TaskOpened(&'e TaskLeaf),
}

/// The subject of an event.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum About<'e> {
    /// The log as a whole.
    Log,
    Workload(&'e Identity),
    Task(TaskId),
    Session(SessionId),
    Cutoff(CutoffId),
    Generation(GenerationDigest),
    /// More than one subject.
    Several,
    /// Any other subject with a name.
    Named(&'e str),
}

impl About<'_> {
    /// Its id or its name; `None` for the log and for several subjects.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Log | Self::Several => None,
            Self::Workload(identity) => Some(identity.to_string()),
            Self::Task(id) => Some(id.to_string()),
            Self::Session(id) => Some(id.to_string()),
            Self::Cutoff(id) => Some(id.to_string()),
            Self::Generation(digest) => Some(digest.to_string()),
            Self::Named(name) => Some((*name).to_owned()),
        }
    }
}

/// The effect of an event on the rights that the log permits.
#[derive(Clone, Copy, Debug)]
pub enum Effect<'e> {
    /// It permits nothing and ends nothing.
    Nothing,
    /// It begins the log, and ends everything of the log that it replaces.
    Begins(Option<&'e Succession>),
    /// It permits a credential.
    Permits(&'e DecisionLeaf),
    /// It ends tasks and everything under them.
    EndsTasks(&'e [TaskId], TaskEnd),
    /// It ends a session.
    EndsSession(SessionId, EndReason),
    /// It ends everything that the selector matches.
    CutsOff(&'e Selector),
    /// It ends everything with a date later than this.
    CutsOffIssuedAfter(Timestamp),
    /// It adds a key of the broker.
    AddsKey(AddedKey<'e>),
    /// It revokes or removes a key of the broker, and ends everything that the key signed.
    EndsKey,
}

/// A key of the broker, as in the leaf that adds it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are those of the event")]
pub struct AddedKey<'e> {
    pub purpose: &'e str,
    pub kid: &'e str,
    pub public: Option<&'e str>,
}

impl Event {
    /// The parts of the event that its readers need.
    #[must_use]
    pub fn facets(&self) -> Facets<'_> {
        let act = |about, effect| Facets {
            decision: None,
            about,
            session: None,
            effect,
        };
        match self {
            Self::Genesis { predecessor, .. } => {
                act(About::Log, Effect::Begins(predecessor.as_ref()))
            }
            Self::Decision(leaf) => Facets {
                decision: Some(RecordedDecision::Request(leaf)),
                about: About::Workload(&leaf.workload),
                session: leaf.session,
                effect: match leaf.outcome {
                    Outcome::Permit => Effect::Permits(leaf),
                    Outcome::Deny | Outcome::Indeterminate | Outcome::Pending => Effect::Nothing,
                },
            },
            Self::TaskOpened(leaf) => Facets {
                decision: Some(RecordedDecision::TaskOpened(leaf)),
                ..act(About::Workload(&leaf.workload), Effect::Nothing)
            },
            Self::TaskEnded { task, end, .. } => act(
                About::Task(*task),
                Effect::EndsTasks(std::slice::from_ref(task), *end),
            ),
            Self::TasksEnded { tasks, end, .. } => {
                act(About::Several, Effect::EndsTasks(tasks, *end))
            }
            Self::Delegated { task, .. } => act(About::Task(*task), Effect::Nothing),
            Self::SessionEnded {
                session, reason, ..
            } => Facets {
                session: Some(*session),
                ..act(
                    About::Session(*session),
                    Effect::EndsSession(*session, *reason),
                )
            },
            Self::EndConfirmed { session, .. } => Facets {
                session: Some(*session),
                ..act(About::Session(*session), Effect::Nothing)
            },
            Self::Cutoff { id, selector, .. } => act(About::Cutoff(*id), Effect::CutsOff(selector)),
            Self::CutoffLifted { id, .. } => act(About::Cutoff(*id), Effect::Nothing),
            Self::TimeAccepted {
                id, accepted_time, ..
            } => act(
                About::Cutoff(*id),
                Effect::CutsOffIssuedAfter(*accepted_time),
            ),
            Self::Activated { generation, .. } => {
                act(About::Generation(*generation), Effect::Nothing)
            }
            Self::Key {
                purpose,
                kid,
                change,
                public_key,
                ..
            } => {
                let effect = if change == "added" {
                    Effect::AddsKey(AddedKey {
                        purpose,
                        kid,
                        public: public_key.as_deref(),
                    })
                } else {
                    Effect::EndsKey
                };
                act(About::Named(kid), effect)
            }
            Self::Admin { subject, .. } | Self::DenialsOmitted { subject, .. } => {
                act(About::Named(subject), Effect::Nothing)
            }
        }
    }
}

/// A decision. The members from `session` to `revocability` are present for a permit only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DecisionLeaf {
    /// The id of the decision.
    pub decision: DecisionId,
    pub outcome: Outcome,
    /// The reason of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// The identity of the caller.
    pub workload: Identity,
    /// The run of the caller, if the attestor can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The attestor of the caller.
    pub attestor: String,
    /// The requested resource, if it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The ancestors of the task, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_parents: Vec<TaskId>,
    /// The session, which is the credential's `jti`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The session of the parent task that covers this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_session: Option<SessionId>,
    /// The delegators, nearest first. The credential names its subject and its actors by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegators: Vec<Identity>,
    /// The session that this one replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<SessionId>,
    /// The exact granted rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// The credential's `aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The key to which the credential is bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cnf: Option<KeyBinding>,
    /// Expiry of the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The name of the minter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minter: Option<String>,
    /// The id of the signing key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The `iss`, if the credential is a token of the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The first status list of this log, if the credential is in one. The credential's list and
    /// bit follow from the leaf's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_status_list: Option<u64>,
    /// The effect of revoking the credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocability: Option<Revocability>,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it. Policies that denied are in the commitment instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The effect that observing policies would have had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Box<Observed>>,
    /// A commitment to the complete input of the evaluation and, for a denial, its policies.
    pub input: Commitment,
    /// A commitment to the task's purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<Commitment>,
}

/// A task that was opened without a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskLeaf {
    /// The decision that permitted it.
    pub decision: DecisionId,
    pub task: TaskId,
    pub task_type: String,
    /// The ancestors of the task, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_parents: Vec<TaskId>,
    /// The identity that opened it.
    pub workload: Identity,
    /// The run of the owner, if the attestor can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The attestor of the owner.
    pub attestor: String,
    /// The latest time at which it ends.
    pub deadline: Timestamp,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// A commitment to the complete input of the evaluation.
    pub input: Commitment,
    /// A commitment to the task's purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<Commitment>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_of_another_version_is_refused_by_its_version() {
        let told = |text: &str| Leaf::from_bytes(text.as_bytes()).unwrap_err().to_string();
        let rest = r#""origin":"o","at":"2026-10-24T12:00:00Z","event":"genesis","vkey":"k""#;
        let earlier = told(&format!(r#"{{"v":1,{rest}}}"#));
        assert!(
            earlier.starts_with("format version 1 was made by an earlier development build"),
            "{earlier}"
        );
        // Regardless of its other members.
        assert_eq!(told(r#"{"v":1,"event":"no_more"}"#), earlier);
        let later = told(&format!(r#"{{"v":3,{rest}}}"#));
        assert!(later.contains("a later build"), "{later}");
        assert!(Leaf::from_bytes(format!(r#"{{"v":2,{rest}}}"#).as_bytes()).is_ok());
        for bad in ["{}", "leaf", r#"{"v":2,"event":"no_more"}"#] {
            let refused = Leaf::from_bytes(bad.as_bytes());
            assert!(matches!(refused, Err(LeafError::Malformed(_))), "{bad}");
        }
    }
}
