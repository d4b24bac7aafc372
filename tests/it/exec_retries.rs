//! `taskpass exec` where the broker, or the issuer of a pipeline's tokens, fails briefly.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::balancer::{Balancer, Fault};
use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS, Replica};
use crate::support::issuer::AUDIENCE;
use crate::support::process::{Ended, Launch, Signal};
use crate::support::rig::{BUCKET_ARGUMENTS, BUCKET_POLICY, aws_bucket};
use crate::support::sts::Sts;
use crate::support::{SOON, until};

const CREDENTIALS: &str = "/v1/credentials";

/// A job of GitHub whose token endpoint is at `tokens`.
fn job(tokens: &str, broker: &str, options: &[&str], command: &[&str]) -> Launch {
    let fixed = ["exec", "--url", broker, "--audience", AUDIENCE];
    let rights: &[&str] = if options.contains(&"--resource") {
        &[]
    } else {
        &ORDERS_ARGUMENTS
    };
    let parts = [&fixed[..], rights, options, &["--"], command].concat();
    Launch::taskpass(parts)
        .env(
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            format!("{tokens}/token?v=2"),
        )
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret")
}

/// A token endpoint that returns fresh tokens, and fails at every seventh request.
async fn tokens(fleet: &std::sync::Arc<Fleet>) -> MockServer {
    let server = MockServer::start().await;
    let fleet = std::sync::Arc::clone(fleet);
    let asked = AtomicUsize::new(0);
    Mock::given(method("GET"))
        .respond_with(
            move |_: &wiremock::Request| match asked.fetch_add(1, Ordering::SeqCst) % 7 {
                3 => ResponseTemplate::new(503).insert_header("retry-after", "0"),
                _ => ResponseTemplate::new(200).set_body_json(json!({"value": fleet.token()})),
            },
        )
        .mount(&server)
        .await;
    server
}

async fn sessions(fleet: &Fleet, replica: &Replica) -> Vec<Value> {
    let listed = replica.client.get_as(&fleet.admin, "/v1/sessions").await;
    listed.expect(200)["sessions"].as_array().unwrap().clone()
}

fn ran(ended: &Ended) {
    assert_eq!(
        (ended.code(), ended.stdout.as_str()),
        (Some(0), "ran\n"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_of_tokens_that_fails_for_a_moment_is_asked_again() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let fleet = std::sync::Arc::new(fleet);
    let tokens = tokens(&fleet).await;
    let broker = format!("http://{}", replica.address);
    let faults = [
        Fault::Close,
        Fault::status("429 Too Many Requests", "retry-after: 1\r\n"),
        Fault::Hang,
        Fault::status("502 Bad Gateway", ""),
    ];
    let spoilt = Balancer::before(&[*tokens.address()], &faults);
    ran(&job(&spoilt.url(), &broker, &[], &["echo", "ran"]).run());

    // A permanent error is reported at once, with its cause.
    let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-length: 44\r\nconnection: close\r\n\r\n\
                   {\"message\":\"id-token: write is not granted\"}";
    let spoilt = Balancer::before(&[*tokens.address()], &[Fault::Answer(refusal.into())]);
    let refused = job(&spoilt.url(), &broker, &[], &["echo", "ran"]).run();
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
    let says = "GitHub issued no token: 403 Forbidden: id-token: write is not granted";
    assert!(refused.stderr.contains(says), "{}", refused.stderr);
    let nowhere = job(
        "http://127.0.0.1:9",
        &broker,
        &["--retry-seconds", "0"],
        &["echo", "ran"],
    );
    let nowhere = nowhere.run();
    assert!(
        nowhere.stderr.contains("no token: Connection refused"),
        "{}",
        nowhere.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_fails_for_a_moment_is_asked_again_with_the_same_key() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let fleet = std::sync::Arc::new(fleet);
    let tokens = tokens(&fleet).await;
    let faults = [
        Fault::Close,
        Fault::status("503 Service Unavailable", "retry-after: 1\r\n"),
        Fault::Hang,
        Fault::LoseAnswer,
    ];
    let broker = Balancer::before(&[replica.address], &faults);
    ran(&job(&tokens.uri(), &broker.url(), &[], &["echo", "ran"]).run());
    let keys = broker.seen(CREDENTIALS, "idempotency-key");
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 1, "{keys:?}");
    let shown = broker.seen(CREDENTIALS, "authorization");
    assert_eq!(
        shown.iter().collect::<BTreeSet<_>>().len(),
        3,
        "each attempt has a fresh token"
    );

    // The session of the lost answer was superseded; the other ended with the task.
    let sessions = sessions(&fleet, &replica).await;
    let mut reasons: Vec<&str> = sessions
        .iter()
        .map(|session| session["end_reason"].as_str().unwrap())
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["completed", "superseded"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_aws_whose_answer_was_lost_is_ended_and_another_is_taken() {
    let sts = Sts::granting().await;
    let (fleet, replica) = Fleet::sqlite()
        .tables(&aws_bucket(&sts.url()))
        .more_policies(BUCKET_POLICY)
        .start()
        .await;
    let fleet = std::sync::Arc::new(fleet);
    let tokens = tokens(&fleet).await;
    let broker = Balancer::before(&[replica.address], &[Fault::LoseAnswer]);
    let command = ["echo", "ran"];
    ran(&job(&tokens.uri(), &broker.url(), &BUCKET_ARGUMENTS, &command).run());
    let sessions = sessions(&fleet, &replica).await;
    assert_eq!((sessions.len(), sts.asked().await.len()), (2, 2));
    for session in sessions {
        assert_ne!(session["state"], "active", "{session}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_that_an_unanswered_try_used_up_is_named() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let broker = Balancer::before(&[replica.address], &[Fault::LoseAnswer]);
    let url = broker.url();
    let parts = [
        &["exec", "--url", &url][..],
        &ORDERS_ARGUMENTS,
        &["--", "echo", "ran"],
    ];
    let refused = Launch::taskpass(parts.concat())
        .env("TASKPASS_TOKEN", fleet.token())
        .run();
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(1), ""));
    assert!(
        refused.stderr.contains("may have used the attestation up"),
        "{}",
        refused.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_from_standard_input_or_a_pipe_is_kept_for_the_next_try() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    for script in [
        "\"$0\" exec --token-file - \"$@\" <token",
        "cat token | \"$0\" exec --token-file - \"$@\"",
        "\"$0\" exec --token-file <(cat token) \"$@\"",
    ] {
        let busy = Fault::status("503 Service Unavailable", "retry-after: 1\r\n");
        let broker = Balancer::before(&[replica.address], &[busy]);
        let url = broker.url();
        let parts = [
            &["-c", script, env!("CARGO_BIN_EXE_taskpass"), "--url", &url][..],
            &ORDERS_ARGUMENTS,
            &["--", "echo", "ran"],
        ];
        let launch = Launch::program("bash", parts.concat());
        ran(&launch.file("token", fleet.token()).run());
        assert_eq!(broker.seen(CREDENTIALS, "authorization").len(), 2);
    }
}

/// Number of jobs that run while replicas are replaced one after the other.
const JOBS: usize = 200;
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_fails_while_two_replicas_are_rolled() {
    let (fleet, mut replicas) = Fleet::postgres().start_together(2).await;
    let addresses = [replicas[0].address, replicas[1].address];
    let fleet = std::sync::Arc::new(fleet);
    let server = tokens(&fleet).await;
    let tokens = server.uri();
    let broker = Balancer::before(&addresses, &[]);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = std::sync::Mutex::new(Vec::new());
    let mut rolled = [0; 2];
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::SeqCst) < JOBS {
                    let ended = job(&tokens, &broker.url(), &[], &["echo", "ran"]).run();
                    if ended.code() != Some(0) || ended.stdout != "ran\n" {
                        failed.lock().unwrap().push(ended.stderr);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        while done.load(Ordering::SeqCst) < JOBS {
            for (replica, rolls) in replicas.iter_mut().zip(&mut rolled) {
                replica.process.signal(Signal::Term);
                replica.process.wait(SOON);
                replica.process.restart();
                replica.process.wait_ready(replica.address);
                *rolls += 1;
            }
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {JOBS}: {}",
        failed.len(),
        failed[0]
    );
    assert!(rolled.iter().all(|rolls| *rolls > 0), "{rolled:?}");
    let alive = async || {
        let client = &replicas[0].client;
        let active = client
            .get_as(&fleet.admin, "/v1/sessions?state=active")
            .await;
        active.expect(200)["sessions"].as_array().unwrap().len()
    };
    until("every session has ended", SOON, async || alive().await == 0).await;
}
