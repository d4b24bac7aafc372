//! Refuses requests that a web page in the user's browser could send: a foreign `Host` (a name that
//! was made to resolve to this machine), any `Origin`, and a body that is not JSON, which a form
//! could send.
//!
//! [`refusal`] returns the status and the reason of a refusal, or `None` for a good request.
//! `super::issuer` asks it for each request.

use std::net::SocketAddr;

use axum::http::header::{CONTENT_TYPE, ORIGIN};
use axum::http::{Method, Request, StatusCode};

use crate::http::hosts;

/// Why the request is refused; `None` if it is not.
pub(super) fn refusal<B>(
    own: SocketAddr,
    request: &Request<B>,
) -> Option<(StatusCode, &'static str)> {
    let (method, headers) = (request.method(), request.headers());
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let names = [own.to_string(), format!("localhost:{}", own.port())];
    let mut hosts = hosts(request).peekable();
    let has_host = hosts.peek().is_some();
    if !has_host || !hosts.all(|host| names.iter().any(|name| name == host)) {
        return Some((
            StatusCode::FORBIDDEN,
            "the Host header names another server",
        ));
    }
    if headers.contains_key(ORIGIN) {
        return Some((StatusCode::FORBIDDEN, "requests of web pages are refused"));
    }
    let json = text(CONTENT_TYPE).is_some_and(|media_type| {
        let essence = media_type.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("application/json")
    });
    if method == Method::POST && !json {
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        method: &Method,
        target: &str,
        pairs: &[(&'static str, &'static str)],
    ) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in pairs {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_target_that_names_another_host_gets_nothing() {
        let own = SocketAddr::from(([127, 0, 0, 1], 7071));
        let host = [("host", "127.0.0.1:7071")];
        for (target, pairs, refused) in [
            ("http://127.0.0.1:7071/token", &host[..], false),
            ("http://127.0.0.1:7071/token", &[][..], false),
            ("http://evil.example:7071/token", &host[..], true),
            ("/token", &[host[0], ("host", "evil.example")][..], true),
        ] {
            let told = refusal(own, &request(&Method::GET, target, pairs));
            assert_eq!(told.is_some(), refused, "{target} {pairs:?}");
        }
    }

    #[test]
    fn a_web_page_gets_nothing() {
        let own = SocketAddr::from(([127, 0, 0, 1], 7071));
        let json = ("content-type", "application/json; charset=utf-8");
        let ask = |method, pairs: &[_]| {
            let request = request(method, "/token", pairs);
            refusal(own, &request).map(|r| r.0.as_u16())
        };
        assert_eq!(ask(&Method::GET, &[("host", "127.0.0.1:7071")]), None);
        assert_eq!(
            ask(&Method::POST, &[("host", "localhost:7071"), json]),
            None
        );
        for (wanted, method, pairs) in [
            (403, &Method::GET, vec![]),
            (403, &Method::GET, vec![("host", "evil.example:7071")]),
            (403, &Method::GET, vec![("host", "127.0.0.1:7072")]),
            (403, &Method::POST, vec![("host", "evil.example"), json]),
            (
                403,
                &Method::POST,
                vec![("host", "127.0.0.1:7071"), ("origin", "null"), json],
            ),
            (415, &Method::POST, vec![("host", "127.0.0.1:7071")]),
            (
                415,
                &Method::POST,
                vec![("host", "127.0.0.1:7071"), ("content-type", "text/plain")],
            ),
        ] {
            assert_eq!(ask(method, &pairs), Some(wanted), "{pairs:?}");
        }
    }
}
