//! Attestors against an issuer that changes its keys and callers that choose every byte.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wiremock::MockServer;

use super::testing::{TestKey, now, ok, serve, serve_keys, with_endpoints};
use crate::attest::*;

const OURS: &str = "https://broker.example";

struct NoKeys;

impl WorkloadKeys for NoKeys {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Value>, WorkloadKeysUnavailable>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn spec(name: &str, issuer: &str, audience: &str) -> Value {
    json!({
        "kind": "oidc", "name": name, "issuer": issuer, "audience": audience,
        "algorithms": ["ES256"], "required": {"owner_id": "77"}, "identity": "repo:{repo_id}",
        "claims": {
            "owner_id": {"type": "string", "immutable": true, "hidden": true},
            "repo_id": {"type": "string", "immutable": true},
            "level": {"type": "long", "optional": true},
            "tags": {"type": "set", "optional": true},
        },
    })
}

fn attestors(mut specs: Vec<Value>) -> Attestors {
    let endpoints = with_endpoints(&mut specs);
    let specs: Vec<AttestorSpec> = specs
        .into_iter()
        .map(|spec| serde_json::from_value(spec).unwrap())
        .collect();
    let context = AttestContext {
        own_issuer: OURS.into(),
        own_issuers: Vec::new(),
        not_before: None,
        tracker: TaskTracker::new(),
        workload_keys: Arc::new(NoKeys),
        endpoints,
        plain_issuers: true,
    };
    Attestors::new(&specs, context).unwrap()
}

fn bearer(token: &str) -> Evidence {
    Evidence {
        bearer: Some(token.to_owned().into()),
        method: "POST".into(),
        url: "https://broker.example/v1/credentials".into(),
        ..Evidence::default()
    }
}

fn claims(issuer: &str, at: Timestamp) -> Value {
    json!({
        "iss": issuer, "aud": OURS, "sub": "x", "owner_id": "77", "repo_id": "5",
        "iat": at.seconds(), "exp": at.seconds() + 300,
    })
}

fn header(kid: &str) -> Value {
    json!({"alg": "ES256", "kid": kid})
}

async fn reason(attestors: &Attestors, token: &str, at: Timestamp) -> &'static str {
    let appraised = attestors.appraise(&bearer(token), at).await;
    appraised.map_or_else(|error| error.reason(), |_| "good")
}

async fn fetches(server: &MockServer, path: &str) -> usize {
    let requests = server.received_requests().await.unwrap();
    requests.iter().filter(|r| r.url.path() == path).count()
}

#[tokio::test]
async fn a_cold_start_under_load_asks_the_issuer_once() {
    let (server, key) = (MockServer::start().await, TestKey::new());
    serve_keys(&server, json!([key.jwk_named("k1")])).await;
    let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
    let token = key.sign(&header("k1"), &claims(&server.uri(), now()));
    let asked = (0..50).map(|_| reason(&attestors, &token, now()));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| *answer == "good"));
    assert_eq!(fetches(&server, "/jwks").await, 1);
    assert_eq!(
        fetches(&server, "/.well-known/openid-configuration").await,
        1
    );
}

#[tokio::test]
async fn a_caller_who_goes_away_does_not_end_the_fetch() {
    let (server, key) = (MockServer::start().await, TestKey::new());
    let keys = json!({"keys": [key.jwk_named("k1")]});
    let discovery = json!({"issuer": server.uri(), "jwks_uri": format!("{}/jwks", server.uri())});
    serve(&server, "/.well-known/openid-configuration", ok(&discovery)).await;
    serve(
        &server,
        "/jwks",
        ok(&keys).set_delay(Duration::from_millis(700)),
    )
    .await;
    let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
    let token = key.sign(&header("k1"), &claims(&server.uri(), now()));
    let under_way = async {
        while fetches(&server, "/jwks").await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        biased;
        () = under_way => {}
        answer = reason(&attestors, &token, now()) => panic!("{answer}"),
    }
    assert_eq!(reason(&attestors, &token, now()).await, "good");
    assert_eq!(fetches(&server, "/jwks").await, 1);
}

#[tokio::test]
async fn an_issuer_that_comes_back_is_asked_again_after_the_pause_and_not_before() {
    let (server, key) = (MockServer::start().await, TestKey::new());
    serve(
        &server,
        "/.well-known/openid-configuration",
        wiremock::ResponseTemplate::new(503),
    )
    .await;
    let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
    let token = key.sign(&header("k1"), &claims(&server.uri(), now()));
    assert_eq!(
        reason(&attestors, &token, now()).await,
        "issuer_unreachable"
    );
    server.reset().await;
    serve_keys(&server, json!([key.jwk_named("k1")])).await;
    let pause = jwks::COOL_DOWN_SECONDS;
    let early = now().plus_seconds(pause - 1);
    assert_eq!(
        reason(&attestors, &token, early).await,
        "issuer_unreachable"
    );
    assert_eq!(fetches(&server, "/jwks").await, 0);
    assert_eq!(
        reason(&attestors, &token, now().plus_seconds(pause)).await,
        "good"
    );
}

#[tokio::test]
async fn a_withdrawn_key_is_no_longer_believed_once_the_set_was_fetched_anew() {
    let (server, old, new) = (MockServer::start().await, TestKey::new(), TestKey::new());
    serve_keys(&server, json!([old.jwk_named("old")])).await;
    let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
    let by_old = old.sign(&header("old"), &claims(&server.uri(), now()));
    assert_eq!(reason(&attestors, &by_old, now()).await, "good");
    server.reset().await;
    serve_keys(&server, json!([new.jwk_named("new")])).await;
    let later = now().plus_seconds(30);
    let by_new = new.sign(&header("new"), &claims(&server.uri(), later));
    assert_eq!(reason(&attestors, &by_new, later).await, "good");
    assert_eq!(reason(&attestors, &by_old, later).await, "unknown_key");
    // The old key with the new key's name is not the new key.
    let renamed = old.sign(&header("new"), &claims(&server.uri(), later));
    assert_eq!(reason(&attestors, &renamed, later).await, "bad_signature");
}

#[tokio::test]
async fn a_key_that_says_another_algorithm_verifies_nothing() {
    let (server, key) = (MockServer::start().await, TestKey::new());
    for (member, value) in [
        ("alg", json!("RS256")),
        ("alg", json!("HS256")),
        ("use", json!("enc")),
        ("key_ops", json!(["sign"])),
    ] {
        server.reset().await;
        let mut jwk = key.jwk_named("k1");
        jwk[member] = value.clone();
        serve_keys(&server, json!([jwk, TestKey::new().jwk_named("k2")])).await;
        let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
        let token = key.sign(&header("k1"), &claims(&server.uri(), now()));
        assert_eq!(
            reason(&attestors, &token, now()).await,
            "unknown_key",
            "{member} = {value}"
        );
    }
}

#[tokio::test]
async fn a_token_for_two_attestors_is_for_none_and_equal_claims_of_two_issuers_are_two_workloads() {
    let (one, two, key) = (
        MockServer::start().await,
        MockServer::start().await,
        TestKey::new(),
    );
    for server in [&one, &two] {
        serve_keys(server, json!([key.jwk_named("k1")])).await;
    }
    let attestors = attestors(vec![
        spec("one", &one.uri(), OURS),
        spec("again", &one.uri(), "urn:other"),
        spec("two", &two.uri(), OURS),
    ]);
    let appraise = async |claims: &Value| {
        let token = key.sign(&header("k1"), claims);
        attestors.appraise(&bearer(&token), now()).await
    };
    let mut both = claims(&one.uri(), now());
    both["aud"] = json!([OURS, "urn:other"]);
    assert_eq!(
        appraise(&both).await.unwrap_err().error,
        AttestError::WrongAudience
    );

    let first = appraise(&claims(&one.uri(), now())).await.unwrap();
    let second = appraise(&claims(&two.uri(), now())).await.unwrap();
    assert_eq!(first.identity.as_str(), "one:repo:5");
    assert_eq!(second.identity.as_str(), "two:repo:5");
    assert_ne!(first.evidence.key, second.evidence.key);
    // A token of one issuer has one id, for each of its audiences.
    let mut named = claims(&one.uri(), now());
    named["jti"] = json!("t1");
    let first = appraise(&named).await.unwrap();
    named["aud"] = json!("urn:other");
    assert_eq!(
        first.evidence.key,
        appraise(&named).await.unwrap().evidence.key
    );
}

#[tokio::test]
async fn an_issuer_that_is_down_does_not_tell_a_forger_which_audiences_are_configured() {
    let (server, forger) = (MockServer::start().await, TestKey::new());
    serve(
        &server,
        "/.well-known/openid-configuration",
        wiremock::ResponseTemplate::new(503),
    )
    .await;
    let attestors = attestors(vec![
        spec("one", &server.uri(), OURS),
        spec("two", &server.uri(), "urn:second"),
    ]);
    for audience in [
        json!(OURS),
        json!("urn:second"),
        json!([OURS, "urn:second"]),
        json!([OURS, "urn:nope"]),
        json!("urn:nope"),
    ] {
        let mut claims = claims(&server.uri(), now());
        claims["aud"] = audience.clone();
        let token = forger.sign(&header("k1"), &claims);
        assert_eq!(
            reason(&attestors, &token, now()).await,
            "issuer_unreachable",
            "{audience}"
        );
    }
}

/// The order of P-256's group.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// A second valid signature (r, n - s), which any party can compute from the first.
fn other_signature(token: &str) -> String {
    let (input, signature) = token.rsplit_once('.').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0_i16;
    for index in (0..32).rev() {
        let difference = i16::from(ORDER[index]) - i16::from(bytes[32 + index]) - borrow;
        borrow = i16::from(difference < 0);
        bytes[32 + index] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[tokio::test]
async fn a_signature_that_was_turned_round_does_not_make_a_new_token() {
    let (server, key) = (MockServer::start().await, TestKey::new());
    serve_keys(&server, json!([key.jwk_named("k1")])).await;
    let attestors = attestors(vec![spec("ci", &server.uri(), OURS)]);
    let token = key.sign(&header("k1"), &claims(&server.uri(), now()));
    let turned = other_signature(&token);
    assert_ne!(token, turned);
    let first = attestors.appraise(&bearer(&token), now()).await.unwrap();
    let second = attestors.appraise(&bearer(&turned), now()).await.unwrap();
    assert_eq!(first.evidence, second.evidence);

    let proof = key.sign(
        &json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()}),
        &json!({
            "htm": "POST", "htu": "https://broker.example/v1/credentials",
            "iat": now().seconds(), "jti": "p1",
        }),
    );
    let judge = |proof: String| {
        let mut evidence = bearer(&token);
        evidence.dpop = vec![proof];
        dpop::verify(&evidence, dpop::TokenHash::None, now()).unwrap()
    };
    assert_eq!(judge(other_signature(&proof)), judge(proof));
}

#[test]
fn evidence_does_not_print_what_it_holds() {
    let mut evidence = bearer("SECRET");
    evidence.dpop = vec!["SECRET".into()];
    evidence.client_certificates = vec![b"SECRET".to_vec()];
    evidence
        .headers
        .insert("x-token".into(), vec!["SECRET".to_owned().into()]);
    let shown = format!("{evidence:?} {:?}", Presented::new(&evidence));
    assert!(shown.contains("x-token") && !shown.contains("SECRET") && !shown.contains("83, 69"));
}

/// An issuer that states a false length of its response.
async fn flooding_issuer(head: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let flood = async move {
        let spaces = vec![b' '; 0x10000];
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0_u8; 1_024];
            let _read = stream.read(&mut request).await;
            let mut sent = stream.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = stream.write_all(b"10000\r\n").await;
                sent = sent.and(stream.write_all(&spaces).await);
                sent = sent.and(stream.write_all(b"\r\n").await);
            }
        }
    };
    drop(TaskTracker::new().spawn(flood));
    issuer
}

#[tokio::test]
async fn a_flood_without_an_announced_length_is_cut_off() {
    let issuer = flooding_issuer(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .await;
    let attestors = attestors(vec![spec("ci", &issuer, OURS)]);
    let token = TestKey::new().sign(&header("k1"), &claims(&issuer, now()));
    let answer = reason(&attestors, &token, now());
    // Stopped by its size, long before its time limit.
    let answer = tokio::time::timeout(Duration::from_millis(4_500), answer).await;
    assert_eq!(answer.unwrap(), "issuer_unreachable");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!(OURS)),
        Just(json!("77")),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..3)
                .prop_map(|members| json!(members)),
        ]
    })
}

/// Signed tokens with a few members replaced by arbitrary values. None makes the attestor panic,
/// and an accepted token meets the configuration.
#[test]
fn whatever_an_issuer_signs_is_refused_or_is_as_configured() {
    const CLAIMS: &[&str] = &[
        "iss", "aud", "sub", "owner_id", "repo_id", "iat", "exp", "nbf", "jti", "level", "tags",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (server, key) = (runtime.block_on(MockServer::start()), TestKey::new());
    runtime.block_on(serve_keys(&server, json!([key.jwk_named("k1")])));
    let issuer = server.uri();
    let attestors = attestors(vec![
        spec("ci", &issuer, OURS),
        json!({"kind": "key", "name": "workload"}),
    ]);
    let strategy = (
        prop::collection::vec((prop::sample::select(CLAIMS), any_json()), 0..3),
        prop::option::weighted(
            0.3,
            (
                prop::sample::select(&["alg", "typ", "kid", "jwk", "crit", "zip"][..]),
                any_json(),
            ),
        ),
        0..=40_i64,
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&strategy, |(changes, header_change, seconds)| {
        let mut claims = claims(&issuer, now().minus_seconds(20));
        for (name, value) in changes {
            claims[name] = value;
        }
        let mut header = header("k1");
        if let Some((name, value)) = header_change {
            header[name] = value;
        }
        let at = Timestamp::from_seconds(now().seconds() + seconds);
        let token = key.sign(&header, &claims);
        let Ok(workload) = runtime.block_on(attestors.appraise(&bearer(&token), at)) else {
            return Ok(());
        };
        prop_assert!(claims["iss"] == json!(issuer) && claims["owner_id"] == json!("77"));
        prop_assert!(claims["aud"] == json!(OURS) || claims["aud"] == json!([OURS]));
        let repository = claims["repo_id"].as_str().unwrap();
        let identity = format!(
            "ci:repo:{}",
            crate::domain::workload::encode_value(repository)
        );
        prop_assert_eq!(workload.identity.as_str(), identity);
        prop_assert!(header["alg"] == json!("ES256") && header["kid"] == json!("k1"));
        prop_assert!(workload.evidence.expires_at > at);
        prop_assert!(!workload.claims.contains_key("owner_id") && workload.key.is_none());
        Ok(())
    });
    outcome.unwrap();
}
