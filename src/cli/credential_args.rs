//! The resource, the rights and the task of a request: arguments that several commands share.
//!
//! Arguments that contradict each other are refused by clap; a file that cannot be read is the
//! error of the command. `super::request`, `super::exec` and `super::aws` use them, and
//! `client::credentials` sends the request.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, json};

use super::CliError;
use crate::client::credentials::CredentialRequest;
use crate::client::read_secret;
use crate::domain::kind::DetailType;
use crate::ids::TaskId;
use crate::wire::credentials::TaskBody;

/// The requested rights.
#[derive(Args, Clone, Debug)]
pub(super) struct CredentialArgs {
    /// The resource's name
    #[arg(long, value_name = "NAME")]
    resource: String,
    /// An action to request; may be given several times
    #[arg(long = "action", value_name = "ACTION", required = true)]
    actions: Vec<String>,
    /// A location to request: a URL, or an ARN of AWS; without it, all locations of the resource
    #[arg(long = "location", value_name = "PLACE")]
    locations: Vec<String>,
    /// The resource is a role in AWS; implied by a location that is an ARN, and by --region
    #[arg(long)]
    aws: bool,
    /// On AWS: the region to which the credential is confined
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The life of the credential; without it, the default of the policy
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
}

/// The task that the request opens.
#[derive(Args, Clone, Debug)]
pub(super) struct NewTask {
    /// The type of the task
    #[arg(long, value_name = "TYPE")]
    pub(super) task_type: String,
    /// The purpose of the task, for its readers; policy does not see it
    #[arg(long, value_name = "TEXT")]
    purpose: Option<String>,
    /// The task's deadline
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
}

/// The task: a new one, or one that is open.
#[derive(Args, Clone, Debug)]
pub(super) struct AnyTask {
    /// Open a task of this type
    #[arg(long, value_name = "TYPE", required_unless_present = "task")]
    task_type: Option<String>,
    /// The purpose of the task, for its readers; policy does not see it
    #[arg(long, value_name = "TEXT", requires = "task_type")]
    purpose: Option<String>,
    /// The task's deadline
    #[arg(long, value_name = "SECONDS", requires = "task_type")]
    deadline: Option<u64>,
    /// The longest time between two heartbeats of the task
    #[arg(long, value_name = "SECONDS", requires = "task_type")]
    heartbeat: Option<u64>,
    /// Join this open task, with its handle
    #[arg(
        long,
        value_name = "ID",
        conflicts_with = "task_type",
        requires = "handle_file"
    )]
    task: Option<TaskId>,
    /// The file that holds the task's handle; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "task")]
    handle_file: Option<PathBuf>,
}

impl AnyTask {
    /// Whether the request joins an open task.
    pub(super) fn is_joined(&self) -> bool {
        self.task.is_some()
    }

    /// The task in a request's form. Reads the handle's file.
    pub(super) fn body(&self) -> Result<TaskBody, CliError> {
        if let (Some(id), Some(file)) = (self.task, &self.handle_file) {
            return Ok(TaskBody {
                id: Some(id),
                handle: Some(read_secret(file)?.into()),
                ..TaskBody::default()
            });
        }
        let new = NewTask {
            task_type: self.task_type.clone().unwrap_or_default(),
            purpose: self.purpose.clone(),
            deadline: self.deadline,
        };
        Ok(new.body(self.heartbeat))
    }
}

impl CredentialArgs {
    /// A copy that requests a role in AWS.
    pub(super) fn of_aws(&self) -> Self {
        Self {
            aws: true,
            ..self.clone()
        }
    }

    /// Whether an AWS session is requested.
    pub(super) fn is_aws(&self) -> bool {
        let arn = |location: &String| location.starts_with("arn:");
        self.aws || self.region.is_some() || self.locations.iter().any(arn)
    }

    /// The request, apart from its task.
    pub(super) fn request(&self) -> CredentialRequest {
        let mut detail = Map::new();
        let asked = if self.is_aws() {
            DetailType::Aws
        } else {
            DetailType::Api
        };
        detail.insert("type".into(), json!(asked.as_str()));
        detail.insert("actions".into(), json!(self.actions));
        if !self.locations.is_empty() {
            detail.insert(asked.locations_member().into(), json!(self.locations));
        }
        if let Some(region) = &self.region {
            detail.insert("region".into(), json!(region));
        }
        CredentialRequest {
            resource: self.resource.clone(),
            detail,
            ttl_seconds: self.ttl,
        }
    }
}

impl NewTask {
    /// The task in a request's form; `heartbeat_seconds` is the longest time between two
    /// heartbeats.
    pub(super) fn body(&self, heartbeat_seconds: Option<u64>) -> TaskBody {
        TaskBody {
            kind: Some(self.task_type.clone()),
            purpose: self.purpose.clone(),
            deadline_seconds: self.deadline,
            heartbeat_seconds,
            ..TaskBody::default()
        }
    }
}
