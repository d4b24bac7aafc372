//! What a request presents, as attestors take it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum_server::tls::TlsInfo;
use secrecy::SecretString;

use super::AppState;
use super::problem::Problem;
use crate::attest::{AttestError, Evidence};
use crate::broker::BrokerError;
use crate::broker::tasks::TaskAuthority;

/// Evidence, and the handle where one is presented instead of an attestation.
pub(super) struct Presented {
    pub(super) evidence: Evidence,
    handle: Option<SecretString>,
}

impl Presented {
    /// Whether anything was said in `Authorization`.
    pub(super) fn is_by_header(&self) -> bool {
        self.handle.is_some() || self.evidence.bearer.is_some()
    }

    /// As authority over a task.
    pub(super) fn into_authority(self) -> TaskAuthority {
        match self.handle {
            Some(handle) => TaskAuthority::Handle(handle, self.evidence),
            None => TaskAuthority::Owner(self.evidence),
        }
    }
}

impl FromRequestParts<AppState> for Presented {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let certificates = parts
            .extensions
            .get::<Arc<TlsInfo>>()
            .map(|tls| tls.peer_certificates.clone())
            .unwrap_or_default();
        let mut presented = Self {
            evidence: Evidence {
                bearer: None,
                dpop: texts(&parts.headers, "dpop"),
                client_certificates: certificates,
                headers: BTreeMap::new(),
                method: parts.method.as_str().to_owned(),
                // Never from Host or X-Forwarded-*: those are the client's words.
                url: format!("{}{}", state.broker.issuer(), parts.uri.path()),
                nonces: state.settings.nonces.clone(),
            },
            handle: None,
        };
        let given: Vec<String> = texts(&parts.headers, header::AUTHORIZATION.as_str());
        match given.as_slice() {
            [] => {}
            [one] => match one.split_once(' ') {
                // A handle is never tried as an attestation, nor the reverse.
                Some((scheme, handle)) if scheme.eq_ignore_ascii_case("handle") => {
                    presented.handle = Some(SecretString::from(handle.trim().to_owned()));
                }
                Some((scheme, token))
                    if scheme.eq_ignore_ascii_case("bearer")
                        || scheme.eq_ignore_ascii_case("dpop") =>
                {
                    presented.evidence.bearer = Some(SecretString::from(token.trim().to_owned()));
                }
                _ => return Err(BrokerError::Attestation(AttestError::Missing).into()),
            },
            // Of two, each reader may believe another one.
            _ => return Err(BrokerError::Attestation(AttestError::Missing).into()),
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
