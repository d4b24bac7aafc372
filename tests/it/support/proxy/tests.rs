//! The proxy on a real server.

use super::*;
use crate::support::postgres::empty_database;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use std::time::Instant;
use tokio::time::timeout;

const SHORT: Duration = Duration::from_millis(300);

/// A database with an empty table, and a proxy in front of it.
async fn stage() -> (TestDatabase, Proxy) {
    let database = empty_database();
    let mut direct = database.connect().await;
    direct.execute("CREATE TABLE t (x int)").await.unwrap();
    let proxy = Proxy::before(&database);
    (database, proxy)
}

async fn through(proxy: &Proxy, database: &TestDatabase) -> PgConnection {
    PgConnection::connect(&database.url_via(proxy.address()))
        .await
        .unwrap()
}

async fn rows(database: &TestDatabase) -> Vec<i32> {
    sqlx::query_scalar("SELECT x FROM t ORDER BY x")
        .fetch_all(&mut database.connect().await)
        .await
        .unwrap()
}

/// Inserts a row in a transaction whose first statement carries a comment.
async fn insert(client: &mut PgConnection, x: i32, comment: &str) -> sqlx::Result<()> {
    let mut transaction = client.begin().await?;
    sqlx::query(AssertSqlSafe(format!(
        "/* {comment} */ INSERT INTO t VALUES ($1)"
    )))
    .bind(x)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

#[test]
fn a_commit_is_recognised() {
    for sql in [
        "COMMIT",
        "commit;",
        " /* x; */ COMMIT",
        "-- x\nEND",
        "INSERT INTO t VALUES (1); COMMIT",
    ] {
        assert!(matches!(last_verb(sql).as_str(), "COMMIT" | "END"), "{sql}");
    }
    for sql in ["", "COMMITTED", "SELECT 'COMMIT'", "-- COMMIT", "/* COMMIT"] {
        assert!(
            !matches!(last_verb(sql).as_str(), "COMMIT" | "END"),
            "{sql}"
        );
    }
}

#[tokio::test]
async fn it_passes_what_it_should() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    insert(&mut client, 1, "").await.unwrap();
    let large: String = sqlx::query_scalar("SELECT repeat('x', 3000000)")
        .fetch_one(&mut client)
        .await
        .unwrap();
    assert_eq!(large.len(), 3_000_000);
    assert_eq!(rows(&database).await, [1]);
    assert_eq!(
        (proxy.connections(), proxy.commits(), proxy.caught()),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn the_answer_to_commit_is_lost_and_the_row_is_there() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    proxy.arm(At::Answer, Fault::Cut);
    insert(&mut client, 1, "").await.unwrap_err();
    assert_eq!(rows(&database).await, [1]);
    assert_eq!((proxy.caught(), proxy.commits()), (1, 1));

    // Only that connection is affected; the next one works.
    let mut next = through(&proxy, &database).await;
    insert(&mut next, 2, "").await.unwrap();
    assert_eq!(rows(&database).await, [1, 2]);
}

#[tokio::test]
async fn a_prepared_commit_is_caught_too() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    for x in [1, 2] {
        if x == 2 {
            proxy.arm(At::Answer, Fault::Cut);
        }
        client.execute("BEGIN").await.unwrap();
        sqlx::query("INSERT INTO t VALUES ($1)")
            .bind(x)
            .execute(&mut client)
            .await
            .unwrap();
        // The first time, the statement's text is sent; the second time, only its name.
        let committed = sqlx::query("COMMIT")
            .persistent(true)
            .execute(&mut client)
            .await;
        assert_eq!(committed.is_ok(), x == 1);
    }
    assert_eq!(rows(&database).await, [1, 2]);
}

#[tokio::test]
async fn a_commit_that_never_arrives_looks_the_same_and_leaves_no_row() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    proxy.arm(At::Request, Fault::Cut);
    insert(&mut client, 1, "").await.unwrap_err();
    assert_eq!(rows(&database).await, Vec::<i32>::new());
    assert_eq!((proxy.caught(), proxy.commits()), (1, 0));
}

#[tokio::test]
async fn the_nth_commit_of_one_function_is_caught_and_no_other() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    proxy.arm_for("ledger_append", 1, At::Answer, Fault::Cut);
    insert(&mut client, 1, "heartbeat").await.unwrap();
    insert(&mut client, 2, "ledger_append").await.unwrap();
    insert(&mut client, 3, "heartbeat").await.unwrap();
    insert(&mut client, 4, "ledger_append").await.unwrap_err();
    assert_eq!(rows(&database).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_commit_is_held_on_either_side_until_released() {
    let (database, proxy) = stage().await;
    for (at, x, visible) in [(At::Request, 1, 0), (At::Answer, 2, 2)] {
        let mut client = through(&proxy, &database).await;
        proxy.arm(at, Fault::Hold);
        let inserting = tokio::spawn(async move { insert(&mut client, x, "").await });
        let wanted = proxy.caught() + 1;
        crate::support::until("the COMMIT is held", SOON, async || {
            proxy.caught() == wanted
        })
        .await;
        assert_eq!(rows(&database).await.len(), visible);
        assert!(!inserting.is_finished());
        proxy.release();
        inserting.await.unwrap().unwrap();
    }
    assert_eq!(rows(&database).await, [1, 2]);
}

#[tokio::test]
async fn one_statement_is_caught_on_either_side() {
    let (database, proxy) = stage().await;
    for (at, x) in [(At::Request, 1), (At::Answer, 2)] {
        let mut client = through(&proxy, &database).await;
        proxy.arm_statement("the_one", at, Fault::Cut);
        insert(&mut client, 10 * x, "another").await.unwrap();
        insert(&mut client, x, "the_one").await.unwrap_err();
    }
    // Whether executed or not, the statement was never committed.
    assert_eq!(rows(&database).await, [10, 20]);

    let mut client = through(&proxy, &database).await;
    proxy.arm_statement("the_one", At::Answer, Fault::Hold);
    let sql = "/* the_one */ INSERT INTO t VALUES (3)";
    let inserting = tokio::spawn(async move { client.execute(sql).await.map(drop) });
    crate::support::until("the statement is held", SOON, async || proxy.caught() == 3).await;
    assert_eq!(rows(&database).await, [3, 10, 20]);
    assert!(!inserting.is_finished());
    proxy.release();
    inserting.await.unwrap().unwrap();
}

#[tokio::test]
async fn stalled_traffic_waits_and_goes_on() {
    let (database, proxy) = stage().await;
    let mut client = through(&proxy, &database).await;
    for (mode, x) in [
        (Mode::Stall, 1),
        (Mode::StallToServer, 2),
        (Mode::StallToClient, 3),
    ] {
        proxy.set(mode);
        let insert = sqlx::query("INSERT INTO t VALUES ($1)").bind(x);
        let inserting = insert.execute(&mut client);
        tokio::pin!(inserting);
        assert!(timeout(SHORT, &mut inserting).await.is_err(), "{mode:?}");
        // The statement was prepared in the first round, so one message suffices.
        if mode == Mode::StallToClient {
            crate::support::until("the row arrived", SOON, async || {
                rows(&database).await.contains(&x)
            })
            .await;
        } else {
            assert!(!rows(&database).await.contains(&x), "{mode:?}");
        }
        proxy.set(Mode::Pass);
        timeout(SOON, inserting).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn weather_delays_refuses_and_cuts() {
    let (database, proxy) = stage().await;
    let url = database.url_via(proxy.address());
    let mut client = through(&proxy, &database).await;
    proxy.set(Mode::Delay(SHORT));
    let begin = Instant::now();
    client.execute("SELECT 1").await.unwrap();
    assert!(begin.elapsed() >= SHORT * 2);

    proxy.set(Mode::Refuse);
    PgConnection::connect(&url).await.unwrap_err();
    client.execute("SELECT 1").await.unwrap();
    proxy.cut();
    client.execute("SELECT 1").await.unwrap_err();

    proxy.set(Mode::Pass);
    through(&proxy, &database).await;
    drop(proxy);
    PgConnection::connect(&url).await.unwrap_err();
}
