//! Exporting the ledger: the real binary on both stores, a receiver that misbehaves, kills between
//! deliveries, and entries whose bodies were pruned.

mod guide;
mod offline;
mod pruned;
mod replicas;
mod sinks;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use taskpass::config::{Config, Mode};
use taskpass::export::{Exporter, ExporterParts};
use taskpass::merkle::leaf_hash;
use taskpass::metrics::Metrics;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::canary::Canaries;
use crate::support::configuration::Configuration;
use crate::support::fleet::{Fleet, Replica, SINK_SECRET, body, whole_log};
use crate::support::http::Client;
use crate::support::process::Launch;
use crate::support::receiver::{Delivery, Receiver, Reply};
use crate::support::rig::{Kind, POLICIES, Rig, ask};
use crate::support::{SOON, block_on, random_bytes, until, wait_until};

/// Free text of a caller. A sink receives it only if configured so.
const PURPOSE: &str = "monthly numbers for Ann";

/// A sink with a time limit so long that even a busy machine delivers each event once.
fn webhook(receiver: &Receiver, more: &str) -> String {
    hasty_webhook(receiver, 30, more)
}

/// The same with a time limit short enough to wait for. A delivery that takes longer is repeated:
/// delivery is at least once, not exactly once.
fn hasty_webhook(receiver: &Receiver, timeout_seconds: u32, more: &str) -> String {
    format!(
        "[[export]]\nname = \"siem\"\nformat = \"cloudevents\"\nto = \"webhook\"\nurl = \"{}\"\n\
         secret_file = \"sink.secret\"\ntimeout_seconds = {timeout_seconds}\nrevision = 1\n{more}\n",
        receiver.url()
    )
}

/// The value of a metric of a replica; `None` if the replica does not report it.
async fn metric(fleet: &Fleet, replica: &Replica, name: &str) -> Option<u64> {
    let metrics = replica.client.get_as(&fleet.admin, "/metrics").await;
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map(|value| value.trim().parse().unwrap())
}

async fn lag(fleet: &Fleet, replica: &Replica, sink: &str) -> Option<u64> {
    let name = format!("taskpass_export_lag_entries{{sink=\"{sink}\"}}");
    metric(fleet, replica, &name).await
}

/// Waits until the receiver has accepted every leaf of the log. Returns the leaves.
async fn all_taken(fleet: &Fleet, replica: &Replica, receiver: &Receiver) -> Vec<Vec<u8>> {
    let leaves = whole_log(fleet, replica).await.1;
    until("the receiver accepted every leaf", SOON, async || {
        let taken = receiver.taken();
        let ids: BTreeSet<&str> = taken.iter().map(Delivery::id).collect();
        ids.len() == leaves.len()
    })
    .await;
    leaves
}

/// Waits until a metric of the sink has this value.
async fn is_metric(fleet: &Fleet, replica: &Replica, name: &str, sink: &str, value: u64) {
    let name = format!("taskpass_export_{name}{{sink=\"{sink}\"}}");
    until(&format!("{name} is {value}"), SOON, async || {
        metric(fleet, replica, &name).await == Some(value)
    })
    .await;
}

/// Sends a request with a purpose.
async fn granted(fleet: &Fleet, replica: &Replica) -> Value {
    let mut request = body();
    request["task"]["purpose"] = PURPOSE.into();
    let token = fleet.token();
    let asked = replica
        .client
        .post_json(&token, "/v1/credentials", &request);
    asked.await.expect(201)
}

async fn revoke(fleet: &Fleet, replica: &Replica, granted: &Value) {
    let path = format!(
        "/v1/sessions/{}/revoke",
        granted["session"]["id"].as_str().unwrap()
    );
    let reason = json!({"reason": "for Ben"});
    let revoked = replica.client.post_json(&fleet.admin, &path, &reason);
    revoked.await.expect(200);
}

/// The lines of a file, each one an event.
fn lines(text: &str) -> Vec<Value> {
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "whole lines: {text}"
    );
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

fn index(event: &Value) -> u64 {
    event["data"]["index"].as_u64().unwrap()
}

/// The accepted events, one for each id. Checks every signature, and that repeated deliveries are
/// equal.
fn once(deliveries: &[Delivery]) -> Vec<Value> {
    let mut seen: BTreeMap<String, &[u8]> = BTreeMap::new();
    let mut first = Vec::new();
    for delivery in deliveries {
        assert!(delivery.verifies(SINK_SECRET), "{delivery:?}");
        let other = SINK_SECRET.replace("MfKQ", "AAAA");
        assert!(!delivery.verifies(&other));
        assert_eq!(
            delivery.header("content-type"),
            "application/cloudevents+json; charset=utf-8"
        );
        let event = delivery.json();
        assert_eq!(event["id"], delivery.id());
        match seen.insert(delivery.id().to_owned(), &delivery.body) {
            Some(before) => assert_eq!(
                before, delivery.body,
                "a repeated delivery has the same body"
            ),
            None => first.push(event),
        }
    }
    first
}

/// Asserts that no event is missing and that each session's events are in order. An event about no
/// single session must follow all earlier events and precede all later ones.
fn assert_complete_and_ordered(events: &[Value], leaves: &[Vec<u8>]) {
    let mut told: Vec<u64> = events.iter().map(index).collect();
    for (at, event) in events.iter().enumerate() {
        let (before, after) = (&events[..at], &events[at + 1..]);
        let own = index(event);
        let session = event.get("partitionkey");
        let alone = session.is_none();
        let related = |other: &&Value| alone || other.get("partitionkey") == session;
        assert!(
            before
                .iter()
                .filter(related)
                .all(|other| index(other) < own),
            "{own}: {told:?}"
        );
        assert!(
            after.iter().filter(related).all(|other| index(other) > own),
            "{own}: {told:?}"
        );
    }
    told.sort_unstable();
    assert_eq!(told, (0..leaves.len() as u64).collect::<Vec<_>>());
    for event in events {
        let leaf = &leaves[usize::try_from(index(event)).unwrap()];
        assert_eq!(event["data"]["leaf_hash"], leaf_hash(leaf).to_string());
        assert_eq!(
            event["data"]["leaf"],
            serde_json::from_slice::<Value>(leaf).unwrap()
        );
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one sequence of events, checked at three sinks"
)]
async fn everything_is_told(kind: Kind) {
    let receiver = Receiver::start([]);
    let sinks = webhook(&receiver, "")
        + "[[export]]\nname = \"disk\"\nformat = \"ocsf\"\nto = \"file\"\npath = \"events.jsonl\"\n\
           [[export]]\nname = \"out\"\nformat = \"cloudevents\"\nto = \"stdout\"\nfree_text = true\n";
    let (fleet, mut replica) = Fleet::on(kind).tables(&sinks).start().await;
    let mut canaries = Canaries::new();
    canaries.add("admin token", &fleet.admin);
    canaries.add("webhook secret", SINK_SECRET);
    for _ in 0..3 {
        let granted = granted(&fleet, &replica).await;
        canaries.add(
            "credential",
            granted["credential"]["access_token"].as_str().unwrap(),
        );
        canaries.add("handle", granted["task"]["handle"].as_str().unwrap());
        revoke(&fleet, &replica, &granted).await;
    }
    let mut greedy = body();
    greedy["ttl_seconds"] = json!(601);
    let token = fleet.token();
    let denied = replica.client.post_json(&token, "/v1/credentials", &greedy);
    denied.await.expect(403);
    let selector =
        json!({"selector": {"resource": "orders-api"}, "block_seconds": 0, "reason": "for Ben"});
    let cut = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &selector);
    assert!(cut.await.status < 300);
    let leaves = whole_log(&fleet, &replica).await.1;
    for sink in ["siem", "disk", "out"] {
        is_metric(
            &fleet,
            &replica,
            "delivered_total",
            sink,
            leaves.len() as u64,
        )
        .await;
        is_metric(&fleet, &replica, "lag_entries", sink, 0).await;
        is_metric(&fleet, &replica, "lag_seconds", sink, 0).await;
    }

    let taken = receiver.taken();
    assert_eq!(taken.len(), leaves.len(), "no event is delivered twice");
    let events = once(&taken);
    assert_complete_and_ordered(&events, &leaves);
    let kinds: BTreeSet<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    for kind in [
        "genesis",
        "activated",
        "decision.permit",
        "decision.deny",
        "session_ended",
        "cutoff",
    ] {
        assert!(
            kinds.contains(format!("taskpass.{kind}").as_str()),
            "{kind}: {kinds:?}"
        );
    }

    let file = std::fs::read_to_string(replica.process.dir().join("events.jsonl")).unwrap();
    let ocsf = lines(&file);
    assert_eq!(ocsf.len(), leaves.len());
    for (at, (event, leaf)) in ocsf.iter().zip(&leaves).enumerate() {
        assert_eq!(event["metadata"]["sequence"], at);
        assert_eq!(event["raw_data"].as_str().unwrap().as_bytes(), leaf);
        assert_eq!(
            event["metadata"]["uid"],
            events.iter().find(|e| index(e) == at as u64).unwrap()["id"]
        );
    }
    let classes: BTreeSet<u64> = ocsf
        .iter()
        .map(|event| event["class_uid"].as_u64().unwrap())
        .collect();
    assert_eq!(classes, BTreeSet::from([3002, 3003, 3004]));

    replica.process.terminate();
    let out = replica.process.stdout();
    let told = lines(&out);
    assert_eq!(
        told.iter().map(index).collect::<Vec<_>>(),
        (0..leaves.len() as u64).collect::<Vec<_>>()
    );
    // Only the sink with `free_text` received the callers' text.
    let texts = told
        .iter()
        .filter(|event| event["data"]["free_text"] == PURPOSE);
    assert_eq!(texts.count(), 3);
    assert!(
        told.iter()
            .any(|event| event["data"]["free_text"] == "for Ben")
    );
    let sent: Vec<u8> = taken
        .iter()
        .flat_map(|delivery| delivery.body.clone())
        .collect();
    let sent = String::from_utf8(sent).unwrap();
    for text in [PURPOSE, "for Ben"] {
        assert!(!sent.contains(text) && !file.contains(text), "{text}");
    }
    canaries.assert_absent_in_text("webhooks", &sent);
    canaries.assert_absent_in_text("the file", &file);
    canaries.assert_absent_in_text("standard output", &out);
    canaries.assert_absent_in_text("the log", replica.process.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_recorded_is_told_to_every_sink_on_sqlite() {
    everything_is_told(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_recorded_is_told_to_every_sink_on_postgresql() {
    everything_is_told(Kind::Postgres).await;
}

/// An exporter in this process, on a rig's store.
struct Exporting {
    stop: CancellationToken,
    running: JoinHandle<Result<(), Infallible>>,
    /// Number of times the exporter checked its clock.
    asked: Arc<AtomicUsize>,
}

impl Exporting {
    fn start(rig: &Rig, sinks: &str, path: &Path, replica: &str, right: &Arc<AtomicBool>) -> Self {
        let tables = format!(
            "[[attestors]]\nkind = \"oidc\"\nname = \"ci\"\nissuer = \"https://ci.example\"\n\
             audience = \"https://broker.example\"\n\
             algorithms = [\"RS256\"]\nidentity = \"{{sub}}\"\nsingle_tenant = true\n{sinks}"
        );
        let text = Configuration {
            origin: "dev.taskpass.local/rig",
            tables: &tables,
            ..Configuration::default()
        }
        .text();
        let environment: BTreeMap<String, String> = BTreeMap::new();
        let config =
            Config::parse(&path.join("taskpass.toml"), &text, &environment, Mode::Dev).unwrap();
        let right = Arc::clone(right);
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let parts = ExporterParts {
            ledger: rig.broker.core.ledger().clone(),
            replica: replica.to_owned(),
            clock: Arc::clone(&rig.clock) as _,
            goes_by_the_right_clock: Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                right.load(Ordering::SeqCst)
            }),
            metrics: Arc::new(Metrics::new()),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Exporter::new(&config, parts).unwrap().run(stop.clone()));
        Self {
            stop,
            running,
            asked,
        }
    }

    /// Waits until the exporter has done several rounds. Each round checks the clock, and so does
    /// each measurement of the lag, which is rarer.
    async fn some_rounds(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        until("the exporter has done several rounds", SOON, async || {
            self.asked.load(Ordering::SeqCst) >= before + 5
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// The events of a file, once it has so many.
async fn written(file: &Path, entries: usize) -> Vec<Value> {
    until("the events are written", SOON, async || {
        std::fs::read_to_string(file).is_ok_and(|text| text.lines().count() >= entries)
    })
    .await;
    lines(&std::fs::read_to_string(file).unwrap())
}

/// Runs an exporter until it has written so many entries.
async fn export_from(rig: &Rig, sinks: &str, path: &Path, entries: usize) -> Vec<Value> {
    let right = Arc::new(AtomicBool::new(true));
    let exporting = Exporting::start(rig, sinks, path, "exporter", &right);
    let events = written(&path.join("events"), entries).await;
    exporting.stop().await;
    events
}
