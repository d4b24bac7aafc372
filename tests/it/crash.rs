//! The real binary with PostgreSQL, killed, frozen and cut off at each step of a request.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::fleet::{Fleet, Replica, assert_sound, body, verify};
use crate::support::http::{Answer, Client, assert_problem, try_send};
use crate::support::process::Signal;
use crate::support::proxy::{At, Fault, Mode};
use crate::support::{SOON, until, wait_until};

/// Label of the statement with which the ledger writes every batch.
const BATCH: &str = "ledger_write";

/// Sends a request in the background and returns its result.
fn asking(fleet: &Fleet, replica: &Replica) -> tokio::task::JoinHandle<reqwest::Result<Answer>> {
    let client = Client::new(&format!("http://{}", replica.address));
    let token = fleet.token();
    tokio::spawn(async move {
        let request = client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(token)
            .json(&body());
        try_send(request).await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fate_of_a_commit_whose_answer_is_lost_is_read_not_guessed() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    replica.proxy.arm_for(BATCH, 0, At::Answer, Fault::Cut);
    let granted = replica.ask(&fleet.token()).await.expect(201);
    assert_eq!(replica.proxy.caught(), 1, "the answer was lost");
    verify(&fleet, &replica, &granted).await;
    assert!(fleet.is_good(&replica, &granted).await);
    assert_eq!(fleet.sessions(), 2, "one session for each grant");
    assert_sound(&fleet, &replica, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_or_after_its_commit_it_leaves_nothing_halfway() {
    for (at, sessions) in [(At::Request, 1), (At::Answer, 2)] {
        let (fleet, mut replica) = Fleet::postgres().start().await;
        let first = replica.ask(&fleet.token()).await.expect(201);
        replica.proxy.arm_for(BATCH, 0, at, Fault::Hold);
        let asking = asking(&fleet, &replica);
        replica.proxy.wait_caught(1);
        replica.process.kill();
        replica.proxy.cut();
        assert!(
            asking.await.unwrap().is_err(),
            "the broker was killed before it answered"
        );
        replica.proxy.set(Mode::Pass);
        replica.process.restart();
        replica.process.wait_ready(replica.address);
        assert_eq!(fleet.sessions(), sessions);
        assert_sound(&fleet, &replica, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_frozen_inside_a_batch_stops_the_others_for_seconds_only() {
    let (fleet, frozen) = Fleet::postgres().start().await;
    let other = fleet.replica();
    let first = frozen.ask(&fleet.token()).await.expect(201);
    frozen.proxy.arm_for(BATCH, 0, At::Request, Fault::Hold);
    let asking = asking(&fleet, &frozen);
    frozen.proxy.wait_caught(1);
    frozen.process.signal(Signal::Stop);
    let began = Instant::now();
    let granted = until_granted(&fleet, &other).await;
    // The database frees the lock after 2 s; the rest is a margin for a busy machine.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let others = verify(&fleet, &other, &granted).await;
    frozen.process.signal(Signal::Cont);
    frozen.proxy.release();
    // The woken replica's batch failed with its lock. If the replica still grants, it decided and
    // committed again, after the other replica's entry.
    let answer = asking.await.unwrap().unwrap();
    if answer.status == 201 {
        let own = verify(&fleet, &other, &answer.json()).await;
        assert!(own.index > others.index);
    } else {
        assert_eq!(answer.status, 503);
    }
    until("the woken replica serves again", SOON, async || {
        frozen.ask(&fleet.token()).await.status == 201
    })
    .await;
    assert_sound(&fleet, &frozen, &first).await;
}

async fn until_granted(fleet: &Fleet, replica: &Replica) -> Value {
    for _ in 0..20 {
        let answer = replica.ask(&fleet.token()).await;
        if answer.status == 201 {
            return answer.json();
        }
    }
    panic!("the other replica did not grant in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_store_it_is_closed_and_then_it_opens_again() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    let before = fleet.sessions();
    replica.proxy.set(Mode::Refuse);
    replica.proxy.cut();
    let answer = replica.ask(&fleet.token()).await;
    assert_problem(&answer, 503, "fail-closed");
    until("the replica is not ready", SOON, async || {
        replica.client.get("/readyz").await.status == 503
    })
    .await;
    replica.proxy.set(Mode::Pass);
    until(
        "the replica becomes ready again without traffic",
        SOON,
        async || replica.client.get("/readyz").await.status == 200,
    )
    .await;
    assert_eq!(fleet.sessions(), before, "no session may remain");
    assert_sound(&fleet, &replica, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_request_in_a_batch_fails_alone() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    // The store refuses one row for a reason that the broker cannot check beforehand.
    crate::support::block_on(async || {
        let pool = fleet.database().pool().await;
        sqlx::raw_sql(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.owner_instance = 'poison' THEN RAISE check_violation; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER poison BEFORE INSERT ON task FOR EACH ROW EXECUTE FUNCTION poison()",
        )
        .execute(&pool)
        .await
        .unwrap();
    });
    let tokens: Vec<String> = (0..64)
        .map(|n| {
            let run = if n == 17 { "poison" } else { "run-1" };
            fleet
                .issuer
                .token(serde_json::json!({"sub": "agent:reports", "run": run}))
        })
        .collect();
    let body = body();
    let asks = tokens
        .iter()
        .map(|token| replica.client.post_json(token, "/v1/credentials", &body));
    let answers = futures_util::future::join_all(asks).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(
            answer.status,
            if n == 17 { 503 } else { 201 },
            "{n}: {}",
            answer.text()
        );
    }
    assert_sound(&fleet, &replica, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_any_more_is_dead() {
    let (fleet, replica) = Fleet::postgres().start().await;
    replica.proxy.arm_for(BATCH, 0, At::Request, Fault::Hold);
    let asking = asking(&fleet, &replica);
    until("the batch is held", SOON, async || {
        replica.proxy.caught() == 1
    })
    .await;
    // The client gives up and closes its connection.
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    replica.proxy.release();
    until("the session is recorded and has ended", SOON, async || {
        let listed = replica
            .client
            .get_as(&fleet.admin, "/v1/sessions")
            .await
            .expect(200);
        let sessions = listed["sessions"].as_array().unwrap().clone();
        sessions.len() == 1
            && sessions[0]["state"] == "ended"
            && sessions[0]["end_reason"] == "failed"
    })
    .await;
    assert_eq!(fleet.orphans(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_finishes_what_it_released() {
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let base = format!("http://{}", replica.address);
    let tokens: Vec<String> = (0..200).map(|_| fleet.token()).collect();
    let asking = tokio::spawn(async move {
        let client = Client::new(&base);
        let asks = tokens.iter().map(|token| {
            let request = client
                .request(reqwest::Method::POST, "/v1/credentials")
                .bearer_auth(token)
                .json(&body());
            try_send(request)
        });
        futures_util::future::join_all(asks).await
    });
    wait_until("some are granted", SOON, || fleet.sessions() > 5);
    let status = replica.process.terminate();
    assert_eq!(status.code(), Some(0), "{}", replica.process.stderr());
    let answers = asking.await.unwrap();
    let granted = answers
        .iter()
        .flatten()
        .filter(|answer| answer.status == 201)
        .count();
    let alive = crate::support::block_on(async || {
        let pool = fleet.database().pool().await;
        let count: (i64,) = sqlx::query_as("SELECT count(*) FROM session WHERE state = 'active'")
            .fetch_one(&pool)
            .await
            .unwrap();
        count.0
    });
    assert_eq!(
        i64::try_from(granted).unwrap(),
        alive,
        "only sessions whose credential was received are active"
    );
    assert_eq!(fleet.orphans(), (0, 0));
}
