//! `WWW-Authenticate`: how a caller must authenticate after a 401 (RFC 9110 §11.6.1).
//!
//! A refusal carries a [`Fault`], the fault in the evidence. The layer [`write()`] reads the
//! [`Scheme`] of the evidence in the request, and writes the challenge of that scheme: RFC 6750 §3
//! for bearer tokens, RFC 9449 §7.1 for proofs. The rule: only a 401 with a fault gets a challenge,
//! and without evidence the challenge names no error.
//!
//! Nothing fails here: any other answer is left unchanged. `problem` and `oauth::error` add the
//! fault; `http::mod` has the layer. `attest` has the errors and the algorithms of proofs.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::oauth_path::is_oauth;
use crate::attest::{AttestError, dpop};

/// The fault in the evidence of a request that is answered with 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The token is invalid or missing.
    Token,
    /// The token is bound to a key that the caller did not prove.
    Unproven,
    /// The DPoP proof is invalid.
    Proof,
    /// The DPoP proof has no nonce of this broker.
    Nonce,
}

impl Fault {
    /// The fault that this error means.
    pub(super) fn of(error: &AttestError) -> Self {
        match error {
            AttestError::BadProof(_) => Self::Proof,
            AttestError::NonceWanted => Self::Nonce,
            AttestError::Confirmation(_) => Self::Unproven,
            _ => Self::Token,
        }
    }
}

/// The scheme in which a request presents a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// It has no `Authorization`, or one of another scheme.
    None,
    Bearer,
    Dpop,
    Basic,
}

impl Scheme {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok());
        let scheme = given.and_then(|value| value.split(' ').next());
        let is = |name: &str| scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(name));
        if is("bearer") {
            Self::Bearer
        } else if is("dpop") {
            Self::Dpop
        } else if is("basic") {
            Self::Basic
        } else {
            Self::None
        }
    }
}

/// The algorithms of proofs, as a challenge lists them.
fn algorithms() -> String {
    let names: Vec<_> = dpop::ALGORITHMS.iter().map(|own| own.as_str()).collect();
    names.join(" ")
}

/// The value of `WWW-Authenticate`.
fn challenge(fault: Fault, scheme: Scheme, oauth: bool) -> String {
    let dpop = |code: &str| format!("DPoP error=\"{code}\", algs=\"{}\"", algorithms());
    match (fault, scheme) {
        (Fault::Proof, _) => dpop("invalid_dpop_proof"),
        (Fault::Nonce, _) => dpop("use_dpop_nonce"),
        (Fault::Unproven, _) | (Fault::Token, Scheme::Dpop) => dpop("invalid_token"),
        (Fault::Token, Scheme::Bearer) => "Bearer error=\"invalid_token\"".to_owned(),
        // RFC 6749 §5.2: the scheme that the client has tried.
        (Fault::Token, Scheme::Basic) if oauth => "Basic realm=\"taskpass\"".to_owned(),
        // Without evidence there is no error to name.
        (Fault::Token, Scheme::Basic | Scheme::None) => {
            format!("Bearer, DPoP algs=\"{}\"", algorithms())
        }
    }
}

/// Writes the challenge of a refusal that has a fault.
pub(super) fn complete(response: &mut Response, scheme: Scheme, oauth: bool) {
    if response.status() != StatusCode::UNAUTHORIZED {
        return;
    }
    let Some(fault) = response.extensions().get::<Fault>().copied() else {
        return;
    };
    if let Ok(value) = HeaderValue::from_str(&challenge(fault, scheme, oauth)) {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
}

/// The layer that adds the challenge to a 401.
pub(super) async fn write(request: Request, next: Next) -> Response {
    let scheme = Scheme::of(request.headers());
    let oauth = is_oauth(request.uri().path());
    let mut response = next.run(request).await;
    complete(&mut response, scheme, oauth);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_names_the_scheme_that_was_tried_and_what_was_wrong() {
        let algs = "algs=\"ES256 ES384 EdDSA RS256 RS384 RS512 PS256 PS384 PS512\"";
        for (fault, scheme, wanted) in [
            (Fault::Token, Scheme::None, format!("Bearer, DPoP {algs}")),
            (
                Fault::Token,
                Scheme::Bearer,
                "Bearer error=\"invalid_token\"".to_owned(),
            ),
            (
                Fault::Token,
                Scheme::Dpop,
                format!("DPoP error=\"invalid_token\", {algs}"),
            ),
            (
                Fault::Unproven,
                Scheme::Bearer,
                format!("DPoP error=\"invalid_token\", {algs}"),
            ),
            (
                Fault::Proof,
                Scheme::Bearer,
                format!("DPoP error=\"invalid_dpop_proof\", {algs}"),
            ),
            (
                Fault::Nonce,
                Scheme::None,
                format!("DPoP error=\"use_dpop_nonce\", {algs}"),
            ),
        ] {
            assert_eq!(challenge(fault, scheme, false), wanted, "{fault:?}");
        }
        let basic = |oauth| challenge(Fault::Token, Scheme::Basic, oauth);
        assert_eq!(basic(true), "Basic realm=\"taskpass\"");
        assert_eq!(basic(false), format!("Bearer, DPoP {algs}"));
    }

    #[test]
    fn a_scheme_is_read_without_regard_to_case() {
        for (value, scheme) in [
            ("bearer x", Scheme::Bearer),
            ("DPOP x", Scheme::Dpop),
            ("basic", Scheme::Basic),
            ("Handle tph_x", Scheme::None),
            ("", Scheme::None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(Scheme::of(&headers), scheme, "{value}");
        }
        assert_eq!(Scheme::of(&HeaderMap::new()), Scheme::None);
    }
}
