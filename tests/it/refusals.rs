//! The answers to invalid input, over HTTP from the real binary, on both stores.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{
    Answer, Client, assert_no_store, assert_oauth_error, assert_problem, open_sockets, send,
    send_slowly,
};
use crate::support::issuer::{Behaviour, unix_seconds};
use crate::support::keys::{self, Key};
use crate::support::rig::Kind;

fn body() -> Value {
    json!({
        "task": {"type": "job"}, "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut body = body();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() {
        Some(&mut body)
    } else {
        body.pointer_mut(parent)
    };
    parent.unwrap()[member] = value;
    body
}

async fn post(replica: &Replica, token: &str, body: &Value) -> Answer {
    replica
        .client
        .post_json(token, "/v1/credentials", body)
        .await
}

async fn raw(replica: &Replica, token: &str, media_type: &str, body: &str) -> Answer {
    let request = replica
        .client
        .request(reqwest::Method::POST, "/v1/credentials")
        .bearer_auth(token)
        .header("content-type", media_type)
        .body(body.to_owned());
    send(request).await
}

async fn nothing_was_issued((fleet, replica): &(Fleet, Replica)) {
    let listed = replica
        .client
        .get_as(&fleet.admin, "/v1/sessions")
        .await
        .expect(200);
    assert_eq!(listed["sessions"], json!([]), "a session was issued");
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

on_both_stores! {
    by reference then nothing_was_issued;

    fn what_is_not_well_formed_is_pointed_at;
    fn what_is_unknown_is_named;
    fn a_forger_learns_nothing;
    fn paths_methods_forms_and_cursors;
    fn an_issuer_that_misbehaves_harms_nobody_else;
    fn who_may_not_act_cannot_send_the_same_again;
    fn slow_and_many_clients_do_not_stop_the_service;
}

async fn what_is_not_well_formed_is_pointed_at((fleet, replica): &(Fleet, Replica)) {
    let token = fleet.token();
    let cases = [
        (with("/resource", json!(7)), "/resource"),
        (with("/extra", json!(1)), "/extra"),
        (with("/ttl_seconds", json!(0)), "/ttl_seconds"),
        (with("/ttl_seconds", json!(-1)), "/ttl_seconds"),
        (with("/ttl_seconds", json!(1.5)), "/ttl_seconds"),
        (
            with("/task/deadline_seconds", json!(0)),
            "/task/deadline_seconds",
        ),
        (
            with("/task/purpose", json!("x".repeat(1_025))),
            "/task/purpose",
        ),
        (with("/task/id", json!("nonsense")), "/task/id"),
        (with("/task/handle", json!("tph_x")), "/task"),
        (
            with("/authorization_details", json!([])),
            "/authorization_details",
        ),
        (
            with("/authorization_details/0/extra", json!(1)),
            "/authorization_details",
        ),
        (
            with("/authorization_details/0/type", json!("gcp")),
            "/authorization_details",
        ),
        (
            with(
                "/authorization_details/0/locations",
                json!(["http://orders.example/v1"]),
            ),
            "/authorization_details",
        ),
    ];
    for (body, pointer) in cases {
        let problem = assert_problem(&post(replica, &token, &body).await, 400, "invalid-request");
        assert!(
            problem["pointer"].as_str().unwrap().starts_with(pointer),
            "{body}: {problem}"
        );
    }
    for broken in [
        "",
        "{",
        "null",
        "[]",
        "{\"task\":{},\"task\":{}}",
        "{\"resource\":\"a\\u0000b\"}",
        &format!("{} x", body()),
    ] {
        let answer = raw(replica, &token, "application/json", broken).await;
        assert_problem(&answer, 400, "invalid-request");
    }
    let answer = raw(replica, &token, "text/plain", &body().to_string()).await;
    assert_problem(&answer, 415, "unsupported-media-type");
    let large = with("/task/purpose", json!("x".repeat(70_000)));
    assert_problem(
        &post(replica, &token, &large).await,
        413,
        "payload-too-large",
    );
    // These refusals did not use the token up.
    assert_problem(
        &post(replica, &token, &with("/resource", json!("x"))).await,
        403,
        "denied",
    );
}

async fn what_is_unknown_is_named((fleet, replica): &(Fleet, Replica)) {
    for (body, code, name) in [
        (
            with("/resource", json!("billing")),
            "unknown-resource",
            "billing",
        ),
        (
            with("/task/type", json!("holiday")),
            "unknown-task-type",
            "holiday",
        ),
        (
            with("/authorization_details/0/actions", json!(["orders:burn"])),
            "unknown-action",
            "orders:burn",
        ),
        (
            with(
                "/authorization_details/0/locations",
                json!(["https://evil.example/v1"]),
            ),
            "unknown-location",
            "evil.example",
        ),
        (with("/ttl_seconds", json!(601)), "ttl-too-long", "600"),
        (with("/ttl_seconds", json!(999_999)), "ttl-too-long", "600"),
        (
            with("/task/deadline_seconds", json!(3_601)),
            "deadline-too-long",
            "3600",
        ),
    ] {
        let answer = post(replica, &fleet.token(), &body).await;
        let problem = assert_problem(&answer, 403, "denied");
        assert_no_store(&answer);
        assert_eq!(problem["code"], code);
        assert!(
            problem["detail"].as_str().unwrap().contains(name),
            "{problem}"
        );
        assert!(
            problem["receipt"]["checkpoint"].is_string(),
            "a denial is recorded"
        );
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
async fn a_forger_learns_nothing((fleet, replica): &(Fleet, Replica)) {
    let now = unix_seconds();
    let good = json!({"sub": "agent:reports", "run": "run-1"});
    let claims = |more: Value| {
        let mut claims = good.clone();
        for (name, value) in more.as_object().cloned().unwrap() {
            claims[name] = value;
        }
        fleet.issuer.token(claims)
    };
    let key = fleet.issuer.key();
    let all = fleet.issuer.claims(good.clone());
    let header = |name: &str, value: Value| {
        let mut header = key.header();
        header[name] = value;
        fleet
            .issuer
            .token_with(&header, &fleet.issuer.claims(good.clone()), &key)
    };
    let stranger = Key::generate(keys::Algorithm::Es256);
    let mut same_kid = stranger.header();
    same_kid["kid"] = key.header()["kid"].clone();
    // The issuer signed these, so their holder may learn the fault.
    let signed = [
        claims(json!({"exp": now - 60, "iat": now - 120})),
        claims(json!({"iat": now + 3_600, "exp": now + 7_200})),
        claims(json!({"nbf": now + 3_600})),
        claims(json!({"iat": now - 7_200})),
        claims(json!({"exp": null})),
        claims(json!({"iat": null})),
        claims(json!({"aud": "https://other.example"})),
        claims(json!({"aud": ["https://taskpass.test", "https://other.example"]})),
        claims(json!({"aud": null})),
        claims(json!({"sub": 7})),
        claims(json!({"sub": ""})),
        claims(json!({"run": null})),
        header("typ", json!("at+jwt")),
        header("typ", json!("dpop+jwt")),
    ];
    let forged = [
        claims(json!({"iss": format!("{}/", fleet.issuer.url())})),
        claims(json!({"iss": "https://evil.example"})),
        keys::unsigned_jwt(&json!({"alg": "none", "typ": "JWT"}), &all),
        keys::hmac_jwt(
            &json!({"alg": "HS256", "typ": "JWT", "kid": key.kid}),
            &all,
            key.public_pem().as_bytes(),
        ),
        fleet.issuer.token_with(
            &stranger.header(),
            &fleet.issuer.claims(good.clone()),
            &stranger,
        ),
        fleet
            .issuer
            .token_with(&same_kid, &fleet.issuer.claims(good.clone()), &stranger),
        header("kid", json!("../../../../etc/passwd")),
        header("kid", json!("' OR 1=1 --")),
        header("jku", json!("https://evil.example/jwks")),
        header("x5u", json!("https://evil.example/cert")),
        header("jwk", stranger.jwk()),
        header("crit", json!(["exp"])),
        header("alg", json!("ES384")),
        "x".repeat(20_000),
        "not.a.jwt".to_owned(),
        "tpa_guess".to_owned(),
        "tph_guess".to_owned(),
    ];
    let nobody = send(
        replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .json(&body()),
    )
    .await;
    assert_problem(&nobody, 401, "attestation-failed");
    for (n, token) in forged.iter().enumerate() {
        let answer = post(replica, token, &body()).await;
        assert_problem(&answer, 401, "attestation-failed");
        assert_eq!(
            answer.text(),
            nobody.text(),
            "the answer to forgery {n} differs"
        );
    }
    for (n, token) in signed.iter().enumerate() {
        let problem = assert_problem(
            &post(replica, token, &body()).await,
            401,
            "attestation-failed",
        );
        assert!(
            problem["reason"].is_string() && problem["claim"].is_string(),
            "{n}: {problem}"
        );
    }
    // Two credentials in one request, a handle as an attestation, and an attestation as a
    // handle.
    let twice = replica
        .client
        .request(reqwest::Method::POST, "/v1/credentials")
        .bearer_auth(fleet.token())
        .header("authorization", "Bearer x")
        .json(&body());
    assert_problem(&send(twice).await, 401, "attestation-failed");
    let unknown = "/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057/heartbeat";
    let handle = replica
        .client
        .request(reqwest::Method::POST, unknown)
        .header("authorization", format!("Handle {}", fleet.token()));
    assert_problem(&send(handle).await, 404, "not-found");
}

async fn paths_methods_forms_and_cursors((fleet, replica): &(Fleet, Replica)) {
    assert_problem(&replica.client.get("/v1/nothing").await, 404, "not-found");
    assert_problem(
        &replica.client.get("/v1/credentials").await,
        405,
        "method-not-allowed",
    );
    let form = |body: &'static str| {
        replica
            .client
            .request(reqwest::Method::POST, "/oauth2/introspect")
            .bearer_auth(&fleet.admin)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    };
    assert_oauth_error(&send(form("token=a&token=b")).await, 400, "invalid_request");
    assert_oauth_error(&send(form("")).await, 400, "invalid_request");
    assert_eq!(
        send(form("token=a.b.c")).await.expect(200),
        json!({"active": false})
    );
    for query in [
        "cursor=nonsense",
        "limit=0",
        "limit=501",
        "limit=x",
        "colour=red",
        "state=alive",
    ] {
        let path = format!("/v1/sessions?{query}");
        assert_problem(
            &replica.client.get_as(&fleet.admin, &path).await,
            400,
            "invalid-request",
        );
    }
    for path in [
        "/v1/sessions/x",
        "/v1/tasks/x",
        "/v1/decisions/x",
        "/v1/ledger/entries/99999999",
        "/ledger/tile/0/x999/999",
        "/ledger/tile/9/000",
        "/v1/ledger/consistency?from=0&to=99999999",
    ] {
        assert_problem(
            &replica.client.get_as(&fleet.admin, path).await,
            404,
            "not-found",
        );
    }
    // This broker's log is not public.
    for path in [
        "/v1/ledger/checkpoint",
        "/v1/ledger/keys",
        "/ledger/checkpoint",
        "/ledger/tile/0/000.p/1",
    ] {
        assert_ne!(replica.client.get(path).await.status, 200, "{path}");
    }
    let described = replica.client.get("/openapi.json").await.expect(200);
    for (path, methods) in described["paths"].as_object().unwrap() {
        let filled = path
            .replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057")
            .replace("{index}", "0")
            .replace("{kid}", "x");
        for method in methods.as_object().unwrap().keys() {
            let method: reqwest::Method = method.to_uppercase().parse().unwrap();
            let answer = send(replica.client.request(method, &filled)).await;
            assert_ne!(answer.status, 405, "{path}");
            assert!(answer.status < 500, "{path}: {}", answer.text());
        }
    }
}

async fn an_issuer_that_misbehaves_harms_nobody_else((fleet, replica): &(Fleet, Replica)) {
    // Make the broker fetch the keys, so that it can serve others from its cache.
    let other = fleet.token();
    assert_problem(
        &post(replica, &other, &with("/resource", json!("x"))).await,
        403,
        "denied",
    );
    for behaviour in [
        Behaviour::Status(500),
        Behaviour::Redirect,
        Behaviour::Garbage,
        Behaviour::Flood,
        Behaviour::Merge(json!({"issuer": "https://evil.example"})),
    ] {
        fleet.issuer.discovery(behaviour.clone());
        fleet.issuer.jwks(behaviour);
        // An unknown key makes the broker fetch the keys again.
        let stranger = Key::generate(keys::Algorithm::Es256);
        let claims = fleet
            .issuer
            .claims(json!({"sub": "agent:reports", "run": "run-1"}));
        let unknown = fleet
            .issuer
            .token_with(&stranger.header(), &claims, &stranger);
        // During the pause between two fetches the broker does not look for the key; afterwards
        // the fetch fails.
        let refused = post(replica, &unknown, &body()).await;
        let slug = if refused.status == 503 {
            "attestation-unavailable"
        } else {
            "attestation-failed"
        };
        assert_problem(
            &refused,
            if slug == "attestation-failed" {
                401
            } else {
                503
            },
            slug,
        );
        let known = post(replica, &fleet.token(), &with("/resource", json!("x"))).await;
        assert_problem(&known, 403, "denied");
    }
}

async fn who_may_not_act_cannot_send_the_same_again((fleet, replica): &(Fleet, Replica)) {
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let everything = json!({"selector": {"all": true}, "reason": "x"});
    for (path, body, status, code) in [
        ("/v1/revocations".into(), everything, 403, "forbidden"),
        (
            format!("/v1/sessions/{unknown}/revoke"),
            json!({}),
            404,
            "not-found",
        ),
        (
            format!("/v1/tasks/{unknown}/abort"),
            json!({}),
            404,
            "not-found",
        ),
    ] {
        let token = fleet.token();
        let refused = replica.client.post_json(&token, &path, &body).await;
        assert_problem(&refused, status, code);
        let again = replica.client.post_json(&token, &path, &body).await;
        assert_problem(&again, 401, "attestation-failed");
    }
}

async fn slow_and_many_clients_do_not_stop_the_service((fleet, replica): &(Fleet, Replica)) {
    let idle = open_sockets(replica.address, 1_000);
    let head = b"POST /v1/credentials HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_vec();
    let address = replica.address;
    let slow = std::thread::spawn(move || {
        send_slowly(
            address,
            &[head, vec![b'a'; 4_096]].concat(),
            Duration::from_millis(200),
            Duration::from_secs(15),
        )
    });
    let answer = post(replica, &fleet.token(), &with("/resource", json!("x"))).await;
    assert_problem(&answer, 403, "denied");
    let outcome = slow.join().unwrap();
    assert!(
        outcome.ended_after.is_some(),
        "the broker closes a slow client's connection"
    );
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_someone_elses_looks_like_nothing() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let granted = post(&replica, &fleet.token(), &body()).await.expect(201);
    let thief = |path: String| {
        let token = fleet
            .issuer
            .token(json!({"sub": "agent:orders", "run": "run-1"}));
        let client = Client::new(&format!("http://{}", replica.address));
        async move { client.get_as(&token, &path).await }
    };
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (path, own) in [
        ("/v1/sessions", &granted["session"]["id"]),
        ("/v1/tasks", &granted["task"]["id"]),
        ("/v1/decisions", &granted["decision"]["id"]),
    ] {
        let theirs = thief(format!("{path}/{}", own.as_str().unwrap())).await;
        let nobodys = thief(format!("{path}/{unknown}")).await;
        assert_problem(&theirs, 404, "not-found");
        assert_eq!(theirs.text(), nobodys.text());
    }
    // Introspection by a caller that is not a verifier of the resource.
    let token = fleet
        .issuer
        .token(json!({"sub": "agent:orders", "run": "run-1"}));
    let request = replica
        .client
        .request(reqwest::Method::POST, "/oauth2/introspect")
        .bearer_auth(token)
        .form(&[(
            "token",
            granted["credential"]["access_token"].as_str().unwrap(),
        )]);
    assert_eq!(send(request).await.expect(200), json!({"active": false}));
    // The owner may read its own decision, and the inclusion proof verifies.
    let own = replica
        .client
        .get_as(
            &fleet.token(),
            &format!(
                "/v1/decisions/{}",
                granted["decision"]["id"].as_str().unwrap()
            ),
        )
        .await
        .expect(200);
    assert_eq!(own["leaf"]["session"], granted["session"]["id"]);
    assert!(
        !replica
            .process
            .stderr()
            .contains(granted["credential"]["access_token"].as_str().unwrap())
    );
    let metrics = replica.client.get("/metrics").await;
    assert!(
        !metrics
            .text()
            .contains(granted["session"]["id"].as_str().unwrap())
    );
}
