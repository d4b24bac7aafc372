//! `/readyz`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The report of a ready replica.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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
