//! Statements of the log: batches, tiles, used evidence, cosigned checkpoints.

use super::*;

cases! {
    a_batch_is_read_back_as_it_was_written: "ledger_lock" "ledger_enter" "ledger_write" "head"
        "leaf_hashes" "leaves" "decision_index" "decisions" "openings" "committed" "newest_leaf_at"
        "confirm";
    full_tiles_are_found_by_level_and_place: "tile" "tile_roots";
    evidence_is_used_once_and_forgotten_after_its_time: "prune_one_time" "note_forgotten"
        "forgotten";
    a_connection_says_to_what_server_it_leads: "ledger_look";
    what_witnesses_said_is_kept_and_found_by_size_and_by_whose_word_it_is: "put_cosigned"
        "last_cosigned" "cosigned_over" "cosigned_over_by" "cosigned_until";
}

async fn a_batch_is_read_back_as_it_was_written(store: &Store) {
    assert_eq!(store.head(&head_seal()).await.unwrap(), None);
    let first = seen(store, Needs::default()).await;
    assert_eq!(
        (first.head, first.activation, first.hashes.len()),
        (None, None, 0)
    );
    let writes = Writes {
        leaves: (0..3).map(leaf).collect(),
        head: Some(sealed(3, 1)),
        ..Writes::default()
    };
    seed(store, writes).await;
    assert_eq!(store.head(&head_seal()).await.unwrap(), Some(head(3)));
    assert_eq!(
        store.leaf_hashes(1, 10).await.unwrap(),
        vec![leaf(1).hash, leaf(2).hash]
    );
    assert_eq!(store.leaf_hashes(3, 10).await.unwrap(), vec![]);
    assert_eq!(store.leaf_hashes(u64::MAX, u64::MAX).await.unwrap(), vec![]);
    let leaves = store.leaves(0, 2).await.unwrap();
    assert_eq!(leaves.len(), 2);
    assert_eq!(leaves[1].body.as_deref(), Some(&b"leaf 1"[..]));
    assert_eq!((leaves[1].hash, leaves[1].at), (leaf(1).hash, at(1)));
    assert_eq!(leaves[1].subject.as_deref(), Some("dev:a"));
    assert_eq!(store.leaf(3).await.unwrap(), None);
    assert_eq!(
        store.decision_index(uuid(502).into()).await.unwrap(),
        Some(2)
    );
    assert_eq!(
        store
            .decision_index(DecisionId::from(uuid(9)))
            .await
            .unwrap(),
        None
    );
    let decisions = store.decisions(1, 9, 5).await.unwrap();
    let found: Vec<_> = decisions
        .iter()
        .map(|row| (row.index, row.hash, row.at))
        .collect();
    assert_eq!(found, [(1, leaf(1).hash, at(1)), (2, leaf(2).hash, at(2))]);
    let input = decisions[1].input.as_ref().unwrap();
    assert_eq!(
        (input.bytes.as_slice(), decisions[1].body.as_deref()),
        (&b"input"[..], Some(&b"leaf 2"[..]))
    );
    assert_eq!(store.decisions(0, 9, 1).await.unwrap()[0].index, 0);
    assert_eq!(store.decisions(3, 9, 5).await.unwrap(), vec![]);
    assert_eq!(
        store.decisions(0, 2, 5).await.unwrap().len(),
        2,
        "no decision beyond the head"
    );
    let openings = store.openings(2).await.unwrap();
    assert_eq!(openings.input.unwrap().bytes, b"input");
    assert_eq!(
        (openings.purpose, store.openings(99).await.unwrap().input),
        (None, None)
    );
    let view = seen(
        store,
        Needs {
            hashes_from: 1,
            ..Needs::default()
        },
    )
    .await;
    assert_eq!(
        (view.head, view.hashes),
        (Some(sealed(3, 1)), vec![leaf(1).hash, leaf(2).hash])
    );
    assert_eq!(
        (view.newest_at, store.newest_leaf_at().await.unwrap()),
        (Some(at(2)), Some(at(2)))
    );
    assert_eq!(view.clock.is_some(), store.kind() == "postgres");

    let mut connection = store.ledger_connection().await.unwrap();
    assert!(connection.committed(&sealed(3, 1)).await.unwrap());
    assert!(!connection.committed(&sealed(3, 2)).await.unwrap());
    assert_eq!(
        connection.confirmed_head().await.unwrap(),
        Some(sealed(3, 1))
    );
    connection.enter(&Needs::default()).await.unwrap();
    connection.confirm().await.unwrap();
}

async fn full_tiles_are_found_by_level_and_place(store: &Store) {
    let tile = |level, index| Tile {
        level,
        index,
        hashes: vec![hash(index); 256],
        root: hash(index + 40),
    };
    seed(
        store,
        Writes {
            tiles: vec![tile(0, 0), tile(0, 1), tile(1, 0)],
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(store.tile(0, 1).await.unwrap(), Some(vec![hash(1); 256]));
    assert_eq!(store.tile(2, 0).await.unwrap(), None);
    assert_eq!(
        store.tile_roots(0, 0, 10).await.unwrap(),
        vec![hash(40), hash(41)]
    );
    assert_eq!(store.tile_roots(0, 1, 1).await.unwrap(), vec![hash(41)]);
    let again = append(
        store,
        &Needs::default(),
        &Writes {
            tiles: vec![tile(0, 1)],
            ..Writes::default()
        },
    )
    .await;
    assert!(
        matches!(again, Err(StoreError::Refused(_))),
        "a tile is written once"
    );
}

async fn evidence_is_used_once_and_forgotten_after_its_time(store: &Store) {
    store
        .claim(StoreMode::Dev, "dev.local/log", at(1))
        .await
        .unwrap();
    let once = |n: u8, seconds| OneTime {
        must_be_new: false,
        key: [n; 32],
        binding: (n == 2).then_some([9; 32]),
        issued_at: at(0),
        expires_at: at(seconds),
    };
    seed(
        store,
        Writes {
            one_time: vec![once(1, 10), once(2, 20)],
            ..Writes::default()
        },
    )
    .await;
    let view = seen(
        store,
        Needs {
            one_time: [1, 2, 3].map(|n| once(n, 10).id()).into(),
            ..Needs::default()
        },
    )
    .await;
    assert_eq!(
        view.used,
        HashMap::from([
            (once(1, 10).id(), None),
            (once(2, 10).id(), Some(vec![9; 32]))
        ])
    );
    let twice = append(
        store,
        &Needs::default(),
        &Writes {
            one_time: vec![once(1, 10)],
            ..Writes::default()
        },
    )
    .await;
    assert!(matches!(twice, Err(StoreError::Refused(_))));
    assert_eq!(
        store.prune_one_time(at(10), 10).await.unwrap(),
        0,
        "evidence is kept during its last instant"
    );
    let forgotten = async || seen(store, Needs::default()).await.forgotten;
    assert_eq!(forgotten().await, None);
    assert_eq!(store.prune_one_time(at(11), 10).await.unwrap(), 1);
    assert_eq!(
        forgotten().await,
        Some(at(10)),
        "the latest expiry of a deleted use"
    );
    assert_eq!(store.prune_one_time(at(99), 0).await.unwrap(), 0);
    assert_eq!(
        forgotten().await,
        Some(at(20)),
        "noted before the rows are deleted"
    );
    assert_eq!(store.prune_one_time(at(99), 9).await.unwrap(), 1);
    assert_eq!(store.prune_one_time(at(999), 9).await.unwrap(), 0);
    assert_eq!(forgotten().await, Some(at(20)));
    assert_eq!(store.forgotten().await.unwrap(), Some(at(20)));
    // Accepting a time keeps a mark that is not later than it, and sets a later mark apart.
    for (accepted, index, left, apart) in
        [(20, 7_u64, Some(at(20)), None), (19, 8, None, Some(at(20)))]
    {
        let cutoff = cutoff(
            61 + u128::from(index),
            index,
            Selector::IssuedAfter(at(accepted)),
            Block::Until(at(99_999)),
        );
        let act = ActWrite::TimeAccepted {
            cutoff: Box::new(cutoff),
            accepted: at(accepted),
        };
        seed(store, acts(vec![act])).await;
        let view = seen(store, Needs::default()).await;
        assert_eq!((view.forgotten, view.forgotten_accepted), (left, apart));
    }
}

async fn a_connection_says_to_what_server_it_leads(store: &Store) {
    let mut one = store.ledger_connection().await.unwrap();
    if store.kind() == "sqlite" {
        assert_eq!(one.enter(&Needs::default()).await.unwrap().server, None);
        return;
    }
    let before = one.head_and_server().await.unwrap();
    assert_eq!(before.head, None);
    seed(
        store,
        Writes {
            head: Some(sealed(3, 1)),
            ..Writes::default()
        },
    )
    .await;
    let read = one.head_and_server().await.unwrap();
    assert_eq!(
        (read.head, read.server),
        (Some(sealed(3, 1)), before.server)
    );
    assert_eq!(
        one.enter(&Needs::default()).await.unwrap().server,
        Some(read.server)
    );
    one.rollback().await.unwrap();
    let mut other = store.ledger_connection().await.unwrap();
    assert_ne!(other.head_and_server().await.unwrap().server, read.server);
}

async fn what_witnesses_said_is_kept_and_found_by_size_and_by_whose_word_it_is(store: &Store) {
    let row = |size, witness: &str, line: &str| CosignedRow {
        size,
        vkey: format!("{witness}+key"),
        witness: witness.into(),
        line: line.into(),
        checkpoint: format!("log {size}"),
    };
    assert_eq!(store.last_cosigned("a+key").await.unwrap(), None);
    assert_eq!(store.cosigned_over(0, None).await.unwrap(), []);
    for row in [
        row(5, "a", "5"),
        row(9, "b", "9"),
        row(9, "a", "9"),
        row(30, "b", "30"),
    ] {
        store.put_cosigned(&row).await.unwrap();
    }
    // The first cosignature of a witness for a size is kept.
    store.put_cosigned(&row(5, "a", "later")).await.unwrap();
    assert_eq!(store.last_cosigned("a+key").await.unwrap(), Some(9));
    assert_eq!(store.last_cosigned("b+key").await.unwrap(), Some(30));
    let over = async |index, witness| store.cosigned_over(index, witness).await.unwrap();
    assert_eq!(over(4, None).await, [row(5, "a", "5")]);
    let both = [row(9, "a", "9"), row(9, "b", "9")];
    assert_eq!(over(5, None).await, both, "leaf 5 is not in a tree of 5");
    assert_eq!(
        over(0, Some("b")).await,
        both,
        "includes the other witnesses' lines"
    );
    assert_eq!(over(9, Some("a")).await, []);
    assert_eq!(over(29, None).await, [row(30, "b", "30")]);
    assert_eq!(over(30, None).await, []);
    let until = async |size, count| store.cosigned_until("b+key", size, count).await.unwrap();
    assert_eq!(until(30, 9).await, [row(30, "b", "30"), row(9, "b", "9")]);
    assert_eq!(until(29, 9).await, [row(9, "b", "9")]);
    assert_eq!(until(30, 1).await, [row(30, "b", "30")]);
}
