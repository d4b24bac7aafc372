//! `/readyz`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The report of a ready replica.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "replica": "replica_mrk0vndAnpTQ54ko",
    "endpoints": "sha256:b401766cf8284c9aa8ee0b2684eb19425c73d660b84f8477c8743684dd99176d",
    "other_endpoints": []
})))]
pub struct ReadyBody {
    /// The replica's name, as in leases and logs.
    pub replica: String,
    /// The digest of its endpoints.
    pub endpoints: String,
    /// Running replicas with other endpoints than this one.
    pub other_endpoints: Vec<OtherEndpointsBody>,
}

/// A replica with other endpoints.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OtherEndpointsBody {
    /// The name of the replica.
    pub replica: String,
    /// The digest of its endpoints.
    pub endpoints: String,
}
