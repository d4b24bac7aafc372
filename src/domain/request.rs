//! A request by a caller, and its form after every name is resolved.
//!
//! [`CredentialRequest`] becomes a [`ResolvedRequest`] by [`Catalog::resolve`]: the resource and
//! the task type by their registrations, and a grant whose every object names its locations. An
//! object without locations gets all of the resource's. Admission and policy take only the resolved
//! form.
//!
//! Resolving never narrows a request. An unknown name, a right that the resource does not register,
//! or a value above a limit is a [`Refusal`] with its own code. Those for deadline and heartbeat
//! also name the permitted maximum.
//!
//! Two limits are left to later steps, which know every bound: admission (`broker::issuance`)
//! checks the deadline of a child task, and policy checks the life. They use [`deadline_too_long`]
//! and [`ttl_too_long`]. Whether a workload may have the rights is decided by policy alone.

use std::fmt;
use std::sync::Arc;

use secrecy::SecretString;

use super::catalog::{Catalog, Resource, TaskType};
use super::decision::{Allowed, Refusal, RefusalCode};
use super::grant::{AuthorizationDetail, Grant};
use super::limits::{MAX_EVALUATIONS, MAX_REQUEST_STEPS, MIN_HEARTBEAT_SECONDS};
use super::pattern::Budget;
use crate::ids::TaskId;

/// A well-formed request for a credential whose names are not resolved.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct CredentialRequest {
    /// The task of the credential.
    pub task: TaskSelector,
    pub resource: ResourceSelector,
    /// The rights that are requested.
    pub grant: Grant,
    /// The requested life in seconds; `None` requests the permitted default.
    pub ttl_seconds: Option<u64>,
    /// The `Idempotency-Key` that identifies a retry, if sent.
    pub retry: Option<RetryKey>,
}

/// The way in which a request names its resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceSelector {
    /// The name of any resource.
    Name(String),
    /// The name of a resource for which access tokens are issued.
    TokenName(String),
    /// The audience of a resource for which access tokens are issued.
    TokenAudience(String),
}

impl From<&str> for ResourceSelector {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<String> for ResourceSelector {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for ResourceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::TokenName(text) | Self::TokenAudience(text) => {
                f.write_str(text)
            }
        }
    }
}

/// A new task or an open one.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum TaskSelector {
    /// Opens a new task.
    Open(NewTask),
    /// Joins an open task.
    Join {
        id: TaskId,
        /// The proof that the caller may join.
        handle: SecretString,
    },
}

/// A requested task.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The name of the registered type.
    pub task_type: String,
    /// Free text for people, recorded with the task. Policy does not see it.
    pub purpose: Option<String>,
    /// The parent task; `None` opens a task without a parent.
    pub parent: Option<ParentRef>,
    /// Seconds from opening to deadline; `None` requests the maximum.
    pub deadline_seconds: Option<u64>,
    /// Longest heartbeat interval in seconds; `None` requests a task without heartbeats.
    pub heartbeat_seconds: Option<u64>,
}

/// A parent task, with the delegation token by which it permits this child.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ParentRef {
    pub id: TaskId,
    /// The single-use delegation token.
    pub delegation: SecretString,
}

/// An `Idempotency-Key` and the request that it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryKey {
    /// The value of the header.
    pub key: String,
    /// SHA-256 of the request's body, which does not contain the attestation.
    pub fingerprint: [u8; 32],
}

/// A request with resolved names, made by [`Catalog::resolve`]. Admission and policy take this type
/// and never a [`CredentialRequest`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct ResolvedRequest {
    pub resource: Arc<Resource>,
    /// The requested rights, with every location named.
    pub grant: Grant,
    /// The requested life in seconds, not yet checked: policy compares it with every maximum.
    /// `None` requests the default.
    pub ttl_seconds: Option<u64>,
    pub task: ResolvedTask,
    /// The `Idempotency-Key` that identifies a retry, if sent.
    pub retry: Option<RetryKey>,
}

/// The task of a [`ResolvedRequest`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum ResolvedTask {
    /// Opens a new task.
    Open(OpenTask),
    /// Joins an open task.
    Join {
        id: TaskId,
        /// The proof that the caller may join.
        handle: SecretString,
    },
}

impl ResolvedTask {
    /// The purpose of a task to open; `None` if the request joins a task or states no purpose.
    #[must_use]
    pub fn purpose(&self) -> Option<&str> {
        match self {
            Self::Open(open) => open.purpose.as_deref(),
            Self::Join { .. } => None,
        }
    }
}

/// A task to open, checked against the limits of its type. Admission checks the deadline of a child
/// task.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct OpenTask {
    pub task_type: Arc<TaskType>,
    /// Free text for people.
    pub purpose: Option<String>,
    pub parent: Option<ParentRef>,
    /// Seconds from opening to deadline, within the type's maximum unless the task has a parent;
    /// `None` requests the maximum.
    pub deadline_seconds: Option<u64>,
    /// Longest heartbeat interval in seconds; `None` if the task needs no heartbeat.
    pub heartbeat_seconds: Option<u64>,
}

impl Catalog {
    /// The resource that the selector names; `None` if there is none. Of several resources with the
    /// same audience, the first by name.
    #[must_use]
    pub fn select(&self, selector: &ResourceSelector) -> Option<&Arc<Resource>> {
        let of_tokens = |resource: &&Arc<Resource>| resource.kind.minter().makes_access_tokens();
        match selector {
            ResourceSelector::Name(name) => self.resource(name),
            ResourceSelector::TokenName(name) => self.resource(name).filter(of_tokens),
            ResourceSelector::TokenAudience(audience) => {
                let mut resources = self.resources().filter(of_tokens);
                resources.find(|resource| resource.audience() == audience)
            }
        }
    }

    /// Resolves every name of the request. Refuses a name that does not exist and a value above a
    /// registered limit, and never replaces such a value by a smaller one. Policy checks the life,
    /// because only it knows every bound.
    pub fn resolve(&self, request: CredentialRequest) -> Result<ResolvedRequest, Refusal> {
        let task = match request.task {
            TaskSelector::Open(new) => ResolvedTask::Open(self.resolve_task(new)?),
            TaskSelector::Join { id, handle } => ResolvedTask::Join { id, handle },
        };
        let resource = self.select(&request.resource).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownResource,
                format!("there is no resource `{}`", request.resource),
            )
        })?;
        if let ResolvedTask::Open(open) = &task {
            check_resource_fits(&open.task_type, resource)?;
        }
        Ok(ResolvedRequest {
            grant: resolve_grant(resource, request.grant)?,
            resource: Arc::clone(resource),
            ttl_seconds: request.ttl_seconds,
            task,
            retry: request.retry,
        })
    }

    /// Resolves the type of a task to open, and checks the task against the limits of the type.
    pub fn resolve_task(&self, new: NewTask) -> Result<OpenTask, Refusal> {
        let task_type = self.task_type(&new.task_type).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownTaskType,
                format!("there is no task type `{}`", new.task_type),
            )
        })?;
        let max = task_type.max_deadline_seconds;
        // A parent can leave less time. Admission then reports the combined limit for a child.
        if new.parent.is_none() && new.deadline_seconds.is_some_and(|asked| asked > max) {
            return Err(deadline_too_long(&task_type.name, max));
        }
        if let Some(max) = task_type.max_heartbeat_seconds
            && new.heartbeat_seconds.is_none_or(|asked| asked > max)
        {
            return Err(Refusal::new(
                RefusalCode::HeartbeatRequired,
                format!(
                    "a `{}` task needs heartbeat_seconds from {MIN_HEARTBEAT_SECONDS} to {max}",
                    task_type.name
                ),
            )
            .allowing(Allowed {
                max_heartbeat_seconds: Some(max),
                ..Allowed::default()
            }));
        }
        Ok(OpenTask {
            task_type: Arc::clone(task_type),
            purpose: new.purpose,
            parent: new.parent,
            deadline_seconds: new.deadline_seconds,
            heartbeat_seconds: new.heartbeat_seconds,
        })
    }
}

/// Checks that tasks of this type may request this resource.
pub fn check_resource_fits(task_type: &TaskType, resource: &Resource) -> Result<(), Refusal> {
    if task_type.resources.contains(&resource.name) {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::ResourceNotForTask,
        format!(
            "tasks of type `{}` may not ask for `{}`",
            task_type.name, resource.name
        ),
    ))
}

/// The refusal of a deadline that is too late, with the maximum.
#[must_use]
pub fn deadline_too_long(task_type: &str, max: u64) -> Refusal {
    Refusal::new(
        RefusalCode::DeadlineTooLong,
        format!("this `{task_type}` task may last at most {max} s"),
    )
    .allowing(Allowed {
        max_deadline_seconds: Some(max),
        ..Allowed::default()
    })
}

/// The refusal of a life that is too long, with the maximum.
#[must_use]
pub fn ttl_too_long(asked: u64, max: u64) -> Refusal {
    Refusal::new(
        RefusalCode::TtlTooLong,
        format!("ttl_seconds {asked} is more than the permitted {max}"),
    )
    .allowing(Allowed {
        max_ttl_seconds: Some(max),
        ..Allowed::default()
    })
}

fn resolve_grant(resource: &Resource, asked: Grant) -> Result<Grant, Refusal> {
    let mut details: Vec<AuthorizationDetail> = asked.into();
    let budget = Budget::new(MAX_REQUEST_STEPS);
    for detail in &mut details {
        if detail.locations().is_empty() {
            detail.locate(&resource.locations);
        }
        resource.check_serves(detail, &budget)?;
    }
    let evaluations: usize = details
        .iter()
        .map(|d| d.actions().len() * d.locations().len())
        .sum();
    if evaluations > MAX_EVALUATIONS {
        return Err(Refusal::new(
            RefusalCode::TooManyRights,
            format!(
                "{evaluations} combinations of action and location; at most {MAX_EVALUATIONS} in one request"
            ),
        ));
    }
    // The details come from a valid grant. Only the number of locations has grown, so the error
    // can only be that an object has too many of them.
    Grant::try_from(details)
        .map_err(|error| Refusal::new(RefusalCode::TooManyRights, error.to_string()))
}
