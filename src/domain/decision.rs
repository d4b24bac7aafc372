//! The outcome of policy on one request, and the reasons for refusals.
//!
//! [`Decision`] is the result: [`Permitted`] with the granted life, or a [`Refusal`]. A refusal has
//! a [`RefusalCode`] for programs, a text for people, and [`Allowed`] if a smaller request would be
//! permitted. [`Observed`] is the effect that observing policies would have had.
//!
//! A permit grants exactly the requested rights. If policy cannot be evaluated, the request is
//! refused, and the outcome is recorded as [`Outcome::Indeterminate`].
//!
//! These types decide nothing and return no errors. `policy` makes decisions; the catalog,
//! [`super::request`], `broker::issuance` and the ledger make the other refusals. The ledger
//! records both in leaves, and `http` turns a refusal into the response.

use serde::{Deserialize, Serialize};

use super::generation_digest::GenerationDigest;
use super::grant::AuthorizationDetail;
use crate::clock::Timestamp;

/// The outcome of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Permitted, exactly as requested.
    Permit,
    /// Denied by policy or by a limit.
    Deny,
    /// Policy could not be evaluated. Refused, and recorded as a separate outcome.
    Indeterminate,
    /// A person must approve first.
    Pending,
}

impl Outcome {
    /// The name on the wire, in the store and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny => "deny",
            Self::Indeterminate => "indeterminate",
            Self::Pending => "pending",
        }
    }
}

/// The reason for a refusal, as a code for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The resource is not registered.
    UnknownResource,
    /// The resource does not register this action.
    UnknownAction,
    /// The resource does not serve this location.
    UnknownLocation,
    /// The task type is not registered.
    UnknownTaskType,
    /// Tasks of this type may not request this resource.
    ResourceNotForTask,
    /// More combinations of action and location than one request may have.
    TooManyRights,
    /// The life is longer than permitted.
    TtlTooLong,
    /// The deadline is later than permitted.
    DeadlineTooLong,
    /// The task type requires a heartbeat within its maximum interval.
    HeartbeatRequired,
    /// No policy permits this to the workload, or a policy forbids it.
    NotPermitted,
    /// A policy requires a person's approval, which the broker does not support yet.
    ApprovalRequired,
    /// A policy could not be evaluated.
    PolicyError,
    /// More than the parent task may do.
    ExceedsParent,
    /// The chain of tasks has its maximum depth.
    TooDeep,
    /// The task, or one of its ancestors, has ended.
    TaskEnded,
    /// The task and its descendants have used their credentials.
    TaskBudget,
    /// The workload has its maximum number of open tasks of this type.
    TooManyOpenTasks,
    /// A cutoff blocks new grants, until a time or until lifted.
    Blocked,
    /// The owner of an ancestor task is no longer attested.
    OwnerWithdrawn,
}

impl RefusalCode {
    /// Every code.
    pub const ALL: [Self; 19] = [
        Self::UnknownResource,
        Self::UnknownAction,
        Self::UnknownLocation,
        Self::UnknownTaskType,
        Self::ResourceNotForTask,
        Self::TooManyRights,
        Self::TtlTooLong,
        Self::DeadlineTooLong,
        Self::HeartbeatRequired,
        Self::NotPermitted,
        Self::ApprovalRequired,
        Self::PolicyError,
        Self::ExceedsParent,
        Self::TooDeep,
        Self::TaskEnded,
        Self::TaskBudget,
        Self::TooManyOpenTasks,
        Self::Blocked,
        Self::OwnerWithdrawn,
    ];

    /// The code on the wire and in leaves.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownResource => "unknown-resource",
            Self::UnknownAction => "unknown-action",
            Self::UnknownLocation => "unknown-location",
            Self::UnknownTaskType => "unknown-task-type",
            Self::ResourceNotForTask => "resource-not-for-task",
            Self::TooManyRights => "too-many-rights",
            Self::TtlTooLong => "ttl-too-long",
            Self::DeadlineTooLong => "deadline-too-long",
            Self::HeartbeatRequired => "heartbeat-required",
            Self::NotPermitted => "not-permitted",
            Self::ApprovalRequired => "approval-required",
            Self::PolicyError => "policy-error",
            Self::ExceedsParent => "exceeds-parent",
            Self::TooDeep => "too-deep",
            Self::TaskEnded => "task-ended",
            Self::TaskBudget => "task-budget",
            Self::TooManyOpenTasks => "too-many-open-tasks",
            Self::Blocked => "blocked",
            Self::OwnerWithdrawn => "owner-withdrawn",
        }
    }
}

/// A smaller request that would be permitted to the same caller. It reveals only facts that the
/// caller could learn by requesting it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// The part of the requested rights that policy permits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization_details: Option<Vec<AuthorizationDetail>>,
    /// Longest permitted life in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl_seconds: Option<u64>,
    /// Longest permitted time to the deadline in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deadline_seconds: Option<u64>,
    /// Longest permitted heartbeat interval in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_heartbeat_seconds: Option<u64>,
}

/// A refusal, as its caller may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason for programs.
    pub code: RefusalCode,
    /// The reason for people.
    pub detail: String,
    /// A smaller request that would be permitted; `None` if there is none or it is not known.
    pub allowed: Option<Allowed>,
}

impl Refusal {
    /// Creates a refusal without an offer.
    #[must_use]
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            allowed: None,
        }
    }

    /// Adds an offer.
    #[must_use]
    pub fn allowing(self, allowed: Allowed) -> Self {
        Self {
            allowed: Some(allowed),
            ..self
        }
    }

    /// The outcome under which this refusal is recorded.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.code {
            RefusalCode::PolicyError => Outcome::Indeterminate,
            RefusalCode::ApprovalRequired => Outcome::Pending,
            _ => Outcome::Deny,
        }
    }
}

/// A decision: permitted with a life, or refused for a reason.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The terms of the permit, or the refusal.
    pub verdict: Result<Permitted, Refusal>,
    /// `@id`s of the policies that determined the decision, sorted. The caller may not read those
    /// of a refusal.
    pub policies: Vec<String>,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The complete input of the evaluation. With the generation it reproduces this decision.
    pub input: Vec<u8>,
    /// The effect that observing policies would have had; `None` if none applies.
    pub observed: Option<Box<Observed>>,
    /// Whether the result of an earlier evaluation of the same facts was reused. Only for metrics.
    pub reused: bool,
}

impl Decision {
    /// The outcome to record.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match &self.verdict {
            Ok(_) => Outcome::Permit,
            Err(refusal) => refusal.outcome(),
        }
    }
}

/// The effect that observing policies would have had on a decision. The caller receives it and the
/// leaf records it, so that an exception does not stay unnoticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The observing policies that apply to the request or fail on it, sorted by name.
    pub policies: Vec<ObservedPolicy>,
    /// The outcome if every observing policy were enforced.
    pub outcome_if_enforced: Outcome,
    /// The refusal's code in that case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// The granted life in seconds in that case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A policy that only observes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ObservedPolicy {
    /// The `@id` of the policy.
    pub policy: String,
    pub effect: ObservedEffect,
    /// The instant of its enforcement.
    pub enforced_from: Timestamp,
}

/// The effect that an observing policy would have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservedEffect {
    /// Permits a part of the request.
    Permit,
    /// Forbids a part of the request.
    Forbid,
    /// Fails, which makes the decision indeterminate.
    Error,
}

impl ObservedEffect {
    /// The effect as text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Forbid => "forbid",
            Self::Error => "fail",
        }
    }
}

impl std::fmt::Display for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for policy in &self.policies {
            write!(
                f,
                "`{}` would {} from {} on; ",
                policy.policy,
                policy.effect.as_str(),
                policy.enforced_from
            )?;
        }
        write!(f, "it would be {}", self.outcome_if_enforced.as_str())?;
        match (self.refusal, self.ttl_seconds) {
            (Some(code), _) => write!(f, " ({})", code.as_str()),
            (None, Some(seconds)) => write!(f, " ({seconds} s)"),
            (None, None) => Ok(()),
        }
    }
}

/// The terms of a permit: the strictest of all satisfied policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permitted {
    /// Granted life in seconds.
    pub ttl_seconds: u64,
}
