//! Decisions and leaves, for those who may read them: auditors, and everybody their own.

use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::ids::DecisionId;
use crate::ledger::proofs::{self, NoProof};
use crate::merkle::{Hash, Receipt};
use crate::policy::AdminAction;
use crate::store::leaves::StoredLeaf;

impl Broker {
    /// A decision's leaf with a proof in the newest signed tree.
    pub async fn decision(
        &self,
        evidence: &Evidence,
        id: DecisionId,
    ) -> Result<Receipt, BrokerError> {
        let not_found = || BrokerError::NotFound("decision");
        let caller = self.caller(evidence).await?;
        self.consume(caller.one_time.clone(), self.now()).await?;
        let index = self
            .store()
            .decision_index(id)
            .await?
            .ok_or_else(not_found)?;
        let leaf = self.store().leaf(index).await?.ok_or_else(not_found)?;
        let own = leaf.subject.as_deref() == caller.identity().map(|own| own.as_str())
            && leaf.subject.is_some();
        if !own && !self.may(&caller, AdminAction::ReadLedger)? {
            return Err(not_found());
        }
        self.receipt(leaf).await
    }

    /// A leaf, with its body as far as it is kept.
    pub async fn ledger_entry(
        &self,
        evidence: &Evidence,
        index: u64,
    ) -> Result<StoredLeaf, BrokerError> {
        let not_found = || BrokerError::NotFound("ledger entry");
        let caller = self.caller(evidence).await?;
        self.consume(caller.one_time.clone(), self.now()).await?;
        let leaf = self.store().leaf(index).await?.ok_or_else(not_found)?;
        let own = leaf.subject.is_some()
            && leaf.subject.as_deref() == caller.identity().map(|own| own.as_str());
        if !own && !self.may(&caller, AdminAction::ReadLedger)? {
            return Err(not_found());
        }
        Ok(leaf)
    }

    /// Whether the caller may read the whole log.
    pub async fn check_ledger_reader(&self, evidence: &Evidence) -> Result<(), BrokerError> {
        let caller = self.caller(evidence).await?;
        self.consume(caller.one_time.clone(), self.now()).await?;
        if self.may(&caller, AdminAction::ReadLedger)? {
            return Ok(());
        }
        Err(BrokerError::NotFound("ledger"))
    }

    async fn receipt(&self, leaf: StoredLeaf) -> Result<Receipt, BrokerError> {
        let signed = self.ledger().checkpoints().borrow().clone();
        let signed = signed.filter(|signed| signed.head.size > leaf.index);
        // Another replica wrote it and this one has not looked since.
        let signed = signed.ok_or_else(|| {
            BrokerError::FailClosed("this replica has not seen that leaf yet".into())
        })?;
        let size = signed.head.size;
        let proof = self.inclusion(leaf.index, size).await?;
        Ok(Receipt {
            leaf: leaf
                .body
                .ok_or(BrokerError::NotFound("body; it was pruned"))?,
            leaf_hash: leaf.hash,
            index: leaf.index,
            tree_size: size,
            inclusion_proof: proof,
            checkpoint: signed.checkpoint.to_string(),
        })
    }

    /// The proof that a leaf is in the tree of `size` leaves.
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, BrokerError> {
        proofs::inclusion(self.store(), index, size)
            .await
            .map_err(no_proof)
    }

    /// The proof that one tree is the beginning of another.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>, BrokerError> {
        proofs::consistency(self.store(), from, to)
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
