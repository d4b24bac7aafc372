//! `taskpass ledger coverage` as a program: on the logs of real brokers, with records of what was
//! done with real credentials; on records of every bad kind; and on more of them than would fit
//! into its memory.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use taskpass::clock::Timestamp;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::merkle::{
    Checkpoint, Hash, LogEntry, VerifierKey, leaf_hash, note_signature_line, root_of, sign_note,
    write_log_entry, write_log_head,
};

use super::aws::rig;
use super::support::fleet::{Fleet, Replica, vkeys};
use super::support::keys::peek;
use super::support::process::{Ended, Launch};
use super::support::rig::{Rig, ask, job};
use super::support::sts::Sts;

const ORIGIN: &str = "broker.test/log";
const SESSION: &str = "0198b2a0-0000-7000-8000-000000000002";
const OTHER: &str = "0198b2a0-0000-7000-8000-000000000099";

// ---- logs -------------------------------------------------------------------------------------

/// A log file of what stands under a checkpoint.
fn log_file(checkpoint: &str, leaves: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    write_log_head(&mut file, checkpoint).unwrap();
    for (index, leaf) in (0..).zip(leaves) {
        let entry = LogEntry {
            index,
            hash: leaf_hash(leaf),
            leaf: Some(leaf.clone()),
        };
        write_log_entry(&mut file, &entry).unwrap();
    }
    file
}

/// A replica's whole log.
async fn log_of(fleet: &Fleet, replica: &Replica) -> (Vec<u8>, Vec<Value>) {
    let get = async |path: &str| replica.client.get_as(&fleet.admin, path).await;
    let checkpoint = get("/v1/ledger/checkpoint").await;
    assert_eq!(checkpoint.status, 200);
    let checkpoint = checkpoint.text();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let mut leaves = Vec::new();
    for index in 0..size {
        let entry = get(&format!("/v1/ledger/entries/{index}"))
            .await
            .expect(200);
        leaves.push(STANDARD.decode(entry["leaf"].as_str().unwrap()).unwrap());
    }
    let read = |leaf: &Vec<u8>| serde_json::from_slice(leaf).unwrap();
    let values = leaves.iter().map(read).collect();
    (log_file(&checkpoint, &leaves), values)
}

/// A log made here, with one permit of 300 s at noon and something an hour later.
struct Made {
    file: Vec<u8>,
    vkey: String,
    hash: Hash,
}

fn made() -> Made {
    let leaf = |at: &str, event: Value| {
        let mut leaf = json!({"v": 1, "origin": ORIGIN, "at": at});
        let members = event.as_object().unwrap().clone();
        leaf.as_object_mut().unwrap().extend(members);
        serde_json::to_vec(&leaf).unwrap()
    };
    let leaves = vec![
        leaf(
            "2026-10-24T12:00:00Z",
            json!({
                "event": "decision", "decision": OTHER, "outcome": "permit",
                "workload": "dev:agent%3Areports", "attestor": "dev", "resource": "reports-bucket",
                "task": OTHER, "session": SESSION, "audience": "sts.amazonaws.com",
                "grant": [{
                    "type": "aws", "actions": ["s3:GetObject"],
                    "resources": ["arn:aws:s3:::reports/*"], "region": "eu-central-1"
                }],
                "expires_at": "2026-10-24T12:05:00Z", "minter": "aws", "kid": "k1",
                "generation": format!("sha256:{}", "a".repeat(64)), "policies": ["bucket"],
                "input": "b".repeat(64)
            }),
        ),
        leaf(
            "2026-10-24T13:00:00Z",
            json!({
                "event": "admin", "change": "retention", "subject": "x", "by": "x"
            }),
        ),
    ];
    let hashes: Vec<Hash> = leaves.iter().map(|leaf| leaf_hash(leaf)).collect();
    let checkpoint = Checkpoint::new(ORIGIN, 2, root_of(&hashes)).unwrap();
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    let key = VerifierKey::new(ORIGIN, public).unwrap();
    let signature = pair.sign(checkpoint.text().as_bytes());
    let line = note_signature_line(&key, signature.as_ref()).unwrap();
    Made {
        file: log_file(&sign_note(&checkpoint.text(), &[line]).unwrap(), &leaves),
        vkey: key.to_string(),
        hash: hashes[0],
    }
}

impl Made {
    /// Runs the command on this log and these records.
    fn run(&self, records: impl Into<Vec<u8>>, more: &[&str]) -> Ended {
        run(&self.file, &self.vkey, records, more)
    }
}

const MAPPING: &str = r#"
time = "/at"
id = "/id"
principal = "/who"
action = "/right"
location = "/url"
credential.jwt = "/authorization"
refused = { pointer = "/status", values = [401, 403] }
"#;

fn run(log: &[u8], vkey: &str, records: impl Into<Vec<u8>>, more: &[&str]) -> Ended {
    let arguments = [
        "ledger",
        "coverage",
        "--log",
        "log",
        "--key",
        vkey,
        "--records",
        "records",
    ];
    Launch::taskpass(arguments.iter().chain(more).copied())
        .file("log", log)
        .file("records", records)
        .file("mapping.toml", MAPPING)
        .run()
}

#[track_caller]
fn json_of(ended: &Ended, code: i32) -> Value {
    assert_eq!(ended.code(), Some(code), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn counts(report: &Value) -> [u64; 5] {
    [
        "proven",
        "outside_grant",
        "after_end",
        "unproven",
        "unjudged",
    ]
    .map(|class| report["classes"][class]["count"].as_u64().unwrap())
}

/// An event of the permit's session, as CloudTrail writes it.
fn event(id: &str, at: &str) -> Value {
    let name = format!("tp-{}", SESSION.replace('-', ""));
    json!({
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "AssumedRole", "principalId": format!("AROAEXAMPLE:{name}"),
            "arn": format!("arn:aws:sts::123456789012:assumed-role/reports/{name}"),
            "sessionContext": {"attributes": {"mfaAuthenticated": "false"}}
        },
        "eventTime": at, "eventSource": "s3.amazonaws.com", "eventName": "GetObject",
        "awsRegion": "eu-central-1", "requestParameters": {"bucketName": "reports", "key": "team/a"},
        "responseElements": null, "eventID": id, "eventType": "AwsApiCall",
        "resources": [{"type": "AWS::S3::Object", "ARN": "arn:aws:s3:::reports/team/a"}]
    })
}

const IN_TIME: &str = "2026-10-24T12:01:00Z";

fn trail(events: &[Value]) -> String {
    json!({"Records": events}).to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

// ---- real brokers -----------------------------------------------------------------------------

fn later(at: &Value, seconds: u64) -> String {
    let at: Timestamp = serde_json::from_value(at.clone()).unwrap();
    at.plus_seconds(seconds).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_a_brokers_tokens_is_told_apart_by_its_own_log() {
    let (fleet, replica) = Fleet::embedded();
    let granted = async || replica.ask(&fleet.token()).await.expect(201);
    let (used, misused, ended) = (granted().await, granted().await, granted().await);
    let id = ended["session"]["id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/revoke");
    let revoked = replica
        .client
        .post_json(&fleet.admin, &path, &json!({"reason": "test"}))
        .await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    let (log, leaves) = log_of(&fleet, &replica).await;
    let end = leaves
        .iter()
        .find(|leaf| leaf["event"] == "session_ended")
        .unwrap();
    let vkey = vkeys(&fleet, &replica).await.remove(0);
    let entry = |n: u64, granted: &Value, right: &str, at: String| {
        let token = granted["credential"]["access_token"].as_str().unwrap();
        json!({
            "at": at, "id": n, "who": "agent:reports", "right": right, "status": 200,
            "url": "https://orders.example/v1/42?verbose=1", "authorization": format!("Bearer {token}")
        })
    };
    let begin = |granted: &Value| granted["session"]["issued_at"].clone();
    let mut records = vec![
        entry(1, &used, "orders:read", later(&begin(&used), 1)),
        entry(2, &misused, "orders:write", later(&begin(&misused), 1)),
        entry(
            3,
            &ended,
            "orders:read",
            end["at"].as_str().unwrap().to_owned(),
        ),
        entry(4, &ended, "orders:read", later(&end["at"], 2)),
        json!({"at": later(&begin(&used), 1), "id": 5, "who": "cron <on the old path>",
            "right": "orders:read", "url": "https://orders.example/v1/42", "status": 200}),
        entry(6, &misused, "orders:write", later(&begin(&misused), 1)),
    ];
    records[5]["status"] = 403.into();
    let lines = |records: &[Value]| {
        let lines = records.iter().map(|record| format!("{record}\n"));
        lines.collect::<String>()
    };
    let as_of = later(&end["at"], 60);
    let options = [
        "--mapping",
        "mapping.toml",
        "--skew",
        "1",
        "--as-of",
        &as_of,
    ];
    let json = [&options[..], &["--json"]].concat();

    let report = json_of(&run(&log, &vkey, lines(&records), &json), 1);
    assert_eq!(counts(&report), [2, 1, 1, 1, 0], "{report:#}");
    assert_eq!(report["verdict"], "not_covered");
    assert_eq!(report["records"]["refused"], 1);
    assert_eq!(report["log"]["origin"], ORIGIN);
    let examples = report["examples"].as_array().unwrap();
    let of = |id: &str| examples.iter().find(|example| example["id"] == id).unwrap();
    assert_eq!(
        (&of("2")["class"], &of("2")["reason"]),
        (&json!("outside_grant"), &json!("action"))
    );
    assert_eq!(
        (&of("4")["class"], &of("4")["reason"]),
        (&json!("after_end"), &json!("revoked"))
    );
    assert_eq!(
        (&of("5")["class"], &of("5")["reason"]),
        (&json!("unproven"), &json!("no_decision"))
    );
    assert_eq!(of("4")["workload"], "dev:agent%3Areports");
    assert_eq!(of("4")["granted_on"], "orders-api");

    // For people; and no token of anybody's in it.
    let told = run(&log, &vkey, lines(&records), &options);
    assert_eq!(told.code(), Some(1));
    assert!(
        told.stdout
            .ends_with("not covered: 3 of 5 actions are not proven\n"),
        "{}",
        told.stdout
    );
    for expected in [
        "was revoked at",
        "orders:write was not granted",
        "cron <on the old path>",
    ] {
        assert!(
            told.stdout.contains(expected),
            "{expected}: {}",
            told.stdout
        );
    }
    let token = used["credential"]["access_token"].as_str().unwrap();
    assert!(!told.stdout.contains(token.rsplit('.').next().unwrap()));

    // What was done as it should be is covered, and alone sets the exit code to 0.
    let report = json_of(&run(&log, &vkey, lines(&records[..1]), &json), 0);
    assert_eq!(
        (counts(&report), &report["verdict"]),
        ([1, 0, 0, 0, 0], &json!("covered"))
    );
}

/// The log of a rig's broker, and its key.
async fn log_of_rig(rig: &Rig) -> (Vec<u8>, String) {
    let ledger = rig.broker.ledger();
    let signed = ledger.checkpoints().borrow().clone().unwrap();
    let checkpoint = signed.checkpoint.to_string();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let leaves = rig.broker.store().leaves(0, size).await.unwrap();
    let bodies: Vec<Vec<u8>> = leaves.into_iter().map(|leaf| leaf.body.unwrap()).collect();
    (
        log_file(&checkpoint, &bodies),
        ledger.keys()[0].verifier.to_string(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_a_session_of_aws_is_joined_by_what_sts_was_told() {
    let sts = Sts::granting().await;
    let rig = rig(&sts.url()).await;
    let request = || CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "reports-bucket".into(),
        grant: serde_json::from_value(json!([{
            "type": "aws", "actions": ["s3:GetObject"],
            "resources": ["arn:aws:s3:::reports/team/*"], "region": "eu-central-1"
        }]))
        .unwrap(),
        ..ask(&["orders:read"])
    };
    rig.issue("agent:reports", request()).await.unwrap();
    let second = rig.issue("agent:reports", request()).await.unwrap();
    let begin = rig.now();
    rig.clock.advance(60);
    rig.revoke(second.session.id).await;
    rig.clock.advance(600);
    // Something that is later than all that follows.
    rig.issue("agent:reports", request()).await.unwrap();
    let mut asked = sts.asked().await;
    for told in &mut asked {
        let claims = peek(&told["WebIdentityToken"]).1;
        let identity = claims["https://aws.amazon.com/source_identity"].as_str();
        told.insert("SourceIdentity".into(), identity.unwrap().into());
    }
    // As CloudTrail would have written it down, from what STS was told and nothing else.
    let event = |n: usize, session: usize, seconds: u64, service: &str, name: &str, key: &str| {
        let told = &asked[session];
        json!({
            "userIdentity": {
                "type": "AssumedRole",
                "arn": format!("arn:aws:sts::123456789012:assumed-role/reports/{}", told["RoleSessionName"]),
                "principalId": format!("AROAEXAMPLE:{}", told["RoleSessionName"]),
                "sessionContext": {"sourceIdentity": told["SourceIdentity"]}
            },
            "eventTime": begin.plus_seconds(seconds).floor_to_second(), "eventSource": service,
            "eventName": name, "awsRegion": "eu-central-1", "eventID": format!("e-{n}"),
            "requestParameters": {"bucketName": "reports", "key": key}
        })
    };
    let s3 = "s3.amazonaws.com";
    let mut made = event(
        1,
        0,
        0,
        "sts.amazonaws.com",
        "AssumeRoleWithWebIdentity",
        "",
    );
    made["userIdentity"] =
        json!({"type": "WebIdentityUser", "userName": "resource:reports-bucket"});
    made["requestParameters"] = json!({
        "roleArn": asked[0]["RoleArn"], "roleSessionName": asked[0]["RoleSessionName"]
    });
    made["responseElements"] = json!({"sourceIdentity": asked[0]["SourceIdentity"]});
    let mut stolen = event(7, 0, 10, s3, "GetObject", "team/a");
    stolen["userIdentity"]["sessionContext"]["sourceIdentity"] =
        asked[1]["SourceIdentity"].clone().into();
    let mut legacy = event(8, 0, 10, s3, "GetObject", "team/a");
    legacy["userIdentity"] =
        json!({"type": "IAMUser", "arn": "arn:aws:iam::123456789012:user/jenkins"});
    let mut versions = event(9, 0, 10, s3, "HeadObject", "team/a");
    versions["requestParameters"]["versionId"] = "3sL4kqtJ".into();
    let events = [
        made,
        event(2, 0, 10, s3, "HeadObject", "team/a b"),
        event(3, 1, 30, s3, "GetObject", "team/a"),
        event(4, 0, 10, s3, "GetObject", "other/a"),
        event(5, 0, 10, s3, "DeleteObject", "team/a"),
        event(6, 1, 90, s3, "GetObject", "team/a"),
        stolen,
        legacy,
        versions,
    ];
    let (log, vkey) = log_of_rig(&rig).await;
    let report = json_of(
        &run(&log, &vkey, gzip(trail(&events).as_bytes()), &["--json"]),
        1,
    );
    assert_eq!(counts(&report), [3, 3, 1, 2, 0], "{report:#}");
    let reasons = |class: &str| report["classes"][class]["reasons"].clone();
    assert_eq!(reasons("outside_grant"), json!({"action": 2, "place": 1}));
    assert_eq!(reasons("after_end"), json!({"revoked": 1}));
    assert_eq!(
        reasons("unproven"),
        json!({"contradiction": 1, "no_decision": 1})
    );
    let report = json_of(&run(&log, &vkey, trail(&events[..3]), &["--json"]), 0);
    assert_eq!(counts(&report), [3, 0, 0, 0, 0]);
}

// ---- what one can ask for ---------------------------------------------------------------------

#[test]
fn thresholds_and_filters_are_what_they_say_and_counted() {
    let log = made();
    let mut legacy = event("e-2", IN_TIME);
    legacy["userIdentity"] = json!({"type": "IAMUser", "arn": "arn:aws:iam::123456789012:user/ci"});
    let events = trail(&[event("e-1", IN_TIME), legacy]);
    let report = json_of(&log.run(events.as_str(), &["--json"]), 1);
    assert_eq!(counts(&report), [1, 0, 0, 1, 0]);
    json_of(
        &log.run(events.as_str(), &["--json", "--allow-unproven", "49.9"]),
        1,
    );
    json_of(
        &log.run(events.as_str(), &["--json", "--allow-unproven", "50%"]),
        0,
    );
    for filter in [
        ["--except", "principal=*:user/ci"],
        ["--only", "principal=*assumed-role*"],
    ] {
        let report = json_of(
            &log.run(events.as_str(), &[&["--json"], &filter[..]].concat()),
            0,
        );
        assert_eq!(counts(&report), [1, 0, 0, 0, 0], "{filter:?}");
        let aside = report["records"]["set_aside"].as_object().unwrap();
        assert_eq!(aside.values().next().unwrap(), 1);
    }
    // To look at nothing shows nothing.
    let none = log.run(events, &["--json", "--only", "action=ec2:*"]);
    assert_eq!(json_of(&none, 3)["verdict"], "not_established");
}

#[test]
fn a_record_that_is_delivered_twice_is_one_and_another_under_its_id_is_not_hidden() {
    let log = made();
    let mut other = event("e-1", IN_TIME);
    other["eventName"] = "DeleteObject".into();
    let events = [event("e-1", IN_TIME), event("e-1", IN_TIME), other];
    let twice = format!("{}\n{}", trail(&events), trail(&events[..1]));
    let report = json_of(&log.run(twice, &["--json"]), 1);
    assert_eq!(counts(&report), [1, 1, 0, 0, 0]);
    assert_eq!(
        (&report["records"]["read"], &report["records"]["repeated"]),
        (&json!(4), &json!(2))
    );
}

#[test]
fn clocks_and_time_zones_are_compared_as_instants() {
    let log = made();
    for (at, code, class) in [
        ("2026-10-24T12:04:59Z", 0, "proven"),
        ("2026-10-24T14:04:59+02:00", 0, "proven"),
        ("2026-10-24T14:04:59Z", 1, "after_end"),
        ("2026-10-24T12:04:59-08:00", 1, "after_end"),
        ("2026-10-24T12:05:05Z", 0, "proven"),
        ("2026-10-24T12:05:06Z", 1, "after_end"),
        ("2026-10-24T11:59:54Z", 1, "unproven"),
        ("2026-10-24T12:01:00", 3, "unjudged"),
        ("24/Oct/2026:12:01:00", 3, "unjudged"),
        ("", 3, "unjudged"),
    ] {
        let report = json_of(&log.run(trail(&[event("e-1", at)]), &["--json"]), code);
        assert_eq!(report["classes"][class]["count"], 1, "{at}");
    }
}

#[test]
fn an_event_of_ocsf_is_joined_by_hash_and_by_session() {
    let log = made();
    let ocsf = |change: &dyn Fn(&mut Value)| {
        let mut event = json!({
            "class_uid": 6003, "time": 1_792_843_260_000_i64, "metadata": {"uid": "o-1"},
            "cloud": {"region": "eu-central-1"},
            "actor": {"user": {"uid": "reports"}, "session": {"uid": SESSION}},
            "api": {"operation": "GetObject", "service": {"name": "s3.amazonaws.com"}},
            "resources": [{"uid": "arn:aws:s3:::reports/a", "type": "AWS::S3::Object"}],
            "unmapped": {"dec": URL_SAFE_NO_PAD.encode(log.hash.as_bytes())}
        });
        change(&mut event);
        let report = log.run(event.to_string(), &["--json", "--format", "ocsf"]);
        let code = report.code().unwrap();
        counts(&json_of(&report, code))
    };
    assert_eq!(ocsf(&|_| {}), [1, 0, 0, 0, 0]);
    assert_eq!(
        ocsf(&|event| event["actor"]["session"] = json!({})),
        [1, 0, 0, 0, 0]
    );
    assert_eq!(
        ocsf(&|event| event["unmapped"] = json!({})),
        [1, 0, 0, 0, 0]
    );
    assert_eq!(
        ocsf(&|event| event["actor"]["session"]["uid"] = OTHER.into()),
        [0, 0, 0, 1, 0]
    );
    assert_eq!(
        ocsf(&|event| event["cloud"]["region"] = "us-east-1".into()),
        [0, 1, 0, 0, 0]
    );
    assert_eq!(
        ocsf(&|event| event["time"] = IN_TIME.into()),
        [0, 0, 0, 0, 1]
    );
}

#[test]
fn the_picture_is_one_file_without_scripts_whatever_the_records_say() {
    let log = made();
    let mut evil = event("e-2", IN_TIME);
    evil["userIdentity"] =
        json!({"arn": "</text><script>alert(1)</script>\u{1b}[2J\u{202e}\"'&<a href='x'>"});
    let events = trail(&[event("e-1", IN_TIME), evil]);
    let mut process = Launch::taskpass([
        "ledger",
        "coverage",
        "--log",
        "log",
        "--key",
        &log.vkey,
        "--records",
        "records",
        "--svg",
        "coverage.svg",
    ])
    .file("log", log.file.clone())
    .file("records", events)
    .spawn();
    assert_eq!(process.wait(super::support::SOON).code(), Some(1));
    assert!(!process.stdout().contains(['\u{1b}', '\u{202e}']));
    let svg = std::fs::read_to_string(process.dir().join("coverage.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    for bad in ["\u{1b}", "\u{202e}", "url(", "onload"] {
        assert!(!svg.contains(bad), "{bad}: {svg}");
    }
    assert!(svg.contains("&lt;script&gt;"));
    assert!(svg.contains("not covered: 1 of 2 actions are not proven"));
    // Every tag is closed, in order.
    let mut open = Vec::new();
    for tag in svg
        .split('<')
        .skip(1)
        .map(|rest| rest.split('>').next().unwrap())
    {
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .unwrap();
        let known = ["svg", "title", "desc", "g", "rect", "text"];
        assert!(known.contains(&name), "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

// ---- bad input --------------------------------------------------------------------------------

#[test]
fn a_log_that_does_not_hold_is_no_log_whatever_the_records_say() {
    let log = made();
    let records = trail(&[event("e-1", IN_TIME)]);
    json_of(&log.run(records.as_str(), &["--json"]), 0);
    let lines: Vec<&[u8]> = log.file.split_inclusive(|byte| *byte == b'\n').collect();
    let mut flipped = log.file.clone();
    let middle = lines[0].len() + lines[1].len() / 2;
    flipped[middle] ^= 4;
    let other = Ed25519KeyPair::from_seed_unchecked(&[4; 32]).unwrap();
    let other = VerifierKey::new(ORIGIN, other.public_key().as_ref().try_into().unwrap());
    for (file, vkey, code) in [
        (flipped, &log.vkey, 1),
        (lines[..2].concat(), &log.vkey, 1),
        ([lines[0], lines[2], lines[1]].concat(), &log.vkey, 1),
        ([lines[0], lines[1], lines[1]].concat(), &log.vkey, 1),
        (log.file.clone(), &other.unwrap().to_string(), 1),
        (b"{}".to_vec(), &log.vkey, 2),
        (Vec::new(), &log.vkey, 2),
    ] {
        let ended = run(&file, vkey, records.as_str(), &["--json"]);
        assert_eq!(ended.code(), Some(code), "{}{}", ended.stdout, ended.stderr);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty());
    }
}

#[test]
fn bad_records_are_counted_apart_and_never_a_pass() {
    let log = made();
    let good = event("e-1", IN_TIME).to_string();
    let deep = format!("{}{}", "[".repeat(300_000), "]".repeat(300_000));
    let twice = good.replacen(
        "\"eventName\"",
        "\"eventName\":\"PutObject\",\"eventName\"",
        1,
    );
    // Whole arrays with one record that is none: that one is counted, the rest is judged.
    for bad in ["{}", "7", "null", "\"x\"", deep.as_str(), twice.as_str()] {
        let records = format!("{{\"Records\":[{bad},{good}]}}");
        let report = json_of(&log.run(records, &["--json"]), 3);
        assert_eq!(
            counts(&report),
            [1, 0, 0, 0, 1],
            "{}",
            &bad[..bad.len().min(40)]
        );
        assert_eq!(
            report["classes"]["unjudged"]["reasons"],
            json!({"unreadable": 1})
        );
    }
    // What breaks off is told, with what came before.
    let huge = format!("{{\"x\":\"{}\"}}", "y".repeat(2 * 1024 * 1024));
    let begin = format!("{{\"Records\":[{good}");
    let whole = gzip(format!("{begin}]}}").as_bytes());
    for bad in [
        begin.clone().into_bytes(),
        format!("{begin},{{\"eventTime\"").into_bytes(),
        format!("{begin},{huge}]}}").into_bytes(),
        format!("{begin}]}} and more").into_bytes(),
        whole[..whole.len() - 4].to_vec(),
    ] {
        let report = json_of(&log.run(bad, &["--json"]), 3);
        assert_eq!(counts(&report), [1, 0, 0, 0, 0]);
        assert_eq!(report["problems"][0]["input"], "records");
        assert_eq!(report["verdict"], "not_established");
    }
    // And what holds nothing at all shows nothing.
    for nothing in [
        "",
        " \n",
        "{\"Records\":[]}",
        "[]",
        "\u{0}\u{1}\u{2}",
        "PK\u{3}\u{4}",
    ] {
        assert_eq!(log.run(nothing, &["--json"]).code(), Some(3), "{nothing:?}");
    }
}

#[test]
fn a_bad_line_costs_itself_and_a_bomb_the_file() {
    let log = made();
    let options = ["--json", "--mapping", "mapping.toml"];
    let claims = json!({"jti": SESSION, "dec": URL_SAFE_NO_PAD.encode(log.hash.as_bytes())});
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let good = json!({
        "at": IN_TIME, "id": "l-1", "right": "s3:PutObject", "url": "arn:aws:s3:::reports/a",
        "authorization": format!("DPoP {token}")
    });
    let report = json_of(&log.run(good.to_string(), &options), 1);
    assert_eq!(counts(&report), [0, 1, 0, 0, 0], "{report:#}");
    let endless = "z".repeat(3 * 1024 * 1024);
    let lines = format!("{endless}\nnot json\n{{\"at\":1,\"at\":2}}\n[1]\n{good}\n{{\"cut\":");
    let report = json_of(&log.run(lines, &options), 1);
    assert_eq!(counts(&report), [0, 1, 0, 0, 5], "{report:#}");
    let bomb = gzip(&vec![b' '; 24 * 1024 * 1024]);
    let report = json_of(&log.run(bomb, &options), 3);
    let why = report["problems"][0]["why"].as_str().unwrap();
    assert!(why.contains("as no log is"), "{why}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_told_before_anything_is_read() {
    let log = made();
    let vkey = log.vkey.as_str();
    for bad in [
        vec!["--log", "log", "--records", "records"],
        vec!["--log", "log", "--key", vkey],
        vec!["--log", "-", "--key", vkey, "--records", "-"],
        vec!["--log", "log", "--key", vkey, "--records", "-", "-"],
        vec!["--log", "log", "--key", vkey, "--records", "."],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--format",
            "jsonl",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--mapping",
            "records",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--format",
            "cloudtrail",
            "--mapping",
            "mapping.toml",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--as-of",
            "2026-10-24T12:00:00",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--skew",
            "301",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--allow-unproven",
            "NaN",
        ],
        vec![
            "--log",
            "log",
            "--key",
            vkey,
            "--records",
            "records",
            "--only",
            "eve",
        ],
    ] {
        let ended = Launch::taskpass(["ledger", "coverage"].iter().chain(&bad).copied())
            .file("log", log.file.clone())
            .file("records", trail(&[event("e-1", IN_TIME)]))
            .file("mapping.toml", MAPPING)
            .run();
        assert_eq!(
            ended.code(),
            Some(2),
            "{bad:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
    }
    let missing = run(&log.file, vkey, "", &["nowhere"]);
    assert_eq!(missing.code(), Some(3), "{}", missing.stderr);
}

// ---- memory -----------------------------------------------------------------------------------

/// The most memory, in KiB, that the command had when it had read so many records from its standard
/// input, each of 4 KiB, every one by another principal with another id.
fn peak_after(log: &Made, records: u32, cloudtrail: bool) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log"), &log.file).unwrap();
    std::fs::write(dir.path().join("mapping.toml"), MAPPING).unwrap();
    let mut arguments = vec![
        "ledger",
        "coverage",
        "--log",
        "log",
        "--key",
        &log.vkey,
        "--records",
        "-",
        "--json",
    ];
    if !cloudtrail {
        arguments.extend(["--mapping", "mapping.toml"]);
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_taskpass"))
        .args(arguments)
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    let padding = "p".repeat(3_500);
    if cloudtrail {
        input.write_all(b"{\"Records\":[").unwrap();
    }
    for n in 0..records {
        let mut record = if cloudtrail {
            event(&format!("e-{n}"), IN_TIME)
        } else {
            json!({"at": IN_TIME, "id": n, "right": "orders:read"})
        };
        record["padding"] = padding.as_str().into();
        record["who"] = format!("somebody-{n}").into();
        record["userIdentity"]["userName"] = format!("somebody-{n}").into();
        let end = match cloudtrail {
            true if n + 1 < records => ",",
            true => "]}",
            false => "\n",
        };
        write!(input, "{record}{end}").unwrap();
    }
    input.flush().unwrap();
    // Nobody has closed the pipe: all but what is still in it was read, and it waits for more.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(report["records"]["read"], records);
    peak
}

#[test]
fn memory_does_not_grow_with_the_records() {
    let log = made();
    for cloudtrail in [true, false] {
        let small = peak_after(&log, 1_000, cloudtrail);
        let large = peak_after(&log, 8_000, cloudtrail);
        // 28 MiB more were read. What may grow are the bounded tables: groups, and what came lately.
        assert!(large < small + 6 * 1024, "{small} KiB, then {large} KiB");
        assert!(large < 128 * 1024, "{large} KiB");
    }
}
