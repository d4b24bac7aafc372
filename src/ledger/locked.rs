//! The state that the entries of a batch are settled against: the rows that were read under the
//! ledger's lock, and the changes of the earlier entries.
//!
//! [`LockedState`] answers questions about the clock, cutoffs, tasks and sessions, and collects the
//! rows to write. [`Obstacle`] is the cause that blocks a caller.
//!
//! The rule: every change is applied to the view and to the writes together, so that later entries
//! of the batch see it. Nothing here reads from the store. It reports no errors. `None` and `false`
//! mean that the row was not read or does not exist: an unknown task is not open, and ending an
//! unknown or ended session changes nothing. `ledger::batch` and the entries call this module;
//! `store::append` reads the rows and writes the collected ones.

use super::caller::{Blocked, Premises, RequestCaller};
use super::clock_watch::{ClockDoubt, Reading};
use super::cutoffs::{CutoffTarget, Cutoffs, Stopped};
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::domain::cutoff::{Cutoff, Selector, selectors_of_caller};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::limits::{ENDING_SECONDS, MAX_CHAIN_DEPTH, MAX_TTL_SECONDS};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskChain, TaskState};
use crate::domain::workload::{Identity, OneTime};
use crate::ids::{SessionId, TaskId};
use crate::store::append::{
    ActWrite, LeafRow, LockedTaskFacts, MintLease, RetryFacts, SessionEnd, SessionFacts,
    TaskChange, View, Writes,
};
use crate::store::cutoffs::SealedCutoff;
use crate::store::endings::{
    ChainedEnding, EndingPosition, EndingRecord, EndingSubject, EndingsChain,
};
use crate::store::heads::SealedHead;
use crate::store::keys::SigningKeyRow;

/// The rows that were read under the lock, and the changes of this batch.
pub(super) struct LockedState<'a> {
    now: Timestamp,
    doubt: Option<ClockDoubt>,
    view: View,
    /// The generation that decides now.
    generation: Option<GenerationDigest>,
    cutoffs: &'a Cutoffs,
    /// Cutoffs of this batch, which stop the entries after them too.
    fresh: Cutoffs,
    mac: &'a Mac,
    /// The index of the next leaf.
    index: u64,
    /// The digest of all endings so far.
    chain: EndingsChain,
    writes: Writes,
}

/// The cause that blocks a caller.
pub(super) enum Obstacle<'s> {
    /// The narrowest cutoff that matches the caller.
    Cutoff(&'s Cutoff),
    /// A cutoff of the request's task, of an ancestor, or of the owner of either.
    Task,
}

impl Obstacle<'_> {
    /// The refusal of the caller.
    pub(super) fn blocked(&self, by: &RequestCaller) -> Blocked {
        let liftable = match self {
            Self::Cutoff(cutoff) if by.may_lift && cutoff.selector.may_block_every_admin() => {
                Some(cutoff.id)
            }
            Self::Cutoff(_) | Self::Task => None,
        };
        Blocked {
            act: by.act,
            liftable,
        }
    }

    /// Whether the blocked caller may still lift a cutoff with this selector. A cutoff of one
    /// identity can only be lifted by other admins.
    pub(super) fn allows_lifting(&self, selector: &Selector) -> bool {
        match self {
            Self::Cutoff(cutoff) => {
                cutoff.selector.may_block_every_admin() && cutoff.selector == *selector
            }
            Self::Task => false,
        }
    }
}

impl<'a> LockedState<'a> {
    pub(super) fn new(
        clock: Reading,
        (size, generation): (u64, Option<GenerationDigest>),
        view: View,
        cutoffs: &'a Cutoffs,
        mac: &'a Mac,
    ) -> Self {
        let head = view.head.as_ref();
        let chain = head.map_or(EndingsChain::EMPTY, SealedHead::endings);
        Self {
            now: clock.now,
            doubt: clock.doubt,
            chain,
            view,
            generation,
            cutoffs,
            fresh: Cutoffs::default(),
            mac,
            index: size,
            writes: Writes::default(),
        }
    }

    /// The rows to be written, and the cutoffs among them. The appender adds the tiles and the
    /// head.
    pub(super) fn into_parts(self) -> (Writes, Cutoffs) {
        (self.writes, self.fresh)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn doubt(&self) -> Option<&ClockDoubt> {
        self.doubt.as_ref()
    }

    /// The time of the newest leaf before this batch.
    pub(super) fn newest_at(&self) -> Option<Timestamp> {
        self.view.newest_at
    }

    /// The index that the next leaf gets.
    pub(super) fn index(&self) -> u64 {
        self.index
    }

    pub(super) fn mac(&self) -> &'a Mac {
        self.mac
    }

    /// The generation that decides now.
    pub(super) fn generation(&self) -> Option<GenerationDigest> {
        self.generation
    }

    /// Makes another generation decide the later entries.
    pub(super) fn set_generation(&mut self, generation: GenerationDigest) {
        self.generation = Some(generation);
    }

    /// Records that roles or registered keys changed, so that later entries whose callers were
    /// judged before are judged again.
    pub(super) fn note_binding(&mut self) {
        self.view.newest_binding = Some(self.index);
    }

    pub(super) fn signing_keys(&self) -> &[SigningKeyRow] {
        &self.view.signing_keys
    }

    /// Takes over changed keys, so that later changes that were planned on the old keys are
    /// refused.
    pub(super) fn set_signing_keys(&mut self, keys: Vec<SigningKeyRow>) {
        self.view.signing_keys = keys;
    }

    /// The largest expiry of evidence whose use may have been deleted. `None` if none was.
    pub(super) fn forgotten(&self) -> Option<Timestamp> {
        self.view.forgotten
    }

    /// The largest expiry of evidence whose use a fast clock may have deleted, before an admin
    /// accepted an earlier time. `None` if none was.
    pub(super) fn forgotten_accepted(&self) -> Option<Timestamp> {
        self.view.forgotten_accepted
    }

    /// The newest time that an admin accepted.
    pub(super) fn newest_acceptance(&self) -> Option<Timestamp> {
        let fresh = self.fresh.newest_acceptance();
        let newest = fresh.or_else(|| self.cutoffs.newest_acceptance());
        newest.map(|(_, accepted)| accepted)
    }

    pub(super) fn retry(&self, key: &[u8; 32]) -> Option<&RetryFacts> {
        self.view.retries.get(key)
    }

    pub(super) fn session(&self, id: SessionId) -> Option<&SessionFacts> {
        self.view.sessions.get(&id)
    }

    pub(super) fn task(&self, id: TaskId) -> Option<&LockedTaskFacts> {
        self.view.tasks.get(&id)
    }

    /// The number of open tasks of this owner and type, or an upper bound that reaches the maximum
    /// in no case in this batch.
    pub(super) fn open_tasks(&self, task: &Task) -> u32 {
        let open = self.view.open_tasks.get(&owner_and_type(task));
        open.copied().unwrap_or(0)
    }

    /// Whether the state in which a caller was authorized has not changed. True for a caller that
    /// rests on no such state.
    pub(super) fn premises_hold(&self, premises: &Premises) -> bool {
        let decides = premises
            .generation
            .is_none_or(|generation| self.generation == Some(generation));
        let roles = premises
            .bindings_as_of
            .is_none_or(|size| self.view.newest_binding.is_none_or(|newest| newest < size));
        decides && roles
    }
}

/// Cutoffs.
impl LockedState<'_> {
    /// Checks a permit against every cutoff, including those of this batch.
    pub(super) fn check_cutoffs(&self, target: &CutoffTarget) -> Result<(), Stopped> {
        self.cutoffs.check(target, self.now, Some(&self.fresh))?;
        self.fresh.check(target, self.now, None)
    }

    /// A cutoff with this selector that blocks at `at`.
    fn blocking(&self, selector: &Selector, at: Timestamp) -> Option<&Cutoff> {
        let fresh = self.fresh.blocking(selector, at, None);
        fresh.or_else(|| self.cutoffs.blocking(selector, at, Some(&self.fresh)))
    }

    fn blocker_at(&self, identity: &Identity, attestor: &str, at: Timestamp) -> Option<&Cutoff> {
        let selectors = selectors_of_caller(identity, attestor);
        selectors
            .iter()
            .find_map(|selector| self.blocking(selector, at))
    }

    /// Whether a cutoff was lifted, in this batch or before.
    pub(super) fn is_lifted(&self, cutoff: &Cutoff) -> bool {
        self.fresh.is_lifted(cutoff) || self.cutoffs.is_lifted(cutoff)
    }

    /// Whether a cutoff blocks an identity now.
    pub(super) fn is_blocked(&self, identity: &Identity, attestor: &str) -> bool {
        self.blocker_at(identity, attestor, self.now).is_some()
    }

    /// Whether a cutoff blocks a task, an ancestor, or the owner of either.
    pub(super) fn chain_is_blocked(&self, task: TaskId) -> bool {
        self.chain(task).any(|facts| {
            self.blocking(&Selector::Task(facts.life.id), self.now)
                .is_some()
                || self.is_blocked(&facts.owner, &facts.attestor)
        })
    }

    /// The cause that blocks a caller at any of these times. `None` if it is not blocked.
    pub(super) fn obstacle(
        &self,
        by: &RequestCaller,
        times: impl IntoIterator<Item = Timestamp>,
    ) -> Option<Obstacle<'_>> {
        let mut times = times.into_iter();
        let found = times.find_map(|at| self.blocker_at(&by.identity, &by.attestor, at));
        if let Some(cutoff) = found {
            return Some(Obstacle::Cutoff(cutoff));
        }
        let blocked = by.task.is_some_and(|task| self.chain_is_blocked(task));
        blocked.then_some(Obstacle::Task)
    }

    /// Adds a cutoff of this batch, new or lifted, and returns its sealed row.
    pub(super) fn seal_cutoff(&mut self, cutoff: Cutoff) -> Box<SealedCutoff> {
        self.fresh.add(cutoff.clone());
        Box::new(SealedCutoff::seal(cutoff, self.mac))
    }
}

/// Tasks and sessions.
impl LockedState<'_> {
    /// A task and its ancestors, as far as they were read.
    fn chain(&self, task: TaskId) -> impl Iterator<Item = &LockedTaskFacts> {
        let read = |id: &TaskId| self.view.tasks.get(id);
        std::iter::successors(read(&task), move |facts| {
            facts.parent.as_ref().and_then(read)
        })
        // Bounds the iteration in case the rows form a circle.
        .take(usize::from(MAX_CHAIN_DEPTH) + 2)
    }

    /// Whether a task and all its ancestors are open.
    pub(super) fn chain_is_open(&self, task: TaskId) -> bool {
        let link = |id: TaskId| self.view.tasks.get(&id).map(LockedTaskFacts::link);
        let ahead = |facts: &LockedTaskFacts| self.opened_ahead(facts);
        TaskChain::of(task, link).ended(self.now).is_none() && !self.chain(task).any(ahead)
    }

    fn opened_ahead(&self, facts: &LockedTaskFacts) -> bool {
        self.cutoffs.dated_ahead(facts) || self.fresh.dated_ahead(facts)
    }

    /// Whether a task was opened by a clock that was ahead of a time that was accepted later.
    pub(super) fn is_dated_ahead(&self, task: TaskId) -> bool {
        self.task(task)
            .is_some_and(|facts| self.opened_ahead(facts))
    }

    /// Whether a task without a recorded end had expired by `by`: its deadline had passed, or it
    /// was silent for too long. False for a task that a heartbeat may still change.
    pub(super) fn has_expired_by(&self, task: TaskId, by: Timestamp) -> bool {
        let has_expired = |facts: &LockedTaskFacts| facts.life.can_end_as(TaskState::Expired, by);
        self.view.held_tasks.contains(&task) && self.task(task).is_some_and(has_expired)
    }

    fn change(&mut self, task: TaskId) -> &mut TaskChange {
        self.writes.task_changes.entry(task).or_default()
    }

    pub(super) fn open_task(&mut self, task: Task) {
        let open = self.view.open_tasks.entry(owner_and_type(&task));
        *open.or_insert(0) += 1;
        self.writes.tasks.push(task);
    }

    /// Takes credentials from the budget of a task.
    pub(super) fn take_sessions(&mut self, task: TaskId, sessions: u32) {
        if sessions == 0 {
            return;
        }
        if let Some(facts) = self.view.tasks.get_mut(&task) {
            facts.sessions_left = facts.sessions_left.saturating_sub(sessions);
        }
        self.change(task).sessions_taken += i64::from(sessions);
    }

    /// Returns a session's credential to the task's budget, because a back end refused to create
    /// it; at most once per session.
    pub(super) fn give_session_back(&mut self, id: SessionId) {
        let open = |facts: &&SessionFacts| facts.state != SessionState::Ended;
        let Some(task) = self.session(id).filter(open).map(|facts| facts.task) else {
            return;
        };
        if let Some(facts) = self.view.tasks.get_mut(&task) {
            facts.sessions_left = facts.sessions_left.saturating_add(1);
        }
        self.change(task).sessions_taken -= 1;
    }

    /// Replaces the handle of a task.
    pub(super) fn set_handle(&mut self, task: TaskId, digest: [u8; 32]) {
        self.change(task).handle = Some(digest);
    }

    /// Ends an open task by the next leaf. A task that has expired can only end as expired, and no
    /// other task can. Returns whether it ended.
    pub(super) fn end_task(&mut self, task: TaskId, state: TaskState) -> bool {
        let (now, index) = (self.now, self.index);
        let Some(facts) = self.view.tasks.get_mut(&task) else {
            return false;
        };
        if !facts.life.can_end_as(state, now) {
            return false;
        }
        facts.life.state = state;
        let deadline = facts.life.deadline;
        self.change(task).end = Some((state, now, index));
        // No session lives longer, but a clock that was ahead may have dated some.
        let dates = self.newest_at().into_iter().chain(self.newest_acceptance());
        let sessions_end_by = dates
            .fold(now, Timestamp::max)
            .plus_seconds(MAX_TTL_SECONDS);
        self.record_ending(EndingSubject::Task(task), deadline.min(sessions_end_by));
        true
    }

    /// Adds the session of a permit.
    pub(super) fn add_session(&mut self, session: Session, lease: Option<MintLease>) {
        let facts = SessionFacts {
            state: session.state,
            expires_at: session.expires_at,
            leaf_index: session.leaf_index,
            parent: session.parent,
            task: session.task_id,
        };
        self.view.sessions.insert(session.id, facts);
        self.writes.sessions.push((session, lease));
    }

    /// Ends a session, or begins to end it. Returns whether anything changed.
    pub(super) fn end_session(
        &mut self,
        id: SessionId,
        state: SessionState,
        reason: EndReason,
    ) -> bool {
        let at = self.now;
        let Some(facts) = self.view.sessions.get_mut(&id) else {
            return false;
        };
        if facts.state == SessionState::Ended
            || (facts.state == SessionState::Ending && state == SessionState::Ending)
        {
            return false;
        }
        let begins = facts.state != SessionState::Ending;
        let expires_at = facts.expires_at;
        facts.state = state;
        let end = SessionEnd { state, reason, at };
        self.writes.session_ends.insert(id, end);
        if begins {
            self.record_ending(EndingSubject::Session(id), expires_at);
        }
        true
    }

    /// Records the use of an `Idempotency-Key`.
    pub(super) fn set_retry(&mut self, key: [u8; 32], facts: RetryFacts) {
        self.view.retries.insert(key, facts.clone());
        self.writes.retries.insert(key, facts);
    }
}

/// Rows.
impl LockedState<'_> {
    /// Adds the row of a rare act.
    pub(super) fn write(&mut self, act: ActWrite) {
        if let Some(subject) = act.ends() {
            // Earlier leaves may have later dates than this one, if the clock was ahead.
            let latest = self.now.max(self.newest_at().unwrap_or(self.now));
            self.record_ending(subject, latest.plus_seconds(ENDING_SECONDS));
        }
        self.writes.acts.push(act);
    }

    /// Adds the row of an ending by the next leaf.
    fn record_ending(&mut self, subject: EndingSubject, matters_until: Timestamp) {
        let last = self.writes.endings.last().map(|last| last.record.position);
        let n = last
            .filter(|last| last.index == self.index)
            .map_or(0, |last| last.n + 1);
        let index = self.index;
        let ending = ChainedEnding {
            record: EndingRecord {
                position: EndingPosition { index, n },
                subject,
                matters_until,
            },
            before: self.chain,
        };
        self.chain = ending.after();
        self.writes.endings.push(ending);
    }

    /// Adds the next leaf.
    pub(super) fn write_leaf(&mut self, leaf: LeafRow) {
        self.index = leaf.index + 1;
        self.writes.leaves.push(leaf);
    }

    /// Adds a one-time id that is used up.
    pub(super) fn write_one_time(&mut self, once: OneTime) {
        self.writes.one_time.push(once);
    }
}

pub(super) fn owner_and_type(task: &Task) -> (String, String) {
    (task.owner.to_string(), task.task_type.clone())
}
