//! The form of refusals: RFC 9457, with a stable `type`.
//!
//! [`Problem`] is a refusal, and `SLUGS` lists all types. `From<BrokerError>` is the only mapping
//! from the broker's errors; for the OAuth endpoints, [`super::oauth`] maps them to the errors of
//! RFC 6749. The rules: before the signature of evidence was verified, all faults get the same
//! answer. An absent thing and a hidden one get the same 404. The reason for `FailClosed` is only
//! logged.
//!
//! Nothing fails here. A problem leaves [`Told`] in its answer, from which OAuth's form is made,
//! and a [`Fault`] for the challenge. All handlers and layers of `http` call this module.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::warn;

use super::challenge::Fault;
use crate::attest::AttestError;
use crate::broker::{BrokerError, Denied, Exceeded};
use crate::clock::Timestamp;
use crate::ledger::entry::Blocked;
pub(super) use crate::wire::problem::ProblemBody;
use crate::wire::problem::{ProblemMembers, RefusedDecisionBody, urn};
use crate::wire::words::problem_of_refusal;

/// A refusal, ready to be sent.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    rest: Box<Rest>,
}

/// The parts that are read only when the problem is sent; boxed to keep results small.
#[derive(Debug)]
struct Rest {
    detail: String,
    members: ProblemMembers,
    headers: Vec<(header::HeaderName, HeaderValue)>,
    fault: Option<Fault>,
}

/// The detail of a problem, for the endpoints that answer in another form.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) detail: String,
}

impl Problem {
    fn new(
        status: StatusCode,
        slug: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            slug,
            title,
            rest: Box::new(Rest {
                detail: detail.into(),
                members: ProblemMembers::default(),
                headers: Vec::new(),
                fault: None,
            }),
        }
    }

    /// Sets further members.
    fn with(mut self, set: impl FnOnce(&mut ProblemMembers)) -> Self {
        set(&mut self.rest.members);
        self
    }

    fn header(mut self, name: header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.rest.headers.push((name, value));
        }
        self
    }

    /// Adds the challenge for this fault to the answer.
    fn challenged(mut self, fault: Fault) -> Self {
        self.rest.fault = Some(fault);
        self
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, &seconds.max(1).to_string())
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The detail, for an answer in another form.
    pub(super) fn into_told(self) -> Told {
        Told {
            detail: self.rest.detail,
        }
    }

    pub(super) fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let pointer = pointer.into();
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-request",
            "The request is not well-formed",
            detail,
        )
        .with(|members| members.pointer = Some(pointer))
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "There is no such thing, or it is not yours",
            format!("there is no such {what}"),
        )
    }

    fn last_admin(detail: String) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "last-admin",
            "The change would lock out every admin",
            detail,
        )
    }

    fn too_many_keys(most: usize, until: Timestamp) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "too-many-keys",
            "The largest number of keys is published",
            format!(
                "nothing was changed: {most} keys are published already, the most that readers of \
                 checkpoints and key sets accept; the next rotation is possible from {until}"
            ),
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "The resource does not support this method",
            "see /openapi.json",
        )
    }

    pub(super) fn media_type(wanted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The media type of the body is not supported",
            format!("send {wanted}"),
        )
    }

    /// A body in a content coding that is not supported (RFC 9110 §15.5.16).
    pub(super) fn coded() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The media type of the body is not supported",
            "send the body as it is, without Content-Encoding",
        )
        .header(header::ACCEPT_ENCODING, "identity")
    }

    /// A transfer coding that is not supported (RFC 9112 §6.1).
    pub(super) fn transfer_coded() -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "not-implemented",
            "This is not supported",
            "the only supported transfer coding is `chunked`",
        )
        .header(header::CONNECTION, "close")
    }

    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload-too-large",
            "The body is too large",
            "see the limits in the documentation",
        )
    }

    pub(super) fn forbidden(detail: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "You may not do this",
            detail,
        )
    }

    pub(super) fn timeout() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "The request took too long",
            "nothing was released to you; try again with a fresh attestation",
        )
        .retry_after(1)
    }

    /// The rest of a body did not arrive in time (RFC 9110 §15.5.9).
    pub(super) fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-timeout",
            "The body did not arrive",
            "the rest of the body did not arrive in time; nothing was done",
        )
    }

    pub(super) fn no_history() -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "not-implemented",
            "This is not supported",
            "only the current list is served; leave `time` out",
        )
    }

    pub(super) fn unready(why: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unready",
            "Not ready to serve",
            why,
        )
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "nothing was released; the cause is in the broker's log",
        )
    }

    /// Too many requests by this policy. The answer has the policy's real quota.
    pub(super) fn rate_limited(exceeded: Exceeded) -> Self {
        let Exceeded {
            policy,
            quota,
            window_seconds,
            retry_seconds,
        } = exceeded;
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limited",
            "Too many requests",
            "try again after Retry-After",
        )
        .retry_after(retry_seconds)
        .header(
            header::HeaderName::from_static("ratelimit"),
            &format!("\"{policy}\";r=0;t={}", retry_seconds.max(1)),
        )
        .header(
            header::HeaderName::from_static("ratelimit-policy"),
            &format!("\"{policy}\";q={quota};w={window_seconds}"),
        )
    }

    /// A caller that a revocation blocks. Only a caller that may lift the revocation learns its id.
    fn blocked(blocked: Blocked) -> Self {
        let act = blocked.act;
        let new = |detail: &str| {
            Self::new(
                StatusCode::FORBIDDEN,
                "blocked",
                "A revocation blocks the caller",
                detail,
            )
        };
        match blocked.liftable {
            None => new(&format!("{act} is refused: a revocation blocks the caller")),
            Some(id) => new(&format!(
                "{act} is refused: revocation {id} blocks the caller; you may lift it: \
                 `taskpass lift {id}`"
            ))
            .with(|members| members.revocation = Some(id)),
        }
    }

    fn closed() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "fail-closed",
            "A dependency of the broker cannot be relied on",
            "nothing was released; try again after Retry-After, with a fresh attestation",
        )
        .retry_after(1)
    }

    fn attestation_failed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "attestation-failed",
            "The attestation was refused",
            detail,
        )
    }

    /// Before the signature is verified every failure has the same answer, challenge included.
    fn unattested() -> Self {
        Self::attestation_failed("present a fresh attestation for this broker")
            .challenged(Fault::Token)
    }

    /// Tells the caller which check of its own evidence failed.
    fn refused_attestation(error: &AttestError) -> Self {
        Self::attestation_failed(format!("the attestation is refused: {error}"))
            .with(|members| {
                members.reason = Some(error.reason().to_owned());
                members.claim = error.claim().map(str::to_owned);
            })
            .challenged(Fault::of(error))
    }

    fn denied(denied: Denied) -> Self {
        let (slug, title) = problem_of_refusal(denied.outcome, denied.refusal.code);
        let refusal = denied.refusal;
        let members = ProblemMembers {
            code: Some(refusal.code.as_str().to_owned()),
            decision: Some(RefusedDecisionBody {
                id: denied.decision,
                outcome: denied.outcome,
                generation: denied.generation,
                observed: denied.observed,
            }),
            receipt: Some(denied.receipt.into()),
            allowed: refusal.allowed,
            ..ProblemMembers::default()
        };
        Self::new(StatusCode::FORBIDDEN, slug, title, refusal.detail).with(|own| *own = members)
    }
}

impl From<BrokerError> for Problem {
    #[expect(clippy::too_many_lines, reason = "one arm for each error")]
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Attestation(failure) if failure.error == AttestError::NonceWanted => {
                Self::new(
                    StatusCode::UNAUTHORIZED,
                    "use-dpop-nonce",
                    "The DPoP proof needs a nonce",
                    "make another proof with the nonce of this answer's DPoP-Nonce header",
                )
                .challenged(Fault::Nonce)
            }
            BrokerError::Attestation(failure) => match failure.for_caller() {
                None => Self::unattested(),
                Some(error) => Self::refused_attestation(error),
            },
            BrokerError::AttestationUnavailable(failure) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "attestation-unavailable",
                "The attestation cannot be verified now",
                "the keys or services that verify the attestation cannot be reached; it was not \
                 used up: try again with it, or with a fresh one, after Retry-After",
            )
            .retry_after(failure.error.retry_seconds().unwrap_or(1)),
            BrokerError::Replayed => Self::refused_attestation(&AttestError::Replayed),
            BrokerError::UsedUp { next_at } => {
                let mut problem = Self::refused_attestation(&AttestError::Replayed);
                problem.rest.detail = format!(
                    "the attestation is refused: it was used before and only serves the task that \
                     it opened; the file that holds it should have the next at {next_at}, or bind \
                     it to a key by a DPoP proof"
                );
                problem.with(|members| members.next_attestation_at = Some(next_at))
            }
            BrokerError::Forbidden(action) => {
                Self::forbidden(&format!("policy does not permit `{action}` to the caller"))
                    .with(|members| members.action = Some(action.to_owned()))
            }
            BrokerError::Blocked(blocked) => Self::blocked(blocked),
            BrokerError::NotFound(what) => Self::not_found(what),
            BrokerError::OwnBinding => Self::new(
                StatusCode::FORBIDDEN,
                "own-binding",
                "An identity may not bind or unbind itself",
                error.to_string(),
            ),
            BrokerError::NoGeneration => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-generation",
                "No generation is active",
                error.to_string(),
            )
            .retry_after(10),
            last @ BrokerError::LastAdmin => Self::last_admin(last.to_string()),
            unknown @ BrokerError::UnknownSelector(_) => {
                let mut problem = Self::not_found("selector");
                problem.rest.detail = unknown.to_string();
                problem
            }
            BrokerError::Denied(denied) => Self::denied(*denied),
            BrokerError::TaskEnded => Self::new(
                StatusCode::CONFLICT,
                "task-ended",
                "The task has ended",
                "the task or one of its ancestors has ended; open another",
            ),
            BrokerError::OwnerWithdrawn => Self::new(
                StatusCode::CONFLICT,
                "owner-withdrawn",
                "The task's owner can no longer be attested",
                "the attestor of the task's owner, or of an ancestor's owner, was removed or \
                 changed: the task can only be completed or aborted",
            ),
            BrokerError::AlreadyIssued(session, why) => Self::new(
                StatusCode::CONFLICT,
                "already-issued",
                "This request already received a credential",
                format!(
                    "{why}: end that session with POST /v1/sessions/{session}/revoke, and ask \
                     with a new Idempotency-Key"
                ),
            )
            .with(|members| members.session_id = Some(session)),
            BrokerError::InProgress => Self::new(
                StatusCode::CONFLICT,
                "in-progress",
                "The first request with this key is still in progress",
                "try again after Retry-After",
            )
            .retry_after(1),
            BrokerError::RetryMismatch => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-mismatch",
                "This key belongs to another request",
                "use a new Idempotency-Key for a new request",
            ),
            BrokerError::TooManyKeys { most, until } => Self::too_many_keys(most, until),
            BrokerError::Invalid { pointer, detail } => Self::invalid(pointer, detail),
            BrokerError::Unfit(unfit) => Self::invalid(unfit.pointer(), unfit.to_string()),
            BrokerError::RateLimited(exceeded) => Self::rate_limited(exceeded),
            BrokerError::Overloaded => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "The broker is overloaded",
                "nothing was released; try again after Retry-After, with a fresh attestation",
            )
            .retry_after(1),
            BrokerError::FailClosed(why) => {
                warn!(%why, "closed");
                Self::closed()
            }
            superseded @ BrokerError::Superseded => {
                warn!(why = %superseded, "closed");
                Self::closed()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: urn(self.slug),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.rest.detail,
            members: self.rest.members,
        };
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, bytes).into_response();
        response.extensions_mut().insert(Told {
            detail: body.detail,
        });
        if let Some(fault) = self.rest.fault {
            response.extensions_mut().insert(fault);
        }
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.rest.headers {
            headers.insert(name, value);
        }
        response
    }
}

#[cfg(test)]
impl Problem {
    pub(super) fn slug(&self) -> &'static str {
        self.slug
    }

    pub(super) fn detail(&self) -> &str {
        &self.rest.detail
    }

    pub(super) fn member(&self, name: &str) -> serde_json::Value {
        let members = serde_json::to_value(&self.rest.members).unwrap();
        members.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::challenge::{self, Scheme};
    use super::*;
    use crate::attest::AttestFailure;
    use crate::broker::error::NotRepeated;
    use crate::domain::decision::{Outcome, Refusal, RefusalCode};
    use crate::domain::generation::GenerationDigest;
    use crate::ids::{CutoffId, DecisionId, SessionId};
    use crate::merkle::{Receipt, leaf_hash};
    use crate::wire::problem::SLUGS;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    struct Sent {
        status: u16,
        headers: axum::http::HeaderMap,
        body: Value,
        text: String,
    }

    async fn send(problem: impl Into<Problem>) -> Sent {
        let mut response = problem.into().into_response();
        challenge::complete(&mut response, Scheme::Bearer, false);
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let sent = Sent {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap(),
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        };
        assert_eq!(sent.headers["content-type"], "application/problem+json");
        assert_eq!(sent.headers["cache-control"], "no-store");
        assert_eq!(sent.body["status"], sent.status);
        let kind = sent.body["type"].as_str().unwrap();
        let slug = kind.strip_prefix(crate::wire::words::PROBLEM_URN).unwrap();
        assert!(SLUGS.contains(&slug), "{slug} is not in the list");
        sent
    }

    fn refused(error: AttestError, told: bool) -> BrokerError {
        BrokerError::Attestation(Box::new(AttestFailure {
            told,
            ..AttestFailure::unattributed(error)
        }))
    }

    fn exceeded(retry_seconds: u64) -> Exceeded {
        Exceeded {
            policy: "identity",
            quota: 50,
            window_seconds: 1,
            retry_seconds,
        }
    }

    fn denied(code: RefusalCode, outcome: Outcome) -> BrokerError {
        let leaf = b"leaf".to_vec();
        BrokerError::Denied(Box::new(Denied {
            decision: ID.parse::<DecisionId>().unwrap(),
            outcome,
            refusal: Refusal {
                code,
                detail: "why".into(),
                allowed: None,
            },
            generation: format!("sha256:{}", "ab".repeat(32))
                .parse::<GenerationDigest>()
                .unwrap(),
            observed: None,
            receipt: Receipt {
                leaf_hash: leaf_hash(&leaf),
                leaf,
                index: 4,
                tree_size: 5,
                inclusion_proof: Vec::new(),
                checkpoint: "note".into(),
            },
        }))
    }

    #[tokio::test]
    async fn each_reason_has_its_status_and_type() {
        let session: SessionId = ID.parse().unwrap();
        let invalid = BrokerError::Invalid {
            pointer: "/role",
            detail: "a role".into(),
        };
        for (error, status, slug) in [
            (
                refused(AttestError::Missing, false),
                401,
                "attestation-failed",
            ),
            (
                refused(AttestError::NonceWanted, true),
                401,
                "use-dpop-nonce",
            ),
            (
                BrokerError::AttestationUnavailable(Box::new(AttestFailure::unattributed(
                    AttestError::IssuerUnreachable,
                ))),
                503,
                "attestation-unavailable",
            ),
            (
                BrokerError::UsedUp {
                    next_at: crate::clock::Timestamp::from_seconds(1_800_000_000),
                },
                401,
                "attestation-failed",
            ),
            (BrokerError::Replayed, 401, "attestation-failed"),
            (BrokerError::Forbidden("manageKeys"), 403, "forbidden"),
            (BrokerError::NotFound("task"), 404, "not-found"),
            (BrokerError::LastAdmin, 409, "last-admin"),
            (BrokerError::OwnBinding, 403, "own-binding"),
            (BrokerError::NoGeneration, 503, "no-generation"),
            (BrokerError::Superseded, 503, "fail-closed"),
            (blocked(None), 403, "blocked"),
            (BrokerError::TaskEnded, 409, "task-ended"),
            (BrokerError::OwnerWithdrawn, 409, "owner-withdrawn"),
            (
                BrokerError::AlreadyIssued(session, NotRepeated::NoInstance),
                409,
                "already-issued",
            ),
            (BrokerError::InProgress, 409, "in-progress"),
            (BrokerError::RetryMismatch, 422, "idempotency-mismatch"),
            (
                BrokerError::TooManyKeys {
                    most: 4,
                    until: Timestamp::EPOCH,
                },
                409,
                "too-many-keys",
            ),
            (invalid, 400, "invalid-request"),
            (BrokerError::RateLimited(exceeded(3)), 429, "rate-limited"),
            (BrokerError::Overloaded, 503, "overloaded"),
            (BrokerError::FailClosed("x".into()), 503, "fail-closed"),
            (
                denied(RefusalCode::UnknownResource, Outcome::Deny),
                403,
                "denied",
            ),
            (
                denied(RefusalCode::UnknownResource, Outcome::Indeterminate),
                403,
                "indeterminate",
            ),
            (
                denied(RefusalCode::ApprovalRequired, Outcome::Deny),
                403,
                "approval-required",
            ),
        ] {
            let sent = send(error).await;
            assert_eq!(
                (sent.status, &sent.body["type"]),
                (status, &json!(urn(slug)))
            );
            let again = matches!(
                slug,
                "in-progress"
                    | "rate-limited"
                    | "overloaded"
                    | "fail-closed"
                    | "no-generation"
                    | "attestation-unavailable"
            );
            assert_eq!(sent.headers.contains_key("retry-after"), again, "{slug}");
            assert_eq!(sent.headers.contains_key("www-authenticate"), status == 401);
        }
    }

    fn blocked(liftable: Option<CutoffId>) -> BrokerError {
        BrokerError::Blocked(Blocked {
            act: "manageKeys",
            liftable,
        })
    }

    #[tokio::test]
    async fn which_revocation_blocks_a_caller_is_told_to_who_may_lift_it() {
        let sent = send(blocked(None)).await;
        assert_eq!(
            sent.body["detail"],
            "manageKeys is refused: a revocation blocks the caller"
        );
        assert!(sent.body.get("revocation").is_none());
        let sent = send(blocked(Some(ID.parse().unwrap()))).await;
        assert_eq!(sent.body["revocation"], ID);
        let detail = sent.body["detail"].as_str().unwrap();
        assert!(
            detail.contains(&format!("`taskpass lift {ID}`")),
            "{detail}"
        );
    }

    #[tokio::test]
    async fn a_denial_carries_its_decision_and_its_proof() {
        let sent = send(denied(RefusalCode::UnknownResource, Outcome::Deny)).await;
        assert_eq!(sent.body["code"], "unknown-resource");
        assert_eq!(sent.body["decision"]["id"], ID);
        assert_eq!(sent.body["decision"]["outcome"], "deny");
        assert_eq!(sent.body["receipt"]["index"], 4);
        assert!(sent.body.get("allowed").is_none());
    }

    #[tokio::test]
    async fn what_failed_inside_is_not_told() {
        let secret = "postgres://taskpass@10.0.0.7: connection refused";
        let sent = send(BrokerError::FailClosed(secret.into())).await;
        assert!(!sent.text.contains("postgres") && !sent.text.contains("10.0.0.7"));
        // Nor which check failed of an attestation whose signature was not verified.
        let missing = send(refused(AttestError::Missing, false)).await;
        let unknown = send(refused(AttestError::UnknownKey, false)).await;
        assert_eq!(
            (&missing.text, &missing.headers),
            (&unknown.text, &unknown.headers)
        );
    }

    #[tokio::test]
    async fn whose_signature_verified_is_told_the_claim_and_no_value() {
        let owner = AttestError::RequiredClaim("owner_id".into());
        let sent = send(refused(owner.clone(), true)).await;
        assert_eq!(
            (&sent.body["reason"], &sent.body["claim"]),
            (&json!("required_claim"), &json!("owner_id"))
        );
        assert_eq!(
            sent.headers["www-authenticate"],
            "Bearer error=\"invalid_token\""
        );
        let untold = send(refused(owner, false)).await;
        assert_eq!(untold.body.get("reason"), None);
        let replayed = send(BrokerError::Replayed).await;
        assert_eq!(replayed.body["reason"], "replayed");
        let proof = send(refused(AttestError::BadProof("another URL"), true)).await;
        let challenge = proof.headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("DPoP error=\"invalid_dpop_proof\""));
    }

    #[tokio::test]
    async fn a_limit_says_what_it_is_and_when_to_come_again() {
        let sent = send(BrokerError::RateLimited(exceeded(0))).await;
        assert_eq!(sent.headers["retry-after"], "1");
        assert_eq!(sent.headers["ratelimit"], "\"identity\";r=0;t=1");
        assert_eq!(sent.headers["ratelimit-policy"], "\"identity\";q=50;w=1");
        let sent = send(BrokerError::RateLimited(exceeded(9))).await;
        assert_eq!(sent.headers["ratelimit"], "\"identity\";r=0;t=9");
        assert_eq!(sent.headers["retry-after"], "9");
    }

    #[tokio::test]
    async fn our_own_refusals_are_in_the_list_too() {
        for problem in [
            Problem::method_not_allowed(),
            Problem::media_type("application/json"),
            Problem::too_large(),
            Problem::timeout(),
            Problem::body_timeout(),
            Problem::coded(),
            Problem::transfer_coded(),
            Problem::unready("why"),
            Problem::internal(),
            Problem::not_found("thing"),
            Problem::forbidden("why"),
            Problem::invalid("/a", "why"),
        ] {
            send(problem).await;
        }
    }
}
