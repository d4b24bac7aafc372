//! A whole exported log: complete, in order, and with the decision of each credential.

use super::*;
use crate::support::keys::sign_jwt;

#[test]
fn a_whole_log_itself_names_the_key_of_its_credentials() {
    let grown = Grown::new();
    let log = grown.file(|_| ());
    let with = ["--credential-file", "token"];
    holds(
        &grown.verify(&log, &with),
        "was checked with the key that leaf 2 of the log names",
    );
    let stranger = Key::generate(Algorithm::Es256);
    let forged = |more: &[&str]| {
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": grown.signer.kid});
        let token = sign_jwt(&header, &grown.claims(), &stranger);
        grown
            .launch(&log, &[&with, more].concat())
            .file("token", token)
            .run()
    };
    for more in [&[][..], &["--unchecked-signature"], &["--jwks", "jwks"]] {
        fails(&forged(more), "the credential's signature does not hold");
    }
    // If that leaf was pruned, comes after the decision, or names a key for another purpose, the
    // credential's key is not shown, as with a receipt.
    let pruned = grown.file(|lines| {
        for index in 0..=KEY {
            let hash = STANDARD.encode(&grown.leaves[index]);
            lines[index + 1] = json!({"index": index, "hash": hash});
        }
    });
    let mut late = Grown::new();
    late.bodies.swap(KEY, OLD);
    late.leaves.swap(KEY, OLD);
    let mut other = Grown::new();
    let leaf = String::from_utf8(other.bodies[KEY].clone()).unwrap();
    other.bodies[KEY] = leaf.replace("access_token", "federation").into_bytes();
    other.leaves[KEY] = leaf_hash(&other.bodies[KEY]);
    for (grown, log) in [
        (&grown, pruned),
        (&late, late.file(|_| ())),
        (&other, other.file(|_| ())),
    ] {
        let ended = grown.verify(&log, &with);
        assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
        let said = &ended.stdout;
        assert!(
            said.contains("NOT SHOWN: the credential's signature"),
            "{said}"
        );
        assert!(said.ends_with("not everything is shown\n"), "{said}");
        let jwks = [&with[..], &["--jwks", "jwks"]].concat();
        holds(&grown.verify(&log, &jwks), "decided: permit");
        let unchecked = [&with[..], &["--unchecked-signature"]].concat();
        holds(&grown.verify(&log, &unchecked), "not checked, as requested");
    }
}

#[test]
fn a_log_whose_heads_were_not_always_the_brokers_own_does_not_name_the_key_of_its_credentials() {
    // An attacker with write access to the log's tables could have added that leaf under the
    // broker's checkpoint.
    let mut grown = Grown::new();
    let genesis = String::from_utf8(grown.bodies[0].clone()).unwrap();
    let genesis = genesis.replace(",\"heads_authenticated\":true", "");
    let genesis = genesis.replace("\"heads_authenticated\":true,", "");
    assert!(!genesis.contains("heads"), "{genesis}");
    grown.bodies[0] = genesis.into_bytes();
    grown.leaves[0] = leaf_hash(&grown.bodies[0]);
    let log = grown.file(|_| ());
    let with = ["--credential-file", "token"];
    let ended = grown.verify(&log, &with);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
    let said = &ended.stdout;
    assert!(said.contains("decided: not shown"), "{said}");
    assert!(said.contains("another party could have written"), "{said}");
    assert!(said.ends_with("not everything is shown\n"), "{said}");
    let jwks = [&with[..], &["--jwks", "jwks"]].concat();
    holds(&grown.verify(&log, &jwks), "decided: permit");
}

#[test]
fn a_whole_log_holds_and_finds_the_decision_of_a_credential() {
    let grown = Grown::new();
    let whole = grown.file(|_| ());
    let ended = grown.verify(&whole, &[]);
    holds(&ended, "file: a whole log\n");
    holds(
        &ended,
        "logged: yes, all 21 leaves of broker.test/log, in order",
    );
    holds(&ended, "1 × permit");
    let key = grown.witness.witness_key();
    let all = [
        "--credential-file",
        "token",
        "--checkpoint",
        "witnessed",
        "--witness",
        &key,
        "--used-at",
        "2026-10-24T12:10:01Z",
    ];
    let ended = grown.verify(&whole, &all);
    holds(&ended, "decided: permit for dev:agent%3Areports");
    holds(&ended, "logged before use: yes");
    // Pruned bodies are reported, and the log still verifies.
    let without = |bodies: std::ops::Range<usize>| {
        grown.file(|lines| {
            for index in bodies {
                let hash = STANDARD.encode(&grown.leaves[index]);
                lines[index + 1] = json!({"index": index, "hash": hash});
            }
        })
    };
    holds(&grown.verify(&without(0..3), &[]), "3 bodies were pruned");
    fails(
        &grown.verify(&without(0..PERMIT + 1), &["--credential-file", "token"]),
        "or its body was pruned",
    );
    // Pruning removes bodies only from the start, so a body that is missing later was left out.
    for index in [1, PERMIT, NEW - 1] {
        fails(
            &grown.verify(&without(index..index + 1), &[]),
            "it was removed, not pruned",
        );
    }
}

#[test]
fn a_log_that_was_cut_reordered_changed_or_forked_does_not_pass() {
    let grown = Grown::new();
    let cases: [(&str, &str, Spoil<'_>); 8] = [
        (
            "cut",
            "the file has 20 entries, its checkpoint has 21",
            &|lines| {
                lines.pop();
            },
        ),
        ("longer", "its checkpoint has 21", &|lines| {
            let mut more = lines[5].clone();
            more["index"] = json!(NEW);
            lines.push(more);
        }),
        ("a gap", "the log is reordered or incomplete", &|lines| {
            lines.remove(7);
        }),
        ("swapped", "the log is reordered or incomplete", &|lines| {
            lines.swap(6, 7);
        }),
        ("twice", "the log is reordered or incomplete", &|lines| {
            let again = lines[5].clone();
            lines.insert(5, again);
        }),
        ("swapped and renumbered", "the log signed", &|lines| {
            lines.swap(6, 7);
            lines[6]["index"] = json!(5);
            lines[7]["index"] = json!(6);
        }),
        ("a changed leaf", "the log signed", &|lines| {
            lines[9]["leaf"] = json!(STANDARD.encode("{}"));
        }),
        ("another's signature", "no known key has signed", &|lines| {
            lines[0]["checkpoint"] = json!(grown.retired.sign(&grown.text(NEW)));
        }),
    ];
    for (name, why, spoil) in cases {
        let ended = grown.verify(&grown.file(spoil), &[]);
        assert!(ended.stdout.contains(why), "{name}: {}", ended.stdout);
        fails(&ended, "FAILED: ");
    }
    // The order was signed but contradicts the rules of the log.
    let mut disordered = Grown::new();
    disordered.bodies.swap(PERMIT, PERMIT + 1);
    disordered.leaves.swap(PERMIT, PERMIT + 1);
    let file = disordered.file(|_| ());
    fails(
        &disordered.verify(&file, &[]),
        "leaf 4 comes before its session's decision",
    );
    // A body that is missing at the start excuses no contradiction that the log itself shows.
    let pruned = disordered.file(|lines| {
        let hash = STANDARD.encode(&disordered.leaves[0]);
        lines[1] = json!({"index": 0, "hash": hash});
    });
    let ended = disordered.verify(&pruned, &[]);
    fails(&ended, "leaf 5 permits a session that had ended before");
    assert!(
        !ended.stdout.contains("DOES NOT HOLD: yes"),
        "{}",
        ended.stdout
    );
    let mut reopened = Grown::new();
    reopened.bodies[PERMIT + 1] = reopened.bodies[DENIAL].clone();
    reopened.leaves[PERMIT + 1] = reopened.leaves[DENIAL].clone();
    reopened.bodies.swap(PERMIT, PERMIT + 2);
    reopened.leaves.swap(PERMIT, PERMIT + 2);
    let pruned = reopened.file(|lines| {
        let hash = STANDARD.encode(&reopened.leaves[0]);
        lines[1] = json!({"index": 0, "hash": hash});
    });
    fails(
        &reopened.verify(&pruned, &[]),
        "leaf 6 belongs to a task that had ended before",
    );
    // Another party was shown a different checkpoint of the log.
    let mut other = Grown::new();
    other.leaves[3] = leaf_hash(b"another");
    let key = grown.current.vkey();
    let ended = Launch::taskpass([
        "ledger",
        "verify",
        "file",
        "--key",
        &key,
        "--checkpoint",
        "shown",
    ])
    .file("file", grown.file(|_| ()))
    .file("shown", grown.current.sign(&other.text(OLD)))
    .run();
    fails(&ended, "THE LOG WAS FORKED OR REWOUND");
}

#[test]
fn a_log_that_was_cut_with_its_checkpoint_is_refuted_by_a_later_one() {
    let grown = Grown::new();
    let short = grown.file(|lines| {
        lines[0]["checkpoint"] = json!(grown.current.sign(&grown.text(OLD)));
        lines.truncate(OLD + 1);
    });
    holds(&grown.verify(&short, &[]), "all 9 leaves");
    for more in [
        &["--checkpoint", "newest"][..],
        &["--checkpoint", "newest", "--consistency", "proof"],
        &["--published", "2026-10-24T12:00:00Z=newest"],
    ] {
        fails(
            &grown.verify(&short, more),
            "THE LOG WAS CUT: a given checkpoint was signed over 21 leaves",
        );
    }
    // The checkpoint of another pinned log says nothing about the size of this one.
    let other = Log::new("other.test/log");
    let larger = format!("other.test/log\n99\n{}\n", STANDARD.encode([7; 32]));
    let ended = grown
        .launch(&short, &["--key", &other.vkey(), "--checkpoint", "other"])
        .file("other", other.sign(&larger))
        .run();
    fails(&ended, "a checkpoint of the log other.test/log was given");
    assert!(!ended.stdout.contains("WAS CUT"), "{}", ended.stdout);
    // A later checkpoint alone says nothing about a receipt's tree, whether its key is pinned or
    // not.
    let receipt = grown.receipt(OLD, &grown.current.sign(&grown.text(OLD)));
    let receipt = receipt.to_string();
    let unjoined = ["--checkpoint", "newest"];
    fails(&grown.verify(&receipt, &unjoined), "no proof joins");
    let joined = ["--checkpoint", "newest", "--consistency", "proof"];
    holds(&grown.verify(&receipt, &joined), "logged: yes");
}

#[test]
fn what_is_asked_of_a_credential_that_is_not_there_is_not_passed_over() {
    let grown = Grown::new();
    let log = grown.file(|_| ());
    let receipt = grown.old_receipt().to_string();
    let used = ["--used-at", "2020-01-01T00:00:00Z"];
    fails(&grown.verify(&log, &used), "give it with --credential-file");
    let both = ["--checkpoint", "newest", "--consistency", "proof"];
    let jwks = [&both[..], &["--jwks", "proof"]].concat();
    for file in [&log, &receipt] {
        fails(&grown.verify(file, &jwks), "give it with --credential-file");
    }
}

#[test]
fn nothing_that_is_no_log_is_taken_for_one() {
    let grown = Grown::new();
    let whole = grown.file(|_| ());
    let head = whole.lines().next().unwrap();
    let endless = format!("{head}\n{}", " ".repeat(2_000_000));
    fails(
        &grown.verify(&endless, &[]),
        "line 2 is longer than any entry",
    );
    for line in [
        "\u{0}",
        "[]",
        "{\"index\":0}",
        "{\"index\":0,\"leaf\":\"\",\"hash\":\"\"}",
        "{\"index\":0,\"index\":0,\"leaf\":\"\"}",
    ] {
        fails(
            &grown.verify(&format!("{head}\n{line}\n"), &[]),
            "line 2 is not an entry",
        );
    }
    let long = format!("{{\"leaf\": \"{}\"}}", "A".repeat(2_000_000));
    fails(&grown.verify(&long, &[]), "bytes and is not a log");
    fails(
        &grown.verify("{\"format\":\"taskpass-log@v1\"", &[]),
        "does not begin with a log header",
    );
}

#[test]
fn a_log_is_known_for_one_however_it_is_spaced_and_however_slowly_it_comes() {
    let grown = Grown::new();
    let log = grown.file(|_| ());
    let spaced = log.replacen("{\"format\":", "{ \"format\" : ", 1);
    holds(&grown.verify(&spaced, &[]), "file: a whole log\n");
    let script = format!(
        "(head -c 9 file; sleep 0.3; tail -c +10 file) | {} ledger verify - --key '{}'",
        env!("CARGO_BIN_EXE_taskpass"),
        grown.current.vkey()
    );
    let piped = Launch::program("/bin/bash", ["-c", &script]).file("file", log);
    holds(&piped.run(), "file: a whole log\n");
}

#[test]
fn the_exit_code_is_the_verdict_whoever_has_read_why() {
    let grown = Grown::new();
    let log = grown.file(|_| ());
    for more in ["", "--json"] {
        for (key, code) in [(&grown.current, 0), (&grown.retired, 1)] {
            // The reader of the output closes the pipe before the command writes anything.
            let script = format!(
                "(sleep 0.5; cat file) | {} ledger verify - --key '{}' {more} | exec true; \
                 exit ${{PIPESTATUS[1]}}",
                env!("CARGO_BIN_EXE_taskpass"),
                key.vkey()
            );
            let ended = Launch::program("/bin/bash", ["-c", &script]).file("file", log.as_str());
            assert_eq!(ended.run().code(), Some(code), "{more}");
        }
    }
}
