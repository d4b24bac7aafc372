//! The roots of two sizes of one tree, from the same hashes: what tells a log that forked from tiles
//! that nobody can read.
//!
//! A consistency proof that fails does not say whose fault that is: a tree that is not the old one's
//! continuation, or a hash that somebody made up. Here both roots are computed from one set of
//! hashes. Where the newer one comes out as the log signed it, the hashes are that tree's own, and
//! so is the older root: another one than was known before is then the log's doing. Where it does
//! not, the hashes say nothing at all.

use std::collections::HashMap;

use super::hash::{EMPTY_ROOT, Hash, node_hash};
use super::plan::{ConsistencyPlan, Plan, PlanError, split};
use super::tile::TileId;

/// Both roots of a tree that grew.
#[derive(Clone, Debug)]
pub struct GrowthPlan {
    from: u64,
    to: u64,
    plan: Plan,
    proof: ConsistencyPlan,
}

/// What a set of hashes says of a tree that grew. It is true of the tree whose root is `to_root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The root of the tree's first leaves, as many as were asked for.
    pub from_root: Hash,
    /// The root of the whole tree.
    pub to_root: Hash,
    /// The proof that the one continues the other (RFC 9162).
    pub proof: Vec<Hash>,
}

impl GrowthPlan {
    /// For a tree of `to` leaves and its first `from`.
    pub fn new(from: u64, to: u64) -> Result<Self, PlanError> {
        let proof = ConsistencyPlan::new(from, to)?;
        let mut ranges = Vec::new();
        cover(0, to, from, &mut ranges);
        Ok(Self {
            from,
            to,
            plan: Plan::new(ranges, to),
            proof,
        })
    }

    /// The tiles to fetch.
    #[must_use]
    pub fn tiles(&self) -> &[TileId] {
        self.plan.tiles()
    }

    /// Both roots. Compare the newer one with the one that the log signed before looking at the
    /// older.
    pub fn build(&self, tiles: &HashMap<TileId, Vec<Hash>>) -> Result<Growth, PlanError> {
        let hashes = self.plan.build(tiles)?;
        let (to_root, from_root) = combine(0, self.to, self.from, &mut hashes.into_iter());
        Ok(Growth {
            from_root: from_root.unwrap_or(EMPTY_ROOT),
            to_root,
            proof: self.proof.build(tiles)?,
        })
    }
}

/// The nodes, left to right, that lie wholly before leaf `from` or wholly after, and whose parents
/// do not.
fn cover(low: u64, high: u64, from: u64, ranges: &mut Vec<(u64, u64)>) {
    if high <= from || low >= from {
        ranges.push((low, high));
        return;
    }
    let middle = low + split(high - low);
    cover(low, middle, from, ranges);
    cover(middle, high, from, ranges);
}

/// The hash of the node, and of its part before leaf `from` if it has one, from the hashes of
/// [`cover`]. A node of a tree and the same node cut at `from` are split at the same leaf as long as
/// `from` lies behind that leaf.
fn combine(
    low: u64,
    high: u64,
    from: u64,
    hashes: &mut impl Iterator<Item = Hash>,
) -> (Hash, Option<Hash>) {
    if high <= from || low >= from {
        // There is one for each range. A hash that fits nothing is better than a panic: what comes
        // out is compared with a root that is known.
        let hash = hashes.next().unwrap_or(EMPTY_ROOT);
        return (hash, (high <= from).then_some(hash));
    }
    let middle = low + split(high - low);
    let (left, left_part) = combine(low, middle, from, hashes);
    let (right, right_part) = combine(middle, high, from, hashes);
    let part = match right_part {
        Some(right) => Some(node_hash(&left, &right)),
        None => left_part,
    };
    (node_hash(&left, &right), part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::proof::verify_consistency;
    use super::super::testing::{Log, leaves, reference_root};
    use super::*;

    fn fetched(log: &Log, plan: &GrowthPlan) -> HashMap<TileId, Vec<Hash>> {
        log.read(plan.tiles())
    }

    #[test]
    fn both_roots_of_every_pair_of_sizes_come_out() {
        let all = leaves(70);
        let log = Log::of(&all);
        for to in 0..=all.len() {
            for from in 0..=to {
                let plan = GrowthPlan::new(from as u64, to as u64).unwrap();
                let growth = plan.build(&fetched(&log, &plan)).unwrap();
                assert_eq!(growth.from_root, reference_root(&all[..from]));
                assert_eq!(growth.to_root, reference_root(&all[..to]));
            }
        }
        assert!(GrowthPlan::new(2, 1).is_err());
    }

    #[test]
    fn a_huge_tree_needs_few_tiles() {
        for (from, to) in [
            (1, u64::MAX),
            (u64::MAX - 1, u64::MAX),
            (1 << 63, u64::MAX),
            (0xaaaa_aaaa_aaaa_aaaa, 0xffff_0000_ffff_ffff),
        ] {
            assert!(GrowthPlan::new(from, to).unwrap().tiles().len() <= 16);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_leads_to_the_newer_root_is_the_truth_about_the_older(
            to in 1_usize..1_200, from in any::<prop::sample::Index>(), lie in any::<prop::sample::Index>(),
        ) {
            let all = leaves(to);
            let log = Log::of(&all);
            let from = from.index(to + 1);
            let plan = GrowthPlan::new(from as u64, to as u64).unwrap();
            let mut tiles = fetched(&log, &plan);
            let growth = plan.build(&tiles).unwrap();
            let (older, newer) = (reference_root(&all[..from]), reference_root(&all));
            prop_assert_eq!((growth.from_root, growth.to_root), (older, newer));
            verify_consistency(from as u64, to as u64, &growth.proof, &older, &newer).unwrap();

            let id = plan.tiles()[lie.index(plan.tiles().len())];
            let tile = tiles.get_mut(&id).unwrap();
            let place = lie.index(tile.len());
            tile[place] = EMPTY_ROOT;
            let lied = plan.build(&tiles).unwrap();
            // A hash that no node is made of changes nothing; any other one shows in the newer root.
            prop_assert!(lied.to_root != newer || lied == growth);
        }
    }
}
