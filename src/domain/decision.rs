//! The outcome of policy on one request, and why a refusal is one.

use serde::{Deserialize, Serialize};

use super::generation::GenerationDigest;
use super::grant::AuthorizationDetail;
use crate::clock::Timestamp;

/// What policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Yes, to exactly what was asked.
    Permit,
    /// No.
    Deny,
    /// It could not be established: a refusal, recorded as itself.
    Indeterminate,
    /// A person has to approve first.
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

/// Why a request was refused, as a word that programs can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// No resource of that name.
    UnknownResource,
    /// The resource has no such action.
    UnknownAction,
    /// The resource does not serve that place.
    UnknownLocation,
    /// No task type of that name.
    UnknownTaskType,
    /// Tasks of this type may not ask for that resource.
    ResourceNotForTask,
    /// More combinations of action and location than one request may ask for.
    TooManyRights,
    /// A longer life than is permitted.
    TtlTooLong,
    /// A later deadline than is permitted.
    DeadlineTooLong,
    /// The task type wants a heartbeat, and a shorter one.
    HeartbeatRequired,
    /// Policy permits no such thing to this workload.
    NotPermitted,
    /// A policy asks for a person's approval, and there are no approvals yet.
    ApprovalRequired,
    /// A policy could not be evaluated.
    PolicyError,
    /// More than the parent has itself.
    ExceedsParent,
    /// The chain of tasks is as deep as it may be.
    TooDeep,
    /// The task, or one that it is part of, is over.
    TaskEnded,
    /// The task has had as many credentials as its type allows.
    TaskBudget,
    /// The workload has as many tasks open as the type allows.
    TooManyOpenTasks,
    /// An admin has cut this off, until a time or until lifted.
    Blocked,
    /// The owner of a task above this one is attested no more.
    OwnerWithdrawn,
}

impl RefusalCode {
    /// All of them.
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

    /// The word.
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

/// What would be permitted to this very caller instead. Never more than it could find out by
/// asking for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// The part of what was asked that policy permits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization_details: Option<Vec<AuthorizationDetail>>,
    /// The longest permitted life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl_seconds: Option<u64>,
    /// The latest permitted deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deadline_seconds: Option<u64>,
    /// The longest permitted silence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_heartbeat_seconds: Option<u64>,
}

/// A refusal, as its caller may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: RefusalCode,
    /// Why, for people.
    pub detail: String,
    /// What to ask for instead.
    pub allowed: Option<Allowed>,
}

impl Refusal {
    /// A refusal without a counter-offer.
    #[must_use]
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            allowed: None,
        }
    }

    /// The same with a counter-offer.
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

/// What was decided: permitted with this life, or refused for this reason.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The refusal, unless it is a permit.
    pub verdict: Result<Permitted, Refusal>,
    /// The policies that determined it, by `@id`, sorted. For a refusal they are not the caller's
    /// to read.
    pub policies: Vec<String>,
    /// The generation that decided.
    pub generation: GenerationDigest,
    /// The complete input of the evaluation, as it was: with the generation it gives this decision
    /// again.
    pub input: Vec<u8>,
    /// What policies that merely observe would have made of it, where any holds.
    pub observed: Option<Box<Observed>>,
}

impl Decision {
    /// The outcome to be recorded.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match &self.verdict {
            Ok(_) => Outcome::Permit,
            Err(refusal) => refusal.outcome(),
        }
    }
}

/// What policies that merely observe would have made of a decision. It is told to whoever asked,
/// and recorded in the leaf: an exception that nobody sees would stay one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Those that hold for the request, or could not be evaluated for it, by name.
    pub policies: Vec<ObservedPolicy>,
    /// The outcome if every policy that observes were enforced.
    pub outcome_if_enforced: Outcome,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// The life that would be granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A policy that merely observes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedPolicy {
    /// Its `@id`.
    pub policy: String,
    /// What it will do.
    pub effect: ObservedEffect,
    /// The instant from which on it is enforced.
    pub enforced_from: Timestamp,
}

/// What a policy that merely observes would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservedEffect {
    /// Permit, as far as it goes.
    Permit,
    /// Deny.
    Forbid,
    /// Fail, which makes the whole indeterminate.
    Error,
}

impl ObservedEffect {
    /// As people read it.
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

/// The terms of a permit, the strictest of all satisfied policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permitted {
    /// The life that is granted.
    pub ttl_seconds: u64,
}
