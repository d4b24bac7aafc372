//! A decision as those who may read the whole log get it: its leaf, and what opens its commitment
//! to the evaluation's input. One line of JSON each.

use serde::{Deserialize, Serialize};

/// One recorded decision. What was pruned is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The leaf's place in the log.
    pub index: u64,
    /// The leaf's hash, in base64.
    pub leaf_hash: String,
    /// The leaf's bytes, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
    /// The salt of the commitment to the input, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The committed bytes, in base64: the input, and for a refusal its policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}
