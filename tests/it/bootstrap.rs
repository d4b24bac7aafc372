//! The bootstrap token is valid once, for one day, regardless of later configurations and of other
//! replicas.

use taskpass::broker::access::tokens::{BOOTSTRAP_SECONDS, bootstrap_fault};
use taskpass::broker::administration::time::{AcceptTimeRequest, Accepted};
use taskpass::broker::{Broker, BrokerError};
use taskpass::clock::Timestamp;
use taskpass::crypto::random::token_digest;
use taskpass::store::meta::BootstrapToken;
use taskpass::store::sessions::SessionFilter;
use taskpass::sweep;

use crate::support::rig::{ADMIN, BOOTSTRAP, Kind, Rig, ask, bearer};

const OTHER: &str = "tpa_another-bootstrap-token";

/// Whether a broker accepts this as its bootstrap token. The rig's policies permit the token
/// nothing, so the broker refuses either way; the error tells the two cases apart.
async fn is_known(broker: &Broker, token: &str) -> bool {
    let listed = broker
        .verification
        .list_sessions(&bearer(token), SessionFilter::default())
        .await;
    match listed {
        Err(BrokerError::Forbidden(_)) => true,
        Err(BrokerError::Attestation(_)) => false,
        other => panic!("{:?}", other.map(|sessions| sessions.len())),
    }
}

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

on_both_stores! {
    fn an_expired_bootstrap_token_does_not_live_again_after_another_was_configured;
    fn a_replaced_bootstrap_token_does_not_live_again_within_its_day;
}

async fn an_expired_bootstrap_token_does_not_live_again_after_another_was_configured(mut rig: Rig) {
    assert!(is_known(&rig.broker, BOOTSTRAP).await);
    rig.clock.advance(86_400);
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    rig.configure_bootstrap(OTHER);
    rig.restart().await.unwrap();
    assert!(is_known(&rig.broker, OTHER).await);
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    rig.configure_bootstrap(BOOTSTRAP);
    rig.restart().await.unwrap();
    assert!(
        !is_known(&rig.broker, BOOTSTRAP).await,
        "its day has passed"
    );
    assert!(!is_known(&rig.broker, OTHER).await, "it is not configured");
}

async fn a_replaced_bootstrap_token_does_not_live_again_within_its_day(mut rig: Rig) {
    for (configured, good) in [(OTHER, true), (BOOTSTRAP, false), (OTHER, true)] {
        rig.clock.advance(60);
        rig.configure_bootstrap(configured);
        rig.restart().await.unwrap();
        assert_eq!(
            is_known(&rig.broker, configured).await,
            good,
            "{configured}"
        );
    }
    // It is valid until the end of its own day.
    rig.clock.advance(86_400 - 121);
    assert!(is_known(&rig.broker, OTHER).await);
    rig.clock.advance(1);
    assert!(!is_known(&rig.broker, OTHER).await);
}

const HOUR: u64 = 3_600;

/// Restarts the broker with the clock as it is, and activates the same generation.
async fn start(rig: &mut Rig) {
    rig.reopen().await.unwrap();
    rig.broker.generations.follow().await.unwrap();
}

async fn accept(rig: &Rig, token: &str) -> Result<Accepted, BrokerError> {
    let ask = AcceptTimeRequest {
        time: rig.now(),
        reason: "the battery was dead".into(),
    };
    rig.broker
        .administration
        .accept_time(&bearer(token), ask)
        .await
}

on_both_stores! {
    fn an_expired_bootstrap_token_does_not_live_again_when_the_clock_goes_back;
    fn a_bootstrap_token_that_nothing_asked_for_is_ended_by_the_sweeper;
    fn a_new_bootstrap_token_accepts_the_time_where_the_log_is_ahead_and_has_its_day;
}

async fn an_expired_bootstrap_token_does_not_live_again_when_the_clock_goes_back(mut rig: Rig) {
    let begun = rig.now();
    assert!(is_known(&rig.broker, BOOTSTRAP).await);
    rig.clock.set(begun.plus_seconds(10 * 86_400));
    start(&mut rig).await;
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.clock.set(begun.plus_seconds(HOUR));
    start(&mut rig).await;
    assert!(rig.broker.health.unready().unwrap().starts_with("clock: "));
    let accepted = accept(&rig, BOOTSTRAP).await;
    assert!(
        matches!(accepted, Err(BrokerError::Attestation(_))),
        "{accepted:?}"
    );
    // It also stays invalid after an administrator has accepted the time.
    accept(&rig, ADMIN).await.unwrap();
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    let mallory = "dev:mallory".to_owned().try_into().unwrap();
    let token = bearer(BOOTSTRAP);
    let bound = rig
        .broker
        .administration
        .bind_admin(&token, mallory, "admin".into(), true)
        .await;
    assert!(
        matches!(bound, Err(BrokerError::Attestation(_))),
        "{bound:?}"
    );
}

async fn a_bootstrap_token_that_nothing_asked_for_is_ended_by_the_sweeper(mut rig: Rig) {
    let begun = rig.now();
    rig.clock.advance(86_400);
    sweep::sweep(&rig.broker, rig.now()).await;
    rig.clock.set(begun.plus_seconds(HOUR));
    start(&mut rig).await;
    let seen = rig
        .broker
        .core
        .store()
        .bootstrap_token(&token_digest(BOOTSTRAP))
        .await;
    assert!(seen.unwrap().unwrap().ended);
}

async fn a_new_bootstrap_token_accepts_the_time_where_the_log_is_ahead_and_has_its_day(
    mut rig: Rig,
) {
    let begun = rig.now();
    rig.clock.set(begun.plus_seconds(10 * 86_400));
    start(&mut rig).await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.clock.set(begun.plus_seconds(HOUR));
    rig.configure_bootstrap(OTHER);
    start(&mut rig).await;
    accept(&rig, OTHER).await.unwrap();
    assert!(is_known(&rig.broker, OTHER).await);
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    rig.clock.advance(86_399);
    assert!(is_known(&rig.broker, OTHER).await);
    rig.clock.advance(1);
    assert!(!is_known(&rig.broker, OTHER).await);
}

#[test]
fn a_bootstrap_token_is_judged_by_the_latest_time_that_is_known() {
    let at = |seconds: u64| Timestamp::from_seconds(1_800_000_000).plus_seconds(seconds);
    let day = BOOTSTRAP_SECONDS;
    let seen = |first_seen, log_time| BootstrapToken {
        first_seen: at(first_seen),
        log_time: at(log_time),
        ended: false,
        replaced: false,
    };
    for (token, now, latest, good) in [
        (seen(0, 0), 0, 0, true),
        (seen(0, 0), day - 1, day - 1, true),
        (seen(0, 0), day, day, false),
        // The clock went back, but the newest ledger entry shows that the day has passed.
        (seen(0, 0), HOUR, day, false),
        // The log's time was already ahead when the broker first saw the token.
        (seen(HOUR, 10 * day), HOUR, 10 * day, true),
        (seen(HOUR, 10 * day), HOUR + day - 1, 10 * day, true),
        (seen(HOUR, 10 * day), HOUR + day, HOUR + day, false),
        (seen(HOUR, 10 * day), HOUR, 11 * day, false),
        // The clock was ahead when the broker first saw the token.
        (seen(10 * day, 10 * day), HOUR, HOUR, false),
    ] {
        let fault = bootstrap_fault(&token, at(now), at(latest));
        assert_eq!(fault.is_none(), good, "{token:?} {now} {latest}: {fault:?}");
    }
    let over = [
        BootstrapToken {
            ended: true,
            ..seen(0, 0)
        },
        BootstrapToken {
            replaced: true,
            ..seen(0, 0)
        },
    ];
    for token in over {
        assert!(bootstrap_fault(&token, at(0), at(0)).is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_with_different_bootstrap_tokens_do_not_renew_each_other() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    rig.clock.advance(3_600);
    let other = rig.replica_with_bootstrap(OTHER).await;
    assert!(is_known(&other.broker, OTHER).await);
    // The first replica's token becomes invalid at once, and a restart of that replica does not
    // renew it.
    assert!(!is_known(&rig.broker, BOOTSTRAP).await);
    for _ in 0..2 {
        rig.clock.advance(3_600);
        rig.restart().await.unwrap();
        assert!(!is_known(&rig.broker, BOOTSTRAP).await);
        let again = rig.replica_with_bootstrap(OTHER).await;
        assert!(is_known(&again.broker, OTHER).await);
    }
    rig.clock.advance(86_400 - 7_201);
    assert!(is_known(&other.broker, OTHER).await);
    rig.clock.advance(1);
    for replica in [&other, &rig.replica_with_bootstrap(OTHER).await] {
        assert!(!is_known(&replica.broker, OTHER).await);
    }
}
