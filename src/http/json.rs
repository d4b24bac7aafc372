//! Bodies, read strictly: the media type, the size, no unknown and no repeated member, and a
//! pointer to the mistake.
//!
//! [`Strict`] is the extractor; it also has the digest of the bytes, by which `Idempotency-Key`
//! detects a different request. The rule: a body is read in full or refused; nothing in it is
//! ignored.
//!
//! Failures: another media type is a 415, a larger body a 413, and any mistake in the JSON a 400
//! with a pointer to the member. The handlers take the extractor. `bodies` reads the bytes, and
//! `crypto::strict_json` parses them.

use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::bodies::{Bodies, BodyShare};
use super::problem::Problem;
use crate::crypto::digest::sha256;
use crate::crypto::strict_json;

/// The largest number of characters that the description of a mistake may quote of a request.
const MAX_DETAIL_CHARS: usize = 200;

/// A JSON body, with the digest of its bytes.
pub(super) struct Strict<T> {
    pub(super) value: T,
    pub(super) digest: [u8; 32],
    /// Keep it for as long as the value.
    pub(super) share: BodyShare,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Strict<T>
where
    Bodies: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_media_type(request.headers(), "application/json") {
            return Err(Problem::media_type("application/json"));
        }
        let body = Bodies::from_ref(state).read(request).await?;
        let value = strict_json::read(&body.bytes)
            .map_err(|(path, error)| Problem::invalid(pointer(&path), brief(&error)))?;
        Ok(Self {
            value,
            digest: sha256(&body.bytes),
            share: body.share,
        })
    }
}

/// The media type without its parameters.
fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    text.split(';').next().map(str::trim)
}

/// Whether the body has this media type, with any parameters.
pub(super) fn is_media_type(headers: &HeaderMap, wanted: &str) -> bool {
    media_type(headers).is_some_and(|given| given.eq_ignore_ascii_case(wanted))
}

/// An error's text, shortened: it may quote the whole of a long value.
fn brief(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.char_indices().nth(MAX_DETAIL_CHARS) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// A JSON pointer (RFC 6901). It ends before a segment that is not known.
fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(member(key)),
            Segment::Unknown => None,
        })
        .collect()
}

/// A member's part of a JSON pointer.
pub(super) fn member(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use serde::Deserialize;

    use crate::domain::limits::MAX_BODY_BYTES;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only read")]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only read")]
        count: u64,
    }

    async fn read(media_type: &str, body: impl Into<Body>) -> Result<[u8; 32], Problem> {
        let mut request = Request::new(body.into());
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        let read = Strict::<Outer>::from_request(request, &Bodies::default()).await;
        read.map(|strict| strict.digest)
    }

    #[tokio::test]
    async fn a_mistake_is_pointed_at() {
        for (body, pointer) in [
            (r#"{"inner":[{"count":1},{"count":"x"}]}"#, "/inner/1/count"),
            (r#"{"inner":[{"count":1,"more":1}]}"#, "/inner/0/more"),
            (r#"{"inner":[],"inner":[]}"#, "/inner"),
            (r#"{"inner":[],"a/b~c":1}"#, "/a~1b~0c"),
            (r#"{"inner":["\u0000"]}"#, "/inner/0"),
            (r#"{"inner":[{}]}"#, "/inner/0"),
            (r"{}", ""),
            (r"[]", ""),
            (r#"{"inner":[[1]]}"#, "/inner/0"),
            (r"{", ""),
            ("", ""),
        ] {
            let problem = read("application/json", body).await.unwrap_err();
            assert_eq!(problem.slug(), "invalid-request", "{body}");
            assert_eq!(problem.member("pointer"), pointer, "{body}");
        }
    }

    #[tokio::test]
    async fn only_json_is_read() {
        let good = r#"{"inner":[]}"#;
        for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert!(read(media_type, good).await.is_ok(), "{media_type}");
        }
        for media_type in [
            "text/plain",
            "application/jsonp",
            "application/problem+json",
            "",
        ] {
            let problem = read(media_type, good).await.unwrap_err();
            assert_eq!(problem.slug(), "unsupported-media-type", "{media_type}");
        }
    }

    #[tokio::test]
    async fn the_digest_is_of_the_bytes_as_they_came() {
        let digest = read("application/json", r#"{"inner":[]}"#).await.unwrap();
        assert_eq!(digest, sha256(br#"{"inner":[]}"#));
        let spaced = read("application/json", r#"{"inner": []}"#).await.unwrap();
        assert_ne!(digest, spaced);
    }

    #[tokio::test]
    async fn a_long_value_is_not_sent_back() {
        let body = format!("{{\"inner\":\"{}\"}}", "é".repeat(MAX_BODY_BYTES / 4));
        let problem = read("application/json", body).await.unwrap_err();
        let detail = problem.detail().chars().count();
        assert_eq!(detail, MAX_DETAIL_CHARS + 1);
    }
}
