//! The bootstrap token: one day, once, whatever is configured afterwards and elsewhere.

use taskpass::broker::{Broker, BrokerError};
use taskpass::store::sessions::SessionFilter;

use crate::support::rig::{BOOTSTRAP, Kind, Rig, bearer};

const OTHER: &str = "tpa_another-bootstrap-token";

/// Whether a broker takes this for its bootstrap token. The rig's policies permit it nothing, so
/// that it is refused either way, but not for the same reason.
async fn is_known(broker: &Broker, token: &str) -> bool {
    let listed = broker
        .list_sessions(&bearer(token), SessionFilter::default())
        .await;
    match listed {
        Err(BrokerError::Forbidden(_)) => true,
        Err(BrokerError::Attestation(_)) => false,
        other => panic!("{:?}", other.map(|sessions| sessions.len())),
    }
}

async fn begin(kind: Kind) -> Rig {
    Rig::new(kind).await
}

on_both_stores! {
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
        assert!(!is_known(&rig.broker, BOOTSTRAP).await, "its day was over");
        assert!(!is_known(&rig.broker, OTHER).await, "it is not configured");
    }

    async fn a_replaced_bootstrap_token_does_not_live_again_within_its_day(mut rig: Rig) {
        for (configured, good) in [(OTHER, true), (BOOTSTRAP, false), (OTHER, true)] {
            rig.clock.advance(60);
            rig.configure_bootstrap(configured);
            rig.restart().await.unwrap();
            assert_eq!(is_known(&rig.broker, configured).await, good, "{configured}");
        }
        // To its own day's end, and no longer.
        rig.clock.advance(86_400 - 121);
        assert!(is_known(&rig.broker, OTHER).await);
        rig.clock.advance(1);
        assert!(!is_known(&rig.broker, OTHER).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_with_different_bootstrap_tokens_do_not_renew_each_other() {
    let mut rig = Rig::new(Kind::Postgres).await;
    rig.clock.advance(3_600);
    let other = rig.replica_with_bootstrap(OTHER).await;
    assert!(is_known(&other.broker, OTHER).await);
    // The first one is told so at once, and by no restart of its own it comes back.
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
