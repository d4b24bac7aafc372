//! Tests that the crate `tlog_tiles`, an independent implementation of the same formats, reads our
//! output.

use std::cell::Cell;

use proptest::prelude::*;
use tlog_tiles as theirs;
use tlog_tiles::{HashReader, TileReader};

use super::testing::{Log, TestLogKey, leaves};
use super::{
    Checkpoint, ConsistencyPlan, Hash, InclusionPlan, RootPlan, SignedCheckpoint, TileId, TilePath,
    hashes_to_bytes, leaf_hash, node_hash, verify_consistency, verify_inclusion,
};

fn their(hash: &Hash) -> theirs::Hash {
    theirs::Hash(*hash.as_bytes())
}

fn ours(hashes: &[theirs::Hash]) -> Vec<Hash> {
    hashes.iter().map(|hash| hash.0.into()).collect()
}

/// Serves our tiles to the other implementation, which checks them against the given root.
struct Tiles<'a> {
    log: &'a Log,
    confirmed: Cell<usize>,
}

fn id_of(tile: &theirs::Tile) -> TileId {
    TileId {
        level: tile.level(),
        index: tile.level_index(),
        width: u16::try_from(tile.width()).unwrap(),
    }
}

impl TileReader for Tiles<'_> {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[theirs::Tile]) -> Result<Vec<Vec<u8>>, theirs::Error> {
        let ids: Vec<TileId> = tiles.iter().map(id_of).collect();
        let read = self.log.read(&ids);
        Ok(ids
            .iter()
            .map(|id| hashes_to_bytes(&read[id][..usize::from(id.width)]))
            .collect())
    }

    fn save_tiles(&self, tiles: &[theirs::Tile], _data: &[Vec<u8>]) {
        self.confirmed.set(self.confirmed.get() + tiles.len());
    }
}

#[test]
fn their_hashes_are_ours() {
    for data in [b"".as_slice(), b"\0", b"leaf", &[7; 5_000]] {
        assert_eq!(theirs::record_hash(data), their(&leaf_hash(data)));
    }
    let (left, right) = (leaf_hash(b"l"), leaf_hash(b"r"));
    assert_eq!(
        theirs::node_hash(their(&left), their(&right)),
        their(&node_hash(&left, &right))
    );
    assert_eq!(theirs::EMPTY_HASH, their(&super::EMPTY_ROOT));
}

#[test]
fn they_read_our_checkpoint() {
    let log = TestLogKey::new("taskpass.example/log", 1);
    let root = leaves(1)[0];
    let checkpoint = Checkpoint::new("taskpass.example/log", 70_000, root).unwrap();
    let note = log.sign(&checkpoint);
    let signed = SignedCheckpoint::open(note.as_bytes(), &[log.key]).unwrap();
    let text = signed.checkpoint().text();
    let read = theirs::Checkpoint::from_bytes(text.as_bytes()).unwrap();
    assert_eq!(read.origin(), "taskpass.example/log");
    assert_eq!(read.size(), 70_000);
    assert_eq!(read.hash(), &their(&root));
    assert_eq!(read.to_bytes(), text.as_bytes());
}

#[test]
fn they_make_and_check_the_same_proofs_from_our_tiles() {
    let log = Log::of(&leaves(66_500));
    for size in [1_u64, 2, 255, 256, 257, 4_000, 65_535, 65_536, 66_500] {
        let plan = RootPlan::new(size);
        let root = plan.build(&log.read(plan.tiles())).unwrap();
        let tiles = Tiles {
            log: &log,
            confirmed: Cell::new(0),
        };
        let reader = theirs::TileHashReader::new(size, their(&root), &tiles);
        assert_eq!(theirs::tree_hash(size, &reader).unwrap(), their(&root));
        for index in [0, size / 3, size / 2, size - 1] {
            let plan = InclusionPlan::new(index, size).unwrap();
            let proof = plan.build(&log.read(plan.tiles())).unwrap();
            assert_eq!(
                ours(&theirs::prove_record(size, index, &reader).unwrap()),
                proof
            );
            let leaf = log.leaves[usize::try_from(index).unwrap()];
            let proof_of_theirs: Vec<theirs::Hash> = proof.iter().map(their).collect();
            theirs::check_record(&proof_of_theirs, size, their(&root), index, their(&leaf))
                .unwrap();
            verify_inclusion(index, size, &leaf, &proof, &root).unwrap();

            let from = index + 1;
            let plan = RootPlan::new(from);
            let older = plan.build(&log.read(plan.tiles())).unwrap();
            let plan = ConsistencyPlan::new(from, size).unwrap();
            let proof = plan.build(&log.read(plan.tiles())).unwrap();
            assert_eq!(
                ours(&theirs::prove_tree(size, from, &reader).unwrap()),
                proof
            );
            let proof_of_theirs: Vec<theirs::Hash> = proof.iter().map(their).collect();
            theirs::check_tree(&proof_of_theirs, size, their(&root), from, their(&older)).unwrap();
            verify_consistency(from, size, &proof, &older, &root).unwrap();
        }
        assert!(tiles.confirmed.get() > 0);
        // A wrong root is refused, so the agreement above is significant.
        let wrong = theirs::TileHashReader::new(size, their(&leaf_hash(b"")), &tiles);
        wrong.read_hashes(&[0]).unwrap_err();
    }
}

proptest! {
    #[test]
    fn their_paths_are_ours(level in 0_u8..64, index in 0_u64..1 << 50, width in 1_u16..=256) {
        let tile = theirs::Tile::new(8, level, index, u32::from(width), false);
        // Their paths have the height of tiles after `tile/`; those of C2SP do not, because the
        // height is always 8.
        let path = tile.path().replacen("tile/8/", "tile/", 1);
        prop_assert_eq!(TilePath::Hashes(id_of(&tile)).to_string(), path);
    }

    #[test]
    fn they_want_the_tiles_that_a_batch_completes(
        before in 0_usize..2_000, batch in 0_usize..2_000,
    ) {
        let all = leaves(before + batch);
        let mut log = Log::of(&all[..before]);
        let full = |tiles: Vec<theirs::Tile>| -> Vec<(u8, u64)> {
            let full = tiles.iter().filter(|tile| tile.width() == 256);
            full.map(|tile| (tile.level(), tile.level_index())).collect()
        };
        let wanted = full(theirs::Tile::new_tiles(8, before as u64, (before + batch) as u64));
        let tiles = log.edge.append(&all[before..]);
        let made: Vec<(u8, u64)> = tiles.iter().map(|tile| (tile.level, tile.index)).collect();
        prop_assert_eq!(made, wanted);
    }
}
