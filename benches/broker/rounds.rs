//! The broker against the bare record, in interleaved rounds, and the share of cryptography.

use serde_json::{Value, json};

use crate::bare::Bare;
use crate::bed::{Bed, Shape, about_store};
use crate::crypto::Costs;
use crate::figures::{Pace, PaceSpread, Ratio, Report, Spread, Table};
use crate::load::{Figures, Limit, STAGES, closed};
use crate::options::{Name, Options};
use crate::support::keys::peek;

/// All rounds with one number of clients.
struct Measured {
    clients: usize,
    rows: Vec<Pace>,
    records: Vec<Pace>,
    broker: Vec<Figures>,
}

impl Measured {
    fn rates(paces: &[Pace]) -> Vec<f64> {
        paces.iter().map(|pace| pace.per_second).collect()
    }

    fn broker_paces(&self) -> Vec<Pace> {
        self.broker.iter().map(|figures| figures.pace).collect()
    }

    fn of_broker(&self, part: impl Fn(&Figures) -> f64) -> Spread {
        Spread::of(self.broker.iter().map(part))
    }

    /// `None` if PostgreSQL runs on another machine.
    fn postgres_cpu(&self) -> Option<Spread> {
        let all: Option<Vec<f64>> = self.broker.iter().map(|f| f.postgres_cpu_us).collect();
        all.map(Spread::of)
    }
}

pub async fn run(options: &Options) -> Report {
    let seconds = options.seconds;
    let bare = Bare::filled(options.past).await;
    let bed = Bed::filled(Shape::default(), options.past).await;
    let granted = bed.issue(1).await;
    let (header, _) = peek(granted["credential"]["access_token"].as_str().unwrap());
    let algorithm = header["alg"].as_str().unwrap().to_owned();
    // The first requests fetch keys and prepare statements.
    closed(&bed, 8, Limit::Seconds(1)).await;
    let best = bare.best_clients(seconds.div_ceil(2));
    let mut all: Vec<Measured> = options
        .clients_or(&[1, 8, 64])
        .into_iter()
        .map(|clients| Measured {
            clients,
            rows: Vec::new(),
            records: Vec::new(),
            broker: Vec::new(),
        })
        .collect();
    let (mut at_best, mut costs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        at_best.push(bare.record(best, seconds));
        costs.push(Costs::time(if options.smoke { 20 } else { 1_000 }));
        for one in &mut all {
            // In every second round the broker comes first.
            let is_odd = round % 2 == 1;
            if is_odd {
                one.broker
                    .push(closed(&bed, one.clients, Limit::Seconds(seconds)).await);
            }
            one.rows.push(bare.row(one.clients, seconds));
            one.records.push(bare.record(one.clients, seconds));
            if !is_odd {
                one.broker
                    .push(closed(&bed, one.clients, Limit::Seconds(seconds)).await);
            }
        }
    }
    let tables = vec![
        paces(&all, best, &at_best),
        costs_of_a_request(&all, &costs, &algorithm),
        stages(&all),
    ];
    let best_pace = PaceSpread::of(&at_best).to_json();
    let loads: Vec<Value> = all
        .iter()
        .map(|one| to_json(one, &at_best, &costs, &algorithm))
        .collect();
    Report {
        name: Name::Rounds,
        about: format!(
            "{}; the bare record was fastest with {best} clients; tokens by {algorithm}",
            about_store(options)
        ),
        tables,
        figures: json!({"best_clients": best, "best_record": best_pace, "loads": loads}),
        failed: all
            .iter()
            .flat_map(|one| &one.broker)
            .map(|f| f.failed)
            .sum(),
    }
}

fn paces(all: &[Measured], best: usize, at_best: &[Pace]) -> Table {
    let head = format!("c/b at {best}");
    let mut table = Table::new(&[
        "clients",
        "measured",
        "/s",
        "p50 ms",
        "p99 ms",
        "c/a",
        "c/b",
        head.as_str(),
    ]);
    let best_rates = Measured::rates(at_best);
    for one in all {
        let (rows, records) = (Measured::rates(&one.rows), Measured::rates(&one.records));
        let broker = Measured::rates(&one.broker_paces());
        let ratios = [&rows, &records, &best_rates].map(|below| Ratio::of(&broker, below).text());
        for (label, paces, ratios) in [
            ("a: bare row", one.rows.clone(), None),
            ("b: bare record", one.records.clone(), None),
            ("c: broker", one.broker_paces(), Some(ratios)),
        ] {
            let cells = PaceSpread::of(&paces).cells();
            let ratios = ratios.unwrap_or_default();
            let first = [one.clients.to_string(), label.to_owned()];
            table.row(first.into_iter().chain(cells).chain(ratios));
        }
    }
    let first = [best.to_string(), "b: bare record".to_owned()];
    let cells = PaceSpread::of(at_best).cells();
    table.row(
        first
            .into_iter()
            .chain(cells)
            .chain(<[String; 3]>::default()),
    );
    table
}

/// Microseconds of cryptography in a request of one round: counted operations, each with the time
/// that it took in that round. A checkpoint has one signature, because the log has one key.
fn crypto_us(figures: &Figures, costs: &Costs, algorithm: &str) -> f64 {
    figures.verifications * costs.verify_es256
        + figures.signatures * costs.sign(algorithm)
        + figures.commits * costs.sign_ed25519
}

fn crypto(one: &Measured, costs: &[Costs], algorithm: &str) -> [Spread; 2] {
    let us: Vec<f64> = one
        .broker
        .iter()
        .zip(costs)
        .map(|(figures, costs)| crypto_us(figures, costs, algorithm))
        .collect();
    let shares = us.iter().zip(&one.broker);
    let shares = shares.map(|(us, figures)| us / figures.broker_cpu_us * 100.0);
    [Spread::of(us.iter().copied()), Spread::of(shares)]
}

fn costs_of_a_request(all: &[Measured], costs: &[Costs], algorithm: &str) -> Table {
    let mut table = Table::new(&[
        "clients",
        "broker CPU µs",
        "of it cryptography µs",
        "cryptography %",
        "PostgreSQL CPU µs",
        "generator CPU µs",
        "verifications",
        "token signatures",
        "durable commits",
        "transactions",
    ]);
    for one in all {
        let [us, share] = crypto(one, costs, algorithm);
        let postgres = one.postgres_cpu();
        table.row([
            one.clients.to_string(),
            one.of_broker(|f| f.broker_cpu_us).text(0),
            us.text(0),
            share.text(0),
            postgres.map_or_else(String::new, |spread| spread.text(0)),
            one.of_broker(|f| f.generator_cpu_us).text(0),
            one.of_broker(|f| f.verifications).text(2),
            one.of_broker(|f| f.signatures).text(2),
            one.of_broker(|f| f.commits).text(3),
            one.of_broker(|f| f.transactions).text(2),
        ]);
    }
    table
}

/// Microseconds of a request by stage, waiting included.
fn stages(all: &[Measured]) -> Table {
    let head: Vec<String> = STAGES.iter().map(|stage| format!("{stage} µs")).collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new(&[&["clients"][..], head.as_slice()].concat());
    for one in all {
        let cells = (0..STAGES.len()).map(|at| one.of_broker(|f| f.stages_us[at]).text(0));
        table.row([one.clients.to_string()].into_iter().chain(cells));
    }
    table
}

fn to_json(one: &Measured, at_best: &[Pace], costs: &[Costs], algorithm: &str) -> Value {
    let broker = Measured::rates(&one.broker_paces());
    let ratio = |below: &[Pace]| Ratio::of(&broker, &Measured::rates(below)).to_json();
    let [crypto_us, crypto_percent] = crypto(one, costs, algorithm).map(Spread::to_json);
    let cost = |part: fn(&Costs) -> f64| Spread::of(costs.iter().map(part)).to_json();
    let stages: serde_json::Map<String, Value> = STAGES
        .iter()
        .enumerate()
        .map(|(at, stage)| {
            let spread = one.of_broker(|f| f.stages_us[at]);
            ((*stage).to_owned(), spread.to_json())
        })
        .collect();
    json!({
        "clients": one.clients,
        "bare_row": PaceSpread::of(&one.rows).to_json(),
        "bare_record": PaceSpread::of(&one.records).to_json(),
        "broker": PaceSpread::of(&one.broker_paces()).to_json(),
        "to_row": ratio(&one.rows),
        "to_record": ratio(&one.records),
        "to_best_record": ratio(at_best),
        "broker_cpu_us": one.of_broker(|f| f.broker_cpu_us).to_json(),
        "postgres_cpu_us": one.postgres_cpu().map(Spread::to_json),
        "generator_cpu_us": one.of_broker(|f| f.generator_cpu_us).to_json(),
        "crypto_us": crypto_us,
        "crypto_percent": crypto_percent,
        "verify_es256_us": cost(|costs| costs.verify_es256),
        "sign_es256_us": cost(|costs| costs.sign_es256),
        "sign_ed25519_us": cost(|costs| costs.sign_ed25519),
        "verifications": one.of_broker(|f| f.verifications).to_json(),
        "signatures": one.of_broker(|f| f.signatures).to_json(),
        "commits": one.of_broker(|f| f.commits).to_json(),
        "transactions": one.of_broker(|f| f.transactions).to_json(),
        "stages_us": stages,
    })
}
