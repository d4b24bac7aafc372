//! How long the broker remembers the use of a token whose `exp` is a year ahead.

use serde_json::json;
use taskpass::broker::BrokerError;
use taskpass::domain::limits::{MAX_EVIDENCE_SECONDS, ONE_TIME_KEPT_SECONDS};

use crate::support::rig::{Kind, Rig, ask, bearer};

const YEAR: u64 = 31_536_000;

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

on_both_stores! {
    fn a_token_that_is_good_for_a_year_is_not_kept_for_a_year_and_never_good_twice;
}

async fn a_token_that_is_good_for_a_year_is_not_kept_for_a_year_and_never_good_twice(rig: Rig) {
    let expires = rig.now().plus_seconds(YEAR).seconds();
    let token = rig.token("agent:reports", json!({"exp": expires}));
    let present = || {
        rig.broker
            .issuance
            .issue(bearer(&token), ask(&["orders:read"]))
    };
    present().await.unwrap();
    assert!(matches!(present().await, Err(BrokerError::Replayed)));
    let store = rig.broker.core.store();
    let kept_until = rig.now().plus_seconds(MAX_EVIDENCE_SECONDS);
    // The use is kept while the token's age is still acceptable.
    assert_eq!(
        store
            .prune_one_time(rig.now().plus_seconds(86_400), 100)
            .await
            .unwrap(),
        0
    );
    assert!(matches!(present().await, Err(BrokerError::Replayed)));
    // Later the token is refused for its age, whether or not its use is still stored.
    rig.clock
        .advance(MAX_EVIDENCE_SECONDS + ONE_TIME_KEPT_SECONDS);
    assert!(matches!(present().await, Err(BrokerError::Attestation(_))));
    assert!(
        store
            .prune_one_time(kept_until.plus_seconds(1), 100)
            .await
            .unwrap()
            >= 1
    );
    let again = present().await;
    assert!(
        matches!(again, Err(BrokerError::Attestation(_))),
        "{again:?}"
    );
}
