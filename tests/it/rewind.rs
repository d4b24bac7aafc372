//! A store that lost or changed leaves stops every broker that stands on it, for the checkpoint that
//! all replicas keep together outside it says otherwise.

use std::path::Path;

use taskpass::broker::BrokerError;
use taskpass::ledger::LedgerStatus;
use taskpass::merkle::{Checkpoint, Note};

use crate::support::object::{Manner, ObjectStore};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, until};

/// The checkpoint in a note that nobody verified.
fn opened(note: &str) -> Checkpoint {
    let note = Note::parse(note.as_bytes()).unwrap();
    note.unverified_text().parse().unwrap()
}

/// Waits until a place holds all that the rig's broker appended.
async fn published(rig: &Rig, read: impl Fn() -> Option<String>) -> Checkpoint {
    until("the checkpoint is published", SOON, async || {
        let size = rig.broker.ledger().basis();
        read().is_some_and(|note| opened(&note).size >= size)
    })
    .await;
    opened(&read().unwrap())
}

pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Sets SQLite's data back to an earlier copy, and takes the replica's own memory away with it.
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
    let mut rig = Rig::new(Kind::Sqlite).await;
    let place = rig.directory().join("place");
    let read = || std::fs::read_to_string(&place).ok();
    rig.share_checkpoint(&format!("file = \"{}\"", place.display()));
    rig.restart().await.unwrap();
    issue(&rig).await;
    rig.stop().await;
    let backup = rig.directory().join("backup");
    copy_directory(&rig.directory().join("data"), &backup);
    rig.restart().await.unwrap();
    let before = rig.broker.ledger().basis();
    issue(&rig).await;
    let last = published(&rig, read).await;
    assert!(last.size > before);
    rig.stop().await;
    restore(&rig, &backup);
    let told = rig.restart().await.expect_err("it forgot").to_string();
    for named in [
        format!("had size {} root {}", last.size, last.root),
        format!("shows size {before} root"),
        place.display().to_string(),
    ] {
        assert!(told.contains(&named), "{named} in {told}");
    }
    // What the place is for: nothing else would have noticed.
    rig.share_checkpoint(&format!("file = \"{}-other\"", place.display()));
    rig.restart().await.unwrap();
    issue(&rig).await;
}

/// What an idle replica does after a failover to a standby that had not received the last leaves.
async fn after_a_lossy_failover(shared: bool) -> Result<(), BrokerError> {
    let mut rig = Rig::new(Kind::Postgres).await;
    let place = rig.directory().join("place");
    if shared {
        rig.share_checkpoint(&format!("file = \"{}\"", place.display()));
        rig.restart().await.unwrap();
    }
    let idle = rig.replica().await;
    let standby = rig.database().copy();
    let lost_from = rig.broker.ledger().basis();
    until("the broker is back", SOON, async || {
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
        answer = idle.broker.issue(evidence, ask(&["orders:read"])).await;
        // Its pool may hold connections to the server that is gone.
        let passing = matches!(&answer, Err(BrokerError::FailClosed(_)))
            && !matches!(idle.broker.ledger().status(), LedgerStatus::Stopped(_));
        if !passing {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    if shared {
        let LedgerStatus::Stopped(told) = idle.broker.ledger().status() else {
            panic!("it goes on");
        };
        assert!(told.contains(&format!("shows size {lost_from}")), "{told}");
        let had = format!("had size {}", rig.broker.ledger().basis());
        assert!(told.contains(&had), "{told}");
    }
    let ours = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(
        ours.is_err(),
        "the replica that saw the lost leaves goes on"
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
    // Without the place that replica would have gone on, and forked the log.
    after_a_lossy_failover(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_publish_to_one_place_and_none_is_alarmed() {
    let mut rig = Rig::new(Kind::Postgres).await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    rig.restart().await.unwrap();
    let other = rig.replica().await;
    for _ in 0..2 {
        issue(&rig).await;
        published(&rig, || object.content()).await;
        let evidence = rig.evidence("agent:reports");
        let asked = other.broker.issue(evidence, ask(&["orders:read"])).await;
        asked.unwrap();
        let size = other.broker.ledger().basis();
        until("the other publishes", SOON, async || {
            object
                .content()
                .is_some_and(|note| opened(&note).size >= size)
        })
        .await;
    }
    for broker in [&rig.broker, &other.broker] {
        assert_eq!(broker.ledger().status(), LedgerStatus::Serving);
    }
    assert!(object.writes() >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tree_at_the_place_stops_a_broker_that_runs() {
    let mut rig = Rig::new(Kind::Sqlite).await;
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
    // The other branch of the fork, under the same key.
    restore(&rig, &backup);
    object.force(None);
    rig.restart().await.unwrap();
    issue(&rig).await;
    issue(&rig).await;
    published(&rig, || object.content()).await;
    object.force(Some(&note));
    // One more is published, and the place is found to be changed.
    issue(&rig).await;
    until("it stops", SOON, async || {
        matches!(rig.broker.ledger().status(), LedgerStatus::Stopped(_))
    })
    .await;
    let LedgerStatus::Stopped(told) = rig.broker.ledger().status() else {
        unreachable!()
    };
    assert!(told.contains(&one.root.to_string()), "{told}");
    let refused = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(matches!(refused, Err(BrokerError::FailClosed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_does_not_answer_well_stops_a_start_and_no_work() {
    let mut rig = Rig::new(Kind::Sqlite).await;
    let object = ObjectStore::start();
    let authorization = rig.directory().join("authorization");
    std::fs::write(&authorization, "Bearer one\n").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&authorization, private).unwrap();
    rig.share_checkpoint(&format!(
        "url = \"{}\"\nauthorization_file = \"{}\"",
        object.url(),
        authorization.display()
    ));
    rig.restart().await.unwrap();
    let first = published(&rig, || object.content()).await;
    let unwell = [
        Manner::Hang,
        Manner::Status(403),
        Manner::Status(500),
        Manner::Redirect,
        Manner::Flood,
    ];
    for manner in unwell {
        object.set(manner);
        issue(&rig).await;
    }
    assert_eq!(opened(&object.content().unwrap()).size, first.size);
    assert_eq!(rig.broker.ledger().status(), LedgerStatus::Serving);
    // Nothing new is appended, and it is published all the same, be the answers lost.
    object.set(Manner::WriteAndFail);
    published(&rig, || object.content()).await;
    object.set(Manner::Good);
    std::fs::write(&authorization, "Bearer two\n").unwrap();
    issue(&rig).await;
    published(&rig, || object.content()).await;
    let with = object.asked_with();
    assert_eq!(with.first(), Some(&Some("Bearer one".to_owned())));
    assert_eq!(with.last(), Some(&Some("Bearer two".to_owned())));
    rig.stop().await;
    for manner in unwell.into_iter().chain([Manner::WeakTag]) {
        object.set(manner);
        let told = rig.restart().await.expect_err("it starts").to_string();
        assert!(told.contains("shared checkpoint"), "{manner:?}: {told}");
        assert!(!told.contains("Bearer"), "{told}");
    }
    object.set(Manner::Good);
    let note = object.content().unwrap();
    let foreign = note.replace("dev.taskpass.local/rig", "dev.taskpass.local/other");
    let unsigned = note.rsplit_once('\n').unwrap().0;
    let unsigned = unsigned.rsplit_once("\n\n").unwrap().0;
    for wrong in ["", "garbage", &foreign, unsigned] {
        object.force(Some(wrong));
        let told = rig.restart().await.expect_err("it starts").to_string();
        assert!(told.contains("not a checkpoint of the log"), "{told}");
    }
    object.force(Some(&note));
    rig.restart().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_heeds_no_condition_is_found_out_by_its_first_write() {
    for begun in [false, true] {
        let mut rig = Rig::new(Kind::Sqlite).await;
        let object = ObjectStore::start();
        rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
        if begun {
            rig.restart().await.unwrap();
            published(&rig, || object.content()).await;
            rig.stop().await;
        }
        object.set(Manner::Careless);
        rig.reopen().await.unwrap();
        drop(rig.broker.follow_generation().await);
        until("it stops", SOON, async || {
            // Something new is published as long as it is not.
            let evidence = rig.evidence("agent:reports");
            drop(rig.broker.issue(evidence, ask(&["orders:read"])).await);
            matches!(rig.broker.ledger().status(), LedgerStatus::Stopped(_))
        })
        .await;
        let LedgerStatus::Stopped(told) = rig.broker.ledger().status() else {
            unreachable!()
        };
        assert!(told.contains("If-Match"), "{told}");
    }
}
