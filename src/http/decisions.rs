//! Recorded decisions with their opened inputs, for readers of the whole log; `policy explain` and
//! `policy replay` use them. Also the deletion of free text.
//!
//! `record` shows one decision, `list` a page of them as JSON lines, and `forget` deletes the free
//! text of one. The rule: a subject cannot read its own decisions here. Failures: a caller without
//! the right gets a 404, like the one for a decision that does not exist. An empty page is the end
//! of the list. Other errors are the broker's. All three call `broker::administration`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::AppState;
use super::evidence::Presented;
use super::params::{Named, QueryParams};
use super::problem::Problem;
use super::sessions::{id, limit_within};
use crate::domain::limits::MAX_DECISIONS_PAGE;
use crate::ids::DecisionId;
use crate::wire::decisions::{DecisionRecordBody, DecisionsQuery};

/// Shows a decision's leaf with the opened input of its evaluation.
#[utoipa::path(get, path = "/v1/decisions/{id}/record", params(("id" = String, Path)), responses((status = 200, body = DecisionRecordBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn record(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<DecisionRecordBody>, Problem> {
    let id: DecisionId = id("decision", &text)?;
    let record = state
        .broker
        .administration
        .decision_record(&presented.evidence, id)
        .await?;
    Ok(Json(record.into()))
}

/// Deletes free text: a decision's purpose, or a revocation's reason by the revocation's id. The
/// leaf, its proof and the inputs of the decision stay.
#[utoipa::path(delete, path = "/v1/decisions/{id}/purpose", params(("id" = String, Path)), responses((status = 204), (status = 403, body = super::problem::ProblemBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn forget(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<StatusCode, Problem> {
    let id: Uuid = id("decision", &text)?;
    state
        .broker
        .administration
        .forget_purpose(&presented.evidence, id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists decisions in the order of the log, with their opened inputs, one line of JSON each. An
/// empty answer is the end.
#[utoipa::path(get, path = "/v1/decisions", params(DecisionsQuery), responses((status = 200, body = String, content_type = "application/jsonl"), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    QueryParams(asked): QueryParams<DecisionsQuery>,
) -> Result<Response, Problem> {
    let limit = limit_within(asked.limit, MAX_DECISIONS_PAGE)?;
    let page = state
        .broker
        .administration
        .decision_records(&presented.evidence, asked.from, asked.since, limit)
        .await?;
    let mut lines = Vec::new();
    for record in &page {
        serde_json::to_writer(&mut lines, record).map_err(|_| Problem::internal())?;
        lines.push(b'\n');
    }
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], lines).into_response())
}
