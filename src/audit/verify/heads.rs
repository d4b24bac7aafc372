//! The log's heads that an auditor knows in addition to the file's own, the proofs that join them
//! into one tree, and the times at which they were seen.
//!
//! A receipt's own head is accepted if a pinned key or witness signed it, or if a head that one of
//! them signed is shown to continue it: in this way heads signed by a retired key still hold. That
//! the receipt's head continues a signed head proves nothing about the leaves behind that head. A
//! head that a witness or a publisher saw at a certain time proves that every leaf under it was
//! logged by then. A witness's time is a whole second; the cosignature was made within it.
//!
//! Nothing returns an error: a checkpoint that was given and is not trusted, and each contradiction
//! between heads, is reported to the [`Verification`]. `super::input_file` and `super::whole_log`
//! call this file; `merkle` verifies notes and proofs.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::verification::{Claim, Verification};
use crate::clock::Timestamp;
use crate::merkle::{
    Anchor, Checkpoint, CheckpointError, Hash, MAX_PROOF_HASHES, NoteError, Trust, VerifierKey,
    verify_same_tree,
};

/// How many seconds the clock of an observer may be behind the log's clock before one of them is
/// reported as wrong. A sighting before the decision's time proves nothing about the use in any
/// case.
const MAX_SKEW_SECONDS: u64 = 300;
/// A witness's time is a whole second, and the cosignature was made some time within it.
const COSIGNED_WITHIN_SECONDS: u64 = 1;

/// A consistency proof, in the form of `GET /v1/ledger/consistency`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Consistency {
    pub(super) from: u64,
    pub(super) to: u64,
    #[serde(rename = "consistency_proof")]
    pub(super) hashes: Vec<Hash>,
}

/// A checkpoint that was given in addition to the file's own.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Its name in messages.
    pub(crate) name: String,
    pub(crate) note: Vec<u8>,
    /// The time at which it was public, by the clock of the person who kept it.
    pub(crate) published: Option<Timestamp>,
}

/// An observation of a head at a certain time.
#[derive(Clone, Debug)]
struct Sighting {
    head: Checkpoint,
    /// The latest possible time of the observation.
    at: Timestamp,
    by: String,
}

pub(super) struct Heads {
    anchors: Vec<Anchor>,
    proofs: Vec<Consistency>,
    /// Roots of a whole log at certain sizes, computed while it was read.
    roots: BTreeMap<u64, Hash>,
    sightings: Vec<Sighting>,
}

impl Heads {
    /// Verifies the given checkpoints. One without a trusted signature is a problem, because the
    /// user named it as trusted.
    pub(super) fn open(
        verdict: &mut Verification,
        trust: &Trust,
        given: &[Given],
        proofs: &[Consistency],
    ) -> Self {
        let mut heads = Self {
            anchors: Vec::new(),
            proofs: Vec::new(),
            roots: BTreeMap::new(),
            sightings: Vec::new(),
        };
        for proof in proofs {
            if proof.hashes.len() > MAX_PROOF_HASHES {
                verdict.fail(
                    Claim::Logged,
                    format!("a consistency proof has more than {MAX_PROOF_HASHES} hashes"),
                );
            } else {
                heads.proofs.push(proof.clone());
            }
        }
        for given in given {
            match trust.open(&given.note) {
                Ok(anchor) => heads.add(anchor, given),
                Err(error) => verdict.fail(Claim::Logged, format!("{}: {error}", given.name)),
            }
        }
        heads
    }

    fn add(&mut self, anchor: Anchor, given: &Given) {
        self.sight(&anchor);
        if let Some(at) = given.published {
            self.sightings.push(Sighting {
                head: anchor.checkpoint().clone(),
                at,
                by: format!("the clock of the keeper of {}", given.name),
            });
        }
        self.anchors.push(anchor);
    }

    fn sight(&mut self, anchor: &Anchor) {
        for cosignature in anchor.cosignatures() {
            let seconds = i64::try_from(cosignature.time).unwrap_or(i64::MAX);
            self.sightings.push(Sighting {
                head: anchor.checkpoint().clone(),
                at: Timestamp::from_seconds(seconds).plus_seconds(COSIGNED_WITHIN_SECONDS),
                by: format!("the clock of the witness {}", cosignature.witness.name()),
            });
        }
    }

    /// The sizes at which a whole log's root must be computed.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u64> {
        self.anchors.iter().map(|anchor| anchor.checkpoint().size)
    }

    /// The size of the largest tree of this log with a trusted signature.
    pub(super) fn largest(&self, origin: &str) -> u64 {
        let own = self.anchors.iter().map(Anchor::checkpoint);
        let own = own.filter(|head| head.origin == origin);
        own.map(|head| head.size).max().unwrap_or(0)
    }

    /// Records the root of a whole log at this size.
    pub(super) fn learn(&mut self, size: u64, root: Hash) {
        self.roots.insert(size, root);
    }

    /// Whether two heads belong to one tree; `None` if no proof shows it.
    fn joined(&self, one: &Checkpoint, other: &Checkpoint) -> Option<Result<(), String>> {
        if one.size == other.size {
            return Some(if one.root == other.root {
                Ok(())
            } else {
                Err(format!("two different trees of {} leaves", one.size))
            });
        }
        let read = |head: &Checkpoint| self.roots.get(&head.size).map(|root| *root == head.root);
        if let (Some(one), Some(other)) = (read(one), read(other)) {
            return Some(if one && other {
                Ok(())
            } else {
                Err("the log's own entries do not lead to one of the heads".into())
            });
        }
        let (from, to) = (one.size.min(other.size), one.size.max(other.size));
        let proof = self
            .proofs
            .iter()
            .find(|proof| (proof.from, proof.to) == (from, to))?;
        Some(
            verify_same_tree(one, other, &proof.hashes)
                .map_err(|error| format!("from {from} to {to}: {error}")),
        )
    }

    /// Describes the trusted signature on a head, direct or through another head. Reports
    /// contradictions.
    pub(super) fn vouched(
        &mut self,
        verdict: &mut Verification,
        trust: &Trust,
        head: &Checkpoint,
        note: &[u8],
    ) -> Option<String> {
        let own = trust.open(note);
        if let Ok(anchor) = &own {
            self.sight(anchor);
        }
        let mut through = None;
        for anchor in &self.anchors {
            let other = anchor.checkpoint();
            if other.origin != head.origin {
                verdict.fail(
                    Claim::Logged,
                    format!(
                        "a checkpoint of the log {} was given, but the file's is of {}",
                        other.origin, head.origin
                    ),
                );
                continue;
            }
            match self.joined(head, other) {
                // Being one tree with an earlier head proves nothing about the later leaves: a
                // holder of the earlier leaves can append any others.
                Some(Ok(())) if other.size < head.size => {}
                Some(Ok(())) => {
                    through.get_or_insert_with(|| {
                        format!(
                            "a checkpoint that the one of {} leaves continues, signed by {}",
                            other.size,
                            names(anchor)
                        )
                    });
                }
                Some(Err(why)) => verdict.fail(
                    Claim::Logged,
                    format!("THE LOG WAS FORKED OR REWOUND, or a proof is wrong: {why}"),
                ),
                // The checkpoint was given to be compared, so a missing proof is a problem.
                None => verdict.fail(
                    Claim::Logged,
                    format!(
                        "no proof joins the checkpoint of {} leaves to the one of {}: give one \
                         with --consistency",
                        other.size, head.size
                    ),
                ),
            }
        }
        match (own, through) {
            (Ok(anchor), _) => Some(format!("a checkpoint signed by {}", names(&anchor))),
            (Err(CheckpointError::Note(NoteError::NoKnownSigner)), Some(through)) => {
                verdict.notes.push(
                    "no given key signed the checkpoint itself: it holds only through the later \
                     checkpoint"
                        .into(),
                );
                Some(through)
            }
            (Err(error), _) => {
                verdict.fail(Claim::Logged, with_causes(&error));
                None
            }
        }
    }

    /// Determines by when a leaf under `head` was logged, and whether that was before the use.
    /// `index` and `decided_at` are the leaf's index and its time of decision.
    pub(super) fn before_use(
        &self,
        verdict: &mut Verification,
        head: &Checkpoint,
        (index, decided_at): (u64, Timestamp),
        used_at: Option<Timestamp>,
    ) {
        let seen: Vec<&Sighting> = self
            .sightings
            .iter()
            .filter(|seen| seen.head.origin == head.origin && seen.head.size > index)
            .filter(|seen| matches!(self.joined(head, &seen.head), Some(Ok(()))))
            .collect();
        let first = seen.iter().min_by_key(|seen| seen.at);
        let claim = Claim::LoggedBeforeUse;
        let earliest = decided_at.minus_seconds(MAX_SKEW_SECONDS);
        if let Some(seen) = first.filter(|seen| seen.at < earliest) {
            return verdict.fail(
                claim,
                format!(
                    "{} shows {} for it, before its decision at {decided_at} by the log's clock: these \
                     clocks contradict each other",
                    seen.by, seen.at
                ),
            );
        }
        if let Some(used) = used_at.filter(|used| *used < decided_at) {
            return verdict.fail(
                claim,
                format!("it was used at {used}, before its decision at {decided_at}"),
            );
        }
        // Ignore clocks that lag the log's: the size of the lag is unknown.
        let fit = seen.iter().filter(|seen| seen.at >= decided_at);
        match (fit.min_by_key(|seen| seen.at), used_at) {
            (None, None) => {}
            (None, Some(used)) => match first {
                Some(behind) => verdict.fail(
                    claim,
                    format!(
                        "{} shows {}, which is before the decision at {decided_at}: a clock that lags \
                         does not show that it was logged before the use at {used}",
                        behind.by, behind.at
                    ),
                ),
                None => verdict.fail(
                    claim,
                    "no witnessed or published checkpoint shows that it was logged before the use",
                ),
            },
            (Some(seen), None) => verdict.leave(
                claim,
                &format!(
                    "the time of use was not given; logged by {} at the latest, according to {}",
                    seen.at, seen.by
                ),
            ),
            (Some(seen), Some(used)) if seen.at <= used => verdict.show(
                claim,
                format!(
                    "yes, logged by {} at the latest, according to {}; used at {used}, by the clock \
                     that recorded the use",
                    seen.at, seen.by
                ),
            ),
            (Some(seen), Some(used)) => verdict.fail(
                claim,
                format!(
                    "the first checkpoint that shows it is of {}, according to {}, which is after the \
                     use at {used}",
                    seen.at, seen.by
                ),
            ),
        }
    }
}

/// The names of the keys and witnesses that signed an anchor.
fn names(anchor: &Anchor) -> String {
    let keys = anchor.signers().iter().map(VerifierKey::name);
    let witnesses = anchor.cosignatures().iter();
    let witnesses = witnesses.map(|cosignature| cosignature.witness.name());
    keys.chain(witnesses).collect::<Vec<_>>().join(", ")
}

/// An error with its causes, without repetitions.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
