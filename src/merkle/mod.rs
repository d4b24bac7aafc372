//! The ledger's mathematics: the tree, its proofs and their text formats. No clock, no store, no
//! network. Whoever holds this module, a receipt and a verifier key can check the receipt; nothing
//! that the broker says is taken on trust.
//!
//! # The tree
//! The Merkle tree of RFC 9162 §2.1 over SHA-256. A leaf's hash begins with the byte 0 and an inner
//! node's with 1 ([`leaf_hash`], [`node_hash`]), so that an inner node can never be passed off as a
//! leaf. A tree of `n` leaves is split at the largest power of two below `n`. Hence the left side
//! of every split is *perfect*: it never changes again, however the tree grows. Only the nodes on
//! the right edge are ragged, and there is at most one perfect subtree for each bit set in `n`:
//! these **peaks**, largest first, are the [`Frontier`]. They give the root, and are all that a
//! batch needs to know of what came before it.
//!
//! # Growing
//! An [`Edge`] is a frontier with the rightmost incomplete tile of each level. A [`BatchProver`]
//! takes the frontier *before* a batch and the batch's leaf hashes, and knows the root after it and
//! the inclusion proof of each of its leaves, with one hash a node and without reading anything.
//! [`Edge::advance`] then moves the edge over the batch and returns the tiles it completed.
//!
//! # Reading back
//! Hashes are stored as C2SP tiles of 256: level 0 holds leaf hashes, and each hash of level `l` is
//! the root of a full tile of level `l - 1`. A full tile is written once. An incomplete one is never
//! stored, because it can be read in one range scan of what is: at level 0 the leaf hashes, above
//! it the roots of the full tiles below, which the store keeps beside each tile ([`Tile::root`]).
//! [`TileId::source`] says which of the three it is.
//!
//! A proof in an older tree, or between two, is made in two steps, so that this module needs no
//! reader: a plan ([`InclusionPlan`], [`ConsistencyPlan`], [`RootPlan`], [`EdgePlan`]) names the
//! tiles it needs, at most eight for inclusion and consistency below 2³² leaves; the caller fetches
//! them, and the plan builds the proof. A tile of an older tree is a prefix of the present one, so
//! a longer tile than was asked for is cut.
//! What a store returned is only as good as the store: check what was built against a root that is
//! known ([`verify_inclusion`], [`verify_consistency`]). Where it is a stranger's, a [`GrowthPlan`]
//! tells a forked tree from hashes that were made up.
//!
//! # Saying it
//! A [`Checkpoint`] is a tree's origin, size and root as text, signed as a C2SP [`Note`] by the
//! log's Ed25519 key ([`VerifierKey`]). A [`Receipt`] is a leaf, its proof and a checkpoint in
//! JSON; a [`TlogProof`] is the same in C2SP's text form; a [`LogReader`] reads a whole log from a
//! file. Signing needs a key and is done elsewhere: here a note's text goes out, and a signature
//! comes in ([`sign_note`]).
//!
//! Parsers are strict: one text for one value, every length bounded, no panic on any input.

mod anchor;
mod checkpoint;
mod edge;
mod growth;
mod hash;
mod log_file;
mod note;
mod plan;
mod proof;
mod receipt;
mod tile;
mod tlog_proof;
mod witness;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod testing;

pub use anchor::{Anchor, Trust, verify_same_tree};
pub use checkpoint::{Checkpoint, CheckpointError, MAX_ORIGIN_BYTES, SignedCheckpoint};
pub use edge::{BatchProver, Edge, EdgeError, Frontier};
pub use growth::{Growth, GrowthPlan};
pub use hash::{EMPTY_ROOT, Hash, HashError, leaf_hash, node_hash, root_of};
pub use log_file::{
    LOG_FILE_FORMAT, LogEntry, LogFileError, LogReader, write_log_entry, write_log_head,
};
pub use note::{
    KeyError, MAX_KEY_NAME_BYTES, MAX_NOTE_BYTES, MAX_NOTE_SIGNATURES, Note, NoteError,
    NoteSignature, VerifiedNote, VerifierKey, note_signature_line, sign_note,
};
pub use plan::{ConsistencyPlan, EdgePlan, InclusionPlan, PlanError, RootPlan};
pub use proof::{MAX_PROOF_HASHES, ProofError, verify_consistency, verify_inclusion};
pub use receipt::{Receipt, VerifiedReceipt, VerifyError};
pub use tile::{
    BundleError, TILE_WIDTH, Tile, TileId, TilePath, TilePathError, TileSource, decode_entries,
    encode_entries, hashes_from_bytes, hashes_to_bytes,
};
pub use tlog_proof::{MAX_TLOG_PROOF_BYTES, TlogProof, TlogProofError};
pub use witness::{Cosignature, WitnessKey, add_checkpoint_body, parse_witness_size};

/// A decimal number in its only form: digits, no sign, no leading zero.
fn parse_decimal(text: &str) -> Option<u64> {
    let canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}
