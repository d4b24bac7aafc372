//! Which sessions and tasks a cutoff matches.
//!
//! `Selector::matches` compares a selector with a session and its tasks, `Cutoff::kills` also the
//! order of their leaves: a cutoff never ends a later session. [`is_dated_ahead`] recognises
//! records of a clock that was ahead.
//!
//! Each match on selectors is exhaustive. Nothing here returns an error. [`super`] and the ledger's
//! `cutoffs` call this file.

use crate::clock::Timestamp;
use crate::domain::cutoff::{Cutoff, Selector, SelectorSubject};
use crate::domain::session::Session;
use crate::domain::task::{Task, TaskChain};

impl Selector {
    /// Whether it matches a session with these tasks. Ignores the sessions from which this one was
    /// derived.
    #[must_use]
    pub fn matches(&self, session: &Session, tasks: &TaskChain) -> bool {
        match self {
            Self::Workload(identity) => session.workload == *identity,
            Self::Task(id) => tasks.0.iter().any(|life| life.id == *id),
            Self::Resource(name) => session.resource == *name,
            Self::Attestor(name) => session.attestor == *name,
            Self::Generation(digest) => session.generation == *digest,
            Self::Policy(id) => session.policies.contains(id),
            Self::SigningKey(kid) => session.kid == *kid,
            // A task with a later date was opened by the same wrong clock.
            Self::IssuedAfter(at) => {
                session.issued_at > *at || tasks.0.iter().any(|life| life.opened_at > *at)
            }
            Self::All(_) => true,
        }
    }

    /// Whether a block of this selector prevents acts by the task's owner.
    #[must_use]
    pub fn concerns_task(&self, task: &Task) -> bool {
        match self {
            Self::Workload(identity) => task.owner == *identity,
            Self::Attestor(name) => task.attestor == *name,
            Self::Task(id) => task.id == *id,
            Self::All(_) => true,
            Self::Resource(_)
            | Self::Generation(_)
            | Self::Policy(_)
            | Self::SigningKey(_)
            | Self::IssuedAfter(_) => false,
        }
    }
}

impl Session {
    /// The values that selectors match. Selectors of its tasks and of times match it too, as
    /// [`Selector::matches`] says.
    #[must_use]
    pub fn selector_subject(&self) -> SelectorSubject<'_> {
        SelectorSubject {
            workload: &self.workload,
            attestor: &self.attestor,
            resource: &self.resource,
            generation: self.generation,
            policies: &self.policies,
            kid: Some(&self.kid),
        }
    }
}

impl Cutoff {
    /// Whether it matches `session` or one of its tasks, and is later than the session. Ignores the
    /// sessions from which this one was derived; call it for each of them.
    #[must_use]
    pub fn kills(&self, session: &Session, tasks: &TaskChain) -> bool {
        self.index > session.leaf_index && self.selector.matches(session, tasks)
    }
}

/// Whether a record was dated by a clock that was ahead, so that the acceptance of a time ended it.
/// `accepted` has the accepted times with their leaf indices; `leaf_index` is the record's own.
#[must_use]
pub fn is_dated_ahead(dated_at: Timestamp, leaf_index: u64, accepted: &[(u64, Timestamp)]) -> bool {
    accepted
        .iter()
        .any(|(index, time)| *index > leaf_index && dated_at > *time)
}
