//! The forms of OAuth endpoints.
//!
//! [`Form`] reads a body and gives its parameters. The rules (RFC 6749 §3.2): no parameter is
//! repeated, one without a value is absent, and unknown ones are ignored. Failures: another media
//! type is a 415. A repeated parameter is `invalid_request`, or `invalid_target` if it names a
//! target, because the token would get the rights of each. `None` means that a parameter is absent.
//! `token`, `introspect` and `revoke` call this module; `http::bodies` reads the bytes.

use std::collections::BTreeMap;

use axum::extract::{FromRef as _, Request};
use axum::http::StatusCode;

use super::error::OAuthError;
use crate::domain::limits::MAX_BODY_BYTES;
use crate::http::AppState;
use crate::http::bodies::{Bodies, BodyShare};
use crate::http::json::is_media_type;
use crate::http::problem::Problem;
use crate::wire::query::in_one_spelling;

/// A form without repeated parameters.
#[derive(Debug)]
pub(super) struct Form {
    parameters: BTreeMap<String, String>,
    _share: BodyShare,
}

impl Form {
    /// Reads a request's body. Repeated parameters are refused; a parameter without a value counts
    /// as absent (RFC 6749 §3.2); unknown parameters are ignored.
    pub(super) async fn read(request: Request, state: &AppState) -> Result<Self, OAuthError> {
        if !is_media_type(request.headers(), "application/x-www-form-urlencoded") {
            return Err(OAuthError {
                status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ..OAuthError::invalid_request("send application/x-www-form-urlencoded")
            });
        }
        let unread = |problem: Problem| {
            let status = problem.status();
            // The only 503 of a body is the lack of memory for it.
            let overloaded = status == StatusCode::SERVICE_UNAVAILABLE;
            OAuthError {
                retry_seconds: overloaded.then_some(1),
                ..OAuthError::of_layer(status, &problem.into_detail())
            }
        };
        let body = Bodies::from_ref(state).read(request).await;
        let body = body.map_err(unread)?;
        debug_assert!(
            body.bytes.len() <= MAX_BODY_BYTES,
            "the route's limit is lower"
        );
        Ok(Self {
            _share: body.share,
            ..Self::parse(&body.bytes)?
        })
    }

    fn parse(form: &[u8]) -> Result<Self, OAuthError> {
        let mut parameters = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(form) {
            if value.contains('\0') {
                return Err(OAuthError::invalid_request("a parameter holds U+0000"));
            }
            // Both parameters can name several targets, and the token would get the rights of each.
            let target = name == "resource" || name == "audience";
            if parameters
                .insert(name.into_owned(), value.into_owned())
                .is_some()
            {
                return Err(if target {
                    OAuthError::bad("invalid_target", "name one target only")
                } else {
                    OAuthError::invalid_request("a parameter is repeated")
                });
            }
        }
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self {
            parameters,
            _share: BodyShare::default(),
        })
    }

    /// A parameter that has a value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// A parameter that the endpoint requires.
    pub(super) fn required(&self, name: &'static str) -> Result<&str, OAuthError> {
        self.get(name).ok_or(match name {
            "token" => OAuthError::invalid_request("token is missing"),
            "subject_token_type" => OAuthError::invalid_request("subject_token_type is missing"),
            "grant_type" => OAuthError::invalid_request("grant_type is missing"),
            _ => OAuthError::invalid_request("a parameter is missing"),
        })
    }

    /// A parameter as a whole number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, OAuthError> {
        let wrong = || OAuthError::invalid_request("a parameter is not a whole number");
        let read = |text| in_one_spelling(text).ok_or_else(wrong);
        self.get(name).map(read).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_one_token_and_nothing_twice() {
        for good in [
            "token=a.b.c",
            "token=a.b.c&token_type_hint=x&more=1",
            "hint=&token=a%2Eb.c",
        ] {
            let form = Form::parse(good.as_bytes()).unwrap();
            assert_eq!(form.required("token").unwrap(), "a.b.c", "{good}");
        }
        for bad in [
            "",
            "token=",
            "token",
            "token=a&token=a",
            "token=a&token=",
            "token=&token=a",
            "token=a&x=1&x=1",
        ] {
            let form = Form::parse(bad.as_bytes());
            let error = form
                .and_then(|form| form.required("token").map(drop))
                .unwrap_err();
            assert_eq!(
                (error.status, error.error),
                (StatusCode::BAD_REQUEST, "invalid_request"),
                "{bad}"
            );
        }
    }
}
