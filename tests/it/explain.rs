//! `policy explain`: evaluates recorded decisions again, from the recorded generation and input.
//! One test repeats thousands of decisions of every kind in this process; others run the real
//! binary over HTTP, on both stores, with every part of a record changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection as _;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::Selector;
use taskpass::domain::decision::RefusalCode;
use taskpass::domain::generation::Generation;
use taskpass::domain::record::Record;
use taskpass::domain::request::{CredentialRequest, NewTask};
use taskpass::domain::task::TaskEnd;
use taskpass::policy::CompiledGeneration;
use taskpass::policy::record::{DecidedBy, RecordError, Recorded};
use tokio::task::JoinSet;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::assert_problem;
use crate::support::issuer::Issuer;
use crate::support::process::{Ended, Launch};
use crate::support::rig::{self, Kind, Rig, ask, ask_in, ask_joining, child_of, job, with_key};

const POLICIES: &str = r#"
@id("short") @description("nobody holds a writing credential for a minute of its own wish")
forbid (principal, action == Action::"orders:write", resource == Api::"orders-api")
when { context.ttl_seconds > 90 };

@id("no-grandchildren") @description("two generations are enough")
forbid (principal, action == Action::"openTask", resource) when { context.task.depth > 2 };
"#;

/// Request number `n`; together the requests have every kind of outcome.
fn request(n: usize) -> (String, CredentialRequest) {
    let subject = [
        "agent:reports",
        "agent:orders",
        "agent:child",
        "agent:stranger",
    ][n % 4];
    let actions: &[&str] = [
        &["orders:read"][..],
        &["orders:write"],
        &["orders:read", "orders:write"],
    ][n / 4 % 3];
    let task = NewTask {
        task_type: ["job", "watched", "no-such-type"]
            [usize::from(n.is_multiple_of(7)) + usize::from(n.is_multiple_of(49))]
        .to_owned(),
        deadline_seconds: [None, Some(60), Some(3600), Some(4000)][n / 12 % 4],
        heartbeat_seconds: n.is_multiple_of(7).then_some(30),
        purpose: n.is_multiple_of(3).then(|| format!("a reason, {n}")),
        ..job()
    };
    let mut request = ask_in(task, actions);
    request.ttl_seconds = [None, Some(30), Some(90), Some(91), Some(601), Some(1)][n / 5 % 6];
    if n.is_multiple_of(31) {
        request.resource = ["archive-api", "no-such-api"][n % 2].into();
    }
    // Use many identities, because this test is not about limits.
    let subject = if n % 4 == 3 {
        format!("{subject}-{}", n % 97)
    } else {
        subject.to_owned()
    };
    (subject, request)
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_recorded_decisions_come_out_again_byte_for_byte() {
    const COUNT: usize = 2_400;
    let policies = [rig::POLICIES, POLICIES].concat();
    let rig = Arc::new(Rig::with(Kind::Sqlite, &policies, vec![], vec![]).await);
    let mut running = JoinSet::new();
    for n in 0..COUNT {
        if n % 200 == 199 {
            rig.clock.advance(61);
        }
        let rig = Arc::clone(&rig);
        running.spawn(async move {
            let (subject, request) = request(n);
            let asked = rig.issue(&subject, request).await;
            if let Ok(issued) = &asked {
                rig.end(issued, TaskEnd::Complete).await.unwrap();
            }
            if n.is_multiple_of(50) {
                // This request opens a task without a credential.
                drop(
                    rig.broker
                        .tasks
                        .open_task(&rig.evidence(&subject), job())
                        .await,
                );
            }
        });
        while running.len() > 48 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    families(&rig).await;

    let compiled = generation(&rig).await;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in records(&rig).await {
        let recorded = Recorded::open(&record).unwrap();
        let again = recorded.reproduce(&compiled).unwrap_or_else(|different| {
            panic!("index {}: {different}", record.index);
        });
        let (outcome, refusal) = recorded.outcome();
        assert_eq!(
            again.is_none(),
            matches!(recorded.decided_by(), DecidedBy::Never(_))
        );
        let asked = match recorded.decided_by() {
            DecidedBy::Policy => "policy",
            DecidedBy::Never(_) => "never",
            DecidedBy::Overtaken(_) => "overtaken",
        };
        let code = refusal.map_or("", |code| code.as_str());
        let kind = [asked, outcome.as_str(), code].join(" ");
        *kinds.entry(kind).or_default() += 1;
    }
    let total: usize = kinds.values().sum();
    assert!(total > 2_000, "{total}: {kinds:?}");
    for kind in [
        "policy permit ",
        "policy deny not-permitted",
        "policy deny ttl-too-long",
        "policy pending approval-required",
        "never deny unknown-resource",
        "never deny unknown-task-type",
        "never deny deadline-too-long",
        "overtaken deny task-budget",
        "never deny blocked",
        "overtaken deny blocked",
    ] {
        assert!(kinds.contains_key(kind), "{kind} of {kinds:?}");
    }
}

/// Parents, children, retries, and requests that are refused only when they are recorded.
async fn families(rig: &Rig) {
    let parent = rig
        .issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
    for ttl in [None, Some(20), Some(119)] {
        let lent = rig.lend(&parent, "agent:child", 1).await.unwrap();
        let mut request = ask_in(child_of(parent.task.id, &lent), &["orders:read"]);
        request.ttl_seconds = ttl;
        rig.clock.advance(7);
        drop(rig.issue("agent:child", request).await);
    }
    let retried = with_key(ask(&["orders:read"]), "again");
    for _ in 0..2 {
        rig.issue("agent:orders", retried.clone()).await.unwrap();
        rig.clock.advance(5);
    }
    // A job may have six credentials. Of eight requests at once, the ledger refuses some.
    let family = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let joins = (0..8).map(|_| rig.issue("agent:reports", ask_joining(&family, &["orders:read"])));
    let joined = join_all(joins).await;
    assert!(
        joined.iter().any(Result::is_err),
        "eight requests exceed the limit of six"
    );
    // A block of the caller refuses before policy is evaluated; a block of the resource, after it.
    let caller = Selector::Workload("dev:agent%3Areports".to_owned().try_into().unwrap());
    let resource = Selector::Resource("orders-api".into());
    for (selector, who) in [(caller, "agent:reports"), (resource, "agent:orders")] {
        let stop = RevokeRequest {
            selector,
            block: BlockRequest::UntilLifted,
            deny_all_earlier_sessions: false,
            reason: "a test".into(),
            allow_unknown: false,
            dry_run: false,
        };
        rig.broker
            .revocation
            .revoke_many(&rig.admin(), stop)
            .await
            .unwrap();
        let blocked = rig.issue(who, ask(&["orders:read"])).await;
        assert_eq!(rig::refusal(blocked), "blocked");
    }
}

// ---- the command ------------------------------------------------------------------------------

pub const CI: &str = r#"
@id("ci-open") @description("the pipeline opens jobs")
permit (principal == Workload::ci::"ci:app", action == Action::"openTask", resource);

@id("ci-read") @description("the pipeline reads from production")
@max_ttl("300")
permit (principal == Workload::ci::"ci:app", action == Action::"orders:read",
  resource == Api::"orders-api")
when { principal.claims.env == "prod" && context.ttl_seconds <= 300 };

@id("no-forks") @description("nothing from a fork")
forbid (principal is Workload::ci, action, resource == Api::"orders-api")
when { principal.claims.fork };
"#;

pub async fn begin(kind: Kind) -> (Fleet, Replica) {
    let attestors = |issuer: &Issuer| {
        format!(
            r#"
[[attestors]]
kind = "oidc"
name = "ci"
issuer = "{issuer}"
audience = "https://ci.taskpass.test"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
env = {{ type = "string" }}
fork = {{ type = "bool" }}
"#,
            issuer = issuer.url()
        )
    };
    Fleet::with_attestors(kind, attestors, CI).await
}

pub fn ci_token(fleet: &Fleet, env: &str, fork: bool) -> String {
    fleet.issuer.token(json!({
        "sub": "app", "env": env, "fork": fork, "aud": "https://ci.taskpass.test",
    }))
}

/// Sends a request and returns the id of its decision.
pub async fn decide(replica: &Replica, token: &str, body: &Value) -> String {
    let answer = replica
        .client
        .post_json(token, "/v1/credentials", body)
        .await;
    answer.json()["decision"]["id"].as_str().unwrap().to_owned()
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
    async fn a_decision_is_explained_with_its_policies_and_what_would_have_turned_it(fleet, replica) {
        let permitted = decide(replica, &ci_token(fleet, "prod", false), &body()).await;
        let why = told(&explain(replica, &fleet.admin, &permitted, &["--json"]));
        assert_eq!((&why["outcome"], &why["reproduced"]), (&json!("permit"), &json!(true)));
        assert_eq!(why["granted_ttl_seconds"], 300, "{why}");
        let ids: Vec<&str> = why["explanation"]["policies"].as_array().unwrap().iter()
            .map(|policy| policy["policy"].as_str().unwrap()).collect();
        assert_eq!(ids, ["ci-open", "ci-read"]);
        let place = &why["explanation"]["policies"][1];
        let text = fleet.policies_text();
        let line = text[..text.find("@id(\"ci-read\")").unwrap()].lines().count() + 1;
        assert_eq!((&place["file"], &place["line"]), (&json!("fleet.cedar"), &json!(line)));
        let changes = why["explanation"]["changes"].to_string();
        assert!(changes.contains("principal.claims.fork") && changes.contains("anything else"), "{changes}");

        // The request is from another environment. The output names the nearest permit, the
        // condition that does not hold, and the change that would permit the request.
        let refused = decide(replica, &ci_token(fleet, "stage", false), &body()).await;
        let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
        assert_eq!((&why["outcome"], &why["refusal"]), (&json!("deny"), &json!("not-permitted")));
        let right = &why["explanation"]["refused"][0];
        assert_eq!(right["nearest"][0]["policy"], "ci-read", "{right}");
        assert_eq!(right["nearest"][0]["does_not_hold"], json!(["principal.claims.env == \"prod\""]));
        assert_eq!(
            why["explanation"]["changes"],
            json!([{"fact": "principal.claims.env", "from": "\"stage\"", "to": "\"prod\"", "outcome": "permit"}])
        );
        let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
        for says in ["byte for byte", "does not hold: principal.claims.env == \"prod\"", "\"stage\" -> \"prod\" (permit)"] {
            assert!(text.contains(says), "{says}: {text}");
        }

        // A forbid applies.
        let refused = decide(replica, &ci_token(fleet, "prod", true), &body()).await;
        let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
        assert_eq!(why["explanation"]["refused"][0]["forbidden_by"][0]["policy"], "no-forks", "{why}");
        assert_eq!(why["explanation"]["changes"][0]["fact"], "principal.claims.fork");

        // Two facts are wrong: no single change helps, and the output says so.
        let refused = decide(replica, &ci_token(fleet, "stage", true), &body()).await;
        let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
        assert!(text.contains("No single change was found"), "{text}");
    }

    async fn a_decision_is_explained_by_the_generation_that_made_it_whatever_decides_now(fleet, replica) {
        let (prod, stage) = (ci_token(fleet, "prod", false), ci_token(fleet, "stage", false));
        let permitted = decide(replica, &prod, &body()).await;
        let refused = decide(replica, &stage, &body()).await;
        let active = replica.client.get_as(&fleet.admin, "/v1/generations/active").await.expect(200);
        let mut next = active["generation"].clone();
        let text = next["policies"][0]["text"].as_str().unwrap();
        // The new policy is the opposite, and it moved to another line of the file.
        let text = format!("// A new heading.\n{}", text.replace("env == \"prod\"", "env == \"stage\""));
        next["policies"][0]["text"] = text.clone().into();
        let activated = replica.client.post_json(&fleet.admin, "/v1/generations", &next).await.expect(201);
        assert_eq!(activated["observed_policies"], json!([]));
        let later = decide(replica, &ci_token(fleet, "stage", false), &body()).await;

        let line = |text: &str| text[..text.find("@id(\"ci-read\")").unwrap()].lines().count() + 1;
        for (decision, outcome, generation, text) in [
            (&permitted, "permit", &active["digest"], fleet.policies_text()),
            (&refused, "deny", &active["digest"], fleet.policies_text()),
            (&later, "permit", &activated["generation"], &text),
        ] {
            let why = told(&explain(replica, &fleet.admin, decision, &["--json"]));
            assert_eq!((&why["outcome"], &why["reproduced"]), (&json!(outcome), &json!(true)), "{why}");
            assert_eq!(&why["generation"], generation);
            let explanation = &why["explanation"];
            let place = match outcome {
                "permit" => &explanation["policies"][1],
                _ => &explanation["refused"][0]["nearest"][0],
            };
            assert_eq!((&place["policy"], &place["line"]), (&json!("ci-read"), &json!(line(text))));
        }
    }

    async fn a_refusal_before_policy_is_not_evaluated_and_says_so(fleet, replica) {
        let mut body = body();
        body["resource"] = json!("no-such-api");
        let refused = decide(replica, &ci_token(fleet, "prod", false), &body).await;
        let why = told(&explain(replica, &fleet.admin, &refused, &["--json"]));
        assert_eq!((&why["decided_by"], &why["reproduced"]), (&json!("never"), &json!(false)));
        assert_eq!(why.get("explanation"), None);
        let text = explain(replica, &fleet.admin, &refused, &[]).stdout;
        assert!(text.contains("before policy was asked: unknown-resource"), "{text}");
    }

    async fn what_was_changed_in_the_store_is_a_failure(fleet, replica) {
        let decision = decide(replica, &ci_token(fleet, "stage", false), &body()).await;
        let good = explain(replica, &fleet.admin, &decision, &[]);
        assert_eq!(good.code(), Some(0), "{}", good.stderr);
        tamper(fleet, replica, "UPDATE generation SET body = digest").await;
        let ended = explain(replica, &fleet.admin, &decision, &[]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
        assert!(ended.stderr.contains("another digest"), "{}", ended.stderr);
        tamper(fleet, replica, "UPDATE leaf_opening SET input = input_salt WHERE input IS NOT NULL").await;
        let ended = explain(replica, &fleet.admin, &decision, &[]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stdout);
        assert!(ended.stderr.contains("not the one that the leaf commits to"), "{}", ended.stderr);
        tamper(fleet, replica, "DELETE FROM leaf_opening").await;
        let ended = explain(replica, &fleet.admin, &decision, &[]);
        assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
        assert!(ended.stderr.contains("its input was pruned"), "{}", ended.stderr);
    }

    async fn nobody_gets_an_input_but_a_reader_of_the_log(fleet, replica) {
        let decision = decide(replica, &fleet.token(), &body()).await;
        let own = replica.client.get_as(&fleet.token(), &format!("/v1/decisions/{decision}")).await;
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
            assert!(!text.contains("principal") && !text.contains("input"), "{text}");
            let nobody = replica.client.get(&path).await;
            assert_eq!(nobody.status, 401, "{path}");
        }
        let ended = explain(replica, &fleet.token(), &decision, &[]);
        // A missing record is an error and no verdict about the decision.
        assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
        assert!(ended.stdout.is_empty() && ended.stderr.contains("not-found"), "{}", ended.stderr);
        let unknown = "0198b2a0-0000-7000-8000-000000000001";
        let ended = explain(replica, &fleet.admin, unknown, &[]);
        assert_eq!(ended.code(), Some(3), "{}", ended.stdout);
        assert!(ended.stderr.contains("not-found"), "{}", ended.stderr);
        assert_eq!(explain(replica, &fleet.admin, "nonsense", &[]).code(), Some(2));
    }

    async fn decisions_are_listed_in_the_order_of_the_log_page_by_page(fleet, replica) {
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(decide(replica, &fleet.token(), &body()).await);
        }
        let (mut seen, mut from) = (Vec::new(), 0);
        loop {
            let path = format!("/v1/decisions?from={from}&limit=2");
            let page = replica.client.get_as(&fleet.admin, &path).await;
            assert_eq!(page.status, 200);
            let records: Vec<Record> = page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let Some(last) = records.last() else {
                break;
            };
            assert!(records.len() <= 2);
            from = last.index + 1;
            seen.extend(records.iter().map(|record| Recorded::open(record).unwrap().decision().unwrap().to_string()));
        }
        assert_eq!(seen, made);
        let none = replica.client.get_as(&fleet.admin, "/v1/decisions?since=2999-01-01T00:00:00Z").await;
        assert_eq!((none.status, none.text().as_str()), (200, ""));
        let all = replica.client.get_as(&fleet.admin, "/v1/decisions?since=2020-01-01T00:00:00Z").await;
        assert_eq!(all.text().lines().count(), 5);
        for bad in ["since=yesterday", "from=-1", "limit=x", "colour=red"] {
            let answer = replica.client.get_as(&fleet.admin, &format!("/v1/decisions?{bad}")).await;
            assert_problem(&answer, 400, "invalid-request");
        }
    }
}

/// A rig with three decisions, in this order: a refusal by policy, a permit, and a refusal before
/// policy was evaluated.
async fn three_decisions() -> Rig {
    let rig = Rig::new(Kind::Sqlite).await;
    drop(rig.issue("agent:reports", ask(&["orders:write"])).await);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let mut unknown = ask(&["orders:read"]);
    unknown.resource = "no-such-api".into();
    drop(rig.issue("agent:reports", unknown).await);
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_with_any_part_changed_is_no_record() {
    let rig = three_decisions().await;
    let compiled = generation(&rig).await;
    let all = records(&rig).await;
    let [refused, permitted, never] = &all[..] else {
        panic!("{all:?}");
    };
    for record in [refused, permitted] {
        assert!(
            Recorded::open(record)
                .unwrap()
                .reproduce(&compiled)
                .unwrap()
                .is_some()
        );
    }
    // A refusal before policy records its reason twice: in the leaf, and in the committed input.
    let bytes = STANDARD.decode(never.leaf.as_ref().unwrap()).unwrap();
    let leaf = String::from_utf8(bytes).unwrap();
    let other = leaf.replace("unknown-resource", "unknown-action");
    assert_ne!(leaf, other);
    let other = Record {
        leaf: Some(STANDARD.encode(other)),
        ..never.clone()
    };
    assert!(matches!(
        Recorded::open(&other).unwrap_err(),
        RecordError::Malformed(_)
    ));
    assert_eq!(
        Recorded::open(never).unwrap().asked(),
        &DecidedBy::Never(RefusalCode::UnknownResource)
    );
    // Parts of another decision's record do not match this leaf's commitments.
    let swapped = Record {
        salt: refused.salt.clone(),
        input: refused.input.clone(),
        ..permitted.clone()
    };
    assert_eq!(
        Recorded::open(&swapped).unwrap_err(),
        RecordError::NotTheInput
    );
    for (record, what) in [
        (
            Record {
                leaf: None,
                ..permitted.clone()
            },
            "its leaf",
        ),
        (
            Record {
                input: None,
                ..permitted.clone()
            },
            "its input",
        ),
        (
            Record {
                salt: None,
                ..permitted.clone()
            },
            "its input",
        ),
    ] {
        assert_eq!(
            Recorded::open(&record).unwrap_err(),
            RecordError::Pruned(what)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_says_something_else_of_the_same_input_does_not_come_out_again() {
    let rig = three_decisions().await;
    let compiled = generation(&rig).await;
    let all = records(&rig).await;
    let permitted = &all[1];
    let leaf = |from: &str, to: &str| {
        let bytes = STANDARD.decode(permitted.leaf.as_ref().unwrap()).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from}");
        Record {
            leaf: Some(STANDARD.encode(changed)),
            ..permitted.clone()
        }
    };
    for (from, to, says) in [
        ("orders:read", "orders:write", "grant"),
        ("\"reports\"", "\"report\"", "policies"),
        ("orders-api", "archive-api", "resource"),
        ("agent%3Areports", "agent%3Aorders", "workload"),
        ("\"outcome\":\"permit\"", "\"outcome\":\"deny\"", "outcome"),
        ("\"expires_at\":\"2", "\"expires_at\":\"3", "expires_at"),
        (",\"policies\"", ", \"policies\"", "its bytes differ"),
    ] {
        let recorded = Recorded::open(&leaf(from, to)).unwrap();
        let different = recorded.reproduce(&compiled).unwrap_err().to_string();
        assert!(different.contains(says), "{from}: {different}");
    }
    let other = Rig::with(
        Kind::Sqlite,
        &[rig::POLICIES, POLICIES].concat(),
        vec![],
        vec![],
    )
    .await;
    let recorded = Recorded::open(permitted).unwrap();
    let different = recorded.reproduce(&generation(&other).await).unwrap_err();
    assert!(
        different.to_string().contains("which decided"),
        "{different}"
    );
}
