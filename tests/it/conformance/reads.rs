//! What is read of a store that may be behind, and what the sweeper searches by.

use std::time::Duration;

use super::*;
use crate::support::{SOON, until};

cases! {
    ["fence" "ledger_connection"]
    async fn a_store_that_shows_fewer_leaves_than_are_known_is_not_asked(store: &Store) {
        seed(store, Writes { leaves: vec![leaf(0), leaf(1)], head: Some((head(2), batch(1))), ..Writes::default() }).await;
        store.note_committed(2);
        assert_eq!(store.task(task_id(1)).await.unwrap(), None);
        store.note_committed(3);
        if store.kind() == "sqlite" {
            // One process has written all that there is.
            assert_eq!(store.task(task_id(1)).await.unwrap(), None);
            return;
        }
        for refused in [store.task(task_id(1)).await.map(drop), store.head().await.map(drop)] {
            let Err(StoreError::NotPrimary(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains("shows 2 leaves, and 3"), "{why}");
        }
        // It catches up; by the ledger's own connection it was to be had all the while.
        seed(store, Writes { leaves: vec![leaf(2)], head: Some((head(3), batch(2))), ..Writes::default() }).await;
        until("it is asked again", SOON, async || store.head().await.is_ok_and(|it| it == Some(head(3)))).await;
        assert_eq!(store.task(task_id(1)).await.unwrap(), None);
    }

    ["read_lease"]
    async fn what_decides_validity_is_read_under_a_lease(store: &Store) {
        let bound = Duration::from_millis(50);
        store.check_read_lease().unwrap();
        let Some(mut lease) = store.hold_read_lease(bound, 7).await.unwrap() else {
            assert_eq!(store.kind(), "sqlite");
            assert_eq!(store.read_lease_age(), Duration::ZERO);
            return;
        };
        tokio::time::sleep(2 * bound).await;
        assert!(store.read_lease_age() > bound);
        for refused in [store.task(task_id(1)).await.map(drop), store.check_read_lease()] {
            let Err(StoreError::NotPrimary(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains("no synchronous commit"), "{why}");
        }
        store.leaf(0).await.unwrap();
        let mut read = store.task(task_id(1)).await;
        // A busy machine may be slower than such a bound.
        for _ in 0..1_000 {
            lease.renew().await.unwrap();
            read = store.task(task_id(1)).await;
            if read.is_ok() {
                break;
            }
        }
        assert_eq!(read.unwrap(), None);
    }
}
