//! A replica that forgot a block by a fast clock, and learns the accepted time from another one.

use super::*;

const DAY: u64 = 24 * HOUR;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_batch_that_learns_an_accepted_time_knows_the_blocks_that_block_again() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let right = rig.now();
    let block = RevokeRequest {
        selector: Selector::Workload("dev:agent%3Areports".to_owned().try_into().unwrap()),
        block: BlockRequest::Seconds(HOUR),
        reason: "stolen".into(),
        deny_all_earlier_sessions: false,
        allow_unknown: true,
        dry_run: false,
    };
    let admin = rig.admin();
    let revoked = rig.broker.revocation.revoke_many(&admin, block).await;
    revoked.unwrap();

    // By this clock, and by the log, the block ended more than a day ago.
    rig.clock.set(right.plus_seconds(2 * DAY));
    start(&mut rig).await;
    rig.issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
    let clock = taskpass::clock::ManualClock::new(rig.now());
    let other = rig
        .replica_by(Arc::clone(&clock) as taskpass::clock::SharedClock)
        .await;
    let issue = async || {
        let evidence = rig.evidence("agent:reports");
        let asked = other.broker.issuance.issue(evidence, ask(&["orders:read"]));
        asked.await
    };
    issue().await.unwrap();

    let now = right.plus_seconds(WRONG_SECONDS);
    rig.clock.set(now);
    clock.set(now);
    accept(&rig).await.unwrap();
    drop(other.broker.health.check_health().await);
    assert_eq!(other.broker.health.unready(), None);
    assert_eq!(refusal(issue().await), "blocked");
    // The block ends at its time.
    rig.clock.set(right.plus_seconds(HOUR));
    clock.set(right.plus_seconds(HOUR));
    accept(&rig).await.unwrap();
    drop(other.broker.health.check_health().await);
    issue().await.unwrap();
}
