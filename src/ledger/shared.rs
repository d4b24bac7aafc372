//! The checkpoint that all replicas keep together, outside the store.
//!
//! Each replica puts its newest one there, in the place of what it read and verified, so what is
//! there never goes back. That nothing is there is believed of a new place alone, and only once
//! something could be put there: a share that is not mounted, a bucket or a route that is gone look
//! empty, too. A store that does not contain it has lost or changed leaves that somebody
//! may hold receipts for: a backup was restored, a standby took over that had not yet received all,
//! or there are two stores where there was one. That is looked for at the start, whenever a new
//! connection to the database is made, for it may lead to another server, and with each
//! publication; it stops the ledger for good.
//!
//! Each replica also reads the place about twice a second. What is there is known to be committed, so
//! a replica that appends nothing finds out that its connections lead to a server which lacks some of
//! it, and asks that server nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::guard::{NotContained, contains, rewound, succeeded, unverified};
use super::place::{Kept, Place, PlaceError, Swapped};
use super::{LedgerKey, LedgerKeySource, LedgerKeys, LedgerParts, Signed, proofs};
use crate::clock::SharedClock;
use crate::domain::succession::{Succession, Why};
use crate::merkle::{CheckpointError, EMPTY_ROOT, SignedCheckpoint, VerifierKey};
use crate::metrics::Metrics;
use crate::store::append::{LedgerConnection, Server};
use crate::store::authenticity::Alarm;
use crate::store::heads::{Head, HeadError, HeadSeal};
use crate::store::{Store, StoreError};

/// The least time between two publications.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// The time between two looks at the place. With [`PUBLISH_EVERY`] it bounds how long a replica on a
/// server that was failed over from gives answers of before: to about two seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often a publication begins anew because another replica was first.
const TRIES: u32 = 8;

/// The place, and what its content is held against.
pub(super) struct SharedCheckpoint {
    place: Place,
    store: Store,
    origin: String,
    heads: HeadSeal,
    keys: LedgerKeys,
    key_source: Arc<dyn LedgerKeySource>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    succeeds: Option<Succession>,
    alarm: Alarm,
    /// What the place was seen to refuse, as it has to.
    tried: Tried,
    /// Whether this process saw a note there.
    seen: AtomicBool,
    /// Whether the store knows that ours is kept there.
    noted: AtomicBool,
    /// Whether the start is over. Until then the store is what is judged.
    running: AtomicBool,
}

/// Which conditions were tried: a store may heed the one and not the other.
#[derive(Default)]
struct Tried {
    /// A second creation of what is there.
    creation: AtomicBool,
    /// A change from what is gone.
    change: AtomicBool,
    /// A change from what never was, which can be tried before anything is changed.
    careless: AtomicBool,
}

/// Through what the store is looked at, once the place was read.
pub(super) enum Through<'a> {
    /// Whatever server the pool leads to.
    Pool,
    /// A new connection.
    Connection(&'a mut LedgerConnection),
}

/// What the place holds, held against the store.
#[derive(Default)]
struct Judged {
    /// Its head, if it is of our log and not of the one that ours takes the place of.
    there: Option<Head>,
    /// Whom a new connection leads to.
    server: Option<Server>,
}

/// A note, opened.
enum Opened {
    /// A key of the log signed it.
    Own(Box<SignedCheckpoint>),
    /// No key of the log signed it.
    Foreign(CheckpointError),
}

/// A note in the place: ours, or one that was found to be of our log.
struct Known {
    kept: Kept,
    size: u64,
}

/// What the worker knows of the place.
struct Watched {
    known: Option<Known>,
    next_look: Instant,
    /// Whether the last look failed.
    failing: bool,
}

/// Why nothing was published, or found out.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedError {
    /// The place did not answer, or what it says cannot be told yet: a passing fault.
    #[error("the shared checkpoint: {0}")]
    Unavailable(String),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it holds and what the store holds are not one log.
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
            heads: parts.head_seal(),
            keys: Arc::clone(&parts.keys),
            key_source: Arc::clone(&parts.key_source),
            clock: Arc::clone(&parts.clock),
            metrics: Arc::clone(&parts.metrics),
            succeeds: parts.succeeds.clone(),
            alarm,
            tried: Tried::default(),
            seen: AtomicBool::new(false),
            noted: AtomicBool::new(false),
            running: AtomicBool::new(false),
        }
    }

    /// Checks that the store contains what the place holds. Where that is nothing, `ours`, which an
    /// empty log has not, is put there first. Says which server a new connection leads to, if that was
    /// compared with anything.
    pub(super) async fn check(
        &self,
        ours: Option<&Signed>,
        through: Through<'_>,
    ) -> Result<Option<Server>, SharedError> {
        let mut kept = self.read().await?;
        if kept.note.is_none() {
            let Some(ours) = ours else {
                info!(place = %self.place, "no checkpoint is kept there yet");
                return Ok(None);
            };
            // The first time with this place, or somebody took the memory away.
            warn!(
                place = %self.place, leaves = ours.head.size,
                "no checkpoint is kept there, though the log has leaves: unless the place is new, \
                 find out who removed it"
            );
            kept = match self.place.swap(&kept, &ours.checkpoint).await? {
                Swapped::Done(new) => {
                    self.try_conditions(&kept, ours).await?;
                    new
                }
                // Another replica was first.
                Swapped::Changed => self.place.read().await?,
            };
        }
        self.try_careless(&kept).await?;
        let judged = Box::pin(self.judge(&kept, through)).await?;
        if judged.there.is_some() {
            self.note().await?;
        }
        Ok(judged.server)
    }

    /// What is kept at the place. Nothing is an error where a checkpoint was kept before.
    async fn read(&self) -> Result<Kept, SharedError> {
        let kept = self.place.read().await?;
        if kept.note.is_some() || !self.is_known().await? {
            return Ok(kept);
        }
        // Another replica may have written the first one since the place was read.
        let kept = self.place.read().await?;
        if kept.note.is_none() {
            return Err(self.gone());
        }
        Ok(kept)
    }

    /// Whether a checkpoint was kept at the place before. The store is told so only afterwards.
    async fn is_known(&self) -> Result<bool, SharedError> {
        if self.seen.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let known = self.store.shared_place().await?;
        Ok(known.is_some_and(|known| known == self.place.to_string()))
    }

    /// What was kept at the place is gone.
    fn gone(&self) -> SharedError {
        SharedError::Unavailable(format!(
            "{}: a checkpoint was kept there and is gone: the disk is not mounted, the bucket or the \
             route is not there, or somebody removed it. If it is lost, put another checkpoint of this \
             log there, a replica's ledger.checkpoint_file for one",
            self.place
        ))
    }

    /// Notes in the store that ours is kept here: from now on the place is not new any more.
    async fn note(&self) -> Result<(), SharedError> {
        if !self.noted.load(Ordering::Relaxed) {
            let place = self.place.to_string();
            self.store.put_shared_place(&place).await?;
            self.noted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Publishes what comes, until nothing does, and looks at the place all the while.
    pub(super) async fn run(self: Arc<Self>, mut newest: watch::Receiver<Option<Signed>>) {
        self.running.store(true, Ordering::Relaxed);
        let mut watched = Watched {
            known: None,
            next_look: Instant::now() + LOOK_EVERY,
            failing: false,
        };
        loop {
            let changed = tokio::time::timeout_at(watched.next_look, newest.changed()).await;
            let stopped = match changed {
                Ok(Err(_)) => return,
                Err(_) => self.look(&mut watched).await.is_err(),
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

    /// Publishes one checkpoint, and rests. `Err` when there is nothing more to do.
    async fn publish_next(
        &self,
        signed: &Signed,
        newest: &mut watch::Receiver<Option<Signed>>,
        watched: &mut Watched,
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
                warn!(%why, place = %self.place, "a checkpoint could not be published");
            }
        }
        let until = Instant::now() + PUBLISH_EVERY;
        let gone = loop {
            // Over early when the ledger is gone: its last word is published at once.
            let mut end = newest.clone();
            let wait = end.wait_for(|_| false);
            let next = until.min(watched.next_look);
            if tokio::time::timeout_at(next, wait).await.is_ok() {
                break true;
            }
            if next == until {
                break false;
            }
            self.look(watched).await?;
        };
        if published.is_err() {
            if gone {
                return Err(());
            }
            // Tried again without waiting for a newer one.
            newest.mark_changed();
        }
        Ok(())
    }

    /// Reads the place and holds the server of the pool's connections against it. `Err` when the
    /// ledger stops.
    async fn look(&self, watched: &mut Watched) -> Result<(), ()> {
        let looked = Box::pin(self.try_look(&mut watched.known)).await;
        watched.next_look = Instant::now() + LOOK_EVERY;
        match looked {
            Ok(()) => watched.failing = false,
            Err(SharedError::Alarm(why)) => {
                self.raise_alarm(&why);
                return Err(());
            }
            Err(why) if watched.failing => {
                debug!(%why, place = %self.place, "the shared checkpoint was not compared");
            }
            Err(why) => {
                watched.failing = true;
                warn!(%why, place = %self.place, "the shared checkpoint was not compared");
            }
        }
        Ok(())
    }

    async fn try_look(&self, known: &mut Option<Known>) -> Result<(), SharedError> {
        let kept = self.read().await?;
        if kept.note.is_none() {
            return Ok(());
        }
        let same = |known: &Known| known.kept.note == kept.note;
        if known.as_ref().is_some_and(same) {
            return Ok(());
        }
        *known = None;
        let judged = Box::pin(self.judge(&kept, Through::Pool)).await?;
        *known = judged.there.map(|Head { size, .. }| Known { kept, size });
        Ok(())
    }

    fn raise_alarm(&self, why: &str) {
        error!(%why, "the ledger stops");
        // The first reason stays.
        drop(self.alarm.set(why.to_owned()));
    }

    async fn publish(&self, signed: &Signed, known: &mut Option<Known>) -> Result<(), SharedError> {
        for _ in 0..TRIES {
            // Another replica was as far or further, and its word stays.
            if known
                .as_ref()
                .is_some_and(|known| known.size >= signed.head.size)
            {
                return self.note().await;
            }
            let kept = if let Some(known) = known.take() {
                // Nothing to find out.
                known.kept
            } else {
                let kept = self.read().await?;
                if kept.note.is_some() {
                    let judged = Box::pin(self.judge(&kept, Through::Pool)).await?;
                    if let Some(Head { size, .. }) = judged.there
                        && size >= signed.head.size
                    {
                        *known = Some(Known { kept, size });
                        return self.note().await;
                    }
                }
                kept
            };
            if let Swapped::Done(new) = self.place.swap(&kept, &signed.checkpoint).await? {
                self.seen.store(true, Ordering::Relaxed);
                self.try_conditions(&kept, signed).await?;
                self.try_careless(&new).await?;
                *known = Some(Known {
                    kept: new,
                    size: signed.head.size,
                });
                return self.note().await;
            }
        }
        Err(SharedError::Unavailable(format!(
            "{}: other replicas were first, {TRIES} times",
            self.place
        )))
    }

    /// Once for each condition, right after a swap: the same swap again has to fail, for what it
    /// begins with is gone. A place that does it nevertheless heeds no conditions, and whoever is slow
    /// would write over what others published.
    async fn try_conditions(&self, gone: &Kept, signed: &Signed) -> Result<(), SharedError> {
        let tried = match gone.note {
            None => &self.tried.creation,
            Some(_) => &self.tried.change,
        };
        // What is replaced by itself is not gone.
        let same = gone.note.as_deref() == Some(signed.checkpoint.as_bytes());
        if !same && !tried.load(Ordering::Relaxed) {
            if let Swapped::Done(_) = self.place.swap(gone, &signed.checkpoint).await? {
                return Err(self.careless(signed.checkpoint.as_bytes()).await);
            }
            tried.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same of a change from what never was, before anything depends on it.
    async fn try_careless(&self, kept: &Kept) -> Result<(), SharedError> {
        if self.tried.careless.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.place.is_careless(kept).await {
            Ok(true) => {
                let note = kept.note.as_deref().unwrap_or_default();
                return Err(self.careless(note).await);
            }
            Ok(false) => self.tried.careless.store(true, Ordering::Relaxed),
            // It is found out by the first change.
            Err(error) => info!(%error, "whether the place heeds conditions is not known yet"),
        }
        Ok(())
    }

    /// What it means that `note` was written where that had to fail. Something in between may say
    /// that all is well whatever it is asked, and that passes.
    async fn careless(&self, note: &[u8]) -> SharedError {
        match self.place.read().await {
            Ok(kept) if kept.note.as_deref() == Some(note) => SharedError::Alarm(format!(
                "{}: it was written though the condition did not hold (If-Match, If-None-Match): such \
                 a store keeps no checkpoint from being written over; take another",
                self.place
            )),
            Ok(_) => SharedError::Unavailable(format!(
                "{}: it says that something was written, and does not hold it",
                self.place
            )),
            Err(error) => error.into(),
        }
    }

    /// The head that a place holds, if our keys signed it and the store's tree contains it.
    async fn judge(&self, kept: &Kept, through: Through<'_>) -> Result<Judged, SharedError> {
        let Some(note) = &kept.note else {
            return Err(SharedError::Unavailable(format!(
                "{}: what was there is gone",
                self.place
            )));
        };
        self.seen.store(true, Ordering::Relaxed);
        if let Some(succeeds) = &self.succeeds
            && let Ok(known) = unverified(note)
            && known.origin == succeeds.origin
        {
            // Ours takes its place here, too: whoever still goes on with the old one is stopped.
            return match succeeded(&known, succeeds) {
                Ok(()) => Ok(Judged::default()),
                Err(why) if succeeds.reason == Why::KeyRevoked => {
                    // Whoever had the key could sign anything; what others signed along was looked
                    // at when the log was given up.
                    warn!(place = %self.place, %why, "it is written over: the key was somebody else's");
                    Ok(Judged::default())
                }
                Err(why) => Err(SharedError::Alarm(format!("{}: {why}", self.place))),
            };
        }
        let opened = self.open(note).await?;
        if let Opened::Own(opened) = &opened
            && self.running.load(Ordering::Relaxed)
        {
            // A server that lacks some of it is asked nothing more. The pool may have led to another
            // one before.
            self.store.note_committed(opened.checkpoint().size);
        }
        // Only now: the place never holds what is not committed, so what is looked at after it was
        // read has all of it, whatever others append meanwhile.
        let (head, server) = match through {
            Through::Pool => (self.store.head(&self.heads).await?, None),
            Through::Connection(connection) => {
                let look = connection.look().await?;
                let head = look.head.map(|head| self.heads.open(&head)).transpose();
                (head.map_err(HeadError::Foreign)?, Some(look.server))
            }
        };
        let opened = match opened {
            Opened::Own(own) => own,
            Opened::Foreign(error) => {
                return Err(SharedError::Alarm(self.unknown(note, &error, head)));
            }
        };
        let there = opened.checkpoint();
        let kept = Head {
            size: there.size,
            root: there.root,
        };
        if server.is_some() {
            if head.map_or(0, |head| head.size) < kept.size {
                let shown = head.unwrap_or(Head {
                    size: 0,
                    root: EMPTY_ROOT,
                });
                return Err(SharedError::Alarm(format!(
                    "{}: {}",
                    self.place,
                    rewound(kept, shown)
                )));
            }
            self.check_pool(head).await?;
        }
        match contains(&self.store, head, kept).await {
            Ok(()) => Ok(Judged {
                there: Some(kept),
                server,
            }),
            Err(NotContained::Rewound(why)) => {
                Err(SharedError::Alarm(format!("{}: {why}", self.place)))
            }
            Err(NotContained::Unknown(why)) => Err(SharedError::Unavailable(why)),
        }
    }

    /// Opens a note with the keys that are known or, if none of them signed it, with those that are
    /// kept by now.
    async fn open(&self, note: &[u8]) -> Result<Opened, SharedError> {
        let opened = SignedCheckpoint::open(note, &verifiers(&self.keys.load_full()));
        if let Ok(own) = opened {
            return Ok(Opened::Own(Box::new(own)));
        }
        let kept = self.key_source.read().await;
        let kept = kept.map_err(SharedError::Unavailable)?;
        Ok(match SignedCheckpoint::open(note, &verifiers(&kept)) {
            Ok(own) => Opened::Own(Box::new(own)),
            Err(error) => Opened::Foreign(error),
        })
    }

    /// What to say of a note that no key of ours signed: what it says itself, and what the store
    /// shows.
    fn unknown(&self, note: &[u8], error: &CheckpointError, head: Option<Head>) -> String {
        let says = match unverified(note) {
            Ok(known) => format!(
                "it says, which nothing proves, that the log `{}` had size {} root {}",
                known.origin, known.size, known.root
            ),
            Err(_) => "it says nothing of any log".to_owned(),
        };
        let shows = match head {
            Some(head) => format!("shows size {} root {}", head.size, head.root),
            None => "is empty".to_owned(),
        };
        format!(
            "{}: not a checkpoint of the log `{}` by a key that the store holds ({error}); {says}, \
             and the store {shows}: the store is older than a change of keys, another log is kept \
             there, or somebody else wrote to it; find out which before you change anything",
            self.place, self.origin
        )
    }

    /// Tiles are read through the pool. Its server must have the tree that the new connection shows,
    /// or nothing that it says is about that one.
    async fn check_pool(&self, shown: Option<Head>) -> Result<(), SharedError> {
        let pooled = self.store.head(&self.heads).await?;
        let size = |head: Option<Head>| head.map_or(0, |head| head.size);
        let (ours, theirs) = (size(shown), size(pooled));
        let same = match shown {
            // If the first leaf came in between, it is asked again.
            None => theirs == 0,
            Some(head) if head.size <= theirs => {
                let root = proofs::root_at(&self.store, head.size, theirs).await;
                root.map_err(SharedError::Unavailable)? == head.root
            }
            Some(_) => false,
        };
        if same {
            return Ok(());
        }
        Err(SharedError::Unavailable(format!(
            "a new connection to the database shows {ours} leaves, an older one {theirs}, and not of \
             one tree: they lead to different servers"
        )))
    }
}

fn verifiers(keys: &[LedgerKey]) -> Vec<VerifierKey> {
    keys.iter().map(|key| key.verifier.clone()).collect()
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use futures_util::future::BoxFuture;
    use uuid::Uuid;

    use super::super::appender::sign;
    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::crypto::digest::Mac;
    use crate::crypto::jwk::Algorithm;
    use crate::crypto::random::SystemRandom;
    use crate::crypto::sealer::SealingKeys;
    use crate::crypto::signer::{LocalSigner, PrivateKey, Signer as _};
    use crate::ids::BatchId;
    use crate::merkle::{Edge, Hash};
    use crate::store::append::{LeafRow, Needs, Writes};
    use crate::store::sqlite::Sqlite;

    const ORIGIN: &str = "one.test/log";

    fn mac() -> Mac {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        SealingKeys::parse(&[key]).unwrap().mac(ORIGIN)
    }

    async fn store(directory: &std::path::Path, hashes: &[Hash], mac: &Mac) -> Store {
        let directory = directory.join("data");
        let store = Store::Sqlite(Sqlite::open(&directory, 1).await.unwrap());
        let leaves = hashes.iter().zip(0..).map(|(hash, index)| LeafRow {
            index,
            hash: *hash,
            body: Vec::new(),
            decision: None,
            subject: None,
            at: Timestamp::EPOCH,
            input: None,
            purpose: None,
        });
        let writes = Writes {
            leaves: leaves.collect(),
            head: Some(HeadSeal::new(ORIGIN, mac).seal(head(hashes), BatchId::from(Uuid::nil()))),
            ..Writes::default()
        };
        let mut connection = store.ledger_connection().await.unwrap();
        connection.enter(&Needs::default()).await.unwrap();
        connection.write(&writes).await.unwrap();
        connection.commit().await.unwrap();
        drop(connection);
        store
    }

    /// No other replica made a key.
    struct NoOthers;

    impl LedgerKeySource for NoOthers {
        fn read(&self) -> BoxFuture<'_, Result<Vec<LedgerKey>, String>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    fn parts(store: Store, keys: Vec<LedgerKey>, mac: Mac) -> LedgerParts {
        LedgerParts {
            store,
            origin: ORIGIN.into(),
            keys: Arc::new(ArcSwap::from_pointee(keys)),
            key_source: Arc::new(NoOthers),
            mac,
            clock: ManualClock::new(Timestamp::EPOCH),
            metrics: Arc::new(Metrics::new()),
            succeeds: None,
        }
    }

    fn head(hashes: &[Hash]) -> Head {
        let mut edge = Edge::empty();
        edge.append(hashes);
        Head {
            size: edge.size(),
            root: edge.root(),
        }
    }

    #[tokio::test]
    async fn what_others_published_is_never_written_over_by_less() {
        let directory = tempfile::tempdir().unwrap();
        let hashes: Vec<Hash> = (0..5).map(|n| Hash::from([n; 32])).collect();
        let key = PrivateKey::generate(Algorithm::EdDsa).unwrap();
        let signer = LocalSigner::new(&key).unwrap();
        let public = signer.public_jwk().ed25519_bytes().unwrap();
        let key = LedgerKey {
            verifier: VerifierKey::new(ORIGIN, public).unwrap(),
            signer: Arc::new(signer),
        };
        let mac = mac();
        let parts = parts(store(directory.path(), &hashes, &mac).await, vec![key], mac);
        let place = || Place::file(directory.path().join("place"));
        let there = async || {
            let kept = place().read().await.unwrap();
            unverified(&kept.note.unwrap()).unwrap().size
        };
        let of = async |size: usize| sign(&parts, head(&hashes[..size])).await.unwrap();
        let fast = SharedCheckpoint::new(place(), &parts, Alarm::default());
        let slow = SharedCheckpoint::new(place(), &parts, Alarm::default());
        let (mut its, mut other) = (None, None);
        fast.publish(&of(4).await, &mut its).await.unwrap();
        // It learns that the other is further, and that still is so with the next of its own; what it
        // has from the other is no reason to write the same again.
        for size in [2, 3, 4] {
            slow.publish(&of(size).await, &mut other).await.unwrap();
            assert_eq!(there().await, 4);
        }
        slow.publish(&of(5).await, &mut other).await.unwrap();
        assert_eq!(there().await, 5);
        fast.publish(&of(4).await, &mut its).await.unwrap();
        assert_eq!(there().await, 5);
    }

    #[tokio::test]
    async fn a_pool_that_leads_to_another_server_proves_nothing_and_accuses_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let hashes: Vec<Hash> = (0..5).map(|n| Hash::from([n; 32])).collect();
        let mac = mac();
        let store = store(directory.path(), &hashes, &mac).await;
        let parts = parts(store, Vec::new(), mac);
        let place = Place::file(directory.path().join("place"));
        let shared = SharedCheckpoint::new(place, &parts, Alarm::default());
        // The pool's server may have grown since.
        for count in [1, 3, 5] {
            let shown = head(&hashes[..count]);
            shared.check_pool(Some(shown)).await.unwrap();
        }
        let longer: Vec<Hash> = (0..6).map(|n| Hash::from([n; 32])).collect();
        let other: Vec<Hash> = (7..10).map(|n| Hash::from([n; 32])).collect();
        for shown in [None, Some(head(&longer)), Some(head(&other))] {
            let told = shared.check_pool(shown).await;
            assert!(
                matches!(&told, Err(SharedError::Unavailable(why)) if why.contains("different servers")),
                "{told:?}"
            );
        }
    }
}
