//! `/oauth2/revoke` (RFC 7009).

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;

use super::client::authentication;
use super::error::OAuthError;
use super::form::Form;
use crate::broker::BrokerError;
use crate::http::AppState;
use crate::http::evidence::Presented;
use crate::wire::oauth::{OAuthErrorBody, SubmittedTokenForm};

/// Ends a token's session, for its workload or an admin. An unknown token counts as revoked.
#[utoipa::path(
    post,
    path = "/oauth2/revoke",
    request_body(content = SubmittedTokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200), (status = 400, body = OAuthErrorBody), (status = 401, body = OAuthErrorBody), (status = 413, body = OAuthErrorBody), (status = 415, body = OAuthErrorBody))
)]
pub(in crate::http) async fn revoke(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Response {
    match try_revoke(&state, presented, request).await {
        Ok(()) => (StatusCode::OK, [(header::CACHE_CONTROL, "no-store")]).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn try_revoke(
    state: &AppState,
    presented: Presented,
    request: Request,
) -> Result<(), OAuthError> {
    let form = Form::read(request, state).await?;
    let token = SecretString::from(form.required("token")?);
    let (evidence, way) = authentication(presented, &form)?;
    match state
        .broker
        .revocation
        .revoke_token(&evidence, &token)
        .await
    {
        Ok(()) => Ok(()),
        Err(BrokerError::NotFound(_)) => Err(OAuthError::bad(
            "unauthorized_client",
            "the token belongs to another client",
        )),
        Err(error) => Err(OAuthError::of(error, way)),
    }
}
