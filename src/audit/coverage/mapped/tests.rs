use serde_json::json;

use super::*;

const SESSION: &str = "0198b2a0-0000-7000-8000-0000000000ab";

fn mapping(text: &str) -> Mapping {
    toml::from_str(text).unwrap()
}

fn access_log() -> Mapping {
    mapping(
        r#"
time = "/ts"
id = "/request/id"
principal = "/sub"
action = ["/method", "/route"]
location = "/path"
location_prefix = "https://orders.example"
credential.session = "/jti"
refused = { pointer = "/status", values = [401, 403] }
[actions]
"GET orders" = "orders:read"
"#,
    )
}

fn entry() -> Value {
    json!({
        "ts": "2026-11-23T13:00:00+01:00", "request": {"id": "r-1"}, "sub": "reports",
        "method": "GET", "route": "orders", "path": "/v1/42?page=2", "status": 200, "jti": SESSION
    })
}

fn of(mapping: &Mapping, record: &Value) -> Record {
    read(mapping, record.to_string().as_bytes()).unwrap()
}

#[test]
fn an_access_log_is_read_as_its_mapping_says() {
    let record = of(&access_log(), &entry());
    assert_eq!(record.id.as_deref(), Some("r-1"));
    assert_eq!(record.at.unwrap().to_string(), "2026-11-23T12:00:00Z");
    assert_eq!(record.credential.session, session(SESSION));
    assert_eq!(
        (record.action.as_str(), record.resource.as_str()),
        ("GET orders", "/v1/42?page=2")
    );
    let RecordedAction::Rights {
        action,
        locations,
        named,
        unclear,
    } = record.recorded_action
    else {
        panic!("{:?}", record.recorded_action);
    };
    assert_eq!(
        (action.as_str(), locations[0].as_str(), named, unclear),
        ("orders:read", "https://orders.example/v1/42", true, None)
    );
    assert_eq!(record.outcome, Outcome::Done);
    let mut refused = entry();
    refused["status"] = 403.into();
    assert_eq!(of(&access_log(), &refused).outcome, Outcome::Refused);
}

#[test]
fn what_the_mapping_does_not_know_is_unclear_and_not_guessed() {
    for (path, value) in [
        ("/route", json!("invoices")),
        ("/route", Value::Null),
        ("/path", json!("/v1/../admin")),
        ("/path", json!("/v1/..;/admin")),
        ("/path", json!("/v1/%2e%2e/admin")),
        ("/path", json!(["/v1/42"])),
        ("/path", json!("@evil.example/v1")),
        ("/path", json!(".evil.example/v1")),
    ] {
        let mut entry = entry();
        *entry.pointer_mut(path).unwrap() = value;
        let record = of(&access_log(), &entry);
        match record.recorded_action {
            RecordedAction::Unclear { .. } => assert_eq!(path, "/route"),
            // The action is known in spite of that.
            RecordedAction::Rights {
                action,
                locations,
                unclear,
                ..
            } => {
                assert_eq!((action.as_str(), path), ("orders:read", "/path"));
                assert!(locations.is_empty() && unclear.is_some());
            }
            RecordedAction::Mint => panic!("{path}"),
        }
    }
}

#[test]
fn what_stands_where_ours_would_and_is_not_ours_is_told() {
    let mapping = mapping(
        "time = \"/ts\"\naction = \"/route\"\n[credential]\n\
             session = \"/jti\"\nhash = \"/dec\"\njwt = \"/auth\"",
    );
    for (path, value) in [
        ("dec", json!("forged")),
        ("dec", json!("0".repeat(63))),
        ("dec", json!({"hash": 1})),
        ("auth", json!("Bearer nonsense")),
        ("auth", json!(7)),
        ("jti", json!("someone-else")),
        ("jti", json!([SESSION])),
    ] {
        let mut entry = entry();
        entry["dec"] = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk".into();
        assert!(!of(&mapping, &entry).credential.foreign);
        entry[path] = value;
        assert!(of(&mapping, &entry).credential.foreign, "{entry}");
    }
    for nothing in [Value::Null, json!(""), json!("-")] {
        let mut entry = entry();
        entry["dec"] = nothing.clone();
        entry["auth"] = nothing;
        let credential = of(&mapping, &entry).credential;
        assert!(!credential.foreign && credential.session.is_some());
    }
    // A record without a value of the broker's carries no credential.
    let mut stranger = entry();
    stranger["jti"] = "someone-else".into();
    assert!(of(&mapping, &stranger).credential.is_empty());
}

#[test]
fn a_mapping_that_says_too_little_or_too_much_is_refused() {
    for bad in [
        "",
        "time = \"/t\"",
        "time = \"/t\"\naction = \"/a\"",
        "action = \"/a\"\ncredential.hash = \"/h\"",
        "time = \"/t\"\naction = []\ncredential.hash = \"/h\"",
    ] {
        assert!(mapping(bad).check().is_err(), "{bad}");
    }
    for bad in [
        "time = \"t\"",
        "when = \"/t\"",
        "time_format = \"epoch\"",
        "credential.token = \"/x\"",
    ] {
        assert!(toml::from_str::<Mapping>(bad).is_err(), "{bad}");
    }
    access_log().check().unwrap();
}

#[test]
fn an_event_of_ocsf_needs_no_mapping_and_can_have_one() {
    let event = json!({
        "class_uid": 6003, "activity_id": 2, "time": 1_795_435_200_000_i64,
        "metadata": {"uid": "m-1", "version": "1.8.0"},
        "actor": {"user": {"uid": "agent"}, "session": {"uid": SESSION}},
        "api": {"operation": "orders:read", "service": {"name": "orders"}},
        "http_request": {"url": {"url_string": "https://orders.example/v1/42"}},
        "unmapped": {"dec": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"}
    });
    let of = |mapping: &Mapping, event: &Value| read_ocsf(mapping, event.to_string().as_bytes());
    let usual = of(&Mapping::default(), &event).unwrap();
    assert_eq!(usual.at.unwrap().to_string(), "2026-11-23T12:00:00Z");
    assert_eq!(
        (usual.id.as_deref(), usual.principal.as_str()),
        (Some("m-1"), "agent")
    );
    assert_eq!(usual.credential.session, session(SESSION));
    assert!(usual.credential.hash.is_some() && !usual.credential.contradictory);
    assert!(matches!(
        usual.recorded_action,
        RecordedAction::Rights { named: true, .. }
    ));
    let own = mapping("id = \"/actor/user/uid\"\ncredential.session = \"/none\"");
    let own = of(&own, &event).unwrap();
    assert_eq!(
        (own.id.as_deref(), own.credential.session),
        (Some("agent"), None)
    );

    let mut naive = event;
    naive["time"] = "2026-11-23T12:00:00".into();
    assert!(of(&Mapping::default(), &naive).unwrap().at.is_err());
    assert!(of(&Mapping::default(), &json!({})).is_err());
}

fn ocsf(event: &Value) -> Record {
    read_ocsf(&Mapping::default(), event.to_string().as_bytes()).unwrap()
}

#[test]
fn an_event_is_no_action_by_its_class_and_by_nothing_that_it_lacks() {
    let of = |class: u64| {
        let event = json!({
            "class_uid": class, "time": 1_795_435_200_000_i64,
            "actor": {"user": {"uid": "eve"}},
            "http_request": {"http_method": "DELETE", "url": {"url_string": "https://h/v1"}}
        });
        ocsf(&event)
    };
    for class in [2001, 2004, 2999, 5001, 5019] {
        assert!(matches!(of(class).outcome, Outcome::Nobodys(_)), "{class}");
    }
    for class in [
        0, 1001, 3001, 3002, 4001, 4002, 6001, 6003, 6005, 6006, 7001, 8001, 20_001, 201_001,
    ] {
        let record = of(class);
        assert_eq!(record.outcome, Outcome::Done, "{class}");
        assert!(record.credential.is_empty());
    }
}

#[test]
fn every_resource_of_an_event_counts_and_one_that_cannot_be_read_leaves_it_unclear() {
    let of = |resources: Value, url: Value| {
        let event = json!({
            "class_uid": 6003, "time": 1_795_435_200_000_i64, "resources": resources,
            "api": {"operation": "orders:read", "service": {"name": "orders"}},
            "http_request": {"url": {"url_string": url}}
        });
        match ocsf(&event).recorded_action {
            RecordedAction::Rights {
                locations, unclear, ..
            } => {
                let texts = locations
                    .iter()
                    .map(|location| location.as_str().to_owned());
                (texts.collect::<Vec<_>>(), unclear.is_some())
            }
            other => panic!("{other:?}"),
        }
    };
    let (one, two) = ("https://h/v1/1", "https://h/admin/9");
    let both = || vec![one.to_owned(), two.to_owned()];
    assert_eq!(
        of(json!([{"uid": one}, {"name": two}]), Value::Null),
        (both(), false)
    );
    assert_eq!(of(json!([{"uid": two}]), json!(one)), (both(), false));
    for odd in [json!({}), json!({"uid": "order 9"}), json!(7)] {
        assert_eq!(
            of(json!([{"uid": one}, odd]), Value::Null),
            (vec![one.to_owned()], true)
        );
    }
    assert_eq!(of(json!("all"), json!(one)), (vec![one.to_owned()], true));
}

#[test]
fn a_users_name_that_looks_like_a_session_is_none() {
    let of = |user: &str, session: &str| {
        let event = json!({
            "class_uid": 6003, "time": 1_795_435_200_000_i64,
            "actor": {"user": {"uid": user}, "session": {"uid": session}},
            "api": {"operation": "orders:read", "service": {"name": "orders"}}
        });
        ocsf(&event).credential
    };
    let name = "tp-0198b2a00000700080000000000000ab";
    for user in [
        name.to_owned(),
        format!("eve/{name}"),
        format!("mail:{name}"),
    ] {
        assert!(of(&user, "").is_empty(), "{user}");
    }
    // A session name in the form of AWS counts as one for every service.
    for credential in [
        of(&format!("arn:aws:sts::1:assumed-role/r/{name}"), ""),
        of("eve", name),
    ] {
        assert!(credential.named && credential.needs_both);
    }
    let own = of("eve", SESSION);
    assert!(own.session.is_some() && !own.named && !own.needs_both);
}

#[test]
fn the_brokers_own_call_and_what_aws_does_itself_are_known_in_ocsf_too() {
    let event = json!({
        "class_uid": 3002, "time": 1_795_435_200_000_i64, "cloud": {"region": "eu-central-1"},
        "actor": {"user": {"name": "resource:reports", "type": "WebIdentityUser"}},
        "api": {
            "operation": "AssumeRoleWithWebIdentity",
            "service": {"name": "sts.amazonaws.com"},
            "request": {"data": {
                "roleArn": "arn:aws:iam::1:role/r",
                "roleSessionName": "tp-0198b2a00000700080000000000000ab"
            }},
            "response": {"data": {"sourceIdentity": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"}}
        }
    });
    let mut written = event.clone();
    written["api"]["request"]["data"] = event["api"]["request"]["data"].to_string().into();
    let mut flat = event.clone();
    flat["api"]["request"] = Value::Null;
    flat["api"]["response"] = Value::Null;
    flat["unmapped"] = json!({
        "requestParameters.roleSessionName": "tp-0198b2a00000700080000000000000ab",
        "responseElements.sourceIdentity": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"
    });
    for event in [event.clone(), written, flat] {
        let record = ocsf(&event);
        assert_eq!(record.recorded_action, RecordedAction::Mint, "{event}");
        let credential = record.credential;
        assert!(credential.session.is_some() && credential.hash.is_some());
        assert!(credential.needs_both && credential.named && !credential.foreign);
    }
    let mut other = event.clone();
    other["api"]["request"]["data"]["roleSessionName"] = "eve".into();
    assert_ne!(ocsf(&other).recorded_action, RecordedAction::Mint);
    assert_eq!(ocsf(&other).outcome, Outcome::Done);
    let mut service = other;
    service["actor"] = json!({"user": {"type": "AWSService"}});
    assert!(matches!(ocsf(&service).outcome, Outcome::Nobodys(_)));
    // Only services of AWS are excused as acting by themselves.
    service["api"]["service"]["name"] = "orders".into();
    assert_eq!(ocsf(&service).outcome, Outcome::Done);
}

#[test]
fn an_event_of_cloudtrail_in_ocsf_is_read_as_one() {
    let event = json!({
        "class_uid": 6003, "time": 1_795_435_200_000_i64, "cloud": {"region": "eu-central-1"},
        "actor": {"user": {
            "uid": "arn:aws:sts::123456789012:assumed-role/reports/tp-0198b2a00000700080000000000000ab"
        }},
        "api": {"operation": "HeadObject", "service": {"name": "s3.amazonaws.com"}},
        "resources": [{"uid": "arn:aws:s3:::reports/a", "type": "AWS::S3::Object"}]
    });
    let record = read_ocsf(&Mapping::default(), event.to_string().as_bytes()).unwrap();
    assert_eq!(record.action, "s3:HeadObject");
    assert_eq!(record.resource, "arn:aws:s3:::reports/a");
    assert_eq!(record.credential.session, session(SESSION));
    assert!(record.credential.needs_both && record.credential.hash.is_none());
    let RecordedAction::Rights {
        action, unclear, ..
    } = record.recorded_action
    else {
        panic!("{:?}", record.recorded_action);
    };
    assert_eq!((action.as_str(), unclear), ("s3:GetObject", None));
    // A second resource is not ignored, even if it cannot be identified.
    let mut second = event.clone();
    second["resources"] = json!([
        {"uid": "arn:aws:s3:::reports/a", "type": "AWS::S3::Object"},
        {"name": "secret/x", "type": "AWS::S3::Object"}
    ]);
    let RecordedAction::Rights { unclear, .. } = ocsf(&second).recorded_action else {
        panic!();
    };
    assert!(unclear.is_some());
    // Now with the source identity, or with a mapping that names the location of the session.
    let mut whole = event.clone();
    whole["unmapped"] = json!({
        "userIdentity.sessionContext.sourceIdentity": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"
    });
    let vouched = mapping("credential.session = \"/actor/session/uid\"");
    let mut elsewhere = event;
    elsewhere["actor"]["session"] = json!({"uid": SESSION});
    let whole = ocsf(&whole).credential;
    assert!(whole.session.is_some() && whole.hash.is_some());
    let elsewhere = read_ocsf(&vouched, elsewhere.to_string().as_bytes()).unwrap();
    assert!(elsewhere.credential.session.is_some() && !elsewhere.credential.needs_both);
}
