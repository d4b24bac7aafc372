//! Checks the head and the framing of a request before anything else (RFC 9110, 9112).
//!
//! A server behind a proxy must read a request exactly as the proxy did. So [`check`] refuses a
//! request if two readers could disagree on its host, on the framing or coding of its body, or on
//! its content type. [`hosts`] lists the hosts that a request names. [`Arrival`] tells whether the
//! body of a request is still awaited.
//!
//! Failures: a transfer coding other than `chunked` is a 501, a content coding a 415, all others
//! are a 400. `http::mod` has the layer, and its timeout uses `Arrival`. This module calls only
//! `problem`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// The layer that refuses an ambiguous request.
pub(super) async fn check(request: Request, next: Next) -> Response {
    match judge(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn judge(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    check_host(request)?;
    if let Some(coding) = only(headers, &header::TRANSFER_ENCODING)? {
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked {
            return Err(Problem::transfer_coded());
        }
    }
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    if !codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::coded());
    }
    only(headers, &header::CONTENT_TYPE)?;
    Ok(())
}

/// The only value of a header; `None` if the header is missing.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Problem::invalid(
            "",
            format!("the header {name} is given twice"),
        )),
    }
}

/// RFC 9112 §3.2: HTTP/1.1 needs exactly one `Host`. RFC 9113 §8.3.1: a `Host` with `:authority`
/// must equal it.
fn check_host(request: &Request) -> Result<(), Problem> {
    let host = only(request.headers(), &header::HOST)?;
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        let host = Authority::try_from(host.as_bytes()).ok();
        let host = host.filter(|host| !host.as_str().contains('@'));
        let host = host.ok_or_else(|| Problem::invalid("", "the Host header is not a host"))?;
        let target = request.uri().authority();
        let differs = target.is_some_and(|target| *target != host);
        if request.version() == Version::HTTP_2 && differs {
            return Err(Problem::invalid(
                "",
                "the Host header differs from :authority",
            ));
        }
    }
    if request.version() == Version::HTTP_11 && host.is_none() {
        return Err(Problem::invalid("", "the Host header is missing"));
    }
    Ok(())
}

/// Every host that a request names: in its target, which is `:authority` in HTTP/2, and in `Host`.
/// A `Host` that is not text counts as an empty name.
pub(crate) fn hosts<B>(request: &axum::http::Request<B>) -> impl Iterator<Item = &str> {
    let target = request.uri().authority().map(Authority::as_str);
    let given = request.headers().get_all(header::HOST).iter();
    let given = given.map(|host| host.to_str().unwrap_or_default());
    target.into_iter().chain(given)
}

/// Whether the server is waiting for the rest of a request's body.
#[derive(Clone, Default)]
pub(super) struct Arrival(Arc<AtomicBool>);

impl Arrival {
    /// Watches the body of a request.
    pub(super) fn of(request: Request) -> (Request, Self) {
        let arrival = Self::default();
        let watched = arrival.clone();
        let request = request.map(|inner| {
            Body::new(Watched {
                inner,
                arrival: watched,
            })
        });
        (request, arrival)
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that records whether the server is waiting for it.
struct Watched {
    inner: Body,
    arrival: Arrival,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        self.arrival.0.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(version: Version, uri: &str, headers: &[(&'static str, &str)]) -> Option<u16> {
        let mut request = Request::new(Body::empty());
        *request.version_mut() = version;
        *request.uri_mut() = uri.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        judge(&request)
            .err()
            .map(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_request_names_one_host() {
        let own = ("host", "broker.example:8443");
        let other = ("host", "elsewhere.example");
        for (version, uri, headers, refused) in [
            (Version::HTTP_11, "/x", &[own][..], None),
            (Version::HTTP_11, "/x", &[("host", "")][..], None),
            (Version::HTTP_11, "/x", &[("host", "[::1]:8443")][..], None),
            (Version::HTTP_11, "/x", &[][..], Some(400)),
            (Version::HTTP_11, "/x", &[own, own][..], Some(400)),
            (Version::HTTP_11, "/x", &[own, other][..], Some(400)),
            (Version::HTTP_11, "/x", &[("host", "a b")][..], Some(400)),
            (Version::HTTP_11, "/x", &[("host", "a/b")][..], Some(400)),
            (Version::HTTP_11, "/x", &[("host", "u@a")][..], Some(400)),
            // The target counts in HTTP/1.1 (RFC 9112 §3.2.2).
            (Version::HTTP_11, "http://a.example/x", &[other][..], None),
            (Version::HTTP_11, "http://a.example/x", &[][..], Some(400)),
            (Version::HTTP_10, "/x", &[][..], None),
            (Version::HTTP_10, "/x", &[own, other][..], Some(400)),
            (Version::HTTP_2, "https://a.example/x", &[][..], None),
            (
                Version::HTTP_2,
                "https://a.example/x",
                &[("host", "A.example")][..],
                None,
            ),
            (
                Version::HTTP_2,
                "https://a.example/x",
                &[other][..],
                Some(400),
            ),
        ] {
            assert_eq!(
                refusal(version, uri, headers),
                refused,
                "{version:?} {uri} {headers:?}"
            );
        }
    }

    #[test]
    fn a_request_names_a_host_by_its_target_and_by_its_header() {
        let request = Request::builder()
            .uri("http://rebound.example:7070/livez")
            .header("host", "127.0.0.1:7070")
            .body(Body::empty())
            .unwrap();
        let named: Vec<_> = hosts(&request).collect();
        assert_eq!(named, ["rebound.example:7070", "127.0.0.1:7070"]);
    }

    #[test]
    fn a_body_is_framed_and_coded_in_one_way() {
        for (name, values, refused) in [
            ("transfer-encoding", &["chunked"][..], None),
            ("transfer-encoding", &["Chunked"][..], None),
            ("transfer-encoding", &["gzip, chunked"][..], Some(501)),
            ("transfer-encoding", &["gzip"][..], Some(501)),
            ("transfer-encoding", &["identity"][..], Some(501)),
            ("transfer-encoding", &["chunked", "chunked"][..], Some(400)),
            ("content-encoding", &["identity"][..], None),
            ("content-encoding", &["gzip"][..], Some(415)),
            ("content-encoding", &["identity", "br"][..], Some(415)),
            ("content-encoding", &[""][..], Some(415)),
            ("content-type", &["application/json"][..], None),
            (
                "content-type",
                &["application/json", "application/json"][..],
                Some(400),
            ),
            (
                "content-type",
                &["application/json", "text/plain"][..],
                Some(400),
            ),
        ] {
            let mut headers = vec![("host", "broker.example")];
            headers.extend(values.iter().map(|value| (name, *value)));
            let told = refusal(Version::HTTP_11, "/x", &headers);
            assert_eq!(told, refused, "{name}: {values:?}");
        }
    }
}
