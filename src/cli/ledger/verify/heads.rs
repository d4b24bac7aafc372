//! The heads of the log that an auditor knows beside the one in the file, what joins them into one
//! tree, and when they were seen.
//!
//! A receipt's own head is believed when a pinned key or witness vouches for it, or when a head for
//! which one does is shown to continue it: that is how what a retired key signed still holds. That
//! it continues such a head itself shows nothing of the leaves behind that. A head that was seen at a
//! certain time, by a witness or by whoever published it, shows that every leaf under it was logged
//! by then; a witness's time is the whole second in which that was.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::verdict::{Claim, Verdict};
use crate::clock::Timestamp;
use crate::merkle::{
    Anchor, Checkpoint, CheckpointError, Hash, MAX_PROOF_HASHES, NoteError, Trust, VerifierKey,
    verify_same_tree,
};

/// How far behind the log's clock that of somebody who saw a checkpoint may be, in seconds, before
/// one of them is called wrong. It shows nothing before the use all the same.
const MAX_SKEW_SECONDS: u64 = 300;
/// What a witness puts down as a second is some instant in it.
const COSIGNED_WITHIN_SECONDS: u64 = 1;

/// A consistency proof, as `GET /v1/ledger/consistency` answers it.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::cli) struct Consistency {
    pub(super) from: u64,
    pub(super) to: u64,
    #[serde(rename = "consistency_proof")]
    pub(super) hashes: Vec<Hash>,
}

/// A checkpoint beside the file's own.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Given {
    /// What to call it.
    pub(in crate::cli) name: String,
    /// The signed note.
    pub(in crate::cli) note: Vec<u8>,
    /// When it was public, by the clock of whoever kept it.
    pub(in crate::cli) published: Option<Timestamp>,
}

/// A head that somebody saw.
#[derive(Clone, Debug)]
struct Sighting {
    head: Checkpoint,
    /// The latest instant at which that may have been.
    at: Timestamp,
    by: String,
}

/// The heads that are known.
pub(super) struct Heads {
    anchors: Vec<Anchor>,
    proofs: Vec<Consistency>,
    /// Roots that a whole log was read to have had.
    roots: BTreeMap<u64, Hash>,
    sightings: Vec<Sighting>,
}

impl Heads {
    /// Opens what was given. What nobody vouches for is a problem: it was named to be believed.
    pub(super) fn open(
        verdict: &mut Verdict,
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
                by: format!("the clock of whoever kept {}", given.name),
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

    /// The sizes at which a whole log's root is worth knowing.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u64> {
        self.anchors.iter().map(|anchor| anchor.checkpoint().size)
    }

    /// The largest tree of this log that somebody vouches for.
    pub(super) fn largest(&self, origin: &str) -> u64 {
        let own = self.anchors.iter().map(Anchor::checkpoint);
        let own = own.filter(|head| head.origin == origin);
        own.map(|head| head.size).max().unwrap_or(0)
    }

    /// A whole log had this root at this size.
    pub(super) fn learn(&mut self, size: u64, root: Hash) {
        self.roots.insert(size, root);
    }

    /// Whether two heads are of one tree; none if nothing says so.
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
                Err("a head that the log's own entries do not come to".into())
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

    /// Who vouches for a head, be it through another one. Tells of contradictions.
    pub(super) fn vouched(
        &mut self,
        verdict: &mut Verdict,
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
                        "a checkpoint of the log {} was given, this is of {}",
                        other.origin, head.origin
                    ),
                );
                continue;
            }
            match self.joined(head, other) {
                // One tree with an earlier head says nothing of what came after that: whoever has
                // the earlier leaves can put any others behind them.
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
                // It was given to be held against this: whoever left the proof away may have to.
                None => verdict.fail(
                    Claim::Logged,
                    format!(
                        "the checkpoint of {} leaves was not joined to the one of {}: give a proof \
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
                    "the checkpoint's own signature is by no key that you gave: it holds by the \
                     later one alone"
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

    /// By when a leaf under `head` was logged, and before which use. The leaf: its place, and when it
    /// says that it was decided.
    pub(super) fn before_use(
        &self,
        verdict: &mut Verdict,
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
                    "{} saw it at {}, before it was decided at {decided_at} by the log's: these \
                     clocks contradict each other",
                    seen.by, seen.at
                ),
            );
        }
        if let Some(used) = used_at.filter(|used| *used < decided_at) {
            return verdict.fail(
                claim,
                format!("it was used at {used}, before it was decided at {decided_at}"),
            );
        }
        // By how much a clock is behind that is behind the log's at all, nobody knows.
        let fit = seen.iter().filter(|seen| seen.at >= decided_at);
        match (fit.min_by_key(|seen| seen.at), used_at) {
            (None, None) => {}
            (None, Some(used)) => match first {
                Some(behind) => verdict.fail(
                    claim,
                    format!(
                        "{} says {}, which is before it was decided at {decided_at}: a clock that \
                         is behind does not show that it was logged before the use at {used}",
                        behind.by, behind.at
                    ),
                ),
                None => verdict.fail(
                    claim,
                    "no witness's or published checkpoint shows that it was logged before the use",
                ),
            },
            (Some(seen), None) => verdict.leave(
                claim,
                &format!(
                    "the use's time was not given; logged by {} at the latest, by {}",
                    seen.at, seen.by
                ),
            ),
            (Some(seen), Some(used)) if seen.at <= used => verdict.show(
                claim,
                format!(
                    "yes, logged by {} at the latest, by {}; used at {used}, by the clock of \
                     whoever recorded the use",
                    seen.at, seen.by
                ),
            ),
            (Some(seen), Some(used)) => verdict.fail(
                claim,
                format!(
                    "the first checkpoint that shows it is of {}, by {}, which is after the use at \
                     {used}",
                    seen.at, seen.by
                ),
            ),
        }
    }
}

/// Who vouches for an anchor.
fn names(anchor: &Anchor) -> String {
    let keys = anchor.signers().iter().map(VerifierKey::name);
    let witnesses = anchor.cosignatures().iter();
    let witnesses = witnesses.map(|cosignature| cosignature.witness.name());
    keys.chain(witnesses).collect::<Vec<_>>().join(", ")
}

/// An error with its causes, none said twice.
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
