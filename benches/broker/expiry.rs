//! Many tasks that expire in one second: by their deadline, which needs no leaf, or by silence,
//! which is recorded in leaves. Each round first has no other load, and then requests at half of
//! the greatest rate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Pace, Report, Spread, Table};
use crate::filling::{Filling, OWNER};
use crate::load::{Counters, Limit, closed, open, open_for};
use crate::options::{Name, Options};
use crate::support::issuer::unix_seconds;

/// Tasks that are filled in a second, at least. The tasks expire when all are there.
const FILLED_PER_SECOND: usize = 8_000;

/// The longest time until all have ended.
const PATIENCE: Duration = Duration::from_mins(30);

/// The workers whose rounds may not wait for the expiry. Each begins about once a second.
const OTHER_WORKERS: [&str; 4] = ["health", "keys", "endings", "orphaned_sessions"];

/// One expiry of all tasks.
struct Expired {
    /// Seconds from the second in which the tasks expire until the last has ended on record.
    seconds: f64,
    /// Whether the rows were there before that second.
    in_time: bool,
    /// Parts of one core.
    broker_cores: f64,
    postgres_cores: Option<f64>,
    /// Finished rounds a second, of the slowest of [`OTHER_WORKERS`].
    slowest_rounds: f64,
    leaves: f64,
}

/// The paces of the requests before and during an expiry.
struct Paces {
    calm: Pace,
    loaded: Pace,
}

pub async fn run(name: Name, options: &Options) -> Report {
    let count = options.count_or(100_000, 200);
    let bed = Bed::filled(Shape::default(), options.past).await;
    let clients = if options.smoke { 2 } else { 64 };
    closed(&bed, 8, Limit::Seconds(1)).await;
    let most = closed(&bed, clients, Limit::Seconds(options.seconds)).await;
    let half = most.pace.per_second / 2.0;
    let (mut quiet, mut loaded, mut paces) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = 0;
    for _ in 0..options.rounds {
        let at = fill(&bed, name, count, 0).await;
        quiet.push(watch(&bed, at, &AtomicBool::new(false)).await);
        let at = fill(&bed, name, count, options.seconds + 1).await;
        let (calm, lost) = open_for(&bed, half, options.seconds).await;
        failed += lost;
        let stop = AtomicBool::new(false);
        wait_until(at).await;
        let (expired, (during, lost)) =
            tokio::join!(watch(&bed, at, &stop), open(&bed, half, &stop));
        failed += lost;
        loaded.push(expired);
        paces.push(Paces {
            calm,
            loaded: during,
        });
    }
    let of = |part: fn(&Paces) -> f64| Spread::of(paces.iter().map(part));
    let (calm, during) = (of(|one| one.calm.p99_ms), of(|one| one.loaded.p99_ms));
    let ratio = of(|one| one.loaded.p99_ms / one.calm.p99_ms);
    let mut latency = Table::new(&["requests /s", "calm p99 ms", "loaded p99 ms", "ratio"]);
    latency.row([
        format!("{half:.0}"),
        calm.text(1),
        during.text(1),
        ratio.text(2),
    ]);
    Report {
        name,
        about: format!(
            "{count} tasks expire in one second; {}",
            about_store(options)
        ),
        tables: vec![table(&quiet, &loaded), latency],
        figures: json!({
            "count": count,
            "without_load": to_json(&quiet),
            "half_load": to_json(&loaded),
            "requests_per_second": half,
            "calm_p99_ms": calm.to_json(),
            "loaded_p99_ms": during.to_json(),
            "loaded_to_calm_p99": ratio.to_json(),
        }),
        failed,
    }
}

/// Inserts the tasks, and returns the time, in seconds since the epoch, from which they expire:
/// at least `margin` seconds after they are there.
async fn fill(bed: &Bed, name: Name, count: usize, margin: u64) -> i64 {
    let lead = 3 + count / FILLED_PER_SECOND + margin as usize;
    let at = unix_seconds() + i64::try_from(lead).unwrap();
    let due = format!("to_timestamp({at}) + n * (interval '1 second' / {count})");
    let task = if name == Name::Silence {
        format!(
            "'heartbeat_seconds', 30, 'heard_at', {due} - interval '30 seconds', 'check_at', {due}, \
             'deadline', {due} + interval '1 hour'"
        )
    } else {
        format!("'check_at', {due}, 'deadline', {due}")
    };
    let filling = Filling {
        count,
        opened: format!("to_timestamp({at}) - interval '1 hour' + n * interval '1 microsecond'"),
        task,
        session: None,
    };
    bed.fill(&filling, &bed.template).await;
    at
}

/// The seconds that have passed since then.
fn since(at: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64() - at as f64
}

async fn wait_until(at: i64) {
    let left = u64::try_from(at - unix_seconds()).unwrap_or(0);
    tokio::time::sleep(Duration::from_secs(left)).await;
}

/// Waits until all filled tasks have ended on record, and then sets `ended`.
async fn watch(bed: &Bed, at: i64, ended: &AtomicBool) -> Expired {
    let in_time = since(at) < 1.0;
    wait_until(at).await;
    let before = Counters::read(bed).await;
    let began = Instant::now();
    loop {
        // `task_open_by_owner` serves this.
        let (is_open,): (bool,) = bed
            .row(format!(
                "SELECT EXISTS (SELECT 1 FROM task WHERE owner = '{OWNER}' \
                 AND task_type = 'bench' AND state = 'open')"
            ))
            .await;
        if !is_open {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the tasks did not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (seconds, watched) = (since(at), began.elapsed().as_secs_f64());
    ended.store(true, Ordering::Relaxed);
    let grown = before.grown(bed).await;
    let mut rounds: BTreeMap<&str, f64> = OTHER_WORKERS.map(|worker| (worker, 0.0)).into();
    for (series, value) in grown.metrics("taskpass_sweeps_total{") {
        let worker = series.split("worker=\"").nth(1);
        let worker = worker.and_then(|rest| rest.split('"').next());
        if let Some(worker) = worker
            && let Some(count) = rounds.get_mut(worker)
        {
            *count += value;
        }
    }
    Expired {
        seconds,
        in_time,
        broker_cores: grown.broker_us() / 1e6 / watched,
        postgres_cores: grown.postgres_us().map(|us| us / 1e6 / watched),
        slowest_rounds: rounds.values().copied().fold(f64::INFINITY, f64::min)
            // The metrics were read after the wait for PostgreSQL's statistics.
            / (watched + 1.2),
        leaves: grown.metric("taskpass_ledger_size"),
    }
}

fn table(quiet: &[Expired], loaded: &[Expired]) -> Table {
    let mut table = Table::new(&[
        "other load",
        "s until ended",
        "broker cores",
        "PostgreSQL cores",
        "leaves",
        "rounds /s of the slowest other worker",
        "filled too late",
    ]);
    for (label, all) in [("none", quiet), ("half of the greatest rate", loaded)] {
        let of = |part: fn(&Expired) -> f64| Spread::of(all.iter().map(part));
        table.row([
            label.to_owned(),
            of(|one| one.seconds).text(1),
            of(|one| one.broker_cores).text(2),
            of(|one| one.postgres_cores.unwrap_or_default()).text(2),
            of(|one| one.leaves).text(0),
            of(|one| one.slowest_rounds).text(2),
            all.iter().filter(|one| !one.in_time).count().to_string(),
        ]);
    }
    table
}

fn to_json(all: &[Expired]) -> Value {
    let of = |part: fn(&Expired) -> f64| Spread::of(all.iter().map(part)).to_json();
    json!({
        "seconds": of(|one| one.seconds),
        "broker_cores": of(|one| one.broker_cores),
        "postgres_cores": of(|one| one.postgres_cores.unwrap_or_default()),
        "leaves": of(|one| one.leaves),
        "slowest_rounds_per_second": of(|one| one.slowest_rounds),
        "filled_too_late": all.iter().filter(|one| !one.in_time).count(),
    })
}
