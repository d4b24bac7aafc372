//! The documents by which AWS trusts the broker as an OpenID provider, with an issuer and keys of
//! their own.

use axum::extract::State;
use axum::response::Response;

use super::AppState;
use super::oauth::cacheable;
use crate::mint::aws::federation::{FEDERATION_ALGORITHM, issuer};
use crate::wire::oauth::{FederationMetadataBody, JwkSetBody};

/// The claims of the tokens that the federation signs.
const CLAIMS: [&str; 7] = ["iss", "sub", "aud", "exp", "iat", "nbf", "jti"];

/// The federation's issuer, as OpenID Connect discovery.
#[utoipa::path(get, path = "/federation/aws/.well-known/openid-configuration", responses((status = 200, body = FederationMetadataBody)))]
pub(super) async fn federation_configuration(State(state): State<AppState>) -> Response {
    let issuer = issuer(state.broker.core.issuer());
    let body = FederationMetadataBody {
        jwks_uri: format!("{issuer}/.well-known/jwks.json"),
        response_types_supported: vec!["id_token".to_owned()],
        subject_types_supported: vec!["public".to_owned()],
        id_token_signing_alg_values_supported: vec![FEDERATION_ALGORITHM.as_str().to_owned()],
        claims_supported: CLAIMS.map(str::to_owned).to_vec(),
        issuer,
    };
    cacheable(&state, &body)
}

/// The federation's published keys (RFC 7517).
#[utoipa::path(get, path = "/federation/aws/.well-known/jwks.json", responses((status = 200, body = JwkSetBody)))]
pub(super) async fn federation_jwks(State(state): State<AppState>) -> Response {
    cacheable(&state, &state.broker.keys.federation_jwks())
}
