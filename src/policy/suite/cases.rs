//! The format of test files: the cases and their expectations.
//!
//! A member that no kind of case has is an error, because a misspelt expectation would be no
//! expectation. The parent module runs the cases.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::domain::action::ActionName;
use crate::domain::decision::Outcome;
use crate::domain::location::Location;
use crate::domain::revocability::Revocability;
use crate::domain::workload::{ClaimValue, Identity};

/// A test file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestFile {
    #[serde(default)]
    pub(super) credential: Vec<CredentialCase>,
    #[serde(default)]
    pub(super) task: Vec<TaskCase>,
    #[serde(default)]
    pub(super) admin: Vec<AdminCase>,
}

// `deny_unknown_fields` and `flatten` exclude each other, so the three kinds of case repeat the
// workload's fields.

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialCase {
    pub(super) name: String,
    pub(super) attestor: String,
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, ClaimValue>,
    #[serde(default)]
    pub(super) roles: BTreeSet<String>,
    pub(super) resource: String,
    pub(super) actions: BTreeSet<ActionName>,
    /// Empty: every location that the resource serves.
    #[serde(default)]
    pub(super) locations: BTreeSet<Location>,
    /// For AWS: the region that the request names.
    pub(super) region: Option<String>,
    pub(super) task_type: String,
    /// Whether the request opens the task; `false` joins an open one.
    #[serde(default = "yes")]
    pub(super) opens: bool,
    #[serde(default = "one")]
    pub(super) depth: u8,
    /// `None`: the task type's maximum.
    pub(super) deadline_seconds: Option<u64>,
    pub(super) ttl_seconds: Option<u64>,
    /// `None`: that of the registered resource, with a store that can fail over.
    pub(super) revocability: Option<Revocability>,
    pub(super) expect: Outcome,
    /// Expected code of the refusal.
    pub(super) code: Option<String>,
    /// The complete set of policies that determine the outcome.
    pub(super) policies: Option<BTreeSet<String>>,
    /// The granted life in seconds.
    pub(super) granted_ttl_seconds: Option<u64>,
    /// The longest life that a refusal offers, in seconds.
    pub(super) max_ttl_seconds: Option<u64>,
    /// The actions that a refusal offers.
    pub(super) allowed_actions: Option<BTreeSet<ActionName>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskCase {
    pub(super) name: String,
    pub(super) attestor: String,
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, ClaimValue>,
    #[serde(default)]
    pub(super) roles: BTreeSet<String>,
    pub(super) task_type: String,
    #[serde(default = "one")]
    pub(super) depth: u8,
    pub(super) deadline_seconds: Option<u64>,
    pub(super) expect: Outcome,
    pub(super) code: Option<String>,
    pub(super) policies: Option<BTreeSet<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminCase {
    pub(super) name: String,
    /// `"bootstrap"` or `"dev"`, instead of a workload.
    pub(super) token: Option<TokenPrincipal>,
    pub(super) attestor: Option<String>,
    pub(super) identity: Option<Identity>,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, ClaimValue>,
    #[serde(default)]
    pub(super) roles: BTreeSet<String>,
    /// The acts. Each must have the expected outcome.
    pub(super) actions: BTreeSet<String>,
    pub(super) expect: Expected,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TokenPrincipal {
    Bootstrap,
    Dev,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expected {
    Permit,
    Deny,
}

fn yes() -> bool {
    true
}

fn one() -> u8 {
    1
}
