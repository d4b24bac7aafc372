//! The recursive definitions of the RFC, implemented literally. They are slow and serve as the
//! reference in tests.

use std::collections::HashMap;

use ring::signature::{Ed25519KeyPair, KeyPair};

use super::witness::WitnessKey;

use super::{
    BatchProver, Checkpoint, EMPTY_ROOT, Edge, Hash, Tile, TileId, TileSource, VerifierKey,
    leaf_hash, node_hash, note_signature_line, sign_note,
};

/// Parses a hash of 64 hexadecimal digits.
pub(super) fn hex(text: &str) -> Hash {
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect();
    Hash::from_slice(&bytes).unwrap()
}

/// The leaf hashes of the tree of eight leaves in the test vectors of RFC 6962.
pub(super) fn reference_leaves() -> Vec<Hash> {
    let data: [&[u8]; 8] = [
        b"",
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[
            0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
            0x6e, 0x6f,
        ],
    ];
    data.iter().map(|leaf| leaf_hash(leaf)).collect()
}

/// `count` different leaf hashes. A longer list begins with the shorter one.
pub(super) fn leaves(count: usize) -> Vec<Hash> {
    (0..count as u64)
        .map(|index| leaf_hash(&index.to_be_bytes()))
        .collect()
}

/// The hash with one bit changed.
pub(super) fn flip(hash: Hash, bit: usize) -> Hash {
    let mut bytes = *hash.as_bytes();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes.into()
}

fn split(size: usize) -> usize {
    size.next_power_of_two() / 2
}

/// The function MTH of RFC 9162 §2.1.1.
pub(super) fn reference_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&reference_root(left), &reference_root(right))
        }
    }
}

/// The function PATH of §2.1.3.1.
pub(super) fn reference_inclusion(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut path, sibling) = if index < left.len() {
        (reference_inclusion(index, left), right)
    } else {
        (reference_inclusion(index - left.len(), right), left)
    };
    path.push(reference_root(sibling));
    path
}

/// The function PROOF of §2.1.4.1.
pub(super) fn reference_consistency(from: usize, leaves: &[Hash]) -> Vec<Hash> {
    fn subproof(from: usize, leaves: &[Hash], known: bool) -> Vec<Hash> {
        if from == leaves.len() {
            return if known {
                Vec::new()
            } else {
                vec![reference_root(leaves)]
            };
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        let (mut proof, sibling) = if from <= left.len() {
            (subproof(from, left, known), right)
        } else {
            (subproof(from - left.len(), right, false), left)
        };
        proof.push(reference_root(sibling));
        proof
    }
    if from == 0 {
        return Vec::new();
    }
    subproof(from, leaves, true)
}

/// A log as stored: leaf hashes, and full tiles with their roots.
pub(super) struct Log {
    pub(super) edge: Edge,
    pub(super) leaves: Vec<Hash>,
    pub(super) tiles: HashMap<(u8, u64), Tile>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            edge: Edge::empty(),
            leaves: Vec::new(),
            tiles: HashMap::new(),
        }
    }

    pub(super) fn of(leaves: &[Hash]) -> Self {
        let mut log = Self::new();
        log.append(leaves);
        log
    }

    pub(super) fn append(&mut self, leaves: &[Hash]) -> BatchProver {
        let prover = BatchProver::new(&self.edge, leaves);
        for tile in self.edge.advance(&prover).unwrap() {
            let tile_was_new = self.tiles.insert((tile.level, tile.index), tile).is_none();
            assert!(tile_was_new);
        }
        self.leaves.extend_from_slice(leaves);
        prover
    }

    /// Reads each tile from its source.
    pub(super) fn read(&self, ids: &[TileId]) -> HashMap<TileId, Vec<Hash>> {
        let read = |id: &TileId| match id.source(self.edge.size()).unwrap() {
            TileSource::Stored => self.tiles[&(id.level, id.index)].hashes.clone(),
            TileSource::Leaves { from, count } => {
                let from = usize::try_from(from).unwrap();
                self.leaves[from..from + usize::try_from(count).unwrap()].to_vec()
            }
            TileSource::Roots { level, from, count } => (from..from + count)
                .map(|index| self.tiles[&(level, index)].root)
                .collect(),
        };
        ids.iter().map(|id| (*id, read(id))).collect()
    }
}

/// A log's key with its private half, which the module itself never uses.
pub(super) struct TestLogKey {
    pair: Ed25519KeyPair,
    pub(super) key: VerifierKey,
}

impl TestLogKey {
    pub(super) fn new(name: &str, seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        let key = VerifierKey::new(name, public).unwrap();
        Self { pair, key }
    }

    pub(super) fn line(&self, text: &str) -> String {
        let signature = self.pair.sign(text.as_bytes());
        note_signature_line(&self.key, signature.as_ref()).unwrap()
    }

    pub(super) fn sign(&self, checkpoint: &Checkpoint) -> String {
        let text = checkpoint.text();
        sign_note(&text, &[self.line(&text)]).unwrap()
    }
}

/// A witness's key with its private half.
pub(super) struct TestWitness {
    pub(super) pair: Ed25519KeyPair,
    pub(super) key: WitnessKey,
}

impl TestWitness {
    pub(super) fn new(name: &str, seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        let key = WitnessKey::new(name, public).unwrap();
        Self { pair, key }
    }

    pub(super) fn line(&self, time: u64, text: &str) -> String {
        let message = WitnessKey::message(time, text);
        let signature = self.pair.sign(message.as_bytes());
        self.key.line(time, signature.as_ref()).unwrap()
    }
}
