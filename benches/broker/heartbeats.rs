//! The cost of the sweeper for live tasks with a heartbeat of 30 s.
//!
//! The heartbeats are written by the benchmark, not by requests, so that only the sweeper works in
//! the broker. First no task is due for a check, which gives the cost of everything else; then the
//! checks are spread over 30 s. The difference is the sweeper's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Report, Spread, Table};
use crate::filling::{Filling, OWNER, analyse};
use crate::load::Counters;
use crate::options::{Name, Options};

/// The time in which every task gets one heartbeat.
const CYCLE: Duration = Duration::from_secs(15);

/// The statements of a cycle.
const PARTS: usize = 150;

/// Parts of one core that the broker and PostgreSQL used, by window.
#[derive(Default)]
struct Used {
    broker: Vec<f64>,
    postgres: Vec<f64>,
}

impl Used {
    fn spreads(&self) -> [Spread; 2] {
        [&self.broker, &self.postgres].map(|all| Spread::of(all.iter().copied()))
    }
}

pub async fn run(options: &Options) -> Report {
    let count = options.count_or(100_000, 200);
    let bed = Bed::filled(Shape::default(), options.past).await;
    let tasks = Filling {
        count,
        opened: "now() - interval '1 minute' + n * interval '1 microsecond'".into(),
        task: "'heartbeat_seconds', 30, 'heard_at', clock_timestamp(), \
               'deadline', now() + interval '2 hours', 'check_at', now() + interval '2 hours'"
            .into(),
        session: None,
    };
    bed.fill(&tasks, &bed.template).await;
    let stop = AtomicBool::new(false);
    let measured = async {
        let idle = use_of(&bed, options).await;
        spread_checks(&bed).await;
        let warm = if options.smoke { 1 } else { 30 };
        tokio::time::sleep(Duration::from_secs(warm)).await;
        let checking = use_of(&bed, options).await;
        let counted = counted(&bed).await;
        stop.store(true, Ordering::Relaxed);
        (idle, checking, counted)
    };
    let ((idle, checking, [overdue, ended]), ()) = tokio::join!(measured, beat(&bed, count, &stop));
    let (idle, checking) = (idle.spreads(), checking.spreads());
    let mut table = Table::new(&["", "without checks", "with checks", "sweeper, of one core"]);
    let mut shares = Vec::new();
    for (at, label) in ["broker", "PostgreSQL"].into_iter().enumerate() {
        let share = checking[at].median - idle[at].median;
        shares.push(share);
        table.row([
            label.to_owned(),
            idle[at].text(3),
            checking[at].text(3),
            format!("{:.1} %", share * 100.0),
        ]);
    }
    let mut left = Table::new(&["overdue by more than 5 s", "ended although alive"]);
    left.row([overdue.to_string(), ended.to_string()]);
    Report {
        name: Name::Heartbeats,
        about: format!(
            "{count} live tasks with a heartbeat of 30 s; {}",
            about_store(options)
        ),
        tables: vec![table, left],
        figures: json!({
            "count": count, "overdue": overdue, "ended": ended,
            "broker_cores": {"without": idle[0].to_json(), "with": checking[0].to_json()},
            "postgres_cores": {"without": idle[1].to_json(), "with": checking[1].to_json()},
            "sweeper_cores": {"broker": shares[0], "postgres": shares[1]},
        }),
        failed: 0,
    }
}

async fn use_of(bed: &Bed, options: &Options) -> Used {
    let mut used = Used::default();
    for _ in 0..options.rounds {
        let before = Counters::read(bed).await;
        tokio::time::sleep(Duration::from_secs(options.seconds)).await;
        let grown = before.grown(bed).await;
        let microseconds = options.seconds as f64 * 1e6;
        used.broker.push(grown.broker_us() / microseconds);
        let postgres = grown.postgres_us().unwrap_or_default();
        used.postgres.push(postgres / microseconds);
    }
    used
}

/// Makes every task due for a check within the next 30 s.
async fn spread_checks(bed: &Bed) {
    let database = bed.fleet.database();
    let mut connection = database.connect().await;
    let text = format!(
        "UPDATE task SET check_at = clock_timestamp() + random() * interval '30 seconds' \
         WHERE owner = '{OWNER}' AND state = 'open'"
    );
    let update = sqlx::query(AssertSqlSafe(text));
    update.execute(&mut connection).await.unwrap();
    analyse(database).await;
}

/// The tasks whose check is overdue, and those that have ended.
async fn counted(bed: &Bed) -> [i64; 2] {
    let (overdue, ended): (i64, i64) = bed
        .row(format!(
            "SELECT count(*) FILTER (WHERE state = 'open' \
                 AND check_at < clock_timestamp() - interval '5 seconds'), \
             count(*) FILTER (WHERE state <> 'open') FROM task WHERE owner = '{OWNER}' \
             AND heartbeat_seconds = 30"
        ))
        .await;
    [overdue, ended]
}

/// Records a heartbeat of every task in each cycle, until `stop`.
async fn beat(bed: &Bed, count: usize, stop: &AtomicBool) {
    let mut connection = bed.fleet.database().connect().await;
    let part = count.div_ceil(PARTS);
    // The first id of each part.
    let text = format!(
        "SELECT id::text FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM task \
         WHERE owner = '{OWNER}' AND heartbeat_seconds = 30) numbered \
         WHERE (place - 1) % {part} = 0 ORDER BY id"
    );
    let firsts: Vec<(String,)> = sqlx::query_as(AssertSqlSafe(text))
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut firsts: Vec<String> = firsts.into_iter().map(|(id,)| id).collect();
    firsts.push("ffffffff-ffff-ffff-ffff-ffffffffffff".into());
    let text = format!(
        "UPDATE task SET heard_at = clock_timestamp() WHERE id >= $1::uuid AND id < $2::uuid \
         AND owner = '{OWNER}' AND state = 'open'"
    );
    let mut ticks = tokio::time::interval(CYCLE / PARTS as u32);
    for bounds in (0..firsts.len() - 1).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        ticks.tick().await;
        sqlx::query(AssertSqlSafe(text.clone()))
            .bind(&firsts[bounds])
            .bind(&firsts[bounds + 1])
            .execute(&mut connection)
            .await
            .unwrap();
    }
}
