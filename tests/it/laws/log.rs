//! The log: proofs, replicas, pruning, and stores that other writers changed.

use taskpass::domain::generation::Retention;

use super::*;

on_both_stores! {
    fn proofs_hold_across_tiles_and_restarts;
    fn pruning_leaves_what_something_still_points_at;
}

async fn proofs_hold_across_tiles_and_restarts(rig: Rig) {
    let mut rig = rig;
    let mut receipts = Vec::new();
    for round in 0..6 {
        let asks = (0..60).map(|_| rig.issue("agent:nobody", ask(&["orders:read"])));
        for result in futures_util::future::join_all(asks).await {
            let Err(BrokerError::Denied(denied)) = result else {
                panic!("{result:?}")
            };
            receipts.push(denied.receipt);
        }
        if round == 3 {
            rig.restart().await.unwrap();
        }
    }
    let keys: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    let store = rig.broker.core.store();
    let head = rig.broker.core.ledger().head().await.unwrap().unwrap();
    assert!(head.size > 300);
    for receipt in &receipts {
        receipt.verify(&keys).unwrap();
        let path = taskpass::ledger::proofs::inclusion(store, receipt.index, head.size, head.size)
            .await
            .unwrap();
        taskpass::merkle::verify_inclusion(
            receipt.index,
            head.size,
            &receipt.leaf_hash,
            &path,
            &head.root,
        )
        .unwrap();
    }
    let first = &receipts[0];
    let path = taskpass::ledger::proofs::consistency(store, first.tree_size, head.size, head.size)
        .await
        .unwrap();
    let old = taskpass::merkle::SignedCheckpoint::open(first.checkpoint.as_bytes(), &keys).unwrap();
    taskpass::merkle::verify_consistency(
        first.tree_size,
        head.size,
        &path,
        &old.checkpoint().root,
        &head.root,
    )
    .unwrap();
}

async fn pruning_leaves_what_something_still_points_at(rig: Rig) {
    let parent = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let lent = rig.delegate(&parent, "agent:child").await.unwrap();
    rig.issue(
        "agent:child",
        ask_in(child_of(parent.task.id, &lent), &["orders:read"]),
    )
    .await
    .unwrap();
    let retention = Retention {
        sessions_days: 0,
        openings_days: 0,
        bodies_days: 400,
    };
    sweep::prune::prune(&rig.broker, retention, rig.now())
        .await
        .unwrap();
    let store = rig.broker.core.store();
    assert!(store.task(parent.task.id).await.unwrap().is_some());
    assert!(store.session(parent.session.id).await.unwrap().is_some());
    rig.clock.advance(2 * 86_400);
    sweep::sweep(&rig.broker, rig.now()).await;
    sweep::prune::prune(&rig.broker, retention, rig.now())
        .await
        .unwrap();
    assert!(store.session(parent.session.id).await.unwrap().is_none());
    assert!(store.task(parent.task.id).await.unwrap().is_none());
    let keys: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    parent.receipt.verify(&keys).unwrap();
    let size = rig.broker.core.ledger().basis();
    let proof = taskpass::ledger::proofs::inclusion(store, parent.receipt.index, size, size).await;
    assert!(proof.is_ok(), "pruning never breaks a proof");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_write_one_log() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let other = rig.replica().await;
    let asks = (0..80).map(|n| {
        let broker = if n % 2 == 0 {
            &rig.broker
        } else {
            &other.broker
        };
        broker
            .issuance
            .issue(rig.evidence("agent:nobody"), ask(&["orders:read"]))
    });
    let keys: Vec<_> = other
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    let mut indexes = Vec::new();
    for result in futures_util::future::join_all(asks).await {
        let Err(BrokerError::Denied(denied)) = result else {
            panic!("{result:?}")
        };
        denied.receipt.verify(&keys).unwrap();
        indexes.push(denied.receipt.index);
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 80);
    // Another replica's cutoff applies from this replica's next append on.
    rig.broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector: Selector::All(True),
                block: BlockRequest::UntilLifted,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: false,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let result = other
        .broker
        .issuance
        .issue(rig.evidence("agent:reports"), ask(&["orders:read"]))
        .await;
    assert_eq!(refusal(result), "blocked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_replica_shows_what_others_appended() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let idle = rig.replica().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let shown = |broker: &taskpass::broker::Broker| {
        let signed = broker.core.ledger().checkpoints().borrow().clone().unwrap();
        (signed.head, signed.checkpoint)
    };
    assert!(shown(&idle.broker).0.size < shown(&rig.broker).0.size);
    idle.broker.health.check_health().await.unwrap();
    assert_eq!(shown(&idle.broker), shown(&rig.broker));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_set_back_stops_the_broker() {
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.stop().await;
    let data = rig.directory().join("data");
    let backup = rig.directory().join("backup");
    std::fs::create_dir(&backup).unwrap();
    std::fs::set_permissions(&backup, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in std::fs::read_dir(&data).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), backup.join(file.file_name())).unwrap();
    }
    rig.restart().await.unwrap();
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    rig.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&backup, &data).unwrap();
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start on a store that lost entries")
        .to_string();
    assert!(told.contains("rewound") && told.contains("size"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_to_the_tables_activates_and_lifts_nothing() {
    let rig = Rig::on(Kind::Sqlite).start().await;
    let selector = Selector::Workload("dev:agent%3Aorders".to_owned().try_into().unwrap());
    let cut = rig
        .broker
        .revocation
        .revoke_many(
            &rig.admin(),
            RevokeRequest {
                selector,
                block: BlockRequest::UntilLifted,
                deny_all_earlier_sessions: false,
                reason: "x".into(),
                allow_unknown: true,
                dry_run: false,
            },
        )
        .await
        .unwrap();
    let taskpass::store::Store::Sqlite(sqlite) = rig.broker.core.store() else {
        panic!("another store")
    };
    let write = |sql: &'static str| async move {
        sqlx::query(sql).execute(sqlite.writer()).await.unwrap();
    };
    write("INSERT INTO generation (digest, body, stored_at) SELECT zeroblob(32), body, stored_at FROM generation LIMIT 1").await;
    write("INSERT INTO activation (idx, digest, actor, at, mac) SELECT idx + 1000, zeroblob(32), actor, at, mac FROM activation LIMIT 1").await;
    assert!(matches!(
        rig.broker.generations.follow().await,
        Err(BrokerError::FailClosed(_))
    ));
    assert!(
        rig.broker
            .health
            .unready()
            .unwrap()
            .contains("the broker did not activate it")
    );
    assert!(
        rig.issue("agent:reports", ask(&["orders:read"]))
            .await
            .is_err()
    );

    write("UPDATE cutoff SET kind = 'all', value = ''").await;
    let lifted = rig
        .broker
        .revocation
        .lift(&rig.admin(), cut.cutoff.unwrap().id)
        .await;
    assert!(matches!(lifted, Err(BrokerError::FailClosed(_))));
}
