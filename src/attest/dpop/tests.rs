use serde_json::{Value, json};

use super::super::tests::testing::{TestKey, now};
use super::*;

const URL: &str = "https://broker.example/v1/credentials";

fn header(key: &TestKey) -> Value {
    json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()})
}

fn claims() -> Value {
    json!({"htm": "POST", "htu": URL, "iat": now().seconds(), "jti": "p1"})
}

fn judge(headers: Vec<String>, access_token: Option<&str>) -> Result<Proof, AttestError> {
    let token = access_token.map_or(TokenHash::None, TokenHash::Demanded);
    judge_with(headers, token)
}

fn judge_with(headers: Vec<String>, token: TokenHash<'_>) -> Result<Proof, AttestError> {
    let evidence = Evidence {
        dpop: headers,
        method: "POST".into(),
        url: URL.into(),
        ..Evidence::default()
    };
    verify(&evidence, token, now())
}

#[test]
fn a_good_proof_names_its_key_and_itself() {
    let key = TestKey::new();
    let prove = |claims: &Value| judge(vec![key.sign(&header(&key), claims)], None).unwrap();
    let proof = prove(&claims());
    assert!(matches!(&proof.key, KeyBinding::Jkt(jkt) if jkt.len() == 43));
    assert_eq!(proof, prove(&claims()));
    assert_eq!(proof.one_time.expires_at, now().plus_seconds(62));
    let mut other = claims();
    other["jti"] = json!("p2");
    assert_ne!(proof.one_time.key, prove(&other).one_time.key);
}

#[test]
fn each_claim_is_checked_at_its_limit() {
    let key = TestKey::new();
    let at = now().seconds();
    for (claim, value, good) in [
        ("htm", json!("post"), false),
        ("htm", json!("GET"), false),
        ("htm", Value::Null, false),
        ("htu", json!("https://broker.example/v1/tasks"), false),
        ("htu", json!("http://broker.example/v1/credentials"), false),
        (
            "htu",
            json!("https://u@broker.example/v1/credentials"),
            false,
        ),
        ("htu", json!("/v1/credentials"), false),
        (
            "htu",
            json!("HTTPS://Broker.Example:443/v1/credentials?a=b#c"),
            true,
        ),
        (
            "htu",
            json!("https://broker.example/v1/x/%2e%2E/cr%65dential%73"),
            true,
        ),
        (
            "htu",
            json!("https://broker.example/v1%2Fcredentials"),
            false,
        ),
        (
            "htu",
            json!("https://broker.example/v1/credentials%"),
            false,
        ),
        (
            "htu",
            json!("https:\\\\broker.example\\v1\\credentials"),
            false,
        ),
        (
            "htu",
            json!("https://broker.example/v1/cred\nentials"),
            false,
        ),
        ("iat", json!(at - 60), true),
        ("iat", json!(at - 61), false),
        ("iat", json!(at + 5), true),
        ("iat", json!(at + 6), false),
        ("iat", Value::Null, false),
        ("iat", json!("now"), false),
        ("jti", json!("x".repeat(256)), true),
        ("jti", json!("x".repeat(257)), false),
        ("jti", json!(""), false),
        ("jti", json!(1), false),
    ] {
        let mut claims = claims();
        claims[claim] = value.clone();
        let proof = key.sign(&header(&key), &claims);
        assert_eq!(judge(vec![proof], None).is_ok(), good, "{claim} = {value}");
    }
}

#[test]
fn an_htu_with_an_escaped_unreserved_letter_names_the_same_url() {
    for (one, other, same) in [
        ("https://a.example/x", "https://a.example/%78", true),
        (
            "https://a.example/%2D%2e%5F%7e",
            "https://a.example/-._~",
            true,
        ),
        ("https://a.example/%c3%a9", "https://a.example/%C3%A9", true),
        ("https://a.example", "https://a.example:443/", true),
        ("https://a.example/%2f", "https://a.example//", false),
        ("https://a.example/%", "https://a.example/%", false),
        ("https://a.example/%7", "https://a.example/%7", false),
        ("https://a.example/X", "https://a.example/x", false),
    ] {
        assert_eq!(same_target(one, other), same, "{one} {other}");
    }
}

#[test]
fn each_header_is_checked() {
    let key = TestKey::new();
    let mut private = key.jwk();
    private["d"] = json!("AAAA");
    for (field, value) in [
        ("typ", json!("JWT")),
        ("typ", Value::Null),
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("EdDSA")),
        ("jwk", private),
        ("jwk", TestKey::new().jwk()),
        ("jwk", json!({"kty": "oct", "k": "AAAA"})),
        ("jwk", Value::Null),
        ("jku", json!("https://evil.example")),
    ] {
        let mut header = header(&key);
        header[field] = value.clone();
        let proof = key.sign(&header, &claims());
        assert!(judge(vec![proof], None).is_err(), "{field} = {value}");
    }
    let proof = key.sign(&header(&key), &claims());
    assert!(judge(vec![], None).is_err());
    assert!(judge(vec![proof.clone(), proof], None).is_err());
}

#[test]
fn a_proof_for_an_access_token_names_it() {
    let key = TestKey::new();
    let mut claims = claims();
    assert!(judge(vec![key.sign(&header(&key), &claims)], Some("token")).is_err());
    claims["ath"] = json!(URL_SAFE_NO_PAD.encode(sha256(b"token")));
    let proof = key.sign(&header(&key), &claims);
    assert!(judge(vec![proof.clone()], Some("token")).is_ok());
    assert!(judge(vec![proof.clone()], Some("other")).is_err());
    // If it need not name a token, it must not name another one either.
    for (token, good) in [("token", true), ("other", false)] {
        let judged = judge_with(vec![proof.clone()], TokenHash::Allowed(token));
        assert_eq!(judged.is_ok(), good, "{token}");
    }
    claims["ath"] = json!(7);
    let odd = key.sign(&header(&key), &claims);
    assert!(judge_with(vec![odd], TokenHash::Allowed("token")).is_err());
}
