//! How far the search for orphaned sessions has come: external ones that something other than their
//! own record ended. The sweeper searches.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time after which all live external sessions are searched again.
const SEARCH_ALL_EVERY: Duration = Duration::from_mins(1);

/// How far the search of this replica has come.
#[derive(Debug, Default)]
pub struct OrphanSearch(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The acts before this leaf were heeded.
    heeded: u64,
    /// When all sessions were last searched; none if they are to be.
    searched_all: Option<Instant>,
}

impl OrphanSearch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leaf from which on acts are to be heeded; none where all sessions are to be searched.
    #[must_use]
    pub fn heed_from(&self) -> Option<u64> {
        let state = *self.lock();
        let searched = state.searched_all?;
        (searched.elapsed() < SEARCH_ALL_EVERY).then_some(state.heeded)
    }

    /// The acts before `size` were heeded.
    pub fn heeded(&self, size: u64) {
        self.lock().heeded = size;
    }

    /// All sessions were searched, from `began` on, and the acts before `size` are heeded thereby.
    pub fn searched_all(&self, began: Instant, size: u64) {
        *self.lock() = State {
            heeded: size,
            searched_all: Some(began),
        };
    }

    /// All sessions are to be searched: something ended one that has no act of its own.
    pub fn demand(&self) {
        self.lock().searched_all = None;
    }
}
