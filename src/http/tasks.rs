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

use super::AppState;
use super::credentials::new_task;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, QueryParams, Unrepeatable};
use super::problem::Problem;
use super::sessions::{cursor, id, link_next, page_limit, read_cursor};
use crate::broker::tasks::{TaskReport, TaskWithSessions};
use crate::domain::task::{TaskEnd, TaskState};
use crate::ids::TaskId;
use crate::store::tasks::TaskFilter;
use crate::wire::credentials::NewTaskBody;
use crate::wire::open::Open;
use crate::wire::tasks::{
    DelegateBody, DelegationBody, EndedSessionBody, OpenedBody, TaskOnlyBody, TaskPage, TaskQuery,
    TaskSessionsBody, TaskStateBody,
};

impl From<&TaskReport> for TaskStateBody {
    fn from(report: &TaskReport) -> Self {
        let task = &report.task;
        let open = report.state == TaskState::Open;
        Self {
            id: task.id,
            state: report.state.into(),
            kind: task.task_type.clone(),
            owner: task.owner.clone(),
            parent_id: task.parent,
            opened_at: task.opened_at,
            deadline: task.deadline,
            heartbeat_seconds: task.heartbeat_seconds,
            heartbeat_due_at: task
                .heartbeat_seconds
                .filter(|_| open)
                .map(|_| task.life().expires_at()),
            ended_at: report.ended_at,
            credentials_left: task.sessions_left,
        }
    }
}

impl From<TaskWithSessions> for TaskSessionsBody {
    fn from(ended: TaskWithSessions) -> Self {
        let sessions = ended.sessions.iter().map(|report| EndedSessionBody {
            id: report.view.session.id,
            state: report.status.state.into(),
            end_reason: report.status.end_reason.map(Open::Known),
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
    let new = new_task(body.value, "")?;
    let opened = state
        .broker
        .tasks
        .open_task(&presented.evidence, new)
        .await?;
    let location = format!("/v1/tasks/{}", opened.task.id);
    let body = OpenedBody {
        task: opened.task.into(),
        decision: opened.decision.into(),
        receipt: opened.receipt.into(),
    };
    Ok((StatusCode::CREATED, [("location", location)], Json(body)).into_response())
}

/// Lists tasks, newest first: an admin sees all, any other caller its own.
#[utoipa::path(get, path = "/v1/tasks", params(TaskQuery), responses((status = 200, body = TaskPage)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    QueryParams(asked): QueryParams<TaskQuery>,
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
        // The only place where a delegation token is put into an answer.
        delegation: lent.token.into(),
        expires_at: lent.expires_at,
        max_credentials: lent.sessions,
    };
    Ok((StatusCode::CREATED, Json(body)))
}
