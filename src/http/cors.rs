//! Cross-origin reading of what is public: a page of any origin may fetch metadata, keys, status lists
//! and, where the ledger is public, its checkpoint and hash tiles. No other route answers to pages.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;

/// How long a browser may remember what a preflight was answered.
const MAX_AGE_SECONDS: &str = "86400";

/// Where the entries of the log are, which are never public.
const ENTRIES: &str = "/ledger/tile/entries/";

/// For documents that are always public.
pub(super) async fn always(request: Request, next: Next) -> Response {
    answer(request, next).await
}

/// For those that are public with the ledger.
pub(super) async fn with_ledger(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let entries = request.uri().path().starts_with(ENTRIES);
    if state.settings.public_ledger && !entries {
        answer(request, next).await
    } else {
        next.run(request).await
    }
}

async fn answer(request: Request, next: Next) -> Response {
    let asked = header::ACCESS_CONTROL_REQUEST_METHOD;
    let is_preflight = request.method() == Method::OPTIONS && request.headers().contains_key(asked);
    let mut response = if is_preflight {
        let allowed = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
            // Never `Authorization`, which a star does not stand for.
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "*"),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS),
        ];
        (StatusCode::NO_CONTENT, allowed).into_response()
    } else {
        next.run(request).await
    };
    let every = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, every);
    response
}
