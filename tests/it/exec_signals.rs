//! `taskpass exec` passes signals on to its command: as a container's first process, as a job of a
//! shell, and without a terminal.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use taskpass::clock::Timestamp;

use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS, Replica};
use crate::support::moto::python_program;
use crate::support::process::{Launch, Process, Signal};
use crate::support::{SOON, terminal, wait_until};

/// Python program that prints every signal it receives, and exits with 7 once the file `stop`
/// exists.
const COUNTER: &str = r#"
import os, signal, sys, time
def tell(number, frame):
    # One write: a handler may run inside another print.
    os.write(1, f"got {signal.Signals(number).name}\n".encode())
for name in "INT TERM HUP QUIT USR1 USR2".split():
    signal.signal(getattr(signal, "SIG" + name), tell)
os.write(1, f"up {os.getpid()}\n".encode())
while not os.path.exists("stop"):
    time.sleep(0.02)
sys.exit(7)
"#;

fn python() -> String {
    python_program("python").display().to_string()
}

/// `taskpass exec` with these options.
fn exec(replica: &Replica, options: &[&str]) -> Vec<String> {
    exec_at(replica.address, options)
}

fn exec_at(address: SocketAddr, options: &[&str]) -> Vec<String> {
    let url = format!("http://{address}");
    let fixed = [
        env!("CARGO_BIN_EXE_taskpass"),
        "exec",
        "--url",
        &url,
        "--token-file",
        "token",
    ];
    let all = fixed.iter().chain(&ORDERS_ARGUMENTS).chain(options);
    all.map(|part| (*part).to_owned()).collect()
}

fn words(words: &[String]) -> String {
    let quoted = words.iter().map(|word| format!("'{word}'"));
    quoted.collect::<Vec<_>>().join(" ")
}

/// Runs a program at a terminal, with a person who performs these steps, and returns the output.
fn at_a_terminal(fleet: &Fleet, program: &[String], steps: &Value) -> String {
    let ran = terminal::launch(program, steps)
        .file("count.py", COUNTER)
        .file("token", fleet.token())
        .env("PS1", "prompt> ")
        .run();
    assert_eq!(ran.code(), Some(0), "{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

fn without_terminal(fleet: &Fleet, program: &[String]) -> Launch {
    // `setsid` gives the program its own session and process group. `env --default-signal` resets
    // signals that the test's own process may ignore.
    let mut arguments = vec!["env".to_owned(), "--default-signal".to_owned()];
    arguments.extend_from_slice(program);
    Launch::program("setsid", arguments)
        .file("count.py", COUNTER)
        .file("token", fleet.token())
}

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

fn signal_group(process: &Process, name: &str) {
    let group = format!("-{}", process.pid());
    let sent = Command::new("kill")
        .args(["-s", name, "--", &group])
        .status();
    assert!(sent.unwrap().success());
}

async fn newest(fleet: &Fleet, replica: &Replica) -> Value {
    let listed = replica.client.get_as(&fleet.admin, "/v1/sessions").await;
    listed.expect(200)["sessions"][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_typed_at_a_terminal_reaches_the_command_once() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let python = python();
    let command = exec(&replica, &["--", &python, "count.py"]);
    // A duplicate of the first signal would arrive before the second signal.
    let steps = json!([
        ["wait", "up"],
        ["type", "\u{3}"],
        ["wait", "got SIGINT"],
        ["signal", "USR1"],
        ["wait", "got SIGUSR1"],
        ["file", "stop"],
    ]);
    let from_nothing = format!("exec {} </dev/null", words(&command));
    let from_nothing = ["sh", "-c", &from_nothing].map(str::to_owned).to_vec();
    for program in [command, from_nothing] {
        let seen = at_a_terminal(&fleet, &program, &steps);
        assert_eq!(count(&seen, "got SIGINT"), 1, "{seen}");
        assert_eq!(count(&seen, "got SIGUSR1"), 1, "{seen}");
        assert!(seen.contains("exit=7"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_reads_the_terminal_gets_it_and_gives_it_back() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let script = format!("read line; echo said:$line; exec {} count.py", python());
    let command = words(&exec(&replica, &["--", "sh", "-c", &script]));
    // This shell has no job control, so its commands are in its own process group.
    let shell = format!("{command}; echo code:$?; read line; echo after:$line");
    let program = ["sh", "-c", &shell].map(str::to_owned);
    let steps = json!([
        ["type", "hello\n"],
        ["wait", "said:hello"],
        ["wait", "up"],
        ["type", "\u{3}"],
        ["wait", "got SIGINT"],
        ["file", "stop"],
        ["wait", "code:7"],
        ["type", "world\n"],
        ["wait", "after:world"],
    ]);
    let seen = at_a_terminal(&fleet, &program, &steps);
    assert_eq!(count(&seen, "got SIGINT"), 1, "{seen}");
    assert!(seen.contains("exit=0"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_a_shell_is_stopped_continued_and_interrupted_with_its_command() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let python = python();
    for first in ["", "read line; "] {
        let script = format!("{first}exec {python} count.py");
        let command = words(&exec(&replica, &["--", "sh", "-c", &script]));
        let shell = ["bash", "--norc", "--noprofile", "-i"].map(str::to_owned);
        let steps = json!([
            ["type", format!("{command}\n")],
            // Input for the command that reads first.
            ["type", "\n"],
            ["wait", "up "],
            ["state", "SR"],
            ["holder", "job"],
            ["type", "\u{1a}"],
            ["wait", "Stopped"],
            ["state", "T"],
            ["holder", "bash"],
            ["type", "fg\n"],
            ["state", "SR"],
            ["holder", "job"],
            ["type", "\u{1a}"],
            ["wait", "Stopped"],
            ["state", "T"],
            ["holder", "bash"],
            ["type", "bg\n"],
            ["wait", "' &"],
            ["wait", "prompt> "],
            ["state", "SR"],
            ["type", "fg\n"],
            ["holder", "job"],
            ["type", "\u{3}"],
            ["wait", "got SIGINT"],
            ["file", "stop"],
            ["holder", "bash"],
            ["type", "echo code:$?\n"],
            ["wait", "code:7"],
            ["type", "exit\n"],
        ]);
        let seen = at_a_terminal(&fleet, &shell, &steps);
        assert_eq!(count(&seen, "got SIGINT"), 1, "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_each_signal_reaches_the_command_once_however_it_is_sent() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let command = exec(&replica, &["--", &python(), "count.py"]);
    let mut process = without_terminal(&fleet, &command).spawn();
    process.wait_for_output("up");
    process.signal(Signal::Int);
    process.wait_for_output("got SIGINT");
    // Signal the whole group, as a CI runner does.
    signal_group(&process, "TERM");
    process.wait_for_output("got SIGTERM");
    process.signal(Signal::Hup);
    process.wait_for_output("got SIGHUP");
    std::fs::write(process.dir().join("stop"), "").unwrap();
    assert_eq!(process.wait(SOON).code(), Some(7));
    for name in ["got SIGINT", "got SIGTERM", "got SIGHUP"] {
        assert_eq!(count(&process.stdout(), name), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_that_ends_the_command_is_its_exit_code() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    for (name, code) in [("TERM", 143), ("KILL", 137), ("INT", 130)] {
        let script = format!("kill -s {name} $$");
        let command = exec(&replica, &["--", "sh", "-c", &script]);
        let ran = without_terminal(&fleet, &command).run();
        assert_eq!(ran.code(), Some(code), "{name}: {}", ran.stderr);
    }
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// The rest of the line that begins with `word`.
fn number(text: &str, word: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(word));
    lines.next().unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_task_ends_after_every_process_of_the_commands_group() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    // The background process needs two seconds to end after SIGTERM, and its parent does not wait
    // for it.
    let script = "sh -c 'trap \"sleep 2; date +%s >bye; exit\" TERM; echo left $$; \
                  while :; do sleep 0.05; done' & \
                  until test -s told; do grep left stdout.log >told; done; exit 3";
    let command = exec(&replica, &["--", "sh", "-c", script]);
    let mut process = without_terminal(&fleet, &command).spawn();
    assert_eq!(process.wait(SOON).code(), Some(3), "{}", process.stderr());
    let left = number(&process.stdout(), "left ");
    assert!(!is_alive(&left), "{left}");
    let bye = std::fs::read_to_string(process.dir().join("bye")).unwrap();
    let bye: i64 = bye.trim().parse().unwrap();
    let over = newest(&fleet, &replica).await["ended_at"].clone();
    let over: Timestamp = serde_json::from_value(over).unwrap();
    assert!(over.seconds() >= bye, "{} before {bye}", over.seconds());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_end_when_it_is_told_to_is_killed_after_the_grace() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let deaf = "trap '' TERM; echo left $$; while :; do sleep 0.05; done";
    let script = format!(
        "sh -c \"{}\" & until test -s told; do grep left stdout.log >told; done",
        deaf.replace('$', "\\$")
    );
    let command = exec(&replica, &["--grace", "1", "--", "sh", "-c", &script]);
    let mut process = without_terminal(&fleet, &command).spawn();
    assert_eq!(process.wait(SOON).code(), Some(0), "{}", process.stderr());
    assert!(!is_alive(&number(&process.stdout(), "left ")));

    // The same for a command whose task has ended.
    let options = ["--grace", "1", "--heartbeat", "3", "--", "sh", "-c", deaf];
    let mut process = without_terminal(&fleet, &exec(&replica, &options)).spawn();
    process.wait_for_output("left");
    let task = newest(&fleet, &replica).await["task_id"].clone();
    let revocation = json!({"selector": {"task": task}, "reason": "test"});
    let revoked = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &revocation)
        .await;
    assert!(revoked.status < 300, "{}", revoked.text());
    assert_eq!(process.wait(SOON).code(), Some(1), "{}", process.stderr());
    assert!(!is_alive(&number(&process.stdout(), "left ")));
}

/// `taskpass exec` as the first process of a new process namespace, as in a container.
fn as_first_process(fleet: &Fleet, command: &[String]) -> Launch {
    let root = rustix::process::geteuid().is_root();
    let user: &[&str] = if root {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let mut arguments: Vec<String> = user.iter().map(|word| (*word).to_owned()).collect();
    arguments.extend(["--pid", "--fork", "--mount-proc"].map(str::to_owned));
    let probe = Command::new("unshare")
        .args(&arguments)
        .arg("true")
        .output();
    let probe = probe.unwrap();
    assert!(
        probe.status.success(),
        "this system makes no process namespaces, which this test needs: {}",
        String::from_utf8_lossy(&probe.stderr)
    );
    arguments.extend(command.iter().cloned());
    Launch::program("unshare", arguments).file("token", fleet.token())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_the_first_process_of_a_container_it_passes_signals_on_and_reaps_orphans() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    // The parents of these processes end first.
    let orphans = "test $PPID = 1 || exit 9; \
                   for n in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0.1 & setsid sleep 0.1 &'; done; sleep 0.3; \
                   while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do sleep 0.05; done; exit 4";
    let ran = as_first_process(&fleet, &exec(&replica, &["--", "sh", "-c", orphans])).run();
    assert_eq!(ran.code(), Some(4), "{}", ran.stderr);

    let told = "trap 'echo told; exit 5' TERM; kill -TERM 1; while :; do sleep 0.05; done";
    let ran = as_first_process(&fleet, &exec(&replica, &["--", "sh", "-c", told])).run();
    assert_eq!(ran.code(), Some(5), "{}", ran.stderr);
    assert_eq!(count(&ran.stdout, "told"), 1);

    let killed = as_first_process(
        &fleet,
        &exec(&replica, &["--", "sh", "-c", "kill -KILL $$"]),
    );
    assert_eq!(killed.run().code(), Some(137));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_it_while_it_waits_for_the_broker() {
    let (fleet, _replica) = Fleet::sqlite().start().await;
    // The server accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let command = exec_at(silent.local_addr().unwrap(), &["--", "echo", "ran"]);
    let mut process = without_terminal(&fleet, &command).spawn();
    let (_connection, _) = silent.accept().unwrap();
    process.signal(Signal::Term);
    assert_eq!(process.wait(SOON).code(), Some(143), "{}", process.stderr());
    assert!(!process.stdout().contains("ran"));
}

/// Waits until the process has a handler for SIGTERM.
fn wait_until_it_listens(process: &Process) {
    let status = format!("/proc/{}/status", process.pid());
    wait_until("the process handles SIGTERM", SOON, || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        // SIGTERM is signal 15.
        caught.is_some_and(|bits| bits & (1 << 14) != 0)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_it_while_it_reads_its_attestation() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let url = format!("http://{}", replica.address);
    // A pipe without a writer, and a standard input that does not end.
    for (file, input) in [("pipe", "</dev/null"), ("-", "<>pipe")] {
        let script = format!("mkfifo pipe; exec \"$0\" \"$@\" {input}");
        let mut command = vec!["sh", "-c", &script, env!("CARGO_BIN_EXE_taskpass"), "exec"];
        command.extend(["--url", &url, "--token-file", file]);
        command.extend(ORDERS_ARGUMENTS);
        command.extend(["--", "echo", "ran"]);
        let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
        let mut process = without_terminal(&fleet, &command).spawn();
        wait_until_it_listens(&process);
        // Give the process time to start reading; an earlier signal would end it too.
        std::thread::sleep(Duration::from_millis(300));
        process.signal(Signal::Term);
        assert_eq!(process.wait(SOON).code(), Some(143), "{}", process.stderr());
        assert!(!process.stdout().contains("ran"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let script = "echo up $$; until test -e stop; do sleep 0.05; done; exit 7";
    // `nohup` ignores signals in this way, and so does `sh` for its background jobs.
    let ignoring = ["env", "--ignore-signal=HUP", "--ignore-signal=INT"];
    let mut command: Vec<String> = ignoring.map(str::to_owned).to_vec();
    command.extend(exec(&replica, &["--", "sh", "-c", script]));
    let mut process = without_terminal(&fleet, &command).spawn();
    process.wait_for_output("up ");
    process.signal(Signal::Int);
    process.signal(Signal::Hup);
    // The command inherits the ignored signals, so it also survives those sent to its own group.
    let child = number(&process.stdout(), "up ");
    for name in ["INT", "HUP"] {
        let sent = Command::new("kill")
            .args(["-s", name, "--", &child])
            .status();
        assert!(sent.unwrap().success());
    }
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(process.dir().join("stop"), "").unwrap();
    assert_eq!(process.wait(SOON).code(), Some(7), "{}", process.stderr());
}
