//! What a caller asks, and what that means once every name in it is resolved.

use std::fmt;
use std::sync::Arc;

use secrecy::SecretString;

use super::catalog::{Catalog, Resource, TaskType};
use super::decision::{Allowed, Refusal, RefusalCode};
use super::grant::{AuthorizationDetail, Grant};
use super::limits::{MAX_EVALUATIONS, MAX_REQUEST_STEPS, MIN_HEARTBEAT_SECONDS};
use super::pattern::Budget;
use crate::ids::TaskId;

/// A request for a credential, well-formed but not yet understood.
#[derive(Clone, Debug)]
pub struct CredentialRequest {
    /// The task that it is for.
    pub task: TaskSelector,
    /// The resource.
    pub resource: ResourceSelector,
    /// What is asked on it.
    pub grant: Grant,
    /// The wanted life; left out, the permitted default.
    pub ttl_seconds: Option<u64>,
    /// Recognises a retry.
    pub retry: Option<RetryKey>,
}

/// How a request names its resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceSelector {
    /// By its name.
    Name(String),
    /// By its name, among those that access tokens are issued for.
    TokenName(String),
    /// By its audience, among those that access tokens are issued for.
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

/// A new task, or one that is open already.
#[derive(Clone, Debug)]
pub enum TaskSelector {
    /// Open one.
    Open(NewTask),
    /// Join one.
    Join {
        /// Which.
        id: TaskId,
        /// The proof that one may.
        handle: SecretString,
    },
}

/// A task to be opened, as asked.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The registered type's name.
    pub task_type: String,
    /// Free text for people. Evidence, never authority: policy does not see it.
    pub purpose: Option<String>,
    /// The task that it is part of.
    pub parent: Option<ParentRef>,
    /// Seconds until it is over in any case.
    pub deadline_seconds: Option<u64>,
    /// The longest silence after which it is over.
    pub heartbeat_seconds: Option<u64>,
}

/// A parent, with the token by which the parent let this child in.
#[derive(Clone, Debug)]
pub struct ParentRef {
    /// The parent task.
    pub id: TaskId,
    /// The single-use delegation token.
    pub delegation: SecretString,
}

/// An `Idempotency-Key` with what it was sent for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryKey {
    /// The header's text.
    pub key: String,
    /// SHA-256 of the request's body, which the attestation is no part of.
    pub fingerprint: [u8; 32],
}

/// A request with every name resolved: the only thing that admission and policy accept.
#[derive(Clone, Debug)]
pub struct ResolvedRequest {
    /// The resource.
    pub resource: Arc<Resource>,
    /// What is asked, every location named.
    pub grant: Grant,
    /// The wanted life, within the resource's own maximum.
    pub ttl_seconds: Option<u64>,
    /// The task.
    pub task: ResolvedTask,
    /// Recognises a retry.
    pub retry: Option<RetryKey>,
}

/// The task of a [`ResolvedRequest`].
#[derive(Clone, Debug)]
pub enum ResolvedTask {
    /// Open one.
    Open(OpenTask),
    /// Join one.
    Join {
        /// Which.
        id: TaskId,
        /// The proof that one may.
        handle: SecretString,
    },
}

impl ResolvedTask {
    /// The free text of a task to be opened.
    #[must_use]
    pub fn purpose(&self) -> Option<&str> {
        match self {
            Self::Open(open) => open.purpose.as_deref(),
            Self::Join { .. } => None,
        }
    }
}

/// A task to be opened, with its type's limits applied.
#[derive(Clone, Debug)]
pub struct OpenTask {
    /// The registered type.
    pub task_type: Arc<TaskType>,
    /// Free text for people.
    pub purpose: Option<String>,
    /// The parent.
    pub parent: Option<ParentRef>,
    /// Seconds until it is over in any case, within the type's maximum; left out, as long as may be.
    pub deadline_seconds: Option<u64>,
    /// The longest silence.
    pub heartbeat_seconds: Option<u64>,
}

impl Catalog {
    /// The one resource that a request names.
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

    /// Finds everything that the request names. What does not exist, or is beyond a registered
    /// limit, is refused by name; nothing is narrowed. A life is judged with policy, which knows the
    /// whole of its bounds.
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

    /// Applies a task type's limits to a task to be opened.
    pub fn resolve_task(&self, new: NewTask) -> Result<OpenTask, Refusal> {
        let task_type = self.task_type(&new.task_type).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownTaskType,
                format!("there is no task type `{}`", new.task_type),
            )
        })?;
        let max = task_type.max_deadline_seconds;
        // A parent can leave less: of its child the whole bound is told at once, by admission.
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

/// Whether tasks of this type may ask for this resource at all.
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

/// The refusal of a deadline beyond what is permitted, with the maximum.
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

/// The refusal of a life beyond what is permitted, with the maximum.
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
    Grant::try_from(details)
        .map_err(|error| Refusal::new(RefusalCode::TooManyRights, error.to_string()))
}
