//! The worker that turns the queue into batches, and batches into commits.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::batch::{self, Batch, Prepared, Settled, SettledLeaf};
use super::clock_watch::{ClockWatch, Reading};
use super::cutoffs::Cutoffs;
use super::entry::{Entry, Request};
use super::guard::{self, Guard};
use super::proofs;
use super::shared::{SharedError, Through};
use super::unrecorded::Unrecorded;
use super::{
    AppendError, Appended, Ledger, LedgerParts, LedgerStatus, Queued, Shared, Signed, prepare,
    queue, recorded,
};
use crate::clock::Timestamp;
use crate::crypto::random::SystemRandom;
use crate::domain::generation::GenerationDigest;
use crate::domain::limits::{MAX_BATCH_ENTRIES, MAX_BATCH_UNRECORDED, MAX_LEDGER_KEYS};
use crate::ids::BatchId;
use crate::merkle::{
    BatchProver, Checkpoint, Edge, Hash, Receipt, Tile, note_signature_line, sign_note,
};
use crate::store::append::{ActWrite, LedgerConnection, MAX_HASHES, Server, View, Writes};
use crate::store::generations::SealedActivation;
use crate::store::heads::{ForeignHead, Head, HeadSeal, SealedHead};
use crate::store::{Store, StoreError};

/// How long the fate of a COMMIT whose answer was lost is asked for. The lock's owner may be
/// frozen for a few seconds; after this those who wait are told that nobody knows.
const FATE_PATIENCE: Duration = Duration::from_secs(8);

/// How long a new connection may take, and the check of the server that it leads to.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How often an append that finds itself on another server than the one that was checked has that one
/// checked.
const SERVERS: u32 = 3;

/// How long a batch may take before those behind it are told that the store is too slow.
const BATCH_PATIENCE: Duration = Duration::from_secs(10);

/// How long after a failed batch the use of evidence is recorded again, if nothing else is appended.
const UNRECORDED_PAUSE: Duration = Duration::from_secs(2);

/// How often a batch is tried again after a deadlock, a lost lock or a broken connection.
const TRIES: u32 = 2;

/// The ledger's worker: run it as one tracked task.
pub struct Appender {
    parts: LedgerParts,
    queue: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
    connection: Option<LedgerConnection>,
    /// The server that was checked against what the replicas keep together.
    checked: Option<Server>,
    /// Whether COMMIT was sent, and nobody knows what became of it.
    in_doubt: bool,
    edge: Edge,
    cutoffs: Cutoffs,
    guard: Guard,
    heads: HeadSeal,
}

/// Why a batch failed.
enum Failure {
    /// For a reason of its content: halving it finds out whose.
    Content(StoreError),
    /// The store was not there; nothing was committed.
    Unavailable(StoreError),
    /// Nobody knows whether it was committed.
    Unknown,
    /// Never again.
    Fatal(String),
}

/// A batch that is durable, before anybody is told.
struct Committed {
    settled: Vec<Settled>,
    prover: Option<BatchProver>,
    at: Timestamp,
}

impl Ledger {
    /// Begins the log of an empty store with its first entry. Where another replica was first,
    /// nothing is written. Nothing is signed either: only then it is known by whose key.
    pub async fn begin(
        parts: LedgerParts,
        guard: Guard,
        request: Request,
    ) -> Result<(), AppendError> {
        let succeeds = parts.succeeds.as_ref();
        guard
            .check_file(&parts.store, &parts.origin, None, succeeds)
            .await
            .map_err(AppendError::Stopped)?;
        let shared = guard.check_shared(None, Through::Pool).await;
        shared.map_err(|error| AppendError::Stopped(error.to_string()))?;
        let prepared = prepare(&parts.origin, request)?;
        let (_, queue, _) = queue();
        let clock = ClockWatch::new(Arc::clone(&parts.clock));
        let shared = shared_state(clock, &guard, 0);
        let mut appender = Appender::new(parts, queue, shared, Edge::empty(), guard);
        match appender.commit(&[&prepared]).await {
            Ok(committed) => match committed.settled.into_iter().next() {
                Some(Settled::ClockInDoubt(doubt)) => Err(AppendError::ClockInDoubt(doubt)),
                _ => Ok(()),
            },
            Err(Failure::Content(error)) => Err(AppendError::Poisoned(Arc::new(error))),
            Err(Failure::Unavailable(error)) => Err(AppendError::Unavailable(Arc::new(error))),
            Err(Failure::Unknown) => Err(AppendError::Unknown),
            Err(Failure::Fatal(why)) => Err(AppendError::Stopped(why)),
        }
    }

    /// Opens the log as the store holds it, and checks it against the last checkpoint that was
    /// kept outside the store.
    pub async fn open(parts: LedgerParts, guard: Guard) -> Result<(Self, Appender), AppendError> {
        let unavailable = |error| AppendError::Unavailable(Arc::new(error));
        let clock = ClockWatch::new(Arc::clone(&parts.clock));
        clock.check(&parts.store).await.map_err(unavailable)?;
        let sealed = confirmed_head(&parts.store).await.map_err(unavailable)?;
        let head = sealed.map(|sealed| parts.head_seal().open(&sealed));
        let head = head
            .transpose()
            .map_err(|why| AppendError::Stopped(why.to_string()))?;
        // The pool must lead to a server that has as much.
        parts.store.note_committed(head.map_or(0, |head| head.size));
        let edge = proofs::edge_at(&parts.store, head)
            .await
            .map_err(AppendError::Stopped)?;
        guard
            .check_file(&parts.store, &parts.origin, head, parts.succeeds.as_ref())
            .await
            .map_err(AppendError::Stopped)?;
        let signed = match head {
            Some(head) => Some(sign(&parts, head).await?),
            None => None,
        };
        // A start can wait: one that does not know the last checkpoint would be no guard.
        let shared = guard.check_shared(signed.as_ref(), Through::Pool).await;
        shared.map_err(|error| AppendError::Stopped(error.to_string()))?;
        let (sender, receiver, bytes) = queue();
        let shared = shared_state(clock, &guard, edge.size());
        let ledger = Self {
            parts: parts.clone(),
            queue: sender,
            bytes,
            shared: Arc::clone(&shared),
        };
        let appender = Appender::new(parts, receiver, shared, edge, guard);
        if let Some(signed) = signed {
            appender.show(signed);
        }
        Ok((ledger, appender))
    }
}

/// The newest head's row, which is signed and published: so not before a commit that came after it is
/// acknowledged.
async fn confirmed_head(store: &Store) -> Result<Option<SealedHead>, StoreError> {
    let confirming = async { store.ledger_connection().await?.confirmed_head().await };
    let confirmed = tokio::time::timeout(CONNECT_PATIENCE, confirming).await;
    confirmed.unwrap_or_else(|_| {
        Err(StoreError::NotPrimary(format!(
            "a commit was not acknowledged within {CONNECT_PATIENCE:?}; its synchronous standby may be \
             gone"
        )))
    })
}

fn shared_state(clock: ClockWatch, guard: &Guard, size: u64) -> Arc<Shared> {
    Arc::new(Shared {
        clock,
        alarm: guard.alarm(),
        cutoffs: ArcSwap::from_pointee(Cutoffs::default()),
        size: size.into(),
        unrecorded: Unrecorded::default(),
        status: watch::Sender::new(LedgerStatus::Serving),
        latest: watch::Sender::new(None),
    })
}

impl Appender {
    fn new(
        parts: LedgerParts,
        queue: mpsc::Receiver<Queued>,
        shared: Arc<Shared>,
        edge: Edge,
        guard: Guard,
    ) -> Self {
        let heads = parts.head_seal();
        Self {
            parts,
            queue,
            shared,
            connection: None,
            checked: None,
            in_doubt: false,
            edge,
            cutoffs: Cutoffs::default(),
            guard,
            heads,
        }
    }

    /// Commits batches until `stop`, and then what is queued.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let shared = Arc::clone(&self.shared);
        loop {
            let pause = self.unrecorded_pause();
            let first = tokio::select! {
                biased;
                first = self.queue.recv() => first,
                () = shared.unrecorded.due(pause) => {
                    self.process(Vec::new()).await;
                    continue;
                }
                () = stop.cancelled() => {
                    self.queue.close();
                    self.queue.recv().await
                }
            };
            let Some(first) = first else {
                break;
            };
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH_ENTRIES {
                match self.queue.try_recv() {
                    Ok(next) => batch.push(next),
                    Err(_) => break,
                }
            }
            self.parts.metrics.ledger_queue_depth(self.queue.len());
            self.process(batch).await;
        }
        if self.unrecorded_pause().is_zero() {
            self.process(Vec::new()).await;
        }
        let unrecorded = shared.unrecorded.len();
        if unrecorded > 0 {
            warn!(
                unrecorded,
                "the use of evidence could not be recorded, and is forgotten with this process"
            );
        }
        info!(size = self.edge.size(), "the ledger is drained");
        Ok(())
    }

    fn unrecorded_pause(&self) -> Duration {
        match &*self.shared.status.borrow() {
            LedgerStatus::Serving => Duration::ZERO,
            LedgerStatus::Failing(_) | LedgerStatus::Stopped(_) => UNRECORDED_PAUSE,
        }
    }

    /// Entries that record the use of kept evidence.
    fn unrecorded(&self) -> impl Iterator<Item = Queued> + use<> {
        let now = self.parts.clock.now();
        let ids = self.shared.unrecorded.take(MAX_BATCH_UNRECORDED, now);
        ids.into_iter().map(move |id| Queued {
            prepared: Prepared {
                request: Request {
                    entry: Entry::Consume,
                    one_time: vec![id].into(),
                    at: now,
                },
                leaf: None,
            },
            answer: None,
            _bytes: None,
        })
    }

    /// Keeps the evidence of entries that were not recorded.
    fn keep_evidence(&self, batch: &[Queued]) {
        for queued in batch {
            let ids = &queued.prepared.request.one_time.ids;
            self.shared.unrecorded.keep(ids);
        }
    }

    /// Commits a batch, behind evidence whose use could not be recorded before, and halves it as long
    /// as the store refuses its content.
    async fn process(&mut self, mut batch: Vec<Queued>) {
        batch.splice(0..0, self.unrecorded());
        if !batch.is_empty() {
            self.process_all(batch).await;
        }
        let unrecorded = self.shared.unrecorded.len();
        self.parts.metrics.unrecorded_evidence(unrecorded);
    }

    async fn process_all(&mut self, batch: Vec<Queued>) {
        let mut work = VecDeque::from([batch]);
        while let Some(mut batch) = work.pop_front() {
            if let Some(why) = self.shared.alarm.get() {
                self.set_status(LedgerStatus::Stopped(why.clone()));
            }
            if let LedgerStatus::Stopped(why) = &*self.shared.status.borrow() {
                answer_all(batch, &AppendError::Stopped(why.clone()));
                continue;
            }
            let began = Instant::now();
            let prepared: Vec<&Prepared> = batch.iter().map(|queued| &queued.prepared).collect();
            match self.commit(&prepared).await {
                Ok(committed) => {
                    self.parts
                        .metrics
                        .ledger_batch(batch.len(), began.elapsed());
                    self.set_status(LedgerStatus::Serving);
                    self.release(batch, committed).await;
                }
                Err(Failure::Content(refused)) if batch.len() == 1 => {
                    error!(error = %refused, cause = ?std::error::Error::source(&refused).map(ToString::to_string), "the store refused a ledger entry");
                    for queued in &batch {
                        let request = &queued.prepared.request;
                        // There is no other entry by which its evidence could be used up.
                        if matches!(request.entry, Entry::Consume) {
                            self.shared.unrecorded.keep_for_good(&request.one_time.ids);
                        }
                    }
                    answer_all(batch, &AppendError::Poisoned(Arc::new(refused)));
                }
                Err(Failure::Content(refused)) => {
                    warn!(entries = batch.len(), error = %refused, "halving a refused batch");
                    let rest = batch.split_off(batch.len() / 2);
                    work.push_front(rest);
                    work.push_front(batch);
                }
                Err(Failure::Unavailable(gone)) => {
                    self.set_status(LedgerStatus::Failing(gone.to_string()));
                    warn!(error = %gone, cause = ?std::error::Error::source(&gone).map(ToString::to_string), "a ledger batch was not committed");
                    self.keep_evidence(&batch);
                    answer_all(batch, &AppendError::Unavailable(Arc::new(gone)));
                }
                Err(Failure::Unknown) => {
                    self.set_status(LedgerStatus::Failing("a commit is in doubt".into()));
                    error!("the fate of a ledger batch is unknown");
                    self.keep_evidence(&batch);
                    answer_all(batch, &AppendError::Unknown);
                }
                Err(Failure::Fatal(why)) => {
                    error!(%why, "the ledger stops");
                    self.set_status(LedgerStatus::Stopped(why.clone()));
                    answer_all(batch, &AppendError::Stopped(why));
                }
            }
        }
    }

    async fn commit(&mut self, prepared: &[&Prepared]) -> Result<Committed, Failure> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.attempt(prepared).await {
                Ok(committed) => return Ok(committed),
                Err(failure) => failure,
            };
            match failure {
                Failure::Unavailable(_) if tries < TRIES && began.elapsed() < BATCH_PATIENCE => {}
                other => return Err(other),
            }
        }
    }

    async fn attempt(&mut self, prepared: &[&Prepared]) -> Result<Committed, Failure> {
        self.in_doubt = false;
        for _ in 0..SERVERS {
            // The connection is put back only after a success; after anything else it is dropped,
            // and its transaction with it.
            let connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.connect_checked().await?,
            };
            let attempt = self.try_commit(connection, prepared);
            match tokio::time::timeout(BATCH_PATIENCE, attempt).await {
                Ok(Ok(Some(committed))) => return Ok(committed),
                Ok(Ok(None)) => {}
                Ok(Err(failure)) => return Err(failure),
                // Only its id can tell whether it was committed.
                Err(_) if self.in_doubt => return Err(Failure::Unknown),
                Err(_) => return Err(too_slow("a ledger batch", BATCH_PATIENCE)),
            }
        }
        Err(Failure::Unavailable(StoreError::Unfit(
            "the connection to the database leads to one server after the other: is there a pooler in \
             between? The broker has to connect to the database itself"
                .into(),
        )))
    }

    /// Commits a batch, unless the connection leads elsewhere than to the server that was checked.
    async fn try_commit(
        &mut self,
        mut connection: LedgerConnection,
        prepared: &[&Prepared],
    ) -> Result<Option<Committed>, Failure> {
        let needs = batch::needs(prepared, self.edge.size(), self.cutoffs.known_to());
        let known = self.parts.store.known_committed();
        let mut view = connection.enter(&needs).await.map_err(failure)?;
        if self.checked.is_some() && view.server != self.checked {
            // Without a word from the connection: something stands in between.
            warn!("the connection to the database leads to another server than before");
            return Ok(None);
        }
        let head = self.open_head(view.head.as_ref())?;
        let size = head.map_or(0, |head| head.size);
        let missing = size.saturating_sub(self.edge.size());
        if let Some(head) = head.filter(|_| missing > MAX_HASHES as u64) {
            // So far behind that reading all of it would hold everybody up. It is believed only once it
            // is confirmed.
            connection.confirm().await.map_err(unanswered)?;
            // The pool must lead to a server that has as many, or catching up would never end.
            self.parts.store.note_committed(size);
            self.catch_up(head).await?;
            return Box::pin(self.try_commit(connection, prepared)).await;
        }
        if view.hashes.len() as u64 > missing {
            let index = size.max(self.edge.size());
            let why = ForeignHead::Uncovered { index, size };
            return Err(Failure::Fatal(why.to_string()));
        }
        let edge = self.follow(head, &view.hashes)?;
        if edge.size() < known {
            // Others append on another server. A new connection may lead there, and is compared with
            // what the replicas keep together.
            let shown = edge.size();
            warn!(
                known,
                shown, "the database's server lacks leaves that were committed"
            );
            return Ok(None);
        }
        let learned = self.learn_cutoffs(std::mem::take(&mut view.cutoffs), edge.size())?;
        let cutoffs = learned.as_ref().unwrap_or(&self.cutoffs);
        let generation = self.open_activation(view.activation.as_ref())?;
        let reading = self.judge_clock(&view, cutoffs);
        let now = reading.now;

        let mac = &self.parts.mac;
        let mut settling = Batch::new(
            &self.parts.origin,
            reading,
            (edge.size(), generation),
            view,
            cutoffs,
            mac,
        );
        let settled = settle_all(&mut settling, prepared, &self.shared.unrecorded)?;
        let mut writes = settling.into_writes();
        if writes.is_empty() {
            self.end_unwritten(connection, edge, learned).await?;
            return Ok(Some(Committed {
                settled,
                prover: None,
                at: now,
            }));
        }
        let hashes: Vec<Hash> = writes.leaves.iter().map(|leaf| leaf.hash).collect();
        let prover = (!hashes.is_empty()).then(|| BatchProver::new(&edge, &hashes));
        let batch_id = BatchId::new(now, &SystemRandom::new())
            .map_err(|error| Failure::Fatal(error.to_string()))?;
        let mut next = edge;
        if let Some(prover) = &prover {
            writes.tiles = advance(&mut next, prover)?;
            let head = Head {
                size: prover.size(),
                root: prover.root(),
            };
            writes.head = Some(self.heads.seal(head, batch_id));
        }
        connection.write(&writes).await.map_err(unwritten)?;
        self.in_doubt = true;
        if let Err(lost) = connection.commit().await {
            drop(connection);
            warn!(error = %lost, "a COMMIT was not acknowledged");
            if !self.fate(&writes).await? {
                return Err(Failure::Unavailable(lost));
            }
        } else {
            self.keep(connection);
        }
        // The commit was acknowledged, and with it what was read before.
        self.take_cutoffs(learned, size);
        self.move_to(next);
        self.take_own_cutoffs(&writes);
        self.see_dates(&writes);
        Ok(Some(Committed {
            settled,
            prover,
            at: now,
        }))
    }

    /// Ends a transaction that wrote nothing. What others appended is shown and signed upon it alone, so
    /// it is confirmed.
    async fn end_unwritten(
        &mut self,
        mut connection: LedgerConnection,
        edge: Edge,
        learned: Option<Cutoffs>,
    ) -> Result<(), Failure> {
        if edge.size() > self.edge.size() || learned.is_some() {
            connection.confirm().await.map_err(unanswered)?;
        } else {
            connection.rollback().await.map_err(failure)?;
        }
        self.keep(connection);
        self.take_cutoffs(learned, edge.size());
        self.move_to(edge);
        Ok(())
    }

    /// Judges the clock by what was read under the lock: no leaf is dated by one that is wrong.
    fn judge_clock(&self, view: &View, cutoffs: &Cutoffs) -> Reading {
        let clock = &self.shared.clock;
        let metrics = &self.parts.metrics;
        let compared =
            (view.clock).and_then(|(asked, theirs)| clock.compare_within(asked.elapsed(), theirs));
        if let Some(apart) = compared {
            metrics.clock_skew(apart.as_secs_f64());
        }
        clock.see_newest(view.newest_at);
        clock.see_forgotten(view.forgotten);
        if let Some((index, accepted)) = cutoffs.newest_acceptance() {
            clock.see_acceptance(index, accepted);
        }
        let reading = clock.judge();
        metrics.clock_in_doubt(reading.doubt.is_some());
        reading
    }

    /// Notes the times of what was committed.
    fn see_dates(&self, writes: &Writes) {
        let clock = &self.shared.clock;
        if let Some(newest) = writes.leaves.last() {
            clock.see_newest(Some(newest.at));
        }
        for act in &writes.acts {
            if let ActWrite::TimeAccepted { cutoff, accepted } = act {
                clock.see_acceptance(cutoff.claimed().index, *accepted);
                // What was forgotten further ahead is a matter of the acceptance from now on.
                clock.see_forgotten(None);
            }
        }
    }

    fn keep(&mut self, connection: LedgerConnection) {
        self.connection = connection.is_own().then_some(connection);
    }

    /// A new connection to the database may lead to another server than the last one: to a standby
    /// that took over before it had received all. What the replicas keep together tells.
    async fn connect_checked(&mut self) -> Result<LedgerConnection, Failure> {
        let connected = tokio::time::timeout(CONNECT_PATIENCE, self.try_connect());
        let (connection, checked) = connected
            .await
            .map_err(|_| too_slow("a new connection", CONNECT_PATIENCE))??;
        self.checked = checked;
        Ok(connection)
    }

    async fn try_connect(&self) -> Result<(LedgerConnection, Option<Server>), Failure> {
        let mut connection = self.connect().await?;
        if !connection.is_own() || !self.guard.is_shared() {
            return Ok((connection, None));
        }
        let newest = self.shared.latest.borrow().clone();
        let through = Through::Connection(&mut connection);
        let checked = self.guard.check_shared(newest.as_ref(), through).await;
        let server = checked.map_err(|error| match error {
            SharedError::Alarm(why) => Failure::Fatal(why),
            SharedError::Store(error) => unanswered(error),
            SharedError::Unavailable(_) => {
                let error = std::io::Error::other(error.to_string());
                Failure::Unavailable(StoreError::Unavailable(sqlx::Error::Io(error)))
            }
        })?;
        let server = match server {
            Some(server) => server,
            // There was nothing to compare; from now on it leads to this server or to none.
            None => connection.look().await.map_err(unanswered)?.server,
        };
        Ok((connection, Some(server)))
    }

    async fn connect(&self) -> Result<LedgerConnection, Failure> {
        self.parts.store.ledger_connection().await.map_err(failure)
    }

    /// Whether a batch was committed, asked on new connections until one can tell.
    async fn fate(&self, writes: &Writes) -> Result<bool, Failure> {
        let Some(head) = &writes.head else {
            // Only evidence was used up; without a head there is nothing to find it by.
            return Err(Failure::Unknown);
        };
        let deadline = Instant::now() + FATE_PATIENCE;
        while Instant::now() < deadline {
            let asking = async {
                let mut connection = self.connect().await.ok()?;
                connection.committed(head).await.ok()
            };
            // It does not answer while the head's own standby is gone.
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(Some(committed)) = tokio::time::timeout(left, asking).await {
                return Ok(committed);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Failure::Unknown)
    }

    /// A head's row, if a broker of this log wrote it.
    fn open_head(&self, sealed: Option<&SealedHead>) -> Result<Option<Head>, Failure> {
        let head = sealed.map(|sealed| self.heads.open(sealed)).transpose();
        head.map_err(|why| Failure::Fatal(why.to_string()))
    }

    /// The generation that decides, if a broker activated it.
    fn open_activation(
        &self,
        sealed: Option<&SealedActivation>,
    ) -> Result<Option<GenerationDigest>, Failure> {
        let open = |sealed: &SealedActivation| {
            sealed.open(&self.parts.mac).map_err(|why| {
                Failure::Fatal(format!(
                    "the table activation: the activation of {} by leaf {} was not written by a broker \
                     of this log: {why}; nothing is issued until it is known who wrote it",
                    sealed.claimed(),
                    sealed.index()
                ))
            })
        };
        sealed.map(open).transpose()
    }

    /// The edge of the tree that the store shows, if it is this replica's tree grown.
    fn follow(&self, head: Option<Head>, hashes: &[Hash]) -> Result<Edge, Failure> {
        let mut edge = self.edge.clone();
        drop(edge.append(hashes));
        let empty = Head {
            size: 0,
            root: Edge::empty().root(),
        };
        self.follow_to(edge, head.unwrap_or(empty))
    }

    /// An edge that was read, if it comes to the head that a broker wrote.
    fn follow_to(&self, edge: Edge, head: Head) -> Result<Edge, Failure> {
        if edge.size() == head.size && edge.root() == head.root {
            return Ok(edge);
        }
        let ours = Head {
            size: self.edge.size(),
            root: self.edge.root(),
        };
        Err(Failure::Fatal(guard::rewound(ours, head)))
    }

    /// Reads what other replicas appended up to a head, outside the lock.
    async fn catch_up(&mut self, head: Head) -> Result<(), Failure> {
        let mut edge = self.edge.clone();
        while edge.size() < head.size {
            let count = (head.size - edge.size()).min(MAX_HASHES as u64);
            let hashes = self.parts.store.leaf_hashes(edge.size(), count).await;
            let hashes = hashes.map_err(failure)?;
            if hashes.is_empty() {
                let error = std::io::Error::other(format!(
                    "an older connection to the database shows {} leaves, the ledger's {}: they may \
                     lead to different servers",
                    edge.size(),
                    head.size
                ));
                return Err(Failure::Unavailable(StoreError::Unavailable(
                    sqlx::Error::Io(error),
                )));
            }
            drop(edge.append(&hashes));
        }
        self.edge = self.follow_to(edge, head)?;
        Ok(())
    }

    /// The cutoffs as they are with what changed, if anything did. They are taken over once the
    /// transaction that read them is acknowledged.
    fn learn_cutoffs(
        &self,
        changed: Vec<crate::store::cutoffs::SealedCutoff>,
        size: u64,
    ) -> Result<Option<Cutoffs>, Failure> {
        if changed.is_empty() {
            return Ok(None);
        }
        let mut cutoffs = self.cutoffs.clone();
        let learned = cutoffs.learn(changed, size, &self.parts.mac);
        learned.map_err(|forged| Failure::Fatal(forged.to_string()))?;
        Ok(Some(cutoffs))
    }

    fn take_cutoffs(&mut self, learned: Option<Cutoffs>, size: u64) {
        match learned {
            Some(cutoffs) => {
                self.cutoffs = cutoffs;
                self.show_cutoffs();
            }
            None => self.cutoffs.note_known_to(size),
        }
    }

    /// Takes in what this replica cut off or lifted itself, once it is committed.
    fn take_own_cutoffs(&mut self, writes: &Writes) {
        let changed = writes.acts.iter().filter_map(|act| match act {
            ActWrite::Cutoff(sealed)
            | ActWrite::Lift(sealed)
            | ActWrite::TimeAccepted { cutoff: sealed, .. } => Some(sealed.claimed()),
            _ => None,
        });
        let changed: Vec<_> = changed.cloned().collect();
        if changed.is_empty() {
            return;
        }
        for cutoff in changed {
            self.cutoffs.add(cutoff);
        }
        self.show_cutoffs();
    }

    fn show_cutoffs(&self) {
        self.shared.cutoffs.store(Arc::new(self.cutoffs.clone()));
    }

    fn move_to(&mut self, edge: Edge) {
        let size = edge.size();
        self.edge = edge;
        // Before anybody is told: whatever they then read has it.
        self.parts.store.note_committed(size);
        self.shared
            .size
            .store(size, std::sync::atomic::Ordering::SeqCst);
        self.parts.metrics.ledger_size(size);
    }

    /// Signs the new head and tells those who wait.
    async fn release(&mut self, batch: Vec<Queued>, committed: Committed) {
        let checkpoint = match &committed.prover {
            None => {
                self.publish_others().await;
                None
            }
            Some(prover) => {
                let head = Head {
                    size: prover.size(),
                    root: prover.root(),
                };
                let published = self.publish(head).await.ok();
                if published.is_none() {
                    self.note_unsigned(head);
                }
                published
            }
        };
        let unsigned = committed.prover.is_some() && checkpoint.is_none();
        for (queued, settled) in batch.into_iter().zip(committed.settled) {
            // A decision is worth nothing without its receipt. An act stands: told that it failed, an
            // admin would take what was revoked for good.
            if unsigned && matches!(queued.prepared.request.entry, Entry::Decide(_)) {
                queued.tell(Err(AppendError::Unsigned));
                continue;
            }
            let receipt = |leaf: &SettledLeaf| {
                let proof = committed.prover.as_ref().and_then(|prover| {
                    let position = leaf.index.checked_sub(prover.first_index())?;
                    prover.inclusion(usize::try_from(position).ok()?)
                });
                Receipt {
                    leaf: leaf.body.to_vec(),
                    leaf_hash: leaf.hash,
                    index: leaf.index,
                    tree_size: committed.prover.as_ref().map_or(0, BatchProver::size),
                    inclusion_proof: proof.unwrap_or_default(),
                    checkpoint: checkpoint.as_deref().unwrap_or_default().to_owned(),
                }
            };
            let at = committed.at;
            let appended = match settled {
                Settled::Recorded(leaf) => {
                    let receipt = receipt(&leaf);
                    Appended::Recorded(recorded(leaf, at, receipt))
                }
                Settled::Refused(leaf, refusal) => {
                    let receipt = receipt(&leaf);
                    Appended::Refused(recorded(leaf, at, receipt), refusal)
                }
                Settled::Unchanged => Appended::Unchanged,
                Settled::Replayed(id) => Appended::Replayed(id),
                Settled::Forgotten => Appended::Forgotten,
                Settled::Blocked(blocked) => Appended::Blocked(blocked),
                Settled::Stale => {
                    if queued.answer.is_none() {
                        // The clock went back meanwhile: it is dated anew.
                        self.keep_evidence(std::slice::from_ref(&queued));
                    }
                    Appended::Stale
                }
                Settled::Superseded => Appended::Superseded,
                Settled::RetryTaken(facts) => Appended::RetryTaken(facts),
                Settled::ClockInDoubt(doubt) => {
                    queued.tell(Err(AppendError::ClockInDoubt(doubt)));
                    continue;
                }
            };
            // For a caller that has gone, the request's own task ends what it released.
            queued.tell(Ok(appended));
        }
    }

    /// Signs what others appended and this replica only followed: an idle one must not show the
    /// world yesterday's head.
    async fn publish_others(&mut self) {
        let latest = self.shared.latest.borrow().as_ref().map(|it| it.head.size);
        let head = Head {
            size: self.edge.size(),
            root: self.edge.root(),
        };
        let newer = head.size > latest.unwrap_or_default();
        if newer && self.publish(head).await.is_err() {
            self.note_unsigned(head);
        }
    }

    /// Makes the broker unready until the newest head, or a later one, is signed.
    fn note_unsigned(&self, head: Head) {
        error!(size = head.size, "a checkpoint could not be signed");
        self.set_status(LedgerStatus::Failing(format!(
            "the checkpoint of {} leaves could not be signed",
            head.size
        )));
    }

    /// Signs a head's checkpoint and shows it to the world.
    async fn publish(&mut self, head: Head) -> Result<Arc<str>, AppendError> {
        let signed = sign(&self.parts, head).await?;
        let checkpoint = Arc::clone(&signed.checkpoint);
        self.show(signed);
        Ok(checkpoint)
    }

    fn show(&self, signed: Signed) {
        self.guard.remember(&signed);
        self.shared.latest.send_replace(Some(signed));
    }

    fn set_status(&self, status: LedgerStatus) {
        self.shared.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }
}

/// Signs a head with the keys of the log, the current one and those that it took the place of. Never
/// with more than readers look at, whatever the store says: a note that they refuse would be none.
pub(super) async fn sign(parts: &LedgerParts, head: Head) -> Result<Signed, AppendError> {
    let text = Checkpoint {
        origin: parts.origin.clone(),
        size: head.size,
        root: head.root,
        extensions: Vec::new(),
    }
    .to_string();
    let keys = parts.keys.load_full();
    let mut lines = Vec::with_capacity(keys.len());
    for key in keys.iter().take(MAX_LEDGER_KEYS) {
        let signature = key.signer.sign(text.as_bytes()).await;
        let signature = signature.map_err(|_| AppendError::Unsigned)?;
        let line = note_signature_line(&key.verifier, &signature);
        lines.push(line.map_err(|_| AppendError::Unsigned)?);
    }
    let checkpoint = sign_note(&text, &lines).map_err(|_| AppendError::Unsigned)?;
    Ok(Signed {
        head,
        checkpoint: checkpoint.into(),
    })
}

/// Nothing was committed.
fn too_slow(what: &str, patience: Duration) -> Failure {
    let error = std::io::Error::other(format!("{what} took more than {patience:?}"));
    Failure::Unavailable(StoreError::Unavailable(sqlx::Error::Io(error)))
}

fn advance(edge: &mut Edge, prover: &BatchProver) -> Result<Vec<Tile>, Failure> {
    edge.advance(prover)
        .map_err(|error| Failure::Fatal(error.to_string()))
}

fn failure(error: StoreError) -> Failure {
    match error {
        StoreError::Refused(_) => Failure::Content(error),
        StoreError::Unavailable(_) | StoreError::NotPrimary(_) => Failure::Unavailable(error),
        StoreError::Corrupt(_) | StoreError::Unfit(_) | StoreError::Forged(_) => {
            Failure::Fatal(error.to_string())
        }
    }
}

/// Settles the entries of a batch in their order. Evidence whose use waits to be recorded is refused.
fn settle_all(
    settling: &mut Batch<'_>,
    prepared: &[&Prepared],
    unrecorded: &Unrecorded,
) -> Result<Vec<Settled>, Failure> {
    let settled = prepared.iter().map(|prepared| {
        if let Some(id) = unrecorded.replayed(&prepared.request.one_time.ids) {
            return Ok(Settled::Replayed(id));
        }
        settling.settle(prepared).map_err(|error| {
            Failure::Fatal(format!("a refusal cannot be written as a leaf: {error}"))
        })
    });
    settled.collect()
}

/// The failure of a write. A row that is there already, under the lock, was written by something
/// other than a broker of this log.
fn unwritten(error: StoreError) -> Failure {
    match error.occupied() {
        Some(row) => Failure::Fatal(format!(
            "a row of the log that this batch was to write is there already, so it was not written by \
             a broker of this log: {row}; nothing is issued until it is known who wrote it"
        )),
        None => failure(error),
    }
}

/// The same where nothing of a batch was given to the store yet: no entry is to blame.
fn unanswered(error: StoreError) -> Failure {
    match failure(error) {
        Failure::Content(error) => Failure::Unavailable(error),
        other => other,
    }
}

fn answer_all(batch: Vec<Queued>, error: &AppendError) {
    for queued in batch {
        queued.tell(Err(error.clone()));
    }
}
