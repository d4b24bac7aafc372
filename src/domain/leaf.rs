//! The bytes that are hashed into the ledger.
//!
//! A leaf is JSON with a format version. It is serialised once; those bytes are stored, hashed and
//! handed out, and nothing is ever serialised again to be compared. It holds no ledger index and
//! no time of commit: both are facts of the log, not of the leaf.
//!
//! A permit's leaf pins exactly one credential. What its subject may not read, and what a person
//! may ask to have deleted, is there only as a salted [`Commitment`]; the openings are kept apart.

use serde::{Deserialize, Serialize};

use super::cutoff::Selector;
use super::decision::{Observed, Outcome, RefusalCode};
use super::endpoint::EndpointsDigest;
use super::generation::GenerationDigest;
use super::grant::Grant;
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

/// One leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// The version of this format: 1.
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
    /// The present version of the format.
    pub const VERSION: u32 = 1;

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
        succeeds: Option<Succession>,
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
        /// How.
        end: TaskEnd,
        /// On whose word.
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
        sessions: u32,
    },
    /// One session was ended before its time.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Why.
        reason: EndReason,
        /// On whose word.
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
        /// The place at a back end of which every earlier session of ours is denied.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        widened_to: Option<String>,
        /// A commitment to the reason given.
        reason: Commitment,
        /// On whose word.
        by: String,
    },
    /// A cutoff's block was lifted.
    CutoffLifted {
        /// The cutoff.
        id: CutoffId,
        /// On whose word.
        by: String,
    },
    /// An administrator accepted what the clock shows, though the ledger or this very process had
    /// seen another time. What earlier leaves permitted and dated later than `accepted` is dead.
    TimeAccepted {
        /// The cutoff of what is dated later.
        id: CutoffId,
        /// When the newest leaf before this one was decided, as it says itself.
        recorded: Timestamp,
        /// The time that was accepted.
        accepted: Timestamp,
        /// A commitment to the reason given.
        reason: Commitment,
        /// On whose word.
        by: String,
    },
    /// Another generation decides from here on.
    Activated {
        /// Its digest.
        generation: GenerationDigest,
        /// The digest of the activating replica's endpoints: what the names in it meant there.
        endpoints: EndpointsDigest,
        /// On whose word.
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
        public: Option<String>,
        /// The ids of the ledger keys that the added one takes the place of: they sign along until
        /// they end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        retires: Vec<String>,
        /// On whose word.
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
        /// On whose word.
        by: String,
    },
    /// Denials beyond the budget, which have no leaf of their own.
    DenialsOmitted {
        /// The identity, or the attestor for all its identities together.
        of: String,
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
            Self::Genesis { succeeds, .. } => act(About::Log, Effect::Begins(succeeds.as_ref())),
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
            Self::TimeAccepted { id, accepted, .. } => {
                act(About::Cutoff(*id), Effect::CutsOffIssuedAfter(*accepted))
            }
            Self::Activated { generation, .. } => {
                act(About::Generation(*generation), Effect::Nothing)
            }
            Self::Key {
                purpose,
                kid,
                change,
                public,
                ..
            } => {
                let effect = if change == "added" {
                    Effect::AddsKey(AddedKey {
                        purpose,
                        kid,
                        public: public.as_deref(),
                    })
                } else {
                    Effect::EndsKey
                };
                act(About::Named(kid), effect)
            }
            Self::Admin { subject, .. } => act(About::Named(subject), Effect::Nothing),
            Self::DenialsOmitted { of, .. } => act(About::Named(of), Effect::Nothing),
        }
    }
}

/// A decision. The fields from `session` to `kid` are there for a permit only.
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
    pub status_lists_from: Option<u64>,
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
