//! What OAuth clients and resource servers expect: tokens, introspection, revocation, metadata, keys.
//! Errors here are RFC 6749's.

mod error;
mod form;
pub mod introspect;
pub mod revoke;
pub mod token;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub use self::error::OAuthErrorBody;
use super::AppState;
use crate::config::ClientCertificates;

fn metadata(state: &AppState) -> Value {
    let issuer = state.broker.issuer();
    // OpenID Connect Discovery wants RS256 named, whatever there is; no ID token is issued here.
    let mut algorithms = state.broker.signing_algorithms();
    if !algorithms.contains(&"RS256") {
        algorithms.push("RS256");
    }
    let mut metadata = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "introspection_endpoint_auth_methods_supported": ["none"],
        "introspection_signing_alg_values_supported": state.broker.signing_algorithms(),
        "authorization_details_types_supported": ["api", "aws"],
        "dpop_signing_alg_values_supported": ["ES256", "ES384", "EdDSA", "RS256", "PS256"],
        // Required by RFC 8414; there is no authorization endpoint.
        "response_types_supported": ["none"],
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
        "token_endpoint_auth_signing_alg_values_supported": ["ES256", "EdDSA"],
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "revocation_endpoint_auth_methods_supported": ["none"],
        "grant_types_supported": token::GRANT_TYPES,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "service_documentation": format!("{issuer}/openapi.json"),
    });
    if state.settings.client_certificates == ClientCertificates::Bind {
        metadata["tls_client_certificate_bound_access_tokens"] = json!(true);
    }
    metadata
}

fn cacheable(state: &AppState, body: Value) -> Response {
    let age = format!("public, max-age={}", state.settings.jwks_cache_seconds);
    ([(header::CACHE_CONTROL, age)], Json(body)).into_response()
}

/// Authorization server metadata (RFC 8414).
#[utoipa::path(get, path = "/.well-known/oauth-authorization-server", responses((status = 200, body = Object)))]
pub(super) async fn authorization_server(State(state): State<AppState>) -> Response {
    cacheable(&state, metadata(&state))
}

/// The same as OpenID Connect discovery, by which many clients find keys.
#[utoipa::path(get, path = "/.well-known/openid-configuration", responses((status = 200, body = Object)))]
pub(super) async fn openid_configuration(State(state): State<AppState>) -> Response {
    cacheable(&state, metadata(&state))
}

/// The published keys (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", responses((status = 200, body = Object)))]
pub(super) async fn jwks(State(state): State<AppState>) -> Response {
    cacheable(&state, state.broker.published_jwks())
}
