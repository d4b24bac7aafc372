//! The right edge of a growing tree, and the proofs for appended leaves.
//!
//! [`Frontier`] are the peaks of a tree, which determine its root. [`Edge`] adds the incomplete
//! tiles, from which the tree grows. [`BatchProver`] computes the root after a batch of leaves and
//! the inclusion proof of each leaf, with one hash for each new node and without reads.
//!
//! Stored hashes whose numbers do not fit the size of the tree are an [`EdgeError`]. Their values
//! are not checked: the caller compares the root with the known one. [`Edge::advance`] refuses a
//! batch that was prepared for another edge. A node that should exist and does not is replaced by a
//! wrong hash instead of a panic, because every proof is verified by its recipient.
//!
//! The ledger's appender keeps one edge, and [`super::log_file`] one for each file that it reads.
//! The store keeps the tiles; this file reads nothing.

use super::hash::{EMPTY_ROOT, Hash, fold_peaks, node_hash, root_of};
use super::proof_ranges::{inclusion_ranges, log2};
use super::tile::{TILE_WIDTH, Tile, TileId, tile_shift};

/// The largest accepted tree: the limit of integers in both stores, far beyond practical sizes.
const MAX_SIZE: u64 = i64::MAX as u64;

/// The reason why stored hashes are not the edge of a tree of the given size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum EdgeError {
    /// The size is above the limit.
    #[error("a tree of {0} leaves is beyond the limit")]
    TooLarge(u64),
    /// The number of peaks is not the number of bits set in the size.
    #[error("a tree of {size} leaves has {expected} peaks, not {found}")]
    Peaks {
        /// The given size of the tree.
        size: u64,
        /// Number of peaks of a tree of this size.
        expected: usize,
        /// Number of given peaks.
        found: usize,
    },
    /// The number of levels is not the number of digits of the size in base 256.
    #[error("a tree of {size} leaves has {expected} levels of tiles, not {found}")]
    Levels {
        /// The given size of the tree.
        size: u64,
        /// Number of levels of a tree of this size.
        expected: usize,
        /// Number of given levels.
        found: usize,
    },
    /// The width of an incomplete tile is not the digit of its level.
    #[error("the incomplete tile of level {level} has {expected} hashes, not {found}")]
    Width {
        level: usize,
        /// Number of hashes that the tile must have.
        expected: usize,
        /// Number of given hashes.
        found: usize,
    },
    /// The batch was prepared for another edge.
    #[error("the batch continues another tree of {batch} leaves, not this one of {edge}")]
    OtherEdge {
        /// The size at which the batch starts.
        batch: u64,
        /// The size of the edge.
        edge: u64,
    },
}

/// The peaks of a tree: the roots of its perfect subtrees, largest first, one for each bit set in
/// its size. It has about 1 KB at 2³² leaves, so it is stored with every head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The frontier of the empty tree.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            size: 0,
            peaks: Vec::new(),
        }
    }

    /// Creates a frontier from stored values. The caller compares its [`root`](Self::root) with the
    /// stored root.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Result<Self, EdgeError> {
        if size > MAX_SIZE {
            return Err(EdgeError::TooLarge(size));
        }
        let expected = count_ones(size);
        if peaks.len() != expected {
            return Err(EdgeError::Peaks {
                size,
                expected,
                found: peaks.len(),
            });
        }
        Ok(Self { size, peaks })
    }

    /// Number of leaves in the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The peaks, largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        fold_peaks(&self.peaks)
    }

    /// The peak of this height; `None` if the size does not have the corresponding bit.
    fn peak(&self, height: u32) -> Option<Hash> {
        if self.size >> height & 1 == 0 {
            return None;
        }
        self.peaks.get(peaks_above(self.size, height)).copied()
    }
}

/// The right edge of a growing tree: its frontier, and the hashes of the rightmost incomplete tile
/// of each level, from which the next tiles are completed. Up to 8 KiB for each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    frontier: Frontier,
    levels: Vec<Vec<Hash>>,
}

impl Edge {
    /// The edge of the empty tree.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            frontier: Frontier::empty(),
            levels: Vec::new(),
        }
    }

    /// Creates the edge of a tree of `size` leaves from its incomplete tiles, lowest level first:
    /// one for each digit of the size in base 256, with the digit as its width. The caller compares
    /// its [`root`](Self::root) with the known root.
    pub fn from_partial_tiles(size: u64, levels: Vec<Vec<Hash>>) -> Result<Self, EdgeError> {
        if size > MAX_SIZE {
            return Err(EdgeError::TooLarge(size));
        }
        let expected = level_count(size);
        if levels.len() != expected {
            return Err(EdgeError::Levels {
                size,
                expected,
                found: levels.len(),
            });
        }
        let mut peaks = Vec::with_capacity(count_ones(size));
        for (level, hashes) in levels.iter().enumerate().rev() {
            let expected = partial_width(size, level);
            if hashes.len() != expected {
                return Err(EdgeError::Width {
                    level,
                    expected,
                    found: hashes.len(),
                });
            }
            // Within a tile too, each bit of the width is one perfect subtree.
            let mut rest = hashes.as_slice();
            while let Some(height) = rest.len().checked_ilog2() {
                let (subtree, after) = rest.split_at(1 << height);
                peaks.push(root_of(subtree));
                rest = after;
            }
        }
        Ok(Self {
            frontier: Frontier { size, peaks },
            levels,
        })
    }

    /// Number of leaves in the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// The peaks of the tree.
    #[must_use]
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The incomplete tiles, lowest level first.
    #[must_use]
    pub fn levels(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// The hashes of a tile; `None` if it is not in this edge. The rightmost tiles of a plan are,
    /// and need no read.
    #[must_use]
    pub fn tile(&self, id: &TileId) -> Option<&[Hash]> {
        let hashes = self.levels.get(usize::from(id.level))?;
        if id.index != tile_shift(self.size(), u32::from(id.level) + 1) {
            return None;
        }
        hashes.get(..usize::from(id.width))
    }

    /// Appends leaves and returns each completed tile, lowest level first. If proofs are needed
    /// too, create a [`BatchProver`] and [`advance`](Self::advance) with it, so that each node is
    /// hashed once.
    pub fn append(&mut self, leaves: &[Hash]) -> Vec<Tile> {
        let prover = BatchProver::new(self, leaves);
        self.advance_unchecked(&prover)
    }

    /// Moves over the batch, which must have been prepared for this edge. Returns each completed
    /// tile, lowest level first.
    pub fn advance(&mut self, batch: &BatchProver) -> Result<Vec<Tile>, EdgeError> {
        if batch.before != self.frontier {
            return Err(EdgeError::OtherEdge {
                batch: batch.before.size,
                edge: self.size(),
            });
        }
        Ok(self.advance_unchecked(batch))
    }

    fn advance_unchecked(&mut self, batch: &BatchProver) -> Vec<Tile> {
        let before = self.size();
        let mut tiles = Vec::new();
        self.levels.resize(level_count(batch.size), Vec::new());
        for (level, hashes) in (0_u8..).zip(&mut self.levels) {
            let height = u32::from(level) * 8;
            hashes.extend_from_slice(batch.nodes_from(height, before >> height));
            let mut index = tile_shift(before, u32::from(level) + 1);
            while hashes.len() >= TILE_WIDTH {
                let rest = hashes.split_off(TILE_WIDTH);
                let full = std::mem::replace(hashes, rest);
                tiles.push(Tile {
                    level,
                    index,
                    root: batch.node(height + 8, index),
                    hashes: full,
                });
                index += 1;
            }
        }
        self.frontier = batch.frontier();
        tiles
    }
}

/// A batch of leaves after a tree: the new root, and the inclusion proof of each of its leaves in
/// the new tree. Construction hashes each new node once; a proof only copies hashes.
#[derive(Clone, Debug)]
pub struct BatchProver {
    before: Frontier,
    size: u64,
    /// For each height: the new perfect nodes, preceded by the old peak with which the first of
    /// them is paired, if there is one.
    heights: Vec<Row>,
    /// The roots over the peaks from the nth to the last: the hashes of incomplete ranges at the
    /// edge.
    tails: Vec<Hash>,
}

#[derive(Clone, Debug)]
struct Row {
    /// Index of the first node. Always even, so that the nodes can be paired from the start.
    first: u64,
    nodes: Vec<Hash>,
}

impl BatchProver {
    /// The batch of `leaves` after the tree with this edge.
    #[must_use]
    pub fn new(edge: &Edge, leaves: &[Hash]) -> Self {
        Self::from_frontier(edge.frontier(), leaves)
    }

    /// The batch of `leaves` after the tree with this frontier.
    #[must_use]
    pub fn from_frontier(before: &Frontier, leaves: &[Hash]) -> Self {
        let size = before.size + leaves.len() as u64;
        let mut heights: Vec<Row> = Vec::new();
        for height in 0..u64::BITS - size.leading_zeros() {
            let mut nodes: Vec<Hash> = before.peak(height).into_iter().collect();
            match heights.last() {
                None => nodes.extend_from_slice(leaves),
                Some(below) => nodes.extend(
                    below
                        .nodes
                        .chunks_exact(2)
                        .map(|pair| node_hash(&pair[0], &pair[1])),
                ),
            }
            heights.push(Row {
                first: before.size >> height & !1,
                nodes,
            });
        }
        let mut prover = Self {
            before: before.clone(),
            size,
            heights,
            tails: Vec::new(),
        };
        let mut tails: Vec<Hash> = Vec::new();
        for peak in prover.frontier().peaks.iter().rev() {
            tails.push(tails.last().map_or(*peak, |right| node_hash(peak, right)));
        }
        tails.reverse();
        prover.tails = tails;
        prover
    }

    /// Number of leaves in the tree after the batch.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Index of the batch's first leaf: the size of the tree before the batch.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.before.size
    }

    /// The root of the tree after the batch.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.tails.first().copied().unwrap_or(EMPTY_ROOT)
    }

    /// The frontier of the tree after the batch.
    #[must_use]
    pub fn frontier(&self) -> Frontier {
        let mut peaks: Vec<Hash> = (0_u32..)
            .zip(&self.heights)
            .filter(|(height, _)| self.size >> height & 1 == 1)
            // A peak is the last perfect node of its height.
            .filter_map(|(_, row)| row.nodes.last().copied())
            .collect();
        peaks.reverse();
        Frontier {
            size: self.size,
            peaks,
        }
    }

    /// The inclusion proof, in the tree after the batch, of the batch's leaf at `position` (from 0
    /// within the batch); `None` if the batch has no such leaf.
    #[must_use]
    pub fn inclusion(&self, position: usize) -> Option<Vec<Hash>> {
        let index = self.before.size.checked_add(position as u64)?;
        if index >= self.size {
            return None;
        }
        // A sibling is a new node, the old peak that is paired with a new node, or the incomplete
        // edge. To the left of a new leaf, a subtree with old leaves only is always a peak.
        let proof = inclusion_ranges(index, self.size)
            .into_iter()
            .map(|(low, high)| {
                let height = log2(high - low);
                if high - low == 1 << height {
                    self.node(height, low >> height)
                } else {
                    self.tails
                        .get(peaks_above(self.size, height))
                        .copied()
                        .unwrap_or(EMPTY_ROOT)
                }
            })
            .collect();
        Some(proof)
    }

    /// A node in [`Self::heights`]. Callers request no other node. For safety a wrong hash is
    /// returned instead of a panic, because the recipient verifies every proof.
    fn node(&self, height: u32, index: u64) -> Hash {
        self.nodes_from(height, index)
            .first()
            .copied()
            .unwrap_or(EMPTY_ROOT)
    }

    fn nodes_from(&self, height: u32, index: u64) -> &[Hash] {
        self.heights
            .get(height as usize)
            .and_then(|row| {
                let skip = usize::try_from(index.checked_sub(row.first)?).ok()?;
                row.nodes.get(skip..)
            })
            .unwrap_or_default()
    }
}

fn count_ones(size: u64) -> usize {
    size.count_ones() as usize
}

/// Number of peaks above this height: the index of the peak of this height.
fn peaks_above(size: u64, height: u32) -> usize {
    count_ones(size.checked_shr(height + 1).unwrap_or(0))
}

/// Number of digits of `size` in base 256.
fn level_count(size: u64) -> usize {
    (u64::BITS - size.leading_zeros()).div_ceil(8) as usize
}

/// The digit of `size` in base 256 at `level`: the width of that level's incomplete tile.
fn partial_width(size: u64, level: usize) -> usize {
    size.to_le_bytes()
        .get(level)
        .map_or(0, |digit| usize::from(*digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::proof::verify_inclusion;
    use super::super::testing::{Log, leaves, reference_inclusion, reference_root};
    use super::*;

    fn edge_of(count: usize) -> Edge {
        Log::of(&leaves(count)).edge
    }

    #[test]
    fn each_size_has_its_root_and_its_tiles_when_leaves_come_one_by_one() {
        let all = leaves(600);
        let mut edge = Edge::empty();
        let mut tiles = Vec::new();
        assert_eq!(edge.root(), EMPTY_ROOT);
        for (index, leaf) in all.iter().enumerate() {
            tiles.extend(edge.append(&[*leaf]));
            assert_eq!(edge.size(), index as u64 + 1);
            assert_eq!(edge.root(), reference_root(&all[..=index]));
            assert_eq!(tiles.len(), (index + 1) / TILE_WIDTH);
        }
        for (index, tile) in tiles.iter().enumerate() {
            assert_eq!((tile.level, tile.index), (0, index as u64));
            assert_eq!(tile.hashes, all[index * 256..(index + 1) * 256]);
            assert_eq!(tile.root, root_of(&tile.hashes));
        }
    }

    #[test]
    fn a_level_one_tile_is_completed_by_the_65536th_leaf() {
        let all = leaves(65_537);
        let mut edge = Edge::empty();
        assert_eq!(edge.append(&all[..65_535]).len(), 255);
        let tiles = edge.append(&all[65_535..]);
        let ids: Vec<(u8, u64)> = tiles.iter().map(|tile| (tile.level, tile.index)).collect();
        assert_eq!(ids, [(0, 255), (1, 0)]);
        assert_eq!(tiles[1].root, root_of(&all[..65_536]));
        assert_eq!(tiles[1].root, root_of(&tiles[1].hashes));
        assert_eq!(edge.root(), root_of(&all));
        let widths: Vec<usize> = edge.levels().iter().map(Vec::len).collect();
        assert_eq!(widths, [1, 0, 1]);
    }

    #[test]
    fn an_empty_batch_changes_nothing() {
        for count in [0, 1, 255, 256, 300] {
            let before = edge_of(count);
            let mut after = before.clone();
            assert!(after.append(&[]).is_empty());
            assert_eq!(after, before);
            let prover = BatchProver::new(&before, &[]);
            assert_eq!(prover.root(), before.root());
            assert_eq!(prover.inclusion(0), None);
        }
    }

    #[test]
    fn a_batch_does_not_apply_to_another_edge() {
        let all = leaves(20);
        let prover = BatchProver::new(&edge_of(10), &all[10..12]);
        let mut longer = edge_of(11);
        assert_eq!(
            longer.advance(&prover),
            Err(EdgeError::OtherEdge {
                batch: 10,
                edge: 11
            })
        );
        let mut forked = Edge::empty();
        forked.append(&all[10..20]);
        forked.advance(&prover).unwrap_err();
        assert_eq!(longer, edge_of(11));
    }

    #[test]
    fn an_edge_is_restored_only_from_tiles_of_the_right_widths() {
        let edge = edge_of(66_000);
        let levels = edge.levels().to_vec();
        assert_eq!(
            Edge::from_partial_tiles(66_000, levels.clone()).unwrap(),
            edge
        );
        Edge::from_partial_tiles(66_001, levels.clone()).unwrap_err();
        Edge::from_partial_tiles(66_000, levels[..2].to_vec()).unwrap_err();
        Edge::from_partial_tiles(u64::MAX, vec![leaves(255); 8]).unwrap_err();
        for level in 0..levels.len() {
            let mut wider = levels.clone();
            wider[level].push(EMPTY_ROOT);
            Edge::from_partial_tiles(66_000, wider).unwrap_err();
        }
        let peaks = edge.frontier().peaks().to_vec();
        assert_eq!(
            &Frontier::new(66_000, peaks.clone()).unwrap(),
            edge.frontier()
        );
        assert_eq!(
            Frontier::new(66_001, peaks),
            Err(EdgeError::Peaks {
                size: 66_001,
                expected: 6,
                found: 5
            })
        );
        assert_eq!(
            Frontier::new(u64::MAX, leaves(64)),
            Err(EdgeError::TooLarge(u64::MAX))
        );
        assert_eq!(
            Edge::from_partial_tiles(0, Vec::new()).unwrap(),
            Edge::empty()
        );
    }

    #[test]
    fn a_batch_is_proven_at_the_far_end_of_a_huge_tree() {
        // Peaks without real leaves: only the arithmetic of large sizes is tested.
        let size = (1 << 62) - 3;
        let frontier = Frontier::new(size, leaves(61)).unwrap();
        let batch = leaves(300);
        let prover = BatchProver::from_frontier(&frontier, &batch);
        for (position, leaf) in batch.iter().enumerate() {
            let proof = prover.inclusion(position).unwrap();
            let index = size + position as u64;
            verify_inclusion(index, prover.size(), leaf, &proof, &prover.root()).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_batches_give_the_naive_tree_and_its_proofs(
            sizes in prop::collection::vec(prop_oneof![1_usize..6, 200_usize..300, 0_usize..700], 1..12),
            probe in any::<prop::sample::Index>(),
        ) {
            let all = leaves(sizes.iter().sum());
            let mut log = Log::new();
            for size in sizes {
                let start = log.leaves.len();
                let batch = &all[start..start + size];
                let prover = log.append(batch);
                let tree = &all[..start + size];
                prop_assert_eq!(prover.root(), reference_root(tree));
                prop_assert_eq!(log.edge.root(), prover.root());
                prop_assert_eq!(log.edge.size(), tree.len() as u64);
                prop_assert_eq!(log.tiles.len(), tree.len() / 256);
                for (position, leaf) in batch.iter().enumerate() {
                    let proof = prover.inclusion(position).unwrap();
                    let index = prover.first_index() + position as u64;
                    verify_inclusion(index, prover.size(), leaf, &proof, &prover.root()).unwrap();
                }
                if size > 0 {
                    let position = probe.index(size);
                    prop_assert_eq!(
                        prover.inclusion(position).unwrap(),
                        reference_inclusion(start + position, tree)
                    );
                }
                prop_assert_eq!(prover.inclusion(size), None);
            }
            let rebuilt =
                Edge::from_partial_tiles(log.edge.size(), log.edge.levels().to_vec()).unwrap();
            prop_assert_eq!(rebuilt, log.edge);
        }
    }
}
