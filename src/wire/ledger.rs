//! `/v1/ledger`: keys, entries, proofs.
//!
//! A request or query with an unknown member is refused when it is parsed. `http::ledger` serves
//! these shapes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::query::{maybe_number, number};
use crate::clock::Timestamp;
use crate::ids::CutoffId;

/// The log's verifier keys.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"vkeys": [
    "broker.example/log+e93fef39+AT0QF683dFtYaPP11+WYDRph3ydibLMUXuaKJih/Xlj3"
]})))]
pub struct VkeysBody {
    /// Verifier keys of signed notes, the current one first.
    pub vkeys: Vec<String>,
}

/// The acceptance of the broker's time.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "time": "2026-01-01T00:05:00Z",
    "reason": "the clock was a month ahead after the outage"
})))]
pub struct AcceptTimeAsk {
    /// The time of the admin's clock. It must be within 60 s of the broker's.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// The reason, for people.
    pub reason: String,
}

/// A time that was accepted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "id": "01890a5d-ac96-774b-bcce-b302099a805d",
    "index": 44,
    "recorded_time": "2026-02-01T00:00:00Z",
    "accepted_time": "2026-01-01T00:05:00Z"
})))]
pub struct AcceptTimeBody {
    /// The id of the cutoff of permits with a later date.
    #[schema(value_type = String, format = Uuid)]
    pub id: CutoffId,
    /// The index of the leaf that records the acceptance.
    pub index: u64,
    /// The time in the newest leaf before it.
    #[schema(value_type = String, format = DateTime)]
    pub recorded_time: Timestamp,
    /// The time that was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_time: Timestamp,
}

/// A leaf of the log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "index": 4,
    "leaf_hash": "9XoB9JdYvUS8+eEVsWfQJMnXCpJJHrxBkKkYcIFSb1E=",
    "leaf": "eyJ2IjoyLCJvcmlnaW4iOiJicm9rZXIuZXhhbXBsZS9sb2ciLCJhdCI6IjIwMjYtMDEtMDFUMDA6MDA6MDBaIiwiZXZlbnQiOiJkZWNpc2lvbiIsImRlY2lzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDU5Iiwib3V0Y29tZSI6InBlcm1pdCIsIndvcmtsb2FkIjoiY2k6cmVwby0xIiwiYXR0ZXN0b3IiOiJjaSIsInJlc291cmNlIjoib3JkZXJzLWFwaSIsInRhc2siOiIwMTg5MGE1ZC1hYzk2LTc3NGItYmNjZS1iMzAyMDk5YTgwNTgiLCJzZXNzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDU3In0="
})))]
pub struct EntryBody {
    pub index: u64,
    /// The hash of the leaf in base64.
    pub leaf_hash: String,
    /// The leaf's bytes in base64; absent once they are pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
}

/// The tree to prove a leaf in.
#[derive(Debug, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ProofQuery {
    /// The number of leaves of the tree. If absent, the tree of a signed checkpoint is used, and
    /// the answer also has that checkpoint and the leaf, which make it a receipt.
    #[serde(
        default,
        deserialize_with = "maybe_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub tree_size: Option<u64>,
    /// Use the oldest checkpoint over the leaf that any witness signed; otherwise the newest.
    #[serde(default)]
    pub witnessed: bool,
    /// Use the oldest checkpoint that the witness of this name signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
}

/// The proof that a leaf is in a tree.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(super::receipt::example_of_permit))]
pub struct InclusionBody {
    pub index: u64,
    pub tree_size: u64,
    /// The hash of the leaf in base64.
    pub leaf_hash: String,
    /// The hashes in base64, from the leaf's sibling to the root's child.
    pub inclusion_proof: Vec<String>,
    /// The signed checkpoint of that tree, unless the request gave its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// With a checkpoint: the leaf's bytes in base64; absent once they are pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
}

/// The trees to compare.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyQuery {
    /// The number of leaves of the earlier tree.
    #[serde(deserialize_with = "number")]
    pub from: u64,
    /// The number of leaves of the later tree; if absent, of the newest.
    #[serde(
        default,
        deserialize_with = "maybe_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub to: Option<u64>,
}

/// The proof that one tree is a prefix of another.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "from": 4,
    "to": 7,
    "consistency_proof": ["o6qb8Uu9cVGHHRUcWc3ASaRRHuL27+VN9/CY0wOuLec="]
})))]
pub struct ConsistencyBody {
    pub from: u64,
    pub to: u64,
    /// The hashes in base64.
    pub consistency_proof: Vec<String>,
}
