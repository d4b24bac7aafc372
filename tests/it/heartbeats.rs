//! The cost of a heartbeat: at most three statements, counting everything sent to the database, as
//! long as no cutoff is newer than its sessions. And the blocks that refuse it.

use std::collections::BTreeMap;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::SqlitePool;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::crypto::SealingKeys;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::cutoff::{Cutoff, Selector, True};
use taskpass::domain::task::{Task, TaskState};
use taskpass::domain::workload::encode_value;
use taskpass::ids::TaskId;
use taskpass::store::Store;
use taskpass::store::append::{Needs, Writes};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::sqlite::Sqlite;
use uuid::Uuid;

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Answer, send};
use crate::support::postgres::fresh_database;
use crate::support::proxy::Proxy;
use crate::support::rig::{Kind, Rig, ask, ask_in, child_of};
use crate::support::sqlite::fresh_sqlite;

/// Number of heartbeats in a row.
const BEATS: usize = 5;

/// The label in a statement's comment.
fn label(sql: &str) -> &str {
    let comment = sql.split_once("/* ").map(|(_, rest)| rest);
    let named = comment.and_then(|rest| rest.split_once(" */"));
    named.map_or(sql, |(label, _)| label)
}

async fn heartbeat(replica: &Replica, granted: &Value) -> Answer {
    let task = &granted["task"];
    let path = format!("/v1/tasks/{}/heartbeat", task["id"].as_str().unwrap());
    let handle = format!("Handle {}", task["handle"].as_str().unwrap());
    let request = replica.client.request(Method::POST, &path);
    send(request.header("authorization", handle).json(&json!({}))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_by_handle_is_two_statements_behind_one_check_of_the_server() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let granted = replica.ask(&fleet.token()).await.expect(201);
    heartbeat(&replica, &granted).await.expect(200);

    replica.proxy.record();
    for _ in 0..BEATS {
        let told = heartbeat(&replica, &granted).await.expect(200);
        assert_eq!(told["sessions"][0]["id"], granted["session"]["id"]);
        assert_eq!(told["sessions"][0]["state"], "active");
    }
    let recorded = replica.proxy.recorded();
    let mut connections: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (connection, sql) in &recorded {
        connections.entry(*connection).or_default().push(label(sql));
    }
    let mut beats = 0;
    for labels in connections.values() {
        for (n, one) in labels.iter().enumerate() {
            if *one == "heartbeat" {
                beats += 1;
                assert_eq!(labels[n - 2..n], ["fence", "task_view"], "{labels:?}");
            }
        }
    }
    assert_eq!(beats, BEATS);
    let count = |wanted: &str| {
        let same = recorded.iter().filter(|(_, sql)| label(sql) == wanted);
        same.count()
    };
    assert_eq!(count("task_view"), BEATS, "one read for each heartbeat");
    for other in [
        "task",
        "task_chains",
        "sessions_under",
        "ancestors",
        "cutoffs_of",
    ] {
        assert_eq!(count(other), 0, "{other}");
    }
    // The ledger may append entries of its own meanwhile.
    assert!(count("ledger_lock") < BEATS, "no append for each");
}

fn task() -> Task {
    let at = taskpass::clock::Timestamp::from_seconds(1_800_000_000);
    Task {
        id: TaskId::from(Uuid::from_u128(1)),
        task_type: "job".into(),
        attestor: "dev".into(),
        owner: "dev:a".to_owned().try_into().unwrap(),
        owner_instance: None,
        parent: None,
        depth: 1,
        state: TaskState::Open,
        opened_at: at,
        deadline: at.plus_seconds(1_000),
        heartbeat_seconds: Some(60),
        heard_at: at,
        ended_at: None,
        handle_digest: [1; 32],
        handle_key: None,
        attestor_digest: [7; 32],
        sessions_left: 5,
        leaf_index: 0,
    }
}

async fn seed(store: &Store) {
    let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
    store.authenticate_with(&SealingKeys::parse(&[key]).unwrap().mac("o"));
    let writes = Writes {
        tasks: vec![task()],
        ..Writes::default()
    };
    let mut connection = store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    connection.write(&writes).await.unwrap();
    connection.commit().await.unwrap();
}

async fn beat(store: &Store) {
    let now = task().opened_at.plus_seconds(30);
    let held = store.hold_task(task().id, now).await.unwrap().unwrap();
    let as_of = held.view.as_of;
    let heard = held.hear(now, Some(as_of), 9).await.unwrap().unwrap();
    assert_eq!(heard.heard_at, now);
}

#[tokio::test]
async fn nothing_else_is_sent_to_postgresql() {
    let database = fresh_database();
    let proxy = Proxy::before(&database);
    let url = SecretString::from(database.url_via(proxy.address()));
    let connected = Postgres::connect(&url, PostgresSettings::default());
    let store = Store::Postgres(connected.await.unwrap());
    store.ensure_partitions(0).await.unwrap();
    seed(&store).await;
    proxy.record();
    beat(&store).await;
    let recorded = proxy.recorded();
    let labels: Vec<&str> = recorded.iter().map(|(_, sql)| label(sql)).collect();
    assert_eq!(labels, ["fence", "task_view", "heartbeat"]);
    store.close().await;
}

/// Number of different statements that a pool's only connection has run so far.
async fn statements(pool: &SqlitePool) -> usize {
    let connection = pool.acquire().await.unwrap();
    connection.cached_statements_size()
}

#[tokio::test]
async fn sqlite_runs_three_statements() {
    let file = fresh_sqlite();
    let store = Store::Sqlite(Sqlite::open(file.dir(), 1).await.unwrap());
    seed(&store).await;
    let Store::Sqlite(sqlite) = &store else {
        unreachable!()
    };
    // Let the pool run the statements with which it takes a connection back, so that they are not
    // counted.
    statements(sqlite.writer()).await;
    let before = [
        statements(sqlite.readers()).await,
        statements(sqlite.writer()).await,
    ];
    beat(&store).await;
    let after = [
        statements(sqlite.readers()).await,
        statements(sqlite.writer()).await,
    ];
    let run = [after[0] - before[0], after[1] - before[1]];
    assert_eq!(run, [2, 1], "two that read and one that writes");
    store.close().await;
}

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

async fn cut_off(rig: &Rig, selector: &Selector, block: BlockRequest) -> Cutoff {
    let asked = RevokeRequest {
        selector: selector.clone(),
        block,
        deny_all_earlier_sessions: false,
        reason: "test".into(),
        allow_unknown: true,
        dry_run: false,
    };
    let revoked = rig.broker.revocation.revoke_many(&rig.admin(), asked).await;
    revoked.unwrap().cutoff.unwrap()
}

fn workload(sub: &str) -> Selector {
    let identity = format!("dev:{}", encode_value(sub));
    Selector::Workload(identity.try_into().unwrap())
}

on_both_stores! {
    fn a_heartbeat_is_refused_exactly_while_a_block_concerns_its_task_or_an_ancestor;
}

async fn a_heartbeat_is_refused_exactly_while_a_block_concerns_its_task_or_an_ancestor(rig: Rig) {
    let parent = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    let under = ask_in(child_of(parent.task.id, &lent), &["orders:read"]);
    let child = rig.issue("agent:child", under).await.unwrap();
    let other = rig
        .issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.heartbeat(&child).await.unwrap();
    for selector in [
        workload("agent:child"),
        workload("agent:reports"),
        Selector::Attestor("dev".into()),
        Selector::All(True),
    ] {
        let refused = async || {
            let heard = rig.heartbeat(&child).await;
            assert!(
                matches!(heard, Err(BrokerError::Blocked(_))),
                "{selector}: {heard:?}"
            );
        };
        cut_off(&rig, &selector, BlockRequest::Seconds(9)).await;
        refused().await;
        rig.clock.advance(9);
        rig.heartbeat(&child).await.unwrap();
        let cutoff = cut_off(&rig, &selector, BlockRequest::UntilLifted).await;
        refused().await;
        rig.broker
            .revocation
            .lift(&rig.admin(), cutoff.id)
            .await
            .unwrap();
        rig.heartbeat(&child).await.unwrap();
        cut_off(&rig, &selector, BlockRequest::Seconds(0)).await;
        rig.heartbeat(&child).await.unwrap();
    }
    for selector in [
        workload("agent:orders"),
        Selector::Attestor("other".into()),
        Selector::Task(other.task.id),
        Selector::Resource("orders-api".into()),
    ] {
        cut_off(&rig, &selector, BlockRequest::UntilLifted).await;
        rig.heartbeat(&child).await.unwrap();
    }
    cut_off(&rig, &Selector::Task(parent.task.id), BlockRequest::Default).await;
    assert!(
        rig.heartbeat(&child).await.is_err(),
        "the ancestor has ended"
    );
}
