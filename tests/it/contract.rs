//! Rules that every HTTP answer follows, for every caller and every error, on both stores.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{
    Answer, assert_no_store, assert_oauth_error, assert_problem, exchange_raw, raw_status, send,
};
use crate::support::rig::Kind;

async fn admin_get(fleet: &Fleet, replica: &Replica, path: &str) -> Answer {
    replica.client.get_as(&fleet.admin, path).await
}

fn introspect(fleet: &Fleet, replica: &Replica, form: &'static str) -> reqwest::RequestBuilder {
    replica
        .client
        .request(reqwest::Method::POST, "/oauth2/introspect")
        .bearer_auth(&fleet.admin)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

on_both_stores! {
    by reference;

    fn a_nul_in_a_query_or_a_path_never_reaches_the_store;
    fn a_query_is_as_strict_as_a_body;
    fn what_cannot_be_read_as_a_path_is_a_problem_too;
    fn introspection_speaks_oauth_whatever_is_wrong;
    fn a_large_body_is_read_only_for_whoever_may_send_it;
    fn a_repeated_or_unstorable_member_is_pointed_at;
    fn text_that_hides_or_moves_what_is_read_is_refused_at_every_door;
    fn every_answer_has_its_headers;
}

async fn a_nul_in_a_query_or_a_path_never_reaches_the_store((fleet, replica): &(Fleet, Replica)) {
    for (query, pointer) in [
        ("/v1/sessions?workload=a%00b", "/workload"),
        ("/v1/sessions?resource=%00", "/resource"),
        ("/v1/sessions?%00=1", ""),
        ("/v1/tasks?owner=%00", "/owner"),
    ] {
        let answer = admin_get(fleet, replica, query).await;
        let problem = assert_problem(&answer, 400, "invalid-request");
        assert_eq!(problem["pointer"], pointer, "{query}");
    }
    for path in [
        "/v1/sessions/%00",
        "/v1/tasks/%00",
        "/v1/revocations/%00",
        "/v1/ledger/entries/%00",
    ] {
        assert_problem(&admin_get(fleet, replica, path).await, 404, "not-found");
    }
    for kid in ["%00", "%FF"] {
        let path = format!("/v1/keys/{kid}/revoke");
        let request = replica
            .client
            .request(reqwest::Method::POST, &path)
            .bearer_auth(&fleet.admin);
        assert_problem(&send(request).await, 404, "not-found");
    }
}

async fn a_query_is_as_strict_as_a_body((fleet, replica): &(Fleet, Replica)) {
    for (query, pointer) in [
        ("resource=a&resource=b", "/resource"),
        ("limit=1&limit=1", "/limit"),
        ("limit=x", "/limit"),
        ("state=alive", "/state"),
        ("task=nonsense", "/task"),
        ("colour=red", "/colour"),
    ] {
        let answer = admin_get(fleet, replica, &format!("/v1/sessions?{query}")).await;
        let problem = assert_problem(&answer, 400, "invalid-request");
        assert_eq!(problem["pointer"], pointer, "{query}");
    }
    for query in ["", "?from=x", "?from=1&from=2"] {
        let answer = admin_get(fleet, replica, &format!("/v1/ledger/consistency{query}")).await;
        assert_problem(&answer, 400, "invalid-request");
    }
}

async fn what_cannot_be_read_as_a_path_is_a_problem_too((fleet, replica): &(Fleet, Replica)) {
    for path in [
        "/v1/sessions/%FF",
        "/v1/tasks/%FF",
        "/v1/decisions/%FF",
        "/ledger/%FF",
        "/v1/ledger/entries/%FF",
    ] {
        assert_problem(&admin_get(fleet, replica, path).await, 404, "not-found");
    }
}

async fn introspection_speaks_oauth_whatever_is_wrong((fleet, replica): &(Fleet, Replica)) {
    for form in [
        "token=",
        "token=a&x=1&x=2",
        "token=a&token_type_hint=x&token_type_hint=x",
        "token=%00&token=",
    ] {
        let answer = send(introspect(fleet, replica, form)).await;
        assert_oauth_error(&answer, 400, "invalid_request");
        assert_no_store(&answer);
    }
    // Two credentials in one request: the broker accepts neither.
    let twice = introspect(fleet, replica, "token=a").header("authorization", "Bearer x");
    assert_oauth_error(&send(twice).await, 401, "invalid_client");
    let one_unknown = send(introspect(fleet, replica, "token=a.b.c&unknown=1")).await;
    assert_eq!(one_unknown.expect(200), json!({"active": false}));
}

async fn a_large_body_is_read_only_for_whoever_may_send_it((fleet, replica): &(Fleet, Replica)) {
    // The body is above the ordinary limit and below that of a generation, so only the caller's
    // rights decide.
    let large = json!({"policies": "x".repeat(100_000)});
    let length = large.to_string().len();
    // Without the right to activate, the request is refused before any byte of the body
    // arrives.
    let refused = |authorization: String| {
        let head = format!(
            "POST /v1/generations HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\n{authorization}\r\n",
            replica.address
        );
        raw_status(&exchange_raw(
            replica.address,
            head.as_bytes(),
            Duration::from_secs(5),
        ))
    };
    assert_eq!(refused(String::new()), Some(401));
    assert_eq!(
        refused(format!("Authorization: Bearer {}\r\n", fleet.token())),
        Some(403)
    );
    let admin = replica
        .client
        .post_json(&fleet.admin, "/v1/generations", &large)
        .await;
    assert_problem(&admin, 400, "invalid-request");
}

async fn a_repeated_or_unstorable_member_is_pointed_at((fleet, replica): &(Fleet, Replica)) {
    for (body, pointer) in [
        (
            r#"{"selector": {"all": true}, "reason": "a", "reason": "b"}"#,
            "/reason",
        ),
        (
            r#"{"reason": "a", "selector": {"workload": "x", "workload": "y"}}"#,
            "/selector/workload",
        ),
        (
            "{\"reason\": \"a\\u0000\", \"selector\": {\"all\": true}}",
            "/reason",
        ),
        (
            "{\"reason\": \"a\", \"selector\": {\"workload\": \"\\u0000\"}}",
            "/selector/workload",
        ),
    ] {
        let request = replica
            .client
            .request(reqwest::Method::POST, "/v1/revocations")
            .bearer_auth(&fleet.admin)
            .header("content-type", "application/json")
            .body(body);
        let problem = assert_problem(&send(request).await, 400, "invalid-request");
        assert_eq!(problem["pointer"], pointer, "{body}");
    }
}

async fn text_that_hides_or_moves_what_is_read_is_refused_at_every_door(
    (fleet, replica): &(Fleet, Replica),
) {
    for (bad, code) in [
        ("\u{1b}[2J", "U+001B"),
        ("\u{9b}31m", "U+009B"),
        ("\u{202e}", "U+202E"),
        ("\u{200b}", "U+200B"),
        ("\u{2066}", "U+2066"),
        ("\u{feff}", "U+FEFF"),
    ] {
        let text = format!("pay {bad}roll");
        let ask = async |token: &str, path: &str, body: Value, pointer: &str| {
            let answer = replica.client.post_json(token, path, &body).await;
            let problem = assert_problem(&answer, 400, "invalid-request");
            assert_eq!(problem["pointer"], pointer, "{path}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(
                detail.contains(code) && detail.is_ascii(),
                "{path}: {detail}"
            );
        };
        let mut credential = body();
        credential["task"]["purpose"] = text.clone().into();
        ask(
            &fleet.token(),
            "/v1/credentials",
            credential,
            "/task/purpose",
        )
        .await;
        let task = json!({"type": "job", "purpose": text});
        ask(&fleet.token(), "/v1/tasks", task, "/purpose").await;
        let revocation = json!({"selector": {"all": true}, "reason": text});
        ask(&fleet.admin, "/v1/revocations", revocation, "/reason").await;
        let session = "/v1/sessions/01890a5d-ac96-774b-bcce-b302099a8057/revoke";
        ask(&fleet.admin, session, json!({"reason": text}), "/reason").await;
        let time = json!({"time": "2030-01-01T00:00:00Z", "reason": text});
        ask(&fleet.admin, "/v1/ledger/accept-time", time, "/reason").await;
    }
    // Text in other scripts and line feeds are accepted.
    let mut credential = body();
    credential["task"]["purpose"] = "report\n\u{645}\u{631}\u{62d}\u{628}\u{627}".into();
    replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &credential)
        .await
        .expect(201);
}

async fn every_answer_has_its_headers((fleet, replica): &(Fleet, Replica)) {
    for (path, status) in [
        ("/livez", 200),
        ("/v1/nothing", 404),
        ("/v1/credentials", 405),
        ("/v1/sessions", 401),
    ] {
        let answer = replica.client.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(
            answer.headers["x-content-type-options"], "nosniff",
            "{path}"
        );
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        assert!(answer.headers.contains_key("traceparent"), "{path}");
        assert_eq!(answer.headers["x-request-id"].len(), 16, "{path}");
    }
    let wrong_method = replica.client.get("/v1/credentials").await;
    assert_eq!(wrong_method.headers["allow"], "POST");
    // The broker ignores the caller's `X-Request-Id`.
    let named = replica
        .client
        .request(reqwest::Method::GET, "/livez")
        .header("x-request-id", "mine");
    assert_ne!(send(named).await.headers["x-request-id"], "mine");
    let fresh = admin_get(fleet, replica, "/v1/sessions").await;
    assert_eq!(fresh.headers["cache-control"], "no-store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_and_each_method_is_described_and_nothing_else() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    let document: Value = replica.client.get("/openapi.json").await.expect(200);
    for (path, item) in document["paths"].as_object().unwrap() {
        let sample = path
            .replace("{path}", "checkpoint")
            .replace("{list}", "0")
            .replace("{index}", "0")
            .replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057")
            .replace("{kid}", "none")
            .replace("{digest}", "sha256:00");
        assert!(!sample.contains('{'), "{sample}");
        let mut described: BTreeSet<String> = item
            .as_object()
            .unwrap()
            .keys()
            .map(|one| one.to_uppercase())
            .collect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let named = method.parse().unwrap();
            let answer = send(replica.client.request(named, &sample)).await;
            let context = format!("{method} {path}: {}", answer.text());
            let routed = answer.status != 405 && !answer.text().contains("no such resource");
            assert_eq!(routed, described.contains(method), "{context}");
            if !routed {
                if described.contains("GET") {
                    described.insert("HEAD".to_owned());
                }
                let allowed = answer.header("allow").unwrap_or_default().split(',');
                let allowed: BTreeSet<_> = allowed.map(|one| one.trim().to_owned()).collect();
                assert_eq!(allowed, described, "{context}");
            }
        }
    }
    for path in [
        "/",
        "/v1",
        "/v1/nothing",
        "/v2/sessions",
        "/oauth2",
        "/ledger",
        "/docs",
    ] {
        assert_problem(&replica.client.get(path).await, 404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_whole() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    let document: Value = replica.client.get("/openapi.json").await.expect(200);
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let called = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{called} has a summary");
            for requirement in operation["security"].as_array().unwrap_or(&Vec::new()) {
                for scheme in requirement.as_object().unwrap().keys() {
                    assert!(schemes.contains_key(scheme), "{called}: {scheme}");
                }
            }
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.contains_key("429"),
                "{called} must document its rate limit"
            );
            assert!(
                responses.contains_key("503"),
                "{called} must document its timeout"
            );
            // Only public paths may declare no security.
            let open = operation["security"] == json!([]);
            let public = path.contains("/.well-known/")
                || path.starts_with("/status/")
                || ["/livez", "/readyz", "/openapi.json"].contains(&path.as_str());
            assert_eq!(open, public, "{called}: {}", operation["security"]);
            assert_eq!(
                responses.contains_key("401"),
                !open,
                "{called} must declare that it authenticates callers"
            );
            for parameter in operation["parameters"].as_array().unwrap_or(&Vec::new()) {
                if let Some(name) = parameter["name"].as_str() {
                    let in_path = path.contains(&format!("{{{name}}}"));
                    assert_eq!(parameter["in"] == "path", in_path, "{called}: {name}");
                }
            }
            for (status, response) in responses {
                let headers = &response["headers"];
                assert!(headers["x-request-id"].is_object(), "{called}: {status}");
                let challenged = headers["WWW-Authenticate"].is_object();
                assert_eq!(challenged, status == "401", "{called}: {status}");
                assert!(headers["DPoP-Nonce"].is_object(), "{called}: {status}");
            }
            if operation["requestBody"].is_object() {
                for status in ["400", "413", "415"] {
                    assert!(responses.contains_key(status), "{called}: {status}");
                }
            }
            for (status, response) in responses {
                if status.starts_with(['4', '5']) {
                    let content = response["content"].as_object().unwrap();
                    let media_type = if path.starts_with("/oauth2/") {
                        "application/json"
                    } else {
                        "application/problem+json"
                    };
                    assert!(content.contains_key(media_type), "{called}: {status}");
                }
            }
        }
    }
    // Generated clients depend on the description, so a change must be visible: `make openapi`
    // rewrites the file.
    let kept: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap();
    assert!(
        document == kept,
        "docs/openapi.json differs from the description that the broker serves"
    );
    for path in [
        "/openapi.json",
        "/ledger/{path}",
        "/v1/credentials",
        "/.well-known/jwks.json",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}
