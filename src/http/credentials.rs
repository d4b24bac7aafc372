//! `POST /v1/credentials`: requests a credential. Its wire types are also used by `tasks`.
//!
//! `request` reads a `RequestBody`, passes it to `broker::issuance`, and writes the `IssuedBody`.
//! The rule: a secret of a credential is written only here and in `oauth::token`. This file checks
//! only the parts that need no catalogue: times, texts, the form of a task, and `Idempotency-Key`,
//! which is one structured string.
//!
//! Failures: a request that fails such a check is a 400 with a pointer to the member, before any
//! evidence is verified. A denial and all other errors are the broker's, which `problem` maps.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::problem::Problem;
use crate::broker::issuance::{DecisionSummary, Issued, IssuedTask};
use crate::domain::limits::{MAX_IDEMPOTENCY_KEY_BYTES, MAX_PURPOSE_BYTES, MIN_HEARTBEAT_SECONDS};
use crate::domain::request::{CredentialRequest, NewTask, ParentRef, RetryKey, TaskSelector};
use crate::domain::text::check_text;
use crate::mint::Credential;
use crate::wire::credentials::{
    CredentialBody, DecisionBody, IssuedBody, IssuedTaskBody, NewTaskBody, RequestBody, TaskBody,
};
use crate::wire::open::Open;
use crate::wire::secret::SecretText;
use crate::wire::sessions::SessionBody;

/// The task that a request names. Makes the checks that do not need the catalogue.
fn task_selector(task: TaskBody) -> Result<TaskSelector, Problem> {
    let opens = task.kind.is_some()
        || task.purpose.is_some()
        || task.parent.is_some()
        || task.deadline_seconds.is_some()
        || task.heartbeat_seconds.is_some();
    match (task.id, task.handle, task.kind) {
        (Some(id), Some(handle), None) if !opens => Ok(TaskSelector::Join {
            id,
            handle: handle.into_secret(),
        }),
        (None, None, Some(kind)) => {
            let new = NewTaskBody {
                kind,
                purpose: task.purpose,
                parent: task.parent,
                deadline_seconds: task.deadline_seconds,
                heartbeat_seconds: task.heartbeat_seconds,
            };
            Ok(TaskSelector::Open(new_task(new, "/task")?))
        }
        _ => Err(Problem::invalid(
            "/task",
            "give either `id` and `handle` of an open task, or the `type` of a new one",
        )),
    }
}

/// The new task of a request, whose body is at `pointer`. Makes the checks that do not need the
/// catalogue.
pub(super) fn new_task(new: NewTaskBody, pointer: &str) -> Result<NewTask, Problem> {
    let at = |member: &str| format!("{pointer}/{member}");
    let purpose = new.purpose.as_deref().unwrap_or_default();
    check_text(purpose, MAX_PURPOSE_BYTES)
        .map_err(|refused| Problem::invalid(at("purpose"), refused.to_string()))?;
    if new.deadline_seconds == Some(0) {
        return Err(Problem::invalid(at("deadline_seconds"), "at least 1"));
    }
    if new
        .heartbeat_seconds
        .is_some_and(|s| s < MIN_HEARTBEAT_SECONDS)
    {
        let detail = format!("at least {MIN_HEARTBEAT_SECONDS}");
        return Err(Problem::invalid(at("heartbeat_seconds"), detail));
    }
    Ok(NewTask {
        task_type: new.kind,
        purpose: new.purpose,
        parent: new.parent.map(|parent| ParentRef {
            id: parent.id,
            delegation: parent.delegation.into_secret(),
        }),
        deadline_seconds: new.deadline_seconds,
        heartbeat_seconds: new.heartbeat_seconds,
    })
}

impl From<IssuedTask> for IssuedTaskBody {
    fn from(task: IssuedTask) -> Self {
        Self {
            id: task.id,
            state: task.state.into(),
            kind: task.task_type,
            deadline: task.deadline,
            heartbeat_seconds: task.heartbeat_seconds,
            // The only place where a handle is put into an answer.
            handle: task.handle.map(SecretText::from),
        }
    }
}

impl From<DecisionSummary> for DecisionBody {
    fn from(decision: DecisionSummary) -> Self {
        Self {
            id: decision.id,
            outcome: decision.outcome.into(),
            policies: decision.policies,
            generation: decision.generation,
            observed: decision.observed.map(Open::Known),
        }
    }
}

impl From<Credential> for CredentialBody {
    fn from(credential: Credential) -> Self {
        match credential {
            Credential::Jwt {
                access_token,
                token_type,
                expires_in,
            } => Self::Jwt {
                // One of the two places where an access token is put into an answer.
                access_token: access_token.into(),
                token_type: token_type.to_owned(),
                expires_in,
            },
            Credential::AwsSts {
                access_key_id,
                secret_access_key,
                session_token,
                expiration,
                region,
            } => Self::AwsSts {
                access_key_id,
                // The only place where a session's secrets are put into an answer.
                secret_access_key: secret_access_key.into(),
                session_token: session_token.into(),
                expiration,
                region,
            },
        }
    }
}

impl From<Issued> for IssuedBody {
    fn from(issued: Issued) -> Self {
        Self {
            credential: issued.credential.into(),
            session: SessionBody::fresh(&issued.session),
            task: issued.task.into(),
            decision: issued.decision.into(),
            receipt: issued.receipt.into(),
        }
    }
}

/// Requests a credential: policy decides, and after a permit the credential is minted.
#[utoipa::path(
    post,
    path = "/v1/credentials",
    request_body = RequestBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "A structured-field string: quoted")),
    responses(
        (status = 201, body = IssuedBody),
        (status = 400, body = super::problem::ProblemBody), (status = 401, body = super::problem::ProblemBody),
        (status = 403, body = super::problem::ProblemBody), (status = 404, body = super::problem::ProblemBody),
        (status = 409, body = super::problem::ProblemBody), (status = 413, body = super::problem::ProblemBody),
        (status = 415, body = super::problem::ProblemBody), (status = 422, body = super::problem::ProblemBody),
        (status = 429, body = super::problem::ProblemBody), (status = 503, body = super::problem::ProblemBody)
    )
)]
pub(super) async fn request(
    State(state): State<AppState>,
    presented: Presented,
    headers: HeaderMap,
    body: Strict<RequestBody>,
) -> Result<Response, Problem> {
    let retry = idempotency_key(&headers, body.digest)?;
    let body = body.value;
    if body.ttl_seconds == Some(0) {
        return Err(Problem::invalid("/ttl_seconds", "at least 1"));
    }
    let request = CredentialRequest {
        task: task_selector(body.task)?,
        resource: body.resource.into(),
        grant: body.authorization_details,
        ttl_seconds: body.ttl_seconds,
        retry,
    };
    let issued = state
        .broker
        .issuance
        .issue(presented.evidence, request)
        .await?;
    let location = format!("/v1/sessions/{}", issued.session.id);
    Ok((
        StatusCode::CREATED,
        [("location", location)],
        Json(IssuedBody::from(issued)),
    )
        .into_response())
}

/// The key in the header, a string item of structured fields (RFC 9651).
fn idempotency_key(
    headers: &HeaderMap,
    fingerprint: [u8; 32],
) -> Result<Option<RetryKey>, Problem> {
    let mut given = headers.get_all("idempotency-key").iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return if headers.contains_key("idempotency-key") {
            Err(bad_key("send one header only"))
        } else {
            Ok(None)
        };
    };
    let item: sfv::Item = sfv::Parser::new(value.as_bytes()).parse().map_err(|_| {
        bad_key("not a structured field (RFC 9651): quote the key, as \"8e03978e\"")
    })?;
    // Unknown parameters have no meaning here (RFC 9651 §3.1.2).
    let key = item
        .bare_item
        .as_string()
        .ok_or_else(|| bad_key("not a string: quote the key, as \"8e03978e\""))?;
    let key = key.as_str();
    if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return Err(bad_key(&format!(
            "1 to {MAX_IDEMPOTENCY_KEY_BYTES} characters"
        )));
    }
    Ok(Some(RetryKey {
        key: key.to_owned(),
        fingerprint,
    }))
}

fn bad_key(wanted: &str) -> Problem {
    Problem::invalid("", format!("Idempotency-Key: {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", text.parse().unwrap());
        let parsed = idempotency_key(&headers, [0; 32]).ok().flatten();
        parsed.map(|retry| retry.key)
    }

    #[test]
    fn a_key_is_a_structured_field_string_with_escapes_and_parameters() {
        for (good, wanted) in [
            (r#""8e03978e""#, "8e03978e"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""8e03978e";version=2;draft"#, "8e03978e"),
            (r#"  "8e03978e"  "#, "8e03978e"),
        ] {
            assert_eq!(key(good).as_deref(), Some(wanted), "{good}");
        }
        for bad in [
            "8e03978e",
            "17",
            ":OGUwMw==:",
            r#""""#,
            r#""a"b""#,
            r#""a\b""#,
            r#""open"#,
            r#""a", "b""#,
            r#""a" "b""#,
            r#""a";Upper=1"#,
            "\"caf\u{e9}\"",
            "",
        ] {
            assert_eq!(key(bad), None, "{bad}");
        }
        let longest = "x".repeat(MAX_IDEMPOTENCY_KEY_BYTES);
        assert!(key(&format!("\"{longest}\"")).is_some());
        assert!(key(&format!("\"{longest}x\"")).is_none());
    }
}
