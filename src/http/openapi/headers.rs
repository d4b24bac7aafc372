//! The headers of answers, and the DPoP proof that any request may carry, in the OpenAPI
//! description.
//!
//! [`complete`] adds the definitions to the components, [`describe`] adds references to one answer,
//! and [`proof`] is a reference to the parameter. The rule: a header that a layer or several
//! handlers write is described here once. Nothing fails here. `openapi::complete` calls this
//! module, which calls only `utoipa`.

use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Components, Object, Ref, RefOr, Required, Response};

use crate::http::oauth_path::is_oauth;

/// The name of the parameter `DPoP` in the components.
const PROOF: &str = "DPoP";

/// The headers of answers: names and descriptions.
const HEADERS: [(&str, &str); 12] = [
    (
        "x-request-id",
        "The id by which the answer's log lines are found.",
    ),
    (
        "traceparent",
        "The trace that the answer belongs to (W3C Trace Context).",
    ),
    (
        "Cache-Control",
        "`no-store`, or how long the answer may be cached.",
    ),
    (
        "WWW-Authenticate",
        "How to authenticate the next request (RFC 6750 §3, RFC 9449 §7.1).",
    ),
    (
        "DPoP-Nonce",
        "The nonce for the next proof, if this broker requires one (RFC 9449 §8.2).",
    ),
    ("Retry-After", "The seconds to wait before another try."),
    (
        "RateLimit",
        "The limit that was exceeded, and when it resets.",
    ),
    ("RateLimit-Policy", "The limit's quota and window."),
    ("Location", "The URL of the created resource."),
    ("Link", "`rel=\"next\"`: the next page (RFC 8288)."),
    (
        "Accept-Encoding",
        "The accepted content codings of a body: `identity`.",
    ),
    ("Pragma", "`no-cache` (RFC 6749 §5.1)."),
];

/// The listings that have pages.
const PAGED: [&str; 2] = ["/v1/sessions", "/v1/tasks"];

/// The operations whose answer has a `Location`.
const PLACED: [&str; 2] = ["/v1/credentials", "/v1/tasks"];

/// Adds the headers and the parameter that operations refer to.
pub(super) fn complete(components: &mut Components) {
    for (name, text) in HEADERS {
        let mut header = Header::new(Object::with_type(Type::String));
        header.description = Some(text.to_owned());
        components.headers.insert(name.to_owned(), RefOr::T(header));
    }
    let proof = ParameterBuilder::new()
        .name(PROOF)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "A proof that the caller holds a key (RFC 9449); the credential is bound to that key. \
             Required with `Authorization: DPoP`.",
        ))
        .schema(Some(Object::with_type(Type::String)))
        .build();
    components
        .parameters
        .insert(PROOF.to_owned(), RefOr::T(proof));
}

/// A reference to the `DPoP` parameter.
pub(super) fn proof() -> RefOr<Parameter> {
    RefOr::Ref(Ref::new(format!("#/components/parameters/{PROOF}")))
}

/// Adds the headers of an answer.
pub(super) fn describe(path: &str, status: &str, response: &mut Response) {
    let oauth = is_oauth(path);
    let again = matches!(status, "202" | "409" | "429" | "503");
    for (name, applies) in [
        ("x-request-id", true),
        ("traceparent", true),
        ("Cache-Control", true),
        ("WWW-Authenticate", status == "401"),
        // A request with a proof gets the nonce for the next one.
        ("DPoP-Nonce", true),
        ("Retry-After", again),
        ("RateLimit", status == "429"),
        ("RateLimit-Policy", status == "429"),
        ("Location", status == "201" && PLACED.contains(&path)),
        ("Link", status == "200" && PAGED.contains(&path)),
        ("Accept-Encoding", status == "415"),
        ("Pragma", oauth && status != "200"),
    ] {
        if applies {
            let header = Ref::new(format!("#/components/headers/{name}"));
            response.headers.insert(name.to_owned(), RefOr::Ref(header));
        }
    }
}
