//! Stores of the shared checkpoint that fail, hang, forget or ignore conditions.

use super::*;
use crate::support::write_private;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_does_not_answer_well_stops_a_start_and_no_work() {
    let mut rig = Rig::on(Kind::Sqlite).start().await;
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
            let mut rig = Rig::on(Kind::Sqlite).start().await;
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
    let mut rig = Rig::on(Kind::Sqlite).start().await;
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
    let mut rig = Rig::on(Kind::Sqlite).start().await;
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
    let mut rig = Rig::on(Kind::Sqlite).start().await;
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
