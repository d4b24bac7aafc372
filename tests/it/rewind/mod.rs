//! A store that lost or changed leaves stops every broker that uses it, because the checkpoint that
//! the replicas share outside the store contradicts it.

mod failing_store;
mod poolers;

use std::path::Path;

use serde_json::Value;
use taskpass::broker::BrokerError;
use taskpass::ledger::LedgerStatus;
use taskpass::merkle::{Checkpoint, Note};

use crate::support::fleet::{Fleet, Replica};
use crate::support::object::{Manner, ObjectStore};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, make_private_directory, until};

/// The checkpoint in a note, without verification.
fn opened(note: &str) -> Checkpoint {
    let note = Note::parse(note.as_bytes()).unwrap();
    note.unverified_text().parse().unwrap()
}

/// A replica on PostgreSQL with one grant, and the object that holds its checkpoint.
async fn sharing() -> (Rig, ObjectStore) {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    rig.restart().await.unwrap();
    issue(&rig).await;
    published(&rig, || object.content()).await;
    (rig, object)
}

/// Waits until the shared checkpoint covers every entry of the rig's broker.
async fn published(rig: &Rig, read: impl Fn() -> Option<String>) -> Checkpoint {
    until("the checkpoint is published", SOON, async || {
        let size = rig.broker.core.ledger().basis();
        read().is_some_and(|note| opened(&note).size >= size)
    })
    .await;
    opened(&read().unwrap())
}

pub fn copy_directory(from: &Path, to: &Path) {
    make_private_directory(to);
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Restores an earlier copy of SQLite's data, and deletes the replica's own checkpoint.
pub fn restore(rig: &Rig, backup: &Path) {
    let data = rig.directory().join("data");
    std::fs::remove_dir_all(&data).unwrap();
    copy_directory(backup, &data);
    std::fs::remove_file(rig.directory().join("checkpoint")).unwrap();
}

async fn issue(rig: &Rig) {
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    asked.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_does_not_start_though_its_own_memory_was_lost_too() {
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    let place = rig.directory().join("place");
    let read = || std::fs::read_to_string(&place).ok();
    rig.share_checkpoint(&format!("file = \"{}\"", place.display()));
    rig.restart().await.unwrap();
    issue(&rig).await;
    rig.stop().await;
    let backup = rig.directory().join("backup");
    copy_directory(&rig.directory().join("data"), &backup);
    rig.restart().await.unwrap();
    let before = rig.broker.core.ledger().basis();
    issue(&rig).await;
    let last = published(&rig, read).await;
    assert!(last.size > before);
    rig.stop().await;
    restore(&rig, &backup);
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start")
        .to_string();
    for named in [
        format!("had size {} root {}", last.size, last.root),
        format!("shows size {before} root"),
        place.display().to_string(),
    ] {
        assert!(told.contains(&named), "{named} in {told}");
    }
    // Only the shared checkpoint detected it: with an empty one the broker starts.
    rig.share_checkpoint(&format!("file = \"{}-other\"", place.display()));
    rig.restart().await.unwrap();
    issue(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_file_that_is_missing_though_the_log_has_leaves_is_told_at_the_start() {
    let (fleet, mut replica) = Fleet::sqlite().start().await;
    replica.ask(&fleet.token()).await.expect(201);
    let told = |replica: &Replica| {
        let log = replica.process.stderr();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let missing = |line: &Value| {
            let message = line["message"].as_str().unwrap_or_default();
            message.starts_with("the checkpoint file is missing")
        };
        lines.filter(missing).collect::<Vec<Value>>()
    };
    assert!(
        told(&replica).is_empty(),
        "the log began with this start, so the file was expected to be missing"
    );
    let again = |replica: &mut Replica| {
        replica.process.restart();
        replica.process.wait_ready(replica.address);
    };
    replica.process.terminate();
    std::fs::remove_file(replica.process.dir().join("checkpoint")).unwrap();
    again(&mut replica);
    let lines = told(&replica);
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["file"], "checkpoint");
    assert!(line["leaves"].as_u64().unwrap() > 1, "{line}");
    let message = line["message"].as_str().unwrap();
    for text in ["new replica", "[ledger.shared_checkpoint]"] {
        assert!(message.contains(text), "{message}");
    }
    // The next start finds the file that this one wrote.
    replica.process.terminate();
    again(&mut replica);
    assert_eq!(told(&replica).len(), 1);
}

/// The result of an idle replica's request after a failover to a standby that lacks the last
/// leaves.
async fn after_a_lossy_failover(shared: bool) -> Result<(), BrokerError> {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let place = rig.directory().join("place");
    if shared {
        rig.share_checkpoint(&format!("file = \"{}\"", place.display()));
        rig.restart().await.unwrap();
    }
    let idle = rig.replica().await;
    let standby = rig.database().copy();
    let lost_from = rig.broker.core.ledger().basis();
    until("the broker works again", SOON, async || {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        asked.is_ok()
    })
    .await;
    if shared {
        published(&rig, || std::fs::read_to_string(&place).ok()).await;
    }
    rig.database().fail_over_to(standby);
    let mut answer;
    loop {
        let evidence = rig.evidence("agent:reports");
        answer = idle
            .broker
            .issuance
            .issue(evidence, ask(&["orders:read"]))
            .await;
        // The pool may still hold connections to the old server.
        let passing = matches!(&answer, Err(BrokerError::FailClosed(_)))
            && !matches!(idle.broker.core.ledger().status(), LedgerStatus::Stopped(_));
        if !passing {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    if shared {
        let LedgerStatus::Stopped(told) = idle.broker.core.ledger().status() else {
            panic!("the ledger must stop");
        };
        assert!(told.contains(&format!("shows size {lost_from}")), "{told}");
        let had = format!("had size {}", rig.broker.core.ledger().basis());
        assert!(told.contains(&had), "{told}");
    }
    let ours = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(
        ours.is_err(),
        "the replica that saw the lost leaves must stop"
    );
    idle.shutdown
        .drain_then_stop(std::time::Duration::ZERO, SOON)
        .await;
    answer.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lagged_stops_even_the_replica_that_never_saw_what_it_lost() {
    let stopped = after_a_lossy_failover(true).await;
    assert!(
        matches!(stopped, Err(BrokerError::FailClosed(_))),
        "{stopped:?}"
    );
    // Without the shared checkpoint that replica would have continued, and forked the log.
    after_a_lossy_failover(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_publish_to_one_place_and_none_is_alarmed() {
    let mut rig = Rig::on(Kind::Postgres).start().await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    rig.restart().await.unwrap();
    let other = rig.replica().await;
    for _ in 0..2 {
        issue(&rig).await;
        published(&rig, || object.content()).await;
        until("the other issues", SOON, async || {
            // While the server ends connections, a commit can fail for a moment.
            let evidence = rig.evidence("agent:reports");
            let asked = other.broker.issuance.issue(evidence, ask(&["orders:read"]));
            asked.await.is_ok()
        })
        .await;
        let size = other.broker.core.ledger().basis();
        until("the other publishes", SOON, async || {
            object
                .content()
                .is_some_and(|note| opened(&note).size >= size)
        })
        .await;
    }
    for broker in [&rig.broker, &other.broker] {
        assert_eq!(broker.core.ledger().status(), LedgerStatus::Serving);
    }
    assert!(object.writes() >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_while_a_new_connection_is_checked_is_no_rewind() {
    const BACKENDS: &str = "SELECT pid FROM pg_stat_activity \
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let (rig, object) = sharing().await;
    let mut database = rig.database().connect().await;
    let own: Vec<i32> = sqlx::query_scalar(BACKENDS)
        .fetch_all(&mut database)
        .await
        .unwrap();
    let other = rig.replica().await;
    let grow = async || {
        until("the other issues", SOON, async || {
            // While the server ends connections, a commit can fail for a moment.
            let evidence = rig.evidence("agent:reports");
            let asked = other.broker.issuance.issue(evidence, ask(&["orders:read"]));
            asked.await.is_ok()
        })
        .await;
        let size = other.broker.core.ledger().basis();
        until("the other publishes", SOON, async || {
            let content = object.content();
            content.is_some_and(|note| opened(&note).size >= size)
        })
        .await;
    };
    // From now on the replica knows the checkpoint and does not read it before it writes.
    grow().await;
    object.set(Manner::HoldReads);
    let asked_before = object.asked_with().len();
    sqlx::query("SELECT pg_terminate_backend(pid, 5000) FROM unnest($1) AS gone(pid)")
        .bind(&own)
        .execute(&mut database)
        .await
        .unwrap();
    let others = async {
        until("the shared checkpoint is read", SOON, async || {
            object.asked_with().len() > asked_before
        })
        .await;
        grow().await;
        object.set(Manner::Good);
    };
    let issued = until("the replica issues", SOON, async || {
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await;
        issued.is_ok()
    });
    tokio::join!(issued, others);
    assert_eq!(rig.broker.core.ledger().status(), LedgerStatus::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tree_at_the_place_stops_a_broker_that_runs() {
    let mut rig = Rig::on(Kind::Sqlite).start().await;
    let object = ObjectStore::start();
    let lines = format!("url = \"{}\"", object.url());
    rig.share_checkpoint(&lines);
    rig.restart().await.unwrap();
    rig.stop().await;
    let backup = rig.directory().join("backup");
    copy_directory(&rig.directory().join("data"), &backup);
    rig.restart().await.unwrap();
    issue(&rig).await;
    let one = published(&rig, || object.content()).await;
    let note = object.content().unwrap();
    rig.stop().await;
    // The other branch of the fork, under the same key, with a shared checkpoint of its own.
    restore(&rig, &backup);
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    rig.restart().await.unwrap();
    issue(&rig).await;
    issue(&rig).await;
    published(&rig, || object.content()).await;
    object.force(Some(&note));
    // Publishing the next checkpoint shows that the object has changed.
    issue(&rig).await;
    until("the ledger stops", SOON, async || {
        matches!(rig.broker.core.ledger().status(), LedgerStatus::Stopped(_))
    })
    .await;
    let LedgerStatus::Stopped(told) = rig.broker.core.ledger().status() else {
        unreachable!()
    };
    assert!(told.contains(&one.root.to_string()), "{told}");
    let refused = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(matches!(refused, Err(BrokerError::FailClosed(_))));
}
