//! The nodes of a proof, each as the range of the leaves below it.
//!
//! `inclusion_ranges` and `consistency_ranges` give the nodes of a proof in its order; `split` and
//! `log2` are the arithmetic of the tree.
//!
//! The rule: a range `(low, high)` contains `low` and not `high`, and its size is a power of two,
//! except at the right edge of the tree. Nothing fails here: the callers check index and sizes
//! before. `tile_plan` and `fork_check` find the tiles with the hashes of the nodes, and
//! `compact_range` has those of a batch. No hash is computed here.

/// The ranges whose hashes prove the inclusion of a leaf, from its sibling to the root's child (RFC
/// 9162 §2.1.3.1).
pub(super) fn inclusion_ranges(index: u64, size: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let (mut low, mut high) = (0, size);
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The ranges whose hashes prove that a tree begins with its first `from` leaves (§2.1.4.1).
pub(super) fn consistency_ranges(from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    if from == 0 || from == to {
        return ranges;
    }
    let (mut low, mut high) = (0, to);
    while from != high {
        let middle = low + split(high - low);
        if from <= middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    // The last node of the older tree, unless it is the whole older tree, whose root is known.
    if low > 0 {
        ranges.push((low, high));
    }
    ranges.reverse();
    ranges
}

/// The largest power of two below `size`, for `size > 1`.
pub(super) fn split(size: u64) -> u64 {
    1 << log2(size - 1)
}

/// The exponent of the largest power of two that is not above `number`; 0 for 0.
pub(super) fn log2(number: u64) -> u32 {
    number.checked_ilog2().unwrap_or(0)
}
