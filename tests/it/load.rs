//! `revoke all` under load: two replicas of the real binary on one PostgreSQL, many clients that
//! request and use credentials, and an admin who revokes everything in between.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use taskpass::ids::CutoffId;

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::assert_problem;
use crate::support::{SOON, block_on, until};

/// Number of clients that request credentials, and of clients that use them.
const CLIENTS: usize = 6;

/// Minimum number of requests, and of uses, that begin in each phase.
const CALLS: usize = 30;

/// Pause between two attempts.
const MOMENT: Duration = Duration::from_millis(20);

/// The admin's phases without a pending order. The result of a request is certain only if it began
/// and ended in the same one of these.
const BEFORE: usize = 0;
const CUT: usize = 2;
const LIFTED: usize = 4;

/// The result of a request for a credential.
struct Asked {
    began: usize,
    ended: usize,
    status: u16,
    index: u64,
    body: Value,
}

/// The result of a use of a credential at a replica.
struct Used {
    began: usize,
    ended: usize,
    index: u64,
    active: bool,
}

/// The clients of both replicas, and their results.
struct Load<'a> {
    fleet: &'a Fleet,
    replicas: [&'a Replica; 2],
    phase: AtomicUsize,
    stop: AtomicBool,
    asked: Mutex<Vec<Asked>>,
    used: Mutex<Vec<Used>>,
}

impl Load<'_> {
    fn phase(&self) -> usize {
        self.phase.load(Ordering::SeqCst)
    }

    fn enter(&self, phase: usize) {
        self.phase.store(phase, Ordering::SeqCst);
    }

    fn asked_within(&self, phase: usize) -> usize {
        let asked = self.asked.lock().unwrap();
        let within = asked.iter().filter(|one| one.began == phase);
        within.count()
    }

    fn used_within(&self, phase: usize) -> usize {
        let used = self.used.lock().unwrap();
        used.iter().filter(|one| one.began == phase).count()
    }

    /// Requests credentials at the two replicas in turn, until the test stops it.
    async fn ask(&self, client: usize) {
        for n in client.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let token = self.fleet.token();
            let began = self.phase();
            let answer = self.replicas[n % 2].ask(&token).await;
            let ended = self.phase();
            if answer.status == 503 {
                // Ignore a 503: a loaded machine may make the broker fail closed for a moment.
                tokio::time::sleep(MOMENT).await;
                continue;
            }
            let body = answer.json();
            if answer.status != 201 {
                // The block must be the only reason of a refusal.
                assert_problem(&answer, 403, "denied");
                assert_eq!(body["code"], "blocked", "{body}");
            }
            let index = body["receipt"]["index"].as_u64().unwrap();
            self.asked.lock().unwrap().push(Asked {
                began,
                ended,
                status: answer.status,
                index,
                body,
            });
        }
    }

    /// Uses old and new credentials at both replicas in turn.
    async fn use_tokens(&self, client: usize) {
        for n in client.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let granted = {
                let asked = self.asked.lock().unwrap();
                let granted: Vec<&Asked> = asked.iter().filter(|one| one.status == 201).collect();
                let some = granted.get((n * 7) % granted.len().max(1));
                some.map(|one| (one.index, one.body.clone()))
            };
            let Some((index, body)) = granted else {
                tokio::time::sleep(MOMENT).await;
                continue;
            };
            let began = self.phase();
            let active = self.fleet.is_good(self.replicas[n % 2], &body).await;
            let ended = self.phase();
            self.used.lock().unwrap().push(Used {
                began,
                ended,
                index,
                active,
            });
        }
    }

    /// Waits until so many requests and uses have begun and ended in the current phase.
    async fn wait_for_calls(&self, count: usize) {
        let phase = self.phase();
        until("enough requests and uses have ended", SOON, async || {
            self.asked_within(phase) >= count && self.used_within(phase) >= count
        })
        .await;
    }
}

/// Sends an admin's order to a replica until it is answered. An order answered with 503 may have
/// been carried out.
async fn insist(fleet: &Fleet, replica: &Replica, path: &str, order: &Value) -> Value {
    let begin = Instant::now();
    loop {
        let answer = replica.client.post_json(&fleet.admin, path, order).await;
        if answer.status != 503 || begin.elapsed() > SOON {
            return answer.expect(200);
        }
        tokio::time::sleep(MOMENT).await;
    }
}

/// Every cutoff, oldest first: its id and the index of its leaf.
async fn cutoffs(fleet: &Fleet) -> Vec<(CutoffId, i64)> {
    let pool = fleet.database().pool().await;
    let cutoffs = sqlx::query_as("SELECT id, idx FROM cutoff ORDER BY idx");
    cutoffs.fetch_all(&pool).await.unwrap()
}

/// Number of permits in the log between two leaves.
fn permits_between(fleet: &Fleet, from: u64, to: u64) -> i64 {
    block_on(async || {
        let pool = fleet.database().pool().await;
        let count: (i64,) = sqlx::query_as(
            "SELECT count(*) FROM leaf_body WHERE idx > $1 AND idx < $2 \
             AND convert_from(body, 'UTF8')::json ->> 'outcome' = 'permit'",
        )
        .bind(i64::try_from(from).unwrap())
        .bind(i64::try_from(to).unwrap())
        .fetch_one(&pool)
        .await
        .unwrap();
        count.0
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoke_all_under_load_ends_everything_at_every_replica_and_holds_until_lifted() {
    let (fleet, one) = Fleet::postgres().start().await;
    let two = fleet.replica();
    let load = Load {
        fleet: &fleet,
        replicas: [&one, &two],
        phase: AtomicUsize::new(BEFORE),
        stop: AtomicBool::new(false),
        asked: Mutex::default(),
        used: Mutex::default(),
    };
    let admin = async {
        load.wait_for_calls(CALLS).await;
        load.enter(CUT - 1);
        let order = json!({"selector": {"all": true}, "block_seconds": "until_lifted",
            "reason": "drill"});
        insist(&fleet, &one, "/v1/revocations", &order).await;
        load.enter(CUT);
        load.wait_for_calls(CALLS).await;
        load.enter(LIFTED - 1);
        let cut = cutoffs(&fleet).await;
        let mut lifted = Value::Null;
        for (id, _) in &cut {
            let lift = format!("/v1/revocations/{id}/lift");
            // Lift at the other replica: an order applies at both.
            lifted = insist(&fleet, &two, &lift, &json!({})).await;
        }
        load.enter(LIFTED);
        load.wait_for_calls(CALLS).await;
        load.stop.store(true, Ordering::SeqCst);
        let cut_at = u64::try_from(cut[0].1).unwrap();
        (cut_at, lifted["lifted_index"].as_u64().unwrap())
    };
    let ((cut_at, lifted_at), ..) = tokio::join!(
        admin,
        join_all((0..CLIENTS).map(|client| load.ask(client))),
        join_all((0..CLIENTS).map(|client| load.use_tokens(client))),
    );

    // Decisions: permits before the cutoff and after the lift, only refusals in between.
    assert_eq!(permits_between(&fleet, cut_at, lifted_at), 0);
    let asked = std::mem::take(&mut *load.asked.lock().unwrap());
    for one in &asked {
        let inside = cut_at < one.index && one.index < lifted_at;
        // A replica that has not read the lift yet refuses a blocked caller, and that refusal may
        // be recorded after the lift.
        let judged_before_the_lift = one.index > lifted_at && one.began < LIFTED;
        if !(judged_before_the_lift && one.status == 403) {
            assert_eq!(one.status, if inside { 403 } else { 201 }, "{}", one.body);
        }
        if one.ended == BEFORE || one.began == LIFTED {
            assert_eq!(one.status, 201, "{}", one.body);
        }
        if one.began == CUT && one.ended == CUT {
            assert_eq!(one.status, 403, "{}", one.body);
        }
    }
    // Uses: no credential from before the cutoff works once the admin has received the answer.
    for used in load.used.lock().unwrap().iter() {
        let old = used.index < cut_at;
        if old && used.began >= CUT {
            assert!(!used.active, "leaf {} outlived {cut_at}", used.index);
        }
        if used.ended == BEFORE || !old {
            assert!(used.active, "leaf {} ended without a reason", used.index);
        }
    }
    // The credentials keep that state, at both replicas.
    for replica in [&one, &two] {
        let granted = asked.iter().filter(|one| one.status == 201);
        let looks = granted.map(|one| async move {
            let good = load.fleet.is_good(replica, &one.body).await;
            assert_eq!(good, one.index > lifted_at, "leaf {}", one.index);
        });
        join_all(looks).await;
    }
    assert_eq!(fleet.orphans(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_stands_though_a_session_that_it_ends_cannot_be_read() {
    let (fleet, one) = Fleet::postgres().start().await;
    let granted = one.ask(&fleet.token()).await.expect(201);
    let pool = fleet.database().pool().await;
    let details = async |change: &str| {
        let text = format!("UPDATE session SET details = {change}");
        let changed = sqlx::query(sqlx::AssertSqlSafe(text)).execute(&pool).await;
        assert_eq!(changed.unwrap().rows_affected(), 1);
    };
    details("details || '?'").await;
    let order = json!({"selector": {"all": true}, "reason": "drill"});
    let revoked = one
        .client
        .post_json(&fleet.admin, "/v1/revocations", &order);
    let revoked = revoked.await.expect(200);
    assert!(revoked["index"].is_u64(), "{revoked}");
    assert!(revoked.get("matched").is_none(), "{revoked}");

    details("rtrim(details, '?')").await;
    assert!(!fleet.is_good(&one, &granted).await);
    let path = format!("/v1/revocations/{}", revoked["id"].as_str().unwrap());
    let read = one.client.get_as(&fleet.admin, &path).await.expect(200);
    assert_eq!((&read["matched"], &read["ended"]), (&json!(1), &json!(1)));
}
