//! Secrets that other processes of the machine could read: from the parent of a command under
//! `exec`, and from a broker or client that runs as the same user.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};

use serde_json::json;
use wiremock::matchers::{header, method};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS, Replica};
use crate::support::issuer::AUDIENCE;
use crate::support::process::{Ended, Launch};
use crate::support::{SOON, wait_until};

/// Shell script that prints the parts of its parent that it can read, including inherited
/// descriptors.
const SEARCH: &str = r#"
echo ran
tr '\0' '\n' </proc/$PPID/environ && echo environment-read
cat /proc/$PPID/maps >/dev/null && echo memory-map-read
for fd in /proc/$PPID/fd/* /proc/$$/fd/*; do
  case $(readlink "$fd") in /memfd:*) echo handed; cat "$fd" ;; esac
done
echo own:
env
"#;

/// The id of a user and group without rights.
const UNPRIVILEGED: &str = "65534";

fn is_root() -> bool {
    // `/proc/self` belongs to the user of this process.
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs a program as an unprivileged user if the tests run as root, and otherwise as the tests'
/// user.
fn unprivileged(command: &[&str]) -> Launch {
    let switch = [
        "setpriv",
        "--reuid",
        UNPRIVILEGED,
        "--regid",
        UNPRIVILEGED,
        "--clear-groups",
        "--",
    ];
    let switch: &[&str] = if is_root() { &switch } else { &[] };
    let all = [switch, command].concat();
    Launch::program(all[0], all[1..].iter().map(|part| (*part).to_owned()))
}

async fn platform(fleet: &Fleet) -> MockServer {
    let github = MockServer::start().await;
    Mock::given(method("GET"))
        .and(header("authorization", "bearer job-secret"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": fleet.token()})))
        .mount(&github)
        .await;
    github
}

/// The arguments of `exec` with a script.
fn exec<'a>(url: &'a str, script: &'a str) -> Vec<&'a str> {
    let broker = ["exec", "--url", url, "--audience", AUDIENCE];
    let command = ["--", "sh", "-c", script];
    [&broker[..], &ORDERS_ARGUMENTS, &command].concat()
}

/// The environment of a job on a platform, with other credentials of the machine.
fn job(launch: Launch, github: &MockServer) -> Launch {
    launch
        .env(
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            format!("{}/token?a=b", github.uri()),
        )
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret")
        .env("AWS_SECRET_ACCESS_KEY", "machine-secret")
        .env("HARMLESS", "stays")
}

fn finds_no_secret(ran: &Ended) {
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("ran\n"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("TASKPASS_ACCESS_TOKEN="),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("HARMLESS=stays"), "{}", ran.stdout);
    for secret in ["job-secret", "machine-secret"] {
        assert!(!ran.stdout.contains(secret), "{secret}: {}", ran.stdout);
    }
    let own = ran.stdout.split_once("own:\n").unwrap().1;
    assert!(!own.contains("TASKPASS_WITHHELD"), "{own}");
}

async fn start() -> (Fleet, Replica, MockServer) {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let github = platform(&fleet).await;
    (fleet, replica, github)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_under_exec_finds_no_token_in_its_parent() {
    let (_fleet, replica, github) = start().await;
    let url = format!("http://{}", replica.address);
    let ran = job(Launch::taskpass(exec(&url, SEARCH)), &github).run();
    finds_no_secret(&ran);
    if is_root() {
        // Root may read any process's environment, but it contains no secret.
        assert!(ran.stdout.contains("environment-read"), "{}", ran.stdout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_of_an_unprivileged_user_reads_neither_environment_nor_memory_of_its_parent() {
    let (_fleet, replica, github) = start().await;
    let url = format!("http://{}", replica.address);
    let program = env!("CARGO_BIN_EXE_taskpass");
    let command = [&[program][..], &exec(&url, SEARCH)].concat();
    let ran = job(unprivileged(&command), &github).run();
    finds_no_secret(&ran);
    for read in ["environment-read", "memory-map-read"] {
        assert!(!ran.stdout.contains(read), "{}", ran.stdout);
    }
    // Control: the same search finds the secrets of a parent that does not protect itself.
    let control = format!("sh -c '{}'; true", SEARCH.replace('\'', r"'\''"));
    let control = job(unprivileged(&["sh", "-c", &control]), &github).run();
    for read in ["environment-read", "memory-map-read", "job-secret"] {
        assert!(control.stdout.contains(read), "{}", control.stdout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_variable_by_which_secrets_are_handed_over_cannot_be_set_from_outside() {
    let (_fleet, replica, github) = start().await;
    let url = format!("http://{}", replica.address);
    for descriptor in ["0", "1", "77", "x"] {
        let ran = job(Launch::taskpass(exec(&url, SEARCH)), &github)
            .env("TASKPASS_WITHHELD_FD", descriptor)
            .run();
        assert_eq!((ran.code(), ran.stdout.as_str()), (Some(3), ""));
        assert!(ran.stderr.contains("unset it"), "{}", ran.stderr);
    }
}

/// Whether a program of the same user can read the environment of `pid`.
fn is_readable(pid: u32) -> bool {
    let path = format!("/proc/{pid}/environ");
    unprivileged(&["cat", &path]).run().code() == Some(0)
}

#[test]
fn what_a_broker_and_a_client_hold_is_closed_to_programs_of_the_same_user() {
    // A server that accepts requests and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let program = env!("CARGO_BIN_EXE_taskpass");
    let rights = [
        "--resource",
        "orders-api",
        "--action",
        "orders:read",
        "--task-type",
        "job",
        "--url",
        &url,
    ];
    let token_in = |command: &[&str]| {
        unprivileged(&[&[program][..], command, &rights].concat()).env("TASKPASS_TOKEN", "secret")
    };
    let cache = tempfile::tempdir().unwrap();
    let cached = cache.path().to_str().unwrap().to_owned();
    let chown = |path: &std::path::Path| {
        if is_root() {
            std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
        }
    };
    std::fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o700)).unwrap();
    chown(cache.path());
    silent.set_nonblocking(true).unwrap();
    for command in [
        &["request"][..],
        &["aws", "credential-process", "--cache-dir", &cached],
    ] {
        let process = token_in(command).spawn();
        // Once the client has connected, it has started and holds its token.
        let mut taken = None;
        wait_until("the client connects", SOON, || {
            taken = silent.accept().ok();
            taken.is_some()
        });
        assert!(!is_readable(process.pid()), "{command:?}");
    }
    let mut control = unprivileged(&["sh", "-c", "echo up; exec sleep 60"]).spawn();
    control.wait_for_output("up");
    assert!(
        is_readable(control.pid()),
        "the environment of an unprotected program is readable"
    );

    // A broker in a directory of that user.
    let script = format!(
        "chown -R {UNPRIVILEGED} . && exec setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} \
         --clear-groups {program} serve --config taskpass.toml"
    );
    let script = if is_root() {
        script
    } else {
        format!("exec {program} serve --config taskpass.toml")
    };
    let mut broker = crate::files::broker(Launch::program("/bin/sh", ["-c", &script])).spawn();
    broker.wait_for_output("serving");
    assert!(!is_readable(broker.pid()), "a broker");
    broker.terminate();
}
