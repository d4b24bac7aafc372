//! Logs that do not verify, invalid records of every kind, and invalid command lines.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use taskpass::merkle::VerifierKey;

use super::super::support::process::Launch;
use super::{
    IN_TIME, MAPPING, ORIGIN, SESSION, counts, event, gzip, json_of, made, run, trail, words,
};

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
        let told: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(told["error"]["exit_code"], code, "{told}");
        assert!(ended.stderr.is_empty(), "{}", ended.stderr);
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
    // An array with one invalid record: the report counts it apart and judges the rest.
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
    // A truncated input is reported, together with the records before the break.
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
    // An input without records is not a pass.
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
fn a_text_of_any_length_stops_no_report() {
    let log = made();
    let mut long = event("e-1", IN_TIME);
    long["awsRegion"] = "r".repeat(70_000).into();
    long["userIdentity"]["userName"] = "u".repeat(70_000).into();
    let told = log.run(trail(std::slice::from_ref(&long)), &[]);
    assert_eq!(told.code(), Some(3), "{}", told.stderr);
    assert!(told.stdout.ends_with("there was no action to judge\n"));
    assert!(told.stdout.len() < 5_000);
    let report = json_of(&log.run(trail(&[long]), &["--json"]), 3);
    assert_eq!(
        report["classes"]["unjudged"]["reasons"],
        json!({"unclear": 1})
    );
    // The report names the bucket even if the key is longer than S3 allows.
    let with_key = |bucket: &str, length: usize| {
        let mut event = event("e-1", IN_TIME);
        event["resources"] = serde_json::Value::Null;
        event["requestParameters"] = json!({"bucketName": bucket, "key": "k".repeat(length)});
        let ended = log.run(trail(&[event]), &["--json"]);
        counts(&json_of(&ended, ended.code().unwrap()))
    };
    assert_eq!(with_key("reports", 1_024), [1, 0, 0, 0, 0]);
    for length in [600, 1_024, 5_000, 100_000] {
        assert_eq!(with_key("secret", length), [0, 1, 0, 0, 0]);
    }
}

#[test]
fn an_empty_file_that_is_named_as_compressed_was_cut() {
    let log = made();
    let arguments = "--log log --key KEY --records records empty.json.gz --json";
    let run = |empty: &[u8]| {
        Launch::taskpass(words(arguments, &log.vkey))
            .file("log", log.file.clone())
            .file("records", trail(&[event("e-1", IN_TIME)]))
            .file("empty.json.gz", empty)
            .run()
    };
    let report = json_of(&run(b""), 3);
    assert_eq!(report["problems"][0]["input"], "empty.json.gz");
    json_of(&run(&gzip(b"")), 0);
}

#[test]
fn the_picture_is_written_over_nothing_that_is_read() {
    let log = made();
    for read in ["log", "records", "key", "mapping.toml", "./records"] {
        let arguments = "--log log --key-file key --records records --mapping mapping.toml --svg";
        let mut process = Launch::taskpass(words(arguments, &log.vkey).chain([read]))
            .file("log", log.file.clone())
            .file("key", log.vkey.clone())
            .file("mapping.toml", MAPPING)
            .file("records", "{}")
            .spawn();
        let ended = process.wait(super::super::support::SOON);
        assert_eq!(ended.code(), Some(2), "{read}");
        assert_eq!(
            std::fs::read(process.dir().join("log")).unwrap(),
            log.file,
            "{read}"
        );
        assert_eq!(
            std::fs::read_to_string(process.dir().join("records")).unwrap(),
            "{}",
            "{read}"
        );
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
        "--log log --records records",
        "--log log --key KEY",
        "--log - --key KEY --records -",
        "--log log --key KEY --records - -",
        "--log log --key KEY --records .",
        "--log log --key KEY --records records --format jsonl",
        "--log log --key KEY --records records --mapping records",
        "--log log --key KEY --records records --format cloudtrail --mapping mapping.toml",
        "--log log --key KEY --records records --as-of 2026-10-24T12:00:00",
        "--log log --key KEY --records records --as-of 9999-01-01T00:00:00Z",
        "--log log --key KEY --records records --except principal=x,action=",
        "--log log --key KEY --records records --skew 301",
        "--log log --key KEY --records records --allow-unproven NaN",
        "--log log --key KEY --records records --only eve",
    ] {
        let ended = Launch::taskpass(words(bad, vkey))
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
