//! The entries that can be appended: one file a kind.
//!
//! An entry says what it records and which facts must still hold when it is recorded. It is
//! serialised before it is queued, so that no time is spent on that under the lock. Each kind
//! implements [`EntryKind`]: its event, the rows that it needs under the lock, how it is settled
//! against them, and the rows that it writes. A new kind is a file here, a variant of [`Entry`] and a
//! line in [`Entry::kind`].

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

/// Something to be appended.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A decision on a request for a credential or a task.
    Decide(Box<Decide>),
    /// The end of a task.
    EndTask(EndTask),
    /// A delegation token.
    Delegate(Delegate),
    /// The end of one session.
    EndSession(EndSession),
    /// The answer of a back end about an ending.
    ConfirmEnd(ConfirmEnd),
    /// A new cutoff.
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
    /// A role, given or taken.
    AdminBinding(AdminBindingChange),
    /// The number of denials that have no leaf of their own.
    DenialsOmitted(DenialsOmitted),
    /// The first leaf of the log.
    Genesis(Box<Genesis>),
    /// No leaf: evidence that a reading call uses up, and the caller to be judged.
    Consume,
}

impl Entry {
    /// The entry as its kind: the only match on the kinds in the ledger.
    pub(super) fn kind(&self) -> &dyn EntryKind {
        match self {
            Self::Decide(entry) => &**entry,
            Self::EndTask(entry) => entry,
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

/// The questions that the ledger asks of each kind of entry. The answers that a kind may leave out are
/// the strict ones.
pub(super) trait EntryKind {
    /// The event to be recorded; `None` for an entry that only uses evidence up.
    fn event(&self) -> Option<Event>;

    /// The identity that may read the leaf as its own.
    fn subject(&self) -> Option<&Identity>;

    /// Whether the entry is refused while the store is larger than its limit. An entry that ends or
    /// revokes something never is.
    fn needs_free_space(&self) -> bool;

    /// The decision that the leaf records. A decision is worth nothing without its receipt.
    fn decision(&self) -> Option<DecisionId> {
        None
    }

    /// The texts that open the commitments of the leaf.
    fn openings(&self) -> Openings<'_> {
        Openings::default()
    }

    /// Whether the entry may be recorded while the clock is in doubt.
    fn goes_by_any_clock(&self) -> bool {
        false
    }

    /// Adds the rows that settling depends on.
    fn need(&self, _needs: &mut Needs) {}

    /// The refusal of a caller that a cutoff blocks.
    fn blocked(&self, by: &RequestCaller, state: &LockedState<'_>) -> Option<Blocked> {
        let obstacle = state.obstacle(by, [state.now()])?;
        Some(obstacle.blocked(by))
    }

    /// Checks the entry against the state under the lock, and changes that state where it is recorded.
    /// An error is the fault of this entry and fails it alone; then the state is unchanged.
    fn settle(&self, state: &mut LockedState<'_>) -> Result<Outcome<Draft>, AppendError>;
}

/// The texts that open the commitments of a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Openings<'e> {
    pub(super) input: Option<&'e Opening>,
    /// Opens the commitment to the purpose of a task, or to the reason of an act.
    pub(super) purpose: Option<&'e Opening>,
}

/// The leaf of an entry that is recorded.
#[derive(Clone, Debug)]
pub(super) enum Draft {
    /// The leaf that was serialised before the entry was queued, and the session that it permits.
    Prepared(Option<Box<SessionPlan>>),
    /// Another leaf: the refusal of a permit that was queued.
    Refusal(Box<Event>),
}

impl Outcome<Draft> {
    /// The leaf of an act is recorded as it was serialised.
    fn recorded() -> Self {
        Self::Recorded(Draft::Prepared(None))
    }

    /// The leaf of an act is recorded if the act changed anything.
    fn recorded_if(changed: bool) -> Self {
        if changed {
            Self::recorded()
        } else {
            Self::Unchanged
        }
    }
}

/// An entry with what it uses up and when it was made: what is queued.
#[derive(Clone, Debug)]
pub struct Request {
    /// The entry to be appended.
    pub entry: Entry,
    /// The evidence that it uses up, and the caller that it is judged by.
    pub one_time: OneTimeUse,
    /// When it was decided.
    pub at: Timestamp,
}

/// The bytes and the hash of the leaf of an event.
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
