//! Decisions and leaves, for those who may read them: auditors, and everybody their own.

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

/// Bytes of leaves and inputs in one page; one decision may be more.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How much later than it was decided a leaf may be committed: a request lives shorter.
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

/// Under which checkpoint a leaf is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under<'a> {
    /// This replica's newest.
    Newest,
    /// The oldest over it that a witness signed; the one of this name, if there is one.
    Witnessed(Option<&'a str>),
}

/// A leaf with the proof that it is under a signed checkpoint.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The leaf, with its body as far as it is kept.
    pub leaf: StoredLeaf,
    /// Leaves under the checkpoint.
    pub tree_size: u64,
    /// The proof.
    pub inclusion_proof: Vec<Hash>,
    /// The signed note, with what witnesses signed of it where that was asked for.
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

    /// A decision with its opened input, for readers of the whole log and for nobody else: a
    /// subject may read its own leaf, and never what was held against it.
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

    /// Forgets what somebody wrote: the purpose of a decision, the reason of a cutoff. The entry keeps
    /// its salted digest, so that every proof holds, and what was decided upon stays. Whoever may
    /// activate could delete all of it by a shorter retention, so this is that right. Forgetting it
    /// again changes nothing.
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
            "a text was forgotten"
        );
        // If this fails the sweeper comes to it.
        if !store.scrub().await? {
            warn!(
                index,
                "the store's log is being read, and keeps its bytes until the next pruning"
            );
        }
        Ok(())
    }

    /// Decisions with their opened inputs in the order of the log, from a place in it and not
    /// before a time: as many as one page holds, and from where to go on. An empty page is the end.
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
            // Leaves lie in the order of their commits; their own times, which were taken a moment
            // before, need not.
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
        // What is older than asked for is passed over, so that an empty page is the end.
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

    /// The first leaf that is not older than `at`, found by halving.
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

    /// Leaves under the newest head. What is behind it was not written by a broker of this log.
    async fn stored_size(&self) -> Result<u64, BrokerError> {
        let head = self.core.ledger().head().await?;
        Ok(head.map_or(0, |head| head.size))
    }

    /// A leaf of the log, its body held against its hash.
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
            error!(index, "a leaf's body does not fit its hash");
            return Err(BrokerError::FailClosed(format!(
                "the body of leaf {index} was changed: it does not fit its hash"
            )));
        }
        Ok(leaf)
    }

    /// A leaf, with its body as far as it is kept.
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

    /// Whether the caller may read the whole log.
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

    /// Whether a reader whose answer takes long may read on: no revocation blocks it meanwhile.
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
                // Another replica wrote it and this one has not looked since.
                let signed = signed.ok_or_else(|| {
                    BrokerError::FailClosed("this replica has not seen that leaf yet".into())
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

    /// The proof that one tree is the beginning of another.
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
        NoProof::Broken(error) => BrokerError::FailClosed(error.to_string()),
    }
}
