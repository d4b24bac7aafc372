//! The ledger: the append-only Merkle log, and the only writer of its leaves.
//!
//! # One queue, one batch, one commit
//! [`Ledger::append`] serialises and hashes a leaf, queues it, and waits for its outcome. The
//! [`appender`] gathers the queue and commits it as one batch on a dedicated connection, one batch
//! at a time. All waiting entries share the cost of one commit; a single waiting entry is committed
//! at once. The [`queue`] is bounded in entries and bytes; when it is full, the answer is
//! [`AppendError::Overloaded`] at once. Endings and revocations do not wait behind decisions.
//!
//! Under the lock a batch reads every row that it depends on ([`crate::store::append`]), and
//! [`batch`] settles each entry. It is recorded as decided; recorded as refused, because a task
//! ended, a cutoff came or a budget ran out meanwhile; or not recorded, because its evidence was
//! used before or it must be decided again. Then leaves, rows, complete tiles and the next head are
//! written and committed.
//!
//! # After the commit
//! The checkpoint is signed outside the lock, from size and root alone, once per batch. The
//! inclusion proofs of a batch come from the tree's edge before it and the batch itself, without
//! reads. Only then are the callers answered. Older proofs come from stored tiles ([`proofs`]).
//!
//! # Failures
//! A batch that the store refuses for its content is halved until the refused entry fails alone.
//! When the answer to COMMIT is lost, a new connection looks the batch up by its id; until the
//! outcome is known, no caller gets an answer that could release anything. The evidence of entries
//! that were not recorded is kept, refused, and recorded later ([`unrecorded`]). A store was
//! rewound or forked if its tree is smaller than or different from the tree that this replica saw
//! last, or from the checkpoint outside the store: the ledger then stops for good and names both
//! heads ([`guard`]). It also stops at a head without the broker's MAC ([`crate::store::heads`]),
//! and at a leaf that no head covers. So a checkpoint's signature attests that brokers wrote every
//! leaf below it, even if others can write to the tables.
//!
//! # Neighbours
//! `broker` appends: `broker::access` for callers, the other services by [`Ledger::append_own`].
//! The ledger authorizes no caller and decides no policy. `store` has the statements, `merkle` the
//! tree.

pub mod appender;
mod batch;
mod caller;
pub mod checkpoint_store;
pub mod clock_watch;
pub mod containment;
mod cutoffs;
pub mod denials;
pub mod entry;
pub mod follower;
pub mod guard;
mod locked;
mod open_tasks;
mod outcome;
pub mod proofs;
mod queue;
mod shared;
mod unrecorded;
pub mod witnesses;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tracing::error;

use self::batch::{Prepared, SettledLeaf};
use self::clock_watch::ClockWatch;
use self::cutoffs::Cutoffs;
pub(crate) use self::entry::blocked_caller;
use self::entry::{Entry, OneTimeUse, Request, SessionPlan, leaf_of};
use self::follower::View;
pub use self::outcome::{AppendError, Outcome};
use self::queue::Queue;
use self::unrecorded::Unrecorded;
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::signer::Signer;
use crate::domain::cutoff::selectors_of_caller;
use crate::domain::limits::MAX_LEAF_BYTES;
use crate::domain::permit::Permit;
use crate::domain::succession::Succession;
use crate::domain::workload::Identity;
use crate::merkle::{Hash, Receipt, VerifierKey};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::authenticity::Alarm;
use crate::store::heads::{Head, HeadError, HeadSeal};

/// The purpose under which the MAC of a succession is computed.
pub const SUCCESSION_MAC: &str = "succession";

/// A key that signs checkpoints, with its verifier key.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct LedgerKey {
    pub signer: Arc<dyn Signer>,
    pub verifier: VerifierKey,
}

/// The keys of checkpoints, replaced as a whole; never empty.
pub type LedgerKeys = Arc<ArcSwap<Vec<LedgerKey>>>;

/// The source of the log's keys. The ledger reads it again before it calls a checkpoint foreign:
/// another replica may have created the log or changed its key since.
pub trait LedgerKeySource: Send + Sync {
    /// The keys as they are stored now.
    fn read(&self) -> BoxFuture<'_, Result<Vec<LedgerKey>, String>>;
}

/// The parts that a ledger consists of.
#[derive(Clone)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct LedgerParts {
    pub store: Store,
    pub origin: String,
    /// The keys of checkpoints, the current one first. After a rotation the old key also signs for
    /// a while, so that a verifier that knows only the old key learns the new one from the log.
    pub keys: LedgerKeys,
    pub key_source: Arc<dyn LedgerKeySource>,
    /// The MAC key for the rows that only a broker may write: heads, cutoffs, activations, role
    /// bindings and workload keys.
    pub mac: Mac,
    pub clock: SharedClock,
    pub metrics: Arc<Metrics>,
    /// The log that this one succeeds. `None` if it succeeds none.
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

/// A durable leaf.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its index in the log, which is the broker's logical clock.
    pub index: u64,
    /// When it was committed, by this replica's clock.
    pub committed_at: Timestamp,
    /// The leaf, its proof and the signed checkpoint.
    pub receipt: Receipt,
    session: Option<Box<SessionPlan>>,
    hash: Hash,
}

impl Recorded {
    /// The permit, if the leaf is one; minting requires it.
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
    /// It commits batches as they come.
    Serving,
    /// The last batch failed with this reason; the next may succeed.
    Failing(String),
    /// It stopped for good, for this reason.
    Stopped(String),
}

/// A head with its signed checkpoint.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Signed {
    pub head: Head,
    /// The checkpoint as a signed note.
    pub checkpoint: Arc<str>,
}

/// The interface of the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    parts: LedgerParts,
    queue: Queue,
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
    /// The endings that this replica knows.
    view: View,
    /// Tells the follower that this replica committed endings.
    endings: Notify,
}

impl Ledger {
    /// Appends an act of the broker's own: of a worker, a schedule or a start. It uses no evidence
    /// up, and no caller is judged. An act of a caller is appended by `broker::access` alone.
    #[expect(clippy::disallowed_methods, reason = "an act of the broker's own")]
    pub async fn append_own(&self, entry: Entry, at: Timestamp) -> Result<Appended, AppendError> {
        let request = Request {
            entry,
            one_time: OneTimeUse::default(),
            at,
        };
        self.append(request).await
    }

    /// Appends one entry and waits for its outcome. Dropping the future does not cancel the entry.
    /// If the store cannot be written or the queue is full, the replica keeps the entry's one-time
    /// ids, refuses them, and records their use later.
    pub async fn append(&self, request: Request) -> Result<Appended, AppendError> {
        let prepared = prepare(&self.parts.origin, request)?;
        let entry = prepared.request.entry.kind();
        let no_space = entry.needs_free_space() && self.parts.store.overfull().is_some();
        let queued = if no_space {
            Err(Box::new(prepared))
        } else {
            self.queue.offer(prepared)
        };
        let outcome = match queued {
            Ok(outcome) => outcome,
            Err(turned_away) => {
                let ids = &turned_away.request.one_time.ids;
                self.shared.unrecorded.keep(ids);
                return Err(AppendError::Overloaded);
            }
        };
        self.parts.metrics.ledger_queue_depth(self.queue.len());
        outcome.await.unwrap_or(Err(AppendError::Unknown))
    }

    /// Fails while too much evidence waits to be recorded.
    pub fn check_evidence_room(&self) -> Result<(), AppendError> {
        if self.shared.unrecorded.is_full() {
            return Err(AppendError::Overloaded);
        }
        Ok(())
    }

    /// The number of leaves that this replica knows, on which a request is decided.
    #[must_use]
    pub fn basis(&self) -> u64 {
        self.shared.size.load(Ordering::SeqCst)
    }

    /// Whether a cutoff blocks this caller, as far as this replica knows. The answer may be
    /// outdated; only an append decides.
    #[must_use]
    pub fn may_block(&self, identity: &Identity, attestor: &str) -> bool {
        let now = self.parts.clock.now();
        let cutoffs = self.shared.cutoffs.load();
        selectors_of_caller(identity, attestor)
            .iter()
            .any(|selector| cutoffs.blocking(selector, now, None).is_some())
    }

    /// The log's origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.parts.origin
    }

    /// The log that this one succeeds. `None` if it succeeds none.
    #[must_use]
    pub fn succeeds(&self) -> Option<&Succession> {
        self.parts.succeeds.as_ref()
    }

    /// The number of the log's first status list.
    #[must_use]
    pub fn first_status_list(&self) -> u64 {
        let succeeds = self.succeeds();
        succeeds.map_or(0, Succession::first_status_list)
    }

    /// Whether the ledger can be relied on.
    #[must_use]
    pub fn status(&self) -> LedgerStatus {
        if let Some(why) = self.shared.alarm.get() {
            return LedgerStatus::Stopped(why.clone());
        }
        self.shared.status.borrow().clone()
    }

    /// The newest head in the store. A head that no broker of this log wrote stops the ledger.
    pub async fn head(&self) -> Result<Option<Head>, HeadError> {
        let head = self.parts.store.head(&self.parts.head_seal()).await;
        if let Err(HeadError::Foreign(why)) = &head {
            self.stop(why.to_string());
        }
        head
    }

    /// Stops the ledger for good. A later reason does not replace the first.
    fn stop(&self, why: String) {
        error!(%why, "the ledger stops");
        drop(self.shared.alarm.set(why));
    }

    /// Judges this replica's clock.
    #[must_use]
    pub fn clock(&self) -> &ClockWatch {
        &self.shared.clock
    }

    /// The newest signed checkpoint of this replica, and every later one.
    #[must_use]
    pub fn checkpoints(&self) -> watch::Receiver<Option<Signed>> {
        self.shared.latest.subscribe()
    }

    /// The keys of checkpoints, the current one first.
    #[must_use]
    pub fn keys(&self) -> Arc<Vec<LedgerKey>> {
        self.parts.keys.load_full()
    }

    /// Signs with these keys from now on, the current one first.
    pub fn take_keys(&self, keys: Vec<LedgerKey>) {
        self.parts.keys.store(Arc::new(keys));
    }

    /// The store of the log.
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

fn recorded(settled: SettledLeaf, committed_at: Timestamp, receipt: Receipt) -> Recorded {
    Recorded {
        index: settled.index,
        committed_at,
        receipt,
        session: settled.session,
        hash: settled.hash,
    }
}
