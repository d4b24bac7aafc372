//! The bytes that are hashed into the ledger.
//!
//! A leaf is JSON with a format version. It is serialised once; those bytes are stored, hashed and
//! handed out, and nothing is ever serialised again to be compared. It holds no ledger index and
//! no time of commit: both are facts of the log, not of the leaf.
//!
//! A permit's leaf pins exactly one credential. What its subject may not read, and what a person
//! may ask to have deleted, is there only as a salted [`Commitment`]; the openings are kept apart.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::cutoff::Selector;
use super::decision::{Observed, Outcome, RefusalCode};
use super::endpoint::EndpointsDigest;
use super::generation::GenerationDigest;
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

/// What a [`Commitment`] commits to: it opens it, and can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The salt, without which the committed text could be guessed.
    pub salt: [u8; 16],
    /// The committed bytes.
    pub bytes: Vec<u8>,
}

/// [`Leaf::VERSION`].
const LEAF_VERSION: u32 = 2;

/// Bytes that this build cannot read as a leaf.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// A leaf of an earlier format.
    #[error(
        "format version {found} was made by an earlier development build; this build reads version \
         {LEAF_VERSION}"
    )]
    Earlier {
        /// The version that the leaf states.
        found: u32,
    },
    /// A leaf of a later format.
    #[error(
        "format version {found} was made by a later build; this build reads version {LEAF_VERSION}"
    )]
    Later {
        /// The version that the leaf states.
        found: u32,
    },
    /// Not the JSON of a leaf of this format.
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
}

impl LeafError {
    /// The refusal of a version, unless it is the present one.
    fn of_version(found: u32) -> Option<Self> {
        match found.cmp(&LEAF_VERSION) {
            Ordering::Less => Some(Self::Earlier { found }),
            Ordering::Equal => None,
            Ordering::Greater => Some(Self::Later { found }),
        }
    }
}

/// The version of a leaf, whatever else its format has.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// One leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// The version of this format: [`Self::VERSION`].
    pub v: u32,
    /// The log that this leaf is meant for.
    pub origin: String,
    /// When the event was decided, by the deciding replica's clock.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Leaf {
    /// The version of the format that this build reads and writes. Raise it with every change of a
    /// member: `golden.rs` compares the bytes of every kind of leaf with a fixture.
    pub const VERSION: u32 = LEAF_VERSION;

    /// Reads a leaf. Another version is refused as such, whatever its members are.
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

    /// The leaf's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// What a leaf records: a decision, or an act that changes what someone may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The log begins.
    Genesis {
        /// The verifier key of its checkpoints.
        vkey: String,
        /// The log that it takes the place of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predecessor: Option<Succession>,
        /// Whether every head of the log carries the broker's own MAC, so that a checkpoint is its
        /// word for each leaf below.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        heads_authenticated: bool,
    },
    /// Policy decided.
    Decision(Box<DecisionLeaf>),
    /// A task was opened without a credential.
    TaskOpened(Box<TaskLeaf>),
    /// A task ended, and everything under it.
    TaskEnded {
        /// Which.
        task: TaskId,
        /// The state that the task ended in.
        #[serde(rename = "state")]
        end: TaskEnd,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A parent task let a child in.
    Delegated {
        /// The parent.
        task: TaskId,
        /// Who may open the child.
        child: Identity,
        /// Until when.
        expires_at: Timestamp,
        /// Credentials that the child's budget takes from the parent's.
        max_credentials: u32,
    },
    /// One session was ended before its time.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Why.
        reason: EndReason,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A back end confirmed that a session is over, or could not be made to.
    EndConfirmed {
        /// Which.
        session: SessionId,
        /// Whether it was confirmed.
        confirmed: bool,
    },
    /// What a selector matches is dead, and for a time nothing new is granted to it.
    Cutoff {
        /// The cutoff.
        id: CutoffId,
        /// What it matches.
        selector: Selector,
        /// The end of the block: a time, `until_lifted`, or nothing for none.
        #[serde(skip_serializing_if = "Option::is_none")]
        blocked_until: Option<String>,
        /// The role of which the back end denies every session that was made earlier.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deny_policy_target: Option<String>,
        /// A commitment to the reason given.
        reason: Commitment,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A cutoff's block was lifted.
    CutoffLifted {
        /// The cutoff.
        id: CutoffId,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// An administrator accepted what the clock shows, though the ledger or this very process had
    /// seen another time. What earlier leaves permitted and dated later than `accepted_time` is dead.
    TimeAccepted {
        /// The cutoff of what is dated later.
        id: CutoffId,
        /// When the newest leaf before this one was decided, as it says itself.
        recorded_time: Timestamp,
        /// The broker's clock, which an admin accepted.
        accepted_time: Timestamp,
        /// A commitment to the reason given.
        reason: Commitment,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// Another generation decides from here on.
    Activated {
        /// Its digest.
        generation: GenerationDigest,
        /// The digest of the activating replica's endpoints: what the names in it meant there.
        endpoints: EndpointsDigest,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// A key of ours was made, withdrawn or removed.
    Key {
        /// What it signs: `access_token`, `ledger`.
        purpose: String,
        /// Its id.
        kid: String,
        /// `added`, `revoked` or `removed`.
        change: String,
        /// Its public part, when added: a JWK's text, or a signed-note verifier key.
        #[serde(skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
        /// The ids of the ledger keys that the added one takes the place of: they sign along until
        /// they end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        retired_kids: Vec<String>,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// Something else that an admin changed.
    Admin {
        /// What: `admin_bound`, `admin_unbound`, `workload_key_added`, `workload_key_removed`,
        /// `keys_resealed`, `retention`.
        change: String,
        /// Of what or whom.
        subject: String,
        /// The new value, where there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// The actor: an identity, or a part of the broker such as `sweeper` or `handle`.
        by: String,
    },
    /// Denials beyond the budget, which have no leaf of their own.
    DenialsOmitted {
        /// The identity, or the attestor for all its identities together.
        subject: String,
        /// How many.
        count: u64,
        /// Since when.
        since: Timestamp,
    },
}

/// The parts of an event that its readers need, whatever the kind of event: exports, the offline
/// verifier, the coverage report, the search for orphaned sessions, the replay of decisions.
#[derive(Clone, Debug)]
pub struct Facets<'e> {
    /// The decision that it records.
    pub decision: Option<RecordedDecision<'e>>,
    /// The thing that it is about.
    pub about: About<'e>,
    /// The one session that it names.
    pub session: Option<SessionId>,
    /// The change that it makes to what the log permits.
    pub effect: Effect<'e>,
}

/// A decision on record.
#[derive(Clone, Copy, Debug)]
pub enum RecordedDecision<'e> {
    /// On a credential; or a refusal, whatever was asked for.
    Request(&'e DecisionLeaf),
    /// The permit of a task without a credential.
    TaskOpened(&'e TaskLeaf),
}

/// The thing that an event is about.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum About<'e> {
    /// The log itself.
    Log,
    Workload(&'e Identity),
    Task(TaskId),
    Session(SessionId),
    Cutoff(CutoffId),
    Generation(GenerationDigest),
    /// Anything else that has a name.
    Named(&'e str),
}

impl About<'_> {
    /// Its id or its name; `None` for the log.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Log => None,
            Self::Workload(identity) => Some(identity.to_string()),
            Self::Task(id) => Some(id.to_string()),
            Self::Session(id) => Some(id.to_string()),
            Self::Cutoff(id) => Some(id.to_string()),
            Self::Generation(digest) => Some(digest.to_string()),
            Self::Named(name) => Some((*name).to_owned()),
        }
    }
}

/// The change that an event makes to what the log permits.
#[derive(Clone, Copy, Debug)]
pub enum Effect<'e> {
    /// It permits nothing and ends nothing.
    Nothing,
    /// The log begins, and ends everything of the log that it succeeds.
    Begins(Option<&'e Succession>),
    /// It permits a credential.
    Permits(&'e DecisionLeaf),
    /// It ends a task and everything under it.
    EndsTask(TaskId, TaskEnd),
    /// It ends a session.
    EndsSession(SessionId, EndReason),
    /// It ends everything that matches.
    CutsOff(&'e Selector),
    /// It ends everything that is dated later.
    CutsOffIssuedAfter(Timestamp),
    /// It adds a key of ours.
    AddsKey(AddedKey<'e>),
    /// It withdraws or removes a key of ours, and with it what the key signed.
    EndsKey,
}

/// A key of ours, as the leaf that adds it names it.
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
            Self::TaskEnded { task, end, .. } => {
                act(About::Task(*task), Effect::EndsTask(*task, *end))
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
            Self::Admin { subject, .. } => act(About::Named(subject), Effect::Nothing),
            Self::DenialsOmitted { subject, .. } => act(About::Named(subject), Effect::Nothing),
        }
    }
}

/// A decision. The fields from `session` to `revocability` are there for a permit only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionLeaf {
    /// The decision.
    pub decision: DecisionId,
    /// What was decided.
    pub outcome: Outcome,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// Who asked.
    pub workload: Identity,
    /// Which run of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// Who verified that.
    pub attestor: String,
    /// The resource, if the request named one that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Everything that the task is part of, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_parents: Vec<TaskId>,
    /// The credential, by its `jti`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The parent task's session that covers this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_session: Option<SessionId>,
    /// Who delegated, nearest first: with them the credential names its subject and its actors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegators: Vec<Identity>,
    /// The session that this one takes the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<SessionId>,
    /// What was granted, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// The `aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The key that the credential is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cnf: Option<KeyBinding>,
    /// The latest instant at which it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minter: Option<String>,
    /// The key that signs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The `iss`, if it is a token of the broker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The first status list of this log, if the credential is in one: which one, and its bit, follow
    /// from the leaf's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_status_list: Option<u64>,
    /// What the revocation of the credential achieves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocability: Option<Revocability>,
    /// What decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it. Those that denied are committed to instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// What policies that merely observe would have made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Box<Observed>>,
    /// A commitment to the evaluation's complete input and, for a denial, its policies.
    pub input: Commitment,
    /// A commitment to the task's purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<Commitment>,
}

/// A task that was opened without a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLeaf {
    /// The decision that permitted it.
    pub decision: DecisionId,
    /// The task.
    pub task: TaskId,
    /// Its type.
    pub task_type: String,
    /// Everything that it is part of, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_parents: Vec<TaskId>,
    /// Who opened it.
    pub workload: Identity,
    /// Which run of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// Who verified that.
    pub attestor: String,
    /// When it is over in any case.
    pub deadline: Timestamp,
    /// What decided.
    pub generation: GenerationDigest,
    /// The policies that permitted it.
    pub policies: Vec<String>,
    /// A commitment to the evaluation's complete input.
    pub input: Commitment,
    /// A commitment to the purpose.
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
        // Whatever else it has.
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
