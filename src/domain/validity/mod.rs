//! Decides whether a session or a task is valid at an instant. Only this file decides it.
//!
//! [`StatusFacts::status_at`] is the rule. It derives an [`EffectiveStatus`] from the session's
//! record, its task and the ancestors of the task, the sessions from which it was derived, the
//! first matching cutoff, and the present instant. The store reads these facts into
//! [`ValidityFacts`] and decides nothing. The ledger calls the same functions under its lock, and
//! the coverage report calls them with facts that it rebuilt from leaves.
//!
//! Nothing here returns an error, and a missing ancestor never makes a session valid: a task whose
//! row or ancestor is missing counts as aborted, and a session whose ancestor session is missing as
//! revoked. A session with an end that its back end has not confirmed is [`SessionState::Ending`],
//! which is not valid either.
//!
//! SQL statements that filter or count many rows decide in SQL. `store/validity_sql.rs` has their
//! fragments, each with the name of the function here that it mirrors. A property test on both
//! databases shows that they are equal.

use std::collections::HashMap;

use super::cutoff::{Cutoff, Selector, SelectorSubject};
use super::limits::MAX_CHAIN_DEPTH;
use super::revocability::RevocationClass;
use super::session::{EndReason, Session, SessionState};
use super::task::{Task, TaskChain, TaskEnd, TaskLife, TaskState};
use super::workload::Identity;
use crate::clock::Timestamp;
use crate::ids::{SessionId, TaskId};

/// The status of a session at an instant, derived from all facts. The session's record may lag
/// behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectiveStatus {
    /// Only `Active` is valid.
    pub state: SessionState,
    /// The reason for the end; `None` while the session has not ended.
    pub end_reason: Option<EndReason>,
    /// The time of the end at the broker.
    pub ended_at: Option<Timestamp>,
    /// The time from which every use is refused: by the back end's confirmation or by expiry.
    pub confirmed_at: Option<Timestamp>,
}

impl EffectiveStatus {
    /// The status of a session that was just released.
    pub const ACTIVE: Self = Self {
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    };

    /// Whether the credential is valid.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.state == SessionState::Active
    }
}

/// The end of a session or a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The time of the end at the broker.
    pub at: Timestamp,
    /// The kind of event that caused it.
    pub cause: EndCause,
    /// Whether it comes from an ancestor task or from a session from which this one was derived.
    pub inherited: bool,
}

/// The kind of event that caused an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The session reached its expiry.
    Expired,
    /// The session's record has an end.
    Recorded(EndReason),
    /// Its task or an ancestor of the task ended.
    Task(TaskEnd),
    /// A matching cutoff was committed.
    CutOff,
}

impl Ending {
    /// The end reason of the session.
    #[must_use]
    pub fn reason(&self) -> EndReason {
        match self.cause {
            EndCause::Expired => EndReason::Expired,
            EndCause::Recorded(_) if self.inherited => EndReason::Revoked,
            EndCause::Recorded(reason) => reason,
            EndCause::Task(end) => end.end_reason(),
            EndCause::CutOff => EndReason::Revoked,
        }
    }
}

impl TaskEnd {
    /// The end reason of the sessions of a task that ends in this way.
    #[must_use]
    pub fn end_reason(self) -> EndReason {
        match self {
            Self::Complete => EndReason::Completed,
            Self::Abort => EndReason::Revoked,
            Self::Expire => EndReason::Expired,
        }
    }
}

impl TaskState {
    /// The way in which a task in this state ended; `None` while it is open.
    #[must_use]
    pub fn end(self) -> Option<TaskEnd> {
        match self {
            Self::Open => None,
            Self::Completed => Some(TaskEnd::Complete),
            Self::Aborted => Some(TaskEnd::Abort),
            Self::Expired => Some(TaskEnd::Expire),
        }
    }
}

impl TaskLife {
    /// The instant at which an open task expires without a further heartbeat: its deadline, or the
    /// end of its heartbeat interval.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        match self.heartbeat_seconds {
            Some(seconds) => self.deadline.min(self.heard_at.plus_seconds(seconds)),
            None => self.deadline,
        }
    }

    /// Its state at `now`. A task whose record is open may have expired.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        self.end_at(now)
            .map_or(TaskState::Open, |(end, _)| end.state())
    }

    /// Whether it can be brought into this state at `now`. A task that has expired can only end as
    /// expired.
    #[must_use]
    pub fn can_end_as(&self, state: TaskState, now: Timestamp) -> bool {
        self.state == TaskState::Open && (state == TaskState::Expired || now < self.expires_at())
    }

    /// Whether it was open at `at` by its record and its deadline, ignoring heartbeats. An end that
    /// is recorded at `at` or later counts as a later one.
    #[must_use]
    pub fn lived_at(&self, at: Timestamp) -> bool {
        let on_record = match self.state {
            TaskState::Open => true,
            TaskState::Completed | TaskState::Aborted | TaskState::Expired => {
                self.ended_at.is_some_and(|ended| ended >= at)
            }
        };
        on_record && at < self.deadline
    }

    fn end_at(&self, now: Timestamp) -> Option<(TaskEnd, Timestamp)> {
        let end = match self.state.end() {
            Some(end) => end,
            None if now >= self.expires_at() => TaskEnd::Expire,
            None => return None,
        };
        Some((end, self.ended_at.unwrap_or_else(|| self.expires_at())))
    }
}

impl TaskChain {
    /// The chain of the task `id`, whose links `link` looks up. Empty, and so ended, if a link is
    /// missing or the chain is longer than permitted.
    #[must_use]
    pub fn of(id: TaskId, link: impl Fn(TaskId) -> Option<TaskLink>) -> Self {
        let mut lives = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            match link(id) {
                Some(link) if lives.len() <= usize::from(MAX_CHAIN_DEPTH) => {
                    lives.push(link.life);
                    next = link.parent;
                }
                _ => return Self(Vec::new()),
            }
        }
        Self(lives)
    }

    /// The state of the task at `now`: that of the nearest link that is not open, ended
    /// intermediate tasks included.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> TaskState {
        self.ends(now)
            .next()
            .map_or(TaskState::Open, |(_, end, _)| end.state())
    }

    /// The end of the nearest link that has ended at `now`; `None` if the task is alive.
    #[must_use]
    pub fn ended(&self, now: Timestamp) -> Option<Ending> {
        self.endings(now).next()
    }

    /// The earliest deadline of the chain. No credential under it may live longer.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let deadlines = self.0.iter().map(|life| life.deadline);
        deadlines.min().unwrap_or(Timestamp::EPOCH)
    }

    fn endings(&self, now: Timestamp) -> impl Iterator<Item = Ending> {
        self.ends(now).map(|(above, end, at)| Ending {
            at,
            cause: EndCause::Task(end),
            inherited: above > 0,
        })
    }

    /// Every link that has ended at `now`, nearest first, with its distance.
    fn ends(&self, now: Timestamp) -> impl Iterator<Item = (usize, TaskEnd, Timestamp)> {
        let missing = self.0.is_empty().then_some((0, TaskEnd::Abort, now));
        let links = self.0.iter().enumerate();
        let ended = links.filter_map(move |(above, life)| {
            let (end, at) = life.end_at(now)?;
            Some((above, end, at))
        });
        missing.into_iter().chain(ended)
    }
}

/// The facts in one session's record that affect its validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `Session` with the same names")]
pub struct SessionLife {
    pub state: SessionState,
    pub end_reason: Option<EndReason>,
    pub ended_at: Option<Timestamp>,
    pub confirmed_at: Option<Timestamp>,
    pub expires_at: Timestamp,
    /// Seconds from an end at the broker until every use refuses the credential without a back
    /// end's help; `None` if a back end must confirm the end.
    pub known_after_seconds: Option<u64>,
}

impl SessionLife {
    /// Whether it has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }

    /// Whether it was released and has not ended by its record or by expiry.
    #[must_use]
    pub fn stands(&self, now: Timestamp) -> bool {
        self.state == SessionState::Active && !self.is_expired(now)
    }

    /// Whether it is or can become valid: not ended by its record and not expired.
    #[must_use]
    pub fn may_stand(&self, now: Timestamp) -> bool {
        self.state != SessionState::Ended && !self.is_expired(now)
    }

    /// Whether by its record and the clock it could still be used somewhere at `at`. An end that is
    /// recorded at `at` or later counts as a later one.
    #[must_use]
    pub fn lived_at(&self, at: Timestamp) -> bool {
        let on_record = match self.state {
            SessionState::Minting | SessionState::Active | SessionState::Ending => true,
            SessionState::Ended => self.ended_at.is_some_and(|ended| ended >= at),
        };
        on_record && !self.is_expired(at)
    }

    /// Whether every use refuses it at `now`, if a cutoff that was committed at `at` is its first
    /// end.
    #[must_use]
    pub fn is_cut_off_everywhere(&self, at: Timestamp, now: Timestamp) -> bool {
        let tasks = TaskChain(Vec::new());
        let facts = StatusFacts {
            life: *self,
            tasks: &tasks,
            cut_off: Some(CutOff {
                at,
                inherited: false,
            }),
            ancestors: Vec::new(),
            orphaned_at: None,
        };
        facts.status_at(now).state == SessionState::Ended
    }

    fn recorded(&self, now: Timestamp) -> Option<Ending> {
        let cause = EndCause::Recorded(self.end_reason?);
        Some(Ending {
            at: self.ended_at.unwrap_or(now),
            cause,
            inherited: false,
        })
    }

    /// The ends by `now` that this session passes on to a session derived from it.
    fn passed_on(&self, now: Timestamp) -> impl Iterator<Item = Ending> + use<> {
        let recorded = (self.state != SessionState::Active).then(|| Ending {
            at: self.ended_at.unwrap_or(now),
            cause: EndCause::Recorded(self.end_reason.unwrap_or(EndReason::Revoked)),
            inherited: true,
        });
        let expired = self.is_expired(now).then_some(Ending {
            at: self.expires_at,
            cause: EndCause::Expired,
            inherited: true,
        });
        recorded.into_iter().chain(expired)
    }
}

/// The first cutoff that matches a session, its task or an ancestor of the task, or a session from
/// which it was derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The time of its commit.
    pub at: Timestamp,
    /// Whether it matches only ancestors, not the session itself.
    pub inherited: bool,
}

/// The facts from which the status of a session follows.
#[derive(Clone, Debug)]
pub struct StatusFacts<'a> {
    /// The session's own record.
    pub life: SessionLife,
    /// Its task and the ancestors of the task.
    pub tasks: &'a TaskChain,
    /// The first matching cutoff; `None` if none matches.
    pub cut_off: Option<CutOff>,
    /// The sessions from which it was derived, nearest first.
    pub ancestors: Vec<SessionLife>,
    /// If the record of a session from which it was derived is missing: the time of issue. Such a
    /// session is revoked from the start.
    pub orphaned_at: Option<Timestamp>,
}

impl StatusFacts<'_> {
    /// The status at `now`.
    #[must_use]
    pub fn status_at(&self, now: Timestamp) -> EffectiveStatus {
        let life = &self.life;
        let recorded = EffectiveStatus {
            state: life.state,
            end_reason: life.end_reason,
            ended_at: life.ended_at,
            confirmed_at: life.confirmed_at,
        };
        if life.state == SessionState::Ended {
            return recorded;
        }
        let ending = life.recorded(now).or_else(|| self.inherited_end(now));
        // Expiry ends it for every use, even if no back end confirmed anything.
        if life.is_expired(now) {
            let (reason, at) = match ending {
                Some(ending) => (ending.reason(), ending.at.min(life.expires_at)),
                None => (EndReason::Expired, life.expires_at),
            };
            return EffectiveStatus {
                state: SessionState::Ended,
                end_reason: Some(reason),
                ended_at: Some(at),
                confirmed_at: Some(life.expires_at),
            };
        }
        let Some(ending) = ending else {
            return recorded;
        };
        let known_everywhere = life
            .known_after_seconds
            .map(|seconds| ending.at.plus_seconds(seconds));
        let confirmed_at = known_everywhere
            .filter(|confirmed| life.state == SessionState::Active && *confirmed <= now);
        EffectiveStatus {
            state: match confirmed_at {
                Some(_) => SessionState::Ended,
                None => SessionState::Ending,
            },
            end_reason: Some(ending.reason()),
            ended_at: Some(ending.at),
            confirmed_at,
        }
    }

    /// The end at `now` that does not come from the session's own record or expiry. A cutoff takes
    /// precedence over a task, and a task over an ancestor session.
    #[must_use]
    pub fn inherited_end(&self, now: Timestamp) -> Option<Ending> {
        self.inherited(now).next()
    }

    /// The earliest of all ends, at the latest the session's own expiry.
    #[must_use]
    pub fn first_end(&self) -> Ending {
        let expiry = Ending {
            at: self.life.expires_at,
            cause: EndCause::Expired,
            inherited: false,
        };
        let recorded = self.life.recorded(Timestamp::MAX);
        let others = self.inherited(Timestamp::MAX);
        recorded
            .into_iter()
            .chain(others)
            .fold(
                expiry,
                |first, next| {
                    if next.at < first.at { next } else { first }
                },
            )
    }

    /// Every end by `now` that does not come from the session itself. A cutoff counts as soon as it
    /// is known, regardless of the clock of the replica that committed it.
    fn inherited(&self, now: Timestamp) -> impl Iterator<Item = Ending> {
        let cut_off = self.cut_off.map(|cut_off| Ending {
            at: cut_off.at,
            cause: EndCause::CutOff,
            inherited: cut_off.inherited,
        });
        let orphaned = self.orphaned_at.map(|at| Ending {
            at,
            cause: EndCause::Recorded(EndReason::Revoked),
            inherited: true,
        });
        let ancestors = self.ancestors.iter();
        cut_off
            .into_iter()
            .chain(orphaned)
            .chain(self.tasks.endings(now))
            .chain(ancestors.flat_map(move |life| life.passed_on(now)))
    }
}

impl Session {
    /// The facts in its record that affect its validity.
    #[must_use]
    pub fn life(&self) -> SessionLife {
        SessionLife {
            state: self.state,
            end_reason: self.end_reason,
            ended_at: self.ended_at,
            confirmed_at: self.confirmed_at,
            expires_at: self.expires_at,
            known_after_seconds: self.known_after_seconds(),
        }
    }

    /// If every use asks the broker, an end takes effect at once. If servers poll status lists, it
    /// does when the last earlier list is too old. Otherwise the back end must confirm it.
    fn known_after_seconds(&self) -> Option<u64> {
        match self.revocability.class {
            RevocationClass::Immediate { .. } => Some(0),
            RevocationClass::Bounded { bound_seconds } => {
                self.is_in_status_lists().then_some(bound_seconds)
            }
            RevocationClass::ExpiryOnly => None,
        }
    }

    /// Whether its record is active and a back end must end it within a bound. An end that its
    /// record does not show must then be started at the back end.
    #[must_use]
    pub fn is_active_at_back_end(&self) -> bool {
        self.state == SessionState::Active
            && matches!(self.revocability.class, RevocationClass::Bounded { .. })
            && !self.minter.is_local()
    }

    /// The state after its record is ended: `Ended` if every use asks the broker. A back end may
    /// still create a credential that it is minting.
    #[must_use]
    pub fn state_once_ended(&self) -> SessionState {
        if self.state == SessionState::Minting {
            return SessionState::Ending;
        }
        match self.revocability.class {
            RevocationClass::Immediate { .. } => SessionState::Ended,
            RevocationClass::Bounded { .. } | RevocationClass::ExpiryOnly => SessionState::Ending,
        }
    }

    /// The values that selectors match, other than its tasks.
    #[must_use]
    pub fn subject(&self) -> SelectorSubject<'_> {
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

    fn facts(&self) -> StatusFacts<'_> {
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

/// A task with the id of its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct TaskLink {
    pub life: TaskLife,
    pub parent: Option<TaskId>,
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

#[cfg(test)]
mod tests;
