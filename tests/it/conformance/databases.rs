//! Properties of one kind of database: rights of the serving role, warnings, files, migrations.

use super::*;
use crate::support::postgres::{SERVING, serving};

/// Checks the rights of the serving role, acting as that role.
#[tokio::test]
async fn the_serving_role_changes_no_leaf_tile_head_or_generation() {
    let database = fresh_database();
    let url = SecretString::from(database.url());
    let owner = Postgres::connect(&url, PostgresSettings::default());
    let owner = owner.await.unwrap();
    let store = Store::Postgres(owner.clone());
    store.ensure_partitions(0).await.unwrap();
    let writes = Writes {
        leaves: vec![leaf(0)],
        head: Some(sealed(1, 1)),
        ..Writes::default()
    };
    seed(&store, writes).await;
    let role = format!("serving_{}", database.name().to_lowercase());
    let mut connection = database.connect().await;
    let run = async |connection: &mut sqlx::PgConnection, sql: String| {
        let ran = sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(connection)
            .await;
        ran.map(|_| ()).map_err(|error| {
            let code = error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code);
            code.map_or_else(|| error.to_string(), std::borrow::Cow::into_owned)
        })
    };
    run(&mut connection, format!("CREATE ROLE {role}"))
        .await
        .unwrap();
    owner.grant_serving(&role).await.unwrap();
    let mut forbidden: Vec<String> = vec![
        "UPDATE leaf SET hash = hash".into(),
        "UPDATE leaf_body SET body = body".into(),
        "UPDATE tile SET root = root".into(),
        "UPDATE cosigned SET line = line".into(),
        "UPDATE ledger_head SET root = root".into(),
        "UPDATE generation SET body = body".into(),
        "UPDATE activation SET digest = digest".into(),
        "UPDATE ending SET subject = subject".into(),
        "CREATE TABLE t (x int)".into(),
        "CREATE TEMPORARY TABLE t (x int)".into(),
        "UPDATE session SET details = details".into(),
        "UPDATE session SET expires_at = expires_at".into(),
        "UPDATE task SET deadline = deadline".into(),
        "UPDATE cutoff SET value = value".into(),
        "UPDATE admin_binding SET bound = bound".into(),
        "UPDATE workload_key SET jwk = jwk".into(),
        "UPDATE signing_key SET published_at = published_at".into(),
        "UPDATE one_time SET binding = binding".into(),
        "INSERT INTO ledger_seen VALUES ('epoch', 1, 0)".into(),
        "UPDATE ledger_seen SET at = 'epoch'".into(),
        "DELETE FROM ledger_seen".into(),
        "SELECT ledger_seen_before('0')".into(),
        "DELETE FROM admin_binding".into(),
        "DELETE FROM workload_key".into(),
        "DELETE FROM signing_key".into(),
        "DELETE FROM succession".into(),
        "DELETE FROM store_meta".into(),
    ];
    for table in [
        "leaf",
        "leaf_body",
        "tile",
        "cosigned",
        "ledger_head",
        "generation",
        "activation",
        "ending",
    ] {
        forbidden.push(format!("DELETE FROM {table}"));
        forbidden.push(format!("TRUNCATE {table}"));
    }
    for sql in forbidden {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {sql}; ROLLBACK");
        let tried = run(&mut connection, sql.clone()).await;
        assert_eq!(tried, Err("42501".to_owned()), "{sql}");
        run(&mut connection, "ROLLBACK".into()).await.unwrap();
    }
    for sql in [
        "SELECT FROM leaf, leaf_body, tile, cosigned, ledger_head, generation, activation, session, cutoff",
        "SELECT id FROM ledger_lock FOR UPDATE",
        "DELETE FROM session",
        "DELETE FROM one_time",
        "UPDATE export_cursor SET next_idx = 0",
        "INSERT INTO cosigned VALUES (1, 'k', 'w', 'l', 'c')",
        "SELECT ledger_prune_heads(0, 1)",
        "SELECT ledger_prune_endings('infinity', 1)",
        "UPDATE activation SET mac = mac",
    ] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {sql}; ROLLBACK");
        assert_eq!(run(&mut connection, sql.clone()).await, Ok(()), "{sql}");
    }
    let gone = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    run(&mut connection, gone).await.unwrap();
}

#[tokio::test]
async fn on_postgresql_a_commit_that_the_server_warns_of_is_not_acknowledged() {
    let place = postgres().await;
    let database = place.database.as_ref().unwrap();
    // The broker must see warnings even if the database's default hides them.
    let mut admin = database.connect().await;
    let quiet = format!(
        "ALTER DATABASE {} SET client_min_messages = error",
        database.name()
    );
    let quiet = sqlx::raw_sql(sqlx::AssertSqlSafe(quiet));
    quiet.execute(&mut admin).await.unwrap();
    let mut connection = place.store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    connection.commit().await.unwrap();
    // The transaction has already ended.
    let told = connection.commit().await.unwrap_err().to_string();
    assert!(told.contains("no transaction in progress"), "{told}");
    connection.enter(&Needs::default()).await.unwrap();
    connection.commit().await.unwrap();
    place.store.close().await;
}

#[tokio::test]
async fn on_postgresql_a_reader_of_all_bodies_keeps_no_room_from_being_made_and_appends_hardly() {
    let place = postgres().await;
    let database = place.database.as_ref().unwrap();
    // Lock the bodies like `pg_dump`, which holds its lock for a long time.
    let mut reader = database.connect().await;
    let mut begun = sqlx::Connection::begin(&mut reader).await.unwrap();
    let reading = sqlx::query("LOCK TABLE leaf_body IN ACCESS SHARE MODE");
    reading.execute(&mut *begun).await.unwrap();

    let store = &place.store;
    store.ensure_partitions(20_000_000).await.unwrap();
    // The last leaf of the first partition, so that this partition can be dropped, and a leaf of a
    // later one.
    let leaves = vec![leaf(16_777_215), leaf(17_000_000)];
    seed(
        store,
        Writes {
            leaves,
            head: Some(sealed(17_000_001, 1)),
            ..Writes::default()
        },
    )
    .await;
    age_heads().await;
    let dropping = async {
        let begin = std::time::Instant::now();
        let dropped = store.prune_bodies(at(18_000_000), 9).await;
        (dropped.map_err(drop), begin.elapsed())
    };
    let appending = async {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let begin = std::time::Instant::now();
        let leaves = vec![leaf(16_777_216)];
        seed(
            store,
            Writes {
                leaves,
                ..Writes::default()
            },
        )
        .await;
        begin.elapsed()
    };
    let ((dropped, tried), appended) = tokio::join!(dropping, appending);
    assert_eq!(dropped, Err(()), "the partition is being read");
    // Dropping waits for the lock for a tenth of a second. Without that limit it would wait until
    // the reader ends.
    let soon = std::time::Duration::from_secs(10);
    assert!(tried < soon && appended < soon, "{tried:?}, {appended:?}");

    begun.rollback().await.unwrap();
    assert_eq!(store.prune_bodies(at(18_000_000), 9).await.unwrap(), 1);
    assert_eq!(store.leaf(16_777_215).await.unwrap().unwrap().body, None);
    assert!(
        store
            .leaf(17_000_000)
            .await
            .unwrap()
            .unwrap()
            .body
            .is_some()
    );
    store.close().await;
}

#[tokio::test]
async fn on_sqlite_what_is_left_of_the_bodies_is_the_end_of_the_log() {
    let place = sqlite().await;
    let store = &place.store;
    // The leaves carry the times of their decisions, which differ from the order of commits.
    let dated = [100, 110, 130, 120, 140];
    let leaves = (0..).zip(dated).map(|(index, dated)| LeafRow {
        at: at(dated),
        ..leaf(index)
    });
    let leaves = leaves.collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    let kept = async || {
        let leaves = store.leaves(0, 9).await.unwrap();
        let kept = leaves.into_iter().filter(|leaf| leaf.body.is_some());
        kept.map(|leaf| leaf.index).collect::<Vec<_>>()
    };
    assert_eq!(store.prune_bodies(at(125), 9).await.unwrap(), 2);
    assert_eq!(
        kept().await,
        [2, 3, 4],
        "no body after a younger leaf is deleted"
    );
    assert_eq!(store.prune_bodies(at(125), 9).await.unwrap(), 0);
    assert_eq!(
        store.prune_bodies(at(131), 1).await.unwrap(),
        1,
        "one at a time"
    );
    assert_eq!(store.prune_bodies(at(140), 9).await.unwrap(), 1);
    assert_eq!(kept().await, [4]);
    store.close().await;
}

#[tokio::test]
async fn on_sqlite_what_was_deleted_is_in_nofile_even_when_a_reader_had_held_the_log() {
    let place = sqlite().await;
    let (store, directory) = (&place.store, place.file.as_ref().unwrap().dir());
    let Store::Sqlite(sqlite) = store else {
        unreachable!("the store is SQLite")
    };
    let canary = b"a deleted text for the search";
    let found = || {
        let files = std::fs::read_dir(directory).unwrap();
        let mut bytes = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        bytes.any(|bytes| bytes.windows(canary.len()).any(|part| part == canary))
    };
    let mut reader = sqlite.readers().begin().await.unwrap();
    let read = sqlx::query("SELECT count(*) FROM leaf").execute(&mut *reader);
    read.await.unwrap();
    let leaves = (0..300).map(|index| LeafRow {
        purpose: Some(Opening {
            salt: [2; 16],
            bytes: canary.repeat(30),
        }),
        ..leaf(index)
    });
    let leaves = leaves.collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(store.prune_openings(at(300), 1_000).await.unwrap(), 300);
    assert!(
        !store.scrub().await.unwrap(),
        "the write-ahead log is being read"
    );
    assert!(found());
    reader.rollback().await.unwrap();
    assert!(store.scrub().await.unwrap());
    assert!(!found());
    assert!(
        store.scrub().await.unwrap(),
        "a second call finds nothing to do"
    );
    store.close().await;
}

#[tokio::test]
async fn a_role_without_the_rights_of_the_newest_schema_does_not_serve() {
    let database = fresh_database();
    let url = SecretString::from(String::from(serving(&database.url())));
    let connected = Postgres::connect(&url, PostgresSettings::default());
    let postgres = connected.await.unwrap();
    postgres.check_schema().await.unwrap();
    let mut own = database.connect().await;
    let revoke = format!("REVOKE INSERT ON ending FROM {SERVING}");
    let revoked = sqlx::raw_sql(sqlx::AssertSqlSafe(revoke)).execute(&mut own);
    revoked.await.unwrap();
    let refused = postgres.check_schema().await.unwrap_err().to_string();
    assert!(refused.contains("--grant-to"), "{refused}");
    Store::Postgres(postgres).close().await;
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let postgres = names("migrations/postgres");
    assert!(postgres.contains("0001_foundation.sql"));
    assert_eq!(postgres, names("migrations/sqlite"));
}
