//! Searches the logs, metrics and problems of a whole sequence of requests for secrets, and checks
//! the metrics.

use serde_json::{Value, json};

use crate::support::canary::Canaries;
use crate::support::fleet::{Fleet, body};
use crate::support::http::send;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_a_log_a_metric_or_a_problem() {
    let (fleet, mut replica) = Fleet::sqlite().start().await;
    let mut canaries = Canaries::new();
    canaries.add("admin token", &fleet.admin);
    let mut printed = String::new();
    let mut greedy = body();
    greedy["ttl_seconds"] = json!(601);
    for request in [body(), greedy, json!({"task": 1})] {
        let token = fleet.token();
        canaries.add("attestation", &token);
        let answer = replica
            .client
            .post_json(&token, "/v1/credentials", &request)
            .await;
        if answer.status != 201 {
            printed.push_str(&answer.text());
            // Repeat the request: the attestation is used up, and the broker logs a refusal.
            let again = replica
                .client
                .post_json(&token, "/v1/credentials", &request)
                .await;
            printed.push_str(&again.text());
            continue;
        }
        let granted: Value = answer.json();
        let credential = granted["credential"]["access_token"].as_str().unwrap();
        let handle = granted["task"]["handle"].as_str().unwrap();
        canaries.add("credential", credential);
        canaries.add("handle", handle);
        assert!(fleet.is_good(&replica, &granted).await);
        let id = granted["task"]["id"].as_str().unwrap();
        for act in ["heartbeat", "complete", "heartbeat"] {
            let request = replica
                .client
                .request(reqwest::Method::POST, &format!("/v1/tasks/{id}/{act}"))
                .header("Authorization", format!("Handle {handle}"));
            let answer = send(request).await;
            let text = answer.text();
            canaries.assert_absent_in_text("an answer to a handle", &text);
        }
        let misused = replica.client.get_as(credential, "/v1/sessions").await;
        assert_eq!(misused.status, 401);
        printed.push_str(&misused.text());
    }
    printed.push_str(&replica.client.get_as(&fleet.admin, "/metrics").await.text());
    replica.process.terminate();
    let logs = format!("{}{}", replica.process.stdout(), replica.process.stderr());
    assert!(
        logs.contains("refused"),
        "the log contains the refusal: {logs}"
    );
    canaries.assert_absent_in_text("the logs", &logs);
    canaries.assert_absent_in_text("problems and metrics", &printed);
    canaries.assert_absent_in(replica.process.dir().join("data"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_counted() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let client = &replica.client;
    let ask = async |token: &str, request: &Value| {
        let answer = client.post_json(token, "/v1/credentials", request).await;
        answer.status
    };
    let mut greedy = body();
    greedy["ttl_seconds"] = json!(601);
    let token = fleet.token();
    let mut forged = fleet.token();
    forged.push('x');
    for (token, request, status) in [
        (&token, body(), 201),
        (&token, body(), 401),
        (&fleet.token(), body(), 201),
        (&fleet.token(), greedy, 403),
        (&forged, body(), 401),
    ] {
        assert_eq!(ask(token, &request).await, status);
    }
    let all = json!({"selector": {"all": true}, "block_seconds": 0, "reason": "drill"});
    let revoked = client
        .post_json(&fleet.admin, "/v1/revocations", &all)
        .await;
    assert_eq!(revoked.expect(200)["matched"], 2);
    let metrics = client.get_as(&fleet.admin, "/metrics").await.text();
    for line in [
        "taskpass_decisions_total{outcome=\"permit\"} 2",
        "taskpass_decisions_total{outcome=\"deny\"} 1",
        "taskpass_refusals_total{code=\"ttl-too-long\"} 1",
        "taskpass_mints_total{minter=\"jwt\",result=\"ok\"} 2",
        "taskpass_attestation_failures_total{attestor=\"",
        "taskpass_revocations_total{selector=\"all\"} 1",
        "taskpass_revocation_lag_seconds_count{part=\"requested_to_durable\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
