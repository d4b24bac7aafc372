//! Logs of real brokers, with records of the use of real credentials.

use serde_json::{Value, json};
use taskpass::clock::Timestamp;
use taskpass::domain::request::{CredentialRequest, TaskSelector};

use super::super::aws::rig;
use super::super::support::fleet::{Fleet, Replica, vkeys, whole_log};
use super::super::support::keys::peek;
use super::super::support::rig::{Rig, ask, job};
use super::super::support::sts::Sts;
use super::{ORIGIN, counts, gzip, json_of, log_file, run, trail};

/// The replica's whole log as a file, and its leaves.
async fn log_of(fleet: &Fleet, replica: &Replica) -> (Vec<u8>, Vec<Value>) {
    let (checkpoint, leaves) = whole_log(fleet, replica).await;
    let read = |leaf: &Vec<u8>| serde_json::from_slice(leaf).unwrap();
    let values = leaves.iter().map(read).collect();
    (log_file(&checkpoint, &leaves), values)
}

fn later(at: &Value, seconds: u64) -> String {
    let at: Timestamp = serde_json::from_value(at.clone()).unwrap();
    at.plus_seconds(seconds).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_a_brokers_tokens_is_told_apart_by_its_own_log() {
    let (fleet, replica) = Fleet::sqlite().start().await;
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

    // The text report for people; it contains no token.
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

    // The record of a permitted use is covered, and alone it sets the exit code to 0.
    let report = json_of(&run(&log, &vkey, lines(&records[..1]), &json), 0);
    assert_eq!(
        (counts(&report), &report["verdict"]),
        ([1, 0, 0, 0, 0], &json!("covered"))
    );
}

/// The log of a rig's broker, and the log's key.
async fn log_of_rig(rig: &Rig) -> (Vec<u8>, String) {
    let ledger = rig.broker.core.ledger();
    let signed = ledger.checkpoints().borrow().clone().unwrap();
    let checkpoint = signed.checkpoint.to_string();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let leaves = rig.broker.core.store().leaves(0, size).await.unwrap();
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
    // An entry that is later than all records below.
    rig.issue("agent:reports", request()).await.unwrap();
    let mut asked = sts.asked().await;
    for told in &mut asked {
        let claims = peek(&told["WebIdentityToken"]).1;
        let identity = claims["https://aws.amazon.com/source_identity"].as_str();
        told.insert("SourceIdentity".into(), identity.unwrap().into());
    }
    // Events as CloudTrail would write them, made only from the parameters that STS received.
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
    let mut chosen = event(10, 0, 10, s3, "GetObject", "team/a");
    chosen["userIdentity"]["sessionContext"] = json!({});
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
        chosen,
    ];
    let (log, vkey) = log_of_rig(&rig).await;
    let report = json_of(
        &run(&log, &vkey, gzip(trail(&events).as_bytes()), &["--json"]),
        1,
    );
    assert_eq!(counts(&report), [3, 3, 1, 3, 0], "{report:#}");
    let reasons = |class: &str| report["classes"][class]["reasons"].clone();
    assert_eq!(reasons("outside_grant"), json!({"action": 2, "place": 1}));
    assert_eq!(reasons("after_end"), json!({"revoked": 1}));
    assert_eq!(
        reasons("unproven"),
        json!({"contradiction": 1, "name_alone": 1, "no_decision": 1})
    );
    let report = json_of(&run(&log, &vkey, trail(&events[..3]), &["--json"]), 0);
    assert_eq!(counts(&report), [3, 0, 0, 0, 0]);
}
