//! `taskpass exec` when a credential expires before the command ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use wiremock::ResponseTemplate;

use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS, Replica};
use crate::support::issuer::unix_seconds;
use crate::support::moto::python_program;
use crate::support::process::Launch;
use crate::support::rig::{BUCKET_ARGUMENTS, BUCKET_POLICY, aws_bucket};
use crate::support::sts::{Sts, expiration, form, granted};

async fn start(sts: &str) -> (Fleet, Replica) {
    Fleet::sqlite()
        .tables(&aws_bucket(sts))
        .more_policies(BUCKET_POLICY)
        .start()
        .await
}

/// An STS whose sessions last `seconds`, and which delays every session after the first by `delay`.
async fn sts(seconds: i64, delay: Duration) -> Sts {
    let asked = AtomicUsize::new(0);
    Sts::answering(move |request: &wiremock::Request| {
        let form = form(&request.body);
        let end = unix_seconds() + seconds;
        let end = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
        let end = end
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap();
        let text = granted(&form).replace(&expiration(&form).to_string(), &end);
        let answer = ResponseTemplate::new(200).set_body_raw(text, "text/xml");
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => answer,
            _ => answer.set_delay(delay),
        }
    })
    .await
}

/// `taskpass exec` running a Python program, with an attestation file that can be replaced.
fn exec(fleet: &Fleet, replica: &Replica, options: &[&str], program: &str) -> Launch {
    let url = format!("http://{}", replica.address);
    let python = python_program("python").display().to_string();
    // The command itself replaces the attestation file, by a rename like Kubernetes.
    let parts = [
        &["exec", "--url", &url, "--token-file", "token"][..],
        options,
        &["--", &python, "program.py"],
    ];
    Launch::taskpass(parts.concat())
        .file("token", fleet.token())
        .file("next", fleet.token())
        .file(
            "program.py",
            format!("import os\nos.rename('next', 'token')\n{program}"),
        )
}

/// Python program that reads the file repeatedly and prints each token's expiry and the time at
/// which it first saw the token.
const READER: &str = r#"
import base64, json, time
path = os.environ["TASKPASS_ACCESS_TOKEN_FILE"]
seen = []
deadline = time.time() + 50
while len(seen) < 2 and time.time() < deadline:
    token = open(path).read()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    now = time.time()
    if claims["jti"] not in seen:
        seen.append(claims["jti"])
        print("token", claims["iat"], claims["exp"], now, flush=True)
    if now >= claims["exp"]:
        print("over", flush=True)
    time.sleep(0.01)
print("mode %o" % (os.stat(path).st_mode & 0o777))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_a_file_is_renewed_before_it_ends_and_within_a_second() {
    let (fleet, replica) = start("http://127.0.0.1:9").await;
    let options = [&ORDERS_ARGUMENTS[..], &["--as", "file", "--ttl", "10"]].concat();
    let ran = exec(&fleet, &replica, &options, READER).run();
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let tokens: Vec<Vec<f64>> = ran
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("token "))
        .map(|line| line.split(' ').map(|part| part.parse().unwrap()).collect())
        .collect();
    let [first, second] = &tokens[..] else {
        panic!("{}\n{}", ran.stdout, ran.stderr);
    };
    assert!(!ran.stdout.contains("over"), "{}", ran.stdout);
    assert!(
        second[0] < first[1],
        "the second token came after the first expired: {}",
        ran.stdout
    );
    // `iat` has a resolution of one second, and the file changes within another second.
    let late = second[2] - second[0];
    assert!(late < 3.0, "{late} s: {}", ran.stdout);
    assert!(ran.stdout.contains("mode 600"), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_aws_in_a_file_is_renewed() {
    let sts = sts(10, Duration::ZERO).await;
    let (fleet, replica) = start(&sts.url()).await;
    let program = r#"
import time
def key():
    text = open(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).read()
    return [line for line in text.splitlines() if line.startswith("aws_secret_access_key")][0]
first = key()
deadline = time.time() + 50
while key() == first and time.time() < deadline:
    time.sleep(0.05)
print("another" if key() != first else "the same")
"#;
    let options = [&BUCKET_ARGUMENTS[..], &["--as", "file"]].concat();
    let ran = exec(&fleet, &replica, &options, program).run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "another\n"),
        "{}",
        ran.stderr
    );
}

/// Python program with twenty threads that request credentials from the endpoint, each on its own
/// connections, until all have received two sessions. Prints the longest time of an answer, and
/// every failed answer.
const CROWD: &str = r#"
import json, threading, time, urllib.request
url = os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
secret = os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
def ask():
    request = urllib.request.Request(url, headers={"Authorization": secret})
    return json.loads(urllib.request.urlopen(request, timeout=30).read())["SecretAccessKey"]
slowest, wrong, late = [0.0], [], []
deadline = time.time() + 50
def many():
    seen = set()
    while len(seen) < 2 and time.time() < deadline:
        begin = time.monotonic()
        try:
            seen.add(ask())
        except Exception as error:
            wrong.append(repr(error))
        slowest[0] = max(slowest[0], time.monotonic() - begin)
        time.sleep(0.1)
    if len(seen) < 2:
        late.append(seen)
threads = [threading.Thread(target=many) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("slowest", slowest[0])
print("wrong", len(wrong), wrong[:1], "late", len(late))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_answers_at_once_while_it_renews_behind() {
    let takes = Duration::from_secs(4);
    let sts = sts(30, takes).await;
    let (fleet, replica) = start(&sts.url()).await;
    let options = [&BUCKET_ARGUMENTS[..], &["--as", "endpoint"]].concat();
    let ran = exec(&fleet, &replica, &options, CROWD).run();
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("wrong 0 [] late 0"),
        "{}\n{}",
        ran.stdout,
        ran.stderr
    );
    let slowest = ran
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("slowest "));
    let slowest: f64 = slowest.unwrap().parse().unwrap();
    assert!(
        slowest < takes.as_secs_f64() - 1.0,
        "{slowest} s: {}",
        ran.stdout
    );
    assert_eq!(sts.asked().await.len(), 2, "one renewal serves all threads");
}

/// Python program that opens a hundred connections before it sends a request on any of them.
const HUNDRED: &str = r#"
import socket, urllib.parse
url = urllib.parse.urlsplit(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
secret = os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
sockets = [socket.create_connection((url.hostname, url.port)) for _ in range(100)]
for one in sockets:
    one.sendall(("GET %s HTTP/1.1\r\nhost: x\r\nauthorization: %s\r\n\r\n" % (url.path, secret)).encode())
good = 0
for one in sockets:
    one.settimeout(30)
    answer = b""
    while True:
        part = one.recv(65536)
        if not part: break
        answer += part
    good += answer.startswith(b"HTTP/1.1 200") and b"SecretAccessKey" in answer
print("good", good)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_to_the_endpoint_than_it_serves_at_once_wait_and_are_not_reset() {
    let sts = Sts::granting().await;
    let (fleet, replica) = start(&sts.url()).await;
    let options = [&BUCKET_ARGUMENTS[..], &["--as", "endpoint"]].concat();
    let ran = exec(&fleet, &replica, &options, HUNDRED).run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "good 100\n"),
        "{}",
        ran.stderr
    );
}

/// Python program that opens more connections than the endpoint's process may have open files, and
/// sends nothing on them. Prints whether only few stay open, then requests the credential.
const IDLE: &str = r#"
import resource, socket, time, urllib.parse, urllib.request
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
address = os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
secret = os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
url = urllib.parse.urlsplit(address)
sockets = [socket.create_connection((url.hostname, url.port)) for _ in range(1100)]
time.sleep(2)
def is_open(one):
    one.setblocking(False)
    try:
        one.recv(1)
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
print("few", sum(is_open(one) for one in sockets) <= 128, flush=True)
# Longer than the silence after which the broker ends the task.
time.sleep(4)
for one in sockets: one.close()
request = urllib.request.Request(address, headers={"Authorization": secret})
deadline = time.time() + 40
while True:
    try:
        print("answer", urllib.request.urlopen(request, timeout=30).status)
        break
    except OSError:
        if time.time() > deadline: raise
        time.sleep(0.2)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_to_the_endpoint_do_not_end_the_command() {
    let sts = Sts::granting().await;
    let (fleet, replica) = start(&sts.url()).await;
    let url = format!("http://{}", replica.address);
    let python = python_program("python").display().to_string();
    let limited = "ulimit -S -n 1024; exec \"$0\" \"$@\"";
    let parts = [
        &["-c", limited, env!("CARGO_BIN_EXE_taskpass")][..],
        &["exec", "--url", &url, "--token-file", "token"],
        &BUCKET_ARGUMENTS,
        &["--as", "endpoint", "--heartbeat", "3"],
        &["--", &python, "program.py"],
    ];
    let ran = Launch::program("sh", parts.concat())
        .file("token", fleet.token())
        .file("program.py", format!("import os\n{IDLE}"))
        .run();
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "few True\nanswer 200\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_cannot_be_renewed_is_announced_before_it_ends() {
    let (fleet, replica) = start("http://127.0.0.1:9").await;
    let wait = "until grep -q 'has ended' stderr.log; do sleep 0.05; done";
    for (how, why) in [("env", "variables cannot be renewed"), ("file", "no other")] {
        let ran = replica
            .exec(&["--ttl", "6", "--as", how], &["sh", "-c", wait])
            .env("TASKPASS_TOKEN", fleet.token())
            .run();
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        let announced = ran.stderr.find("the credential ends at").unwrap();
        let ended = ran.stderr.find("the credential has ended").unwrap();
        assert!(announced < ended, "{}", ran.stderr);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
    let listed = replica.client.get_as(&fleet.admin, "/v1/sessions").await;
    let sessions: Value = listed.expect(200)["sessions"].clone();
    assert_eq!(
        sessions.as_array().unwrap().len(),
        2,
        "a credential that cannot be renewed is not requested again"
    );
}
