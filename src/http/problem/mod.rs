//! The form of refusals: RFC 9457, with a stable `type`.
//!
//! [`Problem`] is a refusal, and `SLUGS` lists all types. `From<BrokerError>` is the only mapping
//! from the broker's errors; for the OAuth endpoints, [`super::oauth`] maps them to the errors of
//! RFC 6749. The rules: before the signature of evidence was verified, all faults get the same
//! answer. An absent thing and a hidden one get the same 404. The reason for `FailClosed` is only
//! logged.
//!
//! Nothing fails here. A problem leaves [`ProblemDetail`] in its answer, from which OAuth's form is
//! made, and a [`Fault`] for the challenge. All handlers and layers of `http` call this module.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::warn;

use super::challenge::Fault;
use crate::attest::AttestError;
use crate::broker::{BrokerError, Denied, Exceeded};
use crate::clock::Timestamp;
use crate::ledger::entry::Blocked;
use crate::wire::open::Open;
pub(super) use crate::wire::problem::ProblemBody;
use crate::wire::problem::{ProblemMembers, RefusedDecisionBody, urn};
use crate::wire::words::problem_of_refusal;

/// A refusal, ready to be sent.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    rest: Box<ProblemParts>,
}

/// The parts that are read only when the problem is sent; boxed to keep results small.
#[derive(Debug)]
struct ProblemParts {
    detail: String,
    members: ProblemMembers,
    headers: Vec<(header::HeaderName, HeaderValue)>,
    fault: Option<Fault>,
}

/// The detail of a problem, for the endpoints that answer in another form.
#[derive(Clone, Debug)]
pub(super) struct ProblemDetail {
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
            rest: Box::new(ProblemParts {
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
    pub(super) fn into_detail(self) -> ProblemDetail {
        ProblemDetail {
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
                outcome: denied.outcome.into(),
                generation: denied.generation,
                observed: denied.observed.map(Open::Known),
            }),
            receipt: Some(denied.receipt.into()),
            allowed: refusal.allowed.map(Open::Known),
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
                warn!(part = why.part(), %why, "closed");
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
        response.extensions_mut().insert(ProblemDetail {
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
mod tests;
