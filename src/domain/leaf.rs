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
