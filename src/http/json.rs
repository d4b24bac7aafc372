//! Bodies, read strictly: the media type, the size, every member known and there once, and a
//! pointer to what is wrong.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::problem::Problem;
use crate::crypto::digest::sha256;
use crate::crypto::strict_json;

/// A JSON body, with the digest of its bytes.
pub(super) struct Strict<T> {
    pub(super) value: T,
    pub(super) digest: [u8; 32],
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Strict<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if media_type(request.headers()) != Some("application/json") {
            return Err(Problem::media_type("application/json"));
        }
        let bytes = body(request, state).await?;
        let members =
            strict_json::object(&bytes).map_err(|error| Problem::invalid("", error.to_string()))?;
        let value = typed(Value::Object(members))?;
        Ok(Self {
            value,
            digest: sha256(&bytes),
        })
    }
}

/// The body's bytes, within the route's limit.
pub(super) async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection: BytesRejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::too_large()
            } else {
                Problem::invalid("", "the body could not be read")
            }
        })
}

/// The media type without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    text.split(';').next().map(str::trim)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = pointer(error.path());
        Problem::invalid(pointer, error.into_inner().to_string())
    })
}

/// A JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |mut pointer, segment| {
        pointer.push('/');
        match segment {
            Segment::Seq { index } => pointer.push_str(&index.to_string()),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Unknown => pointer.push('?'),
        }
        pointer
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

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

    #[test]
    fn a_mistake_is_pointed_at() {
        let bad = serde_json::json!({"inner": [{"count": 1}, {"count": "x"}]});
        let problem = typed::<Outer>(bad).unwrap_err();
        assert!(
            format!("{problem:?}").contains("/inner/1/count"),
            "{problem:?}"
        );
    }
}
