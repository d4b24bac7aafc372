//! The proof that a leaf is in the log, as answers carry it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The proof that a leaf is in the log. `crate::merkle::Receipt` reads and verifies this form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Receipt)]
pub struct ReceiptBody {
    /// The leaf's bytes in base64.
    pub leaf: String,
    /// The hash of the leaf in base64.
    pub leaf_hash: String,
    /// The leaf's index in the log.
    pub index: u64,
    /// The number of leaves of the proof's tree.
    pub tree_size: u64,
    /// The hashes in base64, from the leaf's sibling to the root's child.
    pub inclusion_proof: Vec<String>,
    /// The signed checkpoint of that tree.
    pub checkpoint: String,
}
