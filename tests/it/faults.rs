//! A store that is down, full, slow or locked, and more waiting than the broker takes: 503 within
//! the stated limits, nothing released, nothing half-alive, and all well again without a restart.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};
use taskpass::broker::BrokerError;
use taskpass::domain::decision::{Refusal, RefusalCode};
use taskpass::domain::leaf::Opening;
use taskpass::domain::limits::{
    MAX_QUEUE_BYTES, MAX_QUEUE_CONSUMPTIONS, MAX_QUEUE_ENTRIES, MAX_UNRECORDED_EVIDENCE,
};
use taskpass::domain::workload::OneTime;
use taskpass::ids::DecisionId;
use taskpass::ledger::entry::{Decide, Decided, Entry, OneTimeUse, RefusalRecord, Request};
use taskpass::ledger::{AppendError, Appended};
use taskpass::store::Store;
use taskpass::store::sessions::SessionFilter;

use crate::support::fleet::{Fleet, Replica, assert_sound, body};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::proxy::Mode;
use crate::support::rig::{self, Kind, Rig};
use crate::support::{SOON, until};

/// How long any request waits at most: the default of `request_timeout_seconds`.
const PATIENCE: Duration = Duration::from_secs(15);

/// A request's limit for tests that want to see it.
const HASTY: &str = "request_timeout_seconds = 2\nheader_timeout_seconds = 2";

/// What every door answers that needs the store: all at once, each within the limit.
async fn ask_everywhere(fleet: &Fleet, replica: &Replica, granted: &Value) -> Vec<Answer> {
    let client = &replica.client;
    let token = granted["credential"]["access_token"].as_str().unwrap();
    let task = granted["task"]["id"].as_str().unwrap();
    let handle = granted["task"]["handle"].as_str().unwrap();
    let post = |path: &str| client.request(reqwest::Method::POST, path);
    let session = granted["session"]["id"].as_str().unwrap();
    let all = json!({"selector": {"all": true}, "reason": "drill"});
    let requests = [
        post("/v1/credentials")
            .bearer_auth(fleet.token())
            .json(&body()),
        post("/v1/tasks")
            .bearer_auth(fleet.token())
            .json(&json!({"type": "job"})),
        post(&format!("/v1/tasks/{task}/complete"))
            .header("authorization", format!("Handle {handle}")),
        post(&format!("/v1/sessions/{session}/revoke"))
            .bearer_auth(&fleet.admin)
            .json(&json!({"reason": "drill"})),
        post("/v1/revocations").bearer_auth(&fleet.admin).json(&all),
        post("/oauth2/introspect")
            .bearer_auth(&fleet.admin)
            .form(&[("token", token)]),
    ];
    let began = Instant::now();
    let answers = futures_util::future::join_all(requests.map(send)).await;
    // A moment more for the way back on a busy machine.
    assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
    answers
}

fn assert_closed(answer: &Answer) {
    let problem = assert_problem(answer, 503, "fail-closed");
    assert_eq!(answer.header("retry-after"), Some("1"), "{problem}");
}

async fn until_ready(replica: &Replica, ready: u16) {
    until("readiness shows it", SOON, async || {
        replica.client.get("/readyz").await.status == ready
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_closes_every_door_and_ends_nothing() {
    let (fleet, mut replica) = Fleet::start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    replica.proxy.set(Mode::Refuse);
    replica.proxy.cut();
    let answers = ask_everywhere(&fleet, &replica, &first).await;
    let (introspection, others) = answers.split_last().unwrap();
    others.iter().for_each(assert_closed);
    // Whoever must know whether a token is good is told neither yes nor no.
    assert_eq!(introspection.status, 503, "{}", introspection.text());
    until_ready(&replica, 503).await;

    replica.proxy.set(Mode::Pass);
    until_ready(&replica, 200).await;
    assert!(fleet.is_good(&replica, &first).await, "nothing was ended");
    assert_eq!(fleet.sessions(), 1, "nothing was released");
    assert_sound(&fleet, &replica, &first).await;
    assert_eq!(replica.process.terminate().code(), Some(0));
    assert_eq!(fleet.alive().await, 2);
}

/// Lets every new leaf fail as on a disk that is full, or lets them be again.
async fn fill(fleet: &Fleet, full: bool) {
    let mut direct = fleet.database().connect().await;
    let sql = if full {
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END $$; \
         CREATE TRIGGER full_disk BEFORE INSERT ON leaf FOR EACH ROW EXECUTE FUNCTION full_disk()"
    } else {
        "DROP TRIGGER full_disk ON leaf; DROP FUNCTION full_disk"
    };
    direct.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_what_must_be_recorded_and_nothing_else() {
    let (fleet, mut replica) = Fleet::start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    fill(&fleet, true).await;
    let token = fleet.token();
    assert_closed(&replica.ask(&token).await);
    let answers = ask_everywhere(&fleet, &replica, &first).await;
    let (introspection, others) = answers.split_last().unwrap();
    others.iter().for_each(assert_closed);
    // No end was recorded, and no end is claimed.
    assert_eq!(introspection.expect(200)["active"], true);
    until_ready(&replica, 503).await;
    assert_eq!(fleet.sessions(), 1);

    fill(&fleet, false).await;
    until_ready(&replica, 200).await;
    // What was not recorded used up the evidence even so.
    let again = replica.ask(&token).await;
    assert_eq!(
        assert_problem(&again, 401, "attestation-failed")["reason"],
        "replayed"
    );
    replica.ask(&fleet.token()).await.expect(201);
    assert!(fleet.is_good(&replica, &first).await);
    assert_sound(&fleet, &replica, &first).await;
    assert_eq!(replica.process.terminate().code(), Some(0));
    assert_eq!(fleet.alive().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sqlite_file_closes_the_broker_until_there_is_room() {
    let rig = Rig::new(Kind::Sqlite).await;
    let first = rig
        .issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    let Store::Sqlite(sqlite) = rig.broker.core.store() else {
        panic!("a rig on SQLite");
    };
    let pages = async |limit: i64| {
        let sql = format!("PRAGMA max_page_count = {limit}");
        let set: (i64,) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(sqlite.writer())
            .await
            .unwrap();
        set.0
    };
    // It takes no more than are in use, and some of those may have room.
    pages(1).await;
    let mut granted = 0;
    let refused = loop {
        match rig.issue("agent:reports", rig::ask(&["orders:read"])).await {
            Ok(_) => granted += 1,
            Err(refused) => break refused,
        }
        assert!(granted < 500, "it is never full");
    };
    assert!(matches!(refused, BrokerError::FailClosed(_)), "{refused}");
    assert!(rig.broker.health.unready().unwrap().starts_with("ledger: "));
    // What is good is good still: reading takes no room.
    assert!(rig.is_good(&first).await);
    let sessions = async || {
        let count: (i64,) = sqlx::query_as("SELECT count(*) FROM session")
            .fetch_one(sqlite.readers())
            .await
            .unwrap();
        count.0
    };
    assert_eq!(sessions().await, granted + 1);

    pages(1_000_000).await;
    rig.broker.health.check_health().await.unwrap();
    assert_eq!(rig.broker.health.unready(), None, "well again, by itself");
    let again = rig
        .issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    assert!(rig.is_good(&again).await);
    assert_eq!(sessions().await, granted + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_waited_for_no_longer_than_the_limit() {
    let (fleet, mut replica) = Fleet::start_with(HASTY).await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    // Slow is served.
    replica.proxy.set(Mode::Delay(Duration::from_millis(20)));
    let mut slow = replica.ask(&fleet.token()).await;
    let begin = Instant::now();
    while slow.status == 503 && begin.elapsed() < SOON {
        // On a busy machine it may be too slow, and is sent away.
        slow = replica.ask(&fleet.token()).await;
    }
    assert!(fleet.is_good(&replica, &slow.expect(201)).await);

    for silence in [Mode::Stall, Mode::StallToServer, Mode::StallToClient] {
        replica.proxy.set(silence);
        let began = Instant::now();
        let asks = [fleet.token(), fleet.token()];
        let asks = asks.iter().map(|token| replica.ask(token));
        let answers = futures_util::future::join_all(asks).await;
        assert!(began.elapsed() < PATIENCE, "{silence:?}");
        for answer in &answers {
            assert_problem(answer, 503, "timeout");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        replica.proxy.set(Mode::Pass);
        until("it serves again", SOON, async || {
            let ready = replica.client.get("/readyz").await.status == 200;
            ready && fleet.is_good(&replica, &first).await
        })
        .await;
    }
    assert_sound(&fleet, &replica, &first).await;
    // What was begun for those who were sent away is finished now, and dead.
    assert_eq!(replica.process.terminate().code(), Some(0));
    assert_eq!(fleet.alive().await, 3);
    assert_eq!(fleet.orphans(), (0, 0));
}

/// A refusal on record whose input alone weighs so much.
async fn heavy(rig: &Rig, bytes: usize) -> Request {
    let opening = Opening {
        salt: [0; 16],
        bytes: vec![b' '; bytes],
    };
    let active = rig.broker.core.store().active_generation().await.unwrap();
    let decide = Decide {
        id: DecisionId::from(uuid::Uuid::from_u128(1)),
        basis: rig.broker.core.ledger().basis(),
        identity: "dev:heavy".to_owned().try_into().unwrap(),
        instance: None,
        attestor: "dev".into(),
        generation: active.unwrap().sealed.claimed(),
        observed: None,
        input: taskpass::broker::core::commit(opening.salt, opening.bytes),
        purpose: None,
        decided: Decided::Refuse(Box::new(RefusalRecord {
            refusal: Refusal::new(RefusalCode::NotPermitted, "heavy"),
            resource: None,
            task: None,
        })),
    };
    Request {
        entry: Entry::Decide(Box::new(decide)),
        one_time: OneTimeUse::default(),
        at: rig.now(),
    }
}

/// Waits until a batch of the rig's broker waits for the ledger's lock, which another has.
async fn until_a_batch_waits(rig: &Rig) {
    let waits = "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let pool = rig.database().pool().await;
    until("its batch waits for the lock", SOON, async || {
        let (waiting,): (i64,) = sqlx::query_as(waits).fetch_one(&pool).await.unwrap();
        waiting == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_queue_takes_is_turned_away_at_once() {
    let mut rig = Rig::new(Kind::Postgres).await;
    let (_server, client) = rig.serve();
    let first = rig
        .issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    // Somebody else has the ledger's lock, as a replica that is slow would.
    let mut other = rig.database().connect().await;
    let mut lock = other.begin().await.unwrap();
    lock.execute("SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE")
        .await
        .unwrap();
    let ledger = rig.broker.core.ledger();
    let mut waits = ledger.append(consume(&rig, 0)).boxed();
    assert!((&mut waits).now_or_never().is_none());
    until_a_batch_waits(&rig).await;
    // What waits behind it has almost all the room that there is.
    let mut full = ledger
        .append(heavy(&rig, MAX_QUEUE_BYTES - 2_048).await)
        .boxed();
    assert!((&mut full).now_or_never().is_none());

    let token = rig.token("agent:reports", json!({}));
    let turned_away = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_problem(&turned_away, 503, "overloaded");
    assert_eq!(turned_away.header("retry-after"), Some("1"));
    // At once: before those that were there got an answer. What needs no append is served.
    assert!((&mut waits).now_or_never().is_none(), "it waited for them");
    assert!(rig.is_good(&first).await);

    lock.rollback().await.unwrap();
    let (waited, queued) = tokio::join!(waits, full);
    assert!(matches!(waited, Ok(Appended::Unchanged)), "{waited:?}");
    assert!(
        matches!(queued, Ok(Appended::Recorded(_))),
        "what was queued is served"
    );
    // The evidence of what was turned away was used up.
    let again = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_eq!(
        assert_problem(&again, 401, "attestation-failed")["reason"],
        "replayed"
    );
    let token = rig.token("agent:reports", json!({}));
    let granted = client.post_json(&token, "/v1/credentials", &body()).await;
    granted.expect(201);
}

/// An entry that only uses up a one-time id; it is no leaf, and weighs next to nothing.
fn consume(rig: &Rig, n: usize) -> Request {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    Request {
        entry: Entry::Consume,
        one_time: vec![OneTime {
            must_be_new: false,
            key,
            binding: None,
            issued_at: rig.now(),
            expires_at: rig.now().plus_seconds(60),
        }]
        .into(),
        at: rig.now(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_entries_wait_and_no_more() {
    let rig = Rig::new(Kind::Postgres).await;
    let mut other = rig.database().connect().await;
    let mut lock = other.begin().await.unwrap();
    lock.execute("SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE")
        .await
        .unwrap();
    // A batch is in flight once it waits for the lock; it holds one entry, the others queue.
    let ledger = rig.broker.core.ledger();
    let mut asks: FuturesUnordered<_> = FuturesUnordered::new();
    asks.push(ledger.append(consume(&rig, 0)).boxed());
    assert!(asks.next().now_or_never().is_none());
    until_a_batch_waits(&rig).await;
    let overloaded =
        |refused: &Option<_>| matches!(refused, Some(Err::<Appended, _>(AppendError::Overloaded)));
    for n in 1..=MAX_QUEUE_ENTRIES {
        asks.push(ledger.append(consume(&rig, n)).boxed());
    }
    assert!(asks.next().now_or_never().is_none(), "all of them wait");
    let refused = ledger.append(heavy(&rig, 1).await).now_or_never();
    assert!(overloaded(&refused), "at once: {refused:?}");
    // What only uses evidence up has room of its own.
    let most = MAX_QUEUE_ENTRIES + MAX_QUEUE_CONSUMPTIONS;
    for n in MAX_QUEUE_ENTRIES + 1..=most {
        asks.push(ledger.append(consume(&rig, n)).boxed());
    }
    assert!(asks.next().now_or_never().is_none(), "all of them wait");
    // What is turned away is kept, as much as there is room for.
    let mut refused = consume(&rig, most + 1);
    let ids = (most + 1..=most + MAX_UNRECORDED_EVIDENCE).map(|n| consume(&rig, n).one_time.ids[0]);
    refused.one_time.ids = ids.collect();
    let refused = ledger.append(refused).now_or_never();
    assert!(overloaded(&refused), "at once: {refused:?}");
    let evidence = rig.evidence("agent:reports");
    let ask = || rig::ask(&["orders:read"]);
    let refused = rig.broker.issuance.issue(evidence.clone(), ask()).await;
    assert!(
        matches!(refused, Err(BrokerError::Overloaded)),
        "{refused:?}"
    );
    lock.rollback().await.unwrap();
    while let Some(appended) = asks.next().await {
        assert!(matches!(appended, Ok(Appended::Unchanged)), "{appended:?}");
    }
    // What was recorded is used up, and so is what was turned away.
    for n in [most, most + 1, most + MAX_UNRECORDED_EVIDENCE] {
        let again = ledger.append(consume(&rig, n)).await;
        assert!(matches!(again, Ok(Appended::Replayed(_))), "{again:?}");
    }
    // Once there is room again calls are looked at, the one that was not looked at before too.
    until("there is room", SOON, async || {
        ledger.check_evidence_room().is_ok()
    })
    .await;
    rig.broker.issuance.issue(evidence, ask()).await.unwrap();
}

/// Lets the store take nothing more, or lets it again.
async fn close_store(rig: &Rig, closed: bool) {
    match rig.broker.core.store() {
        Store::Postgres(_) => {
            let sql = if closed {
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 RAISE disk_full USING MESSAGE = 'No space left on device'; END $$; \
                 CREATE TRIGGER full_disk BEFORE INSERT ON one_time FOR EACH ROW \
                 EXECUTE FUNCTION full_disk()"
            } else {
                "DROP TRIGGER full_disk ON one_time; DROP FUNCTION full_disk"
            };
            let mut direct = rig.database().connect().await;
            direct.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        Store::Sqlite(sqlite) => {
            let pages = if closed { 1 } else { 1_000_000 };
            let sql = format!("PRAGMA max_page_count = {pages}");
            sqlx::query(AssertSqlSafe(sql))
                .fetch_one(sqlite.writer())
                .await
                .unwrap();
        }
    }
}

on_both_stores! {
    async fn evidence_that_met_a_store_that_could_not_be_written_is_used_up(rig: Rig) {
        rig.issue("agent:reports", rig::ask(&["orders:read"])).await.unwrap();
        close_store(&rig, true).await;
        // A file on SQLite takes as much as its last pages have room for.
        let mut granted = 0;
        let issuing = loop {
            let evidence = rig.evidence("agent:reports");
            match rig.broker.issuance.issue(evidence.clone(), rig::ask(&["orders:read"])).await {
                Ok(_) => granted += 1,
                Err(BrokerError::FailClosed(_)) => break evidence,
                Err(other) => panic!("{other}"),
            }
            assert!(granted < 500, "it is never full");
        };
        let mut reading = Vec::new();
        for _ in 0..200 {
            let evidence = rig.evidence("agent:reports");
            let read = rig.broker.verification.list_sessions(&evidence, SessionFilter { limit: 10, ..SessionFilter::default() }).await;
            match read {
                Ok(_) => {}
                Err(BrokerError::FailClosed(_)) => reading.push(evidence),
                Err(other) => panic!("{other}"),
            }
            if reading.len() == 3 {
                break;
            }
        }
        assert_eq!(reading.len(), 3);

        close_store(&rig, false).await;
        // On this replica at once.
        for evidence in reading.iter().chain([&issuing]) {
            let again = rig.broker.issuance.issue(evidence.clone(), rig::ask(&["orders:read"])).await;
            assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
        }
        rig.issue("agent:reports", rig::ask(&["orders:read"])).await.unwrap();
        assert_eq!(rig.broker.health.unready(), None);
        // And on another, since it was written meanwhile.
        if matches!(rig.broker.core.store(), Store::Postgres(_)) {
            let other = rig.replica().await;
            for evidence in reading.iter().chain([&issuing]) {
                let again = other.broker.issuance.issue(evidence.clone(), rig::ask(&["orders:read"])).await;
                assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
            }
        }
    }

    async fn what_could_not_be_recorded_is_recorded_without_another_call(rig: Rig) {
        close_store(&rig, true).await;
        let mut granted = 0;
        let refused = loop {
            let evidence = rig.evidence("agent:reports");
            if rig.broker.issuance.issue(evidence.clone(), rig::ask(&["orders:read"])).await.is_err() {
                break evidence;
            }
            granted += 1;
            assert!(granted < 500, "it is never full");
        };
        let before = rig.rows().await["one_time"].len();
        close_store(&rig, false).await;
        // Nobody calls, and nothing looks at the broker's health.
        until("it is recorded", SOON, async || rig.broker.health.unready().is_none()).await;
        assert!(rig.rows().await["one_time"].len() > before);
        let again = rig.broker.issuance.issue(refused, rig::ask(&["orders:read"])).await;
        assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
    }
}

async fn begin(kind: Kind) -> Rig {
    Rig::new(kind).await
}
