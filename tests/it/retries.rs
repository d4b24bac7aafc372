//! Retries over HTTP with an `Idempotency-Key`, on both stores.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::issuer::{Issuer, unix_seconds};
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::random_hex;
use crate::support::rig::Kind;

async fn ask(replica: &Replica, token: &str, key: &str, body: &Value) -> Answer {
    let request = replica
        .client
        .request(reqwest::Method::POST, "/v1/credentials")
        .bearer_auth(token)
        .header("Idempotency-Key", key)
        .json(body);
    send(request).await
}

async fn case(fleet: &Fleet, replica: &Replica) {
    let key = "\"report-2026-11\"";
    let token = fleet.token();
    let first = ask(replica, &token, key, &body()).await.expect(201);
    assert!(fleet.is_good(replica, &first).await);

    let replayed = ask(replica, &token, key, &body()).await;
    assert_problem(&replayed, 401, "attestation-failed");
    assert!(
        fleet.is_good(replica, &first).await,
        "a captured request must be refused"
    );

    let mut other = body();
    other["ttl_seconds"] = json!(7);
    let mismatch = ask(replica, &fleet.token(), key, &other).await;
    assert_eq!(mismatch.status, 422, "{}", mismatch.text());

    let mut last = first.clone();
    for _ in 0..3 {
        let again = ask(replica, &fleet.token(), key, &body()).await.expect(201);
        assert_eq!(again["task"]["id"], last["task"]["id"]);
        assert_ne!(again["task"]["handle"], last["task"]["handle"]);
        assert_ne!(again["session"]["id"], last["session"]["id"]);
        let expiry = |granted: &Value| {
            granted["session"]["expires_at"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert!(
            expiry(&again) <= expiry(&first),
            "the retry expires no later"
        );
        assert!(!fleet.is_good(replica, &last).await, "superseded");
        assert!(fleet.is_good(replica, &again).await);
        last = again;
    }
    let spent = ask(replica, &fleet.token(), key, &body()).await;
    let problem = assert_problem(&spent, 409, "already-issued");
    assert_eq!(problem["session_id"], last["session"]["id"]);

    // The key belongs to this identity and run.
    let run = fleet
        .issuer
        .token(json!({"sub": "agent:reports", "run": "run-2"}));
    let elsewhere = ask(replica, &run, key, &body()).await.expect(201);
    assert_ne!(elsewhere["task"]["id"], first["task"]["id"]);
    assert!(fleet.is_good(replica, &last).await);

    for bad in ["", "\"\"", &format!("\"{}\"", "k".repeat(300))] {
        let answer = ask(replica, &fleet.token(), bad, &body()).await;
        assert_problem(&answer, 400, "invalid-request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_supersedes_three_times_and_then_conflicts_on_sqlite() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    case(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_supersedes_three_times_and_then_conflicts_on_postgresql() {
    let (fleet, replica) = Fleet::postgres().start().await;
    case(&fleet, &replica).await;
}

const NO_INSTANCE: &str = "https://no-instance.taskpass.test";

/// A workload whose attestor gives no instance.
async fn without_an_instance(kind: Kind) -> (Fleet, Replica) {
    let attestor = |issuer: &Issuer| {
        format!(
            r#"
[[attestors]]
kind = "oidc"
name = "plain"
issuer = "{}"
audience = "{NO_INSTANCE}"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
"#,
            issuer.url()
        )
    };
    let policy = r#"
@id("plain-open") @description("opens")
permit (principal == Workload::plain::"plain:agent", action == Action::"openTask", resource);
@id("plain-read") @description("reads") @max_ttl("600")
permit (principal == Workload::plain::"plain:agent", action == Action::"orders:read", resource);
"#;
    Fleet::on(kind)
        .attestors(attestor)
        .more_policies(policy)
        .start()
        .await
}

async fn proof(replica: &Replica, key: &Key) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let claims = json!({
        "jti": random_hex(16), "htm": "POST", "iat": unix_seconds(),
        "htu": "http://127.0.0.1:7070/v1/credentials", "nonce": replica.nonce().await,
    });
    sign_jwt(&header, &claims, key)
}

/// Without an instance, a retry must prove the same key as the first request. If the first request
/// proved none, the refusal names the remedy.
async fn without_instances(kind: Kind) {
    let (fleet, replica) = without_an_instance(kind).await;
    let token = || {
        fleet
            .issuer
            .token(json!({"sub": "agent", "aud": NO_INSTANCE}))
    };
    let ask = async |name: &str, key: Option<&Key>| {
        let request = replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(token())
            .header("idempotency-key", format!("\"{name}\""))
            .json(&body());
        let request = match key {
            Some(key) => request.header("dpop", proof(&replica, key).await),
            None => request,
        };
        send(request).await
    };
    let (own, other) = (
        Key::generate(Algorithm::Es256),
        Key::generate(Algorithm::Es256),
    );
    let first = ask("bound", Some(&own)).await.expect(201);
    for key in [None, Some(&other)] {
        let refused = assert_problem(&ask("bound", key).await, 409, "already-issued");
        assert!(refused["detail"].as_str().unwrap().contains("another key"));
    }
    let again = ask("bound", Some(&own)).await.expect(201);
    assert_eq!(again["task"]["id"], first["task"]["id"]);
    assert!(!fleet.is_good(&replica, &first).await, "superseded");
    assert!(fleet.is_good(&replica, &again).await);

    let first = ask("unbound", None).await.expect(201);
    let refused = assert_problem(&ask("unbound", None).await, 409, "already-issued");
    let detail = refused["detail"].as_str().unwrap();
    for said in ["DPoP proof", "new Idempotency-Key", "/revoke"] {
        assert!(detail.contains(said), "{detail}");
    }
    // Follow the remedy that the refusal names.
    let session = refused["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{session}/revoke");
    let ended = replica.client.post_json(&token(), &path, &json!({})).await;
    ended.expect(200);
    assert!(!fleet.is_good(&replica, &first).await);
    ask("another", None).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_an_instance_is_repeated_by_its_key_on_sqlite() {
    without_instances(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_an_instance_is_repeated_by_its_key_on_postgresql() {
    without_instances(Kind::Postgres).await;
}
