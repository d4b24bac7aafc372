//! The log lines of the real binary about a request.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, send};
use crate::support::{SOON, until};

fn lines(replica: &Replica) -> Vec<Value> {
    let text = replica.process.stderr();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.collect()
}

fn is_of(line: &Value, id: &str) -> bool {
    line["spans"][0]["request_id"] == id
}

async fn broker(filter: &str) -> (Fleet, Replica) {
    let environment = vec![("TASKPASS_LOG", filter.to_owned())];
    Fleet::sqlite().environment(environment).start().await
}

/// Waits for the last line about a request, and returns all lines about it.
async fn logged(replica: &Replica, answer: &Answer) -> Vec<Value> {
    let id = answer.header("x-request-id").unwrap().to_owned();
    let of_request = || lines(replica).into_iter().filter(|line| is_of(line, &id));
    until("the request's last line", SOON, async || {
        of_request().any(|line| line["message"] == "answered")
    })
    .await;
    of_request().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_a_refused_request_has_its_id_and_the_fields_of_all_spans() {
    let (fleet, replica) = broker("warn,taskpass=trace").await;
    let without = replica
        .client
        .request(reqwest::Method::POST, "/v1/credentials");
    let unattested = send(without.json(&body())).await;
    let junk = replica.ask("junk").await;
    let mut greedy = body();
    greedy["ttl_seconds"] = json!(601);
    let token = fleet.token();
    let asked = replica.client.post_json(&token, "/v1/credentials", &greedy);
    let denied = asked.await;
    for (answer, status, told) in [
        (unattested, 401, None),
        (junk, 401, Some("an attestation failed")),
        (denied, 403, Some("refused")),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text());
        let lines = logged(&replica, &answer).await;
        for line in &lines {
            let request = &line["spans"][0];
            assert_eq!(request["name"], "request", "{line}");
            assert_eq!(request["route"], "/v1/credentials", "{line}");
            assert_eq!(request["client"], "127.0.0.1", "{line}");
            assert!(request["trace"].is_string(), "{line}");
        }
        if let Some(told) = told {
            let line = lines.iter().find(|line| line["message"] == told);
            let line = line.unwrap_or_else(|| panic!("{told}: {lines:?}"));
            assert!(line["spans"].as_array().unwrap().len() > 1, "{line}");
        }
    }
    // Every line about any request has the request's id.
    let of_requests = lines(&replica).into_iter();
    let mut of_requests = of_requests.filter(|line| line["spans"][0]["name"] == "request");
    assert!(of_requests.all(|line| line["spans"][0]["request_id"].is_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warning_has_the_request_where_nothing_less_is_logged() {
    let (_fleet, replica) = broker("warn,taskpass=warn").await;
    let refused = replica.ask("junk").await;
    let id = refused.header("x-request-id").unwrap();
    until("the refusal is logged", SOON, async || {
        let lines = lines(&replica);
        let mut warnings = lines.iter().filter(|line| line["level"] == "WARN");
        warnings.any(|line| is_of(line, id) && line["spans"][0]["client"] == "127.0.0.1")
    })
    .await;
}
