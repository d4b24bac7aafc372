//! `/oauth2/introspect` (RFC 7662), also with a signed answer (RFC 9701).
//!
//! `introspect` authenticates the caller, has the token judged by `broker::verification`, and
//! writes the answer, signed if the request prefers that form. The rule: an inactive answer has no
//! other member, so that a caller cannot tell an unknown token from a revoked one or from one that
//! it must not see.
//!
//! Failures: a caller that is not authenticated gets `invalid_client`, all other errors are mapped
//! by `oauth::error`. An inactive token is not an error. `broker::keys` signs.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};

use super::accept::Acceptance;
use super::client::authentication;
use super::error::OAuthError;
use super::form::Form;
use crate::broker::BrokerError;
use crate::broker::verification::introspect::{ActiveToken, Introspection};
use crate::domain::cutoff::True;
use crate::domain::workload::{KeyBinding, subject_and_actor};
use crate::http::AppState;
use crate::http::evidence::Presented;
use crate::wire::oauth::{
    ActiveTokenBody, False, InactiveTokenBody, IntrospectionBody, OAuthErrorBody,
    SIGNED_INTROSPECTION, SubmittedTokenForm,
};

/// Says whether a token is valid now (RFC 7662), to a verifier of its resource or an admin.
#[utoipa::path(
    post,
    path = "/oauth2/introspect",
    request_body(content = SubmittedTokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content((IntrospectionBody = "application/json"), (String = "application/token-introspection+jwt"))), (status = 400, body = OAuthErrorBody), (status = 401, body = OAuthErrorBody), (status = 413, body = OAuthErrorBody), (status = 415, body = OAuthErrorBody))
)]
pub(in crate::http) async fn introspect(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Response {
    match try_introspect(&state, presented, request).await {
        Ok(answer) => ([(header::CACHE_CONTROL, "no-store")], answer).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Whether the caller prefers a signed answer, or names it explicitly with equal weight.
fn wants_statement(headers: &HeaderMap) -> bool {
    let signed = Acceptance::of(headers, SIGNED_INTROSPECTION);
    let plain = Acceptance::of(headers, "application/json");
    let named = signed.closeness == 3 && signed.weight > 0;
    signed.weight > plain.weight || (named && signed.weight == plain.weight)
}

async fn try_introspect(
    state: &AppState,
    presented: Presented,
    request: Request,
) -> Result<Response, OAuthError> {
    let signed = wants_statement(request.headers());
    let form = Form::read(request, state).await?;
    let token = form.required("token")?;
    let token = SecretString::from(token);
    let (evidence, way) = authentication(presented, &form)?;
    let broker = &state.broker;
    let answer = broker.verification.introspect(&evidence, &token).await;
    let answer = answer.map_err(|error| OAuthError::of(error, way))?;
    let body = match &answer.introspection {
        Introspection::Inactive => IntrospectionBody::Inactive(InactiveTokenBody { active: False }),
        Introspection::Active(active) => describe(broker.core.issuer(), active),
    };
    if !signed {
        return Ok(Json(body).into_response());
    }
    let unwritten =
        |error: serde_json::Error| OAuthError::of(BrokerError::bug(error.to_string()), way);
    let body = serde_json::to_value(&body).map_err(unwritten)?;
    let statement = broker
        .verification
        .sign_introspection(&answer.asker, &body)
        .await;
    let statement = statement.map_err(|error| OAuthError::of(error, way))?;
    let headers = [(header::CONTENT_TYPE, SIGNED_INTROSPECTION)];
    Ok((headers, statement.expose_secret().to_owned()).into_response())
}

fn describe(issuer: &str, active: &ActiveToken) -> IntrospectionBody {
    let session = &active.view.session;
    let (sub, act) = subject_and_actor(&session.workload, &active.delegators);
    IntrospectionBody::Active(Box::new(ActiveTokenBody {
        active: True,
        iss: issuer.to_owned(),
        sub: sub.clone(),
        aud: session.audience.clone(),
        client_id: session.workload.clone(),
        iat: session.issued_at.seconds(),
        exp: session.expires_at.seconds(),
        jti: session.id,
        scope: session.grant.scope(),
        authorization_details: session.grant.clone(),
        token_type: KeyBinding::token_type(session.key.as_ref()).to_owned(),
        task: session.task_id,
        sid: session.id,
        dec: active.decision_hash.clone(),
        act,
        cnf: session.key.clone(),
    }))
}
