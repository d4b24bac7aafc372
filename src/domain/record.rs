//! A decision for readers of the whole log: its leaf, and the opening of the leaf's commitment to
//! the evaluation's input. The format is one line of JSON for each decision.

use serde::{Deserialize, Serialize};

/// One recorded decision. Pruned members are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Leaf index in the log.
    pub index: u64,
    /// Hash of the leaf, in base64.
    pub leaf_hash: String,
    /// Bytes of the leaf, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
    /// Salt of the commitment to the input, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The committed bytes, in base64: the input, followed by the policies for a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}
