//! Measures the broker under load. Each measurement has a name; `make bench ARGS='NAME …'` runs the
//! named ones, and without a name `rounds` and the four pairs.
//!
//! | name | measures |
//! |---|---|
//! | `rounds` | a bare row, the bare record of a grant, and the broker, at each number of clients |
//! | `past_sessions`, `actions`, `policies`, `cutoffs` | a small and a large store or generation, in turn |
//! | `deadlines`, `silence` | many tasks that expire in one second, without and with other load |
//! | `heartbeats` | the cost of the sweeper for live tasks with heartbeats |
//! | `revoke_all` | a revocation of all live sessions, and its dry run |
//! | `refusal` | the time from a revocation's answer to the refusal on another replica |
//! | `tree` | the end of a task with many descendants |
//! | `memory` | the broker's memory by the number of live sessions |
//! | `variants` | two replicas, an old snapshot, SQLite |
//!
//! All figures that are compared are taken in interleaved rounds, and shown as the median and the
//! range of the rounds. A ratio is also computed within each round. On shared machines compare only
//! the ratios of one run. Nothing is asserted about time.
//!
//! The stores are filled and analysed first. [`options`] has the options. `--smoke` only checks
//! that everything works. `--json` prints the same figures as JSON after the tables.

#![allow(
    clippy::disallowed_methods,
    clippy::struct_excessive_bools,
    clippy::expect_used,
    clippy::large_futures,
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

#[path = "../../tests/it/support/mod.rs"]
mod support;

mod bare;
mod bed;
mod crypto;
mod expiry;
mod figures;
mod filling;
mod heartbeats;
mod load;
mod machine;
mod memory;
mod options;
mod pairs;
mod refusal;
mod revoke_all;
mod rounds;
mod tree;
mod variants;

use serde_json::Value;

use self::figures::Report;
use self::options::{Name, Options};

fn main() {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let reports = runtime.block_on(measure(&options));
    if options.json {
        let all: Vec<Value> = reports.iter().map(Report::to_json).collect();
        println!("{}", Value::from(all));
    }
    let failed: usize = reports.iter().map(|report| report.failed).sum();
    assert_eq!(failed, 0, "requests failed");
}

async fn measure(options: &Options) -> Vec<Report> {
    let mut reports = Vec::new();
    for name in &options.names {
        let report = match name {
            Name::Rounds => rounds::run(options).await,
            Name::PastSessions | Name::Actions | Name::Policies | Name::Cutoffs => {
                pairs::run(*name, options).await
            }
            Name::Deadlines | Name::Silence => expiry::run(*name, options).await,
            Name::Heartbeats => heartbeats::run(options).await,
            Name::RevokeAll => revoke_all::run(options).await,
            Name::Refusal => refusal::run(options).await,
            Name::Tree => tree::run(options).await,
            Name::Memory => memory::run(options).await,
            Name::Variants => variants::run(options).await,
        };
        println!("{report}");
        reports.push(report);
    }
    reports
}
