//! The broker's memory by the number of live sessions, all issued by requests. Between the steps
//! servers poll the status lists, and introspect credentials of a working set.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::bed::{Bed, Shape};
use crate::figures::{Report, Table};
use crate::load::{Limit, closed_keeping};
use crate::machine::rss_mb;
use crate::options::{Name, Options};
use crate::support::http::send;
use crate::support::keys::peek;
use crate::support::rig::Kind;

const STEPS: usize = 10;

/// Credentials that are introspected, at most.
const WORKING_SET: usize = 50_000;

/// Requests of one load, so that no evidence expires before its use.
const AT_ONCE: usize = 20_000;

/// Introspections at the same time.
const SERVERS: usize = 8;

pub async fn run(options: &Options) -> Report {
    let count = options.count_or(100_000, 200);
    let shape = Shape {
        verification: "status_list",
        ..Shape::default()
    };
    let bed = Bed::on(Kind::Postgres, shape).await;
    let pid = bed.first().process.pid();
    let clients = if options.smoke { 2 } else { 64 };
    let (mut tokens, mut lists, mut failed) = (Vec::new(), BTreeSet::new(), 0);
    let mut table = Table::new(&[
        "live sessions",
        "RSS MB, after the load",
        "RSS MB, after polling",
        "introspections",
        "status lists",
    ]);
    let first = rss_mb(pid);
    table.row([
        "0".to_owned(),
        format!("{first:.0}"),
        format!("{first:.0}"),
        "0".to_owned(),
        "0".to_owned(),
    ]);
    let mut steps = vec![json!({"live": 0, "loaded_mb": first, "polled_mb": first})];
    let (mut live, mut last) = (0, first);
    for step in 1..=STEPS {
        while live < count * step / STEPS {
            let wanted = (count * step / STEPS - live).min(AT_ONCE);
            let keep = wanted.min(WORKING_SET - tokens.len());
            let figures = closed_keeping(&bed, clients, Limit::Requests(wanted), keep).await;
            failed += figures.failed;
            live += wanted;
            for answer in figures.kept {
                let token = answer["credential"]["access_token"].as_str().unwrap();
                let (_, claims) = peek(token);
                let uri = claims["status"]["status_list"]["uri"].as_str().unwrap();
                lists.insert(url::Url::parse(uri).unwrap().path().to_owned());
                tokens.push(token.to_owned());
            }
        }
        let loaded = rss_mb(pid);
        for path in &lists {
            let list = bed.first().client.get(path).await;
            assert_eq!(list.status, 200, "{}", list.text());
        }
        let introspected = introspect(&bed, &tokens, options.seconds).await;
        let polled = rss_mb(pid);
        table.row([
            live.to_string(),
            format!("{loaded:.0}"),
            format!("{polled:.0}"),
            introspected.to_string(),
            lists.len().to_string(),
        ]);
        steps.push(json!({"live": live, "loaded_mb": loaded, "polled_mb": polled}));
        last = polled;
    }
    Report {
        name: Name::Memory,
        about: format!(
            "the broker's memory by live sessions, an introspected working set of at most {WORKING_SET}, \
             status lists polled; it grew by {:.0} MB",
            last - first
        ),
        tables: vec![table],
        figures: json!({"steps": steps, "growth_mb": last - first}),
        failed,
    }
}

/// Introspects the credentials in turn for a time, and returns the number of introspections.
async fn introspect(bed: &Bed, tokens: &[String], seconds: u64) -> usize {
    let (next, until) = (
        AtomicUsize::new(0),
        Instant::now() + Duration::from_secs(seconds),
    );
    let servers = (0..SERVERS).map(|_| async {
        while Instant::now() < until {
            let token = &tokens[next.fetch_add(1, Ordering::Relaxed) % tokens.len()];
            let request = bed
                .first()
                .client
                .request(Method::POST, "/oauth2/introspect")
                .bearer_auth(&bed.fleet.admin)
                .form(&[("token", token)]);
            assert_eq!(send(request).await.expect(200)["active"], Value::Bool(true));
        }
    });
    futures_util::future::join_all(servers).await;
    next.into_inner()
}
