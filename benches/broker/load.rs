//! Requests for credentials: in a closed loop, in which each client waits for its answer, and in an
//! open one, in which requests begin at a given rate whether earlier ones were answered or not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use crate::bed::Bed;
use crate::figures::Pace;
use crate::machine::{Postgres, cpu_us, own_cpu_us};
use crate::support::http::Client;

pub const STAGES: [&str; 6] = ["appraise", "resolve", "admit", "decide", "commit", "mint"];

/// The results of one load. All figures except the pace are per request.
#[derive(Clone, Default)]
pub struct Figures {
    pub pace: Pace,
    pub broker_cpu_us: f64,
    /// `None` if PostgreSQL does not run on this machine, or the store is another.
    pub postgres_cpu_us: Option<f64>,
    pub generator_cpu_us: f64,
    /// Batches of the ledger, each a durable commit and a checkpoint's signature.
    pub commits: f64,
    pub transactions: f64,
    /// Attestations that were verified.
    pub verifications: f64,
    /// Tokens that were signed.
    pub signatures: f64,
    /// Time in each stage, waiting included, in the order of [`STAGES`].
    pub stages_us: [f64; STAGES.len()],
    pub failed: usize,
    /// Answers, as many as were asked for.
    pub kept: Vec<Value>,
}

/// The end of a closed loop.
#[derive(Clone, Copy)]
pub enum Limit {
    Seconds(u64),
    Requests(usize),
}

/// Requests credentials from all replicas of the bed in turn, by so many clients.
pub async fn closed(bed: &Bed, clients: usize, limit: Limit) -> Figures {
    closed_keeping(bed, clients, limit, 0).await
}

/// The same, and keeps the first `keep` answers.
pub async fn closed_keeping(bed: &Bed, clients: usize, limit: Limit, keep: usize) -> Figures {
    let (wanted, seconds) = match limit {
        // More than the run can use.
        Limit::Seconds(seconds) => {
            let each = if clients == 1 { 1_500 } else { 6_000 };
            (seconds as usize * each, seconds)
        }
        Limit::Requests(requests) => (requests, 3_600),
    };
    // Sign the tokens before the clock starts.
    let tokens: Arc<Vec<String>> = Arc::new((0..wanted).map(|n| bed.token(n)).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let body: Arc<str> = bed.body().to_string().into();
    let senders = senders(bed, clients);
    let before = Counters::read(bed).await;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let workers: Vec<_> = senders
        .into_iter()
        .map(|client| {
            let (tokens, next, body) = (Arc::clone(&tokens), Arc::clone(&next), Arc::clone(&body));
            tokio::spawn(async move {
                let (mut latencies, mut kept, mut failed) = (Vec::new(), Vec::<Value>::new(), 0);
                while Instant::now() < until {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(token) = tokens.get(n) else {
                        break;
                    };
                    let asked = Instant::now();
                    match ask(&client, token, &body).await {
                        Ok(answer) => {
                            latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                            if n < keep {
                                kept.push(serde_json::from_slice(&answer).unwrap());
                            }
                        }
                        Err(error) => {
                            failed += 1;
                            eprintln!("{error}");
                        }
                    }
                }
                (latencies, kept, failed)
            })
        })
        .collect();
    let (mut latencies, mut kept, mut failed) = (Vec::new(), Vec::new(), 0);
    for worker in workers {
        let (own, answers, lost): (Vec<f64>, Vec<Value>, usize) = worker.await.unwrap();
        latencies.extend(own);
        kept.extend(answers);
        failed += lost;
    }
    let took = began.elapsed();
    let grown = before.grown(bed).await;
    grown.figures(latencies, took, failed, kept)
}

/// Requests credentials at this rate until `stop` is set, and returns the pace and the number of
/// failures. Latencies count from the intended begin of a request.
pub async fn open(bed: &Bed, per_second: f64, stop: &AtomicBool) -> (Pace, usize) {
    let body: Arc<str> = bed.body().to_string().into();
    let senders = senders(bed, 16);
    let began = Instant::now();
    let mut asked = Vec::new();
    let mut n = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let intended = began + Duration::from_secs_f64(n as f64 / per_second);
        // Sign before the wait, so that the signature does not delay the request.
        let token = bed.token(n);
        tokio::time::sleep_until(intended.into()).await;
        let (client, body) = (senders[n % senders.len()].clone(), Arc::clone(&body));
        asked.push(tokio::spawn(async move {
            let answer = ask(&client, &token, &body).await;
            answer.map(|_| intended.elapsed().as_secs_f64() * 1e6)
        }));
        n += 1;
    }
    let took = began.elapsed();
    let (mut latencies, mut failed) = (Vec::with_capacity(asked.len()), 0);
    for request in asked {
        match request.await.unwrap() {
            Ok(latency) => latencies.push(latency),
            Err(error) => {
                failed += 1;
                eprintln!("{error}");
            }
        }
    }
    (Pace::of(latencies, took), failed)
}

/// [`open`] for a time.
pub async fn open_for(bed: &Bed, per_second: f64, seconds: u64) -> (Pace, usize) {
    let stop = AtomicBool::new(false);
    let timer = async {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (figures, ()) = tokio::join!(open(bed, per_second, &stop), timer);
    figures
}

/// One client for each place, with connections of its own. They are made before the clock starts:
/// each sets up TLS, which the load does not use.
fn senders(bed: &Bed, clients: usize) -> Vec<Client> {
    let replicas = &bed.replicas;
    (0..clients)
        .map(|n| Client::new(&format!("http://{}", replicas[n % replicas.len()].address)))
        .collect()
}

/// Requests a credential. The answer is not compared with its description, because the load
/// generator shares the machine with the broker.
async fn ask(client: &Client, token: &str, body: &Arc<str>) -> Result<Vec<u8>, String> {
    let answer = client
        .request(Method::POST, "/v1/credentials")
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .map_err(|error| error.to_string())?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(|error| error.to_string())?;
    if status == 201 {
        Ok(bytes.to_vec())
    } else {
        Err(format!("{status}: {}", String::from_utf8_lossy(&bytes)))
    }
}

/// Everything that is counted, at one instant or as the difference of two.
pub struct Counters {
    metrics: BTreeMap<String, f64>,
    transactions: f64,
    broker_us: f64,
    postgres: Option<Postgres>,
    postgres_us: f64,
    own_us: f64,
}

impl Counters {
    pub async fn read(bed: &Bed) -> Self {
        let database = bed.fleet.maybe_database();
        let postgres = match database {
            Some(database) => Postgres::of(database).await,
            None => None,
        };
        let (metrics, transactions) = (scrape(bed).await, transactions(bed).await);
        Self {
            metrics,
            transactions,
            postgres,
            // Read these last: the reads above also cost CPU time.
            broker_us: broker_us(bed),
            postgres_us: postgres.map_or(0.0, Postgres::cpu_us),
            own_us: own_cpu_us(),
        }
    }

    /// The growth since then.
    pub async fn grown(self, bed: &Bed) -> Self {
        let broker_us = broker_us(bed) - self.broker_us;
        let postgres_us = self.postgres.map_or(0.0, Postgres::cpu_us) - self.postgres_us;
        let own_us = own_cpu_us() - self.own_us;
        // Wait, because PostgreSQL updates the statistics of an open session late.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let mut metrics = scrape(bed).await;
        for (name, value) in &mut metrics {
            *value -= self.metrics.get(name).copied().unwrap_or_default();
        }
        Self {
            metrics,
            transactions: transactions(bed).await - self.transactions,
            broker_us,
            postgres: self.postgres,
            postgres_us,
            own_us,
        }
    }

    /// One series; 0 if it does not exist.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or_default()
    }

    /// All series whose names begin with `prefix`.
    pub fn metrics<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let all = self.metrics.iter();
        let found = all.filter(move |(name, _)| name.starts_with(prefix));
        found.map(|(name, value)| (name.as_str(), *value))
    }

    pub fn broker_us(&self) -> f64 {
        self.broker_us
    }

    /// `None` if PostgreSQL does not run on this machine.
    pub fn postgres_us(&self) -> Option<f64> {
        self.postgres.map(|_| self.postgres_us)
    }

    fn figures(
        &self,
        latencies: Vec<f64>,
        took: Duration,
        failed: usize,
        kept: Vec<Value>,
    ) -> Figures {
        let requests = latencies.len() as f64;
        let stage = |part: &str, stage: &str| {
            self.metric(&format!(
                "taskpass_stage_seconds_{part}{{stage=\"{stage}\"}}"
            ))
        };
        Figures {
            pace: Pace::of(latencies, took),
            broker_cpu_us: self.broker_us / requests,
            postgres_cpu_us: self.postgres_us().map(|us| us / requests),
            generator_cpu_us: self.own_us / requests,
            // Each batch of the ledger is one durable commit. The other transactions that the
            // database counts are single reads, which do not wait for the disk.
            commits: self.metric("taskpass_ledger_batch_entries_count") / requests,
            transactions: self.transactions / requests,
            verifications: stage("count", "appraise") / requests,
            signatures: self.metric("taskpass_mints_total{minter=\"jwt\",result=\"ok\"}")
                / requests,
            stages_us: STAGES.map(|name| stage("sum", name) * 1e6 / requests),
            failed,
            kept,
        }
    }
}

fn broker_us(bed: &Bed) -> f64 {
    let replicas = bed.replicas.iter();
    replicas.map(|replica| cpu_us(replica.process.pid())).sum()
}

async fn transactions(bed: &Bed) -> f64 {
    if bed.fleet.maybe_database().is_none() {
        return 0.0;
    }
    let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let (count,): (i64,) = bed.row(sql.into()).await;
    count as f64
}

/// The sum of every metric over the replicas.
async fn scrape(bed: &Bed) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for replica in &bed.replicas {
        let answer = replica.client.get_as(&bed.fleet.admin, "/metrics").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let metrics = answer.text();
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
