//! Details of the OpenAPI description that the handlers' types do not have.
//!
//! These are the forms of values that handlers take as text or as any object. [`complete`] adds
//! them to the schemas, [`refine_parameter`] to the parameters. The rule: lengths and numbers come
//! from [`crate::domain::limits`], so that the description and the checks cannot differ. Nothing
//! fails here: a schema that would become unusable stays as it was, which a test detects.
//! `openapi::complete` calls this module.

#[cfg(test)]
use serde_json::Map;
use serde_json::{Value, json};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{Components, RefOr};

use super::object_with;
use crate::domain::decision::Outcome;
use crate::domain::kind::{DetailType, MinterKind};
use crate::domain::limits::{
    DEFAULT_PAGE, MAX_ACTIONS, MAX_BLOCK_SECONDS, MAX_DECISIONS_PAGE, MAX_DELEGATION_SECONDS,
    MAX_DETAILS, MAX_GRANT_TEXT_BYTES, MAX_IDEMPOTENCY_KEY_BYTES, MAX_IDENTITY_BYTES,
    MAX_LOCATIONS, MAX_PAGE, MAX_PURPOSE_BYTES, MAX_REASON_BYTES, MAX_SESSIONS_PER_TASK,
    MIN_HEARTBEAT_SECONDS,
};
use crate::domain::session::{EndReason, SessionState};
use crate::domain::task::TaskState;

/// The form of an id.
const UUID: &str = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";

/// The form of a generation's digest.
const DIGEST: &str = "^sha256:[0-9a-f]{64}$";

/// The printable ASCII characters of identities.
const PRINTABLE: &str = "^[!-~]+$";

fn id() -> Value {
    json!({"format": "uuid", "pattern": UUID})
}

fn identity() -> Value {
    json!({"minLength": 1, "maxLength": MAX_IDENTITY_BYTES, "pattern": PRINTABLE})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A reference to a schema, or `null`. Generators make one type of it; an `enum` with `null` among
/// its values becomes several types in some of them.
fn reference_or_null(name: &str) -> Value {
    json!({"oneOf": [reference(name), {"type": "null"}]})
}

/// The schema of bytes; `utoipa` describes them as a list of numbers.
pub(super) fn bytes() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        .into()
}

/// The schema of a text that is one of these.
fn one_of(description: &str, texts: &[&str]) -> Value {
    json!({"type": "string", "description": description, "enum": texts})
}

/// The enumerations that the handlers' types describe as any text.
fn enumerations() -> [(&'static str, Value); 4] {
    let session_states = [
        SessionState::Minting,
        SessionState::Active,
        SessionState::Ending,
        SessionState::Ended,
    ];
    let task_states = [
        TaskState::Open,
        TaskState::Completed,
        TaskState::Aborted,
        TaskState::Expired,
    ];
    let outcomes = [
        Outcome::Permit,
        Outcome::Deny,
        Outcome::Indeterminate,
        Outcome::Pending,
    ];
    [
        (
            "SessionState",
            one_of(
                "The state of a session.",
                &session_states.map(SessionState::as_str),
            ),
        ),
        (
            "EndReason",
            one_of(
                "The reason for the end of a session.",
                &EndReason::ALL.map(EndReason::as_str),
            ),
        ),
        (
            "TaskState",
            one_of("The state of a task.", &task_states.map(TaskState::as_str)),
        ),
        (
            "Outcome",
            one_of("The outcome of a decision.", &outcomes.map(Outcome::as_str)),
        ),
    ]
}

/// Schemas that no Rust type provides.
#[expect(clippy::too_many_lines, reason = "a list, one schema after the other")]
fn schemas() -> [(&'static str, Value); 7] {
    let texts = |most: usize| {
        json!({
            "type": "array",
            "minItems": 1,
            "maxItems": most,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_GRANT_TEXT_BYTES},
        })
    };
    let exactly = |name: &str, value: Value| {
        json!({
            "type": "object",
            "required": [name],
            "properties": {name: value},
            "additionalProperties": false,
        })
    };
    let text = || json!({"type": "string"});
    let whole = || json!({"type": "integer", "minimum": 0});
    let one = |name: &str| json!({"type": "string", "enum": [name]});
    let detail = |asked: DetailType| {
        let mut properties = json!({
            "type": one(asked.as_str()),
            "actions": texts(MAX_ACTIONS),
            (asked.locations_member()): texts(MAX_LOCATIONS),
        });
        match asked {
            DetailType::Api => {}
            DetailType::Aws => {
                properties["region"] = json!({"type": "string", "minLength": 1});
            }
        }
        json!({
            "type": "object",
            "required": ["type", "actions"],
            "properties": properties,
            "additionalProperties": false,
        })
    };
    let credential = |made_by: MinterKind| match made_by {
        MinterKind::Jwt => json!({
            "type": "object",
            "required": ["type", "access_token", "token_type", "expires_in"],
            "properties": {
                "type": one(made_by.credential_type()),
                "access_token": text(),
                "token_type": {"type": "string", "enum": ["Bearer", "DPoP"]},
                "expires_in": whole(),
            },
        }),
        MinterKind::Aws => json!({
            "type": "object",
            "required": [
                "type", "access_key_id", "secret_access_key", "session_token", "expiration",
            ],
            "properties": {
                "type": one(made_by.credential_type()),
                "access_key_id": text(),
                "secret_access_key": text(),
                "session_token": text(),
                "expiration": {"type": "string", "format": "date-time"},
                "region": {"type": ["string", "null"]},
            },
        }),
    };
    [
        (
            "AuthorizationDetails",
            json!({
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_DETAILS,
                "items": reference("AuthorizationDetail"),
            }),
        ),
        (
            "AuthorizationDetail",
            json!({
                "description": "The rights that are requested on a resource (RFC 9396). An absent \
                                list stands for everything that the resource registers.",
                "oneOf": DetailType::ALL.map(detail),
            }),
        ),
        (
            "Selector",
            json!({
                "description": "The sessions and requests to cut off.",
                "oneOf": [
                    exactly("workload", with(text(), identity())),
                    exactly("task", with(text(), id())),
                    exactly("resource", text()),
                    exactly("attestor", text()),
                    exactly("generation", with(text(), json!({"pattern": DIGEST}))),
                    exactly("policy", text()),
                    exactly("signing_key", text()),
                    exactly("all", json!({"type": "boolean", "enum": [true]})),
                ],
            }),
        ),
        (
            "BlockSeconds",
            json!({
                "description": "Seconds for which nothing new is granted, 0 for no block, or \
                                `until_lifted`.",
                "oneOf": [
                    {"type": "integer", "minimum": 0, "maximum": MAX_BLOCK_SECONDS},
                    {"type": "string", "enum": ["until_lifted"]},
                ],
            }),
        ),
        (
            "Credential",
            json!({
                "description": "The secret; its members depend on its `type`.",
                "oneOf": MinterKind::ALL.map(credential),
            }),
        ),
        (
            "Revocability",
            json!({
                "type": "object",
                "description": "The effect of a revocation of the credential: how soon a new use \
                                is refused, whether sessions that it opened continue, and which \
                                party ends it at its expiry if the broker is gone.",
                "required": ["class", "open_sessions", "expires_by"],
                "properties": {
                    "class": {"type": "string", "enum": ["immediate", "bounded", "expiry_only"]},
                    "bound_seconds": whole(),
                    "open_sessions": {"type": "string", "enum": ["ended", "kept", "none"]},
                    "expires_by": {"type": "string", "enum": ["itself", "back_end", "broker"]},
                },
            }),
        ),
        (
            "Observed",
            json!({
                "type": "object",
                "description": "The outcome under the policies that only observe.",
                "required": ["policies", "outcome_if_enforced"],
                "properties": {
                    "policies": {"type": "array", "items": {
                        "type": "object",
                        "required": ["policy", "effect", "enforced_from"],
                        "properties": {
                            "policy": text(),
                            "effect": {"type": "string", "enum": ["permit", "forbid", "error"]},
                            "enforced_from": {"type": "string", "format": "date-time"},
                        },
                    }},
                    "outcome_if_enforced": reference("Outcome"),
                    "refusal": text(),
                    "ttl_seconds": whole(),
                },
            }),
        ),
    ]
}

/// Keywords of the members of handlers' types, beyond those of the types.
fn members() -> Vec<(&'static str, &'static str, Value)> {
    let between = |least: u64, most: u64| json!({"minimum": least, "maximum": most});
    let purpose = || json!({"maxLength": MAX_PURPOSE_BYTES});
    let heartbeat = || json!({"minimum": MIN_HEARTBEAT_SECONDS});
    let positive = || json!({"minimum": 1});
    let details = || reference("AuthorizationDetails");
    let observed = || reference_or_null("Observed");
    vec![
        ("RequestBody", "authorization_details", details()),
        ("RequestBody", "ttl_seconds", positive()),
        ("TaskBody", "id", id()),
        ("TaskBody", "purpose", purpose()),
        ("TaskBody", "deadline_seconds", positive()),
        ("TaskBody", "heartbeat_seconds", heartbeat()),
        ("NewTaskBody", "purpose", purpose()),
        ("NewTaskBody", "deadline_seconds", positive()),
        ("NewTaskBody", "heartbeat_seconds", heartbeat()),
        ("ParentBody", "id", id()),
        ("DelegateBody", "workload", identity()),
        (
            "DelegateBody",
            "max_credentials",
            between(1, u64::from(MAX_SESSIONS_PER_TASK)),
        ),
        (
            "DelegateBody",
            "expires_in_seconds",
            between(1, MAX_DELEGATION_SECONDS),
        ),
        ("AdminBody", "workload", identity()),
        (
            "RevokeBody",
            "reason",
            json!({"maxLength": MAX_REASON_BYTES}),
        ),
        (
            "RevocationAsk",
            "reason",
            json!({"minLength": 1, "maxLength": MAX_REASON_BYTES}),
        ),
        ("RevocationAsk", "selector", reference("Selector")),
        (
            "RevocationAsk",
            "block_seconds",
            reference_or_null("BlockSeconds"),
        ),
        (
            "AcceptTimeAsk",
            "reason",
            json!({"minLength": 1, "maxLength": MAX_REASON_BYTES}),
        ),
        ("TokenForm", "task_purpose", purpose()),
        ("TokenForm", "ttl_seconds", positive()),
        ("TokenForm", "task_deadline_seconds", positive()),
        ("TokenForm", "task_heartbeat_seconds", heartbeat()),
        ("TokenForm", "task", id()),
        ("TokenBody", "authorization_details", details()),
        ("TokenBody", "observed", observed()),
        ("OAuthErrorBody", "observed", observed()),
        ("IssuedBody", "credential", reference("Credential")),
        ("IssuedTaskBody", "state", reference("TaskState")),
        ("DecisionBody", "outcome", reference("Outcome")),
        ("DecisionBody", "observed", observed()),
        ("RefusedDecisionBody", "outcome", reference("Outcome")),
        ("RefusedDecisionBody", "observed", observed()),
        ("ActiveTokenBody", "authorization_details", details()),
        ("SessionBody", "authorization_details", details()),
        ("SessionBody", "revocability", reference("Revocability")),
        ("SessionBody", "state", reference("SessionState")),
        ("SessionBody", "end_reason", reference_or_null("EndReason")),
        ("EndedSessionBody", "state", reference("SessionState")),
        (
            "EndedSessionBody",
            "end_reason",
            reference_or_null("EndReason"),
        ),
        ("TaskStateBody", "state", reference("TaskState")),
    ]
}

/// Keywords of parameters, by path and name.
fn parameters() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("", "id", id()),
        ("", "digest", json!({"pattern": DIGEST})),
        ("", "kid", json!({"minLength": 1})),
        ("/v1/sessions", "state", reference("SessionState")),
        ("/v1/sessions", "task", id()),
        ("/v1/sessions", "limit", page(MAX_PAGE)),
        ("/v1/tasks", "state", reference("TaskState")),
        ("/v1/tasks", "limit", page(MAX_PAGE)),
        ("/v1/revocations", "limit", page(MAX_PAGE)),
        ("/v1/decisions", "limit", page(MAX_DECISIONS_PAGE)),
        ("/v1/decisions", "since", json!({"format": "date-time"})),
        (
            "/v1/credentials",
            "Idempotency-Key",
            json!({
                "minLength": 3,
                // Each character may be escaped, and the quotes count.
                "maxLength": 2 * MAX_IDEMPOTENCY_KEY_BYTES + 2,
                "pattern": r#"^"([ !#-\[\]-~]|\\["\\])+"$"#,
            }),
        ),
    ]
}

fn page(most: u32) -> Value {
    json!({"minimum": 1, "maximum": most, "default": DEFAULT_PAGE})
}

/// Adds keywords to a schema; they replace those of the same name.
fn with(mut schema: Value, more: Value) -> Value {
    // A reference or a choice replaces every other keyword but the description.
    let replaces = ["$ref", "oneOf"]
        .iter()
        .any(|name| more.get(name).is_some());
    if let (Some(own), Value::Object(more)) = (schema.as_object_mut(), more) {
        if replaces {
            own.retain(|name, _| name == "description");
        }
        own.extend(more);
    }
    schema
}

/// Adds keywords to a schema of the description. A result that cannot be parsed leaves the schema
/// unchanged, which a test detects.
fn refine(schema: &mut RefOr<Schema>, more: &Value) {
    let refined = serde_json::to_value(&*schema).map(|own| with(own, more.clone()));
    if let Ok(Ok(refined)) = refined.map(serde_json::from_value) {
        *schema = refined;
    }
}

/// Adds the schemas and the keywords of members.
pub(super) fn complete(components: &mut Components) {
    for (name, schema) in schemas().into_iter().chain(enumerations()) {
        if let Ok(schema) = serde_json::from_value(schema) {
            components.schemas.insert(name.to_owned(), schema);
        }
    }
    for (schema, member, more) in members() {
        let schema = components.schemas.get_mut(schema);
        if let Some(RefOr::T(schema)) = schema
            && let Some(object) = object_with(schema, member)
            && let Some(property) = object.properties.get_mut(member)
        {
            refine(property, &more);
        }
    }
}

/// Adds the keywords of a parameter.
pub(super) fn refine_parameter(path: &str, name: &str, schema: &mut RefOr<Schema>) {
    for (of, known, more) in parameters() {
        if known == name && (of.is_empty() || of == path) {
            refine(schema, &more);
        }
    }
}

/// The members of a JSON object, for tests.
#[cfg(test)]
fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_said_here_stands_in_the_description() {
        let document = serde_json::to_value(super::super::super::openapi()).unwrap();
        let known = object(&document["components"]["schemas"]);
        for (name, schema) in schemas().into_iter().chain(enumerations()) {
            assert_eq!(known[name], schema, "{name}");
        }
        for (schema, member, more) in members() {
            let parts = [&known[schema]].into_iter();
            let mut parts = parts.chain(known[schema]["allOf"].as_array().into_iter().flatten());
            let own = parts.find_map(|part| part["properties"].get(member));
            let own = own.unwrap_or_else(|| panic!("{schema} has no {member}"));
            for (keyword, value) in object(&more) {
                assert_eq!(&own[keyword], value, "{schema}.{member}: {keyword}");
            }
        }
        let paths = object(&document["paths"]);
        for (path, name, more) in parameters() {
            let of = paths
                .iter()
                .filter(|(known, _)| path.is_empty() || *known == path);
            let operations = of.flat_map(|(_, item)| object(item).values());
            let all = operations
                .flat_map(|operation| operation["parameters"].as_array().into_iter().flatten());
            let own: Vec<_> = all.filter(|own| own["name"] == name).collect();
            assert!(!own.is_empty(), "{path} has no {name}");
            for parameter in own {
                for keyword in object(&more).keys() {
                    assert!(
                        parameter["schema"].get(keyword).is_some(),
                        "{path} {name}: {keyword}"
                    );
                }
            }
        }
    }
}
