//! `/v1/revocations`: revocations of everything that a selector matches.
//!
//! `revoke` makes one, `list` and `show` read them, and `lift` ends the block that one left. The
//! rule: a revocation always has a reason. `broker::revocation` authorizes, records and counts.
//!
//! Failures: a missing or unfit reason, or a cursor of another query, is a 400 with a pointer; an
//! unknown id is a 404. If the revocation was committed but its sessions could not be counted, the
//! answer is a success without the counts. Other errors are the broker's, which `problem` maps.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Asked, Named, Unrepeatable};
use super::problem::Problem;
use super::sessions::{SessionBody, cursor, id, page_limit, read_cursor};
use crate::broker::revocation::{BlockAsk, RevokeAsk, Revoked};
use crate::clock::Timestamp;
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::limits::MAX_REASON_BYTES;
use crate::domain::text::check_text;
use crate::ids::CutoffId;
use crate::store::cutoffs::CutoffFilter;

/// A revocation to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationAsk {
    /// An object with one member: `workload`, `task`, `resource`, `attestor`, `generation`,
    /// `policy`, `signing_key`, or `{"all": true}`.
    #[schema(value_type = Object)]
    selector: Selector,
    /// Seconds for which nothing new is granted, `"until_lifted"`, or 0 for no block.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    block_seconds: Option<BlockBody>,
    /// Only with a resource of kind `aws` whose role no other resource has: AWS then refuses every
    /// earlier session of the broker on the role, whatever their number.
    #[serde(default)]
    deny_all_earlier_sessions: bool,
    /// The reason, for people.
    reason: String,
    /// Whether to revoke if nothing has the selector's name and no recorded session matches it.
    /// Otherwise the answer is 404.
    #[serde(default)]
    allow_unknown: bool,
    /// Whether to only report the sessions that would end.
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

/// A recorded revocation.
#[derive(Debug, Serialize, ToSchema)]
pub struct CutoffBody {
    id: String,
    /// The index of its leaf: every match with an earlier leaf has ended.
    index: u64,
    /// The selector: an object with one member, as in the request.
    #[schema(value_type = Object)]
    selector: Selector,
    /// Until when nothing new is granted: a time, or `until_lifted`; absent without a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_until: Option<String>,
    /// Whether the block is in effect now.
    block_active: bool,
    /// The role whose earlier sessions AWS refuses; absent if it refuses none.
    #[serde(skip_serializing_if = "Option::is_none")]
    deny_policy_target: Option<String>,
    /// The reason in the admin's words.
    reason: String,
    /// The admin who revoked.
    by: String,
    requested_at: String,
    committed_at: String,
    lifted: bool,
    /// The index of the leaf that lifted the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    lifted_index: Option<u64>,
}

impl CutoffBody {
    fn new(cutoff: &Cutoff, now: Timestamp) -> Self {
        Self {
            id: cutoff.id.to_string(),
            index: cutoff.index,
            selector: cutoff.selector.clone(),
            blocked_until: cutoff.block.to_text(),
            block_active: cutoff.blocks(now),
            deny_policy_target: cutoff.deny_policy_target.clone(),
            reason: cutoff.reason.clone(),
            by: cutoff.by.clone(),
            requested_at: cutoff.requested_at.to_string(),
            committed_at: cutoff.committed_at.to_string(),
            lifted: cutoff.lifted_index.is_some(),
            lifted_index: cutoff.lifted_index,
        }
    }
}

/// A mass revocation, made or only checked, with the sessions that it ends.
#[derive(Debug, Serialize, ToSchema)]
pub struct RevocationBody {
    /// The revocation; absent in a dry run.
    #[serde(flatten)]
    cutoff: Option<CutoffBody>,
    /// The number of sessions that it ends. This and the next three are absent if the revocation
    /// was made but the count failed; read the revocation again.
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Vec<SessionBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<u64>,
}

impl RevocationBody {
    fn new(revocation: &Revoked, now: Timestamp) -> Self {
        let cutoff = revocation.cutoff.as_ref();
        let radius = revocation.radius.as_ref();
        Self {
            cutoff: cutoff.map(|cutoff| CutoffBody::new(cutoff, now)),
            matched: radius.map(|radius| radius.matched),
            sessions: radius.map(|radius| radius.sessions.iter().map(SessionBody::from).collect()),
            ended: radius.map(|radius| radius.ended),
            ending: radius.map(|radius| radius.ending),
        }
    }
}

/// The revocations to list.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RevocationQuery {
    /// Whether to show only revocations whose block is in effect now.
    #[serde(default)]
    standing: bool,
    /// Only those with this selector: `kind=value`, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    /// The `next_cursor` of the previous page.
    #[serde(default, skip_serializing)]
    cursor: Option<String>,
    /// The largest number of rows, 1 to 500; 100 if absent.
    #[serde(
        default,
        skip_serializing,
        deserialize_with = "super::params::maybe_number"
    )]
    limit: Option<u32>,
}

/// A page of a listing of revocations, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct RevocationPage {
    revocations: Vec<CutoffBody>,
    /// The `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Lists revocations, newest first, for admins.
#[utoipa::path(get, path = "/v1/revocations", params(RevocationQuery), responses((status = 200, body = RevocationPage), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    Asked(asked): Asked<RevocationQuery>,
) -> Result<Json<RevocationPage>, Problem> {
    let limit = page_limit(asked.limit)?;
    let selector = asked.selector.as_deref().map(str::parse::<Selector>);
    let selector = selector.transpose();
    let now = state.broker.core.now();
    let filter = CutoffFilter {
        selector: selector.map_err(|error| Problem::invalid("/selector", error.to_string()))?,
        blocks_at: asked.standing.then_some(now),
        before: read_cursor(&asked, asked.cursor.as_deref())?,
        limit,
    };
    let cutoffs = state
        .broker
        .revocation
        .revocations(&presented.evidence, filter)
        .await?;
    let is_full = u32::try_from(cutoffs.len()).is_ok_and(|count| count == limit);
    let last = cutoffs.last().filter(|_| is_full);
    Ok(Json(RevocationPage {
        next_cursor: last.map(|last| cursor(&asked, &last.index)),
        revocations: cutoffs
            .iter()
            .map(|cutoff| CutoffBody::new(cutoff, now))
            .collect(),
    }))
}

/// Ends everything that a selector matches, and blocks new requests that match it.
#[utoipa::path(post, path = "/v1/revocations", request_body = RevocationAsk, responses((status = 200, body = RevocationBody), (status = 403, body = super::problem::ProblemBody), (status = 404, body = super::problem::ProblemBody), (status = 409, body = super::problem::ProblemBody)))]
pub(super) async fn revoke(
    State(state): State<AppState>,
    presented: Presented,
    _: Unrepeatable,
    body: Strict<RevocationAsk>,
) -> Result<Json<RevocationBody>, Problem> {
    let body = body.value;
    if body.reason.is_empty() {
        return Err(Problem::invalid("/reason", "at least 1 byte"));
    }
    check_text(&body.reason, MAX_REASON_BYTES)
        .map_err(|refused| Problem::invalid("/reason", refused.to_string()))?;
    let block = match body.block_seconds {
        None => BlockAsk::Default,
        Some(BlockBody::Seconds(seconds)) => BlockAsk::Seconds(seconds),
        Some(BlockBody::Until(UntilLifted::UntilLifted)) => BlockAsk::UntilLifted,
    };
    let revoked = state.broker.revocation.revoke_many(
        &presented.evidence,
        RevokeAsk {
            selector: body.selector,
            block,
            deny_all_earlier_sessions: body.deny_all_earlier_sessions,
            reason: body.reason,
            allow_unknown: body.allow_unknown,
            dry_run: body.dry_run,
        },
    );
    let revoked = revoked.await?;
    Ok(Json(RevocationBody::new(&revoked, state.broker.core.now())))
}

/// Shows the progress of a mass revocation.
#[utoipa::path(get, path = "/v1/revocations/{id}", params(("id" = String, Path)), responses((status = 200, body = RevocationBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn show(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<RevocationBody>, Problem> {
    let id: CutoffId = id("revocation", &text)?;
    let revocation = state
        .broker
        .revocation
        .revocation(&presented.evidence, id)
        .await?;
    Ok(Json(RevocationBody::new(
        &revocation,
        state.broker.core.now(),
    )))
}

/// Lifts the block of a revocation. The sessions that it ended stay ended.
#[utoipa::path(post, path = "/v1/revocations/{id}/lift", params(("id" = String, Path)), responses((status = 200, body = CutoffBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn lift(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<CutoffBody>, Problem> {
    let id: CutoffId = id("revocation", &text)?;
    let cutoff = state
        .broker
        .revocation
        .lift(&presented.evidence, id)
        .await?;
    Ok(Json(CutoffBody::new(&cutoff, state.broker.core.now())))
}
