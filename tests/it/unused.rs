//! `policy unused`: reports rights that were granted and never used, and proposes narrower
//! policies. The tests run the real binary, with records from a broker and from a file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::process::{Ended, Launch};
use crate::support::rig::Kind;

const POLICIES: &str = r#"
@id("trial-open") @description("opens")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"openTask", resource == TaskType::"trial");

// Everything that is a file, far too much.
@id("files-all") @description("whatever the reports may need") @max_ttl("900")
permit (principal == Workload::dev::"dev:agent%3Areports",
  action in [Action::"files:read", Action::"files:write", Action::"files:delete"], resource is Api);

@id("files-list") @description("nobody ever lists")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"files:list", resource is Api);

@id("files-never") @description("nobody deletes what is kept")
forbid (principal, action == Action::"files:delete", resource == Api::"files-api")
when { context.location == "https://files.example/kept" };
"#;

async fn begin(kind: Kind) -> (Fleet, Replica) {
    let tables = r#"
[[resources]]
name = "files-api"
kind = "jwt"
owner = "files"
audience = "https://files.example"
actions = ["files:read", "files:write", "files:delete", "files:list"]
locations = ["https://files.example/new", "https://files.example/kept"]
verifiers = ["dev:service%3Afiles"]
verification = "introspection"
[[task_types]]
name = "trial"
max_deadline_seconds = 3600
resources = ["files-api"]
"#;
    Fleet::on(kind)
        .tables(tables)
        .more_policies(POLICIES)
        .start()
        .await
}

async fn ask(fleet: &Fleet, replica: &Replica, action: &str, location: &str, status: u16) {
    let body = json!({
        "task": {"type": "trial"},
        "resource": "files-api",
        "authorization_details": [{"type": "api", "actions": [action], "locations": [location]}],
    });
    let answer = replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &body)
        .await;
    answer.expect(status);
}

/// Runs a command with the broker's configuration and these policies.
fn run(
    fleet: &Fleet,
    replica: &Replica,
    policies: &str,
    decisions: &str,
    arguments: &[&str],
) -> Ended {
    let config = fs::read_to_string(replica.process.dir().join("taskpass.toml")).unwrap();
    Launch::taskpass(arguments.iter().copied())
        .config(config)
        .file("policies/fleet.cedar", policies)
        .file("policies/tests/trial.toml", TESTS)
        .file("decisions.jsonl", decisions)
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run()
}

/// Tests that pass both before and after the proposal.
const TESTS: &str = r#"
[[task]]
name = "the reports open trials"
attestor = "dev"
identity = "dev:agent%3Areports"
claims = { sub = "agent:reports" }
task_type = "trial"
expect = "permit"

[[task]]
name = "a stranger does not"
attestor = "dev"
identity = "dev:agent%3Astranger"
claims = { sub = "agent:stranger" }
task_type = "trial"
expect = "deny"
"#;

fn told(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr))
}

fn decisions(fleet: &Fleet, replica: &Replica) -> String {
    let url = format!("http://{}", replica.address);
    let ended = run(
        fleet,
        replica,
        "",
        "",
        &["policy", "decisions", "--url", &url],
    );
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    ended.stdout
}

/// Makes two permits and a refusal. Returns the decisions' file and the report, which must be the
/// same from the broker and from the file; the proposal is written to `narrower`.
async fn history(fleet: &Fleet, replica: &Replica, narrower: &str) -> (String, Value) {
    for (action, location, status) in [
        ("files:read", "https://files.example/new", 201),
        ("files:read", "https://files.example/new/7", 201),
        ("files:delete", "https://files.example/kept", 403),
    ] {
        ask(fleet, replica, action, location, status).await;
    }
    let file = decisions(fleet, replica);
    let policies = fleet.policies_text();
    let url = format!("http://{}", replica.address);
    let online = ["--since", "1h", "--url", &url];
    let offline = ["--decisions", "decisions.jsonl", "--proposal", narrower];
    let run = |more: &[&str]| {
        let arguments = [&["policy", "unused", "--json"], more].concat();
        let ended = run(fleet, replica, policies, &file, &arguments);
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
        told(&ended)
    };
    let (online, offline) = (run(&online), run(&offline));
    for same in ["policies", "read", "generation", "not_seen"] {
        assert_eq!(online[same], offline[same], "{same}");
    }
    (file, offline)
}

fn assert_told(report: &Value) {
    let of = |id: &str| {
        let all = report["policies"].as_array().unwrap();
        all.iter().find(|own| own["policy"] == id).unwrap()
    };
    let all = of("files-all");
    assert_eq!((&all["used"], &all["workloads"]), (&json!(2), &json!(1)));
    assert_eq!(
        (&all["max_ttl_seconds"], &all["longest_ttl_seconds"]),
        (&json!(900), &json!(300))
    );
    assert_eq!(
        all["unused"],
        json!([{
            "resource": "files-api", "entirely": false,
            "actions": ["files:delete", "files:write"],
            "locations": ["https://files.example/kept"],
        }])
    );
    assert_eq!(all["proposal"]["change"], "narrow");
    let list = of("files-list");
    assert_eq!(
        (&list["used"], &list["proposal"]["change"]),
        (&json!(0), &json!("remove"))
    );
    assert_eq!(of("trial-open").get("proposal"), None);
    assert!(report["not_seen"].to_string().contains("CloudTrail"));
}

async fn reported(kind: Kind) {
    const UNUSED: [&str; 4] = ["policy", "unused", "--decisions", "decisions.jsonl"];
    let (fleet, replica) = begin(kind).await;
    let policies = fleet.policies_text();
    let place = tempfile::tempdir().unwrap();
    let narrower = place.path().join("narrower");
    let narrower = narrower.to_str().unwrap();
    let (file, report) = history(&fleet, &replica, narrower).await;
    assert_told(&report);

    // The text report for people.
    let text = run(&fleet, &replica, policies, &file, &UNUSED);
    for part in [
        "2 actions, 1 location, life beyond 300 of 900 s",
        "never on files-api: files:delete, files:write; https://files.example/kept",
        "would have sufficed: nothing; remove it",
        "introspections are not recorded",
    ] {
        assert!(text.stdout.contains(part), "{part}: {}", text.stdout);
    }

    // The proposal loads, refuses nothing that was used, and keeps the forbid and the comments.
    let text = fs::read_to_string(Path::new(narrower).join("fleet.cedar")).unwrap();
    for kept in [
        "// Everything that is a file",
        "@id(\"files-never\")",
        "`files-list` was never used",
    ] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    // The proposal is checked and tested like any candidate, with the tests of the current
    // policies.
    for (what, more) in [("check", &[][..]), ("test", &["--json"])] {
        let arguments = [&["policy", what, narrower], more].concat();
        let ended = run(&fleet, &replica, policies, &file, &arguments);
        assert_eq!(
            ended.code(),
            Some(0),
            "{what}: {}{}",
            ended.stdout,
            ended.stderr
        );
    }
    let replay = [
        "policy",
        "replay",
        "--decisions",
        "decisions.jsonl",
        "--candidate",
        narrower,
        "--json",
    ];
    let replayed = run(&fleet, &replica, policies, &file, &replay);
    assert_eq!(replayed.code(), Some(0), "{}", replayed.stdout);
    assert_eq!(told(&replayed)["unchanged"], 3);
    // The proposal removes only unused rights, and adds none.
    for (action, location) in [
        ("files:write", "https://files.example/new"),
        ("files:read", "https://files.example/kept"),
        ("files:list", "https://files.example/new"),
    ] {
        ask(&fleet, &replica, action, location, 201).await;
    }
    let file = decisions(&fleet, &replica);
    let replayed = run(&fleet, &replica, policies, &file, &replay);
    assert_eq!(replayed.code(), Some(1));
    let changes = told(&replayed);
    assert_eq!(
        (&changes["newly_denied"], &changes["newly_permitted"]),
        (&json!(3), &json!(0))
    );
    // The command overwrites no files.
    let arguments = [&UNUSED[..], &["--proposal", narrower]].concat();
    let again = run(&fleet, &replica, policies, &file, &arguments);
    assert_eq!((again.code(), again.stdout.as_str()), (Some(2), ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_granted_and_never_used_is_told_with_what_would_have_sufficed_on_sqlite() {
    reported(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_granted_and_never_used_is_told_with_what_would_have_sufficed_on_postgresql() {
    reported(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pruned_is_said_and_what_was_changed_is_no_report() {
    let (fleet, replica) = begin(Kind::Sqlite).await;
    let policies = fleet.policies_text();
    ask(
        &fleet,
        &replica,
        "files:read",
        "https://files.example/new",
        201,
    )
    .await;
    ask(
        &fleet,
        &replica,
        "files:write",
        "https://files.example/new",
        201,
    )
    .await;
    let file = decisions(&fleet, &replica);
    let arguments = ["policy", "unused", "--decisions", "decisions.jsonl"];
    let mut records: Vec<Value> = file
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let text = |records: &[Value]| {
        let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    // An empty or partial record proves nothing about the whole, so there is neither a verdict nor
    // a proposal.
    let place = tempfile::tempdir().unwrap();
    let proposal = place.path().join("narrower");
    let proposing = [&arguments[..], &["--proposal", proposal.to_str().unwrap()]].concat();
    let withheld = |decisions: &str| {
        let ended = run(&fleet, &replica, policies, decisions, &proposing);
        assert_eq!(ended.code(), Some(3), "{}{}", ended.stdout, ended.stderr);
        assert!(
            !ended.stdout.contains("would have sufficed"),
            "{}",
            ended.stdout
        );
        assert!(!proposal.exists());
        ended
    };
    withheld("");
    withheld("{\"end\":{\"records\":0}}");
    let cut = withheld(&text(&records[..2]));
    assert!(cut.stderr.contains("truncated"), "{}", cut.stderr);
    let input = records[1].as_object_mut().unwrap().remove("input").unwrap();
    let ended = withheld(&text(&records));
    assert!(
        ended
            .stdout
            .contains("1 pruned ones. Their use is not known"),
        "{}",
        ended.stdout
    );
    records[0]["input"] = input;
    let ended = run(&fleet, &replica, policies, &text(&records), &arguments);
    assert_eq!(
        (ended.code(), ended.stdout.as_str()),
        (Some(1), ""),
        "{}",
        ended.stderr
    );
    assert!(
        ended
            .stderr
            .contains("not the one that the leaf commits to"),
        "{}",
        ended.stderr
    );
    let broken = run(
        &fleet,
        &replica,
        "permit (principal, action, resource);",
        &file,
        &arguments,
    );
    assert_eq!((broken.code(), broken.stdout.as_str()), (Some(2), ""));
}
