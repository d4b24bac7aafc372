//! The size of SQLite's write-ahead log.
//!
//! The log grows while a connection reads an old snapshot, since nothing behind that snapshot may be
//! overwritten, and SQLite gives none of it back before the database is closed. The broker's own reads
//! are short; a backup or a person with SQLite's shell may read for long. So the log is cut off as soon
//! as nothing is read from it, and beyond a limit the broker issues nothing until it could be.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::limits::{CUT_WAL_BYTES, LARGE_WAL_BYTES};

/// How often that is told.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// How long after a try that a reader was in the way of the next one is made: writers wait for each.
const PAUSE: Duration = Duration::from_secs(5);

/// The write-ahead log of one database.
#[derive(Debug)]
pub(super) struct WriteAheadLog {
    path: PathBuf,
    bytes: AtomicU64,
    limit: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tried: Option<Instant>,
    told: Option<Instant>,
}

impl WriteAheadLog {
    pub(super) fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self {
            path: path.into(),
            bytes: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            state: Mutex::default(),
        }
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::SeqCst);
    }

    /// Looks at the file. The answer is its size in bytes.
    pub(super) fn measure(&self) -> u64 {
        // There is none before the first write.
        let bytes = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        self.bytes.store(bytes, Ordering::SeqCst);
        bytes
    }

    /// Whether it is to be cut off now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        if self.bytes.load(Ordering::SeqCst) < CUT_WAL_BYTES.min(limit) {
            return false;
        }
        let tried = self.state().tried;
        tried.is_none_or(|tried| now.duration_since(tried) >= PAUSE)
    }

    /// A try to cut it off is over.
    pub(super) fn note_try(&self, now: Instant, emptied: bool) {
        self.state().tried = (!emptied).then_some(now);
    }

    /// The size and the file, if it is large and that was not told a short while ago.
    pub(super) fn untold(&self, now: Instant) -> Option<(u64, &Path)> {
        let bytes = self.bytes.load(Ordering::SeqCst);
        let limit = self.limit.load(Ordering::SeqCst);
        if bytes < LARGE_WAL_BYTES.min(limit) {
            return None;
        }
        let mut state = self.state();
        let told = state.told;
        if told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return None;
        }
        state.told = Some(now);
        Some((bytes, &self.path))
    }

    /// Why nothing may be issued, while it is beyond its limit.
    pub(super) fn overfull(&self) -> Option<String> {
        let bytes = self.bytes.load(Ordering::SeqCst);
        let limit = self.limit.load(Ordering::SeqCst);
        (bytes >= limit).then(|| {
            format!(
                "{} has {bytes} bytes of at most {limit}: a process reads an old state of the \
                 database; end it",
                self.path.display()
            )
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
