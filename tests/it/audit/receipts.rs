//! A receipt with a later checkpoint, a witness or a use: which keys and times it proves.

use super::*;

#[test]
fn a_retired_keys_receipt_holds_only_through_a_later_checkpoint() {
    let grown = Grown::new();
    let receipt = grown.old_receipt().to_string();
    fails(
        &grown.verify(&receipt, &[]),
        "no known key has signed the note",
    );
    // The later checkpoint alone proves nothing about the earlier tree.
    fails(
        &grown.verify(&receipt, &["--checkpoint", "newest"]),
        "no known key has signed",
    );
    let both = ["--checkpoint", "newest", "--consistency", "proof"];
    let ended = grown.verify(&receipt, &both);
    holds(
        &ended,
        "logged: yes, as leaf 4 of 9 in broker.test/log, by a checkpoint that the one of 21 leaves continues",
    );
    assert!(
        ended
            .stdout
            .contains("it holds only through the later checkpoint"),
        "{}",
        ended.stdout
    );
    // The same tree head, signed by the pinned key, needs no consistency proof.
    holds(
        &grown.verify(&receipt, &["--checkpoint", "old"]),
        "logged: yes",
    );
    // The holder of the retired key puts the leaf into a tree of its own.
    let mut forged = Grown::new();
    forged.current = Log::new(ORIGIN);
    let forged = forged.old_receipt().to_string();
    fails(
        &grown.verify(&forged, &both),
        "THE LOG WAS FORKED OR REWOUND, or a proof is wrong",
    );
    fails(
        &grown.verify(&forged, &["--checkpoint", "old"]),
        "two different trees of 9 leaves",
    );
}

#[test]
fn an_earlier_checkpoint_vouches_for_nothing_that_came_after_it() {
    // The holder of the retired key appends leaves of its own after the tree that the pinned key
    // signed.
    let mut forged = Grown::new();
    let another = "0198b2a0-0000-7000-8000-00000000ffff";
    let leaf = String::from_utf8(forged.bodies[PERMIT].clone()).unwrap();
    forged.bodies[OLD] = leaf.replace(SESSION, another).into_bytes();
    forged.leaves[OLD] = leaf_hash(&forged.bodies[OLD]);
    let head = forged.retired.sign(&forged.text(NEW));
    let receipt = forged.receipt_of(OLD, NEW, &head).to_string();
    let log = forged.file(|lines| lines[0]["checkpoint"] = json!(head));
    let empty = format!("{ORIGIN}\n0\n{}\n", STANDARD.encode(sha256(b"")));
    for file in [&receipt, &log] {
        for more in [
            &["--checkpoint", "old", "--consistency", "proof"][..],
            &["--checkpoint", "empty", "--consistency", "from-nothing"],
            &[
                "--published",
                "2026-10-24T12:00:00Z=old",
                "--consistency",
                "proof",
            ],
        ] {
            let ended = forged
                .launch(file, more)
                .file("empty", forged.current.sign(&empty))
                .file(
                    "from-nothing",
                    json!({"from": 0, "to": NEW, "consistency_proof": []}).to_string(),
                )
                .run();
            fails(&ended, "no known key has signed");
            assert!(ended.stdout.contains("logged: DOES NOT HOLD: no known key"));
        }
    }
    // A checkpoint of the same size, signed by the pinned key, covers the whole log.
    holds(
        &forged.verify(&log, &["--checkpoint", "newest"]),
        "it holds only through the later checkpoint",
    );
}

#[test]
fn nothing_is_before_the_use_of_what_was_never_permitted_or_not_then() {
    let grown = Grown::new();
    let key = grown.witness.witness_key();
    let used = |index: usize, used: &str| {
        let receipt = grown.receipt_of(index, OLD, &grown.witnessed(WITNESSED));
        let more = ["--witness", &key, "--used-at", used];
        grown.verify(&receipt.to_string(), &more)
    };
    for index in [0, 1, KEY, DENIAL, PERMIT + 1] {
        fails(
            &used(index, "2026-10-24T12:11:00Z"),
            "the leaf permits none",
        );
    }
    holds(&used(PERMIT, "2026-10-26T03:33:20Z"), "before use: yes");
    fails(
        &used(PERMIT, "2026-10-26T03:33:20.000001Z"),
        "the leaf permits it until 2026-10-26T03:33:20Z",
    );
    // The times in the credential's own claims do not change the verdict.
    let log = grown.file(|_| ());
    let claimed = |used: &str, claims: &Value| {
        let more = [
            "--credential-file",
            "other",
            "--checkpoint",
            "witnessed",
            "--witness",
            &key,
            "--used-at",
            used,
        ];
        let token = token(&grown.signer, claims);
        grown.launch(&log, &more).file("other", token).run()
    };
    let mut claims = grown.claims();
    claims["iat"] = json!(WITNESSED + 60);
    claims["exp"] = json!(WITNESSED + 120);
    holds(&claimed("2026-10-24T12:11:00Z", &claims), "before use: yes");
    fails(
        &claimed("2026-10-24T12:10:59Z", &claims),
        "before the credential's iat",
    );
    fails(
        &claimed("2026-10-24T12:12:00Z", &claims),
        "the credential's exp is 2026-10-24T12:12:00Z",
    );
}

#[test]
fn a_credential_of_another_issuer_or_with_another_place_in_the_status_lists_is_refused() {
    let mut grown = Grown::new();
    let with = ["--credential-file", "other", "--jwks", "jwks"];
    let verified = |grown: &Grown, change: &dyn Fn(&mut Value)| {
        let mut claims = grown.claims();
        change(&mut claims);
        let token = token(&grown.signer, &claims);
        let receipt = grown.receipt(NEW, &grown.current.sign(&grown.text(NEW)));
        let files = [receipt.to_string(), grown.file(|_| ())];
        files.map(|file| {
            grown
                .launch(&file, &with)
                .file("other", token.clone())
                .run()
        })
    };
    let place = |list: u64, idx: u64| json!({"status_list": {"idx": idx, "uri": format!("https://broker.test/status/{list}")}});
    for ended in verified(&grown, &|_| ()) {
        holds(&ended, "decided: permit");
    }
    for ended in verified(&grown, &|claims| {
        claims["iss"] = json!("https://other.test");
    }) {
        fails(&ended, "the credential's iss is \"https://other.test\"");
    }
    let iss = |claims: &mut Value| drop(claims.as_object_mut().unwrap().remove("iss"));
    for ended in verified(&grown, &iss) {
        fails(&ended, "the credential's iss is null");
    }
    for ended in verified(&grown, &|claims| claims["status"] = place(0, 4)) {
        fails(&ended, "by the leaf it must be null");
    }
    // The session has an entry in a status list; the log continues an earlier log, so its first
    // list is 16.
    let leaf = String::from_utf8(grown.bodies[PERMIT].clone()).unwrap();
    let leaf = leaf.replacen('{', "{\"first_status_list\":16,", 1);
    grown.bodies[PERMIT] = leaf.into_bytes();
    grown.leaves[PERMIT] = leaf_hash(&grown.bodies[PERMIT]);
    for ended in verified(&grown, &|claims| claims["status"] = place(16, 4)) {
        holds(&ended, "decided: permit");
    }
    for other in [place(16, 5), place(17, 4), place(0, 4), Value::Null] {
        for ended in verified(&grown, &|claims| claims["status"] = other.clone()) {
            fails(&ended, "the credential's status is");
        }
    }
}

#[test]
fn a_witness_shows_that_it_was_logged_before_it_was_used_and_by_whose_clock() {
    let grown = Grown::new();
    let key = grown.witness.witness_key();
    let receipt = grown.receipt(OLD, &grown.witnessed(WITNESSED)).to_string();
    let with = |used: &str| grown.verify(&receipt, &["--witness", &key, "--used-at", used]);
    let ended = with("2026-10-24T14:10:01+02:00");
    holds(
        &ended,
        "logged before use: yes, logged by 2026-10-24T12:10:01Z at the latest, according to the clock of the witness witness.test/w",
    );
    assert!(
        ended.stdout.contains("used at 2026-10-24T12:10:01Z"),
        "{}",
        ended.stdout
    );
    // A witness's time has a resolution of one second: the cosignature may be from any instant in
    // it.
    for used in [
        "2026-10-24T12:09:59Z",
        "2026-10-24T12:10:00Z",
        "2026-10-24T12:10:00.999999Z",
    ] {
        fails(&with(used), "which is after the use");
    }
    // A witness time or a use time before the decision proves nothing.
    let early = grown
        .receipt(OLD, &grown.witnessed(1_000_000_000))
        .to_string();
    for used in ["2002-01-01T00:00:00Z", "2026-10-24T14:10:00+02:00"] {
        let ended = grown.verify(&early, &["--witness", &key, "--used-at", used]);
        fails(&ended, "before its decision");
    }
    // A witness clock that is only a little behind is no contradiction, and proves nothing either.
    for behind in [2, 240] {
        let decided = WITNESSED - 600;
        let receipt = grown.receipt(OLD, &grown.witnessed(decided - behind));
        let receipt = receipt.to_string();
        let with = |used: &str| grown.verify(&receipt, &["--witness", &key, "--used-at", used]);
        fails(&with("2026-10-24T12:10:00Z"), "a clock that lags");
        fails(&with("2026-10-24T11:59:59Z"), "before its decision");
        let untimed = grown.verify(&receipt, &["--witness", &key]);
        holds(&untimed, "logged before use: not shown");
    }
    // Without the time of the use, the output reports the witness's time and claims nothing.
    let open = grown.verify(&receipt, &["--witness", &key]);
    holds(
        &open,
        "logged before use: not shown: the time of use was not given; logged by 2026-10-24T12:10:01Z",
    );
    // A witness whose key is not pinned proves nothing.
    let used = ["--checkpoint", "old", "--used-at", "2026-10-24T13:00:00Z"];
    fails(
        &grown.verify(&receipt, &used),
        "no witnessed or published checkpoint shows",
    );
    let naive = grown.verify(&receipt, &["--used-at", "2026-10-24T13:00:00"]);
    assert_eq!(
        naive.code(),
        Some(2),
        "a time without an offset: {}",
        naive.stdout
    );
}

#[test]
fn a_published_checkpoint_shows_the_same_by_the_publishers_clock() {
    let grown = Grown::new();
    let receipt = grown.old_receipt().to_string();
    let with = |published: &str, used: &str| {
        grown.verify(
            &receipt,
            &[
                "--published",
                published,
                "--consistency",
                "proof",
                "--used-at",
                used,
                "--json",
            ],
        )
    };
    let ended = with("2026-10-24T12:20:00Z=newest", "2026-10-24T12:20:01Z");
    let verdict: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code(), Some(0), "{verdict:#}");
    assert_eq!(verdict["logged_before_use"]["verdict"], "holds");
    assert_eq!(verdict["logged"]["verdict"], "holds");
    assert!(
        verdict["logged_before_use"]["detail"]
            .as_str()
            .unwrap()
            .contains("the keeper of newest")
    );
    let late = with("2026-10-24T12:20:02Z=newest", "2026-10-24T12:20:01Z");
    let verdict: Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!(
        (late.code(), &verdict["logged_before_use"]["verdict"]),
        (Some(1), &json!("fails"))
    );
    // A checkpoint from before the leaf proves nothing about the leaf, however early it is.
    let before = grown.current.sign(&grown.text(PERMIT));
    let key = grown.current.vkey();
    let hashes = consistency(PERMIT, &grown.leaves[..OLD]);
    let hashes: Vec<String> = hashes.iter().map(|hash| STANDARD.encode(hash)).collect();
    let join = json!({"from": PERMIT, "to": OLD, "consistency_proof": hashes});
    let ended = Launch::taskpass([
        "ledger",
        "verify",
        "file",
        "--key",
        &key,
        "--published",
        "2026-10-01T00:00:00Z=before",
        "--consistency",
        "join",
        "--used-at",
        "2026-10-24T13:00:00Z",
    ])
    .file(
        "file",
        grown
            .receipt(OLD, &grown.current.sign(&grown.text(OLD)))
            .to_string(),
    )
    .file("before", before)
    .file("join", join.to_string())
    .run();
    fails(&ended, "no witnessed or published checkpoint shows");
}
