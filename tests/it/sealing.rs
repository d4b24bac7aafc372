//! Replacing the sealing keys: rows under the old key stay readable until it is removed, and
//! afterwards only if they were resealed.

use secrecy::ExposeSecret;
use taskpass::app::StartError;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::random::SystemRandom;

use crate::support::SOON;
use crate::support::rig::{Kind, Rig, ask};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

fn new_key() -> String {
    let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
    key.expose_secret().to_owned()
}

fn first_key(rig: &Rig) -> String {
    let key = std::fs::read_to_string(rig.directory().join("dev-sealing-key"));
    key.unwrap().trim().to_owned()
}

/// Restarts the broker on the same store, and appends nothing.
async fn reopen(rig: &mut Rig) -> Result<(), StartError> {
    rig.reopen().await?;
    rig.broker.generations.follow().await.unwrap();
    Ok(())
}

on_both_stores! {
    fn a_log_goes_on_under_new_sealing_keys_once_it_was_resealed;
    fn a_sealing_key_that_was_removed_too_early_is_named_and_can_be_put_back;
}

async fn a_log_goes_on_under_new_sealing_keys_once_it_was_resealed(mut rig: Rig) {
    let (old, new) = (first_key(&rig), new_key());
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let reports = "dev:agent%3Aorders".to_owned().try_into().unwrap();
    rig.broker
        .administration
        .bind_admin(&rig.admin(), reports, "nobody".into(), true)
        .await
        .unwrap();
    rig.seal_with(&[&new, &old]);
    reopen(&mut rig).await.unwrap();
    let size = rig.broker.core.ledger().basis();
    let resealed = rig
        .broker
        .signing_keys
        .reseal_keys(&rig.admin())
        .await
        .unwrap();
    assert!(
        resealed >= 4,
        "two keys, an activation, a binding: {resealed}"
    );
    assert_eq!(
        rig.broker.core.ledger().basis(),
        size + 1,
        "resealing adds a leaf, and its head uses the new key"
    );
    rig.seal_with(&[&new]);
    reopen(&mut rig).await.unwrap();
    assert!(rig.is_good(&issued).await);
    rig.broker.health.check_health().await.unwrap();
    rig.issue("agent:orders", ask(&["orders:read"]))
        .await
        .unwrap();
    let again = rig
        .broker
        .signing_keys
        .reseal_keys(&rig.admin())
        .await
        .unwrap();
    assert_eq!(again, 0, "no row is left to reseal");
}

async fn a_sealing_key_that_was_removed_too_early_is_named_and_can_be_put_back(mut rig: Rig) {
    let (old, new) = (first_key(&rig), new_key());
    rig.seal_with(&[&new]);
    let told = reopen(&mut rig)
        .await
        .expect_err("the broker must not start")
        .to_string();
    for named in [
        "the table signing_key",
        "no sealing key",
        "TASKPASS_SEALING_KEYS",
    ] {
        assert!(told.contains(named), "{named}: {told}");
    }
    // Only the log's keys were resealed; its heads still use the old key.
    rig.seal_with(&[&new, &old]);
    reopen(&mut rig).await.unwrap();
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_revoked_while_it_is_resealed_stays_revoked_and_is_resealed() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let mut kids = Vec::new();
    for _ in 0..4 {
        kids.push(
            rig.broker
                .signing_keys
                .rotate_keys(&rig.admin())
                .await
                .unwrap(),
        );
    }
    let (old, new) = (first_key(&rig), new_key());
    rig.seal_with(&[&new, &old]);
    reopen(&mut rig).await.unwrap();
    let other = rig.replica().await;
    let admin = rig.admin();
    let revoking = async {
        for kid in &kids {
            rig.broker
                .signing_keys
                .revoke_key(&admin, kid, false)
                .await
                .unwrap();
        }
    };
    let (resealed, ()) = tokio::join!(other.broker.signing_keys.reseal_keys(&admin), revoking);
    resealed.unwrap();
    other
        .shutdown
        .drain_then_stop(std::time::Duration::ZERO, SOON)
        .await;
    let left = rig.broker.signing_keys.reseal_keys(&admin).await.unwrap();
    rig.seal_with(&[&new]);
    reopen(&mut rig).await.unwrap();
    let keys = rig
        .broker
        .signing_keys
        .list_keys(&rig.admin())
        .await
        .unwrap();
    let revoked = |kid: &String| {
        let mut keys = keys.iter().map(|key| &key.record);
        keys.any(|key| key.kid == *kid && key.revoked_at.is_some())
    };
    assert!(kids.iter().all(revoked), "{left} rows were left");
}
