//! The real binary with PostgreSQL, killed at each step of a request and started again. An
//! uncommitted request has no effect, a committed one is complete, and the caller whose answer was
//! lost succeeds with a retry.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica, assert_sound, vkeys};
use crate::support::http::{Client, assert_problem, raw_status, try_send};
use crate::support::process::{Launch, Signal};
use crate::support::proxy::{At, Fault};
use crate::support::{SOON, until, wait_until};

/// Label of the statement with which the ledger writes every batch.
const BATCH: &str = "ledger_write";

/// The step of a request at which the process is killed.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The broker has received half of the body.
    Body,
    /// At a statement with this comment.
    Statement(&'static str, At),
    /// At the batch's COMMIT. A COMMIT caught on its way never arrives.
    Commit(At),
    /// The COMMIT is on its way, and arrives although its sender was killed.
    CommitArrives,
    /// The client has received the first byte of the answer.
    FirstByte,
}

/// Every step in order, and whether the request is recorded after it.
const STEPS: [(Step, bool); 14] = [
    (Step::Body, false),
    (Step::Statement("/* retry */", At::Request), false),
    (Step::Statement("/* retry */", At::Answer), false),
    (Step::Statement("/* roles_of */", At::Request), false),
    (Step::Statement("/* roles_of */", At::Answer), false),
    (Step::Statement("/* ledger_lock */", At::Request), false),
    (Step::Statement("/* ledger_lock */", At::Answer), false),
    (Step::Statement("/* ledger_enter */", At::Request), false),
    (Step::Statement("/* ledger_enter */", At::Answer), false),
    (Step::Statement("/* ledger_write */", At::Request), false),
    (Step::Statement("/* ledger_write */", At::Answer), false),
    (Step::Commit(At::Request), false),
    (Step::CommitArrives, true),
    (Step::Commit(At::Answer), true),
];

/// Sends bytes and reads up to `limit` bytes of the answer, in a thread of its own. Returns the
/// open connection with the answer.
fn exchange(replica: &Replica, bytes: Vec<u8>, limit: u64) -> JoinHandle<(Vec<u8>, TcpStream)> {
    let mut stream = replica.connect();
    stream.write_all(&bytes).unwrap();
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        // The killed process may cause a connection reset.
        drop(
            Read::by_ref(&mut stream)
                .take(limit)
                .read_to_end(&mut answer),
        );
        (answer, stream)
    })
}

/// Kills the process at this step of a request, and starts it again. Returns the received part of
/// the answer.
fn kill_at(fleet: &Fleet, replica: &mut Replica, step: Step, key: &str, token: &str) -> Vec<u8> {
    let request = replica.raw_request(token, key, "");
    let caught = replica.proxy.caught() + 1;
    let before = fleet.sessions();
    match step {
        Step::Statement(marker, at) => replica.proxy.arm_statement(marker, at, Fault::Hold),
        Step::Commit(at) => replica.proxy.arm_for(BATCH, 0, at, Fault::Hold),
        Step::CommitArrives => replica.proxy.arm_for(BATCH, 0, At::Request, Fault::Hold),
        Step::Body | Step::FirstByte => {}
    }
    let answer = match step {
        Step::Body => {
            let mut stream = replica.half_a_request(token, key);
            replica.process.kill();
            let mut answer = Vec::new();
            drop(stream.read_to_end(&mut answer));
            answer
        }
        Step::FirstByte => {
            let (mut answer, mut stream) = exchange(replica, request, 1).join().unwrap();
            replica.process.kill();
            drop(stream.read_to_end(&mut answer));
            answer
        }
        _ => {
            let sending = exchange(replica, request, u64::MAX);
            replica.proxy.wait_caught(caught);
            replica.process.kill();
            sending.join().unwrap().0
        }
    };
    if matches!(step, Step::CommitArrives) {
        // Release at once: the database ends a transaction that is idle for 2 s.
        replica.proxy.release();
        wait_until("the COMMIT arrives", SOON, || fleet.sessions() > before);
    }
    replica.proxy.cut();
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    answer
}

/// Runs `taskpass ledger verify`, offline, on a whole answer with its credential.
fn verify_by_command(granted: &Value, vkeys: &[String]) {
    let token = granted["credential"]["access_token"].as_str().unwrap();
    let mut launch = Launch::taskpass(["ledger", "verify", "granted.json"])
        .file("granted.json", granted.to_string())
        .file("credential", token)
        .arg("--credential-file")
        .arg("credential")
        .arg("--unchecked-signature");
    for vkey in vkeys {
        launch = launch.arg("--key").arg(vkey);
    }
    let ended = launch.run();
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_step_of_a_request_it_is_whole_again_and_the_caller_gets_through() {
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    let mut released = vec![first.clone()];
    for (n, (step, committed)) in STEPS.into_iter().enumerate() {
        let seen = fleet.sessions();
        let (token, key) = (fleet.token(), format!("step-{n}"));
        let answer = kill_at(&fleet, &mut replica, step, &key, &token);
        assert!(
            answer.is_empty(),
            "{step:?}: the broker was killed before it answered"
        );
        assert_eq!(fleet.orphans(), (0, 0), "{step:?}");
        let lost = fleet.sessions_after(seen).await;
        assert_eq!(lost.len(), usize::from(committed), "{step:?}: {lost:?}");

        // A retry gets one credential, and the lost session has ended.
        let granted = replica.ask_again(&fleet.token(), &key).await.expect(201);
        assert!(fleet.is_good(&replica, &granted).await, "{step:?}");
        let after = fleet.sessions_after(seen).await;
        let (state, _, task) = after.last().unwrap();
        assert_eq!(state, "active", "{step:?}");
        assert_eq!(granted["task"]["id"], task.to_string());
        if committed {
            let (state, reason, of) = &after[0];
            assert_eq!(
                (state.as_str(), reason.as_deref()),
                ("ended", Some("superseded"))
            );
            assert_eq!(of, task, "{step:?}: the retry belongs to the same task");
            // The attestation sent to the killed process is used up.
            let replayed = replica.ask(&token).await;
            assert_problem(&replayed, 401, "attestation-failed");
        }
        assert_eq!(after.len(), 1 + usize::from(committed), "{step:?}");
        released.push(granted);
    }
    let stuck = fleet.sessions_after(0).await;
    assert!(
        stuck
            .iter()
            .all(|(state, ..)| state == "active" || state == "ended")
    );
    let active = stuck.iter().filter(|(state, ..)| state == "active");
    assert_eq!(
        active.count(),
        released.len(),
        "only sessions whose credential was received are active"
    );
    let vkeys = vkeys(&fleet, &replica).await;
    for granted in &released {
        assert!(fleet.is_good(&replica, granted).await);
        verify_by_command(granted, &vkeys);
    }
    assert_sound(&fleet, &replica, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_answers_first_byte_it_has_released_a_credential_that_is_good() {
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    let answer = kill_at(
        &fleet,
        &mut replica,
        Step::FirstByte,
        "first-byte",
        &fleet.token(),
    );
    // The broker sends an answer in one write, so the rest of it arrives.
    assert_eq!(raw_status(&answer), Some(201));
    let body = answer
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .unwrap()
        + 4;
    let granted: Value = serde_json::from_slice(&answer[body..]).unwrap();
    assert!(fleet.is_good(&replica, &granted).await);
    verify_by_command(&granted, &vkeys(&fleet, &replica).await);

    let again = replica
        .ask_again(&fleet.token(), "first-byte")
        .await
        .expect(201);
    assert_eq!(again["task"]["id"], granted["task"]["id"]);
    assert!(fleet.is_good(&replica, &again).await);
    assert!(!fleet.is_good(&replica, &granted).await, "superseded");
    assert_sound(&fleet, &replica, &first).await;
}

/// Completes the task of a grant by its handle. Returns the status of the answer, if it came.
async fn complete(replica: &Replica, granted: &Value) -> Option<u16> {
    let handle = granted["task"]["handle"].as_str().unwrap();
    let path = format!(
        "/v1/tasks/{}/complete",
        granted["task"]["id"].as_str().unwrap()
    );
    let client = Client::new(&format!("http://{}", replica.address));
    let request = client
        .request(reqwest::Method::POST, &path)
        .header("authorization", format!("Handle {handle}"));
    let answer = try_send(request).await;
    answer.ok().map(|answer| answer.status)
}

/// Revokes everything. Returns the status of the answer, if it came.
async fn revoke_all(fleet: &Fleet, replica: &Replica) -> Option<u16> {
    let order = json!({"selector": {"all": true}, "block_seconds": 0, "reason": "drill"});
    let client = Client::new(&format!("http://{}", replica.address));
    let request = client
        .request(reqwest::Method::POST, "/v1/revocations")
        .bearer_auth(&fleet.admin)
        .json(&order);
    let answer = try_send(request).await;
    answer.ok().map(|answer| answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_ends_something_it_has_ended_all_of_it_or_none() {
    let (fleet, mut replica) = Fleet::postgres().start().await;
    let first = replica.ask(&fleet.token()).await.expect(201);
    let steps = [
        (Step::Statement("/* ledger_write */", At::Answer), false),
        (Step::Commit(At::Request), false),
        (Step::Commit(At::Answer), true),
    ];
    for (everything, (step, committed)) in [false, true]
        .into_iter()
        .flat_map(|all| steps.map(|step| (all, step)))
    {
        let granted = replica.ask(&fleet.token()).await.expect(201);
        let caught = replica.proxy.caught() + 1;
        match step {
            Step::Statement(marker, at) => replica.proxy.arm_statement(marker, at, Fault::Hold),
            Step::Commit(at) => replica.proxy.arm_for(BATCH, 0, at, Fault::Hold),
            _ => unreachable!(),
        }
        let end = async || {
            if everything {
                revoke_all(&fleet, &replica).await
            } else {
                complete(&replica, &granted).await
            }
        };
        let killed = async {
            until("the statement is held", SOON, async || {
                replica.proxy.caught() >= caught
            })
            .await;
            replica.process.signal(Signal::Kill);
        };
        let (answer, ()) = tokio::join!(end(), killed);
        assert_eq!(
            answer, None,
            "{step:?}: the broker was killed before it answered"
        );
        replica.process.kill();
        replica.proxy.cut();
        replica.process.restart();
        replica.process.wait_ready(replica.address);
        let good = fleet.is_good(&replica, &granted).await;
        assert_eq!(good, !committed, "{step:?}, everything: {everything}");

        let again = if everything {
            revoke_all(&fleet, &replica).await
        } else {
            complete(&replica, &granted).await
        };
        assert_eq!(again, Some(200), "{step:?}: the request can be repeated");
        assert!(!fleet.is_good(&replica, &granted).await, "{step:?}");
    }
    assert_sound(&fleet, &replica, &first).await;
}
