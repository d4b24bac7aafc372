//! One call, and the evidence that it presents: used up on every way out once it was verified.
//!
//! Each public story of the broker begins a [`Call`] and runs in [`Call::run`]. Evidence is
//! registered with the call when it is verified. An entry that the story appends carries the
//! one-time ids with it, so the usual request costs one append. Where a story comes to its end
//! without such an append (a 404, a 409, a 429, a failed read), `run` appends the consumption
//! before the caller gets the answer: evidence that was seen once cannot be sent again when it
//! would get further. If that append fails the answer is the 503.
//!
//! A caller that goes away, or a story that panics, never gets there. Then dropping the call
//! queues the consumption.
//!
//! A failure that is ours (503) uses verified evidence up like every other. It survives only where
//! the append that carried it failed, because then the store could not be written at all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;

use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::workload::OneTime;
use crate::ledger::entry::{Entry, Request};
use crate::ledger::{AppendError, Appended};

/// A call under way.
pub(super) struct Call<'a> {
    broker: &'a Broker,
    evidence: &'a Evidence,
    verified: Mutex<Verified>,
}

/// What was verified of a call's evidence.
#[derive(Default)]
struct Verified {
    /// One-time ids that an append has yet to carry; the evidence's own is the first.
    unspent: Vec<OneTime>,
    /// The ids were carried by an append, or the append that carried them failed with the store.
    settled: bool,
}

impl Broker {
    /// Begins a call that presents this evidence.
    pub(super) fn call<'a>(&'a self, evidence: &'a Evidence) -> Call<'a> {
        Call {
            broker: self,
            evidence,
            verified: Mutex::default(),
        }
    }
}

impl<'a> Call<'a> {
    /// All that the call presents.
    pub(super) fn evidence(&self) -> &'a Evidence {
        self.evidence
    }

    fn state(&self) -> MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers evidence that was verified. A story that decides again verifies again, which
    /// takes the place of what was registered before.
    pub(super) fn verified(&self, one_time: Vec<OneTime>) {
        let mut state = self.state();
        if !state.settled {
            state.unspent = one_time;
        }
    }

    /// Binds the evidence, however the call ends: what was used with this binding before may be used
    /// with it again.
    pub(super) fn bind(&self, binding: [u8; 32]) {
        if let Some(evidence) = self.state().unspent.first_mut() {
            evidence.binding = Some(binding);
        }
    }

    /// Appends an entry, with the call's evidence if no other entry has used that up.
    pub(super) async fn append(
        &self,
        entry: Entry,
        at: Timestamp,
    ) -> Result<Appended, BrokerError> {
        self.append_with(entry, at, |_| {}).await
    }

    /// The same, after `adjust` has added to the one-time ids or bound the evidence's own.
    pub(super) async fn append_with(
        &self,
        entry: Entry,
        at: Timestamp,
        adjust: impl FnOnce(&mut Vec<OneTime>),
    ) -> Result<Appended, BrokerError> {
        let mut one_time = self.state().unspent.clone();
        adjust(&mut one_time);
        let request = Request {
            entry,
            one_time,
            at,
        };
        let appended = self.broker.ledger().append(request).await;
        let survives = matches!(
            &appended,
            // Nothing was recorded: the story decides again, or ends without another append.
            Ok(Appended::Stale | Appended::RetryTaken(_))
                // The entry itself was at fault, so the store can take another.
                | Err(AppendError::Poisoned(_) | AppendError::Unwritable(_))
        );
        if !survives {
            self.settle();
        }
        Ok(appended?)
    }

    /// Uses up the evidence of a call that only reads. Doing it again changes nothing.
    pub(super) async fn consume(&self) -> Result<(), BrokerError> {
        if self.state().unspent.is_empty() {
            return Ok(());
        }
        match self.append(Entry::Consume, self.broker.now()).await? {
            Appended::Replayed => Err(BrokerError::Replayed),
            _ => Ok(()),
        }
    }

    fn settle(&self) {
        *self.state() = Verified {
            unspent: Vec::new(),
            settled: true,
        };
    }

    /// Runs the call's story, and uses up what it verified and did not use up, before anybody
    /// learns of the result.
    pub(super) async fn run<T>(
        &self,
        story: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let result = story.await;
        let consumed = self.consume().await;
        // What cannot be consumed now is answered with 503, and not tried again by dropping.
        self.settle();
        match (result, consumed) {
            // A failure of ours stays one, whatever the consumption came to.
            (Err(error), _) if error.is_transient() => Err(error),
            (_, Err(error)) => Err(error),
            (result, Ok(())) => result,
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let one_time = std::mem::take(&mut self.state().unspent);
        if one_time.is_empty() {
            return;
        }
        let request = Request {
            entry: Entry::Consume,
            one_time,
            at: self.broker.now(),
        };
        // One poll puts the entry into the queue, and nobody has to wait for what becomes of it.
        if let Some(Err(error)) = self.broker.ledger().append(request).now_or_never() {
            tracing::warn!(%error, "the evidence of a call that broke off was not used up");
        }
    }
}
