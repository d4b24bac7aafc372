//! A replica is not ready while its clock differs from its database's.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};
use taskpass::broker::BrokerError;
use taskpass::broker::administration::time::AcceptTimeRequest;
use taskpass::clock::{Clock, SystemClock, Timestamp};
use taskpass::domain::task::TaskState;
use taskpass::ledger::AppendError;
use taskpass::ledger::entry::SweepCause;
use taskpass::sweep;
use tokio_util::sync::CancellationToken;

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::assert_problem;
use crate::support::proxy::{At, Fault};
use crate::support::rig::{ADMIN, Kind, Rig, ask, bearer};
use crate::support::{SOON, until};

/// The search path of the test's settable clock, before the built-in functions. A replica with this
/// search path sees another time in the database.
const SKEWED: &str = "skew,pg_catalog,public";

/// Creates that clock, without an offset.
const CLOCK: &str = "\
    CREATE SCHEMA skew; CREATE TABLE skew.setting AS SELECT interval '0 ms' AS off; \
    CREATE FUNCTION skew.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
    $$ SELECT pg_catalog.clock_timestamp() + off FROM skew.setting $$; \
    GRANT USAGE ON SCHEMA skew TO PUBLIC; GRANT SELECT ON skew.setting TO PUBLIC;";

async fn execute(fleet: &Fleet, sql: &str) {
    let mut direct = fleet.database().connect().await;
    direct.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// Sets that clock's offset, in milliseconds.
async fn set_off(fleet: &Fleet, milliseconds: i64) {
    let sql = format!("UPDATE skew.setting SET off = interval '{milliseconds} ms'");
    execute(fleet, &sql).await;
}

async fn until_readiness_is(replica: &Replica, status: u16) {
    until("readiness shows it", SOON, async || {
        replica.client.get("/readyz").await.status == status
    })
    .await;
}

/// The difference in the replica's metrics, in seconds.
async fn told(replica: &Replica) -> f64 {
    let metrics = replica.client.get("/metrics").await.text();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("taskpass_clock_skew_seconds "));
    value.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_not_its_databases_is_unready_until_they_agree() {
    let (fleet, right) = Fleet::postgres().start().await;
    let first = right.ask(&fleet.token()).await.expect(201);
    execute(&fleet, CLOCK).await;
    let wrong = fleet.replica_in(SKEWED);
    let size = async || {
        let mut direct = fleet.database().connect().await;
        let counted = sqlx::query_as("SELECT count(*) FROM leaf");
        let (count,): (i64,) = counted.fetch_one(&mut direct).await.unwrap();
        count
    };
    // The offset exceeds the time of a slow answer, which the broker does not count as a
    // difference.
    for milliseconds in [5_000, -3_600_000, 31 * 86_400_000] {
        let before = size().await;
        set_off(&fleet, milliseconds).await;
        // Before the next regular check: the append itself compares the clocks.
        let refused = wrong.ask(&fleet.token()).await;
        assert_problem(&refused, 503, "fail-closed");
        until_readiness_is(&wrong, 503).await;
        let unready = wrong.client.get("/readyz").await;
        assert_problem(&unready, 503, "unready");
        assert!(unready.text().contains("clock"), "{}", unready.text());
        // Requests to the replica are refused, because a wrong clock cannot judge evidence.
        let refused = wrong.ask(&fleet.token()).await;
        assert_problem(&refused, 503, "fail-closed");
        let off = f64::from(i32::try_from(milliseconds.abs() / 100).unwrap()) / 10.0;
        until("the metric shows the difference", SOON, async || {
            (told(&wrong).await - off).abs() < 0.5
        })
        .await;
        // The other replica's clock agrees with the same database.
        assert_eq!(right.client.get("/readyz").await.status, 200);

        assert_eq!(size().await, before, "nothing was recorded");
        set_off(&fleet, 0).await;
        until_readiness_is(&wrong, 200).await;
        wrong.ask(&fleet.token()).await.expect(201);
    }
    // A small difference is tolerated.
    set_off(&fleet, 500).await;
    until("the clock is compared again", SOON, async || {
        told(&wrong).await > 0.25
    })
    .await;
    assert_eq!(wrong.client.get("/readyz").await.status, 200);
    assert!(fleet.is_good(&wrong, &first).await);
}

/// A system clock that is so many seconds ahead.
struct Ahead(u64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().plus_seconds(self.0)
    }

    fn since_boot(&self) -> Duration {
        SystemClock.since_boot()
    }

    fn running(&self) -> Duration {
        SystemClock.running()
    }

    fn is_real(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_ahead_deletes_and_ends_nothing() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let token = rig.token("agent:reports", json!({}));
    let used = async || {
        rig.broker
            .issuance
            .issue(bearer(&token), ask(&["orders:read"]))
            .await
    };
    let issued = used().await.unwrap();
    let size = async || rig.broker.core.ledger().head().await.unwrap().unwrap().size;
    let before = size().await;
    // By this clock, the evidence, the task, the session and all keys have expired.
    let ahead = rig.replica_by(Arc::new(Ahead(86_400 * 400))).await;
    assert!(
        ahead
            .broker
            .health
            .unready()
            .unwrap()
            .starts_with("clock: this replica's clock and the database's")
    );
    let closed = ahead
        .broker
        .issuance
        .issue(bearer(&token), ask(&["orders:read"]))
        .await;
    assert!(
        matches!(closed, Err(BrokerError::FailClosed(_))),
        "{closed:?}"
    );
    // Accepting the time is refused as well, because the two clocks still differ.
    let told = AcceptTimeRequest {
        time: ahead.broker.core.now(),
        reason: "it is right".into(),
    };
    let refused = ahead
        .broker
        .administration
        .accept_time(&bearer(ADMIN), told)
        .await;
    assert!(
        matches!(refused, Err(BrokerError::FailClosed(_))),
        "{refused:?}"
    );
    let cause = SweepCause::ExpiredBy(ahead.broker.core.now());
    let dated = ahead
        .broker
        .tasks
        .sweep_tasks(vec![issued.task.id], cause)
        .await;
    assert!(
        matches!(dated, Err(AppendError::ClockInDoubt(_))),
        "{dated:?}"
    );
    // Nor may its sweeper close the task by the deadline, which leaves no leaf.
    sweep::sweep(&ahead.broker, ahead.broker.core.now()).await;
    let task = rig.broker.core.store().task(issued.task.id).await.unwrap();
    assert_eq!(task.unwrap().state, TaskState::Open);
    let stop = CancellationToken::new();
    let sweeping = tokio::spawn(sweep::run(Arc::clone(&ahead.broker), stop.clone()));
    let pruning = tokio::spawn(sweep::run_pruning(Arc::clone(&ahead.broker), stop.clone()));
    until("the sweeper has run", SOON, async || {
        let metrics = ahead.broker.core.metrics().render();
        let failed = "taskpass_sweeps_total{worker=\"health\",result=\"failed\"} ";
        let mut lines = metrics.lines();
        let times = lines.find_map(|line| line.strip_prefix(failed));
        times.is_some_and(|times| times.parse::<u64>().unwrap() >= 3)
    })
    .await;
    stop.cancel();
    sweeping.await.unwrap().unwrap();
    pruning.await.unwrap().unwrap();
    let replayed = used().await.map(|_| ());
    assert!(
        matches!(replayed, Err(BrokerError::Replayed)),
        "{replayed:?}"
    );
    assert!(rig.is_good(&issued).await);
    assert_eq!(size().await, before, "no entry may be recorded");
    let leaf = rig
        .broker
        .core
        .store()
        .openings(issued.receipt.index)
        .await
        .unwrap();
    assert!(leaf.input.is_some(), "the decision's input is still stored");
    ahead.shutdown.drain_then_stop(Duration::ZERO, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_long_under_way_is_no_wrong_clock() {
    let (_fleet, mut replica) = Fleet::postgres().start().await;
    replica.process.wait_ready(replica.address);
    replica
        .proxy
        .arm_statement("/* clock */", At::Answer, Fault::Hold);
    replica.proxy.wait_caught(1);
    // Longer than the clocks may differ.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    // The broker compares the clocks again after this comparison.
    replica
        .proxy
        .arm_statement("/* clock */", At::Request, Fault::Hold);
    replica.proxy.release();
    replica.proxy.wait_caught(2);
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    assert!(told(&replica).await < 0.5);
    replica.proxy.release();
}
