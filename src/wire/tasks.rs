//! `/v1/tasks`.
//!
//! A request or query with an unknown member is refused when it is parsed. `http::tasks` serves
//! these shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::credentials::{DecisionBody, IssuedTaskBody};
use super::open::Open;
use super::query::{is_marker, maybe_number};
use super::receipt::ReceiptBody;
use super::secret::SecretText;
use crate::clock::Timestamp;
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::TaskState;
use crate::domain::workload::Identity;
use crate::ids::{SessionId, TaskId};

/// A task that was opened without a credential.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names say it all")]
#[schema(examples(json!({
    "task": super::credentials::example_task(),
    "decision": {
        "id": "01890a5d-ac96-774b-bcce-b302099a805c",
        "outcome": "permit",
        "policies": ["reports-open"],
        "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    },
    "receipt": super::receipt::example_of_opening()
})))]
pub struct OpenedBody {
    pub task: IssuedTaskBody,
    pub decision: DecisionBody,
    pub receipt: ReceiptBody,
}

/// A task in its present state.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskStateBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: TaskId,
    #[schema(value_type = String)]
    pub state: Open<TaskState>,
    /// The registered type's name.
    #[serde(rename = "type")]
    pub kind: String,
    #[schema(value_type = String)]
    pub owner: Identity,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub parent_id: Option<TaskId>,
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub heartbeat_due_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// The number of credentials that can still be issued under it.
    pub credentials_left: u32,
}

/// A task without its sessions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the name says it all")]
#[schema(examples(json!({"task": example_open()})))]
pub struct TaskOnlyBody {
    pub task: TaskStateBody,
}

/// A task, and every session under it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names say it all")]
#[schema(examples(json!({
    "task": {
        "id": "01890a5d-ac96-774b-bcce-b302099a8058",
        "state": "completed",
        "type": "nightly-report",
        "owner": "ci:repo-1",
        "opened_at": "2026-01-01T00:00:00Z",
        "deadline": "2026-01-01T01:00:00Z",
        "heartbeat_seconds": 60,
        "ended_at": "2026-01-01T00:04:00Z",
        "credentials_left": 15
    },
    "sessions": [{
        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "state": "ended",
        "end_reason": "completed"
    }]
})))]
pub struct TaskSessionsBody {
    pub task: TaskStateBody,
    pub sessions: Vec<EndedSessionBody>,
}

/// A session under a task that ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndedSessionBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: SessionId,
    #[schema(value_type = String)]
    pub state: Open<SessionState>,
    /// `null` while it has not ended.
    #[schema(value_type = Option<String>)]
    pub end_reason: Option<Open<EndReason>>,
}

/// The tasks to list.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// Only tasks with this recorded state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub state: Option<TaskState>,
    /// Only of this owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The `next_cursor` of the previous page.
    #[serde(default, skip_serializing_if = "is_marker")]
    pub cursor: Option<String>,
    /// The largest number of rows.
    #[serde(
        default,
        skip_serializing_if = "is_marker",
        deserialize_with = "maybe_number"
    )]
    pub limit: Option<u32>,
}

/// A page of tasks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "tasks": [example_open()],
    "next_cursor": "eyJmaWx0ZXIiOiJSQk52bzFXelo0b1JScTBXIiwiYWZ0ZXIiOiIwMTg5MGE1ZC1hYzk2LTc3NGItYmNjZS1iMzAyMDk5YTgwNTgifQ"
})))]
pub struct TaskPage {
    pub tasks: Vec<TaskStateBody>,
    /// The `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A child task to admit.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"workload": "ci:repo-2", "max_credentials": 2, "expires_in_seconds": 300})))]
pub struct DelegateBody {
    /// The identity of the child task's owner.
    #[schema(value_type = String)]
    pub workload: Identity,
    /// The number of credentials that move from this task's budget to the child's.
    #[serde(default = "one")]
    pub max_credentials: u32,
    /// Seconds until the token expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

fn one() -> u32 {
    1
}

/// A delegation token.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "delegation": "tpd_ZXhhbXBsZS1kZWxlZ2F0aW9uLW5vdC1hLXNlY3JldC0",
    "expires_at": "2026-01-01T00:05:00Z",
    "max_credentials": 2
})))]
pub struct DelegationBody {
    /// The token, which can be used once.
    #[schema(value_type = String)]
    pub delegation: SecretText,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    pub max_credentials: u32,
}

/// An example: an open task.
fn example_open() -> Value {
    json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a8058",
        "state": "open",
        "type": "nightly-report",
        "owner": "ci:repo-1",
        "opened_at": "2026-01-01T00:00:00Z",
        "deadline": "2026-01-01T01:00:00Z",
        "heartbeat_seconds": 60,
        "heartbeat_due_at": "2026-01-01T00:01:00Z",
        "credentials_left": 16
    })
}
