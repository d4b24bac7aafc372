//! Failed attestations over HTTP: the operator can find the cause, and the caller learns only as
//! much as it may.

mod tokens;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_oauth_error, assert_problem, send};
use crate::support::issuer::Issuer;
use crate::support::process::Launch;
use crate::support::rig::Kind;
use crate::support::{SOON, until};

use tokens::{Bad, signed, unsigned};

const CI: &str = "https://ci.taskpass.test";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

fn attestor(issuer: &Issuer) -> String {
    format!(
        r#"
[[attestors]]
kind = "oidc"
name = "ci"
issuer = "{}"
audience = "{CI}"
algorithms = ["ES256", "RS256"]
required = {{ owner_id = "77" }}
identity = "{{repo_id}}"
[attestors.claims]
owner_id = {{ type = "string", immutable = true, hidden = true }}
repo_id = {{ type = "string", immutable = true }}
"#,
        issuer.url()
    )
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).attestors(attestor).start().await
}

fn good(over: &Value) -> Value {
    let mut claims = json!({"aud": CI, "sub": "x", "owner_id": "77", "repo_id": "5"});
    for (name, value) in over.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// The counter of failed attestations, by attestor and reason.
async fn counted(replica: &Replica, admin: &str) -> BTreeMap<(String, String), u64> {
    let text = replica.client.get_as(admin, "/metrics").await.text();
    let prefix = "taskpass_attestation_failures_total{attestor=\"";
    let series = text.lines().filter_map(|line| line.strip_prefix(prefix));
    series
        .map(|line| {
            let (attestor, rest) = line.split_once("\",reason=\"").unwrap();
            let (reason, count) = rest.split_once("\"} ").unwrap();
            let key = (attestor.to_owned(), reason.to_owned());
            (key, count.parse().unwrap())
        })
        .collect()
}

/// The lines about the request with this id.
fn lines(replica: &Replica, request_id: &str) -> Vec<Value> {
    let stderr = replica.process.stderr();
    let parsed = stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed
        .filter(|line| line["message"] == "an attestation failed")
        .filter(|line| line["request_id"] == request_id)
        .collect()
}

/// The exit code and JSON output of `taskpass attest check` for a token.
fn explain(fleet: &Fleet, replica: &Replica, token: &str) -> (Option<i32>, Value) {
    let config = std::fs::read_to_string(replica.process.dir().join("taskpass.toml")).unwrap();
    let jwks = json!({"keys": [fleet.issuer.key().jwk()]});
    let arguments = [
        "attest",
        "check",
        "--token-file",
        "token",
        "--jwks",
        "keys.json",
        "--json",
    ];
    let run = |json: bool| {
        let wanted = arguments.iter().filter(|word| json || **word != "--json");
        Launch::taskpass(wanted.copied())
            .config(config.clone())
            .secret_file("token", token)
            .file("keys.json", jwks.to_string())
            .run()
    };
    let (told, plain) = (run(true), run(false));
    assert_eq!(told.code(), plain.code(), "{}", plain.stderr);
    for part in token.split('.').filter(|part| part.len() > 8) {
        for output in [&told.stdout, &told.stderr, &plain.stdout, &plain.stderr] {
            assert!(!output.contains(part), "a part of the token is printed");
        }
    }
    let told_json = serde_json::from_str(&told.stdout);
    (
        told.code(),
        told_json.unwrap_or_else(|_| panic!("{} {}", told.stdout, told.stderr)),
    )
}

async fn ask(replica: &Replica, token: &str) -> Answer {
    replica
        .client
        .post_json(token, "/v1/credentials", &body())
        .await
}

/// An answer without the headers that differ for every request.
fn without_own_headers(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let own = ["x-request-id", "traceparent", "date", "dpop-nonce"];
    let headers = answer.headers.iter();
    let headers = headers.filter(|(name, _)| !own.contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
    (answer.status, headers.collect(), answer.text())
}

on_both_stores! {
    by reference;

    fn a_failed_attestation_is_one_line_one_counter_and_one_explained_claim;
    fn a_replay_is_one_line_and_one_counter_and_is_told;
    fn tokens_without_a_valid_signature_get_one_answer_to_the_byte;
    fn an_issuer_that_is_away_is_a_503_at_every_door_and_uses_nothing_up;
}

async fn a_failed_attestation_is_one_line_one_counter_and_one_explained_claim(
    (fleet, replica): &(Fleet, Replica),
) {
    let bad = signed(fleet).into_iter().chain(unsigned(fleet));
    for Bad {
        token,
        attestor,
        reason,
        claim,
        explained,
        signed,
    } in bad
    {
        let before = counted(replica, &fleet.admin).await;
        assert!(
            before.contains_key(&("ci".into(), reason.into())),
            "{reason} begins at zero"
        );
        let answer = ask(replica, &token).await;
        let problem = assert_problem(&answer, 401, "attestation-failed");
        let after = counted(replica, &fleet.admin).await;
        let risen: Vec<_> = after
            .iter()
            .filter(|(key, count)| before.get(*key) != Some(*count))
            .collect();
        assert_eq!(risen.len(), 1, "{reason}: {risen:?}");
        let key = (attestor.to_owned(), reason.to_owned());
        assert_eq!(after[&key], before[&key] + 1, "{reason}");

        let id = answer.header("x-request-id").unwrap();
        let lines = lines(replica, id);
        assert_eq!(lines.len(), 1, "{reason}: {lines:?}");
        let line = &lines[0];
        assert_eq!(
            (&line["level"], &line["attestor"], &line["reason"]),
            (&json!("WARN"), &json!(attestor), &json!(reason))
        );
        assert_eq!(line.get("claim").and_then(Value::as_str), claim, "{line}");
        let issuer = if reason == "unknown_issuer" {
            "https://evil.example"
        } else {
            fleet.issuer.url()
        };
        let read = !["malformed", "wrong_algorithm"].contains(&reason);
        assert_eq!(
            line.get("iss").and_then(Value::as_str),
            read.then_some(issuer),
            "{line}"
        );

        let (code, told) = explain(fleet, replica, &token);
        let failed: Vec<_> = told["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|condition| condition["outcome"] == "fails")
            .map(|condition| condition["name"].as_str().unwrap().to_owned())
            .collect();
        // A token that no key of the issuer signed fails the signature condition too.
        let unsigned = !signed && told["attestor"].is_string();
        let mut wanted: Vec<&str> = explained.into_iter().collect();
        if unsigned && !wanted.contains(&"signature") {
            wanted.insert(0, "signature");
        }
        assert_eq!(failed, wanted, "{reason}: {told}");
        assert_eq!(code, Some(1), "{told}");

        // The caller learns which claim of its token is wrong, and never the expected value.
        if signed {
            assert_eq!(problem["reason"], reason);
            assert_eq!(problem["claim"].as_str(), claim, "{problem}");
            for value in ["77", CI] {
                assert!(!answer.text().contains(value), "{problem}");
            }
        } else {
            assert_eq!(
                (&problem["reason"], &problem["claim"]),
                (&Value::Null, &Value::Null)
            );
        }
    }
}

async fn a_replay_is_one_line_and_one_counter_and_is_told((fleet, replica): &(Fleet, Replica)) {
    let token = fleet.token();
    ask(replica, &token).await.expect(201);
    let key = ("dev".to_owned(), "replayed".to_owned());
    let before = counted(replica, &fleet.admin).await[&key];
    let again = ask(replica, &token).await;
    let problem = assert_problem(&again, 401, "attestation-failed");
    assert_eq!(problem["reason"], "replayed");
    assert_eq!(counted(replica, &fleet.admin).await[&key], before + 1);
    let lines = lines(replica, again.header("x-request-id").unwrap());
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["iss"]),
        (&json!("replayed"), &json!(fleet.issuer.url()))
    );
    // Offline the token passes every condition except "use", which only the broker can check.
    let (code, told) = explain(fleet, replica, &token);
    assert_eq!((code, &told["refused"]), (Some(0), &json!(false)), "{told}");
    let used = told["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "use")
        .unwrap();
    assert_eq!(used["outcome"], "not_checked");
}

async fn tokens_without_a_valid_signature_get_one_answer_to_the_byte(
    (fleet, replica): &(Fleet, Replica),
) {
    // Make the broker fetch the keys first, so that no answer depends on a fetch.
    ask(replica, &fleet.token()).await.expect(201);
    let mut answers = Vec::new();
    for bad in unsigned(fleet) {
        answers.push(without_own_headers(&ask(replica, &bad.token).await));
    }
    for junk in ["x", "tph_guess", "tpa_guess", "..", &"x".repeat(20_000)] {
        answers.push(without_own_headers(&ask(replica, junk).await));
    }
    for other in &answers {
        assert_eq!(other, &answers[0]);
    }
    // Only the challenge depends on the scheme of the request.
    let request = || {
        replica
            .client
            .request(Method::POST, "/v1/credentials")
            .json(&body())
    };
    let twice = request()
        .bearer_auth(fleet.token())
        .header("authorization", "Bearer x");
    // The broker ignores a DPoP proof that accompanies an invalid token.
    let proven = request()
        .header("authorization", "DPoP x")
        .header("dpop", "y");
    let without_challenge = |mut answer: (u16, Vec<(String, String)>, String)| {
        answer.1.retain(|(name, _)| name != "www-authenticate");
        answer
    };
    let first = without_challenge(answers[0].clone());
    for other in [
        request(),
        request().header("authorization", "Basic eDp5"),
        twice,
        proven,
    ] {
        assert_eq!(
            without_challenge(without_own_headers(&send(other).await)),
            first
        );
    }
    assert_eq!(answers[0].0, 401);
}

async fn an_issuer_that_is_away_is_a_503_at_every_door_and_uses_nothing_up(
    (fleet, replica): &(Fleet, Replica),
) {
    fleet.issuer.go_down();
    let token = fleet.token();
    let client = &replica.client;
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let form = |path: &str, form: &[(&str, &str)]| client.request(Method::POST, path).form(form);
    let post = |path: &str, body: &Value| {
        client
            .request(Method::POST, path)
            .bearer_auth(&token)
            .json(body)
    };
    let get = |path: &str| client.request(Method::GET, path).bearer_auth(&token);
    let task = format!("/v1/tasks/{unknown}");
    for (door, request) in [
        ("credentials", post("/v1/credentials", &body())),
        ("open task", post("/v1/tasks", &json!({"type": "job"}))),
        ("heartbeat", post(&format!("{task}/heartbeat"), &json!({}))),
        ("complete", post(&format!("{task}/complete"), &json!({}))),
        (
            "delegate",
            post(
                &format!("{task}/delegations"),
                &json!({"workload": "dev:x"}),
            ),
        ),
        ("show task", get(&task)),
        ("tasks", get("/v1/tasks")),
        ("sessions", get("/v1/sessions")),
        (
            "revoke session",
            post(&format!("/v1/sessions/{unknown}/revoke"), &json!({})),
        ),
        (
            "revocations",
            post(
                "/v1/revocations",
                &json!({"selector": {"all": true}, "reason": "x"}),
            ),
        ),
        ("decision", get(&format!("/v1/decisions/{unknown}"))),
        ("entry", get("/v1/ledger/entries/0")),
        ("keys", get("/v1/keys")),
        ("admins", get("/v1/admins")),
        ("activate", post("/v1/generations", &json!({}))),
    ] {
        let answer = send(request).await;
        assert_problem(&answer, 503, "attestation-unavailable");
        assert!(answer.header("retry-after").is_some(), "{door}");
    }
    let exchange = [
        ("grant_type", EXCHANGE),
        ("subject_token", token.as_str()),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", "https://orders.example"),
        ("scope", "orders:read"),
        ("task_type", "job"),
    ];
    for (door, request) in [
        ("token", form("/oauth2/token", &exchange)),
        (
            "introspect",
            form("/oauth2/introspect", &[("token", "x")]).bearer_auth(&token),
        ),
        (
            "revoke",
            form("/oauth2/revoke", &[("token", "x")]).bearer_auth(&token),
        ),
    ] {
        let answer = send(request).await;
        assert_oauth_error(&answer, 503, "temporarily_unavailable");
        assert!(answer.header("retry-after").is_some(), "{door}");
    }
    fleet.issuer.go_up();
    // The broker waits ten seconds between two fetches.
    let granted = std::sync::Mutex::new(None);
    until(
        "the issuer is asked again",
        SOON + Duration::from_secs(20),
        async || {
            let answer = ask(replica, &token).await;
            let done = answer.status != 503;
            if done {
                *granted.lock().unwrap() = Some(answer);
            } else {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            done
        },
    )
    .await;
    granted.into_inner().unwrap().unwrap().expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_tokens_writes_few_lines_and_says_how_many_it_left_out() {
    let (_fleet, replica) = begin(Kind::Sqlite).await;
    let sent = 200;
    for n in 0..sent {
        assert_eq!(ask(&replica, &format!("a.b.{n}")).await.status, 401);
    }
    let stderr = replica.process.stderr();
    let told: Vec<Value> = stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "an attestation failed")
        .collect();
    assert!((1..100).contains(&told.len()), "{}", told.len());
    let suppressed = told.iter().filter_map(|line| line["suppressed"].as_u64());
    assert!(suppressed.sum::<u64>() + (told.len() as u64) <= sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_that_is_over_is_one_line_with_its_request_and_one_count() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let mut direct = fleet.database().connect().await;
    let sql = "UPDATE bootstrap_token SET ended = true";
    direct.execute(sql).await.unwrap();
    let refused = replica.client.get_as(&fleet.admin, "/v1/admins").await;
    let problem = assert_problem(&refused, 401, "attestation-failed");
    assert_eq!(problem["reason"], Value::Null, "{problem}");
    let lines = lines(&replica, refused.header("x-request-id").unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["reason"], "admin_token_over");
    let stderr = replica.process.stderr();
    let warned = stderr.lines().filter(|line| line.contains("\"WARN\""));
    let told = warned.filter(|line| line.contains("bootstrap token"));
    assert_eq!(told.count(), 1, "{stderr}");
    let counter =
        "taskpass_attestation_failures_total{attestor=\"none\",reason=\"admin_token_over\"} 1";
    let metrics = replica.client.get("/metrics").await.text();
    assert!(metrics.lines().any(|line| line == counter), "{metrics}");
}

#[test]
fn the_command_says_what_key_a_token_is_bound_to_and_whether_it_is_the_callers() {
    let issuer = Issuer::start();
    let config = format!(
        "[server]\nissuer = \"https://broker.example\"\n{}",
        attestor(&issuer)
    );
    let cnf = json!({"jkt": "own-thumbprint", "x5t#S256": "own-hash"});
    let token = issuer.token(good(&json!({"cnf": cnf})));
    let run = |arguments: &[&str]| {
        let base = ["attest", "check", "--json", "--token-file", "token"];
        let told = Launch::taskpass(base.iter().chain(arguments).copied())
            .config(&config)
            .secret_file("token", token.clone())
            .run();
        let json: Value = serde_json::from_str(&told.stdout).unwrap();
        let conditions = json["conditions"].as_array().unwrap();
        let cnf = conditions.iter().find(|c| c["name"] == "cnf").unwrap();
        (told.code(), cnf.clone())
    };
    let (jkt, x5t) = (["--dpop-jkt", "own-thumbprint"], ["--x5t-s256", "own-hash"]);
    let both = [jkt, x5t].concat();
    for (arguments, code, outcome) in [
        (&[] as &[&str], 0, "not_checked"),
        (&jkt, 0, "not_checked"),
        (&both, 0, "holds"),
        (&["--dpop-jkt", "other"], 1, "fails"),
        (&["--x5t-s256", "other"], 1, "fails"),
        (
            &["--dpop-jkt", "other", "--x5t-s256", "own-hash"],
            1,
            "fails",
        ),
    ] {
        let (ended, cnf) = run(arguments);
        assert_eq!(
            (ended, cnf["outcome"].as_str()),
            (Some(code), Some(outcome)),
            "{cnf}"
        );
    }
    let told = run(&[]).1["why"].as_str().unwrap().to_owned();
    for needed in ["own-thumbprint", "--dpop-jkt", "own-hash", "--x5t-s256"] {
        assert!(told.contains(needed), "{told}");
    }
}

#[test]
fn the_command_says_what_it_did_not_check_and_refuses_what_is_no_configuration() {
    let issuer = Issuer::start();
    let frame = "[server]\nissuer = \"https://broker.example\"\n";
    let config = format!("{frame}{}", attestor(&issuer));
    let token = issuer.token(good(&json!({})));
    let run = |config: &str, arguments: &[&str]| {
        let base = ["attest", "check", "--token-file", "token"];
        Launch::taskpass(base.iter().chain(arguments).copied())
            .config(config)
            .secret_file("token", token.clone())
            .file("empty.json", "{\"keys\": []}")
            .run()
    };
    let told = run(&config, &[]);
    assert_eq!(told.code(), Some(0), "{}", told.stderr);
    let signature = told.stdout.lines().find(|line| line.contains("signature"));
    assert!(
        signature.unwrap().contains("not checked"),
        "{}",
        told.stdout
    );
    let told = run(&config, &["--jwks", "empty.json"]);
    assert!(told.stdout.contains("no usable key"), "{}", told.stdout);
    let late = run(&config, &["--at", "2099-01-01T00:00:00Z"]);
    assert_eq!(late.code(), Some(1));
    assert!(late.stdout.contains("FAILS"), "{}", late.stdout);
    for bad in [
        frame.replace("issuer", "else"),
        config.replace("algorithms", "algorithm"),
    ] {
        assert_eq!(run(&bad, &[]).code(), Some(2));
    }
    assert_eq!(run(&config, &["--jwks", "absent.json"]).code(), Some(3));
}
