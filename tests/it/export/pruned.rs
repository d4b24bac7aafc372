//! Entries whose bodies were pruned are exported by their hashes.

use taskpass::domain::generation::Retention;
use taskpass::sweep;

use super::*;
use crate::support::rig::{ask_in, job};

#[expect(clippy::too_many_lines, reason = "one sequence of steps")]
async fn pruned_bodies_are_told_by_their_hashes(kind: Kind) {
    let rig = Rig::on(kind).start().await;
    let purposeful = || {
        ask_in(
            taskpass::domain::request::NewTask {
                purpose: Some(PURPOSE.into()),
                ..job()
            },
            &["orders:read"],
        )
    };
    let old = rig.issue("agent:reports", purposeful()).await.unwrap();
    let store = rig.broker.core.store();
    let kept = store
        .openings(old.receipt.index)
        .await
        .unwrap()
        .purpose
        .unwrap();
    assert_eq!(kept.bytes, PURPOSE.as_bytes());
    rig.clock.advance(3 * 86_400);
    // PostgreSQL deletes whole partitions of 2^24 leaves, and none is full here.
    if kind == Kind::Postgres {
        let pool = rig.database().pool().await;
        sqlx::query("DELETE FROM leaf_body")
            .execute(&pool)
            .await
            .unwrap();
    }
    let before = rig.broker.core.ledger().basis();
    let retention = Retention {
        sessions_days: 1,
        openings_days: 1,
        bodies_days: 1,
    };
    sweep::prune::prune(&rig.broker, retention, rig.now())
        .await
        .unwrap();
    let new = rig.issue("agent:reports", purposeful()).await.unwrap();
    let size = rig.broker.core.ledger().basis();

    // Body and purpose are deleted, the hash is kept, and earlier receipts stay valid.
    let leaf = store.leaf(old.receipt.index).await.unwrap().unwrap();
    assert_eq!((leaf.body, leaf.hash), (None, old.receipt.leaf_hash));
    assert_eq!(
        store.openings(old.receipt.index).await.unwrap().purpose,
        None
    );
    let keys: Vec<_> = rig
        .broker
        .core
        .ledger()
        .keys()
        .iter()
        .map(|key| key.verifier.clone())
        .collect();
    let head = rig.broker.core.ledger().head().await.unwrap().unwrap();
    for receipt in [&old.receipt, &new.receipt] {
        receipt.verify(&keys).unwrap();
        let path = taskpass::ledger::proofs::inclusion(store, receipt.index, size, size)
            .await
            .unwrap();
        taskpass::merkle::verify_inclusion(
            receipt.index,
            size,
            &receipt.leaf_hash,
            &path,
            &head.root,
        )
        .unwrap();
    }
    let path = taskpass::ledger::proofs::consistency(store, old.receipt.tree_size, size, size)
        .await
        .unwrap();
    let signed =
        taskpass::merkle::SignedCheckpoint::open(old.receipt.checkpoint.as_bytes(), &keys).unwrap();
    taskpass::merkle::verify_consistency(
        old.receipt.tree_size,
        size,
        &path,
        &signed.checkpoint().root,
        &head.root,
    )
    .unwrap();

    // A new sink begins before the first pruned entry.
    let dir = tempfile::tempdir().unwrap();
    let sinks = "[[export]]\nname = \"late\"\nformat = \"cloudevents\"\nto = \"file\"\npath = \"events\"\nfree_text = true\n";
    let told = export_from(&rig, sinks, dir.path(), usize::try_from(size).unwrap()).await;
    assert_eq!(
        told.iter().map(index).collect::<Vec<_>>(),
        (0..size).collect::<Vec<_>>()
    );
    for event in &told {
        let at = index(event);
        let hash = store.leaf(at).await.unwrap().unwrap().hash.to_string();
        assert_eq!(event["data"]["leaf_hash"], hash);
        let pruned = at < before;
        assert_eq!(event["type"] == "taskpass.pruned", pruned, "{event}");
        assert_eq!(event["data"].get("leaf").is_none(), pruned);
    }
    let texts = |told: &[Value]| {
        told.iter()
            .filter(|e| e["data"]["free_text"] == PURPOSE)
            .count()
    };
    assert_eq!(texts(&told), 1, "deleted text is not exported");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_whose_bodies_were_pruned_are_told_by_their_hashes_on_sqlite() {
    pruned_bodies_are_told_by_their_hashes(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_whose_bodies_were_pruned_are_told_by_their_hashes_on_postgresql() {
    pruned_bodies_are_told_by_their_hashes(Kind::Postgres).await;
}
