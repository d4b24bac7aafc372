//! `POST /v1/credentials`: requests a credential. Its wire types are also used by `tasks`.
//!
//! `request` reads a `RequestBody`, passes it to `broker::issuance`, and writes the `IssuedBody`.
//! The rule: a secret of a credential is written only here and in `oauth::token`. Only what needs
//! no catalogue is checked here: times, texts, the form of a task, and `Idempotency-Key`, which is
//! one structured string.
//!
//! Failures: a request that fails such a check is a 400 with a pointer to the member, before any
//! evidence is verified. A denial and all other errors are the broker's, which `problem` maps.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::AppState;
use super::evidence::Presented;
use super::json::Strict;
use super::problem::Problem;
use super::sessions::SessionBody;
use crate::broker::issuance::{DecisionSummary, Issued, IssuedTask};
use crate::domain::decision::Observed;
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::limits::{MAX_IDEMPOTENCY_KEY_BYTES, MAX_PURPOSE_BYTES, MIN_HEARTBEAT_SECONDS};
use crate::domain::request::{CredentialRequest, NewTask, ParentRef, RetryKey, TaskSelector};
use crate::domain::text::check_text;
use crate::ids::TaskId;
use crate::mint::Credential;

/// A request for a credential.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestBody {
    /// The task of the credential.
    task: TaskBody,
    /// The name of the resource.
    resource: String,
    /// The requested rights (RFC 9396).
    #[schema(value_type = Vec<Object>)]
    authorization_details: Grant,
    /// The requested lifetime in seconds; if absent, the permitted default.
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// An open task by `id` and `handle`, or a new task by `type` and the other members.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskBody {
    /// The id of an open task to join.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    id: Option<TaskId>,
    /// The handle of that task.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    handle: Option<SecretString>,
    /// The registered type of a new task.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// Free text for people; policy does not see it.
    #[serde(default)]
    purpose: Option<String>,
    /// The parent of the new task.
    #[serde(default)]
    parent: Option<ParentBody>,
    /// Seconds until the new task expires.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// The longest time between two heartbeats, in seconds.
    #[serde(default)]
    heartbeat_seconds: Option<u64>,
}

impl TaskBody {
    fn into_domain(self) -> Result<TaskSelector, Problem> {
        let opens = self.kind.is_some()
            || self.purpose.is_some()
            || self.parent.is_some()
            || self.deadline_seconds.is_some()
            || self.heartbeat_seconds.is_some();
        match (self.id, self.handle, self.kind) {
            (Some(id), Some(handle), None) if !opens => Ok(TaskSelector::Join { id, handle }),
            (None, None, Some(kind)) => {
                let new = NewTaskBody {
                    kind,
                    purpose: self.purpose,
                    parent: self.parent,
                    deadline_seconds: self.deadline_seconds,
                    heartbeat_seconds: self.heartbeat_seconds,
                };
                Ok(TaskSelector::Open(new.into_domain("/task")?))
            }
            _ => Err(Problem::invalid(
                "/task",
                "give either `id` and `handle` of an open task, or the `type` of a new one",
            )),
        }
    }
}

/// A task to be opened.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTaskBody {
    /// The registered type's name.
    #[serde(rename = "type")]
    kind: String,
    /// Free text for people; policy does not see it.
    #[serde(default)]
    purpose: Option<String>,
    /// The parent of the new task.
    #[serde(default)]
    parent: Option<ParentBody>,
    /// Seconds until the task expires.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// The longest time between two heartbeats, in seconds.
    #[serde(default)]
    heartbeat_seconds: Option<u64>,
}

/// A parent task, with the delegation token that admits this child.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ParentBody {
    /// The id of the parent task.
    #[schema(value_type = String)]
    id: TaskId,
    /// The single-use delegation token.
    #[schema(value_type = String)]
    delegation: SecretString,
}

impl NewTaskBody {
    /// Makes the checks that do not need the catalogue.
    pub(super) fn into_domain(self, pointer: &str) -> Result<NewTask, Problem> {
        let at = |member: &str| format!("{pointer}/{member}");
        let purpose = self.purpose.as_deref().unwrap_or_default();
        check_text(purpose, MAX_PURPOSE_BYTES)
            .map_err(|refused| Problem::invalid(at("purpose"), refused.to_string()))?;
        if self.deadline_seconds == Some(0) {
            return Err(Problem::invalid(at("deadline_seconds"), "at least 1"));
        }
        if self
            .heartbeat_seconds
            .is_some_and(|s| s < MIN_HEARTBEAT_SECONDS)
        {
            let detail = format!("at least {MIN_HEARTBEAT_SECONDS}");
            return Err(Problem::invalid(at("heartbeat_seconds"), detail));
        }
        Ok(NewTask {
            task_type: self.kind,
            purpose: self.purpose,
            parent: self.parent.map(|parent| ParentRef {
                id: parent.id,
                delegation: parent.delegation,
            }),
            deadline_seconds: self.deadline_seconds,
            heartbeat_seconds: self.heartbeat_seconds,
        })
    }
}

/// A credential with its session, task, decision and receipt.
#[derive(Debug, Serialize, ToSchema)]
pub struct IssuedBody {
    /// The secret; its members depend on its `type`.
    #[schema(value_type = Object)]
    credential: Value,
    /// The record of the credential.
    session: SessionBody,
    /// The task of the credential.
    task: IssuedTaskBody,
    /// The decision that permitted it.
    decision: DecisionBody,
    /// The proof that the decision is recorded.
    #[schema(value_type = Object)]
    receipt: crate::merkle::Receipt,
}

/// A task, with its handle if it was just opened.
#[derive(Debug, Serialize, ToSchema)]
pub struct IssuedTaskBody {
    id: String,
    state: &'static str,
    #[serde(rename = "type")]
    kind: String,
    deadline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<String>,
}

impl From<IssuedTask> for IssuedTaskBody {
    fn from(task: IssuedTask) -> Self {
        Self {
            id: task.id.to_string(),
            state: task.state.as_str(),
            kind: task.task_type,
            deadline: task.deadline.to_string(),
            heartbeat_seconds: task.heartbeat_seconds,
            // The only place where a handle is written to an answer.
            handle: task.handle.map(|handle| handle.expose_secret().to_owned()),
        }
    }
}

/// A decision, as its subject may read it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionBody {
    id: String,
    outcome: &'static str,
    policies: Vec<String>,
    generation: String,
    /// The outcome under the policies that only observe.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<Box<Observed>>,
}

impl From<DecisionSummary> for DecisionBody {
    fn from(decision: DecisionSummary) -> Self {
        Self {
            id: decision.id.to_string(),
            outcome: decision.outcome.as_str(),
            policies: decision.policies,
            generation: decision.generation.to_string(),
            observed: decision.observed,
        }
    }
}

impl From<Issued> for IssuedBody {
    fn from(issued: Issued) -> Self {
        let credential = match &issued.credential {
            Credential::Jwt {
                access_token,
                token_type,
                expires_in,
            } => json!({
                "type": MinterKind::Jwt.credential_type(),
                // One of the two places where an access token is written to an answer.
                "access_token": access_token.expose_secret(),
                "token_type": token_type,
                "expires_in": expires_in,
            }),
            Credential::AwsSts {
                access_key_id,
                secret_access_key,
                session_token,
                expiration,
                region,
            } => json!({
                "type": MinterKind::Aws.credential_type(),
                "access_key_id": access_key_id,
                // The only place where a session's secrets are written to an answer.
                "secret_access_key": secret_access_key.expose_secret(),
                "session_token": session_token.expose_secret(),
                "expiration": expiration,
                "region": region,
            }),
        };
        Self {
            credential,
            session: SessionBody::fresh(&issued.session),
            task: issued.task.into(),
            decision: issued.decision.into(),
            receipt: issued.receipt,
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
        task: body.task.into_domain()?,
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
