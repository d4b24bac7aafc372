//! Over HTTP: every operation of the description uses the evidence of its caller up.

use super::*;
use crate::support::fleet::body;
use crate::support::http::{assert_problem, send};

/// Over HTTP, where the broker reads the body between two checks of the evidence.
async fn activation(kind: Kind) {
    let (fleet, replica): (Fleet, Replica) = Fleet::on(kind).start().await;
    let token = fleet.token();
    let client = &replica.client;
    let refused = client
        .post_json(&token, "/v1/generations", &json!({}))
        .await;
    assert_problem(&refused, 403, "forbidden");
    let again = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_problem(&again, 401, "attestation-failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_by_a_refused_activation_on_sqlite() {
    activation(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_by_a_refused_activation_on_postgresql() {
    activation(Kind::Postgres).await;
}

/// Operations that take no evidence, or none in a header.
const OPEN: &[&str] = &[
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/oauth2/token",
    "/status/",
    "/.well-known/",
    "/federation/",
];

/// Calls every operation of the HTTP description, so that a new operation is tested too.
async fn every_door(kind: Kind) {
    let (fleet, replica): (Fleet, Replica) = Fleet::on(kind).start().await;
    let client = &replica.client;
    let described = client.get("/openapi.json").await.expect(200);
    let mut tried = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let filled = path
            .replace("{id}", UNKNOWN)
            .replace("{index}", "0")
            .replace("{kid}", "x")
            .replace("{digest}", &digest)
            .replace("{list}", "0")
            .replace("{path}", "tile/0/000.p/1");
        let filled = match path.as_str() {
            "/v1/ledger/consistency" => format!("{filled}?from=0&to=0"),
            _ => filled,
        };
        if OPEN.iter().any(|open| path.starts_with(open)) {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let method: reqwest::Method = method.to_uppercase().parse().unwrap();
            let token = fleet.token();
            let request = client.request(method.clone(), &filled).bearer_auth(&token);
            let request = match (path.as_str(), method.as_str()) {
                (_, "GET") => request,
                ("/oauth2/introspect" | "/oauth2/revoke", _) => request.form(&[("token", "x")]),
                (path, _) => request.json(&body_for(path, &method)),
            };
            let answer = send(request).await;
            // The broker verifies no evidence before a request is well-formed.
            assert_ne!(answer.status, 400, "{method} {path}: {}", answer.text());
            assert_ne!(answer.status, 401, "{method} {path}: {}", answer.text());
            let again = client.post_json(&token, "/v1/credentials", &body()).await;
            assert_eq!(
                again.status, 401,
                "{method} {path} answered {}",
                answer.status
            );
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
}

/// A well-formed body for an operation that takes one.
fn body_for(path: &str, method: &reqwest::Method) -> serde_json::Value {
    let key = Key::generate(Algorithm::Es256);
    match (path, method.as_str()) {
        ("/v1/credentials", _) => body(),
        ("/v1/tasks", _) => json!({"type": "job"}),
        ("/v1/tasks/{id}/delegations", _) => json!({"workload": "dev:x"}),
        ("/v1/revocations", _) => json!({"selector": {"all": true}, "reason": "x"}),
        ("/v1/admins", _) => json!({"workload": "dev:x", "role": "ops"}),
        ("/v1/ledger/accept-time", _) => json!({"time": "2026-11-29T12:00:00Z", "reason": "x"}),
        ("/v1/workloads", "POST") => {
            json!({"attestor": "w", "workload": "x", "jwk": key.jwk()})
        }
        ("/v1/workloads", _) => {
            json!({"attestor": "w", "workload": "x", "thumbprint": "t"})
        }
        _ => json!({}),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_at_every_door_on_sqlite() {
    every_door(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_at_every_door_on_postgresql() {
    every_door(Kind::Postgres).await;
}
