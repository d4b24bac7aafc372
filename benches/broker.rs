//! What a grant costs, beside what the database alone would.
//!
//! Three figures in one run, at 1, 8 and 64 clients on PostgreSQL: (a) a bare durable insert of one
//! row and (b) the bare record of a grant (one-time id, task, session, leaf and its body) in a
//! transaction of its own, both by `pgbench`; and (c) the broker over HTTP, with attestation,
//! decision, ledger and signature. Then (c) on SQLite. Absolute times on shared machines mean
//! little: the ratios within one run are what counts.
//!
//! `make bench` runs it; `--smoke` only sees that everything works, `--seconds N` is for how long
//! each figure is taken, `--replicas` adds a run over two replicas.

#![allow(
    clippy::disallowed_methods,
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
    reason = "a measurement: it prints, and gives up loudly"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::fleet::{Fleet, Replica};
use support::http::{Client, try_send};
use support::postgres::{fresh_database, postgres_program};

const AGENTS: usize = 200;
const CLIENTS: [usize; 3] = [1, 8, 64];

/// What was measured of one load.
#[derive(Clone, Default)]
struct Figures {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    broker_cpu_us: f64,
    generator_cpu_us: f64,
    batches: f64,
    transactions: f64,
    failed: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let replicas = arguments.iter().any(|argument| argument == "--replicas");
    let seconds = arguments
        .iter()
        .position(|argument| argument == "--seconds")
        .and_then(|at| arguments.get(at + 1))
        .map_or(if smoke { 2 } else { 10 }, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let failed = runtime.block_on(measure(seconds, replicas));
    println!("{} passed, {failed} failed", 1 - failed.min(1));
    assert_eq!(failed, 0, "requests failed");
}

async fn measure(seconds: u64, two_replicas: bool) -> usize {
    let bare = fresh_database();
    let pool = bare.pool().await;
    sqlx::raw_sql(
        "CREATE TABLE bare (id bigserial PRIMARY KEY, value bytea NOT NULL); \
         CREATE SEQUENCE bare_leaf MINVALUE 0 MAXVALUE 1000000",
    )
    .execute(&pool)
    .await
    .unwrap();
    let (fleet, replica) = Fleet::for_load(AGENTS, true).await;
    println!(
        "| clients | a: bare row /s | b: bare record /s | c: broker /s | c/b | b p50 ms | c p50 ms | c p99 ms | broker CPU µs | generator CPU µs | commits/request |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut failed = 0;
    for clients in CLIENTS {
        let a = pgbench(&bare.url(), BARE_ROW, clients, seconds);
        let b = pgbench(&bare.url(), BARE_RECORD, clients, seconds);
        let c = load(&fleet, &[&replica], clients, seconds).await;
        failed += c.failed;
        println!(
            "| {clients} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.3} | {:.2} |",
            a.0,
            b.0,
            c.per_second,
            c.per_second / b.0,
            b.1,
            c.p50_ms,
            c.p99_ms,
            c.broker_cpu_us,
            c.generator_cpu_us,
            c.batches,
            c.transactions,
        );
    }
    println!("\nCPU and waiting of the broker by stage, ms in all:");
    let metrics = replica.client.get("/metrics").await.text();
    for line in metrics.lines() {
        if line.starts_with("taskpass_stage_seconds_sum")
            || line.starts_with("taskpass_stage_seconds_count")
        {
            println!("  {line}");
        }
    }
    if two_replicas {
        let other = fleet.replica();
        let c = load(&fleet, &[&replica, &other], 64, seconds).await;
        failed += c.failed;
        println!(
            "\ntwo replicas, 64 clients: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            c.per_second, c.p50_ms, c.p99_ms
        );
    }
    drop(replica);
    let (fleet, replica) = Fleet::for_load(AGENTS, false).await;
    for clients in CLIENTS {
        let c = load(&fleet, &[&replica], clients, seconds).await;
        failed += c.failed;
        println!(
            "SQLite, {clients} clients: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, broker CPU {:.0} µs a request",
            c.per_second, c.p50_ms, c.p99_ms, c.broker_cpu_us
        );
    }
    failed
}

const BARE_ROW: &str = "INSERT INTO bare (value) VALUES (decode(md5(random()::text), 'hex'));\n";

const BARE_RECORD: &str = r"
BEGIN;
INSERT INTO one_time (key, expires_at) VALUES (sha256(random()::text::bytea), '2030-01-01');
WITH t AS (INSERT INTO task (id, task_type, attestor, owner, owner_instance, depth, state, opened_at, deadline, heard_at, check_at, handle_digest, sessions_left, leaf_idx)
 VALUES (gen_random_uuid(), 'job', 'dev', 'dev-agent', 'run', 1, 'open', '2026-01-01', '2030-01-01', '2026-01-01', '2030-01-01', '\x00', 5, 0) RETURNING id)
INSERT INTO session (id, task_id, decision_id, leaf_idx, attestor, workload, resource, details, audience, kid, generation, policies, class, bound_seconds, issued_at, expires_at, state)
 SELECT gen_random_uuid(), id, gen_random_uuid(), 0, 'dev', 'dev-agent', 'orders-api', '[]', 'https://orders.example', 'kid', '\x00', '[]', 'immediate', 0, '2026-01-01', '2030-01-01', 'active' FROM t;
WITH l AS (INSERT INTO leaf (idx, hash, decision_id, subject, at) VALUES (nextval('bare_leaf'), sha256(random()::text::bytea), gen_random_uuid(), 'dev-agent', '2026-01-01') RETURNING idx)
INSERT INTO leaf_body (idx, body) SELECT idx, repeat('x', 1100)::bytea FROM l;
COMMIT;
";

/// Transactions a second and their mean latency in ms.
fn pgbench(url: &str, script: &str, clients: usize, seconds: u64) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let output = Command::new(postgres_program("pgbench"))
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1"])
        .arg(format!("--client={clients}"))
        .arg(format!("--time={seconds}"))
        .arg(format!("--file={}", file.display()))
        .arg(url)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let figure = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let word = line
            .split('=')
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        word.parse().unwrap()
    };
    (figure("tps"), figure("latency average"))
}

async fn load(fleet: &Fleet, replicas: &[&Replica], clients: usize, seconds: u64) -> Figures {
    // Signed before the clock starts; more than can be used.
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
    let (commits_before, batches_before) = (commits(fleet).await, batches(replicas).await);
    let cpu = || -> f64 {
        replicas
            .iter()
            .map(|replica| cpu_us(&replica.process.pid().to_string()))
            .sum()
    };
    let (broker_before, own_before) = (cpu(), cpu_us("self"));
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..clients)
        .map(|n| {
            let base = format!("http://{}", replicas[n % replicas.len()].address);
            let (tokens, next) = (Arc::clone(&tokens), Arc::clone(&next));
            tokio::spawn(async move {
                let client = Client::new(&base);
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
                        Ok(answer) if answer.status == 201 => latencies.push(asked.elapsed()),
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
    let took = began.elapsed().as_secs_f64();
    let (broker, own) = (cpu() - broker_before, cpu_us("self") - own_before);
    latencies.sort_unstable();
    let at = |part: f64| -> f64 {
        let index =
            ((latencies.len() as f64 * part) as usize).min(latencies.len().saturating_sub(1));
        latencies
            .get(index)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1_000.0)
    };
    let requests = latencies.len().max(1) as f64;
    // The statistics of a session that is still open arrive late.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    Figures {
        per_second: requests / took,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        broker_cpu_us: broker / requests,
        generator_cpu_us: own / requests,
        batches: (batches(replicas).await - batches_before) / requests,
        transactions: (commits(fleet).await - commits_before) / requests,
        failed,
    }
}

async fn commits(fleet: &Fleet) -> f64 {
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

/// Batches that the ledger committed: each is one durable commit. What else the database counts as
/// a transaction are single reads, which wait for no disk.
async fn batches(replicas: &[&Replica]) -> f64 {
    let mut all = 0.0;
    for replica in replicas {
        let metrics = replica.client.get("/metrics").await.text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("taskpass_ledger_batch_entries_count"));
        all += line
            .and_then(|line| line.split_whitespace().last()?.parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    all
}

/// User and system time of a process so far.
fn cpu_us(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks * 10_000.0
}
