//! Policies in observe mode at a running broker: its decisions, answers, records and metrics, and
//! the result of replaying the records.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use taskpass::clock::{Clock as _, SystemClock, Timestamp};

use crate::support::configuration::Configuration;
use crate::support::fleet::{Fleet, Replica};
use crate::support::http::send;
use crate::support::process::{Ended, Launch};
use crate::support::rig::Kind;

/// The last day on which this test's policies still observe, and the day after it.
fn ahead() -> (String, String) {
    let day = |days: u64| {
        let at = SystemClock.now().plus_seconds(days * 86_400).to_string();
        at[..10].to_owned()
    };
    (day(90), format!("{}T00:00:00Z", day(91)))
}

/// The policies with that day.
fn policies() -> String {
    POLICIES.replace("AHEAD", &ahead().0)
}

const POLICIES: &str = r#"
@id("trial-open") @description("anybody of ours tries")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"openTask", resource == TaskType::"trial");

@id("demo-read") @description("reads the demonstration")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"demo:read", resource == Api::"demo-api");

@id("demo-freeze") @description("nobody reads it") @mode("observe") @enforce_after("AHEAD")
forbid (principal, action == Action::"demo:read", resource == Api::"demo-api");

@id("demo-write") @description("writes it") @mode("observe") @enforce_after("AHEAD")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"demo:write", resource == Api::"demo-api");

@id("demo-old") @description("nobody deletes") @mode("observe") @enforce_after("2020-01-31")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"demo:list", resource == Api::"demo-api");
"#;

async fn begin(kind: Kind) -> (Fleet, Replica) {
    let tables = r#"
[[resources]]
name = "demo-api"
kind = "jwt"
owner = "demo"
audience = "https://demo.example"
actions = ["demo:read", "demo:write", "demo:list"]
locations = ["https://demo.example/v1"]
verifiers = ["dev:service%3Ademo"]
verification = "introspection"
risk = "low"
[[task_types]]
name = "trial"
max_deadline_seconds = 3600
resources = ["demo-api"]
"#;
    Fleet::on(kind)
        .tables(tables)
        .more_policies(&policies())
        .start()
        .await
}

async fn ask(fleet: &Fleet, replica: &Replica, action: &str, status: u16) -> Value {
    let body = json!({
        "task": {"type": "trial"},
        "resource": "demo-api",
        "authorization_details": [{"type": "api", "actions": [action]}],
    });
    replica
        .client
        .post_json(&fleet.token(), "/v1/credentials", &body)
        .await
        .expect(status)
}

async fn exchange(fleet: &Fleet, replica: &Replica, scope: &str, status: u16) -> Value {
    let form = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("subject_token", &fleet.token()),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("resource", "https://demo.example"),
        ("scope", scope),
        ("task_type", "trial"),
    ];
    let request = replica.client.request(Method::POST, "/oauth2/token");
    send(request.form(&form)).await.expect(status)
}

/// The leaf of an answer's receipt.
fn leaf(answer: &Value) -> Value {
    let bytes = STANDARD.decode(answer["receipt"]["leaf"].as_str().unwrap());
    serde_json::from_slice(&bytes.unwrap()).unwrap()
}

fn command(fleet: &Fleet, replica: &Replica, arguments: &[&str]) -> (Value, Option<i32>) {
    let url = format!("http://{}", replica.address);
    let config = std::fs::read_to_string(replica.process.dir().join("taskpass.toml"));
    let ended = Launch::taskpass(arguments.iter().copied().chain(["--url", &url, "--json"]))
        .config(config.unwrap())
        .file("policies/all.cedar", fleet.policies_text())
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run();
    let told = serde_json::from_str(&ended.stdout);
    (
        told.unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr)),
        ended.code(),
    )
}

async fn observed(kind: Kind) {
    let (fleet, replica) = begin(kind).await;
    let from = ahead().1;
    // The broker reports observing policies before any request, and the counters exist from the
    // start.
    let metrics = replica.client.get("/metrics").await.text();
    let until: Timestamp = from.parse().unwrap();
    for line in [
        format!("taskpass_observing_until_timestamp_seconds{{policy=\"demo-freeze\"}} {}", until.seconds()),
        "taskpass_observed_total{policy=\"demo-freeze\",outcome=\"permit\",outcome_if_enforced=\"deny\"} 0".to_owned(),
        "taskpass_observed_total{policy=\"demo-write\",outcome=\"permit\",outcome_if_enforced=\"indeterminate\"} 0".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let log = [replica.process.stdout(), replica.process.stderr()].concat();
    assert!(
        log.contains("a policy only observes: not enforced yet"),
        "{log}"
    );
    let freeze = json!({
        "policies": [{
            "policy": "demo-freeze", "effect": "forbid", "enforced_from": from
        }],
        "outcome_if_enforced": "deny", "refusal": "not-permitted",
    });
    let write = json!({
        "policies": [{
            "policy": "demo-write", "effect": "permit", "enforced_from": from
        }],
        "outcome_if_enforced": "permit", "ttl_seconds": 300,
    });

    // One request is granted that the policy would deny, another denied that it would permit. Every
    // answer says so.
    let granted = ask(&fleet, &replica, "demo:read", 201).await;
    assert_eq!(granted["decision"]["observed"], freeze);
    assert_eq!(
        granted["decision"]["policies"],
        json!(["demo-read", "reports-open", "trial-open"])
    );
    assert_eq!(leaf(&granted)["observed"], freeze);
    assert!(fleet.is_good(&replica, &granted).await);
    let denied = ask(&fleet, &replica, "demo:write", 403).await;
    assert_eq!(denied["decision"]["observed"], write);
    assert_eq!(leaf(&denied)["observed"], write);
    let token = exchange(&fleet, &replica, "demo:read", 200).await;
    assert_eq!(token["observed"], freeze);
    let error = exchange(&fleet, &replica, "demo:write", 400).await;
    assert_eq!(error["observed"], write);

    // A policy whose observation ended in the past is enforced.
    let old = ask(&fleet, &replica, "demo:list", 201).await;
    assert_eq!(old["decision"].get("observed"), None);
    assert_eq!(leaf(&old).get("observed"), None);

    let metrics = replica.client.get("/metrics").await.text();
    for line in [
        "taskpass_observed_total{policy=\"demo-freeze\",outcome=\"permit\",outcome_if_enforced=\"deny\"} 2",
        "taskpass_observed_total{policy=\"demo-write\",outcome=\"deny\",outcome_if_enforced=\"permit\"} 2",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(!metrics.contains("demo-old"), "{metrics}");

    // Replaying the record produces the same leaf, including the observation.
    for (answer, observed) in [(&granted, &freeze), (&denied, &write)] {
        let decision = answer["decision"]["id"].as_str().unwrap();
        let (why, code) = command(&fleet, &replica, &["policy", "explain", decision]);
        assert_eq!(code, Some(0));
        assert_eq!(
            (&why["reproduced"], &why["observed"]),
            (&json!(true), observed)
        );
        let place = &why["explanation"]["observed"][0];
        assert_eq!(place["policy"], observed["policies"][0]["policy"]);
        assert_eq!(place["file"], "fleet.cedar");
    }

    // A replay changes no decision; it differs only from the enforcement date on.
    let replay = ["policy", "replay", "--since", "1h"];
    let (told, code) = command(&fleet, &replica, &replay);
    assert_eq!(
        (&told["evaluated"], &told["unchanged"], code),
        (&json!(5), &json!(5), Some(0)),
        "{told}"
    );
    let enforced = [&replay[..], &["--as-if-enforced"]].concat();
    let (told, code) = command(&fleet, &replica, &enforced);
    assert_eq!(
        (&told["newly_denied"], &told["newly_permitted"], code),
        (&json!(2), &json!(2), Some(1)),
        "{told}"
    );
    assert_eq!(told["groups"][0]["policies"], json!(["demo-freeze"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_merely_observes_is_told_recorded_counted_and_decided_again_on_sqlite() {
    observed(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_merely_observes_is_told_recorded_counted_and_decided_again_on_postgresql() {
    observed(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_takes_no_generation_that_observes_where_harm_can_be_done() {
    let (fleet, replica) = begin(Kind::Postgres).await;
    let good = fleet.generation(&replica);
    let text = good["policies"][0]["text"].as_str().unwrap();
    let day = ahead().0;
    let dated = format!("@mode(\"observe\") @enforce_after(\"{day}\")\nforbid");
    for (from, to, says) in [
        (
            &dated[..],
            "@mode(\"observe\")\nforbid",
            "without @enforce_after",
        ),
        (&day, "9999-12-31", "for more than 180 days"),
        (
            "resource == Api::\"demo-api\"",
            "resource",
            "does not name one resource",
        ),
    ] {
        let mut bad = good.clone();
        assert!(text.contains(from));
        bad["policies"][0]["text"] = text.replace(from, to).into();
        let answer = replica
            .client
            .post_json(&fleet.admin, "/v1/generations", &bad)
            .await;
        let refused = answer.expect(400);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // The same policies after `risk` was removed from the resource.
    let mut bad = good.clone();
    for resource in bad["resources"].as_array_mut().unwrap() {
        resource.as_object_mut().unwrap().remove("risk");
    }
    let answer = replica
        .client
        .post_json(&fleet.admin, "/v1/generations", &bad)
        .await;
    let refused = answer.expect(400);
    assert!(refused.to_string().contains("risk = "), "{refused}");
    // The answer to a valid bundle lists the policies that are not enforced.
    let mut next = good.clone();
    next["policies"][0]["text"] = format!("{text}// Another.\n").into();
    let answer = replica
        .client
        .post_json(&fleet.admin, "/v1/generations", &next)
        .await;
    let from = ahead().1;
    assert_eq!(
        answer.expect(201)["observed_policies"],
        json!([
            {"policy": "demo-freeze", "enforced_from": from},
            {"policy": "demo-write", "enforced_from": from},
        ])
    );
    // The earlier generation stays active.
    ask(&fleet, &replica, "demo:read", 201).await;
}

const TABLES: &str = r#"
[[attestors]]
kind = "oidc"
name = "dev"
issuer = "https://issuer.example"
audience = "https://broker.example"
algorithms = ["ES256"]
single_tenant = true
identity = "{sub}"
[attestors.claims]
sub = { type = "string", immutable = true }
[[resources]]
name = "demo-api"
kind = "jwt"
owner = "demo"
audience = "https://demo.example"
actions = ["demo:read"]
locations = ["https://demo.example/v1"]
verifiers = ["dev:service%3Ademo"]
verification = "introspection"
risk = "low"
[[task_types]]
name = "trial"
max_deadline_seconds = 3600
resources = ["demo-api"]
"#;

/// An offline command with these policies.
fn offline(policies: &str, arguments: &[&str]) -> Ended {
    let config = Configuration {
        origin: "broker.example/log",
        tables: TABLES,
        ..Configuration::default()
    }
    .text();
    Launch::taskpass(["policy"].iter().chain(arguments).copied())
        .config(config)
        .file("policies/all.cedar", policies)
        .file("policies/tests/all.toml", TESTS)
        .run()
}

#[test]
fn checking_policies_says_which_of_them_are_not_enforced() {
    let (day, from) = ahead();
    let policies = r#"@id("demo-freeze") @description("d") @mode("observe") @enforce_after("AHEAD")
forbid (principal, action, resource == Api::"demo-api");
@id("demo-old") @description("d") @mode("observe") @enforce_after("2020-01-31")
forbid (principal, action, resource == Api::"demo-api");"#;
    let with = |day: &str| policies.replace("AHEAD", day);
    let text = offline(&with(&day), &["check"]);
    assert_eq!(text.code(), Some(0), "{}", text.stderr);
    let says = format!("NOT ENFORCED before {from}: `demo-freeze` only observes");
    assert!(text.stdout.contains(&says), "{}", text.stdout);
    assert!(!text.stdout.contains("demo-old"), "{}", text.stdout);
    let told = offline(&with(&day), &["check", "--json"]).stdout;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        told["observed_policies"],
        json!([{"policy": "demo-freeze", "enforced_from": from}])
    );
    // A date too far in the future is refused.
    let far = offline(&with("9999-12-31"), &["check"]);
    assert_eq!(far.code(), Some(1), "{}", far.stdout);
    assert!(
        far.stderr.contains("all.cedar:1:1") && far.stderr.contains("more than 180 days"),
        "{}",
        far.stderr
    );
}

const TESTS: &str = r#"
[[credential]]
name = "the agent reads"
attestor = "dev"
identity = "dev:agent"
claims = { sub = "agent" }
resource = "demo-api"
actions = ["demo:read"]
task_type = "trial"
opens = false
expect = "permit"

[[credential]]
name = "a stranger does not"
attestor = "dev"
identity = "dev:stranger"
claims = { sub = "stranger" }
resource = "demo-api"
actions = ["demo:read"]
task_type = "trial"
opens = false
expect = "deny"
"#;

#[test]
fn what_will_be_enforced_is_tested_before_its_day() {
    let (day, from) = ahead();
    let policies = format!(
        r#"@id("demo-read") @description("d") @mode("observe") @enforce_after("{day}")
permit (principal == Workload::dev::"dev:agent", action == Action::"demo:read", resource == Api::"demo-api");"#
    );
    let now = offline(&policies, &["test"]);
    assert_eq!(now.code(), Some(1), "{}", now.stdout);
    let then = offline(&policies, &["test", "--at", &from]);
    assert_eq!(then.code(), Some(0), "{}{}", then.stdout, then.stderr);
    let never = offline(&policies, &["test", "--at", "tomorrow"]);
    assert_eq!(never.code(), Some(2), "{}", never.stdout);
}
