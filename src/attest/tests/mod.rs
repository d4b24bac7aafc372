//! Attestors with a real issuer on loopback.

pub(crate) mod fake;
mod hostile;
pub(super) mod testing;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};
use wiremock::MockServer;

use self::testing::{TestKey, encode, now, serve_keys, with_endpoints};
use super::*;
use crate::domain::workload::{ClaimValue, KeyBinding};

const OURS: &str = "https://broker.example";
const CREDENTIALS: &str = "https://broker.example/v1/credentials";

/// One registered key in the store.
struct Registered(Value);

impl WorkloadKeys for Registered {
    fn find<'a>(
        &'a self,
        _: &'a str,
        workload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Value>, WorkloadKeysUnavailable>> {
        let keys = match workload {
            "stored" => Ok(vec![json!("odd"), self.0.clone()]),
            "broken" => Err(WorkloadKeysUnavailable),
            _ => Ok(Vec::new()),
        };
        Box::pin(async move { keys })
    }
}

struct World {
    server: MockServer,
    key: TestKey,
    agent: TestKey,
    attestors: Attestors,
}

impl World {
    async fn new() -> Self {
        Self::with(json!({})).await
    }

    async fn with(changes: Value) -> Self {
        let (server, key, agent) = (MockServer::start().await, TestKey::new(), TestKey::new());
        serve_keys(&server, json!([key.jwk_named("k1")])).await;
        let mut spec = json!({
            "kind": "oidc", "name": "ci", "issuer": server.uri(), "audience": OURS,
            "algorithms": ["ES256"], "required": {"owner_id": "77"},
            "identity": "repo:{repo_id}", "instance": "{run_id}:{attempt}",
            "claims": {
                "owner_id": {"type": "string", "immutable": true, "hidden": true},
                "repo_id": {"type": "string", "immutable": true},
                "run_id": {"type": "string", "immutable": true, "hidden": true},
                "attempt": {"type": "long", "immutable": true},
                "protected": {"type": "bool", "optional": true},
                "groups": {"type": "set", "optional": true},
            },
        });
        for (name, value) in changes.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let keys = json!({
            "kind": "key", "name": "workload",
            "keys": [{"workload": "reports", "jwk": agent.jwk()}],
        });
        let mut specs = [spec, keys];
        let endpoints = with_endpoints(&mut specs);
        let specs = specs.map(|spec| serde_json::from_value(spec).unwrap());
        let context = AttestContext {
            own_issuer: OURS.into(),
            own_issuers: Vec::new(),
            not_before: None,
            tracker: TaskTracker::new(),
            workload_keys: Arc::new(Registered(agent.jwk())),
            endpoints,
            plain_issuers: true,
        };
        let attestors = Attestors::new(&specs, context).unwrap();
        Self {
            server,
            key,
            agent,
            attestors,
        }
    }

    fn claims(&self) -> Value {
        json!({
            "iss": self.server.uri(), "aud": OURS, "sub": "anything", "jti": "t1",
            "iat": now().seconds(), "exp": now().seconds() + 300, "owner_id": "77",
            "repo_id": "a:b", "run_id": "9", "attempt": 2, "groups": ["x", "y", "x"], "extra": 1,
        })
    }

    fn changed(&self, name: &str, value: &Value) -> Value {
        let mut claims = self.claims();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
        claims
    }

    async fn reason(&self, token: &str) -> &'static str {
        let appraised = self.attestors.appraise(&bearer(token), now()).await;
        appraised.map_or_else(|error| error.reason(), |_| "good")
    }

    async fn fetched(&self) -> bool {
        !self.server.received_requests().await.unwrap().is_empty()
    }

    fn assertion(&self, changes: &Value) -> String {
        let mut claims = json!({
            "iss": "reports", "sub": "reports", "aud": OURS, "jti": "a1",
            "iat": now().seconds(), "exp": now().seconds() + 300,
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.agent
            .sign(&json!({"alg": "ES256", "typ": key::ASSERTION}), &claims)
    }
}

fn bearer(token: &str) -> Evidence {
    Evidence {
        bearer: Some(token.to_owned().into()),
        method: "POST".into(),
        url: CREDENTIALS.into(),
        ..Evidence::default()
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})
}

#[tokio::test]
async fn a_good_token_yields_what_it_says_and_nothing_more() {
    let world = World::new().await;
    let token = world.key.sign(&header(), &world.claims());
    let workload = world
        .attestors
        .appraise(&bearer(&token), now())
        .await
        .unwrap();
    assert_eq!(workload.identity.as_str(), "ci:repo:a%3Ab");
    assert_eq!(workload.instance.unwrap().as_str(), "9:2");
    let groups = ClaimValue::Set(["x".to_owned(), "y".to_owned()].into());
    let visible = [
        ("attempt".to_owned(), ClaimValue::Long(2)),
        ("groups".to_owned(), groups),
        ("repo_id".to_owned(), ClaimValue::String("a:b".into())),
    ];
    assert_eq!(workload.claims, visible.into());
    assert_eq!(workload.evidence.binding, None);
    assert_eq!(workload.evidence.expires_at, now().plus_seconds(311));
    assert_eq!((workload.key, workload.proofs), (None, Vec::new()));
}

#[tokio::test]
async fn one_token_has_one_id_whatever_its_signature() {
    let world = World::new().await;
    let id_at = async |claims: &Value, at| {
        let token = world.key.sign(&header(), claims);
        world
            .attestors
            .appraise(&bearer(&token), at)
            .await
            .unwrap()
            .evidence
            .id()
    };
    let id = async |claims: &Value| id_at(claims, now()).await;
    let nameless = world.changed("jti", &Value::Null);
    // ECDSA is randomised: these are two signatures over the same bytes.
    assert_eq!(id(&nameless).await, id(&nameless).await);
    assert_eq!(
        id(&world.claims()).await,
        id(&world.changed("attempt", &json!(3))).await
    );
    assert_ne!(
        id(&world.claims()).await,
        id(&world.changed("jti", &json!("t2"))).await
    );
    // The time in the id is the token's own, and not that of its appraisal.
    assert_eq!(
        id_at(&nameless, now().plus_seconds(200)).await,
        id(&nameless).await
    );
    let shorter = world.changed("exp", &json!(now().seconds() + 100));
    assert_eq!(id(&shorter).await, id(&world.claims()).await);
}

#[tokio::test]
async fn claims_that_are_not_as_they_must_be_are_refused() {
    let world = World::new().await;
    let at = now().seconds();
    let slash = format!("{}/", world.server.uri());
    for (claim, value, reason) in [
        ("exp", json!(at - 10), "expired"),
        ("exp", json!("soon"), "wrong_times"),
        ("exp", Value::Null, "wrong_times"),
        ("iat", json!(at + 11), "wrong_times"),
        ("iat", json!(at - 611), "wrong_times"),
        ("iat", Value::Null, "wrong_times"),
        ("nbf", json!(at + 11), "wrong_times"),
        ("aud", json!("https://other.example"), "wrong_audience"),
        (
            "aud",
            json!([OURS, "https://other.example"]),
            "wrong_audience",
        ),
        ("aud", json!([OURS, OURS]), "wrong_audience"),
        ("aud", json!([]), "wrong_audience"),
        ("aud", Value::Null, "wrong_audience"),
        ("iss", json!("https://other.example"), "unknown_issuer"),
        ("iss", json!(slash), "unknown_issuer"),
        ("iss", json!(7), "unknown_issuer"),
        ("iss", Value::Null, "unknown_issuer"),
        ("owner_id", json!("78"), "required_claim"),
        ("owner_id", json!(77), "required_claim"),
        ("owner_id", Value::Null, "required_claim"),
        ("repo_id", json!(1234), "claim_type"),
        ("repo_id", json!(""), "claim_type"),
        ("repo_id", json!(["a"]), "claim_type"),
        ("repo_id", Value::Null, "claim_type"),
        ("repo_id", json!("x".repeat(1_025)), "claim_type"),
        ("repo_id", json!("x".repeat(505)), "identity"),
        ("attempt", json!("2"), "claim_type"),
        ("attempt", json!(2.5), "claim_type"),
        ("protected", json!("true"), "claim_type"),
        ("groups", json!("x"), "claim_type"),
        ("groups", json!(["x", 1]), "claim_type"),
        ("jti", json!(5), "claim_type"),
        ("repo_id", json!("x".repeat(17_000)), "malformed"),
        ("repo_id", json!("a\u{0}"), "malformed"),
        ("exp", json!(at - 9), "good"),
        ("aud", json!([OURS]), "good"),
        ("repo_id", json!("x".repeat(504)), "good"),
        ("protected", json!(true), "good"),
        ("groups", Value::Null, "good"),
    ] {
        let mut claims = world.changed(claim, &value);
        if claim == "exp" && reason != "wrong_times" {
            claims["iat"] = json!(at - 60);
        }
        let token = world.key.sign(&header(), &claims);
        assert_eq!(world.reason(&token).await, reason, "{claim} = {value}");
    }
}

#[tokio::test]
async fn headers_that_forgers_write_are_refused() {
    let world = World::new().await;
    for (field, value, reason) in [
        ("typ", json!("at+jwt"), "wrong_type"),
        ("typ", json!("dpop+jwt"), "wrong_type"),
        ("typ", json!(key::ASSERTION), "unknown_key"),
        ("typ", json!(1), "malformed"),
        ("jku", json!("https://evil.example/jwks"), "malformed"),
        ("x5u", json!("https://evil.example/x5"), "malformed"),
        ("jwk", TestKey::new().jwk(), "malformed"),
        ("crit", json!(["exp"]), "malformed"),
        ("kid", json!("../../etc/passwd"), "unknown_key"),
        ("kid", json!("k1' OR '1'='1"), "unknown_key"),
        ("kid", json!("x".repeat(257)), "malformed"),
        ("kid", json!(["k1"]), "malformed"),
        ("alg", json!("none"), "wrong_algorithm"),
        ("alg", json!("HS256"), "wrong_algorithm"),
        ("alg", json!("ES384"), "wrong_algorithm"),
        ("alg", json!("es256"), "wrong_algorithm"),
        ("typ", json!("jwt"), "good"),
        ("other", json!("ignored"), "good"),
    ] {
        let mut header = header();
        header[field] = value.clone();
        let found = world
            .reason(&world.key.sign(&header, &world.claims()))
            .await;
        assert_eq!(found, reason, "{field} = {value}");
    }
    let untyped = world
        .key
        .sign(&json!({"alg": "ES256", "kid": "k1"}), &world.claims());
    assert_eq!(world.reason(&untyped).await, "good");
}

#[tokio::test]
async fn forged_signatures_are_refused_without_asking_the_issuer() {
    let world = World::new().await;
    let claims = world.claims();
    let input = format!(
        "{}.{}",
        encode(&json!({"alg": "HS256", "kid": "k1"})),
        encode(&claims)
    );
    let secret = hmac::Key::new(hmac::HMAC_SHA256, world.key.public_bytes());
    let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes()));
    let unsigned = format!("{}.{}.", encode(&json!({"alg": "none"})), encode(&claims));
    assert_eq!(
        world.reason(&format!("{input}.{tag}")).await,
        "wrong_algorithm"
    );
    assert_eq!(world.reason(&unsigned).await, "malformed");
    assert!(!world.fetched().await);
    let foreign = TestKey::new().sign(&header(), &claims);
    assert_eq!(world.reason(&foreign).await, "bad_signature");
    assert_eq!(world.reason(&(foreign + ".x")).await, "malformed");
    let nothing = world.attestors.appraise(&Evidence::default(), now()).await;
    assert_eq!(nothing.unwrap_err().error, AttestError::Missing);
}

fn proof(key: &TestKey, url: &str) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let claims = json!({"htm": "POST", "htu": url, "iat": now().seconds(), "jti": "p1"});
    key.sign(&header, &claims)
}

#[tokio::test]
async fn a_proof_beside_a_token_must_hold_and_binds_what_may_be_used_again() {
    let world = World::with(json!({"reuse": "bound"})).await;
    let token = world.key.sign(&header(), &world.claims());
    assert_eq!(world.reason(&token).await, "replay_unbound");
    let mut evidence = bearer(&token);
    evidence.dpop = vec![proof(&world.agent, CREDENTIALS)];
    let one = world.attestors.appraise(&evidence, now()).await.unwrap();
    assert!(one.key.is_some() && one.proofs.len() == 1 && one.evidence.binding.is_some());
    evidence.dpop = vec![proof(&TestKey::new(), CREDENTIALS)];
    let two = world.attestors.appraise(&evidence, now()).await.unwrap();
    assert_eq!(one.evidence.key, two.evidence.key);
    assert_ne!(one.evidence.binding, two.evidence.binding);

    let single = World::new().await;
    let mut evidence = bearer(&single.key.sign(&header(), &single.claims()));
    evidence.dpop = vec![proof(&single.agent, "https://other.example/v1/credentials")];
    let refused = single
        .attestors
        .appraise(&evidence, now())
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), "bad_proof");
}

#[tokio::test]
async fn a_certificate_binds_where_no_proof_does() {
    let world = World::with(json!({"reuse": "bound"})).await;
    let token = world.key.sign(&header(), &world.claims());
    let mut evidence = bearer(&token);
    // The first certificate is the client's own; further ones are ignored.
    evidence.client_certificates = vec![b"abc".to_vec(), b"issuer".to_vec()];
    let one = world.attestors.appraise(&evidence, now()).await.unwrap();
    // SHA-256 of "abc", from FIPS 180-2.
    let digest = "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0";
    assert_eq!(one.key, Some(KeyBinding::X5t(digest.into())));
    assert!(one.proofs.is_empty() && one.evidence.binding.is_some());
    evidence.client_certificates = vec![b"other".to_vec()];
    let two = world.attestors.appraise(&evidence, now()).await.unwrap();
    assert_eq!(one.evidence.key, two.evidence.key);
    assert_ne!(one.evidence.binding, two.evidence.binding);

    evidence.dpop = vec![proof(&world.agent, CREDENTIALS)];
    let proved = world.attestors.appraise(&evidence, now()).await.unwrap();
    assert!(matches!(proved.key, Some(KeyBinding::Jkt(_))));
    evidence.dpop = vec![proof(&world.agent, "https://other.example/v1/credentials")];
    let refused = world.attestors.appraise(&evidence, now()).await;
    assert_eq!(refused.unwrap_err().reason(), "bad_proof");
}

/// The RFC 7638 thumbprint of a test's key.
fn thumbprint(key: &TestKey) -> String {
    let jwk = key.jwk();
    let canonical = format!(
        "{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":{},\"y\":{}}}",
        jwk["x"], jwk["y"]
    );
    URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()))
}

/// A proof for the credentials endpoint that names this token.
fn proof_of(key: &TestKey, token: &str) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let ath = URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()));
    let claims = json!({
        "htm": "POST", "htu": CREDENTIALS, "iat": now().seconds(), "jti": "p1", "ath": ath,
    });
    key.sign(&header, &claims)
}

#[tokio::test]
async fn whatever_attestor_a_bound_token_is_for_its_key_has_to_be_proved() {
    let world = World::new().await;
    let (own, thief) = (TestKey::new(), TestKey::new());
    let cnf = json!({"jkt": thumbprint(&own)});
    let tokens = [
        world.key.sign(&header(), &world.changed("cnf", &cnf)),
        world.assertion(&json!({"cnf": cnf})),
    ];
    for token in tokens {
        for (scheme, key, reason) in [
            (TokenScheme::Dpop, Some(&own), "good"),
            (TokenScheme::Parameter, Some(&own), "good"),
            (TokenScheme::Bearer, Some(&own), "confirmation"),
            (TokenScheme::Dpop, Some(&thief), "confirmation"),
            (TokenScheme::Parameter, Some(&thief), "confirmation"),
            (TokenScheme::Parameter, None, "confirmation"),
            (TokenScheme::Bearer, None, "confirmation"),
            (TokenScheme::Dpop, None, "bad_proof"),
        ] {
            let evidence = Evidence {
                scheme,
                dpop: key.into_iter().map(|key| proof_of(key, &token)).collect(),
                // A certificate is not a DPoP key.
                client_certificates: vec![b"abc".to_vec()],
                ..bearer(&token)
            };
            let appraised = world.attestors.appraise(&evidence, now()).await;
            let seen = appraised.map_or_else(|error| error.reason(), |_| "good");
            assert_eq!(seen, reason, "{scheme:?}");
        }
    }
}

#[tokio::test]
async fn a_token_that_is_bound_to_a_certificate_needs_that_one() {
    let world = World::new().await;
    // SHA-256 of "abc", from FIPS 180-2.
    let cnf = json!({"x5t#S256": "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"});
    let tokens = [
        world.key.sign(&header(), &world.changed("cnf", &cnf)),
        world.assertion(&json!({"cnf": cnf})),
    ];
    for token in tokens {
        for (certificates, reason) in [
            (vec![b"abc".to_vec(), b"issuer".to_vec()], "good"),
            (vec![b"issuer".to_vec(), b"abc".to_vec()], "confirmation"),
            (vec![], "confirmation"),
        ] {
            let evidence = Evidence {
                client_certificates: certificates,
                ..bearer(&token)
            };
            let appraised = world.attestors.appraise(&evidence, now()).await;
            let seen = appraised.map_or_else(|error| error.reason(), |_| "good");
            assert_eq!(seen, reason);
        }
    }
}

#[tokio::test]
async fn a_token_for_one_task_is_bound_to_a_key_where_its_holder_has_one() {
    let world = World::with(json!({"reuse": "per_task"})).await;
    let token = world.key.sign(&header(), &world.claims());
    let bare = world.attestors.appraise(&bearer(&token), now()).await;
    let bare = bare.unwrap();
    assert_eq!((bare.reuse, bare.evidence.binding), (Reuse::PerTask, None));
    // Four fifths of its 300 seconds, plus the leeway that is added to them.
    assert_eq!(bare.next_evidence_at(), Some(now().plus_seconds(248)));
    let mut evidence = bearer(&token);
    evidence.dpop = vec![proof(&world.agent, CREDENTIALS)];
    let bound = world.attestors.appraise(&evidence, now()).await.unwrap();
    assert_eq!(bound.reuse, Reuse::Bound);
    assert!(bound.evidence.binding.is_some());
    assert_eq!(bound.next_evidence_at(), None);
}

#[tokio::test]
async fn an_identity_could_be_attested_or_not() {
    let world = World::new().await;
    for (attestor, identity, could) in [
        ("ci", "ci:repo:5", true),
        ("ci", "ci:repo:a%3Ab", true),
        ("ci", "ci:5", false),
        ("ci", "ci:repo:5:env:x", false),
        ("ci", "cirepo:5", false),
        ("workload", "workload:reports", true),
        ("workload", "workload:a:b", false),
        ("gone", "gone:repo:5", false),
    ] {
        let named = identity.to_owned().try_into().unwrap();
        assert_eq!(
            world.attestors.could_attest(attestor, &named),
            could,
            "{identity}"
        );
    }
}

#[tokio::test]
async fn a_registered_key_proves_its_workload_and_no_other() {
    let world = World::new().await;
    let good = world.assertion(&json!({}));
    let workload = world
        .attestors
        .appraise(&bearer(&good), now())
        .await
        .unwrap();
    assert_eq!(workload.identity.as_str(), "workload:reports");
    assert_eq!(workload.instance.unwrap().as_str().len(), 43);
    let at = now().seconds();
    for (changes, reason) in [
        (json!({"iss": "stored", "sub": "stored"}), "good"),
        (
            json!({"iss": "broken", "sub": "broken"}),
            "keys_unavailable",
        ),
        (json!({"iss": "nobody", "sub": "nobody"}), "unknown_key"),
        (
            json!({"iss": "x".repeat(65), "sub": "x".repeat(65)}),
            "unknown_key",
        ),
        (json!({"sub": "other"}), "required_claim"),
        (json!({"aud": [OURS, OURS]}), "claim_type"),
        (json!({"aud": "https://other.example"}), "wrong_audience"),
        (json!({"aud": CREDENTIALS}), "wrong_audience"),
        (json!({"exp": at + 301}), "claim_type"),
        (json!({"iat": at - 200, "exp": at - 11}), "expired"),
        (json!({"iat": at + 11, "exp": at + 20}), "wrong_times"),
        (json!({"jti": null}), "claim_type"),
        (json!({"jti": ""}), "claim_type"),
    ] {
        let text = changes.to_string();
        assert_eq!(
            world.reason(&world.assertion(&changes)).await,
            reason,
            "{text}"
        );
    }
    let claims = json!({"iss": "reports", "sub": "reports", "aud": OURS, "jti": "a",
        "iat": at, "exp": at + 60});
    let untyped = world.agent.sign(&json!({"alg": "ES256"}), &claims);
    assert_eq!(world.reason(&untyped).await, "unknown_issuer");
    let typed = json!({"alg": "ES256", "typ": key::ASSERTION});
    assert_eq!(
        world.reason(&TestKey::new().sign(&typed, &claims)).await,
        "bad_signature"
    );
    assert!(!world.fetched().await);
}

#[test]
fn keys_that_may_not_be_registered_do_not_load() {
    for jwk in [
        json!("text"),
        json!({"kty": "oct", "k": "AAAA"}),
        json!({"kty": "EC", "crv": "P-384", "x": "A".repeat(64), "y": "A".repeat(64)}),
    ] {
        let spec = json!({"kind": "key", "name": "w", "keys": [{"workload": "a", "jwk": jwk}]});
        let context = AttestContext {
            own_issuer: OURS.into(),
            own_issuers: Vec::new(),
            not_before: None,
            tracker: TaskTracker::new(),
            workload_keys: Arc::new(Registered(Value::Null)),
            endpoints: Arc::default(),
            plain_issuers: false,
        };
        let specs = [serde_json::from_value(spec).unwrap()];
        assert_eq!(Attestors::new(&specs, context).unwrap_err().key, "keys");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", header in ".{0,60}", claims in ".{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let attestors = Attestors { all: Vec::new(), issuers: BTreeSet::new(), not_before: None, foundations: BTreeMap::new() };
        let framed = format!(
            "{}.{}.AAAA",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims),
        );
        for token in [text, framed] {
            let mut evidence = bearer(&token);
            evidence.dpop = vec![token];
            let refused = runtime.block_on(attestors.appraise(&evidence, now())).is_err();
            let unproven = dpop::verify(&evidence, dpop::TokenHash::None, now()).is_err();
            prop_assert!(refused && unproven);
        }
    }
}
