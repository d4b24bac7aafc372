//! JWT-SVIDs: no `iss`, a trust domain's bundle, and the rules of the standard.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use taskpass::attest::Attestors;

use super::super::support::issuer::{TOKEN_SECONDS, unix_seconds};
use super::super::support::keys::{Algorithm, Key, sign_jwt};
use super::super::support::server::Server;
use super::{AUDIENCE, appraise, load, text};

const ID: &str = "spiffe://prod.acme.example/ns/jobs/sa/report";

struct Domain {
    key: Key,
    bundle: Arc<Mutex<Value>>,
    attestors: Attestors,
    _server: Server,
}

impl Domain {
    /// A trust domain whose bundle contains `key`, in the form that `entry` gives it.
    fn with(key: Key, entry: impl FnOnce(&Key) -> Vec<Value>) -> Self {
        let bundle = json!({
            "keys": entry(&key), "spiffe_sequence": 1, "spiffe_refresh_hint": 300,
        });
        let bundle = Arc::new(Mutex::new(bundle));
        let serve = async |State(bundle): State<Arc<Mutex<Value>>>| {
            let bundle = bundle.lock().unwrap().clone();
            Json(bundle)
        };
        let app = Router::new()
            .route("/bundle", get(serve))
            .with_state(Arc::clone(&bundle));
        let server = Server::start(app);
        let address = server.address;
        let attestors = load(&format!(
            "\n[[attestors]]\nkind = \"spiffe\"\nname = \"mesh\"\n\
             trust_domain = \"prod.acme.example\"\naudience = \"{AUDIENCE}\"\n\
             bundle = \"bundle\"\n[endpoints.bundle]\n\
             url = \"http://{address}/bundle\"\nuse = [\"keys\"]\n"
        ))
        .unwrap();
        Self {
            key,
            bundle,
            attestors,
            _server: server,
        }
    }

    fn new(algorithm: Algorithm) -> Self {
        Self::with(Key::generate(algorithm), |key| vec![svid_key(key)])
    }

    fn header(&self) -> Value {
        json!({"alg": self.key.algorithm.name(), "kid": self.key.kid, "typ": "JWT"})
    }

    async fn see(&self, header: &Value, over: &Value) -> Result<String, &'static str> {
        let token = sign_jwt(header, &claims(over), &self.key);
        let seen = appraise(&self.attestors, &token).await;
        seen.map(|workload| workload.identity.to_string())
    }
}

/// The key as an entry of a bundle.
fn svid_key(key: &Key) -> Value {
    let mut jwk = key.jwk();
    jwk["use"] = json!("jwt-svid");
    jwk
}

fn claims(over: &Value) -> Value {
    let now = unix_seconds();
    let mut claims = json!({
        "sub": ID, "aud": [AUDIENCE], "iat": now, "exp": now + TOKEN_SECONDS,
    });
    for (name, value) in over.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}

#[tokio::test]
async fn an_svid_without_an_issuer_is_its_path_in_the_trust_domain() {
    for algorithm in [
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::Rs256,
        Algorithm::Ps256,
    ] {
        let domain = Domain::new(algorithm);
        let token = sign_jwt(&domain.header(), &claims(&json!({})), &domain.key);
        let workload = appraise(&domain.attestors, &token).await.unwrap();
        assert_eq!(workload.identity.as_str(), "mesh:ns/jobs/sa/report");
        assert_eq!(workload.claims["path"], text("ns/jobs/sa/report"));
        assert_eq!(workload.claims["trust_domain"], text("prod.acme.example"));
        assert_eq!(workload.instance, None);
    }
}

#[tokio::test]
async fn an_issuer_in_an_svid_changes_nothing() {
    let domain = Domain::new(Algorithm::Es256);
    let over = json!({"iss": "https://evil.example"});
    let seen = domain.see(&domain.header(), &over).await;
    assert_eq!(seen.unwrap(), "mesh:ns/jobs/sa/report");
}

#[tokio::test]
async fn an_id_of_another_domain_or_form_is_refused() {
    let domain = Domain::new(Algorithm::Es256);
    for sub in [
        "spiffe://prod.acme.example.evil/ns/jobs/sa/report",
        "spiffe://acme.example/ns/jobs/sa/report",
        "spiffe://PROD.acme.example/ns/jobs/sa/report",
        "spiffe://prod.acme.example",
        "spiffe://prod.acme.example/",
        "spiffe://prod.acme.example/ns/../sa/report",
        "spiffe://prod.acme.example/ns%2fjobs",
        "spiffe://prod.acme.example/ns/jobs?x",
        "spiffe://prod.acme.example:8443/ns/jobs",
        "ns/jobs/sa/report",
        "",
    ] {
        let seen = domain.see(&domain.header(), &json!({"sub": sub})).await;
        assert_eq!(seen, Err("unknown_issuer"), "{sub}");
    }
    // Paths are compared with their exact case.
    let upper = json!({"sub": "spiffe://prod.acme.example/ns/Jobs/sa/report"});
    let seen = domain.see(&domain.header(), &upper).await;
    assert_eq!(seen.unwrap(), "mesh:ns/Jobs/sa/report");
}

#[tokio::test]
async fn what_the_standard_requires_is_required() {
    let domain = Domain::new(Algorithm::Es256);
    let at = unix_seconds();
    for (over, reason) in [
        (json!({"sub": null}), "unknown_issuer"),
        (json!({"aud": null}), "wrong_audience"),
        (
            json!({"aud": "spiffe://prod.acme.example/db"}),
            "wrong_audience",
        ),
        (
            json!({"aud": [AUDIENCE, "spiffe://prod.acme.example/db"]}),
            "wrong_audience",
        ),
        (json!({"exp": null}), "wrong_times"),
        (json!({"iat": at - 60, "exp": at - 30}), "expired"),
        (json!({"iat": at - 700, "exp": at + 3_600}), "wrong_times"),
    ] {
        let seen = domain.see(&domain.header(), &over).await;
        assert_eq!(seen, Err(reason), "{over}");
    }
    let good = domain.header();
    for (member, value, reason) in [
        ("typ", json!("at+jwt"), "wrong_type"),
        ("typ", json!("JOSE"), "good"),
        ("cty", json!("JWT"), "wrong_type"),
        ("x5t", json!("abc"), "wrong_type"),
        ("kid", json!("other"), "unknown_key"),
        ("alg", json!("EdDSA"), "wrong_algorithm"),
        ("alg", json!("RS256"), "unknown_key"),
    ] {
        let mut header = good.clone();
        header[member] = value.clone();
        let seen = domain.see(&header, &json!({})).await;
        let seen = seen.map_or_else(|reason| reason, |_| "good");
        assert_eq!(seen, reason, "{member} {value}");
    }
}

#[tokio::test]
async fn only_named_keys_for_jwt_svids_are_believed() {
    let spoilt: [fn(&Key) -> Value; 3] = [
        |key| {
            let mut jwk = key.jwk();
            jwk["use"] = json!("x509-svid");
            jwk
        },
        Key::jwk,
        |key| {
            let mut jwk = svid_key(key);
            jwk.as_object_mut().unwrap().remove("kid");
            jwk
        },
    ];
    for spoil in spoilt {
        let other = Key::generate(Algorithm::Es256);
        let domain = Domain::with(Key::generate(Algorithm::Es256), |key| {
            vec![spoil(key), svid_key(&other)]
        });
        let seen = domain.see(&domain.header(), &json!({})).await;
        assert_eq!(seen, Err("unknown_key"));
        let token = sign_jwt(
            &json!({"alg": "ES256", "kid": other.kid}),
            &claims(&json!({})),
            &other,
        );
        appraise(&domain.attestors, &token).await.unwrap();
    }
}

#[tokio::test]
async fn eddsa_is_no_algorithm_of_an_svid_even_where_the_bundle_has_such_a_key() {
    let domain = Domain::new(Algorithm::EdDsa);
    let seen = domain.see(&domain.header(), &json!({})).await;
    assert_eq!(seen, Err("wrong_algorithm"));
}

#[tokio::test]
async fn a_bundle_without_a_usable_key_believes_nobody() {
    let domain = Domain::new(Algorithm::Es256);
    *domain.bundle.lock().unwrap() = json!({"keys": []});
    let seen = domain.see(&domain.header(), &json!({})).await;
    assert_eq!(seen, Err("unknown_key"));
}
