//! Receipts: a leaf, its inclusion proof, and the checkpoint that the log signed.
//!
//! [`Receipt::verify`] checks a [`Receipt`] with verifier keys only, and nothing else creates a
//! [`VerifiedReceipt`]. It shows that the log of the checkpoint committed to exactly these bytes at
//! this index. It does not show the time, beyond the order in the log, nor that the log shows the
//! same tree to all parties. To establish the latter, compare checkpoints.
//!
//! A receipt with a wrong hash, size, proof or signature is a [`VerifyError`]. After
//! [`Receipt::unsigned`] the caller must verify the checkpoint itself, for example with
//! [`super::trust_anchor`]. The content of the leaf is not read here: `domain::leaf` does, and the
//! caller compares its origin with the checkpoint's. The ledger makes receipts, and callers and the
//! CLI verify them.

use std::fmt;

use base64::engine::general_purpose::STANDARD;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::hash::{Hash, leaf_hash};
use super::note::{Note, VerifierKey};
use super::proof::{MAX_PROOF_HASHES, ProofError, verify_inclusion};
use super::tlog_proof::TlogProof;
use crate::domain::limits::MAX_LEAF_BYTES;

/// A receipt as served; unverified. Unknown JSON members are ignored, so that receipts of later
/// versions can still be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The leaf's bytes, as hashed; base64 in JSON.
    #[serde(with = "leaf_base64")]
    pub leaf: Vec<u8>,
    /// The hash of the leaf.
    pub leaf_hash: Hash,
    /// The leaf's index in the log.
    pub index: u64,
    /// Size of the proof's tree.
    pub tree_size: u64,
    /// The proof, from the leaf's sibling to the root's child.
    #[serde(deserialize_with = "bounded_proof")]
    pub inclusion_proof: Vec<Hash>,
    /// The signed checkpoint of that tree.
    pub checkpoint: String,
}

/// The reason why a receipt is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The leaf is longer than permitted.
    #[error("the leaf has {0} bytes, more than {MAX_LEAF_BYTES}")]
    LeafTooLong(usize),
    /// The proof has more hashes than permitted.
    #[error("the inclusion proof has {0} hashes, more than {MAX_PROOF_HASHES}")]
    ProofTooLong(usize),
    /// The hash of the leaf is not the stated one.
    #[error("the leaf's hash is {computed}, but the receipt states {stated}")]
    LeafHash {
        /// The hash in the receipt.
        stated: Hash,
        /// The hash of the receipt's leaf.
        computed: Hash,
    },
    /// The checkpoint is invalid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The sizes of the receipt and its checkpoint differ.
    #[error(
        "the receipt is for a tree of {receipt} leaves, its checkpoint for one of {checkpoint}"
    )]
    TreeSize {
        /// The size in the receipt.
        receipt: u64,
        /// The size in the checkpoint.
        checkpoint: u64,
    },
    /// The leaf is not in the checkpoint's tree at that index.
    #[error(transparent)]
    Inclusion(#[from] ProofError),
    /// The proof does not contain its leaf.
    #[error("the proof does not contain its leaf")]
    NoLeaf,
}

impl Receipt {
    /// Verifies the receipt completely. One of `keys` must belong to the log of its checkpoint.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<VerifiedReceipt, VerifyError> {
        let checkpoint = SignedCheckpoint::open(self.checkpoint.as_bytes(), keys)?;
        self.unsigned()?;
        Ok(VerifiedReceipt {
            leaf: self.leaf.clone(),
            leaf_hash: self.leaf_hash,
            index: self.index,
            checkpoint,
        })
    }

    /// Verifies the receipt except for the signatures of its checkpoint: the leaf is in the tree of
    /// this head. The caller must establish that the head is the log's.
    pub fn unsigned(&self) -> Result<Checkpoint, VerifyError> {
        if self.leaf.len() > MAX_LEAF_BYTES {
            return Err(VerifyError::LeafTooLong(self.leaf.len()));
        }
        if self.inclusion_proof.len() > MAX_PROOF_HASHES {
            return Err(VerifyError::ProofTooLong(self.inclusion_proof.len()));
        }
        let computed = leaf_hash(&self.leaf);
        if computed != self.leaf_hash {
            return Err(VerifyError::LeafHash {
                stated: self.leaf_hash,
                computed,
            });
        }
        let note = Note::parse(self.checkpoint.as_bytes()).map_err(CheckpointError::Note)?;
        let checkpoint: Checkpoint = note.unverified_text().parse()?;
        if checkpoint.size != self.tree_size {
            return Err(VerifyError::TreeSize {
                receipt: self.tree_size,
                checkpoint: checkpoint.size,
            });
        }
        verify_inclusion(
            self.index,
            checkpoint.size,
            &computed,
            &self.inclusion_proof,
            &checkpoint.root,
        )?;
        Ok(checkpoint)
    }

    /// The receipt as a `.tlog-proof`, with the leaf as its extra data.
    #[must_use]
    pub fn to_tlog_proof(&self) -> TlogProof {
        TlogProof {
            extra: Some(self.leaf.clone()),
            index: self.index,
            hashes: self.inclusion_proof.clone(),
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// The receipt in a `.tlog-proof` that contains its leaf. Takes the size of the tree from the
    /// checkpoint and computes the leaf's hash; [`verify`](Self::verify) then checks them.
    pub fn from_tlog_proof(proof: TlogProof) -> Result<Self, VerifyError> {
        let leaf = proof.extra.ok_or(VerifyError::NoLeaf)?;
        let note = Note::parse(proof.checkpoint.as_bytes()).map_err(CheckpointError::Note)?;
        let checkpoint: Checkpoint = note.unverified_text().parse()?;
        Ok(Self {
            leaf_hash: leaf_hash(&leaf),
            leaf,
            index: proof.index,
            tree_size: checkpoint.size,
            inclusion_proof: proof.hashes,
            checkpoint: proof.checkpoint,
        })
    }
}

/// A valid receipt. Only [`Receipt::verify`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    leaf: Vec<u8>,
    leaf_hash: Hash,
    index: u64,
    checkpoint: SignedCheckpoint,
}

impl VerifiedReceipt {
    /// The bytes of the leaf, to which the log committed. Their content is not verified: compare
    /// the leaf's origin with the checkpoint's.
    #[must_use]
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    /// The leaf's hash.
    #[must_use]
    pub fn leaf_hash(&self) -> &Hash {
        &self.leaf_hash
    }

    /// The leaf's index in the log.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The head of the log whose tree contains the leaf.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint.checkpoint()
    }

    /// The known keys that signed that head.
    #[must_use]
    pub fn signers(&self) -> &[VerifierKey] {
        self.checkpoint.signers()
    }
}

mod leaf_base64 {
    use base64::Engine as _;

    use super::{Deserialize, Deserializer, MAX_LEAF_BYTES, STANDARD, Serializer, de};

    pub(super) fn serialize<S: Serializer>(leaf: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(leaf))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let leaf = STANDARD
            .decode(text)
            .map_err(|_| de::Error::custom("the leaf is not standard base64"))?;
        if leaf.len() > MAX_LEAF_BYTES {
            return Err(de::Error::custom(format!(
                "the leaf has more than {MAX_LEAF_BYTES} bytes"
            )));
        }
        Ok(leaf)
    }
}

fn bounded_proof<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Hash>, D::Error> {
    struct Hashes;

    impl<'de> Visitor<'de> for Hashes {
        type Value = Vec<Hash>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_PROOF_HASHES} hashes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut hashes = Vec::new();
            while let Some(hash) = seq.next_element()? {
                if hashes.len() == MAX_PROOF_HASHES {
                    return Err(de::Error::invalid_length(MAX_PROOF_HASHES + 1, &self));
                }
                hashes.push(hash);
            }
            Ok(hashes)
        }
    }

    deserializer.deserialize_seq(Hashes)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::super::compact_range::{BatchProver, Edge};
    use super::super::note::NoteError;
    use super::super::testing::{TestLogKey, flip, leaves};
    use super::*;

    const ORIGIN: &str = "taskpass.example/log";

    fn log() -> TestLogKey {
        TestLogKey::new(ORIGIN, 1)
    }

    /// The receipt of the leaf at index 300 in a tree of 305.
    fn receipt() -> Receipt {
        let mut edge = Edge::empty();
        edge.append(&leaves(300));
        let leaf = br#"{"v":1}"#.to_vec();
        let mut batch = vec![leaf_hash(&leaf)];
        batch.extend(leaves(4));
        let prover = BatchProver::new(&edge, &batch);
        let checkpoint = Checkpoint::new(ORIGIN, prover.size(), prover.root()).unwrap();
        Receipt {
            leaf_hash: batch[0],
            leaf,
            index: 300,
            tree_size: 305,
            inclusion_proof: prover.inclusion(0).unwrap(),
            checkpoint: log().sign(&checkpoint),
        }
    }

    #[test]
    fn a_receipt_holds_and_survives_its_texts() {
        let receipt = receipt();
        let keys = [log().key];
        let verified = receipt.verify(&keys).unwrap();
        assert_eq!(verified.leaf(), receipt.leaf);
        assert_eq!(*verified.leaf_hash(), receipt.leaf_hash);
        assert_eq!(verified.index(), 300);
        assert_eq!(verified.checkpoint().origin, ORIGIN);
        assert_eq!(verified.checkpoint().size, 305);
        assert_eq!(verified.signers(), keys);

        let json = serde_json::to_value(&receipt).unwrap();
        let fields: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut expected = [
            "leaf",
            "leaf_hash",
            "index",
            "tree_size",
            "inclusion_proof",
            "checkpoint",
        ];
        expected.sort_unstable();
        let mut found = fields;
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(json["leaf"], "eyJ2IjoxfQ==");
        assert_eq!(json["leaf_hash"], receipt.leaf_hash.to_string());
        assert_eq!(serde_json::from_value::<Receipt>(json).unwrap(), receipt);

        let text = receipt.to_tlog_proof().to_string();
        let read = Receipt::from_tlog_proof(text.parse().unwrap()).unwrap();
        assert_eq!(read, receipt);
    }

    #[test]
    fn each_change_is_refused_for_what_it_is() {
        let good = receipt();
        let refused = |change: &dyn Fn(&mut Receipt)| {
            let mut receipt = good.clone();
            change(&mut receipt);
            receipt.verify(&[log().key]).unwrap_err()
        };
        assert!(matches!(
            refused(&|receipt| receipt.leaf.push(b' ')),
            VerifyError::LeafHash { .. }
        ));
        assert!(matches!(
            refused(&|receipt| receipt.leaf_hash = flip(receipt.leaf_hash, 3)),
            VerifyError::LeafHash { .. }
        ));
        // Another leaf with its own hash is a receipt for a leaf that is not in the log.
        assert_eq!(
            refused(&|receipt| {
                receipt.leaf = b"{}".to_vec();
                receipt.leaf_hash = leaf_hash(b"{}");
            }),
            VerifyError::Inclusion(ProofError::WrongRoot)
        );
        assert_eq!(
            refused(&|receipt| receipt.tree_size += 1),
            VerifyError::TreeSize {
                receipt: 306,
                checkpoint: 305
            }
        );
        assert_eq!(
            refused(&|receipt| receipt.index = 301),
            VerifyError::Inclusion(ProofError::WrongRoot)
        );
        assert_eq!(
            refused(&|receipt| receipt.index = 305),
            VerifyError::Inclusion(ProofError::IndexOutOfRange {
                index: 305,
                size: 305
            })
        );
        assert_eq!(
            refused(&|receipt| {
                receipt.inclusion_proof.pop();
            }),
            VerifyError::Inclusion(ProofError::TooShort)
        );
        assert_eq!(
            refused(&|receipt| receipt.inclusion_proof = leaves(65)),
            VerifyError::ProofTooLong(65)
        );
        assert_eq!(
            refused(&|receipt| receipt.leaf = vec![b' '; MAX_LEAF_BYTES + 1]),
            VerifyError::LeafTooLong(MAX_LEAF_BYTES + 1)
        );
        assert_eq!(
            refused(
                &|receipt| receipt.checkpoint = receipt.checkpoint.replace("\n305\n", "\n306\n")
            ),
            VerifyError::Checkpoint(CheckpointError::Note(NoteError::BadSignature(
                ORIGIN.to_owned()
            )))
        );
        let foreign = TestLogKey::new(ORIGIN, 2);
        assert_eq!(
            good.verify(&[foreign.key]),
            Err(VerifyError::Checkpoint(CheckpointError::Note(
                NoteError::NoKnownSigner
            )))
        );
        assert_eq!(
            Receipt::from_tlog_proof(TlogProof {
                extra: None,
                ..good.to_tlog_proof()
            }),
            Err(VerifyError::NoLeaf)
        );
    }

    #[test]
    fn json_that_is_too_large_or_malformed_is_not_a_receipt() {
        let json = serde_json::to_value(receipt()).unwrap();
        let with = |field: &str, value: serde_json::Value| {
            let mut json = json.clone();
            json[field] = value;
            serde_json::from_value::<Receipt>(json)
        };
        let leaf = |length: usize| STANDARD.encode(vec![0; length]).into();
        with("leaf", leaf(MAX_LEAF_BYTES)).unwrap();
        with("leaf", leaf(MAX_LEAF_BYTES + 1)).unwrap_err();
        with("leaf", "e30".into()).unwrap_err();
        with("leaf", "e30_".into()).unwrap_err();
        let proof = |count: usize| serde_json::to_value(leaves(count)).unwrap();
        with("inclusion_proof", proof(64)).unwrap();
        with("inclusion_proof", proof(65)).unwrap_err();
        with("inclusion_proof", "".into()).unwrap_err();
        with("leaf_hash", "AAAA".into()).unwrap_err();
        with("index", (-1).into()).unwrap_err();
        with("index", 1.5.into()).unwrap_err();
        with("index", "1".into()).unwrap_err();
        with("checkpoint", serde_json::Value::Null).unwrap_err();
        with("later", 1.into()).unwrap();
        let text = json.to_string();
        let twice = text.replacen('{', "{\"index\":1,", 1);
        serde_json::from_str::<Receipt>(&twice).unwrap_err();
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_verifies_as_something_else(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), text in any::<bool>(),
        ) {
            let good = receipt();
            let keys = [log().key];
            let written = if text {
                good.to_tlog_proof().to_string()
            } else {
                serde_json::to_string(&good).unwrap()
            };
            let mut bytes = written.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let changed = String::from_utf8_lossy(&bytes).into_owned();
            let read = if text {
                changed
                    .parse::<TlogProof>()
                    .ok()
                    .and_then(|proof| Receipt::from_tlog_proof(proof).ok())
            } else {
                serde_json::from_str::<Receipt>(&changed).ok()
            };
            if let Some(Ok(verified)) = read.map(|receipt| receipt.verify(&keys)) {
                prop_assert_eq!(verified, good.verify(&keys).unwrap());
            }
        }
    }
}
