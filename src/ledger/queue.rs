//! The queue of entries that wait for a batch of the appender.
//!
//! It has two lanes. Endings, revocations and other acts are in one, decisions and the use of
//! evidence in the other. A batch takes acts first, but leaves half of its places to the other
//! lane, so neither lane delays the other for long. Each lane is bounded in entries and bytes.
//!
//! The rule: an act is never refused because decisions fill the queue. Failures: a full lane
//! returns the entry; a closed queue answers `Stopped`. [`super::Ledger::append`] fills the queue,
//! [`super::appender`] empties it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::Appended;
use super::batch::Prepared;
use super::entry::EntryOpenings;
use super::outcome::AppendError;
use crate::domain::limits::{
    MAX_BATCH_ENTRIES, MAX_QUEUE_ACTS, MAX_QUEUE_BYTES, MAX_QUEUE_CONSUMPTIONS, MAX_QUEUE_ENTRIES,
};

/// An entry that waits for a batch.
pub(super) struct Queued {
    pub(super) prepared: Prepared,
    /// Receives the outcome; `None` for evidence whose use is recorded late.
    pub(super) answer: Option<oneshot::Sender<Result<Appended, AppendError>>>,
    /// The share of the lane's bytes; `None` for an entry that only uses evidence up. Freed when
    /// the entry is dropped.
    #[expect(dead_code, reason = "held until the entry is dropped")]
    pub(super) bytes: Option<OwnedSemaphorePermit>,
}

impl Queued {
    /// Sends the outcome to the caller, which may be gone.
    pub(super) fn tell(self, outcome: Result<Appended, AppendError>) {
        if let Some(answer) = self.answer {
            drop(answer.send(outcome));
        }
    }
}

/// The sending side of the queue. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue {
    acts: Lane,
    decisions: Lane,
}

#[derive(Clone)]
struct Lane {
    entries: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    /// The last places, which are reserved for entries that only use evidence up.
    reserved: usize,
}

/// The receiving side of the queue.
pub(super) struct Waiting {
    acts: mpsc::Receiver<Queued>,
    decisions: mpsc::Receiver<Queued>,
}

/// An empty queue, with its receiving side.
pub(super) fn queue() -> (Queue, Waiting) {
    let (acts, waiting_acts) = Lane::new(MAX_QUEUE_ACTS, 0);
    let (decisions, waiting_decisions) = Lane::new(
        MAX_QUEUE_ENTRIES + MAX_QUEUE_CONSUMPTIONS,
        MAX_QUEUE_CONSUMPTIONS,
    );
    let waiting = Waiting {
        acts: waiting_acts,
        decisions: waiting_decisions,
    };
    (Queue { acts, decisions }, waiting)
}

impl Queue {
    /// Queues an entry and returns the receiver of its outcome, or returns the entry if its lane is
    /// full. If the queue is closed, the outcome is `Stopped`.
    pub(super) fn offer(
        &self,
        prepared: Prepared,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, Box<Prepared>> {
        // An entry that the store accepts even beyond its size limit is an act.
        let is_act = !prepared.request.entry.kind().needs_free_space();
        if is_act {
            self.acts.offer(prepared)
        } else {
            self.decisions.offer(prepared)
        }
    }

    /// The number of entries that wait.
    pub(super) fn len(&self) -> usize {
        self.acts.len() + self.decisions.len()
    }
}

impl Lane {
    fn new(most: usize, reserved: usize) -> (Self, mpsc::Receiver<Queued>) {
        let (entries, waiting) = mpsc::channel(most);
        let lane = Self {
            entries,
            bytes: Arc::new(Semaphore::new(MAX_QUEUE_BYTES)),
            reserved,
        };
        (lane, waiting)
    }

    fn len(&self) -> usize {
        self.entries.max_capacity() - self.entries.capacity()
    }

    fn offer(
        &self,
        prepared: Prepared,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, Box<Prepared>> {
        let bytes = if prepared.leaf.is_none() {
            None
        } else {
            let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(weight(&prepared));
            match bytes {
                Ok(bytes) if self.entries.capacity() > self.reserved => Some(bytes),
                _ => return Err(Box::new(prepared)),
            }
        };
        let (answer, outcome) = oneshot::channel();
        let queued = Queued {
            prepared,
            answer: Some(answer),
            bytes,
        };
        match self.entries.try_send(queued) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(queued)) => {
                return Err(Box::new(queued.prepared));
            }
            Err(mpsc::error::TrySendError::Closed(queued)) => {
                queued.tell(Err(AppendError::Stopped("shutting down".into())));
            }
        }
        Ok(outcome)
    }
}

impl Waiting {
    /// The next entry, an act if one waits. `None` after [`Self::close`], once the queue is empty.
    /// Cancelling the future loses no entry.
    pub(super) async fn next(&mut self) -> Option<Queued> {
        tokio::select! {
            biased;
            Some(act) = self.acts.recv() => Some(act),
            Some(decision) = self.decisions.recv() => Some(decision),
            else => None,
        }
    }

    /// Adds the waiting entries to a batch, up to its maximum size.
    pub(super) fn fill(&mut self, batch: &mut Vec<Queued>) {
        let kept = self.decisions.len().min(MAX_BATCH_ENTRIES / 2);
        take(&mut self.acts, MAX_BATCH_ENTRIES - kept, batch);
        take(&mut self.decisions, MAX_BATCH_ENTRIES, batch);
    }

    /// The number of entries that wait.
    pub(super) fn len(&self) -> usize {
        self.acts.len() + self.decisions.len()
    }

    /// Accepts no more entries.
    pub(super) fn close(&mut self) {
        self.acts.close();
        self.decisions.close();
    }
}

/// Moves entries to the batch until it has `most`.
fn take(lane: &mut mpsc::Receiver<Queued>, most: usize, batch: &mut Vec<Queued>) {
    while batch.len() < most {
        match lane.try_recv() {
            Ok(next) => batch.push(next),
            Err(_) => break,
        }
    }
}

/// A rough measure of an entry's memory while it is queued; at least one.
fn weight(prepared: &Prepared) -> u32 {
    let leaf = prepared.leaf.as_ref().map_or(0, |(body, _)| body.len());
    let EntryOpenings { input, purpose } = prepared.request.entry.kind().openings();
    let opened = [input, purpose].into_iter().flatten();
    let opened: usize = opened.map(|opening| opening.bytes.len()).sum();
    // The entry's rows are about as large as its leaf, hence twice the leaf.
    u32::try_from(2 * leaf + opened + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ledger::entry::{EndTasks, Entry, OneTimeUse, Request, SweepCause};

    fn prepared(entry: Entry) -> Prepared {
        Prepared {
            request: Request {
                entry,
                one_time: OneTimeUse::default(),
                at: Timestamp::EPOCH,
            },
            leaf: None,
        }
    }

    fn act() -> Prepared {
        prepared(Entry::EndTasks(EndTasks {
            tasks: Vec::new(),
            cause: SweepCause::DatedAhead,
        }))
    }

    fn kinds(batch: &[Queued]) -> (usize, usize) {
        let is_act = |queued: &&Queued| matches!(queued.prepared.request.entry, Entry::EndTasks(_));
        let acts = batch.iter().filter(is_act).count();
        (acts, batch.len() - acts)
    }

    #[tokio::test]
    async fn an_act_passes_the_decisions_that_fill_the_queue() {
        let (queue, mut waiting) = queue();
        for _ in 0..MAX_QUEUE_ENTRIES + MAX_QUEUE_CONSUMPTIONS {
            assert!(queue.offer(prepared(Entry::Consume)).is_ok());
        }
        assert!(queue.offer(prepared(Entry::Consume)).is_err(), "full");
        assert!(queue.offer(act()).is_ok());
        let first = waiting.next().await.unwrap();
        assert_eq!(kinds(&[first]), (1, 0));
    }

    #[tokio::test]
    async fn a_flood_of_acts_leaves_half_of_each_batch_to_decisions() {
        let (queue, mut waiting) = queue();
        for _ in 0..MAX_QUEUE_ACTS {
            assert!(queue.offer(act()).is_ok());
        }
        assert!(queue.offer(act()).is_err(), "full");
        let mut batch = Vec::new();
        waiting.fill(&mut batch);
        assert_eq!(kinds(&batch), (MAX_BATCH_ENTRIES, 0));
        for _ in 0..MAX_BATCH_ENTRIES {
            assert!(queue.offer(prepared(Entry::Consume)).is_ok());
        }
        let mut batch = vec![waiting.next().await.unwrap()];
        waiting.fill(&mut batch);
        let half = MAX_BATCH_ENTRIES / 2;
        assert_eq!(kinds(&batch), (half, half));
    }

    #[tokio::test]
    async fn a_closed_queue_is_emptied_and_then_ends() {
        let (queue, mut waiting) = queue();
        let _first = queue.offer(prepared(Entry::Consume)).unwrap();
        let _second = queue.offer(act()).unwrap();
        waiting.close();
        let refused = queue.offer(act()).unwrap().await.unwrap();
        assert!(matches!(refused, Err(AppendError::Stopped(_))));
        assert_eq!(queue.len(), waiting.len());
        assert!(waiting.next().await.is_some());
        assert!(waiting.next().await.is_some());
        assert!(waiting.next().await.is_none());
    }
}
