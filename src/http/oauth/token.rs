//! `/oauth2/token`: the request of `POST /v1/credentials` in the form of OAuth clients.
//!
//! Two grants. Token exchange (RFC 8693): the subject token is the workload's attestation, which
//! also authenticates the client. Client credentials with `private_key_jwt` (RFC 7523bis), for
//! workloads with a registered key. The target is one registered resource, by its audience (RFC
//! 8707) or by its name; the rights are `authorization_details` (RFC 9396) or a `scope`.
//!
//! The rules: a client authenticates in the form, so `Authorization` is refused, and so is
//! `Idempotency-Key`. Credentials for AWS are not given here. Failures: `error` maps the broker's;
//! a denial gets the code of RFC 6749 or 8707 that fits. `broker::issuance` decides and issues.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde_json::json;

use super::client;
use super::error::{BLOCKED, ClientAuthentication, OAuthError};
use super::form::Form;
use crate::attest::{AttestError, Evidence, TokenScheme};
use crate::broker::BrokerError;
use crate::broker::error::Denied;
use crate::broker::issuance::Issued;
use crate::crypto::strict_json;
use crate::domain::decision::RefusalCode;
use crate::domain::grant::Grant;
use crate::domain::limits::MAX_PURPOSE_BYTES;
use crate::domain::request::{CredentialRequest, NewTask, ResourceSelector, TaskSelector};
use crate::domain::text::{TextError, check_text};
use crate::http::AppState;
use crate::http::challenge::Scheme;
use crate::http::evidence::Presented;
use crate::http::params::UNREPEATABLE;
use crate::mint::Credential;
use crate::wire::oauth::{
    CLIENT_CREDENTIALS, OAuthErrorBody, REQUESTED_TOKEN_TYPES, SUBJECT_TOKEN_TYPES, TOKEN_EXCHANGE,
    TokenBody, TokenForm,
};
use crate::wire::secret::SecretText;
use crate::wire::words::{ACCESS_TOKEN, JWT};

/// Exchanges an attestation, or a registered key's assertion, for a credential.
#[utoipa::path(
    post,
    path = "/oauth2/token",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = TokenBody), (status = 400, body = OAuthErrorBody), (status = 401, body = OAuthErrorBody), (status = 413, body = OAuthErrorBody), (status = 415, body = OAuthErrorBody))
)]
pub(in crate::http) async fn token(
    State(state): State<AppState>,
    presented: Presented,
    request: Request,
) -> Response {
    match try_token(&state, presented, request).await {
        Ok(body) => (
            StatusCode::OK,
            [
                (header::CACHE_CONTROL, "no-store"),
                (header::PRAGMA, "no-cache"),
            ],
            Json(body),
        )
            .into_response(),
        Err(error) => error.into_response(),
    }
}

async fn try_token(
    state: &AppState,
    presented: Presented,
    request: Request,
) -> Result<TokenBody, OAuthError> {
    if request.headers().contains_key("idempotency-key") {
        return Err(OAuthError::invalid_request(UNREPEATABLE));
    }
    let basic = Scheme::of(request.headers()) == Scheme::Basic;
    let form = Form::read(request, state).await?;
    if basic && form.get("client_assertion").is_none() {
        return Err(OAuthError::invalid_client(
            "client secrets are not accepted: authenticate with private_key_jwt, or exchange an \
             attestation",
        ));
    }
    if presented.is_by_header() {
        return Err(OAuthError::invalid_request(
            "authenticate in the form only, without Authorization",
        ));
    }
    let form = &form;
    try_grant(state, presented, form)
        .await
        .map_err(OAuthError::without_challenge)
}

async fn try_grant(
    state: &AppState,
    presented: Presented,
    form: &Form,
) -> Result<TokenBody, OAuthError> {
    let grant_type = GrantType::of(form)?;
    let evidence = Evidence {
        bearer: Some(grant_type.attestation(form)?),
        scheme: TokenScheme::Parameter,
        ..presented.evidence
    };
    let by_scope = form.get("authorization_details").is_none();
    let request = CredentialRequest {
        task: task(form)?,
        resource: target(form)?,
        grant: rights(form)?,
        ttl_seconds: form.number("ttl_seconds")?,
        retry: None,
    };
    if request.ttl_seconds == Some(0) {
        return Err(OAuthError::invalid_request("ttl_seconds is at least 1"));
    }
    let issued = state.broker.issuance.issue(evidence, request).await;
    let issued = issued.map_err(|error| refusal(error, grant_type, by_scope))?;
    answer(issued, issued_type(form))
}

/// The token type of the answer, as it was requested. An access token of this broker is a JWT (RFC
/// 8693 §3).
fn issued_type(form: &Form) -> &'static str {
    match form.get("requested_token_type") {
        Some(JWT) => JWT,
        _ => ACCESS_TOKEN,
    }
}

/// How the workload authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GrantType {
    Exchange,
    ClientCredentials,
}

impl GrantType {
    fn of(form: &Form) -> Result<Self, OAuthError> {
        match form.required("grant_type")? {
            TOKEN_EXCHANGE => Ok(Self::Exchange),
            CLIENT_CREDENTIALS => Ok(Self::ClientCredentials),
            _ => Err(OAuthError::bad(
                "unsupported_grant_type",
                "use token exchange or client_credentials",
            )),
        }
    }

    fn attestation(self, form: &Form) -> Result<SecretString, OAuthError> {
        match self {
            Self::Exchange => exchanged(form),
            Self::ClientCredentials => asserted(form),
        }
    }
}

fn exchanged(form: &Form) -> Result<SecretString, OAuthError> {
    // An empty token is refused and logged like any other invalid attestation.
    let token = form.get("subject_token").unwrap_or_default();
    if !SUBJECT_TOKEN_TYPES.contains(&form.required("subject_token_type")?) {
        return Err(OAuthError::invalid_request(
            "subject_token_type has to be the URN of jwt or id_token",
        ));
    }
    if let Some(wanted) = form.get("requested_token_type")
        && !REQUESTED_TOKEN_TYPES.contains(&wanted)
    {
        return Err(OAuthError::invalid_request(
            "requested_token_type has to be the URN of access_token or jwt",
        ));
    }
    // Nothing ties the two tokens to each other; delegation is expressed by tasks and delegation
    // tokens.
    if form.get("actor_token").is_some() || form.get("actor_token_type").is_some() {
        return Err(OAuthError::invalid_request("actor_token is not supported"));
    }
    if form.get("client_assertion").is_some() || form.get("client_secret").is_some() {
        return Err(OAuthError::invalid_request(
            "the subject token alone authenticates the client",
        ));
    }
    Ok(SecretString::from(token))
}

fn asserted(form: &Form) -> Result<SecretString, OAuthError> {
    let assertion = client::assertion(form)?;
    let assertion =
        assertion.ok_or_else(|| OAuthError::invalid_client("authenticate with private_key_jwt"))?;
    if form.get("subject_token").is_some() {
        return Err(OAuthError::invalid_request(
            "subject_token is for token exchange",
        ));
    }
    Ok(assertion)
}

/// The one target. Whether it exists is revealed only to an attested caller.
fn target(form: &Form) -> Result<ResourceSelector, OAuthError> {
    match (form.get("resource"), form.get("audience")) {
        (Some(uri), None) => Ok(ResourceSelector::TokenAudience(uri.to_owned())),
        (None, Some(name)) => Ok(ResourceSelector::TokenName(name.to_owned())),
        (Some(_), Some(_)) | (None, None) => Err(OAuthError::bad(
            "invalid_target",
            "name one target, by resource or by audience",
        )),
    }
}

fn rights(form: &Form) -> Result<Grant, OAuthError> {
    let (value, code) = match (form.get("authorization_details"), form.get("scope")) {
        (Some(details), None) => {
            let code = "invalid_authorization_details";
            let read = strict_json::value(details.as_bytes());
            let read = read.map_err(|_| {
                OAuthError::bad(code, "it is not valid JSON, or has repeated members")
            });
            (read?, code)
        }
        (None, Some(scope)) => {
            let actions = words(scope).ok_or_else(|| {
                OAuthError::bad(
                    "invalid_scope",
                    "scope has to be words with one space between them",
                )
            })?;
            (
                json!([{"type": "api", "actions": actions}]),
                "invalid_scope",
            )
        }
        (Some(_), Some(_)) => {
            return Err(OAuthError::invalid_request(
                "use either scope or authorization_details, not both",
            ));
        }
        (None, None) => {
            return Err(OAuthError::bad(
                "invalid_scope",
                "scope or authorization_details is required",
            ));
        }
    };
    strict_json::typed(value)
        .map_err(|_| OAuthError::bad(code, "it does not have a known type and form"))
}

/// The words of a scope (RFC 6749 §3.3).
fn words(scope: &str) -> Option<Vec<&str>> {
    let allowed = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(allowed);
    let words: Vec<_> = scope.split(' ').collect();
    words.iter().all(is_word).then_some(words)
}

fn task(form: &Form) -> Result<TaskSelector, OAuthError> {
    let wrong = || {
        OAuthError::invalid_request(
            "give either task with task_handle, or task_type for a new task",
        )
    };
    let new = [
        "task_type",
        "task_purpose",
        "task_deadline_seconds",
        "task_heartbeat_seconds",
    ];
    let opens = new.iter().any(|name| form.get(name).is_some());
    match (
        form.get("task"),
        form.get("task_handle"),
        form.get("task_type"),
    ) {
        (Some(id), Some(handle), None) if !opens => Ok(TaskSelector::Join {
            id: id.parse().map_err(|_| wrong())?,
            handle: SecretString::from(handle),
        }),
        (None, None, Some(kind)) => {
            let purpose = form.get("task_purpose").map(str::to_owned);
            check_text(purpose.as_deref().unwrap_or_default(), MAX_PURPOSE_BYTES)
                .map_err(|refused| {
                    OAuthError::invalid_request(match refused {
                        TextError::TooLong(_) => "task_purpose is too long",
                        TextError::Unprintable { .. } => {
                            "task_purpose has a character that is invisible or changes how text is shown"
                        }
                    })
                })?;
            let positive = |name| match form.number(name)? {
                Some(0) => Err(OAuthError::invalid_request(
                    "a time has to be at least 1 second",
                )),
                number => Ok(number),
            };
            Ok(TaskSelector::Open(NewTask {
                task_type: kind.to_owned(),
                purpose,
                parent: None,
                deadline_seconds: positive("task_deadline_seconds")?,
                heartbeat_seconds: positive("task_heartbeat_seconds")?,
            }))
        }
        _ => Err(wrong()),
    }
}

/// The refusal with the codes of the standards. RFC 8693 requires `invalid_request` if the subject
/// token is invalid or policy does not accept it, RFC 9449 §5 requires `invalid_dpop_proof`, and
/// RFCs 8707 and 9396 define codes of their own.
fn refusal(error: BrokerError, grant_type: GrantType, by_scope: bool) -> OAuthError {
    match error {
        BrokerError::Denied(denied) => denial(&denied, by_scope),
        BrokerError::Attestation(failure)
            if grant_type == GrantType::Exchange && is_of_token(&failure.error) =>
        {
            OAuthError::refused_evidence(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                failure.for_caller(),
            )
        }
        BrokerError::Replayed | BrokerError::UsedUp { .. } if grant_type == GrantType::Exchange => {
            let status = StatusCode::BAD_REQUEST;
            let refused = Some(&AttestError::Replayed);
            OAuthError::refused_evidence(status, "invalid_request", refused)
        }
        BrokerError::Blocked(_) => OAuthError::bad("access_denied", BLOCKED),
        BrokerError::NotFound(_) => OAuthError::invalid_request("there is no such task"),
        other => OAuthError::of(other, ClientAuthentication::Assertion),
    }
}

/// Whether the token was refused, and not the proof that came with it.
fn is_of_token(error: &AttestError) -> bool {
    !matches!(error, AttestError::BadProof(_) | AttestError::NonceWanted)
}

fn denial(denied: &Denied, by_scope: bool) -> OAuthError {
    let rights = if by_scope {
        "invalid_scope"
    } else {
        "invalid_authorization_details"
    };
    let (error, description) = match denied.refusal.code {
        RefusalCode::UnknownResource | RefusalCode::ResourceNotForTask => (
            "invalid_target",
            "unknown target; request AWS roles at /v1/credentials",
        ),
        RefusalCode::UnknownAction
        | RefusalCode::UnknownLocation
        | RefusalCode::TooManyRights
        | RefusalCode::ExceedsParent
        | RefusalCode::NotPermitted => (rights, "policy does not permit the requested rights"),
        RefusalCode::ApprovalRequired => (
            "access_denied",
            "the request needs the approval of a person",
        ),
        RefusalCode::Blocked => ("access_denied", "a revocation blocks this request"),
        RefusalCode::UnknownTaskType
        | RefusalCode::TtlTooLong
        | RefusalCode::DeadlineTooLong
        | RefusalCode::HeartbeatRequired
        | RefusalCode::TooDeep
        | RefusalCode::TaskEnded => (
            "invalid_request",
            "the requested task or lifetime is not possible",
        ),
        _ => ("access_denied", "policy does not permit this"),
    };
    OAuthError {
        decision_id: Some(denied.decision),
        observed: denied.observed.clone(),
        ..OAuthError::bad(error, description)
    }
}

fn answer(issued: Issued, issued_token_type: &'static str) -> Result<TokenBody, OAuthError> {
    let Credential::Jwt {
        access_token,
        token_type,
        expires_in,
    } = issued.credential
    else {
        let error = BrokerError::bug("not a token");
        return Err(OAuthError::of(error, ClientAuthentication::Assertion));
    };
    let session = &issued.session;
    Ok(TokenBody {
        // The other place where an access token is put into an answer.
        access_token: access_token.into(),
        issued_token_type: issued_token_type.to_owned(),
        token_type: token_type.to_owned(),
        expires_in,
        scope: session.grant.scope(),
        authorization_details: session.grant.clone(),
        task: issued.task.id,
        task_handle: issued.task.handle.map(SecretText::from),
        session_id: session.id,
        decision_id: issued.decision.id,
        observed: issued.decision.observed,
        receipt: issued.receipt.into(),
    })
}
