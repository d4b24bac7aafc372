//! Finds out whether the location honours the conditions of writes.
//!
//! `try_conditions` repeats a swap whose old content is gone, and `try_careless` tries a change
//! from a version that never existed. Each condition is tried once ([`HonouredConditions`]): a
//! location may honour one and ignore the other.
//!
//! The rule: a location that ignores conditions stops the ledger, because a slow replica would
//! overwrite newer checkpoints of others. That is an alarm; a proxy that answers success without
//! writing is `Unavailable`. [`super::SharedCheckpoint`] calls this file after each swap.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::info;

use super::{SharedCheckpoint, SharedError};
use crate::ledger::Signed;
use crate::ledger::checkpoint_store::{Swapped, VersionedNote};

/// The conditions that were tried: a location may honour one and ignore the other.
#[derive(Default)]
pub(super) struct HonouredConditions {
    /// The second creation of an object that exists.
    creation: AtomicBool,
    /// A change from a version that was replaced.
    change: AtomicBool,
    /// A change from a version that never existed, which can be tried before any real change.
    careless: AtomicBool,
}

impl SharedCheckpoint {
    /// Tries each condition once, directly after a swap: the same swap must now fail, because the
    /// old content is gone. A location that accepts it ignores conditions, and a slow replica would
    /// overwrite newer checkpoints of others.
    pub(super) async fn try_conditions(
        &self,
        gone: &VersionedNote,
        signed: &Signed,
    ) -> Result<(), SharedError> {
        let tried = match gone.note {
            None => &self.tried.creation,
            Some(_) => &self.tried.change,
        };
        // A note that was replaced by itself is not gone.
        let same = gone.note.as_deref() == Some(signed.checkpoint.as_bytes());
        if !same && !tried.load(Ordering::Relaxed) {
            if let Swapped::Done(_) = self.location.swap(gone, &signed.checkpoint).await? {
                return Err(self.careless(signed.checkpoint.as_bytes()).await);
            }
            tried.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Tries a change from a version that never existed, before anything depends on the condition.
    pub(super) async fn try_careless(&self, kept: &VersionedNote) -> Result<(), SharedError> {
        if self.tried.careless.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.location.is_careless(kept).await {
            Ok(true) => {
                let note = kept.note.as_deref().unwrap_or_default();
                return Err(self.careless(note).await);
            }
            Ok(false) => self.tried.careless.store(true, Ordering::Relaxed),
            // The first real change will find out.
            Err(error) => info!(%error, "whether the location honours conditions is not known yet"),
        }
        Ok(())
    }

    /// The error for a note that was written although the condition was false. If the location does
    /// not hold the note, a proxy may have answered success without writing; that is not an alarm.
    async fn careless(&self, note: &[u8]) -> SharedError {
        match self.location.read().await {
            Ok(kept) if kept.note.as_deref() == Some(note) => SharedError::Alarm(format!(
                "{}: a write succeeded although its condition (If-Match, If-None-Match) was false: \
                 such a store lets replicas overwrite newer checkpoints; use another store",
                self.location
            )),
            Ok(_) => SharedError::Unavailable(format!(
                "{}: the write was answered with success, but the note is not there",
                self.location
            )),
            Err(error) => error.into(),
        }
    }
}
