//! `taskpass ledger accept-time`, as a program.

use super::*;

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

on_both_stores! {
    by reference;

    fn a_broker_behind_its_newest_entry_is_closed_until_an_admin_accepts_its_time;
}

async fn a_broker_behind_its_newest_entry_is_closed_until_an_admin_accepts_its_time(
    (fleet, replica): &(Fleet, Replica),
) {
    let granted = replica.ask(&fleet.token()).await.expect(201);
    // Less than the bootstrap token's day, so that the token stays valid.
    date_ahead(fleet, replica, 2 * HOUR).await;
    until("the replica is not ready", SOON, async || {
        replica.client.get("/readyz").await.status == 503
    })
    .await;
    let unready = replica.client.get("/readyz").await;
    assert!(
        unready.text().contains("before the newest ledger entry"),
        "{}",
        unready.text()
    );
    assert_problem(&replica.ask(&fleet.token()).await, 503, "fail-closed");
    let wrong = accept_time(
        fleet,
        replica,
        &["--reason", "drift", "--time", "2026-01-01T00:00:00Z"],
    );
    assert_eq!(wrong.code(), Some(2), "{}", wrong.stderr);
    assert!(
        wrong.stderr.contains("first correct the wrong clock"),
        "{}",
        wrong.stderr
    );
    let done = accept_time(
        fleet,
        replica,
        &["--reason", "the clock was two hours ahead"],
    );
    assert_eq!(done.code(), Some(0), "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("is accepted after"), "{}", done.stdout);
    until("the replica is ready", SOON, async || {
        replica.client.get("/readyz").await.status == 200
    })
    .await;
    // The session's row has the right times, so the session stays valid.
    assert!(fleet.is_good(replica, &granted).await);
    replica.ask(&fleet.token()).await.expect(201);
    let again = accept_time(fleet, replica, &["--reason", "again"]);
    assert_eq!(again.code(), Some(2), "{}", again.stderr);
    assert!(
        again.stderr.contains("no time to accept"),
        "{}",
        again.stderr
    );
    // The whole log verifies, including the acceptance.
    let (_, leaves) = whole_log(fleet, replica).await;
    let accepted = leaves
        .iter()
        .filter(|leaf| leaf.windows(13).any(|part| part == b"time_accepted"));
    assert_eq!(accepted.count(), 1);
    let log = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/export")
        .await
        .text();
    let vkey = vkeys(fleet, replica).await.remove(0);
    let verified = Launch::taskpass(["ledger", "verify", "log.jsonl", "--key", &vkey])
        .file("log.jsonl", log)
        .run();
    assert_eq!(
        verified.code(),
        Some(0),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_starts_behind_its_newest_entry_can_be_opened() {
    let (fleet, mut replica) = Fleet::sqlite().start().await;
    replica.process.wait_ready(replica.address);
    replica.ask(&fleet.token()).await.expect(201);
    replica.process.terminate();
    date_ahead(&fleet, &replica, 2 * HOUR).await;
    replica.process.restart();
    replica.process.wait_alive(replica.address);
    assert_eq!(replica.client.get("/readyz").await.status, 503);
    assert_problem(&replica.ask(&fleet.token()).await, 503, "fail-closed");
    let done = accept_time(
        &fleet,
        &replica,
        &["--reason", "the clock was ahead", "--json"],
    );
    assert_eq!(done.code(), Some(0), "{}{}", done.stdout, done.stderr);
    until("the replica is ready", SOON, async || {
        replica.client.get("/readyz").await.status == 200
    })
    .await;
    replica.ask(&fleet.token()).await.expect(201);
}
