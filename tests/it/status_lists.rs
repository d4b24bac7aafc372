//! Status lists: when a server that polls learns of a revocation.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::read::ZlibDecoder;
use serde_json::{Value, json};
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::revocability::RevocationClass;
use taskpass::domain::session::SessionState;
use taskpass::domain::task::TaskEnd;
use taskpass::store::Store;

use crate::support::http::assert_problem;
use crate::support::keys::{peek, verifies};
use crate::support::rig::{Kind, Rig, ask, claims, job};

async fn rig(kind: Kind) -> Rig {
    let polled = json!({
        "name": "polled-api", "kind": "jwt", "owner": "orders", "audience": "https://polled.example",
        "actions": ["orders:read"], "locations": ["https://polled.example"],
        "verification": "status_list"
    });
    Rig::on(kind).resources([polled]).start().await
}

async fn issued(rig: &Rig) -> Issued {
    let request = CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "polled-api".into(),
        ..ask(&["orders:read"])
    };
    rig.issue("agent:reports", request).await.unwrap()
}

/// The list that a token names, verified as a server would verify it, and the token's bit.
async fn polled(rig: &Rig, issued: &Issued) -> (Value, bool) {
    let place = &claims(issued)["status"]["status_list"];
    let uri = place["uri"].as_str().unwrap();
    let number = uri.strip_prefix("http://127.0.0.1:7070/status/").unwrap();
    let list = rig
        .broker
        .verification
        .status_list(number.parse().unwrap())
        .await
        .unwrap();
    let (header, claims) = peek(&list.token);
    assert_eq!(header["typ"], "statuslist+jwt");
    let jwks = rig.broker.keys.published_jwks();
    let keys = jwks["keys"].as_array().unwrap();
    assert!(keys.iter().any(|jwk| verifies(&list.token, jwk)));
    assert_eq!(
        claims["sub"], uri,
        "a list is valid only under its own name"
    );
    let now = rig.now().seconds();
    assert!(claims["iat"].as_i64().unwrap() <= now && now < claims["exp"].as_i64().unwrap());
    assert_eq!(claims["status_list"]["bits"], 1);
    let compressed = URL_SAFE_NO_PAD
        .decode(claims["status_list"]["lst"].as_str().unwrap())
        .unwrap();
    let mut bits = Vec::new();
    ZlibDecoder::new(&compressed[..])
        .take(1 << 20)
        .read_to_end(&mut bits)
        .unwrap();
    let index = usize::try_from(place["idx"].as_u64().unwrap()).unwrap();
    (claims, bits[index / 8] >> (index % 8) & 1 == 1)
}

async fn state(rig: &Rig, issued: &Issued) -> SessionState {
    let view = rig
        .broker
        .core
        .store()
        .session_view(issued.session.id)
        .await
        .unwrap()
        .unwrap();
    view.status_at(rig.now()).state
}

async fn a_revocation_is_in_the_list_within_its_bound(kind: Kind) {
    let rig = rig(kind).await;
    // Go to the start of a list's period, so that the list before the revocation is as old as
    // possible.
    let into = u64::try_from(rig.now().seconds() % 10).unwrap();
    rig.clock.advance(10 - into);
    let (revoked, completed, alive) = (issued(&rig).await, issued(&rig).await, issued(&rig).await);
    assert_eq!(
        revoked.session.revocability.class,
        RevocationClass::Bounded { bound_seconds: 30 }
    );
    assert_ne!(
        claims(&revoked)["status"]["status_list"]["idx"],
        claims(&completed)["status"]["status_list"]["idx"]
    );
    let (before, bit) = polled(&rig, &revoked).await;
    assert!(!bit);
    rig.revoke(revoked.session.id).await;
    rig.end(&completed, TaskEnd::Complete).await.unwrap();
    // Lists from before the revocation expire within the bound.
    let since = rig.now().seconds();
    assert!(before["exp"].as_i64().unwrap() <= since + 30);
    // The broker does not confirm the end while an older list may still be accepted.
    assert_eq!(state(&rig, &revoked).await, SessionState::Ending);
    assert_eq!(state(&rig, &completed).await, SessionState::Ending);
    rig.clock.advance(10);
    assert!(polled(&rig, &revoked).await.1);
    assert!(polled(&rig, &completed).await.1);
    assert!(!polled(&rig, &alive).await.1);
    rig.clock.advance(19);
    taskpass::sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(state(&rig, &revoked).await, SessionState::Ending);
    assert_eq!(state(&rig, &completed).await, SessionState::Ending);
    rig.clock.advance(60);
    taskpass::sweep::sweep(&rig.broker, rig.now()).await;
    assert_eq!(state(&rig, &revoked).await, SessionState::Ended);
    assert_eq!(state(&rig, &completed).await, SessionState::Ended);
    assert_eq!(state(&rig, &alive).await, SessionState::Active);
    assert!(polled(&rig, &revoked).await.1 && !polled(&rig, &alive).await.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_in_the_list_within_its_bound_on_sqlite() {
    a_revocation_is_in_the_list_within_its_bound(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_in_the_list_within_its_bound_on_postgresql() {
    a_revocation_is_in_the_list_within_its_bound(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_served_to_anybody_and_none_is_made_up() {
    let (_fleet, replica) = crate::support::fleet::Fleet::sqlite().start().await;
    let list = replica.client.get("/status/0").await;
    assert_eq!(list.status, 200);
    assert_eq!(
        list.header("content-type"),
        Some("application/statuslist+jwt")
    );
    assert!(list.header("cache-control").unwrap().contains("max-age="));
    assert_eq!(list.header("access-control-allow-origin"), Some("*"));
    assert_eq!(peek(&list.text()).0["typ"], "statuslist+jwt");
    for missing in ["/status/1", "/status/x", "/status/18446744073709551615"] {
        assert_problem(&replica.client.get(missing).await, 404, "not-found");
    }
    let history = replica.client.get("/status/0?time=1").await;
    assert_problem(&history, 501, "not-implemented");
}

/// Runs a statement about one session.
async fn change(rig: &Rig, statement: &'static str, issued: &Issued) {
    let changed = match rig.broker.core.store() {
        Store::Postgres(_) => {
            let mut database = rig.database().connect().await;
            let query = sqlx::query(statement).bind(issued.session.id);
            let ran = query.execute(&mut database).await;
            ran.unwrap().rows_affected()
        }
        Store::Sqlite(database) => {
            let query = sqlx::query(statement).bind(issued.session.id);
            let ran = query.execute(database.writer()).await;
            ran.unwrap().rows_affected()
        }
    };
    assert_eq!(changed, 1, "{statement}");
}

async fn begin(kind: Kind) -> Rig {
    rig(kind).await
}

on_both_stores! {
    fn a_revoked_token_whose_row_is_gone_stays_invalid_in_its_list;
    fn a_list_calls_nothing_invalid_that_is_issued_after_it_was_built;
    fn a_list_that_cannot_be_built_to_its_end_is_not_served;
}

async fn a_revoked_token_whose_row_is_gone_stays_invalid_in_its_list(rig: Rig) {
    let (revoked, pruned, alive) = (issued(&rig).await, issued(&rig).await, issued(&rig).await);
    rig.revoke(revoked.session.id).await;
    change(&rig, "DELETE FROM session WHERE id = $1", &revoked).await;
    // A missing row counts as invalid, regardless of its session's state.
    change(&rig, "DELETE FROM session WHERE id = $1", &pruned).await;
    assert!(polled(&rig, &revoked).await.1);
    assert!(polled(&rig, &pruned).await.1);
    assert!(!polled(&rig, &alive).await.1);
}

async fn a_list_calls_nothing_invalid_that_is_issued_after_it_was_built(rig: Rig) {
    // Go to the start of a list's period, so that the second answer is the same list.
    let into = u64::try_from(rig.now().seconds() % 10).unwrap();
    rig.clock.advance(10 - into);
    let before = issued(&rig).await;
    let (list, bit) = polled(&rig, &before).await;
    assert!(!bit);
    let after = issued(&rig).await;
    let (same, bit) = polled(&rig, &after).await;
    assert_eq!(
        (same, bit),
        (list, false),
        "its index was beyond the log's end"
    );
    // The next list contains the session, and its end.
    rig.revoke(after.session.id).await;
    rig.clock.advance(10);
    assert!(polled(&rig, &after).await.1);
    assert!(!polled(&rig, &before).await.1);
}

async fn a_list_that_cannot_be_built_to_its_end_is_not_served(rig: Rig) {
    let (alive, broken) = (issued(&rig).await, issued(&rig).await);
    // Of a derived session the whole row is read. It is its own parent here.
    change(
        &rig,
        "UPDATE session SET policies = '{', parent_id = id WHERE id = $1",
        &broken,
    )
    .await;
    let built = rig.broker.verification.status_list(0).await;
    assert!(
        matches!(built, Err(BrokerError::FailClosed(_))),
        "{built:?}"
    );
    change(
        &rig,
        "UPDATE session SET policies = '[]', parent_id = NULL WHERE id = $1",
        &broken,
    )
    .await;
    assert!(!polled(&rig, &alive).await.1, "a failure is not cached");
}
