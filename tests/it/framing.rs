//! Requests that two parsers could read differently, sent as raw bytes: hosts, the framing and
//! coding of bodies, unusual spellings of ids, a body that does not arrive, one idempotency key in
//! forty requests.

use serde_json::{Value, json};

use crate::oauth::{exchange, token};
use crate::support::SOON;
use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{assert_problem, exchange_raw, raw_status, send};
use crate::support::process::Launch;
use crate::support::rig::Kind;

fn sent(replica: &Replica, request: &str) -> (Option<u16>, String) {
    let answer = exchange_raw(replica.address, request.as_bytes(), SOON);
    let text = String::from_utf8_lossy(&answer).into_owned();
    (raw_status(&answer), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_host_or_with_two_is_refused() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    for (version, hosts, status) in [
        ("1.1", &["a.example"][..], 200),
        ("1.1", &[][..], 400),
        ("1.1", &["a.example", "a.example"][..], 400),
        ("1.1", &["a.example", "b.example"][..], 400),
        ("1.1", &["a.example, b.example"][..], 400),
        ("1.1", &["user@a.example"][..], 400),
        ("1.0", &["a.example"][..], 200),
        ("1.0", &[][..], 200),
    ] {
        let hosts = hosts.iter().map(|host| format!("Host: {host}\r\n"));
        let hosts = hosts.collect::<Vec<_>>().concat();
        let request = format!("GET /livez HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        let (told, text) = sent(&replica, &request);
        // A request in HTTP/1.0 is answered in HTTP/1.0.
        let told = told.or_else(|| text.strip_prefix("HTTP/1.0 ")?.get(..3)?.parse().ok());
        assert_eq!(told, Some(status), "{request:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_in_absolute_form_meets_the_guard_of_development() {
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--json", "--no-story"];
    let mut process = Launch::taskpass(arguments.map(str::to_owned)).spawn();
    process.wait_for_output("\n");
    let line = process.stdout();
    let told: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let own = told["url"]
        .as_str()
        .unwrap()
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    for (target, host, status) in [
        ("/livez", own.as_str(), 200),
        ("http://OWN/livez", own.as_str(), 200),
        ("http://rebound.example/livez", own.as_str(), 403),
        ("http://OWN/livez", "rebound.example", 403),
        ("http://rebound.example/v1/sessions", own.as_str(), 403),
    ] {
        let target = target.replace("OWN", &own);
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange_raw(own.parse().unwrap(), request.as_bytes(), SOON);
        assert_eq!(raw_status(&answer), Some(status), "{request:?}");
    }
}

/// A request for a token with these headers and this body.
fn posted(headers: &str, body: &str) -> String {
    format!(
        "POST /oauth2/token HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{headers}\r\n{body}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_framed_coded_and_typed_in_one_way() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let plain = format!("{form}Content-Length: 12\r\n");
    let chunked = "c\r\ngrant_type=x\r\n0\r\n\r\n";
    for (headers, body, status, says) in [
        (plain.clone(), "grant_type=x", 400, "unsupported_grant_type"),
        (
            format!("{form}Transfer-Encoding: chunked\r\n"),
            chunked,
            400,
            "unsupported_grant_type",
        ),
        (
            format!("{form}Transfer-Encoding: gzip, chunked\r\n"),
            chunked,
            501,
            "server_error",
        ),
        (
            format!("{form}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
            chunked,
            400,
            "invalid_request",
        ),
        (
            format!("{plain}Content-Encoding: gzip\r\n"),
            "grant_type=x",
            415,
            "accept-encoding: identity",
        ),
        (
            format!("{plain}Content-Encoding: identity\r\n"),
            "grant_type=x",
            400,
            "unsupported_grant_type",
        ),
        (
            format!("{plain}{form}"),
            "grant_type=x",
            400,
            "is given twice",
        ),
        (
            format!("{plain}Content-Type: application/json\r\n"),
            "grant_type=x",
            400,
            "is given twice",
        ),
    ] {
        let (told, text) = sent(&replica, &posted(&headers, body));
        assert_eq!(told, Some(status), "{headers:?}: {text}");
        assert!(text.contains(says), "{headers:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_a_fault_of_its_sender() {
    let (fleet, replica) = Fleet::sqlite()
        .server("request_timeout_seconds = 1\nheader_timeout_seconds = 1")
        .start()
        .await;
    let bearer = format!("Authorization: Bearer {}\r\n", fleet.token());
    let json = "Content-Type: application/json\r\n";
    for (path, headers, begun) in [
        (
            "/v1/credentials",
            format!("{bearer}{json}Content-Length: 100\r\n"),
            "",
        ),
        (
            "/v1/credentials",
            format!("{bearer}{json}Content-Length: 100\r\n"),
            "{\"task\"",
        ),
        (
            "/v1/credentials",
            format!("{bearer}{json}Transfer-Encoding: chunked\r\n"),
            "7\r\n{\"task\"\r\n",
        ),
        (
            "/oauth2/token",
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n".to_owned(),
            "grant_type=",
        ),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n{begun}");
        let (told, text) = sent(&replica, &request);
        assert_eq!(told, Some(408), "{request:?}: {text}");
        assert!(text.contains("connection: close"), "{text}");
        let word = if path == "/oauth2/token" {
            "invalid_request"
        } else {
            "body-timeout"
        };
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_has_one_spelling_on_the_wire() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let granted = replica.ask(&fleet.token()).await.expect(201);
    let get = async |path: &str| replica.client.get_as(&fleet.admin, path).await;
    for (path, id) in [
        ("/v1/sessions", &granted["session"]["id"]),
        ("/v1/tasks", &granted["task"]["id"]),
        ("/v1/decisions", &granted["decision"]["id"]),
    ] {
        let id = id.as_str().unwrap();
        get(&format!("{path}/{id}")).await.expect(200);
        for other in [
            id.to_uppercase(),
            id.replace('-', ""),
            format!("%7B{id}%7D"),
            format!("urn:uuid:{id}"),
            format!("{id}%20"),
        ] {
            let answer = get(&format!("{path}/{other}")).await;
            assert_problem(&answer, 404, "not-found");
        }
    }
    get("/v1/ledger/entries/0").await.expect(200);
    for other in ["00", "%2B0", "-0", "0x0", "0.0", "%200"] {
        let answer = get(&format!("/v1/ledger/entries/{other}")).await;
        assert_problem(&answer, 404, "not-found");
        let answer = get(&format!("/status/{other}")).await;
        assert_problem(&answer, 404, "not-found");
        for query in [
            "/v1/ledger/consistency?from=",
            "/v1/ledger/entries/0/proof?tree_size=",
        ] {
            let answer = get(&format!("{query}{other}")).await;
            assert_problem(&answer, 400, "invalid-request");
        }
    }
    let task = granted["task"]["id"].as_str().unwrap().to_uppercase();
    let mut joining = body();
    joining["task"] = json!({"id": task, "handle": granted["task"]["handle"]});
    let joined = replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &joining)
        .await;
    assert_eq!(
        assert_problem(&joined, 400, "invalid-request")["pointer"],
        "/task/id"
    );
    let mut form = exchange(&fleet);
    form.retain(|(name, _)| *name != "task_type");
    let handle = granted["task"]["handle"].as_str().unwrap().to_owned();
    form.extend([("task", task), ("task_handle", handle)]);
    assert_eq!(token(&replica, &form).await.status, 400);
}

async fn forty_with_one_key(kind: Kind) {
    let (fleet, replica) = Fleet::on(kind).start().await;
    let ask = async || {
        let request = replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(fleet.token())
            .header("idempotency-key", "\"one\"")
            .json(&body());
        send(request).await
    };
    let answers = futures_util::future::join_all((0..40).map(|_| ask())).await;
    let mut granted = Vec::new();
    let mut ended_for = Vec::new();
    for answer in &answers {
        match answer.status {
            201 => granted.push(answer.json()),
            409 if answer.text().contains("already-issued") => ended_for.push(answer.json()),
            409 => {
                assert_problem(answer, 409, "in-progress");
                assert!(answer.header("retry-after").is_some());
            }
            status => panic!("{status}: {}", answer.text()),
        }
    }
    // One grant and at most three that supersede it; 409 may come only after all four.
    assert!((1..=4).contains(&granted.len()), "{}", granted.len());
    assert!(ended_for.is_empty() || granted.len() == 4, "{ended_for:?}");
    let mut good = Vec::new();
    for one in &granted {
        if fleet.is_good(&replica, one).await {
            good.push(one["session"]["id"].clone());
        }
    }
    assert_eq!(good.len(), 1, "{granted:?}");
    for told in &ended_for {
        assert_eq!(told["session_id"], good[0]);
    }
    let listed = replica
        .client
        .get_as(&fleet.admin, "/v1/sessions")
        .await
        .expect(200);
    for session in listed["sessions"].as_array().unwrap() {
        if session["id"] != good[0] {
            assert_eq!(session["end_reason"], "superseded", "{session}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_at_once_with_one_key_leave_one_live_credential_on_sqlite() {
    forty_with_one_key(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_at_once_with_one_key_leave_one_live_credential_on_postgresql() {
    forty_with_one_key(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_refused_where_a_repetition_is_not_recognised() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let ask = async |path: &str, body: &Value| {
        let request = replica
            .client
            .request(reqwest::Method::POST, path)
            .bearer_auth(fleet.token())
            .header("idempotency-key", "\"one\"")
            .json(body);
        send(request).await
    };
    for (path, body) in [
        ("/v1/tasks", json!({"type": "job"})),
        (
            "/v1/revocations",
            json!({"selector": {"all": true}, "reason": "a test"}),
        ),
        ("/v1/keys/rotate", Value::Null),
        ("/v1/keys/rotate-ledger", Value::Null),
    ] {
        let refused = ask(path, &body).await;
        let problem = assert_problem(&refused, 400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("POST /v1/credentials"), "{detail}");
    }
    let form: Vec<(&str, String)> = exchange(&fleet);
    let headers = [("idempotency-key", "\"one\"".to_owned())];
    let refused = crate::oauth::post(&replica, "/oauth2/token", &form, &headers).await;
    crate::support::http::assert_oauth_error(&refused, 400, "invalid_request");
    let listed = replica
        .client
        .get_as(&fleet.admin, "/v1/tasks")
        .await
        .expect(200);
    assert_eq!(listed["tasks"], json!([]), "nothing was opened");
}
