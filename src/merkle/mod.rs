//! The mathematics of the ledger: the tree, its proofs and their text formats. No clock, no store,
//! no network. With this module and a verifier key, any party can check a receipt without trusting
//! the broker.
//!
//! # The tree
//! The Merkle tree of RFC 9162 §2.1 over SHA-256. A leaf's hash input begins with the byte 0 and an
//! inner node's with 1 ([`leaf_hash`], [`node_hash`]), so an inner node cannot pass as a leaf. A
//! tree of `n` leaves is split at the largest power of two below `n`. So the left side of every
//! split is *perfect*: it never changes as the tree grows. Only the nodes on the right edge are
//! incomplete, and there is at most one perfect subtree for each bit set in `n`. These **peaks**,
//! largest first, are the [`Frontier`]. They determine the root, and a batch needs no other data
//! about earlier leaves.
//!
//! # Growing
//! An [`Edge`] is a frontier with the rightmost incomplete tile of each level. A [`BatchProver`]
//! takes the frontier *before* a batch and the batch's leaf hashes. It computes the root after the
//! batch and the inclusion proof of each of its leaves, with one hash for each node and without
//! reads. [`Edge::advance`] then moves the edge over the batch and returns the completed tiles.
//!
//! # Reading back
//! Hashes are stored as C2SP tiles of 256: level 0 holds leaf hashes, and each hash of level `l` is
//! the root of a full tile of level `l - 1`. A full tile is written once. An incomplete one is
//! never stored, because one range scan can read it: at level 0 from the leaf hashes, above it from
//! the roots of the full tiles below, which the store keeps with each tile ([`Tile::root`]).
//! [`TileId::source`] says which of the three applies.
//!
//! A proof in an older tree, or between two, is made in two steps, so this module needs no reader.
//! A plan ([`InclusionPlan`], [`ConsistencyPlan`], [`RootPlan`], [`EdgePlan`]) names the required
//! tiles, at most eight for inclusion and consistency below 2³² leaves; the caller fetches them,
//! and the plan builds the proof. A tile of an older tree is a prefix of the present one, so a
//! longer tile than requested is cut. The results are only as reliable as the store: verify them
//! against a known root ([`verify_inclusion`], [`verify_consistency`]). If an untrusted party
//! supplied the tiles, a [`GrowthPlan`] distinguishes a forked tree from invalid hashes.
//!
//! # Text formats
//! A [`Checkpoint`] is a tree's origin, size and root as text, signed as a C2SP [`Note`] by the
//! log's Ed25519 key ([`VerifierKey`]). A [`Receipt`] is a leaf, its proof and a checkpoint in
//! JSON; a [`TlogProof`] is the same in C2SP's text form; a [`LogReader`] reads a whole log from a
//! file. Signing needs a key and is done elsewhere: this module returns a note's text and accepts
//! the signature ([`sign_note`]).
//!
//! Parsers are strict: one text for one value, every length limited, no panic on any input.

mod checkpoint;
mod compact_range;
mod fork_check;
mod hash;
mod log_file;
mod note;
mod proof;
mod proof_ranges;
mod receipt;
mod tile;
mod tile_plan;
mod tlog_proof;
mod trust_anchor;
mod witness;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod testing;

pub use checkpoint::{Checkpoint, CheckpointError, MAX_ORIGIN_BYTES, SignedCheckpoint};
pub use compact_range::{BatchProver, Edge, EdgeError, Frontier};
pub use fork_check::{Growth, GrowthPlan};
pub use hash::{EMPTY_ROOT, Hash, HashError, leaf_hash, node_hash, root_of};
pub use log_file::{
    LOG_FILE_FORMAT, LogEntry, LogFileError, LogReader, write_log_entry, write_log_head,
};
pub use note::{
    KeyError, MAX_KEY_NAME_BYTES, MAX_NOTE_BYTES, MAX_NOTE_SIGNATURES, Note, NoteError,
    NoteSignature, VerifiedNote, VerifierKey, note_signature_line, sign_note,
};
pub use proof::{MAX_PROOF_HASHES, ProofError, verify_consistency, verify_inclusion};
pub use receipt::{Receipt, VerifiedReceipt, VerifyError};
pub use tile::{
    BundleError, TILE_WIDTH, Tile, TileId, TilePath, TilePathError, TileSource, decode_entries,
    encode_entries, hashes_from_bytes, hashes_to_bytes,
};
pub use tile_plan::{ConsistencyPlan, EdgePlan, InclusionPlan, PlanError, RootPlan};
pub use tlog_proof::{MAX_TLOG_PROOF_BYTES, TlogProof, TlogProofError};
pub use trust_anchor::{Anchor, Trust, verify_same_tree};
pub use witness::{Cosignature, WitnessKey, add_checkpoint_body, parse_witness_size};

/// Parses a decimal number in its only form: digits, no sign, no leading zero.
fn parse_decimal(text: &str) -> Option<u64> {
    let canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}
