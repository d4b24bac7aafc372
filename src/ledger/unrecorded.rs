//! Evidence whose use could not be recorded.
//!
//! If the store does not accept a batch, or the queue has no room for an entry, the caller is
//! answered with 503, although its evidence was presented. So the replica keeps the one-time ids
//! (`keep`), refuses them in every later batch (`replayed`), and records their use with its next
//! batches (`take`).
//!
//! The rule: an id that is kept is refused, unless it is bound and comes with the same binding. Ids
//! whose rows the store refuses are kept until they have expired. A restart before that loses the
//! ids, and other replicas learn of the use only when the store does. When
//! [`MAX_UNRECORDED_EVIDENCE`] ids are kept, further calls with evidence are refused as overloaded;
//! nothing else here fails. `ledger` and the appender call this module.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Timestamp;
use crate::domain::limits::{MAX_UNRECORDED_EVIDENCE, ONE_TIME_KEPT_SECONDS};
use crate::domain::workload::{OneTime, OneTimeId};

/// One-time ids that the replica refuses although the store does not know them yet.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    ids: Mutex<BTreeMap<OneTimeId, UnrecordedId>>,
    added: Notify,
}

#[derive(Clone, Copy, Debug)]
struct UnrecordedId {
    id: OneTime,
    /// Whether its use must still be recorded; false if the store refused its row.
    due: bool,
}

impl Unrecorded {
    fn state(&self) -> MutexGuard<'_, BTreeMap<OneTimeId, UnrecordedId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps ids until their use is recorded. The first use of an id counts.
    pub(super) fn keep(&self, ids: &[OneTime]) {
        self.insert(ids, true);
    }

    /// Keeps ids whose rows the store refuses, until they have expired.
    pub(super) fn keep_for_good(&self, ids: &[OneTime]) {
        self.insert(ids, false);
    }

    fn insert(&self, ids: &[OneTime], due: bool) {
        if ids.is_empty() {
            return;
        }
        let mut state = self.state();
        for id in ids {
            state
                .entry(id.id())
                .or_insert(UnrecordedId { id: *id, due });
        }
        drop(state);
        self.added.notify_one();
    }

    /// Removes and returns up to `most` ids whose use is to be recorded next. Deletes those that
    /// have expired.
    pub(super) fn take(&self, most: usize, now: Timestamp) -> Vec<OneTime> {
        let mut state = self.state();
        if state.is_empty() {
            return Vec::new();
        }
        state.retain(|_, kept| kept.id.expires_at.plus_seconds(ONE_TIME_KEPT_SECONDS) > now);
        let due = state.values().filter(|kept| kept.due);
        let taken: Vec<OneTime> = due.take(most).map(|kept| kept.id).collect();
        for id in &taken {
            state.remove(&id.id());
        }
        taken
    }

    /// The first of these ids that was used before, with another binding or without one. `None` if
    /// all of them may still be used.
    pub(super) fn replayed(&self, ids: &[OneTime]) -> Option<[u8; 32]> {
        let state = self.state();
        let replayed = ids.iter().find(|id| {
            state.get(&id.id()).is_some_and(|kept| {
                id.must_be_new || id.binding.is_none() || id.binding != kept.id.binding
            })
        });
        replayed.map(|id| id.key)
    }

    /// How many ids are kept.
    pub(super) fn len(&self) -> usize {
        self.state().len()
    }

    /// Whether no further call may present evidence. Calls in progress may still add theirs.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_UNRECORDED_EVIDENCE
    }

    /// Resolves when ids are due for recording and `pause` has passed.
    pub(super) async fn due(&self, pause: Duration) {
        loop {
            let is_due = self.state().values().any(|kept| kept.due);
            if is_due {
                tokio::time::sleep(pause).await;
                return;
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000).plus_seconds(seconds)
    }

    fn id(n: u8, binding: Option<u8>) -> OneTime {
        OneTime {
            key: [n; 32],
            binding: binding.map(|b| [b; 32]),
            must_be_new: false,
            issued_at: at(0),
            expires_at: at(300),
        }
    }

    #[test]
    fn what_is_kept_is_refused_but_for_its_own_binding() {
        let kept = Unrecorded::default();
        kept.keep(&[id(1, None), id(2, Some(7))]);
        for (ids, refused) in [
            (vec![id(1, None)], true),
            (vec![id(1, Some(7))], true),
            (vec![id(2, None)], true),
            (vec![id(2, Some(8))], true),
            (vec![id(3, None), id(1, None)], true),
            (vec![id(2, Some(7))], false),
            (vec![id(3, None)], false),
            (Vec::new(), false),
        ] {
            assert_eq!(kept.replayed(&ids).is_some(), refused, "{ids:?}");
        }
        let anew = OneTime {
            must_be_new: true,
            ..id(2, Some(7))
        };
        assert!(kept.replayed(&[anew]).is_some());
        // A later use does not relax the first.
        kept.keep(&[id(1, Some(7))]);
        assert!(kept.replayed(&[id(1, Some(7))]).is_some());
    }

    #[test]
    fn what_is_kept_is_taken_in_parts_and_what_is_too_old_is_forgotten() {
        let kept = Unrecorded::default();
        kept.keep(&[id(1, None), id(2, None), id(3, None)]);
        kept.keep_for_good(&[id(4, None)]);
        assert_eq!(kept.take(2, at(0)), [id(1, None), id(2, None)]);
        assert!(
            kept.replayed(&[id(1, None)]).is_none(),
            "the batch has taken it over"
        );
        assert!(kept.replayed(&[id(3, None)]).is_some() && kept.replayed(&[id(4, None)]).is_some());
        assert_eq!(kept.take(2, at(0)), [id(3, None)]);
        assert_eq!(
            kept.take(2, at(0)),
            [],
            "a refused row must not be tried again"
        );
        assert!(kept.replayed(&[id(4, None)]).is_some());
        kept.keep(&[id(1, None)]);
        assert_eq!(kept.take(2, at(300 + ONE_TIME_KEPT_SECONDS)), []);
        assert_eq!(kept.len(), 0);
    }

    #[test]
    fn it_is_due_once_something_is_kept() {
        let kept = Unrecorded::default();
        assert!(kept.due(Duration::ZERO).now_or_never().is_none());
        kept.keep(&[]);
        assert!(kept.added.notified().now_or_never().is_none());
        kept.keep(&[id(1, None)]);
        assert!(kept.added.notified().now_or_never().is_some());
        assert!(!kept.is_full());
        let many = (0..MAX_UNRECORDED_EVIDENCE).map(|n| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            OneTime { key, ..id(0, None) }
        });
        kept.keep(&many.collect::<Vec<_>>());
        assert!(kept.is_full());
    }
}
