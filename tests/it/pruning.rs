//! Pruning: a backlog does not delay the other workers, and no text is kept longer than necessary.

use std::sync::Arc;

use taskpass::clock::Timestamp;
use taskpass::domain::generation::Retention;
use taskpass::store::Store;
use taskpass::sweep::{self, prune::Pruner};
use tokio_util::sync::CancellationToken;

use crate::support::rig::{Kind, Rig};
use crate::support::{SOON, until};

const RETENTION: Retention = Retention {
    sessions_days: 1,
    openings_days: 1,
    bodies_days: 1,
};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

/// Runs a statement in the dialect of the store's database, with a time as its parameter.
async fn run(rig: &Rig, postgres: &'static str, sqlite: &'static str, at: Timestamp) {
    match rig.broker.core.store() {
        Store::Postgres(_) => {
            let ran = sqlx::query(postgres)
                .bind(at)
                .execute(&mut rig.database().connect().await)
                .await;
            ran.unwrap();
        }
        Store::Sqlite(database) => {
            let ran = sqlx::query(sqlite)
                .bind(at)
                .execute(database.writer())
                .await;
            ran.unwrap();
        }
    }
}

async fn count(rig: &Rig, sql: &'static str) -> i64 {
    let (count,): (i64,) = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut database = rig.database().connect().await;
            sqlx::query_as(sql).fetch_one(&mut database).await
        }
        Store::Sqlite(database) => sqlx::query_as(sql).fetch_one(database.readers()).await,
    }
    .unwrap();
    count
}

async fn left(rig: &Rig) -> i64 {
    count(rig, "SELECT count(*) FROM one_time").await
}

/// A hundred thousand rows that are due for pruning.
async fn backlog(rig: &Rig) {
    for _ in 0..10 {
        run(
            rig,
            "INSERT INTO one_time (key, expires_at) \
             SELECT decode('00000000' || md5(random()::text) || md5(random()::text), 'hex'), $1 \
             FROM generate_series(1, 10000)",
            "WITH RECURSIVE numbers (n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000) \
             INSERT INTO one_time (key, expires_at) SELECT randomblob(36), $1 FROM numbers",
            rig.now().minus_seconds(2 * 86_400),
        )
        .await;
    }
}

on_both_stores! {
    fn a_round_takes_so_much_of_a_backlog_and_says_that_there_is_more;
    fn a_backlog_keeps_neither_the_other_workers_nor_a_stop;
    fn what_was_dated_ahead_keeps_no_text_that_is_behind_it;
}

async fn a_round_takes_so_much_of_a_backlog_and_says_that_there_is_more(rig: Rig) {
    backlog(&rig).await;
    let stop = CancellationToken::new();
    let before = left(&rig).await;
    let mut worker = Pruner::new(stop.clone());
    let pruned = worker.round(&rig.broker, RETENTION, rig.now()).await;
    pruned.failed.unwrap();
    assert!(pruned.more);
    assert_eq!(left(&rig).await, before - 10_000);
    stop.cancel();
    let pruned = worker.round(&rig.broker, RETENTION, rig.now()).await;
    assert_eq!(
        (pruned.rows, left(&rig).await),
        (0, before - 10_000),
        "no batch begins after a stop"
    );
}

async fn a_backlog_keeps_neither_the_other_workers_nor_a_stop(rig: Rig) {
    backlog(&rig).await;
    let stop = CancellationToken::new();
    let sweeping = tokio::spawn(sweep::run(Arc::clone(&rig.broker), stop.clone()));
    let pruning = tokio::spawn(sweep::run_pruning(Arc::clone(&rig.broker), stop.clone()));
    let swept = |worker: &str| {
        let line = format!("taskpass_sweeps_total{{worker=\"{worker}\",result=\"ok\"}}");
        rig.broker.core.metrics().render().contains(&line)
    };
    let workers = ["prune", "health", "task_expiry", "partitions"];
    until(
        "some rows are pruned, and the other workers have run",
        SOON,
        async || workers.iter().all(|worker| swept(worker)),
    )
    .await;
    stop.cancel();
    sweeping.await.unwrap().unwrap();
    pruning.await.unwrap().unwrap();
    assert!(
        left(&rig).await > 0,
        "the workers ran before the pruning was complete"
    );
    for worker in ["health", "task_expiry", "partitions"] {
        assert!(swept(worker), "{worker}");
    }
}

async fn what_was_dated_ahead_keeps_no_text_that_is_behind_it(rig: Rig) {
    let store = rig.broker.core.store();
    // A clock that was a year ahead dated a thousand leaves; the next leaf has the right time.
    let year = rig.now().plus_seconds(365 * 86_400);
    run(
        &rig,
        "INSERT INTO leaf (idx, hash, at) SELECT n, decode(md5('a') || md5('b'), 'hex'), $1 \
             FROM generate_series(1000, 1999) n",
        "WITH RECURSIVE numbers (n) AS \
             (SELECT 1000 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1999) \
             INSERT INTO leaf (idx, hash, at) SELECT n, randomblob(32), $1 FROM numbers",
        year,
    )
    .await;
    let old = "INSERT INTO leaf (idx, hash, at) SELECT 2000, hash, $1 FROM leaf WHERE idx = 1000";
    run(&rig, old, old, rig.now().minus_seconds(2 * 86_400)).await;
    let text = "INSERT INTO leaf_opening (idx, purpose_salt, purpose) \
                    SELECT idx, hash, hash FROM leaf WHERE idx >= 1000 AND at <> $1";
    run(&rig, text, text, Timestamp::from_seconds(0)).await;
    let kept = async || {
        (
            count(&rig, "SELECT count(*) FROM leaf_opening WHERE idx = 2000").await,
            count(
                &rig,
                "SELECT count(*) FROM leaf_opening WHERE idx BETWEEN 1000 AND 1999",
            )
            .await,
        )
    };
    assert_eq!(kept().await, (1, 1_000));
    assert_eq!(
        store
            .prune_openings(rig.now().minus_seconds(86_400), 1_000)
            .await
            .unwrap(),
        0
    );
    let mut worker = Pruner::new(CancellationToken::new());
    let pruned = worker.round(&rig.broker, RETENTION, rig.now()).await;
    pruned.failed.unwrap();
    assert_eq!(kept().await, (0, 1_000));
}
