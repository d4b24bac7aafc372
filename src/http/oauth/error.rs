//! RFC 6749's errors.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::attest::AttestError;
use crate::broker::BrokerError;
use crate::domain::decision::Observed;

/// What a caller is told that a revocation blocks.
pub(super) const BLOCKED: &str = "a revocation blocks this caller";

/// An error, as RFC 6749 §5.2 writes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct OAuthErrorBody {
    /// A code of RFC 6749.
    error: &'static str,
    /// What is wrong, for people.
    error_description: &'static str,
    /// The decision that refused, where policy was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<String>,
    /// What policies that merely observe would have made of it.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<Box<Observed>>,
}

/// An error of RFC 6749 §5.2.
#[derive(Debug)]
pub(super) struct OAuthError {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) description: &'static str,
    pub(super) retry_seconds: Option<u64>,
    /// The decision that refused, where there was one.
    pub(super) decision_id: Option<String>,
    /// What policies that merely observe would have made of it.
    pub(super) observed: Option<Box<Observed>>,
}

impl OAuthError {
    pub(super) fn bad(error: &'static str, description: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error,
            description,
            retry_seconds: None,
            decision_id: None,
            observed: None,
        }
    }

    pub(super) fn invalid_request(description: &'static str) -> Self {
        Self::bad("invalid_request", description)
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let body = OAuthErrorBody {
            error: self.error,
            error_description: self.description,
            decision_id: self.decision_id,
            observed: self.observed,
        };
        let mut response = (
            self.status,
            [
                (header::CACHE_CONTROL, "no-store"),
                (header::PRAGMA, "no-cache"),
            ],
            Json(body),
        )
            .into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        if let Some(seconds) = self.retry_seconds {
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

impl From<BrokerError> for OAuthError {
    fn from(error: BrokerError) -> Self {
        if let BrokerError::FailClosed(why) = &error {
            warn!(%why, "closed");
        }
        let (status, error, description, retry_seconds) = match error {
            BrokerError::Attestation(AttestError::NonceWanted) => (
                StatusCode::BAD_REQUEST,
                "use_dpop_nonce",
                "the DPoP proof has to contain the nonce of this answer",
                None,
            ),
            BrokerError::Attestation(_) | BrokerError::Replayed => (
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "present a fresh attestation that is meant for this broker",
                None,
            ),
            BrokerError::Blocked(_) => (StatusCode::FORBIDDEN, "access_denied", BLOCKED, None),
            BrokerError::RateLimited(exceeded) => (
                StatusCode::TOO_MANY_REQUESTS,
                "temporarily_unavailable",
                "too many requests",
                Some(exceeded.retry_seconds),
            ),
            BrokerError::Overloaded | BrokerError::FailClosed(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "something cannot be relied on; try again",
                Some(1),
            ),
            _ => (
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "the request cannot be answered",
                None,
            ),
        };
        Self {
            status,
            error,
            description,
            retry_seconds,
            decision_id: None,
            observed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Exceeded;

    #[test]
    fn descriptions_keep_to_the_characters_of_rfc_6749() {
        for error in [
            OAuthError::invalid_request("send application/x-www-form-urlencoded"),
            BrokerError::Replayed.into(),
            BrokerError::RateLimited(Exceeded {
                policy: "identity",
                quota: 1,
                window_seconds: 1,
                retry_seconds: 1,
            })
            .into(),
            BrokerError::Overloaded.into(),
            BrokerError::FailClosed("postgres://10.0.0.7".into()).into(),
            BrokerError::Forbidden("x").into(),
        ] {
            let allowed = |c: char| matches!(c, ' '..='!' | '#'..='[' | ']'..='~');
            assert!(
                error.description.chars().all(allowed),
                "{}",
                error.description
            );
            assert!(!error.description.contains("10.0.0.7"));
        }
    }
}
