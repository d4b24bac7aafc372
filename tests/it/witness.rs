//! Witnesses cosign the log's checkpoints. The tests check that this convinces third parties, and
//! that a witness's faults affect nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use taskpass::clock::Timestamp;

use crate::rewind::{copy_directory, restore};
use crate::support::fleet::{Fleet, Replica, vkeys};
use crate::support::issuer::unix_seconds;
use crate::support::process::{Ended, Launch};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::witness::{Manner, Witness};
use crate::support::{SOON, until, wait_until};

fn cli(fleet: &Fleet, replica: &Replica, arguments: &[&str]) -> Ended {
    Launch::taskpass(arguments.iter().copied())
        .env("TASKPASS_URL", format!("http://{}", replica.address))
        .env("TASKPASS_TOKEN", &fleet.admin)
        .run()
}

fn offline(receipt: &str, arguments: &[&str]) -> Ended {
    let command = ["ledger", "verify", "receipt.json"];
    Launch::taskpass(command.iter().chain(arguments).copied())
        .file("receipt.json", receipt)
        .run()
}

fn time(seconds: i64) -> String {
    Timestamp::from_seconds(seconds).to_string()
}

fn log_keys(rig: &Rig) -> Vec<String> {
    let keys = rig.broker.core.ledger().keys();
    keys.iter().map(|key| key.verifier.to_string()).collect()
}

/// Restarts the rig with these witnesses, which know its log.
async fn witnessed(rig: &mut Rig, witnesses: &[&Witness]) {
    for witness in witnesses {
        witness.trust(&log_keys(rig));
    }
    let tables: String = witnesses.iter().map(|witness| witness.table()).collect();
    rig.have_witnesses(&tables);
    rig.restart().await.unwrap();
}

async fn issue(rig: &Rig) {
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    asked.unwrap();
}

/// The size that a witness last cosigned, as stored.
async fn kept(rig: &Rig, witness: &Witness) -> Option<u64> {
    let store = rig.broker.core.store();
    store.last_cosigned(witness.vkey()).await.unwrap()
}

/// Waits until the stored cosignature covers everything that the rig's broker has appended.
async fn caught_up(rig: &Rig, witness: &Witness) {
    until("the witness has signed all", SOON, async || {
        kept(rig, witness).await == Some(rig.broker.core.ledger().basis())
    })
    .await;
}

fn failures(rig: &Rig, witness: &Witness, reason: &str) -> bool {
    let name = witness.name();
    let counted =
        format!("taskpass_witness_failures_total{{witness=\"{name}\",reason=\"{reason}\"}}");
    rig.broker.core.metrics().render().contains(&counted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witnessed_receipt_shows_offline_that_a_decision_was_logged_before_its_use() {
    let witness = Witness::start("witness.test/w", Manner::Good);
    let (fleet, replica) = Fleet::sqlite().tables(&witness.table()).start().await;
    let keys = vkeys(&fleet, &replica).await;
    let granted = replica.ask(&fleet.token()).await.expect(201);
    let decision = granted["decision"]["id"].as_str().unwrap().to_owned();
    let index = granted["receipt"]["index"].to_string();
    // The witness does not know the log yet.
    let early = cli(
        &fleet,
        &replica,
        &["ledger", "receipt", &decision, "--witnessed"],
    );
    assert_eq!(early.code(), Some(1), "{early:?}");
    assert!(early.stderr.contains("that a witness signed"), "{early:?}");
    let plain = cli(&fleet, &replica, &["ledger", "receipt", &index]);
    assert_eq!(plain.code(), Some(0), "{plain:?}");
    wait_until("the witness refuses the log", SOON, || {
        let process = &replica.process;
        format!("{}{}", process.stdout(), process.stderr()).contains("does not know this log (404)")
    });
    witness.trust(&keys);
    let mut receipt = None;
    wait_until("there is a witnessed receipt", SOON, || {
        let shown = cli(
            &fleet,
            &replica,
            &["ledger", "receipt", &decision, "--witnessed"],
        );
        receipt = (shown.code() == Some(0)).then_some(shown.stdout);
        receipt.is_some()
    });
    let receipt = receipt.unwrap();
    let now = unix_seconds();
    let all = |receipt: &str, used: &str| {
        offline(
            receipt,
            &[
                "--key",
                &keys[0],
                "--witness",
                witness.vkey(),
                "--used-at",
                used,
            ],
        )
    };
    let holds = all(&receipt, &time(now + 5));
    assert_eq!(holds.code(), Some(0), "{holds:?}");
    let says = "according to the clock of the witness witness.test/w";
    assert!(holds.stdout.contains("logged before use: yes"), "{holds:?}");
    assert!(holds.stdout.contains(says), "{holds:?}");
    // A use at the decision's own time is too early.
    let decided: serde_json::Value = serde_json::from_str(&receipt).unwrap();
    let decided = STANDARD.decode(decided["leaf"].as_str().unwrap()).unwrap();
    let decided: serde_json::Value = serde_json::from_slice(&decided).unwrap();
    let late = all(&receipt, decided["at"].as_str().unwrap());
    assert_eq!(late.code(), Some(1), "{late:?}");
    assert!(late.stdout.contains("which is after the use"), "{late:?}");
    // Without the cosignature, the same receipt proves nothing about the time.
    let used = time(now + 5);
    let alone = offline(&plain.stdout, &["--key", &keys[0], "--used-at", &used]);
    assert_eq!(alone.code(), Some(1), "{alone:?}");
    let unused = offline(&plain.stdout, &["--key", &keys[0]]);
    assert_eq!(unused.code(), Some(0), "{unused:?}");

    // Later leaves change nothing: the oldest checkpoint that covers the leaf gives the earliest
    // time.
    let before = witness.size();
    replica.ask(&fleet.token()).await.expect(201);
    wait_until("the witness has signed more", SOON, || {
        witness.size() > before
    });
    let by_name = ["ledger", "receipt", &index, "--witness", "witness.test/w"];
    let again = cli(&fleet, &replica, &by_name);
    assert_eq!(again.code(), Some(0), "{again:?}");
    let size = |receipt: &str| -> serde_json::Value {
        let receipt: serde_json::Value = serde_json::from_str(receipt).unwrap();
        receipt["tree_size"].clone()
    };
    assert_eq!(size(&again.stdout), size(&receipt));
    assert_eq!(all(&again.stdout, &time(now + 5)).code(), Some(0));
    let nobody = ["ledger", "receipt", &index, "--witness", "witness.test/v"];
    assert_eq!(cli(&fleet, &replica, &nobody).code(), Some(1));

    let own = format!("/v1/ledger/entries/{index}/proof");
    let token = fleet.token();
    let seen = replica
        .client
        .get_as(&token, &format!("{own}?witnessed=true"))
        .await;
    assert_eq!(
        seen.expect(200)["tree_size"],
        size(&receipt),
        "its own, too"
    );
    let both = format!("{own}?witnessed=true&tree_size=1");
    assert_eq!(replica.client.get_as(&fleet.admin, &both).await.status, 400);
    let metrics = replica.client.get("/metrics").await.text();
    for line in [
        "taskpass_witness_size{witness=\"witness.test/w\"} ",
        "taskpass_witness_timestamp_seconds{witness=\"witness.test/w\"} ",
        "taskpass_witness_failures_total{witness=\"witness.test/w\",reason=\"refused\"} ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}

/// Whether the metrics count any failure of a witness with this label.
fn has_failures(metrics: &str, label: &str) -> bool {
    metrics.lines().any(|line| {
        line.starts_with("taskpass_witness_failures_total{")
            && line.contains(label)
            && !line.ends_with(" 0")
    })
}

on_both_stores! {
    fn after_a_restart_a_witness_is_told_from_where_it_was_left;
}

async fn after_a_restart_a_witness_is_told_from_where_it_was_left(mut rig: Rig) {
    let witness = Witness::start("witness.test/w", Manner::Good);
    witnessed(&mut rig, &[&witness]).await;
    issue(&rig).await;
    caught_up(&rig, &witness).await;
    let left = witness.size();
    let before = witness.asked();
    assert!(
        before.iter().all(|(.., status)| *status == 200),
        "{before:?}"
    );
    assert_eq!(before[0].0, 0);
    rig.restart().await.unwrap();
    issue(&rig).await;
    caught_up(&rig, &witness).await;
    let asked = witness.asked()[before.len()..].to_vec();
    assert_eq!(asked[0].0, left, "{asked:?}");
    assert!(asked.iter().all(|(.., status)| *status == 200), "{asked:?}");
    // A witness that lost its state says so, and receives the log from the beginning.
    witness.forget();
    issue(&rig).await;
    caught_up(&rig, &witness).await;
    let asked = witness.asked();
    let size = witness.size();
    assert!(asked.ends_with(&[(0, size, 200)]), "{asked:?}");
    assert!(!has_failures(&rig.broker.core.metrics().render(), ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_have_one_witness_follow_one_log() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let witness = Witness::start("witness.test/w", Manner::Good);
    witnessed(&mut rig, &[&witness]).await;
    let other = rig.replica().await;
    for _ in 0..3 {
        issue(&rig).await;
        let evidence = rig.evidence("agent:reports");
        other
            .broker
            .issuance
            .issue(evidence, ask(&["orders:read"]))
            .await
            .unwrap();
    }
    // Each replica knows its own batches, and the last one's tree is the largest.
    until("the witness has signed all", SOON, async || {
        kept(&rig, &witness).await == Some(other.broker.core.ledger().basis())
    })
    .await;
    for broker in [&rig.broker, &other.broker] {
        let metrics = broker.core.metrics().render();
        assert!(!has_failures(&metrics, ""), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_witness_does_holds_up_a_decision_or_another_witness_and_all_is_counted() {
    let manners = [
        (Manner::Hang, "unreachable"),
        (Manner::Status(500), "unreachable"),
        (Manner::Status(403), "refused"),
        (Manner::Redirect, "refused"),
        (Manner::Flood, "unusable"),
        (Manner::Say("garbage"), "unusable"),
        (Manner::Say(""), "unusable"),
        (Manner::SignOther, "unusable"),
        (Manner::OtherKey, "unusable"),
        (Manner::Clock(-900), "unusable"),
        (Manner::Status(409), "unusable"),
        (Manner::Restless, "unusable"),
        (Manner::Saw(1_000_000), "inconsistent"),
        (Manner::Status(422), "inconsistent"),
    ];
    let good = Witness::start("witness.test/good", Manner::Good);
    let bad: Vec<Witness> = manners
        .iter()
        .enumerate()
        .map(|(n, (manner, _))| Witness::start(&format!("witness.test/{n}"), *manner))
        .collect();
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    let all: Vec<&Witness> = bad.iter().chain([&good]).collect();
    witnessed(&mut rig, &all).await;
    issue(&rig).await;
    caught_up(&rig, &good).await;
    issue(&rig).await;
    caught_up(&rig, &good).await;
    for (witness, (manner, reason)) in bad.iter().zip(manners) {
        until(
            &format!("{manner:?} is counted as {reason}"),
            SOON,
            async || failures(&rig, witness, reason),
        )
        .await;
        assert_eq!(kept(&rig, witness).await, None, "{manner:?}");
    }
    let metrics = rig.broker.core.metrics().render();
    assert!(!has_failures(&metrics, "witness=\"witness.test/good\""));
    // A witness that recovers receives everything it missed.
    for witness in &bad {
        witness.forget();
        witness.set(Manner::Good);
    }
    issue(&rig).await;
    for witness in all {
        caught_up(&rig, witness).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_set_back_is_contradicted_by_the_witness_that_signed_it() {
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    let witness = Witness::start("witness.test/w", Manner::Good);
    witnessed(&mut rig, &[&witness]).await;
    issue(&rig).await;
    rig.stop().await;
    let backup = rig.directory().join("backup");
    copy_directory(&rig.directory().join("data"), &backup);
    rig.restart().await.unwrap();
    issue(&rig).await;
    caught_up(&rig, &witness).await;
    let signed = witness.size();
    rig.stop().await;
    restore(&rig, &backup);
    // The replica's own checkpoint is deleted too, so only the witness can detect the loss.
    rig.restart().await.unwrap();
    while rig.broker.core.ledger().basis() <= signed {
        issue(&rig).await;
    }
    until("the witness contradicts", SOON, async || {
        failures(&rig, &witness, "inconsistent")
    })
    .await;
    assert_eq!(
        witness.size(),
        signed,
        "the witness must not sign the other tree"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_no_witness_signed_silences_no_witness() {
    let witness = Witness::start("witness.test/w", Manner::Good);
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    witnessed(&mut rig, &[&witness]).await;
    issue(&rig).await;
    caught_up(&rig, &witness).await;
    let store = rig.broker.core.store();
    let size = witness.size();
    let rows = store.cosigned_until(witness.vkey(), size, 1).await.unwrap();
    for more in [1, 1_000_000] {
        let mut forged = rows[0].clone();
        forged.size = size + more;
        store.put_cosigned(&forged).await.unwrap();
    }
    issue(&rig).await;
    until("the witness has signed all", SOON, async || {
        witness.size() == rig.broker.core.ledger().basis()
    })
    .await;
    assert!(failures(&rig, &witness, "inconsistent"));
    let shown = format!(
        "taskpass_witness_size{{witness=\"witness.test/w\"}} {}\n",
        witness.size()
    );
    until("the size is the witness's", SOON, async || {
        rig.broker.core.metrics().render().contains(&shown)
    })
    .await;
}
