//! Trust anchors of an auditor: pinned keys, and the checkpoints that they signed.
//!
//! [`Trust`] are the keys that an auditor obtained independently of the broker. [`Trust::open`]
//! turns a signed note into an [`Anchor`], and nothing else creates one. So every anchor was signed
//! by a pinned key of its log or cosigned by a pinned witness, and its origin is the name of a
//! pinned key.
//!
//! A note that is malformed, has an invalid signature of a pinned key, or none of them, is a
//! [`CheckpointError`]. [`verify_same_tree`] compares two heads of one log; a [`ProofError`] can
//! mean a forked log or wrong hashes ([`super::fork_check`] distinguishes them). The offline
//! verifier (`cli::ledger::verify`) calls this file. That a log shows the same tree to all parties
//! is not shown by one anchor.

use super::checkpoint::{Checkpoint, CheckpointError};
use super::hash::Hash;
use super::note::{Note, NoteError, VerifierKey};
use super::proof::{ProofError, verify_consistency};
use super::witness::{Cosignature, WitnessKey};

/// The keys that an auditor trusts. It obtained them independently of the audited broker.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Trust {
    /// The keys of logs. Only logs whose origin is a name of these keys are accepted.
    pub keys: Vec<VerifierKey>,
    pub witnesses: Vec<WitnessKey>,
}

/// A checkpoint that a pinned key of its log signed or a pinned witness cosigned. Only
/// [`Trust::open`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    checkpoint: Checkpoint,
    signers: Vec<VerifierKey>,
    cosignatures: Vec<Cosignature>,
}

impl Trust {
    /// Opens a signed checkpoint. A pinned key must have the checkpoint's origin as its name, and
    /// that key or a pinned witness must have signed it. No signature of a pinned key may be
    /// invalid. The signature of a witness suffices, because a witness still follows a log whose
    /// key was replaced.
    pub fn open(&self, note: &[u8]) -> Result<Anchor, CheckpointError> {
        let note = Note::parse(note)?;
        let checkpoint: Checkpoint = note.unverified_text().parse()?;
        let cosignatures = note.cosignatures(&self.witnesses)?;
        let signers: Vec<VerifierKey> = match note.verify(&self.keys) {
            Ok(verified) => verified.signers().to_vec(),
            Err(NoteError::NoKnownSigner) if !cosignatures.is_empty() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let own = |key: &VerifierKey| key.name() == checkpoint.origin;
        let pinned = self.keys.iter().any(own);
        if !pinned || (cosignatures.is_empty() && !signers.iter().any(own)) {
            return Err(CheckpointError::OriginNotSigned(checkpoint.origin));
        }
        Ok(Anchor {
            checkpoint,
            signers,
            cosignatures,
        })
    }
}

impl Anchor {
    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The pinned keys that signed it.
    #[must_use]
    pub fn signers(&self) -> &[VerifierKey] {
        &self.signers
    }

    /// The cosignatures of pinned witnesses.
    #[must_use]
    pub fn cosignatures(&self) -> &[Cosignature] {
        &self.cosignatures
    }
}

/// Verifies that two heads of one log belong to one tree, with the consistency `proof` from the
/// smaller to the larger.
pub fn verify_same_tree(
    one: &Checkpoint,
    other: &Checkpoint,
    proof: &[Hash],
) -> Result<(), ProofError> {
    let (from, to) = if one.size <= other.size {
        (one, other)
    } else {
        (other, one)
    };
    verify_consistency(from.size, to.size, proof, &from.root, &to.root)
}

#[cfg(test)]
mod tests {
    use super::super::note::sign_note;
    use super::super::testing::{
        TestLogKey, TestWitness, leaves, reference_consistency, reference_root,
    };
    use super::*;

    const ORIGIN: &str = "example.com/log";

    fn checkpoint(size: usize) -> Checkpoint {
        let root = reference_root(&leaves(size));
        Checkpoint::new(ORIGIN, size as u64, root).unwrap()
    }

    fn note(text: &str, lines: &[String]) -> Vec<u8> {
        sign_note(text, lines).unwrap().into_bytes()
    }

    #[test]
    fn a_pinned_key_or_a_pinned_witness_vouches_and_nobody_else() {
        let (pinned, retired) = (TestLogKey::new(ORIGIN, 1), TestLogKey::new(ORIGIN, 2));
        let (witness, stranger) = (
            TestWitness::new("w.example", 3),
            TestWitness::new("v.example", 4),
        );
        let trust = Trust {
            keys: vec![pinned.key.clone()],
            witnesses: vec![witness.key.clone()],
        };
        let text = checkpoint(5).text();
        let open = |lines: &[String]| trust.open(&note(&text, lines));
        let by_key = open(&[retired.line(&text), pinned.line(&text)]).unwrap();
        assert_eq!(
            (by_key.signers().len(), by_key.cosignatures().len()),
            (1, 0)
        );
        let by_witness = open(&[retired.line(&text), witness.line(9, &text)]).unwrap();
        assert_eq!(by_witness.cosignatures()[0].time, 9);
        assert!(by_witness.signers().is_empty());
        for nobody in [
            vec![retired.line(&text)],
            vec![retired.line(&text), stranger.line(9, &text)],
        ] {
            assert_eq!(
                open(&nobody),
                Err(CheckpointError::Note(NoteError::NoKnownSigner))
            );
        }
        let wrong = witness.line(9, &checkpoint(6).text());
        assert!(
            open(&[pinned.line(&text), wrong]).is_err(),
            "one invalid signature refuses the note"
        );
    }

    #[test]
    fn a_witness_does_not_vouch_for_a_log_that_nobody_pinned() {
        let witness = TestWitness::new("w.example", 3);
        let trust = Trust {
            keys: vec![TestLogKey::new("example.com/another", 1).key],
            witnesses: vec![witness.key.clone()],
        };
        let text = checkpoint(5).text();
        assert_eq!(
            trust.open(&note(&text, &[witness.line(9, &text)])),
            Err(CheckpointError::OriginNotSigned(ORIGIN.into()))
        );
    }

    #[test]
    fn two_heads_are_of_one_tree_whichever_comes_first() {
        let tree = leaves(9);
        let proof = reference_consistency(4, &tree);
        let (four, nine) = (checkpoint(4), checkpoint(9));
        assert_eq!(verify_same_tree(&four, &nine, &proof), Ok(()));
        assert_eq!(verify_same_tree(&nine, &four, &proof), Ok(()));
        assert_eq!(verify_same_tree(&four, &four, &[]), Ok(()));
        let mut forked = four.clone();
        forked.root = nine.root;
        assert!(verify_same_tree(&forked, &nine, &proof).is_err());
        assert!(verify_same_tree(&forked, &four, &[]).is_err());
    }
}
