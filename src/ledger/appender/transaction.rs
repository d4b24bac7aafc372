//! The transaction of a batch: read under the lock, settle, write, commit.
//!
//! `commit` tries a batch, `attempt` on one connection, and `try_commit` is the transaction itself.
//! `connect_checked` makes a connection, and `resolve_commit_outcome` finds out whether a commit
//! was made.
//!
//! The rule: everything that an entry depends on is read under the lock, and this replica's state
//! moves only after the commit was acknowledged. If the answer to COMMIT is lost, the batch is
//! looked up by its id; until then nothing is released. Failures: a batch of which nothing was
//! committed is tried once more. `Unknown` means that the outcome could not be found in
//! [`COMMIT_OUTCOME_TIMEOUT`]. A server that lacks known leaves is left for a new connection.
//! `super::Appender` calls `commit`; `store::append` has the statements, `ledger::batch` the rules.

use std::time::{Duration, Instant};

use tracing::warn;

use super::failure::{Failure, failure, too_slow, unanswered, unwritten};
use super::follow::LearnedCutoffs;
use super::{Appender, CONNECT_PATIENCE, Committed};
use crate::clock::Timestamp;
use crate::crypto::random::SystemRandom;
use crate::domain::workload::OneTime;
use crate::ids::{BatchId, Random as _};
use crate::ledger::batch::{self, Batch, Prepared, SettledLeaf};
use crate::ledger::clock_watch::Reading;
use crate::ledger::cutoffs::Cutoffs;
use crate::ledger::outcome::{AppendError, Outcome};
use crate::ledger::shared::{SharedError, Through};
use crate::ledger::unrecorded::Unrecorded;
use crate::merkle::{BatchProver, Edge, Hash, Tile};
use crate::store::StoreError;
use crate::store::append::{LedgerConnection, MAX_HASHES, Server, View, Writes};
use crate::store::endings::{ChainedEnding, EndingsChain};
use crate::store::heads::{ForeignHead, Head, SealedHead};

/// How long to ask for the outcome of a COMMIT whose answer was lost. The holder of the lock may be
/// frozen for a few seconds. After this time the callers learn that the outcome is unknown.
const COMMIT_OUTCOME_TIMEOUT: Duration = Duration::from_secs(8);

/// How often one append may find another server on its connection and have that server checked.
const SERVERS: u32 = 3;

/// How long a batch may take before the entries after it fail because the store is too slow.
const BATCH_PATIENCE: Duration = Duration::from_secs(10);

/// How often a batch is tried in all, after a deadlock, a lost lock or a broken connection.
const TRIES: u32 = 2;

impl Appender {
    /// Commits a batch, and tries again if nothing was committed.
    pub(super) async fn commit(&mut self, prepared: &[&Prepared]) -> Result<Committed, Failure> {
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
        // First the check against the shared checkpoint: it tells a rewound store from a server that
        // lags, and the pool does not.
        let mut first = Some(self.checked_connection().await?);
        if self.cutoffs_known_to.is_none() {
            self.load_cutoffs().await?;
        }
        for _ in 0..SERVERS {
            // The connection is put back only after a success. Otherwise it is dropped, which rolls
            // the transaction back.
            let connection = match first.take() {
                Some(connection) => connection,
                None => self.checked_connection().await?,
            };
            let attempt = self.try_commit(connection, prepared);
            match tokio::time::timeout(BATCH_PATIENCE, attempt).await {
                Ok(Ok(Some(committed))) => return Ok(committed),
                Ok(Ok(None)) => {}
                Ok(Err(failure)) => return Err(failure),
                // Only the batch id can tell whether it was committed.
                Err(_) if self.in_doubt => return Err(Failure::Unknown),
                Err(_) => return Err(too_slow("a ledger batch", BATCH_PATIENCE)),
            }
        }
        Err(Failure::Unavailable(StoreError::Unfit(
            "the connection to the database keeps leading to other servers; connect the broker to \
             the database itself, without a pooler"
                .into(),
        )))
    }

    /// Commits a batch. `None` if the connection leads to another server than the checked one.
    async fn try_commit(
        &mut self,
        mut connection: LedgerConnection,
        prepared: &[&Prepared],
    ) -> Result<Option<Committed>, Failure> {
        let cutoffs_from = self.cutoffs_known_to.unwrap_or_default();
        let mut needs = batch::needs(prepared, self.edge.size(), cutoffs_from);
        let opens = std::mem::take(&mut needs.open_tasks);
        needs.open_tasks = self.open_tasks.to_count(&opens, self.edge.size());
        let known = self.parts.store.known_committed();
        let mut view = connection.enter(&needs).await.map_err(failure)?;
        if self.checked.is_some() && view.server != self.checked {
            // The connection reported no break, so a pooler stands in between.
            warn!("the connection to the database leads to another server than before");
            return Ok(None);
        }
        let head = self.open_head(view.head.as_ref())?;
        let size = head.map_or(0, |head| head.size);
        let missing = size.saturating_sub(self.edge.size());
        if let Some(head) = head.filter(|_| missing > MAX_HASHES as u64) {
            // The replica lags so far that reading all leaves under the lock would delay every
            // replica. The head is followed only after it is confirmed.
            connection.confirm().await.map_err(unanswered)?;
            // The pool must lead to a server with as many leaves, or catching up would never end.
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
            // Other replicas append on another server. A new connection may lead there, and is
            // checked against the shared checkpoint.
            let shown = edge.size();
            warn!(
                known,
                shown, "the database's server lacks leaves that were committed"
            );
            return Ok(None);
        }
        let counts = self
            .count_open_tasks(&mut connection, needs.open_tasks, &opens, size, &mut view)
            .await?;
        let learned = self.learn_cutoffs(std::mem::take(&mut view.cutoffs))?;
        let learned_cutoffs = learned.as_ref().map(|learned| &learned.cutoffs);
        let cutoffs = learned_cutoffs.unwrap_or(&self.cutoffs);
        let generation = self.open_activation(view.activation.as_ref())?;
        let reading = self.judge_clock(&view, cutoffs);
        let now = reading.now;
        if learned.as_ref().is_some_and(|learned| learned.accepts_time) {
            let connection = self.reload_cutoffs(connection, edge, learned).await?;
            return Box::pin(self.try_commit(connection, prepared)).await;
        }

        let chain = view.head.as_ref();
        let chain = chain.map_or(EndingsChain::EMPTY, SealedHead::endings);
        let mac = &self.parts.mac;
        let mut settling = Batch::new(
            &self.parts.origin,
            reading,
            (edge.size(), generation),
            view,
            cutoffs,
            mac,
        );
        let settled = settle_all(&mut settling, prepared, &self.shared.unrecorded);
        let (mut writes, own_cutoffs) = settling.into_parts();
        if writes.is_empty() && self.is_failing() {
            writes.one_time.push(probe(now)?);
        }
        if writes.is_empty() {
            self.end_unwritten(connection, edge, learned).await?;
            return Ok(Some(Committed {
                settled,
                prover: None,
                at: now,
            }));
        }
        let (prover, next) = self.seal_head(edge, chain, now, &mut writes)?;
        self.write(connection, &writes).await?;
        // The commit was acknowledged, and with it every row that was read before.
        self.take_cutoffs(learned, size);
        self.open_tasks
            .take_over(size, counts, writes.leaves.len(), &writes.tasks);
        self.move_to(next);
        if !writes.endings.is_empty() {
            self.shared.endings.notify_one();
        }
        self.see_dates(&writes, &own_cutoffs);
        self.take_own_cutoffs(own_cutoffs, self.edge.size());
        Ok(Some(Committed {
            settled,
            prover,
            at: now,
        }))
    }

    /// Adds to `writes` the tiles and the sealed head after its leaves. Returns the prover of the
    /// leaves, if there are any, and the edge after them.
    fn seal_head(
        &self,
        mut edge: Edge,
        chain: EndingsChain,
        now: Timestamp,
        writes: &mut Writes,
    ) -> Result<(Option<BatchProver>, Edge), Failure> {
        let hashes: Vec<Hash> = writes.leaves.iter().map(|leaf| leaf.hash).collect();
        let prover = (!hashes.is_empty()).then(|| BatchProver::new(&edge, &hashes));
        let batch_id = BatchId::new(now, &SystemRandom::new())
            .map_err(|error| Failure::Fatal(error.to_string()))?;
        if let Some(prover) = &prover {
            writes.tiles = advance(&mut edge, prover)?;
            let head = Head {
                size: prover.size(),
                root: prover.root(),
            };
            let endings = writes.endings.last().map_or(chain, ChainedEnding::after);
            writes.head = Some(self.heads.seal(head, batch_id, endings));
        }
        Ok((prover, edge))
    }

    /// Writes and commits. If the COMMIT is not acknowledged, it finds out whether it took place.
    async fn write(
        &mut self,
        mut connection: LedgerConnection,
        writes: &Writes,
    ) -> Result<(), Failure> {
        connection.write(writes).await.map_err(unwritten)?;
        self.in_doubt = true;
        if let Err(lost) = connection.commit().await {
            drop(connection);
            warn!(error = %lost, "a COMMIT was not acknowledged");
            if !self.resolve_commit_outcome(writes).await? {
                return Err(Failure::Unavailable(lost));
            }
        } else {
            self.keep(connection);
        }
        Ok(())
    }

    /// Completes the open tasks of the view in a log of `size` leaves: counts those that reach their
    /// maximum only with the leaves of other replicas, and adds the bounds of those that reach it in
    /// no case. `counted` were counted already. Returns all counts with their limits.
    async fn count_open_tasks(
        &self,
        connection: &mut LedgerConnection,
        counted: Vec<(String, String, u32)>,
        opens: &[(String, String, u32)],
        size: u64,
        view: &mut View,
    ) -> Result<Vec<((String, String), u32, u32)>, Failure> {
        let mut missing = self.open_tasks.to_count(opens, size);
        missing.retain(|pair| !counted.contains(pair));
        if !missing.is_empty() {
            let counts = connection.count_open_tasks(&missing).await;
            view.open_tasks.extend(counts.map_err(failure)?);
        }
        let all = counted.into_iter().chain(missing);
        let counts = all.map(|(owner, task_type, limit)| {
            let pair = (owner, task_type);
            let count = view.open_tasks.get(&pair).copied().unwrap_or(0);
            (pair, count, limit)
        });
        let counts = counts.collect();
        self.open_tasks.fill_in(opens, size, &mut view.open_tasks);
        Ok(counts)
    }

    /// Ends a transaction that wrote nothing. If it read leaves or cutoffs of other replicas, they
    /// will be signed and shown, so a commit confirms them first.
    async fn end_unwritten(
        &mut self,
        mut connection: LedgerConnection,
        edge: Edge,
        learned: Option<LearnedCutoffs>,
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

    /// Ends a transaction that learned of an accepted time, and loads the cutoffs again: blocks that
    /// this replica had forgotten by a fast clock block again, and no entry may be settled without
    /// them. The clock was judged by the accepted time before. Returns a connection for another
    /// transaction, which learns of this acceptance no more.
    async fn reload_cutoffs(
        &mut self,
        connection: LedgerConnection,
        edge: Edge,
        learned: Option<LearnedCutoffs>,
    ) -> Result<LedgerConnection, Failure> {
        self.end_unwritten(connection, edge, learned).await?;
        self.load_cutoffs().await?;
        self.checked_connection().await
    }

    /// Judges the clock by values that were read under the lock, so that no leaf is dated by a
    /// wrong clock.
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

    /// Records the times of the leaves that were committed.
    fn see_dates(&self, writes: &Writes, own_cutoffs: &Cutoffs) {
        let clock = &self.shared.clock;
        if let Some(newest) = writes.leaves.last() {
            clock.see_newest(Some(newest.at));
        }
        if let Some((index, accepted)) = own_cutoffs.newest_acceptance() {
            clock.see_acceptance(index, accepted);
            // The acceptance covers the evidence that a fast clock deleted.
            clock.see_forgotten(None);
        }
    }

    fn keep(&mut self, connection: LedgerConnection) {
        self.connection = connection.is_own().then_some(connection);
    }

    /// The connection of the last batch, or a new one.
    async fn checked_connection(&mut self) -> Result<LedgerConnection, Failure> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.connect_checked().await,
        }
    }

    /// Connects, and checks the server against the shared checkpoint: it may be another one than
    /// before, such as a standby that was promoted before it had received every leaf.
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
            // No checkpoint was there to compare; from now on only this server is accepted.
            None => {
                connection
                    .head_and_server()
                    .await
                    .map_err(unanswered)?
                    .server
            }
        };
        Ok((connection, Some(server)))
    }

    async fn connect(&self) -> Result<LedgerConnection, Failure> {
        self.parts.store.ledger_connection().await.map_err(failure)
    }

    /// Whether a batch was committed. Asks on new connections until one answers. If none answers in
    /// time, or the batch has no leaf to be found by, the failure is `Unknown`.
    async fn resolve_commit_outcome(&self, writes: &Writes) -> Result<bool, Failure> {
        let Some(head) = &writes.head else {
            // Without leaves there is no head to find the batch by.
            return Err(Failure::Unknown);
        };
        let deadline = Instant::now() + COMMIT_OUTCOME_TIMEOUT;
        while Instant::now() < deadline {
            let asking = async {
                let mut connection = self.connect().await.ok()?;
                connection.committed(head).await.ok()
            };
            // The question itself waits while the server's standby is gone.
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(Some(committed)) = tokio::time::timeout(left, asking).await {
                return Ok(committed);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Failure::Unknown)
    }

    fn move_to(&mut self, edge: Edge) {
        let size = edge.size();
        self.edge = edge;
        // Raised before the callers are answered, so that their next read sees the leaves.
        self.parts.store.note_committed(size);
        self.shared
            .size
            .store(size, std::sync::atomic::Ordering::SeqCst);
        self.parts.metrics.ledger_size(size);
    }
}

/// A one-time id that no evidence has. After a failure only a commit of rows shows that the ledger
/// can be written: reading under the lock also succeeds on a full disk.
fn probe(now: Timestamp) -> Result<OneTime, Failure> {
    let mut key = [0; 32];
    let filled = SystemRandom::new().fill(&mut key);
    filled.map_err(|error| Failure::Fatal(error.to_string()))?;
    Ok(OneTime {
        key,
        binding: None,
        must_be_new: true,
        issued_at: now,
        expires_at: now,
    })
}

fn advance(edge: &mut Edge, prover: &BatchProver) -> Result<Vec<Tile>, Failure> {
    edge.advance(prover)
        .map_err(|error| Failure::Fatal(error.to_string()))
}

/// Settles the entries of a batch in order. Refuses evidence whose use is yet to be recorded.
fn settle_all(
    settling: &mut Batch<'_>,
    prepared: &[&Prepared],
    unrecorded: &Unrecorded,
) -> Vec<Result<Outcome<SettledLeaf>, AppendError>> {
    let settled =
        prepared.iter().map(
            |prepared| match unrecorded.replayed(&prepared.request.one_time.ids) {
                Some(id) => Ok(Outcome::Replayed(id)),
                None => settling.settle(prepared),
            },
        );
    settled.collect()
}
