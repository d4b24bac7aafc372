//! The time from the answer of a revocation at one replica to the first introspection at another
//! that says that the credential is not active.

use std::time::Instant;

use reqwest::Method;
use serde_json::json;

use crate::bed::{Bed, Shape, about_store};
use crate::figures::{Report, Table, quantile};
use crate::options::{Name, Options};
use crate::support::http::send;

pub async fn run(options: &Options) -> Report {
    let count = options.count_or(500, 5);
    let mut bed = Bed::filled(Shape::default(), options.past).await;
    bed.add_replica();
    let (mut delays, mut asked) = (Vec::new(), 0_u32);
    for n in 0..count {
        let granted = bed.issue(n).await;
        // The other replica knows the credential before it is revoked.
        assert!(is_active(&bed, &granted).await, "the credential is active");
        let task = json!({"task": granted["task"]["id"]});
        bed.revoke(task, json!({"block_seconds": 0})).await;
        let answered = Instant::now();
        loop {
            asked += 1;
            if !is_active(&bed, &granted).await {
                break;
            }
        }
        delays.push(answered.elapsed().as_secs_f64() * 1e3);
    }
    delays.sort_unstable_by(f64::total_cmp);
    let parts = [0.5, 0.99, 1.0].map(|part| quantile(&delays, part));
    let mut table = Table::new(&["revocations", "p50 ms", "p99 ms", "max ms", "questions"]);
    let cells = parts.map(|value| format!("{value:.1}"));
    let questions = f64::from(asked) / count as f64;
    table.row(
        [count.to_string()]
            .into_iter()
            .chain(cells)
            .chain([format!("{questions:.2}")]),
    );
    let [p50, p99, max] = parts;
    Report {
        name: Name::Refusal,
        about: format!(
            "from a revocation's answer to the refusal on another replica, which is asked without a pause; {}",
            about_store(options)
        ),
        tables: vec![table],
        figures: json!({
            "count": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max, "questions": questions,
        }),
        failed: 0,
    }
}

/// Whether the second replica says that the credential is active.
async fn is_active(bed: &Bed, granted: &serde_json::Value) -> bool {
    let token = granted["credential"]["access_token"].as_str().unwrap();
    let request = bed.replicas[1]
        .client
        .request(Method::POST, "/oauth2/introspect")
        .bearer_auth(&bed.fleet.admin)
        .form(&[("token", token)]);
    send(request).await.expect(200)["active"] == true
}
