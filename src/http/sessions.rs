//! `/v1/sessions`: lists, shows and revokes sessions. Other listings use its cursors and pages.
//!
//! `list`, `show` and `revoke` are the handlers; `cursor`, `read_cursor`, `page_limit`, `id` and
//! `link_next` are shared. The rules: a cursor is valid only with the filter that it was made for.
//! The state is filtered after a page was read, so a page may have fewer rows than asked, and still
//! a next one.
//!
//! Failures: a foreign cursor or an unfit limit is a 400 with a pointer, a malformed id a 404, like
//! an unknown or hidden session. Other errors are the broker's. `broker::verification` reads the
//! sessions, and `broker::revocation` ends them.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::params::{Named, QueryParams};
use super::problem::Problem;
use crate::broker::verification::sessions::SessionReport;
use crate::crypto::digest::sha256;
use crate::domain::limits::{DEFAULT_PAGE, MAX_PAGE, MAX_REASON_BYTES};
use crate::domain::session::SessionState;
use crate::domain::text::check_text;
use crate::ids::SessionId;
use crate::store::sessions::SessionFilter;
use crate::wire::query::in_one_spelling;
use crate::wire::sessions::{
    RevocationProgressBody, RevokeBody, SessionBody, SessionPage, SessionQuery,
};

impl From<&SessionReport> for SessionBody {
    fn from(report: &SessionReport) -> Self {
        let session = &report.view.session;
        let progress = report.revocation_progress.as_ref();
        Self {
            revocation_progress: progress
                .map(|progress| RevocationProgressBody::new(progress, session)),
            ..Self::new(session, report.status)
        }
    }
}

/// The position in a listing: the last id, bound to the filter of the listing.
#[derive(Deserialize, Serialize)]
struct Cursor {
    filter: String,
    after: String,
}

/// The cursor after `last` in a listing with this filter.
pub(super) fn cursor(filter: &impl Serialize, last: &impl ToString) -> String {
    let cursor = Cursor {
        filter: fingerprint(filter),
        after: last.to_string(),
    };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default())
}

/// The id in a cursor, if the cursor has this filter.
pub(super) fn read_cursor<T: std::str::FromStr>(
    filter: &impl Serialize,
    text: Option<&str>,
) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let cursor = bytes.and_then(|bytes| serde_json::from_slice::<Cursor>(&bytes).ok());
    let own = cursor.filter(|cursor| cursor.filter == fingerprint(filter));
    let after = own.and_then(|cursor| cursor.after.parse().ok());
    after
        .map(Some)
        .ok_or_else(|| Problem::invalid("/cursor", "not a cursor of this listing with this filter"))
}

fn fingerprint(filter: &impl Serialize) -> String {
    let digest = sha256(&serde_json::to_vec(filter).unwrap_or_default());
    URL_SAFE_NO_PAD.encode(digest.get(..12).unwrap_or_default())
}

/// The limit of a page, within bounds.
pub(super) fn page_limit(asked: Option<u32>) -> Result<u32, Problem> {
    limit_within(asked, MAX_PAGE)
}

/// The limit of a page, at most `most`.
pub(super) fn limit_within(asked: Option<u32>, most: u32) -> Result<u32, Problem> {
    match asked {
        None => Ok(DEFAULT_PAGE),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::invalid("/limit", format!("1 to {most}"))),
    }
}

/// Parses an id in a path. A text that is not an id is not found.
pub(super) fn id<T>(what: &'static str, text: &str) -> Result<T, Problem>
where
    T: std::str::FromStr + ToString,
{
    in_one_spelling(text).ok_or_else(|| Problem::not_found(what))
}

/// Lists sessions, newest first: an admin sees all, any other caller its own.
#[utoipa::path(get, path = "/v1/sessions", params(SessionQuery), responses((status = 200, body = SessionPage)))]
pub(super) async fn list(
    State(state): State<AppState>,
    presented: Presented,
    QueryParams(asked): QueryParams<SessionQuery>,
) -> Result<Response, Problem> {
    let limit = page_limit(asked.limit)?;
    let live = asked
        .state
        .is_some_and(|state| state != SessionState::Ended);
    let filter = SessionFilter {
        workload: asked.workload.clone(),
        task: asked.task,
        resource: asked.resource.clone(),
        live_at: live.then(|| state.broker.core.now()),
        before: read_cursor(&asked, asked.cursor.as_deref())?,
        limit,
    };
    let reports = state
        .broker
        .verification
        .list_sessions(&presented.evidence, filter)
        .await?;
    let full = reports.len() == limit as usize;
    let last = reports.last().map(|report| report.view.session.id);
    let next_cursor = last.filter(|_| full).map(|last| cursor(&asked, &last));
    let sessions = reports
        .iter()
        .filter(|report| asked.state.is_none_or(|state| report.status.state == state))
        .map(SessionBody::from)
        .collect();
    let mut headers = HeaderMap::new();
    if let Some(next) = &next_cursor {
        link_next(&mut headers, "/v1/sessions", &asked, next, limit);
    }
    Ok((
        headers,
        Json(SessionPage {
            sessions,
            next_cursor,
        }),
    )
        .into_response())
}

/// Adds the header `Link: rel="next"` (RFC 8288) to an answer.
pub(super) fn link_next(
    headers: &mut HeaderMap,
    path: &str,
    filter: &impl Serialize,
    cursor: &str,
    limit: u32,
) {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Ok(Value::Object(members)) = serde_json::to_value(filter) {
        for (name, value) in members {
            query.append_pair(&name, value.as_str().unwrap_or_default());
        }
    }
    query.append_pair("limit", &limit.to_string());
    query.append_pair("cursor", cursor);
    if let Ok(value) = format!("<{path}?{}>; rel=\"next\"", query.finish()).parse() {
        headers.insert(axum::http::header::LINK, value);
    }
}

/// Shows one session in its present state.
#[utoipa::path(get, path = "/v1/sessions/{id}", params(("id" = String, Path)), responses((status = 200, body = SessionBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn show(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
) -> Result<Json<SessionBody>, Problem> {
    let id: SessionId = id("session", &text)?;
    let report = state
        .broker
        .verification
        .session(id, &presented.evidence)
        .await?;
    Ok(Json(SessionBody::from(&report)))
}

/// Ends one session, for its own workload or an admin.
#[utoipa::path(post, path = "/v1/sessions/{id}/revoke", params(("id" = String, Path)), request_body = RevokeBody, responses((status = 200, body = SessionBody), (status = 404, body = super::problem::ProblemBody)))]
pub(super) async fn revoke(
    State(state): State<AppState>,
    presented: Presented,
    Named(text): Named,
    body: Strict<RevokeBody>,
) -> Result<Json<SessionBody>, Problem> {
    let id: SessionId = id("session", &text)?;
    let reason = body.value.reason.unwrap_or_default();
    check_text(&reason, MAX_REASON_BYTES)
        .map_err(|refused| Problem::invalid("/reason", refused.to_string()))?;
    let report = state
        .broker
        .revocation
        .revoke_session(&presented.evidence, id)
        .await?;
    Ok(Json(SessionBody::from(&report)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_filter() {
        let filter = serde_json::json!({"workload": "dev:a"});
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let text = cursor(&filter, &id);
        let read: Option<SessionId> = read_cursor(&filter, Some(&text)).unwrap();
        assert_eq!(read.unwrap().to_string(), id);
        let other = serde_json::json!({"workload": "dev:b"});
        assert!(read_cursor::<SessionId>(&other, Some(&text)).is_err());
        assert!(read_cursor::<SessionId>(&filter, Some("nonsense")).is_err());
    }
}
