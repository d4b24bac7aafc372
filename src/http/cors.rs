//! Cross-origin access to public documents. A page of any origin may fetch metadata, keys, status
//! lists and, if the ledger is public, its checkpoint and hash tiles. Other routes permit no
//! cross-origin access.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;

/// How long a browser may cache the answer to a preflight request.
const MAX_AGE_SECONDS: &str = "86400";

/// The path of the log's entries, which are never public.
const ENTRIES: &str = "/ledger/tile/entries/";

/// The layer for documents that are always public.
pub(super) async fn always(request: Request, next: Next) -> Response {
    answer(request, next).await
}

/// The layer for documents that are public if the ledger is.
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
            // `*` does not include `Authorization`, which is never allowed.
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
