//! `POST /v1/credentials`, and the parts that opening a task shares with it.
//!
//! A request with an unknown member is refused when `http::json` parses it. `http::credentials` and
//! `http::tasks` answer with these shapes. `client::credentials` sends the requests, and
//! `client::session`, `client::task_lease` and the commands read the answers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::open::Open;
use super::receipt::ReceiptBody;
use super::secret::SecretText;
use super::sessions::SessionBody;
use crate::clock::Timestamp;
use crate::domain::decision::{Observed, Outcome};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::grant::Grant;
use crate::domain::kind::MinterKind;
use crate::domain::task::TaskState;
use crate::ids::{DecisionId, TaskId};

/// A request for a credential.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(
    json!({
        "task": {"type": "nightly-report", "purpose": "monthly numbers for finance"},
        "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
        "ttl_seconds": 300
    }),
    json!({
        "task": {
            "id": "01890a5d-ac96-774b-bcce-b302099a8058",
            "handle": "tph_ZXhhbXBsZS1oYW5kbGUtYW5kLW5vdC1hLXNlY3JldC0"
        },
        "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}]
    })
))]
pub struct RequestBody {
    /// The task of the credential.
    pub task: TaskBody,
    /// The name of the resource.
    pub resource: String,
    /// The requested rights (RFC 9396).
    #[schema(value_type = Vec<Object>)]
    pub authorization_details: Grant,
    /// The requested lifetime in seconds; if absent, the permitted default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A request for a credential as a client writes it, with the members of a [`RequestBody`]. The
/// client does not check the rights: the broker names a wrong value in its answer, and may know
/// rights that this version does not know.
#[derive(Clone, Debug, Serialize)]
pub struct UncheckedRequestBody {
    /// The task of the credential.
    pub task: TaskBody,
    /// The name of the resource.
    pub resource: String,
    /// The requested rights (RFC 9396).
    pub authorization_details: Vec<Map<String, Value>>,
    /// The requested lifetime in seconds; if absent, the permitted default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// An open task by `id` and `handle`, or a new task by `type` and the other members.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskBody {
    /// The id of an open task to join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub id: Option<TaskId>,
    /// The handle of that task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub handle: Option<SecretText>,
    /// The registered type of a new task.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Free text for people; policy does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The parent of the new task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentBody>,
    /// Seconds until the new task expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// The longest time between two heartbeats, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<u64>,
}

/// A task to be opened.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "type": "nightly-report",
    "purpose": "monthly numbers for finance",
    "deadline_seconds": 3600,
    "heartbeat_seconds": 60
})))]
pub struct NewTaskBody {
    /// The registered type's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Free text for people; policy does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The parent of the new task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentBody>,
    /// Seconds until the task expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// The longest time between two heartbeats, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<u64>,
}

/// A parent task, with the delegation token that admits this child.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ParentBody {
    /// The id of the parent task.
    #[schema(value_type = String, format = Uuid)]
    pub id: TaskId,
    /// The single-use delegation token.
    #[schema(value_type = String)]
    pub delegation: SecretText,
}

/// A credential with its session, task, decision and receipt.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "credential": {
        "type": "jwt",
        "access_token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJjaTpyZXBvLTEifQ.c2lnbmF0dXJl",
        "token_type": "Bearer",
        "expires_in": 300
    },
    "session": super::sessions::example_active(),
    "task": example_task(),
    "decision": {
        "id": "01890a5d-ac96-774b-bcce-b302099a8059",
        "outcome": "permit",
        "policies": ["reports-open", "reports-read"],
        "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    },
    "receipt": super::receipt::example_of_permit()
})))]
pub struct IssuedBody {
    /// The secret; its members depend on its `type`.
    #[schema(value_type = Object)]
    pub credential: CredentialBody,
    /// The record of the credential.
    pub session: SessionBody,
    /// The task of the credential.
    pub task: IssuedTaskBody,
    /// The decision that permitted it.
    pub decision: DecisionBody,
    /// The proof that the decision is recorded.
    pub receipt: ReceiptBody,
}

/// The secret of an answer. Its `type` is
/// [`MinterKind::credential_type`](crate::domain::kind::MinterKind::credential_type).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum CredentialBody {
    /// A JWT access token (RFC 9068).
    #[serde(rename = "jwt")]
    Jwt {
        access_token: SecretText,
        /// `Bearer`, or `DPoP` if the token is bound to a key.
        token_type: String,
        /// Whole seconds until the token expires.
        expires_in: u64,
    },
    /// A session of an AWS role.
    #[serde(rename = "aws_sts")]
    AwsSts {
        access_key_id: String,
        secret_access_key: SecretText,
        session_token: SecretText,
        expiration: Timestamp,
        /// The default region for its use.
        region: String,
    },
    /// A credential of a kind that this version does not know. It is only read, never written.
    #[serde(other, skip_serializing)]
    Unknown,
}

impl CredentialBody {
    /// The minter of this kind of credential; `None` for a kind that this version does not know.
    #[must_use]
    pub fn made_by(&self) -> Option<MinterKind> {
        match self {
            Self::Jwt { .. } => Some(MinterKind::Jwt),
            Self::AwsSts { .. } => Some(MinterKind::Aws),
            Self::Unknown => None,
        }
    }
}

/// A task, with its handle if it was just opened.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct IssuedTaskBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: TaskId,
    #[schema(value_type = String)]
    pub state: Open<TaskState>,
    /// The registered type's name.
    #[serde(rename = "type")]
    pub kind: String,
    #[schema(value_type = String, format = DateTime)]
    pub deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub handle: Option<SecretText>,
}

/// A decision, as its subject may read it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DecisionBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: DecisionId,
    #[schema(value_type = String)]
    pub outcome: Open<Outcome>,
    pub policies: Vec<String>,
    #[schema(value_type = String)]
    pub generation: GenerationDigest,
    /// The outcome under the policies that only observe.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Open<Box<Observed>>>,
}

/// An example: a task that was just opened.
pub(super) fn example_task() -> Value {
    json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a8058",
        "state": "open",
        "type": "nightly-report",
        "deadline": "2026-01-01T01:00:00Z",
        "heartbeat_seconds": 60,
        "handle": "tph_ZXhhbXBsZS1oYW5kbGUtYW5kLW5vdC1hLXNlY3JldC0"
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_credential_names_its_type_first_and_is_read_back() {
        for (made_by, text) in [
            (
                MinterKind::Jwt,
                r#"{"type":"jwt","access_token":"a.b.c","token_type":"DPoP","expires_in":60}"#,
            ),
            (
                MinterKind::Aws,
                r#"{"type":"aws_sts","access_key_id":"ASIA1","secret_access_key":"s","session_token":"t","expiration":"2026-01-01T00:00:00Z","region":"eu-west-1"}"#,
            ),
        ] {
            let credential: CredentialBody = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&credential).unwrap(), text);
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value["type"], made_by.credential_type());
            assert_eq!(credential.made_by(), Some(made_by));
        }
    }

    #[test]
    fn a_credential_of_a_later_broker_is_read_as_unknown_and_never_written() {
        let later = json!({"type": "ssh", "certificate": "c"});
        let credential: CredentialBody = serde_json::from_value(later).unwrap();
        assert_eq!(credential.made_by(), None);
        assert!(serde_json::to_string(&credential).is_err());
    }

    #[test]
    fn a_client_writes_the_same_request_as_the_server_reads() {
        let text = r#"{"task":{"type":"report"},"resource":"orders-api","authorization_details":[{"type":"api","actions":["orders:read"]}],"ttl_seconds":300}"#;
        let read: RequestBody = serde_json::from_str(text).unwrap();
        let mut detail = Map::new();
        detail.insert("type".into(), json!("api"));
        detail.insert("actions".into(), json!(["orders:read"]));
        let written = UncheckedRequestBody {
            task: read.task,
            resource: read.resource,
            authorization_details: vec![detail],
            ttl_seconds: read.ttl_seconds,
        };
        assert_eq!(serde_json::to_string(&written).unwrap(), text);
    }

    #[test]
    fn a_decision_with_an_unknown_outcome_stays_readable() {
        let later = json!({
            "id": "01890a5d-ac96-774b-bcce-b302099a8059",
            "outcome": "postponed",
            "policies": [],
            "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "observed": {"policies": [], "outcome_if_enforced": "postponed"},
            "more": 1
        });
        let decision: DecisionBody = serde_json::from_value(later.clone()).unwrap();
        assert_eq!(decision.outcome.to_string(), "postponed");
        let observed = decision.observed.unwrap();
        assert_eq!(observed, Open::Unknown(later["observed"].clone()));
    }

    #[test]
    fn a_task_is_written_with_the_members_that_it_has() {
        let text = r#"{"type":"report","purpose":"p"}"#;
        let task: TaskBody = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&task).unwrap(), text);
        let unknown = json!({"type": "report", "colour": "red"});
        assert!(serde_json::from_value::<TaskBody>(unknown).is_err());
    }
}
