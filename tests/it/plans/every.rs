//! The plan of every statement that the product runs on PostgreSQL, with large tables: none reads a
//! large table, or a whole index of one, from end to end where an index serves.
//!
//! [`Tap`] collects the plans that the extension `auto_explain` tells for each statement, while
//! [`Tour`] and [`super::direct`] run the product through its operations. The planner has the
//! settings of the product's connections (`store::postgres::options`).
//!
//! The tables that a test may fill get 20,000 rows or more. The rows of the others depend on each
//! other by hashes and MACs, so they are few; their statistics are set as those of a table with
//! many times as many rows. With such statistics the planner may choose a scan for a range of rows
//! that is the greater part of the table, which in a log never is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use sqlx::PgConnection;
use url::Url;

use super::direct::{Real, ask_everything};
use super::tap::{Learnt, Tap, is_name, labels};
use super::tour::Tour;
use super::{fill_long_used, run};
use crate::support::postgres::fresh_database;
use crate::support::rig::Rig;

/// Statements that read a large table from end to end, and why they may.
const WHOLE: &[(&str, &str)] = &[
    (
        "accept_time",
        "an admin's rare act after a wrong clock; it touches every open task",
    ),
    (
        "matching_issued_after",
        "counts once for the same rare act; no index has the time of opening",
    ),
    (
        "prune_cutoffs",
        "once an hour; cutoffs are few, and no index has the time of their commit",
    ),
    (
        "put_off_ending",
        "the index of unconfirmed endings, of which this store has one",
    ),
    (
        "put_succession",
        "asks whether there is any head, and stops at the first",
    ),
    (
        "tasks",
        "sorts the open tasks, which have an index of their own",
    ),
];

/// Statements that do not run in this test, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("empty_log", "SQLite only"),
    ("open_to_read", "SQLite only"),
];

/// Makes the server tell the plan of each statement of later connections.
async fn tell_plans(own: &mut PgConnection, database: &str) {
    // The server knows the settings only when the extension is loaded; a server without it fails
    // here.
    run(
        own,
        &format!(
            "LOAD 'auto_explain'; \
             ALTER DATABASE {database} SET session_preload_libraries = 'auto_explain'; \
             ALTER DATABASE {database} SET auto_explain.log_min_duration = 0; \
             ALTER DATABASE {database} SET auto_explain.log_nested_statements = on; \
             ALTER DATABASE {database} SET auto_explain.log_format = 'json'; \
             ALTER DATABASE {database} SET auto_explain.log_level = 'info'"
        ),
    )
    .await;
}

/// Fills the tables whose rows nothing authenticates.
async fn fill(own: &mut PgConnection) {
    fill_long_used(own).await;
    run(
        own,
        "INSERT INTO delegation (digest, task_id, child, sessions, expires_at) \
         SELECT sha256(leaf_idx::text::bytea), id, 'dev:b', 1, \
         now() + make_interval(secs => leaf_idx * 10 - 100000) FROM task; \
         INSERT INTO deny_place (minter, name, registration, capacity, propagation_seconds, due_at) \
         SELECT 'aws', 'role-' || n, '{}', 100, 60, now() + interval '9 days' \
         FROM generate_series(0, 199) n; \
         INSERT INTO deny_entry \
         (session_id, minter, place, wish, requested_at, listed, keep_until) \
         SELECT gen_random_uuid(), 'aws', 'role-' || n % 200, 0, now(), n % 3 <> 0, \
         now() + make_interval(secs => n - 1000) FROM generate_series(1, 20000) n; \
         INSERT INTO cosigned (size, vkey, witness, line, checkpoint) \
         SELECT n, 'w' || n % 5 || '+key', 'w' || n % 5, 'l', 'c' FROM generate_series(1, 20000) n; \
         INSERT INTO tile (level, idx, root, hashes) \
         SELECT 7, n, sha256('r'), decode(repeat('ab', 8192), 'hex') FROM generate_series(1, 99) n",
    )
    .await;
}

/// Gathers statistics, and sets those of the small tables as those of large ones. Nothing gathers
/// them again during the test.
async fn enlarge(own: &mut PgConnection) {
    run(
        own,
        "DO $$ DECLARE one regclass; BEGIN \
         FOR one IN SELECT oid FROM pg_class \
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace LOOP \
         EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', one); \
         END LOOP; END $$",
    )
    .await;
    run(own, "VACUUM ANALYZE").await;
    run(
        own,
        "UPDATE pg_class SET relpages = greatest(relpages, 1), \
         reltuples = greatest(relpages, 1) * 100000 \
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples < 10000 \
         AND (relname IN ('leaf', 'leaf_opening', 'tile', 'ledger_head', 'ending', 'cutoff') \
         OR relname ~ '^leaf_body')",
    )
    .await;
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// The labels of all statements in the product's sources.
fn labels_in_sources() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        found.extend(labels(&text).map(str::to_owned));
        // The macros of this file take the label as an argument.
        if path.ends_with("store/prune.rs") {
            let quoted = text.split('"');
            let named = quoted.filter(|part| part.starts_with("prune_") && is_name(part));
            found.extend(named.map(str::to_owned));
        }
    }
    assert!(
        found.len() > 100,
        "the search finds too few statement labels"
    );
    found
}

/// Formats every deviation from the expectations as one failure message.
fn deviations(learnt: &Learnt) -> String {
    let mut told = String::new();
    for (label, plans) in &learnt.at_fault {
        if WHOLE.iter().any(|(known, _)| known == label) {
            continue;
        }
        for plan in plans {
            writeln!(told, "{label} reads a large table from end to end: {plan}").unwrap();
        }
    }
    for (label, _) in WHOLE {
        if !learnt.at_fault.contains_key(*label) {
            writeln!(told, "{label} is in WHOLE, and reads no large table so").unwrap();
        }
    }
    let known = labels_in_sources();
    for label in known.difference(&learnt.seen) {
        if !NOT_RUN.iter().any(|(known, _)| known == label) {
            writeln!(told, "{label} was not run").unwrap();
        }
    }
    for (label, _) in NOT_RUN {
        if learnt.seen.contains(*label) || !known.contains(*label) {
            writeln!(told, "{label} is in NOT_RUN, and was run or is unknown").unwrap();
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_finds_its_rows_by_an_index() {
    let database = fresh_database();
    // It was connected before, so it tells no plans.
    let mut own = database.connect().await;
    tell_plans(&mut own, database.name()).await;
    let tap = Tap::start(database.address());
    let mut rig = Rig::on_database(database.through(tap.address()))
        .start()
        .await;
    let keys = json!({"kind": "key", "name": "keys"});
    let generation = rig.add_attestor(keys).await;
    let generation = serde_json::to_value(generation).unwrap();
    let (_server, client) = rig.serve();
    fill(&mut own).await;

    let mut tour = Tour {
        rig: &rig,
        client,
        generation,
        refused: Vec::new(),
    };
    tour.rotate_the_ledgers_key().await;
    let serving = Url::parse(&rig.database().serving_url()).unwrap();
    // The first round makes rows in the tables that only the product fills.
    for round in 0..2 {
        if round > 0 {
            enlarge(&mut own).await;
            tap.begin_to_judge();
        }
        let issued = Box::pin(tour.go()).await;
        let real = Real {
            task: issued.task.id,
            session: issued.session.id,
            generation: issued.decision.generation,
            now: rig.now(),
            serving: serving.username().to_owned(),
            round,
        };
        Box::pin(ask_everything(rig.broker.core.store(), &real)).await;
    }
    let refused = tour.refused.join("\n");
    let told = deviations(&tap.learnt());
    assert!(
        told.is_empty() && refused.is_empty(),
        "{told}\nrefused:\n{refused}"
    );
}
