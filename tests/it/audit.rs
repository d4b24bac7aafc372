//! An auditor with a pinned key verifies offline that a decision was logged (even if the key of
//! that time is retired), that it was logged before the credential was used and by which clock, and
//! that a log is complete. The logs here are made without the product's code; each test then
//! corrupts one part.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, body};
use crate::support::http::Client;
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::log::{
    Log, ORIGIN, SESSION, TASK, claims, consistency, denial, inclusion, leaf_hash, permit, root,
    sha256, token,
};
use crate::support::process::{Ended, Launch};

/// 2026-10-24T12:10:00Z, in Unix seconds.
const WITNESSED: u64 = 1_792_843_800;
const KEY: usize = 2;
const DENIAL: usize = 3;
const PERMIT: usize = 4;
const OLD: usize = 9;
const NEW: usize = 21;

/// A change that corrupts the lines of a log file.
type Spoil<'a> = &'a dyn Fn(&mut Vec<Value>);

/// A log with two sizes, [`OLD`] and [`NEW`], whose log key was replaced in between.
struct Grown {
    retired: Log,
    current: Log,
    witness: Log,
    signer: Key,
    bodies: Vec<Vec<u8>>,
    leaves: Vec<Vec<u8>>,
}

impl Grown {
    fn new() -> Self {
        let signer = Key::generate(Algorithm::Es256);
        let leaf = |event: Value| {
            let mut leaf = json!({"v": 2, "origin": ORIGIN, "at": "2026-10-24T12:00:00Z"});
            leaf.as_object_mut()
                .unwrap()
                .extend(event.as_object().unwrap().clone());
            leaf
        };
        let generation = format!("sha256:{}", "a".repeat(64));
        let mut leaves = vec![
            leaf(json!({"event": "genesis", "vkey": "k", "heads_authenticated": true})),
            leaf(json!({
                "event": "activated", "generation": generation,
                "endpoints": format!("sha256:{}", "b".repeat(64)), "by": "admin"
            })),
            leaf(json!({
                "event": "key", "purpose": "access_token", "kid": signer.kid, "change": "added",
                "public_key": signer.jwk().to_string(), "by": "broker"
            })),
            denial(),
            permit(&signer.kid),
            leaf(
                json!({"event": "session_ended", "session": SESSION, "reason": "revoked", "by": "x"}),
            ),
            leaf(json!({"event": "task_ended", "task": TASK, "state": "completed", "by": "x"})),
        ];
        leaves.resize(NEW, denial());
        let bodies: Vec<Vec<u8>> = leaves
            .iter()
            .map(|leaf| serde_json::to_vec(leaf).unwrap())
            .collect();
        Self {
            retired: Log::new(ORIGIN),
            current: Log::new(ORIGIN),
            witness: Log::new("witness.test/w"),
            signer,
            leaves: bodies.iter().map(|body| leaf_hash(body)).collect(),
            bodies,
        }
    }

    fn text(&self, size: usize) -> String {
        format!(
            "{ORIGIN}\n{size}\n{}\n",
            STANDARD.encode(root(&self.leaves[..size]))
        )
    }

    fn receipt(&self, size: usize, checkpoint: &str) -> Value {
        self.receipt_of(PERMIT, size, checkpoint)
    }

    fn receipt_of(&self, index: usize, size: usize, checkpoint: &str) -> Value {
        let leaves = &self.leaves[..size];
        let proof = inclusion(index, leaves);
        json!({
            "leaf": STANDARD.encode(&self.bodies[index]),
            "leaf_hash": STANDARD.encode(&leaves[index]),
            "index": index,
            "tree_size": size,
            "inclusion_proof": proof.iter().map(|h| STANDARD.encode(h)).collect::<Vec<_>>(),
            "checkpoint": checkpoint,
        })
    }

    /// The receipt of the decision, signed with the key that is now retired.
    fn old_receipt(&self) -> Value {
        self.receipt(OLD, &self.retired.sign(&self.text(OLD)))
    }

    fn proof(&self) -> Value {
        let hashes = consistency(OLD, &self.leaves);
        let hashes: Vec<String> = hashes.iter().map(|hash| STANDARD.encode(hash)).collect();
        json!({"from": OLD, "to": NEW, "consistency_proof": hashes})
    }

    /// The credential, valid from the time of the decision.
    fn token(&self) -> String {
        token(&self.signer, &self.claims())
    }

    fn claims(&self) -> Value {
        let mut claims = claims(&self.old_receipt());
        claims["iat"] = json!(WITNESSED - 600);
        claims
    }

    /// The exported log, after `change` has edited its lines.
    fn file(&self, change: impl FnOnce(&mut Vec<Value>)) -> String {
        let mut lines = vec![json!({
            "format": "taskpass-log@v1", "checkpoint": self.current.sign(&self.text(NEW))
        })];
        lines.extend(
            (0..).zip(&self.bodies).map(
                |(index, body): (u64, _)| json!({"index": index, "leaf": STANDARD.encode(body)}),
            ),
        );
        change(&mut lines);
        // The product writes `format` before `checkpoint`.
        let head = format!(
            "{{\"format\":{},\"checkpoint\":{}}}\n",
            lines[0]["format"], lines[0]["checkpoint"]
        );
        let rest: Vec<String> = lines[1..].iter().map(|line| format!("{line}\n")).collect();
        head + &rest.concat()
    }

    fn verify(&self, file: &str, more: &[&str]) -> Ended {
        self.launch(file, more).run()
    }

    fn launch(&self, file: &str, more: &[&str]) -> Launch {
        let key = self.current.vkey();
        let arguments = ["ledger", "verify", "file", "--key", &key];
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("file", file)
            .file("token", self.token())
            .file("newest", self.current.sign(&self.text(NEW)))
            .file("old", self.current.sign(&self.text(OLD)))
            .file("witnessed", self.witnessed(WITNESSED))
            .file("proof", self.proof().to_string())
            .file("jwks", json!({"keys": [self.signer.jwk()]}).to_string())
    }

    /// The old checkpoint, signed by the retired key and cosigned by the witness.
    fn witnessed(&self, time: u64) -> String {
        let text = self.text(OLD);
        self.retired.sign(&text) + &self.witness.cosign(&text, time)
    }
}

#[track_caller]
fn holds(ended: &Ended, says: &str) {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(says), "{says}: {}", ended.stdout);
}

#[track_caller]
fn fails(ended: &Ended, says: &str) {
    assert_eq!(ended.code(), Some(1), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(says), "{says}: {}", ended.stdout);
    assert!(
        ended.stdout.ends_with("does not hold\n"),
        "{}",
        ended.stdout
    );
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_exported_and_verified_and_only_a_reader_gets_it() {
    let (fleet, replica) = Fleet::start().await;
    let granted = replica.ask(&fleet.token()).await.expect(201);
    for _ in 0..3 {
        let mut refused = body();
        refused["resource"] = json!("nothing");
        replica
            .client
            .post_json(&fleet.token(), "/v1/credentials", &refused)
            .await;
    }
    let url = format!("http://{}", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.jsonl");
    let export = Launch::taskpass(["ledger", "export", "--url", &url, "--token-file", "admin"])
        .file("admin", fleet.admin.clone())
        .arg("--output")
        .arg(file.to_str().unwrap())
        .run();
    assert_eq!(export.code(), Some(0), "{}", export.stderr);
    let log = std::fs::read(&file).unwrap();
    let keys = Client::new(&url)
        .get_as(&fleet.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let key = keys["vkeys"][0].as_str().unwrap();
    let ended = Launch::taskpass([
        "ledger",
        "verify",
        "log",
        "--key",
        key,
        "--credential-file",
        "token",
    ])
    .file("log", log)
    .file(
        "token",
        granted["credential"]["access_token"].as_str().unwrap(),
    )
    .run();
    holds(&ended, "decided: permit for");
    holds(&ended, "1 × permit");
    holds(&ended, "was checked with the key that leaf");
    // One leaf, as a `tlog-proof` for third-party tools.
    let decision = granted["decision"]["id"].as_str().unwrap();
    let index = granted["receipt"]["index"].to_string();
    let proof = |leaf: &str| {
        Launch::taskpass(["ledger", "receipt", leaf, "--tlog-proof", "--url", &url])
            .arg("--token-file")
            .arg("admin")
            .file("admin", fleet.admin.clone())
            .run()
    };
    for leaf in [decision, &index] {
        let exported = proof(leaf);
        assert_eq!(exported.code(), Some(0), "{}", exported.stderr);
        assert!(
            exported
                .stdout
                .starts_with("c2sp.org/tlog-proof@v1\nextra ")
        );
        let with = |file: &str| {
            let token = granted["credential"]["access_token"].as_str().unwrap();
            let arguments = [
                "ledger",
                "verify",
                "file",
                "--key",
                key,
                "--credential-file",
                "token",
                "--unchecked-signature",
            ];
            Launch::taskpass(arguments)
                .file("file", file)
                .file("token", token)
                .run()
        };
        holds(&with(&exported.stdout), "file: a tlog-proof\n");
        let moved = format!("\nindex {index}\n");
        let spoilt = exported.stdout.replacen(&moved, "\nindex 0\n", 1);
        assert_ne!(spoilt, exported.stdout);
        fails(&with(&spoilt), "FAILED: ");
    }
    let none = proof("4000000");
    assert_eq!((none.code(), none.stdout.as_str()), (Some(1), ""));
    // Neither a workload with a decision in the log nor a stranger may export it.
    let own = Client::new(&url)
        .get_as(&fleet.token(), "/v1/ledger/export")
        .await;
    assert_eq!(own.status, 404);
    assert_eq!(Client::new(&url).get("/v1/ledger/export").await.status, 401);
}
