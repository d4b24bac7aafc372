//! Follows the log in the store: its head, the leaves of other replicas, the cutoffs, the
//! activation.
//!
//! `open_head` and `open_activation` check MACs, `follow` and `catch_up` extend this replica's
//! tree, `load_cutoffs`, `learn_cutoffs` and the `take_…` functions update the cutoffs.
//!
//! The rule: only rows that a broker of this log wrote are accepted, and only a tree that continues
//! the one that this replica saw last. Failures: a wrong MAC and another tree are `Fatal`: the
//! ledger stops. A pool whose server has fewer leaves than the ledger's is `Unavailable`, and the
//! batch is tried again. `transaction` calls this module, under the lock except for `catch_up`
//! and `load_cutoffs`; `ledger::cutoffs` keeps the cutoffs.

use std::sync::Arc;

use super::Appender;
use super::failure::{Failure, failure, unanswered};
use crate::clock::Timestamp;
use crate::domain::cutoff::Cutoff;
use crate::domain::generation_digest::GenerationDigest;
use crate::ledger::containment::rewound;
use crate::ledger::cutoffs::{Cutoffs, MARGIN_SECONDS};
use crate::merkle::{Edge, Hash};
use crate::store::StoreError;
use crate::store::append::MAX_HASHES;
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::SealedActivation;
use crate::store::heads::{Head, SealedHead};

/// How many cutoffs one statement loads.
const LOADED_AT_ONCE: u32 = 1_000;

/// The cutoffs of this replica with the changes that a batch read.
pub(super) struct LearnedCutoffs {
    pub(super) cutoffs: Cutoffs,
    /// Whether the acceptance of a time is among the changes.
    pub(super) accepts_time: bool,
}

impl Appender {
    /// The head of a row, if a broker of this log wrote the row.
    pub(super) fn open_head(&self, sealed: Option<&SealedHead>) -> Result<Option<Head>, Failure> {
        let head = sealed.map(|sealed| self.heads.open(sealed)).transpose();
        head.map_err(|why| Failure::Fatal(why.to_string()))
    }

    /// The active generation, if a broker of this log activated it.
    pub(super) fn open_activation(
        &self,
        sealed: Option<&SealedActivation>,
    ) -> Result<Option<GenerationDigest>, Failure> {
        let open = |sealed: &SealedActivation| {
            sealed.open(&self.parts.mac).map_err(|why| {
                Failure::Fatal(format!(
                    "the table activation: the activation of {} by leaf {} was not written by a \
                     broker of this log: {why}; nothing is issued; find out who wrote it",
                    sealed.claimed(),
                    sealed.index()
                ))
            })
        };
        sealed.map(open).transpose()
    }

    /// The edge of the store's tree, if that tree continues this replica's tree.
    pub(super) fn follow(&self, head: Option<Head>, hashes: &[Hash]) -> Result<Edge, Failure> {
        let mut edge = self.edge.clone();
        drop(edge.append(hashes));
        let empty = Head {
            size: 0,
            root: Edge::empty().root(),
        };
        self.follow_to(edge, head.unwrap_or(empty))
    }

    /// The edge after the leaves were read, if it has the size and root of the head.
    fn follow_to(&self, edge: Edge, head: Head) -> Result<Edge, Failure> {
        if edge.size() == head.size && edge.root() == head.root {
            return Ok(edge);
        }
        let ours = Head {
            size: self.edge.size(),
            root: self.edge.root(),
        };
        Err(Failure::Fatal(rewound(ours, head)))
    }

    /// Reads, outside the lock, the leaves of other replicas up to a head.
    pub(super) async fn catch_up(&mut self, head: Head) -> Result<(), Failure> {
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

    /// This replica's cutoffs with the changes applied; `None` if nothing changed. The caller takes
    /// them over once the transaction that read them is acknowledged.
    pub(super) fn learn_cutoffs(
        &self,
        changed: Vec<SealedCutoff>,
    ) -> Result<Option<LearnedCutoffs>, Failure> {
        if changed.is_empty() {
            return Ok(None);
        }
        let mut cutoffs = Cutoffs::clone(&self.cutoffs);
        let learned = cutoffs.learn(changed, &self.parts.mac);
        let accepts_time = learned.map_err(|forged| Failure::Fatal(forged.to_string()))?;
        Ok(Some(LearnedCutoffs {
            cutoffs,
            accepts_time,
        }))
    }

    /// Takes over cutoffs that were read under the lock, with the changes up to `size`.
    pub(super) fn take_cutoffs(&mut self, learned: Option<LearnedCutoffs>, size: u64) {
        let known_to = self.cutoffs_known_to.unwrap_or_default();
        self.cutoffs_known_to = Some(known_to.max(size));
        if let Some(mut learned) = learned {
            learned.cutoffs.forget(self.passed());
            self.cutoffs = Arc::new(learned.cutoffs);
            self.reload_if(learned.accepts_time);
            self.show_cutoffs();
        }
    }

    /// Reads, outside the lock, the cutoffs that may block, and the accepted times. The batches
    /// read the changes since.
    pub(super) async fn load_cutoffs(&mut self) -> Result<(), Failure> {
        // The pool shows at least this many leaves.
        let size = self.edge.size();
        let store = &self.parts.store;
        let passed = self.passed().minus_seconds(MARGIN_SECONDS);
        let mut blocks: Vec<Cutoff> = Vec::new();
        loop {
            let after = blocks.last().map(|cutoff| cutoff.index);
            let page = store.cutoffs_that_may_block(passed, after, LOADED_AT_ONCE);
            let page = page.await.map_err(unanswered)?;
            let is_full = page.len() >= LOADED_AT_ONCE as usize;
            blocks.extend(page);
            if !is_full {
                break;
            }
        }
        let accepted = store.accepted_times().await.map_err(unanswered)?;
        Arc::make_mut(&mut self.cutoffs).load(blocks, accepted);
        self.cutoffs_known_to = Some(size);
        self.show_cutoffs();
        Ok(())
    }

    /// A time that has passed by the clock and by the log. A block that ended before it by more
    /// than a day can be forgotten.
    fn passed(&self) -> Timestamp {
        let clock = &self.shared.clock;
        let reading = clock.judge();
        match (reading.doubt, clock.newest()) {
            (None, Some(newest)) => newest.min(reading.now),
            (Some(_), _) | (None, None) => Timestamp::EPOCH,
        }
    }

    /// After the acceptance of an earlier time, blocks that had ended by the fast clock block
    /// again. The cutoffs are loaded before another batch is settled.
    fn reload_if(&mut self, accepts_time: bool) {
        if accepts_time {
            self.cutoffs_known_to = None;
        }
    }

    /// Takes over the cutoffs of this replica's own batch, once it is committed and the log has
    /// `size` leaves. All leaves since the batch read its changes are its own, so every change of a
    /// cutoff up to this size is known.
    pub(super) fn take_own_cutoffs(&mut self, own: Cutoffs, size: u64) {
        self.cutoffs_known_to = self.cutoffs_known_to.map(|known_to| known_to.max(size));
        if own.is_empty() {
            return;
        }
        let passed = self.passed();
        let accepts_time = own.newest_acceptance().is_some();
        let cutoffs = Arc::make_mut(&mut self.cutoffs);
        cutoffs.merge(own);
        cutoffs.forget(passed);
        self.reload_if(accepts_time);
        self.show_cutoffs();
    }

    fn show_cutoffs(&self) {
        self.shared.cutoffs.store(Arc::clone(&self.cutoffs));
    }
}
