//! `/v1/revocations`: everything that a selector matches.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, Unrepeatable};
use super::problem::Problem;
use super::sessions::{SessionBody, id};
use crate::broker::revoke::{BlockAsk, Revocation, RevokeAsk};
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::limits::MAX_REASON_BYTES;
use crate::ids::CutoffId;

/// What is to be cut off.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationAsk {
    /// One of `workload`, `task`, `resource`, `attestor`, `generation`, `policy`, `signing_key`, or
    /// `{"all": true}`.
    #[schema(value_type = Object)]
    selector: Selector,
    /// Seconds for which nothing new is granted, `"until_lifted"`, or 0 for no block.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    block_seconds: Option<BlockBody>,
    /// Only with a resource of kind `aws` whose role no other has: AWS refuses every session of ours
    /// on the role that was made before, however many there are.
    #[serde(default)]
    widen: bool,
    /// For people.
    reason: String,
    /// Only say what would die.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum BlockBody {
    Seconds(u64),
    Until(UntilLifted),
}

#[derive(Debug, Deserialize)]
enum UntilLifted {
    #[serde(rename = "until_lifted")]
    UntilLifted,
}

/// A mass revocation, done or tried.
#[derive(Debug, Serialize, ToSchema)]
pub struct RevocationBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    widened_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_at: Option<String>,
    lifted: bool,
    /// What it ends. Absent, with the three below, where the revocation stands and could not be
    /// counted afterwards: it can be read again.
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Vec<SessionBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<u64>,
}

impl From<Revocation> for RevocationBody {
    fn from(revocation: Revocation) -> Self {
        let cutoff = revocation.cutoff.as_ref();
        let radius = revocation.radius.as_ref();
        Self {
            id: cutoff.map(|cutoff| cutoff.id.to_string()),
            index: cutoff.map(|cutoff| cutoff.index),
            blocked_until: cutoff.and_then(|cutoff| cutoff.block.to_text()),
            widened_to: cutoff.and_then(|cutoff| cutoff.widened_to.clone()),
            requested_at: cutoff.map(|cutoff| cutoff.requested_at.to_string()),
            committed_at: cutoff.map(|cutoff| cutoff.committed_at.to_string()),
            lifted: cutoff.is_some_and(|cutoff| cutoff.lifted_index.is_some()),
            matched: radius.map(|radius| radius.matched),
            sessions: radius.map(|radius| radius.sessions.iter().map(SessionBody::from).collect()),
            ended: radius.map(|radius| radius.ended),
            ending: radius.map(|radius| radius.ending),
        }
    }
}

/// Ends everything that a selector matches, and keeps it from coming back.
#[utoipa::path(post, path = "/v1/revocations", request_body = RevocationAsk, responses((status = 200, body = RevocationBody), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn revoke(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
    body: Strict<RevocationAsk>,
) -> Result<Json<RevocationBody>, Problem> {
    let body = body.value;
    if body.reason.is_empty() || body.reason.len() > MAX_REASON_BYTES {
        let detail = format!("1 to {MAX_REASON_BYTES} bytes");
        return Err(Problem::invalid("/reason", detail));
    }
    let block = match body.block_seconds {
        None => BlockAsk::Default,
        Some(BlockBody::Seconds(seconds)) => BlockAsk::Seconds(seconds),
        Some(BlockBody::Until(UntilLifted::UntilLifted)) => BlockAsk::UntilLifted,
    };
    let revoked = state.broker.revoke_many(
        &presented.evidence,
        RevokeAsk {
            selector: body.selector,
            block,
            widen: body.widen,
            reason: body.reason,
            dry_run: body.dry_run,
        },
    );
    Ok(Json(revoked.await?.into()))
}

/// Shows how far a mass revocation has come.
#[utoipa::path(get, path = "/v1/revocations/{id}", params(("id" = String, Path)), responses((status = 200, body = RevocationBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn show(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<RevocationBody>, Problem> {
    let id: CutoffId = id("revocation", &text)?;
    let revocation = state.broker.revocation(&presented.evidence, id).await?;
    Ok(Json(revocation.into()))
}

/// A cutoff whose block was lifted.
#[derive(Debug, Serialize, ToSchema)]
pub struct LiftedBody {
    id: String,
    lifted_index: Option<u64>,
}

impl From<Cutoff> for LiftedBody {
    fn from(cutoff: Cutoff) -> Self {
        Self {
            id: cutoff.id.to_string(),
            lifted_index: cutoff.lifted_index,
        }
    }
}

/// Lets in again what a cutoff keeps out. What it killed stays dead.
#[utoipa::path(post, path = "/v1/revocations/{id}/lift", params(("id" = String, Path)), responses((status = 200, body = LiftedBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn lift(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<LiftedBody>, Problem> {
    let id: CutoffId = id("revocation", &text)?;
    let cutoff = state.broker.lift(&presented.evidence, id).await?;
    Ok(Json(cutoff.into()))
}
