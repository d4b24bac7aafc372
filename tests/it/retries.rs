//! Retries over HTTP with an `Idempotency-Key`, alike on both stores.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem, send};

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
        "a captured request is worth nothing"
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
        assert!(expiry(&again) <= expiry(&first), "no later");
        assert!(!fleet.is_good(replica, &last).await, "superseded");
        assert!(fleet.is_good(replica, &again).await);
        last = again;
    }
    let spent = ask(replica, &fleet.token(), key, &body()).await;
    let problem = assert_problem(&spent, 409, "already-issued");
    assert_eq!(problem["session_id"], last["session"]["id"]);

    // The key is that identity's and run's alone.
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
    let (fleet, replica) = Fleet::embedded();
    case(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_supersedes_three_times_and_then_conflicts_on_postgresql() {
    let (fleet, replica) = Fleet::start().await;
    case(&fleet, &replica).await;
}
