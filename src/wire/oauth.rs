//! The OAuth endpoints: forms, tokens, introspection, errors, metadata, keys.
//!
//! `http::oauth::form` parses the forms and refuses a repeated parameter; its errors have the form
//! [`OAuthErrorBody`], which OAuth defines.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema;

use super::receipt::ReceiptBody;
use super::secret::SecretText;
use super::words::{ACCESS_TOKEN, JWT};
use crate::domain::cutoff::True;
use crate::domain::decision::Observed;
use crate::domain::grant::Grant;
use crate::domain::workload::{Identity, KeyBinding};
use crate::ids::{DecisionId, SessionId, TaskId};

/// The grant type of token exchange (RFC 8693).
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The grant type of a client that authenticates with its own key (RFC 6749 §4.4).
pub const CLIENT_CREDENTIALS: &str = "client_credentials";

/// The grant types that the token endpoint accepts.
pub const GRANT_TYPES: [&str; 2] = [TOKEN_EXCHANGE, CLIENT_CREDENTIALS];

/// The token type of an ID token (RFC 8693 §3).
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

/// The token types that a subject token may have.
pub const SUBJECT_TOKEN_TYPES: [&str; 2] = [JWT, ID_TOKEN];

/// The token types that a token exchange may request.
pub const REQUESTED_TOKEN_TYPES: [&str; 2] = [ACCESS_TOKEN, JWT];

/// The type of a client assertion (RFC 7523 §2.2).
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The media type of a signed introspection (RFC 9701).
pub const SIGNED_INTROSPECTION: &str = "application/token-introspection+jwt";

/// The form of a token request. The server reads it by hand, to refuse repeated parameters.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(examples(
    json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJyZXBvLTEifQ.c2lnbmF0dXJl",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "audience": "orders-api",
        "scope": "orders:read",
        "ttl_seconds": 300,
        "task_type": "nightly-report",
        "task_purpose": "monthly numbers for finance"
    }),
    json!({
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": "eyJhbGciOiJFZERTQSIsInR5cCI6ImNsaWVudC1hdXRoZW50aWNhdGlvbitqd3QifQ.eyJzdWIiOiJjaTpyZXBvLTEifQ.c2lnbmF0dXJl",
        "resource": "https://orders.example",
        "authorization_details": "[{\"type\":\"api\",\"actions\":[\"orders:read\"]}]",
        "task": "01890a5d-ac96-774b-bcce-b302099a8058",
        "task_handle": "tph_ZXhhbXBsZS1oYW5kbGUtYW5kLW5vdC1hLXNlY3JldC0"
    })
))]
pub struct TokenForm {
    /// Token exchange (RFC 8693) or `client_credentials`.
    pub grant_type: String,
    /// For token exchange: the workload's attestation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub subject_token: Option<SecretText>,
    /// For token exchange: the URN of `jwt` or `id_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_token_type: Option<String>,
    /// For token exchange: the URN of `access_token` or `jwt`, or nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_token_type: Option<String>,
    /// For client credentials: the URN of `jwt-bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_assertion_type: Option<String>,
    /// For client credentials: the assertion.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub client_assertion: Option<SecretText>,
    /// Optional for client credentials: the subject of the assertion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The audience of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The name of the resource, instead of `resource`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The requested rights (RFC 9396), as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization_details: Option<String>,
    /// Instead of `authorization_details`: actions, at every location of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The requested lifetime in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The id of an open task to join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The handle of that task.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub task_handle: Option<SecretText>,
    /// The type of a new task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// The purpose of the new task, in free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_purpose: Option<String>,
    /// Seconds until the new task expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_deadline_seconds: Option<u64>,
    /// The longest time between two heartbeats of the new task, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_heartbeat_seconds: Option<u64>,
}

/// A token (RFC 6749 §5.1, RFC 8693 §2.2), with its task.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "access_token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJjaTpyZXBvLTEifQ.c2lnbmF0dXJl",
    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "token_type": "Bearer",
    "expires_in": 300,
    "scope": "orders:read",
    "authorization_details": [{
        "type": "api",
        "actions": ["orders:read"],
        "locations": ["https://orders.example/v1"]
    }],
    "task": "01890a5d-ac96-774b-bcce-b302099a8058",
    "task_handle": "tph_ZXhhbXBsZS1oYW5kbGUtYW5kLW5vdC1hLXNlY3JldC0",
    "session_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "decision_id": "01890a5d-ac96-774b-bcce-b302099a8059",
    "receipt": super::receipt::example_of_permit()
})))]
pub struct TokenBody {
    #[schema(value_type = String)]
    pub access_token: SecretText,
    pub issued_token_type: String,
    /// `Bearer`, or `DPoP` if the token is bound to a key.
    pub token_type: String,
    /// Whole seconds until the token expires.
    pub expires_in: u64,
    pub scope: String,
    #[schema(value_type = Vec<Object>)]
    pub authorization_details: Grant,
    #[schema(value_type = String, format = Uuid)]
    pub task: TaskId,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub task_handle: Option<SecretText>,
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    #[schema(value_type = String, format = Uuid)]
    pub decision_id: DecisionId,
    /// The outcome under the policies that only observe.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Box<Observed>>,
    pub receipt: ReceiptBody,
}

/// An error in the form of RFC 6749 §5.2.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "error": "invalid_scope",
    "error_description": "policy does not permit the requested rights",
    "decision_id": "01890a5d-ac96-774b-bcce-b302099a805b"
})))]
pub struct OAuthErrorBody {
    /// A code of RFC 6749.
    pub error: String,
    /// A description of the error, for people.
    pub error_description: String,
    /// Which check of the caller's own token failed; absent if that may not be revealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The claim or header parameter of that check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The decision that refused; absent if policy was not evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub decision_id: Option<DecisionId>,
    /// The outcome under the policies that only observe.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Box<Observed>>,
}

/// The form of an introspection (RFC 7662 §2.1) and of a revocation (RFC 7009 §2.1). The server reads
/// it by hand, to refuse repeated parameters.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJjaTpyZXBvLTEifQ.c2lnbmF0dXJl",
    "token_type_hint": "access_token"
})))]
pub struct SubmittedTokenForm {
    /// The token to introspect or revoke.
    #[schema(value_type = String)]
    pub token: SecretText,
    /// Ignored, as both standards permit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type_hint: Option<String>,
    /// With `private_key_jwt` instead of `Authorization`: the URN of `jwt-bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_assertion_type: Option<String>,
    /// The assertion of `private_key_jwt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub client_assertion: Option<SecretText>,
    /// Optional with an assertion: its subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
}

/// The result of an introspection (RFC 7662).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(examples(
    example_of_active,
    json!({"active": false})
))]
pub enum IntrospectionBody {
    /// The token is valid now.
    Active(Box<ActiveTokenBody>),
    /// The token is invalid, or the caller may not know.
    Inactive(InactiveTokenBody),
}

/// A token that is valid now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(example_of_active))]
pub struct ActiveTokenBody {
    /// Always `true`.
    #[schema(schema_with = only_true)]
    pub active: True,
    /// The issuer: this broker.
    pub iss: String,
    /// The workload, or with delegation the workload at the root.
    #[schema(value_type = String)]
    pub sub: Identity,
    /// The audience of the resource.
    pub aud: String,
    /// The workload that holds the token.
    #[schema(value_type = String)]
    pub client_id: Identity,
    /// When the token was issued, in seconds since 1970.
    pub iat: i64,
    /// When it expires, in seconds since 1970.
    pub exp: i64,
    /// The id of the token, which is the id of its session.
    #[schema(value_type = String, format = Uuid)]
    pub jti: SessionId,
    /// The actions, separated by spaces.
    pub scope: String,
    /// The granted rights (RFC 9396).
    #[schema(value_type = Vec<Object>)]
    pub authorization_details: Grant,
    /// `Bearer`, or `DPoP` if the token is bound to a key.
    pub token_type: String,
    /// The task of the token.
    #[schema(value_type = String, format = Uuid)]
    pub task: TaskId,
    /// The session of the token.
    #[schema(value_type = String, format = Uuid)]
    pub sid: SessionId,
    /// The hash of the leaf of its decision.
    pub dec: String,
    /// With delegation: the present actor, with the earlier ones nested in it (RFC 8693 §4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub act: Option<Value>,
    /// The key that the token is bound to (RFC 7800); absent if it is bound to none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cnf: Option<KeyBinding>,
}

/// The answer for every other token.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"active": false})))]
pub struct InactiveTokenBody {
    /// Always `false`.
    #[schema(schema_with = only_false)]
    pub active: False,
}

/// The JSON value `false` and no other, so that an incomplete answer about a valid token is an
/// error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "bool", into = "bool")]
pub struct False;

impl TryFrom<bool> for False {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value {
            Err("`active` has to be false if the other members are missing")
        } else {
            Ok(Self)
        }
    }
}

impl From<False> for bool {
    fn from(_: False) -> Self {
        false
    }
}

/// The metadata of the authorization server (RFC 8414), which OpenID Connect discovery shows too.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(
    missing_docs,
    reason = "RFC 8414 and OpenID Connect Discovery define the others"
)]
#[schema(examples(json!({
    "issuer": "https://broker.example",
    "jwks_uri": "https://broker.example/.well-known/jwks.json",
    "introspection_endpoint": "https://broker.example/oauth2/introspect",
    "introspection_endpoint_auth_methods_supported": ["private_key_jwt", "Bearer", "DPoP"],
    "introspection_endpoint_auth_signing_alg_values_supported": ["EdDSA", "ES256"],
    "introspection_signing_alg_values_supported": ["EdDSA"],
    "authorization_details_types_supported": ["api"],
    "dpop_signing_alg_values_supported": ["EdDSA", "ES256"],
    "response_types_supported": ["none"],
    "token_endpoint": "https://broker.example/oauth2/token",
    "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
    "token_endpoint_auth_signing_alg_values_supported": ["EdDSA", "ES256"],
    "revocation_endpoint": "https://broker.example/oauth2/revoke",
    "revocation_endpoint_auth_methods_supported": ["private_key_jwt", "Bearer", "DPoP"],
    "revocation_endpoint_auth_signing_alg_values_supported": ["EdDSA", "ES256"],
    "grant_types_supported": [
        "urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"
    ],
    "subject_types_supported": ["public"],
    "id_token_signing_alg_values_supported": ["EdDSA", "RS256"],
    "service_documentation": "https://broker.example/openapi.json"
})))]
pub struct ServerMetadataBody {
    pub issuer: String,
    pub jwks_uri: String,
    pub introspection_endpoint: String,
    /// `private_key_jwt`, and the schemes of `Authorization` by which a token of this broker or an
    /// attestation authenticates.
    pub introspection_endpoint_auth_methods_supported: Vec<String>,
    pub introspection_endpoint_auth_signing_alg_values_supported: Vec<String>,
    pub introspection_signing_alg_values_supported: Vec<String>,
    /// AWS roles can only be requested at `/v1/credentials`.
    pub authorization_details_types_supported: Vec<String>,
    pub dpop_signing_alg_values_supported: Vec<String>,
    /// RFC 8414 requires this member; there is no authorization endpoint.
    pub response_types_supported: Vec<String>,
    pub token_endpoint: String,
    pub token_endpoint_auth_methods_supported: Vec<String>,
    pub token_endpoint_auth_signing_alg_values_supported: Vec<String>,
    pub revocation_endpoint: String,
    pub revocation_endpoint_auth_methods_supported: Vec<String>,
    pub revocation_endpoint_auth_signing_alg_values_supported: Vec<String>,
    pub grant_types_supported: Vec<String>,
    pub subject_types_supported: Vec<String>,
    /// OpenID Connect Discovery requires `RS256` in this list; the broker issues no ID tokens.
    pub id_token_signing_alg_values_supported: Vec<String>,
    pub service_documentation: String,
    /// Whether tokens are bound to client certificates (RFC 8705 §3.3); absent if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_certificate_bound_access_tokens: Option<bool>,
}

/// The discovery document by which AWS trusts the broker as an OpenID provider.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "OpenID Connect Discovery defines them")]
#[schema(examples(json!({
    "issuer": "https://broker.example/federation/aws",
    "jwks_uri": "https://broker.example/federation/aws/.well-known/jwks.json",
    "response_types_supported": ["id_token"],
    "subject_types_supported": ["public"],
    "id_token_signing_alg_values_supported": ["RS256"],
    "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nbf", "jti"]
})))]
pub struct FederationMetadataBody {
    pub issuer: String,
    pub jwks_uri: String,
    pub response_types_supported: Vec<String>,
    pub subject_types_supported: Vec<String>,
    pub id_token_signing_alg_values_supported: Vec<String>,
    pub claims_supported: Vec<String>,
}

/// Published keys (RFC 7517).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"keys": [{
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "use": "sig",
    "alg": "EdDSA"
}]})))]
pub struct JwkSetBody {
    /// One JWK for each key.
    pub keys: Vec<JwkBody>,
}

/// A published key. Which of the optional members it has depends on its type.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JwkBody {
    /// The type: `OKP`, `EC` or `RSA`.
    pub kty: String,
    /// The curve of an `OKP` or `EC` key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// The public key of type `OKP`, or the x coordinate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The y coordinate of an `EC` key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// The modulus of an `RSA` key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// The exponent of an `RSA` key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// The id of the key.
    pub kid: String,
    /// Always `sig`: the key verifies signatures.
    #[serde(rename = "use")]
    pub usage: String,
    /// The algorithm of its signatures.
    pub alg: String,
}

/// An example: a token that is valid now.
fn example_of_active() -> Value {
    json!({
        "active": true,
        "iss": "https://broker.example",
        "sub": "ci:repo-1",
        "aud": "https://orders.example",
        "client_id": "ci:repo-1",
        "iat": 1_767_225_600,
        "exp": 1_767_226_200,
        "jti": "01890a5d-ac96-774b-bcce-b302099a8057",
        "scope": "orders:read",
        "authorization_details": [{
            "type": "api",
            "actions": ["orders:read"],
            "locations": ["https://orders.example/v1"]
        }],
        "token_type": "Bearer",
        "task": "01890a5d-ac96-774b-bcce-b302099a8058",
        "sid": "01890a5d-ac96-774b-bcce-b302099a8057",
        "dec": "4v2SVuPB1q0Y2Hm1eBz0Vv0m8t5Q7l9m9aXk3p0t3bE"
    })
}

/// The schema of the value `true`, so that a valid token has the form of one answer only.
fn only_true() -> schema::Object {
    only(true)
}

/// The schema of the value `false`.
fn only_false() -> schema::Object {
    only(false)
}

fn only(value: bool) -> schema::Object {
    schema::ObjectBuilder::new()
        .schema_type(schema::Type::Boolean)
        .description(Some(format!("Always `{value}`.")))
        .enum_values(Some([value]))
        .build()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_introspection_is_active_only_with_every_member() {
        let inactive = r#"{"active":false}"#;
        let read: IntrospectionBody = serde_json::from_str(inactive).unwrap();
        assert!(matches!(read, IntrospectionBody::Inactive(_)));
        assert_eq!(serde_json::to_string(&read).unwrap(), inactive);
        assert!(serde_json::from_value::<IntrospectionBody>(json!({"active": true})).is_err());
        let active = r#"{"active":true,"iss":"https://b","sub":"ci:a","aud":"https://o","client_id":"ci:a","iat":1,"exp":2,"jti":"01890a5d-ac96-774b-bcce-b302099a8057","scope":"orders:read","authorization_details":[{"type":"api","actions":["orders:read"]}],"token_type":"DPoP","task":"01890a5d-ac96-774b-bcce-b302099a8057","sid":"01890a5d-ac96-774b-bcce-b302099a8057","dec":"x","cnf":{"jkt":"k"}}"#;
        let read: IntrospectionBody = serde_json::from_str(active).unwrap();
        assert!(matches!(read, IntrospectionBody::Active(_)));
        assert_eq!(serde_json::to_string(&read).unwrap(), active);
    }
}
