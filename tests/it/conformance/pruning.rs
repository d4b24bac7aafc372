//! Statements that remove rows past their retention.

use super::*;

cases! {
    pruning_leaves_what_proves: "prune_openings" "prune_heads" "ensure_partitions" "grant_serving"
        "confine_serving" "check_confined" "check_no_owner";
    openings_are_walked_through_from_anywhere_a_bite_at_a_time: "patrol_openings";
    what_somebody_wrote_is_forgotten_and_nothing_else: "forget_purpose" "empty_log";
    bodies_go_and_hashes_stay: "prune_bodies";
}

async fn pruning_leaves_what_proves(store: &Store) {
    let writes = |from: u64| Writes {
        leaves: (from..from + 2).map(leaf).collect(),
        head: Some(sealed(from + 2, u128::from(from))),
        ..Writes::default()
    };
    for from in [0, 2, 4] {
        seed(store, writes(from)).await;
    }
    assert_eq!(
        store.prune_openings(at(2), 9).await.unwrap(),
        2,
        "the leaf's time decides"
    );
    assert_eq!(store.openings(1).await.unwrap().input, None);
    assert!(store.openings(2).await.unwrap().input.is_some());
    assert!(store.leaf(1).await.unwrap().unwrap().body.is_some());
    age_heads().await;
    assert_eq!(store.prune_heads(4, 9).await.unwrap(), 1);
    assert_eq!(store.prune_heads(u64::MAX, 0).await.unwrap(), 0);
    assert_eq!(
        store.prune_heads(u64::MAX, 9).await.unwrap(),
        1,
        "all but the newest"
    );
    assert_eq!(store.head(&head_seal()).await.unwrap(), Some(head(6)));

    let writes = Writes {
        tasks: vec![task(1, None), task(2, Some(1))],
        sessions: vec![
            (session(11, 1, None), None),
            (session(12, 2, Some(11)), None),
        ],
        ..Writes::default()
    };
    seed(store, writes).await;
    let end = |n| {
        (
            task_id(n),
            TaskChange {
                end: Some((TaskState::Expired, at(1_000), 9)),
                ..TaskChange::default()
            },
        )
    };
    seed(
        store,
        Writes {
            task_changes: BTreeMap::from([end(1), end(2)]),
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(
        store.prune_tasks(at(9_999), 9).await.unwrap(),
        0,
        "tasks with sessions are kept"
    );
    assert_eq!(
        store.prune_sessions(at(500), 9).await.unwrap(),
        0,
        "sessions are kept during their last instant"
    );
    assert_eq!(
        store.prune_sessions(at(501), 9).await.unwrap(),
        1,
        "the derived session, not its parent"
    );
    assert_eq!(store.prune_sessions(at(501), 9).await.unwrap(), 1);
    assert_eq!(
        store.prune_tasks(at(1_001), 9).await.unwrap(),
        1,
        "the child task, not its parent"
    );
    assert_eq!(store.prune_tasks(at(1_001), 9).await.unwrap(), 1);
    store.ensure_partitions(20_000_000).await.unwrap();
}

async fn openings_are_walked_through_from_anywhere_a_bite_at_a_time(store: &Store) {
    // A wrong clock dated the first three leaves.
    let leaves = [900, 901, 902, 3, 4, 500].into_iter().zip(0..);
    let leaves = leaves
        .map(|(dated, index)| LeafRow {
            at: at(dated),
            ..leaf(index)
        })
        .collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    let patrol = async |from| store.patrol_openings(at(100), from, 3).await.unwrap();
    assert_eq!(
        store.prune_openings(at(100), 3).await.unwrap(),
        0,
        "the first leaves are too young"
    );
    assert_eq!(patrol(0).await, (0, Some(3)));
    assert_eq!(patrol(3).await, (2, Some(6)));
    assert_eq!(patrol(6).await, (0, None));
    let kept = async |index| store.openings(index).await.unwrap().input.is_some();
    assert!(kept(0).await && !kept(3).await && !kept(4).await && kept(5).await);
}

async fn what_somebody_wrote_is_forgotten_and_nothing_else(store: &Store) {
    let purpose = Some(Opening {
        salt: [2; 16],
        bytes: b"for Ann".to_vec(),
    });
    let leaves = (0..3)
        .map(|index| LeafRow {
            purpose: purpose.clone(),
            ..leaf(index)
        })
        .collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    let cut = cutoff(7, 2, Selector::All(True), Block::UntilLifted);
    seed(store, acts(vec![ActWrite::Cutoff(Box::new(cut))])).await;
    for index in [1, 2] {
        assert!(store.forget_purpose(index).await.unwrap());
        assert!(
            !store.forget_purpose(index).await.unwrap(),
            "the purpose is deleted already"
        );
        let left = store.openings(index).await.unwrap();
        assert_eq!((left.input, left.purpose), (leaf(index).input, None));
        assert!(store.leaf(index).await.unwrap().unwrap().body.is_some());
    }
    assert_eq!(store.openings(0).await.unwrap().purpose, purpose);
    let kept = store
        .cutoff(CutoffId::from(uuid(7)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.reason.as_str(), kept.block), ("", Block::UntilLifted));
    assert!(!store.forget_purpose(99).await.unwrap());
    assert!(store.scrub().await.unwrap());
}

async fn bodies_go_and_hashes_stay(store: &Store) {
    // The last leaf of PostgreSQL's first partition.
    let last = 16_777_215;
    let writes = Writes {
        leaves: vec![leaf(0), leaf(last)],
        head: Some(sealed(last + 1, 1)),
        ..Writes::default()
    };
    seed(store, writes).await;
    age_heads().await;
    let body = async |idx| store.leaf(idx).await.unwrap().unwrap().body.is_some();
    store.prune_bodies(at(0), 9).await.unwrap();
    assert!(body(0).await, "only older bodies are deleted");
    store
        .prune_bodies(at(i64::try_from(last).unwrap()), 9)
        .await
        .unwrap();
    assert!(body(last).await, "only older bodies are deleted");
    store
        .prune_bodies(at(i64::try_from(last).unwrap() + 1), 9)
        .await
        .unwrap();
    assert!(!body(0).await && !body(last).await);
    assert_eq!(store.prune_bodies(at(99_999_999), 9).await.unwrap(), 0);
    store.ensure_partitions(last + 1).await.unwrap();
    seed(
        store,
        Writes {
            leaves: vec![leaf(last + 1)],
            ..Writes::default()
        },
    )
    .await;
    assert!(body(last + 1).await);
}
