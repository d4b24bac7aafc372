//! `ledger events` with a pruned log, and with a log from a pipe.

use taskpass::merkle::{LogEntry, leaf_hash, write_log_entry};

use super::*;

/// The exported log, and the key that signs it.
async fn exported(fleet: &Fleet, replica: &Replica) -> (String, String) {
    let log = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/export")
        .await;
    assert_eq!(log.status, 200);
    let mut keys = crate::support::fleet::vkeys(fleet, replica).await;
    (log.text(), keys.remove(0))
}

fn arguments<'a>(file: &'a str, vkey: &'a str) -> Vec<&'a str> {
    vec![
        "ledger",
        "events",
        file,
        "--key",
        vkey,
        "--issuer",
        "http://127.0.0.1:7070",
        "--format",
        "cloudevents",
    ]
}

/// The log without the bodies of its first entries.
fn pruned(log: &str, entries: usize) -> String {
    let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
    for (index, line) in lines[1..=entries].iter_mut().enumerate() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let leaf = STANDARD.decode(entry["leaf"].as_str().unwrap()).unwrap();
        let mut written = Vec::new();
        let entry = LogEntry {
            index: index as u64,
            hash: leaf_hash(&leaf),
            leaf: None,
        };
        write_log_entry(&mut written, &entry).unwrap();
        let written = String::from_utf8(written).unwrap();
        written.trim_end().clone_into(line);
    }
    lines.join("\n") + "\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pruned_is_left_out_only_where_something_later_is_older() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    for _ in 0..3 {
        granted(&fleet, &replica).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (log, vkey) = exported(&fleet, &replica).await;
    let entries = log.lines().count() - 1;
    let told = |log: String, since: &str| {
        let more = ["--since", since];
        let ended = Launch::taskpass(arguments("log.jsonl", &vkey).into_iter().chain(more))
            .file("log.jsonl", log)
            .run();
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        lines(&ended.stdout)
    };
    let whole = told(log.clone(), "2020-01-01T00:00:00Z");
    assert_eq!(whole.len(), entries);
    let gone = pruned(&log, 2);
    let all = told(gone.clone(), "2020-01-01T00:00:00Z");
    let ids = |events: &[Value]| events.iter().map(|e| e["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&all), ids(&whole), "no entry is known to be older");
    assert!(all[0].get("time").is_none() && all[2].get("time").is_some());
    // With the last entry's time as the limit, the third entry shows that the first two are older.
    let last = whole[entries - 1]["time"].as_str().unwrap();
    assert_eq!(ids(&told(gone, last)), ids(&whole[entries - 1..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_from_a_pipe_is_told_to_be_none_that_can_be_read_twice() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let (log, vkey) = exported(&fleet, &replica).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log.jsonl"), &log).unwrap();
    let run = |stdin: std::process::Stdio| {
        std::process::Command::new(env!("CARGO_BIN_EXE_taskpass"))
            .args(arguments("/dev/stdin", &vkey))
            .stdin(stdin)
            .output()
            .unwrap()
    };
    let (reader, mut pipe) = std::io::pipe().unwrap();
    let writing = std::thread::spawn(move || drop(pipe.write_all(log.as_bytes())));
    let ended = run(reader.into());
    writing.join().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("is not a regular file"), "{said}");
    let file = std::fs::File::open(dir.path().join("log.jsonl")).unwrap();
    let ended = run(file.into());
    assert_eq!(ended.status.code(), Some(0));
    assert!(!ended.stdout.is_empty());
}
