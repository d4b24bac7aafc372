//! Database failovers under replicas of the real binary: two PostgreSQL servers that both accept
//! writes, an old primary that returns as a standby, and a primary without its standby. The tests
//! check the answers about a revoked credential: no replica may call it active for more than two
//! seconds.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Answer, try_send};
use crate::support::standby::Pair;
use crate::support::{SOON, until};

/// Maximum age of an answer from before the revocation.
const STALE: Duration = Duration::from_secs(2);

/// The read lease of these replicas, in seconds.
const LEASE: u64 = 2;

/// Whether a replica says that a credential is active; `None` if it does not answer the question.
async fn reported_active(fleet: &Fleet, replica: &Replica, granted: &Value) -> Option<bool> {
    let answer = introspect(fleet, replica, granted).await?;
    match answer.status {
        200 => Some(answer.json()["active"] == true),
        503 => {
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            None
        }
        other => panic!("{other}: {}", answer.text()),
    }
}

async fn introspect(fleet: &Fleet, replica: &Replica, granted: &Value) -> Option<Answer> {
    let token = granted["credential"]["access_token"].as_str().unwrap();
    let request = replica
        .client
        .request(Method::POST, "/oauth2/introspect")
        .bearer_auth(&fleet.admin)
        .form(&[("token", token)]);
    try_send(request).await.ok()
}

/// Revokes everything at a replica, with retries. Returns the time of the answer, which must not
/// call any session active.
async fn revoke_all(fleet: &Fleet, replica: &Replica) -> Instant {
    let begin = Instant::now();
    loop {
        let body = json!({"selector": {"all": true}, "reason": "a test", "block_seconds": 0});
        let request = replica
            .client
            .request(Method::POST, "/v1/revocations")
            .bearer_auth(&fleet.admin)
            .json(&body);
        if let Ok(answer) = try_send(request).await
            && answer.status < 300
        {
            let answered = Instant::now();
            let told = answer.json();
            for session in told["sessions"].as_array().into_iter().flatten() {
                assert_ne!(session["state"], "active", "{told}");
            }
            return answered;
        }
        assert!(
            begin.elapsed() < 2 * SOON,
            "the revocation did not succeed in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Polls the replicas until each has said that the credential is not active, and at least for as
/// long as an old answer may be allowed. No answer may be too old.
async fn assert_noticed(fleet: &Fleet, replicas: &[&Replica], granted: &Value, revoked: Instant) {
    let mut noticed = vec![false; replicas.len()];
    while revoked.elapsed() < 3 * STALE || noticed.contains(&false) {
        for (replica, noticed) in replicas.iter().zip(&mut noticed) {
            let begun = revoked.elapsed();
            match reported_active(fleet, replica, granted).await {
                Some(true) => assert!(
                    begun < STALE,
                    "{begun:?} after the revocation was answered, {} calls it good",
                    replica.address
                ),
                Some(false) => *noticed = true,
                None => {}
            }
        }
        assert!(
            revoked.elapsed() < 2 * SOON,
            "the revocation was not noticed: {noticed:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn granted(fleet: &Fleet, replicas: &[&Replica]) -> Value {
    let granted = replicas[0].ask(&fleet.token()).await.expect(201);
    for replica in replicas {
        until("every replica calls it active", SOON, async || {
            reported_active(fleet, replica, &granted).await == Some(true)
        })
        .await;
    }
    granted
}

/// The configuration tables of replicas with or without a shared checkpoint.
fn tables(place: Option<&tempfile::TempDir>) -> String {
    let shared = place.map_or_else(String::new, |directory| {
        let file = directory.path().join("place");
        format!(
            "[ledger.shared_checkpoint]\nfile = \"{}\"\n",
            file.display()
        )
    });
    format!("[store.postgres]\nread_lease_seconds = {LEASE}\n{shared}")
}

/// Whether a replica is not ready, for a reason that contains these words.
async fn is_unready_for(replica: &Replica, words: &str) -> bool {
    let answer = replica.client.try_get("/readyz").await;
    answer.is_ok_and(|answer| answer.status == 503 && answer.text().contains(words))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_on_a_second_primary_calls_nothing_good_that_was_revoked() {
    // The old primary commits without a standby, so its commits do not show that it was replaced.
    let pair = Pair::start();
    let place = tempfile::tempdir().unwrap();
    let (fleet, a) = Fleet::on_database(pair.database())
        .tables(&tables(Some(&place)))
        .start()
        .await;
    let idle = fleet.replica();
    let granted = granted(&fleet, &[&a, &idle]).await;

    pair.promote();
    for replica in [&a, &idle] {
        replica.proxy.lead_to(pair.standby_address());
    }
    // One replica loses its connections. The idle one keeps all of its own, to the old primary.
    a.proxy.cut();
    let revoked = revoke_all(&fleet, &a).await;
    assert_noticed(&fleet, &[&a, &idle], &granted, revoked).await;
    // The idle replica does not append to the old primary either: it continues with the new
    // primary's log.
    let begin = Instant::now();
    let earlier = loop {
        let answer = idle.ask(&fleet.token()).await;
        if answer.status == 201 {
            break answer.json();
        }
        assert!(
            begin.elapsed() < 2 * SOON,
            "the replica grants nothing for too long"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let receipt = &earlier["receipt"];
    let path = format!("/v1/ledger/entries/{}", receipt["index"]);
    until("the other replica has the same leaf", SOON, async || {
        let entry = a.client.get_as(&fleet.admin, &path).await;
        entry.status == 200 && entry.json()["leaf"] == receipt["leaf"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_stays_on_the_old_primary_is_not_asked_when_the_ledger_has_moved() {
    // Commits on the old primary wait for ever, and reads there still work. There is no shared
    // checkpoint that could show the difference.
    let pair = Pair::start_synchronous();
    let (fleet, a) = Fleet::on_database(pair.database())
        .tables(&tables(None))
        .start()
        .await;
    let idle = fleet.replica();
    let granted = granted(&fleet, &[&a, &idle]).await;

    pair.promote();
    for replica in [&a, &idle] {
        replica.proxy.lead_to(pair.standby_address());
    }
    let revoked = revoke_all(&fleet, &a).await;
    assert_noticed(&fleet, &[&a, &idle], &granted, revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_primary_back_as_a_standby_is_asked_nothing() {
    let pair = Pair::start();
    let (fleet, a) = Fleet::on_database(pair.database())
        .tables(&tables(None))
        .start()
        .await;
    let other = fleet.replica();
    let granted = granted(&fleet, &[&a, &other]).await;

    pair.promote();
    a.proxy.lead_to(pair.standby_address());
    a.proxy.cut();
    // The idle replica's connections keep their address, where a standby is now.
    pair.return_primary();
    until("the replica is not ready", SOON, async || {
        is_unready_for(&other, "in recovery").await
    })
    .await;
    // The standby has all of the primary's data, but the replica must not read from it.
    assert_eq!(reported_active(&fleet, &other, &granted).await, None);
    let revoked = revoke_all(&fleet, &a).await;
    while revoked.elapsed() < 2 * STALE {
        assert_eq!(reported_active(&fleet, &other, &granted).await, None);
        assert_ne!(other.ask(&fleet.token()).await.status, 201);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    other.proxy.lead_to(pair.standby_address());
    assert_noticed(&fleet, &[&a, &other], &granted, revoked).await;
    until("the replica serves again", SOON, async || {
        other.ask(&fleet.token()).await.status == 201
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_standby_a_primary_is_read_for_no_longer_than_the_lease() {
    let pair = Pair::start_synchronous();
    let (fleet, a) = Fleet::on_database(pair.database())
        .tables(&tables(None))
        .start()
        .await;
    let granted = granted(&fleet, &[&a]).await;

    pair.stop_standby();
    let gone = Instant::now();
    let mut refused = 0;
    // Collect several refusals: one alone could be a passing fault.
    while refused < 20 {
        let begun = gone.elapsed();
        match reported_active(&fleet, &a, &granted).await {
            // The credential is active. After the lease's end, no replica may say so.
            Some(true) => assert!(begun <= Duration::from_secs(LEASE), "{begun:?}"),
            Some(false) => panic!("the credential was never revoked"),
            None => refused += 1,
        }
        assert!(begun < 2 * SOON, "the replica answered for too long");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The reason depends on whether the ledger tried to append meanwhile.
    until("the replica is not ready", SOON, async || {
        is_unready_for(&a, "synchronous commit").await || is_unready_for(&a, "ledger").await
    })
    .await;

    pair.restart_standby();
    until("the replica reads again", 2 * SOON, async || {
        reported_active(&fleet, &a, &granted).await == Some(true)
    })
    .await;
}

/// The size in the shared checkpoint.
fn shared_size(place: &tempfile::TempDir) -> u64 {
    let note = std::fs::read_to_string(place.path().join("place")).unwrap();
    note.lines().nth(1).unwrap().parse().unwrap()
}

/// A synchronous pair and a replica that has published all of its log. The standby is then stopped.
async fn without_standby(place: &tempfile::TempDir) -> (Pair, Fleet, Replica, Value, u64) {
    let pair = Pair::start_synchronous();
    let (fleet, replica) = Fleet::on_database(pair.database())
        .tables(&tables(Some(place)))
        .start()
        .await;
    let granted = granted(&fleet, &[&replica]).await;
    let size = granted["receipt"]["tree_size"].as_u64().unwrap();
    until("its leaf is published", SOON, async || {
        shared_size(place) >= size
    })
    .await;
    pair.stop_standby();
    let size = shared_size(place);
    (pair, fleet, replica, granted, size)
}

/// Restarts the standby and waits until the replica grants and publishes again.
async fn serves_again(pair: &Pair, fleet: &Fleet, replica: &Replica, place: &tempfile::TempDir) {
    pair.restart_standby();
    let size = shared_size(place);
    until("the replica grants again", 3 * SOON, async || {
        replica.ask(&fleet.token()).await.status == 201
    })
    .await;
    until("the new leaf is published", SOON, async || {
        shared_size(place) > size
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_that_only_a_crash_made_visible_is_neither_released_nor_published() {
    let place = tempfile::tempdir().unwrap();
    let (pair, fleet, replica, _, size) = without_standby(&place).await;
    let token = fleet.token();
    let asking = replica.ask(&token);
    let crashing = async {
        until("its COMMIT waits for the standby", SOON, async || {
            pair.waiting_appends() > 0
        })
        .await;
        pair.crash_primary();
    };
    let (answer, ()) = tokio::join!(asking, crashing);
    assert_eq!(answer.status, 503, "{}", answer.text());
    // The leaf is not released by a later append or at a start either.
    let later = replica.ask(&fleet.token()).await;
    assert_eq!(later.status, 503, "{}", later.text());
    assert_eq!(shared_size(&place), size);
    serves_again(&pair, &fleet, &replica, &place).await;
    // The evidence of the lost request is used up.
    assert_eq!(replica.ask(&token).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cancelled_wait_for_the_standby_is_no_acknowledgement() {
    let place = tempfile::tempdir().unwrap();
    let (pair, fleet, replica, granted, size) = without_standby(&place).await;
    let begin = Instant::now();
    let (mut cancelled, mut refused) = (0, 0);
    while cancelled < 10 || refused < 20 || begin.elapsed() < 3 * Duration::from_secs(LEASE) {
        let token = fleet.token();
        let asking = replica.ask(&token);
        let saying = async {
            let begun = begin.elapsed();
            match reported_active(&fleet, &replica, &granted).await {
                Some(true) => assert!(begun <= Duration::from_secs(LEASE), "{begun:?}"),
                Some(false) => panic!("the credential was never revoked"),
                None => refused += 1,
            }
        };
        let cancelling = async {
            for _ in 0..5 {
                cancelled += pair.cancel_waits();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let asked = async {
            // A request without an answer within this time has released nothing either.
            tokio::time::timeout(Duration::from_secs(2), asking).await
        };
        let (asked, (), ()) = tokio::join!(asked, saying, cancelling);
        if let Ok(answer) = asked {
            assert_ne!(answer.status, 201, "{}", answer.text());
        }
        assert!(
            begin.elapsed() < 4 * SOON,
            "{cancelled} cancelled, {refused} refused"
        );
    }
    assert_eq!(shared_size(&place), size);
    serves_again(&pair, &fleet, &replica, &place).await;
}
