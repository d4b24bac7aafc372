//! Clients that hang up at each step of a request: the work goes on, and the broker ends at once a
//! credential that no client received.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use taskpass::domain::session::{EndReason, SessionState};

use crate::support::fleet::{Fleet, Replica, assert_sound};
use crate::support::http::raw_status;
use crate::support::proxy::{At, Fault};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, until};

/// Label of the statement with which the ledger writes every batch.
const BATCH: &str = "ledger_write";

/// The steps at which a client hangs up, by the comment of a statement; `None` is COMMIT.
const STEPS: [(Option<&str>, At); 9] = [
    (Some("/* retry */"), At::Request),
    (Some("/* roles_of */"), At::Answer),
    (Some("/* ledger_lock */"), At::Request),
    (Some("/* ledger_lock */"), At::Answer),
    (Some("/* ledger_enter */"), At::Answer),
    (Some("/* ledger_write */"), At::Request),
    (Some("/* ledger_write */"), At::Answer),
    (None, At::Request),
    (None, At::Answer),
];

/// Hangs up, and waits until the server notices. Returns the status of its answer, if it sent one.
fn hang_up(mut client: TcpStream) -> Option<u16> {
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    raw_status(&rest)
}

fn send(replica: &Replica, token: &str, key: &str) -> TcpStream {
    let mut client = replica.connect();
    let request = replica.raw_request(token, key, "");
    client.write_all(&request).unwrap();
    client
}

/// Waits until one more session is recorded and has ended.
async fn until_dead(fleet: &Fleet, seen: i64) {
    until("the session is recorded and has ended", SOON, async || {
        let sessions = fleet.sessions_after(seen).await;
        assert!(sessions.len() <= 1, "{sessions:?}");
        let dead = |(state, reason, _): &(String, Option<String>, _)| {
            state == "ended" && reason.as_deref() == Some("failed")
        };
        sessions.first().is_some_and(dead)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hangs_up_at_any_step_leaves_nothing_alive_and_may_come_again() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);

    // The client hangs up before the end of its request, which then has no effect.
    let token = fleet.token();
    let answer = hang_up(replica.half_a_request(&token, "half"));
    assert_eq!(answer, Some(400), "half a body is no JSON");
    assert_eq!(fleet.sessions(), 1);
    let mut released = vec![replica.ask(&token).await.expect(201)];

    for (n, (marker, at)) in STEPS.into_iter().enumerate() {
        let seen = fleet.sessions();
        let caught = replica.proxy.caught() + 1;
        match marker {
            Some(marker) => replica.proxy.arm_statement(marker, at, Fault::Hold),
            None => replica.proxy.arm_for(BATCH, 0, at, Fault::Hold),
        }
        let key = format!("step-{n}");
        let client = send(&replica, &fleet.token(), &key);
        replica.proxy.wait_caught(caught);
        assert_eq!(hang_up(client), None, "{marker:?} {at:?}");
        replica.proxy.release();
        until_dead(&fleet, seen).await;
        let granted = replica.ask_again(&fleet.token(), &key).await.expect(201);
        let sessions = fleet.sessions_after(seen).await;
        assert_eq!(sessions.len(), 2, "{marker:?} {at:?}: {sessions:?}");
        assert_eq!(
            sessions[0].2, sessions[1].2,
            "a retry belongs to the same task"
        );
        released.push(granted);
    }
    for granted in &released {
        assert!(fleet.is_good(&replica, granted).await);
    }
    let sessions = fleet.sessions_after(0).await;
    let active = sessions.iter().filter(|(state, ..)| state == "active");
    assert_eq!(
        active.count(),
        released.len() + 1,
        "only sessions whose credential was received are active"
    );
    assert_sound(&fleet, &replica, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hangs_up_in_the_queue_does_not_disturb_who_is_before_it() {
    let (fleet, replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    replica.proxy.arm_for(BATCH, 0, At::Request, Fault::Hold);
    let patient = send(&replica, &fleet.token(), "patient");
    replica.proxy.wait_caught(1);
    let hasty = send(&replica, &fleet.token(), "hasty");
    until("the request is queued", SOON, async || {
        let metrics = replica.client.get("/metrics").await.text();
        metrics
            .lines()
            .any(|line| line == "taskpass_ledger_queue_depth 1")
    })
    .await;
    assert_eq!(hang_up(hasty), None);
    replica.proxy.release();
    until_dead(&fleet, 2).await;
    let mut answer = Vec::new();
    let mut patient = patient;
    patient.read_to_end(&mut answer).unwrap();
    assert_eq!(raw_status(&answer), Some(201));
    let states = fleet.sessions_after(1).await;
    assert_eq!(states[0].0, "active");
    assert_sound(&fleet, &replica, &first).await;
}

/// Records that it was woken.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_is_on_its_way_when_its_caller_goes_is_ended_too() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let rig = Rig::on(kind).start().await;
        let mut issuing = Box::pin(rig.issue("agent:reports", ask(&["orders:read"])));
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert!(matches!(issuing.as_mut().poll(&mut context), Poll::Pending));
        // The future is woken when the credential is ready, and is dropped without being polled.
        until("the credential is ready", SOON, async || {
            woken.0.load(Ordering::SeqCst)
        })
        .await;
        drop(issuing);
        until("the session has ended", SOON, async || {
            let filter = taskpass::store::sessions::SessionFilter {
                limit: 10,
                ..Default::default()
            };
            let sessions = rig
                .broker
                .core
                .store()
                .list_sessions(&filter)
                .await
                .unwrap();
            assert_eq!(sessions.len(), 1);
            sessions[0].session.state == SessionState::Ended
                && sessions[0].session.end_reason == Some(EndReason::Failed)
        })
        .await;
    }
}
