//! Tests of leaves of every kind in both formats, and of the concurrent delivery.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::delivery::{lanes, run_length};
use super::*;
use crate::config::ExportFormat;
use crate::domain::leaf::Leaf;
use crate::merkle::leaf_hash;

const ISSUER: &str = "https://broker.test";
const ORIGIN: &str = "broker.test/log";

fn leaf(mut event: Value) -> Vec<u8> {
    event["v"] = Leaf::VERSION.into();
    event["origin"] = ORIGIN.into();
    event["at"] = "2026-11-23T12:00:00.25Z".into();
    serde_json::to_vec(&event).unwrap()
}

fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

fn generation() -> String {
    format!("sha256:{}", "07".repeat(32))
}

fn decision(outcome: &str, more: &Value) -> Value {
    let mut all = json!({
        "event": "decision", "decision": id(1), "outcome": outcome, "workload": "dev:agent",
        "attestor": "dev", "resource": "orders-api", "generation": generation(), "input": "00",
    });
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

fn permit(session: u128) -> Value {
    decision(
        "permit",
        &json!({
            "session": id(session), "task": id(9), "policies": ["reports-read"],
            "grant": [{"type": "api", "actions": ["orders:read"], "locations": ["https://orders.example/v1"]}],
            "audience": "https://orders.example", "expires_at": "2026-11-23T12:05:00Z",
            "minter": "jwt", "kid": "k", "purpose": "11",
        }),
    )
}

/// One leaf of every kind, with its class and activity of OCSF, and its type of CloudEvents.
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_kind() -> Vec<(Value, u32, &'static str)> {
    let by = "dev:admin";
    vec![
        (
            json!({"event": "genesis", "vkey": "broker.test/log+1+A"}),
            300_401,
            "genesis",
        ),
        (permit(2), 300_301, "decision.permit"),
        (
            decision("deny", &json!({"refusal": "not-permitted"})),
            300_301,
            "decision.deny",
        ),
        (
            decision("indeterminate", &json!({})),
            300_301,
            "decision.indeterminate",
        ),
        (decision("pending", &json!({})), 300_301, "decision.pending"),
        (
            json!({"event": "task_opened", "decision": id(3), "task": id(9), "task_type": "job",
            "workload": "dev:agent", "attestor": "dev", "deadline": "2026-11-23T13:00:00Z",
            "generation": generation(), "policies": ["p"], "input": "00"}),
            300_401,
            "task_opened",
        ),
        (
            json!({"event": "task_ended", "task": id(9), "state": "completed", "by": by}),
            300_411,
            "task_ended",
        ),
        (
            json!({"event": "tasks_ended", "tasks": [id(9), id(10)], "state": "expired", "by": by}),
            300_411,
            "tasks_ended",
        ),
        (
            json!({"event": "delegated", "task": id(9), "child": "dev:child",
            "expires_at": "2026-11-23T13:00:00Z", "max_credentials": 1}),
            300_403,
            "delegated",
        ),
        (
            json!({"event": "session_ended", "session": id(2), "reason": "revoked", "by": by}),
            300_202,
            "session_ended",
        ),
        (
            json!({"event": "end_confirmed", "session": id(2), "confirmed": true}),
            300_202,
            "end_confirmed",
        ),
        (
            json!({"event": "end_confirmed", "session": id(2), "confirmed": false}),
            300_202,
            "end_confirmed",
        ),
        (
            json!({"event": "cutoff", "id": id(4), "selector": {"workload": "dev:agent"},
            "reason": "22", "by": by}),
            300_401,
            "cutoff",
        ),
        (
            json!({"event": "cutoff_lifted", "id": id(4), "by": by}),
            300_411,
            "cutoff_lifted",
        ),
        (
            json!({"event": "time_accepted", "id": id(5), "recorded_time": "2026-12-24T12:00:00Z",
                "accepted_time": "2026-11-23T12:00:00Z", "reason": "c", "by": by}),
            300_403,
            "time_accepted",
        ),
        (
            json!({"event": "activated", "generation": generation(), "endpoints": generation(), "by": by}),
            300_410,
            "activated",
        ),
        (
            json!({"event": "key", "purpose": "access_token", "kid": "k", "change": "added", "public_key": "{}", "by": by}),
            300_401,
            "key",
        ),
        (
            json!({"event": "key", "purpose": "access_token", "kid": "k", "change": "revoked", "by": by}),
            300_409,
            "key",
        ),
        (
            json!({"event": "key", "purpose": "access_token", "kid": "k", "change": "removed", "by": by}),
            300_404,
            "key",
        ),
        (
            json!({"event": "admin", "change": "admin_bound", "subject": "dev:a", "value": "auditor", "by": by}),
            300_501,
            "admin",
        ),
        (
            json!({"event": "admin", "change": "admin_unbound", "subject": "dev:a", "value": "auditor", "by": by}),
            300_502,
            "admin",
        ),
        (
            json!({"event": "admin", "change": "workload_key_added", "subject": "key:w", "value": "t", "by": by}),
            300_406,
            "admin",
        ),
        (
            json!({"event": "admin", "change": "workload_key_removed", "subject": "key:w", "value": "t", "by": by}),
            300_407,
            "admin",
        ),
        (
            json!({"event": "denials_omitted", "subject": "dev:agent", "count": 7, "since": "2026-11-23T11:59:00Z"}),
            300_301,
            "denials_omitted",
        ),
        // An event of a later version.
        (
            json!({"event": "born_later", "whom": "x"}),
            99,
            "born_later",
        ),
    ]
}

fn write(format: ExportFormat, body: Option<&[u8]>, free_text: Option<&str>) -> (Message, Value) {
    let hash = leaf_hash(body.unwrap_or(b"pruned"));
    let message = Message::write(
        format,
        RecordedLeaf {
            issuer: ISSUER,
            origin: ORIGIN,
            index: 41,
            hash: &hash,
            body,
            at: Some(Timestamp::from_micros(1_763_899_200_250_000)),
            subject: Some("dev:agent"),
            free_text,
        },
    )
    .unwrap();
    let value = serde_json::from_slice(&message.body).unwrap();
    (message, value)
}

/// Checks the attributes that OCSF 1.5.0 requires of every event, and those of its class.
fn assert_ocsf(event: &Value) {
    let number = |name: &str| {
        event[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {event:#}"))
    };
    let class = number("class_uid");
    assert_eq!(number("category_uid"), class / 1000, "{event:#}");
    assert_eq!(
        number("type_uid"),
        class * 100 + number("activity_id"),
        "{event:#}"
    );
    assert!((1..=6).contains(&number("severity_id")), "{event:#}");
    assert!(number("time") > 1_700_000_000_000);
    assert_eq!(event["metadata"]["version"], "1.5.0");
    assert!(event["metadata"]["product"]["vendor_name"].is_string());
    let has = |pointer: &str| event.pointer(pointer).is_some_and(|value| !value.is_null());
    let required: &[&str] = match class {
        3002 => &["/user/uid", "/service/name", "/session/uid"],
        3003 => &["/user/uid", "/privileges", "/action_id", "/disposition_id"],
        3004 => &["/entity/uid", "/entity/type"],
        3005 => &["/user/uid", "/privileges"],
        0 => &[],
        other => panic!("unexpected class: {other}"),
    };
    for pointer in required {
        assert!(has(pointer), "{pointer}: {event:#}");
    }
}

#[test]
fn every_kind_of_entry_is_an_event_of_ocsf() {
    for (event, kind, _) in every_kind() {
        let body = leaf(event);
        let (message, event) = write(ExportFormat::Ocsf, Some(&body), None);
        assert_ocsf(&event);
        assert_eq!(event["type_uid"], kind, "{event:#}");
        assert_eq!(event["metadata"]["uid"], message.id);
        assert_eq!(event["metadata"]["sequence"], 41);
        assert_eq!(event["time"], 1_763_899_200_250_u64);
        // The leaf itself, to compare with the log.
        assert_eq!(event["raw_data"].as_str().unwrap().as_bytes(), body);
        assert_eq!(event["unmapped"]["leaf_hash"], leaf_hash(&body).to_string());
    }
}

#[test]
fn a_decision_in_ocsf_says_who_what_and_whether() {
    let body = leaf(permit(2));
    let (_, event) = write(ExportFormat::Ocsf, Some(&body), None);
    assert_eq!(
        (
            &event["status_id"],
            &event["action_id"],
            &event["disposition_id"]
        ),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(event["user"]["uid"], "dev:agent");
    assert_eq!(event["session"]["uid"], id(2));
    assert_eq!(event["session"]["expiration_time"], 1_795_435_500_000_u64);
    assert_eq!(
        event["privileges"],
        json!(["orders:read on https://orders.example/v1"])
    );
    assert_eq!(
        event["authorizations"],
        json!([{"decision": "Allowed", "policy": {"name": "reports-read"}}])
    );
    assert_eq!(event["metadata"]["profiles"], json!(["security_control"]));
    assert_eq!(event["metadata"]["correlation_uid"], id(1));
    let body = leaf(decision("deny", &json!({"refusal": "not-permitted"})));
    let (_, event) = write(ExportFormat::Ocsf, Some(&body), None);
    assert_eq!(
        (
            &event["status_id"],
            &event["action_id"],
            &event["status_detail"]
        ),
        (&json!(2), &json!(2), &json!("not-permitted"))
    );
}

#[test]
fn every_kind_of_entry_is_a_cloudevent_with_its_leaf_byte_for_byte() {
    let mut ids = BTreeSet::new();
    for (event, _, kind) in every_kind() {
        let body = leaf(event);
        let (message, event) = write(ExportFormat::Cloudevents, Some(&body), None);
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["source"], ISSUER);
        assert_eq!(event["type"], format!("taskpass.{kind}"));
        assert_eq!(event["id"], message.id);
        assert!(ids.insert(message.id), "each event must have its own id");
        assert_eq!(event["time"], "2025-11-23T12:00:00.25Z");
        assert_eq!(event["sequence"], "00000000000000000041");
        assert!(event.get("subject").is_none_or(|subject| subject != ""));
        let text = String::from_utf8(message.body).unwrap();
        let leaf = String::from_utf8(body.clone()).unwrap();
        assert!(text.contains(&format!("\"leaf\":{leaf}")), "{text}");
        assert_eq!(event["data"]["leaf_hash"], leaf_hash(&body).to_string());
        // Attribute names of CloudEvents are lower case letters and digits.
        for name in event.as_object().unwrap().keys() {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            );
        }
    }
}

#[test]
fn what_people_wrote_is_told_only_where_it_was_asked_for() {
    let body = leaf(permit(2));
    for format in [ExportFormat::Ocsf, ExportFormat::Cloudevents] {
        let text = |told| String::from_utf8(write(format, Some(&body), told).0.body).unwrap();
        assert!(!text(None).contains("free_text"));
        assert!(text(Some("numbers for Ann")).contains("numbers for Ann"));
    }
}

#[test]
fn an_entry_whose_bytes_are_gone_is_told_by_its_hash() {
    let hash = leaf_hash(b"pruned").to_string();
    let (_, event) = write(ExportFormat::Ocsf, None, None);
    assert_ocsf(&event);
    assert_eq!(event["type_uid"], 99);
    assert_eq!(
        event["unmapped"],
        json!({"index": 41, "leaf_hash": hash, "pruned": true})
    );
    let (message, event) = write(ExportFormat::Cloudevents, None, None);
    assert_eq!(event["type"], "taskpass.pruned");
    assert_eq!(
        event["data"],
        json!({"origin": ORIGIN, "index": 41, "leaf_hash": hash, "pruned": true})
    );
    assert_eq!(message.session, None);
}

#[test]
fn bytes_that_are_no_leaf_do_no_harm() {
    for body in [
        &b"\xff"[..],
        b"",
        b"[1]",
        b"{\"event\":\"a\\nb\"}",
        b"{\"event\":7}",
    ] {
        for format in [ExportFormat::Ocsf, ExportFormat::Cloudevents] {
            let (message, event) = write(format, Some(body), None);
            assert!(!message.body.contains(&b'\n'));
            let told = event
                .get("type")
                .unwrap_or(&event["message"])
                .as_str()
                .unwrap();
            assert!(told.ends_with("unknown"), "{told}");
        }
    }
}

#[test]
fn what_is_about_one_session_goes_in_one_lane_and_anything_else_alone() {
    let session = |n| Some(Uuid::from_u128(n));
    let about = [
        session(1),
        session(2),
        session(1),
        session(5),
        None,
        session(2),
        None,
        None,
    ];
    let messages: Vec<Message> = (0..)
        .zip(about)
        .map(|(index, session)| Message {
            index,
            id: index.to_string(),
            session,
            body: Vec::new(),
        })
        .collect();
    let mut rest = messages.as_slice();
    let mut runs: Vec<Vec<Vec<u64>>> = Vec::new();
    while !rest.is_empty() {
        let (run, after) = rest.split_at(run_length(rest));
        let lanes = lanes(run, 4).into_iter();
        runs.push(
            lanes
                .map(|lane| lane.iter().map(|message| message.index).collect())
                .collect(),
        );
        rest = after;
    }
    let expected: Vec<Vec<Vec<u64>>> = vec![
        // With four lanes, the sessions 1 and 5 share one.
        vec![vec![0, 2, 3], vec![1]],
        vec![vec![4]],
        vec![vec![5]],
        vec![vec![6]],
        vec![vec![7]],
    ];
    assert_eq!(runs, expected);
}

#[test]
fn a_permit_that_concerns_another_session_too_is_alone() {
    let of = |more: &Value| {
        let mut event = permit(2);
        event
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        write(ExportFormat::Cloudevents, Some(&leaf(event)), None)
            .0
            .session
    };
    assert_eq!(of(&json!({})), Some(Uuid::from_u128(2)));
    assert_eq!(of(&json!({"supersedes": id(7)})), None);
    assert_eq!(of(&json!({"parent_session": id(7)})), None);
}

#[test]
fn tries_become_rarer_up_to_a_bound() {
    assert_eq!((backoff_seconds(0), backoff_seconds(3)), (1, 8));
    assert_eq!(backoff_seconds(u32::MAX), MAX_BACKOFF_SECONDS);
}
