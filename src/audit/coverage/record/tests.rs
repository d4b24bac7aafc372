use base64::Engine as _;
use serde_json::json;

use super::*;
use crate::domain::pattern::Budget;

fn parsed(value: &Value, format: TimeFormat) -> Result<String, &'static str> {
    time(value, format).map(|at| at.to_string())
}

#[test]
fn a_time_says_what_it_means_or_is_none() {
    let noon = Ok("2026-11-23T12:00:00.25Z".to_owned());
    for text in [
        "2026-11-23T12:00:00.25Z",
        "2026-11-23T14:00:00.25+02:00",
        "2026-11-23T06:30:00.250-05:30",
    ] {
        assert_eq!(parsed(&json!(text), TimeFormat::Rfc3339), noon, "{text}");
    }
    for (value, format) in [
        (json!(1_795_435_200.25), TimeFormat::EpochS),
        (json!("1795435200.25"), TimeFormat::EpochS),
        (json!(1_795_435_200_250_i64), TimeFormat::EpochMs),
        (json!("1795435200250"), TimeFormat::EpochMs),
        (json!(1_795_435_200_250_000_i64), TimeFormat::EpochUs),
        (json!(1_795_435_200_250_000_999_i64), TimeFormat::EpochNs),
    ] {
        assert_eq!(parsed(&value, format), noon, "{value}");
    }
    for bad in [
        json!("2026-11-23T12:00:00"),
        json!("2026-11-23 12:00:00"),
        json!("2026-11-23"),
        json!("1969-12-31T23:59:59Z"),
        json!(1_795_435_200),
        json!(true),
        json!({}),
        Value::Null,
    ] {
        assert!(time(&bad, TimeFormat::Rfc3339).is_err(), "{bad}");
    }
    for bad in [
        json!(-1),
        json!(1e300),
        json!(i64::MAX),
        json!("x"),
        json!([]),
        json!(u64::MAX),
    ] {
        assert!(time(&bad, TimeFormat::EpochS).is_err(), "{bad}");
    }
}

#[test]
fn a_session_is_found_by_its_id_and_by_its_name_at_aws() {
    let id: SessionId = "0198b2a0-0000-7000-8000-0000000000ab".parse().unwrap();
    assert_eq!(session("0198b2a0-0000-7000-8000-0000000000ab"), Some(id));
    assert_eq!(session("tp-0198b2a000007000800000000000"), None);
    assert_eq!(session("tp-0198b2a00000700080000000000000ab"), Some(id));
    for bad in [
        "",
        "tp-",
        "tp-0198B2A00000700080000000000000AB",
        "tp-0198b2a0-0000-7000-8000-0000000000ab",
        "0198b2a00000700080000000000000ab",
        "{0198b2a0-0000-7000-8000-0000000000ab}",
        "xtp-0198b2a00000700080000000000000ab",
    ] {
        assert_eq!(session(bad), None, "{bad}");
    }
}

#[test]
fn a_hash_is_read_in_the_three_ways_that_it_is_written() {
    let bytes: Vec<u8> = (200..232).collect();
    let own = Hash::from_slice(&bytes).unwrap();
    assert_eq!(hash(&URL_SAFE_NO_PAD.encode(&bytes)), Some(own));
    assert_eq!(hash(&STANDARD.encode(&bytes)), Some(own));
    assert_eq!(hash(&format!("{own:?}")), Some(own));
    assert_eq!(hash(&URL_SAFE_NO_PAD.encode(&bytes[1..])), None);
    assert_eq!(hash(&"é".repeat(32)), None);
}

#[test]
fn a_token_tells_its_session_and_decision_and_two_that_differ_contradict() {
    let token = |claims: Value| {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{payload}.c2ln")
    };
    let id = "0198b2a0-0000-7000-8000-0000000000ab";
    let dec = URL_SAFE_NO_PAD.encode([7; 32]);
    let mut credential = Credential::default();
    credential.add_token(&format!(
        "Bearer {}",
        token(json!({"jti": id, "dec": dec, "exp": 9}))
    ));
    assert_eq!(credential.session, session(id));
    assert_eq!(credential.hash, hash(&dec));
    assert_eq!(credential.expires_at, Some(Timestamp::from_seconds(9)));
    assert!(!credential.contradictory);
    credential.add_session(session("0198b2a0-0000-7000-8000-0000000000ac").unwrap());
    assert!(credential.contradictory && !credential.is_empty());
    for bad in [
        "Bearer",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "e30.e30.",
        "Basic dTpw",
        &token(json!({"jti": 7, "dec": [dec]})),
        &token(json!({"jti": id})),
        &token(json!({"jti": id, "dec": "forged"})),
        &token(json!({"jti": "mine", "dec": dec})),
    ] {
        let mut other = Credential::default();
        other.add_token(bad);
        assert!(other.is_empty() && other.foreign, "{bad}");
    }
    let mut none = Credential::default();
    none.add_token("");
    none.add_token("-");
    assert_eq!(none, Credential::default());
}

#[test]
fn a_session_of_aws_is_named_by_a_role_and_by_nobody_else() {
    let name = "tp-0198b2a00000700080000000000000ab";
    let of = |text: &str| {
        let mut credential = Credential::default();
        credential.add_session_of_aws(text);
        credential
    };
    let seen = of(&format!(
        "arn:aws:sts::123456789012:assumed-role/reports/{name}"
    ))
    .roles;
    for (arn, same) in [
        ("arn:aws:iam::123456789012:role/reports", true),
        // The ARN of a session has the role's name without its path.
        ("arn:aws:iam::123456789012:role/team/reports", true),
        ("arn:aws:iam::999999999999:role/reports", false),
        ("arn:aws:iam::123456789012:role/other", false),
        ("arn:aws-cn:iam::123456789012:role/reports", false),
        ("https://orders.example", false),
    ] {
        assert_eq!(seen[0].is(arn), same, "{arn}");
    }
    for own in [
        format!("arn:aws:sts::123456789012:assumed-role/reports/{name}"),
        format!("arn:aws-cn:sts::123456789012:assumed-role/reports/{name}"),
        format!("AROAEXAMPLE:{name}"),
    ] {
        let credential = of(&own);
        assert_eq!(credential.session, session(name), "{own}");
        assert!(credential.named && !credential.foreign, "{own}");
    }
    for other in [
        name.to_owned(),
        format!("eve/{name}"),
        format!("x:{name}"),
        format!("AIDAEXAMPLE:{name}"),
        format!("arn:aws:iam::123456789012:user/{name}"),
        format!("arn:aws:sts::123456789012:federated-user/{name}"),
        format!("arn:aws:sts::123456789012:assumed-role/{name}"),
    ] {
        assert_eq!(of(&other), Credential::default(), "{other}");
    }
    for other in [
        "arn:aws:sts::123456789012:assumed-role/reports/botocore",
        "arn:aws:sts::1:assumed-role/r/x/tp-0198b2a00000700080000000000000ab",
        "arn:aws:sts::1:assumed-role/r/0198b2a0-0000-7000-8000-0000000000ab",
        "AROAEXAMPLE:tp-7",
    ] {
        let credential = of(other);
        assert!(credential.is_empty() && credential.foreign, "{other}");
    }
}

#[test]
fn a_region_is_one_or_none_or_cannot_be_told() {
    let named = Region::of(Some("eu-central-1"));
    assert_eq!(named.name(), Some("eu-central-1"));
    assert!(named.can_be_within(None) && named.can_be_within(Some("eu-central-1")));
    assert!(!named.can_be_within(Some("us-east-1")));
    for none in [None, Some("")] {
        let region = Region::of(none);
        assert!(region.can_be_within(None) && !region.can_be_within(Some("us-east-1")));
    }
    let long = "r".repeat(70_000);
    for odd in ["EU", "eu central 1", long.as_str()] {
        let region = Region::of(Some(odd));
        assert_eq!(region, Region::Unclear);
        assert!(region.can_be_within(Some("us-east-1")));
    }
}

fn covers(grant: &str, location: &Location) -> bool {
    Location::try_from(grant.to_owned())
        .unwrap()
        .covers_within(location, &Budget::of_one_comparison())
}

#[test]
fn a_place_has_one_reading_or_none() {
    let of = |text: &str| url(text).map(|location| location.as_str().to_owned());
    let plain = Some("https://orders.example/v1/42".to_owned());
    assert_eq!(of("https://orders.example/v1/42?a=1&b=../x#y"), plain);
    for bad in [
        "/v1",
        "https://orders.example/v1/../admin",
        "https://orders.example/v1/%2e%2e",
        "http://orders.example/v1",
        "arn:aws:s3:::b/x",
    ] {
        assert_eq!(of(bad), None, "{bad}");
    }
    let odd = arn("arn:aws:s3:::b/a file \"é\".txt").unwrap();
    let within = |text: &str| covers(text, &odd);
    assert!(within("arn:aws:s3:::b/*") && within("arn:aws:s3:::b/a*.txt"));
    assert!(!within("arn:aws:s3:::b/b*") && !within("arn:aws:s3:::c/*"));
    assert!(arn("https://h").is_none() && arn("*").is_none());
    // A star in a name is one character, not a pattern.
    let star = arn("arn:aws:s3:::b/*").unwrap();
    assert!(covers("arn:aws:s3:::b/*", &star) && covers("arn:aws:s3:::b/?", &star));
    assert!(!covers("arn:aws:s3:::b/a*", &star));
}

#[test]
fn a_place_may_be_longer_than_a_grant_and_has_its_end() {
    let key = "k".repeat(1_024);
    let long = arn(&format!("arn:aws:s3:::{}/{key}", "b".repeat(63))).unwrap();
    assert!(long.as_str().len() > crate::domain::limits::MAX_GRANT_TEXT_BYTES);
    let base = "https://orders.example/";
    let path = "p".repeat(MAX_LOCATION_BYTES - base.len());
    assert!(url(&format!("{base}{path}")).is_some());
    assert!(url(&format!("{base}{path}p")).is_none());
    let begin = arn_that_begins(&format!("arn:aws:s3:::b/{}", "k".repeat(5_000))).unwrap();
    assert!(covers("arn:aws:s3:::b/*", &begin) && !covers("arn:aws:s3:::b/*x", &begin));
}
