//! The database without the broker: a durable insert of one row, and the rows of a grant in a
//! transaction of its own. `pgbench` runs both.

use std::process::Command;
use std::time::Duration;

use sqlx::Executor;

use crate::figures::{Pace, Spread};
use crate::filling::{Filling, Template};
use crate::support::postgres::{TestDatabase, fresh_database, postgres_program};

/// The numbers of clients among which the bare record's best one is searched.
const CANDIDATES: [usize; 6] = [2, 4, 8, 16, 32, 64];

/// Rounds of the search.
const SEARCH_ROUNDS: usize = 3;

const ROW: &str = "INSERT INTO bare (value) VALUES (decode(md5(random()::text), 'hex'));\n";

/// The one-time id, the task, the session, the leaf and its body, with ids that grow with time, as
/// the broker's do. The broker also writes a head, an opening and tiles.
const RECORD: &str = r"
BEGIN;
INSERT INTO one_time (key, expires_at) VALUES (int4send(extract(epoch FROM clock_timestamp())::int) || sha256(random()::text::bytea), '2030-01-01');
WITH t AS (INSERT INTO task (id, task_type, attestor, owner, owner_instance, depth, state, opened_at, deadline, heard_at, check_at, handle_digest, sessions_left, leaf_idx, attestor_digest)
 VALUES (bare_id(), 'job', 'dev', 'dev-agent', 'run', 1, 'open', '2026-01-01', '2030-01-01', '2026-01-01', '2030-01-01', '\x00', 5, 0, decode(repeat('00', 32), 'hex')) RETURNING id)
INSERT INTO session (id, task_id, decision_id, leaf_idx, attestor, workload, resource, details, audience, minter, kid, generation, policies, class, bound_seconds, issued_at, expires_at, state, is_local, in_status_lists, open_sessions, expires_by)
 SELECT bare_id(), id, bare_id(), 0, 'dev', 'dev-agent', 'orders-api', '[]', 'https://orders.example', 'jwt', 'kid', '\x00', '[]', 'immediate', 0, '2026-01-01', '2030-01-01', 'active', true, false, 'none', 'itself' FROM t;
WITH l AS (INSERT INTO leaf (idx, hash, decision_id, subject, at) VALUES (nextval('bare_leaf'), sha256(random()::text::bytea), bare_id(), 'dev-agent', '2026-01-01') RETURNING idx)
INSERT INTO leaf_body (idx, body) SELECT idx, repeat('x', 1100)::bytea FROM l;
COMMIT;
";

/// The partitions of a new store are for two million bodies.
const PREPARE: &str = "
CREATE TABLE bare (id bigserial PRIMARY KEY, value bytea NOT NULL);
CREATE SEQUENCE bare_leaf MINVALUE 0 MAXVALUE 2097151;
CREATE FUNCTION bare_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(random()::text), 1, 3)
        || '8' || substr(md5(random()::text), 1, 15))::uuid
$$;
";

/// A database for `pgbench`, with the broker's schema.
pub struct Bare {
    database: TestDatabase,
}

impl Bare {
    /// A database with so many past sessions.
    pub async fn filled(past: usize) -> Self {
        let database = fresh_database();
        let mut connection = database.connect().await;
        for text in [PREPARE, RECORD] {
            connection.execute(sqlx::raw_sql(text)).await.unwrap();
        }
        let template = Template::only(&database).await;
        Filling::past(past).insert(&database, &template).await;
        Self { database }
    }

    pub fn database(&self) -> &TestDatabase {
        &self.database
    }

    pub fn row(&self, clients: usize, seconds: u64) -> Pace {
        pgbench(&self.database.url(), ROW, clients, seconds)
    }

    pub fn record(&self, clients: usize, seconds: u64) -> Pace {
        pgbench(&self.database.url(), RECORD, clients, seconds)
    }

    /// The number of clients with which the bare record has the greatest rate, by the medians of
    /// interleaved rounds.
    pub fn best_clients(&self, seconds: u64) -> usize {
        let mut found = vec![Vec::new(); CANDIDATES.len()];
        for _ in 0..SEARCH_ROUNDS {
            for (clients, rates) in CANDIDATES.iter().zip(&mut found) {
                rates.push(self.record(*clients, seconds).per_second);
            }
        }
        let medians = found.into_iter().map(|rates| Spread::of(rates).median);
        let best = CANDIDATES
            .into_iter()
            .zip(medians)
            .max_by(|one, other| one.1.total_cmp(&other.1));
        best.unwrap().0
    }
}

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
