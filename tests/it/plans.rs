//! Query plans of the product's statements on large PostgreSQL tables: they use indexes, and open
//! only the partitions they need.
//!
//! The tests do not repeat the statements: they run each once through the product and then read its
//! text from the server.

use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use taskpass::broker::issuance::Issued;
use taskpass::clock::Timestamp;
use taskpass::domain::task::TaskEnd;
use taskpass::ids::{SessionId, TaskId};
use taskpass::store::Store;
use taskpass::store::append::{Needs, Writes};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::sweep;
use uuid::Uuid;

use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, until};

/// Number of body partitions, in tests with many.
const PARTITIONS: i64 = 50;

/// Number of leaves in a partition.
const WIDTH: u64 = 1 << 24;

async fn store(database: &TestDatabase) -> Store {
    let url = SecretString::from(database.url());
    let postgres = Postgres::connect(&url, PostgresSettings::default());
    Store::Postgres(postgres.await.unwrap())
}

async fn run(database: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(database)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The text of a statement that the product has run, by its label.
async fn statement(database: &mut PgConnection, label: &str) -> String {
    let texts: Vec<String> = sqlx::query_scalar(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() \
         AND pid <> pg_backend_pid() AND position($1 IN query) > 0",
    )
    .bind(format!("/* {label} */"))
    .fetch_all(database)
    .await
    .unwrap();
    texts
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("{label} was not run"))
}

/// The server's plan for a statement with these arguments, custom or generic according to `mode`.
async fn explain(database: &mut PgConnection, text: &str, arguments: &str, mode: &str) -> String {
    run(
        database,
        &format!("SET plan_cache_mode = {mode}; PREPARE one AS {text}"),
    )
    .await;
    let explain = AssertSqlSafe(format!("EXPLAIN EXECUTE one({arguments})"));
    let rows = sqlx::raw_sql(explain)
        .fetch_all(&mut *database)
        .await
        .unwrap();
    run(database, "DEALLOCATE one").await;
    let lines = rows.iter().map(|row| row.get::<String, _>(0));
    lines.collect::<Vec<_>>().join("\n")
}

/// Number of locks on body partitions and their indexes that a statement takes with these
/// arguments.
async fn partition_locks(database: &mut PgConnection, text: &str, arguments: &str) -> i64 {
    const LOCKS: &str = "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation \
        WHERE pid = pg_backend_pid() AND relname ~ '^leaf_body_[0-9]'";
    run(database, &format!("PREPARE one AS {text}")).await;
    let mut begun = database.begin().await.unwrap();
    run(&mut begun, &format!("EXECUTE one({arguments})")).await;
    let locks = sqlx::query_scalar(LOCKS).fetch_one(&mut *begun).await;
    begun.rollback().await.unwrap();
    run(database, "DEALLOCATE one").await;
    locks.unwrap()
}

#[tokio::test]
async fn a_reader_of_some_bodies_locks_the_partitions_of_those_alone() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    let up_to = (PARTITIONS - 1) * i64::try_from(WIDTH).unwrap();
    run(
        &mut own,
        &format!("SELECT ledger_ensure_partitions(0, {up_to})"),
    )
    .await;
    let attached: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'leaf_body'::regclass",
    )
    .fetch_one(&mut own)
    .await
    .unwrap();
    assert_eq!(attached, PARTITIONS);

    // The second statement about decisions runs only if there are decisions.
    run(
        &mut own,
        "INSERT INTO leaf (idx, hash, decision_id, at) \
         SELECT n, decode(repeat('ab', 32), 'hex'), gen_random_uuid(), now() \
         FROM generate_series(0, 99) n",
    )
    .await;
    store.leaves(0, 9).await.unwrap();
    let leaves = statement(&mut own, "leaves").await;
    store.acts(0, 9, 9).await.unwrap();
    let acts = statement(&mut own, "acts").await;
    assert_eq!(store.decisions(0, 99, 9).await.unwrap().len(), 9);
    let decisions = statement(&mut own, "decisions").await;
    for (text, arguments) in [(leaves, "0, 9"), (acts, "0, 9, 9"), (decisions, "0, 8")] {
        // A partition and its index.
        let locks = partition_locks(&mut own, &text, arguments).await;
        assert!(locks <= 2, "{locks} locks: {text}");
    }
    store.close().await;
}

/// Inserts sessions: many live ones with tokens, many expired external ones, and some live external
/// ones.
async fn fill(own: &mut PgConnection, tasks: u32) {
    run(
        own,
        &format!(
            "INSERT INTO task (id, task_type, attestor, owner, depth, state, opened_at, deadline, \
             heard_at, check_at, handle_digest, sessions_left, leaf_idx, attestor_digest) \
             SELECT gen_random_uuid(), 'job', 'dev', 'dev:a', 1, 'open', now(), \
             now() + interval '1 hour', now(), now() + interval '1 hour', 'x', 9, n, \
             decode(repeat('00', 32), 'hex') \
             FROM generate_series(1, {tasks}) n"
        ),
    )
    .await;
    for (minter, class, expiry) in [
        ("jwt", "immediate", "1 hour"),
        ("aws", "bounded", "-1 hour"),
        ("aws", "bounded", "1 hour"),
    ] {
        run(
            own,
            &format!(
                "INSERT INTO session (id, task_id, decision_id, leaf_idx, attestor, workload, \
                 resource, details, audience, minter, kid, generation, policies, class, \
                 bound_seconds, issued_at, expires_at, state, is_local, in_status_lists, \
                 open_sessions, expires_by) \
                 SELECT gen_random_uuid(), id, gen_random_uuid(), leaf_idx, 'dev', 'dev:a', 'r', \
                 '[{{\"type\":\"api\",\"actions\":[\"orders:read\"]}}]', 'a', '{minter}', 'k', decode(repeat('ab', 32), 'hex'), '[]', '{class}', 5, \
                 now() - interval '2 hours', now() + interval '{expiry}', 'active', '{minter}' = 'jwt', false, 'none', 'itself' \
                 FROM task WHERE '{minter}' = 'jwt' OR '{expiry}' LIKE '-%' OR leaf_idx % 50 = 0"
            ),
        )
        .await;
    }
}

#[tokio::test]
async fn live_external_sessions_are_found_by_their_own_index() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    fill(&mut own, 20_000).await;
    run(&mut own, "ANALYZE").await;
    let now: Timestamp = sqlx::query_scalar("SELECT now()")
        .fetch_one(&mut own)
        .await
        .unwrap();
    let mut found = 0;
    let mut after = None;
    loop {
        let views = store.active_external(now, after, 150).await.unwrap();
        let Some(last) = views.last() else { break };
        after = Some((last.session.expires_at, last.session.id));
        found += views.len();
    }
    assert_eq!(found, 400, "each live session once");

    let text = statement(&mut own, "active_external").await;
    let arguments = format!("now(), '{}', 200", Uuid::max());
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let plan = explain(&mut own, &text, &arguments, mode).await;
        assert!(
            plan.contains("Index Scan using session_external") && !plan.contains("Sort"),
            "{mode}: {plan}"
        );
    }
    store.close().await;
}

/// A statistic of the server, read after all other sessions have ended, because a session reports
/// its statistics at its end.
async fn counted(database: &TestDatabase, sql: &'static str) -> i64 {
    let mut own = database.connect().await;
    until("all other sessions have ended", SOON, async || {
        let mut own = database.connect().await;
        let others: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'taskpass'",
        )
        .fetch_one(&mut own)
        .await
        .unwrap();
        own.close().await.unwrap();
        others == 0
    })
    .await;
    sqlx::query_scalar(sql).fetch_one(&mut own).await.unwrap()
}

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

/// Makes a session external and its row unreadable, so that reading all external sessions fails.
async fn spoil(rig: &Rig, issued: &Issued) {
    const SQL: &str = "UPDATE session SET minter = 'aws', is_local = false, class = 'bounded', \
                       policies = '?' WHERE id = $1";
    let spoilt = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut own = rig.database().connect().await;
            let query = sqlx::query(SQL).bind(issued.session.id);
            query.execute(&mut own).await.unwrap().rows_affected()
        }
        Store::Sqlite(sqlite) => {
            let query = sqlx::query(SQL).bind(issued.session.id);
            query
                .execute(sqlite.writer())
                .await
                .unwrap()
                .rows_affected()
        }
    };
    assert_eq!(spoilt, 1);
}

on_both_stores! {
    fn ends_of_tasks_with_tokens_alone_search_no_external_sessions;
}

async fn ends_of_tasks_with_tokens_alone_search_no_external_sessions(rig: Rig) {
    const TASKS: u64 = 20;
    let mut issued = Vec::new();
    for _ in 0..=TASKS {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        issued.push(asked.unwrap());
    }
    let searches = || {
        let metrics = rig.broker.core.metrics().render();
        let failed = "taskpass_sweeps_total{worker=\"orphaned_sessions\",result=\"failed\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(failed));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    // The first search covers all sessions.
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(searches(), 0);
    spoil(&rig, &issued.pop().unwrap()).await;
    for issued in &issued {
        rig.end(issued, TaskEnd::Complete).await.unwrap();
        sweep::sweep(&rig.broker, rig.now()).await;
    }
    // All sessions are searched again after a minute, which can pass on a busy machine.
    assert!(searches() < TASKS / 2, "{} searches", searches());
    rig.broker.revocation.orphan_search().demand();
    let before = searches();
    sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(
        searches(),
        before + 1,
        "the counter shows a search of all sessions"
    );
}

#[tokio::test]
async fn plans_that_were_made_on_empty_tables_go_by_indexes_when_the_tables_have_grown() {
    const BATCHES: usize = 10;
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    // Prevent that autovacuum replaces the plans during the test.
    for table in [
        "task",
        "session",
        "one_time",
        "retry",
        "leaf",
        "ledger_head",
        "cutoff",
    ] {
        run(
            &mut own,
            &format!("ALTER TABLE {table} SET (autovacuum_enabled = false)"),
        )
        .await;
    }
    let needs = |task: Uuid, session: Uuid| Needs {
        tasks: vec![TaskId::from(task)],
        sessions: vec![SessionId::from(session)],
        one_time: vec![[7; 32]],
        retries: vec![[8; 32]],
        open_tasks: vec![("dev:a".into(), "job".into(), 10)],
        ..Needs::default()
    };
    let mut connection = store.ledger_connection().await.unwrap();
    let mut batch = async |task: Uuid, session: Uuid| {
        let view = connection.enter(&needs(task, session)).await.unwrap();
        connection.write(&Writes::default()).await.unwrap();
        connection.commit().await.unwrap();
        view
    };
    batch(Uuid::nil(), Uuid::nil()).await;
    fill(&mut own, 20_000).await;
    let (task, session): (Uuid, Uuid) =
        sqlx::query_as("SELECT task_id, id FROM session ORDER BY id LIMIT 1")
            .fetch_one(&mut own)
            .await
            .unwrap();
    for _ in 0..BATCHES {
        let view = batch(task, session).await;
        assert_eq!((view.tasks.len(), view.sessions.len()), (1, 1));
    }
    drop(connection);
    store.close().await;
    // The test itself scans these tables up to three times, to fill the other tables.
    let most = 3;
    let sql = "SELECT max(seq_scan)::bigint FROM pg_stat_user_tables \
               WHERE relname IN ('task', 'session', 'one_time', 'retry', 'leaf')";
    let scans = counted(&database, sql).await;
    assert!(
        scans <= most,
        "a table was read {scans} times from end to end"
    );
}
