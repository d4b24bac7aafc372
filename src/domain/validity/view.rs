//! Sessions with all rows that decide about them, as a store read them together.
//!
//! The store reads [`ValidityFacts`]; [`ValidityFacts::view`] turns a session into a
//! [`SessionView`], which answers for its status at an instant. `is_ended_by` counts the sessions
//! that one cutoff ends.
//!
//! A missing ancestor session, or a chain of them that is longer than permitted, makes the session
//! revoked and is no error. The rule itself is in [`super`]. The ledger's `locked` and the store's
//! `sessions` call this file.

use std::collections::HashMap;

use super::{CutOff, EffectiveStatus, Ending, SessionLife, StatusFacts, TaskLink};
use crate::clock::Timestamp;
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::limits::MAX_CHAIN_DEPTH;
use crate::domain::session::Session;
use crate::domain::task::TaskChain;
use crate::domain::workload::Identity;
use crate::ids::{SessionId, TaskId};

/// A session from which another was derived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct Ancestor {
    pub id: SessionId,
    pub workload: Identity,
    pub life: SessionLife,
}

/// A session with all facts that decide whether it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SessionView {
    pub session: Session,
    /// Its task and the ancestors of the task.
    pub tasks: TaskChain,
    /// The sessions from which it was derived, nearest first.
    pub ancestors: Vec<Ancestor>,
    /// The commit time of the first cutoff that matches it, its task, an ancestor session, or an
    /// ancestor task. `None` if no cutoff matches.
    pub cut_off_at: Option<Timestamp>,
    /// Whether the record of a session from which it was derived is missing.
    pub is_orphaned: bool,
}

impl SessionView {
    /// Its status at `now`.
    #[must_use]
    pub fn status_at(&self, now: Timestamp) -> EffectiveStatus {
        self.facts().status_at(now)
    }

    /// Whether the credential is valid at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.status_at(now).is_valid()
    }

    /// The end at `now` that does not come from its own record or expiry; `None` if there is none.
    #[must_use]
    pub fn inherited_end(&self, now: Timestamp) -> Option<Ending> {
        self.facts().inherited_end(now)
    }

    pub(super) fn facts(&self) -> StatusFacts<'_> {
        let ancestors = self.ancestors.iter().map(|ancestor| ancestor.life);
        StatusFacts {
            life: self.session.life(),
            tasks: &self.tasks,
            // Which of them it matches does not affect the status.
            cut_off: self.cut_off_at.map(|at| CutOff {
                at,
                inherited: false,
            }),
            ancestors: ancestors.collect(),
            orphaned_at: self.is_orphaned.then_some(self.session.issued_at),
        }
    }
}

/// Rows that decide about sessions, as a store read them together.
#[derive(Clone, Debug, Default)]
pub struct ValidityFacts {
    /// Tasks and their ancestors.
    pub tasks: HashMap<TaskId, TaskLink>,
    /// Sessions from which others were derived.
    pub sessions: HashMap<SessionId, Session>,
    /// The cutoffs, oldest first.
    pub cutoffs: Vec<Cutoff>,
}

impl ValidityFacts {
    /// A task and its ancestors.
    #[must_use]
    pub fn chain(&self, task: TaskId) -> TaskChain {
        TaskChain::of(task, |id| self.tasks.get(&id).copied())
    }

    /// A session with all facts that decide about it.
    #[must_use]
    pub fn view(&self, session: Session) -> SessionView {
        let tasks = self.chain(session.task_id);
        let mut cut_off_at = self.cut_off_at(&session, &tasks);
        let mut ancestors = Vec::new();
        let mut is_orphaned = false;
        let mut next = session.parent;
        while let Some(id) = next {
            // A longer chain than any chain of tasks can only be forged.
            let known = self.sessions.get(&id);
            let known = known.filter(|_| ancestors.len() <= usize::from(MAX_CHAIN_DEPTH));
            let Some(ancestor) = known else {
                is_orphaned = true;
                break;
            };
            let own = self.chain(ancestor.task_id);
            cut_off_at = cut_off_at.or_else(|| self.cut_off_at(ancestor, &own));
            ancestors.push(Ancestor {
                id,
                workload: ancestor.workload.clone(),
                life: ancestor.life(),
            });
            next = ancestor.parent;
        }
        SessionView {
            session,
            tasks,
            ancestors,
            cut_off_at,
            is_orphaned,
        }
    }

    /// Whether a cutoff with this selector (leaf at `index`, committed at `at`) counts the session
    /// as ended by it. This holds if the session, every session between it and a matching session,
    /// and the task of the matching session were live at `at` by their own records and the clock.
    /// Ignores other cutoffs, heartbeats and more distant tasks, so the count is never smaller than
    /// the number of sessions that become invalid.
    #[must_use]
    pub fn is_ended_by(
        &self,
        session: &Session,
        selector: &Selector,
        index: u64,
        at: Timestamp,
    ) -> bool {
        let mut next = Some(session);
        for _ in 0..=MAX_CHAIN_DEPTH {
            let Some(session) = next.filter(|session| session.life().lived_at(at)) else {
                return false;
            };
            let task = self.tasks.get(&session.task_id);
            let matches = session.leaf_index < index
                && task.is_some_and(|task| task.life.lived_at(at))
                && selector.matches(session, &self.chain(session.task_id));
            if matches {
                return true;
            }
            next = session.parent.and_then(|id| self.sessions.get(&id));
        }
        false
    }

    fn cut_off_at(&self, session: &Session, tasks: &TaskChain) -> Option<Timestamp> {
        let first = self
            .cutoffs
            .iter()
            .find(|cutoff| cutoff.kills(session, tasks));
        first.map(|cutoff| cutoff.committed_at)
    }
}
