//! Receipts in answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::merkle::{Hash, Receipt};
use crate::wire::receipt::ReceiptBody;

impl From<Receipt> for ReceiptBody {
    fn from(receipt: Receipt) -> Self {
        Self {
            leaf: STANDARD.encode(&receipt.leaf),
            leaf_hash: receipt.leaf_hash.to_string(),
            index: receipt.index,
            tree_size: receipt.tree_size,
            inclusion_proof: texts(&receipt.inclusion_proof),
            checkpoint: receipt.checkpoint,
        }
    }
}

/// Hashes as answers write them.
pub(super) fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::leaf_hash;

    #[test]
    fn an_answer_has_the_receipt_that_the_verifier_reads() {
        let leaf = b"leaf".to_vec();
        let receipt = Receipt {
            leaf_hash: leaf_hash(&leaf),
            leaf,
            index: 4,
            tree_size: 6,
            inclusion_proof: vec![leaf_hash(b"one"), leaf_hash(b"two")],
            checkpoint: "note".into(),
        };
        let written = serde_json::to_string(&ReceiptBody::from(receipt.clone())).unwrap();
        assert_eq!(written, serde_json::to_string(&receipt).unwrap());
        assert_eq!(serde_json::from_str::<Receipt>(&written).unwrap(), receipt);
    }
}
