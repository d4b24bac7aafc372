//! `/v1/keys`: the broker's signing keys.
//!
//! A request with an unknown member is refused when `http::json` parses it. `http::admin` serves
//! these shapes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;

/// The broker's signing keys.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the name says it all")]
#[schema(examples(json!({"keys": [{
    "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "purpose": "access_token",
    "algorithm": "EdDSA",
    "published_at": "2026-01-01T00:00:00Z",
    "active_from": "2026-01-01T01:00:00Z",
    "retire_at": "2026-04-01T01:00:00Z",
    "remove_at": "2026-04-02T01:00:00Z",
    "revoked_at": null,
    "signing": true
}]})))]
pub struct KeysBody {
    pub keys: Vec<KeyBody>,
}

/// A signing key, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyBody {
    /// The key's id: the thumbprint of its public half.
    pub kid: String,
    /// The use of the key: `access_token`, `ledger` or `federation`.
    pub purpose: String,
    /// The algorithm of its signatures, as in JOSE.
    pub algorithm: String,
    /// When the key set first contains it.
    #[schema(value_type = String, format = DateTime)]
    pub published_at: Timestamp,
    /// From when on it may sign.
    #[schema(value_type = String, format = DateTime)]
    pub active_from: Timestamp,
    /// When it stops signing.
    #[schema(value_type = String, format = DateTime)]
    pub retire_at: Timestamp,
    /// When it leaves the key set.
    #[schema(value_type = String, format = DateTime)]
    pub remove_at: Timestamp,
    /// When it was revoked. `null` if it was not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
    /// Whether it signs now.
    pub signing: bool,
}

/// The key that a rotation made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"})))]
pub struct RotatedKeyBody {
    /// The id of the new key.
    pub kid: String,
}

/// The ledger key that a rotation made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"vkey": "broker.example/log+8a9b0c1d+ARdLRrYJ1Ze7nFnmQn2HPMIPSMZ3VFdZ0cmSmXvdzxYn"})))]
pub struct RotatedLedgerKeyBody {
    /// The verifier key of signed notes.
    pub vkey: String,
}

/// The result of sealing every key again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"resealed": 4})))]
pub struct ResealedBody {
    /// The number of records that were sealed again.
    pub resealed: u64,
}

/// The revocation of a signing key.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"dry_run": false})))]
pub struct RevokeKeyBody {
    /// Whether to report the consequences without revoking the key.
    #[serde(default)]
    pub dry_run: bool,
}

/// The consequences of the revocation of a signing key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "withdrawn": true,
    "signing": true,
    "successor": "RIzp2ytP2_2AfWFP2d3DCPUr-h0O2_OA7aCLaIJxsjY",
    "issuance_resumes_at": null,
    "matched": null,
    "cached_until": "2026-01-01T01:00:00Z"
})))]
pub struct KeyWithdrawalBody {
    /// The id of the key.
    pub kid: String,
    /// Whether the key was revoked.
    pub withdrawn: bool,
    /// Whether it signed new tokens until now.
    pub signing: bool,
    /// The key that signs new tokens afterwards. `null` if no key can at once.
    pub successor: Option<String>,
    /// When new tokens are signed again. `null` if there is a successor, or if the operator has to
    /// provide another key.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub issuance_resumes_at: Option<Timestamp>,
    /// In a dry run: the number of live sessions whose tokens it signed.
    pub matched: Option<u64>,
    /// Whether counting stopped there: more than `matched` sessions match.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_more: bool,
    /// Until when verifiers that do not ask the broker may accept its tokens by a cached key set.
    #[schema(value_type = String, format = DateTime)]
    pub cached_until: Timestamp,
}
