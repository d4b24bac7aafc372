//! Verification of proofs by RFC 9162 §2.1.3.2 and §2.1.4.2.
//!
//! [`verify_inclusion`] shows that a leaf is in a tree, and [`verify_consistency`] that one tree
//! begins with all leaves of another. Both accept exactly the proofs that the RFC defines: a proof
//! with a hash too many or too few is refused, as is one that leads to another root.
//!
//! Every failure is a [`ProofError`], and none panics on any input. A failed consistency proof has
//! two possible causes, a fork or wrong hashes, which [`super::fork_check`] distinguishes. Whether
//! a root is that of the log is left to the caller: [`super::checkpoint`] verifies its signature.
//! [`super::tile_plan`] builds proofs.

use super::hash::{EMPTY_ROOT, Hash, node_hash};

/// Maximum number of hashes in a proof: a tree of 2⁶⁴ leaves has 64 levels.
pub const MAX_PROOF_HASHES: usize = 64;

/// The reason why a proof is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
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
    /// The proof has fewer hashes than the tree requires.
    #[error("the proof has too few hashes")]
    TooShort,
    /// The proof has more hashes than the tree requires.
    #[error("the proof has too many hashes")]
    TooLong,
    /// The proof leads to another root; for consistency, to another newer root.
    #[error("the proof leads to another root")]
    WrongRoot,
    /// The proof leads to another older root.
    #[error("the proof leads to another root of the older tree")]
    WrongOlderRoot,
}

/// Verifies that `leaf_hash` is the leaf `index` of the tree of `size` leaves with this `root`.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf_hash: &Hash,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::IndexOutOfRange { index, size });
    }
    let mut node = index;
    let mut last = size - 1;
    let mut hash = *leaf_hash;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::TooLong);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            rise_to_right_child(&mut node, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::TooShort);
    }
    if hash != *root {
        return Err(ProofError::WrongRoot);
    }
    Ok(())
}

/// Verifies that the tree of `to` leaves with root `root_to` begins with all `from` leaves of the
/// tree with root `root_from`, in the same order.
///
/// Stricter than the RFC in one point: the RFC leaves `from == 0` to the caller, since every tree
/// begins with the empty one. Here `root_from` must then be [`EMPTY_ROOT`] and the proof empty.
pub fn verify_consistency(
    from: u64,
    to: u64,
    proof: &[Hash],
    root_from: &Hash,
    root_to: &Hash,
) -> Result<(), ProofError> {
    if from > to {
        return Err(ProofError::SizesReversed { from, to });
    }
    if from == 0 || from == to {
        if !proof.is_empty() {
            return Err(ProofError::TooLong);
        }
        if from == 0 && *root_from != EMPTY_ROOT {
            return Err(ProofError::WrongOlderRoot);
        }
        if from == to && root_from != root_to {
            return Err(ProofError::WrongRoot);
        }
        return Ok(());
    }

    let mut node = from - 1;
    let mut last = to - 1;
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    // A perfect older tree is itself the first node and is not repeated in the proof.
    let (start, rest) = if from.is_power_of_two() {
        if proof.is_empty() {
            return Err(ProofError::TooShort);
        }
        (*root_from, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or(ProofError::TooShort)?;
        (*first, rest)
    };
    let mut older = start;
    let mut newer = start;
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::TooLong);
        }
        if node & 1 == 1 || node == last {
            older = node_hash(sibling, &older);
            newer = node_hash(sibling, &newer);
            rise_to_right_child(&mut node, &mut last);
        } else {
            newer = node_hash(&newer, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::TooShort);
    }
    if older != *root_from {
        return Err(ProofError::WrongOlderRoot);
    }
    if newer != *root_to {
        return Err(ProofError::WrongRoot);
    }
    Ok(())
}

/// A last node without a right neighbour moves up unchanged until it is a right child.
fn rise_to_right_child(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        flip, hex, leaves, reference_consistency, reference_inclusion, reference_leaves,
        reference_root,
    };
    use super::*;

    #[test]
    fn the_reference_tree_has_the_published_proofs() {
        let tree = reference_leaves();
        // The published paths of leaf 0 of 8, leaf 5 of 8, leaf 2 of 3 and leaf 1 of 5.
        let cases: [(usize, usize, &[&str]); 4] = [
            (
                0,
                8,
                &[
                    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
                ],
            ),
            (
                5,
                8,
                &[
                    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                ],
            ),
            (
                2,
                3,
                &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
            ),
            (
                1,
                5,
                &[
                    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                ],
            ),
        ];
        for (index, size, path) in cases {
            let path: Vec<Hash> = path.iter().map(|text| hex(text)).collect();
            assert_eq!(reference_inclusion(index, &tree[..size]), path);
            let root = reference_root(&tree[..size]);
            verify_inclusion(index as u64, size as u64, &tree[index], &path, &root).unwrap();
        }
        let consistency: Vec<Hash> = [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
        .iter()
        .map(|text| hex(text))
        .collect();
        assert_eq!(reference_consistency(6, &tree), consistency);
        verify_consistency(
            6,
            8,
            &consistency,
            &reference_root(&tree[..6]),
            &reference_root(&tree),
        )
        .unwrap();
    }

    #[test]
    fn every_leaf_of_every_tree_up_to_70_is_proven_and_nothing_else_is() {
        let tree = leaves(71);
        for size in 1..=70 {
            let root = reference_root(&tree[..size]);
            for index in 0..size {
                let proof = reference_inclusion(index, &tree[..size]);
                let verify = |index: usize, size: usize, leaf: &Hash, proof: &[Hash]| {
                    verify_inclusion(index as u64, size as u64, leaf, proof, &root)
                };
                verify(index, size, &tree[index], &proof).unwrap();
                assert_eq!(
                    verify(index, size, &tree[index + 1], &proof),
                    Err(ProofError::WrongRoot)
                );
                for wrong in (0..size).filter(|wrong| *wrong != index) {
                    verify(wrong, size, &tree[index], &proof).unwrap_err();
                }
                assert_eq!(
                    verify(size, size, &tree[index], &proof),
                    Err(ProofError::IndexOutOfRange {
                        index: size as u64,
                        size: size as u64
                    })
                );
                let longer = [proof.clone(), vec![tree[0]]].concat();
                assert_eq!(
                    verify(index, size, &tree[index], &longer),
                    Err(ProofError::TooLong)
                );
                if let Some((_, shorter)) = proof.split_last() {
                    assert_eq!(
                        verify(index, size, &tree[index], shorter),
                        Err(ProofError::TooShort)
                    );
                }
            }
        }
    }

    #[test]
    fn every_pair_of_trees_up_to_70_is_consistent_and_a_changed_one_is_not() {
        let tree = leaves(70);
        let roots: Vec<Hash> = (0..=70).map(|size| reference_root(&tree[..size])).collect();
        for to in 0..=70 {
            for from in 0..=to {
                let proof = reference_consistency(from, &tree[..to]);
                let verify = |from: usize, proof: &[Hash], older: &Hash, newer: &Hash| {
                    verify_consistency(from as u64, to as u64, proof, older, newer)
                };
                verify(from, &proof, &roots[from], &roots[to]).unwrap();
                let longer = [proof.clone(), vec![tree[0]]].concat();
                assert_eq!(
                    verify(from, &longer, &roots[from], &roots[to]),
                    Err(ProofError::TooLong)
                );
                verify(from, &proof, &flip(roots[from], 7), &roots[to]).unwrap_err();
                if from > 0 {
                    verify(from, &proof, &roots[from], &flip(roots[to], 7)).unwrap_err();
                }
                if let Some((_, shorter)) = proof.split_last() {
                    assert_eq!(
                        verify(from, shorter, &roots[from], &roots[to]),
                        Err(ProofError::TooShort)
                    );
                }
                if to > from {
                    assert_eq!(
                        verify_consistency(
                            to as u64,
                            from as u64,
                            &proof,
                            &roots[to],
                            &roots[from]
                        ),
                        Err(ProofError::SizesReversed {
                            from: to as u64,
                            to: from as u64
                        })
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn one_flipped_bit_breaks_an_inclusion_proof(
            size in 1_usize..300, at in any::<prop::sample::Index>(),
            which in any::<prop::sample::Index>(), bit in 0_usize..256,
        ) {
            let tree = leaves(size);
            let index = at.index(size);
            let mut root = reference_root(&tree);
            let mut leaf = tree[index];
            let mut proof = reference_inclusion(index, &tree);
            match which.index(proof.len() + 2) {
                0 => root = flip(root, bit),
                1 => leaf = flip(leaf, bit),
                hash => proof[hash - 2] = flip(proof[hash - 2], bit),
            }
            prop_assert_eq!(
                verify_inclusion(index as u64, size as u64, &leaf, &proof, &root),
                Err(ProofError::WrongRoot)
            );
        }

        #[test]
        fn one_flipped_bit_breaks_a_consistency_proof(
            size in 2_usize..300, at in any::<prop::sample::Index>(),
            which in any::<prop::sample::Index>(), bit in 0_usize..256,
        ) {
            let tree = leaves(size);
            let from = 1 + at.index(size - 1);
            let mut older = reference_root(&tree[..from]);
            let mut newer = reference_root(&tree);
            let mut proof = reference_consistency(from, &tree);
            match which.index(proof.len() + 2) {
                0 => older = flip(older, bit),
                1 => newer = flip(newer, bit),
                hash => proof[hash - 2] = flip(proof[hash - 2], bit),
            }
            verify_consistency(from as u64, size as u64, &proof, &older, &newer).unwrap_err();
        }

        #[test]
        fn no_numbers_make_a_verifier_panic(
            from in any::<u64>(), to in any::<u64>(), count in 0_usize..70,
        ) {
            let proof = leaves(count);
            let root = EMPTY_ROOT;
            prop_assert!(verify_inclusion(from, to, &root, &proof, &root).is_err());
            if from != to && from != 0 {
                prop_assert!(verify_consistency(from, to, &proof, &root, &root).is_err());
            }
        }
    }
}
