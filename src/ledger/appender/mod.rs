//! The worker that gathers the queue into batches, commits them and answers the callers.
//!
//! Read [`Appender::run`], then `process_all` for the outcomes of a batch and `release` for the
//! signature and the answers. `transaction` commits, `follow` reads the log of other replicas,
//! `failure` classifies errors, `signing` signs.
//!
//! The rule: one batch at a time, and no caller is answered before the commit is acknowledged. A
//! decision is released only with a signed checkpoint. Failures: an entry that the store refuses is
//! found by halving the batch, and fails alone (`Poisoned`). If the store does not answer, all
//! entries fail (`Unavailable`, `Unknown`), and their evidence is kept in `unrecorded`. A `Fatal`
//! failure stops the ledger for good. An act whose checkpoint could not be signed stays recorded,
//! with an empty checkpoint in its receipt; a decision fails as `Unsigned`. `ledger` fills the
//! queue, `app` runs the worker, and `batch` settles the entries.

mod failure;
mod follow;
mod open;
mod signing;
mod transaction;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::failure::Failure;
pub(super) use self::signing::sign;
use super::batch::{Prepared, SettledLeaf};
use super::cutoffs::Cutoffs;
use super::entry::{Entry, Request};
use super::guard::Guard;
use super::open_tasks::OpenTasks;
use super::outcome::{AppendError, Outcome};
use super::queue::{Queued, Waiting};
use super::{LedgerParts, LedgerStatus, Shared, Signed, recorded};
use crate::clock::Timestamp;
use crate::domain::limits::MAX_BATCH_UNRECORDED;
use crate::merkle::{BatchProver, Edge, Receipt};
use crate::store::append::{LedgerConnection, Server};
use crate::store::heads::{Head, HeadSeal};

/// How long a new connection and the check of its server may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// The pause after a failed batch before unrecorded evidence is recorded, if nothing is appended.
const UNRECORDED_PAUSE: Duration = Duration::from_secs(2);

/// The ledger's worker: run it as one tracked task.
pub struct Appender {
    parts: LedgerParts,
    queue: Waiting,
    shared: Arc<Shared>,
    connection: Option<LedgerConnection>,
    /// The server that was last checked against the shared checkpoint.
    checked: Option<Server>,
    /// Whether COMMIT was sent and its outcome is unknown.
    in_doubt: bool,
    edge: Edge,
    cutoffs: Arc<Cutoffs>,
    /// The size of the log up to which changes of cutoffs are known. `None` until the cutoffs that
    /// may block were loaded.
    cutoffs_known_to: Option<u64>,
    open_tasks: OpenTasks,
    guard: Guard,
    heads: HeadSeal,
}

/// A durable batch whose callers have no answer yet.
struct Committed {
    settled: Vec<Result<Outcome<SettledLeaf>, AppendError>>,
    prover: Option<BatchProver>,
    at: Timestamp,
}

impl Appender {
    fn new(
        parts: LedgerParts,
        queue: Waiting,
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
            cutoffs: Arc::default(),
            cutoffs_known_to: None,
            open_tasks: OpenTasks::default(),
            guard,
            heads,
        }
    }

    /// Commits batches until `stop`, and then the rest of the queue.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let shared = Arc::clone(&self.shared);
        loop {
            let pause = self.unrecorded_pause();
            let first = tokio::select! {
                biased;
                first = self.queue.next() => first,
                () = shared.unrecorded.due(pause) => {
                    self.process(Vec::new()).await;
                    continue;
                }
                () = stop.cancelled() => {
                    self.queue.close();
                    self.queue.next().await
                }
            };
            let Some(first) = first else {
                break;
            };
            let mut batch = vec![first];
            self.queue.fill(&mut batch);
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
                "the use of evidence could not be recorded and is lost as this process ends"
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
            bytes: None,
        })
    }

    /// Keeps the evidence of entries that were not recorded.
    fn keep_evidence(&self, batch: &[Queued]) {
        for queued in batch {
            let ids = &queued.prepared.request.one_time.ids;
            self.shared.unrecorded.keep(ids);
        }
    }

    /// Commits a batch, after the evidence whose use could not be recorded before. Halves the batch
    /// as long as the store refuses its content.
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
                        let Prepared { request, leaf } = &queued.prepared;
                        // No other entry can record the use of this evidence, so it is refused for
                        // good.
                        if leaf.is_none() {
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
                    error!("the outcome of the commit of a ledger batch is unknown");
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

    /// Signs the new head and answers the callers.
    async fn release(&mut self, batch: Vec<Queued>, committed: Committed) {
        let Committed {
            settled,
            prover,
            at,
        } = committed;
        let checkpoint = match &prover {
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
        let unsigned = prover.is_some() && checkpoint.is_none();
        let receipt = |leaf: &SettledLeaf| {
            let proof = prover.as_ref().and_then(|prover| {
                let position = leaf.index.checked_sub(prover.first_index())?;
                prover.inclusion(usize::try_from(position).ok()?)
            });
            Receipt {
                leaf: leaf.body.to_vec(),
                leaf_hash: leaf.hash,
                index: leaf.index,
                tree_size: prover.as_ref().map_or(0, BatchProver::size),
                inclusion_proof: proof.unwrap_or_default(),
                checkpoint: checkpoint.as_deref().unwrap_or_default().to_owned(),
            }
        };
        for (queued, settled) in batch.into_iter().zip(settled) {
            // Without its receipt a decision is useless, so it fails. An act stays recorded: an
            // error would make the admin believe that the revocation had no effect.
            let decides = queued.prepared.request.entry.kind().decision().is_some();
            if unsigned && decides {
                queued.tell(Err(AppendError::Unsigned));
                continue;
            }
            // Evidence without a caller, dated before the clock was set back: keep it, to be dated
            // again.
            if queued.answer.is_none() && matches!(settled, Ok(Outcome::Stale)) {
                self.keep_evidence(std::slice::from_ref(&queued));
            }
            let appended = settled.and_then(|outcome| {
                outcome.try_map(|leaf| {
                    let receipt = receipt(&leaf);
                    Ok(recorded(leaf, at, receipt))
                })
            });
            // If the caller is gone, the task of its request ends the credential.
            queued.tell(appended);
        }
    }

    /// Signs leaves that other replicas appended and this replica only followed, so that an idle
    /// replica does not serve an outdated checkpoint.
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

    /// Signs a head's checkpoint and publishes it.
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

    fn is_failing(&self) -> bool {
        matches!(&*self.shared.status.borrow(), LedgerStatus::Failing(_))
    }

    fn set_status(&self, status: LedgerStatus) {
        self.shared.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }
}

fn answer_all(batch: Vec<Queued>, error: &AppendError) {
    for queued in batch {
        queued.tell(Err(error.clone()));
    }
}
