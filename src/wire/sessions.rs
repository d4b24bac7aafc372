//! `/v1/sessions`.
//!
//! A request or query with an unknown member is refused when it is parsed. `http::sessions` serves
//! these shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::open::Open;
use super::query::{is_marker, maybe_number};
use crate::clock::Timestamp;
use crate::domain::deny_list::RevocationProgress;
use crate::domain::grant::Grant;
use crate::domain::revocability::{Revocability, RevocationClass};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::validity::EffectiveStatus;
use crate::domain::workload::Identity;
use crate::ids::{DecisionId, SessionId, TaskId};

/// A session in answers.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names say it all")]
#[schema(examples(example_active, example_ended))]
pub struct SessionBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: SessionId,
    #[schema(value_type = String)]
    pub state: Open<SessionState>,
    #[schema(value_type = String, format = Uuid)]
    pub task_id: TaskId,
    #[schema(value_type = String)]
    pub workload: Identity,
    pub resource: String,
    #[schema(value_type = Vec<Object>)]
    pub authorization_details: Open<Grant>,
    #[schema(value_type = String, format = DateTime)]
    pub issued_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    #[schema(value_type = Object)]
    pub revocability: Open<Revocability>,
    #[schema(value_type = String, format = Uuid)]
    pub decision_id: DecisionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub parent_session_id: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub end_reason: Option<Open<EndReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub confirmed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation_progress: Option<RevocationProgressBody>,
}

impl SessionBody {
    /// The body of a session with this status.
    #[must_use]
    pub fn new(session: &Session, status: EffectiveStatus) -> Self {
        Self {
            id: session.id,
            state: status.state.into(),
            task_id: session.task_id,
            workload: session.workload.clone(),
            resource: session.resource.clone(),
            authorization_details: session.grant.clone().into(),
            issued_at: session.issued_at,
            expires_at: session.expires_at,
            revocability: session.revocability.into(),
            decision_id: session.decision_id,
            parent_session_id: session.parent,
            end_reason: status.end_reason.map(Open::Known),
            ended_at: status.ended_at,
            confirmed_at: status.confirmed_at,
            revocation_progress: None,
        }
    }

    /// The body of a session that was just issued.
    #[must_use]
    pub fn fresh(session: &Session) -> Self {
        Self::new(session, EffectiveStatus::ACTIVE)
    }
}

/// The progress of a back end that denies a revoked session.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct RevocationProgressBody {
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
    /// Whether the session ends only at its expiry: the list has no room for it, or it expires
    /// before the list would take effect.
    pub expires_naturally: bool,
    /// When the back end's list was first read with the session on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub written_at: Option<Timestamp>,
    /// When every use is refused, by the declared bound. The broker does not hold the credential,
    /// so it cannot test this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub refused_from: Option<Timestamp>,
}

impl RevocationProgressBody {
    /// The progress for this session.
    #[must_use]
    pub fn new(progress: &RevocationProgress, session: &Session) -> Self {
        let refused_from = match session.revocability.class {
            RevocationClass::Bounded { bound_seconds } => progress.holds_from(bound_seconds),
            RevocationClass::Immediate { .. } | RevocationClass::ExpiryOnly => None,
        };
        Self {
            requested_at: progress.requested_at,
            expires_naturally: !progress.listed,
            written_at: progress.written_at,
            refused_from,
        }
    }
}

/// The sessions to list.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SessionQuery {
    /// `active` shows only sessions that are valid now; any other state only those that have it
    /// now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub state: Option<SessionState>,
    /// Only of this workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Only under this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub task: Option<TaskId>,
    /// Only on this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The `next_cursor` of the previous page.
    #[serde(default, skip_serializing_if = "is_marker")]
    pub cursor: Option<String>,
    /// The largest number of rows.
    #[serde(
        default,
        skip_serializing_if = "is_marker",
        deserialize_with = "maybe_number"
    )]
    pub limit: Option<u32>,
}

/// A page of sessions, newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "sessions": [example_active()],
    "next_cursor": "eyJmaWx0ZXIiOiJSQk52bzFXelo0b1JScTBXIiwiYWZ0ZXIiOiIwMTg5MGE1ZC1hYzk2LTc3NGItYmNjZS1iMzAyMDk5YTgwNTcifQ"
})))]
pub struct SessionPage {
    pub sessions: Vec<SessionBody>,
    /// The `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// The revocation of a session.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"reason": "the job was started twice"})))]
pub struct RevokeBody {
    /// The reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An example: an active session.
pub(super) fn example_active() -> Value {
    json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "state": "active",
        "task_id": "01890a5d-ac96-774b-bcce-b302099a8058",
        "workload": "ci:repo-1",
        "resource": "orders-api",
        "authorization_details": [{
            "type": "api",
            "actions": ["orders:read"],
            "locations": ["https://orders.example/v1"]
        }],
        "issued_at": "2026-01-01T00:00:00Z",
        "expires_at": "2026-01-01T00:05:00Z",
        "revocability": {
            "class": "immediate",
            "bound_seconds": 0,
            "open_sessions": "none",
            "expires_by": "itself"
        },
        "decision_id": "01890a5d-ac96-774b-bcce-b302099a8059"
    })
}

/// An example: the same session after it was revoked.
pub(super) fn example_ended() -> Value {
    let mut session = example_active();
    session["state"] = json!("ended");
    session["end_reason"] = json!("revoked");
    session["ended_at"] = json!("2026-01-01T00:02:00Z");
    session["confirmed_at"] = json!("2026-01-01T00:02:00Z");
    session
}
