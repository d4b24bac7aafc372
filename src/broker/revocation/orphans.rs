//! The progress of the search for orphaned sessions. These are external sessions that an act on
//! something else ended, such as a cutoff or the end of their task. The sweeper searches for them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time after which all live external sessions are searched again.
const SEARCH_ALL_EVERY: Duration = Duration::from_mins(1);

/// The progress of this replica's search.
#[derive(Debug, Default)]
pub struct OrphanSearch(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The acts before this leaf were processed.
    processed: u64,
    /// When all sessions were last searched. `None` if they are to be searched now.
    searched_all: Option<Instant>,
}

impl OrphanSearch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first leaf whose act is still to be processed. `None` if all sessions are to be
    /// searched.
    #[must_use]
    pub fn heed_from(&self) -> Option<u64> {
        let state = *self.lock();
        let searched = state.searched_all?;
        (searched.elapsed() < SEARCH_ALL_EVERY).then_some(state.processed)
    }

    /// Registers that the acts before the leaf at `size` were processed.
    pub fn heeded(&self, size: u64) {
        self.lock().processed = size;
    }

    /// Registers that a search of all sessions began at `began`. It covers the acts before the leaf
    /// at `size`.
    pub fn searched_all(&self, began: Instant, size: u64) {
        *self.lock() = State {
            processed: size,
            searched_all: Some(began),
        };
    }

    /// Requests a search of all sessions, because a session ended without a leaf of its own.
    pub fn demand(&self) {
        self.lock().searched_all = None;
    }
}
