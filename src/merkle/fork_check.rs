//! The roots of a tree at two sizes, from one set of hashes. This distinguishes a forked log from
//! invalid hashes in tiles that come from an untrusted party.
//!
//! A failed consistency proof has two possible causes: the new tree does not continue the old one,
//! or a hash is invalid. A [`GrowthPlan`] computes both roots from one set of hashes ([`Growth`]).
//! If the newer root is the one that the log signed, the hashes belong to that tree, and so does
//! the computed older root. If this older root differs from the known one, the log forked. If the
//! newer root differs, the hashes prove nothing.
//!
//! A missing tile or one of the wrong width is a [`PlanError`]. The two comparisons are left to the
//! caller, `audit::monitor`, which also fetches the tiles.

use std::collections::HashMap;

use super::hash::{EMPTY_ROOT, Hash, node_hash};
use super::proof_ranges::split;
use super::tile::TileId;
use super::tile_plan::{ConsistencyPlan, Plan, PlanError};

/// The plan for both roots of a tree that grew.
#[derive(Clone, Debug)]
pub struct GrowthPlan {
    from: u64,
    to: u64,
    plan: Plan,
    proof: ConsistencyPlan,
}

/// The roots and the proof that a set of hashes gives for a tree that grew. They are valid for the
/// tree whose root is `to_root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The root of the tree's first leaves, as many as requested.
    pub from_root: Hash,
    /// The root of the whole tree.
    pub to_root: Hash,
    /// The consistency proof between both (RFC 9162).
    pub proof: Vec<Hash>,
}

impl GrowthPlan {
    /// The plan for a tree of `to` leaves and its first `from`.
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

    /// Both roots. Compare the newer root with the signed one before using the older.
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

/// The nodes, from left to right, that lie entirely before leaf `from` or entirely after it, and
/// whose parents do not.
fn cover(low: u64, high: u64, from: u64, ranges: &mut Vec<(u64, u64)>) {
    if high <= from || low >= from {
        ranges.push((low, high));
        return;
    }
    let middle = low + split(high - low);
    cover(low, middle, from, ranges);
    cover(middle, high, from, ranges);
}

/// The hash of the node, and that of its part before leaf `from` if it has one, from the hashes of
/// [`cover`]. A node of a tree and the same node cut at `from` are split at the same leaf if `from`
/// is after that leaf.
fn combine(
    low: u64,
    high: u64,
    from: u64,
    hashes: &mut impl Iterator<Item = Hash>,
) -> (Hash, Option<Hash>) {
    if high <= from || low >= from {
        // There is one for each range. For safety a wrong hash is used instead of a panic: the
        // result is compared with a known root.
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
            let index = lie.index(tile.len());
            tile[index] = EMPTY_ROOT;
            let lied = plan.build(&tiles).unwrap();
            // A hash that no node uses changes nothing; any other one changes the newer root.
            prop_assert!(lied.to_root != newer || lied == growth);
        }
    }
}
