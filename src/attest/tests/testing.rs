//! Keys and tokens for this module's tests.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::clock::Timestamp;
use crate::endpoints::EndpointTable;

pub(in crate::attest) fn now() -> Timestamp {
    Timestamp::from_seconds(1_795_000_000)
}

pub(in crate::attest) fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A P-256 key that signs ES256.
pub(in crate::attest) struct TestKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl TestKey {
    pub(in crate::attest) fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    pub(in crate::attest) fn public_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(in crate::attest) fn jwk(&self) -> Value {
        let point = self.public_bytes();
        json!({
            "kty": "EC",
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&point[33..]),
        })
    }

    pub(in crate::attest) fn jwk_named(&self, kid: &str) -> Value {
        let mut jwk = self.jwk();
        jwk["kid"] = json!(kid);
        jwk
    }

    pub(in crate::attest) fn sign(&self, header: &Value, claims: &Value) -> String {
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&self.random, input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Adds an endpoint with the attestor's name that serves each issuer's discovery, at the issuer's
/// own URL.
pub(in crate::attest) fn with_endpoints(specs: &mut [Value]) -> Arc<EndpointTable> {
    let mut table = json!({});
    for spec in specs {
        if let Some(issuer) = spec.get("issuer").cloned() {
            let name = spec["name"].as_str().unwrap().to_owned();
            spec["discovery"] = json!(name);
            table[name] = json!({"url": issuer, "use": ["discovery"]});
        }
    }
    let table = serde_json::from_value(table).unwrap();
    Arc::new(EndpointTable::new(&table).unwrap())
}

/// Serves discovery and `keys` at the server's own address.
pub(in crate::attest) async fn serve_keys(server: &MockServer, keys: Value) {
    let discovery = json!({
        "issuer": server.uri(),
        "jwks_uri": format!("{}/jwks", server.uri()),
    });
    serve(server, "/.well-known/openid-configuration", ok(&discovery)).await;
    serve(server, "/jwks", ok(&json!({ "keys": keys }))).await;
}

pub(in crate::attest) fn ok(body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(body)
}

pub(in crate::attest) async fn serve(server: &MockServer, at: &str, answer: ResponseTemplate) {
    Mock::given(method("GET"))
        .and(path(at))
        .respond_with(answer)
        .mount(server)
        .await;
}
