//! Proofs in older trees: the tiles that they need, and their construction.
//!
//! A plan names the tiles, the caller fetches them, and the plan builds the result: the proof of a
//! leaf ([`InclusionPlan`]), the proof that one tree begins with another ([`ConsistencyPlan`]), a
//! root ([`RootPlan`]) or an edge ([`EdgePlan`]: the last, partial tile of each level, from which
//! the tree can grow). So nothing in this file reads tiles.
//!
//! A leaf or size outside of the tree, and a tile that is missing, too short or has more than 256
//! hashes, are a [`PlanError`]. A tile that is longer than required is cut. The hashes themselves
//! are not checked, so the result is only as reliable as the tiles. A root or an edge is compared
//! with a known root by the caller, a proof is verified by its recipient ([`super::proof`]).
//! `ledger::proofs` plans with the store's tiles, and `audit::monitor` with those of a log, through
//! [`super::fork_check`].

use std::collections::{BTreeSet, HashMap};

use super::compact_range::{Edge, EdgeError};
use super::hash::{Hash, fold_peaks, root_of};
use super::proof_ranges::{consistency_ranges, inclusion_ranges, log2};
use super::tile::{TILE_WIDTH, TileId, tile_shift};

/// The reason why a proof cannot be planned or built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum PlanError {
    /// The tree has no such leaf.
    #[error("leaf {index} is not in a tree of {size}")]
    IndexOutOfRange {
        /// Index of the leaf.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The first size is larger than the second.
    #[error("a tree of {from} does not come before one of {to}")]
    SizesReversed {
        /// The size that should be smaller.
        from: u64,
        /// The size that should be larger.
        to: u64,
    },
    /// A required tile is missing.
    #[error("tile {0} is missing")]
    MissingTile(TileId),
    /// A required tile has fewer hashes than required, or more than a tile can have.
    #[error("tile {tile} has {found} hashes")]
    WrongWidth {
        tile: TileId,
        /// Number of hashes in the given tile.
        found: usize,
    },
    /// The tiles do not form an edge.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// The plan of an inclusion proof.
#[derive(Clone, Debug)]
pub struct InclusionPlan(Plan);

impl InclusionPlan {
    /// The proof of leaf `index` in the tree of the first `tree_size` leaves.
    pub fn new(index: u64, tree_size: u64) -> Result<Self, PlanError> {
        if index >= tree_size {
            return Err(PlanError::IndexOutOfRange {
                index,
                size: tree_size,
            });
        }
        Ok(Self(Plan::new(
            inclusion_ranges(index, tree_size),
            tree_size,
        )))
    }

    /// The tiles to fetch.
    #[must_use]
    pub fn tiles(&self) -> &[TileId] {
        &self.0.tiles
    }

    /// Builds the proof.
    pub fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Vec<Hash>, PlanError> {
        self.0.build(tiles)
    }
}

/// The plan of a consistency proof.
#[derive(Clone, Debug)]
pub struct ConsistencyPlan(Plan);

impl ConsistencyPlan {
    /// The proof from the tree of the first `from` leaves to that of the first `to`. It is empty if
    /// `from` is 0 or equals `to`.
    pub fn new(from: u64, to: u64) -> Result<Self, PlanError> {
        if from > to {
            return Err(PlanError::SizesReversed { from, to });
        }
        Ok(Self(Plan::new(consistency_ranges(from, to), to)))
    }

    /// The tiles to fetch.
    #[must_use]
    pub fn tiles(&self) -> &[TileId] {
        &self.0.tiles
    }

    /// Builds the proof.
    pub fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Vec<Hash>, PlanError> {
        self.0.build(tiles)
    }
}

/// The plan of the root of a tree of any earlier size.
#[derive(Clone, Debug)]
pub struct RootPlan(Plan);

impl RootPlan {
    /// The root of the tree of the first `size` leaves.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self(Plan::new(vec![(0, size)], size))
    }

    /// The tiles to fetch.
    #[must_use]
    pub fn tiles(&self) -> &[TileId] {
        &self.0.tiles
    }

    /// Computes the root.
    pub fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Hash, PlanError> {
        Ok(fold_peaks(&self.0.build(tiles)?))
    }
}

/// The plan of the edge of a tree: the last, partial tile of each level. The tree can grow from it.
#[derive(Clone, Debug)]
pub struct EdgePlan {
    size: u64,
    tiles: Vec<TileId>,
}

impl EdgePlan {
    /// The edge of the tree of the first `size` leaves.
    #[must_use]
    pub fn new(size: u64) -> Self {
        // The digits of the size to the base 256 are the widths of the partial tiles.
        let tiles = (0_u8..)
            .zip(size.to_le_bytes())
            .filter(|(_, digit)| *digit > 0)
            .map(|(level, digit)| TileId {
                level,
                index: tile_shift(size, u32::from(level) + 1),
                width: u16::from(digit),
            })
            .collect();
        Self { size, tiles }
    }

    /// The tiles to fetch.
    #[must_use]
    pub fn tiles(&self) -> &[TileId] {
        &self.tiles
    }

    /// Builds the edge. The caller compares its root with the known root.
    pub fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Edge, PlanError> {
        let mut levels = Vec::new();
        for id in &self.tiles {
            // The tiles ascend by level. A level without a partial tile is empty.
            levels.resize(usize::from(id.level), Vec::new());
            levels.push(hashes_of(id, tiles)?.to_vec());
        }
        Ok(Edge::from_partial_tiles(self.size, levels)?)
    }
}

/// The hashes of some ranges of leaves: the perfect nodes that make them up, and the tiles to
/// fetch.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The perfect nodes of each range, from left to right.
    ranges: Vec<Vec<Node>>,
    tiles: Vec<TileId>,
}

/// A perfect node: the hashes `from..to` of a tile.
#[derive(Clone, Debug)]
struct Node {
    tile: TileId,
    from: usize,
    to: usize,
}

impl Plan {
    pub(super) fn new(ranges: Vec<(u64, u64)>, tree_size: u64) -> Self {
        let ranges: Vec<Vec<Node>> = ranges
            .into_iter()
            .map(|range| perfect_nodes(range, tree_size))
            .collect();
        let tiles: BTreeSet<TileId> = ranges.iter().flatten().map(|node| node.tile).collect();
        Self {
            ranges,
            tiles: tiles.into_iter().collect(),
        }
    }

    pub(super) fn tiles(&self) -> &[TileId] {
        &self.tiles
    }

    pub(super) fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Vec<Hash>, PlanError> {
        self.ranges
            .iter()
            .map(|nodes| {
                let peaks = nodes
                    .iter()
                    .map(|node| {
                        let hashes = hashes_of(&node.tile, tiles)?;
                        Ok(root_of(&hashes[node.from..node.to]))
                    })
                    .collect::<Result<Vec<Hash>, PlanError>>()?;
                Ok(fold_peaks(&peaks))
            })
            .collect()
    }
}

/// The required hashes of the tile.
fn hashes_of<'a>(
    id: &TileId,
    tiles: &'a HashMap<TileId, Vec<Hash>>,
) -> Result<&'a [Hash], PlanError> {
    let hashes = tiles.get(id).ok_or(PlanError::MissingTile(*id))?;
    match hashes.get(..usize::from(id.width)) {
        Some(prefix) if hashes.len() <= TILE_WIDTH => Ok(prefix),
        _ => Err(PlanError::WrongWidth {
            tile: *id,
            found: hashes.len(),
        }),
    }
}

/// The perfect subtrees that make up a range of leaves, largest first. The range is that of one
/// node of the tree, so `low` is always a multiple of the size of the next subtree.
fn perfect_nodes((mut low, high): (u64, u64), tree_size: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    while low < high {
        let height = log2(high - low);
        let level = height / 8;
        let in_tile = height % 8;
        // The node covers 2^in_tile hashes of its level, all within one tile.
        let first = tile_shift(low, level);
        let index = first / TILE_WIDTH as u64;
        let available = tile_shift(tree_size, level) - index * TILE_WIDTH as u64;
        let from = usize::try_from(first % TILE_WIDTH as u64).unwrap_or(0);
        nodes.push(Node {
            tile: TileId {
                level: u8::try_from(level).unwrap_or(u8::MAX),
                index,
                width: u16::try_from(available.min(TILE_WIDTH as u64)).unwrap_or(0),
            },
            from,
            to: from + (1 << in_tile),
        });
        low += 1 << height;
    }
    nodes
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::EMPTY_ROOT;
    use super::super::proof::{verify_consistency, verify_inclusion};
    use super::super::testing::{
        Log, leaves, reference_consistency, reference_inclusion, reference_root,
    };
    use super::*;

    /// Larger than the first full tile of level 1.
    const SIZE: usize = 70_000;
    static LOG: LazyLock<Log> = LazyLock::new(|| Log::of(&leaves(SIZE)));

    fn u(number: usize) -> u64 {
        number as u64
    }

    #[test]
    fn all_small_trees_have_the_proofs_of_the_definition() {
        let tree = leaves(70);
        let log = Log::of(&tree);
        for size in 0..=70 {
            let root = RootPlan::new(u(size));
            assert_eq!(
                root.build(&log.read(root.tiles())).unwrap(),
                reference_root(&tree[..size])
            );
            for index in 0..size {
                let plan = InclusionPlan::new(u(index), u(size)).unwrap();
                assert_eq!(
                    plan.build(&log.read(plan.tiles())).unwrap(),
                    reference_inclusion(index, &tree[..size])
                );
            }
            for from in 0..=size {
                let plan = ConsistencyPlan::new(u(from), u(size)).unwrap();
                assert_eq!(
                    plan.build(&log.read(plan.tiles())).unwrap(),
                    reference_consistency(from, &tree[..size])
                );
            }
        }
    }

    #[test]
    fn what_does_not_exist_is_not_planned() {
        assert_eq!(
            InclusionPlan::new(5, 5).unwrap_err(),
            PlanError::IndexOutOfRange { index: 5, size: 5 }
        );
        InclusionPlan::new(0, 0).unwrap_err();
        assert_eq!(
            ConsistencyPlan::new(6, 5).unwrap_err(),
            PlanError::SizesReversed { from: 6, to: 5 }
        );
        assert_eq!(RootPlan::new(0).build(&HashMap::new()), Ok(EMPTY_ROOT));
        assert_eq!(EdgePlan::new(0).build(&HashMap::new()), Ok(Edge::empty()));
    }

    #[test]
    fn a_missing_short_or_overlong_tile_is_an_error() {
        let plan = InclusionPlan::new(3, 1_000).unwrap();
        let good = LOG.read(plan.tiles());
        plan.build(&good).unwrap();
        for id in plan.tiles() {
            let mut missing = good.clone();
            missing.remove(id);
            assert_eq!(plan.build(&missing), Err(PlanError::MissingTile(*id)));
            let mut short = good.clone();
            short
                .get_mut(id)
                .unwrap()
                .truncate(usize::from(id.width) - 1);
            assert_eq!(
                plan.build(&short),
                Err(PlanError::WrongWidth {
                    tile: *id,
                    found: usize::from(id.width) - 1
                })
            );
            let mut long = good.clone();
            long.get_mut(id).unwrap().resize(257, EMPTY_ROOT);
            plan.build(&long).unwrap_err();
        }
        EdgePlan::new(1_000).build(&HashMap::new()).unwrap_err();
    }

    #[test]
    fn the_present_edge_saves_the_reads_of_the_rightmost_tiles() {
        let plan = EdgePlan::new(u(SIZE));
        let tiles = plan
            .tiles()
            .iter()
            .map(|id| (*id, LOG.edge.tile(id).unwrap().to_vec()))
            .collect();
        assert_eq!(plan.build(&tiles).unwrap(), LOG.edge);
        let elsewhere = TileId {
            level: 0,
            index: 0,
            width: 256,
        };
        assert_eq!(LOG.edge.tile(&elsewhere), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn plans_over_several_tiles_agree_with_the_definition(
            size in prop_oneof![1_usize..=SIZE, 65_500_usize..=65_600, Just(SIZE), Just(65_536)],
            at in any::<prop::sample::Index>(),
        ) {
            let tree = &LOG.leaves[..size];
            let other = at.index(size);
            let root = RootPlan::new(u(size));
            let root_hash = root.build(&LOG.read(root.tiles())).unwrap();
            prop_assert_eq!(root_hash, reference_root(tree));

            let plan = InclusionPlan::new(u(other), u(size)).unwrap();
            let proof = plan.build(&LOG.read(plan.tiles())).unwrap();
            verify_inclusion(u(other), u(size), &tree[other], &proof, &root_hash).unwrap();
            prop_assert_eq!(proof, reference_inclusion(other, tree));

            let plan = ConsistencyPlan::new(u(other), u(size)).unwrap();
            let proof = plan.build(&LOG.read(plan.tiles())).unwrap();
            let older = reference_root(&tree[..other]);
            verify_consistency(u(other), u(size), &proof, &older, &root_hash).unwrap();
            prop_assert_eq!(proof, reference_consistency(other, tree));

            let edge = EdgePlan::new(u(size));
            let mut edge = edge.build(&LOG.read(edge.tiles())).unwrap();
            prop_assert_eq!(edge.root(), root_hash);
            edge.append(&LOG.leaves[size..]);
            prop_assert_eq!(&edge, &LOG.edge);
        }
    }

    proptest! {
        #[test]
        fn reads_stay_few_and_readable_in_large_trees(
            a in any::<u64>(), b in any::<u64>(), grown in any::<u32>(), shift in 0_u32..63,
        ) {
            let size = (a >> shift >> 1).max(1);
            let stored = size + u64::from(grown);
            let other = b % size;
            let inclusion = InclusionPlan::new(other, size).unwrap();
            let consistency = ConsistencyPlan::new(other, size).unwrap();
            let root = RootPlan::new(size);
            let edge = EdgePlan::new(size);
            for (tiles, factor) in [
                (inclusion.tiles(), 2), (consistency.tiles(), 2), (root.tiles(), 1), (edge.tiles(), 1),
            ] {
                // One tile for each level on the way to the leaf, and one for each level along the
                // edge.
                let levels = (u64::BITS - size.leading_zeros()).div_ceil(8) as usize;
                prop_assert!(tiles.len() <= factor * levels);
                if size <= 1 << 32 {
                    prop_assert!(tiles.len() <= 9);
                }
                for tile in tiles {
                    prop_assert!(tile.source(stored).is_some());
                }
            }
        }

        #[test]
        fn no_numbers_make_a_plan_panic(a in any::<u64>(), b in any::<u64>()) {
            let built = InclusionPlan::new(a, b).map(|plan| plan.build(&HashMap::new()));
            prop_assert_eq!(built.is_ok(), a < b);
            let built = ConsistencyPlan::new(a, b).map(|plan| plan.build(&HashMap::new()));
            prop_assert_eq!(built.is_ok(), a <= b);
            RootPlan::new(a).build(&HashMap::new()).unwrap_err();
            EdgePlan::new(a).build(&HashMap::new()).unwrap_err();
        }
    }
}
