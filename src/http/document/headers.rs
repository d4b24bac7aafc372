//! The headers of answers, and the proof that any request may carry.

use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Components, Object, Ref, RefOr, Required, Response};

/// The parameter `DPoP`, as components name it.
const PROOF: &str = "DPoP";

/// The headers of answers: their names, and what they say.
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
        "`no-store`, or how long the answer may be kept.",
    ),
    (
        "WWW-Authenticate",
        "How to come again (RFC 6750 §3, RFC 9449 §7.1).",
    ),
    (
        "DPoP-Nonce",
        "The nonce for the next proof, where this broker demands one (RFC 9449 §8.2).",
    ),
    ("Retry-After", "After how many seconds to come again."),
    (
        "RateLimit",
        "The limit that was exceeded, and when it opens again.",
    ),
    ("RateLimit-Policy", "The limit's quota and window."),
    ("Location", "Where what was made is shown."),
    ("Link", "`rel=\"next\"`: the next page (RFC 8288)."),
    (
        "Accept-Encoding",
        "The codings of a body that are undone: `identity`.",
    ),
    ("Pragma", "`no-cache` (RFC 6749 §5.1)."),
];

/// Listings that are paged.
const PAGED: [&str; 2] = ["/v1/sessions", "/v1/tasks"];

/// What answers 201 with the place of what it made.
const PLACED: [&str; 2] = ["/v1/credentials", "/v1/tasks"];

/// Adds what operations refer to.
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
            "A proof that the caller holds a key (RFC 9449): what is granted is bound to it. With \
             `Authorization: DPoP` it is demanded.",
        ))
        .schema(Some(Object::with_type(Type::String)))
        .build();
    components
        .parameters
        .insert(PROOF.to_owned(), RefOr::T(proof));
}

/// The parameter by which a request proves a key.
pub(super) fn proof() -> RefOr<Parameter> {
    RefOr::Ref(Ref::new(format!("#/components/parameters/{PROOF}")))
}

/// Names the headers of an answer.
pub(super) fn describe(path: &str, status: &str, response: &mut Response) {
    let oauth = super::super::oauth::is_served_at(path);
    let again = matches!(status, "202" | "409" | "429" | "503");
    for (name, applies) in [
        ("x-request-id", true),
        ("traceparent", true),
        ("Cache-Control", true),
        ("WWW-Authenticate", status == "401"),
        // Whoever sends a proof gets the nonce for the next.
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
