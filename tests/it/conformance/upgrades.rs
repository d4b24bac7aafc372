//! Stores of earlier schemas, with rows: a migration loses no used evidence and no
//! `Idempotency-Key`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::*;

/// The last schema whose keys of used evidence and of `Idempotency-Key`s have no time.
const WITHOUT_TIMES: i64 = 4;

/// The migrations up to a version.
async fn migrations(directory: &str, last: i64) -> Migrator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut migrator = Migrator::new(path).await.unwrap();
    let kept = migrator.migrations.iter().filter(|one| one.version <= last);
    migrator.migrations = kept.cloned().collect();
    migrator
}

fn used(seconds: i64) -> OneTime {
    OneTime {
        key: [0xab; 32],
        binding: None,
        must_be_new: false,
        issued_at: Timestamp::from_seconds(seconds),
        expires_at: Timestamp::from_seconds(seconds + 60),
    }
}

/// Checks that the rows which an earlier broker wrote are found, and that a newer use of the key is
/// the one that counts.
async fn rows_are_found(store: &Store) {
    let key = [0xcd; 32];
    let now = Timestamp::from_seconds(1_800_000_000);
    let found = store.retry(&key, now).await.unwrap().unwrap();
    assert_eq!((found.fingerprint, found.supersedes), ([0xef; 32], 7));
    let once = used(1_800_000_000);
    let needs = Needs {
        now: Some(now),
        one_time: vec![once.id(), once.earlier_id()],
        retries: vec![key],
        ..Needs::default()
    };
    let mut connection = store.ledger_connection().await.unwrap();
    let view = connection.enter(&needs).await.unwrap();
    connection.rollback().await.unwrap();
    let ids: Vec<_> = view.used.keys().copied().collect();
    assert_eq!(ids, [once.earlier_id()]);
    assert_eq!(view.retries[&key], found);
}

#[tokio::test]
async fn used_evidence_and_keys_of_an_earlier_schema_count_on_postgresql() {
    let database = fresh_database();
    let mut own = database.connect().await;
    let run = async |own: &mut sqlx::PgConnection, sql: String| {
        let ran = sqlx::raw_sql(AssertSqlSafe(sql)).execute(own).await;
        ran.unwrap();
    };
    run(
        &mut own,
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public".into(),
    )
    .await;
    let earlier = migrations("migrations/postgres", WITHOUT_TIMES).await;
    earlier.run(&mut own).await.unwrap();
    let bytes = |byte: &str, count| format!("'\\x{}'", byte.repeat(count));
    run(
        &mut own,
        format!(
            "INSERT INTO one_time (key, expires_at) VALUES ({}, '2100-01-01Z'); \
             INSERT INTO retry (key, fingerprint, session_id, task_id, supersedes, expires_at) \
             VALUES ({}, {}, gen_random_uuid(), gen_random_uuid(), 7, '2100-01-01Z')",
            bytes("ab", 32),
            bytes("cd", 32),
            bytes("ef", 32),
        ),
    )
    .await;
    let url = SecretString::from(database.url());
    let connected = Postgres::connect(&url, PostgresSettings::default());
    let postgres = connected.await.unwrap();
    postgres.migrate().await.unwrap();
    let store = Store::Postgres(postgres);
    rows_are_found(&store).await;
    store.close().await;
}

#[tokio::test]
async fn used_evidence_and_keys_of_an_earlier_schema_count_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("taskpass.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .foreign_keys(true);
    let mut own = SqliteConnection::connect_with(&options).await.unwrap();
    let earlier = migrations("migrations/sqlite", WITHOUT_TIMES).await;
    earlier.run(&mut own).await.unwrap();
    let bytes = |byte: &str, count| format!("x'{}'", byte.repeat(count));
    let rows = format!(
        "INSERT INTO one_time (key, expires_at) VALUES ({}, 4102444800000000); \
         INSERT INTO retry (key, fingerprint, session_id, task_id, supersedes, expires_at) \
         VALUES ({}, {}, randomblob(16), randomblob(16), 7, 4102444800000000)",
        bytes("ab", 32),
        bytes("cd", 32),
        bytes("ef", 32),
    );
    let inserted = sqlx::raw_sql(AssertSqlSafe(rows)).execute(&mut own).await;
    inserted.unwrap();
    own.close().await.unwrap();
    for (path, mode) in [(file.as_path(), 0o600), (directory.path(), 0o700)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let store = Store::Sqlite(Sqlite::open(directory.path(), 2).await.unwrap());
    rows_are_found(&store).await;
    store.close().await;
}
