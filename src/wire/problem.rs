//! The form of refusals (RFC 9457), and the types of problems. OAuth endpoints answer with
//! [`super::oauth::OAuthErrorBody`] instead.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::open::Open;
use super::receipt::ReceiptBody;
use super::words::PROBLEM_URN;
use crate::clock::Timestamp;
use crate::domain::decision::{Allowed, Observed, Outcome};
use crate::domain::generation_digest::GenerationDigest;
use crate::ids::{CutoffId, DecisionId, SessionId};

/// Every kind of problem: the last part of its `type`, after [`PROBLEM_URN`].
pub const SLUGS: &[&str] = &[
    "already-issued",
    "approval-required",
    "attestation-failed",
    "attestation-unavailable",
    "blocked",
    "body-timeout",
    "denied",
    "fail-closed",
    "forbidden",
    "idempotency-mismatch",
    "in-progress",
    "indeterminate",
    "internal",
    "invalid-request",
    "last-admin",
    "method-not-allowed",
    "no-generation",
    "not-found",
    "not-implemented",
    "overloaded",
    "own-binding",
    "owner-withdrawn",
    "payload-too-large",
    "rate-limited",
    "task-ended",
    "timeout",
    "too-many-keys",
    "unready",
    "unsupported-media-type",
    "use-dpop-nonce",
];

/// The `type` of a problem.
#[must_use]
pub fn urn(slug: &str) -> String {
    format!("{PROBLEM_URN}{slug}")
}

/// A refusal in the form of RFC 9457.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(
    json!({
        "type": "urn:taskpass:problem:denied",
        "title": "Policy does not permit this",
        "status": 403,
        "detail": "policy does not permit `orders:write` at `https://orders.example/v1` on `orders-api`",
        "code": "not-permitted",
        "decision": {
            "id": "01890a5d-ac96-774b-bcce-b302099a805b",
            "outcome": "deny",
            "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        },
        "receipt": super::receipt::example_of_refusal(),
        "allowed": {
            "authorization_details": [{
                "type": "api",
                "actions": ["orders:read"],
                "locations": ["https://orders.example/v1"]
            }],
            "max_ttl_seconds": 600
        }
    }),
    json!({
        "type": "urn:taskpass:problem:invalid-request",
        "title": "The request is not well-formed",
        "status": 400,
        "detail": "invalid type: string \"300\", expected u64",
        "pointer": "/ttl_seconds"
    })
))]
pub struct ProblemBody {
    /// The type of the problem: `urn:taskpass:problem:<slug>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short text for people; the same for every problem of a type.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// The details of this occurrence.
    pub detail: String,
    /// The further members, by the type of the problem.
    #[serde(flatten)]
    pub members: ProblemMembers,
}

impl ProblemBody {
    /// The last part of its type. `None` if the type is not one of this broker.
    #[must_use]
    pub fn slug(&self) -> Option<&str> {
        self.kind.strip_prefix(PROBLEM_URN)
    }
}

/// The further members of a problem, by its type.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ProblemMembers {
    /// In `invalid-request`: a JSON pointer to the mistake in the body, or `/name` of a parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// In `denied`, `indeterminate` and `approval-required`: the kind of refusal. It is a text, so
    /// that a client can read the refusal of a later broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// In the same: the decision that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<RefusedDecisionBody>,
    /// In the same: the proof that the refusal is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptBody>,
    /// In the same, if policy could permit a smaller request: that request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub allowed: Option<Open<Allowed>>,
    /// In `already-issued`: the session to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub session_id: Option<SessionId>,
    /// In `forbidden`: the missing right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// In `blocked`: the revocation, if the caller may lift it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub revocation: Option<CutoffId>,
    /// In `attestation-failed`, once the signature is verified: the check of the caller's own token
    /// that failed, as a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With `reason`: the claim or header parameter of that check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// For an attestation from a file that was used before: when the file should hold the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_attestation_at: Option<Timestamp>,
}

/// A decision that refused.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct RefusedDecisionBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: DecisionId,
    #[schema(value_type = String)]
    pub outcome: Open<Outcome>,
    /// The digest of the generation that decided.
    #[schema(value_type = String)]
    pub generation: GenerationDigest,
    /// The outcome under the policies that only observe; absent if none applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub observed: Option<Open<Box<Observed>>>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_is_read_back_with_its_members_and_without_unknown_ones() {
        let text = r#"{"type":"urn:taskpass:problem:invalid-request","title":"t","status":400,"detail":"d","pointer":"/a"}"#;
        let problem: ProblemBody = serde_json::from_str(text).unwrap();
        assert_eq!(problem.slug(), Some("invalid-request"));
        assert_eq!(problem.members.pointer.as_deref(), Some("/a"));
        assert_eq!(serde_json::to_string(&problem).unwrap(), text);
        let later = json!({"type": "about:blank", "title": "t", "status": 403, "detail": "d",
            "code": "later-code", "more": [1]});
        let problem: ProblemBody = serde_json::from_value(later).unwrap();
        assert_eq!(problem.slug(), None);
        assert_eq!(problem.members.code.as_deref(), Some("later-code"));
    }

    #[test]
    fn a_problem_of_a_later_broker_stays_readable() {
        let later = json!({
            "type": "urn:taskpass:problem:denied", "title": "t", "status": 403, "detail": "d",
            "decision": {
                "id": "01890a5d-ac96-774b-bcce-b302099a805b",
                "outcome": "postponed",
                "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "observed": {"policies": "many"}
            },
            "allowed": {"authorization_details": [{"type": "ssh"}]}
        });
        let problem: ProblemBody = serde_json::from_value(later.clone()).unwrap();
        let decision = problem.members.decision.unwrap();
        assert_eq!(decision.outcome, Open::Unknown(json!("postponed")));
        let observed = decision.observed.unwrap();
        assert_eq!(observed, Open::Unknown(json!({"policies": "many"})));
        let allowed = problem.members.allowed.unwrap();
        assert_eq!(allowed, Open::Unknown(later["allowed"].clone()));
    }
}
