//! The size of SQLite's write-ahead log.
//!
//! The log grows while a connection reads an old snapshot, because nothing after that snapshot may
//! be overwritten, and SQLite does not shrink it before the database is closed. The broker's own
//! reads are short; a backup or a person with SQLite's shell may read for long. So the broker
//! truncates the log as soon as nothing reads from it, and issues nothing while it is beyond a
//! limit.
//!
//! `measure` reads the size, `is_due` says when to truncate, `untold` when to warn, and `overfull`
//! why nothing may be issued. A file that cannot be read counts as empty, because it does not exist
//! before the first write. Without `set_limit` there is no limit. Only `super::sqlite` calls this
//! module, and does the truncation; the ledger and readiness use `overfull`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::limits::{CUT_WAL_BYTES, LARGE_WAL_BYTES};

/// The interval between two warnings about the size.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// The pause after a truncation that a reader prevented; writers wait for each try.
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

    /// Reads the size of the file, in bytes.
    pub(super) fn measure(&self) -> u64 {
        // The file does not exist before the first write.
        let bytes = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        self.bytes.store(bytes, Ordering::SeqCst);
        bytes
    }

    /// Whether to truncate the log now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        if self.bytes.load(Ordering::SeqCst) < CUT_WAL_BYTES.min(limit) {
            return false;
        }
        let tried = self.state().tried;
        tried.is_none_or(|tried| now.duration_since(tried) >= PAUSE)
    }

    /// Records a try to truncate it.
    pub(super) fn note_try(&self, now: Instant, emptied: bool) {
        self.state().tried = (!emptied).then_some(now);
    }

    /// The size and the path, if the log is large and no warning was given in the last minute.
    /// `None` if there is nothing to warn of now.
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

    /// The reason not to issue anything, if the log has reached its limit. `None` if it has not.
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
