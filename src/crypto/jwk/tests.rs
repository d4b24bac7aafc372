use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const RFC7638_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

fn rsa() -> Value {
    json!({"kty": "RSA", "n": RFC7638_N, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"})
}

fn p256() -> Value {
    json!({"kty": "EC", "crv": "P-256",
            "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
            "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"})
}

fn ed25519() -> Value {
    json!({"kty": "OKP", "crv": "Ed25519",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
}

fn parse(value: &Value) -> Result<VerificationKey, JwkError> {
    VerificationKey::parse(value.to_string().as_bytes())
}

fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

#[test]
fn a_key_of_a_generator_that_can_be_computed_is_refused() {
    let weak = with(rsa(), "n", json!(super::super::roca::WEAK));
    assert_eq!(parse(&weak).unwrap_err(), JwkError::RsaGenerator);
    parse(&rsa()).unwrap();
}

#[test]
fn a_point_beside_its_curve_is_told() {
    let key = parse(&p256()).unwrap();
    key.jwk().check_on_curve().unwrap();
    let zeros = |bytes: usize| json!(URL_SAFE_NO_PAD.encode(vec![0; bytes]));
    let beside = [
        with(p256(), "y", p256()["x"].clone()),
        with(p256(), "x", zeros(32)),
        with(with(p256(), "x", zeros(32)), "y", zeros(32)),
        json!({"kty": "EC", "crv": "P-384", "x": zeros(48), "y": zeros(48)}),
        with(p256(), "y", json!(URL_SAFE_NO_PAD.encode([0xff; 32]))),
    ];
    for jwk in beside {
        let key = parse(&jwk).unwrap();
        assert_eq!(
            key.jwk().check_on_curve(),
            Err(JwkError::NotOnCurve),
            "{jwk}"
        );
    }
    parse(&ed25519()).unwrap().jwk().check_on_curve().unwrap();
}

#[test]
fn thumbprints_are_those_of_rfc_7638_8037_and_9449() {
    for (key, thumbprint) in [
        (rsa(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (ed25519(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
        (p256(), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"),
    ] {
        assert_eq!(parse(&key).unwrap().thumbprint(), thumbprint);
    }
}

#[test]
fn a_key_has_one_family_and_its_own_alg_pins_one_algorithm() {
    assert_eq!(parse(&rsa()).unwrap().algorithms(), [Algorithm::Rs256]);
    let mut free = rsa();
    free.as_object_mut().unwrap().remove("alg");
    assert_eq!(parse(&free).unwrap().algorithms(), Algorithm::RSA);
    assert_eq!(parse(&p256()).unwrap().algorithms(), [Algorithm::Es256]);
    for name in ["EdDSA", "Ed25519"] {
        let key = parse(&with(ed25519(), "alg", json!(name))).unwrap();
        assert_eq!(key.algorithms(), [Algorithm::EdDsa]);
    }
    for name in ["HS256", "none", "ES384", "RS256", "RSA-OAEP"] {
        assert_eq!(
            parse(&with(p256(), "alg", json!(name))).unwrap_err(),
            JwkError::WrongAlgorithm
        );
    }
}

#[test]
fn private_and_symmetric_members_are_refused_whatever_their_value() {
    for name in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        for member in [json!("AQAB"), json!(null), json!([])] {
            for key in [rsa(), p256(), ed25519()] {
                assert_eq!(
                    parse(&with(key, name, member.clone())).unwrap_err(),
                    JwkError::Private(name)
                );
            }
        }
    }
    let oct = json!({"kty": "oct", "k": "AQAB"});
    assert_eq!(parse(&oct).unwrap_err(), JwkError::Private("k"));
}

#[test]
fn weak_and_misshapen_keys_are_refused() {
    let n = |bytes: &[u8]| with(rsa(), "n", json!(URL_SAFE_NO_PAD.encode(bytes)));
    let e = |bytes: &[u8]| with(rsa(), "e", json!(URL_SAFE_NO_PAD.encode(bytes)));
    let size = |bytes: usize| n(&vec![0xff; bytes]);
    assert!(parse(&size(256)).is_ok());
    assert!(parse(&size(512)).is_ok());
    for (key, error) in [
        (size(255), JwkError::RsaSize),
        (
            n(&[vec![0x7f], vec![0xff; 255]].concat()),
            JwkError::RsaSize,
        ),
        (size(513), JwkError::RsaSize),
        (
            n(&[vec![0], vec![0xff; 256]].concat()),
            JwkError::BadNumber("n"),
        ),
        (
            n(&[vec![0xff; 255], vec![0xfe]].concat()),
            JwkError::BadNumber("n"),
        ),
        (n(&[]), JwkError::BadNumber("n")),
        (e(&[1]), JwkError::RsaExponent),
        (e(&[3]), JwkError::RsaExponent),
        (e(&[1, 0, 0]), JwkError::RsaExponent),
        (e(&[0, 1, 0, 1]), JwkError::RsaExponent),
        (e(&[0xff; 5]), JwkError::RsaExponent),
        (e(&[]), JwkError::RsaExponent),
        (
            with(p256(), "crv", json!("P-384")),
            JwkError::BadNumber("x"),
        ),
        (
            with(p256(), "crv", json!("secp256k1")),
            JwkError::UnsupportedType,
        ),
        (
            with(p256(), "crv", json!("Ed25519")),
            JwkError::UnsupportedType,
        ),
        (with(p256(), "kty", json!("OKP")), JwkError::UnsupportedType),
        (with(p256(), "x", json!("AQAB")), JwkError::BadNumber("x")),
        (with(p256(), "x", json!("=")), JwkError::BadNumber("x")),
        (with(p256(), "y", json!(null)), JwkError::Missing("y")),
        (with(p256(), "n", json!("AQAB")), JwkError::Foreign("n")),
        (
            with(ed25519(), "crv", json!("X25519")),
            JwkError::UnsupportedType,
        ),
        (
            with(p256(), "use", json!("enc")),
            JwkError::NotForSignatures,
        ),
        (
            with(p256(), "key_ops", json!(["sign"])),
            JwkError::NotForSignatures,
        ),
        (with(p256(), "kid", json!("")), JwkError::BadKid),
        (with(p256(), "kid", json!("a\nb")), JwkError::BadKid),
        (
            with(p256(), "kid", json!("k".repeat(257))),
            JwkError::BadKid,
        ),
        (with(p256(), "kid", json!(7)), JwkError::Malformed),
    ] {
        assert_eq!(parse(&key).unwrap_err(), error, "{key}");
    }
    assert!(parse(&with(p256(), "kid", json!("k".repeat(256)))).is_ok());
    assert!(parse(&with(p256(), "key_ops", json!(["verify"]))).is_ok());
    assert!(parse(&with(p256(), "x5t", json!("ignored"))).is_ok());
    let twice = br#"{"kty":"RSA","kty":"EC"}"#;
    assert_eq!(
        VerificationKey::parse(twice).unwrap_err(),
        JwkError::Malformed
    );
}

#[test]
fn a_pinned_rsa_key_does_not_verify_what_it_could() {
    use ring::signature::{RSA_PKCS1_SHA384, RsaKeyPair};

    let pair = RsaKeyPair::from_pkcs8(&crate::crypto::test_keys::rsa_pkcs8()).unwrap();
    let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
    let mut signature = vec![0; pair.public().modulus_len()];
    let random = ring::rand::SystemRandom::new();
    pair.sign(&RSA_PKCS1_SHA384, &random, b"x", &mut signature)
        .unwrap();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let free = json!({"kty": "RSA", "n": encode(&public.n), "e": encode(&public.e)});
    for (key, verifies) in [
        (with(free.clone(), "alg", json!("RS384")), true),
        (with(free.clone(), "alg", json!("RS256")), false),
        (free, true),
    ] {
        let key = parse(&key).unwrap();
        let result = key.verify_signature(Algorithm::Rs384, b"x", &signature);
        assert_eq!(result.is_ok(), verifies);
    }
}

#[test]
fn an_ed25519_key_with_which_anyone_can_sign_is_refused() {
    let identity = [[1].as_slice(), &[0; 31]].concat();
    let key = with(ed25519(), "x", json!(URL_SAFE_NO_PAD.encode(identity)));
    assert_eq!(parse(&key).unwrap_err(), JwkError::SmallOrder);
    assert!(parse(&ed25519()).is_ok());
}

#[test]
fn a_point_that_is_not_on_the_curve_verifies_nothing() {
    let key = parse(&with(
        p256(),
        "x",
        json!(URL_SAFE_NO_PAD.encode([7_u8; 32])),
    ))
    .unwrap();
    assert_eq!(
        key.verify_signature(Algorithm::Es256, b"x", &[1; 64]),
        Err(BadSignature)
    );
}

#[test]
fn rfc_8037_signature_verifies_under_its_own_key_and_algorithm_only() {
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = URL_SAFE_NO_PAD
            .decode("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg")
            .unwrap();
    let key = parse(&ed25519()).unwrap();
    assert!(
        key.verify_signature(Algorithm::EdDsa, message, &signature)
            .is_ok()
    );
    assert!(
        key.verify_signature(Algorithm::EdDsa, b"x", &signature)
            .is_err()
    );
    for algorithm in Algorithm::ALL {
        let ok = key.verify_signature(algorithm, message, &signature).is_ok();
        assert_eq!(ok, algorithm == Algorithm::EdDsa);
    }
}

#[test]
fn a_published_key_reads_back_as_itself() {
    for key in [rsa(), p256(), ed25519()] {
        let key = parse(&key).unwrap().jwk().clone();
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(PublicJwk::parse(text.as_bytes()).unwrap(), key);
        assert_eq!(serde_json::from_str::<PublicJwk>(&text).unwrap(), key);
        assert!(text.contains("\"use\":\"sig\""));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(VerificationKey::parse(&bytes).is_err());
    }

    #[test]
    fn no_members_make_the_parser_panic(
        kty in "(EC|RSA|OKP|oct)", crv in "(P-256|P-384|Ed25519)?",
        x in "[A-Za-z0-9_=-]{0,64}", n in "[A-Za-z0-9_-]{0,700}", e in "[A-Za-z0-9_-]{0,8}",
    ) {
        let mut key = json!({"kty": kty, "x": x, "y": x, "n": n, "e": e});
        if !crv.is_empty() {
            key["crv"] = json!(crv);
        }
        drop(parse(&key));
    }
}
