//! What a refusal looks like: RFC 9457, with a stable `type`. The one mapping from the broker's
//! errors; the OAuth endpoints have RFC 6749's in [`super::oauth`].

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::warn;
use utoipa::ToSchema;

use crate::broker::{BrokerError, Denied};
use crate::domain::decision::{Outcome, RefusalCode};

/// A problem's members, beside those of its type.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProblemBody {
    /// `urn:taskpass:problem:<slug>`.
    #[serde(rename = "type")]
    kind: String,
    /// What it is, for people; the same for every problem of a type.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What happened this time.
    detail: String,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    more: Map<String, Value>,
}

/// A refusal, ready to be sent.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(header::HeaderName, HeaderValue)>,
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
            detail: detail.into(),
            more: Map::new(),
            headers: Vec::new(),
        }
    }

    fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.more.insert(name.to_owned(), value);
        }
        self
    }

    fn header(mut self, name: header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, &seconds.max(1).to_string())
    }

    pub(super) fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-request",
            "The request is not well-formed",
            detail,
        )
        .with("pointer", pointer.into())
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "There is no such thing, or it is not yours",
            format!("there is no such {what}"),
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "This method is not for this resource",
            "see /openapi.json",
        )
    }

    pub(super) fn media_type(wanted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The body has another media type",
            format!("send {wanted}"),
        )
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
            "It took too long",
            "nothing was released to you; try again",
        )
        .retry_after(1)
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
            "Something went wrong here",
            "nothing was released to you; the operator can find out more",
        )
    }

    pub(super) fn rate_limited(policy: &str, quota: u32, seconds: u64) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limited",
            "Too many requests",
            "come again after Retry-After",
        )
        .retry_after(seconds)
        .header(
            header::HeaderName::from_static("ratelimit-policy"),
            &format!("\"{policy}\";q={quota};w=1"),
        )
        .header(
            header::HeaderName::from_static("ratelimit"),
            &format!("\"{policy}\";r=0;t={}", seconds.max(1)),
        )
    }

    fn closed() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "fail-closed",
            "Closed: something cannot be relied on",
            "nothing was released; try again",
        )
        .retry_after(1)
    }

    fn denied(denied: Denied) -> Self {
        let (slug, title) = match (denied.outcome, denied.refusal.code) {
            (_, RefusalCode::ApprovalRequired) => {
                ("approval-required", "A person would have to approve this")
            }
            (Outcome::Indeterminate, _) => ("indeterminate", "It could not be established"),
            _ => ("denied", "Policy does not permit this"),
        };
        let problem = Self::new(StatusCode::FORBIDDEN, slug, title, denied.refusal.detail)
            .with("code", denied.refusal.code)
            .with(
                "decision",
                json!({
                    "id": denied.decision,
                    "outcome": denied.outcome,
                    "generation": denied.generation,
                }),
            )
            .with("receipt", denied.receipt);
        match denied.refusal.allowed {
            Some(allowed) => problem.with("allowed", allowed),
            None => problem,
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        match error {
            // One face for all of them: no detail that helps a forger.
            BrokerError::Attestation(_) | BrokerError::Replayed => Self::new(
                StatusCode::UNAUTHORIZED,
                "attestation-failed",
                "The attestation does not show who you are",
                "present a fresh attestation that is meant for this broker",
            )
            .header(header::WWW_AUTHENTICATE, "Bearer"),
            BrokerError::Forbidden(action) => {
                Self::forbidden(&format!("policy does not give you `{action}`"))
                    .with("action", action)
            }
            BrokerError::NotFound(what) => Self::not_found(what),
            BrokerError::Denied(denied) => Self::denied(*denied),
            BrokerError::TaskEnded => Self::new(
                StatusCode::CONFLICT,
                "task-ended",
                "The task is over",
                "the task, or one that it is part of, is over; open another",
            ),
            BrokerError::AlreadyIssued(session) => Self::new(
                StatusCode::CONFLICT,
                "already-issued",
                "This request was answered with a credential already",
                "a credential is handed out once; end that session, and ask with another key",
            )
            .with("session_id", session),
            BrokerError::InProgress => Self::new(
                StatusCode::CONFLICT,
                "in-progress",
                "The first request with this key is under way",
                "come again after Retry-After",
            )
            .retry_after(1),
            BrokerError::RetryMismatch => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-mismatch",
                "This key belongs to another request",
                "use a new Idempotency-Key for a new request",
            ),
            BrokerError::Invalid { pointer, detail } => Self::invalid(pointer, detail),
            BrokerError::RateLimited { retry_seconds } => {
                Self::rate_limited("identity", 1, retry_seconds)
            }
            BrokerError::Overloaded => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "Too much is waiting",
                "nothing was recorded; come again after Retry-After",
            )
            .retry_after(1),
            BrokerError::FailClosed(why) => {
                warn!(%why, "closed");
                Self::closed()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: format!("urn:taskpass:problem:{}", self.slug),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
            more: self.more,
        };
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, bytes).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}
