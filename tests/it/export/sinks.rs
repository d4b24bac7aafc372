//! Settings of sinks: checkpoints, the start, faults that the check reports.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_checkpoint_goes_to_a_webhook_that_wants_them_and_holds_under_the_logs_key() {
    let receiver = Receiver::start([
        Reply::Status(500, String::new()),
        Reply::Status(503, String::new()),
    ]);
    let sinks = webhook(&receiver, "checkpoints = true\nfrom = \"now\"");
    let (fleet, replica) = Fleet::sqlite().tables(&sinks).start().await;
    let keys: Vec<taskpass::merkle::VerifierKey> = crate::support::fleet::vkeys(&fleet, &replica)
        .await
        .iter()
        .map(|key| key.parse().unwrap())
        .collect();
    for _ in 0..2 {
        granted(&fleet, &replica).await;
        let shown = replica.client.get_as(&fleet.admin, "/v1/ledger/checkpoint");
        let shown = shown.await.text();
        until("the receiver accepted the checkpoint", SOON, async || {
            let taken = receiver.taken();
            let notes = taken
                .iter()
                .map(|one| one.json()["data"]["checkpoint"].clone());
            notes.into_iter().any(|note| note == shown.as_str())
        })
        .await;
    }
    let mut told = 0;
    for delivery in receiver.taken() {
        assert!(delivery.verifies(SINK_SECRET), "{delivery:?}");
        let event = delivery.json();
        assert_eq!(event["id"], delivery.id());
        if event["type"] == "taskpass.checkpoint" {
            let note = event["data"]["checkpoint"].as_str().unwrap();
            let opened = taskpass::merkle::SignedCheckpoint::open(note.as_bytes(), &keys).unwrap();
            assert_eq!(event["data"]["size"], opened.checkpoint().size);
            told += 1;
        }
    }
    assert!(told >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_can_begin_with_what_comes_next() {
    let rig = Rig::on(Kind::Sqlite).start().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sinks = "[[export]]\nname = \"new\"\nformat = \"cloudevents\"\nto = \"file\"\npath = \"events\"\nfrom = \"now\"\n";
    let size = rig.broker.core.ledger().basis();
    let (told, ()) = tokio::join!(export_from(&rig, sinks, dir.path(), 1), async {
        let key = taskpass::store::exports::ExportKey {
            name: "new".into(),
            origin: "dev.taskpass.local/rig".into(),
        };
        until("the sink is registered", SOON, async || {
            rig.broker
                .core
                .store()
                .export_cursor(&key)
                .await
                .unwrap()
                .is_some()
        })
        .await;
        rig.issue("agent:reports", ask(&["orders:read"]))
            .await
            .unwrap();
    });
    assert_eq!(told.iter().map(index).collect::<Vec<_>>(), [size]);
}

#[test]
fn a_sink_that_cannot_work_is_told_by_check() {
    let sink = "[[export]]\nname = \"siem\"\nformat = \"ocsf\"\nto = \"webhook\"\n\
                url = \"https://siem.example\"\nsecret_file = \"sink.secret\"\n";
    let check = |secret: &str, sink: &str| {
        Launch::taskpass(["serve", "--check", "--config", "taskpass.toml"])
            .config(
                Fleet::sqlite()
                    .tables(sink)
                    .config(crate::support::free_address()),
            )
            .file("policies/fleet.cedar", POLICIES)
            .secret_file("sink.secret", secret)
            .env(
                "TASKPASS_SEALING_KEYS",
                "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            )
            .run()
    };
    let good = check(SINK_SECRET, sink);
    assert_eq!(good.code(), Some(0), "{}{}", good.stdout, good.stderr);
    assert!(good.stdout.contains("1 sink(s)"), "{}", good.stdout);
    for (secret, sink, problem) in [
        (
            "hunter2-hunter2-hunter2-hunter2",
            sink.to_owned(),
            "secret_file",
        ),
        (SINK_SECRET, sink.replace("https", "http"), "neither https"),
        (
            SINK_SECRET,
            sink.replace("sink.secret", "nowhere"),
            "cannot be read",
        ),
        (
            SINK_SECRET,
            format!("{sink}ca_file = \"sink.secret\"\n"),
            "ca_file",
        ),
    ] {
        let ended = check(secret, &sink);
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}
