//! A replica whose clock is not its database's is unready, until they agree again.

use sqlx::{AssertSqlSafe, Executor};

use crate::support::fleet::Fleet;
use crate::support::http::assert_problem;
use crate::support::{SOON, until};

/// Sets the clock that the database tells off by so many milliseconds. New connections see it; a
/// function found before the built-in one stands in for a machine with another time.
async fn set_off(fleet: &Fleet, milliseconds: i32) {
    let mut direct = fleet.database().connect().await;
    let sql = format!(
        "CREATE SCHEMA IF NOT EXISTS skew; \
         CREATE OR REPLACE FUNCTION skew.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
         $$ SELECT pg_catalog.clock_timestamp() + interval '{milliseconds} ms' $$; \
         ALTER DATABASE {} SET search_path = skew, pg_catalog, public",
        fleet.database().name()
    );
    direct.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_not_its_databases_is_unready_until_they_agree() {
    let (fleet, replica) = Fleet::start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    // Its connections are never cut, so that it goes on seeing the right time.
    let other = fleet.replica();
    for milliseconds in [1_200, -3_600_000] {
        set_off(&fleet, milliseconds).await;
        replica.proxy.cut();
        until("it is unready, and says why", SOON, async || {
            let answer = replica.client.get("/readyz").await;
            answer.status == 503 && answer.text().contains("clock")
        })
        .await;
        assert_problem(&replica.client.get("/readyz").await, 503, "unready");
        assert_eq!(other.client.get("/readyz").await.status, 200);
        let metrics = replica.client.get("/metrics").await.text();
        let skew = metrics
            .lines()
            .find_map(|line| line.strip_prefix("taskpass_clock_skew_seconds "));
        let skew: f64 = skew.unwrap().parse().unwrap();
        let off = f64::from(milliseconds.abs()) / 1_000.0;
        assert!((skew - off).abs() < 0.5, "{skew} for {off}");

        set_off(&fleet, 0).await;
        replica.proxy.cut();
        until("it is ready again", SOON, async || {
            replica.client.get("/readyz").await.status == 200
        })
        .await;
    }
    // A little is nothing.
    set_off(&fleet, 500).await;
    replica.proxy.cut();
    until("it has looked", SOON, async || {
        let metrics = replica.client.get("/metrics").await.text();
        metrics.contains("taskpass_clock_skew_seconds 0.4")
            || metrics.contains("taskpass_clock_skew_seconds 0.5")
    })
    .await;
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    assert!(fleet.is_good(&replica, &first).await);
}
