//! `policy replay` and `policy decisions`: what happened, held against what a candidate would have
//! decided, by the real binary, from the broker and from a file.

use std::fs;

use serde_json::{Value, json};

use crate::explain::{CI, begin, ci_token, decide};
use crate::support::fleet::{Fleet, Replica, body};
use crate::support::process::{Ended, Launch};
use crate::support::rig::Kind;

/// A replay of what `replica` decided, by other policies and another configuration.
struct Candidate<'a> {
    fleet: &'a Fleet,
    replica: &'a Replica,
    policies: String,
    config: String,
}

impl<'a> Candidate<'a> {
    /// What decided.
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

    /// What a replay from the broker says, which must be what one from a file says.
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

/// Everything that was decided, as `policy decisions` writes it.
fn decisions(fleet: &Fleet, replica: &Replica) -> String {
    let url = format!("http://{}", replica.address);
    let ended = Launch::taskpass(["policy", "decisions", "--since", "1h", "--url", &url])
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    ended.stdout
}

/// Two permits, three refusals, of which policy was asked about two.
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
    assert_eq!(file.lines().count(), 5);
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

    // A condition that lets another environment in, and keeps the old one out.
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

    // A shorter life, from a policy and from the catalogue.
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

    // A forbid, which is what is named; and a resource that is there no more.
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

    // What was pruned is left out and said; nothing else of it is.
    let pruned: Vec<String> = file
        .lines()
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("input");
            record.to_string()
        })
        .collect();
    let ended = same().run(
        &["--decisions", "decisions.jsonl"],
        Some(&pruned.join("\n")),
    );
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&told["pruned"], &told["evaluated"]),
        (&json!(5), &json!(0))
    );
    // To evaluate nothing shows nothing.
    assert_eq!(ended.code(), Some(3));
    let empty = same().run(&["--decisions", "decisions.jsonl"], Some("\n"));
    assert_eq!(empty.code(), Some(3));
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
    for (text, code, says) in [
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
            ended.stderr.contains(says) && ended.stdout.is_empty(),
            "{}",
            ended.stderr
        );
    }
    // A candidate that does not load, a file that is not there, an age that is none.
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
    // Who may not read the log gets no decisions to replay.
    let url = format!("http://{}", replica.address);
    let ended = Launch::taskpass(["policy", "decisions", "--url", &url])
        .env("TASKPASS_TOKEN", fleet.token())
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
}
