//! RFC 6749's errors.

use std::borrow::Cow;

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
    #[schema(value_type = String)]
    error_description: Cow<'static, str>,
    /// Which condition of the caller's own token failed, where that may be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The claim or the header parameter that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<String>,
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
    pub(super) description: Cow<'static, str>,
    /// Which condition of the caller's evidence failed, where that may be told.
    pub(super) refused: Option<Box<AttestError>>,
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
            description: description.into(),
            refused: None,
            retry_seconds: None,
            decision_id: None,
            observed: None,
        }
    }

    /// Evidence that was refused, with as much of the reason as its caller may learn.
    pub(super) fn refused_evidence(
        status: StatusCode,
        error: &'static str,
        refused: Option<&AttestError>,
    ) -> Self {
        let description = match refused {
            None => "present a fresh attestation that is meant for this broker".into(),
            Some(refused) => describe(refused),
        };
        Self {
            status,
            error,
            description,
            refused: refused.cloned().map(Box::new),
            retry_seconds: None,
            decision_id: None,
            observed: None,
        }
    }

    pub(super) fn invalid_request(description: &'static str) -> Self {
        Self::bad("invalid_request", description)
    }
}

/// RFC 6749 allows neither quotes nor backslashes in a description, nor anything but ASCII.
fn describe(refused: &AttestError) -> Cow<'static, str> {
    let allowed = |c: char| matches!(c, ' '..='!' | '#'..='[' | ']'..='~');
    let text = format!("the attestation is refused: {refused}");
    let shown = text.chars().map(|c| if allowed(c) { c } else { '?' });
    Cow::Owned(shown.collect())
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let body = OAuthErrorBody {
            error: self.error,
            error_description: self.description,
            reason: self.refused.as_deref().map(AttestError::reason),
            claim: self
                .refused
                .as_deref()
                .and_then(AttestError::claim)
                .map(str::to_owned),
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
            BrokerError::Attestation(failure) if failure.error == AttestError::NonceWanted => (
                StatusCode::BAD_REQUEST,
                "use_dpop_nonce",
                "the DPoP proof has to contain the nonce of this answer",
                None,
            ),
            BrokerError::Attestation(failure) => {
                let status = StatusCode::UNAUTHORIZED;
                return Self::refused_evidence(status, "invalid_client", failure.for_caller());
            }
            BrokerError::Replayed | BrokerError::UsedUp { .. } => {
                let status = StatusCode::UNAUTHORIZED;
                let refused = Some(&AttestError::Replayed);
                return Self::refused_evidence(status, "invalid_client", refused);
            }
            BrokerError::AttestationUnavailable(failure) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "what vouches for the attestation cannot be read now; come again with it",
                failure.error.retry_seconds(),
            ),
            BrokerError::Blocked(_) => (StatusCode::FORBIDDEN, "access_denied", BLOCKED, None),
            BrokerError::RateLimited(exceeded) => (
                StatusCode::TOO_MANY_REQUESTS,
                "temporarily_unavailable",
                "too many requests",
                Some(exceeded.retry_seconds),
            ),
            BrokerError::Superseded | BrokerError::Overloaded | BrokerError::FailClosed(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "something cannot be relied on; try again with a fresh attestation",
                Some(1),
            ),
            BrokerError::Forbidden(_)
            | BrokerError::NotFound(_)
            | BrokerError::LastAdmin
            | BrokerError::Denied(_)
            | BrokerError::TaskEnded
            | BrokerError::OwnerWithdrawn
            | BrokerError::AlreadyIssued(_)
            | BrokerError::InProgress
            | BrokerError::RetryMismatch
            | BrokerError::TooManyKeys { .. }
            | BrokerError::Invalid { .. } => (
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "the request cannot be answered",
                None,
            ),
        };
        Self {
            status,
            error,
            description: description.into(),
            refused: None,
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
            OAuthError::refused_evidence(
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                Some(&AttestError::RequiredClaim("a\"b\\c\u{e9}".into())),
            ),
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
