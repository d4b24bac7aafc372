//! The revocation of all live sessions, and its dry run.

use std::time::Instant;

use serde_json::{Value, json};

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Report, Spread, Table};
use crate::filling::{Filling, Template};
use crate::options::{Name, Options};

pub async fn run(options: &Options) -> Report {
    let count = options.count_or(100_000, 200);
    let bed = Bed::filled(Shape::default(), options.past).await;
    let (mut dry, mut real) = (Vec::new(), Vec::new());
    let mut answer = Value::Null;
    for round in 0..options.rounds {
        // The rows refer to the leaf of this credential, which no earlier round has revoked.
        let granted = bed.issue(round).await;
        let template = Template::granted(&granted);
        bed.fill(&Filling::live(count), &template).await;
        let all = json!({"all": true});
        let began = Instant::now();
        answer = bed
            .revoke(all.clone(), json!({"dry_run": true, "block_seconds": 0}))
            .await;
        dry.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        bed.revoke(all, json!({"block_seconds": 0})).await;
        real.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(
            !bed.fleet.is_good(bed.first(), &granted).await,
            "a revoked session is active"
        );
    }
    let (dry, real) = (Spread::of(dry), Spread::of(real));
    let mut table = Table::new(&["", "ms", "matched", "more"]);
    let text = |member: &str| answer[member].to_string();
    table.row([
        "dry run".to_owned(),
        dry.text(0),
        text("matched"),
        text("has_more"),
    ]);
    table.row([
        "revocation".to_owned(),
        real.text(0),
        String::new(),
        String::new(),
    ]);
    Report {
        name: Name::RevokeAll,
        about: format!(
            "{count} live sessions in each round; {}",
            about_store(options)
        ),
        tables: vec![table],
        figures: json!({
            "count": count, "dry_run_ms": dry.to_json(), "revocation_ms": real.to_json(),
            "matched": answer["matched"], "has_more": answer["has_more"],
        }),
        failed: 0,
    }
}
