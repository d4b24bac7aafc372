//! The checkpoint outside the store that all replicas share.
//!
//! Each replica publishes its newest checkpoint there, in exchange for the one that it read and
//! verified, so the shared checkpoint never goes back (`publish`). An empty location is accepted
//! only if it is new and a note can be written there: a share that is not mounted, and a bucket or
//! route that was removed, look empty as well. If the store does not contain the shared checkpoint
//! (`check_note`), it has lost or changed leaves for which receipts may exist: a backup was
//! restored, a standby was promoted before it had received every leaf, or the store was forked. The
//! ledger then stops for good. It checks this at the start, on each new connection to the database,
//! because that may lead to another server, and with each publication.
//!
//! Each replica also reads the location about twice a second (`compare`). Its content is known to
//! be committed. So a replica that appends nothing still detects that its connections lead to a
//! server that lacks leaves, and stops reading from that server. Failures: [`SharedError::Alarm`]
//! stops the ledger. `Unavailable` and `Store` fail a start or a new connection; in the running
//! worker they are logged and tried again. `guard` and the appender call this module;
//! `checkpoint_store` reads and writes the location.

mod conditions;
mod note_check;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use self::conditions::HonouredConditions;
pub(super) use self::note_check::Through;
use super::checkpoint_store::{CheckpointStore, CheckpointStoreError, Swapped, VersionedNote};
use super::{LedgerKeySource, LedgerKeys, LedgerParts, Signed};
use crate::clock::SharedClock;
use crate::domain::succession::Succession;
use crate::metrics::Metrics;
use crate::store::append::Server;
use crate::store::authenticity::Alarm;
use crate::store::heads::{Head, HeadError, HeadSeal};
use crate::store::{Store, StoreError};

/// The least time between two publications.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// The time between two reads of the location. Together with [`PUBLISH_EVERY`] it bounds how long a
/// replica on a superseded server gives outdated answers: about two seconds.
const COMPARE_EVERY: Duration = Duration::from_millis(500);

/// How often one publication is tried when other replicas publish first.
const TRIES: u32 = 8;

/// The location, and the values to check its content against.
pub(super) struct SharedCheckpoint {
    location: CheckpointStore,
    store: Store,
    origin: String,
    heads: HeadSeal,
    keys: LedgerKeys,
    key_source: Arc<dyn LedgerKeySource>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    succeeds: Option<Succession>,
    alarm: Alarm,
    /// The conditions that the location was seen to honour.
    tried: HonouredConditions,
    /// Whether this process saw a note there.
    seen: AtomicBool,
    /// Whether the store records that the shared checkpoint is kept there.
    noted: AtomicBool,
    /// Whether the start is complete. Until then the store itself is being checked.
    running: AtomicBool,
}

/// A note in the location that is known to be of this log.
struct PublishedNote {
    kept: VersionedNote,
    size: u64,
}

/// The worker's knowledge of the location.
struct WatchState {
    known: Option<PublishedNote>,
    next_compare: Instant,
    /// Whether the last read failed.
    failing: bool,
}

/// Why nothing was published or checked.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedError {
    /// The location did not answer, or its content cannot be checked yet; the next try may succeed.
    #[error("the shared checkpoint: {0}")]
    Unavailable(String),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The location and the store do not hold one log.
    #[error("{0}")]
    Alarm(String),
}

impl From<HeadError> for SharedError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Store(error) => Self::Store(error),
            HeadError::Foreign(why) => Self::Alarm(why.to_string()),
        }
    }
}

impl From<CheckpointStoreError> for SharedError {
    fn from(error: CheckpointStoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl SharedCheckpoint {
    pub(super) fn new(location: CheckpointStore, parts: &LedgerParts, alarm: Alarm) -> Self {
        Self {
            location,
            store: parts.store.clone(),
            origin: parts.origin.clone(),
            heads: parts.head_seal(),
            keys: Arc::clone(&parts.keys),
            key_source: Arc::clone(&parts.key_source),
            clock: Arc::clone(&parts.clock),
            metrics: Arc::clone(&parts.metrics),
            succeeds: parts.succeeds.clone(),
            alarm,
            tried: HonouredConditions::default(),
            seen: AtomicBool::new(false),
            noted: AtomicBool::new(false),
            running: AtomicBool::new(false),
        }
    }

    /// Checks that the store contains the shared checkpoint. If the location is empty, `ours` is
    /// published there first; it is `None` for an empty log. Returns the server that a new
    /// connection leads to, if that server was checked.
    pub(super) async fn check(
        &self,
        ours: Option<&Signed>,
        through: Through<'_>,
    ) -> Result<Option<Server>, SharedError> {
        let mut kept = self.read().await?;
        if kept.note.is_none() {
            let Some(ours) = ours else {
                info!(place = %self.location, "the shared checkpoint does not exist yet");
                return Ok(None);
            };
            // The location is new, or the checkpoint was removed.
            warn!(
                place = %self.location, leaves = ours.head.size,
                "the shared checkpoint does not exist although the log has leaves: unless the \
                 location is new, find out who removed it"
            );
            kept = match self.location.swap(&kept, &ours.checkpoint).await? {
                Swapped::Done(new) => {
                    self.try_conditions(&kept, ours).await?;
                    new
                }
                // Another replica published first.
                Swapped::Changed => self.location.read().await?,
            };
        }
        self.try_careless(&kept).await?;
        let checked = Box::pin(self.check_note(&kept, through)).await?;
        if checked.there.is_some() {
            self.note().await?;
        }
        Ok(checked.server)
    }

    /// The content of the location. Fails if it is empty but held a checkpoint before.
    async fn read(&self) -> Result<VersionedNote, SharedError> {
        let kept = self.location.read().await?;
        if kept.note.is_some() || !self.is_known().await? {
            return Ok(kept);
        }
        // Another replica may have written the first checkpoint after the location was read.
        let kept = self.location.read().await?;
        if kept.note.is_none() {
            return Err(self.gone());
        }
        Ok(kept)
    }

    /// Whether the location held a checkpoint before. The store records that only after the
    /// publication.
    async fn is_known(&self) -> Result<bool, SharedError> {
        if self.seen.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let known = self.store.shared_checkpoint_location().await?;
        Ok(known.is_some_and(|known| known == self.location.to_string()))
    }

    /// The error for a checkpoint that disappeared.
    fn gone(&self) -> SharedError {
        SharedError::Unavailable(format!(
            "{}: a checkpoint was kept there and is gone: the disk is not mounted, the bucket or \
             the route does not exist, or the checkpoint was removed. If it is lost, put another \
             checkpoint of this log there, for example a replica's ledger.checkpoint_file",
            self.location
        ))
    }

    /// Records in the store that the shared checkpoint is kept here, so that the location no longer
    /// counts as new.
    async fn note(&self) -> Result<(), SharedError> {
        if !self.noted.load(Ordering::Relaxed) {
            let location = self.location.to_string();
            self.store.put_shared_checkpoint_location(&location).await?;
            self.noted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Publishes each newest checkpoint until the ledger ends, and reads the location in between.
    pub(super) async fn run(self: Arc<Self>, mut newest: watch::Receiver<Option<Signed>>) {
        self.running.store(true, Ordering::Relaxed);
        let mut watched = WatchState {
            known: None,
            next_compare: Instant::now() + COMPARE_EVERY,
            failing: false,
        };
        loop {
            let changed = tokio::time::timeout_at(watched.next_compare, newest.changed()).await;
            let stopped = match changed {
                Ok(Err(_)) => return,
                Err(_) => self.compare(&mut watched).await.is_err(),
                Ok(Ok(())) => {
                    let signed = newest.borrow_and_update().clone();
                    match signed {
                        Some(signed) => self.publish_next(&signed, &mut newest, &mut watched).await,
                        None => Ok(()),
                    }
                    .is_err()
                }
            };
            if stopped {
                return;
            }
        }
    }

    /// Publishes one checkpoint, and pauses. `Err` when the worker must end.
    async fn publish_next(
        &self,
        signed: &Signed,
        newest: &mut watch::Receiver<Option<Signed>>,
        watched: &mut WatchState,
    ) -> Result<(), ()> {
        let published = Box::pin(self.publish(signed, &mut watched.known)).await;
        match &published {
            Ok(()) => {
                let now = self.clock.now();
                self.metrics.shared_checkpoint(signed.head.size, now);
            }
            Err(SharedError::Alarm(why)) => {
                self.raise_alarm(why);
                return Err(());
            }
            Err(why) => {
                watched.known = None;
                self.metrics.shared_checkpoint_failed();
                warn!(%why, place = %self.location, "a checkpoint could not be published");
            }
        }
        let until = Instant::now() + PUBLISH_EVERY;
        let gone = loop {
            // Ends the pause early when the ledger has ended, so that its last checkpoint is
            // published at once.
            let mut end = newest.clone();
            let wait = end.wait_for(|_| false);
            let next = until.min(watched.next_compare);
            if tokio::time::timeout_at(next, wait).await.is_ok() {
                break true;
            }
            if next == until {
                break false;
            }
            self.compare(watched).await?;
        };
        if published.is_err() {
            if gone {
                return Err(());
            }
            // Tries again without waiting for a newer checkpoint.
            newest.mark_changed();
        }
        Ok(())
    }

    /// Reads the location and checks the pool's server against it. `Err` when the ledger stops.
    async fn compare(&self, watched: &mut WatchState) -> Result<(), ()> {
        let compared = Box::pin(self.try_compare(&mut watched.known)).await;
        watched.next_compare = Instant::now() + COMPARE_EVERY;
        match compared {
            Ok(()) => watched.failing = false,
            Err(SharedError::Alarm(why)) => {
                self.raise_alarm(&why);
                return Err(());
            }
            Err(why) if watched.failing => {
                debug!(%why, place = %self.location, "the shared checkpoint was not compared");
            }
            Err(why) => {
                watched.failing = true;
                warn!(%why, place = %self.location, "the shared checkpoint was not compared");
            }
        }
        Ok(())
    }

    async fn try_compare(&self, known: &mut Option<PublishedNote>) -> Result<(), SharedError> {
        let kept = self.read().await?;
        if kept.note.is_none() {
            return Ok(());
        }
        let same = |known: &PublishedNote| known.kept.note == kept.note;
        if known.as_ref().is_some_and(same) {
            return Ok(());
        }
        *known = None;
        let checked = Box::pin(self.check_note(&kept, Through::Pool)).await?;
        *known = checked
            .there
            .map(|Head { size, .. }| PublishedNote { kept, size });
        Ok(())
    }

    fn raise_alarm(&self, why: &str) {
        error!(%why, "the ledger stops");
        // A later reason does not replace the first.
        drop(self.alarm.set(why.to_owned()));
    }

    async fn publish(
        &self,
        signed: &Signed,
        known: &mut Option<PublishedNote>,
    ) -> Result<(), SharedError> {
        for _ in 0..TRIES {
            // Another replica published this size or a larger one, which stays.
            if known
                .as_ref()
                .is_some_and(|known| known.size >= signed.head.size)
            {
                return self.note().await;
            }
            let kept = if let Some(known) = known.take() {
                // The location held this note at the last access, so it is not read again.
                known.kept
            } else {
                let kept = self.read().await?;
                if kept.note.is_some() {
                    let checked = Box::pin(self.check_note(&kept, Through::Pool)).await?;
                    if let Some(Head { size, .. }) = checked.there
                        && size >= signed.head.size
                    {
                        *known = Some(PublishedNote { kept, size });
                        return self.note().await;
                    }
                }
                kept
            };
            if let Swapped::Done(new) = self.location.swap(&kept, &signed.checkpoint).await? {
                self.seen.store(true, Ordering::Relaxed);
                self.try_conditions(&kept, signed).await?;
                self.try_careless(&new).await?;
                *known = Some(PublishedNote {
                    kept: new,
                    size: signed.head.size,
                });
                return self.note().await;
            }
        }
        Err(SharedError::Unavailable(format!(
            "{}: other replicas published first, {TRIES} times",
            self.location
        )))
    }
}

#[cfg(test)]
mod tests;
