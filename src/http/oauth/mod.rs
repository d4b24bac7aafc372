//! The OAuth endpoints: tokens, introspection, revocation, metadata, keys.
//!
//! The metadata documents and the key set are written here; each other endpoint has a module,
//! `form` reads their bodies, and `error` has their errors. The rules: a refusal at `/oauth2/` has
//! the form of RFC 6749, also if a layer refused ([`answer_in_form`]). The metadata name only
//! values that the endpoints accept.
//!
//! Failures: the documents cannot fail. A refusal of a layer keeps its status and its headers.
//! `http::mod` has the routes and the layer; `broker::keys` has the public keys.

mod accept;
mod client;
mod error;
mod form;
pub mod introspect;
pub mod revoke;
pub mod token;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use self::error::OAuthError;
use super::AppState;
use super::oauth_path::is_oauth;
use super::problem::ProblemDetail;
use crate::attest::{dpop, key};
use crate::config::ClientCertificates;
use crate::crypto::jwk::Algorithm;
use crate::wire::oauth::{GRANT_TYPES, JwkSetBody, ServerMetadataBody};

/// Converts refusals of the layers before an OAuth endpoint to OAuth's form: the limit by address,
/// the timeout, an unsupported method.
pub(super) async fn answer_in_form(request: Request, next: Next) -> Response {
    let served = is_oauth(request.uri().path());
    let response = next.run(request).await;
    match response.extensions().get::<ProblemDetail>() {
        Some(told) if served => {
            let error = OAuthError::of_layer(response.status(), told);
            let mut answer = error.into_response();
            let kept = response
                .headers()
                .iter()
                .filter(|(name, _)| !describes_body(name));
            let kept: HeaderMap = kept
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            answer.headers_mut().extend(kept);
            answer
        }
        _ => response,
    }
}

fn describes_body(name: &header::HeaderName) -> bool {
    [header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name)
}

/// The authentication methods of the protected endpoints: `private_key_jwt`, and an access token of
/// this broker or an attestation, under the names of RFC 8414 §2.
const PROTECTED_BY: [&str; 3] = ["private_key_jwt", "Bearer", "DPoP"];

fn names(algorithms: &[Algorithm]) -> Vec<String> {
    texts(algorithms.iter().map(|own| own.as_str()))
}

fn texts<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn metadata(state: &AppState) -> ServerMetadataBody {
    let issuer = state.broker.core.issuer();
    let signing = state.broker.keys.signing_algorithms();
    // OpenID Connect Discovery requires RS256 in this list; the broker issues no ID tokens.
    let mut id_token = signing.clone();
    if !id_token.contains(&"RS256") {
        id_token.push("RS256");
    }
    let binds = state.settings.client_certificates == ClientCertificates::Bind;
    ServerMetadataBody {
        issuer: issuer.to_owned(),
        jwks_uri: format!("{issuer}/.well-known/jwks.json"),
        introspection_endpoint: format!("{issuer}/oauth2/introspect"),
        introspection_endpoint_auth_methods_supported: texts(PROTECTED_BY),
        introspection_endpoint_auth_signing_alg_values_supported: names(&key::ALGORITHMS),
        introspection_signing_alg_values_supported: texts(signing),
        // AWS roles can only be requested at `/v1/credentials`.
        authorization_details_types_supported: texts(["api"]),
        dpop_signing_alg_values_supported: names(&dpop::ALGORITHMS),
        // Required by RFC 8414; there is no authorization endpoint.
        response_types_supported: texts(["none"]),
        token_endpoint: format!("{issuer}/oauth2/token"),
        token_endpoint_auth_methods_supported: texts(["private_key_jwt", "none"]),
        token_endpoint_auth_signing_alg_values_supported: names(&key::ALGORITHMS),
        revocation_endpoint: format!("{issuer}/oauth2/revoke"),
        revocation_endpoint_auth_methods_supported: texts(PROTECTED_BY),
        revocation_endpoint_auth_signing_alg_values_supported: names(&key::ALGORITHMS),
        grant_types_supported: texts(GRANT_TYPES),
        subject_types_supported: texts(["public"]),
        id_token_signing_alg_values_supported: texts(id_token),
        service_documentation: format!("{issuer}/openapi.json"),
        tls_client_certificate_bound_access_tokens: binds.then_some(true),
    }
}

/// A public document that may be cached as long as the published keys.
pub(super) fn cacheable(state: &AppState, body: &impl Serialize) -> Response {
    let age = format!("public, max-age={}", state.settings.jwks_cache_seconds);
    ([(header::CACHE_CONTROL, age)], Json(body)).into_response()
}

/// Authorization server metadata (RFC 8414).
#[utoipa::path(get, path = "/.well-known/oauth-authorization-server", responses((status = 200, body = ServerMetadataBody)))]
pub(super) async fn authorization_server(State(state): State<AppState>) -> Response {
    cacheable(&state, &metadata(&state))
}

/// The same as OpenID Connect discovery, which many clients use to find keys.
#[utoipa::path(get, path = "/.well-known/openid-configuration", responses((status = 200, body = ServerMetadataBody)))]
pub(super) async fn openid_configuration(State(state): State<AppState>) -> Response {
    cacheable(&state, &metadata(&state))
}

/// The published keys (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", responses((status = 200, body = JwkSetBody)))]
pub(super) async fn jwks(State(state): State<AppState>) -> Response {
    cacheable(&state, &state.broker.keys.published_jwks())
}
