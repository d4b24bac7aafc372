//! Reads decisions and leaves, for callers that may read them: auditors read all, and workloads
//! their own. It also deletes single texts that a person or program wrote.
//!
//! Single reads: `decision`, `decision_record`, `ledger_entry`. Pages: `decision_records`. Proofs:
//! `proven`, `inclusion`, `consistency`. Deletion: `forget_purpose`. The rule: a body whose hash
//! does not match its leaf is never given out, and no leaf behind the newest verified head is read
//! as one of this log.
//!
//! Failures: an absent leaf and a leaf that the caller may not read are both `NotFound`. A changed
//! body is `FailClosed`; so is a leaf that no checkpoint of this replica covers yet. A pruned leaf
//! has no body: `decision` answers `NotFound`, `ledger_entry` returns it without a body.
//! `http::ledger` and `http::decisions` call this module. `proven`, `inclusion` and `consistency`
//! authorize no caller: call `check_ledger_reader` or `ledger_entry` first. `ledger::proofs`
//! computes the proofs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tracing::{error, info, instrument, warn};
use uuid::Uuid;

use super::Administration;
use crate::attest::Evidence;
use crate::broker::access::{Reader, Unverified};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::limits::MAX_DECISIONS_PAGE;
use crate::domain::record::Record;
use crate::domain::workload::Identity;
use crate::ids::{CutoffId, DecisionId};
use crate::ledger::entry::RequestCaller;
use crate::ledger::proofs::{self, NoProof};
use crate::ledger::witnesses::cosigned_note;
use crate::merkle::{Hash, Receipt, leaf_hash};
use crate::policy::AdminAction;
use crate::store::leaves::{DecisionRow, StoredLeaf};

/// The maximum number of bytes of leaves and inputs in one page. A single decision may exceed it.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The maximum number of seconds between a decision and the commit of its leaf. It exceeds the time
/// limit of a request.
const DISORDER_SECONDS: u64 = 120;

fn record(row: DecisionRow) -> Record {
    Record {
        index: row.index,
        leaf_hash: row.hash.to_string(),
        leaf: row.body.map(|body| STANDARD.encode(body)),
        salt: row
            .input
            .as_ref()
            .map(|opening| STANDARD.encode(opening.salt)),
        input: row.input.map(|opening| STANDARD.encode(opening.bytes)),
    }
}

/// A caller that may read the whole log.
#[derive(Clone, Debug)]
pub struct LedgerReader(Option<RequestCaller>);

/// The checkpoint for the proof of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under<'a> {
    /// The newest checkpoint of this replica.
    Newest,
    /// The oldest checkpoint over the leaf that a witness cosigned. With a name, that witness.
    Witnessed(Option<&'a str>),
}

/// A leaf with the proof that it is under a signed checkpoint.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The leaf. Its body is `None` if it was pruned.
    pub leaf: StoredLeaf,
    /// The number of leaves under the checkpoint.
    pub tree_size: u64,
    /// The hashes from the leaf to the root of that tree.
    pub inclusion_proof: Vec<Hash>,
    /// The signed note, with the cosignatures of witnesses if they were requested.
    pub checkpoint: String,
}

impl Administration {
    /// A decision's leaf with a proof that it is under a signed checkpoint.
    pub async fn decision(
        &self,
        evidence: &Evidence,
        id: DecisionId,
        under: Under<'_>,
    ) -> Result<Receipt, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.decision_by(unverified, id, under))
            .await
    }

    async fn decision_by(
        &self,
        unverified: Unverified<'_>,
        id: DecisionId,
        under: Under<'_>,
    ) -> Result<Receipt, BrokerError> {
        let not_found = || BrokerError::NotFound("decision");
        let reader = unverified.read().await?;
        let index = self
            .core
            .store()
            .decision_index(id)
            .await?
            .ok_or_else(not_found)?;
        let leaf = self.leaf(index).await?.ok_or_else(not_found)?;
        let own = leaf.subject.as_deref() == reader.identity().map(Identity::as_str)
            && leaf.subject.is_some();
        if !own && !reader.may(AdminAction::ReadLedger)? {
            return Err(not_found());
        }
        let proven = self.proven(leaf, under).await?;
        let leaf = proven.leaf;
        Ok(Receipt {
            leaf: leaf
                .body
                .ok_or(BrokerError::NotFound("body; it was pruned"))?,
            leaf_hash: leaf.hash,
            index: leaf.index,
            tree_size: proven.tree_size,
            inclusion_proof: proven.inclusion_proof,
            checkpoint: proven.checkpoint,
        })
    }

    /// A decision with its opened input, only for readers of the whole log. A workload may read the
    /// leaf of its own decision, but not the input, which contains facts about it.
    pub async fn decision_record(
        &self,
        evidence: &Evidence,
        id: DecisionId,
    ) -> Result<Record, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.decision_record_by(unverified, id))
            .await
    }

    async fn decision_record_by(
        &self,
        unverified: Unverified<'_>,
        id: DecisionId,
    ) -> Result<Record, BrokerError> {
        let not_found = || BrokerError::NotFound("decision");
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ReadLedger)? {
            return Err(not_found());
        }
        let index = self.core.store().decision_index(id).await?;
        let index = index.ok_or_else(not_found)?;
        let size = self.stored_size().await?;
        let mut rows = reader.decisions(index, size, 1).await?;
        let row = rows.pop().filter(|row| row.index == index);
        row.map(record).ok_or_else(not_found)
    }

    /// Deletes the text that a person or program wrote: the purpose of a decision or the reason of
    /// a cutoff. The leaf keeps the salted digest of the text, so all proofs stay valid, and the
    /// input of the decision is kept. This requires the right to activate generations, because an
    /// admin with that right could also delete such texts by a shorter retention. Changes nothing
    /// if the text was deleted already.
    #[instrument(skip_all)]
    pub async fn forget_purpose(&self, evidence: &Evidence, id: Uuid) -> Result<(), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.forget_purpose_by(unverified, id))
            .await
    }

    async fn forget_purpose_by(
        &self,
        unverified: Unverified<'_>,
        id: Uuid,
    ) -> Result<(), BrokerError> {
        let reader = unverified.read_as(AdminAction::ActivateGeneration).await?;
        let store = self.core.store();
        let index = if let Some(index) = store.decision_index(DecisionId::from(id)).await? {
            index
        } else {
            let cutoff = store.cutoff(CutoffId::from(id)).await?;
            let cutoff = cutoff.ok_or(BrokerError::NotFound("decision"))?;
            cutoff.index
        };
        let forgotten = store.forget_purpose(index).await?;
        info!(
            index,
            forgotten,
            by = reader.caller().name(),
            "a text was deleted"
        );
        // If this fails, the sweeper does it later.
        if !store.scrub().await? {
            warn!(
                index,
                "the database still has the deleted text in its journal, which is in use; the \
                 sweeper removes it later"
            );
        }
        Ok(())
    }

    /// One page of decisions with their opened inputs, in the order of the log, from the index
    /// `from` and not before the time `since`. An empty page is the end.
    pub async fn decision_records(
        &self,
        evidence: &Evidence,
        from: u64,
        since: Option<Timestamp>,
        limit: u32,
    ) -> Result<Vec<Record>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.decision_records_by(unverified, from, since, limit))
            .await
    }

    async fn decision_records_by(
        &self,
        unverified: Unverified<'_>,
        from: u64,
        since: Option<Timestamp>,
        limit: u32,
    ) -> Result<Vec<Record>, BrokerError> {
        let reader = self.ledger_reader(unverified).await?;
        let from = match since {
            // Leaves are in the order of their commits. The time in a leaf is earlier than its
            // commit, so these times may be out of order.
            Some(since) => from.max(
                self.first_leaf_at(since.minus_seconds(DISORDER_SECONDS))
                    .await?,
            ),
            None => from,
        };
        let limit = limit.clamp(1, MAX_DECISIONS_PAGE);
        let size = self.stored_size().await?;
        let mut page = Vec::new();
        let (mut next, mut bytes) = (from, 0_usize);
        // Skip decisions before `since` within this call, so that only an empty page is the end.
        while page.is_empty() {
            let rows = reader.decisions(next, size, limit).await?;
            let Some(last) = rows.last() else {
                break;
            };
            next = last.index + 1;
            for row in rows {
                if since.is_some_and(|since| row.at < since) {
                    continue;
                }
                bytes += row.body.as_ref().map_or(0, Vec::len);
                bytes += row.input.as_ref().map_or(0, |opening| opening.bytes.len());
                if bytes > MAX_PAGE_BYTES && !page.is_empty() {
                    break;
                }
                page.push(record(row));
            }
        }
        Ok(page)
    }

    /// The index of the first leaf that is not older than `at`, by binary search.
    async fn first_leaf_at(&self, at: Timestamp) -> Result<u64, BrokerError> {
        let (mut low, mut high) = (0, self.core.ledger().basis());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.core.store().leaf(middle).await? {
                Some(leaf) if leaf.at < at => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The number of leaves under the newest head. No broker of this log wrote the leaves behind
    /// it.
    async fn stored_size(&self) -> Result<u64, BrokerError> {
        let head = self.core.ledger().head().await?;
        Ok(head.map_or(0, |head| head.size))
    }

    /// A leaf of the log. Fails if its body does not match its hash.
    async fn leaf(&self, index: u64) -> Result<Option<StoredLeaf>, BrokerError> {
        if index >= self.core.ledger().basis() && index >= self.stored_size().await? {
            return Ok(None);
        }
        let leaf = self.core.store().leaf(index).await?;
        let changed = |leaf: &StoredLeaf| {
            let body = leaf.body.as_ref();
            body.is_some_and(|body| leaf_hash(body) != leaf.hash)
        };
        if leaf.as_ref().is_some_and(changed) {
            error!(index, "the body of a leaf does not match its hash");
            return Err(BrokerError::store(format!(
                "the body of leaf {index} was changed: it does not match its hash"
            )));
        }
        Ok(leaf)
    }

    /// A leaf, for its subject or a reader of the log. Its body is `None` if it was pruned.
    pub async fn ledger_entry(
        &self,
        evidence: &Evidence,
        index: u64,
    ) -> Result<StoredLeaf, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.ledger_entry_by(unverified, index))
            .await
    }

    async fn ledger_entry_by(
        &self,
        unverified: Unverified<'_>,
        index: u64,
    ) -> Result<StoredLeaf, BrokerError> {
        let not_found = || BrokerError::NotFound("ledger entry");
        let reader = unverified.read().await?;
        let leaf = self.leaf(index).await?.ok_or_else(not_found)?;
        let own = leaf.subject.is_some()
            && leaf.subject.as_deref() == reader.identity().map(Identity::as_str);
        if !own && !reader.may(AdminAction::ReadLedger)? {
            return Err(not_found());
        }
        Ok(leaf)
    }

    /// Fails unless the caller may read the whole log.
    pub async fn check_ledger_reader(
        &self,
        evidence: &Evidence,
    ) -> Result<LedgerReader, BrokerError> {
        let call = self.access.call(evidence);
        call.run(async |unverified| {
            let reader = self.ledger_reader(unverified).await?;
            Ok(LedgerReader(reader.as_matched()))
        })
        .await
    }

    async fn ledger_reader<'c>(
        &self,
        unverified: Unverified<'c>,
    ) -> Result<Reader<'c>, BrokerError> {
        let reader = unverified.read().await?;
        if reader.may(AdminAction::ReadLedger)? {
            return Ok(reader);
        }
        Err(BrokerError::NotFound("ledger"))
    }

    /// Fails if a revocation has blocked a reader whose answer takes long.
    pub async fn check_still_reads(&self, reader: &LedgerReader) -> Result<(), BrokerError> {
        match &reader.0 {
            Some(by) => self.access.check_not_blocked(by).await,
            None => Ok(()),
        }
    }

    /// Proves that a leaf is under a signed checkpoint.
    pub async fn proven(&self, leaf: StoredLeaf, under: Under<'_>) -> Result<Proven, BrokerError> {
        let (tree_size, checkpoint) = match under {
            Under::Newest => {
                let signed = self.core.ledger().checkpoints().borrow().clone();
                let signed = signed.filter(|signed| signed.head.size > leaf.index);
                // Another replica wrote the leaf, and this one has not read the head since.
                let signed = signed.ok_or_else(|| {
                    BrokerError::ledger(
                        "this replica has no checkpoint over that leaf yet; try again",
                    )
                })?;
                (signed.head.size, signed.checkpoint.to_string())
            }
            Under::Witnessed(witness) => {
                let rows = self.core.store().cosigned_over(leaf.index, witness).await?;
                let none = BrokerError::NotFound("checkpoint over that leaf that a witness signed");
                cosigned_note(&rows).ok_or(none)?
            }
        };
        Ok(Proven {
            inclusion_proof: self.inclusion(leaf.index, tree_size).await?,
            leaf,
            tree_size,
            checkpoint,
        })
    }

    /// The proof that a leaf is in the tree of `size` leaves.
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, BrokerError> {
        let stored = self.stored_size().await?;
        proofs::inclusion(self.core.store(), index, size, stored)
            .await
            .map_err(no_proof)
    }

    /// The proof that the tree of `from` leaves is a prefix of the tree of `to` leaves.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>, BrokerError> {
        let stored = self.stored_size().await?;
        proofs::consistency(self.core.store(), from, to, stored)
            .await
            .map_err(no_proof)
    }
}

fn no_proof(error: NoProof) -> BrokerError {
    match error {
        NoProof::OutOfRange => BrokerError::NotFound("tree or leaf"),
        NoProof::Store(error) => error.into(),
        NoProof::Broken(error) => BrokerError::ledger(error.to_string()),
    }
}
