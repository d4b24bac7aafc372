//! Refusals that all presets share, tested with GitHub's: every known way to misuse a token that
//! was issued for another purpose.

use serde_json::{Value, json};

use super::super::support::issuer::Behaviour;
use super::super::support::keys::{Algorithm, Key, hmac_jwt, unsigned_jwt};
use super::{AUDIENCE, World, github, issuer_of, load, now};

const ATTESTOR: &str = r#"
[[attestors]]
kind = "oidc"
preset = "github-actions"
name = "github"
issuer = "https://token.actions.githubusercontent.com"
audience = "https://broker.example"
required = { repository_owner_id = "65" }
"#;

fn world() -> World {
    World::new(ATTESTOR, github::good())
}

#[tokio::test]
async fn a_token_for_anybody_else_too_is_refused() {
    let cases = [
        (json!({"aud": null}), "wrong_audience"),
        (json!({"aud": ""}), "wrong_audience"),
        (json!({"aud": []}), "wrong_audience"),
        (
            json!({"aud": "https://github.com/octo-org"}),
            "wrong_audience",
        ),
        (json!({"aud": "https://broker.example/"}), "wrong_audience"),
        (
            json!({"aud": "https://other-tenant.example"}),
            "wrong_audience",
        ),
        (
            json!({"aud": [AUDIENCE, "https://other.example"]}),
            "wrong_audience",
        ),
        (json!({"aud": [AUDIENCE, AUDIENCE]}), "wrong_audience"),
    ];
    let world = world();
    for (over, reason) in cases {
        let seen = world.see(over.clone()).await.map(|w| w.identity);
        assert_eq!(seen, Err(reason), "{over}");
    }
    // A list with one audience counts as one audience.
    world.see(json!({"aud": [AUDIENCE]})).await.unwrap();
}

#[tokio::test]
async fn a_token_outside_its_time_is_refused() {
    let at = now().seconds();
    let cases = [
        // Long-lived, like a cluster's default tokens, and older than the accepted age.
        (
            json!({"iat": at - 620, "exp": at + 31_536_000}),
            "wrong_times",
        ),
        (json!({"iat": at - 60, "exp": at - 20}), "expired"),
        (json!({"iat": at + 60, "exp": at + 360}), "wrong_times"),
        (json!({"nbf": at + 60}), "wrong_times"),
        (json!({"iat": null}), "wrong_times"),
        (json!({"exp": null}), "wrong_times"),
    ];
    world().refuses(&cases).await;
}

#[tokio::test]
async fn a_signature_by_anything_but_the_issuers_key_and_algorithm_is_refused() {
    let world = world();
    let key = world.issuer.key();
    let claims = world.issuer.claims(world.claims(&json!({})));
    let header = key.header();
    let with = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        header
    };
    let stranger = Key::generate(Algorithm::Es256);
    let pem = key.public_pem().as_bytes();
    let refused = [
        (
            unsigned_jwt(&with("alg", json!("none")), &claims),
            "malformed",
        ),
        (
            hmac_jwt(&with("alg", json!("HS256")), &claims, pem),
            "wrong_algorithm",
        ),
        (
            world
                .issuer
                .token_with(&with("alg", json!("ES256")), &claims, &stranger),
            "wrong_algorithm",
        ),
        (
            world
                .issuer
                .token_with(&with("alg", json!("PS256")), &claims, &key),
            "wrong_algorithm",
        ),
        (
            world
                .issuer
                .token_with(&with("kid", json!("another")), &claims, &key),
            "unknown_key",
        ),
        (
            world
                .issuer
                .token_with(&with("kid", json!("../../jwks")), &claims, &key),
            "unknown_key",
        ),
        (
            world
                .issuer
                .token_with(&with("kid", json!("' OR 1=1 --")), &claims, &key),
            "unknown_key",
        ),
        (
            world.issuer.token_with(
                &with("jku", json!("https://evil.example/jwks")),
                &claims,
                &key,
            ),
            "malformed",
        ),
        (
            world
                .issuer
                .token_with(&with("jwk", stranger.jwk()), &claims, &key),
            "malformed",
        ),
    ];
    let signed = unsigned_jwt(&with("alg", json!("none")), &claims) + "AAAA";
    assert_eq!(
        world.appraise(&signed).await.unwrap_err(),
        "wrong_algorithm"
    );
    world
        .see(json!({}))
        .await
        .expect("the valid token is accepted");
    for (token, reason) in refused {
        let seen = world.appraise(&token).await.map(|w| w.identity);
        assert_eq!(seen, Err(reason), "{token}");
    }
    // An attacker who can change only the payload.
    let (good, forged) = (
        world.token(json!({})),
        world.token(json!({"repository_id": "1"})),
    );
    let parts: Vec<_> = good.split('.').zip(forged.split('.')).collect();
    let mixed = format!("{}.{}.{}", parts[0].0, parts[1].1, parts[2].0);
    assert_eq!(world.appraise(&mixed).await.unwrap_err(), "bad_signature");
}

#[tokio::test]
async fn an_issuer_that_is_nearly_the_one_is_not() {
    let world = world();
    let url = world.issuer.url().to_owned();
    let nearly = [
        format!("{url}/"),
        format!("{url}.evil.example"),
        url.to_uppercase(),
        url.replace("https", "http"),
        String::new(),
    ];
    for iss in nearly {
        let seen = world.see(json!({"iss": iss})).await.map(|w| w.identity);
        assert_eq!(seen, Err("unknown_issuer"), "{iss}");
    }
}

#[tokio::test]
async fn discovery_that_leads_elsewhere_is_not_followed() {
    for lie in [
        Behaviour::Redirect,
        Behaviour::Merge(json!({"issuer": "https://token.actions.evil.example"})),
        Behaviour::Merge(json!({"jwks_uri": "http://keys.evil.example/jwks"})),
        Behaviour::Merge(json!({"jwks_uri": "https://127.0.0.1/jwks"})),
    ] {
        let world = world();
        world.issuer.discovery(lie.clone());
        let seen = world.see(json!({})).await.map(|w| w.identity);
        assert_eq!(seen, Err("issuer_unreachable"), "{lie:?}");
        let fetched = world.issuer.fetches();
        assert_eq!((fetched.moved, fetched.jwks), (0, 0), "{lie:?}");
    }
}

#[tokio::test]
async fn the_evidence_of_a_token_seen_again_is_the_same_and_its_jti_decides() {
    let world = world();
    let token = world.token(json!({"jti": "one"}));
    let first = world.appraise(&token).await.unwrap().evidence;
    // The append to the ledger consumes the evidence's key, so a second use fails there.
    assert_eq!(
        world.appraise(&token).await.unwrap().evidence.key,
        first.key
    );
    let again = world
        .see(json!({"jti": "one", "run_id": "7"}))
        .await
        .unwrap();
    assert_eq!(again.evidence.key, first.key);
    let other = world.see(json!({"jti": "two"})).await.unwrap();
    assert_ne!(other.evidence.key, first.key);
    assert_eq!(first.binding, None);
}

#[tokio::test]
async fn one_subject_at_two_issuers_is_two_workloads() {
    let attestor = |name: &str| {
        let own = ATTESTOR.replace("\"github\"", &format!("\"{name}\""));
        own.replace(
            issuer_of(ATTESTOR),
            &format!("https://{name}.example/_services/token"),
        )
    };
    let [one, two] = ["one", "two"].map(|name| World::new(&attestor(name), github::good()));
    let text = [(&one, "one"), (&two, "two")]
        .map(|(world, name)| world.issuer.served(&attestor(name)))
        .concat();
    let both = load(&text).unwrap();
    for (world, name) in [(&one, "one"), (&two, "two")] {
        let token = world.token(json!({}));
        let workload = super::appraise(&both, &token).await.unwrap();
        assert_eq!(workload.identity.as_str(), format!("{name}:repo:74"));
        // A token signed by the other issuer's key under this issuer's name.
        let other = if name == "one" { &two } else { &one };
        let claims = world.issuer.claims(world.claims(&json!({})));
        let key = other.issuer.key();
        let crossed = other.issuer.token_with(&key.header(), &claims, &key);
        assert_eq!(
            super::appraise(&both, &crossed).await.unwrap_err(),
            "unknown_key"
        );
    }
}
