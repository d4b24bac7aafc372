//! `taskpass ledger watch` against logs of the tests' own: it follows a growing log, reports
//! contradictions with evidence that others can verify, and treats unreadable logs as neither.

mod brokers;
mod contradictions;
mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fleet::{Fleet, Replica};
use crate::support::log::{Log, ORIGIN, root};
use crate::support::process::{Ended, Launch, Process};
use crate::support::tiles::{Manner, TileServer, grown};
use crate::support::{SOON, wait_until, write_private};

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
    // A wrong command line is reported before a file that cannot be read.
    let other_key = other.vkey();
    for file in ["--token-file", "--ca-file"] {
        let missing = [file, "missing"];
        let keys = [&["--key", &other_key][..], &missing].concat();
        bad(scene.server.url(), &keys, "more than one log");
        bad("http://log.test/", &missing, "neither https nor");
        let unread = watch(
            scene.server.url(),
            &scene.log.vkey(),
            &scene.state(),
            &missing,
        );
        says(&unread.run(), 3, "cannot read missing");
    }
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
