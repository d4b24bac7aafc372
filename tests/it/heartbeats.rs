//! The cost of a heartbeat: at most three statements, counting everything sent to the database.

use std::collections::BTreeMap;

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::SqlitePool;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::task::{Task, TaskState};
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
        "cutoffs_after",
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
