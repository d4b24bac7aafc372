//! The end of a task with many descendants, each with a live session.

use std::time::Instant;

use reqwest::Method;
use serde_json::json;

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Report, Spread, Table};
use crate::filling::{Filling, OWNER, Template};
use crate::load::Counters;
use crate::options::{Name, Options};
use crate::support::http::send;

pub async fn run(options: &Options) -> Report {
    let count = options.count_or(10_000, 50);
    let bed = Bed::filled(Shape::default(), options.past).await;
    let (mut times, mut commits, mut bytes) = (Vec::new(), Vec::new(), 0);
    for round in 0..options.rounds {
        let granted = bed.issue(round).await;
        let root = Template::granted(&granted);
        let filling = Filling::descendants(count, &root.task);
        bed.fill(&filling, &root).await;
        let (leaf,): (String,) = bed
            .row(format!(
                "SELECT id::text FROM session WHERE workload = '{OWNER}' AND \
                 leaf_idx = (SELECT leaf_idx FROM session WHERE id = '{}') ORDER BY id DESC LIMIT 1",
                root.session
            ))
            .await;
        let before = Counters::read(&bed).await;
        let began = Instant::now();
        let handle = granted["task"]["handle"].as_str().unwrap();
        let path = format!("/v1/tasks/{}/complete", root.task);
        let request = bed.first().client.request(Method::POST, &path);
        let answer = send(request.header("authorization", format!("Handle {handle}"))).await;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        answer.expect(200);
        bytes = answer.body.len();
        let path = format!("/v1/sessions/{leaf}");
        let session = bed.first().client.get_as(&bed.fleet.admin, &path).await;
        assert_eq!(session.expect(200)["state"], "ended");
        let grown = before.grown(&bed).await;
        commits.push(grown.metric("taskpass_ledger_batch_entries_count"));
    }
    let (times, commits) = (Spread::of(times), Spread::of(commits));
    let mut table = Table::new(&["descendants", "ms", "batches", "bytes of the answer"]);
    table.row([
        count.to_string(),
        times.text(0),
        commits.text(0),
        bytes.to_string(),
    ]);
    Report {
        name: Name::Tree,
        about: format!(
            "the end of a task with {count} descendants, each with a session; {}",
            about_store(options)
        ),
        tables: vec![table],
        figures: json!({
            "count": count, "ms": times.to_json(), "batches": commits.to_json(), "bytes": bytes,
        }),
        failed: 0,
    }
}
