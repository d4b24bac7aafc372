//! The errors of RFC 6749.
//!
//! [`OAuthError::of`] maps the broker's errors, by the [`ClientAuthentication`] that the client
//! uses; `refused_evidence` maps faults in evidence, and `of_layer` the refusals of the
//! layers. The rules: a description has only the characters that the RFC permits. The reason for
//! `FailClosed` is only logged.
//!
//! Nothing fails here. An error of the broker without a counterpart is `invalid_request`, with a
//! text that tells no more. At an endpoint that accepts no scheme of `Authorization`, a 401 becomes
//! a 400 without a challenge. The other modules of `oauth` call this one; `challenge` writes the
//! header.

use std::borrow::Cow;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::warn;

use crate::attest::AttestError;
use crate::broker::BrokerError;
use crate::domain::decision::Observed;
use crate::http::challenge::Fault;
use crate::http::problem::ProblemDetail;
use crate::ids::DecisionId;
use crate::wire::oauth::OAuthErrorBody;

/// The description for a caller that a revocation blocks.
pub(super) const BLOCKED: &str = "a revocation blocks this caller";

/// How a request to an OAuth endpoint authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuthentication {
    /// By a token in `Authorization`.
    Header,
    /// By a client assertion in the form (RFC 7523).
    Assertion,
}

/// An error of RFC 6749 §5.2.
#[derive(Debug)]
pub(super) struct OAuthError {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) description: Cow<'static, str>,
    /// Which check of the caller's evidence failed, if that may be revealed.
    pub(super) refused: Option<Box<AttestError>>,
    pub(super) retry_seconds: Option<u64>,
    /// The decision that refused, if there was one.
    pub(super) decision_id: Option<DecisionId>,
    /// The outcome under the policies that only observe.
    pub(super) observed: Option<Box<Observed>>,
    /// The fault that the challenge of a 401 names.
    pub(super) fault: Option<Fault>,
}

impl OAuthError {
    pub(super) fn new(
        status: StatusCode,
        error: &'static str,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            error,
            description: description.into(),
            refused: None,
            retry_seconds: None,
            decision_id: None,
            observed: None,
            fault: None,
        }
    }

    pub(super) fn bad(error: &'static str, description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, description)
    }

    pub(super) fn invalid_request(description: &'static str) -> Self {
        Self::bad("invalid_request", description)
    }

    /// A client that is not authenticated.
    pub(super) fn invalid_client(description: &'static str) -> Self {
        Self {
            fault: Some(Fault::Token),
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_client", description)
        }
    }

    /// Refused evidence, with the part of the reason that the caller may learn.
    pub(super) fn refused_evidence(
        status: StatusCode,
        error: &'static str,
        refused: Option<&AttestError>,
    ) -> Self {
        let description = match refused {
            None => "present a fresh attestation for this broker".into(),
            Some(refused) => describe(refused),
        };
        Self {
            refused: refused.cloned().map(Box::new),
            ..Self::new(status, error, description)
        }
    }

    /// Evidence that authenticates the request and was refused (RFC 7662 §2.3, RFC 7009 §2.2.1):
    /// the error of RFC 6749 for a client, of RFC 6750 for a bearer token, of RFC 9449 for a proof.
    fn unauthenticated(
        error: &AttestError,
        told: Option<&AttestError>,
        way: ClientAuthentication,
    ) -> Self {
        let fault = Fault::of(error);
        let code = match (fault, way) {
            (Fault::Proof, _) => "invalid_dpop_proof",
            (Fault::Nonce, _) => "use_dpop_nonce",
            (Fault::Token | Fault::Unproven, ClientAuthentication::Header)
                if *error != AttestError::Missing =>
            {
                "invalid_token"
            }
            (Fault::Token | Fault::Unproven, _) => "invalid_client",
        };
        Self {
            fault: Some(fault),
            ..Self::refused_evidence(StatusCode::UNAUTHORIZED, code, told)
        }
    }

    /// This error without a challenge, for endpoints that accept no scheme of `Authorization`. A
    /// 401 would have to name a scheme (RFC 9110 §15.5.2), so it becomes a 400.
    pub(super) fn without_challenge(self) -> Self {
        let status = if self.status == StatusCode::UNAUTHORIZED {
            StatusCode::BAD_REQUEST
        } else {
            self.status
        };
        Self {
            status,
            fault: None,
            ..self
        }
    }

    /// The broker's error, for a request that authenticates in this way.
    pub(super) fn of(error: BrokerError, way: ClientAuthentication) -> Self {
        let unavailable = |description, seconds| Self {
            retry_seconds: seconds,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                description,
            )
        };
        if let BrokerError::FailClosed(why) = &error {
            warn!(part = why.part(), %why, "closed");
        }
        match error {
            BrokerError::Attestation(failure) if failure.error == AttestError::NonceWanted => {
                Self {
                    description: "the DPoP proof has to contain the nonce of this answer".into(),
                    ..Self::unauthenticated(&failure.error, None, way)
                }
            }
            BrokerError::Attestation(failure) => {
                Self::unauthenticated(&failure.error, failure.for_caller(), way)
            }
            BrokerError::Replayed | BrokerError::UsedUp { .. } => {
                let refused = AttestError::Replayed;
                Self::unauthenticated(&refused, Some(&refused), way)
            }
            BrokerError::AttestationUnavailable(failure) => unavailable(
                "the attestation cannot be verified now; try again with it",
                failure.error.retry_seconds(),
            ),
            BrokerError::Blocked(_) => Self::new(StatusCode::FORBIDDEN, "access_denied", BLOCKED),
            BrokerError::RateLimited(exceeded) => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                ..unavailable("too many requests", Some(exceeded.retry_seconds))
            },
            BrokerError::NoGeneration => unavailable(
                "no generation is active, so nothing can be decided; an admin activates one",
                Some(10),
            ),
            BrokerError::Superseded | BrokerError::Overloaded | BrokerError::FailClosed(_) => {
                unavailable(
                    "a dependency of the broker is unavailable; try again with a fresh attestation",
                    Some(1),
                )
            }
            // RFC 6750 §3.1.
            BrokerError::Forbidden(_) => Self::new(
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                "policy does not permit this",
            ),
            BrokerError::NotFound(_)
            | BrokerError::LastAdmin
            | BrokerError::OwnBinding
            | BrokerError::UnknownSelector(_)
            | BrokerError::Denied(_)
            | BrokerError::TaskEnded
            | BrokerError::OwnerWithdrawn
            | BrokerError::AlreadyIssued(..)
            | BrokerError::InProgress
            | BrokerError::RetryMismatch
            | BrokerError::TooManyKeys { .. }
            | BrokerError::Unfit(_)
            | BrokerError::Invalid { .. } => {
                Self::invalid_request("the request cannot be answered")
            }
        }
    }

    /// A refusal of a layer before the endpoint.
    pub(super) fn of_layer(status: StatusCode, told: &ProblemDetail) -> Self {
        let error = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                "temporarily_unavailable"
            }
            status if status.is_server_error() => "server_error",
            _ => "invalid_request",
        };
        Self::new(status, error, plain(&told.detail))
    }
}

/// The description of refused evidence.
fn describe(refused: &AttestError) -> Cow<'static, str> {
    plain(&format!("the attestation is refused: {refused}")).into()
}

/// A description with only the characters that RFC 6749 §5.2 allows: no quotes, no backslashes, and
/// nothing beyond ASCII.
fn plain(text: &str) -> String {
    let allowed = |c: char| matches!(c, ' '..='!' | '#'..='[' | ']'..='~');
    let shown = text.chars().map(|c| if allowed(c) { c } else { '?' });
    shown.collect()
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let refused = self.refused.as_deref();
        let body = OAuthErrorBody {
            error: self.error.to_owned(),
            error_description: self.description.into_owned(),
            reason: refused.map(|error| error.reason().to_owned()),
            claim: refused.and_then(AttestError::claim).map(str::to_owned),
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
        if let Some(fault) = self.fault {
            response.extensions_mut().insert(fault);
        }
        if let Some(seconds) = self.retry_seconds {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Exceeded;

    #[test]
    fn descriptions_keep_to_the_characters_of_rfc_6749() {
        let of = |error| OAuthError::of(error, ClientAuthentication::Header);
        for error in [
            OAuthError::invalid_request("send application/x-www-form-urlencoded"),
            of(BrokerError::Replayed),
            OAuthError::refused_evidence(
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                Some(&AttestError::RequiredClaim("a\"b\\c\u{e9}".into())),
            ),
            of(BrokerError::RateLimited(Exceeded {
                policy: "identity",
                quota: 1,
                window_seconds: 1,
                retry_seconds: 1,
            })),
            of(BrokerError::Overloaded),
            of(BrokerError::store("postgres://10.0.0.7")),
            of(BrokerError::Forbidden("x")),
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

    #[test]
    fn what_authenticates_a_request_and_is_refused_has_the_error_of_its_standard() {
        let refused = |error: AttestError| {
            BrokerError::Attestation(Box::new(crate::attest::AttestFailure::unattributed(error)))
        };
        for (error, way, code, fault) in [
            (
                AttestError::Missing,
                ClientAuthentication::Header,
                "invalid_client",
                Fault::Token,
            ),
            (
                AttestError::Expired,
                ClientAuthentication::Header,
                "invalid_token",
                Fault::Token,
            ),
            (
                AttestError::Expired,
                ClientAuthentication::Assertion,
                "invalid_client",
                Fault::Token,
            ),
            (
                AttestError::Confirmation("x"),
                ClientAuthentication::Header,
                "invalid_token",
                Fault::Unproven,
            ),
            (
                AttestError::BadProof("x"),
                ClientAuthentication::Assertion,
                "invalid_dpop_proof",
                Fault::Proof,
            ),
            (
                AttestError::NonceWanted,
                ClientAuthentication::Header,
                "use_dpop_nonce",
                Fault::Nonce,
            ),
        ] {
            let told = OAuthError::of(refused(error.clone()), way);
            assert_eq!(
                (told.status, told.error, told.fault),
                (StatusCode::UNAUTHORIZED, code, Some(fault)),
                "{error}"
            );
            let plain = told.without_challenge();
            assert_eq!((plain.status, plain.fault), (StatusCode::BAD_REQUEST, None));
        }
    }
}
