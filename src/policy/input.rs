//! The complete input of one evaluation, as it is recorded beside the decision.
//!
//! Roles are read from the store only where a policy asks for any: `"roles":[]` was read and there were
//! none, and without the member they were not read.

use serde::{Deserialize, Serialize};

use super::decide::PolicyError;
use super::mapping::{PrincipalInput, TaskFacts};
use crate::clock::Timestamp;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::revocability::Revocability;

/// Everything that an evaluation may depend on beside the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub(super) format: u32,
    pub(super) now: Timestamp,
    pub(super) principal: PrincipalInput,
    pub(super) task: TaskFacts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) credential: Option<CredentialInput>,
}

impl Input {
    /// Counted up with every change of a member. Leaves of format 1 committed to 1 and 2.
    pub(super) const FORMAT: u32 = 3;

    /// Reads recorded bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PolicyError> {
        let read: Self =
            serde_json::from_slice(bytes).map_err(|error| PolicyError::Input(error.to_string()))?;
        match read.format {
            Self::FORMAT => Ok(read),
            other => Err(PolicyError::Input(format!("format {other}"))),
        }
    }

    /// Whether it is on record which roles the caller had.
    pub(super) fn knows_roles(&self) -> bool {
        self.principal.roles.is_some()
    }
}

/// The part of an input that is about a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialInput {
    pub(super) resource: String,
    pub(super) authorization_details: Vec<AuthorizationDetail>,
    /// Of the credential that would be made, as its minter states it.
    pub(super) revocability: Revocability,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl_seconds: Option<u64>,
    /// What the task, a parent's credential or a retried one leave of a life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) left_seconds: Option<u64>,
    /// Whether it replaces one that was lost on its way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) retried: bool,
}
