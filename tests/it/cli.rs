//! The command line without a broker: help, exit codes, policies, completions, and above all
//! receipts. The tests make the receipts, tree and signatures included, without the product's code.
//! Each test then corrupts one part and expects a refusal.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::hex;
use super::support::keys::{Algorithm, Key, base64url, sign_jwt};
use super::support::log::{
    DECISION, EXP, LIFE, Log, ORIGIN, SESSION, TASK, claims, denial, details, leaf_hash, permit,
    receipt, receipt_in, sha256, token,
};
use super::support::process::{Ended, Launch};

fn taskpass(arguments: &[&str]) -> Ended {
    Launch::taskpass(arguments.iter().copied()).run()
}

/// A log, a signing key, and a permit's receipt with the credential that carries it.
struct Sample {
    log: Log,
    signer: Key,
    receipt: Value,
    token: String,
}

impl Sample {
    fn new() -> Self {
        let (log, signer) = (Log::new(ORIGIN), Key::generate(Algorithm::Es256));
        let receipt = receipt(&log, &permit(&signer.kid));
        let token = token(&signer, &claims(&receipt));
        Self {
            log,
            signer,
            receipt,
            token,
        }
    }

    fn issued(&self) -> Value {
        json!({
            "credential": {"type": "jwt", "access_token": self.token, "expires_in": LIFE},
            "session": {
                "id": SESSION, "workload": "dev:agent%3Areports", "resource": "orders-api",
                "authorization_details": details()
            },
            "decision": {"id": DECISION, "outcome": "permit"},
            "receipt": self.receipt,
        })
    }

    fn verify(&self, file: &Value, more: &[&str]) -> Ended {
        self.verify_bytes(file.to_string().into_bytes(), more)
    }

    fn verify_bytes(&self, file: impl Into<Vec<u8>>, more: &[&str]) -> Ended {
        let vkey = self.log.vkey();
        let arguments = ["ledger", "verify", "file", "--key", &vkey];
        let jwks = json!({"keys": [self.signer.jwk()]});
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("file", file)
            .file("token", self.token.clone())
            .file("jwks", jwks.to_string())
            .run()
    }
}

#[track_caller]
fn holds(ended: &Ended) -> String {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("everything holds"),
        "{}",
        ended.stdout
    );
    ended.stdout.clone()
}

#[track_caller]
fn fails(ended: &Ended, why: &str) {
    let (out, err) = (&ended.stdout, &ended.stderr);
    assert_eq!(ended.code(), Some(1), "{out}{err}");
    assert!(
        out.contains("FAILED: ") && out.contains(why),
        "{why}: {out}"
    );
    assert!(out.ends_with("does not hold\n"), "{out}");
}

// ---- valid receipts ---------------------------------------------------------------------------

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

/// The answer verifies, and fails once the value at `pointer` is replaced.
fn differs(sample: &Sample, answer: &Value, more: &[&str], pointer: &str, value: Value) {
    holds(&sample.verify(answer, more));
    let mut other = answer.clone();
    *other.pointer_mut(pointer).unwrap() = value;
    fails(&sample.verify(&other, more), "");
}

/// The answer verifies, and fails once the object at `parent` gains this member.
fn gains(sample: &Sample, answer: &Value, more: &[&str], parent: &str, name: &str, value: Value) {
    holds(&sample.verify(answer, more));
    let mut other = answer.clone();
    other.pointer_mut(parent).unwrap()[name] = value;
    let ended = sample.verify(&other, more);
    assert_eq!(ended.code(), Some(1), "{parent}/{name}: {}", ended.stdout);
}

#[test]
fn every_answer_with_a_receipt_is_known_by_its_shape() {
    let sample = Sample::new();
    let jwks = ["--jwks", "jwks"];
    // An answer of the token endpoint.
    let token = json!({
        "access_token": sample.token, "token_type": "Bearer", "expires_in": LIFE,
        "scope": "orders:read", "authorization_details": details(), "task": TASK,
        "session_id": SESSION, "decision_id": DECISION, "receipt": sample.receipt,
    });
    let out = holds(&sample.verify(&token, &jwks));
    assert!(out.contains("a request that was granted"), "{out}");
    for (pointer, value) in [
        ("/access_token", json!("a.b.c")),
        ("/access_token", json!(7)),
        ("/token_type", json!("DPoP")),
        ("/expires_in", json!(LIFE + 1)),
        ("/task", json!(SESSION)),
        ("/session_id", json!(DECISION)),
        ("/decision_id", json!(SESSION)),
        ("/scope", json!("orders:read orders:write")),
        ("/authorization_details", json!([])),
        ("/receipt", receipt(&sample.log, &denial())),
    ] {
        differs(&sample, &token, &jwks, pointer, value);
    }
    // An answer that opened a task without a credential.
    let generation = format!("sha256:{}", "a".repeat(64));
    let leaf = json!({
        "v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z", "event": "task_opened",
        "decision": DECISION, "task": TASK, "task_type": "nightly-report",
        "workload": "dev:agent%3Areports", "attestor": "dev",
        "deadline": "2026-10-24T13:00:00Z", "generation": generation,
        "policies": ["reports-read"], "input": "b".repeat(64)
    });
    let mut opened = json!({
        "task": {
            "id": TASK, "state": "open", "type": "nightly-report",
            "deadline": "2026-10-24T13:00:00Z", "handle": "tph_x"
        },
        "decision": {
            "id": DECISION, "outcome": "permit", "policies": ["reports-read"],
            "generation": generation
        },
        "receipt": receipt(&sample.log, &leaf),
    });
    let out = holds(&sample.verify(&opened, &[]));
    assert!(out.contains("a request that opened a task"), "{out}");
    assert!(out.contains("decided: permit for dev:agent"), "{out}");
    for (pointer, value) in [
        ("/task/id", json!(SESSION)),
        ("/task/state", json!("ended")),
        ("/task/type", json!("another")),
        ("/task/deadline", json!("2027-10-24T13:00:00Z")),
        ("/task", json!(TASK)),
        ("/decision/id", json!(SESSION)),
        ("/decision/outcome", json!("deny")),
        ("/decision/policies", json!([])),
        ("/decision/generation", json!("sha256:00")),
        ("/receipt", sample.receipt.clone()),
    ] {
        differs(&sample, &opened, &[], pointer, value);
    }
    let observed = json!({"policies": [], "outcome_if_enforced": "deny"});
    gains(&sample, &opened, &[], "/decision", "observed", observed);
    gains(&sample, &opened, &[], "", "session", json!({"id": SESSION}));
    for (name, value) in [
        ("session_id", json!(SESSION)),
        ("decision_id", json!(DECISION)),
        ("scope", json!("orders:read")),
        ("authorization_details", details()),
        ("expires_in", json!(LIFE)),
        ("leaf", denial()),
    ] {
        gains(&sample, &opened, &[], "", name, value);
    }
    // The same contradictions with the leaf fail when the answer contains the leaf itself.
    opened["leaf"] = leaf;
    for (pointer, value) in [
        ("/task/id", json!(SESSION)),
        ("/task/deadline", json!("2027-10-24T13:00:00Z")),
        ("/decision/outcome", json!("deny")),
        ("/leaf/task_type", json!("another")),
    ] {
        differs(&sample, &opened, &[], pointer, value);
    }
}

#[test]
fn unknown_members_of_an_answer_are_told() {
    let sample = Sample::new();
    let jwks = ["--jwks", "jwks"];
    let mut issued = sample.issued();
    let out = holds(&sample.verify(&issued, &jwks));
    assert!(!out.contains("this version does not know"), "{out}");
    issued["issued_token_type"] = json!("urn:ietf:params:oauth:token-type:jwt");
    issued["approved_by"] = json!("somebody");
    issued["session"]["sealed"] = json!(true);
    issued["receipt"]["note\u{1b}[2J"] = json!("x");
    let out = holds(&sample.verify(&issued, &jwks));
    let note = out
        .lines()
        .find(|line| line.contains("this version does not know"));
    let note = note.unwrap_or_else(|| panic!("{out}"));
    for member in ["`approved_by`", "`session.sealed`", "`receipt.note"] {
        assert!(note.contains(member), "{note}");
    }
    assert!(!note.contains('\u{1b}'), "{note:?}");
}

#[test]
fn what_an_answer_gains_is_held_against_its_leaf() {
    let sample = Sample::new();
    let jwks = ["--jwks", "jwks"];
    let mut issued = sample.issued();
    issued["task"] = json!({"id": TASK});
    for (parent, name, value) in [
        ("/session", "state", json!("ended")),
        ("/session", "issued_at", json!("2026-10-24T12:00:01Z")),
        ("/session", "end_reason", json!("revoked")),
        ("/session", "ended_at", json!("2026-10-24T12:00:00Z")),
        ("/session", "confirmed_at", json!("2026-10-24T12:00:00Z")),
        ("/session", "revocation_progress", json!({})),
        (
            "/session",
            "revocability",
            json!({"class": "expiry_only", "open_sessions": "none", "expires_by": "broker"}),
        ),
        ("/task", "state", json!("ended")),
        ("/credential", "type", json!("aws_sts")),
        ("/credential", "token_type", json!("DPoP")),
        ("/credential", "expires_in", json!(LIFE + 1)),
        ("/credential", "expires_in", json!("300")),
        ("/credential", "expiration", json!("2026-10-26T03:33:21Z")),
        ("/credential", "expiration", json!("tomorrow")),
        ("", "token_type", json!("DPoP")),
        (
            "",
            "issued_token_type",
            json!("urn:ietf:params:oauth:token-type:id_token"),
        ),
        ("", "expires_in", json!(LIFE + 1)),
        ("", "session_id", json!(DECISION)),
        ("", "decision_id", json!(SESSION)),
        ("", "scope", json!("orders:write")),
        ("", "leaf", denial()),
        ("", "session", json!([])),
        ("", "decision", json!("deny")),
        ("", "task", json!(TASK)),
    ] {
        gains(&sample, &issued, &jwks, parent, name, value);
    }
    // A minter may shorten a credential, so a shorter lifetime than the decision's is valid.
    issued["credential"]["expires_in"] = json!(LIFE - 1);
    issued["credential"]["expiration"] = json!("2026-10-26T03:33:20Z");
    for (name, value) in [
        ("issued_at", json!("2026-10-24T12:00:00Z")),
        ("state", json!("active")),
    ] {
        issued["session"][name] = value;
    }
    issued["leaf"] = permit(&sample.signer.kid);
    holds(&sample.verify(&issued, &jwks));
    let token = json!({"access_token": sample.token, "task": TASK, "receipt": sample.receipt});
    for (name, value) in [
        ("decision", json!("deny")),
        ("session", json!([{"id": DECISION}])),
        ("leaf", denial()),
    ] {
        gains(&sample, &token, &jwks, "", name, value);
    }
    let refused = json!({
        "type": "urn:taskpass:problem:denied", "receipt": receipt(&sample.log, &denial()),
    });
    for (name, value) in [
        ("session", json!({})),
        ("session_id", json!(SESSION)),
        ("scope", json!("orders:read")),
        ("authorization_details", details()),
        ("task", json!(TASK)),
        ("leaf", permit("k")),
    ] {
        gains(&sample, &refused, &[], "", name, value);
    }
    // An answer that is disguised as a receipt, or as the broker's view of a decision.
    for part in [
        "credential",
        "access_token",
        "session",
        "task",
        "decision",
        "type",
    ] {
        gains(&sample, &sample.receipt, &[], "", part, json!("x"));
    }
    let leaf = permit(&sample.signer.kid);
    let shown = json!({"receipt": sample.receipt, "leaf": leaf});
    gains(&sample, &shown, &[], "", "scope", json!("orders:read"));
}

#[test]
fn what_stands_beside_a_receipt_is_held_against_its_leaf_wherever_it_stands() {
    let sample = Sample::new();
    let jwks = ["--jwks", "jwks"];
    // The broker's view of a decision, permit or refusal.
    for leaf in [permit(&sample.signer.kid), denial()] {
        let shown = json!({"receipt": receipt(&sample.log, &leaf), "leaf": leaf});
        let out = holds(&sample.verify(&shown, &[]));
        assert!(out.contains("as the broker shows it"), "{out}");
        differs(
            &sample,
            &shown,
            &[],
            "/leaf/outcome",
            json!("indeterminate"),
        );
        differs(&sample, &shown, &[], "/leaf", Value::Null);
    }
    let shown = json!({"receipt": receipt(&sample.log, &denial()), "leaf": permit("k")});
    fails(&sample.verify(&shown, &[]), "the answer's leaf is");
    // Members that do not belong in this kind of answer are still compared with the leaf.
    let observed = json!({"policies": [], "outcome_if_enforced": "permit"});
    let shown = json!({"receipt": receipt(&sample.log, &denial()), "leaf": denial()});
    for (name, part) in [
        ("decision", json!({"outcome": "permit"})),
        ("decision", json!({"observed": observed})),
        ("session", json!({"id": SESSION})),
    ] {
        let mut more = shown.clone();
        more[name] = part;
        fails(&sample.verify(&more, &[]), "");
    }
    let mut more = sample.issued();
    more["decision"]["observed"] = observed;
    fails(&sample.verify(&more, &jwks), "observed");
    // An answer that refuses.
    let refused = json!({
        "type": "urn:taskpass:problem:denied", "status": 403, "code": "not-permitted",
        "decision": {"id": DECISION, "outcome": "deny"},
        "receipt": receipt(&sample.log, &denial()),
    });
    differs(&sample, &refused, &[], "/code", json!("rate-limited"));
    let other = json!("urn:taskpass:problem:approval-required");
    differs(&sample, &refused, &[], "/type", other);
    differs(
        &sample,
        &refused,
        &[],
        "/decision/outcome",
        json!("indeterminate"),
    );
    differs(&sample, &refused, &[], "/decision", json!("x"));
    let mut both = refused.clone();
    both["credential"] = sample.issued()["credential"].clone();
    fails(
        &sample.verify(&both, &jwks),
        "granted and that it was refused",
    );
    let bare = json!({"receipt": sample.receipt});
    fails(
        &sample.verify(&bare, &[]),
        "a kind of answer that this version does not know",
    );
}

#[test]
fn a_credential_in_an_answer_is_looked_at_or_it_is_told_that_it_was_not() {
    let sample = Sample::new();
    let jwks = ["--jwks", "jwks"];
    let with = |credential: Value, leaf: &Value| {
        let mut answer = sample.issued();
        answer["credential"] = credential;
        answer["receipt"] = receipt(&sample.log, leaf);
        answer
    };
    let aws = json!({"type": "aws_sts", "access_key_id": "ASIA", "session_token": "x"});
    let mut role = permit(&sample.signer.kid);
    role["minter"] = json!("aws");
    let out = holds(&sample.verify(&with(aws.clone(), &role), &[]));
    assert!(out.contains("is not a JWT"), "{out}");
    assert!(!out.contains("no credential was given"), "{out}");
    fails(
        &sample.verify(&with(aws.clone(), &role), &jwks),
        "there is none",
    );
    // A credential of another kind in place of a JWT, and one that is not an object.
    let leaf = permit(&sample.signer.kid);
    fails(
        &sample.verify(&with(aws, &leaf), &[]),
        "the leaf permits a JWT",
    );
    for bad in [json!(7), Value::Null, json!(["a.b.c"])] {
        let credential = json!({"type": "jwt", "access_token": bad});
        fails(
            &sample.verify(&with(credential, &leaf), &[]),
            "is not a string",
        );
    }
    for bad in [json!("a.b.c"), Value::Null] {
        fails(
            &sample.verify(&with(bad, &leaf), &[]),
            "credential is not an object",
        );
    }
    // A duplicate member is refused at any depth.
    let good = sample.issued().to_string();
    let twice = |what: &str| good.replacen(what, &format!("{what}\"x\",{what}"), 1);
    for member in ["\"access_token\":", "\"id\":", "\"leaf_hash\":"] {
        assert_ne!(twice(member), good);
        fails(
            &sample.verify_bytes(twice(member), &jwks),
            "a member is named twice",
        );
    }
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

// ---- corrupted receipts -----------------------------------------------------------------------

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
fn an_answer_that_says_other_than_its_leaf_is_refused() {
    let sample = Sample::new();
    for (pointer, value) in [
        ("/decision/id", json!(SESSION)),
        ("/session/id", json!(DECISION)),
        ("/session/workload", json!("dev:mallory")),
        ("/session/resource", json!("other-api")),
        ("/session/authorization_details", json!([])),
        ("/session/expires_at", json!("2099-01-01T00:00:00Z")),
        ("/session/task_id", json!(SESSION)),
        ("/session/decision_id", json!(SESSION)),
        ("/session/parent_session_id", json!(SESSION)),
        ("/task/id", json!(SESSION)),
        ("/decision/outcome", json!("deny")),
        ("/decision/policies", json!([])),
        ("/decision/generation", json!("sha256:00")),
        ("/receipt", receipt(&sample.log, &denial())),
    ] {
        let mut issued = sample.issued();
        issued["task"] = json!({"id": TASK});
        let jwks = ["--jwks", "jwks"];
        holds(&sample.verify(&issued, &jwks));
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        issued.pointer_mut(parent).unwrap()[name] = value;
        let ended = sample.verify(&issued, &jwks);
        assert_eq!(ended.code(), Some(1), "{pointer}: {}", ended.stdout);
    }
    // A permit's receipt inside an answer that claims a refusal.
    let refusal = json!({
        "type": "urn:taskpass:problem:denied", "status": 403,
        "decision": {"id": DECISION}, "receipt": sample.receipt,
    });
    fails(&sample.verify(&refusal, &[]), "contradicts");
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

#[test]
fn a_wrong_command_line_is_not_a_verdict() {
    let vkey = Log::new(ORIGIN).vkey();
    let flipped = vkey.replacen("broker", "braker", 1);
    for bad in [
        vec!["ledger", "verify", "file"],
        vec!["ledger", "verify", "--key", &vkey],
        vec!["ledger", "verify", "file", "--key", "broker.test/log"],
        vec!["ledger", "verify", "file", "--key", &flipped],
    ] {
        assert_eq!(taskpass(&bad).code(), Some(2), "{bad:?}");
    }
    let missing = taskpass(&["ledger", "verify", "nowhere", "--key", &vkey]);
    assert_eq!(missing.code(), Some(3), "{}", missing.stderr);
}

// ---- the rest of the command line -------------------------------------------------------------

#[test]
fn every_command_has_help_with_an_example() {
    let leaves = [
        "serve",
        "migrate",
        "dev",
        "request",
        "task heartbeat",
        "task complete",
        "task abort",
        "task show",
        "task list",
        "sessions list",
        "sessions show",
        "sessions revoke",
        "revoke",
        "lift",
        "policy check",
        "policy test",
        "policy schema",
        "policy activate",
        "policy explain",
        "policy replay",
        "policy decisions",
        "policy unused",
        "ledger verify",
        "ledger receipt",
        "ledger export",
        "ledger consistency",
        "ledger new-origin",
        "ledger checkpoint",
        "ledger keys",
        "ledger watch",
        "ledger coverage",
        "ledger events",
        "workloads add",
        "workloads list",
        "workloads remove",
        "admins bind",
        "admins unbind",
        "admins list",
        "keys bootstrap",
        "keys sealing-key",
        "keys list",
        "keys rotate",
        "keys revoke",
        "keys reseal",
        "exec",
        "aws credential-process",
        "aws trust-policy",
        "openapi",
        "health",
        "completions",
    ];
    for command in leaves {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let ended = taskpass(&arguments);
        assert_eq!(ended.code(), Some(0), "{command}: {}", ended.stderr);
        let example = format!("taskpass {command}");
        let help = ended.stdout;
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(help.matches(&example).count() >= 2, "{command}: {help}");
    }
}

#[test]
fn the_help_says_which_commands_there_are() {
    insta::assert_snapshot!(taskpass(&["--help"]).stdout, @r"
    A just-in-time credential broker: one credential, for one task, decided before it exists

    Usage: taskpass [OPTIONS] <COMMAND>

    Commands:
      serve        Run the broker
      migrate      Migrate the PostgreSQL database to the current schema
      dev          Try it: a broker on this machine, with samples and a demonstration
      exec         Run a command with a credential that ends when the command ends
      aws          Get credentials for AWS's tools, and print the trust policies of roles
      request      Request a credential
      task         Heartbeat, complete, abort, show and list tasks
      sessions     List, show and revoke sessions
      revoke       End everything that a selector matches
      revocations  List and show revocations, and lift their blocks
      lift         Lift the block of a revocation
      policy       Check, test and activate policies
      ledger       Verify receipts and logs offline; export the log; show its head
      workloads    Register, list and remove workload keys
      admins       Bind identities to roles, and unbind them
      attest       Explain attestations
      keys         Create first secrets; list, rotate, revoke and reseal the broker's keys
      openapi      Print the description of the HTTP interface
      health       Check whether a broker is alive, or ready
      reference    Print the environment variables and exit codes
      completions  Print the completion script of a shell

    Options:
          --json     Print JSON: the result, or the error
      -h, --help     Print help
      -V, --version  Print version

    Try it: taskpass dev

    Exit codes: 0 success, 1 refused, 2 usage, 3 could not reach or establish.
    ");
}

/// Every command that has no subcommands.
fn commands() -> Vec<String> {
    fn collect(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        if !command.has_subcommands() {
            found.push(path.trim().to_owned());
        }
        for sub in command.get_subcommands() {
            collect(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }
    let mut found = Vec::new();
    let command = <taskpass::cli::Cli as clap::CommandFactory>::command();
    collect(&command, "", &mut found);
    found
}

/// The error of a command that ran with `--json`.
#[track_caller]
fn told_as_json(text: &str) -> Value {
    let mut told: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    told["error"].take()
}

#[test]
fn every_command_takes_json_and_tells_a_misuse_in_it() {
    let commands = commands();
    assert!(commands.len() > 45, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let help = taskpass(&[words.as_slice(), &["--help"]].concat()).stdout;
        assert!(help.contains("--json"), "{command}: {help}");
        let misused = taskpass(&[words.as_slice(), &["--json", "--no-such-option"]].concat());
        assert_eq!(misused.code(), Some(2), "{command}");
        let error = told_as_json(&misused.stdout);
        assert_eq!(
            (&error["kind"], &error["exit_code"]),
            (&json!("usage"), &json!(2))
        );
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains("--no-such-option"), "{command}: {detail}");
        assert_eq!(misused.stderr, "", "{command}");
    }
    let misused = taskpass(&["exec", "--no-such-option", "--", "true", "--json"]);
    assert!(
        misused.stdout.is_empty(),
        "the flag after `--` belongs to the child command: {misused:?}"
    );
}

#[test]
fn what_cannot_be_reached_is_told_as_json() {
    let unreachable = ["--url", "http://127.0.0.1:1", "--json"];
    let listed = Launch::taskpass(["sessions", "list"])
        .arguments(&unreachable)
        .env("TASKPASS_TOKEN", "tpa_x")
        .run();
    assert_eq!(listed.code(), Some(3), "{listed:?}");
    let error = told_as_json(&listed.stdout);
    assert_eq!(
        (&error["kind"], &error["exit_code"]),
        (&json!("unestablished"), &json!(3))
    );
    // The standard output of `exec` belongs to its child command.
    let asked = [
        "exec",
        "--resource",
        "r",
        "--action",
        "a",
        "--task-type",
        "t",
    ];
    let executed = Launch::taskpass(asked)
        .arguments(&unreachable)
        .arguments(&["--", "true"])
        .env("TASKPASS_TOKEN", "tpa_x")
        .env("TASKPASS_RETRY_SECONDS", "0")
        .run();
    assert_eq!(
        (executed.code(), executed.stdout.as_str()),
        (Some(3), ""),
        "{executed:?}"
    );
    assert_eq!(told_as_json(&executed.stderr)["kind"], "unestablished");
}

#[test]
fn usage_is_one_code_and_what_cannot_be_reached_another() {
    for bad in [
        vec![],
        vec!["no-such-command"],
        vec!["serve", "--no-such-option"],
        vec!["serve", "--config", "nowhere.toml"],
        vec!["sessions", "list"],
        vec!["sessions", "show", "not-an-id"],
        vec!["revoke", "everything", "--reason", "x"],
        vec!["revoke", "all"],
        vec!["health", "--url", "http://broker.example"],
        vec!["request", "--resource", "r", "--task-type", "t"],
        vec!["migrate", "--config", "nowhere.toml"],
    ] {
        let ended = taskpass(&bad);
        assert_eq!(ended.code(), Some(2), "{bad:?}: {}", ended.stderr);
        assert!(
            !ended.stderr.is_empty() && ended.stdout.is_empty(),
            "{bad:?}"
        );
    }
    let nobody = taskpass(&["health", "--url", "http://127.0.0.1:1/livez"]);
    assert_eq!(nobody.code(), Some(3), "{}", nobody.stderr);
    let nobody = Launch::taskpass(["sessions", "list", "--url", "http://127.0.0.1:1"])
        .env("TASKPASS_TOKEN", "tpa_x")
        .run();
    assert_eq!(nobody.code(), Some(3), "{}", nobody.stderr);
    assert!(!nobody.stderr.contains("tpa_x"));
}

#[test]
fn a_development_broker_does_not_start_where_it_must_not() {
    let outside = taskpass(&["dev", "--listen", "0.0.0.0:0"]);
    assert_eq!(outside.code(), Some(2), "{}", outside.stderr);
    for name in [
        "TASKPASS_CONFIG",
        "TASKPASS_DATABASE_URL",
        "TASKPASS_DATABASE_URL_FILE",
        "TASKPASS_SEALING_KEYS",
        "TASKPASS_SEALING_KEYS_FILE",
    ] {
        let beside = Launch::taskpass(["dev", "--listen", "127.0.0.1:0", "--no-story"])
            .env(name, "x")
            .run();
        assert_eq!(beside.code(), Some(2), "{name}: {}", beside.stderr);
        assert!(beside.stderr.contains(name), "{}", beside.stderr);
    }
}

#[test]
fn a_bootstrap_token_is_printed_with_its_digest_and_differs_each_time() {
    let make = || {
        let ended = taskpass(&["keys", "bootstrap", "--json"]);
        assert_eq!(ended.code(), Some(0));
        serde_json::from_str::<Value>(&ended.stdout).unwrap()
    };
    let (one, two) = (make(), make());
    let token = one["token"].as_str().unwrap();
    assert!(token.starts_with("tpa_") && token.len() == 47, "{token}");
    assert_eq!(
        one["bootstrap_token_sha256"],
        hex(&sha256(token.as_bytes()))
    );
    assert_ne!(one["token"], two["token"]);
    let plain = taskpass(&["keys", "bootstrap"]);
    assert_eq!(
        plain.stdout.lines().count(),
        1,
        "the token alone: {}",
        plain.stdout
    );
    let sealing = taskpass(&["keys", "sealing-key"]).stdout;
    assert!(sealing.starts_with("tpk1_"), "{sealing}");
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = taskpass(&["completions", shell]);
        assert_eq!(ended.code(), Some(0), "{shell}");
        assert!(ended.stdout.contains("taskpass"), "{shell}");
    }
    assert_eq!(taskpass(&["completions", "cmd"]).code(), Some(2));
}

// ---- policies ---------------------------------------------------------------------------------

const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");

#[test]
fn the_sample_policies_are_good_and_pass_their_tests() {
    let check = taskpass(&["policy", "check", POLICIES, "--dev"]);
    assert_eq!(check.code(), Some(0), "{}", check.stderr);
    assert!(check.stdout.starts_with("good: "), "{}", check.stdout);
    let test = taskpass(&["policy", "test", POLICIES, "--dev"]);
    assert_eq!(test.code(), Some(0), "{}{}", test.stdout, test.stderr);
    assert!(test.stdout.contains(" 0 failed"), "{}", test.stdout);
    let json = taskpass(&["policy", "test", POLICIES, "--dev", "--json"]);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["passed"], true);
}

#[test]
fn the_schema_beside_the_policies_is_the_one_that_the_samples_give() {
    let schema = taskpass(&["policy", "schema", POLICIES, "--dev"]);
    let stored = std::fs::read_to_string(format!("{POLICIES}/taskpass.cedarschema")).unwrap();
    assert_eq!(schema.stdout, stored);
}

#[test]
fn a_bad_policy_and_a_failed_test_are_refusals() {
    let good = std::fs::read_to_string(format!("{POLICIES}/orders.cedar")).unwrap();
    let admin = std::fs::read_to_string(format!("{POLICIES}/admin.cedar")).unwrap();
    let with = |orders: String, test: &str, command: &str, more: &[&str]| {
        let arguments = ["policy", command, "p", "--dev"];
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("p/orders.cedar", orders)
            .file("p/admin.cedar", admin.clone())
            .file("p/tests/one.toml", test)
            .run()
    };
    let case = |expect: &str| {
        format!(
            "[[task]]\nname = \"mallory\"\nattestor = \"dev\"\nidentity = \"dev:mallory\"\n\
             claims = {{ sub = \"mallory\" }}\ntask_type = \"fix-order\"\nexpect = \"{expect}\"\n"
        )
    };
    assert_eq!(
        with(good.clone(), &case("deny"), "test", &[]).code(),
        Some(0)
    );
    let failed = with(good.clone(), &case("permit"), "test", &[]);
    assert_eq!(failed.code(), Some(1), "{}", failed.stdout);
    assert!(failed.stdout.contains("FAIL"), "{}", failed.stdout);

    let misspelt = good.replacen("@max_ttl", "@max_tll", 1);
    let bad = with(misspelt.clone(), "", "check", &[]);
    assert_eq!(bad.code(), Some(1), "{}", bad.stderr);
    assert!(bad.stderr.contains("orders.cedar:"), "{}", bad.stderr);
    let bad = with(misspelt, "", "check", &["--json"]);
    assert_eq!(bad.code(), Some(1));
    let report: Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!(report["good"], false);
    assert!(!report["problems"].as_array().unwrap().is_empty());
}

#[test]
fn policies_are_checked_against_a_configuration_without_its_secrets() {
    let example = include_str!("../../taskpass.example.toml");
    let policy = "@id(\"x\") @description(\"d\") permit (principal == Workload::workload::\"workload:reports\", \
         action == Action::\"orders:read\", resource == Api::\"orders-api\");";
    let check = Launch::taskpass(["policy", "check"])
        .config(example)
        .file("policies/x.cedar", policy)
        .run();
    assert_eq!(check.code(), Some(0), "{}", check.stderr);
    let none = taskpass(&["policy", "check", "nowhere", "--dev"]);
    assert_eq!(none.code(), Some(1), "{}", none.stderr);
    let no_configuration = taskpass(&["policy", "check"]);
    assert_eq!(
        no_configuration.code(),
        Some(2),
        "{}",
        no_configuration.stderr
    );
}

#[test]
fn the_trust_policy_of_a_role_is_printed_and_one_that_trusts_too_many_is_told() {
    let example = include_str!("../../taskpass.example.toml");
    let run = |more: &[&str], policy: &str| {
        let arguments = ["aws", "trust-policy", "--resource", "reports-bucket"];
        Launch::taskpass(arguments.iter().chain(more))
            .config(example)
            .file("has.json", policy)
            .run()
    };
    for (more, subject) in [
        (vec![], "resource:reports-bucket"),
        (vec!["--revoker"], "revoker"),
    ] {
        let printed = run(&more, "");
        assert_eq!(printed.code(), Some(0), "{}", printed.stderr);
        assert!(
            printed.stdout.contains(&format!("\"{subject}\"")),
            "{}",
            printed.stdout
        );
        let judged = run(
            &[&more[..], &["--check", "has.json"]].concat(),
            &printed.stdout,
        );
        assert_eq!(judged.code(), Some(0), "{}", judged.stderr);
        let wider = printed.stdout.replace("StringEquals", "StringLike");
        let judged = run(&[&more[..], &["--check", "has.json"]].concat(), &wider);
        assert_eq!(judged.code(), Some(1), "{}", judged.stdout);
        assert!(
            judged.stderr.contains("no StringEquals on"),
            "{}",
            judged.stderr
        );
        // The trust policy may let another principal assume the role as well.
        let root = "arn:aws:iam::123456789012:root";
        let mut policy: Value = serde_json::from_str(&printed.stdout).unwrap();
        let other =
            json!({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "sts:AssumeRole"});
        policy["Statement"].as_array_mut().unwrap().push(other);
        let check = [&more[..], &["--check", "has.json"]].concat();
        let judged = run(&check, &policy.to_string());
        assert_eq!(judged.code(), Some(1), "{}", judged.stdout);
        assert!(judged.stderr.contains(root), "{}", judged.stderr);
        let judged = run(
            &[&check[..], &["--expect", root]].concat(),
            &policy.to_string(),
        );
        assert_eq!(judged.code(), Some(0), "{}", judged.stderr);
    }
    for (more, policy) in [
        (vec!["--check", "has.json"], "{"),
        (vec!["--check", "nowhere.json"], ""),
        (vec!["--resource", "orders-api"], ""),
    ] {
        assert_eq!(run(&more, policy).code(), Some(2), "{more:?}");
    }
}
