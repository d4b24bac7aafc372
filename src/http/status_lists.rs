//! `/status/{list}`: status lists, for verifiers of the broker's tokens. Public, as the draft
//! requires.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::params::Named;
use super::problem::Problem;
use super::sessions::id;
use crate::broker::verification::status_lists::StatusList;

/// A list whose bytes all its answers share. A client that does not read its answer would otherwise
/// keep a copy.
struct Shared(Arc<StatusList>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.token.as_bytes()
    }
}

/// A status list, as a signed JWT.
#[utoipa::path(
    get,
    path = "/status/{list}",
    params(("list" = u64, Path)),
    responses(
        (status = 200, body = String, content_type = "application/statuslist+jwt"),
        (status = 404, body = super::problem::ProblemBody),
        (status = 501, body = super::problem::ProblemBody)
    )
)]
pub(super) async fn status_list(
    State(state): State<AppState>,
    Named(list): Named,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let asks_for_history = query.is_some_and(|query| {
        url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "time")
    });
    if asks_for_history {
        return Err(Problem::no_history());
    }
    let list: u64 = id("status list", &list)?;
    let list = state.broker.verification.status_list(list).await?;
    let left = state.broker.core.now().seconds_until(list.expires_at);
    let headers = [
        (
            header::CONTENT_TYPE,
            "application/statuslist+jwt".to_owned(),
        ),
        (
            header::CACHE_CONTROL,
            format!("public, max-age={}", left.min(10)),
        ),
    ];
    let token = Bytes::from_owner(Shared(list));
    Ok((StatusCode::OK, headers, token).into_response())
}
