//! One check of configuration and policies: a configuration that `serve --check` accepts also
//! serves; one that it refuses is refused by `serve`, by `policy check` and by an activation. A
//! refused start creates no files.

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use taskpass::app::{self, CheckError};
use taskpass::broker::check::Unfit;
use taskpass::clock::Timestamp;
use taskpass::config::{Config, Mode};

use crate::support::SOON;
use crate::support::fleet::Fleet;
use crate::support::issuer::unix_seconds;
use crate::support::process::{Launch, Process};
use crate::support::tls::Identity;

use cases::cases;

include!("../../fixtures/configuration_faults/mod.rs");

const SEALING_KEY: &str = "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const SEALING_KEYS: &str = "TASKPASS_SEALING_KEYS";

/// A configuration that serves; the cases change parts of it.
const GOOD: &str = r#"[server]
issuer = "http://127.0.0.1:8443"
listen = "127.0.0.1:0"
[store]
kind = "sqlite"
[store.sqlite]
data_dir = "data"
[ledger]
origin = "broker.example/log"
checkpoint_file = "checkpoint"
[endpoints.idp]
url = "https://127.0.0.1:9/"
use = ["discovery"]
ca_file = "ca.pem"
[[attestors]]
kind = "oidc"
name = "ci"
issuer = "https://ci.example"
discovery = "idp"
audience = "https://broker.example"
algorithms = ["RS256"]
identity = "{sub}"
single_tenant = true
[attestors.claims]
sub = { type = "string", immutable = true }
ref = { type = "string" }
[[attestors]]
kind = "oidc"
preset = "github-actions"
name = "github"
audience = "https://broker.example/github"
required = { repository_owner_id = "65" }
[[resources]]
name = "orders"
kind = "jwt"
owner = "o"
audience = "https://orders.example"
actions = ["read", "write"]
locations = ["https://orders.example/v1"]
verifiers = ["ci:orders"]
verification = "introspection"
[[resources]]
name = "archive"
kind = "jwt"
owner = "o"
audience = "https://archive.example"
actions = ["read"]
locations = ["https://archive.example/v1"]
verification = "offline"
risk = "low"
[[task_types]]
name = "report"
max_deadline_seconds = 60
resources = ["orders", "archive"]
"#;

const POLICY: &str = r#"
@id("read") @description("the pipeline reads")
permit (principal == Workload::ci::"ci:reports", action == Action::"read", resource == Api::"archive");
"#;

/// A faulty configuration, and the words that its error must contain.
#[derive(Clone)]
struct Case {
    /// The expected kind of [`CheckError`].
    kind: &'static str,
    config: String,
    policies: String,
    variables: Vec<(&'static str, String)>,
    files: Vec<(&'static str, String)>,
    says: &'static str,
    /// Whether `policy check`, which reads only these texts, finds the fault too.
    in_texts: bool,
}

fn good() -> Case {
    Case {
        kind: "",
        config: GOOD.to_owned(),
        policies: POLICY.to_owned(),
        variables: vec![(SEALING_KEYS, SEALING_KEY.to_owned())],
        files: vec![("ca.pem", Identity::server().pem)],
        says: "",
        in_texts: true,
    }
}

/// The good configuration with one change.
fn changed(kind: &'static str, from: &str, to: &str, says: &'static str) -> Case {
    assert!(GOOD.contains(from), "{from}");
    Case {
        kind,
        config: GOOD.replacen(from, to, 1),
        says,
        ..good()
    }
}

fn with_policy(kind: &'static str, policy: &str, says: &'static str) -> Case {
    Case {
        kind,
        policies: format!("{POLICY}{policy}"),
        says,
        ..good()
    }
}

/// The good environment with other sealing keys.
fn sealed_with(keys: &str, says: &'static str) -> Case {
    Case {
        kind: "configuration",
        variables: vec![(SEALING_KEYS, keys.to_owned())],
        says,
        in_texts: false,
        ..good()
    }
}

impl Case {
    fn launch(&self, arguments: &[&str]) -> Launch {
        self.furnish(Launch::taskpass(arguments.to_vec()))
    }

    /// Gives a process the files and the environment of this case.
    fn furnish(&self, launch: Launch) -> Launch {
        let mut launch = launch
            .config(self.config.clone())
            .file("policies/fleet.cedar", self.policies.clone());
        for (path, text) in &self.files {
            launch = if *path == "key.pem" {
                launch.secret_file(*path, text.clone())
            } else {
                launch.file(*path, text.clone())
            };
        }
        for (name, value) in &self.variables {
            launch = launch.env(name, value);
        }
        launch
    }

    fn run(&self, arguments: &[&str]) -> Process {
        let mut process = self.launch(arguments).spawn();
        process.wait(SOON);
        process
    }

    /// The kind of the first error in this process's files and environment.
    fn kind_in(&self, directory: &Path) -> &'static str {
        let own = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        let variables: BTreeMap<String, String> = self.variables.iter().map(own).collect();
        let path = directory.join("taskpass.toml");
        let now = Timestamp::from_seconds(unix_seconds());
        let checked = match Config::load(&path, &variables, Mode::Production) {
            Err(errors) => Err(CheckError::from(errors)),
            Ok(config) => app::check(&config, None, Some(now)),
        };
        checked.map_or_else(|error| error.kind(), |_| "")
    }
}

fn entries(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn whatever_a_start_refuses_the_check_shows_and_nothing_is_made() {
    // Every kind of refusal must be listed here or have a case; each exception has a reason.
    let not_offline: &[&str] = &[
        // Only a broker knows which admins are bound: see `lock_out`.
        "lock_out",
        // The check itself panicked.
        "unchecked",
        // Needs files and directories of a start: it has its own test below.
        "state",
    ];
    let kinds = CheckError::KINDS.iter().chain(Unfit::KINDS).copied();
    let wanted: BTreeSet<&str> = kinds.filter(|kind| !not_offline.contains(kind)).collect();
    let cases = cases();
    let covered: BTreeSet<&str> = cases.iter().map(|case| case.kind).collect();
    assert_eq!(covered, wanted);
    for case in &cases {
        let says = case.says;
        let mut checked = case.run(&["serve", "--check"]);
        let told = checked.stderr();
        assert_eq!(
            checked.ended().and_then(|status| status.code()),
            Some(2),
            "{says}"
        );
        assert!(told.contains(says), "{says}: {told}{}", checked.stdout());
        assert_eq!(case.kind_in(checked.dir()), case.kind, "{says}");
        let made_by_the_check = entries(checked.dir());

        let mut served = case.launch(&["serve"]).spawn();
        assert_eq!(served.wait(SOON).code(), Some(2), "{says}");
        let refused = served.stderr();
        assert!(refused.starts_with("taskpass: "), "{refused}");
        assert!(refused.contains(says), "{says}: {refused}");
        assert_eq!(entries(served.dir()), made_by_the_check, "{says}");
        for made in ["data", "checkpoint"] {
            assert!(!made_by_the_check.contains(made), "{says}: {made}");
        }

        let mut policy = case.launch(&["policy", "check"]).spawn();
        let status = policy.wait(SOON);
        assert_eq!(
            status.success(),
            !case.in_texts,
            "{says}: {}",
            policy.stderr()
        );
        assert!(
            !case.in_texts || policy.stderr().contains(says),
            "{}",
            policy.stderr()
        );
    }
}

/// State that a start cannot use: the commands that prepare it, a text of the good configuration,
/// its replacement, and a part of the error message.
const UNFIT_STATE: &[(&str, &str, &str, &str)] = &[
    (
        "",
        "\"checkpoint\"",
        "\"missing/deeper/checkpoint\"",
        "`ledger.checkpoint_file`: missing/deeper is missing and cannot be made",
    ),
    (
        "mkdir taken;",
        "\"checkpoint\"",
        "\"taken\"",
        "`ledger.checkpoint_file`: taken is not a regular file",
    ),
    (
        "mkdir -m 0777 above;",
        "\"checkpoint\"",
        "\"above/checkpoint\"",
        "chmod go-w above",
    ),
    (
        "echo x > checkpoint; chmod 0600 checkpoint;",
        "",
        "",
        "`ledger.checkpoint_file`: checkpoint: not a checkpoint of this broker",
    ),
    (
        "echo x > data;",
        "",
        "",
        "`store.sqlite.data_dir`: data is not a directory",
    ),
    (
        "mkdir -m 0777 data;",
        "",
        "",
        "`store.sqlite.data_dir`: data is open to other users (mode 0777)",
    ),
    (
        "mkdir -m 0777 above;",
        "\"data\"",
        "\"above/data\"",
        "chmod go-w above",
    ),
    (
        "",
        "\"checkpoint\"",
        "\"checkpoint\"\n[ledger.shared_checkpoint]\nfile = \"missing/place\"",
        "`ledger.shared_checkpoint.file`: missing: No such file or directory",
    ),
];

fn tree(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for name in entries(directory) {
        let path = directory.join(&name);
        if path.is_dir() {
            let below = tree(&path).into_iter();
            found.extend(below.map(|path| Path::new(&name).join(path)));
        }
        found.insert(name.into());
    }
    found
}

#[test]
fn state_that_a_start_could_not_use_is_shown_by_the_check_and_nothing_is_made() {
    for &(prepare, from, to, says) in UNFIT_STATE {
        let case = changed("state", from, to, says);
        let program = env!("CARGO_BIN_EXE_taskpass");
        let run = |command: &str| {
            let script = format!("{prepare} {command}");
            let mut process = case
                .furnish(Launch::program("/bin/sh", ["-c", &script]))
                .spawn();
            let status = process.wait(SOON);
            (status.code(), process.stderr(), tree(process.dir()))
        };
        let (_, _, prepared) = run("true");
        for command in ["serve --check", "serve"] {
            let command = format!("exec {program} {command} --config taskpass.toml");
            let (code, told, there) = run(&command);
            assert_eq!(code, Some(3), "{command}: {says}: {told}");
            assert!(told.contains(says), "{command}: {says}: {told}");
            assert_eq!(there, prepared, "{command}: {says}");
        }
    }
}

#[test]
fn the_check_takes_directories_that_a_start_makes_and_makes_none() {
    let config = GOOD.replace("\"data\"", "\"state/deeper/data\"").replace(
        "\"checkpoint\"",
        "\"state/deeper/checkpoint\"\n[ledger.shared_checkpoint]\nfile = \"state/deeper/place\"",
    );
    let case = Case { config, ..good() };
    let checked = case.run(&["serve", "--check"]);
    assert!(checked.stdout().contains("good"), "{}", checked.stderr());
    assert!(!entries(checked.dir()).contains("state"));
    let mut serving = case.launch(&["serve"]).spawn();
    serving.wait_for_output("\"serving\"");
    assert!(serving.terminate().success(), "{}", serving.stderr());
}

#[test]
fn each_fault_of_a_configuration_is_shown_by_the_real_check() {
    let check = |text: String| {
        Launch::taskpass(["serve", "--check"])
            .config(text)
            .file("policies/none.cedar", "")
            .env(SEALING_KEYS, SEALING_KEY)
            .run()
    };
    for (from, to, line, key, problem, remedy) in FAULTS.into_iter().flatten() {
        let refused = check(SMALL.replacen(from, to, 1));
        assert_eq!(refused.code(), Some(2), "{to}: {}", refused.stdout);
        let place = format!("taskpass.toml:{line}:");
        let told = refused.stderr.lines().any(|told| {
            let known = key.is_empty() || told.contains(&format!("`{key}`"));
            known && told.contains(&place) && told.contains(problem) && told.contains(remedy)
        });
        assert!(told, "{to} at {key}: {}", refused.stderr);
    }
}

#[test]
fn what_the_check_calls_good_serves_from_any_directory() {
    let good = good();
    let checked = good.run(&["serve", "--check"]);
    assert!(checked.stdout().contains("good"), "{}", checked.stderr());
    assert_eq!(good.kind_in(checked.dir()), "");
    assert!(
        !entries(checked.dir()).contains("data"),
        "a check makes nothing"
    );
    // Relative paths resolve against the configuration's directory, not the process's.
    let config = checked.dir().join("taskpass.toml").display().to_string();
    let elsewhere = |arguments: &[&str]| {
        let launch = Launch::taskpass([arguments, &["--config", &config]].concat());
        launch.env(SEALING_KEYS, SEALING_KEY)
    };
    for arguments in [&["serve", "--check"][..], &["policy", "check"]] {
        let ended = elsewhere(arguments).run();
        assert_eq!(ended.code(), Some(0), "{arguments:?}: {}", ended.stderr);
    }
    let mut serving = elsewhere(&["serve"]).spawn();
    serving.wait_for_output("\"serving\"");
    // A new configuration can be checked while the broker for it is running.
    let beside = elsewhere(&["serve", "--check"]).run();
    assert_eq!(beside.code(), Some(0), "{}", beside.stderr);
    assert!(serving.terminate().success(), "{}", serving.stderr());
    assert!(entries(checked.dir()).contains("data"));
}

#[test]
fn a_start_whose_address_is_taken_says_so_and_makes_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let case = changed("", "127.0.0.1:0", &address, "");
    let mut served = case.launch(&["serve"]).spawn();
    assert_eq!(served.wait(SOON).code(), Some(3));
    let told = served.stderr();
    assert!(told.contains(&format!("taskpass: {address}: ")), "{told}");
    assert!(!told.contains("a worker"), "{told}");
    let made = entries(served.dir());
    for name in ["data", "checkpoint"] {
        assert!(!made.contains(name), "{made:?}");
    }
}

#[test]
fn a_policy_check_finds_a_fault_anywhere_in_the_configuration() {
    let mut faulty = good();
    faulty.config = faulty
        .config
        .replace("data_dir = \"data\"", "data_dir = \"data\"\ncolour = 1");
    let checked = faulty.run(&["policy", "check"]);
    assert!(
        checked.stderr().contains("store.sqlite.colour"),
        "{}",
        checked.stderr()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activation_refuses_what_the_check_refuses() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let good = fleet.generation(&replica);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut generation = good.clone();
        change(&mut generation);
        assert_ne!(generation, good);
        generation
    };
    let orders = |generation: &mut Value| -> usize {
        let resources = generation["resources"].as_array().unwrap();
        let found = resources.iter().position(|own| own["name"] == "orders-api");
        found.unwrap()
    };
    let faulty = [
        (
            changed(&|own| {
                let at = orders(own);
                own["resources"][at]["verifiers"] = json!(["nowhere:x"]);
            }),
            "no attestor gives the identity `nowhere:x`",
        ),
        (
            changed(&|own| own["attestors"][0]["algorithms"] = json!(["HS256"])),
            "`HS256` is not accepted",
        ),
        (
            changed(&|own| own["attestors"][0]["discovery"] = json!("nowhere")),
            "this replica has no endpoint `nowhere`",
        ),
    ];
    for (generation, says) in faulty {
        for path in ["/v1/generations", "/v1/generations/check"] {
            let refused = replica.client.post_json(&fleet.admin, path, &generation);
            let refused = refused.await.expect(400).to_string();
            assert!(refused.contains(says), "{path}: {refused}");
        }
    }
}
