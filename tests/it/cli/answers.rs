//! Answers of the broker that contain a receipt: every other member must agree with the leaf.

use super::*;

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
