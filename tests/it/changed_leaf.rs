//! Readers do not get a leaf whose body was changed in the store.

use sqlx::{Connection as _, SqliteConnection};
use taskpass::broker::BrokerError;
use taskpass::broker::administration::records::Under;
use taskpass::store::StoreError;

use crate::support::rig::{Kind, Rig, ask};

async fn begin(kind: Kind) -> (Kind, Rig) {
    (kind, Rig::on(kind).start().await)
}

/// Changes one letter in the body of each permit's leaf.
async fn change_permits(kind: Kind, rig: &Rig) {
    let changed = match kind {
        Kind::Sqlite => {
            let file = rig.directory().join("data/taskpass.sqlite");
            let url = format!("sqlite://{}", file.display());
            let mut writer = SqliteConnection::connect(&url).await.unwrap();
            let sql = "UPDATE leaf_body SET body = CAST(replace(CAST(body AS TEXT), \
                       '\"permit\"', '\"permix\"') AS BLOB) WHERE body LIKE '%\"permit\"%'";
            let done = sqlx::query(sql).execute(&mut writer).await.unwrap();
            done.rows_affected()
        }
        Kind::Postgres => {
            let pool = rig.database().pool().await;
            let sql = "UPDATE leaf_body SET body = convert_to(replace(convert_from(body, 'UTF8'), \
                       '\"permit\"', '\"permix\"'), 'UTF8') \
                       WHERE convert_from(body, 'UTF8') LIKE '%\"permit\"%'";
            let done = sqlx::query(sql).execute(&pool).await.unwrap();
            pool.close().await;
            done.rows_affected()
        }
    };
    assert_eq!(changed, 1);
}

on_both_stores! {
    fn one_changed_byte_of_a_leaf_is_noticed_by_every_reader;
}

async fn one_changed_byte_of_a_leaf_is_noticed_by_every_reader(given: (Kind, Rig)) {
    let (kind, rig) = given;
    let issued = rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let (store, index) = (rig.broker.core.store(), issued.receipt.index);
    change_permits(kind, &rig).await;
    let size = rig.broker.core.ledger().basis();
    let read = [
        store.leaf(index).await.map(drop),
        store.leaves(0, size).await.map(drop),
        store.decisions(0, size, 100).await.map(drop),
    ];
    for read in read {
        let Err(StoreError::Forged(told)) = read else {
            panic!("{read:?}");
        };
        assert!(
            told.contains(&format!("leaf {index} was changed")),
            "{told}"
        );
    }
    let told = rig
        .broker
        .administration
        .decision(&rig.admin(), issued.decision.id, Under::Newest)
        .await;
    assert!(matches!(told, Err(BrokerError::FailClosed(_))), "{told:?}");
    // The neighbouring leaves stay readable, and the log accepts new entries.
    store.leaf(index - 1).await.unwrap();
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
}
