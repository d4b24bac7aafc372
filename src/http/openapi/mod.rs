//! The OpenAPI description: the handlers' own parts, and the parts that apply to all of them.
//!
//! A handler declares only its own answers. The layers and extractors imply the others: any request
//! may be limited or time out, an authenticated one may be answered with 401, a body has a size and
//! a media type, and a problem has one form. [`complete`] adds them, so that no handler can omit
//! them. `headers` has the headers, `shapes` the forms of values.
//!
//! Nothing fails while the broker runs: the description is made from code alone, and tests compare
//! it with `docs/openapi.json`. `http::openapi()` calls this module; `problem` has the types of
//! problems.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::schema::{Object, Schema};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Content, OpenApi, Ref, RefOr, Response};

use super::oauth_path::is_oauth;
use crate::wire::openapi::OpenApiDocument;
use crate::wire::problem::{SLUGS, urn};

mod headers;
mod shapes;

const PROBLEM: &str = "application/problem+json";
const PROBLEM_SCHEMA: &str = "#/components/schemas/ProblemBody";
const OAUTH_SCHEMA: &str = "#/components/schemas/OAuthErrorBody";

/// Paths that need no authentication.
const OPEN: &[&str] = &["/livez", "/readyz", "/openapi.json"];

/// Whether a path needs no authentication.
fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.contains("/.well-known/") || path.starts_with("/status/")
}

/// Paths that the configuration may make public.
const MAYBE_OPEN: &[&str] = &[
    "/metrics",
    "/ledger/{path}",
    "/v1/ledger/keys",
    "/v1/ledger/checkpoint",
    "/v1/ledger/consistency",
];

/// OAuth endpoints that accept `private_key_jwt` in the form, or no authentication.
const BY_FORM: &[&str] = &["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"];

/// Acts on a task for which its handle replaces an attestation.
const BY_HANDLE: &[&str] = &["/heartbeat", "/complete", "/abort", "/delegations"];

static SERVED: LazyLock<Bytes> = LazyLock::new(|| {
    serde_json::to_vec(&super::openapi())
        .unwrap_or_default()
        .into()
});

/// The OpenAPI description of this interface.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = OpenApiDocument)))]
pub(super) async fn openapi_json() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], SERVED.clone())
}

/// Adds the parts that apply to all operations.
pub(super) fn complete(document: &mut OpenApi) {
    // A version of the interface, not of the build: it changes with the wire format.
    "1".clone_into(&mut document.info.version);
    let components = document.components.get_or_insert_with(Components::new);
    for (name, scheme) in schemes() {
        components.add_security_scheme(name, scheme);
    }
    name_problem_types(components);
    shapes::complete(components);
    headers::complete(components);
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            describe(path, operation);
        }
    }
}

fn schemes() -> [(&'static str, SecurityScheme); 3] {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("The caller's attestation, or an admin's token"))
        .build();
    let authorization = |text: &str| {
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
            "Authorization",
            text,
        )))
    };
    [
        ("attestation", SecurityScheme::Http(bearer)),
        (
            "bound_attestation",
            authorization("`DPoP <JWT>`, with a proof in the `DPoP` header (RFC 9449)"),
        ),
        (
            "handle",
            authorization("`Handle tph_…`: the handle of the task"),
        ),
    ]
}

/// Lists the types that a problem may have.
fn name_problem_types(components: &mut Components) {
    let types: Vec<Value> = SLUGS.iter().map(|slug| json!(urn(slug))).collect();
    if let Some(RefOr::T(schema)) = components.schemas.get_mut("ProblemBody")
        && let Some(body) = object_with(schema, "type")
        && let Some(RefOr::T(Schema::Object(kind))) = body.properties.get_mut("type")
    {
        kind.enum_values = Some(types);
    }
}

/// The object with this property; it may be one part of an `allOf`.
fn object_with<'a>(schema: &'a mut Schema, property: &str) -> Option<&'a mut Object> {
    match schema {
        Schema::Object(object) => object.properties.contains_key(property).then_some(object),
        Schema::AllOf(parts) => parts.items.iter_mut().find_map(|part| match part {
            RefOr::T(schema) => object_with(schema, property),
            RefOr::Ref(_) => None,
        }),
        _ => None,
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete]
        .into_iter()
        .filter_map(Option::as_mut)
}

fn describe(path: &str, operation: &mut Operation) {
    // Handlers of different nouns share their verbs, but an operation's id must be unique.
    let noun = path
        .strip_prefix("/v1/")
        .and_then(|rest| rest.split('/').next());
    if let (Some(noun), Some(verb)) = (noun, &mut operation.operation_id) {
        *verb = format!("{noun}_{verb}");
    }
    // An authenticated request may fail authentication, and may carry a proof.
    let asks = !is_open(path);
    operation.security = Some(security(path));

    let parameters = operation.parameters.get_or_insert_with(Vec::new);
    for parameter in parameters.iter_mut() {
        if let RefOr::T(own) = parameter
            && let Some(schema) = &mut own.schema
        {
            shapes::refine_parameter(path, &own.name, schema);
        }
    }
    let has = |kind: &ParameterIn| {
        parameters
            .iter()
            .any(|parameter| matches!(parameter, RefOr::T(own) if own.parameter_in == *kind))
    };
    let named = has(&ParameterIn::Path);
    if asks {
        parameters.push(headers::proof());
    }
    let body = operation.request_body.is_some();
    let oauth = is_oauth(path);
    let responses = &mut operation.responses.responses;
    for (status, applies) in [
        // The head of any request may be refused.
        (400, true),
        (401, asks),
        // A revocation may block the caller, or policy may refuse it.
        (403, asks && path != "/oauth2/token"),
        (404, named),
        (408, body),
        (413, body),
        (415, body),
        (429, true),
        (500, true),
        (501, body),
        (503, true),
    ] {
        if applies {
            add(responses, status, oauth);
        }
    }
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            finish(status, response);
            headers::describe(path, status, response);
        }
    }
}

fn security(path: &str) -> Vec<SecurityRequirement> {
    let scheme = |name: &str| SecurityRequirement::new(name, Vec::<String>::new());
    if is_open(path) {
        // An empty list declares the operation public; an absent one declares nothing.
        return Vec::new();
    }
    let mut all = vec![scheme("attestation"), scheme("bound_attestation")];
    if path == "/oauth2/token" {
        all.clear();
    }
    if BY_FORM.contains(&path) {
        all.push(SecurityRequirement::default());
    }
    if path.starts_with("/v1/tasks/") && BY_HANDLE.iter().any(|act| path.ends_with(act)) {
        all.push(scheme("handle"));
    }
    if MAYBE_OPEN.contains(&path) {
        all.push(SecurityRequirement::default());
    }
    all
}

fn add(responses: &mut BTreeMap<String, RefOr<Response>>, status: u16, oauth: bool) {
    let response = responses
        .entry(status.to_string())
        .or_insert_with(|| RefOr::T(Response::new("")));
    let RefOr::T(response) = response else { return };
    let reference = |schema: &str| RefOr::T(Content::new(Some(RefOr::Ref(Ref::new(schema)))));
    let (media_type, schema) = if oauth {
        ("application/json", OAUTH_SCHEMA)
    } else {
        (PROBLEM, PROBLEM_SCHEMA)
    };
    response
        .content
        .insert(media_type.to_owned(), reference(schema));
}

/// Gives a problem its media type, bytes their schema, and a status its description.
fn finish(status: &str, response: &mut Response) {
    let is_problem = |content: &RefOr<Content>| {
        let RefOr::T(content) = content else {
            return false;
        };
        matches!(&content.schema, Some(RefOr::Ref(schema)) if schema.ref_location == PROBLEM_SCHEMA)
    };
    if response
        .content
        .get("application/json")
        .is_some_and(is_problem)
        && let Some(content) = response.content.shift_remove("application/json")
    {
        response.content.insert(PROBLEM.to_owned(), content);
    }
    if let Some(RefOr::T(content)) = response.content.get_mut("application/octet-stream") {
        content.schema = Some(shapes::bytes());
    }
    if response.description.is_empty() {
        let reason = status
            .parse()
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        let reason = reason.and_then(|code| code.canonical_reason());
        reason
            .unwrap_or_default()
            .clone_into(&mut response.description);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn document() -> Value {
        serde_json::to_value(super::super::openapi()).unwrap()
    }

    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference);
                }
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_has_its_schema() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.contains(PROBLEM_SCHEMA) && found.contains(OAUTH_SCHEMA));
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn an_operation_has_a_name_of_its_own() {
        let document = document();
        let mut names = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap().to_owned();
                assert!(names.insert(name), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_problem_names_its_types_and_members() {
        let document = document();
        let mut problem = document["components"]["schemas"]["ProblemBody"].to_string();
        problem.push_str(&document["components"]["schemas"]["ProblemMembers"].to_string());
        for slug in SLUGS {
            assert!(problem.contains(&format!("\"{}\"", urn(slug))), "{slug}");
        }
        for member in [
            "pointer",
            "code",
            "decision",
            "receipt",
            "allowed",
            "session_id",
        ] {
            assert!(problem.contains(&format!("\"{member}\"")), "{member}");
        }
    }

    #[test]
    fn a_problem_is_never_plain_json() {
        let document = document();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let plain = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_ne!(plain, PROBLEM_SCHEMA, "{path} {status}");
                    assert_ne!(response["description"], "", "{path} {status}");
                }
            }
        }
    }
}
