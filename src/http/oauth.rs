//! What OAuth clients and resource servers expect: metadata, keys, introspection. Errors here are
//! RFC 6749's.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::warn;
use utoipa::ToSchema;

use super::AppState;
use super::evidence::Presented;
use super::json::{body, is_media_type};
use super::problem::Problem;
use crate::attest::AttestError;
use crate::broker::BrokerError;
use crate::broker::introspect::{ActiveToken, Introspection};
use crate::domain::limits::MAX_BODY_BYTES;
use crate::mint::jwt::subject_and_actor;

/// An error, as RFC 6749 §5.2 writes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct OAuthErrorBody {
    /// A code of RFC 6749.
    error: &'static str,
    /// What is wrong, for people.
    error_description: &'static str,
}

/// An error of RFC 6749 §5.2.
#[derive(Debug)]
struct OAuthError {
    status: StatusCode,
    error: &'static str,
    description: &'static str,
    retry_seconds: Option<u64>,
}

impl OAuthError {
    fn invalid_request(description: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error: "invalid_request",
            description,
            retry_seconds: None,
        }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let body = OAuthErrorBody {
            error: self.error,
            error_description: self.description,
        };
        let mut response = (
            self.status,
            [
                (header::CACHE_CONTROL, "no-store"),
                (header::PRAGMA, "no-cache"),
            ],
            Json(body),
        )
            .into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        if let Some(seconds) = self.retry_seconds {
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

impl From<BrokerError> for OAuthError {
    fn from(error: BrokerError) -> Self {
        if let BrokerError::FailClosed(why) = &error {
            warn!(%why, "closed");
        }
        let (status, error, description, retry_seconds) = match error {
            BrokerError::Attestation(_) | BrokerError::Replayed => (
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "present a fresh attestation that is meant for this broker",
                None,
            ),
            BrokerError::RateLimited(exceeded) => (
                StatusCode::TOO_MANY_REQUESTS,
                "temporarily_unavailable",
                "too many requests",
                Some(exceeded.retry_seconds),
            ),
            BrokerError::Overloaded | BrokerError::FailClosed(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "something cannot be relied on; try again",
                Some(1),
            ),
            _ => (
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "the request cannot be answered",
                None,
            ),
        };
        Self {
            status,
            error,
            description,
            retry_seconds,
        }
    }
}

/// The form of RFC 7662.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes the form; it is read by hand, to refuse repeated parameters"
)]
pub struct IntrospectForm {
    /// The token.
    token: String,
    /// Ignored.
    token_type_hint: Option<String>,
}

/// Says whether a token is good now (RFC 7662), to a verifier of its resource or an admin.
#[utoipa::path(
    post,
    path = "/oauth2/introspect",
    request_body(content = IntrospectForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = Object), (status = 400, body = OAuthErrorBody), (status = 401, body = OAuthErrorBody), (status = 413, body = OAuthErrorBody), (status = 415, body = OAuthErrorBody))
)]
pub(super) async fn introspect(
    State(state): State<AppState>,
    presented: Result<Presented, Problem>,
    request: Request,
) -> Response {
    match try_introspect(&state, presented, request).await {
        Ok(answer) => ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn try_introspect(
    state: &AppState,
    presented: Result<Presented, Problem>,
    request: Request,
) -> Result<Value, OAuthError> {
    // RFC 6749's words for what other doors call a problem.
    let presented = presented.map_err(|_| BrokerError::Attestation(AttestError::Missing))?;
    if !is_media_type(request.headers(), "application/x-www-form-urlencoded") {
        return Err(OAuthError {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ..OAuthError::invalid_request("send application/x-www-form-urlencoded")
        });
    }
    let bytes = body(request, state)
        .await
        .map_err(|_: Problem| OAuthError {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            ..OAuthError::invalid_request("the body is too large")
        })?;
    debug_assert!(bytes.len() <= MAX_BODY_BYTES, "the route's limit is lower");
    let token = form_token(&bytes)?;
    let token = SecretString::from(token);
    let judged = state.broker.introspect(&presented.evidence, &token).await?;
    Ok(match judged {
        Introspection::Inactive => json!({"active": false}),
        Introspection::Active(active) => describe(state.broker.issuer(), &active),
    })
}

/// The token of a form. No parameter may be there twice, and one without a value is not there
/// (RFC 6749 §3.2); those that are not understood are ignored.
fn form_token(form: &[u8]) -> Result<String, OAuthError> {
    let mut seen = BTreeSet::new();
    let mut token = None;
    for (name, value) in url::form_urlencoded::parse(form) {
        if name == "token" && !value.is_empty() {
            token = Some(value.into_owned());
        }
        if !seen.insert(name) {
            return Err(OAuthError::invalid_request("a parameter is repeated"));
        }
    }
    token.ok_or_else(|| OAuthError::invalid_request("token is missing"))
}

fn describe(issuer: &str, active: &ActiveToken) -> Value {
    let session = &active.view.session;
    let (sub, act) = subject_and_actor(&session.workload, &active.delegators);
    let mut claims = json!({
        "active": true,
        "iss": issuer,
        "sub": sub,
        "aud": session.audience,
        "client_id": session.workload,
        "iat": session.issued_at.seconds(),
        "exp": session.expires_at.seconds(),
        "jti": session.id,
        "scope": session.grant.scope(),
        "authorization_details": session.grant,
        "token_type": if session.key.is_some() { "DPoP" } else { "Bearer" },
        "task": session.task_id,
        "sid": session.id,
        "dec": active.decision_hash,
    });
    if let Some(members) = claims.as_object_mut() {
        if let Some(act) = act {
            members.insert("act".into(), act);
        }
        if let Some(key) = &session.key
            && let Ok(key) = serde_json::to_value(key)
        {
            members.insert("cnf".into(), key);
        }
    }
    claims
}

fn metadata(state: &AppState) -> Value {
    let issuer = state.broker.issuer();
    // OpenID Connect Discovery wants RS256 named, whatever there is; no ID token is issued here.
    let mut algorithms = state.broker.signing_algorithms();
    if !algorithms.contains(&"RS256") {
        algorithms.push("RS256");
    }
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "introspection_endpoint_auth_methods_supported": ["none"],
        "authorization_details_types_supported": ["api", "aws"],
        "dpop_signing_alg_values_supported": ["ES256", "ES384", "EdDSA", "RS256", "PS256"],
        // Required by RFC 8414; there is no authorization endpoint.
        "response_types_supported": ["none"],
        "grant_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "service_documentation": format!("{issuer}/openapi.json"),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Exceeded;

    #[test]
    fn a_form_has_one_token_and_nothing_twice() {
        for good in [
            "token=a.b.c",
            "token=a.b.c&token_type_hint=x&more=1",
            "hint=&token=a%2Eb.c",
        ] {
            assert_eq!(form_token(good.as_bytes()).unwrap(), "a.b.c", "{good}");
        }
        for bad in [
            "",
            "token=",
            "token",
            "token=a&token=a",
            "token=a&token=",
            "token=&token=a",
            "token=a&x=1&x=1",
        ] {
            let error = form_token(bad.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status, error.error),
                (StatusCode::BAD_REQUEST, "invalid_request"),
                "{bad}"
            );
        }
    }

    #[test]
    fn descriptions_keep_to_the_characters_of_rfc_6749() {
        for error in [
            OAuthError::invalid_request("send application/x-www-form-urlencoded"),
            BrokerError::Replayed.into(),
            BrokerError::RateLimited(Exceeded {
                policy: "identity",
                quota: 1,
                window_seconds: 1,
                retry_seconds: 1,
            })
            .into(),
            BrokerError::Overloaded.into(),
            BrokerError::FailClosed("postgres://10.0.0.7".into()).into(),
            BrokerError::Forbidden("x").into(),
        ] {
            let allowed = |c: char| matches!(c, ' '..='!' | '#'..='[' | ']'..='~');
            assert!(
                error.description.chars().all(allowed),
                "{}",
                error.description
            );
            assert!(!error.description.contains("10.0.0.7"));
        }
    }
}
