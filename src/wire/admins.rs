//! `/v1/admins`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::workload::Identity;

/// A role of an identity.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"workload": "ci:repo-1", "role": "operator"})))]
pub struct AdminBody {
    /// The identity, for example `ci:repo-1`.
    #[schema(value_type = String)]
    pub workload: Identity,
    /// The role's name in policies.
    pub role: String,
}

/// The identities that have a role.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"admins": [{"workload": "ci:repo-1", "role": "operator"}]})))]
pub struct AdminsBody {
    /// One member for each role of an identity.
    pub admins: Vec<BoundRoleBody>,
}

/// A recorded role of an identity.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BoundRoleBody {
    /// The identity, for example `ci:repo-1`.
    pub workload: String,
    /// The role's name in policies.
    pub role: String,
}
