//! What a command asks for: the resource, the rights, the task. Shared by the commands that ask.

use std::path::PathBuf;

use clap::Args;
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value, json};

use super::Failure;
use super::client::read_secret;
use crate::domain::kind::DetailType;

/// What is asked for.
#[derive(Args, Clone, Debug)]
pub(super) struct Wanted {
    /// The resource
    #[arg(long, value_name = "NAME")]
    pub(super) resource: String,
    /// What is to be done; may be given several times
    #[arg(long = "action", value_name = "ACTION", required = true)]
    actions: Vec<String>,
    /// Where: URLs, or ARNs of AWS; left out, everywhere that the resource serves
    #[arg(long = "location", value_name = "PLACE")]
    locations: Vec<String>,
    /// The resource is a role in AWS; understood where a location is an ARN or a region is named
    #[arg(long)]
    aws: bool,
    /// On AWS: the region that the credential is confined to
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The life of the credential; left out, what policy permits by default
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
}

/// The task that is opened for it.
#[derive(Args, Clone, Debug)]
pub(super) struct NewTask {
    /// The type of the task
    #[arg(long, value_name = "TYPE")]
    pub(super) task_type: String,
    /// What the task is for, in words; people read it, policy does not
    #[arg(long, value_name = "TEXT")]
    purpose: Option<String>,
    /// The task's deadline
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
}

/// The task: one that is opened for it, or one that is open.
#[derive(Args, Clone, Debug)]
pub(super) struct AnyTask {
    /// Open a task of this type
    #[arg(long, value_name = "TYPE", required_unless_present = "task")]
    task_type: Option<String>,
    /// What the task is for, in words; people read it, policy does not
    #[arg(long, value_name = "TEXT", requires = "task_type")]
    purpose: Option<String>,
    /// The task's deadline
    #[arg(long, value_name = "SECONDS", requires = "task_type")]
    deadline: Option<u64>,
    /// The longest silence of the task
    #[arg(long, value_name = "SECONDS", requires = "task_type")]
    heartbeat: Option<u64>,
    /// Join this open task, with its handle
    #[arg(
        long,
        value_name = "ID",
        conflicts_with = "task_type",
        requires = "handle_file"
    )]
    task: Option<String>,
    /// The file that holds the task's handle; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "task")]
    handle_file: Option<PathBuf>,
}

impl AnyTask {
    /// Whether it was open before.
    pub(super) fn is_joined(&self) -> bool {
        self.task.is_some()
    }

    /// The task as a request names it. Reads the handle.
    pub(super) fn body(&self) -> Result<Value, Failure> {
        if let (Some(id), Some(file)) = (&self.task, &self.handle_file) {
            let handle = read_secret(file)?;
            return Ok(json!({"id": id, "handle": handle.expose_secret()}));
        }
        let new = NewTask {
            task_type: self.task_type.clone().unwrap_or_default(),
            purpose: self.purpose.clone(),
            deadline: self.deadline,
        };
        Ok(new.body(self.heartbeat))
    }
}

impl Wanted {
    /// The same, of a role in AWS.
    pub(super) fn of_aws(&self) -> Self {
        Self {
            aws: true,
            ..self.clone()
        }
    }

    /// Whether a session of AWS is asked for.
    pub(super) fn is_aws(&self) -> bool {
        let arn = |place: &String| place.starts_with("arn:");
        self.aws || self.region.is_some() || self.locations.iter().any(arn)
    }

    /// The body of a request within `task`.
    pub(super) fn body(&self, task: &Value) -> Value {
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
        let mut body = json!({
            "task": task,
            "resource": self.resource,
            "authorization_details": [detail],
        });
        if let (Some(ttl), Some(body)) = (self.ttl, body.as_object_mut()) {
            body.insert("ttl_seconds".into(), json!(ttl));
        }
        body
    }
}

impl NewTask {
    /// The task as a request names it, with the longest silence where there is one.
    pub(super) fn body(&self, heartbeat_seconds: Option<u64>) -> Value {
        let mut task = Map::new();
        task.insert("type".into(), json!(self.task_type));
        for (name, value) in [
            ("purpose", json!(self.purpose)),
            ("deadline_seconds", json!(self.deadline)),
            ("heartbeat_seconds", json!(heartbeat_seconds)),
        ] {
            if !value.is_null() {
                task.insert(name.into(), value);
            }
        }
        Value::Object(task)
    }
}
