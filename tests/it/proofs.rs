//! Evidence with a key: registered workload keys, reusable tokens, and tasks and handles that are
//! bound to the key of a DPoP proof (RFC 9449). Over HTTP, on both stores.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::issuer::unix_seconds;
use crate::support::keys::{Algorithm, Key, peek, sign_jwt};
use crate::support::process::{Ended, Launch};
use crate::support::random_hex;
use crate::support::rig::Kind;

/// The broker's issuer URL. The broker listens at another address in each test.
const BROKER: &str = "http://127.0.0.1:7070";
const BOUND: &str = "https://bound.taskpass.test";
const PER_TASK: &str = "https://per-task.taskpass.test";

const REGISTRAR: &str = r#"
@id("registrar") @description("the tests register keys")
permit (principal == Workload::dev::"dev:registrar", action == Action::"manageWorkloads",
  resource == Broker::"taskpass");
"#;

/// Policies that permit the workload of one attestor to open tasks and read orders.
fn policies(attestor: &str, name: &str) -> String {
    let who = format!("principal == Workload::{attestor}::\"{attestor}:{name}\"");
    format!(
        "@id(\"{attestor}-open\") @description(\"opens\") permit ({who}, \
         action == Action::\"openTask\", resource == TaskType::\"job\");\n\
         @id(\"{attestor}-read\") @description(\"reads\") @max_ttl(\"600\") permit ({who}, \
         action == Action::\"orders:read\", resource == Api::\"orders-api\");\n"
    )
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    let attestors = |issuer: &crate::support::issuer::Issuer| {
        let oidc = |name: &str, audience: &str, reuse: &str| {
            format!(
                r#"
[[attestors]]
kind = "oidc"
name = "{name}"
issuer = "{issuer}"
audience = "{audience}"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
instance = "{{run}}"
reuse = "{reuse}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
run = {{ type = "string", immutable = true, hidden = true }}
"#,
                issuer = issuer.url(),
            )
        };
        let keys = "[[attestors]]\nkind = \"key\"\nname = \"workload\"\n";
        [
            oidc("bound", BOUND, "bound"),
            oidc("steps", PER_TASK, "per_task"),
            keys.to_owned(),
        ]
        .concat()
    };
    let policies = [
        policies("bound", "agent"),
        policies("steps", "agent"),
        policies("workload", "nightly"),
        REGISTRAR.to_owned(),
    ];
    Fleet::on(kind)
        .attestors(attestors)
        .more_policies(&policies.concat())
        .start()
        .await
}

fn token(fleet: &Fleet, audience: &str) -> String {
    let claims = json!({"sub": "agent", "run": "run-1", "aud": audience});
    fleet.issuer.token(claims)
}

/// A fresh proof by `key` for a POST to `path`.
fn proof(key: &Key, path: &str, nonce: &str) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let claims = json!({
        "jti": random_hex(16), "htm": "POST", "htu": format!("{BROKER}{path}"),
        "iat": unix_seconds(), "nonce": nonce,
    });
    sign_jwt(&header, &claims, key)
}

/// The headers of a request.
struct Headers<'a> {
    authorization: String,
    proof: Option<&'a Key>,
}

async fn post(replica: &Replica, path: &str, headers: Headers<'_>, body: &Value) -> Answer {
    let mut request = replica
        .client
        .request(Method::POST, path)
        .header("authorization", headers.authorization)
        .json(body);
    if let Some(key) = headers.proof {
        let nonce = replica.nonce().await;
        request = request.header("dpop", proof(key, path, &nonce));
    }
    send(request).await
}

async fn ask(replica: &Replica, token: &str, key: Option<&Key>, body: &Value) -> Answer {
    let headers = Headers {
        authorization: format!("Bearer {token}"),
        proof: key,
    };
    post(replica, "/v1/credentials", headers, body).await
}

async fn heartbeat(replica: &Replica, granted: &Value, key: Option<&Key>) -> Answer {
    let id = granted["task"]["id"].as_str().unwrap();
    let headers = Headers {
        authorization: format!("Handle {}", granted["task"]["handle"].as_str().unwrap()),
        proof: key,
    };
    post(
        replica,
        &format!("/v1/tasks/{id}/heartbeat"),
        headers,
        &json!({}),
    )
    .await
}

fn joining(granted: &Value) -> Value {
    let mut body = body();
    body["task"] = json!({"id": granted["task"]["id"], "handle": granted["task"]["handle"]});
    body
}

fn attestation_failed(answer: &Answer) {
    assert_problem(answer, 401, "attestation-failed");
}

on_both_stores! {
    by reference;

    fn a_bound_token_comes_again_only_with_a_proof_by_its_first_key;
    fn a_proof_is_good_once;
    fn a_proof_without_our_nonce_is_told_which_and_uses_nothing_up;
    fn a_token_for_one_task_opens_it_and_then_acts_on_it_alone;
    fn a_handle_is_bound_to_the_key_that_opened_its_task;
    fn a_workload_with_a_registered_key_is_known_until_the_key_is_removed;
}

async fn a_bound_token_comes_again_only_with_a_proof_by_its_first_key(
    (fleet, replica): &(Fleet, Replica),
) {
    let (own, other) = (
        Key::generate(Algorithm::Es256),
        Key::generate(Algorithm::Es256),
    );
    let bound = token(fleet, BOUND);
    ask(replica, &bound, Some(&own), &body()).await.expect(201);
    attestation_failed(&ask(replica, &bound, None, &body()).await);
    attestation_failed(&ask(replica, &bound, Some(&other), &body()).await);
    ask(replica, &bound, Some(&own), &body()).await.expect(201);
    // Without a proof the token is refused, and used up.
    let bare = token(fleet, BOUND);
    attestation_failed(&ask(replica, &bare, None, &body()).await);
    attestation_failed(&ask(replica, &bare, Some(&own), &body()).await);
}

async fn a_proof_is_good_once((fleet, replica): &(Fleet, Replica)) {
    let own = Key::generate(Algorithm::Es256);
    let bound = token(fleet, BOUND);
    let one = proof(&own, "/v1/credentials", &replica.nonce().await);
    let request = || {
        let request = replica.client.request(Method::POST, "/v1/credentials");
        send(
            request
                .bearer_auth(&bound)
                .header("dpop", &one)
                .json(&body()),
        )
    };
    request().await.expect(201);
    attestation_failed(&request().await);
}

async fn a_proof_without_our_nonce_is_told_which_and_uses_nothing_up(
    (fleet, replica): &(Fleet, Replica),
) {
    let own = Key::generate(Algorithm::Es256);
    let bound = token(fleet, BOUND);
    let ask = async |nonce: &str| {
        let proof = proof(&own, "/v1/credentials", nonce);
        let request = replica.client.request(Method::POST, "/v1/credentials");
        send(
            request
                .bearer_auth(&bound)
                .header("dpop", &proof)
                .json(&body()),
        )
        .await
    };
    let refused = ask("of-yesterday").await;
    assert_problem(&refused, 401, "use-dpop-nonce");
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(
        challenge.starts_with("DPoP error=\"use_dpop_nonce\""),
        "{challenge}"
    );
    let given = refused.header("dpop-nonce").unwrap().to_owned();
    let granted = ask(&given).await;
    assert!(
        granted.header("dpop-nonce").is_some(),
        "each answer carries the next nonce"
    );
    granted.expect(201);
    // A request without a proof gets no nonce.
    let bare = send(replica.client.request(Method::GET, "/livez")).await;
    assert_eq!(bare.header("dpop-nonce"), None);
}

async fn a_token_for_one_task_opens_it_and_then_acts_on_it_alone(
    (fleet, replica): &(Fleet, Replica),
) {
    let once = token(fleet, PER_TASK);
    let granted = ask(replica, &once, None, &body()).await.expect(201);
    // The token opens no second task, and without the handle it does not join the first.
    attestation_failed(&ask(replica, &once, None, &body()).await);
    let mut guessed = joining(&granted);
    guessed["task"]["handle"] = json!(format!("tph_{}", "A".repeat(43)));
    assert_problem(&ask(replica, &once, None, &guessed).await, 404, "not-found");
    let again = ask(replica, &once, None, &joining(&granted))
        .await
        .expect(201);
    assert_eq!(again["task"]["id"], granted["task"]["id"]);
    // A byte-for-byte repetition of the request is refused with any idempotency key.
    let keyed = |token: String| {
        let request = replica.client.request(Method::POST, "/v1/credentials");
        let request = request
            .header("idempotency-key", "\"k\"")
            .bearer_auth(token);
        send(request.json(&body()))
    };
    let third = token(fleet, PER_TASK);
    let first = keyed(third.clone()).await.expect(201);
    attestation_failed(&keyed(third.clone()).await);
    ask(replica, &third, None, &joining(&first))
        .await
        .expect(201);
    let fresh = token(fleet, PER_TASK);
    let retried = keyed(fresh.clone()).await.expect(201);
    assert_eq!(retried["task"]["id"], first["task"]["id"]);
    ask(replica, &fresh, None, &joining(&retried))
        .await
        .expect(201);
    // The token does not join another task of the same workload and run, even with that task's
    // handle.
    let other = token(fleet, PER_TASK);
    let second = ask(replica, &other, None, &body()).await.expect(201);
    attestation_failed(&ask(replica, &once, None, &joining(&second)).await);
    ask(replica, &other, None, &joining(&second))
        .await
        .expect(201);
}

async fn a_handle_is_bound_to_the_key_that_opened_its_task((fleet, replica): &(Fleet, Replica)) {
    let (own, other) = (
        Key::generate(Algorithm::Es256),
        Key::generate(Algorithm::Es256),
    );
    let granted = ask(replica, &fleet.token(), Some(&own), &body())
        .await
        .expect(201);
    let credential = &granted["credential"];
    assert_eq!(credential["token_type"], "DPoP");
    let (_, claims) = peek(credential["access_token"].as_str().unwrap());
    assert!(claims["cnf"]["jkt"].is_string(), "{claims}");
    for key in [None, Some(&other)] {
        assert_problem(&heartbeat(replica, &granted, key).await, 404, "not-found");
        let joined = ask(replica, &fleet.token(), key, &joining(&granted)).await;
        assert_problem(&joined, 404, "not-found");
    }
    heartbeat(replica, &granted, Some(&own)).await.expect(200);
    ask(replica, &fleet.token(), Some(&own), &joining(&granted))
        .await
        .expect(201);
}

async fn a_workload_with_a_registered_key_is_known_until_the_key_is_removed(
    (fleet, replica): &(Fleet, Replica),
) {
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        let key = Key::generate(algorithm);
        attestation_failed(&ask(replica, &assertion(&key, json!({})), None, &body()).await);

        let before = log_size(fleet, replica).await;
        let added = workloads(
            fleet,
            replica,
            &["add", "nightly", "--key-file", "key.jwk", "--json"],
            &key,
        );
        assert_eq!(added.code(), Some(0), "{}", added.stderr);
        assert_eq!(
            log_size(fleet, replica).await,
            before + 1,
            "registering adds a leaf"
        );
        let listed = workloads(fleet, replica, &["list"], &key);
        assert!(listed.stdout.contains("nightly"), "{}", listed.stdout);

        let good = assertion(&key, json!({}));
        let granted = ask(replica, &good, None, &body()).await.expect(201);
        assert_eq!(granted["session"]["workload"], "workload:nightly");
        attestation_failed(&ask(replica, &good, None, &body()).await);
        let now = unix_seconds();
        for bad in [
            json!({"aud": [BROKER, "https://other.example"]}),
            json!({"aud": format!("{BROKER}/oauth2/token")}),
            json!({"iss": "somebody"}),
            json!({"sub": "somebody"}),
            json!({"iss": "somebody", "sub": "somebody"}),
            json!({"exp": now + 900}),
            json!({"iat": now - 600, "exp": now + 60}),
            json!({"iat": now - 120, "exp": now - 60}),
            json!({"jti": null}),
        ] {
            attestation_failed(&ask(replica, &assertion(&key, bad), None, &body()).await);
        }
        let mut header = key.header();
        header["typ"] = json!("JWT");
        let untyped = sign_jwt(&header, &peek(&assertion(&key, json!({}))).1, &key);
        attestation_failed(&ask(replica, &untyped, None, &body()).await);

        let thumbprint =
            serde_json::from_str::<Value>(&added.stdout).unwrap()["thumbprint"].clone();
        let removed = workloads(
            fleet,
            replica,
            &["remove", "nightly", "--", thumbprint.as_str().unwrap()],
            &key,
        );
        assert_eq!(removed.code(), Some(0), "{}", removed.stderr);
        attestation_failed(&ask(replica, &assertion(&key, json!({})), None, &body()).await);
    }
    // Keys that could never verify any evidence.
    for (key, more) in [
        (Key::generate(Algorithm::Rs256), &[][..]),
        (Key::generate(Algorithm::Es256), &["--attestor", "dev"][..]),
        (
            Key::generate(Algorithm::Es256),
            &["--attestor", "nobody"][..],
        ),
    ] {
        let arguments = [&["add", "nightly", "--key-file", "key.jwk"], more].concat();
        let refused = workloads(fleet, replica, &arguments, &key);
        assert_ne!(refused.code(), Some(0), "{}", refused.stdout);
    }
}

/// A client assertion of the workload `nightly`, with `spoilt` over its claims.
fn assertion(key: &Key, spoilt: Value) -> String {
    let now = unix_seconds();
    let mut header = key.header();
    header["typ"] = json!("client-authentication+jwt");
    let mut claims = json!({
        "iss": "nightly", "sub": "nightly", "aud": BROKER, "jti": random_hex(16),
        "iat": now, "exp": now + 120,
    });
    for (name, value) in spoilt.as_object().cloned().unwrap() {
        claims[name] = value;
    }
    sign_jwt(&header, &claims, key)
}

/// Runs `taskpass workloads …` as a caller that may register keys.
fn workloads(fleet: &Fleet, replica: &Replica, arguments: &[&str], key: &Key) -> Ended {
    let claims = json!({"sub": "registrar", "run": "run-1"});
    let url = format!("http://{}", replica.address);
    let (verb, rest) = arguments.split_first().unwrap();
    let arguments = ["workloads", verb, "--url", &url];
    Launch::taskpass(arguments.iter().chain(rest).copied())
        .env("TASKPASS_TOKEN", fleet.issuer.token(claims))
        .file(
            Path::new("key.jwk"),
            serde_json::to_vec(&key.jwk()).unwrap(),
        )
        .run()
}

async fn log_size(fleet: &Fleet, replica: &Replica) -> u64 {
    let checkpoint = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/checkpoint")
        .await;
    let text = checkpoint.text();
    text.lines().nth(1).unwrap().parse().unwrap()
}
