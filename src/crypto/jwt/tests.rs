use super::*;
use crate::clock::Timestamp;
use crate::crypto::test_keys;
use crate::crypto::{LocalSigner, PrivateKey, Signer};
use proptest::prelude::*;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
use serde_json::json;

const ALL: &[Algorithm] = &Algorithm::ALL;

fn encode(part: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

fn token(header: &str, payload: &str) -> String {
    format!(
        "{}.{}.{}",
        encode(header.as_bytes()),
        encode(payload.as_bytes()),
        encode(b"signature")
    )
}

fn parse(header: &str) -> Result<UnverifiedJwt, JwtError> {
    UnverifiedJwt::parse(&token(header, "{}"))
}

async fn signed(signer: &LocalSigner, header: &Value, payload: &str) -> String {
    let input = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(payload.as_bytes())
    );
    let signature = signer.sign(input.as_bytes()).await.unwrap();
    format!("{input}.{}", encode(&signature))
}

fn key(signer: &LocalSigner) -> VerificationKey {
    signer.public_jwk().clone().into()
}

fn local(algorithm: Algorithm) -> LocalSigner {
    LocalSigner::new(&PrivateKey::generate(algorithm).unwrap()).unwrap()
}

fn claims(claims: &Value) -> VerifiedClaims {
    VerifiedClaims {
        claims: Claims {
            header: Header {
                algorithm: Algorithm::Es256,
                typ: None,
                kid: None,
                names: Vec::new(),
            },
            claims: claims.as_object().unwrap().clone(),
        },
        signing_input_hash: [0; 32],
        key_thumbprint: String::new(),
    }
}

#[test]
fn rfc_7515_example_verifies_and_its_old_date_is_seen() {
    let token = UnverifiedJwt::parse("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q").unwrap();
    assert_eq!(token.unverified_issuer(), Some("joe"));
    let key = VerificationKey::parse(
        br#"{"kty":"EC","crv":"P-256",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
    )
    .unwrap();
    let claims = verify(&token, &key, &[Algorithm::Es256]).unwrap();
    assert_eq!(claims.issuer(), Ok("joe"));
    assert_eq!(
        check_times(&claims, Timestamp::from_seconds(1_300_000_000), 5, 60),
        Err(TimeError::Missing("iat"))
    );
}

#[test]
fn only_three_non_empty_parts_of_base64url_are_a_token() {
    let good = token(r#"{"alg":"ES256"}"#, "{}");
    assert!(UnverifiedJwt::parse(&good).is_ok());
    let (header, payload) = (encode(br#"{"alg":"ES256"}"#), encode(b"{}"));
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{header}..{payload}"),
        format!(".{payload}.{payload}"),
        format!("{good}.{payload}"),
        format!("{good}.{payload}.{payload}"),
        format!("{good}="),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{header}.{payload}.A"),
        format!("{header}.{payload}.AB"),
        format!("{header}.{payload}.+/+/"),
        r#"{"payload":"","signatures":[]}"#.into(),
    ] {
        assert_eq!(
            UnverifiedJwt::parse(&bad).unwrap_err(),
            JwtError::NotCompact,
            "{bad}"
        );
    }
}

#[test]
fn limits_hold_at_the_limit_and_one_past_it() {
    let frame = token(r#"{"alg":"ES256"}"#, "{}").len();
    let mut long = token(r#"{"alg":"ES256"}"#, "{}");
    long.push_str(&"A".repeat(MAX_TOKEN_BYTES - frame));
    assert_eq!(long.len(), MAX_TOKEN_BYTES);
    assert!(UnverifiedJwt::parse(&long).is_ok());
    long.push('A');
    assert_eq!(UnverifiedJwt::parse(&long).unwrap_err(), JwtError::TooLong);

    let header = |bytes: usize| {
        let frame = r#"{"alg":"ES256","x":""}"#.len();
        format!(r#"{{"alg":"ES256","x":"{}"}}"#, "x".repeat(bytes - frame))
    };
    assert!(parse(&header(MAX_HEADER_BYTES)).is_ok());
    assert_eq!(
        parse(&header(MAX_HEADER_BYTES + 1)).unwrap_err(),
        JwtError::BadHeader
    );
    let kid = |bytes| format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(bytes));
    assert!(parse(&kid(256)).is_ok());
    assert_eq!(parse(&kid(257)).unwrap_err(), JwtError::BadKid);
    let typ = |bytes| format!(r#"{{"alg":"ES256","typ":"{}"}}"#, "t".repeat(bytes));
    assert!(parse(&typ(128)).is_ok());
    assert_eq!(parse(&typ(129)).unwrap_err(), JwtError::BadType);
}

#[test]
fn headers_that_bring_keys_or_change_the_rules_are_refused() {
    for name in ["jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "jwk"] {
        for value in ["null", r#""https://evil.example""#, "[]", "{}", "false"] {
            let header = format!(r#"{{"alg":"ES256","{name}":{value}}}"#);
            assert_eq!(
                parse(&header).unwrap_err(),
                JwtError::RefusedParameter(name),
                "{header}"
            );
        }
    }
    assert!(parse(r#"{"alg":"ES256","x5t":"abc","cty":"x"}"#).is_ok());
}

#[test]
fn no_other_algorithm_exists() {
    for alg in [
        r#""none""#,
        r#""None""#,
        r#""HS256""#,
        r#""HS384""#,
        r#""HS512""#,
        r#""es256""#,
        r#""ES256K""#,
        r#""ES512""#,
        r#""RS1""#,
        r#""Ed448""#,
        r#""""#,
        "null",
        "1",
        r#"["ES256"]"#,
    ] {
        assert_eq!(
            parse(&format!(r#"{{"alg":{alg}}}"#)).unwrap_err(),
            JwtError::UnsupportedAlgorithm,
            "{alg}"
        );
    }
    assert_eq!(parse("{}").unwrap_err(), JwtError::UnsupportedAlgorithm);
    let ed = parse(r#"{"alg":"Ed25519"}"#).unwrap();
    assert_eq!(ed.unverified_algorithm(), Algorithm::EdDsa);
}

#[test]
fn ambiguous_json_is_refused_in_header_and_payload() {
    for header in [
        r#"{"alg":"ES256","alg":"ES256"}"#,
        r#"{"alg":"ES256","x":{"a":1,"a":2}}"#,
        r#"{"alg":"ES256"} "#.repeat(2).as_str(),
        "[]",
        "x",
    ] {
        assert_eq!(parse(header).unwrap_err(), JwtError::BadHeader, "{header}");
    }
    for payload in [
        r#"{"sub":"a","sub":"b"}"#,
        r#"{"sub":"a\u0000"}"#,
        r#""text""#,
        "[]",
        "1",
        "{",
    ] {
        let token = token(r#"{"alg":"ES256"}"#, payload);
        assert_eq!(
            UnverifiedJwt::parse(&token).unwrap_err(),
            JwtError::BadPayload,
            "{payload}"
        );
    }
    for kid in [r#""""#, r#""a\nb""#, "1", "null", "{}"] {
        let header = format!(r#"{{"alg":"ES256","kid":{kid}}}"#);
        assert_eq!(parse(&header).unwrap_err(), JwtError::BadKid, "{header}");
    }
}

#[tokio::test]
async fn what_our_signers_sign_verifies_and_any_change_does_not() {
    let rsa = PrivateKey::import_rsa_pem(test_keys::RSA_PEM.as_bytes()).unwrap();
    for signer in [
        local(Algorithm::Es256),
        local(Algorithm::EdDsa),
        LocalSigner::new(&rsa).unwrap(),
    ] {
        let header = json!({"alg": signer.algorithm().as_str(), "typ": "at+jwt"});
        let text = signed(&signer, &header, r#"{"sub":"a"}"#).await;
        let token = UnverifiedJwt::parse(&text).unwrap();
        let claims = verify(&token, &key(&signer), ALL).unwrap();
        assert_eq!(claims.subject(), Ok("a"));
        assert_eq!(claims.key_thumbprint(), signer.kid());
        assert_eq!(claims.signing_input_hash(), token.signing_input_hash());
        let other = local(Algorithm::Es256);
        assert!(verify(&token, &key(&other), ALL).is_err());

        let (input, signature) = text.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for index in 0..signature.len() {
            let mut bad = signature.clone();
            bad[index] ^= 1;
            let bad = UnverifiedJwt::parse(&format!("{input}.{}", encode(&bad))).unwrap();
            assert_eq!(
                verify(&bad, &key(&signer), ALL).unwrap_err(),
                JwtError::BadSignature
            );
        }
        let (header, _) = input.split_once('.').unwrap();
        let swapped = format!(
            "{header}.{}.{}",
            encode(br#"{"sub":"b"}"#),
            encode(&signature)
        );
        let swapped = UnverifiedJwt::parse(&swapped).unwrap();
        assert_eq!(
            verify(&swapped, &key(&signer), ALL).unwrap_err(),
            JwtError::BadSignature
        );
    }
}

#[tokio::test]
async fn algorithms_are_the_callers_and_the_keys_choice() {
    let signer = local(Algorithm::Es256);
    let text = signed(&signer, &json!({"alg": "ES256"}), "{}").await;
    let token = UnverifiedJwt::parse(&text).unwrap();
    for allowed in [&[][..], &[Algorithm::Rs256, Algorithm::EdDsa]] {
        assert_eq!(
            verify(&token, &key(&signer), allowed).unwrap_err(),
            JwtError::AlgorithmNotAllowed(Algorithm::Es256)
        );
    }
    // The same bytes under the name of another algorithm.
    for name in ["ES384", "RS256", "PS256", "EdDSA"] {
        let text = signed(&signer, &json!({"alg": name}), "{}").await;
        let token = UnverifiedJwt::parse(&text).unwrap();
        assert_eq!(
            verify(&token, &key(&signer), ALL).unwrap_err(),
            JwtError::AlgorithmNotOfKey(token.unverified_algorithm())
        );
    }
}

#[test]
fn a_public_key_is_never_an_hmac_secret() {
    let public = test_keys::RSA_PEM;
    let input = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(b"{}"));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, public.as_bytes());
    let tag = hmac::sign(&secret, input.as_bytes());
    let token = format!("{input}.{}", encode(tag.as_ref()));
    assert_eq!(
        UnverifiedJwt::parse(&token).unwrap_err(),
        JwtError::UnsupportedAlgorithm
    );
}

#[test]
fn every_rsa_and_es384_algorithm_verifies() {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::from_pkcs8(&test_keys::rsa_pkcs8()).unwrap();
    let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(rsa.public());
    let jwk = json!({"kty": "RSA", "n": encode(&public.n), "e": encode(&public.e)});
    let rsa_key = VerificationKey::parse(jwk.to_string().as_bytes()).unwrap();
    let paddings: [(&str, &'static dyn signature::RsaEncoding); 6] = [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ];
    let input = |name: &str| {
        format!(
            "{}.{}",
            encode(json!({"alg": name}).to_string().as_bytes()),
            encode(b"{}")
        )
    };
    for (signed_as, padding) in paddings {
        for (named, _) in paddings {
            let input = input(named);
            let mut out = vec![0; rsa.public().modulus_len()];
            rsa.sign(padding, &random, input.as_bytes(), &mut out)
                .unwrap();
            let token = UnverifiedJwt::parse(&format!("{input}.{}", encode(&out))).unwrap();
            let verified = verify(&token, &rsa_key, ALL);
            assert_eq!(verified.is_ok(), signed_as == named, "{signed_as} {named}");
        }
    }

    let how = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let jwk = json!({"kty": "EC", "crv": "P-384", "x": encode(x), "y": encode(y)});
    let key = VerificationKey::parse(jwk.to_string().as_bytes()).unwrap();
    let input = input("ES384");
    let signature = pair.sign(&random, input.as_bytes()).unwrap();
    let token = format!("{input}.{}", encode(signature.as_ref()));
    assert!(verify(&UnverifiedJwt::parse(&token).unwrap(), &key, ALL).is_ok());
}

#[tokio::test]
async fn the_one_time_name_ignores_the_signature() {
    let signer = local(Algorithm::Es256);
    let header = json!({"alg": "ES256"});
    let one = signed(&signer, &header, "{}").await;
    let two = signed(&signer, &header, "{}").await;
    assert_ne!(one, two);
    let hash = |text: &str| UnverifiedJwt::parse(text).unwrap().signing_input_hash();
    assert_eq!(hash(&one), hash(&two));
    assert_ne!(hash(&one), hash(&signed(&signer, &header, "{} ").await));
}

#[tokio::test]
async fn a_proof_carries_a_public_key_and_nothing_private() {
    let signer = local(Algorithm::Es256);
    let jwk = serde_json::to_value(signer.public_jwk()).unwrap();
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": jwk});
    let text = signed(&signer, &header, r#"{"iat":100}"#).await;
    assert_eq!(
        UnverifiedJwt::parse(&text).unwrap_err(),
        JwtError::RefusedParameter("jwk")
    );
    let proof = UnverifiedJwt::parse_proof(&text).unwrap();
    assert!(proof.unverified_is_type("dpop+jwt"));
    let key = VerificationKey::from(proof.unverified_key().unwrap().clone());
    assert_eq!(key.thumbprint(), signer.kid());
    let claims = verify(&proof, &key, &[Algorithm::Es256]).unwrap();
    let at = Timestamp::from_seconds;
    assert_eq!(check_issued_at(&claims, at(110), 5, 5), Ok(at(100)));
    assert_eq!(
        check_issued_at(&claims, at(111), 5, 5),
        Err(TimeError::TooOld)
    );

    let mut private = header.clone();
    private["jwk"]["d"] = json!("AQAB");
    let text = signed(&signer, &private, "{}").await;
    assert_eq!(
        UnverifiedJwt::parse_proof(&text).unwrap_err(),
        JwtError::BadEmbeddedKey(Some(JwkError::Private("d")))
    );
    for bad in [json!({"alg": "ES256"}), json!({"alg": "ES256", "jwk": "x"})] {
        let text = signed(&signer, &bad, "{}").await;
        assert_eq!(
            UnverifiedJwt::parse_proof(&text).unwrap_err(),
            JwtError::BadEmbeddedKey(None)
        );
    }
}

#[test]
fn typ_is_compared_as_a_media_type() {
    for (typ, matches) in [
        ("at+jwt", true),
        ("AT+JWT", true),
        ("application/at+jwt", true),
        ("Application/AT+jwt", true),
        ("JWT", false),
        ("text/at+jwt", false),
        ("application/application/at+jwt", false),
        ("at+jwtx", false),
    ] {
        let token = parse(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#)).unwrap();
        assert_eq!(token.unverified_is_type("at+jwt"), matches, "{typ}");
    }
    assert!(
        !parse(r#"{"alg":"ES256"}"#)
            .unwrap()
            .unverified_is_type("at+jwt")
    );
    for typ in [r#""""#, r#""a b""#, "1", "null"] {
        let header = format!(r#"{{"alg":"ES256","typ":{typ}}}"#);
        assert_eq!(parse(&header).unwrap_err(), JwtError::BadType);
    }
}

#[test]
fn claims_of_the_wrong_form_are_not_claims_that_are_missing() {
    let good = claims(&json!({"iss": "i", "aud": ["a", "b"], "jti": "j"}));
    assert_eq!(good.audiences(), Ok(vec!["a", "b"]));
    assert_eq!(good.sole_audience(), Err(JwtError::MalformedClaim("aud")));
    assert_eq!(good.token_id(), Ok(Some("j")));
    assert_eq!(good.subject(), Err(JwtError::MissingClaim("sub")));
    let one = claims(&json!({"aud": "a"}));
    assert_eq!(
        (one.audiences(), one.sole_audience()),
        (Ok(vec!["a"]), Ok("a"))
    );
    assert_eq!(one.token_id(), Ok(None));
    let list = claims(&json!({"aud": ["a"]}));
    assert_eq!(list.sole_audience(), Ok("a"), "a list of one names one");
    for none in [json!([""]), json!("")] {
        let none = claims(&json!({"aud": none}));
        assert_eq!(none.sole_audience(), Err(JwtError::MalformedClaim("aud")));
    }
    for aud in [json!([]), json!(["a", 1]), json!({}), json!(null), json!(1)] {
        let bad = claims(&json!({"aud": aud, "jti": 1, "sub": ""}));
        assert_eq!(bad.audiences(), Err(JwtError::MalformedClaim("aud")));
        assert_eq!(bad.token_id(), Err(JwtError::MalformedClaim("jti")));
        assert_eq!(bad.subject(), Err(JwtError::MalformedClaim("sub")));
    }
    assert_eq!(
        claims(&json!({})).audiences(),
        Err(JwtError::MissingClaim("aud"))
    );
}

#[test]
fn times_are_judged_to_the_second_with_leeway_on_both_sides() {
    let good = claims(&json!({"iat": 1000, "nbf": 1010, "exp": 1100}));
    let check = |seconds| check_times(&good, Timestamp::from_seconds(seconds), 5, 200);
    assert_eq!(check(994), Err(TimeError::IssuedInTheFuture));
    assert_eq!(check(995), Err(TimeError::NotYetValid));
    assert_eq!(check(1004), Err(TimeError::NotYetValid));
    assert!(check(1005).is_ok());
    assert!(check(1104).is_ok());
    assert_eq!(check(1105), Err(TimeError::Expired));
    let old = |seconds| check_times(&good, Timestamp::from_seconds(seconds), 5, 20);
    assert!(old(1025).is_ok());
    assert_eq!(old(1026), Err(TimeError::TooOld));
    assert_eq!(
        check(1020),
        Ok(Times {
            issued_at: Timestamp::from_seconds(1000),
            not_before: Some(Timestamp::from_seconds(1010)),
            expires_at: Timestamp::from_seconds(1100),
        })
    );
}

#[test]
fn dates_that_are_none_are_refused() {
    let at = Timestamp::from_seconds(1_050);
    let check = |value: Value| check_times(&claims(&value), at, 5, 200);
    let late = Timestamp::MAX.seconds();
    assert!(check(json!({"iat": 1000, "exp": late})).is_ok());
    let fraction = check(json!({"iat": 1000.9, "exp": 1100.9})).unwrap();
    assert_eq!(fraction.issued_at, Timestamp::from_seconds(1000));
    assert_eq!(fraction.expires_at, Timestamp::from_seconds(1100));
    assert_eq!(check(json!({"iat": 1000})), Err(TimeError::Missing("exp")));
    assert_eq!(check(json!({"exp": 1100})), Err(TimeError::Missing("iat")));
    assert_eq!(
        check(json!({"iat": 1000, "exp": 1000})),
        Err(TimeError::Backwards)
    );
    for bad in [
        json!("1100"),
        json!(null),
        json!([1100]),
        json!(true),
        json!(-1),
        json!(-0.5),
        json!(late + 1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(1e12),
    ] {
        for name in ["iat", "nbf", "exp"] {
            let mut value = json!({"iat": 1000, "nbf": 1000, "exp": 1100});
            value[name] = bad.clone();
            assert_eq!(check(value), Err(TimeError::NotADate(name)), "{bad}");
        }
    }
}

#[tokio::test]
async fn debug_shows_neither_token_nor_claims() {
    let signer = local(Algorithm::Es256);
    let text = signed(&signer, &json!({"alg": "ES256"}), r#"{"sub":"canary"}"#).await;
    let token = UnverifiedJwt::parse(&text).unwrap();
    let claims = verify(&token, &key(&signer), ALL).unwrap();
    let shown = format!("{token:?}{token:#?}{claims:?}{claims:#?}");
    for part in text.split('.').chain(["canary"]) {
        assert!(!shown.contains(part), "{shown}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,300}") {
        drop(UnverifiedJwt::parse(&text));
        drop(UnverifiedJwt::parse_proof(&text));
    }

    #[test]
    fn no_bytes_in_the_parts_make_the_parser_panic(
        header in proptest::collection::vec(any::<u8>(), 0..100),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let text = format!("{}.{}.AAAA", encode(&header), encode(&payload));
        drop(UnverifiedJwt::parse(&text));
        let known = format!("{}.{}.AAAA", encode(br#"{"alg":"RS256"}"#), encode(&payload));
        drop(UnverifiedJwt::parse(&known));
    }

    #[test]
    fn a_token_that_passes_is_within_every_bound(
        iat in 0_i64..3_000, exp in 0_i64..3_000, nbf in 0_i64..3_000, now in 0_i64..3_000,
        leeway in 0_u64..60, age in 0_u64..1_000,
    ) {
        let claims = claims(&json!({"iat": iat, "exp": exp, "nbf": nbf}));
        let at = Timestamp::from_seconds(now);
        let (slack, oldest) = (i64::try_from(leeway).unwrap(), i64::try_from(age).unwrap());
        let ok = exp > iat && now < exp + slack && nbf <= now + slack && iat <= now + slack
            && iat >= (now - oldest - slack).max(0);
        prop_assert_eq!(check_times(&claims, at, leeway, age).is_ok(), ok);
    }
}
