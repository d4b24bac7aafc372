//! `policy replay` and `policy decisions`: recorded decisions compared with those of a candidate
//! generation. The tests run the real binary, with records from the broker and from a file.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use taskpass::clock::{Clock as _, Timestamp};
use taskpass::domain::generation::{Generation, PolicyFile};
use taskpass::policy::generation::digest_of;
use taskpass::policy::record::Recorded;
use taskpass::policy::replay::{Replay, Tally, UnknownReason};
use taskpass::policy::{CompiledGeneration, GenerationParts, build};

use crate::explain::records;
use crate::support::ci::{CI, begin, ci_token, decide, decisions};
use crate::support::fleet::{Fleet, Replica, body};
use crate::support::process::{Ended, Launch};
use crate::support::rig::{self, Kind, Rig, ask};

/// A replay of a replica's decisions with other policies and another configuration.
struct Candidate<'a> {
    fleet: &'a Fleet,
    replica: &'a Replica,
    policies: String,
    config: String,
}

impl<'a> Candidate<'a> {
    /// A candidate that equals the active generation.
    fn same(fleet: &'a Fleet, replica: &'a Replica) -> Self {
        let config = fs::read_to_string(replica.process.dir().join("taskpass.toml"));
        Self {
            fleet,
            replica,
            policies: fleet.policies_text().to_owned(),
            config: config.unwrap(),
        }
    }

    fn policies(mut self, from: &str, to: &str) -> Self {
        assert!(self.policies.contains(from), "{from}");
        self.policies = self.policies.replace(from, to);
        self
    }

    fn config(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replace(from, to);
        self
    }

    fn run(&self, more: &[&str], decisions: Option<&str>) -> Ended {
        let url = format!("http://{}", self.replica.address);
        let arguments = [
            "policy",
            "replay",
            "--candidate",
            "next",
            "--json",
            "--url",
            &url,
        ];
        let mut launch = Launch::taskpass(arguments.iter().chain(more).copied())
            .config(self.config.clone())
            .file("next/all.cedar", self.policies.clone())
            .env("TASKPASS_TOKEN", &self.fleet.admin);
        if let Some(decisions) = decisions {
            launch = launch.file("decisions.jsonl", decisions);
        }
        launch.run()
    }

    /// The result of a replay from the broker, which must equal the one from a file.
    fn replay(&self, decisions: &str) -> (Value, Option<i32>) {
        let online = self.run(&["--since", "1h"], None);
        let offline = self.run(&["--decisions", "decisions.jsonl"], Some(decisions));
        let read = |ended: &Ended| -> Value {
            let mut told: Value = serde_json::from_str(&ended.stdout)
                .unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
            for own in ["seconds", "since"] {
                told.as_object_mut().unwrap().remove(own);
            }
            told
        };
        assert_eq!(read(&online), read(&offline));
        assert_eq!(online.code(), offline.code());
        (read(&online), online.code())
    }
}

/// Makes two permits and three refusals, two of which policy decided.
async fn history(fleet: &Fleet, replica: &Replica) {
    for (env, fork, resource) in [
        ("prod", false, "orders-api"),
        ("prod", false, "orders-api"),
        ("stage", false, "orders-api"),
        ("prod", true, "orders-api"),
        ("prod", false, "no-such-api"),
    ] {
        let mut body = body();
        body["resource"] = json!(resource);
        decide(replica, &ci_token(fleet, env, fork), &body).await;
    }
}

fn counts(told: &Value) -> Vec<u64> {
    [
        "evaluated",
        "unchanged",
        "newly_denied",
        "newly_permitted",
        "other_ttl",
        "other_refusal",
    ]
    .iter()
    .map(|name| told[name].as_u64().unwrap())
    .collect()
}

async fn replayed(kind: Kind) {
    let (fleet, replica) = begin(kind).await;
    history(&fleet, &replica).await;
    let file = decisions(&fleet, &replica);
    assert_eq!(file.lines().count(), 6);
    let end: Value = serde_json::from_str(file.lines().last().unwrap()).unwrap();
    assert_eq!(end["end"]["records"], 5, "{end}");
    let same = || Candidate::same(&fleet, &replica);

    let (told, code) = same().replay(&file);
    assert_eq!(
        (counts(&told), code),
        (vec![4, 4, 0, 0, 0, 0], Some(0)),
        "{told}"
    );
    assert_eq!(
        (&told["refused_before_policy"], &told["groups"]),
        (&json!(1), &json!([]))
    );

    // The changed condition permits another environment and refuses the old one.
    let (told, code) = same()
        .policies("env == \"prod\"", "env == \"stage\"")
        .replay(&file);
    assert_eq!(
        (counts(&told), code),
        (vec![4, 1, 2, 1, 0, 0], Some(1)),
        "{told}"
    );
    let denied = &told["groups"][0];
    assert_eq!(denied["kind"], "newly_denied");
    assert_eq!(
        (&denied["workload"], &denied["resource"]),
        (&json!("ci:app"), &json!("orders-api"))
    );
    assert_eq!(
        (&denied["policies"], &denied["count"]),
        (&json!(["ci-open", "ci-read"]), &json!(2))
    );
    assert_eq!(
        denied["example"]["was"],
        json!({"outcome": "permit", "ttl_seconds": 300})
    );
    assert_eq!(
        denied["example"]["would_be"],
        json!({"outcome": "deny", "refusal": "not-permitted"})
    );
    let permitted = &told["groups"][1];
    assert_eq!(
        (&permitted["kind"], &permitted["count"]),
        (&json!("newly_permitted"), &json!(1))
    );

    // A shorter lifetime, from a policy and from the catalogue.
    for shorter in [
        same().policies("@max_ttl(\"300\")", "@max_ttl(\"120\")"),
        same().config(
            "name = \"orders-api\"",
            "name = \"orders-api\"\nmax_ttl_seconds = 120\ndefault_ttl_seconds = 120",
        ),
    ] {
        let (told, code) = shorter.replay(&file);
        assert_eq!(
            (counts(&told), code),
            (vec![4, 2, 0, 0, 2, 0], Some(1)),
            "{told}"
        );
        let example = &told["groups"][0]["example"];
        assert_eq!(example["was"]["ttl_seconds"], 300);
        assert_eq!(example["would_be"]["ttl_seconds"], 120);
    }

    // A forbid, which the result must name; then a resource that was removed.
    let forbid = "@id(\"freeze\") @description(\"d\") forbid (principal is Workload::ci, action == Action::\"orders:read\", resource);\n@id(\"ci-open\")";
    let (told, _) = same().policies("@id(\"ci-open\")", forbid).replay(&file);
    assert_eq!(counts(&told), [4, 2, 2, 0, 0, 0], "{told}");
    assert_eq!(told["groups"][0]["policies"], json!(["freeze"]));
    let gone = same()
        .config("\"orders-api\"", "\"invoices-api\"")
        .policies("\"orders-api\"", "\"invoices-api\"");
    let (told, _) = gone.replay(&file);
    assert_eq!(counts(&told), [4, 0, 2, 0, 0, 2], "{told}");
    let refusal = &told["groups"][0]["example"]["would_be"]["refusal"];
    assert_eq!(refusal, "unknown-resource");

    incomplete(&same, &file);
}

/// Asserts that the result names omitted records, and that it then claims nothing about them.
fn incomplete<'a>(same: &impl Fn() -> Candidate<'a>, file: &str) {
    let run = |lines: &[String]| {
        let ended = same().run(&["--decisions", "decisions.jsonl"], Some(&lines.join("\n")));
        let told: Value = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
        (told, ended.code(), ended.stderr)
    };
    let lines: Vec<String> = file.lines().map(str::to_owned).collect();
    let pruned = |count: usize| -> Vec<String> {
        let pruned = lines.iter().enumerate().map(|(at, line)| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            if at < count {
                record.as_object_mut().unwrap().remove("input");
            }
            record.to_string()
        });
        pruned.collect()
    };
    for (count, evaluated) in [(5, 0), (1, 3)] {
        let (told, code, _) = run(&pruned(count));
        assert_eq!(
            (&told["pruned"], &told["evaluated"], code),
            (&json!(count), &json!(evaluated), Some(3)),
            "{told}"
        );
    }
    let (told, code, why) = run(&lines[..4]);
    assert_eq!((&told["unchanged"], code), (&json!(4), Some(3)), "{told}");
    assert!(why.contains("truncated"), "{why}");
    let (_, code, _) = run(&[String::new()]);
    assert_eq!(code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_candidate_would_have_changed_is_told_on_sqlite() {
    replayed(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_candidate_would_have_changed_is_told_on_postgresql() {
    replayed(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_what_was_logged_is_no_result() {
    let (fleet, replica) = begin(Kind::Sqlite).await;
    history(&fleet, &replica).await;
    let file = decisions(&fleet, &replica);
    let same = || Candidate::same(&fleet, &replica);
    let first: Value = serde_json::from_str(file.lines().next().unwrap()).unwrap();
    let second: Value = serde_json::from_str(file.lines().nth(2).unwrap()).unwrap();
    let with = |member: &str| {
        let mut changed = first.clone();
        changed[member] = second[member].clone();
        changed.to_string()
    };
    let lines: Vec<&str> = file.lines().collect();
    let twice = [lines[0], lines[1], lines[1]].join("\n");
    let turned = [lines[1], lines[0]].join("\n");
    let fewer = [lines[0], lines[2], lines[5]].join("\n");
    for (text, code, says) in [
        (twice, 2, "each index must occur once"),
        (turned, 2, "each index must occur once"),
        (fewer, 2, "it was changed"),
        (format!("{file}{}", lines[4]), 2, "after its last line"),
        (with("leaf"), 1, "does not have the hash"),
        (with("leaf_hash"), 1, "does not have the hash"),
        (with("input"), 1, "not the one that the leaf commits to"),
        (with("salt"), 1, "not the one that the leaf commits to"),
        ("{}".to_owned(), 2, "not the record of a decision"),
        ("{\"index\":".to_owned(), 2, "not the record of a decision"),
        (
            format!("{file}{}", "x".repeat(3_000_000)),
            2,
            "has a line of more than",
        ),
    ] {
        let ended = same().run(&["--decisions", "decisions.jsonl"], Some(&text));
        assert_eq!(ended.code(), Some(code), "{says}: {}", ended.stderr);
        assert!(
            ended.stdout.contains(says) && ended.stderr.is_empty(),
            "{}",
            ended.stderr
        );
    }
    // A candidate that does not load, a file that does not exist, and an invalid duration.
    let broken = same().policies(CI, "permit (principal, action, resource);");
    let ended = broken.run(&["--decisions", "decisions.jsonl"], Some(&file));
    assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
    assert_eq!(
        same().run(&["--decisions", "nowhere"], None).code(),
        Some(2)
    );
    for age in ["7", "d", "-1d", "yesterday", "7 d"] {
        let ended = same().run(&[&format!("--since={age}")], None);
        assert_eq!(ended.code(), Some(2), "{age}: {}", ended.stderr);
    }
    // A caller that may not read the log gets no decisions.
    let url = format!("http://{}", replica.address);
    let ended = Launch::taskpass(["policy", "decisions", "--url", &url])
        .env("TASKPASS_TOKEN", fleet.token())
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
}

/// The result of replaying a rig's decisions with `candidate` at `at`.
async fn replay_at(rig: &Rig, candidate: &CompiledGeneration, at: Timestamp) -> Tally {
    let mut replay = Replay::new(candidate, at);
    for record in records(rig).await {
        replay.add(&Recorded::open(&record).unwrap()).unwrap();
    }
    replay.finish()
}

/// The rig's active generation with one more policy, and its resource registered as low risk.
async fn with_policy(rig: &Rig, policy: &str) -> CompiledGeneration {
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let mut generation: Value = serde_json::from_slice(&bytes).unwrap();
    for resource in generation["resources"].as_array_mut().unwrap() {
        resource["risk"] = json!("low");
    }
    let generation: Generation = serde_json::from_value(generation).unwrap();
    let mut policies = generation.policies;
    policies.push(PolicyFile {
        name: "more.cedar".into(),
        text: policy.to_owned(),
    });
    let parts = GenerationParts {
        policies,
        attestors: generation.attestors,
        resources: generation.resources,
        task_types: generation.task_types,
        limits: generation.limits,
        retention: generation.retention,
    };
    let (generation, compiled) = build(parts, &[]).unwrap();
    assert_eq!(digest_of(&generation).unwrap(), compiled.digest());
    compiled
}

/// The result for two permits, one of them to a contractor, with a candidate that forbids
/// contractors.
async fn without_contractors(policies: &str) -> Tally {
    // A role can be bound only if a policy names it; this policy decides no task.
    let policies = format!(
        "{policies}\n@id(\"contractors\") @description(\"contractors look\")\n\
         permit (principal in Role::\"contractor\", action == Action::\"readMetrics\", \
         resource == Broker::\"taskpass\");"
    );
    let rig = Rig::on(Kind::Sqlite).policies(&policies).start().await;
    let reports = "dev:agent%3Areports".to_owned().try_into().unwrap();
    let role = "contractor".to_owned();
    rig.broker
        .administration
        .bind_admin(&rig.admin(), reports, role, true)
        .await
        .unwrap();
    for who in ["agent:reports", "agent:orders"] {
        rig.issue(who, ask(&["orders:read"])).await.unwrap();
    }
    let candidate = with_policy(
        &rig,
        "@id(\"no-contractors\") @description(\"d\") forbid (principal in Role::\"contractor\", action in Action::\"any\", resource);",
    )
    .await;
    replay_at(&rig, &candidate, rig.clock.now()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_a_candidate_asks_for_counts_where_it_was_read_and_else_nothing_is_told() {
    let read = without_contractors(rig::POLICIES).await;
    assert_eq!((read.evaluated, read.unchanged), (2, 1));
    assert_eq!(read.unknown, BTreeMap::new());
    let groups = read.groups();
    assert_eq!(groups[0].key.policies, ["no-contractors"]);
    assert_eq!(groups[0].key.workload, "dev:agent%3Areports");
    // If no policy uses roles, the broker does not read them, and the replay must not assume that
    // there were none.
    let nobody = "principal == Workload::dev::\"dev:nobody\"";
    let policies = rig::POLICIES.replace("principal in Role::\"nobody\"", nobody);
    assert_ne!(policies, rig::POLICIES);
    let unread = without_contractors(&policies).await;
    assert_eq!((unread.evaluated, unread.changed()), (0, false));
    assert_eq!(
        unread.unknown,
        BTreeMap::from([(UnknownReason::RolesNotRead, 2)])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_observed_when_it_was_decided_counts_once_its_day_is_over() {
    let rig = Rig::on(Kind::Sqlite).start().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let now = rig.clock.now();
    let day = now.plus_seconds(86_400).to_string();
    let candidate = with_policy(
        &rig,
        &format!(
            "@id(\"freeze\") @description(\"d\") @mode(\"observe\") @enforce_after(\"{}\")\n\
             forbid (principal, action == Action::\"orders:read\", resource == Api::\"orders-api\");",
            &day[..10]
        ),
    )
    .await;
    let today = replay_at(&rig, &candidate, now).await;
    assert_eq!((today.evaluated, today.unchanged), (1, 1));
    let afterwards = replay_at(&rig, &candidate, now.plus_seconds(3 * 86_400)).await;
    assert_eq!((afterwards.evaluated, afterwards.unchanged), (1, 0));
    assert_eq!(afterwards.groups()[0].key.policies, ["freeze"]);
}

/// Runs a command to its end while no process reads its output.
fn unread(launch: &str, directory: &std::path::Path, arguments: &[&str]) -> Option<i32> {
    let script =
        "set -o pipefail; { sleep 0.2; exec \"$0\" \"$@\"; } | true; exit ${PIPESTATUS[0]}";
    let mut command = Command::new("bash");
    command.args(["-c", script, launch]).args(arguments);
    let status = command
        .current_dir(directory)
        .stderr(Stdio::null())
        .status();
    status.unwrap().code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_one_though_nobody_reads_it() {
    let (fleet, replica) = begin(Kind::Sqlite).await;
    history(&fleet, &replica).await;
    let place = tempfile::tempdir().unwrap();
    let directory = place.path();
    let own = replica.process.dir();
    fs::copy(own.join("taskpass.toml"), directory.join("taskpass.toml")).unwrap();
    fs::write(
        directory.join("decisions.jsonl"),
        decisions(&fleet, &replica),
    )
    .unwrap();
    let denies = fleet
        .policies_text()
        .replace("env == \"prod\"", "env == \"none\"");
    for (name, text) in [("same", fleet.policies_text()), ("next", &denies)] {
        fs::create_dir(directory.join(name)).unwrap();
        fs::write(directory.join(name).join("all.cedar"), text).unwrap();
    }
    let taskpass = env!("CARGO_BIN_EXE_taskpass");
    let file = [
        "--decisions",
        "decisions.jsonl",
        "--config",
        "taskpass.toml",
    ];
    for json in [&[][..], &["--json"]] {
        let run = |command: &[&str]| {
            let arguments = [&["policy"], command, &file[..], json].concat();
            unread(taskpass, directory, &arguments)
        };
        assert_eq!(run(&["replay", "--candidate", "same"]), Some(0));
        assert_eq!(run(&["replay", "--candidate", "next"]), Some(1));
        // No permit was used, so none of the fleet's rights is.
        assert_eq!(run(&["unused", "same"]), Some(1));
    }
}
