//! The complete input of one evaluation, as it is recorded beside the decision.

use serde::{Deserialize, Serialize};

use super::decide::PolicyError;
use super::mapping::{PrincipalInput, TaskFacts};
use crate::clock::Timestamp;
use crate::domain::grant::AuthorizationDetail;

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
    pub(super) const FORMAT: u32 = 1;

    /// Reads recorded bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PolicyError> {
        let read: Self =
            serde_json::from_slice(bytes).map_err(|error| PolicyError::Input(error.to_string()))?;
        if read.format != Self::FORMAT {
            return Err(PolicyError::Input(format!("format {}", read.format)));
        }
        Ok(read)
    }
}

/// The part of an input that is about a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialInput {
    pub(super) resource: String,
    pub(super) authorization_details: Vec<AuthorizationDetail>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl_seconds: Option<u64>,
    /// What the task, a parent's credential or a retried one leave of a life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) left_seconds: Option<u64>,
    /// Whether it replaces one that was lost on its way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) retried: bool,
}
