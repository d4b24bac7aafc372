//! Follows the log in the store: its head, the leaves of other replicas, the cutoffs, the
//! activation.
//!
//! `open_head` and `open_activation` check MACs, `follow` and `catch_up` extend this replica's
//! tree, `learn_cutoffs` and the `take_…` functions update the cutoffs.
//!
//! The rule: only rows that a broker of this log wrote are accepted, and only a tree that continues
//! the one that this replica saw last. Failures: a wrong MAC and another tree are `Fatal`: the
//! ledger stops. A pool whose server has fewer leaves than the ledger's is `Unavailable`, and the
//! batch is tried again. `transaction` calls this module, under the lock except for `catch_up`;
//! `ledger::cutoffs` keeps the cutoffs.

use std::sync::Arc;

use super::Appender;
use super::failure::{Failure, failure};
use crate::domain::generation_digest::GenerationDigest;
use crate::ledger::containment::rewound;
use crate::ledger::cutoffs::Cutoffs;
use crate::merkle::{Edge, Hash};
use crate::store::StoreError;
use crate::store::append::MAX_HASHES;
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::SealedActivation;
use crate::store::heads::{Head, SealedHead};

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

    pub(super) fn take_cutoffs(&mut self, learned: Option<Cutoffs>, size: u64) {
        match learned {
            Some(cutoffs) => {
                self.cutoffs = cutoffs;
                self.show_cutoffs();
            }
            None => self.cutoffs.note_known_to(size),
        }
    }

    /// Takes over the cutoffs of this replica's own batch, once it is committed.
    pub(super) fn take_own_cutoffs(&mut self, own: Cutoffs) {
        if own.is_empty() {
            return;
        }
        self.cutoffs.merge(own);
        self.show_cutoffs();
    }

    fn show_cutoffs(&self) {
        self.shared.cutoffs.store(Arc::new(self.cutoffs.clone()));
    }
}
