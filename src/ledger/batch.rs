//! What becomes of each entry of a batch, decided under the lock and without a single read.
//!
//! Given what [`LedgerConnection::enter`](crate::store::append::LedgerConnection::enter) read, every
//! entry is settled in turn: recorded as decided, recorded as refused because something that it
//! rests on is no longer true, or not recorded at all. Each sees what the ones before it did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::clock_watch::{ClockDoubt, Reading, is_behind};
use super::cutoffs::Cutoffs;
use super::entry::{
    AcceptTime, AdminBindingChange, Blocked, Decide, Delegate, EndTask, Entry, KeyChange,
    OneTimeUse, Premises, Request, RequestCaller, RetryPlan, SessionPlan, TaskPlan,
    WorkloadKeyChange, leaf_bytes,
};
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::crypto::keyring::KeyPurpose;
use crate::domain::cutoff::{Block, Cutoff, Selector, selectors_of_caller};
use crate::domain::decision::{Outcome as Decided, Refusal, RefusalCode};
use crate::domain::generation::GenerationDigest;
use crate::domain::leaf::Opening;
use crate::domain::limits::{
    MAX_CHAIN_DEPTH, MAX_CLOCK_STEP_SECONDS, MAX_DEADLINE_SECONDS, MAX_TTL_SECONDS,
    ONE_TIME_KEPT_SECONDS,
};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::TaskState;
use crate::domain::workload::{Identity, OneTime};
use crate::ids::{SessionId, TaskId};
use crate::merkle::{Hash, leaf_hash};
use crate::store::admins::AdminBinding;
use crate::store::append::{
    ActWrite, LeafRow, MintLease, Needs, RetryFacts, SessionEnd, SessionFacts, TaskChange,
    TaskFacts, View, Writes,
};
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::SealedActivation;
use crate::store::keys::{SigningKeyRow, keys_basis};
use crate::store::workload_keys::WorkloadKeyRow;

/// A request with its leaf serialised and hashed, before it was queued.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) request: Request,
    pub(super) leaf: Option<(Arc<[u8]>, Hash)>,
}

/// What became of an entry.
#[derive(Clone, Debug)]
pub(super) enum Settled {
    /// Recorded as decided.
    Recorded(SettledLeaf),
    /// Recorded as refused.
    Refused(SettledLeaf, Refusal),
    /// Not recorded: there was nothing to change.
    Unchanged,
    /// Not recorded: this one of its one-time ids was used before.
    Replayed([u8; 32]),
    /// Not recorded: whether its evidence was used before may have been forgotten.
    Forgotten,
    /// Not recorded: a cutoff blocks its caller. The evidence is used up.
    Blocked(Blocked),
    /// Not recorded: it was decided upon what is no longer so. Decide again.
    Stale,
    /// Not recorded: the caller was let in upon what is no longer so. Judge it again.
    Superseded,
    /// Not recorded: its `Idempotency-Key` got something else meanwhile.
    RetryTaken(RetryFacts),
    /// Not recorded: the clock cannot be relied on.
    ClockInDoubt(ClockDoubt),
}

/// Where an entry's leaf is.
#[derive(Clone, Debug)]
pub(super) struct SettledLeaf {
    pub(super) index: u64,
    pub(super) body: Arc<[u8]>,
    pub(super) hash: Hash,
    /// The session as it was recorded.
    pub(super) session: Option<SessionPlan>,
}

/// What the batch has to read.
pub(super) fn needs(batch: &[&Prepared], hashes_from: u64, cutoffs_from: u64) -> Needs {
    let mut needs = Needs {
        hashes_from,
        cutoffs_from,
        ..Needs::default()
    };
    for prepared in batch {
        let OneTimeUse { ids, by, .. } = &prepared.request.one_time;
        needs.one_time.extend(ids.iter().map(|once| once.key));
        needs.tasks.extend(by.as_ref().and_then(|by| by.task));
        match &prepared.request.entry {
            Entry::Decide(decide) => decide_needs(decide, &mut needs),
            Entry::EndTask(end) => needs.tasks.push(end.task),
            Entry::Cutoff(cutoff, _, _) => {
                if let Selector::Task(task) = cutoff.selector {
                    needs.tasks.push(task);
                }
            }
            Entry::Delegate(delegate) => needs.tasks.push(delegate.task),
            Entry::EndSession(end) => needs.sessions.push(end.session),
            Entry::ConfirmEnd(confirm) => needs.sessions.push(confirm.session),
            Entry::ChangeKeys(_) => needs.signing_keys = true,
            _ => {}
        }
    }
    needs.open_tasks.sort_unstable();
    needs.open_tasks.dedup();
    needs
}

fn decide_needs(decide: &Decide, needs: &mut Needs) {
    match &decide.plan {
        Some(TaskPlan::Open {
            task,
            max_open,
            parent,
        }) => {
            let owner = task.owner.to_string();
            needs
                .open_tasks
                .push((owner, task.task_type.clone(), max_open.saturating_add(1)));
            needs.tasks.extend(parent.map(|parent| parent.task));
        }
        Some(TaskPlan::Join { task, .. }) => needs.tasks.push(*task),
        None => {}
    }
    if let Some(plan) = &decide.session {
        needs.sessions.extend(plan.session.parent);
    }
    if let Some(retry) = &decide.retry {
        needs.retries.push(retry.key);
        let replaced = retry.replaces.as_ref().map(|facts| facts.session);
        needs.sessions.extend(replaced);
    }
}

/// Settles a batch.
pub(super) struct Batch<'a> {
    origin: &'a str,
    now: Timestamp,
    doubt: Option<ClockDoubt>,
    view: View,
    /// What decides now.
    generation: Option<GenerationDigest>,
    cutoffs: &'a Cutoffs,
    /// Cutoffs of this very batch: who comes behind one in it is stopped like everybody else.
    fresh: Cutoffs,
    mac: &'a Mac,
    next_index: u64,
    used: HashMap<[u8; 32], Option<Vec<u8>>>,
    writes: Writes,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        origin: &'a str,
        clock: Reading,
        (size, generation): (u64, Option<GenerationDigest>),
        view: View,
        cutoffs: &'a Cutoffs,
        mac: &'a Mac,
    ) -> Self {
        let used = view.used.clone();
        Self {
            origin,
            now: clock.now,
            doubt: clock.doubt,
            view,
            generation,
            cutoffs,
            fresh: Cutoffs::default(),
            mac,
            next_index: size,
            used,
            writes: Writes::default(),
        }
    }

    /// What is to be written: leaves, rows, changes. Tiles and head are the appender's.
    pub(super) fn into_writes(self) -> Writes {
        self.writes
    }

    /// Settles one entry. An error is of the entry's own making and fails it alone.
    pub(super) fn settle(&mut self, prepared: &Prepared) -> Result<Settled, serde_json::Error> {
        let entry = &prepared.request.entry;
        // Evidence can be used up by any clock: that only forbids.
        if let Some(doubt) = &self.doubt
            && !matches!(entry, Entry::Consume | Entry::AcceptTime(_))
        {
            return Ok(Settled::ClockInDoubt(doubt.clone()));
        }
        let OneTimeUse { ids, by, premises } = &prepared.request.one_time;
        if let Some(replayed) = self.replayed(ids) {
            return Ok(replayed);
        }
        if !self.hold(premises) {
            return Ok(Settled::Superseded);
        }
        // It was dated while the clock was ahead, which it no longer is.
        if is_behind(self.now, prepared.request.at) {
            return Ok(Settled::Stale);
        }
        let settled = match entry {
            // Judged by its own identity, and recorded as refused.
            Entry::Decide(decide) => self.settle_decision(prepared, decide)?,
            other => match by.as_ref().and_then(|by| self.blocked(by, other)) {
                Some(blocked) => Settled::Blocked(blocked),
                None => self.settle_act(prepared, other),
            },
        };
        let spends = !matches!(settled, Settled::Stale | Settled::RetryTaken(_));
        if spends {
            self.spend(ids);
        }
        Ok(settled)
    }

    fn settle_decision(
        &mut self,
        prepared: &Prepared,
        decide: &Decide,
    ) -> Result<Settled, serde_json::Error> {
        if self.generation != Some(decide.generation) {
            return Ok(Settled::Stale);
        }
        let refused_as = decide.refusal.as_ref().map(|refusal| refusal.code);
        if refused_as != Some(RefusalCode::Blocked)
            && self.blocker(&decide.identity, &decide.attestor).is_some()
        {
            // A blocked caller learns that it is blocked, and nothing of what policy said. A plain
            // permit is recorded as refused here; anything that says more is decided again, which
            // ends before policy.
            if decide.outcome != Decided::Permit || decide.observed.is_some() {
                return Ok(Settled::Stale);
            }
            let refusal = blocked_caller();
            let leaf = self.record_refused(prepared, decide.refused(refusal.clone()))?;
            return Ok(Settled::Refused(leaf, refusal));
        }
        if decide.outcome != Decided::Permit {
            return Ok(Settled::Recorded(self.record(prepared, None)));
        }
        match self.check(decide) {
            Check::Holds => {}
            Check::Stale => return Ok(Settled::Stale),
            Check::RetryTaken(facts) => return Ok(Settled::RetryTaken(facts)),
            Check::Fails(refusal) => {
                let refused = decide.refused(refusal.clone());
                let leaf = self.record_refused(prepared, refused)?;
                return Ok(Settled::Refused(leaf, refusal));
            }
        }
        let index = self.next_index;
        let mut plan = decide.session.clone();
        if let Some(plan) = &mut plan {
            plan.session.leaf_index = index;
        }
        self.apply(
            decide,
            plan.as_ref().map(|plan| plan.session.clone()),
            index,
        );
        Ok(Settled::Recorded(self.record(prepared, plan)))
    }

    fn settle_act(&mut self, prepared: &Prepared, entry: &Entry) -> Settled {
        let index = self.next_index;
        let act = match entry {
            Entry::Consume | Entry::Decide(_) => return Settled::Unchanged,
            Entry::EndTask(end) => {
                if !self.end_task(end, index) {
                    return Settled::Unchanged;
                }
                None
            }
            Entry::Delegate(delegate) => {
                if !self.chain_is_open(delegate.task) {
                    return Settled::Unchanged;
                }
                Some(delegation(delegate))
            }
            Entry::EndSession(end) => {
                if end.never_made {
                    self.give_session_back(end.session);
                }
                if !self.end_session(end.session, end.state, end.reason) {
                    return Settled::Unchanged;
                }
                None
            }
            Entry::ConfirmEnd(confirm) => {
                let state = if confirm.confirmed {
                    SessionState::Ended
                } else {
                    SessionState::Ending
                };
                if !self.end_session(confirm.session, state, confirm.reason) {
                    return Settled::Unchanged;
                }
                None
            }
            Entry::Cutoff(cutoff, _, _) => Some(self.cut_off(cutoff, index)),
            Entry::Lift { cutoff, .. } => {
                let mut cutoff = (**cutoff).clone();
                cutoff.lifted_index = Some(index);
                // Whatever comes after it in this batch is let in again.
                self.fresh.add(cutoff.clone());
                Some(ActWrite::Lift(Box::new(self.seal_cutoff(cutoff))))
            }
            Entry::AcceptTime(accept) => {
                if let Some(not) = self.not_acceptable(accept) {
                    return not;
                }
                Some(self.accept_time(accept, index))
            }
            Entry::Activate {
                digest,
                document,
                by,
                ..
            } => {
                if self.generation == Some(*digest) {
                    return Settled::Unchanged;
                }
                // Whatever comes after it in this batch was decided by another generation.
                self.generation = Some(*digest);
                Some(ActWrite::Activation {
                    document: Arc::clone(document),
                    sealed: SealedActivation::seal(index, *digest, self.mac),
                    by: by.clone(),
                    at: self.now,
                })
            }
            Entry::WorkloadKey(change) => Some(self.workload_key(change, index)),
            Entry::AdminBinding(change) => Some(self.admin_binding(change, index)),
            Entry::Genesis { .. } if index > 0 => return Settled::Unchanged,
            Entry::Genesis { row, .. } => Some(ActWrite::SigningKey(row.clone())),
            Entry::ChangeKeys(change) => {
                if keys_basis(&self.view.signing_keys, &change.row.purpose) != change.basis {
                    return Settled::Stale;
                }
                if !self.change_keys(change) {
                    return Settled::Unchanged;
                }
                None
            }
            Entry::DenialsOmitted { .. } | Entry::Resealed { .. } => None,
        };
        self.writes.acts.extend(act);
        Settled::Recorded(self.record(prepared, None))
    }

    fn workload_key(&self, change: &WorkloadKeyChange, index: u64) -> ActWrite {
        let row = WorkloadKeyRow {
            attestor: change.attestor.clone(),
            workload: change.workload.clone(),
            thumbprint: change.thumbprint.clone(),
            jwk: change.jwk.clone(),
            index,
            mac: Vec::new(),
        };
        ActWrite::WorkloadKey(Box::new(row.seal(self.mac)))
    }

    fn admin_binding(&mut self, change: &AdminBindingChange, index: u64) -> ActWrite {
        // Whatever comes after it in this batch was judged by other roles.
        self.view.newest_binding = Some(index);
        let row = AdminBinding {
            identity: change.identity.to_string(),
            role: change.role.clone(),
            bound: change.bound,
            index,
            mac: Vec::new(),
        };
        ActWrite::AdminBinding(Box::new(row.seal(self.mac)))
    }

    /// The row of a cutoff. One of a task ends it, so that nobody can join it afterwards.
    fn cut_off(&mut self, cutoff: &Cutoff, index: u64) -> ActWrite {
        if let Selector::Task(task) = cutoff.selector {
            self.end_open_task(task, TaskState::Aborted, index);
        }
        let mut cutoff = cutoff.clone();
        cutoff.index = index;
        cutoff.committed_at = self.now;
        self.fresh.add(cutoff.clone());
        ActWrite::Cutoff(Box::new(self.seal_cutoff(cutoff)))
    }

    /// Writes the rows of a change of keys, unless it would leave the ledger without exactly one key.
    fn change_keys(&mut self, change: &KeyChange) -> bool {
        let changed = changed_keys(&self.view.signing_keys, change);
        if !has_one_ledger_key(&changed) {
            return false;
        }
        // Whatever comes after it in this batch was planned upon other keys.
        self.view.signing_keys = changed;
        let rows = std::iter::once(&change.row).chain(&change.retired);
        let rows = rows.map(|row| ActWrite::SigningKey(Box::new(row.clone())));
        self.writes.acts.extend(rows);
        true
    }

    /// The cutoff that blocks what this selector matches at `at`, this very batch's included.
    fn blocking(&self, selector: &Selector, at: Timestamp) -> Option<&Cutoff> {
        let fresh = self.fresh.blocking(selector, at, None);
        fresh.or_else(|| self.cutoffs.blocking(selector, at, Some(&self.fresh)))
    }

    /// The narrowest cutoff that blocks a caller now.
    fn blocker(&self, identity: &Identity, attestor: &str) -> Option<&Cutoff> {
        self.blocker_at(identity, attestor, self.now)
    }

    fn blocker_at(&self, identity: &Identity, attestor: &str, at: Timestamp) -> Option<&Cutoff> {
        let selectors = selectors_of_caller(identity, attestor);
        selectors
            .iter()
            .find_map(|selector| self.blocking(selector, at))
    }

    /// Whether a cutoff blocks a task, one above it, or the owner of either.
    fn chain_is_blocked(&self, task: TaskId) -> bool {
        self.chain(task).any(|facts| {
            self.blocking(&Selector::Task(facts.life.id), self.now)
                .is_some()
                || self.blocker(&facts.owner, &facts.attestor).is_some()
        })
    }

    /// Whether the state upon which a caller was let in is still so.
    fn hold(&self, premises: &Premises) -> bool {
        let decides = premises
            .generation
            .is_none_or(|generation| self.generation == Some(generation));
        let roles = premises
            .bindings_as_of
            .is_none_or(|size| self.view.newest_binding.is_none_or(|newest| newest < size));
        decides && roles
    }

    /// What stands against the caller of an entry.
    fn blocked(&self, by: &RequestCaller, entry: &Entry) -> Option<Blocked> {
        // A clock that is in doubt does not end the block of the admin who accepts its time.
        let recorded = self.view.newest_at;
        let recorded = recorded.filter(|_| matches!(entry, Entry::AcceptTime(_)));
        let mut times = std::iter::once(self.now).chain(recorded);
        let found = times.find_map(|at| self.blocker_at(&by.identity, &by.attestor, at));
        let Some(cutoff) = found else {
            let blocked = by.task.is_some_and(|task| self.chain_is_blocked(task));
            return blocked.then_some(Blocked {
                act: by.act,
                liftable: None,
            });
        };
        // An admin's own block is for others to lift. Those of its attestor and of everything are
        // not, or nobody might be left who can.
        let liftable = matches!(cutoff.selector, Selector::Attestor(_) | Selector::All(_));
        if let Entry::Lift { cutoff: lifted, .. } = entry
            && liftable
            && lifted.selector == cutoff.selector
        {
            return None;
        }
        Some(Blocked {
            act: by.act,
            liftable: (liftable && by.may_lift).then_some(cutoff.id),
        })
    }

    /// Why a time is not accepted now: there is no doubt, it cannot be accepted, or the two times are
    /// no longer those of the entry.
    fn not_acceptable(&self, accept: &AcceptTime) -> Option<Settled> {
        let Some(doubt) = &self.doubt else {
            return Some(Settled::Unchanged);
        };
        if !doubt.can_be_accepted() {
            return Some(Settled::ClockInDoubt(doubt.clone()));
        }
        let newest = self.view.newest_at.unwrap_or(accept.recorded);
        let step = Duration::from_secs(MAX_CLOCK_STEP_SECONDS);
        let apart =
            newest.distance(accept.recorded) > step || self.now.distance(accept.accepted) > step;
        apart.then_some(Settled::Stale)
    }

    /// What an accepted time brings about.
    fn accept_time(&mut self, accept: &AcceptTime, index: u64) -> ActWrite {
        let newest = self.view.newest_at.unwrap_or(accept.recorded);
        let mut cutoff = accept.cutoff.clone();
        cutoff.index = index;
        cutoff.committed_at = accept.accepted;
        // It is kept for as long as anything that is dated ahead could live.
        let lives = MAX_DEADLINE_SECONDS + MAX_TTL_SECONDS + ONE_TIME_KEPT_SECONDS;
        cutoff.block = Block::Until(newest.max(accept.accepted).plus_seconds(lives));
        self.fresh.add(cutoff.clone());
        ActWrite::TimeAccepted {
            cutoff: Box::new(self.seal_cutoff(cutoff)),
            accepted: accept.accepted,
        }
    }

    /// Whether everything that a permit rests on is still true.
    fn check(&self, decide: &Decide) -> Check {
        if let Some(retry) = &decide.retry
            && let Some(taken) = self.retry_taken(retry)
        {
            return Check::RetryTaken(taken);
        }
        for (cutoffs, newer) in [(self.cutoffs, Some(&self.fresh)), (&self.fresh, None)] {
            match cutoffs.verdict(decide, self.now, newer) {
                super::cutoffs::Verdict::Free => {}
                super::cutoffs::Verdict::Stale => return Check::Stale,
                super::cutoffs::Verdict::Blocked(until) => {
                    return Check::Fails(Refusal::new(
                        RefusalCode::Blocked,
                        format!("a revocation blocks this {until}"),
                    ));
                }
            }
        }
        let under = match &decide.plan {
            Some(TaskPlan::Open { parent, .. }) => parent.map(|parent| parent.task),
            Some(TaskPlan::Join { task, .. }) => Some(*task),
            None => None,
        };
        if under.is_some_and(|task| self.chain_is_blocked(task)) {
            return Check::Fails(Refusal::new(
                RefusalCode::Blocked,
                "a revocation blocks the task, or one that it is part of",
            ));
        }
        let task = match &decide.plan {
            Some(TaskPlan::Open {
                task,
                max_open,
                parent,
            }) => {
                let key = (task.owner.to_string(), task.task_type.clone());
                if self.view.open_tasks.get(&key).copied().unwrap_or(0) >= *max_open {
                    return Check::Fails(Refusal::new(
                        RefusalCode::TooManyOpenTasks,
                        format!(
                            "{max_open} tasks of type `{}` are open already",
                            task.task_type
                        ),
                    ));
                }
                match parent {
                    None => Ok(()),
                    Some(parent) => self.check_parent(task.depth, parent.task, parent.sessions),
                }
            }
            Some(TaskPlan::Join { task, .. }) => {
                self.check_budget(*task, u32::from(decide.session.is_some()))
            }
            None => Ok(()),
        };
        if let Err(refusal) = task {
            return Check::Fails(refusal);
        }
        match &decide.session {
            Some(plan) => self.check_session(plan, decide.retry.as_ref()),
            None => Check::Holds,
        }
    }

    fn retry_taken(&self, retry: &RetryPlan) -> Option<RetryFacts> {
        let known = self.view.retries.get(&retry.key);
        let known = known.filter(|facts| facts.expires_at > self.now);
        if known == retry.replaces.as_ref() {
            return None;
        }
        known.cloned()
    }

    fn check_parent(&self, depth: u8, parent: TaskId, sessions: u32) -> Result<(), Refusal> {
        if depth > MAX_CHAIN_DEPTH {
            return Err(Refusal::new(
                RefusalCode::TooDeep,
                format!("tasks are nested at most {MAX_CHAIN_DEPTH} deep"),
            ));
        }
        self.check_budget(parent, sessions)
    }

    fn check_budget(&self, task: TaskId, sessions: u32) -> Result<(), Refusal> {
        if !self.chain_is_open(task) {
            return Err(Refusal::new(
                RefusalCode::TaskEnded,
                "the task, or one that it is part of, is over",
            ));
        }
        let left = self
            .view
            .tasks
            .get(&task)
            .map_or(0, |facts| facts.sessions_left);
        if left < sessions {
            return Err(Refusal::new(
                RefusalCode::TaskBudget,
                format!("{sessions} credentials wanted, {left} left for this task"),
            ));
        }
        Ok(())
    }

    fn check_session(&self, plan: &SessionPlan, retry: Option<&RetryPlan>) -> Check {
        if plan.session.expires_at <= self.now {
            // It waited in the queue for longer than it was to live.
            return Check::Stale;
        }
        let mut next = plan.session.parent;
        while let Some(id) = next {
            let alive =
                self.view.sessions.get(&id).filter(|facts| {
                    facts.state == SessionState::Active && facts.expires_at > self.now
                });
            let Some(facts) = alive else {
                return Check::Fails(Refusal::new(
                    RefusalCode::ExceedsParent,
                    "the parent task's credential that covers this is over",
                ));
            };
            next = facts.parent;
        }
        let replaced = retry.and_then(|retry| retry.replaces.as_ref());
        if let Some(facts) = replaced
            && !self.view.sessions.contains_key(&facts.session)
        {
            return Check::RetryTaken(facts.clone());
        }
        Check::Holds
    }

    fn chain_is_open(&self, task: TaskId) -> bool {
        let mut root = false;
        for (links, facts) in self.chain(task).enumerate() {
            let dated_ahead = self.cutoffs.dated_ahead(facts) || self.fresh.dated_ahead(facts);
            let open = facts.life.state_at(self.now) == TaskState::Open;
            if !open || dated_ahead || links > usize::from(MAX_CHAIN_DEPTH) {
                return false;
            }
            root = facts.parent.is_none();
        }
        root
    }

    /// A task and those above it, as far as they were read.
    fn chain(&self, task: TaskId) -> impl Iterator<Item = &TaskFacts> {
        let read = |id: &TaskId| self.view.tasks.get(id);
        std::iter::successors(read(&task), move |facts| {
            facts.parent.as_ref().and_then(read)
        })
        // A circle has no end; a chain has at most so many links.
        .take(usize::from(MAX_CHAIN_DEPTH) + 2)
    }

    /// Writes what a permit brings about, so that later entries see it.
    fn apply(&mut self, decide: &Decide, session: Option<Session>, index: u64) {
        let takes = u32::from(session.is_some());
        match &decide.plan {
            Some(TaskPlan::Open { task, parent, .. }) => {
                let key = (task.owner.to_string(), task.task_type.clone());
                *self.view.open_tasks.entry(key).or_insert(0) += 1;
                if let Some(parent) = parent {
                    self.take_sessions(parent.task, parent.sessions);
                }
                let mut task = (**task).clone();
                task.leaf_index = index;
                task.sessions_left = task.sessions_left.saturating_sub(takes);
                self.writes.tasks.push(task);
            }
            Some(TaskPlan::Join { task, new_handle }) => {
                self.take_sessions(*task, takes);
                if let Some(handle) = new_handle {
                    self.change(*task).handle = Some(*handle);
                }
            }
            None => {}
        }
        if let Some(retry) = &decide.retry
            && let Some(session) = &session
        {
            self.remember_retry(retry, session);
        }
        if let Some(session) = session {
            let facts = SessionFacts {
                state: session.state,
                expires_at: session.expires_at,
                leaf_index: index,
                parent: session.parent,
                task: session.task_id,
            };
            self.view.sessions.insert(session.id, facts);
            let lease: Option<MintLease> = decide.session.as_ref().and_then(|p| p.lease.clone());
            self.writes.sessions.push((session, lease));
        }
    }

    fn remember_retry(&mut self, retry: &RetryPlan, session: &Session) {
        let replaced = retry.replaces.as_ref();
        if let Some(facts) = replaced {
            self.end_session(facts.session, SessionState::Ended, EndReason::Superseded);
        }
        let facts = RetryFacts {
            fingerprint: retry.fingerprint,
            session: session.id,
            task: session.task_id,
            supersedes: replaced.map_or(0, |facts| facts.supersedes + 1),
            expires_at: retry.expires_at,
        };
        self.view.retries.insert(retry.key, facts.clone());
        self.writes.retries.insert(retry.key, facts);
    }

    fn take_sessions(&mut self, task: TaskId, sessions: u32) {
        if sessions == 0 {
            return;
        }
        if let Some(facts) = self.view.tasks.get_mut(&task) {
            facts.sessions_left = facts.sessions_left.saturating_sub(sessions);
        }
        self.change(task).sessions_taken += i64::from(sessions);
    }

    /// Gives a task the credential back that a session took of its budget, where a back end refused
    /// to make it, once a session.
    fn give_session_back(&mut self, id: SessionId) {
        let open = |facts: &&SessionFacts| facts.state != SessionState::Ended;
        let Some(task) = self.view.sessions.get(&id).filter(open).map(|f| f.task) else {
            return;
        };
        if let Some(facts) = self.view.tasks.get_mut(&task) {
            facts.sessions_left = facts.sessions_left.saturating_add(1);
        }
        self.change(task).sessions_taken -= 1;
    }

    fn change(&mut self, task: TaskId) -> &mut TaskChange {
        self.writes.task_changes.entry(task).or_default()
    }

    fn end_task(&mut self, end: &EndTask, index: u64) -> bool {
        self.end_open_task(end.task, end.end.state(), index)
    }

    /// Ends an open task. One whose time is up can only end as expired.
    fn end_open_task(&mut self, task: TaskId, state: TaskState, index: u64) -> bool {
        let now = self.now;
        let Some(facts) = self.view.tasks.get_mut(&task) else {
            return false;
        };
        if facts.life.state != TaskState::Open {
            return false;
        }
        let is_over = facts.life.state_at(now) == TaskState::Expired;
        if is_over && state != TaskState::Expired {
            return false;
        }
        facts.life.state = state;
        self.change(task).end = Some((state, now, index));
        true
    }

    fn end_session(&mut self, id: SessionId, state: SessionState, reason: EndReason) -> bool {
        let at = self.now;
        let Some(facts) = self.view.sessions.get_mut(&id) else {
            return false;
        };
        if facts.state == SessionState::Ended
            || (facts.state == SessionState::Ending && state == SessionState::Ending)
        {
            return false;
        }
        facts.state = state;
        let end = SessionEnd { state, reason, at };
        self.writes.session_ends.insert(id, end);
        true
    }

    fn seal_cutoff(&self, cutoff: Cutoff) -> SealedCutoff {
        SealedCutoff::seal(cutoff, self.mac)
    }

    /// Whether evidence was used before, or may have been.
    fn replayed(&self, one_time: &[OneTime]) -> Option<Settled> {
        one_time
            .iter()
            .find_map(|once| match self.used.get(&once.key) {
                None => self.may_be_forgotten(once).then_some(Settled::Forgotten),
                // Bound evidence may come again, with the same binding.
                Some(Some(binding)) => {
                    let differs = once.binding.is_none_or(|own| own.as_slice() != binding);
                    (once.must_be_new || differs).then_some(Settled::Replayed(once.key))
                }
                Some(None) => Some(Settled::Replayed(once.key)),
            })
    }

    /// Whether the use of evidence may have been recorded and deleted again. Deletions by a clock that
    /// was ahead, before a time was accepted, count for what was issued before that acceptance.
    fn may_be_forgotten(&self, once: &OneTime) -> bool {
        let reaches = |until: Option<Timestamp>| until >= Some(once.expires_at);
        let accepted = self.fresh.newest_acceptance();
        let accepted = accepted.or_else(|| self.cutoffs.newest_acceptance());
        let issued_before = accepted.is_some_and(|(_, accepted)| once.issued_at <= accepted);
        reaches(self.view.forgotten) || issued_before && reaches(self.view.forgotten_accepted)
    }

    fn spend(&mut self, one_time: &[OneTime]) {
        for once in one_time {
            let binding = once.binding.map(|binding| binding.to_vec());
            if self.used.insert(once.key, binding).is_none() {
                self.writes.one_time.push(*once);
            }
        }
    }

    fn record(&mut self, prepared: &Prepared, session: Option<SessionPlan>) -> SettledLeaf {
        // Every entry that gets here has a leaf; an empty one could not be mistaken for another.
        let (body, hash) = prepared
            .leaf
            .clone()
            .unwrap_or_else(|| (Arc::from([]), leaf_hash(&[])));
        self.push(prepared, body, hash, session)
    }

    fn record_refused(
        &mut self,
        prepared: &Prepared,
        refused: Decide,
    ) -> Result<SettledLeaf, serde_json::Error> {
        let entry = Entry::Decide(Box::new(refused));
        let event = entry.event();
        let Some(event) = event else {
            return Ok(self.record(prepared, None));
        };
        let body: Arc<[u8]> = leaf_bytes(self.origin, prepared.request.at, event)?.into();
        let hash = leaf_hash(&body);
        Ok(self.push(prepared, body, hash, None))
    }

    fn push(
        &mut self,
        prepared: &Prepared,
        body: Arc<[u8]>,
        hash: Hash,
        session: Option<SessionPlan>,
    ) -> SettledLeaf {
        let index = self.next_index;
        self.next_index += 1;
        let entry = &prepared.request.entry;
        let (input, purpose) = openings(entry);
        self.writes.leaves.push(LeafRow {
            index,
            hash,
            body: body.to_vec(),
            decision: entry.decision(),
            subject: entry.subject().map(ToString::to_string),
            at: prepared.request.at,
            input,
            purpose,
        });
        SettledLeaf {
            index,
            body,
            hash,
            session,
        }
    }
}

/// The refusal of a decision whose caller is blocked. It says no more than that.
#[must_use]
pub(crate) fn blocked_caller() -> Refusal {
    Refusal::new(RefusalCode::Blocked, "a revocation blocks this caller")
}

/// The signing keys as they are after a change.
fn changed_keys(known: &[SigningKeyRow], change: &KeyChange) -> Vec<SigningKeyRow> {
    let new: Vec<&SigningKeyRow> = std::iter::once(&change.row)
        .chain(&change.retired)
        .collect();
    let is_kept = |row: &&SigningKeyRow| new.iter().all(|new| new.kid != row.kid);
    let kept = known.iter().filter(is_kept);
    kept.chain(new.iter().copied()).cloned().collect()
}

/// Whether exactly one ledger key has no end: the log has one to go on with, and one only.
fn has_one_ledger_key(rows: &[SigningKeyRow]) -> bool {
    let endless = rows.iter().filter(|row| {
        row.purpose == KeyPurpose::Ledger.as_str()
            && row.revoked_at.is_none()
            && row.remove_at == Timestamp::MAX
    });
    endless.count() == 1
}

enum Check {
    Holds,
    Stale,
    RetryTaken(RetryFacts),
    Fails(Refusal),
}

fn delegation(delegate: &Delegate) -> ActWrite {
    ActWrite::Delegation {
        digest: delegate.digest,
        task: delegate.task,
        child: delegate.child.to_string(),
        sessions: delegate.sessions,
        expires_at: delegate.expires_at,
    }
}

fn openings(entry: &Entry) -> (Option<Opening>, Option<Opening>) {
    match entry {
        Entry::Decide(decide) => (
            Some(decide.input.1.clone()),
            decide.purpose.as_ref().map(|(_, opening)| opening.clone()),
        ),
        Entry::Cutoff(_, _, reason) => (None, Some(reason.clone())),
        Entry::AcceptTime(accept) => (None, Some(accept.reason.1.clone())),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SealingKeys;
    use crate::crypto::random::SystemRandom;
    use crate::domain::cutoff::True;
    use crate::domain::leaf::Commitment;
    use crate::ids::{CutoffId, DecisionId};
    use uuid::Uuid;

    fn mac() -> Mac {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        SealingKeys::parse(&[key]).unwrap().mac("o")
    }

    fn opening() -> (Commitment, Opening) {
        let opening = Opening {
            salt: [0; 16],
            bytes: Vec::new(),
        };
        (Commitment(String::new()), opening)
    }

    fn right() -> Reading {
        Reading {
            now: Timestamp::EPOCH,
            doubt: None,
        }
    }

    fn prepared(entry: Entry) -> Prepared {
        Prepared {
            request: Request {
                entry,
                one_time: OneTimeUse::default(),
                at: Timestamp::EPOCH,
            },
            leaf: Some((Arc::from([]), leaf_hash(&[]))),
        }
    }

    fn permit(generation: GenerationDigest) -> Prepared {
        prepared(Entry::Decide(Box::new(Decide {
            id: DecisionId::from(Uuid::from_u128(1)),
            basis: 10,
            identity: "a:b".to_owned().try_into().unwrap(),
            instance: None,
            attestor: "a".into(),
            outcome: Decided::Permit,
            refusal: None,
            policies: Vec::new(),
            observed: None,
            generation,
            resource: None,
            input: opening(),
            purpose: None,
            task: None,
            plan: None,
            session: None,
            retry: None,
        })))
    }

    fn cutoff(block: Block) -> Cutoff {
        Cutoff {
            id: CutoffId::from(Uuid::from_u128(2)),
            index: 0,
            selector: Selector::All(True),
            block,
            reason: String::new(),
            by: String::new(),
            deny_policy_target: None,
            requested_at: Timestamp::EPOCH,
            committed_at: Timestamp::EPOCH,
            lifted_index: None,
        }
    }

    fn cut(block: Block) -> Prepared {
        let (commitment, opening) = opening();
        prepared(Entry::Cutoff(Box::new(cutoff(block)), commitment, opening))
    }

    fn lift(cutoff: &Cutoff) -> Prepared {
        prepared(Entry::Lift {
            cutoff: Box::new(cutoff.clone()),
            by: String::new(),
        })
    }

    #[test]
    fn a_permit_behind_a_cutoff_in_one_batch_is_stopped_by_it() {
        let generation = GenerationDigest::new([1; 32]);
        for (block, refused) in [(Block::No, false), (Block::UntilLifted, true)] {
            let cutoffs = Cutoffs::default();
            let (mac, at) = (mac(), (10, Some(generation)));
            let mut batch = Batch::new("o", right(), at, View::default(), &cutoffs, &mac);
            let before = batch.settle(&permit(generation)).unwrap();
            assert!(matches!(before, Settled::Recorded(_)));
            batch.settle(&cut(block)).unwrap();
            let behind = batch.settle(&permit(generation)).unwrap();
            if refused {
                assert!(matches!(behind, Settled::Refused(..)), "{behind:?}");
            } else {
                assert!(matches!(behind, Settled::Stale), "{behind:?}");
            }
        }
    }

    #[test]
    fn a_permit_behind_a_lift_in_one_batch_is_let_in_by_it() {
        let generation = GenerationDigest::new([1; 32]);
        // Its index is 0: a permit with the basis 10 was decided behind it.
        let standing = cutoff(Block::UntilLifted);
        let mut known = Cutoffs::default();
        known.add(standing.clone());
        let (mac, at) = (mac(), (10, Some(generation)));
        let mut batch = Batch::new("o", right(), at, View::default(), &known, &mac);
        let before = batch.settle(&permit(generation)).unwrap();
        assert!(matches!(before, Settled::Refused(..)), "{before:?}");
        batch.settle(&lift(&standing)).unwrap();
        let behind = batch.settle(&permit(generation)).unwrap();
        assert!(matches!(behind, Settled::Recorded(_)), "{behind:?}");
    }
}
