//! Measures the cost of a grant and compares it with the cost of the database writes alone.
//!
//! One run takes three figures, at 1, 8 and 64 clients on PostgreSQL: (a) a bare durable insert of
//! one row and (b) the bare record of a grant (one-time id, task, session, leaf and its body) in a
//! transaction of its own, both by `pgbench`; and (c) the broker over HTTP, with attestation,
//! decision, ledger and signature. It then repeats (c) on SQLite. Compare only the ratios within
//! one run: absolute times on shared machines vary too much.
//!
//! `make bench` runs it. `--smoke` only checks that everything works. `--seconds N` sets the
//! duration of each measurement. `--replicas` adds a run over two replicas. `--old-snapshot` adds a
//! run during a transaction that keeps its snapshot for at least 30 s. `--json` prints the same
//! figures as JSON after the tables.

#![allow(
    clippy::disallowed_methods,
    clippy::struct_excessive_bools,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::missing_panics_doc,
    clippy::similar_names,
    clippy::unused_self,
    clippy::wildcard_imports,
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    reason = "a benchmark prints its results and panics on errors"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Executor;
use support::fleet::{Fleet, Replica};
use support::http::{Client, try_send};
use support::postgres::{fresh_database, postgres_program};
use support::rig::Kind;

const AGENTS: usize = 200;
const CLIENTS: [usize; 3] = [1, 8, 64];
const STAGES: [&str; 6] = ["appraise", "resolve", "admit", "decide", "commit", "mint"];
/// Lifetime of the old snapshot, in seconds: long enough for dead rows to accumulate.
const OLD_SNAPSHOT_SECONDS: u64 = 30;

/// Throughput and latencies of one load.
#[derive(Clone, Copy, Default)]
struct Pace {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// The results of one load. All figures except the pace are per request.
#[derive(Clone, Default)]
struct Figures {
    pace: Pace,
    broker_cpu_us: f64,
    generator_cpu_us: f64,
    commits: f64,
    transactions: f64,
    /// Time in each stage, waiting included, in the order of [`STAGES`].
    stages_us: [f64; STAGES.len()],
    failed: usize,
}

impl Pace {
    /// Computes the pace from all latencies, in microseconds, and the duration of the run.
    fn of(mut latencies_us: Vec<f64>, took: Duration) -> Self {
        assert!(
            !latencies_us.is_empty(),
            "there is no latency to compute a pace from"
        );
        latencies_us.sort_unstable_by(f64::total_cmp);
        let count = latencies_us.len();
        let at = |part: f64| latencies_us[((count as f64 * part) as usize).min(count - 1)] / 1e3;
        Self {
            per_second: count as f64 / took.as_secs_f64(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
        }
    }

    fn to_json(self) -> Value {
        json!({"per_second": self.per_second, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms})
    }
}

impl Figures {
    fn to_json(&self) -> Value {
        let stages: serde_json::Map<String, Value> = STAGES
            .iter()
            .zip(self.stages_us)
            .map(|(stage, us)| ((*stage).to_owned(), json!(us)))
            .collect();
        json!({
            "pace": self.pace.to_json(), "broker_cpu_us": self.broker_cpu_us,
            "generator_cpu_us": self.generator_cpu_us, "commits": self.commits,
            "transactions": self.transactions, "stages_us": stages, "failed": self.failed,
        })
    }
}

/// A load's name, the paces of the bare row and the bare record at the same number of clients, and
/// the broker's figures.
type Found = (String, Option<(Pace, Pace)>, Figures);

struct Plan {
    seconds: u64,
    replicas: bool,
    old_snapshot: bool,
    json: bool,
    smoke: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    let smoke = given("--smoke");
    let seconds = arguments
        .iter()
        .position(|argument| argument == "--seconds")
        .and_then(|at| arguments.get(at + 1))
        .map_or(if smoke { 2 } else { 10 }, |text| text.parse().unwrap());
    let plan = Plan {
        seconds,
        replicas: given("--replicas"),
        old_snapshot: given("--old-snapshot"),
        json: given("--json"),
        smoke,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let failed = runtime.block_on(measure(&plan));
    println!("{} passed, {failed} failed", 1 - failed.min(1));
    assert_eq!(failed, 0, "requests failed");
}

async fn measure(plan: &Plan) -> usize {
    let seconds = plan.seconds;
    let bare = fresh_database();
    let pool = bare.pool().await;
    sqlx::raw_sql(
        "CREATE TABLE bare (id bigserial PRIMARY KEY, value bytea NOT NULL); \
         CREATE SEQUENCE bare_leaf MINVALUE 0 MAXVALUE 1000000",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let (fleet, replica) = Fleet::for_load(AGENTS, Kind::Postgres).await;
    let mut found = Vec::new();

    // Warm up: the first requests fetch keys and prepare statements.
    load(&fleet, &[&replica], 8, 1).await;
    println!("| clients | a: bare row /s | b: bare record /s | c: broker /s | c/a | c/b |");
    println!("|---|---|---|---|---|---|");
    for clients in CLIENTS {
        let a = pgbench(&bare.url(), BARE_ROW, clients, seconds);
        let b = pgbench(&bare.url(), BARE_RECORD, clients, seconds);
        let c = load(&fleet, &[&replica], clients, seconds).await;
        println!(
            "| {clients} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
            a.per_second,
            b.per_second,
            c.pace.per_second,
            c.pace.per_second / a.per_second,
            c.pace.per_second / b.per_second,
        );
        found.push((format!("PostgreSQL, {clients}"), Some((a, b)), c));
    }
    if plan.replicas {
        let other = fleet.replica();
        load(&fleet, &[&other], 8, 1).await;
        let c = load(&fleet, &[&replica, &other], 64, seconds).await;
        found.push(("PostgreSQL, two replicas, 64".into(), None, c));
    }
    if plan.old_snapshot {
        let pool = fleet.database().pool().await;
        let mut old = pool.acquire().await.unwrap();
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM task")
            .await
            .unwrap();
        let long = if plan.smoke {
            seconds
        } else {
            seconds.max(OLD_SNAPSHOT_SECONDS)
        };
        let c = load(&fleet, &[&replica], 64, long).await;
        old.execute("ROLLBACK").await.unwrap();
        found.push(("PostgreSQL, old snapshot, 64".into(), None, c));
    }
    drop(replica);
    let (fleet, replica) = Fleet::for_load(AGENTS, Kind::Sqlite).await;
    load(&fleet, &[&replica], 8, 1).await;
    for clients in CLIENTS {
        let c = load(&fleet, &[&replica], clients, seconds).await;
        found.push((format!("SQLite, {clients}"), None, c));
    }
    print_broker(&found);
    if plan.json {
        let all: Vec<Value> = found
            .iter()
            .map(|(name, bare, c)| {
                json!({
                    "load": name, "broker": c.to_json(),
                    "bare_row": bare.map(|(a, _)| a.to_json()),
                    "bare_record": bare.map(|(_, b)| b.to_json()),
                })
            })
            .collect();
        println!("{}", Value::from(all));
    }
    found.iter().map(|(_, _, c)| c.failed).sum()
}

/// Prints one line for each load of the broker: latency, the bare record's latency, and the cost of
/// a request.
fn print_broker(found: &[Found]) {
    println!(
        "\n| store, clients | /s | p50 ms | p99 ms | b p50 ms | b p99 ms | broker CPU µs | generator CPU µs | durable commits | transactions |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, bare, c) in found {
        let of_b = |part: fn(&Pace) -> f64| {
            bare.as_ref()
                .map_or_else(String::new, |(_, b)| format!("{:.2}", part(b)))
        };
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {} | {} | {:.0} | {:.0} | {:.3} | {:.2} |",
            c.pace.per_second,
            c.pace.p50_ms,
            c.pace.p99_ms,
            of_b(|b| b.p50_ms),
            of_b(|b| b.p99_ms),
            c.broker_cpu_us,
            c.generator_cpu_us,
            c.commits,
            c.transactions,
        );
    }
    println!("\nµs of a request by stage, waiting included:");
    println!("\n| store, clients | {} |", STAGES.join(" | "));
    println!("|---{}|", "|---".repeat(STAGES.len()));
    for (name, _, c) in found {
        let stages: Vec<String> = c.stages_us.iter().map(|us| format!("{us:.0}")).collect();
        println!("| {name} | {} |", stages.join(" | "));
    }
}

const BARE_ROW: &str = "INSERT INTO bare (value) VALUES (decode(md5(random()::text), 'hex'));\n";

const BARE_RECORD: &str = r"
BEGIN;
INSERT INTO one_time (key, expires_at) VALUES (int4send(extract(epoch FROM clock_timestamp())::int) || sha256(random()::text::bytea), '2030-01-01');
WITH t AS (INSERT INTO task (id, task_type, attestor, owner, owner_instance, depth, state, opened_at, deadline, heard_at, check_at, handle_digest, sessions_left, leaf_idx, attestor_digest)
 VALUES (gen_random_uuid(), 'job', 'dev', 'dev-agent', 'run', 1, 'open', '2026-01-01', '2030-01-01', '2026-01-01', '2030-01-01', '\x00', 5, 0, decode(repeat('00', 32), 'hex')) RETURNING id)
INSERT INTO session (id, task_id, decision_id, leaf_idx, attestor, workload, resource, details, audience, minter, kid, generation, policies, class, bound_seconds, issued_at, expires_at, state, is_local, in_status_lists, open_sessions, expires_by)
 SELECT gen_random_uuid(), id, gen_random_uuid(), 0, 'dev', 'dev-agent', 'orders-api', '[]', 'https://orders.example', 'jwt', 'kid', '\x00', '[]', 'immediate', 0, '2026-01-01', '2030-01-01', 'active', true, false, 'none', 'itself' FROM t;
WITH l AS (INSERT INTO leaf (idx, hash, decision_id, subject, at) VALUES (nextval('bare_leaf'), sha256(random()::text::bytea), gen_random_uuid(), 'dev-agent', '2026-01-01') RETURNING idx)
INSERT INTO leaf_body (idx, body) SELECT idx, repeat('x', 1100)::bytea FROM l;
COMMIT;
";

/// Runs a script and reads the latency of each transaction from pgbench's log, because pgbench
/// itself reports only a mean and no median.
fn pgbench(url: &str, script: &str, clients: usize, seconds: u64) -> Pace {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let output = Command::new(postgres_program("pgbench"))
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--log"])
        .arg(format!("--client={clients}"))
        .arg(format!("--time={seconds}"))
        .arg(format!("--file={}", file.display()))
        .arg(url)
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let log = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("pgbench_log")
        })
        .unwrap();
    // The columns are: client, number, latency in µs, script, second, microsecond.
    let latencies = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(|line| line.split(' ').nth(2).unwrap().parse().unwrap())
        .collect();
    Pace::of(latencies, Duration::from_secs(seconds))
}

async fn load(fleet: &Fleet, replicas: &[&Replica], clients: usize, seconds: u64) -> Figures {
    // Sign the tokens before the clock starts, and more of them than the run can use.
    let wanted = (seconds as usize) * if clients == 1 { 1_500 } else { 6_000 };
    let tokens: Vec<String> = (0..wanted)
        .map(|n| {
            fleet
                .issuer
                .token(json!({"sub": format!("agent:{}", n % AGENTS), "run": "run-1"}))
        })
        .collect();
    let tokens = Arc::new(tokens);
    let next = Arc::new(AtomicUsize::new(0));
    // Make the clients before the clock starts: each sets up TLS, which this run does not use.
    let addresses =
        (0..clients).map(|n| format!("http://{}", replicas[n % replicas.len()].address));
    let senders: Vec<Client> = addresses.map(|base| Client::new(&base)).collect();
    let (transactions_before, before) = (transactions(fleet).await, scrape(replicas).await);
    let cpu = || -> f64 {
        replicas
            .iter()
            .map(|replica| cpu_us(&replica.process.pid().to_string()))
            .sum()
    };
    let (broker_before, own_before) = (cpu(), cpu_us("self"));
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let workers: Vec<_> = senders
        .into_iter()
        .map(|client| {
            let (tokens, next) = (Arc::clone(&tokens), Arc::clone(&next));
            tokio::spawn(async move {
                let body = json!({
                    "task": {"type": "job"}, "resource": "orders-api",
                    "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
                });
                let mut latencies = Vec::new();
                let mut failed = 0;
                while Instant::now() < until {
                    let Some(token) = tokens.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let asked = Instant::now();
                    let request = client
                        .request(reqwest::Method::POST, "/v1/credentials")
                        .bearer_auth(token)
                        .json(&body);
                    match try_send(request).await {
                        Ok(answer) if answer.status == 201 => {
                            latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                        }
                        other => {
                            failed += 1;
                            eprintln!("{:?}", other.map(|answer| answer.text()));
                        }
                    }
                }
                (latencies, failed)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    let mut failed = 0;
    for worker in workers {
        let (own, lost) = worker.await.unwrap();
        latencies.extend(own);
        failed += lost;
    }
    let took = began.elapsed();
    let (broker, own) = (cpu() - broker_before, cpu_us("self") - own_before);
    let requests = latencies.len() as f64;
    // Wait, because PostgreSQL updates the statistics of an open session late.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let after = scrape(replicas).await;
    let grown = |name: &str| {
        let of = |all: &BTreeMap<String, f64>| all.get(name).copied().unwrap_or_default();
        of(&after) - of(&before)
    };
    let stage = |stage| {
        let name = format!("taskpass_stage_seconds_sum{{stage=\"{stage}\"}}");
        grown(&name) * 1e6 / requests
    };
    Figures {
        pace: Pace::of(latencies, took),
        broker_cpu_us: broker / requests,
        generator_cpu_us: own / requests,
        // Each batch of the ledger is one durable commit. The other transactions that the database
        // counts are single reads, which do not wait for the disk.
        commits: grown("taskpass_ledger_batch_entries_count") / requests,
        transactions: (transactions(fleet).await - transactions_before) / requests,
        stages_us: STAGES.map(stage),
        failed,
    }
}

async fn transactions(fleet: &Fleet) -> f64 {
    let Some(database) = fleet.maybe_database() else {
        return 0.0;
    };
    let pool = database.pool().await;
    let (count,): (i64,) = sqlx::query_as(
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    pool.close().await;
    count as f64
}

/// The sum of every metric over the replicas.
async fn scrape(replicas: &[&Replica]) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for replica in replicas {
        let metrics = replica.client.get("/metrics").await.text();
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.rsplit_once(' ')
                && let Ok(value) = value.parse::<f64>()
            {
                *all.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
    }
    all
}

/// User and system time of a process so far, in microseconds.
fn cpu_us(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks * 10_000.0
}
