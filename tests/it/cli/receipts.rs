//! `taskpass ledger verify` on receipts, alone and with their credentials.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::support::keys::{base64url, sign_jwt};
use crate::support::log::{EXP, receipt_in};

#[test]
fn a_receipt_holds_and_says_no_more_than_it_shows() {
    let sample = Sample::new();
    let out = holds(&sample.verify(&sample.receipt, &[]));
    assert!(out.contains("file: a receipt\n"), "{out}");
    assert!(
        out.contains("decided: permit for dev:agent%3Areports at"),
        "{out}"
    );
    assert!(
        out.contains("logged: yes, as leaf 4 of 7 in broker.test/log"),
        "{out}"
    );
    assert!(out.contains("logged before use: not shown"), "{out}");
    assert!(out.contains("no credential was given"), "{out}");
}

#[test]
fn a_receipt_holds_for_its_credential_and_the_issuers_key() {
    let sample = Sample::new();
    let files = ["--credential-file", "token", "--jwks", "jwks"];
    let out = holds(&sample.verify(&sample.receipt, &files));
    assert!(!out.contains("not checked"), "{out}");
    let all = holds(&sample.verify(&sample.issued(), &["--jwks", "jwks"]));
    assert!(
        all.contains("the answer to a request that was granted"),
        "{all}"
    );
}

#[test]
fn a_credential_whose_signature_nobody_checked_is_no_pass() {
    let sample = Sample::new();
    // Any holder of the receipt can write these claims, so an unsigned copy proves nothing.
    let forger = Key::generate(Algorithm::Es256);
    let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": sample.signer.kid});
    let forged = sign_jwt(&header, &claims(&sample.receipt), &forger);
    let mut answer = sample.issued();
    answer["credential"]["access_token"] = json!(forged);
    for token in [&sample.token, &forged] {
        let asked = ["--credential", token, "--json"];
        let ended = sample.verify(&sample.receipt, &asked);
        assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
        let verdict: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(verdict["decided"]["verdict"], "not_shown");
        assert_eq!(verdict["logged"]["verdict"], "holds");
        assert_eq!(verdict["problems"], json!([]));
        assert_eq!(verdict["missing"].as_array().unwrap().len(), 1);
    }
    for answer in [&answer, &sample.issued()] {
        let ended = sample.verify(answer, &[]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
        let out = ended.stdout;
        assert!(
            out.contains("decided: not shown: the credential's signature"),
            "{out}"
        );
        assert!(out.contains("found: permit for"), "{out}");
        assert!(out.ends_with("not everything is shown\n"), "{out}");
    }
    fails(
        &sample.verify(&answer, &["--jwks", "jwks"]),
        "signature does not hold",
    );
    // Claims alone suffice only with `--unchecked-signature`.
    let out = holds(&sample.verify(&answer, &["--unchecked-signature"]));
    assert!(
        out.contains("signature was not checked, as requested"),
        "{out}"
    );
    let both = ["--unchecked-signature", "--jwks", "jwks"];
    assert_eq!(sample.verify(&answer, &both).code(), Some(2));
}

#[test]
fn a_refusal_and_a_tlog_proof_are_told_apart() {
    let sample = Sample::new();
    let refusal = json!({
        "type": "urn:taskpass:problem:denied", "status": 403,
        "decision": {"id": DECISION}, "receipt": receipt(&sample.log, &denial()),
    });
    let out = holds(&sample.verify(&refusal, &[]));
    assert!(out.contains("a request that was refused"), "{out}");
    assert!(out.contains("decided: deny (not-permitted)"), "{out}");
    let out = holds(&sample.verify_bytes(tlog_proof(&sample.receipt), &[]));
    assert!(out.contains("file: a tlog-proof"), "{out}");
}

fn tlog_proof(receipt: &Value) -> String {
    let text = |name: &str| receipt[name].as_str().unwrap();
    let hashes: Vec<&str> = receipt["inclusion_proof"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hash| hash.as_str().unwrap())
        .collect();
    format!(
        "c2sp.org/tlog-proof@v1\nextra {}\nindex 4\n{}\n\n{}",
        text("leaf"),
        hashes.join("\n"),
        text("checkpoint")
    )
}

#[test]
fn an_act_is_logged_but_is_no_decision() {
    let sample = Sample::new();
    let leaf = json!({
        "v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z", "event": "task_ended",
        "task": TASK, "state": "completed", "by": "dev:agent%3Areports"
    });
    let act = receipt(&sample.log, &leaf);
    let out = holds(&sample.verify(&act, &[]));
    assert!(
        out.contains("decided: not shown: the leaf records task_ended"),
        "{out}"
    );
    fails(
        &sample.verify(&act, &["--credential", &sample.token]),
        "the leaf does not permit",
    );
}

#[test]
fn the_result_is_json_for_programs() {
    let sample = Sample::new();
    let ended = sample.verify(&sample.receipt, &["--json"]);
    assert_eq!(ended.code(), Some(0));
    let verdict: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(verdict["kind"], "receipt");
    assert_eq!(verdict["problems"], json!([]));
    let ended = sample.verify(&json!({"leaf": "?"}), &["--json"]);
    assert_eq!(ended.code(), Some(1));
    let verdict: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(verdict["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn a_spoilt_receipt_is_refused_wherever_it_is_spoilt() {
    let sample = Sample::new();
    let good = &sample.receipt;
    let spoilt = |name: &str, value: Value| {
        let mut receipt = good.clone();
        receipt[name] = value;
        receipt
    };
    let other_leaf = serde_json::to_vec(&denial()).unwrap();
    let consistent = {
        let mut receipt = spoilt("leaf", json!(STANDARD.encode(&other_leaf)));
        receipt["leaf_hash"] = json!(STANDARD.encode(leaf_hash(&other_leaf)));
        receipt
    };
    let proof = good["inclusion_proof"].as_array().unwrap().clone();
    let zero = json!(STANDARD.encode([0; 32]));
    let checkpoint = good["checkpoint"].as_str().unwrap().to_owned();
    let bigger = {
        let mut receipt = spoilt(
            "checkpoint",
            json!(checkpoint.replacen("\n7\n", "\n8\n", 1)),
        );
        receipt["tree_size"] = json!(8);
        receipt
    };
    let unsigned = format!("{}\n\n", checkpoint.split("\n\n").next().unwrap());
    let cases = [
        (
            "another leaf",
            spoilt("leaf", json!(STANDARD.encode(&other_leaf))),
        ),
        ("another leaf with its hash", consistent),
        ("no base64", spoilt("leaf", json!("{}"))),
        ("another hash", spoilt("leaf_hash", zero.clone())),
        ("another index", spoilt("index", json!(5))),
        ("an index beyond", spoilt("index", json!(7))),
        ("a negative index", spoilt("index", json!(-1))),
        ("another size", spoilt("tree_size", json!(8))),
        ("a bigger checkpoint", bigger),
        ("an empty proof", spoilt("inclusion_proof", json!([]))),
        (
            "a shorter proof",
            spoilt("inclusion_proof", json!(proof[1..])),
        ),
        (
            "a longer proof",
            spoilt(
                "inclusion_proof",
                json!([proof.clone(), vec![zero.clone()]].concat()),
            ),
        ),
        (
            "another hash in the proof",
            spoilt(
                "inclusion_proof",
                json!([vec![zero], proof[1..].to_vec()].concat()),
            ),
        ),
        (
            "an unsigned checkpoint",
            spoilt("checkpoint", json!(unsigned)),
        ),
        ("no checkpoint", spoilt("checkpoint", json!(""))),
    ];
    for (fault, receipt) in cases {
        let ended = sample.verify(&receipt, &[]);
        assert_eq!(ended.code(), Some(1), "{fault}: {}", ended.stdout);
        let mut issued = sample.issued();
        issued["receipt"] = receipt;
        let ended = sample.verify(&issued, &["--jwks", "jwks"]);
        assert_eq!(
            ended.code(),
            Some(1),
            "{fault} in an answer: {}",
            ended.stdout
        );
    }
}

#[test]
fn another_logs_signature_or_origin_is_refused() {
    let sample = Sample::new();
    // The log's name is right, and the key is another.
    let forger = Log::new(ORIGIN);
    let forged = receipt(&forger, &permit(&sample.signer.kid));
    assert_eq!(sample.verify(&forged, &[]).code(), Some(1));
    // The log's own key signed another origin, and a leaf names another log.
    let elsewhere = receipt_in(&sample.log, "other.test/log", &permit(&sample.signer.kid));
    assert_eq!(sample.verify(&elsewhere, &[]).code(), Some(1));
    let mut leaf = permit(&sample.signer.kid);
    leaf["origin"] = json!("other.test/log");
    fails(
        &sample.verify(&receipt(&sample.log, &leaf), &[]),
        "the leaf belongs to the log other.test/log",
    );
    leaf = permit(&sample.signer.kid);
    for (version, told) in [
        (
            1,
            "format version 1 was made by an earlier development build",
        ),
        (3, "format version 3 was made by a later build"),
    ] {
        leaf["v"] = json!(version);
        fails(&sample.verify(&receipt(&sample.log, &leaf), &[]), told);
    }
}

#[test]
fn a_credential_that_says_more_than_its_leaf_is_refused() {
    let sample = Sample::new();
    let wider = json!([{
        "type": "api", "actions": ["orders:read", "orders:write"],
        "locations": ["https://orders.example/v1"]
    }]);
    let other = "0198b2a0-0000-7000-8000-00000000ffff";
    let cases = [
        ("dec", json!(base64url(&[0; 32]))),
        ("dec", Value::Null),
        ("jti", json!(other)),
        ("sid", json!(other)),
        ("task", json!(other)),
        ("aud", json!("https://other.example")),
        ("aud", json!(["https://orders.example"])),
        ("client_id", json!("dev:mallory")),
        ("sub", json!("dev:mallory")),
        ("sub", Value::Null),
        ("act", json!({"sub": "dev:mallory"})),
        ("roles", json!(["root"])),
        ("iat", json!(1)),
        ("iat", Value::Null),
        ("exp", json!(EXP + 1)),
        ("exp", Value::Null),
        ("authorization_details", wider),
        ("scope", json!("orders:read orders:write")),
        ("cnf", json!({"jkt": "x"})),
    ];
    for (claim, value) in cases {
        let mut claims = claims(&sample.receipt);
        claims[claim] = value.clone();
        let token = token(&sample.signer, &claims);
        let jwks = ["--jwks", "jwks"];
        let given = ["--credential", &token];
        let ended = sample.verify(&sample.receipt, &[given, jwks].concat());
        fails(
            &ended,
            if claim == "cnf" {
                "bound to another key"
            } else {
                claim
            },
        );
        let alone = ended.stdout.matches("FAILED").count();
        assert_eq!(alone, 1, "{claim} {value}: {}", ended.stdout);
        let mut issued = sample.issued();
        issued["credential"]["access_token"] = json!(token);
        let ended = sample.verify(&issued, &jwks);
        assert_eq!(
            ended.code(),
            Some(1),
            "{claim} in an answer: {}",
            ended.stdout
        );
    }
    for bad in ["", "x", "a.b.c"] {
        let ended = sample.verify(&sample.receipt, &[&format!("--credential={bad}")]);
        assert_eq!(ended.code(), Some(1), "{bad}: {}", ended.stdout);
    }
}

#[test]
fn a_credential_of_another_type_or_key_is_refused() {
    let sample = Sample::new();
    let claims = claims(&sample.receipt);
    let forger = Key::generate(Algorithm::Es256);
    for header in [
        json!({"alg": "ES256", "typ": "JWT", "kid": sample.signer.kid}),
        json!({"alg": "ES256", "typ": "at+jwt", "kid": forger.kid}),
        json!({"alg": "ES256", "typ": "at+jwt"}),
    ] {
        let token = sign_jwt(&header, &claims, &sample.signer);
        let given = ["--credential", &token, "--unchecked-signature"];
        fails(&sample.verify(&sample.receipt, &given), "");
    }
    // The header names the right key, but another key signed: found as soon as keys are given.
    let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": sample.signer.kid});
    let forged = sign_jwt(&header, &claims, &forger);
    fails(
        &sample.verify(
            &sample.receipt,
            &["--credential", &forged, "--jwks", "jwks"],
        ),
        "signature does not hold",
    );
}

#[test]
fn what_is_no_receipt_is_told_and_refused() {
    let sample = Sample::new();
    let twice = sample.receipt.to_string().replacen('{', "{\"index\":4,", 1);
    let cut = tlog_proof(&sample.receipt).replacen("index 4", "index 04", 1);
    for bad in [
        String::new(),
        "hello".into(),
        "[]".into(),
        "{}".into(),
        "{\"leaf\"".into(),
        twice,
        cut,
        "c2sp.org/tlog-proof@v2\n".into(),
    ] {
        let ended = sample.verify_bytes(bad.clone(), &[]);
        assert_eq!(ended.code(), Some(1), "{bad}: {}", ended.stdout);
    }
    assert_eq!(sample.verify_bytes([0xff, 0xfe], &[]).code(), Some(1));
}
