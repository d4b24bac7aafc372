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

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, QueryParams, Unrepeatable};
use super::problem::Problem;
use super::sessions::{cursor, id, page_limit, read_cursor};
use crate::broker::revocation::{BlockRequest, RevokeRequest, Revoked};
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::limits::MAX_REASON_BYTES;
use crate::domain::text::check_text;
use crate::ids::CutoffId;
use crate::store::cutoffs::CutoffFilter;
use crate::wire::revocations::{
    BlockBody, CutoffBody, RevocationAsk, RevocationBody, RevocationPage, RevocationQuery,
    UntilLifted,
};
use crate::wire::sessions::SessionBody;

fn revocation_body(revocation: &Revoked, now: Timestamp) -> RevocationBody {
    let cutoff = revocation.cutoff.as_ref();
    let radius = revocation.radius.as_ref();
    RevocationBody {
        cutoff: cutoff.map(|cutoff| CutoffBody::new(cutoff, now)),
        matched: radius.map(|radius| radius.matched),
        // An uncounted dry run is told from one that counted none.
        has_more: radius.map_or(cutoff.is_none(), |radius| radius.has_more),
        sessions: radius.map(|radius| radius.sessions.iter().map(SessionBody::from).collect()),
        ended: radius.map(|radius| radius.ended),
        ending: radius.map(|radius| radius.ending),
    }
}

/// Lists revocations, newest first, for admins.
#[utoipa::path(get, path = "/v1/revocations", params(RevocationQuery), responses((status = 200, body = RevocationPage), (status = 403, body = super::problem::ProblemBody)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    QueryParams(asked): QueryParams<RevocationQuery>,
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
        None => BlockRequest::Default,
        Some(BlockBody::Seconds(seconds)) => BlockRequest::Seconds(seconds),
        Some(BlockBody::Until(UntilLifted::UntilLifted)) => BlockRequest::UntilLifted,
    };
    let revoked = state.broker.revocation.revoke_many(
        &presented.evidence,
        RevokeRequest {
            selector: body.selector,
            block,
            deny_all_earlier_sessions: body.deny_all_earlier_sessions,
            reason: body.reason,
            allow_unknown: body.allow_unknown,
            dry_run: body.dry_run,
        },
    );
    let revoked = revoked.await?;
    Ok(Json(revocation_body(&revoked, state.broker.core.now())))
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
    Ok(Json(revocation_body(&revocation, state.broker.core.now())))
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
