//! `/v1/decisions`.
//!
//! A query with an unknown parameter is refused when it is parsed. `http::decisions` answers with
//! these shapes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::query::{maybe_number, number};
use super::receipt::ReceiptBody;
use crate::clock::Timestamp;
use crate::domain::record::Record;

/// A decision, with the proof that it is recorded.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other name says it all")]
#[schema(examples(json!({
    "receipt": super::receipt::example_of_permit(),
    "leaf": {
        "v": 2,
        "origin": "broker.example/log",
        "at": "2026-01-01T00:00:00Z",
        "event": "decision",
        "decision": "01890a5d-ac96-774b-bcce-b302099a8059",
        "outcome": "permit",
        "workload": "ci:repo-1",
        "attestor": "ci",
        "resource": "orders-api",
        "task": "01890a5d-ac96-774b-bcce-b302099a8058",
        "session": "01890a5d-ac96-774b-bcce-b302099a8057"
    }
})))]
pub struct DecisionProofBody {
    pub receipt: ReceiptBody,
    /// The leaf as parsed JSON.
    #[schema(value_type = Object)]
    pub leaf: Value,
}

/// The checkpoint to prove a decision under.
#[derive(Debug, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DecisionQuery {
    /// Use the oldest checkpoint over the decision that any witness signed; otherwise the newest.
    #[serde(default)]
    pub witnessed: bool,
    /// Use the oldest checkpoint that the witness of this name signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
}

/// The decisions to list.
#[derive(Debug, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DecisionsQuery {
    /// The first ledger index. For the next page: the last index of the previous page, plus one.
    #[serde(default, deserialize_with = "number")]
    pub from: u64,
    /// The earliest time, in RFC 3339.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The largest number of decisions to return.
    #[serde(
        default,
        deserialize_with = "maybe_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<u32>,
}

/// A recorded decision, with the opening of its leaf's commitment to the evaluation's input. It has
/// the members of a [`Record`]; those that were pruned are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "index": 41,
    "leaf_hash": "4v2SVuPB1q0Y2Hm1eBz0Vv0m8t5Q7l9m9aXk3p0t3bE=",
    "leaf": "eyJmb3JtYXQiOjR9",
    "salt": "c2FsdHNhbHRzYWx0c2FsdA==",
    "input": "e30="
})))]
pub struct DecisionRecordBody {
    /// The index of the leaf in the log.
    pub index: u64,
    /// The hash of the leaf, in base64.
    pub leaf_hash: String,
    /// The bytes of the leaf, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
    /// The salt of the commitment to the input, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The committed bytes, in base64: the input, followed by the policies for a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}

impl From<Record> for DecisionRecordBody {
    fn from(record: Record) -> Self {
        Self {
            index: record.index,
            leaf_hash: record.leaf_hash,
            leaf: record.leaf,
            salt: record.salt,
            input: record.input,
        }
    }
}
