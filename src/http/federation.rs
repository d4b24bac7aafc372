//! The documents by which AWS trusts the broker as an OpenID provider, with an issuer and keys of
//! their own.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::AppState;
use crate::mint::aws::federation::{FEDERATION_ALGORITHM, issuer};

fn cacheable(state: &AppState, body: Value) -> Response {
    let age = format!("public, max-age={}", state.settings.jwks_cache_seconds);
    ([(header::CACHE_CONTROL, age)], Json(body)).into_response()
}

/// The federation's issuer, as OpenID Connect discovery.
#[utoipa::path(get, path = "/federation/aws/.well-known/openid-configuration", responses((status = 200, body = Object)))]
pub(super) async fn federation_configuration(State(state): State<AppState>) -> Response {
    let issuer = issuer(state.broker.core.issuer());
    let body = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [FEDERATION_ALGORITHM.as_str()],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nbf", "jti"],
    });
    cacheable(&state, body)
}

/// The federation's published keys (RFC 7517).
#[utoipa::path(get, path = "/federation/aws/.well-known/jwks.json", responses((status = 200, body = Object)))]
pub(super) async fn federation_jwks(State(state): State<AppState>) -> Response {
    cacheable(&state, state.broker.keys.federation_jwks())
}
