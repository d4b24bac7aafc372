//! Compares the shipped alarms and dashboard with `/metrics` of the real binary: every series that
//! they name must exist from the start.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::witness::{Manner, Witness};
use crate::support::{SOON, until};

const RULES: &str = include_str!("../../deploy/prometheus/rules.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/taskpass.json");

/// Labels that Prometheus adds to a series, and the label of a histogram's buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// A selector of series in an expression.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    name: String,
    matchers: Vec<(String, String, String)>,
}

/// The selectors of an expression, and the labels by which it groups.
fn read(expression: &str) -> (Vec<Chosen>, BTreeSet<String>) {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut chosen = Vec::new();
    for (at, _) in expression.match_indices("taskpass_") {
        let rest = &expression[at..];
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let mut matchers = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            let (inside, _) = inside.split_once('}').unwrap();
            for matcher in inside.split(", ").flat_map(|one| one.split("\",")) {
                let end = matcher.find(|c| !word(c)).unwrap();
                let (label, rest) = matcher.split_at(end);
                let (operator, value) = rest.split_once('"').unwrap();
                let value = value.trim_end_matches('"');
                matchers.push((label.into(), operator.into(), value.into()));
            }
        }
        chosen.push(Chosen {
            name: name.into(),
            matchers,
        });
    }
    let mut groups = BTreeSet::new();
    for keyword in ["by (", "on ("] {
        for (at, _) in expression.match_indices(keyword) {
            let inside = &expression[at + keyword.len()..];
            let (inside, _) = inside.split_once(')').unwrap();
            let labels = inside.split(',').map(str::trim);
            groups.extend(labels.filter(|label| !label.is_empty()).map(str::to_owned));
        }
    }
    (chosen, groups)
}

/// The series in the exposition format: each name with the labels of its series.
fn series(exposition: &str) -> BTreeMap<String, Vec<BTreeMap<String, String>>> {
    let mut all: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}');
        let labels = labels.split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        all.entry(name.to_owned())
            .or_default()
            .push(labels.collect());
    }
    all
}

fn expressions_of_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let expressions = targets
        .flatten()
        .map(|target| target["expr"].as_str().unwrap().to_owned());
    expressions.collect()
}

fn expressions_of_rules() -> Vec<String> {
    let mut lines = RULES.lines();
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        if line.trim() == "expr: >-" {
            all.push(lines.next().unwrap().trim().to_owned());
        }
    }
    assert_eq!(all.len(), RULES.matches("alert:").count());
    all
}

/// Why a series that an expression names does not exist; `None` if it exists.
fn missing(
    chosen: &Chosen,
    groups: &BTreeSet<String>,
    known: &BTreeMap<String, Vec<BTreeMap<String, String>>>,
) -> Option<String> {
    let Some(series) = known.get(&chosen.name) else {
        return Some("it has no series".into());
    };
    for (label, operator, value) in &chosen.matchers {
        if ADDED.contains(&label.as_str()) {
            continue;
        }
        if !series.iter().all(|labels| labels.contains_key(label)) {
            return Some(format!("it has no label {label}"));
        }
        let alternatives: Vec<&str> = match operator.as_str() {
            "=" => vec![value],
            "=~" => value.split('|').collect(),
            _ => continue,
        };
        for value in alternatives {
            if !series.iter().any(|labels| labels[label] == value) {
                return Some(format!("it has no series with {label}=\"{value}\""));
            }
        }
    }
    let unknown = groups.iter().find(|label| {
        let known = series.iter().all(|labels| labels.contains_key(*label));
        !known && !ADDED.contains(&label.as_str())
    });
    unknown.map(|label| format!("it has no label {label}, by which it is grouped"))
}

/// A resource whose policies may be in observe mode.
const LOW_RISK: &str = r#"
[[resources]]
name = "demo-api"
kind = "jwt"
owner = "demo"
audience = "https://demo.example"
actions = ["demo:read"]
locations = ["https://demo.example/v1"]
verification = "introspection"
risk = "low"
"#;

/// A replica with every feature that has metrics: TLS, a sink, a witness, an observed policy.
async fn broker(witness: &Witness) -> (Fleet, Replica) {
    let sink = "[[export]]\nname = \"siem\"\nto = \"file\"\nformat = \"ocsf\"\npath = \"events\"\n";
    let day = taskpass::clock::Clock::now(&taskpass::clock::SystemClock).plus_seconds(90 * 86_400);
    let observed = format!(
        "@id(\"freeze\") @description(\"nobody reads\") @mode(\"observe\") @enforce_after(\"{}\")\n\
         forbid (principal, action == Action::\"demo:read\", resource == Api::\"demo-api\");",
        &day.to_string()[..10]
    );
    let tables = format!("{sink}{LOW_RISK}{}", witness.table());
    Fleet::sqlite()
        .over_tls("", None)
        .tables(&tables)
        .more_policies(&observed)
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_that_an_alarm_or_the_dashboard_names_is_there_from_the_start() {
    let witness = Witness::start("witness.example/w", Manner::Status(404));
    let (fleet, replica) = broker(&witness).await;
    let exposition = async || replica.client.get_as(&fleet.admin, "/metrics").await.text();
    // Some metrics appear only after the first measurement, one second after the start.
    until("every metric was measured", SOON, async || {
        let text = exposition().await;
        text.contains("taskpass_export_lag_seconds{")
            && text.contains("taskpass_http_requests_total{")
    })
    .await;
    let known = series(&exposition().await);
    let all = expressions_of_rules()
        .into_iter()
        .chain(expressions_of_dashboard());
    let mut faults = Vec::new();
    for expression in all {
        let (chosen, groups) = read(&expression);
        assert!(!chosen.is_empty(), "{expression}");
        // An expression with two metrics may group by labels of either.
        let alone = chosen.len() == 1;
        for one in &chosen {
            let groups = if alone {
                groups.clone()
            } else {
                BTreeSet::new()
            };
            if let Some(why) = missing(one, &groups, &known) {
                faults.push(format!("{}: {why}: {expression}", one.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_event_of_a_series_is_a_rise() {
    let witness = Witness::start("witness.example/w", Manner::Status(404));
    let (fleet, replica) = broker(&witness).await;
    let known = async || series(&replica.client.get_as(&fleet.admin, "/metrics").await.text());
    let before = known().await;
    // A denial, a failed attestation and a revocation.
    let mut greedy = body();
    greedy["ttl_seconds"] = 601.into();
    let ask = async |token: &str, body: &Value| {
        let asked = replica.client.post_json(token, "/v1/credentials", body);
        asked.await.status
    };
    assert_eq!(ask(&fleet.token(), &greedy).await, 403);
    assert_eq!(ask("junk", &greedy).await, 401);
    let kill = serde_json::json!({"selector": {"resource": "orders-api"}, "reason": "a test"});
    let killed = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &kill);
    killed.await.expect(200);
    let after = known().await;
    // The status codes of this metric are not known in advance.
    let open = ["taskpass_http_requests_total"];
    let is_counted = |name: &str| {
        let endings = ["_total", "_count", "_sum", "_bucket"];
        endings.iter().any(|ending| name.ends_with(ending)) && !open.contains(&name)
    };
    for (name, series) in after.iter().filter(|(name, _)| is_counted(name)) {
        let new = series.iter().find(|labels| {
            let there = before.get(name).is_some_and(|known| known.contains(labels));
            !there
        });
        assert!(new.is_none(), "{name} begins with an event: {new:?}");
    }
}

#[test]
fn an_expression_is_read() {
    let (chosen, groups) =
        read("sum by (a, b) (rate(taskpass_x_total{c=\"d\", e=~\"f|g\"}[5m])) > 0");
    let matcher = |label: &str, operator: &str, value: &str| {
        (label.to_owned(), operator.to_owned(), value.to_owned())
    };
    assert_eq!(chosen[0].name, "taskpass_x_total");
    let matchers = [matcher("c", "=", "d"), matcher("e", "=~", "f|g")];
    assert_eq!(chosen[0].matchers, matchers);
    assert_eq!(groups, ["a".to_owned(), "b".to_owned()].into());
    let known = series("# HELP x\ntaskpass_x_total{c=\"d\",e=\"f\"} 0\n");
    let why = missing(&chosen[0], &groups, &known).unwrap();
    assert!(why.contains("e=\"g\""), "{why}");
    let why = missing(&read("taskpass_y").0[0], &groups, &known).unwrap();
    assert_eq!(why, "it has no series");
}
