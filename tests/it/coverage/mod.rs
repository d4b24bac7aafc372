//! `taskpass ledger coverage` as a program: on the logs of real [`brokers`], with records of the
//! use of real credentials; on [`bad_input`]; and on more records than fit into its memory.

mod bad_input;
mod brokers;
mod foreign;
mod memory;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use taskpass::merkle::{
    Checkpoint, Hash, LogEntry, VerifierKey, leaf_hash, note_signature_line, root_of, sign_note,
    write_log_entry, write_log_head,
};

use crate::support::process::{Ended, Launch};

const ORIGIN: &str = "broker.test/log";
const ROLE: &str = "arn:aws:iam::123456789012:role/reports";
const SESSION: &str = "0198b2a0-0000-7000-8000-000000000002";
const OTHER: &str = "0198b2a0-0000-7000-8000-000000000099";

/// A log file with these leaves under this checkpoint.
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

/// A log made by the test, with one permit of 300 s at noon and an entry an hour later.
struct Made {
    file: Vec<u8>,
    vkey: String,
    hash: Hash,
}

fn made() -> Made {
    let leaf = |at: &str, event: Value| {
        let mut leaf = json!({"v": 2, "origin": ORIGIN, "at": at});
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
                "task": OTHER, "session": SESSION, "audience": ROLE,
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
    /// Runs the command with this log and these records.
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
region = "/region"
credential.jwt = "/authorization"
refused = { pointer = "/status", values = [401, 403] }
"#;

/// Splits the text into the command's arguments; `KEY` stands for the log's key.
fn words<'a>(text: &'a str, vkey: &'a str) -> impl Iterator<Item = &'a str> {
    let words = text.split_whitespace();
    let words = words.map(move |word| if word == "KEY" { vkey } else { word });
    ["ledger", "coverage"].into_iter().chain(words)
}

fn run(log: &[u8], vkey: &str, records: impl Into<Vec<u8>>, more: &[&str]) -> Ended {
    let arguments = words("--log log --key KEY --records records", vkey);
    Launch::taskpass(arguments.chain(more.iter().copied()))
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

/// A `GetObject` event of the permit's session, in CloudTrail's format.
fn event(id: &str, at: &str) -> Value {
    static IDENTITY: LazyLock<String> =
        LazyLock::new(|| URL_SAFE_NO_PAD.encode(made().hash.as_bytes()));
    let name = format!("tp-{}", SESSION.replace('-', ""));
    json!({
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "AssumedRole", "principalId": format!("AROAEXAMPLE:{name}"),
            "arn": format!("arn:aws:sts::123456789012:assumed-role/reports/{name}"),
            "sessionContext": {
                "attributes": {"mfaAuthenticated": "false"}, "sourceIdentity": *IDENTITY
            }
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
    // A filter that excludes every record is not a pass.
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
            "actor": {"user": {"uid": "reports"}, "session": {"uid": SESSION, "issuer": ROLE}},
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
        [0, 0, 0, 1, 0],
        "the source identity stays with a session that assumes other roles"
    );
    assert_eq!(
        ocsf(&|event| event["unmapped"] = json!({})),
        [0, 0, 0, 1, 0],
        "any principal could choose this session name"
    );
    assert_eq!(
        ocsf(&|event| event["actor"]["session"]["uid"] = OTHER.into()),
        [0, 0, 0, 1, 0]
    );
    for issuer in [json!(null), json!("arn:aws:iam::999999999999:role/reports")] {
        assert_eq!(
            ocsf(&|event| event["actor"]["session"]["issuer"] = issuer.clone()),
            [0, 0, 0, 1, 0],
            "the session's role is unknown or in another account: {issuer}"
        );
    }
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
fn who_walks_around_the_broker_is_set_aside_by_no_class_of_ocsf() {
    let log = made();
    let own = json!({
        "class_uid": 6003, "time": 1_792_843_260_000_i64, "metadata": {"uid": "o-1"},
        "cloud": {"region": "eu-central-1"},
        "actor": {"user": {"uid": "reports"}, "session": {"uid": SESSION, "issuer": ROLE}},
        "api": {"operation": "GetObject", "service": {"name": "s3.amazonaws.com"}},
        "resources": [{"uid": "arn:aws:s3:::reports/a", "type": "AWS::S3::Object"}],
        "unmapped": {"dec": URL_SAFE_NO_PAD.encode(log.hash.as_bytes())}
    });
    let beside = |class: u64, code: i32| {
        let other = json!({
            "class_uid": class, "time": 1_792_843_261_000_i64, "metadata": {"uid": "o-2"},
            "actor": {"user": {"uid": "eve"}},
            "http_request": {"http_method": "DELETE", "url": {"url_string": "https://h/v1/4"}}
        });
        let ended = log.run(format!("{own}\n{other}"), &["--json", "--format", "ocsf"]);
        json_of(&ended, code)
    };
    for class in [1001, 3001, 4002, 6001, 6005, 6006, 9001] {
        let report = beside(class, 1);
        assert_eq!(counts(&report), [1, 0, 0, 1, 0], "{class}");
        assert_eq!(report["records"]["set_aside"], json!({}), "{class}");
    }
    let report = beside(2004, 0);
    assert_eq!(counts(&report), [1, 0, 0, 0, 0]);
    // Every resource of an event about the covered resources is judged.
    for (second, code, expected) in [
        (json!({"name": "secret/x"}), 3, [0, 0, 0, 0, 1]),
        (
            json!({"uid": "arn:aws:s3:::secret/x", "type": "AWS::S3::Object"}),
            1,
            [0, 1, 0, 0, 0],
        ),
    ] {
        let mut more = own.clone();
        more["resources"] = json!([own["resources"][0], second]);
        let ended = log.run(more.to_string(), &["--json", "--format", "ocsf"]);
        assert_eq!(counts(&json_of(&ended, code)), expected, "{second}");
    }
}

#[test]
fn the_verdict_is_the_exit_code_whether_or_not_somebody_reads() {
    let log = made();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log"), &log.file).unwrap();
    let mut legacy = event("e-2", IN_TIME);
    legacy["userIdentity"] = json!({"type": "IAMUser", "arn": "arn:aws:iam::1:user/ci"});
    for (events, code) in [
        (trail(&[event("e-1", IN_TIME), legacy]), 1),
        (trail(&[event("e-1", IN_TIME)]), 0),
        ("{".to_owned(), 3),
    ] {
        for form in ["", "--json"] {
            let arguments = format!("--log log --key KEY --records - {form}");
            let mut child = Command::new(env!("CARGO_BIN_EXE_taskpass"))
                .args(words(&arguments, &log.vkey))
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Close the reading end first, so that the command finds no reader when it writes.
            drop(child.stdout.take());
            let mut input = child.stdin.take().unwrap();
            input.write_all(events.as_bytes()).unwrap();
            drop(input);
            assert_eq!(child.wait().unwrap().code(), Some(code), "{form} {events}");
        }
    }
}

#[test]
fn the_picture_is_one_file_without_scripts_whatever_the_records_say() {
    let log = made();
    let mut evil = event("e-2", IN_TIME);
    evil["userIdentity"] =
        json!({"arn": "</text><script>alert(1)</script>\u{1b}[2J\u{202e}\"'&<a href='x'>"});
    let events = trail(&[event("e-1", IN_TIME), evil]);
    let arguments = "--log log --key KEY --records records --svg coverage.svg";
    let mut process = Launch::taskpass(words(arguments, &log.vkey))
        .file("log", log.file.clone())
        .file("records", events)
        .spawn();
    assert_eq!(process.wait(crate::support::SOON).code(), Some(1));
    assert!(!process.stdout().contains(['\u{1b}', '\u{202e}']));
    let svg = std::fs::read_to_string(process.dir().join("coverage.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    for bad in ["\u{1b}", "\u{202e}", "url(", "onload"] {
        assert!(!svg.contains(bad), "{bad}: {svg}");
    }
    assert!(svg.contains("&lt;script&gt;"));
    assert!(svg.contains("not covered: 1 of 2 actions are not proven"));
    // Check that every tag is closed, in order.
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
