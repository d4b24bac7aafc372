//! The complete input of one evaluation, as recorded with the decision.
//!
//! The broker reads roles from the store only if a policy asks for any. `"roles":[]` means that
//! they were read and there were none. Without the member they were not read.

use serde::{Deserialize, Serialize};

use super::error::PolicyError;
use super::mapping::{PrincipalInput, TaskFacts};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::revocability::Revocability;

/// Every fact that an evaluation may depend on, apart from the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub(super) format: u32,
    pub(super) now: Timestamp,
    pub(super) principal: PrincipalInput,
    pub(super) task: TaskFacts,
    /// `None` if the request only opens a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) credential: Option<CredentialInput>,
}

impl Input {
    /// Increase it with every change of a member. Leaves of format 1 commit to inputs of format 1
    /// and 2.
    pub(super) const FORMAT: u32 = 3;

    /// Parses the recorded bytes of an input.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PolicyError> {
        let read: Self =
            serde_json::from_slice(bytes).map_err(|error| PolicyError::Input(error.to_string()))?;
        match read.format {
            Self::FORMAT => Ok(read),
            other => Err(PolicyError::Input(format!("format {other}"))),
        }
    }

    /// Whether the input records the caller's roles.
    pub(super) fn knows_roles(&self) -> bool {
        self.principal.roles.is_some()
    }
}

/// The part of an input about a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialInput {
    pub(super) resource: String,
    pub(super) authorization_details: Vec<AuthorizationDetail>,
    /// The revocability that the minter states for the requested credential.
    pub(super) revocability: Revocability,
    /// The requested life in seconds; `None` requests the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl_seconds: Option<u64>,
    /// Seconds of life that the task, a parent's credential or a retried credential leave. `None`
    /// if only the answer of policy is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) left_seconds: Option<u64>,
    /// Whether the credential replaces one that was lost in transit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) retried: bool,
}

/// The cache key of an input: a hash of its bytes without the instant, and of the number of
/// enforcement dates that have passed (`phase`). An evaluation reads the instant only to compare it
/// with these dates. So by one generation, inputs with the same key have the same result.
pub(super) fn key(phase: usize, input: &[u8]) -> [u8; 32] {
    let mut bytes = phase.to_be_bytes().to_vec();
    let (before, after) = around_instant(input).unwrap_or((input, &[]));
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(after);
    sha256(&bytes)
}

/// The bytes of an input before and after its instant, for inputs in the current format. Other
/// orders of the members are valid too; for those the instant is part of the key.
fn around_instant(input: &[u8]) -> Option<(&[u8], &[u8])> {
    const BEFORE: &[u8] = b"{\"format\":";
    const NOW: &[u8] = b",\"now\":\"";
    let format = input.strip_prefix(BEFORE)?;
    let digits = format
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (_, rest) = format.split_at_checked(digits)?;
    let instant = rest.strip_prefix(NOW)?;
    let end = instant.iter().position(|byte| *byte == b'"')?;
    let before = input.get(..BEFORE.len() + digits)?;
    Some((before, instant.get(end..)?))
}
