//! `taskpass exec` where a part of its environment is broken: standard error, a load balancer in
//! front of the broker, the clock, or the directory of the delivered file. A stub plays the broker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::support::SOON;
use crate::support::fleet::ORDERS_ARGUMENTS;
use crate::support::issuer::{AUDIENCE, unix_seconds};
use crate::support::process::Launch;

const TASK: &str = "01890a5d-ac96-774b-bcce-b302099a8058";

/// The answers of a stub of the broker. The last of each list is repeated.
struct Answers {
    /// Lifetimes of the credentials, in seconds.
    lives: Vec<i64>,
    beats: Vec<ResponseTemplate>,
    ends: Vec<ResponseTemplate>,
}

impl Answers {
    /// Answers of a broker that keeps the task open until it is ended.
    fn with_lives(lives: &[i64]) -> Self {
        Self {
            lives: lives.to_vec(),
            beats: vec![task("open")],
            ends: vec![task("completed")],
        }
    }

    /// Starts the stub. It also serves as the platform's token endpoint, so that every request has
    /// a fresh attestation.
    async fn start(self) -> MockServer {
        let server = MockServer::start().await;
        let counts = [const { AtomicUsize::new(0) }; 3];
        let next = move |kind: usize| counts[kind].fetch_add(1, Ordering::SeqCst);
        Mock::given(any())
            .respond_with(move |request: &Request| {
                let path = request.url.path();
                if path == "/v1/credentials" {
                    let number = next(0);
                    let life = nth(&self.lives, number);
                    ResponseTemplate::new(200).set_body_json(granted(number, life))
                } else if path.ends_with("/heartbeat") {
                    nth(&self.beats, next(1))
                } else if path.starts_with("/v1/tasks/") {
                    nth(&self.ends, next(2))
                } else {
                    ResponseTemplate::new(200).set_body_json(json!({"value": "fresh"}))
                }
            })
            .mount(&server)
            .await;
        server
    }
}

fn nth<T: Clone>(list: &[T], number: usize) -> T {
    list[number.min(list.len() - 1)].clone()
}

fn at(seconds: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(unix_seconds() + seconds).unwrap();
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap()
}

fn granted(number: usize, life: i64) -> Value {
    json!({
        "credential": {
            "type": "jwt", "access_token": format!("token-{number}"), "token_type": "Bearer",
            "expires_in": life.max(0)
        },
        "session": {
            "id": format!("01890a5d-ac96-774b-bcce-{number:012}"), "state": "active",
            "task_id": TASK, "workload": "ci:repo-1", "resource": "orders-api",
            "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
            "issued_at": at(life - 600), "expires_at": at(life),
            "revocability": {
                "class": "immediate", "bound_seconds": 0, "open_sessions": "none",
                "expires_by": "itself"
            },
            "decision_id": TASK
        },
        "task": {
            "id": TASK, "state": "open", "type": "nightly-report", "deadline": at(3_600),
            "handle": "tph_stub"
        },
        "decision": {
            "id": TASK, "outcome": "permit", "policies": [],
            "generation": format!("sha256:{}", "0".repeat(64))
        },
        "receipt": {
            "leaf": "", "leaf_hash": "", "index": 0, "tree_size": 1, "inclusion_proof": [],
            "checkpoint": ""
        }
    })
}

/// The broker's answer about a task in this state.
fn task(state: &str) -> ResponseTemplate {
    let task = json!({
        "id": TASK, "state": state, "type": "nightly-report", "owner": "ci:repo-1",
        "opened_at": at(0), "deadline": at(3_600), "credentials_left": 1
    });
    ResponseTemplate::new(200).set_body_json(json!({"task": task, "sessions": []}))
}

/// An error page of a load balancer.
fn page(status: u16) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_raw("<html>no</html>", "text/html")
}

async fn asked(server: &MockServer, end: &str) -> usize {
    let requests = server.received_requests().await.unwrap();
    let paths = requests.iter().map(|request| request.url.path());
    paths.filter(|path| path.ends_with(end)).count()
}

fn exec(server: &MockServer, options: &[&str], script: &str) -> Launch {
    let url = server.uri();
    let fixed = ["exec", "--url", &url, "--audience", AUDIENCE];
    let command = ["--", "sh", "-c", script];
    Launch::taskpass([&fixed[..], &ORDERS_ARGUMENTS, options, &command].concat())
        .env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{url}/token?v=2"))
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_task_ends_the_command_with_its_grace_and_fails_though_stderr_is_broken() {
    let late = task("aborted").set_delay(Duration::from_secs(2));
    let answers = Answers {
        beats: vec![late],
        ..Answers::with_lives(&[600])
    };
    let server = answers.start().await;
    // The shell itself writes to standard error when a signal ends a child, so redirect it.
    let script = "exec 2>/dev/null; trap 'sleep 1; echo ended >told; exit 5' TERM; \
                  while :; do sleep 0.05; done";
    let launch = exec(&server, &["--heartbeat", "30"], script);
    let mut process = launch.with_broken_stderr().spawn();
    assert_eq!(process.wait(SOON).code(), Some(1));
    let told = std::fs::read_to_string(process.dir().join("told"));
    assert_eq!(told.unwrap(), "ended\n");
    assert_eq!(asked(&server, "/abort").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_load_balancer_at_a_heartbeat_does_not_end_the_command() {
    let pages = [401, 403, 404, 409, 410, 200].map(page);
    let answers = Answers {
        beats: [&pages[..], &[task("open")]].concat(),
        ..Answers::with_lives(&[600])
    };
    let server = answers.start().await;
    let options = ["--heartbeat", "30"];
    let ran = exec(&server, &options, "sleep 15; echo ran").run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "ran\n"),
        "{}",
        ran.stderr
    );
    let beats = asked(&server, "/heartbeat").await;
    assert!(beats > pages.len(), "{beats} heartbeats");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_load_balancer_at_the_end_is_not_taken_for_the_end() {
    let answers = Answers {
        ends: vec![page(403), page(200), task("completed")],
        ..Answers::with_lives(&[600])
    };
    let server = answers.start().await;
    let ran = exec(&server, &[], "echo ran").run();
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert_eq!(asked(&server, "/complete").await, 3, "{}", ran.stderr);
    let says = "403 Forbidden (not the broker's answer)";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_is_due_or_over_on_arrival_is_not_renewed_in_a_loop() {
    for (life, is_told) in [(-1, true), (2, false)] {
        let server = Answers::with_lives(&[6, life]).start().await;
        let ran = exec(&server, &["--as", "file"], "sleep 12").run();
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        let asked = asked(&server, "/v1/credentials").await;
        assert!((2..=4).contains(&asked), "{life} s: {asked} requests");
        let told = ran.stderr.contains("ahead of it; set the clock");
        assert_eq!(told, is_told, "{life} s: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_credential_that_is_over_on_arrival_is_refused_with_the_cause() {
    let server = Answers::with_lives(&[-1]).start().await;
    let refused = exec(&server, &[], "echo ran").run();
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
    let says = "ahead of it; set the clock";
    assert!(refused.stderr.contains(says), "{}", refused.stderr);
    assert_eq!(asked(&server, "/abort").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_file_that_could_not_be_written_is_written_later() {
    let server = Answers::with_lives(&[6, 600]).start().await;
    // After the rename, the file's directory does not exist, so writing fails.
    let script = "chmod 700 tmp; mv tmp gone; \
                  until grep -q 'was not delivered' stderr.log; do sleep 0.05; done; \
                  mv gone tmp; \
                  for n in $(seq 200); do \
                  if test \"$(cat \"$TASKPASS_ACCESS_TOKEN_FILE\")\" = token-1; \
                  then echo renewed; exit 0; fi; sleep 0.1; done; exit 9";
    let launch = exec(&server, &["--as", "file"], script);
    let ran = launch.file("tmp/keep", "").env("TMPDIR", "tmp").run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "renewed\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(asked(&server, "/v1/credentials").await, 2);
}
