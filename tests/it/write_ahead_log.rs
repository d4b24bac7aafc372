//! SQLite's write-ahead log while a process reads for a long time.

use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _};
use taskpass::broker::BrokerError;
use taskpass::store::Store;

use crate::support::fleet::Fleet;
use crate::support::http::assert_problem;
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, until};

const MIB: u64 = 1024 * 1024;

fn log_of(directory: &std::path::Path) -> PathBuf {
    directory.join("data/taskpass.sqlite-wal")
}

fn size(log: &std::path::Path) -> u64 {
    std::fs::metadata(log).map_or(0, |file| file.len())
}

/// A reader like a backup: it keeps the database's state at its start.
async fn reader(directory: &std::path::Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(directory.join("data/taskpass.sqlite"))
        .read_only(true);
    let mut reader = SqliteConnection::connect_with(&options).await.unwrap();
    reader.execute("BEGIN").await.unwrap();
    reader.execute("SELECT count(*) FROM leaf").await.unwrap();
    reader
}

/// Writes so many mebibytes, as traffic would.
async fn write(rig: &Rig, mebibytes: u32) {
    let Store::Sqlite(sqlite) = rig.broker.core.store() else {
        panic!("the store is not SQLite");
    };
    let made = "CREATE TABLE IF NOT EXISTS traffic (bytes BLOB)";
    sqlite.writer().execute(made).await.unwrap();
    for _ in 0..mebibytes {
        let row = "INSERT INTO traffic VALUES (randomblob(1048576))";
        sqlite.writer().execute(row).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_is_cut_off_once_a_long_reader_has_gone() {
    let rig = Rig::on(Kind::Sqlite).start().await;
    let log = log_of(rig.directory());
    let store = rig.broker.core.store();
    let reading = reader(rig.directory()).await;
    write(&rig, 20).await;
    let held = store.bound_log().await.unwrap().unwrap();
    assert!(held > 20 * MIB, "{held} bytes: the reader holds them");
    assert_eq!(size(&log), held);
    reading.close().await.unwrap();
    // The reader may be in the way for a moment, so retry.
    until("the log is truncated", SOON, async || {
        store.bound_log().await.unwrap() == Some(0)
    })
    .await;
    assert_eq!(size(&log), 0);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_limit_nothing_is_issued_and_everything_can_be_revoked() {
    let rig = Rig::on(Kind::Sqlite).start().await;
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let Store::Sqlite(sqlite) = rig.broker.core.store() else {
        panic!("the store is not SQLite");
    };
    sqlite.limit_log(16 * MIB);
    let reading = reader(rig.directory()).await;
    write(&rig, 18).await;
    rig.broker.core.store().bound_log().await.unwrap();
    let refused = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap_err();
    assert!(matches!(refused, BrokerError::Overloaded), "{refused:?}");
    let unready = rig.broker.health.unready().unwrap();
    assert!(
        unready.contains("taskpass.sqlite-wal") && unready.contains("end it"),
        "{unready}"
    );
    rig.revoke(issued.session.id).await;
    assert!(!rig.is_good(&issued).await);
    reading.close().await.unwrap();
    until("the log is truncated", SOON, async || {
        rig.broker.core.store().bound_log().await.unwrap() == Some(0)
    })
    .await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_write_ahead_log_is_measured_and_told_and_recovers_by_itself() {
    let (fleet, replica) = Fleet::sqlite()
        .sqlite_settings("max_wal_bytes = 16777216")
        .start()
        .await;
    let directory = replica.process.dir();
    let reading = reader(directory).await;
    until("the broker issues no more credentials", SOON, async || {
        let tokens: Vec<String> = (0..8).map(|_| fleet.token()).collect();
        let asked = tokens.iter().map(|token| replica.ask(token));
        let answers = futures_util::future::join_all(asked).await;
        answers.iter().any(|answer| answer.status == 503)
    })
    .await;
    let refused = replica.ask(&fleet.token()).await;
    assert_problem(&refused, 503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    let unready = replica.client.get("/readyz").await;
    assert_problem(&unready, 503, "unready");
    let told = "the write-ahead log grows: a process reads an old state of the database; end it";
    until("the broker logs the cause", SOON, async || {
        replica.process.stderr().contains(told)
    })
    .await;
    until("the metric shows the size", SOON, async || {
        let metrics = replica.client.get("/metrics").await.text();
        let name = "taskpass_sqlite_wal_bytes ";
        let bytes = metrics.lines().find_map(|line| line.strip_prefix(name));
        bytes.unwrap().parse::<u64>().unwrap() >= 16 * MIB
    })
    .await;
    reading.close().await.unwrap();
    until("the log is truncated", SOON, async || {
        size(&log_of(directory)) < MIB
    })
    .await;
    until("the broker is ready", SOON, async || {
        replica.client.get("/readyz").await.status == 200
    })
    .await;
    replica.ask(&fleet.token()).await.expect(201);
}
