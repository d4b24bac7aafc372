use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;

const NAME: &str = "tp-0198b2a00000700080000000000000ab";

fn event() -> Value {
    json!({
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "AssumedRole", "principalId": format!("AROAEXAMPLE:{NAME}"),
            "arn": format!("arn:aws:sts::123456789012:assumed-role/reports/{NAME}"),
            "accountId": "123456789012", "accessKeyId": "ASIAEXAMPLE",
            "sessionContext": {
                "sessionIssuer": {"type": "Role", "arn": "arn:aws:iam::123456789012:role/reports"},
                "attributes": {"creationDate": "2026-11-23T12:00:00Z", "mfaAuthenticated": "false"},
                "sourceIdentity": URL_SAFE_NO_PAD.encode([9; 32])
            }
        },
        "eventTime": "2026-11-23T12:01:00Z", "eventSource": "s3.amazonaws.com",
        "eventName": "GetObject", "awsRegion": "eu-central-1",
        "requestParameters": {"bucketName": "reports", "key": "team/a"},
        "responseElements": null, "eventID": "e-1", "readOnly": true,
        "resources": [
            {"type": "AWS::S3::Object", "ARN": "arn:aws:s3:::reports/team/a"},
            {"type": "AWS::S3::Bucket", "ARN": "arn:aws:s3:::reports", "accountId": "1"}
        ],
        "eventType": "AwsApiCall"
    })
}

fn of(event: &Value) -> Record {
    read(event.to_string().as_bytes()).unwrap()
}

#[test]
fn an_event_of_ours_leads_to_its_session_and_its_decision() {
    let record = of(&event());
    assert_eq!(record.id.as_deref(), Some("e-1"));
    assert_eq!(record.at.unwrap().to_string(), "2026-11-23T12:01:00Z");
    assert_eq!(record.action, "s3:GetObject");
    assert_eq!(record.resource, "arn:aws:s3:::reports/team/a");
    assert_eq!(record.region.name(), Some("eu-central-1"));
    assert_eq!(record.credential.session, session(NAME));
    assert_eq!(record.credential.hash.unwrap().as_bytes(), &[9; 32]);
    assert!(!record.credential.contradictory);
    assert_eq!(record.outcome, Outcome::Done);
}

#[test]
fn somebody_elses_event_carries_nothing_of_ours() {
    for arn in [
        "arn:aws:iam::123456789012:user/eve",
        "arn:aws:sts::123456789012:assumed-role/reports/botocore-session-1",
        "arn:aws:sts::123456789012:assumed-role/tp-0198b2a00000700080000000000000ab/x",
        "arn:aws:sts::123456789012:assumed-role/reports/tp-7",
        "",
    ] {
        let mut event = event();
        event["userIdentity"] = json!({"type": "IAMUser", "arn": arn});
        let record = of(&event);
        assert!(record.credential.is_empty(), "{arn}");
    }
    let mut service = event();
    service["userIdentity"] = json!({"type": "AWSService", "invokedBy": "ec2.amazonaws.com"});
    let record = of(&service);
    assert!(matches!(record.outcome, Outcome::Nobodys(_)));
    assert_eq!(record.principal, "ec2.amazonaws.com");
}

#[test]
fn the_brokers_own_call_makes_the_session_that_it_names() {
    for (name, more) in [
        ("AssumeRoleWithWebIdentity", "responseElements"),
        ("AssumeRole", "requestParameters"),
    ] {
        let mut event = event();
        event["userIdentity"] = json!({"type": "WebIdentityUser", "userName": "resource:reports"});
        event["eventSource"] = "sts.amazonaws.com".into();
        event["eventName"] = name.into();
        event["requestParameters"] = json!({
            "roleArn": "arn:aws:iam::123456789012:role/reports", "roleSessionName": NAME
        });
        event["responseElements"] = json!({"credentials": {"accessKeyId": "ASIA"}});
        event[more]["sourceIdentity"] = URL_SAFE_NO_PAD.encode([9; 32]).into();
        let record = of(&event);
        assert_eq!(record.recorded_action, RecordedAction::Mint);
        assert_eq!(record.credential.session, session(NAME));
        assert!(record.credential.hash.is_some());
        // Under another name the session is not the broker's.
        event["requestParameters"]["roleSessionName"] =
            "0198b2a0-0000-7000-8000-0000000000ab".into();
        let record = of(&event);
        assert!(record.credential.is_empty());
        assert_ne!(record.recorded_action, RecordedAction::Mint);
    }
    // A call with one of the broker's sessions is judged by that session's grant.
    let mut own = event();
    own["eventSource"] = "sts.amazonaws.com".into();
    own["eventName"] = "AssumeRole".into();
    own["requestParameters"]["roleSessionName"] = NAME.into();
    assert_ne!(of(&own).recorded_action, RecordedAction::Mint);
}

#[test]
fn a_name_without_its_decision_is_told_and_so_is_a_decision_without_its_name() {
    let facts = |event: &Value| {
        let credential = of(event).credential;
        let (session, hash) = (credential.session.is_some(), credential.hash.is_some());
        (credential.needs_both, session, hash)
    };
    let mut named = event();
    assert_eq!(facts(&named), (true, true, true));
    named["userIdentity"]["sessionContext"]["sourceIdentity"] = Value::Null;
    assert_eq!(facts(&named), (true, true, false));
    named["userIdentity"] = json!({"type": "IAMUser", "arn": "arn:aws:iam::1:user/eve"});
    assert_eq!(facts(&named), (true, false, false));
    // Another principal creates a session with a name in the broker's form.
    named["eventSource"] = "sts.amazonaws.com".into();
    named["eventName"] = "AssumeRole".into();
    named["requestParameters"] = json!({"roleSessionName": NAME});
    assert_eq!(facts(&named), (true, true, false));
    // Source identity stays with a session that assumes another role, where the name can be
    // chosen freely.
    let mut chained = event();
    let identity = &mut chained["userIdentity"];
    identity["arn"] = "arn:aws:sts::999999999999:assumed-role/Admin/x".into();
    identity["principalId"] = "AROAOTHER:x".into();
    assert_eq!(facts(&chained), (true, false, true));
}

#[test]
fn names_that_contradict_one_another_are_told() {
    let mut event = event();
    event["userIdentity"]["principalId"] = "AROAEXAMPLE:tp-0198b2a00000700080000000000000ac".into();
    assert!(of(&event).credential.contradictory);
    event["userIdentity"]["principalId"] = "AROAEXAMPLE:botocore".into();
    assert!(of(&event).credential.foreign);
}

#[test]
fn a_broker_that_has_a_session_of_its_own_may_make_ours() {
    let mut event = event();
    event["eventSource"] = "sts.amazonaws.com".into();
    event["eventName"] = "AssumeRole".into();
    event["userIdentity"] = json!({
        "type": "AssumedRole", "principalId": "AROABROKER:i-0123456789",
        "arn": "arn:aws:sts::123456789012:assumed-role/broker/i-0123456789"
    });
    event["requestParameters"] = json!({
        "roleSessionName": NAME, "sourceIdentity": URL_SAFE_NO_PAD.encode([9; 32])
    });
    let record = of(&event);
    assert_eq!(record.recorded_action, RecordedAction::Mint);
    assert!(!record.credential.foreign);
    // Two identities of which one is foreign prove neither.
    event["responseElements"] = json!({"sourceIdentity": "eve"});
    assert!(of(&event).credential.foreign);
}

#[test]
fn an_insight_is_nobodys_action() {
    let insight = json!({
        "eventTime": "2026-11-23T12:01:00Z", "awsRegion": "eu-central-1",
        "eventType": "AwsCloudTrailInsight", "eventID": "i-1",
        "insightDetails": {"eventSource": "s3.amazonaws.com", "eventName": "GetObject"}
    });
    assert!(matches!(of(&insight).outcome, Outcome::Nobodys(_)));
    let mut other = insight;
    other["eventType"] = "AwsApiCall".into();
    assert!(read(other.to_string().as_bytes()).is_err());
}

#[test]
fn a_refusal_is_told_from_another_failure() {
    for (code, expected) in [
        ("AccessDenied", Outcome::Refused),
        ("Client.UnauthorizedOperation", Outcome::Refused),
        ("VpceAccessDenied", Outcome::Refused),
        ("NoSuchKey", Outcome::Done),
        ("ThrottlingException", Outcome::Done),
    ] {
        let mut event = event();
        event["errorCode"] = code.into();
        assert_eq!(of(&event).outcome, expected, "{code}");
    }
}

#[test]
fn what_is_not_of_its_type_is_as_if_it_were_not_there() {
    let mut event = event();
    event["requestParameters"] = json!({"key": {"id": {"S": "7"}}, "bucketName": [1]});
    event["resources"] = Value::Null;
    event["eventID"] = 7.into();
    event["eventTime"] = json!({"when": "now"});
    let record = of(&event);
    assert_eq!(record.id, None);
    assert_eq!(record.at, Err("it has no time"));
    assert_eq!(record.resource, "-");
    // Strings and arrays instead of objects count as missing.
    for odd in [json!("reports"), json!(["reports", "team/a"]), json!(7)] {
        let mut odd_one = self::event();
        odd_one["requestParameters"] = odd.clone();
        odd_one["responseElements"] = odd.clone();
        odd_one["resources"] = Value::Null;
        let record = of(&odd_one);
        assert_eq!(record.resource, "-", "{odd}");
        assert!(matches!(
            record.recorded_action,
            RecordedAction::Rights { named: false, .. }
        ));
        odd_one["userIdentity"] = odd;
        assert!(of(&odd_one).credential.is_empty());
    }
    let mut listed = self::event();
    listed["resources"] = json!([["arn:aws:s3:::reports/team/a", "AWS::S3::Object"]]);
    let RecordedAction::Rights { unclear, .. } = of(&listed).recorded_action else {
        panic!()
    };
    assert!(unclear.is_some());
    let mut region = self::event();
    region["awsRegion"] = json!(["eu-central-1"]);
    assert_eq!(of(&region).region, Region::Unclear);
    region["awsRegion"] = "r".repeat(70_000).into();
    assert_eq!(of(&region).region, Region::Unclear);
}

#[test]
fn what_is_no_event_or_says_something_twice_is_unreadable() {
    let own = event().to_string();
    let twice = own.replacen("\"eventName\"", "\"eventName\":\"Other\",\"eventName\"", 1);
    let deep = format!("{{\"requestParameters\":{}", "[".repeat(200_000));
    let nested = format!(
        "{{\"eventSource\":\"s\",\"eventName\":{}{}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    for bad in [
        "{}",
        "[]",
        "null",
        "7",
        "\"x\"",
        r#"[{},"2026-11-23T12:01:00Z","s3.amazonaws.com","GetObject"]"#,
        "{",
        &twice,
        &own[..own.len() - 2],
        &deep,
        &nested,
    ] {
        assert!(
            read(bad.as_bytes()).is_err(),
            "{}",
            &bad[..bad.len().min(60)]
        );
    }
    assert!(read(&[0xff]).is_err());
}
