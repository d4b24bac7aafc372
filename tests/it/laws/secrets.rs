//! Signing keys, bindings of admins, the bootstrap token, and secrets at rest.

use taskpass::store::sessions::SessionFilter;

use super::*;
use crate::support::rig::{BOOTSTRAP, POLICIES};

on_both_stores! {
    fn nothing_that_we_issue_is_at_rest;
    fn a_rotated_log_key_signs_beside_the_old_one;
    fn a_private_key_is_forgotten_when_its_last_token_is_over;
    fn a_revoked_key_takes_its_tokens_with_it;
}

async fn nothing_that_we_issue_is_at_rest(rig: Rig) {
    let token = rig.token("agent:reports", json!({}));
    let request = ask_in(
        taskpass::domain::request::NewTask {
            purpose: Some("numbers".into()),
            ..job()
        },
        &["orders:read"],
    );
    let issued = rig
        .broker
        .issuance
        .issue(bearer(&token), request)
        .await
        .unwrap();
    let lent = rig.delegate(&issued, "agent:child").await.unwrap();
    let mut canaries = crate::support::canary::Canaries::new();
    canaries.add("attestation", &token);
    canaries.add(
        "credential",
        crate::support::rig::access_token(&issued).expose_secret(),
    );
    canaries.add("handle", handle(&issued).expose_secret());
    canaries.add("delegation", lent.token.expose_secret());
    canaries.assert_absent_in(rig.directory());
    if matches!(rig.broker.core.store().kind(), "postgres") {
        canaries.assert_absent_in_postgres(&rig.database().url());
    }
    canaries.assert_absent_in_text("Debug", format!("{issued:?} {lent:?}"));
}

async fn a_rotated_log_key_signs_beside_the_old_one(rig: Rig) {
    let old: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    rig.broker
        .signing_keys
        .rotate_ledger_key(&rig.admin())
        .await
        .unwrap();
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    issued.receipt.verify(&old).unwrap();
    let new: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    assert_eq!(new.len(), 2);
    issued.receipt.verify(&new[..1]).unwrap();
}

async fn a_private_key_is_forgotten_when_its_last_token_is_over(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let sealed = async || {
        let rows = rig.broker.core.store().signing_keys().await.unwrap();
        rows.iter()
            .filter(|row| row.kid == issued.session.kid)
            .map(|row| row.sealed.len())
            .sum::<usize>()
    };
    for _ in 0..31 {
        rig.clock.advance(86_400);
        rig.broker.keys.follow(rig.now()).await.unwrap();
    }
    assert_eq!(sealed().await, 0);
    let next = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_ne!(next.session.kid, issued.session.kid);
    // The erased key's row can still be read and resealed.
    rig.broker
        .signing_keys
        .reseal_keys(&rig.admin())
        .await
        .unwrap();
    assert_eq!(rig.broker.keys.follow(rig.now()).await.unwrap(), 0);
    assert!(rig.is_good(&next).await);
}

async fn a_revoked_key_takes_its_tokens_with_it(rig: Rig) {
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.broker
        .signing_keys
        .revoke_key(&rig.admin(), &issued.session.kid, false)
        .await
        .unwrap();
    assert!(!rig.is_good(&issued).await);
    let jwks = rig.broker.keys.published_jwks();
    assert!(!jwks.to_string().contains(&issued.session.kid));
    let next = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    assert_ne!(next.session.kid, issued.session.kid);
    assert!(rig.is_good(&next).await && !rig.is_good(&issued).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_binds_a_role_to_themselves() {
    let policies = format!(
        "{POLICIES}\n@id(\"admins\") @description(\"admins bind admins\")\n\
         permit (principal in Role::\"admin\", action in [Action::\"manageAdmins\", \
         Action::\"listSessions\"], resource == Broker::\"taskpass\");"
    );
    let rig = Rig::on(Kind::Sqlite).policies(&policies).start().await;
    let identity = |sub: &str| {
        let text = format!("dev:{}", taskpass::domain::workload::encode_value(sub));
        taskpass::domain::workload::Identity::try_from(text).unwrap()
    };
    let bind = |by: &'static str, whom: &'static str| {
        let (rig, whom) = (&rig, identity(whom));
        async move {
            let by = rig.evidence(by);
            rig.broker
                .administration
                .bind_admin(&by, whom, "admin".into(), true)
                .await
        }
    };
    let stranger = bind("agent:orders", "agent:reports").await;
    assert!(matches!(stranger, Err(BrokerError::Forbidden(_))));
    let first = identity("agent:orders");
    let by = rig.admin();
    rig.broker
        .administration
        .bind_admin(&by, first, "admin".into(), true)
        .await
        .unwrap();
    let own = bind("agent:orders", "agent:orders").await;
    assert!(
        matches!(own, Err(BrokerError::OwnBinding)),
        "not even the rights it already has"
    );
    bind("agent:orders", "agent:reports").await.unwrap();
    bind("agent:reports", "agent:child").await.unwrap();
    assert_eq!(
        rig.broker
            .core
            .store()
            .admin_bindings()
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_is_over_a_day_after_it_was_first_seen_and_obtains_nothing() {
    let policies = format!(
        "{POLICIES}\n@id(\"bootstrap\") @description(\"binds the first admin\")\n\
         permit (principal == Bootstrap::\"token\", action in [Action::\"manageAdmins\", \
         Action::\"listSessions\"], resource == Broker::\"taskpass\");\n\
         @id(\"admins\") @description(\"admins look\")\n\
         permit (principal in Role::\"admin\", action == Action::\"listSessions\", \
         resource == Broker::\"taskpass\");"
    );
    let mut rig = Rig::on(Kind::Sqlite).policies(&policies).start().await;
    let token = bearer(BOOTSTRAP);
    let list = |rig: &Rig| {
        let broker = Arc::clone(&rig.broker);
        async move {
            broker
                .verification
                .list_sessions(&bearer(BOOTSTRAP), SessionFilter::default())
                .await
        }
    };
    list(&rig).await.unwrap();
    let admin = "dev:agent%3Aorders".to_owned().try_into().unwrap();
    rig.broker
        .administration
        .bind_admin(&token, admin, "admin".into(), true)
        .await
        .unwrap();
    let asked = rig
        .broker
        .issuance
        .issue(token, ask(&["orders:read"]))
        .await;
    assert!(
        matches!(asked, Err(BrokerError::Attestation(_))),
        "{asked:?}"
    );

    rig.clock.advance(86_399);
    list(&rig).await.unwrap();
    rig.restart().await.unwrap();
    rig.clock.advance(1);
    let over = list(&rig).await;
    assert!(
        matches!(over, Err(BrokerError::Attestation(_))),
        "a restart renews nothing"
    );
}
