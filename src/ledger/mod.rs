//! The ledger: the append-only Merkle log, and the only writer of what makes leaves.
//!
//! # One queue, one batch, one commit
//! [`Ledger::append`] serialises and hashes a leaf, queues it, and waits for what became of it. The
//! [`appender`] gathers what waits and commits it as one batch on a connection of its own, one
//! batch at a time. So the cost of a commit is shared by all who wait, and one who waits alone pays
//! for one. The queue is bounded in entries and bytes; when it is full the answer is
//! [`AppendError::Overloaded`] at once.
//!
//! Under the lock a batch reads everything that it rests on ([`crate::store::append`]), and
//! [`batch`] settles each entry: as decided; as refused, because a task ended, a cutoff came, a
//! budget ran out meanwhile; or not at all, because its evidence was used before or because it must
//! be decided again. Then leaves, rows, complete tiles and the next head are written and committed.
//!
//! # After the commit
//! The checkpoint is signed outside the lock, from size and root alone, once a batch. The inclusion
//! proofs of a batch come from the tree's edge before it and the batch itself, without reads.
//! Only now do those who wait get an answer. Older proofs are made from stored tiles
//! ([`proofs`]).
//!
//! # What can go wrong
//! A batch that the store refuses for its content is halved until the entry that is refused fails
//! alone. When the answer to COMMIT is lost, a new connection reads by the batch's id whether it
//! happened; until that is known, nobody gets an answer that could release anything. The evidence of
//! entries that were not recorded is kept, refused, and recorded later ([`unrecorded`]). A store that
//! shows a smaller or different tree than the one this replica saw last, or than the one that is kept
//! outside, was rewound or forked: the ledger stops for good and says which two heads it saw
//! ([`guard`]). It stops in the same way at a head without the broker's own MAC
//! ([`crate::store::heads`]), and at a leaf that no head covers: so a checkpoint's signature is the
//! broker's word for every leaf below it, whoever else can write to the tables.

pub mod appender;
mod batch;
mod caller;
pub mod clock_watch;
mod cutoffs;
pub mod denials;
pub mod entry;
pub mod guard;
mod locked;
mod outcome;
pub mod place;
pub mod proofs;
mod shared;
mod unrecorded;
pub mod witnesses;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::error;

use self::batch::{Prepared, SettledLeaf};
use self::clock_watch::ClockWatch;
use self::cutoffs::Cutoffs;
pub(crate) use self::entry::blocked_caller;
use self::entry::{Entry, OneTimeUse, Openings, Request, SessionPlan, leaf_of};
pub use self::outcome::{AppendError, Outcome};
use self::unrecorded::Unrecorded;
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::signer::Signer;
use crate::domain::cutoff::selectors_of_caller;
use crate::domain::limits::{
    MAX_LEAF_BYTES, MAX_QUEUE_BYTES, MAX_QUEUE_CONSUMPTIONS, MAX_QUEUE_ENTRIES,
};
use crate::domain::permit::Permit;
use crate::domain::succession::Succession;
use crate::domain::workload::Identity;
use crate::merkle::{Hash, Receipt, VerifierKey};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::authenticity::Alarm;
use crate::store::heads::{Head, HeadError, HeadSeal};

/// The purpose under which the word on which log is succeeded is protected.
pub const SUCCESSION_MAC: &str = "succession";

/// The key that signs checkpoints, with its public face.
#[derive(Clone)]
pub struct LedgerKey {
    /// Signs.
    pub signer: Arc<dyn Signer>,
    /// Verifies.
    pub verifier: VerifierKey,
}

/// The keys of checkpoints, swapped whole; never empty.
pub type LedgerKeys = Arc<ArcSwap<Vec<LedgerKey>>>;

/// Where the log's keys are kept. They are read anew before a checkpoint is called foreign: another
/// replica may have begun the log, or changed its key, since this one read them.
pub trait LedgerKeySource: Send + Sync {
    /// The keys as they are kept now.
    fn read(&self) -> BoxFuture<'_, Result<Vec<LedgerKey>, String>>;
}

/// What the ledger is made of.
#[derive(Clone)]
pub struct LedgerParts {
    /// Where it is kept.
    pub store: Store,
    /// The name of the log.
    pub origin: String,
    /// The keys of its checkpoints, the current one first. After a rotation the old one signs
    /// along for a while, so that whoever knows only that one learns the new one from the log.
    pub keys: LedgerKeys,
    /// Where these come from.
    pub key_source: Arc<dyn LedgerKeySource>,
    /// Protects the rows of cutoffs.
    pub mac: Mac,
    /// The time.
    pub clock: SharedClock,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// The log that it takes the place of.
    pub succeeds: Option<Succession>,
}

impl LedgerParts {
    /// Makes and checks the MACs of the log's heads.
    #[must_use]
    pub fn head_seal(&self) -> HeadSeal {
        HeadSeal::new(&self.origin, &self.mac)
    }
}

/// The outcome of an entry that was appended.
pub type Appended = Outcome<Recorded>;

/// A leaf that is durable.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its place in the log: the broker's clock.
    pub index: u64,
    /// When it was committed, by this replica's clock.
    pub committed_at: Timestamp,
    /// Leaf, proof and signed checkpoint.
    pub receipt: Receipt,
    session: Option<Box<SessionPlan>>,
    hash: Hash,
}

impl Recorded {
    /// The permit, if this is one: the only way to get something minted.
    #[must_use]
    pub fn into_permit(self) -> (Option<Permit>, Receipt) {
        let hash = *self.hash.as_bytes();
        let permit = self
            .session
            .map(|plan| Permit::committed(plan.session, plan.resource, plan.delegators, hash));
        (permit, self.receipt)
    }
}

/// Whether the ledger can be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerStatus {
    /// It can.
    Serving,
    /// The last batch failed; it may be a passing fault.
    Failing(String),
    /// It has stopped for good.
    Stopped(String),
}

struct Queued {
    prepared: Prepared,
    /// Gets the outcome; `None` for evidence whose use is recorded late.
    answer: Option<oneshot::Sender<Result<Appended, AppendError>>>,
    /// Its share of the queue's bytes; `None` for an entry that only uses evidence up.
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Queued {
    /// Gives the outcome to whatever waits for it. A caller that has gone does not miss it.
    fn tell(self, outcome: Result<Appended, AppendError>) {
        if let Some(answer) = self.answer {
            drop(answer.send(outcome));
        }
    }
}

/// A head with its signed checkpoint.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The head.
    pub head: Head,
    /// The signed note.
    pub checkpoint: Arc<str>,
}

/// The door to the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    parts: LedgerParts,
    queue: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    shared: Arc<Shared>,
}

struct Shared {
    clock: ClockWatch,
    alarm: Alarm,
    /// The cutoffs as of this replica's last batch.
    cutoffs: ArcSwap<Cutoffs>,
    size: AtomicU64,
    unrecorded: Unrecorded,
    status: watch::Sender<LedgerStatus>,
    latest: watch::Sender<Option<Signed>>,
}

impl Ledger {
    /// Appends an act of the broker's own: of a worker, a schedule or a start. It uses no evidence up,
    /// and no caller is judged. An act of a caller is appended by `broker::access` alone.
    #[expect(clippy::disallowed_methods, reason = "an act of the broker's own")]
    pub async fn append_own(&self, entry: Entry, at: Timestamp) -> Result<Appended, AppendError> {
        let request = Request {
            entry,
            one_time: OneTimeUse::default(),
            at,
        };
        self.append(request).await
    }

    /// Appends one entry and waits for what became of it. Whoever stops waiting does not stop the
    /// entry. Where the store cannot be written or the queue is full, the replica keeps the entry's
    /// one-time ids, refuses them, and records their use later.
    pub async fn append(&self, request: Request) -> Result<Appended, AppendError> {
        let prepared = prepare(&self.parts.origin, request)?;
        let (answer, outcome) = oneshot::channel();
        if let Err(turned_away) = self.enqueue(prepared, answer) {
            let ids = &turned_away.request.one_time.ids;
            self.shared.unrecorded.keep(ids);
            return Err(AppendError::Overloaded);
        }
        let depth = self.queue.max_capacity() - self.queue.capacity();
        self.parts.metrics.ledger_queue_depth(depth);
        outcome.await.unwrap_or(Err(AppendError::Unknown))
    }

    /// Puts an entry into the queue, or gives it back where there is no room. A queue that is closed
    /// answers by itself.
    fn enqueue(
        &self,
        prepared: Prepared,
        answer: oneshot::Sender<Result<Appended, AppendError>>,
    ) -> Result<(), Box<Prepared>> {
        let entry = prepared.request.entry.kind();
        if entry.needs_free_space() && self.parts.store.overfull().is_some() {
            return Err(Box::new(prepared));
        }
        let bytes = if prepared.leaf.is_none() {
            None
        } else {
            let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(weight(&prepared));
            // The last places are for entries that only use evidence up.
            match bytes {
                Ok(bytes) if self.queue.capacity() > MAX_QUEUE_CONSUMPTIONS => Some(bytes),
                _ => return Err(Box::new(prepared)),
            }
        };
        let queued = Queued {
            prepared,
            answer: Some(answer),
            _bytes: bytes,
        };
        match self.queue.try_send(queued) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(queued)) => Err(Box::new(queued.prepared)),
            Err(mpsc::error::TrySendError::Closed(queued)) => {
                queued.tell(Err(AppendError::Stopped("shutting down".into())));
                Ok(())
            }
        }
    }

    /// Refuses while so much evidence waits to be recorded that no more may be presented.
    pub fn check_evidence_room(&self) -> Result<(), AppendError> {
        if self.shared.unrecorded.is_full() {
            return Err(AppendError::Overloaded);
        }
        Ok(())
    }

    /// How many leaves this replica knows of: what a request is decided upon.
    #[must_use]
    pub fn basis(&self) -> u64 {
        self.shared.size.load(Ordering::SeqCst)
    }

    /// Whether a cutoff blocks this caller, as far as this replica knows. It may know less or more
    /// than is true by now: only an append tells.
    #[must_use]
    pub fn may_block(&self, identity: &Identity, attestor: &str) -> bool {
        let now = self.parts.clock.now();
        let cutoffs = self.shared.cutoffs.load();
        selectors_of_caller(identity, attestor)
            .iter()
            .any(|selector| cutoffs.blocking(selector, now, None).is_some())
    }

    /// The name of the log.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.parts.origin
    }

    /// The log that it takes the place of.
    #[must_use]
    pub fn succeeds(&self) -> Option<&Succession> {
        self.parts.succeeds.as_ref()
    }

    /// Where its status lists begin.
    #[must_use]
    pub fn first_status_list(&self) -> u64 {
        let succeeds = self.succeeds();
        succeeds.map_or(0, Succession::first_status_list)
    }

    /// Whether it can be relied on.
    #[must_use]
    pub fn status(&self) -> LedgerStatus {
        if let Some(why) = self.shared.alarm.get() {
            return LedgerStatus::Stopped(why.clone());
        }
        self.shared.status.borrow().clone()
    }

    /// The newest head in the store. One that no broker of this log wrote stops the ledger.
    pub async fn head(&self) -> Result<Option<Head>, HeadError> {
        let head = self.parts.store.head(&self.parts.head_seal()).await;
        if let Err(HeadError::Foreign(why)) = &head {
            self.stop(why.to_string());
        }
        head
    }

    /// Stops the ledger for good. The first reason stays.
    fn stop(&self, why: String) {
        error!(%why, "the ledger stops");
        drop(self.shared.alarm.set(why));
    }

    /// Whether this replica's clock can be relied on.
    #[must_use]
    pub fn clock(&self) -> &ClockWatch {
        &self.shared.clock
    }

    /// The newest signed checkpoint of this replica, and every later one.
    #[must_use]
    pub fn checkpoints(&self) -> watch::Receiver<Option<Signed>> {
        self.shared.latest.subscribe()
    }

    /// The keys of its checkpoints, the current one first.
    #[must_use]
    pub fn keys(&self) -> Arc<Vec<LedgerKey>> {
        self.parts.keys.load_full()
    }

    /// Signs with these from now on, the current one first.
    pub fn take_keys(&self, keys: Vec<LedgerKey>) {
        self.parts.keys.store(Arc::new(keys));
    }

    /// Where it is kept.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.parts.store
    }
}

/// Serialises and hashes the leaf of an entry.
fn prepare(origin: &str, request: Request) -> Result<Prepared, AppendError> {
    let event = request.entry.kind().event();
    let leaf = event.map(|event| leaf_of(origin, request.at, event));
    let leaf = leaf.transpose()?;
    match &leaf {
        Some((body, _)) if body.len() > MAX_LEAF_BYTES => Err(AppendError::Unwritable(format!(
            "{} bytes, at most {MAX_LEAF_BYTES}",
            body.len()
        ))),
        Some(_) | None => Ok(Prepared { request, leaf }),
    }
}

/// A rough measure of the memory that an entry takes while it waits; at least one.
fn weight(prepared: &Prepared) -> u32 {
    let leaf = prepared.leaf.as_ref().map_or(0, |(body, _)| body.len());
    let Openings { input, purpose } = prepared.request.entry.kind().openings();
    let opened = [input, purpose].into_iter().flatten();
    let opened: usize = opened.map(|opening| opening.bytes.len()).sum();
    // Beside leaf and openings there are rows of about the leaf's own size.
    u32::try_from(2 * leaf + opened + 1).unwrap_or(u32::MAX)
}

/// The bounds of the queue.
fn queue() -> (mpsc::Sender<Queued>, mpsc::Receiver<Queued>, Arc<Semaphore>) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUE_ENTRIES + MAX_QUEUE_CONSUMPTIONS);
    (sender, receiver, Arc::new(Semaphore::new(MAX_QUEUE_BYTES)))
}

fn recorded(settled: SettledLeaf, committed_at: Timestamp, receipt: Receipt) -> Recorded {
    Recorded {
        index: settled.index,
        committed_at,
        receipt,
        session: settled.session,
        hash: settled.hash,
    }
}
