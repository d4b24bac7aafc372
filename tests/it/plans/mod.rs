//! Query plans of the product's statements on large PostgreSQL tables: they use indexes, and open
//! only the partitions they need.
//!
//! The tests do not repeat the statements: they run each once through the product and then read its
//! text from the server. `every` reads the plans of all statements, as the server tells them.

mod direct;
mod every;
mod judge;
mod tap;
mod tour;

use std::collections::HashSet;

use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use taskpass::clock::Timestamp;
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::workload::OneTime;
use taskpass::ids::{SessionId, TaskId};
use taskpass::store::Store;
use taskpass::store::append::{Needs, Writes};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::sessions::SessionFilter;
use taskpass::store::tasks::{TaskCheck, TaskFilter};
use uuid::Uuid;

use crate::support::postgres::{TestDatabase, fresh_database};
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
             now() + interval '1 hour', now(), now() + interval '1 hour', \
             decode(repeat('00', 32), 'hex'), 9, n, \
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
async fn due_tasks_are_found_by_their_own_index() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    fill(&mut own, 20_000).await;
    // Some are due: past their deadline, silent, or heard.
    run(
        &mut own,
        "UPDATE task SET check_at = now() - interval '1 second', \
         opened_at = now() - interval '1 hour', heartbeat_seconds = 60, \
         deadline = CASE leaf_idx % 3 WHEN 0 THEN now() - interval '1 minute' ELSE deadline END, \
         heard_at = CASE leaf_idx % 3 WHEN 1 THEN now() - interval '2 minutes' ELSE heard_at END \
         WHERE leaf_idx <= 300; ANALYZE",
    )
    .await;
    let now: Timestamp = sqlx::query_scalar("SELECT now()")
        .fetch_one(&mut own)
        .await
        .unwrap();
    let check = TaskCheck {
        now,
        over_by: now,
        retry_at: now.plus_seconds(30),
        accepted: &[],
        limit: 200,
    };
    let (first, second) = (
        store.check_due_tasks(&check).await.unwrap(),
        store.check_due_tasks(&check).await.unwrap(),
    );
    assert_eq!((first.is_full, second.is_full), (true, false));
    assert_eq!(first.past_deadline + second.past_deadline, 100);
    assert_eq!(first.open.len() + second.open.len(), 200);
    // More calls than a plan of its own is made for.
    for _ in 0..20 {
        store.check_due_tasks(&check).await.unwrap();
    }
    store.close().await;
    drop(own);
    // The test itself scans the table five times, to fill the tables.
    let most = 8;
    let sql = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'task'";
    let scans = counted(&database, sql).await;
    assert!(
        scans <= most,
        "the tasks were read {scans} times from end to end"
    );
    let sql = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'task_due'";
    assert!(counted(&database, sql).await >= 22);
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

#[tokio::test]
async fn the_cutoffs_of_a_session_are_found_by_their_selectors() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    run(
        &mut own,
        "INSERT INTO cutoff (id, idx, kind, value, until_lifted, reason, actor, requested_at, \
         committed_at, mac) SELECT gen_random_uuid(), n, 'workload', 'dev:' || n, false, '', 'a', \
         now(), now(), 'x' FROM generate_series(1, 10000) n; ANALYZE cutoff",
    )
    .await;
    let other = HashSet::from([Selector::Resource("orders".into())]);
    assert_eq!(store.cutoffs_of(&other, 0).await.unwrap(), []);
    let text = statement(&mut own, "cutoffs_of").await;
    let arguments = "ARRAY['workload', 'all'], ARRAY['dev:7', ''], 0";
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let plan = explain(&mut own, &text, arguments, mode).await;
        assert!(
            plan.contains("cutoff_selector") && !plan.contains("Seq Scan on cutoff"),
            "{mode}: {plan}"
        );
    }
    store.close().await;
}

#[tokio::test]
async fn new_endings_are_found_by_their_position() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    run(
        &mut own,
        "INSERT INTO ending SELECT n, 0, 'task', gen_random_uuid(), now(), \
         decode(repeat('00', 32), 'hex') FROM generate_series(0, 19999) n; \
         INSERT INTO ledger_head (size, root, batch_id, mac, endings) \
         SELECT n, decode(repeat('00', 32), 'hex'), gen_random_uuid(), 'x', \
         decode(repeat('00', 32), 'hex') FROM generate_series(1, 20000) n; ANALYZE",
    )
    .await;
    let mut reader = store.endings_reader();
    let page = reader.read(None, 9).await.unwrap();
    assert_eq!(page.rows.len(), 9);
    let text = statement(&mut own, "endings_after").await;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let plan = explain(&mut own, &text, "19990, 5, 1000", mode).await;
        assert!(
            plan.contains("ending_pkey") && !plan.contains("Seq Scan on ending"),
            "{mode}: {plan}"
        );
    }
    drop(reader);
    store.close().await;
}

/// The tables that a plan reads from end to end.
fn scanned(plan: &str) -> Vec<&str> {
    let scans = plan.split("Seq Scan on ").skip(1);
    scans
        .filter_map(|rest| rest.split_whitespace().next())
        .collect()
}

/// A store that was used for long: most of its sessions have expired, each workload has few, and
/// many ids of evidence and Idempotency-Keys are kept.
async fn fill_long_used(own: &mut PgConnection) {
    fill(own, 20_000).await;
    run(
        own,
        "UPDATE session SET workload = 'dev:' || leaf_idx % 1000, expires_at = CASE \
         WHEN minter = 'jwt' AND leaf_idx % 50 <> 0 THEN now() - interval '1 hour' \
         ELSE expires_at END; \
         UPDATE task SET owner = 'dev:' || leaf_idx % 1000, deadline = now() + CASE \
         WHEN leaf_idx % 50 <> 0 THEN interval '-1 minute' ELSE interval '1 hour' END, \
         opened_at = now() - interval '3 hours', state = CASE \
         WHEN leaf_idx % 50 <> 0 THEN 'expired' ELSE 'open' END; \
         INSERT INTO one_time (key, expires_at) \
         SELECT int4send(n) || sha256(n::text::bytea), now() + make_interval(secs => n - 30000) \
         FROM generate_series(1, 50000) n; \
         INSERT INTO retry (key, fingerprint, session_id, task_id, supersedes, expires_at) \
         SELECT int4send(n / 10000) || sha256(n::text::bytea), '', gen_random_uuid(), \
         gen_random_uuid(), 0, now() + make_interval(secs => n - 30000) \
         FROM generate_series(1, 50000) n",
    )
    .await;
    run(own, "VACUUM ANALYZE").await;
}

#[tokio::test]
async fn bounded_statements_go_by_indexes_on_a_store_that_was_used_for_long() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    fill_long_used(&mut own).await;
    // Nothing is due before this time, so the statements change nothing here.
    let early = Timestamp::EPOCH;
    let now: Timestamp = sqlx::query_scalar("SELECT now()")
        .fetch_one(&mut own)
        .await
        .unwrap();
    let no_one = TaskFilter {
        owner: Some("dev:none".into()),
        limit: 9,
        ..TaskFilter::default()
    };
    macro_rules! by_index {
        ($label:literal, $arguments:expr, [$($table:literal),*], $run:expr) => {
            $run.await.unwrap();
            let text = statement(&mut own, $label).await;
            let plan = explain(&mut own, &text, $arguments, "force_custom_plan").await;
            let tables = scanned(&plan);
            let some = [$($table),*].iter().any(|table| tables.contains(table));
            assert!(!some, "{}: {plan}", $label);
        };
    }
    by_index!(
        "prune_one_time",
        "now(), 20",
        ["one_time"],
        store.prune_one_time(early, 9)
    );
    by_index!(
        "prune_retries",
        "now(), 20",
        ["retry"],
        store.prune_retries(early, 9)
    );
    let step = format!("now(), 'epoch', '{}', 20", Uuid::nil());
    by_index!(
        "prune_sessions",
        &step,
        ["session"],
        store.prune_sessions(early, None, 9)
    );
    by_index!(
        "prune_tasks",
        &step,
        ["task", "session"],
        store.prune_tasks(early, None, 9)
    );
    let key = "'\\x0000', '\\x0001', '\\x0002', '\\x0003'";
    by_index!("retry", key, ["retry"], store.retry(&[1; 32], now));
    let before = format!("'{}', 100, 'dev:7'", Uuid::max());
    by_index!("tasks", &before, ["task"], store.tasks(&no_one));
    let of_none = SessionFilter {
        workload: Some("dev:none".into()),
        limit: 9,
        ..SessionFilter::default()
    };
    by_index!(
        "list_sessions",
        &before,
        ["session"],
        store.list_sessions(&of_none)
    );
    // The count under the lock.
    let mut connection = store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    let wanted = [("dev:7".to_owned(), "job".to_owned(), 1_001)];
    connection.count_open_tasks(&wanted).await.unwrap();
    let text = statement(&mut own, "open_tasks").await;
    connection.rollback().await.unwrap();
    let arguments = "ARRAY['dev:7'], ARRAY['job'], ARRAY[1001]";
    let plan = explain(&mut own, &text, arguments, "force_custom_plan").await;
    assert!(scanned(&plan).is_empty(), "{plan}");
    drop(connection);
    store.close().await;
}

#[tokio::test]
async fn the_sessions_of_a_selector_are_counted_by_an_index() {
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    fill_long_used(&mut own).await;
    let now: Timestamp = sqlx::query_scalar("SELECT now()")
        .fetch_one(&mut own)
        .await
        .unwrap();
    for (selector, label, value) in [
        (Selector::All(True), "matching_all", None),
        (
            Selector::Workload("dev:7".to_owned().try_into().unwrap()),
            "matching_workload",
            Some("'dev:7'".to_owned()),
        ),
        (
            Selector::Task(TaskId::from(Uuid::nil())),
            "matching_task",
            Some(format!("'{}'", Uuid::nil())),
        ),
        (
            Selector::Resource("r".into()),
            "matching_resource",
            Some("'r'".to_owned()),
        ),
    ] {
        let counting = store.count_matching(&selector, u64::MAX, now, now, 100_000);
        counting.await.unwrap();
        let text = statement(&mut own, label).await;
        let value = value.map_or_else(String::new, |value| format!("{value}, "));
        let arguments = format!("now(), 1000000, 100001, {value}now(), 0");
        let plan = explain(&mut own, &text, &arguments, "force_custom_plan").await;
        assert!(!scanned(&plan).contains(&"session"), "{label}: {plan}");
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

/// The statistics are those of empty tables, as after a sudden growth.
#[tokio::test]
async fn a_status_list_is_read_by_outdated_statistics() {
    const TASKS: u32 = 20_000;
    let database = fresh_database();
    let store = store(&database).await;
    let mut own = database.connect().await;
    for table in ["task", "session"] {
        let statement = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
        run(&mut own, &statement).await;
    }
    fill(&mut own, TASKS).await;
    run(&mut own, "UPDATE session SET in_status_lists = true").await;
    let now: Timestamp = sqlx::query_scalar("SELECT now()")
        .fetch_one(&mut own)
        .await
        .unwrap();
    // A statement that reads all tasks for each session meets the statement timeout.
    let listed = store.listed_plainly(0, 1 << 16, now).await.unwrap();
    assert!(listed.len() >= TASKS as usize);
    store.close().await;
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
    let used = OneTime {
        key: [7; 32],
        binding: None,
        must_be_new: false,
        issued_at: Timestamp::from_seconds(1_800_000_000),
        expires_at: Timestamp::from_seconds(1_800_000_060),
    };
    let needs = |task: Uuid, session: Uuid| Needs {
        tasks: vec![TaskId::from(task)],
        sessions: vec![SessionId::from(session)],
        one_time: vec![used.id()],
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
