//! `/v1/workloads`: the registered keys of workloads.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A workload key to register.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "attestor": "keys",
    "workload": "nightly-report",
    "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
})))]
pub struct WorkloadKeyBody {
    /// The name of the attestor.
    pub attestor: String,
    /// The name of the workload.
    pub workload: String,
    /// The public key as a JWK: Ed25519 or P-256.
    #[schema(value_type = Object)]
    pub jwk: Value,
}

/// A workload key to remove.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "attestor": "keys",
    "workload": "nightly-report",
    "thumbprint": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
})))]
pub struct WorkloadKeyRef {
    /// The name of the attestor.
    pub attestor: String,
    /// The name of the workload.
    pub workload: String,
    /// The key's thumbprint (RFC 7638).
    pub thumbprint: String,
}

/// The registered workload keys.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the name says it all")]
#[schema(examples(json!({"workloads": [{
    "attestor": "keys",
    "workload": "nightly-report",
    "thumbprint": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
}]})))]
pub struct WorkloadKeysBody {
    pub workloads: Vec<RegisteredKeyBody>,
}

/// A registered workload key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RegisteredKeyBody {
    /// The name of the attestor.
    pub attestor: String,
    /// The name of the workload.
    pub workload: String,
    /// The key's thumbprint (RFC 7638).
    pub thumbprint: String,
    /// The public key as a JWK. `null` if the record has none.
    #[schema(value_type = Option<Object>)]
    pub jwk: Option<Value>,
}

/// The name of a workload key that was registered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"thumbprint": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"})))]
pub struct ThumbprintBody {
    /// The key's thumbprint (RFC 7638).
    pub thumbprint: String,
}
