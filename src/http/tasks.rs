//! `/v1/tasks`: opens, lists, shows, continues, ends and delegates tasks.
//!
//! The handlers pass a handle or an attestation to `broker::tasks`, which authorizes and decides.
//! The rule: a delegation's token is written only by `delegate`, and can never be read again.
//! Repeats are not recognized here, so `Idempotency-Key` is refused where something is created.
//!
//! Failures: an unfit body or a foreign cursor is a 400 with a pointer. A malformed id is a 404,
//! like the one of a task that the caller must not see. Other errors are the broker's, which
//! `problem` maps. `sessions` has the cursors, `credentials` the form of a new task.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::credentials::{DecisionBody, IssuedTaskBody, NewTaskBody};
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Asked, Named, Unrepeatable, maybe_number};
use super::problem::Problem;
use super::sessions::{cursor, id, is_place, link_next, page_limit, read_cursor};
use crate::broker::tasks::{TaskReport, TaskWithSessions};
use crate::domain::session::EndReason;
use crate::domain::task::{TaskEnd, TaskState};
use crate::domain::workload::Identity;
use crate::ids::TaskId;
use crate::store::tasks::TaskFilter;

/// A task that was opened without a credential.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenedBody {
    task: IssuedTaskBody,
    decision: DecisionBody,
    #[schema(value_type = Object)]
    receipt: crate::merkle::Receipt,
}

/// A task in its present state.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskStateBody {
    id: String,
    state: &'static str,
    #[serde(rename = "type")]
    kind: String,
    owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    opened_at: String,
    deadline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    credentials_left: u32,
}

impl From<&TaskReport> for TaskStateBody {
    fn from(report: &TaskReport) -> Self {
        let task = &report.task;
        let open = report.state == TaskState::Open;
        Self {
            id: task.id.to_string(),
            state: report.state.as_str(),
            kind: task.task_type.clone(),
            owner: task.owner.to_string(),
            parent_id: task.parent.map(|parent| parent.to_string()),
            opened_at: task.opened_at.to_string(),
            deadline: task.deadline.to_string(),
            heartbeat_seconds: task.heartbeat_seconds,
            heartbeat_due_at: task
                .heartbeat_seconds
                .filter(|_| open)
                .map(|_| task.life().expires_at().to_string()),
            ended_at: report.ended_at.map(|at| at.to_string()),
            credentials_left: task.sessions_left,
        }
    }
}

/// A task without its sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskOnlyBody {
    task: TaskStateBody,
}

/// A task, and every session under it.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskSessionsBody {
    task: TaskStateBody,
    sessions: Vec<EndedSessionBody>,
}

/// A session under a task that ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndedSessionBody {
    id: String,
    state: &'static str,
    end_reason: Option<&'static str>,
}

impl From<TaskWithSessions> for TaskSessionsBody {
    fn from(ended: TaskWithSessions) -> Self {
        let sessions = ended.sessions.iter().map(|report| EndedSessionBody {
            id: report.view.session.id.to_string(),
            state: report.status.state.as_str(),
            end_reason: report.status.end_reason.map(EndReason::as_str),
        });
        Self {
            task: TaskStateBody::from(&ended.task),
            sessions: sessions.collect(),
        }
    }
}

/// Opens a task without a credential.
#[utoipa::path(post, path = "/v1/tasks", request_body = NewTaskBody, responses((status = 201, body = OpenedBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn open(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
    body: Strict<NewTaskBody>,
) -> Result<Response, Problem> {
    let new = body.value.into_domain("")?;
    let opened = state
        .broker
        .tasks
        .open_task(&presented.evidence, new)
        .await?;
    let location = format!("/v1/tasks/{}", opened.task.id);
    let body = OpenedBody {
        task: opened.task.into(),
        decision: opened.decision.into(),
        receipt: opened.receipt,
    };
    Ok((StatusCode::CREATED, [("location", location)], Json(body)).into_response())
}

/// The tasks to list.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// Only tasks with this recorded state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    state: Option<TaskState>,
    /// Only of this owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// The `next_cursor` of the previous page.
    #[serde(default, skip_serializing_if = "is_place")]
    cursor: Option<String>,
    /// The largest number of rows.
    #[serde(
        default,
        skip_serializing_if = "is_place",
        deserialize_with = "maybe_number"
    )]
    limit: Option<u32>,
}

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskPage {
    tasks: Vec<TaskStateBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Lists tasks, newest first: an admin sees all, any other caller its own.
#[utoipa::path(get, path = "/v1/tasks", params(TaskQuery), responses((status = 200, body = TaskPage)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    Asked(asked): Asked<TaskQuery>,
) -> Result<Response, Problem> {
    let limit = page_limit(asked.limit)?;
    let filter = TaskFilter {
        state: asked.state,
        owner: asked.owner.clone(),
        before: read_cursor(&asked, asked.cursor.as_deref())?,
        limit,
    };
    let reports = state
        .broker
        .tasks
        .list_tasks(&presented.evidence, filter)
        .await?;
    let full = reports.len() == limit as usize;
    let last = reports.last().map(|report| report.task.id);
    let next_cursor = last.filter(|_| full).map(|last| cursor(&asked, &last));
    let mut headers = HeaderMap::new();
    if let Some(next) = &next_cursor {
        link_next(&mut headers, "/v1/tasks", &asked, next, limit);
    }
    let tasks = reports.iter().map(TaskStateBody::from).collect();
    Ok((headers, Json(TaskPage { tasks, next_cursor })).into_response())
}

/// Shows one task in its present state.
#[utoipa::path(get, path = "/v1/tasks/{id}", params(("id" = String, Path)), responses((status = 200, body = TaskOnlyBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn show(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<TaskOnlyBody>, Problem> {
    let id: TaskId = id("task", &text)?;
    let report = state.broker.tasks.task(id, &presented.evidence).await?;
    Ok(Json(TaskOnlyBody {
        task: TaskStateBody::from(&report),
    }))
}

/// Records that a task is alive. It never moves the deadline.
#[utoipa::path(post, path = "/v1/tasks/{id}/heartbeat", params(("id" = String, Path)), responses((status = 200, body = TaskSessionsBody), (status = 404, body = super::problem::ProblemBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn heartbeat(
    State(state): State<AppState>,
    Named(text): Named,
    presented: Presented,
) -> Result<Json<TaskSessionsBody>, Problem> {
    let id: TaskId = id("task", &text)?;
    let told = state
        .broker
        .tasks
        .heartbeat(id, presented.into_authority())
        .await?;
    Ok(Json(told.into()))
}

/// Completes a task, which also ends everything under it.
#[utoipa::path(post, path = "/v1/tasks/{id}/complete", params(("id" = String, Path)), responses((status = 200, body = TaskSessionsBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn complete(
    State(state): State<AppState>,
    Named(text): Named,
    presented: Presented,
) -> Result<Json<TaskSessionsBody>, Problem> {
    end(&state, &text, presented, TaskEnd::Complete).await
}

/// Aborts a task, which also ends everything under it.
#[utoipa::path(post, path = "/v1/tasks/{id}/abort", params(("id" = String, Path)), responses((status = 200, body = TaskSessionsBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn abort(
    State(state): State<AppState>,
    Named(text): Named,
    presented: Presented,
) -> Result<Json<TaskSessionsBody>, Problem> {
    end(&state, &text, presented, TaskEnd::Abort).await
}

async fn end(
    state: &AppState,
    text: &str,
    presented: Presented,
    end: TaskEnd,
) -> Result<Json<TaskSessionsBody>, Problem> {
    let id: TaskId = id("task", text)?;
    let ended = state
        .broker
        .tasks
        .end_task(id, presented.into_authority(), end)
        .await?;
    Ok(Json(ended.into()))
}

/// A child task to admit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DelegateBody {
    /// The identity of the child task's owner.
    #[schema(value_type = String)]
    workload: Identity,
    /// The number of credentials that move from this task's budget to the child's.
    #[serde(default = "one")]
    max_credentials: u32,
    /// Seconds until the token expires.
    #[serde(default)]
    expires_in_seconds: Option<u64>,
}

fn one() -> u32 {
    1
}

/// A delegation token.
#[derive(Debug, Serialize, ToSchema)]
pub struct DelegationBody {
    delegation: String,
    expires_at: String,
    max_credentials: u32,
}

/// Creates a single-use token that lets one child open a task under this one.
#[utoipa::path(post, path = "/v1/tasks/{id}/delegations", params(("id" = String, Path)), request_body = DelegateBody, responses((status = 201, body = DelegationBody), (status = 404, body = super::problem::ProblemBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn delegate(
    State(state): State<AppState>,
    Named(text): Named,
    presented: Presented,
    _: Unrepeatable,
    body: Strict<DelegateBody>,
) -> Result<(StatusCode, Json<DelegationBody>), Problem> {
    let id: TaskId = id("task", &text)?;
    let body = body.value;
    let lent = state
        .broker
        .tasks
        .delegate(
            id,
            presented.into_authority(),
            body.workload,
            body.max_credentials,
            body.expires_in_seconds,
        )
        .await?;
    let body = DelegationBody {
        // The only place where a delegation token is written to an answer.
        delegation: lent.token.expose_secret().to_owned(),
        expires_at: lent.expires_at.to_string(),
        max_credentials: lent.sessions,
    };
    Ok((StatusCode::CREATED, Json(body)))
}
