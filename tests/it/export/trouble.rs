//! Receivers, disks and readers that fail, and brokers that are killed: no event is lost, and no
//! request waits.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_fails_in_every_way_slows_nobody_and_gets_everything_with_the_same_ids() {
    let elsewhere = Receiver::start([]);
    let location = format!("Location: {}\r\n", elsewhere.url());
    let receiver = Receiver::start([
        Reply::Hang,
        Reply::Status(307, location),
        Reply::Cut,
        Reply::Flood,
    ]);
    // One request at a time, so that every reply is for the same event until the receiver accepts
    // it.
    let sinks = hasty_webhook(&receiver, 2, "concurrency = 1");
    let (fleet, mut replica) = Fleet::sqlite().tables(&sinks).start().await;
    until("the first attempt hangs", SOON, async || {
        !receiver.deliveries().is_empty()
    })
    .await;
    for _ in 0..20 {
        granted(&fleet, &replica).await;
    }
    until("the metric shows the lag", SOON, async || {
        lag(&fleet, &replica, "siem").await > Some(19)
    })
    .await;
    let leaves = all_taken(&fleet, &replica, &receiver).await;
    is_metric(&fleet, &replica, "lag_entries", "siem", 0).await;
    let name = "taskpass_export_failures_total{sink=\"siem\"}";
    let failures = metric(&fleet, &replica, name).await.unwrap();
    assert!(failures >= 3, "{failures} of three");
    let all = receiver.deliveries();
    let first: Vec<&str> = all.iter().take(4).map(Delivery::id).collect();
    assert_eq!(
        first,
        [all[0].id(); 4],
        "the same event until the receiver accepts it"
    );
    let stamps: BTreeSet<&str> = all
        .iter()
        .take(4)
        .map(|d| d.header("webhook-timestamp"))
        .collect();
    assert!(stamps.len() > 1, "each attempt has its own timestamp");
    assert!(elsewhere.deliveries().is_empty(), "no redirect is followed");
    let taken = receiver.taken();
    let events = once(&taken);
    // An accepted event is repeated only if its answer was late, which counts as a failure.
    assert!(
        taken.len() as u64 <= events.len() as u64 + failures - 3,
        "{} of {}, {failures} failures",
        taken.len(),
        events.len()
    );
    assert_complete_and_ordered(&events, &leaves);
    replica.process.terminate();
    let log = replica.process.stderr();
    assert!(
        log.contains("the receiver answered 307") && log.contains("did not answer in time"),
        "{log}"
    );
    let event = format!("\"event\":\"{}\"", all[0].id());
    assert!(
        log.contains(&event),
        "the log names the event that fails: {log}"
    );
    assert!(
        !log.contains("secret-of-the-receiver") && !log.contains("tenant=7"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_ahead_of_what_was_refused_does_not_come_again() {
    let receiver = Receiver::start([Reply::Held]);
    let sinks = webhook(&receiver, "concurrency = 16");
    let (fleet, replica) = Fleet::sqlite().tables(&sinks).start().await;
    let alone = whole_log(&fleet, &replica).await.1.len();
    until("the first attempt hangs", SOON, async || {
        !receiver.deliveries().is_empty()
    })
    .await;
    for _ in 0..16 {
        granted(&fleet, &replica).await;
    }
    // The permits are sent at once. The receiver refuses one of them and accepts the others.
    let taken = std::iter::repeat_n(Reply::Status(204, String::new()), alone);
    receiver.reply(taken.chain([Reply::Status(500, String::new())]));
    receiver.release();
    let leaves = all_taken(&fleet, &replica, &receiver).await;
    is_metric(&fleet, &replica, "lag_entries", "siem", 0).await;
    let taken = receiver.taken();
    assert_eq!(taken.len(), leaves.len(), "each event is delivered once");
    assert_complete_and_ordered(&once(&taken), &leaves);
    assert_eq!(receiver.deliveries().len(), leaves.len() + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_gone_is_told_nothing_until_it_is_registered_anew() {
    let receiver = Receiver::start([
        Reply::Status(204, String::new()),
        Reply::Status(410, String::new()),
    ]);
    let (fleet, mut replica) = Fleet::sqlite()
        .tables(&webhook(&receiver, "concurrency = 1"))
        .start()
        .await;
    let disabled = async |replica: &Replica| {
        metric(&fleet, replica, "taskpass_export_disabled{sink=\"siem\"}").await == Some(1)
    };
    until("the sink is disabled", SOON, async || {
        disabled(&replica).await
    })
    .await;
    granted(&fleet, &replica).await;
    assert_eq!(receiver.deliveries().len(), 2);
    let log = |replica: &Replica| replica.process.stderr();
    assert!(log(&replica).contains("the sink answered 410 and gets nothing more"));
    let restart = async |replica: &mut Replica, change: &str| {
        replica.process.terminate();
        let file = replica.process.dir().join("taskpass.toml");
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, config.replace("revision = 1", change)).unwrap();
        replica.process.restart();
        replica.process.wait_ready(replica.address);
    };
    restart(&mut replica, "revision = 1").await;
    until("the sink is still disabled", SOON, async || {
        disabled(&replica).await
    })
    .await;
    assert_eq!(
        receiver.deliveries().len(),
        2,
        "a restart does not enable the sink again"
    );
    restart(&mut replica, "revision = 2").await;
    let leaves = all_taken(&fleet, &replica, &receiver).await;
    is_metric(&fleet, &replica, "disabled", "siem", 0).await;
    assert_complete_and_ordered(&once(&receiver.taken()), &leaves);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_deliveries_it_goes_on_where_it_was_and_leaves_nothing_out() {
    let receiver = Receiver::start(vec![Reply::Slow(Duration::from_millis(30)); 500]);
    let (fleet, mut replica) = Fleet::sqlite()
        .tables(&webhook(&receiver, ""))
        .start()
        .await;
    for round in 0..3 {
        let seen = receiver.deliveries().len();
        for _ in 0..4 {
            let granted = granted(&fleet, &replica).await;
            revoke(&fleet, &replica, &granted).await;
        }
        until("some events are delivered", SOON, async || {
            receiver.deliveries().len() > seen + round
        })
        .await;
        replica.process.kill();
        replica.process.restart();
        replica.process.wait_ready(replica.address);
    }
    let leaves = all_taken(&fleet, &replica, &receiver).await;
    assert_complete_and_ordered(&once(&receiver.taken()), &leaves);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_one_delivers_and_the_other_goes_on_when_it_is_killed() {
    let receiver = Receiver::start(vec![Reply::Slow(Duration::from_millis(20)); 500]);
    // After a kill, the other replica takes over the lease within six seconds.
    let sinks = hasty_webhook(&receiver, 2, "");
    let (fleet, one) = Fleet::postgres().tables(&sinks).start().await;
    let mut replicas = vec![one, fleet.replica()];
    for _ in 0..10 {
        for replica in &replicas {
            let granted = granted(&fleet, replica).await;
            revoke(&fleet, replica, &granted).await;
        }
    }
    // Kill the replica that is delivering.
    let pool = fleet.database().pool().await;
    let left = async || {
        let (left,): (i64,) = sqlx::query_as(
            "SELECT (SELECT max(size) FROM ledger_head) - next_idx FROM export_cursor",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        left
    };
    let mut delivered = Vec::new();
    for replica in &replicas {
        let name = "taskpass_export_delivered_total{sink=\"siem\"}";
        delivered.push(metric(&fleet, replica, name).await.unwrap_or(0));
    }
    let holder = usize::from(delivered[1] > delivered[0]);
    let mut killed = replicas.remove(holder);
    killed.process.kill();
    let rest = &replicas[0];
    for _ in 0..5 {
        let granted = granted(&fleet, rest).await;
        revoke(&fleet, rest, &granted).await;
    }
    until("the other replica delivered the rest", SOON, async || {
        left().await == 0
    })
    .await;
    let taken = receiver.taken();
    let events = once(&taken);
    assert_complete_and_ordered(&events, &whole_log(&fleet, rest).await.1);
    // No event came twice before the kill, and after it only those whose delivery was under way.
    assert!(
        taken.len() <= events.len() + 64,
        "{} of {}",
        taken.len(),
        events.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_nothing_costs_no_request_anything() {
    let sinks = "[[export]]\nname = \"disk\"\nformat = \"ocsf\"\nto = \"file\"\npath = \"events\"\n\
                 [[export]]\nname = \"pipe\"\nformat = \"ocsf\"\nto = \"file\"\npath = \"pipe\"\n\
                 timeout_seconds = 2\n";
    let (fleet, replica) = Fleet::sqlite().tables(sinks).start().await;
    let dir = replica.process.dir().to_owned();
    let begun = whole_log(&fleet, &replica).await.1.len() as u64;
    for sink in ["disk", "pipe"] {
        is_metric(&fleet, &replica, "delivered_total", sink, begun).await;
    }
    // One file becomes a directory, the other a pipe without a reader.
    std::fs::remove_file(dir.join("pipe")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(dir.join("pipe"))
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::rename(dir.join("events"), dir.join("away")).unwrap();
    std::fs::create_dir(dir.join("events")).unwrap();
    for _ in 0..10 {
        granted(&fleet, &replica).await;
    }
    for sink in ["disk", "pipe"] {
        let failures = format!("taskpass_export_failures_total{{sink=\"{sink}\"}}");
        until(&format!("{sink} failed"), SOON, async || {
            metric(&fleet, &replica, &failures).await >= Some(1)
        })
        .await;
        until(
            &format!("the metric shows the lag of {sink}"),
            SOON,
            async || lag(&fleet, &replica, sink).await >= Some(1),
        )
        .await;
    }
    std::fs::remove_dir(dir.join("events")).unwrap();
    std::fs::rename(dir.join("away"), dir.join("events")).unwrap();
    std::fs::remove_file(dir.join("pipe")).unwrap();
    let all = whole_log(&fleet, &replica).await.1.len() as u64;
    for sink in ["disk", "pipe"] {
        is_metric(&fleet, &replica, "delivered_total", sink, all).await;
    }
    let told = lines(&std::fs::read_to_string(dir.join("events")).unwrap());
    let sequence: Vec<u64> = told
        .iter()
        .map(|e| e["metadata"]["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequence, (0..all).collect::<Vec<_>>());
}

#[test]
fn standard_output_that_nobody_reads_holds_up_neither_the_broker_nor_its_end() {
    let (reader, mut full) = std::io::pipe().unwrap();
    // Fill the pipe's buffer, so that any further write waits for a reader.
    full.write_all(&vec![b'x'; 65_536]).unwrap();
    let sinks =
        "[[export]]\nname = \"out\"\nformat = \"ocsf\"\nto = \"stdout\"\ntimeout_seconds = 1\n";
    let config = Fleet::sqlite()
        .tables(sinks)
        .config(crate::support::free_address());
    let address = config
        .lines()
        .find_map(|line| line.strip_prefix("listen = "));
    let address = address.unwrap().trim_matches('"').to_owned();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    std::fs::write(dir.path().join("policies/a.cedar"), POLICIES).unwrap();
    std::fs::write(dir.path().join("taskpass.toml"), config).unwrap();
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random_bytes(32));
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_taskpass"))
        .arg("serve")
        .current_dir(dir.path())
        .env("TASKPASS_SEALING_KEYS", format!("tpk1_{key}"))
        .stdout(full)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let metric = |name: &str| {
        block_on(async || {
            let client = Client::new(&format!("http://{address}"));
            let answer = client.try_get("/metrics").await.ok()?;
            let text = answer.text();
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().parse::<u64>().unwrap())
        })
    };
    wait_until("the sink failed", SOON, || {
        metric("taskpass_export_failures_total{sink=\"out\"}") >= Some(1)
    });
    wait_until("the metric shows its lag", SOON, || {
        metric("taskpass_export_lag_entries{sink=\"out\"}") >= Some(1)
    });
    let ready = block_on(async || {
        let client = Client::new(&format!("http://{address}"));
        client.try_get("/readyz").await.unwrap().status
    });
    assert_eq!(ready, 200);
    let told = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status();
    assert!(told.unwrap().success());
    let mut ended = None;
    wait_until("the broker ends", SOON, || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0), "the broker stops in order");
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_rotated_by_copying_and_cutting_is_told_of_at_once() {
    let sinks =
        "[[export]]\nname = \"file\"\nformat = \"ocsf\"\nto = \"file\"\npath = \"events\"\n";
    let (fleet, replica) = Fleet::sqlite().tables(sinks).start().await;
    granted(&fleet, &replica).await;
    is_metric(&fleet, &replica, "lag_entries", "file", 0).await;
    let file = replica.process.dir().join("events");
    let told = "the file was cut while the broker wrote to it";
    // Rotation by renaming loses no event.
    std::fs::rename(&file, file.with_extension("1")).unwrap();
    granted(&fleet, &replica).await;
    is_metric(&fleet, &replica, "lag_entries", "file", 0).await;
    // The file is created before its first line is written.
    until("the new file has content", SOON, async || {
        std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    })
    .await;
    assert!(!replica.process.stderr().contains(told));
    // Like logrotate's `copytruncate`; no event is written afterwards.
    std::fs::copy(&file, file.with_extension("2")).unwrap();
    let cut = std::fs::File::options().write(true).open(&file).unwrap();
    cut.set_len(0).unwrap();
    until("the log reports the cut", SOON, async || {
        replica.process.stderr().contains(told)
    })
    .await;
    is_metric(&fleet, &replica, "truncated_total", "file", 1).await;
}
