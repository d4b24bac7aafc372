//! The list of denied sessions is built from the current registration and from cutoffs that a
//! broker wrote.

use serde_json::json;
use sqlx::Connection as _;
use taskpass::clock::Timestamp;
use taskpass::store::{Store, StoreError};

use crate::aws_revocation::{Aws, REVOKER, ROLE, activate, issued, pass, revoke_resource, rig};
use crate::support::rig::{Kind, Rig};

/// Changes a cutoff's row, without the broker, so that it covers the whole role.
async fn forge_blanket_deny(rig: &Rig) {
    let text = "UPDATE cutoff SET deny_policy_target = $1";
    let forged = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let url = rig.database().url();
            let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
            let done = sqlx::query(text).bind(ROLE).execute(&mut database).await;
            database.close().await.unwrap();
            done.unwrap().rows_affected()
        }
        Store::Sqlite(sqlite) => {
            let done = sqlx::query(text).bind(ROLE).execute(sqlite.writer()).await;
            done.unwrap().rows_affected()
        }
    };
    assert_eq!(forged, 1);
}

fn begin(kind: Kind) -> std::future::Ready<Kind> {
    std::future::ready(kind)
}

on_both_stores! {
    fn a_forged_blanket_deny_denies_nobody;
    fn a_list_is_written_as_the_role_that_is_registered_now;
}

async fn a_forged_blanket_deny_denies_nobody(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 200).await;
    issued(&rig, 1).await;
    let store = rig.broker.core.store();
    let since = Timestamp::EPOCH;
    let done = rig
        .broker
        .revocation
        .revoke_many(&rig.admin(), revoke_resource(false))
        .await;
    done.unwrap();
    assert_eq!(store.last_blanket_deny(ROLE, since).await.unwrap(), None);
    forge_blanket_deny(&rig).await;
    let read = store.last_blanket_deny(ROLE, since).await;
    assert!(matches!(read, Err(StoreError::Forged(_))), "{read:?}");
    // The list does not contain the forged cutoff either.
    pass(&rig, 3).await;
    let document = aws.with(|iam| iam.document.clone()).unwrap_or_default();
    assert!(!document.contains("aws:TokenIssueTime"), "{document}");
}

async fn a_list_is_written_as_the_role_that_is_registered_now(kind: Kind) {
    let aws = Aws::start().await;
    let rig = rig(kind, &aws.server.uri(), 200).await;
    let all = issued(&rig, 2).await;
    rig.revoke(all[0].session.id).await;
    pass(&rig, 3).await;
    let other = "arn:aws:iam::123456789012:role/other-revoker";
    activate(&rig, |resource| {
        resource["aws"]["revocation"]["role_arn"] = json!(other);
    })
    .await;
    rig.revoke(all[1].session.id).await;
    pass(&rig, 3).await;
    assert_eq!(aws.named().0.len(), 2);
    let own = aws.with(|iam| iam.own.clone());
    let writers: Vec<&str> = own.iter().map(|call| call["RoleArn"].as_str()).collect();
    assert_eq!(writers, [REVOKER, other]);
}
