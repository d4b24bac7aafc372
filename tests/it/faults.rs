//! A store that is down, full, slow or locked, and more requests than the broker's queue accepts.
//! The broker answers 503 within the stated limits, releases nothing, leaves nothing half done, and
//! recovers without a restart.

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

/// Maximum duration of any request: the default of `request_timeout_seconds`.
const PATIENCE: Duration = Duration::from_secs(15);

/// A shorter time limit, for tests that wait for it.
const HASTY: &str = "request_timeout_seconds = 2\nheader_timeout_seconds = 2";

/// Calls every operation that needs the store, all at once. Returns the answers, each of which must
/// come within the limit.
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
    // Twice the limit, because a busy machine delays the answers.
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
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    replica.proxy.set(Mode::Refuse);
    replica.proxy.cut();
    let answers = ask_everywhere(&fleet, &replica, &first).await;
    let (introspection, others) = answers.split_last().unwrap();
    others.iter().for_each(assert_closed);
    // If the broker cannot know whether a token is active, it says neither yes nor no.
    assert_eq!(introspection.status, 503, "{}", introspection.text());
    until_ready(&replica, 503).await;

    replica.proxy.set(Mode::Pass);
    until_ready(&replica, 200).await;
    assert!(
        fleet.is_good(&replica, &first).await,
        "no session may have ended"
    );
    assert_eq!(fleet.sessions(), 1, "no other session may exist");
    assert_sound(&fleet, &replica, &first).await;
    assert_eq!(replica.process.terminate().code(), Some(0));
    assert_eq!(fleet.alive().await, 2);
}

/// Makes every insert of a leaf fail as on a full disk, or removes that fault.
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
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    fill(&fleet, true).await;
    let token = fleet.token();
    assert_closed(&replica.ask(&token).await);
    let answers = ask_everywhere(&fleet, &replica, &first).await;
    let (introspection, others) = answers.split_last().unwrap();
    others.iter().for_each(assert_closed);
    // No end was recorded, so the broker reports none.
    assert_eq!(introspection.expect(200)["active"], true);
    until_ready(&replica, 503).await;
    assert_eq!(fleet.sessions(), 1);

    fill(&fleet, false).await;
    until_ready(&replica, 200).await;
    // The evidence of a request that could not be recorded is used up as well.
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
    let rig = Rig::on(Kind::Sqlite).start().await;
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
    // SQLite's limit is never below the pages in use, and some of those have free space.
    pages(1).await;
    let mut granted = 0;
    let refused = loop {
        match rig.issue("agent:reports", rig::ask(&["orders:read"])).await {
            Ok(_) => granted += 1,
            Err(refused) => break refused,
        }
        assert!(granted < 500, "the file never became full");
    };
    assert!(matches!(refused, BrokerError::FailClosed(_)), "{refused}");
    assert!(rig.broker.health.unready().unwrap().starts_with("ledger: "));
    // Active credentials stay active: reading needs no space.
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
    assert_eq!(
        rig.broker.health.unready(),
        None,
        "the broker recovers by itself"
    );
    let again = rig
        .issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    assert!(rig.is_good(&again).await);
    assert_eq!(sessions().await, granted + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_waited_for_no_longer_than_the_limit() {
    let (fleet, mut replica) = Fleet::postgres().server(HASTY).start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    // A slow store still serves requests.
    replica.proxy.set(Mode::Delay(Duration::from_millis(20)));
    let mut slow = replica.ask(&fleet.token()).await;
    let begin = Instant::now();
    while slow.status == 503 && begin.elapsed() < SOON {
        // On a busy machine the request may time out.
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
        until("the replica serves again", SOON, async || {
            let ready = replica.client.get("/readyz").await.status == 200;
            ready && fleet.is_good(&replica, &first).await
        })
        .await;
    }
    assert_sound(&fleet, &replica, &first).await;
    // The broker finishes the work of requests that timed out, and ends their sessions.
    assert_eq!(replica.process.terminate().code(), Some(0));
    assert_eq!(fleet.alive().await, 3);
    assert_eq!(fleet.orphans(), (0, 0));
}

/// A recorded refusal whose input alone has so many bytes.
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

/// Waits until a batch of the rig's broker waits for the ledger's lock, which another connection
/// holds.
async fn until_a_batch_waits(rig: &Rig) {
    let waits = "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let pool = rig.database().pool().await;
    until("the batch waits for the lock", SOON, async || {
        let (waiting,): (i64,) = sqlx::query_as(waits).fetch_one(&pool).await.unwrap();
        waiting == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_queue_takes_is_turned_away_at_once() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let (_server, client) = rig.serve();
    let first = rig
        .issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    // Another connection holds the ledger's lock, like a slow replica.
    let mut other = rig.database().connect().await;
    let mut lock = other.begin().await.unwrap();
    lock.execute("SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE")
        .await
        .unwrap();
    let ledger = rig.broker.core.ledger();
    let mut waits = ledger.append(consume(&rig, 0)).boxed();
    assert!((&mut waits).now_or_never().is_none());
    until_a_batch_waits(&rig).await;
    // The next entry takes almost all of the queue's bytes.
    let mut full = ledger
        .append(heavy(&rig, MAX_QUEUE_BYTES - 2_048).await)
        .boxed();
    assert!((&mut full).now_or_never().is_none());

    let token = rig.token("agent:reports", json!({}));
    let turned_away = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_problem(&turned_away, 503, "overloaded");
    assert_eq!(turned_away.header("retry-after"), Some("1"));
    // The refusal came before the queued requests were answered. Requests that append nothing are
    // served.
    assert!(
        (&mut waits).now_or_never().is_none(),
        "the refusal waited for the queue"
    );
    assert!(rig.is_good(&first).await);

    lock.rollback().await.unwrap();
    let (waited, queued) = tokio::join!(waits, full);
    assert!(matches!(waited, Ok(Appended::Unchanged)), "{waited:?}");
    assert!(
        matches!(queued, Ok(Appended::Recorded(_))),
        "the queued request is served"
    );
    // The refused request's evidence is used up.
    let again = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_eq!(
        assert_problem(&again, 401, "attestation-failed")["reason"],
        "replayed"
    );
    let token = rig.token("agent:reports", json!({}));
    let granted = client.post_json(&token, "/v1/credentials", &body()).await;
    granted.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_makes_a_replica_unready_until_it_can_write_again() {
    const FILL: &str = "CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS $$ \
        BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$; \
        CREATE TRIGGER disk_is_full BEFORE INSERT ON one_time \
        FOR EACH ROW EXECUTE FUNCTION refuse_rows()";
    const EMPTY: &str = "DROP TRIGGER disk_is_full ON one_time; DROP FUNCTION refuse_rows()";
    let rig = Rig::on(Kind::Postgres).start().await;
    let mut own = rig.database().connect().await;
    own.execute(FILL).await.unwrap();
    let refused = rig.issue("agent:reports", rig::ask(&["orders:read"])).await;
    assert!(refused.is_err());
    for _ in 0..3 {
        // The lock can be taken and rows can be read, but nothing can be written.
        rig.broker.health.check_health().await.unwrap_err();
        let why = rig.broker.health.unready().unwrap();
        assert!(why.starts_with("ledger: "), "{why}");
    }
    own.execute(EMPTY).await.unwrap();
    rig.broker.health.check_health().await.unwrap();
    assert_eq!(rig.broker.health.unready(), None);
}

/// An entry that only uses up a one-time id; it adds no leaf and counts almost no bytes.
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
    let rig = Rig::on(Kind::Postgres).start().await;
    let mut other = rig.database().connect().await;
    let mut lock = other.begin().await.unwrap();
    lock.execute("SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE")
        .await
        .unwrap();
    // The first batch waits for the lock with one entry, so all others queue.
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
    assert!(overloaded(&refused), "refused at once: {refused:?}");
    // Entries that only use up evidence have a queue limit of their own.
    let most = MAX_QUEUE_ENTRIES + MAX_QUEUE_CONSUMPTIONS;
    for n in MAX_QUEUE_ENTRIES + 1..=most {
        asks.push(ledger.append(consume(&rig, n)).boxed());
    }
    assert!(asks.next().now_or_never().is_none(), "all of them wait");
    // The broker remembers the evidence of refused requests, up to a limit.
    let mut refused = consume(&rig, most + 1);
    let ids = (most + 1..=most + MAX_UNRECORDED_EVIDENCE).map(|n| consume(&rig, n).one_time.ids[0]);
    refused.one_time.ids = ids.collect();
    let refused = ledger.append(refused).now_or_never();
    assert!(overloaded(&refused), "refused at once: {refused:?}");
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
    // Evidence is used up whether its entry was recorded or refused.
    for n in [most, most + 1, most + MAX_UNRECORDED_EVIDENCE] {
        let again = ledger.append(consume(&rig, n)).await;
        assert!(matches!(again, Ok(Appended::Replayed(_))), "{again:?}");
    }
    // Once the queue has space, the broker accepts evidence again, including evidence that it
    // refused unread.
    until("the queue has space", SOON, async || {
        ledger.check_evidence_room().is_ok()
    })
    .await;
    rig.broker.issuance.issue(evidence, ask()).await.unwrap();
}

/// Makes every insert of a one-time id fail, or removes that fault.
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
    fn evidence_that_met_a_store_that_could_not_be_written_is_used_up;
    fn what_could_not_be_recorded_is_recorded_without_another_call;
}

async fn evidence_that_met_a_store_that_could_not_be_written_is_used_up(rig: Rig) {
    rig.issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    close_store(&rig, true).await;
    // The last pages of SQLite's file have free space, so several requests may succeed.
    let mut granted = 0;
    let issuing = loop {
        let evidence = rig.evidence("agent:reports");
        match rig
            .broker
            .issuance
            .issue(evidence.clone(), rig::ask(&["orders:read"]))
            .await
        {
            Ok(_) => granted += 1,
            Err(BrokerError::FailClosed(_)) => break evidence,
            Err(other) => panic!("{other}"),
        }
        assert!(granted < 500, "the file never became full");
    };
    let mut reading = Vec::new();
    for _ in 0..200 {
        let evidence = rig.evidence("agent:reports");
        let read = rig
            .broker
            .verification
            .list_sessions(
                &evidence,
                SessionFilter {
                    limit: 10,
                    ..SessionFilter::default()
                },
            )
            .await;
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
        let again = rig
            .broker
            .issuance
            .issue(evidence.clone(), rig::ask(&["orders:read"]))
            .await;
        assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
    }
    rig.issue("agent:reports", rig::ask(&["orders:read"]))
        .await
        .unwrap();
    assert_eq!(rig.broker.health.unready(), None);
    // And on another replica, because the uses were written meanwhile.
    if matches!(rig.broker.core.store(), Store::Postgres(_)) {
        let other = rig.replica().await;
        for evidence in reading.iter().chain([&issuing]) {
            let again = other
                .broker
                .issuance
                .issue(evidence.clone(), rig::ask(&["orders:read"]))
                .await;
            assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
        }
    }
}

async fn what_could_not_be_recorded_is_recorded_without_another_call(rig: Rig) {
    close_store(&rig, true).await;
    let mut granted = 0;
    let refused = loop {
        let evidence = rig.evidence("agent:reports");
        if rig
            .broker
            .issuance
            .issue(evidence.clone(), rig::ask(&["orders:read"]))
            .await
            .is_err()
        {
            break evidence;
        }
        granted += 1;
        assert!(granted < 500, "the file never became full");
    };
    let before = rig.rows().await["one_time"].len();
    close_store(&rig, false).await;
    // No request comes in, and no health check runs.
    until("the evidence is recorded", SOON, async || {
        rig.broker.health.unready().is_none()
    })
    .await;
    assert!(rig.rows().await["one_time"].len() > before);
    let again = rig
        .broker
        .issuance
        .issue(refused, rig::ask(&["orders:read"]))
        .await;
    assert!(matches!(again, Err(BrokerError::Replayed)), "{again:?}");
}

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}
