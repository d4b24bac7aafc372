//! The commands and the receiver of docs/how-to/export-events.md.

use super::*;
use crate::support::free_address;
use crate::support::moto::python_program;

/// The page's code blocks in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let page = include_str!("../../../docs/how-to/export-events.md");
    let fence = format!("```{language}\n");
    let parts = page.split(fence.as_str()).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_sinks_its_receiver_and_its_commands_work_as_it_says() {
    let address = free_address();
    let sinks = blocks("toml").concat();
    assert!(sinks.contains("https://siem.example/taskpass"));
    let sinks = sinks
        .replace("https://siem.example", &format!("http://{address}"))
        .replace("siem.secret", "sink.secret");
    let (fleet, replica) = Fleet::sqlite().tables(&sinks).start().await;
    let arguments = [
        "receiver.py",
        "127.0.0.1",
        &address.port().to_string(),
        "secret",
    ];
    let receiver = Launch::program(python_program("python"), arguments)
        .file("receiver.py", blocks("python").concat())
        .file("secret", SINK_SECRET)
        .spawn();
    let one = granted(&fleet, &replica).await;
    revoke(&fleet, &replica, &one).await;
    let leaves = whole_log(&fleet, &replica).await.1;
    until(
        "the page's receiver accepted every event",
        SOON,
        async || receiver.stdout().lines().count() == leaves.len(),
    )
    .await;
    let file = replica.process.dir().join("events.jsonl");
    until("the file has every event", SOON, async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.lines().count() == leaves.len())
    })
    .await;
    let written = std::fs::read_to_string(&file).unwrap();
    let mut ids: Vec<String> = lines(&written)
        .iter()
        .map(|e| e["id"].as_str().unwrap().to_owned())
        .collect();
    let printed = receiver.stdout();
    let mut seen: Vec<String> = printed
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    ids.sort();
    seen.sort();
    assert_eq!(ids, seen, "the same ids at every sink");

    // `ledger events` produces the same events from the exported log, and refuses a changed log.
    let log = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/export")
        .await;
    assert_eq!(log.status, 200);
    let vkey = crate::support::fleet::vkeys(&fleet, &replica)
        .await
        .remove(0);
    let events = |log: String, more: &[&str]| {
        let arguments = [
            "ledger",
            "events",
            "log.jsonl",
            "--key",
            &vkey,
            "--issuer",
            "http://127.0.0.1:7070",
            "--format",
            "cloudevents",
        ];
        Launch::taskpass(arguments.iter().chain(more).copied())
            .file("log.jsonl", log)
            .run()
    };
    let again = events(log.text(), &[]);
    assert_eq!(again.code(), Some(0), "{}", again.stderr);
    assert_eq!(again.stdout, written);
    let later = lines(&written).pop().unwrap()["time"]
        .as_str()
        .unwrap()
        .to_owned();
    let last = events(log.text(), &["--since", &later]);
    assert_eq!(lines(&last.stdout).len(), 1, "{}", last.stdout);
    let mut cut: Vec<String> = log.text().lines().map(str::to_owned).collect();
    cut.pop();
    let cut = events(cut.join("\n"), &[]);
    assert_eq!(
        (cut.code(), cut.stdout.as_str()),
        (Some(1), ""),
        "{}",
        cut.stderr
    );
}
