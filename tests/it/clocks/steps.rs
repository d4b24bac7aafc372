//! The steps of the tests with a wrong clock, and their checks.

use taskpass::attest::AttestError;
use taskpass::broker::administration::time::Accepted;
use taskpass::broker::fail_closed::FailClosed;
use taskpass::broker::issuance::Issued;
use taskpass::clock::Timestamp;
use taskpass::store::Store;
use taskpass::sweep::prune::Pruner;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::support::rig::access_token;

/// Runs every worker once a second for as long as the clock is wrong.
pub(super) async fn work(rig: &Rig) {
    let mut pruner = Pruner::new(CancellationToken::new());
    for _ in 0..WRONG_SECONDS {
        rig.clock.advance(1);
        sweep::sweep(&rig.broker, rig.now()).await;
        let horizon = rig.broker.core.horizon().await.unwrap();
        let pruned = pruner.round(&rig.broker, RETENTION, horizon).await;
        pruned.failed.unwrap();
    }
}

/// Restarts the broker with the clock as it is, and activates the same generation.
pub(super) async fn start(rig: &mut Rig) {
    rig.reopen().await.unwrap();
    rig.broker.generations.follow().await.unwrap();
}

pub(super) async fn count(rig: &Rig, sql: &'static str) -> i64 {
    let (count,): (i64,) = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut database = rig.database().connect().await;
            sqlx::query_as(sql).fetch_one(&mut database).await
        }
        Store::Sqlite(database) => sqlx::query_as(sql).fetch_one(database.readers()).await,
    }
    .unwrap();
    count
}

/// The counts of rows that a wrong clock must not delete.
pub(super) async fn kept(rig: &Rig) -> [i64; 6] {
    [
        count(rig, "SELECT count(*) FROM one_time").await,
        count(rig, "SELECT count(*) FROM session").await,
        count(rig, "SELECT count(*) FROM task WHERE state = 'open'").await,
        count(rig, "SELECT count(*) FROM leaf_body").await,
        count(rig, "SELECT count(*) FROM leaf_opening").await,
        count(
            rig,
            "SELECT count(*) FROM signing_key WHERE length(sealed) > 0",
        )
        .await,
    ]
}

pub(super) async fn size(rig: &Rig) -> u64 {
    rig.broker.core.ledger().head().await.unwrap().unwrap().size
}

pub(super) fn reason() -> AcceptTimeRequest {
    AcceptTimeRequest {
        time: Timestamp::EPOCH,
        reason: "the battery was dead".into(),
    }
}

pub(super) async fn accept(rig: &Rig) -> Result<Accepted, BrokerError> {
    let ask = AcceptTimeRequest {
        time: rig.now(),
        ..reason()
    };
    rig.broker
        .administration
        .accept_time(&rig.admin(), ask)
        .await
}

pub(super) fn assert_closed<T>(result: Result<T, BrokerError>) {
    match result {
        Err(BrokerError::FailClosed(why)) => {
            assert!(
                matches!(&why, FailClosed::Host(why) if why.contains("the clock is in doubt")),
                "{why}"
            );
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the broker accepted the request while its clock was in doubt"),
    }
}

/// The broker refuses every request, and its workers record nothing.
pub(super) async fn assert_all_closed(rig: &Rig, given: &Issued) {
    let before = (size(rig).await, kept(rig).await);
    assert!(rig.broker.health.unready().unwrap().starts_with("clock: "));
    assert_closed(rig.issue("agent:reports", ask(&["orders:read"])).await);
    let admin = rig.admin();
    assert_closed(
        rig.broker
            .verification
            .introspect(&admin, &access_token(given))
            .await,
    );
    assert_closed(
        rig.broker
            .verification
            .list_sessions(&admin, SessionFilter::default())
            .await,
    );
    assert_closed(rig.broker.verification.status_list(0).await);
    assert_closed(rig.heartbeat(given).await);
    assert_closed(rig.delegate(given, "agent:child").await);
    assert_closed(
        rig.end(given, taskpass::domain::task::TaskEnd::Complete)
            .await,
    );
    assert_closed(
        rig.broker
            .revocation
            .revoke_session(&admin, given.session.id)
            .await,
    );
    assert_closed(rig.broker.signing_keys.rotate_keys(&admin).await);
    work(rig).await;
    assert_eq!((size(rig).await, kept(rig).await), before);
}

pub(super) async fn is_replayed(rig: &Rig, token: &str) -> bool {
    let again = rig
        .broker
        .issuance
        .issue(bearer(token), ask(&["orders:read"]))
        .await;
    matches!(again, Err(BrokerError::Replayed))
}

pub(super) fn assert_use_forgotten<T>(result: Result<T, BrokerError>) {
    match result {
        Err(BrokerError::Attestation(failure)) => {
            assert_eq!(failure.error, AttestError::UseForgotten);
            assert!(
                failure.for_caller().is_some(),
                "the caller learns the reason"
            );
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the broker accepted evidence whose use it no longer remembers"),
    }
}

/// A credential of a new task that lives for an hour, and the attestation of its request.
pub(super) async fn issued(rig: &Rig) -> (Issued, String) {
    let token = rig.token("agent:reports", json!({}));
    let asked = rig
        .broker
        .issuance
        .issue(bearer(&token), ask(&["orders:read"]));
    (asked.await.unwrap(), token)
}
