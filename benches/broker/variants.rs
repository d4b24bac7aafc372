//! Other settings of the broker, each with a store of its own, in interleaved rounds: two replicas,
//! a transaction that keeps an old snapshot from the first round to the last, SQLite.

use serde_json::{Value, json};
use sqlx::Executor;

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Pace, PaceSpread, Report, Spread, Table};
use crate::load::{Figures, Limit, closed};
use crate::options::{Name, Options};
use crate::support::rig::Kind;

pub async fn run(options: &Options) -> Report {
    let shape = Shape::default();
    let mut two = Bed::filled(shape, options.past).await;
    two.add_replica();
    let beds = [
        ("PostgreSQL", Bed::filled(shape, options.past).await),
        ("PostgreSQL, two replicas", two),
        (
            "PostgreSQL, an old snapshot",
            Bed::filled(shape, options.past).await,
        ),
        (
            "SQLite, without past sessions",
            Bed::on(Kind::Sqlite, shape).await,
        ),
    ];
    for (_, bed) in &beds {
        closed(bed, 8, Limit::Seconds(1)).await;
    }
    let mut old = beds[2].1.fleet.database().connect().await;
    for statement in [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "SELECT count(*) FROM activation",
    ] {
        old.execute(statement).await.unwrap();
    }
    let mut table = Table::new(&[
        "store",
        "clients",
        "/s",
        "p50 ms",
        "p99 ms",
        "broker CPU µs",
        "durable commits",
    ]);
    let (mut figures, mut failed) = (Vec::new(), 0);
    for clients in options.clients_or(&[1, 8, 64]) {
        let mut found: Vec<Vec<Figures>> = vec![Vec::new(); beds.len()];
        for _ in 0..options.rounds {
            for ((_, bed), all) in beds.iter().zip(&mut found) {
                all.push(closed(bed, clients, Limit::Seconds(options.seconds)).await);
            }
        }
        for ((label, _), all) in beds.iter().zip(&found) {
            let paces: Vec<Pace> = all.iter().map(|one| one.pace).collect();
            let pace = PaceSpread::of(&paces);
            let cpu = Spread::of(all.iter().map(|one| one.broker_cpu_us));
            let commits = Spread::of(all.iter().map(|one| one.commits));
            let first = [(*label).to_owned(), clients.to_string()];
            let last = [cpu.text(0), commits.text(3)];
            table.row(first.into_iter().chain(pace.cells()).chain(last));
            figures.push(json!({
                "store": label, "clients": clients, "pace": pace.to_json(),
                "broker_cpu_us": cpu.to_json(), "commits": commits.to_json(),
            }));
            failed += all.iter().map(|one| one.failed).sum::<usize>();
        }
    }
    old.execute("ROLLBACK").await.unwrap();
    Report {
        name: Name::Variants,
        about: about_store(options),
        tables: vec![table],
        figures: Value::from(figures),
        failed,
    }
}
