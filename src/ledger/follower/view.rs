//! The endings in the log that one replica knows.
//!
//! The follower writes [`View`], and all other parts of the broker read it. [`View::fresh`] lends
//! [`KnownEndings`] for look-ups, `complete_to` and `age` describe the view.
//!
//! The rule: the view has every ending with a leaf in `[complete_from, complete_to)`, except those
//! that no longer matter, because all sessions and evidence that they ended have expired. It knows
//! nothing of earlier leaves. So a session that was valid by a read of the store, made when the log
//! had at least `complete_from` leaves, has not been ended since as long as no look-up finds an
//! ending of it. Whether a task is open is not answered: its end may be forgotten before its
//! deadline. Deadlines, expiry and silence are not endings: callers judge them by the clock.
//! Failures: `fresh` is `None` for a view older than [`STALE_AFTER`]; the caller then reads the
//! store. `None` of a look-up means that the view has no such ending.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::clock::{BootInstant, Timestamp};
use crate::domain::cutoff::Selector;
use crate::domain::validity::is_dated_ahead;
use crate::ids::{SessionId, TaskId};
use crate::store::endings::{EndingRecord, EndingSubject};

/// The age from which on a view is not used. It is five times the interval between two reads.
pub const STALE_AFTER: Duration = Duration::from_millis(250);

/// The least number of endings between two searches for those that no longer matter.
const LEAST_PURGED: usize = 1_024;

/// The endings that one replica knows.
#[derive(Debug, Default)]
pub struct View {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    complete_from: u64,
    complete_to: u64,
    /// An instant before the read after which the view was complete. `None` before the first.
    as_of: Option<BootInstant>,
    tasks: Known<TaskId>,
    sessions: Known<SessionId>,
    cutoffs: Known<Selector>,
    /// Roles, signing keys and workload keys.
    rights: Known<EndingSubject>,
    activation: Option<u64>,
    /// The times that admins accepted, with the indices of their leaves, oldest first.
    accepted: Vec<(u64, Timestamp)>,
    /// The number of endings after the last search for those that no longer matter.
    purged_to: usize,
}

/// Endings of one kind.
#[derive(Debug)]
struct Known<K>(HashMap<K, Ending>);

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    /// The index of the newest leaf.
    index: u64,
    matters_until: Timestamp,
}

impl<K: Eq + Hash> Known<K> {
    fn learn(&mut self, key: K, ending: Ending) {
        let known = self.0.entry(key).or_insert(ending);
        known.index = known.index.max(ending.index);
        known.matters_until = known.matters_until.max(ending.matters_until);
    }

    fn index(&self, key: &K) -> Option<u64> {
        self.0.get(key).map(|ending| ending.index)
    }

    fn forget(&mut self, before: Timestamp) {
        self.0.retain(|_, ending| ending.matters_until >= before);
        // Without this a burst of endings would hold its memory for good.
        if self.0.capacity() / 4 > self.0.len() {
            self.0.shrink_to_fit();
        }
    }
}

impl State {
    fn len(&self) -> usize {
        self.tasks.0.len() + self.sessions.0.len() + self.cutoffs.0.len() + self.rights.0.len()
    }

    fn learn(&mut self, record: &EndingRecord) {
        let index = record.position.index;
        let ending = Ending {
            index,
            matters_until: record.matters_until,
        };
        match &record.subject {
            EndingSubject::Task(id) => self.tasks.learn(*id, ending),
            EndingSubject::Session(id) => self.sessions.learn(*id, ending),
            EndingSubject::Cutoff(selector) => {
                // The follower reads the last row of a full page twice.
                let accepted = selector.issued_after().map(|time| (index, time));
                if let Some(accepted) = accepted.filter(|it| !self.accepted.contains(it)) {
                    self.accepted.push(accepted);
                }
                self.cutoffs.learn(selector.clone(), ending);
            }
            // A lift ends a block and revives nothing.
            EndingSubject::Lift(_) => {}
            EndingSubject::Activation(_) => self.activation = Some(index),
            EndingSubject::SigningKey(_)
            | EndingSubject::Roles(_)
            | EndingSubject::WorkloadKey(_) => self.rights.learn(record.subject.clone(), ending),
        }
    }
}

impl View {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of leaves below which every ending is known.
    #[must_use]
    pub fn complete_to(&self) -> u64 {
        self.read().complete_to
    }

    /// The time since the last read after which the view was complete. `None` before the first.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.read().as_of.map(BootInstant::elapsed)
    }

    /// The number of endings in memory.
    #[must_use]
    pub fn known(&self) -> usize {
        self.read().len()
    }

    /// The known endings. `None` if they are older than [`STALE_AFTER`]: read the store instead. The
    /// view does not change while they are held, so hold them briefly.
    #[must_use]
    pub fn fresh(&self) -> Option<KnownEndings<'_>> {
        self.within(STALE_AFTER)
    }

    /// The known endings, if they are not older than this.
    fn within(&self, oldest: Duration) -> Option<KnownEndings<'_>> {
        let state = self.read();
        let age = state.as_of?.elapsed();
        (age <= oldest).then_some(KnownEndings(state))
    }

    /// Forgets everything: from now on the view has the endings with a leaf of this index or later.
    pub(super) fn begin(&self, size: u64, as_of: BootInstant) {
        *self.write() = State {
            complete_from: size,
            complete_to: size,
            as_of: Some(as_of),
            ..State::default()
        };
    }

    /// Adds endings. The view is complete only after [`Self::complete`].
    pub(super) fn learn<'r>(&self, records: impl IntoIterator<Item = &'r EndingRecord>) {
        let mut state = self.write();
        for record in records {
            state.learn(record);
        }
    }

    /// Records that every ending with a leaf below `size` was added, by a read that began at
    /// `as_of`.
    pub(super) fn complete(&self, size: u64, as_of: BootInstant) {
        let mut state = self.write();
        state.complete_to = size;
        state.as_of = Some(as_of);
    }

    /// Forgets the endings that mattered until before this time, if that is likely to free much.
    pub(super) fn purge(&self, before: Timestamp) {
        if self.known() < (2 * self.read().purged_to).max(LEAST_PURGED) {
            return;
        }
        let mut state = self.write();
        state.tasks.forget(before);
        state.sessions.forget(before);
        state.cutoffs.forget(before);
        state.rights.forget(before);
        state.purged_to = state.len();
    }
}

/// The endings of a view that is not stale.
#[derive(Debug)]
pub struct KnownEndings<'v>(RwLockReadGuard<'v, State>);

impl KnownEndings<'_> {
    /// The index of the first leaf whose endings are known.
    #[must_use]
    pub fn complete_from(&self) -> u64 {
        self.0.complete_from
    }

    /// The number of leaves below which every ending is known.
    #[must_use]
    pub fn complete_to(&self) -> u64 {
        self.0.complete_to
    }

    /// The leaf that ended this task, for a session of it. Its ancestors are not considered.
    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<u64> {
        self.0.tasks.index(&id)
    }

    /// The leaf that ended this session, or began to end it. Its tasks, the sessions from which it
    /// was derived, and cutoffs are not considered.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<u64> {
        self.0.sessions.index(&id)
    }

    /// The leaf of the newest cutoff with exactly this selector. It ends everything that the
    /// selector matches and that has an earlier leaf.
    #[must_use]
    pub fn cutoff(&self, selector: &Selector) -> Option<u64> {
        self.0.cutoffs.index(selector)
    }

    /// Whether the acceptance of a time ended a record with this date and leaf.
    #[must_use]
    pub fn is_dated_ahead(&self, dated_at: Timestamp, leaf_index: u64) -> bool {
        is_dated_ahead(dated_at, leaf_index, &self.0.accepted)
    }

    /// The leaf of the newest change of an identity's roles, of the revocation of a signing key, or
    /// of the removal of a workload key. `None` for other subjects.
    #[must_use]
    pub fn rights(&self, subject: &EndingSubject) -> Option<u64> {
        self.0.rights.index(subject)
    }

    /// The leaf of the newest activation.
    #[must_use]
    pub fn activation(&self) -> Option<u64> {
        self.0.activation
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::endings::EndingPosition;

    fn record(index: u64, subject: EndingSubject, until: i64) -> EndingRecord {
        EndingRecord {
            position: EndingPosition { index, n: 0 },
            subject,
            matters_until: Timestamp::from_seconds(until),
        }
    }

    fn session(n: u128) -> SessionId {
        Uuid::from_u128(n).into()
    }

    #[test]
    fn a_view_answers_only_while_it_is_fresh() {
        let view = View::default();
        assert!(view.fresh().is_none(), "nothing was read yet");
        view.begin(5, BootInstant::now());
        view.learn(&[record(6, EndingSubject::Session(session(1)), 9)]);
        view.complete(8, BootInstant::now());
        assert_eq!(view.complete_to(), 8);
        let known = view.within(Duration::MAX).unwrap();
        assert_eq!((known.complete_from(), known.complete_to()), (5, 8));
        assert_eq!(known.session(session(1)), Some(6));
        assert_eq!(known.session(session(2)), None);
        drop(known);
        view.complete(8, BootInstant::now().minus(2 * STALE_AFTER));
        assert!(view.fresh().is_none());
        assert!(view.age().unwrap() >= 2 * STALE_AFTER);
    }

    #[test]
    fn the_newest_cutoff_of_a_selector_counts_and_a_lift_revives_nothing() {
        let view = View::default();
        view.begin(0, BootInstant::now());
        let selector = Selector::Resource("orders".into());
        let later = Selector::IssuedAfter(Timestamp::from_seconds(50));
        view.learn(&[
            record(3, EndingSubject::Cutoff(selector.clone()), 9),
            record(7, EndingSubject::Cutoff(selector.clone()), 9),
            record(8, EndingSubject::Lift(selector.clone()), 9),
            record(9, EndingSubject::Cutoff(later), 9),
        ]);
        let known = view.within(Duration::MAX).unwrap();
        assert_eq!(known.cutoff(&selector), Some(7));
        assert_eq!(known.cutoff(&Selector::Resource("other".into())), None);
        let at = Timestamp::from_seconds;
        assert!(known.is_dated_ahead(at(51), 8));
        assert!(!known.is_dated_ahead(at(50), 8));
        assert!(!known.is_dated_ahead(at(51), 9));
    }

    #[test]
    fn endings_that_no_longer_matter_are_forgotten() {
        let view = View::default();
        view.begin(0, BootInstant::now());
        let count = u128::try_from(LEAST_PURGED).unwrap();
        let records = (0..count).map(|n| {
            let until = if n % 2 == 0 { 10 } else { 20 };
            record(1, EndingSubject::Session(session(n)), until)
        });
        view.learn(&records.collect::<Vec<_>>());
        view.purge(Timestamp::from_seconds(15));
        assert_eq!(view.known(), LEAST_PURGED / 2);
        let known = view.within(Duration::MAX).unwrap();
        assert_eq!(known.session(session(0)), None);
        assert_eq!(known.session(session(1)), Some(1));
    }
}
