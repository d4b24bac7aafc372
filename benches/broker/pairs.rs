//! A small and a large store or generation, each with its own broker and database in one
//! PostgreSQL, measured in turn. A flat cost has the ratio 1.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Pace, PaceSpread, Ratio, Report, Spread, Table};
use crate::filling::analyse;
use crate::load::{Figures, Limit, closed};
use crate::options::{Name, Options};

/// Revocations that are requested at the same time while a store is filled with cutoffs.
const REVOCATIONS_AT_ONCE: usize = 32;

struct Pair {
    sizes: [usize; 2],
    beds: [Bed; 2],
    unit: &'static str,
}

impl Pair {
    async fn begin(name: Name, options: &Options) -> Self {
        let shape = Shape::with_few_agents();
        let past = options.past;
        match name {
            Name::Actions => {
                let sizes = options.sizes_or([2, 5_000], [2, 50]);
                let shapes = sizes.map(|actions| Shape { actions, ..shape });
                Self::of(sizes, shapes, [past; 2], "actions").await
            }
            Name::Policies => {
                let sizes = options.sizes_or([10, 10_000], [10, 50]);
                let shapes = sizes.map(|policies| Shape { policies, ..shape });
                Self::of(sizes, shapes, [past; 2], "policies").await
            }
            Name::Cutoffs => {
                let sizes = options.sizes_or([0, 10_000], [0, 20]);
                let pair = Self::of(sizes, [shape; 2], [past; 2], "cutoffs").await;
                for (bed, count) in pair.beds.iter().zip(sizes) {
                    revoke(bed, count).await;
                }
                pair
            }
            _ => {
                let sizes = options.sizes_or([10_000, 3_000_000], [100, 1_000]);
                Self::of(sizes, [shape; 2], sizes, "past sessions").await
            }
        }
    }

    async fn of(
        sizes: [usize; 2],
        shapes: [Shape; 2],
        past: [usize; 2],
        unit: &'static str,
    ) -> Self {
        let small = Bed::filled(shapes[0], past[0]).await;
        let large = Bed::filled(shapes[1], past[1]).await;
        Self {
            sizes,
            beds: [small, large],
            unit,
        }
    }
}

/// Records so many revocations, each of a workload of its own, whose blocks stay.
async fn revoke(bed: &Bed, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(REVOCATIONS_AT_ONCE, |n| async move {
            let more = json!({"allow_unknown": true, "block_seconds": "until_lifted"});
            let selector = json!({"workload": format!("dev:gone-{n}")});
            bed.revoke(selector, more).await;
        })
        .await;
    analyse(bed.fleet.database()).await;
}

pub async fn run(name: Name, options: &Options) -> Report {
    let pair = Pair::begin(name, options).await;
    let mut table = Table::new(&[
        "clients",
        pair.unit,
        "/s",
        "p50 ms",
        "p99 ms",
        "broker CPU µs",
        "PostgreSQL CPU µs",
    ]);
    let mut ratios = Table::new(&["clients", "large / small", "median (range)"]);
    let (mut figures, mut failed) = (Vec::new(), 0);
    for bed in &pair.beds {
        closed(bed, 8, Limit::Seconds(1)).await;
    }
    for clients in options.clients_or(&[8]) {
        let mut found: [Vec<Figures>; 2] = Default::default();
        for round in 0..options.rounds {
            // In every second round the large one comes first.
            for turn in 0..2 {
                let side = (turn + round) % 2;
                let limit = Limit::Seconds(options.seconds);
                found[side].push(closed(&pair.beds[side], clients, limit).await);
            }
        }
        failed += found.iter().flatten().map(|one| one.failed).sum::<usize>();
        for (size, side) in pair.sizes.iter().zip(&found) {
            let paces: Vec<Pace> = side.iter().map(|one| one.pace).collect();
            let first = [clients.to_string(), size.to_string()];
            let spread = |part: fn(&Figures) -> f64| Spread::of(side.iter().map(part)).text(0);
            let last = [
                spread(|one| one.broker_cpu_us),
                spread(|one| one.postgres_cpu_us.unwrap_or_default()),
            ];
            let cells = PaceSpread::of(&paces).cells();
            table.row(first.into_iter().chain(cells).chain(last));
        }
        figures.push(compare(clients, pair.sizes, &found, &mut ratios));
    }
    Report {
        name,
        about: format!(
            "{} against {} {}; {}",
            pair.sizes[0],
            pair.sizes[1],
            pair.unit,
            about_store(options)
        ),
        tables: vec![table, ratios],
        figures: Value::from(figures),
        failed,
    }
}

/// One part of the figures.
type Part = fn(&Figures) -> f64;

/// The ratios of the large side to the small one.
fn compare(
    clients: usize,
    sizes: [usize; 2],
    found: &[Vec<Figures>; 2],
    table: &mut Table,
) -> Value {
    let parts: [(&str, Part); 5] = [
        ("time_of_a_request", |one| 1.0 / one.pace.per_second),
        ("p50", |one| one.pace.p50_ms),
        ("p99", |one| one.pace.p99_ms),
        ("broker_cpu", |one| one.broker_cpu_us),
        ("postgres_cpu", |one| {
            one.postgres_cpu_us.unwrap_or(f64::NAN)
        }),
    ];
    let mut ratios = serde_json::Map::new();
    for (label, part) in parts {
        let [small, large] =
            [0, 1].map(|side: usize| -> Vec<f64> { found[side].iter().map(part).collect() });
        let ratio = Ratio::of(&large, &small);
        table.row([clients.to_string(), label.replace('_', " "), ratio.text()]);
        ratios.insert(label.to_owned(), ratio.to_json());
    }
    let sides = [0, 1].map(|side: usize| {
        let paces: Vec<Pace> = found[side].iter().map(|one| one.pace).collect();
        json!({"size": sizes[side], "pace": PaceSpread::of(&paces).to_json()})
    });
    json!({"clients": clients, "sides": sides, "large_to_small": ratios})
}
