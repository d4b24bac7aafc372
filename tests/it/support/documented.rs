//! Compares every broker answer that a test receives with `docs/openapi.json`: its status, media
//! type and headers must be documented.

use std::sync::LazyLock;

use serde_json::Value;

use super::http::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
});

/// Headers that clients react to.
const HEADERS: [&str; 9] = [
    "accept-encoding",
    "dpop-nonce",
    "link",
    "location",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    "x-request-id",
];

/// Whether a path matches this template, and if so, how many of its parts match literally.
fn fits(template: &str, path: &str) -> Option<usize> {
    let mut named = 0;
    let mut parts = path.split('/');
    let mut wanted = template.split('/').peekable();
    while let Some(want) = wanted.next() {
        let part = parts.next()?;
        if want == "{path}" {
            return Some(named);
        }
        if want == part {
            named += 1;
        } else if !want.starts_with('{') || part.is_empty() {
            return None;
        }
        if wanted.peek().is_none() && parts.next().is_some() {
            return None;
        }
    }
    Some(named)
}

/// Fails if a broker's answer differs from its description. Ignores answers of other servers, and
/// answers to undocumented paths.
#[track_caller]
pub fn check(method: &str, path: &str, answer: &Answer) {
    // Only a broker's answers have this header.
    if !answer.headers.contains_key("x-request-id") {
        return;
    }
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let known = paths
        .iter()
        .filter_map(|(template, item)| Some((fits(template, path)?, item)));
    let Some((_, item)) = known.max_by_key(|(named, _)| *named) else {
        return;
    };
    let operation = &item[method.to_lowercase()];
    let text = answer.text();
    // In development mode the broker refuses every request of a web page, which no operation
    // documents.
    if operation.is_null() || text.contains("development mode serves programs") {
        return;
    }
    let status = answer.status.to_string();
    let told = &operation["responses"][&status];
    assert!(
        told.is_object(),
        "{method} {path} is not described to answer {status}: {text}"
    );
    let media_type = answer.header("content-type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default();
    if !answer.body.is_empty() && method != "HEAD" {
        assert!(
            told["content"].get(media_type).is_some(),
            "{method} {path} is not described to answer {status} with {media_type}: {text}"
        );
    }
    let described = told["headers"].as_object();
    let described = |name: &str| {
        described.is_some_and(|all| all.keys().any(|known| known.eq_ignore_ascii_case(name)))
    };
    for name in HEADERS {
        assert!(
            !answer.headers.contains_key(name) || described(name),
            "{method} {path} is not described to answer {status} with {name}"
        );
    }
}

#[test]
fn a_path_fits_the_template_that_names_most_of_it() {
    for (template, path, named) in [
        ("/v1/keys/{kid}/revoke", "/v1/keys/k/revoke", Some(4)),
        ("/v1/keys/{kid}/revoke", "/v1/keys/k", None),
        ("/v1/keys", "/v1/keys/k", None),
        (
            "/v1/generations/{digest}",
            "/v1/generations/active",
            Some(3),
        ),
        ("/ledger/{path}", "/ledger/tile/0/000", Some(2)),
        ("/v1/tasks/{id}", "/v1/tasks/", None),
    ] {
        assert_eq!(fits(template, path), named, "{template} {path}");
    }
}
