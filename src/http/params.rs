//! Paths and queries, read as strictly as bodies.
//!
//! [`Named`] is a name in a path, [`QueryParams`] a query, and [`Unrepeatable`] refuses
//! `Idempotency-Key` where repeats are not recognized. `in_one_spelling` parses a value that has
//! one canonical text. The rule: no parameter is unknown or repeated, and none contains U+0000.
//!
//! Failures: a path that is not a name is a 404, because nothing can have that name; any other
//! mistake is a 400 with a pointer to the parameter. `None` from `in_one_spelling` means that the
//! text is not the canonical one. The handlers and `oauth::form` call this module.

use std::collections::BTreeSet;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::json;
use super::problem::Problem;

/// The one variable segment of a path. A segment that cannot be a name is not found.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) if !text.contains('\0') => Ok(Self(text)),
            _ => Err(Problem::not_found("resource")),
        }
    }
}

/// Refuses a request with an `Idempotency-Key` where repetitions are not recognised.
pub(super) struct Unrepeatable;

impl<S: Send + Sync> FromRequestParts<S> for Unrepeatable {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if parts.headers.contains_key("idempotency-key") {
            return Err(Problem::invalid("", UNREPEATABLE));
        }
        Ok(Self)
    }
}

/// Why an `Idempotency-Key` is refused.
pub(super) const UNREPEATABLE: &str = "Idempotency-Key: not taken here, so leave it out: only \
                                       POST /v1/credentials recognises a repeated request, and it \
                                       opens the task too";

/// A query, read strictly.
pub(super) struct QueryParams<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text = parts.uri.query().unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            if name.contains('\0') {
                return Err(Problem::invalid("", "U+0000 in a name"));
            }
            if value.contains('\0') {
                return Err(Problem::invalid(json::member(&name), "U+0000 in a text"));
            }
            if let Some(twice) = seen.replace(name) {
                return Err(Problem::invalid(json::member(&twice), "given twice"));
            }
        }
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Self(query))
            .map_err(|rejection| {
                let text = rejection.body_text();
                // If the mistake is in one parameter, the text begins with its name.
                let told = text
                    .rsplit_once("query string: ")
                    .map_or(&*text, |(_, rest)| rest);
                let name = told.split_once(": ").map(|(name, _)| name);
                let name = name.filter(|name| seen.contains(*name));
                Problem::invalid(name.map(json::member).unwrap_or_default(), told)
            })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use serde::Deserialize;

    use super::*;
    use crate::wire::query::maybe_number;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Page {
        #[serde(default, deserialize_with = "maybe_number")]
        limit: Option<u32>,
        owner: Option<String>,
    }

    async fn read(query: &str) -> Result<Page, Problem> {
        let request = Request::builder()
            .uri(format!("/x?{query}"))
            .body(Body::empty());
        let (mut parts, _) = request.unwrap().into_parts();
        let asked = QueryParams::from_request_parts(&mut parts, &()).await;
        asked.map(|QueryParams(page)| page)
    }

    #[tokio::test]
    async fn a_query_is_read_strictly() {
        let page = read("limit=7&owner=dev%3Aa").await.unwrap();
        assert_eq!(
            (page.limit, page.owner.as_deref()),
            (Some(7), Some("dev:a"))
        );
        assert!(read("").await.is_ok());
        for (query, pointer) in [
            ("limit=x", "/limit"),
            ("limit=-1", "/limit"),
            ("limit=%2B7", "/limit"),
            ("limit=07", "/limit"),
            ("limit=00", "/limit"),
            ("limit=+7", "/limit"),
            ("limit=", "/limit"),
            ("limit=4294967296", "/limit"),
            ("limit=1&limit=1", "/limit"),
            ("l%69mit=1&limit=1", "/limit"),
            ("owner=%00", "/owner"),
            ("%00=1", ""),
            ("colour=red", "/colour"),
            ("a%2Fb=1", "/a~1b"),
        ] {
            let problem = read(query).await.unwrap_err();
            assert_eq!(problem.slug(), "invalid-request", "{query}");
            assert_eq!(problem.member("pointer"), pointer, "{query}");
        }
    }
}
