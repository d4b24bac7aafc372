//! `taskpass ledger watch` against logs of the tests' own: it follows a growing log, reports
//! contradictions with evidence that others can verify, and treats unreadable logs as neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fleet::{Fleet, Replica};
use crate::support::log::{Log, ORIGIN, consistency, root};
use crate::support::process::{Ended, Launch, Process, Signal};
use crate::support::tiles::{Manner, TileServer, grown};
use crate::support::{SOON, make_private_directory, wait_until, write_private};

/// A log, its server, and the state of a monitor.
struct Scene {
    log: Log,
    server: TileServer,
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            log: Log::new(ORIGIN),
            server: TileServer::start(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// A log that the monitor has already checked at this size.
    fn known(size: usize) -> Self {
        let scene = Self::new();
        scene.show(&grown(size, size, 0));
        says(&scene.once(&[]), 0, "first contact");
        scene
    }

    fn show(&self, leaves: &[Vec<u8>]) -> String {
        self.server.show(&self.log, ORIGIN, leaves)
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn kept(&self) -> String {
        fs::read_to_string(self.state()).unwrap()
    }

    fn watch(&self, more: &[&str]) -> Launch {
        watch(self.server.url(), &self.log.vkey(), &self.state(), more)
    }

    fn once(&self, more: &[&str]) -> Ended {
        self.watch(more).arg("--once").run()
    }

    /// The evidence files so far, oldest first.
    fn evidence(&self) -> Vec<PathBuf> {
        evidence(&self.state())
    }

    fn check(&self, file: &Path) -> Ended {
        check(file, &self.log.vkey())
    }
}

fn watch(url: &str, key: &str, state: &Path, more: &[&str]) -> Launch {
    let state = state.to_str().unwrap();
    let arguments = [
        "ledger", "watch", "--url", url, "--key", key, "--state", state,
    ];
    Launch::taskpass(arguments.into_iter().chain(more.iter().copied()))
}

fn check(file: &Path, key: &str) -> Ended {
    let file = file.to_str().unwrap();
    Launch::taskpass(["ledger", "watch", "--check", file, "--key", key]).run()
}

fn evidence(state: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(state.parent().unwrap()).unwrap();
    let mut found: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    found.retain(|path| path.to_str().unwrap().contains("state.evidence-"));
    found.sort();
    found
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn says(ended: &Ended, code: i32, text: &str) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code(), Some(code), "{said}");
    assert!(said.contains(text), "{text:?} in {said}");
}

#[test]
fn a_log_that_grows_is_followed_over_the_borders_of_tiles_and_levels() {
    let scene = Scene::new();
    let all = grown(66_100, 66_100, 0);
    let note = scene.show(&all[..1]);
    let first = scene.once(&[]);
    says(&first, 0, "broker.test/log has 1 leaves");
    assert!(first.stderr.contains("FIRST CONTACT"), "{}", first.stderr);
    assert_eq!(scene.kept(), note);
    for size in [255, 256, 257, 512, 700, 65_535, 65_536, 66_100] {
        let note = scene.show(&all[..size]);
        // A server may remove partial tiles once they are full.
        let ahead = size == 257;
        scene
            .server
            .show_note(&note, &all[..if ahead { 600 } else { size }]);
        scene.server.set(if ahead {
            Manner::OnlyFullTiles
        } else {
            Manner::Good
        });
        let ended = scene.once(&[]);
        says(
            &ended,
            0,
            &format!("consistent: broker.test/log has {size} leaves"),
        );
        assert!(!ended.stderr.contains("FIRST"), "{}", ended.stderr);
        assert_eq!(scene.kept(), note);
        says(&scene.once(&[]), 0, "as before");
    }
    assert_eq!(scene.evidence(), Vec::<PathBuf>::new());
    let files = fs::read_dir(scene.directory.path()).unwrap().count();
    assert_eq!(files, 1, "only the state file is left");
}

#[test]
fn a_checkpoint_with_extension_lines_is_followed_like_any_other() {
    let scene = Scene::new();
    let extended = |leaves: &[Vec<u8>], lines: &str| {
        let (size, root) = (leaves.len(), STANDARD.encode(root(leaves)));
        let text = format!("{ORIGIN}\n{size}\n{root}\n{lines}");
        scene.log.sign(&text)
    };
    let all = grown(700, 700, 0);
    let mut noted = String::new();
    for (size, lines) in [
        (300, "extension data\n"),
        (700, "more\nand more\n"),
        (700, "other\n"),
    ] {
        noted = extended(&all[..size], lines);
        scene.server.show_note(&noted, &all[..size]);
        says(
            &scene.once(&[]),
            0,
            &format!("broker.test/log has {size} leaves"),
        );
    }
    assert_eq!(scene.evidence(), Vec::<PathBuf>::new());
    // The signature covers extension lines.
    let altered = noted.replacen("other\n", "forged\n", 1);
    scene.server.show_note(&altered, &all);
    assert_ne!(scene.once(&[]).code(), Some(0));
    // A checkpoint with extension lines is compared with earlier ones like any other.
    let forked = grown(700, 250, 1);
    scene
        .server
        .show_note(&extended(&forked, "other\n"), &forked);
    says(&scene.once(&[]), 1, "two trees of 700 leaves");
}

#[test]
fn a_fork_is_called_out_with_evidence_that_convinces_others() {
    for (old, new, fork) in [
        (5, 8, 3),
        (256, 600, 255),
        (300, 301, 0),
        (512, 65_800, 511),
    ] {
        let scene = Scene::known(old);
        let kept = scene.kept();
        let other = grown(new, fork, 1);
        let note = scene.show(&other);
        let ended = scene.once(&[]);
        says(&ended, 1, "CONTRADICTION (fork)");
        assert_eq!(scene.kept(), kept, "the known checkpoint is kept");
        let [file] = scene.evidence().try_into().unwrap();
        assert!(
            ended.stderr.contains(file.to_str().unwrap()),
            "{}",
            ended.stderr
        );
        let found = read(&file);
        assert_eq!(found["kept"], json!(kept));
        assert_eq!(found["fetched"], json!(note));
        // The proof is RFC 9162's, so any verifier accepts it.
        let proof: Vec<String> = consistency(old, &other)
            .iter()
            .map(|h| STANDARD.encode(h))
            .collect();
        assert_eq!(found["consistency_proof"], json!(proof));
        assert_eq!(
            found["older_root"],
            json!(STANDARD.encode(root(&other[..old])))
        );
        assert!(!found["tiles"].as_object().unwrap().is_empty());
        says(&scene.check(&file), 0, "PROVEN: broker.test/log signed");

        // The fork is reported each time, and earlier evidence is kept.
        says(&scene.once(&[]), 1, "CONTRADICTION (fork)");
        assert_eq!(scene.evidence().len(), 2);
        assert_eq!(read(&file), found);
    }
}

#[test]
fn evidence_that_was_made_up_convinces_nobody() {
    let scene = Scene::known(300);
    let honest = scene
        .log
        .checkpoint(ORIGIN, 600, &root(&grown(600, 600, 0)));
    scene.show(&grown(600, 200, 1));
    says(&scene.once(&[]), 1, "CONTRADICTION (fork)");
    let [file] = scene.evidence().try_into().unwrap();
    let spoilt = |change: &dyn Fn(&mut Value)| {
        let mut found = read(&file);
        change(&mut found);
        let path = scene.directory.path().join("spoilt");
        fs::write(&path, found.to_string()).unwrap();
        scene.check(&path)
    };
    says(&spoilt(&|_| {}), 0, "PROVEN");
    says(&check(&file, &Log::new(ORIGIN).vkey()), 1, "no known key");
    says(
        &spoilt(&|e| e["fetched"] = json!(honest)),
        1,
        "leads to another root",
    );
    says(
        &spoilt(&|e| e["older_root"] = json!(STANDARD.encode([7; 32]))),
        1,
        "another root",
    );
    says(
        &spoilt(&|e| e["consistency_proof"][0] = json!(STANDARD.encode([7; 32]))),
        1,
        "another root",
    );
    says(
        &spoilt(&|e| e["consistency_proof"] = Value::Null),
        1,
        "no proof",
    );
    says(
        &spoilt(&|e| e["kept"] = e["fetched"].clone()),
        1,
        "both notes have the same tree",
    );
    says(&spoilt(&|e| e["kept"] = Value::Null), 1, "only one note");
    says(
        &spoilt(&|e| e["format"] = json!("v2")),
        2,
        "does not have the format",
    );
    says(
        &spoilt(&|e| e["more"] = json!(1)),
        2,
        "not evidence of a monitor",
    );
    let swapped = |e: &mut Value| {
        let kept = e["kept"].take();
        e["kept"] = e["fetched"].take();
        e["fetched"] = kept;
    };
    says(&spoilt(&swapped), 1, "only the monitor attests");
    // A tree that continues the older one is no evidence against it.
    let continued = |e: &mut Value| {
        let all = grown(600, 600, 0);
        let proof: Vec<String> = consistency(300, &all)
            .iter()
            .map(|h| STANDARD.encode(h))
            .collect();
        e["fetched"] = json!(honest);
        e["older_root"] = json!(STANDARD.encode(root(&all[..300])));
        e["consistency_proof"] = json!(proof);
    };
    says(&spoilt(&continued), 1, "continues the smaller");
}

type Case<'a> = (&'a str, &'a str, &'a dyn Fn(&Scene));

#[test]
fn every_other_contradiction_is_shouted_and_what_was_known_stays() {
    let leaves = grown(300, 300, 0);
    let stranger = Log::new(ORIGIN);
    let elsewhere = Log::new("another.test/log");
    let other_root = |scene: &Scene| drop(scene.show(&grown(300, 299, 1)));
    let rollback = |scene: &Scene| drop(scene.show(&leaves[..299]));
    let signed_by_another = |scene: &Scene| drop(scene.server.show(&stranger, ORIGIN, &leaves));
    let other_origin =
        |scene: &Scene| drop(scene.server.show(&elsewhere, "another.test/log", &leaves));
    // The pinned key counts only for its own log.
    let own_key_other_origin =
        |scene: &Scene| drop(scene.server.show(&scene.log, "another.test/log", &leaves));
    let changed = |scene: &Scene| {
        let note = scene.log.checkpoint(ORIGIN, 300, &root(&leaves));
        scene
            .server
            .show_note(&note.replacen("\n300\n", "\n301\n", 1), &leaves);
    };
    let cases: [Case<'_>; 6] = [
        (
            "other-root",
            "PROVEN: broker.test/log signed two trees of 300",
            &other_root,
        ),
        (
            "rollback",
            "not proven: broker.test/log signed 300 leaves and 299",
            &rollback,
        ),
        (
            "bad-signature",
            "not proven: the fetched note",
            &signed_by_another,
        ),
        (
            "other-origin",
            "not proven: the fetched note",
            &other_origin,
        ),
        (
            "other-origin",
            "not proven: the fetched note",
            &own_key_other_origin,
        ),
        ("bad-signature", "not proven: the fetched note", &changed),
    ];
    for (kind, verdict, show) in cases {
        let scene = Scene::known(300);
        let kept = scene.kept();
        show(&scene);
        let ended = scene.once(&["--json"]);
        says(&ended, 1, &format!("CONTRADICTION ({kind})"));
        let line: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(line["verdict"], kind);
        assert_eq!(line["contradiction"], true);
        let [file] = scene.evidence().try_into().unwrap();
        assert_eq!(line["evidence"], file.to_str().unwrap());
        assert_eq!(
            (&read(&file)["kind"], &read(&file)["kept"]),
            (&json!(kind), &json!(kept))
        );
        let checked = scene.check(&file);
        says(&checked, i32::from(kind != "other-root"), verdict);
        assert_eq!(scene.kept(), kept);
        // A first contact with another log or key stores nothing.
        if kind == "other-origin" || kind == "bad-signature" {
            fs::remove_file(scene.state()).unwrap();
            says(&scene.once(&[]), 1, kind);
            assert!(!scene.state().exists());
        }
    }
}

#[test]
fn what_cannot_be_read_neither_passes_nor_is_called_a_fork() {
    let scene = Scene::known(300);
    let kept = scene.kept();
    let honest = grown(66_000, 66_000, 0);
    let forked = grown(66_000, 250, 1);
    let manners = [
        (Manner::Flood("checkpoint"), "more than"),
        (Manner::Flood("tile"), "more than 8192 bytes"),
        (Manner::Redirect("checkpoint"), "redirects are not followed"),
        (Manner::Redirect("tile"), "redirects are not followed"),
        (
            Manner::Status("checkpoint", 404),
            "a broker's log is under /ledger",
        ),
        (Manner::Status("checkpoint", 500), "answered 500"),
        (Manner::Status("tile", 429), "answered 429"),
        (Manner::Status("tile/0/001", 404), "does not exist"),
        (Manner::Status("tile/1", 404), "does not exist"),
        (Manner::Cut("checkpoint"), "cannot reach"),
        (Manner::Cut("tile"), "cannot reach"),
        (Manner::Lie(0), "the tiles lead to root"),
        (Manner::Lie(1), "the tiles lead to root"),
        (Manner::Short, "not 256 hashes"),
        (Manner::Long, "more than 8192 bytes"),
        (Manner::OtherTree, "the tiles lead to root"),
    ];
    for leaves in [&honest, &forked] {
        scene.show(leaves);
        for (manner, text) in manners {
            scene.server.set(manner);
            let ended = scene.once(&[]);
            let said = &ended.stderr;
            assert_eq!(ended.code(), Some(3), "{manner:?}: {said}");
            assert!(said.contains(text), "{manner:?}: {said}");
            assert_eq!(scene.kept(), kept, "{manner:?}");
        }
    }
    scene.server.set(Manner::Good);
    let no_notes = [
        "",
        "<html>",
        "broker.test/log\n",
        "\u{0}",
        "a\nb\nc\n\n\u{2014} x AAAA\n",
    ];
    for note in no_notes {
        scene.server.show_note(note, &honest);
        says(&scene.once(&[]), 3, "not a checkpoint");
    }
    assert_eq!(scene.evidence(), Vec::<PathBuf>::new());
    assert!(
        !scene
            .server
            .asked()
            .iter()
            .any(|path| path.starts_with("/elsewhere"))
    );
    // Once the server works again, the log is checked.
    scene.show(&honest);
    says(&scene.once(&[]), 0, "66000 leaves");
    assert_ne!(scene.kept(), kept);
}

#[test]
fn a_server_that_says_nothing_is_given_up_soon() {
    std::thread::scope(|scope| {
        for part in ["checkpoint", "tile"] {
            scope.spawn(move || {
                let scene = Scene::known(10);
                let kept = scene.kept();
                scene.show(&grown(20, 20, 0));
                scene.server.set(Manner::Hang(part));
                says(&scene.once(&[]), 3, "was not answered in time");
                assert_eq!(scene.kept(), kept);
                // The monitor also ends on a signal meanwhile; an unfinished check is no success.
                let mut process = scene.watch(&["--once"]).spawn();
                let asked = scene.server.asked().len();
                wait_until("the monitor sends a request", SOON, || {
                    scene.server.asked().len() > asked
                });
                assert_eq!(process.terminate().code(), Some(3));
                assert!(process.stderr().contains("SIGTERM"), "{}", process.stderr());
            });
        }
    });
}

#[test]
fn a_state_that_is_not_this_logs_is_a_usage_error_and_stays_as_it_is() {
    let scene = Scene::new();
    scene.show(&grown(5, 5, 0));
    let (stranger, other) = (Log::new(ORIGIN), Log::new("another.test/log"));
    let tree = root(&grown(3, 3, 0));
    let states = [
        String::new(),
        "keep me".into(),
        stranger.checkpoint(ORIGIN, 3, &tree),
        other.checkpoint("another.test/log", 3, &tree),
        scene.log.checkpoint("another.test/log", 3, &tree),
        format!("{}x", scene.log.checkpoint(ORIGIN, 3, &tree)),
        "a".repeat(200_000),
    ];
    for state in states {
        write_private(&scene.state(), state.as_bytes());
        let ended = scene.once(&[]);
        says(&ended, 2, "state");
        assert_eq!(scene.kept(), state);
    }
    assert_eq!(
        scene.server.asked(),
        Vec::<String>::new(),
        "the monitor must not send a request"
    );
    fs::remove_file(scene.state()).unwrap();
    let bad = |url: &str, more: &[&str], text: &str| {
        says(
            &watch(url, &scene.log.vkey(), &scene.state(), more).run(),
            2,
            text,
        );
    };
    bad("http://log.test/", &[], "neither https nor on this machine");
    bad("https://user:word@log.test/", &[], "no user");
    bad("https://log.test/?a=b", &[], "no query");
    bad(
        scene.server.url(),
        &["--key", &other.vkey()],
        "more than one log",
    );
    bad(scene.server.url(), &["--every", "0s"], "30s, 5m");
    assert!(!scene.state().exists());
}

#[test]
fn a_log_that_stands_still_or_has_no_witness_is_no_success() {
    let scene = Scene::new();
    let (witness, stranger) = (Log::new("witness.test/w"), Log::new("stranger.test/w"));
    let leaves = grown(7, 7, 0);
    let text = format!("{ORIGIN}\n7\n{}\n", STANDARD.encode(root(&leaves)));
    let cosigned = |time| format!("{}{}", scene.log.sign(&text), witness.cosign(&text, time));
    let (key, other) = (witness.witness_key(), stranger.witness_key());
    let hour_ago = || {
        let file = fs::File::options()
            .append(true)
            .open(scene.state())
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1))
            .unwrap();
    };

    scene.server.show_note(&cosigned(100), &leaves);
    let witnessed = ["--witness", &key, "--stale", "30m"];
    says(&scene.once(&witnessed), 0, "cosigned by 1 witness");
    hour_ago();
    says(
        &scene.once(&witnessed),
        3,
        "STALE: no larger or newer checkpoint for 36",
    );
    says(&scene.once(&["--stale", "2h"]), 0, "as before");
    // A newer cosignature of the same tree counts as news, an older one does not.
    scene.server.show_note(&cosigned(99), &leaves);
    says(&scene.once(&witnessed), 3, "STALE");
    scene.server.show_note(&cosigned(101), &leaves);
    says(&scene.once(&witnessed), 0, "as before");
    assert_eq!(scene.kept(), cosigned(101));
    // The staleness check applies also while the log is unreachable.
    hour_ago();
    scene.server.set(Manner::Status("checkpoint", 503));
    let silent = scene.once(&witnessed);
    says(&silent, 3, "answered 503");
    says(&silent, 3, "STALE");
    scene.server.set(Manner::Good);
    // One of several witnesses suffices, no witness does not, and an invalid signature is a
    // contradiction.
    says(
        &scene.once(&["--witness", &other, "--witness", &key]),
        0,
        "cosigned by 1 witness",
    );
    says(
        &scene.once(&["--witness", &other]),
        3,
        "UNWITNESSED: none of the 1 given",
    );
    // A running monitor ends if the witness is missing for several checks, not only one.
    let ended = scene.watch(&["--witness", &other, "--every", "1s"]).run();
    says(&ended, 3, "UNWITNESSED: in the last 3 checks");
    let wrong = witness.cosign(&format!("{text}more\n"), 102);
    scene
        .server
        .show_note(&format!("{}{wrong}", scene.log.sign(&text)), &leaves);
    says(&scene.once(&witnessed), 1, "CONTRADICTION (bad-signature)");
}

/// The JSON lines so far.
fn lines(process: &Process) -> Vec<Value> {
    let text = process.stdout();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn wait_for(process: &Process, verdict: &str, count: usize) {
    wait_until(verdict, SOON, || {
        let lines = lines(process);
        lines
            .iter()
            .filter(|line| line["verdict"] == verdict)
            .count()
            >= count
    });
}

#[test]
fn a_monitor_goes_on_after_an_outage_remembers_over_a_kill_and_ends_at_a_contradiction() {
    let scene = Scene::new();
    scene.show(&grown(200, 200, 0));
    let mut process = scene.watch(&["--every", "1s", "--json"]).spawn();
    wait_for(&process, "first-contact", 1);
    scene.server.set(Manner::Status("checkpoint", 502));
    wait_for(&process, "unreachable", 2);
    scene.server.set(Manner::Good);
    let note = scene.show(&grown(300, 300, 0));
    wait_for(&process, "grown", 1);
    wait_for(&process, "unchanged", 1);
    assert_eq!(scene.kept(), note);
    let seen = lines(&process);
    let last = seen.last().unwrap();
    assert_eq!(
        (&last["size"], &last["origin"]),
        (&json!(300), &json!(ORIGIN))
    );
    assert!(
        seen.iter()
            .all(|line| line["contradiction"] == false && line["evidence"].is_null())
    );

    process.kill();
    assert_eq!(scene.kept(), note);
    // A checkpoint from while the monitor was down is compared with the stored one.
    scene.show(&grown(400, 299, 1));
    process.restart();
    assert_eq!(process.wait(SOON).code(), Some(1));
    let last = lines(&process).pop().unwrap();
    assert_eq!(
        (&last["verdict"], &last["contradiction"]),
        (&json!("fork"), &json!(true))
    );
    let [file] = scene.evidence().try_into().unwrap();
    assert_eq!(last["evidence"], file.to_str().unwrap());
    says(&scene.check(&file), 0, "PROVEN");
    assert_eq!(scene.kept(), note);

    scene.show(&grown(400, 400, 0));
    for (start, signal) in [Signal::Term, Signal::Int].into_iter().enumerate() {
        process.restart();
        wait_for(&process, if start == 0 { "grown" } else { "unchanged" }, 2);
        process.signal(signal);
        assert_eq!(process.wait(SOON).code(), Some(0), "{signal:?}");
    }
}

#[test]
fn a_head_that_is_asked_for_again_is_held_against_what_follows() {
    let note = |scene: &Scene, leaves: &[Vec<u8>]| {
        scene.log.checkpoint(ORIGIN, leaves.len(), &root(leaves))
    };
    let (other, stranger) = (Log::new("another.test/log"), Log::new(ORIGIN));
    for (now, fork) in [(300, 250), (400, 250), (300, 300), (400, 300)] {
        let scene = Scene::known(300);
        let kept = scene.kept();
        let older = note(&scene, &grown(280, fork, 1));
        scene.show(&grown(now, now, 0));
        scene.server.show_before(&[&older, &older]);
        let ended = scene.once(&[]);
        if fork < 280 {
            says(&ended, 1, "CONTRADICTION (fork)");
            let [file] = scene.evidence().try_into().unwrap();
            assert_eq!(read(&file)["kept"], json!(older));
            says(&scene.check(&file), 0, "PROVEN: broker.test/log signed 280");
            assert_eq!(scene.kept(), kept);
        } else {
            says(&ended, 0, &format!("consistent: broker.test/log has {now}"));
        }
    }
    // A proxy may serve a foreign checkpoint briefly, so the monitor reports one only after four
    // times.
    let leaves = grown(300, 300, 0);
    let nobodys = [
        other.checkpoint("another.test/log", 300, &root(&leaves)),
        stranger.checkpoint(ORIGIN, 300, &root(&leaves)),
    ];
    for nobodys in &nobodys {
        let scene = Scene::known(300);
        scene.server.show_before(&[nobodys; 3].map(String::as_str));
        says(&scene.once(&[]), 0, "as before");
        scene.server.show_before(&[nobodys; 4].map(String::as_str));
        says(&scene.once(&[]), 1, "CONTRADICTION");
    }
}

#[test]
fn a_log_is_held_to_what_it_signed_though_its_tiles_did_not_come() {
    let forked = grown(30, 10, 1);
    let later = [
        (grown(30, 30, 0), "other-root"),
        (grown(20, 20, 0), "rollback"),
        (grown(40, 40, 0), "fork"),
    ];
    for (leaves, kind) in later {
        let scene = Scene::known(20);
        let kept = scene.kept();
        let signed = scene.show(&forked);
        scene.server.set(Manner::Status("tile", 404));
        let mut process = scene.watch(&["--every", "1s", "--json"]).spawn();
        wait_for(&process, "unreadable", 1);
        scene.show(&leaves);
        scene.server.set(Manner::Good);
        assert_eq!(process.wait(SOON).code(), Some(1), "{kind}");
        let last = lines(&process).pop().unwrap();
        assert_eq!(last["verdict"], kind);
        let [file] = scene.evidence().try_into().unwrap();
        assert_eq!(read(&file)["kept"], json!(signed));
        let proven = i32::from(kind == "rollback");
        says(&scene.check(&file), proven, "broker.test/log signed");
        assert_eq!(scene.kept(), kept);
    }
}

#[test]
fn a_head_that_could_not_be_kept_is_kept_as_soon_as_it_can_be() {
    let scene = Scene::new();
    let directory = scene.directory.path().join("kept");
    let away = scene.directory.path().join("away");
    let state = directory.join("state");
    fs::create_dir(&directory).unwrap();
    let key = scene.log.vkey();
    let known = scene.show(&grown(10, 10, 0));
    let mut process = watch(scene.server.url(), &key, &state, &["--every", "1s"])
        .arg("--json")
        .spawn();
    wait_for(&process, "first-contact", 1);
    fs::rename(&directory, &away).unwrap();
    let note = scene.show(&grown(20, 20, 0));
    // The problem is reported in each round, whether or not the log can be read.
    let told = |verdict: &str| {
        let lines = lines(&process);
        let of = lines.iter().filter(|line| line["verdict"] == verdict);
        of.filter(|line| line["warnings"].to_string().contains("NOT KEPT"))
            .count()
    };
    wait_until("the monitor warns", SOON, || {
        told("grown") == 1 && told("unchanged") > 1
    });
    scene.server.set(Manner::Status("checkpoint", 503));
    wait_until("the monitor warns", SOON, || told("unreachable") > 0);
    scene.server.set(Manner::Good);
    assert_eq!(fs::read_to_string(away.join("state")).unwrap(), known);
    fs::rename(&away, &directory).unwrap();
    wait_until("the checkpoint is stored", SOON, || {
        fs::read_to_string(&state).unwrap() == note
    });
    process.kill();
    scene.show(&grown(15, 15, 0));
    let ended = watch(scene.server.url(), &key, &state, &["--once"]).run();
    says(&ended, 1, "CONTRADICTION (rollback)");
}

#[test]
fn what_another_watch_has_kept_is_not_taken_back() {
    let scene = Scene::known(20);
    let process = scene.watch(&["--every", "1s", "--json"]).spawn();
    wait_for(&process, "unchanged", 1);
    let all = grown(40, 40, 0);
    let larger = scene.log.checkpoint(ORIGIN, 30, &root(&all[..30]));
    let fork = scene.log.checkpoint(ORIGIN, 25, &root(&grown(25, 9, 1)));
    scene.server.set(Manner::Status("checkpoint", 503));
    wait_for(&process, "unreachable", 1);
    for (there, size) in [(&larger, 25), (&fork, 25), (&"not a note".to_owned(), 26)] {
        write_private(&scene.state(), there.as_bytes());
        scene.show(&all[..size]);
        scene.server.set(Manner::Good);
        wait_until("the monitor warns", SOON, || {
            let last = lines(&process).pop().unwrap();
            last["size"] == size && last["warnings"].to_string().contains("NOT KEPT")
        });
        assert_eq!(&scene.kept(), there);
    }
    // The monitor replaces it once its own checkpoint is larger.
    write_private(&scene.state(), larger.as_bytes());
    let newest = scene.show(&all);
    wait_until("the new checkpoint is stored", SOON, || {
        scene.kept() == newest
    });
}

#[test]
fn a_monitor_that_nobody_hears_does_not_end_as_if_all_were_well() {
    let scene = Scene::known(9);
    let program = env!("CARGO_BIN_EXE_taskpass");
    let (url, key, state) = (scene.server.url(), scene.log.vkey(), scene.state());
    let script = format!(
        "{program} ledger watch --url {url} --key '{key}' --state {} --every 1s {{}} | exec true; \
         exit ${{PIPESTATUS[0]}}",
        state.display()
    );
    for more in ["", "--json"] {
        let script = script.replace("{}", more);
        let ended = Launch::program("/bin/bash", ["-c", &script]).run();
        says(&ended, 3, "the reader of the output went away");
    }
    scene.show(&grown(12, 3, 1));
    let script = script.replace("{}", "--once --json");
    let ended = Launch::program("/bin/bash", ["-c", &script]).run();
    says(&ended, 1, "CONTRADICTION (fork)");
}

#[test]
fn a_first_contact_is_kept_though_standard_error_is_broken() {
    let scene = Scene::new();
    let shown = scene.show(&grown(9, 9, 0));
    let ended = scene.watch(&["--once"]).with_broken_stderr().run();
    assert_eq!(ended.code(), Some(0));
    assert!(ended.stdout.contains("first contact"), "{}", ended.stdout);
    assert_eq!(scene.kept(), shown);

    // A monitor that cannot write its warnings ends.
    let options = ["--every", "1s", "--stale", "1s"];
    let ended = scene.watch(&options).with_broken_stderr().run();
    assert_eq!(ended.code(), Some(3));
}

/// Makes so many permits, each of which adds at least one leaf.
async fn issue(fleet: &Fleet, replica: &Replica, count: usize) {
    let asks = (0..count).map(|_| {
        let token = fleet.token();
        async move { replica.ask(&token).await.expect(201) }
    });
    // Not more at once than the broker accepts.
    futures_util::stream::iter(asks)
        .buffer_unordered(20)
        .collect::<Vec<_>>()
        .await;
}

fn copy(from: &Path, to: &Path) {
    make_private_directory(to);
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brokers_log_is_followed_over_restarts_and_a_restored_backup_is_called_out() {
    let (fleet, mut replica) = Fleet::embedded_with("public_ledger = true");
    let keys = replica.client.get("/v1/ledger/keys").await.expect(200);
    let key = keys["vkeys"][0].as_str().unwrap().to_owned();
    let url = format!("http://{}/ledger", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let once = || watch(&url, &key, &state, &["--once"]).run();

    issue(&fleet, &replica, 20).await;
    says(&once(), 0, "first contact");
    issue(&fleet, &replica, 250).await;
    says(&once(), 0, "consistent");
    let size = |text: &str| -> u64 { text.lines().nth(1).unwrap().parse().unwrap() };
    let read = || size(&fs::read_to_string(&state).unwrap());
    assert!(read() > 256, "{}", read());

    // Keep a copy of the data; the broker continues.
    replica.process.terminate();
    let home = replica.process.dir().to_owned();
    copy(&home.join("data"), &home.join("backup"));
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    says(&once(), 0, "consistent");
    issue(&fleet, &replica, 30).await;
    says(&once(), 0, "consistent");
    let (kept, before) = (fs::read_to_string(&state).unwrap(), read());

    // Restore the copy and delete the broker's own checkpoint.
    replica.process.terminate();
    fs::remove_dir_all(home.join("data")).unwrap();
    fs::rename(home.join("backup"), home.join("data")).unwrap();
    fs::remove_file(home.join("checkpoint")).unwrap();
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    says(&once(), 1, "CONTRADICTION (rollback)");
    issue(&fleet, &replica, 60).await;
    says(&once(), 1, "CONTRADICTION (fork)");
    assert_eq!(fs::read_to_string(&state).unwrap(), kept);
    let found = evidence(&state);
    assert_eq!(found.len(), 2);
    let fork = found
        .iter()
        .find(|file| self::read(file)["kind"] == "fork")
        .unwrap();
    let said = format!("PROVEN: broker.test/log signed {before} leaves");
    says(&check(fork, &key), 0, &said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_public_is_watched_by_who_may_read_it() {
    let (fleet, replica) = Fleet::embedded();
    let keys = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let key = keys["vkeys"][0].as_str().unwrap().to_owned();
    let url = format!("http://{}/ledger", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let once = |more: &[&str]| {
        watch(&url, &key, &state, more)
            .arg("--once")
            .secret_file("token", fleet.admin.clone())
            .run()
    };
    says(&once(&[]), 3, "answered 401");
    assert!(!state.exists());
    says(&once(&["--token-file", "token"]), 0, "first contact");
    issue(&fleet, &replica, 3).await;
    says(&once(&["--token-file", "token"]), 0, "which begin with");
}
