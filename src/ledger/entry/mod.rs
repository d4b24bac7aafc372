//! The entries that can be appended: one file per kind.
//!
//! An entry holds the event to record and the facts that must still be true when it is recorded. It
//! is serialised before it is queued, to keep the time under the lock short. Each kind implements
//! [`EntryKind`]: its event, the rows that it reads under the lock, the check against them, and the
//! rows that it writes. A new kind is a file here, a variant of [`Entry`] and a line in
//! [`Entry::kind`].
//!
//! The rule: `settle` changes the state only for an entry that is recorded. Ends and revocations
//! are accepted even if the store is full; no kind but `AcceptTime` and `Consume` goes by a doubted
//! clock. An error of `settle` fails its entry alone; everything else is an [`Outcome`].
//! `ledger::batch` calls the kinds, after its checks of evidence and caller. The services of
//! `broker` and the sweeper make entries.

mod accept_time;
mod activate;
mod admin_binding;
mod confirm_end;
mod consume;
mod cutoff;
mod decide;
mod delegate;
mod denials_omitted;
mod end_session;
mod end_task;
mod end_tasks;
mod genesis;
mod key_change;
mod lift;
mod permit;
mod resealed;
mod workload_key;

use std::sync::Arc;

pub use self::accept_time::AcceptTime;
pub use self::activate::Activate;
pub use self::admin_binding::AdminBindingChange;
pub use self::confirm_end::ConfirmEnd;
use self::consume::Consume;
pub use self::cutoff::NewCutoff;
pub(crate) use self::decide::blocked_caller;
pub use self::decide::{Decide, Decided, RefusalRecord};
pub use self::delegate::Delegate;
pub use self::denials_omitted::DenialsOmitted;
pub use self::end_session::EndSession;
pub use self::end_task::EndTask;
pub use self::end_tasks::{EndTasks, SweepCause};
pub use self::genesis::Genesis;
pub use self::key_change::KeyChange;
pub use self::lift::Lift;
pub use self::permit::{
    CredentialPlan, JoinPlan, OpenPlan, ParentPlan, PermitPlan, RetryPlan, SessionPlan, TaskPermit,
    TaskPlan, TokenPlan,
};
pub use self::resealed::Resealed;
pub use self::workload_key::WorkloadKeyChange;
pub use super::caller::{ANY_REQUEST, Blocked, OneTimeUse, Premises, RequestCaller};
use super::locked::LockedState;
use super::outcome::{AppendError, Outcome};
use crate::clock::Timestamp;
use crate::domain::leaf::{Event, Leaf, Opening};
use crate::domain::workload::Identity;
use crate::ids::DecisionId;
use crate::merkle::{Hash, leaf_hash};
use crate::store::append::Needs;

/// An entry to be appended.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum Entry {
    /// A decision on a request for a credential or a task.
    Decide(Box<Decide>),
    /// The end of a task.
    EndTask(EndTask),
    /// The end of many tasks by the sweeper.
    EndTasks(EndTasks),
    Delegate(Delegate),
    /// The end of one session.
    EndSession(EndSession),
    /// A back end's answer about the end of a session.
    ConfirmEnd(ConfirmEnd),
    Cutoff(Box<NewCutoff>),
    /// The lifting of a cutoff.
    Lift(Box<Lift>),
    /// The acceptance of the time that the clock shows.
    AcceptTime(Box<AcceptTime>),
    /// The activation of a generation.
    Activate(Activate),
    /// A change of the signing keys of one purpose.
    ChangeKeys(Box<KeyChange>),
    /// The renewal of every envelope and MAC that an older sealing key made.
    Resealed(Resealed),
    /// A workload key, added or removed.
    WorkloadKey(WorkloadKeyChange),
    /// A role, given or removed.
    AdminBinding(AdminBindingChange),
    /// The number of denials that have no leaf of their own.
    DenialsOmitted(DenialsOmitted),
    /// The first leaf of the log.
    Genesis(Box<Genesis>),
    /// No leaf: a call that only reads uses evidence up, and its caller is judged.
    Consume,
}

impl Entry {
    /// The entry as its kind: the ledger's only match on the kinds.
    pub(super) fn kind(&self) -> &dyn EntryKind {
        match self {
            Self::Decide(entry) => &**entry,
            Self::EndTask(entry) => entry,
            Self::EndTasks(entry) => entry,
            Self::Delegate(entry) => entry,
            Self::EndSession(entry) => entry,
            Self::ConfirmEnd(entry) => entry,
            Self::Cutoff(entry) => &**entry,
            Self::Lift(entry) => &**entry,
            Self::AcceptTime(entry) => &**entry,
            Self::Activate(entry) => entry,
            Self::ChangeKeys(entry) => &**entry,
            Self::Resealed(entry) => entry,
            Self::WorkloadKey(entry) => entry,
            Self::AdminBinding(entry) => entry,
            Self::DenialsOmitted(entry) => entry,
            Self::Genesis(entry) => &**entry,
            Self::Consume => &Consume,
        }
    }
}

/// The ledger's questions to each kind of entry. The default answers are the strict ones.
pub(super) trait EntryKind {
    /// The event to be recorded; `None` for an entry that only uses evidence up.
    fn event(&self) -> Option<Event>;

    /// The identity that may read the leaf as its own.
    fn subject(&self) -> Option<&Identity>;

    /// Whether the entry is refused while the store exceeds its size limit. An entry that ends or
    /// revokes something is never refused.
    fn needs_free_space(&self) -> bool;

    /// The decision that the leaf records. A decision is useless without its receipt.
    fn decision(&self) -> Option<DecisionId> {
        None
    }

    /// The openings of the leaf's commitments.
    fn openings(&self) -> EntryOpenings<'_> {
        EntryOpenings::default()
    }

    /// Whether the entry may be recorded while the clock is in doubt.
    fn goes_by_any_clock(&self) -> bool {
        false
    }

    /// Adds the rows that the settling reads.
    fn need(&self, _needs: &mut Needs) {}

    /// The refusal of a caller that a cutoff blocks.
    fn blocked(&self, by: &RequestCaller, state: &LockedState<'_>) -> Option<Blocked> {
        let obstacle = state.obstacle(by, [state.now()])?;
        Some(obstacle.blocked(by))
    }

    /// Checks the entry against the state under the lock, and applies its changes to that state if
    /// it is recorded. An error is caused by this entry and fails it alone; the state is then
    /// unchanged.
    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError>;
}

/// The openings of a leaf's commitments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EntryOpenings<'e> {
    pub(super) input: Option<&'e Opening>,
    /// Opens the commitment to a task's purpose or an act's reason.
    pub(super) purpose: Option<&'e Opening>,
}

/// The leaf of an entry that is recorded.
#[derive(Clone, Debug)]
pub(super) enum Draft {
    /// The leaf that was serialised before the entry was queued, and the session that it permits.
    Prepared(Option<Box<SessionPlan>>),
    /// A different leaf, of this event: the refusal of the queued permit, or fewer ends than queued.
    Other(Box<Event>),
}

impl Outcome<Draft> {
    /// Records the leaf of an act as it was serialised.
    fn recorded() -> Self {
        Self::Recorded(Draft::Prepared(None))
    }

    /// Records the leaf of an act if the act changed anything.
    fn recorded_if(changed: bool) -> Self {
        if changed {
            Self::recorded()
        } else {
            Self::Unchanged
        }
    }
}

/// An entry in the queue, with the evidence that it uses up and its time.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Request {
    pub entry: Entry,
    /// The evidence that the entry uses up, and its caller.
    pub one_time: OneTimeUse,
    /// The time of the decision.
    pub at: Timestamp,
}

/// The bytes and the hash of an event's leaf.
pub(super) fn leaf_of(
    origin: &str,
    at: Timestamp,
    event: Event,
) -> Result<(Arc<[u8]>, Hash), serde_json::Error> {
    let leaf = Leaf {
        v: Leaf::VERSION,
        origin: origin.to_owned(),
        at,
        event,
    };
    let body = leaf.to_bytes()?;
    let hash = leaf_hash(&body);
    Ok((body.into(), hash))
}
