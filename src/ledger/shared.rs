//! The checkpoint that all replicas keep together, outside the store.
//!
//! Each replica puts its newest one there, in the place of what it read and verified, so what is
//! there never goes back. A store that does not contain it has lost or changed leaves that somebody
//! may hold receipts for: a backup was restored, a standby took over that had not yet received all,
//! or there are two stores where there was one. That is looked for at the start, whenever a new
//! connection to the database is made, for it may lead to another server, and with each
//! publication; it stops the ledger for good.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::guard::{contains, succeeded, unverified};
use super::place::{Kept, Place, PlaceError, Swapped};
use super::{LedgerKeys, LedgerParts, Signed};
use crate::clock::SharedClock;
use crate::domain::succession::Succession;
use crate::merkle::{SignedCheckpoint, VerifierKey};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::append::Head;

/// The least time between two publications.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// How often a publication begins anew because another replica was first.
const TRIES: u32 = 8;

/// Why the ledger must not go on, once that is so.
pub(super) type Alarm = Arc<OnceLock<String>>;

/// The place, and what its content is held against.
pub(super) struct SharedCheckpoint {
    place: Place,
    store: Store,
    origin: String,
    keys: LedgerKeys,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    succeeds: Option<Succession>,
    alarm: Alarm,
    /// Whether the place was seen to refuse what it has to refuse.
    tried: AtomicBool,
}

/// Why nothing was published, or found out.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedError {
    /// The place or the store did not answer: a passing fault.
    #[error("the shared checkpoint: {0}")]
    Unavailable(String),
    /// What it holds and what the store holds are not one log.
    #[error("{0}")]
    Alarm(String),
}

impl From<PlaceError> for SharedError {
    fn from(error: PlaceError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl SharedCheckpoint {
    pub(super) fn new(place: Place, parts: &LedgerParts, alarm: Alarm) -> Self {
        Self {
            place,
            store: parts.store.clone(),
            origin: parts.origin.clone(),
            keys: Arc::clone(&parts.keys),
            clock: Arc::clone(&parts.clock),
            metrics: Arc::clone(&parts.metrics),
            succeeds: parts.succeeds.clone(),
            alarm,
            tried: AtomicBool::new(false),
        }
    }

    /// Checks that the store contains what the place holds. An empty place is believed: it is so
    /// when the first replica of all starts.
    pub(super) async fn check(&self) -> Result<(), SharedError> {
        let kept = self.place.read().await?;
        self.judge(&kept).await.map(|_| ())
    }

    /// Publishes what comes, until nothing does.
    pub(super) async fn run(self: Arc<Self>, mut newest: watch::Receiver<Option<Signed>>) {
        let mut known: Option<Kept> = None;
        while newest.changed().await.is_ok() {
            let Some(signed) = newest.borrow_and_update().clone() else {
                continue;
            };
            let published = self.publish(&signed, &mut known).await;
            match &published {
                Ok(()) => {
                    let now = self.clock.now();
                    self.metrics.shared_checkpoint(signed.head.size, now);
                }
                Err(SharedError::Unavailable(why)) => {
                    known = None;
                    self.metrics.shared_checkpoint_failed();
                    warn!(%why, place = %self.place, "a checkpoint could not be published");
                }
                Err(SharedError::Alarm(why)) => {
                    error!(%why, "the ledger stops");
                    // The first reason stays.
                    drop(self.alarm.set(why.clone()));
                    return;
                }
            }
            // Over early when the ledger is gone: its last word is published at once.
            let mut end = newest.clone();
            let wait = end.wait_for(|_| false);
            let gone = tokio::time::timeout(PUBLISH_EVERY, wait).await.is_ok();
            if published.is_err() {
                if gone {
                    return;
                }
                // Tried again without waiting for a newer one.
                newest.mark_changed();
            }
        }
    }

    async fn publish(&self, signed: &Signed, known: &mut Option<Kept>) -> Result<(), SharedError> {
        for _ in 0..TRIES {
            // Ours, or one that was found to be of our log: nothing to find out.
            let kept = if let Some(kept) = known.take() {
                kept
            } else {
                let kept = self.place.read().await?;
                let there = self.judge(&kept).await?;
                if there.is_some_and(|there| there.size >= signed.head.size) {
                    *known = Some(kept);
                    return Ok(());
                }
                kept
            };
            if let Swapped::Done(new) = self.place.swap(&kept, &signed.checkpoint).await? {
                self.try_conditions(&kept, signed).await?;
                *known = Some(new);
                return Ok(());
            }
        }
        Err(SharedError::Unavailable(format!(
            "{}: other replicas were first, {TRIES} times",
            self.place
        )))
    }

    /// Once, right after a swap: the same swap again has to fail, for what it begins with is gone. A
    /// place that does it nevertheless heeds no conditions, and whoever is slow would write over what
    /// others published.
    async fn try_conditions(&self, gone: &Kept, signed: &Signed) -> Result<(), SharedError> {
        if self.tried.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Swapped::Done(_) = self.place.swap(gone, &signed.checkpoint).await? {
            return Err(SharedError::Alarm(format!(
                "{}: it was written though the condition did not hold (If-Match, If-None-Match): \
                 such a store keeps no checkpoint from being written over; take another",
                self.place
            )));
        }
        self.tried.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The head that a place holds, if our keys signed it and the store's tree contains it.
    async fn judge(&self, kept: &Kept) -> Result<Option<Head>, SharedError> {
        let unavailable = |why: String| SharedError::Unavailable(why);
        let Some(note) = &kept.note else {
            let head = self.store.head().await;
            let head = head.map_err(|error| unavailable(error.to_string()))?;
            match head {
                None => info!(place = %self.place, "no checkpoint is kept there yet"),
                // The first time with this place, or somebody took the memory away.
                Some(head) => warn!(
                    place = %self.place, leaves = head.size,
                    "no checkpoint is kept there, though the log has leaves: unless the place is \
                     new, find out who removed it"
                ),
            }
            return Ok(None);
        };
        if let Some(succeeds) = &self.succeeds
            && let Ok(known) = unverified(note)
            && known.origin == succeeds.origin
        {
            // Ours takes its place here, too: whoever still goes on with the old one is stopped.
            let known = succeeded(&known, succeeds);
            return known
                .map(|()| None)
                .map_err(|why| SharedError::Alarm(format!("{}: {why}", self.place)));
        }
        let keys = self.keys.load_full();
        let keys: Vec<VerifierKey> = keys.iter().map(|key| key.verifier.clone()).collect();
        let opened = SignedCheckpoint::open(note, &keys).map_err(|error| {
            SharedError::Alarm(format!(
                "{}: not a checkpoint of the log `{}` by a key that the store holds ({error}): the \
                 store is older than a change of keys, another log is kept there, or somebody else \
                 wrote to it; find out which before you change anything",
                self.place, self.origin
            ))
        })?;
        let there = opened.checkpoint();
        let kept = Head {
            size: there.size,
            root: there.root,
        };
        // Only now: the place never holds what is not committed.
        let head = self.store.head().await;
        let head = head.map_err(|error| unavailable(error.to_string()))?;
        match contains(&self.store, head, kept).await {
            Ok(Ok(())) => Ok(Some(kept)),
            Ok(Err(rewound)) => Err(SharedError::Alarm(format!("{}: {rewound}", self.place))),
            Err(unknown) => Err(unavailable(unknown)),
        }
    }
}
