//! A store that lost or changed leaves stops every broker that uses it, because the checkpoint that
//! the replicas share outside the store contradicts it.

use std::path::Path;

use serde_json::Value;
use sqlx::PgConnection;
use taskpass::broker::BrokerError;
use taskpass::ledger::LedgerStatus;
use taskpass::merkle::{Checkpoint, Note};

use crate::support::fleet::{Fleet, Replica};
use crate::support::object::{Manner, ObjectStore};
use crate::support::postgres::TestDatabase;
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, make_private_directory, until, write_private};

/// The checkpoint in a note, without verification.
fn opened(note: &str) -> Checkpoint {
    let note = Note::parse(note.as_bytes()).unwrap();
    note.unverified_text().parse().unwrap()
}

/// A replica on PostgreSQL with one grant, and the object that holds its checkpoint.
async fn sharing() -> (Rig, ObjectStore) {
    let mut rig = Rig::new(Kind::Postgres).await;
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
    let (fleet, mut replica) = Fleet::embedded();
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
    let mut rig = Rig::new(Kind::Postgres).await;
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
    let mut rig = Rig::new(Kind::Postgres).await;
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
        Manner::Status(404),
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
    assert_eq!(rig.broker.core.ledger().status(), LedgerStatus::Serving);
    // No entry is appended, but the pending checkpoint is published even if the answers are lost.
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
        let told = rig
            .restart()
            .await
            .expect_err("the broker must not start")
            .to_string();
        assert!(told.contains("shared checkpoint"), "{manner:?}: {told}");
        assert!(!told.contains("Bearer"), "{told}");
    }
    object.set(Manner::Good);
    let note = object.content().unwrap();
    let size_of = |note: &str| opened(note).size;
    let foreign = note.replace("dev.taskpass.local/rig", "dev.taskpass.local/other");
    let unsigned = note.rsplit_once('\n').unwrap().0;
    let unsigned = unsigned.rsplit_once("\n\n").unwrap().0;
    for wrong in ["", "garbage", &foreign, unsigned] {
        object.force(Some(wrong));
        let told = rig
            .restart()
            .await
            .expect_err("the broker must not start")
            .to_string();
        assert!(told.contains("not a checkpoint of the log"), "{told}");
        // The error names both trees, as far as the note states them.
        let size = size_of(&note);
        assert!(
            told.contains(&format!("the store shows size {size} root")),
            "{told}"
        );
        let foreign = wrong.contains("other");
        let named = format!("the log `dev.taskpass.local/other` had size {size} root");
        assert_eq!(told.contains(&named), foreign, "{told}");
    }
    object.force(Some(&note));
    rig.restart().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_heeds_no_condition_is_found_out_before_anything_depends_on_it() {
    for begun in [false, true] {
        for manner in [Manner::Careless, Manner::HalfCareless] {
            let mut rig = Rig::new(Kind::Sqlite).await;
            let object = ObjectStore::start();
            rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
            if begun {
                rig.restart().await.unwrap();
                published(&rig, || object.content()).await;
                rig.stop().await;
            }
            object.set(manner);
            let told = rig
                .reopen()
                .await
                .expect_err("the broker must not start")
                .to_string();
            assert!(told.contains("If-Match"), "{manner:?}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ceases_to_heed_a_condition_is_found_out_by_the_first_change() {
    let mut rig = Rig::new(Kind::Sqlite).await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    rig.reopen().await.unwrap();
    object.set(Manner::HalfCareless);
    drop(rig.broker.generations.follow().await);
    issue(&rig).await;
    until("the ledger stops", SOON, async || {
        matches!(rig.broker.core.ledger().status(), LedgerStatus::Stopped(_))
    })
    .await;
    let LedgerStatus::Stopped(told) = rig.broker.core.ledger().status() else {
        unreachable!()
    };
    assert!(told.contains("If-Match"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_gone_is_not_taken_for_an_empty_one() {
    let mut rig = Rig::new(Kind::Sqlite).await;
    let share = rig.directory().join("mnt");
    std::fs::create_dir(&share).unwrap();
    let place = share.join("place");
    rig.share_checkpoint(&format!("file = \"{}\"", place.display()));
    rig.restart().await.unwrap();
    issue(&rig).await;
    published(&rig, || std::fs::read_to_string(&place).ok()).await;
    rig.stop().await;
    // The replica lost its own checkpoint, and the share is not mounted.
    let kept = rig.directory().join("checkpoint");
    let note = std::fs::read(&kept).unwrap();
    std::fs::remove_file(&kept).unwrap();
    let elsewhere = rig.directory().join("elsewhere");
    std::fs::rename(&share, &elsewhere).unwrap();
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start")
        .to_string();
    assert!(told.contains("shared checkpoint"), "{told}");
    assert!(told.contains(share.to_str().unwrap()), "{told}");
    // An empty directory is mounted instead.
    std::fs::create_dir(&share).unwrap();
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start")
        .to_string();
    assert!(told.contains("was kept there and is gone"), "{told}");
    // A copy of the checkpoint serves as well as the lost file.
    write_private(&place, &note);
    rig.restart().await.unwrap();
    issue(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_place_has_a_checkpoint_before_the_first_commit_or_there_is_no_start() {
    let mut rig = Rig::new(Kind::Sqlite).await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    // A missing bucket or a wrong route gives the same answer as an empty one.
    object.set(Manner::Status(404));
    let told = rig
        .reopen()
        .await
        .expect_err("the broker must not start")
        .to_string();
    assert!(told.contains("shared checkpoint"), "{told}");
    object.set(Manner::Good);
    rig.reopen().await.unwrap();
    let size = opened(&object.content().unwrap()).size;
    assert_eq!(size, rig.broker.core.ledger().basis());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_went_down_with_the_old_server_lets_nobody_go_on() {
    let (rig, object) = sharing().await;
    let note = object.content().unwrap();
    object.force(None);
    rig.database().break_connections();
    for _ in 0..3 {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        assert!(matches!(asked, Err(BrokerError::FailClosed(_))));
    }
    assert_eq!(object.content(), None, "no new log may begin");
    assert!(matches!(
        rig.broker.core.ledger().status(),
        LedgerStatus::Failing(_)
    ));
    object.force(Some(&note));
    until("the ledger continues", SOON, async || {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        asked.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_hangs_puts_no_commit_in_doubt() {
    let (rig, object) = sharing().await;
    object.set(Manner::Hang);
    // The failure delays no request, and the broker reports it.
    issue(&rig).await;
    until("the metric counts the failures", SOON, async || {
        let metrics = rig.broker.core.metrics().render();
        let counted = "taskpass_shared_checkpoint_failures_total ";
        metrics.contains(counted) && !metrics.contains(&format!("{counted}0\n"))
    })
    .await;
    rig.database().break_connections();
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(matches!(asked, Err(BrokerError::FailClosed(_))));
    let LedgerStatus::Failing(told) = rig.broker.core.ledger().status() else {
        panic!("the ledger should be waiting");
    };
    assert!(!told.contains("in doubt"), "{told}");
    // The shared checkpoint works again, and the ledger continues.
    object.set(Manner::Good);
    until("the ledger continues", SOON, async || {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        asked.is_ok()
    })
    .await;
}

async fn run(database: &mut PgConnection, sql: &str) {
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(database).await.unwrap();
}

/// Installs functions with which the server reports another identity to new connections, when
/// `other.server` says so.
async fn pretend(database: &TestDatabase, connection: &mut PgConnection) {
    let name = database.name();
    let pretending = format!(
        "CREATE SCHEMA other; CREATE TABLE other.server (pid int); \
         INSERT INTO other.server VALUES (1); \
         CREATE FUNCTION other.pg_backend_pid() RETURNS int LANGUAGE sql \
         AS 'SELECT pid FROM other.server'; \
         ALTER DATABASE {name} SET search_path = public, other, pg_catalog"
    );
    run(connection, &pretending).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_on_which_a_log_began_leads_to_its_server_or_to_none() {
    let object = ObjectStore::start();
    let lines = format!("url = \"{}\"", object.url());
    let prepare = async |database: &TestDatabase| {
        let mut connection = database.connect().await;
        pretend(database, &mut connection).await;
    };
    let rig = Rig::sharing(&lines, prepare).await;
    issue(&rig).await;
    published(&rig, || object.content()).await;
    object.set(Manner::Status(503));
    let mut database = rig.database().connect().await;
    run(&mut database, "UPDATE other.server SET pid = 2").await;
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(matches!(asked, Err(BrokerError::FailClosed(_))));
    object.set(Manner::Good);
    until("the ledger continues", SOON, async || {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        asked.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_leads_elsewhere_is_noticed_and_the_place_is_asked_again() {
    let mut rig = Rig::new(Kind::Postgres).await;
    let object = ObjectStore::start();
    rig.share_checkpoint(&format!("url = \"{}\"", object.url()));
    let mut database = rig.database().connect().await;
    pretend(rig.database(), &mut database).await;
    rig.restart().await.unwrap();
    issue(&rig).await;
    published(&rig, || object.content()).await;
    object.set(Manner::Status(503));
    issue(&rig).await;
    run(&mut database, "UPDATE other.server SET pid = 2").await;
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(
        matches!(asked, Err(BrokerError::FailClosed(_))),
        "the broker must not continue on an unchecked server"
    );
    object.set(Manner::Good);
    until("the ledger continues", SOON, async || {
        let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
        asked.is_ok()
    })
    .await;
    // If every check reaches another server, the error names a pooler.
    run(
        &mut database,
        "CREATE SEQUENCE other.pid; CREATE OR REPLACE FUNCTION other.pg_backend_pid() RETURNS int \
         LANGUAGE sql AS 'SELECT nextval(''other.pid'')::int'",
    )
    .await;
    let asked = rig.issue("agent:reports", ask(&["orders:read"])).await;
    assert!(matches!(asked, Err(BrokerError::FailClosed(_))));
    let LedgerStatus::Failing(told) = rig.broker.core.ledger().status() else {
        panic!("the ledger should be waiting");
    };
    assert!(told.contains("pooler"), "{told}");
}
