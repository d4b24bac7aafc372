//! `policy explain`: evaluates recorded decisions again, from the recorded generation and input.
//! One test repeats thousands of decisions of every kind in this process; others run the real
//! binary over HTTP, on both stores, with every part of a record changed.

mod changed;
mod repeated;

use serde_json::{Value, json};
use sqlx::Connection as _;
use taskpass::domain::generation::Generation;
use taskpass::domain::record::Record;
use taskpass::policy::CompiledGeneration;
use taskpass::policy::record::{DecidedBy, Recorded};

use crate::support::ci::{begin, ci_token, decide};
use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::assert_problem;
use crate::support::process::{Ended, Launch};
use crate::support::rig::{self, Kind, Rig, ask};

const POLICIES: &str = r#"
@id("short") @description("nobody holds a writing credential for a minute of its own wish")
forbid (principal, action == Action::"orders:write", resource == Api::"orders-api")
when { context.ttl_seconds > 90 };

@id("no-grandchildren") @description("two generations are enough")
forbid (principal, action == Action::"openTask", resource) when { context.task.depth > 2 };
"#;

/// Every record of a decision.
pub async fn records(rig: &Rig) -> Vec<Record> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let page = rig
            .broker
            .administration
            .decision_records(&rig.admin(), from, None, 700)
            .await
            .unwrap();
        let Some(last) = page.last() else {
            return all;
        };
        from = last.index + 1;
        all.extend(page);
    }
}

async fn generation(rig: &Rig) -> CompiledGeneration {
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let generation: Generation = serde_json::from_slice(&bytes).unwrap();
    CompiledGeneration::compile(&generation, &[]).unwrap()
}

fn explain(replica: &Replica, token: &str, decision: &str, more: &[&str]) -> Ended {
    let url = format!("http://{}", replica.address);
    let arguments = ["policy", "explain", decision, "--url", &url];
    Launch::taskpass(arguments.iter().chain(more).copied())
        .env("TASKPASS_TOKEN", token)
        .run()
}

/// The JSON output of a command that must succeed.
fn told(ended: &Ended) -> Value {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Changes the store without the broker.
async fn tamper(fleet: &Fleet, replica: &Replica, sql: &'static str) {
    let changed = if let Some(database) = fleet.maybe_database() {
        let mut connection = database.connect().await;
        let done = sqlx::query(sql).execute(&mut connection).await;
        done.unwrap().rows_affected()
    } else {
        let path = replica.process.dir().join("data/taskpass.sqlite");
        let url = format!("sqlite://{}", path.display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let done = sqlx::query(sql).execute(&mut connection).await;
        done.unwrap().rows_affected()
    };
    assert!(changed > 0, "{sql}");
}

on_both_stores! {
    by reference;

    fn a_decision_is_explained_with_its_policies_and_what_would_have_turned_it;
    fn a_decision_is_explained_by_the_generation_that_made_it_whatever_decides_now;
    fn a_refusal_before_policy_is_not_evaluated_and_says_so;
    fn what_was_changed_in_the_store_is_a_failure;
    fn nobody_gets_an_input_but_a_reader_of_the_log;
    fn decisions_are_listed_in_the_order_of_the_log_page_by_page;
}

async fn a_decision_is_explained_with_its_policies_and_what_would_have_turned_it(
    (fleet, replica): &(Fleet, Replica),
) {
    let permitted = decide(replica, &ci_token(fleet, "prod", false), &body()).await;
    let why = told(&explain(replica, &fleet.admin, &permitted, &["--json"]));
    assert_eq!(
        (&why["outcome"], &why["reproduced"]),
        (&json!("permit"), &json!(true))
    );
    assert_eq!(why["granted_ttl_seconds"], 300, "{why}");
    let ids: Vec<&str> = why["explanation"]["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["policy"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["ci-open", "ci-read"]);
    let place = &why["explanation"]["policies"][1];
    let text = fleet.policies_text();
    let line = text[..text.find("@id(\"ci-read\")").unwrap()]
        .lines()
        .count()
        + 1;
    assert_eq!(
        (&place["file"], &place["line"]),
        (&json!("fleet.cedar"), &json!(line))
    );
    let changes = why["explanation"]["changes"].to_string();
    assert!(
        changes.contains("principal.claims.fork") && changes.contains("anything else"),
        "{changes}"
    );

    // The request is from another environment. The output names the nearest permit, the
    // condition that does not hold, and the change that would permit the request.
    let refused = decide(replica, &ci_token(fleet, "stage", false), &body()).await;
    let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
    assert_eq!(
        (&why["outcome"], &why["refusal"]),
        (&json!("deny"), &json!("not-permitted"))
    );
    let right = &why["explanation"]["refused"][0];
    assert_eq!(right["nearest"][0]["policy"], "ci-read", "{right}");
    assert_eq!(
        right["nearest"][0]["does_not_hold"],
        json!(["principal.claims.env == \"prod\""])
    );
    assert_eq!(
        why["explanation"]["changes"],
        json!([{"fact": "principal.claims.env", "from": "\"stage\"", "to": "\"prod\"", "outcome": "permit"}])
    );
    let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
    for says in [
        "byte for byte",
        "does not hold: principal.claims.env == \"prod\"",
        "\"stage\" -> \"prod\" (permit)",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }

    // A forbid applies.
    let refused = decide(replica, &ci_token(fleet, "prod", true), &body()).await;
    let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
    assert_eq!(
        why["explanation"]["refused"][0]["forbidden_by"][0]["policy"], "no-forks",
        "{why}"
    );
    assert_eq!(
        why["explanation"]["changes"][0]["fact"],
        "principal.claims.fork"
    );

    // Two facts are wrong: no single change helps, and the output says so.
    let refused = decide(replica, &ci_token(fleet, "stage", true), &body()).await;
    let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
    assert!(text.contains("No single change was found"), "{text}");
}

async fn a_decision_is_explained_by_the_generation_that_made_it_whatever_decides_now(
    (fleet, replica): &(Fleet, Replica),
) {
    let (prod, stage) = (
        ci_token(fleet, "prod", false),
        ci_token(fleet, "stage", false),
    );
    let permitted = decide(replica, &prod, &body()).await;
    let refused = decide(replica, &stage, &body()).await;
    let active = replica
        .client
        .get_as(&fleet.admin, "/v1/generations/active")
        .await
        .expect(200);
    let mut next = active["generation"].clone();
    let text = next["policies"][0]["text"].as_str().unwrap();
    // The new policy is the opposite, and it moved to another line of the file.
    let text = format!(
        "// A new heading.\n{}",
        text.replace("env == \"prod\"", "env == \"stage\"")
    );
    next["policies"][0]["text"] = text.clone().into();
    let activated = replica
        .client
        .post_json(&fleet.admin, "/v1/generations", &next)
        .await
        .expect(201);
    assert_eq!(activated["observed_policies"], json!([]));
    let later = decide(replica, &ci_token(fleet, "stage", false), &body()).await;

    let line = |text: &str| {
        text[..text.find("@id(\"ci-read\")").unwrap()]
            .lines()
            .count()
            + 1
    };
    for (decision, outcome, generation, text) in [
        (
            &permitted,
            "permit",
            &active["digest"],
            fleet.policies_text(),
        ),
        (&refused, "deny", &active["digest"], fleet.policies_text()),
        (&later, "permit", &activated["generation"], &text),
    ] {
        let why = told(&explain(replica, &fleet.admin, decision, &["--json"]));
        assert_eq!(
            (&why["outcome"], &why["reproduced"]),
            (&json!(outcome), &json!(true)),
            "{why}"
        );
        assert_eq!(&why["generation"], generation);
        let explanation = &why["explanation"];
        let place = match outcome {
            "permit" => &explanation["policies"][1],
            _ => &explanation["refused"][0]["nearest"][0],
        };
        assert_eq!(
            (&place["policy"], &place["line"]),
            (&json!("ci-read"), &json!(line(text)))
        );
    }
}

async fn a_refusal_before_policy_is_not_evaluated_and_says_so((fleet, replica): &(Fleet, Replica)) {
    let mut body = body();
    body["resource"] = json!("no-such-api");
    let refused = decide(replica, &ci_token(fleet, "prod", false), &body).await;
    let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
    assert_eq!(
        (&why["decided_by"], &why["reproduced"]),
        (&json!("never"), &json!(false))
    );
    assert_eq!(why.get("explanation"), None);
    let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
    assert!(
        text.contains("before policy was asked: unknown-resource"),
        "{text}"
    );
}

async fn what_was_changed_in_the_store_is_a_failure((fleet, replica): &(Fleet, Replica)) {
    let decision = decide(replica, &ci_token(fleet, "stage", false), &body()).await;
    let good = explain(replica, &fleet.admin, &decision, &[]);
    assert_eq!(good.code(), Some(0), "{}", good.stderr);
    tamper(fleet, replica, "UPDATE generation SET body = digest").await;
    let ended = explain(replica, &fleet.admin, &decision, &[]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("another digest"), "{}", ended.stderr);
    tamper(
        fleet,
        replica,
        "UPDATE leaf_opening SET input = input_salt WHERE input IS NOT NULL",
    )
    .await;
    let ended = explain(replica, &fleet.admin, &decision, &[]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
    assert!(
        ended
            .stderr
            .contains("not the one that the leaf commits to"),
        "{}",
        ended.stderr
    );
    tamper(fleet, replica, "DELETE FROM leaf_opening").await;
    let ended = explain(replica, &fleet.admin, &decision, &[]);
    assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("its input was pruned"),
        "{}",
        ended.stderr
    );
}

async fn nobody_gets_an_input_but_a_reader_of_the_log((fleet, replica): &(Fleet, Replica)) {
    let decision = decide(replica, &fleet.token(), &body()).await;
    let own = replica
        .client
        .get_as(&fleet.token(), &format!("/v1/decisions/{decision}"))
        .await;
    own.expect(200);
    for path in [
        format!("/v1/decisions/{decision}/record"),
        "/v1/decisions".to_owned(),
        "/v1/decisions?limit=1".to_owned(),
        format!("/v1/generations/sha256:{}", "a".repeat(64)),
    ] {
        let answer = replica.client.get_as(&fleet.token(), &path).await;
        assert_problem(&answer, 404, "not-found");
        let text = answer.text();
        assert!(
            !text.contains("principal") && !text.contains("input"),
            "{text}"
        );
        let nobody = replica.client.get(&path).await;
        assert_eq!(nobody.status, 401, "{path}");
    }
    let ended = explain(replica, &fleet.token(), &decision, &[]);
    // A missing record is an error and no verdict about the decision.
    assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
    assert!(
        ended.stdout.is_empty() && ended.stderr.contains("not-found"),
        "{}",
        ended.stderr
    );
    let unknown = "0198b2a0-0000-7000-8000-000000000001";
    let ended = explain(replica, &fleet.admin, unknown, &[]);
    assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
    assert!(ended.stderr.contains("not-found"), "{}", ended.stderr);
    assert_eq!(
        explain(replica, &fleet.admin, "nonsense", &[]).code(),
        Some(2)
    );
}

async fn decisions_are_listed_in_the_order_of_the_log_page_by_page(
    (fleet, replica): &(Fleet, Replica),
) {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(decide(replica, &fleet.token(), &body()).await);
    }
    let (mut seen, mut from) = (Vec::new(), 0);
    loop {
        let path = format!("/v1/decisions?from={from}&limit=2");
        let page = replica.client.get_as(&fleet.admin, &path).await;
        assert_eq!(page.status, 200);
        let records: Vec<Record> = page
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let Some(last) = records.last() else {
            break;
        };
        assert!(records.len() <= 2);
        from = last.index + 1;
        seen.extend(records.iter().map(|record| {
            Recorded::open(record)
                .unwrap()
                .decision()
                .unwrap()
                .to_string()
        }));
    }
    assert_eq!(seen, made);
    let none = replica
        .client
        .get_as(&fleet.admin, "/v1/decisions?since=2999-01-01T00:00:00Z")
        .await;
    assert_eq!((none.status, none.text().as_str()), (200, ""));
    let all = replica
        .client
        .get_as(&fleet.admin, "/v1/decisions?since=2020-01-01T00:00:00Z")
        .await;
    assert_eq!(all.text().lines().count(), 5);
    for bad in ["since=yesterday", "from=-1", "limit=x", "colour=red"] {
        let answer = replica
            .client
            .get_as(&fleet.admin, &format!("/v1/decisions?{bad}"))
            .await;
        assert_problem(&answer, 400, "invalid-request");
    }
}
