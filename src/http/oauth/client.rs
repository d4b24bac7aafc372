//! Client authentication by a signed assertion in the form (RFC 7523 §2.2, `private_key_jwt`).

use secrecy::SecretString;

use super::error::{ClientAuthentication, OAuthError};
use super::form::Form;
use crate::attest::{Evidence, TokenScheme};
use crate::crypto::jwt::UnverifiedJwt;
use crate::http::evidence::Presented;
use crate::wire::oauth::JWT_BEARER;

/// The assertion of a form, if it has one.
pub(super) fn assertion(form: &Form) -> Result<Option<SecretString>, OAuthError> {
    let kind = form.get("client_assertion_type");
    let Some(assertion) = form.get("client_assertion") else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(OAuthError::invalid_request("client_assertion is missing")),
        };
    };
    if kind != Some(JWT_BEARER) {
        return Err(OAuthError::invalid_client(
            "client_assertion_type has to be the URN of jwt-bearer",
        ));
    }
    if let Some(named) = form.get("client_id") {
        let jwt = UnverifiedJwt::parse(assertion).ok();
        if jwt.as_ref().and_then(UnverifiedJwt::unverified_subject) != Some(named) {
            return Err(OAuthError::invalid_client(
                "client_id is not the subject of the assertion",
            ));
        }
    }
    Ok(Some(SecretString::from(assertion)))
}

/// The credentials of a request to a protected endpoint: a token in `Authorization`, or an
/// assertion in the form.
pub(super) fn authentication(
    presented: Presented,
    form: &Form,
) -> Result<(Evidence, ClientAuthentication), OAuthError> {
    let Some(assertion) = assertion(form)? else {
        return Ok((presented.evidence, ClientAuthentication::Header));
    };
    if presented.is_by_header() {
        return Err(OAuthError::invalid_request(
            "authenticate in one way: in Authorization, or in the form",
        ));
    }
    let evidence = Evidence {
        bearer: Some(assertion),
        scheme: TokenScheme::Parameter,
        ..presented.evidence
    };
    Ok((evidence, ClientAuthentication::Assertion))
}
