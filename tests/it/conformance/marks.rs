//! Statements that identify a store: its birth, formats, times, and the log before it.

use super::*;

cases! {
    the_horizon_begins_at_birth_and_is_moved_by_one_at_a_time: "horizon" "advance_horizon";
    an_accepted_time_sets_back_what_was_dated_ahead: "accept_time" "accepted_times";
    a_store_is_marked_at_birth: "claim" "clock" "check_schema" "connected_brokers";
    it_is_known_where_a_checkpoint_was_kept: "shared_place" "put_shared_place";
    a_store_is_read_and_neither_made_nor_changed: "open_to_read";
    a_log_of_an_earlier_format_is_refused_before_its_schema_is_touched: "leaf_format";
    an_empty_store_is_told_once_which_log_it_succeeds: "put_succession" "succession"
        "update_succession" "remac_succession";
}

async fn the_horizon_begins_at_birth_and_is_moved_by_one_at_a_time(store: &Store) {
    assert_eq!(store.horizon().await.unwrap(), None);
    store
        .claim(StoreMode::Dev, "dev.local/log", at(1))
        .await
        .unwrap();
    assert_eq!(store.horizon().await.unwrap(), Some(at(1)));
    assert!(store.advance_horizon(at(1), at(9)).await.unwrap());
    assert!(
        !store.advance_horizon(at(1), at(8)).await.unwrap(),
        "the horizon has moved in between"
    );
    assert_eq!(store.horizon().await.unwrap(), Some(at(9)));
}

async fn an_accepted_time_sets_back_what_was_dated_ahead(store: &Store) {
    store
        .claim(StoreMode::Dev, "dev.local/log", at(5_000))
        .await
        .unwrap();
    for (digest, seen) in [([1; 32], 90), ([2; 32], 110)] {
        store
            .see_bootstrap(&digest, at(seen), at(seen))
            .await
            .unwrap();
    }
    // A fast clock postponed the check of the first task, and opened the second.
    let mut late = task(2, None);
    (late.opened_at, late.deadline) = (at(9_000), at(12_000));
    late.heard_at = at(9_000);
    seed(
        store,
        Writes {
            tasks: vec![task(1, None), late],
            ..Writes::default()
        },
    )
    .await;
    let ahead = TaskCheck {
        now: at(50_000),
        over_by: at(0),
        retry_at: at(50_030),
        accepted: &[],
        limit: 9,
    };
    let checked = store.check_due_tasks(&ahead).await.unwrap();
    assert_eq!((checked.past_deadline, checked.open.len()), (0, 2));
    assert_eq!(store.accepted_times().await.unwrap(), []);
    let cutoff = cutoff(
        61,
        7,
        Selector::IssuedAfter(at(100)),
        Block::Until(at(99_999)),
    );
    let cutoff = Box::new(cutoff);
    seed(
        store,
        acts(vec![ActWrite::TimeAccepted {
            cutoff,
            accepted: at(100),
        }]),
    )
    .await;
    assert_eq!(store.accepted_times().await.unwrap(), [(7, at(100))]);
    assert_eq!(store.horizon().await.unwrap(), Some(at(100)));
    assert!(
        !store
            .bootstrap_token(&[1; 32])
            .await
            .unwrap()
            .unwrap()
            .ended
    );
    assert!(
        store
            .bootstrap_token(&[2; 32])
            .await
            .unwrap()
            .unwrap()
            .ended
    );
    let check = TaskCheck {
        now: at(100),
        over_by: at(100),
        retry_at: at(130),
        ..ahead
    };
    let due = store.check_due_tasks(&check).await.unwrap().open;
    let due: BTreeMap<_, _> = due
        .iter()
        .map(|due| (due.life.id, due.life.heard_at))
        .collect();
    assert_eq!(
        due,
        BTreeMap::from([(task_id(1), at(0)), (task_id(2), at(100))])
    );
}

async fn a_store_is_marked_at_birth(store: &Store) {
    store
        .claim(StoreMode::Production, "log.example", at(0))
        .await
        .unwrap();
    store
        .claim(StoreMode::Production, "log.example", at(9))
        .await
        .unwrap();
    for (mode, origin) in [
        (StoreMode::Dev, "log.example"),
        (StoreMode::Production, "other.example"),
    ] {
        assert!(matches!(
            store.claim(mode, origin, at(1)).await,
            Err(StoreError::Unfit(_))
        ));
    }
    let clock = store.clock().await.unwrap();
    assert_eq!(clock.is_some(), store.kind() == "postgres");
    if let Store::Postgres(postgres) = store {
        postgres.check_schema().await.unwrap();
        assert!(
            store.connected_brokers().await.unwrap() > 0,
            "this connection has a broker's application name"
        );
    }
}

async fn it_is_known_where_a_checkpoint_was_kept(store: &Store) {
    assert_eq!(store.shared_checkpoint_location().await.unwrap(), None);
    store
        .put_shared_checkpoint_location("nowhere")
        .await
        .unwrap();
    assert_eq!(
        store.shared_checkpoint_location().await.unwrap(),
        None,
        "the store is not claimed yet"
    );
    store
        .claim(StoreMode::Dev, "dev.local/log", at(1))
        .await
        .unwrap();
    assert_eq!(store.shared_checkpoint_location().await.unwrap(), None);
    for place in ["/mnt/one", "/mnt/one", "https://two.example"] {
        store.put_shared_checkpoint_location(place).await.unwrap();
        assert_eq!(
            store.shared_checkpoint_location().await.unwrap().as_deref(),
            Some(place)
        );
    }
}

async fn a_store_is_read_and_neither_made_nor_changed(_store: &Store) {
    let file = fresh_sqlite();
    assert!(Sqlite::open_to_read(file.dir(), 1).await.unwrap().is_none());
    let made = Store::Sqlite(Sqlite::open(file.dir(), 1).await.unwrap());
    made.claim(StoreMode::Dev, "dev.local/log", at(1))
        .await
        .unwrap();
    made.close().await;
    let read = Sqlite::open_to_read(file.dir(), 1).await.unwrap();
    let read = Store::Sqlite(read.unwrap());
    assert_eq!(read.sealed_head().await.unwrap(), None);
    assert!(
        read.put_shared_checkpoint_location("anywhere")
            .await
            .is_err()
    );
    read.close().await;
}

async fn a_log_of_an_earlier_format_is_refused_before_its_schema_is_touched(store: &Store) {
    let body = br#"{"v":1,"event":"genesis"}"#.to_vec();
    let leaves = vec![LeafRow {
        hash: leaf_hash(&body),
        body,
        ..leaf(0)
    }];
    let writes = Writes {
        leaves,
        ..Writes::default()
    };
    let refused = if let Store::Postgres(postgres) = store {
        seed(store, writes).await;
        postgres.check_schema().await.unwrap_err()
    } else {
        let file = fresh_sqlite();
        let made = Store::Sqlite(Sqlite::open(file.dir(), 1).await.unwrap());
        seed(&made, writes).await;
        made.close().await;
        let read = Sqlite::open_to_read(file.dir(), 1).await.unwrap_err();
        assert!(read.to_string().contains("format version 1"), "{read}");
        Sqlite::open(file.dir(), 1).await.unwrap_err()
    };
    assert!(
        refused.to_string().contains("format version 1"),
        "{refused}"
    );
}

async fn an_empty_store_is_told_once_which_log_it_succeeds(store: &Store) {
    let sealed = |document: &str, mac: u8| SealedSuccession {
        document: document.into(),
        mac: vec![mac],
    };
    assert_eq!(store.succession().await.unwrap(), None);
    assert!(store.put_succession(&sealed("one", 1)).await.unwrap());
    assert!(
        store.put_succession(&sealed("one", 2)).await.unwrap(),
        "the same request again"
    );
    assert!(!store.put_succession(&sealed("two", 1)).await.unwrap());
    assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 1)));
    store.remac_succession(&[9], &[3]).await.unwrap();
    store.remac_succession(&[1], &[3]).await.unwrap();
    assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 3)));
    store
        .update_succession(&[1], &sealed("two", 4))
        .await
        .unwrap();
    assert_eq!(
        store.succession().await.unwrap(),
        Some(sealed("one", 3)),
        "the stored succession is another one"
    );
    store
        .update_succession(&[3], &sealed("two", 4))
        .await
        .unwrap();
    assert_eq!(store.succession().await.unwrap(), Some(sealed("two", 4)));
}
