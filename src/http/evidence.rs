//! The evidence that a request presents, in the form that attestors take.
//!
//! [`Presented`] is the extractor; `into_authority` makes a task's authority of it. The rules:
//! nothing is verified here, and a handle is never tried as an attestation. The URL of the request
//! is made from the configured issuer, never from `Host`.
//!
//! The extractor cannot fail. Several `Authorization` headers, or one of an unknown scheme, are
//! `TokenScheme::Unreadable`, which the broker refuses; thus a request is refused in one place
//! only. The handlers pass the evidence to the broker, and `attest` verifies it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum_server::tls::TlsInfo;
use secrecy::SecretString;

use super::AppState;
use crate::attest::{Evidence, TokenScheme};
use crate::broker::tasks::TaskAuthority;

/// The id by which a request's answer and its log lines are found.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

/// The evidence of a request, and the handle if one is presented instead of an attestation.
pub(super) struct Presented {
    pub(super) evidence: Evidence,
    handle: Option<SecretString>,
}

impl Presented {
    /// Whether the request has an `Authorization` header.
    pub(super) fn is_by_header(&self) -> bool {
        self.handle.is_some()
            || self.evidence.bearer.is_some()
            || self.evidence.scheme == TokenScheme::Unreadable
    }

    /// The evidence as authority over a task.
    pub(super) fn into_authority(self) -> TaskAuthority {
        match self.handle {
            Some(handle) => TaskAuthority::Handle(handle, self.evidence),
            None => TaskAuthority::Owner(self.evidence),
        }
    }
}

impl FromRequestParts<AppState> for Presented {
    type Rejection = Infallible;

    /// Reads the evidence, and refuses nothing: the broker refuses, and logs the refusal for its
    /// operator.
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let certificates = parts
            .extensions
            .get::<Arc<TlsInfo>>()
            .map(|tls| tls.peer_certificates.clone())
            .unwrap_or_default();
        let id = parts.extensions.get::<RequestId>();
        let mut presented = Self {
            evidence: Evidence {
                dpop: texts(&parts.headers, "dpop"),
                client_certificates: certificates,
                request_id: id.map(|id| id.0.clone()),
                method: parts.method.as_str().to_owned(),
                // Never from `Host` or `X-Forwarded-*`, which the client controls.
                url: format!("{}{}", state.broker.core.issuer(), parts.uri.path()),
                nonces: state.settings.nonces.clone(),
                ..Evidence::default()
            },
            handle: None,
        };
        let given = texts(&parts.headers, header::AUTHORIZATION.as_str());
        let read = match given.as_slice() {
            [] => return Ok(presented),
            [one] => one.split_once(' '),
            // With two values, two readers could each use another one.
            _ => None,
        };
        let secret = |text: &str| Some(SecretString::from(text.trim().to_owned()));
        let evidence = &mut presented.evidence;
        match read {
            // A handle is never tried as an attestation, nor the reverse.
            Some((scheme, handle)) if scheme.eq_ignore_ascii_case("handle") => {
                presented.handle = secret(handle);
            }
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                evidence.bearer = secret(token);
            }
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("dpop") => {
                evidence.bearer = secret(token);
                evidence.scheme = TokenScheme::Dpop;
            }
            _ => evidence.scheme = TokenScheme::Unreadable,
        }
        Ok(presented)
    }
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values
        .map(|value| value.to_str().unwrap_or_default().to_owned())
        .collect()
}
