//! What can be appended: one variant a kind of decision or act.
//!
//! An entry says what it wants to record and what must still be true when it is recorded. It is
//! serialised before it is queued, so that no time is spent on that under the lock.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::cutoff::Cutoff;
use crate::domain::decision::{Observed, Outcome as Decided, Refusal};
use crate::domain::endpoint::EndpointsDigest;
use crate::domain::generation::GenerationDigest;
use crate::domain::leaf::{Commitment, DecisionLeaf, Event, Leaf, Opening, TaskLeaf};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::succession::Succession;
use crate::domain::task::{Task, TaskEnd};
use crate::domain::workload::{Identity, Instance, KeyBinding, OneTime, Workload};
use crate::ids::{CutoffId, DecisionId, SessionId, TaskId};
use crate::store::append::{MintLease, RetryFacts};
use crate::store::keys::SigningKeyRow;

/// Something to be appended.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A decision, with what it permits.
    Decide(Box<Decide>),
    /// The end of a task.
    EndTask(EndTask),
    /// A delegation token.
    Delegate(Delegate),
    /// The end of one session.
    EndSession(EndSession),
    /// A back end's word on an ending.
    ConfirmEnd(ConfirmEnd),
    /// A cutoff. Its index is set when it is appended.
    Cutoff(Box<Cutoff>, Commitment, Opening),
    /// The lifting of a cutoff.
    Lift {
        /// The cutoff as it is now.
        cutoff: Box<Cutoff>,
        /// On whose word.
        by: String,
    },
    /// The acceptance of what the clock shows.
    AcceptTime(Box<AcceptTime>),
    /// Another generation.
    Activate {
        /// Its digest.
        digest: GenerationDigest,
        /// Its document, which is kept with the activation.
        document: Arc<[u8]>,
        /// The digest of the activating replica's endpoints.
        endpoints: EndpointsDigest,
        /// On whose word.
        by: String,
    },
    /// A change of the signing keys of one purpose.
    ChangeKeys(Box<KeyChange>),
    /// The renewal of every envelope and MAC that an older sealing key made.
    Resealed {
        /// How many rows were renewed.
        rows: u64,
        /// The admin.
        by: String,
    },
    /// A workload key, added or removed.
    WorkloadKey(WorkloadKeyChange),
    /// A role, given or taken.
    AdminBinding(AdminBindingChange),
    /// Denials that have no leaf of their own.
    DenialsOmitted {
        /// The identity, or the attestor for all its identities together.
        subject: String,
        /// How many.
        count: u64,
        /// Since when.
        since: Timestamp,
    },
    /// The first leaf.
    Genesis {
        /// The verifier key of the log's checkpoints.
        vkey: String,
        /// Its row: the key is kept if, and only if, the log begins with it.
        row: Box<SigningKeyRow>,
        /// The log that it takes the place of.
        succeeds: Option<Succession>,
    },
    /// Nothing to record: evidence that a reading call used up, and its caller, judged.
    Consume,
}

/// A decision on a request for a credential or a task.
#[derive(Clone, Debug)]
pub struct Decide {
    /// The decision.
    pub id: DecisionId,
    /// The size of the log when the request began: what was cut off since then is refused.
    pub basis: u64,
    /// Who asked.
    pub identity: Identity,
    /// Which run of it.
    pub instance: Option<Instance>,
    /// Who verified that.
    pub attestor: String,
    /// The outcome.
    pub outcome: Decided,
    /// Why not.
    pub refusal: Option<Refusal>,
    /// The policies that determined it.
    pub policies: Vec<String>,
    /// What policies that merely observe would have made of it.
    pub observed: Option<Box<Observed>>,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The resource, where it exists.
    pub resource: Option<String>,
    /// The commitment to the evaluation's input, and what opens it.
    pub input: (Commitment, Opening),
    /// The commitment to the purpose, and what opens it.
    pub purpose: Option<(Commitment, Opening)>,
    /// The task and its parents, nearest first, where it came so far.
    pub task: Option<(TaskId, Vec<TaskId>)>,
    /// For a permit: the task to be opened or joined.
    pub plan: Option<TaskPlan>,
    /// For a permit of a credential: its session.
    pub session: Option<SessionPlan>,
    /// For a permit under an `Idempotency-Key`.
    pub retry: Option<RetryPlan>,
}

/// What a permit does to tasks.
#[derive(Clone, Debug)]
pub enum TaskPlan {
    /// Opens one.
    Open {
        /// Its record; `leaf_index` is set when it is appended.
        task: Box<Task>,
        /// Tasks of this type that its owner may have open at once.
        max_open: u32,
        /// What its parent gives up.
        parent: Option<ParentPlan>,
    },
    /// Works under an open one.
    Join {
        /// Which.
        task: TaskId,
        /// The digest of the handle that replaces the old one, on a retry.
        new_handle: Option<[u8; 32]>,
    },
}

/// What opening a child takes from its parent.
#[derive(Clone, Copy, Debug)]
pub struct ParentPlan {
    /// The parent.
    pub task: TaskId,
    /// Credentials taken from its budget.
    pub sessions: u32,
}

/// The session of a permit.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    /// Its record; `leaf_index` is set when it is appended.
    pub session: Session,
    /// The resource, as it is registered.
    pub resource: Arc<Resource>,
    /// On whose behalf it is, nearest first.
    pub delegators: Vec<Identity>,
    /// The lease of a mint that happens elsewhere.
    pub lease: Option<MintLease>,
    /// What a token of the broker's own says of its issuer; nothing of other credentials.
    pub token: Option<TokenPlan>,
}

/// What a token of the broker's own says of its issuer.
#[derive(Clone, Debug)]
pub struct TokenPlan {
    /// The `iss`.
    pub issuer: String,
    /// The first status list of this log, if the token is in one.
    pub first_status_list: Option<u64>,
}

/// The use of an `Idempotency-Key`.
#[derive(Clone, Debug)]
pub struct RetryPlan {
    /// SHA-256 of identity, instance and key.
    pub key: [u8; 32],
    /// SHA-256 of the request's body.
    pub fingerprint: [u8; 32],
    /// When the key may be used anew.
    pub expires_at: Timestamp,
    /// What the key got before, if this is a retry: it must still be exactly that.
    pub replaces: Option<RetryFacts>,
}

/// The end of a task.
#[derive(Clone, Debug)]
pub struct EndTask {
    /// Which.
    pub task: TaskId,
    /// How.
    pub end: TaskEnd,
    /// On whose word.
    pub by: String,
    /// The identity whose own the leaf is.
    pub owner: Identity,
}

/// The acceptance of a time by an administrator.
#[derive(Clone, Debug)]
pub struct AcceptTime {
    /// The cutoff of what is dated later. Its index and its end are set when it is appended.
    pub cutoff: Cutoff,
    /// When the newest leaf was decided, as it says itself.
    pub recorded: Timestamp,
    /// What is accepted.
    pub accepted: Timestamp,
    /// Why, committed to, with what opens it.
    pub reason: (Commitment, Opening),
}

/// A delegation token.
#[derive(Clone, Debug)]
pub struct Delegate {
    /// SHA-256 of the token.
    pub digest: [u8; 32],
    /// The parent task.
    pub task: TaskId,
    /// Who may open the child.
    pub child: Identity,
    /// Credentials that go with it.
    pub sessions: u32,
    /// Until when.
    pub expires_at: Timestamp,
    /// The identity whose own the leaf is.
    pub owner: Identity,
}

/// The end of one session.
#[derive(Clone, Debug)]
pub struct EndSession {
    /// Which.
    pub session: SessionId,
    /// `Ended`, or `Ending` where a back end has yet to confirm.
    pub state: SessionState,
    /// Why.
    pub reason: EndReason,
    /// Whether the back end refused for certain to make it. Then its task gets the credential back
    /// that the session took of its budget.
    pub never_made: bool,
    /// On whose word.
    pub by: String,
    /// The identity whose own the leaf is.
    pub owner: Identity,
}

/// A back end's word on an ending.
#[derive(Clone, Debug)]
pub struct ConfirmEnd {
    /// Which session.
    pub session: SessionId,
    /// Why it ended.
    pub reason: EndReason,
    /// Whether the back end confirmed it; if not, it runs until it expires.
    pub confirmed: bool,
    /// The identity whose own the leaf is.
    pub owner: Identity,
}

/// A change of the signing keys of one purpose: recorded whole, and only if the keys are still those
/// upon which it was planned.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// The key that the leaf is about, new or with new dates.
    pub row: SigningKeyRow,
    /// Other keys that get an end by it.
    pub retired: Vec<SigningKeyRow>,
    /// [`keys_basis`](crate::store::keys::keys_basis) of the keys upon which it was planned.
    pub basis: [u8; 32],
    /// `added`, `revoked` or `retired`.
    pub change: &'static str,
    /// The public part of an added key.
    pub public: Option<String>,
    /// The admin, or `schedule`.
    pub by: String,
}

/// A workload key, added or removed.
#[derive(Clone, Debug)]
pub struct WorkloadKeyChange {
    /// The attestor.
    pub attestor: String,
    /// The workload's name.
    pub workload: String,
    /// The key's thumbprint.
    pub thumbprint: String,
    /// The key; none removes it.
    pub jwk: Option<String>,
    /// On whose word.
    pub by: String,
}

/// A role, given or taken.
#[derive(Clone, Debug)]
pub struct AdminBindingChange {
    /// Who.
    pub identity: Identity,
    /// Which role.
    pub role: String,
    /// Given or taken.
    pub bound: bool,
    /// On whose word.
    pub by: String,
}

/// The caller of a request, as cutoffs match it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestCaller {
    /// Its identity. With a task's handle alone, the identity of the task's owner.
    pub identity: Identity,
    /// The attestor that verified it, or that verified the task's owner.
    pub attestor: String,
    /// The task that the request keeps alive or lends from. A cutoff that blocks this task, one
    /// above it or the owner of either refuses the request too.
    pub task: Option<TaskId>,
    /// The act, for the refusal: the name of an admin's action, or `the request`.
    pub act: &'static str,
    /// Whether policy lets the caller lift cutoffs. Then a refusal names the one that it may lift.
    pub may_lift: bool,
}

/// The act of a caller that is no admin's action.
pub const ANY_REQUEST: &str = "the request";

impl RequestCaller {
    /// A caller that attested who it is.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            identity: workload.identity.clone(),
            attestor: workload.attestor.clone(),
            task: None,
            act: ANY_REQUEST,
            may_lift: false,
        }
    }

    /// A caller that shows the handle of a task, and so speaks for its owner.
    #[must_use]
    pub fn by_handle(task: &Task) -> Self {
        Self {
            identity: task.owner.clone(),
            attestor: task.attestor.clone(),
            task: None,
            act: ANY_REQUEST,
            may_lift: false,
        }
    }
}

/// The state of the broker upon which a caller was let in. A call appends nothing once that state has
/// changed: it is judged anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Premises {
    /// The generation that decided. `None` where the call rests on none.
    pub generation: Option<GenerationDigest>,
    /// The size of the log before role bindings were read. A later binding may have changed them.
    pub bindings_as_of: Option<u64>,
}

/// The one-time ids that a request uses up, and the caller that presented them.
#[derive(Clone, Debug, Default)]
pub struct OneTimeUse {
    /// The ids. If one was used before, nothing is appended.
    pub ids: Vec<OneTime>,
    /// The caller: while a cutoff blocks it, nothing is appended. `None` for the broker's own work,
    /// and for the tokens of the configuration, which no selector names.
    pub by: Option<RequestCaller>,
    /// What must be so still.
    pub premises: Premises,
}

impl From<Vec<OneTime>> for OneTimeUse {
    fn from(ids: Vec<OneTime>) -> Self {
        Self {
            ids,
            ..Self::default()
        }
    }
}

/// An entry that was refused because a cutoff blocks its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The act that was refused.
    pub act: &'static str,
    /// The cutoff, if the caller may lift it; otherwise the caller may not know which one it is.
    pub liftable: Option<CutoffId>,
}

/// An entry with what it uses up and when it was made: what is queued.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to append.
    pub entry: Entry,
    /// The evidence that it uses up, and the caller that it is judged by.
    pub one_time: OneTimeUse,
    /// When it was decided.
    pub at: Timestamp,
}

impl Entry {
    /// The event to be recorded, if there is one.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        Some(match self {
            Self::Decide(decide) => decide.event(),
            Self::EndTask(end) => Event::TaskEnded {
                task: end.task,
                end: end.end,
                by: end.by.clone(),
            },
            Self::Delegate(delegate) => Event::Delegated {
                task: delegate.task,
                child: delegate.child.clone(),
                expires_at: delegate.expires_at,
                max_credentials: delegate.sessions,
            },
            Self::EndSession(end) => Event::SessionEnded {
                session: end.session,
                reason: end.reason,
                by: end.by.clone(),
            },
            Self::ConfirmEnd(confirm) => Event::EndConfirmed {
                session: confirm.session,
                confirmed: confirm.confirmed,
            },
            Self::Cutoff(cutoff, reason, _) => Event::Cutoff {
                id: cutoff.id,
                selector: cutoff.selector.clone(),
                blocked_until: cutoff.block.to_text(),
                deny_policy_target: cutoff.deny_policy_target.clone(),
                reason: reason.clone(),
                by: cutoff.by.clone(),
            },
            Self::Lift { cutoff, by } => Event::CutoffLifted {
                id: cutoff.id,
                by: by.clone(),
            },
            Self::AcceptTime(accept) => Event::TimeAccepted {
                id: accept.cutoff.id,
                recorded_time: accept.recorded,
                accepted_time: accept.accepted,
                reason: accept.reason.0.clone(),
                by: accept.cutoff.by.clone(),
            },
            Self::Activate {
                digest,
                endpoints,
                by,
                ..
            } => Event::Activated {
                generation: *digest,
                endpoints: endpoints.clone(),
                by: by.clone(),
            },
            Self::ChangeKeys(change) => Event::Key {
                purpose: change.row.purpose.clone(),
                kid: change.row.kid.clone(),
                change: change.change.to_owned(),
                public_key: change.public.clone(),
                retired_kids: change.retired.iter().map(|row| row.kid.clone()).collect(),
                by: change.by.clone(),
            },
            Self::Resealed { rows, by } => Event::Admin {
                change: "keys_resealed".into(),
                subject: "sealing-keys".into(),
                value: Some(rows.to_string()),
                by: by.clone(),
            },
            Self::WorkloadKey(change) => Event::Admin {
                change: if change.jwk.is_some() {
                    "workload_key_added".into()
                } else {
                    "workload_key_removed".into()
                },
                subject: format!("{}:{}", change.attestor, change.workload),
                value: Some(change.thumbprint.clone()),
                by: change.by.clone(),
            },
            Self::AdminBinding(change) => Event::Admin {
                change: if change.bound {
                    "admin_bound".into()
                } else {
                    "admin_unbound".into()
                },
                subject: change.identity.to_string(),
                value: Some(change.role.clone()),
                by: change.by.clone(),
            },
            Self::DenialsOmitted {
                subject,
                count,
                since,
            } => Event::DenialsOmitted {
                subject: subject.clone(),
                count: *count,
                since: *since,
            },
            Self::Genesis { vkey, succeeds, .. } => Event::Genesis {
                vkey: vkey.clone(),
                predecessor: succeeds.clone(),
                heads_authenticated: true,
            },
            Self::Consume => return None,
        })
    }

    /// The identity whose own the leaf is: it may read it.
    #[must_use]
    pub fn subject(&self) -> Option<&Identity> {
        match self {
            Self::Decide(decide) => Some(&decide.identity),
            Self::EndTask(end) => Some(&end.owner),
            Self::Delegate(delegate) => Some(&delegate.owner),
            Self::EndSession(end) => Some(&end.owner),
            Self::ConfirmEnd(confirm) => Some(&confirm.owner),
            _ => None,
        }
    }

    /// The decision that the leaf records.
    #[must_use]
    pub fn decision(&self) -> Option<DecisionId> {
        match self {
            Self::Decide(decide) => Some(decide.id),
            _ => None,
        }
    }
}

impl Decide {
    /// The same decision, refused because a precondition failed.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> Self {
        Self {
            outcome: refusal.outcome(),
            refusal: Some(refusal),
            policies: Vec::new(),
            plan: None,
            session: None,
            retry: None,
            ..self.clone()
        }
    }

    fn event(&self) -> Event {
        match (&self.plan, &self.session) {
            (Some(TaskPlan::Open { task, .. }), None) => Event::TaskOpened(Box::new(TaskLeaf {
                decision: self.id,
                task: task.id,
                task_type: task.task_type.clone(),
                task_parents: self.parents(),
                workload: self.identity.clone(),
                instance: self.instance.clone(),
                attestor: self.attestor.clone(),
                deadline: task.deadline,
                generation: self.generation,
                policies: self.policies.clone(),
                input: self.input.0.clone(),
                purpose: self
                    .purpose
                    .as_ref()
                    .map(|(commitment, _)| commitment.clone()),
            })),
            _ => Event::Decision(Box::new(self.leaf())),
        }
    }

    fn parents(&self) -> Vec<TaskId> {
        self.task
            .as_ref()
            .map(|(_, parents)| parents.clone())
            .unwrap_or_default()
    }

    fn leaf(&self) -> DecisionLeaf {
        let permitted = self.session.as_ref();
        let session = permitted.map(|plan| &plan.session);
        let token = permitted.and_then(|plan| plan.token.as_ref());
        let cnf: Option<KeyBinding> = session.and_then(|session| session.key.clone());
        let replaced = self
            .retry
            .as_ref()
            .and_then(|retry| retry.replaces.as_ref());
        DecisionLeaf {
            decision: self.id,
            outcome: self.outcome,
            refusal: self.refusal.as_ref().map(|refusal| refusal.code),
            workload: self.identity.clone(),
            instance: self.instance.clone(),
            attestor: self.attestor.clone(),
            resource: self.resource.clone(),
            task: self.task.as_ref().map(|(task, _)| *task),
            task_parents: self.parents(),
            session: session.map(|session| session.id),
            parent_session: session.and_then(|session| session.parent),
            delegators: permitted.map_or_else(Vec::new, |plan| plan.delegators.clone()),
            supersedes: replaced.map(|facts| facts.session),
            grant: session.map(|session| session.grant.clone()),
            audience: session.map(|session| session.audience.clone()),
            cnf,
            expires_at: session.map(|session| session.expires_at),
            minter: session.map(|session| session.minter.clone()),
            kid: session.map(|session| session.kid.clone()),
            issuer: token.map(|token| token.issuer.clone()),
            first_status_list: token.and_then(|token| token.first_status_list),
            revocability: session.map(|session| session.revocability),
            generation: self.generation,
            policies: if self.outcome == Decided::Permit {
                self.policies.clone()
            } else {
                Vec::new()
            },
            observed: self.observed.clone(),
            input: self.input.0.clone(),
            purpose: self
                .purpose
                .as_ref()
                .map(|(commitment, _)| commitment.clone()),
        }
    }
}

/// A leaf's bytes for an event.
pub(super) fn leaf_bytes(
    origin: &str,
    at: Timestamp,
    event: Event,
) -> Result<Vec<u8>, serde_json::Error> {
    Leaf {
        v: Leaf::VERSION,
        origin: origin.to_owned(),
        at,
        event,
    }
    .to_bytes()
}
