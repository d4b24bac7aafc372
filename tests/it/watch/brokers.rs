//! The logs of real brokers.

use super::*;
use crate::support::make_private_directory;

/// Makes so many permits, each of which adds at least one leaf.
async fn issue(fleet: &Fleet, replica: &Replica, count: usize) {
    let asks = (0..count).map(|_| {
        let token = fleet.token();
        async move { replica.ask(&token).await.expect(201) }
    });
    // Not more at once than the broker accepts.
    futures_util::stream::iter(asks)
        .buffer_unordered(20)
        .collect::<Vec<_>>()
        .await;
}

fn copy(from: &Path, to: &Path) {
    make_private_directory(to);
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brokers_log_is_followed_over_restarts_and_a_restored_backup_is_called_out() {
    let (fleet, mut replica) = Fleet::sqlite().server("public_ledger = true").start().await;
    let keys = replica.client.get("/v1/ledger/keys").await.expect(200);
    let key = keys["vkeys"][0].as_str().unwrap().to_owned();
    let url = format!("http://{}/ledger", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let once = || watch(&url, &key, &state, &["--once"]).run();

    issue(&fleet, &replica, 20).await;
    says(&once(), 0, "first contact");
    issue(&fleet, &replica, 250).await;
    says(&once(), 0, "consistent");
    let size = |text: &str| -> u64 { text.lines().nth(1).unwrap().parse().unwrap() };
    let read = || size(&fs::read_to_string(&state).unwrap());
    assert!(read() > 256, "{}", read());

    // Keep a copy of the data; the broker continues.
    replica.process.terminate();
    let home = replica.process.dir().to_owned();
    copy(&home.join("data"), &home.join("backup"));
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    says(&once(), 0, "consistent");
    issue(&fleet, &replica, 30).await;
    says(&once(), 0, "consistent");
    let (kept, before) = (fs::read_to_string(&state).unwrap(), read());

    // Restore the copy and delete the broker's own checkpoint.
    replica.process.terminate();
    fs::remove_dir_all(home.join("data")).unwrap();
    fs::rename(home.join("backup"), home.join("data")).unwrap();
    fs::remove_file(home.join("checkpoint")).unwrap();
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    says(&once(), 1, "CONTRADICTION (rollback)");
    issue(&fleet, &replica, 60).await;
    says(&once(), 1, "CONTRADICTION (fork)");
    assert_eq!(fs::read_to_string(&state).unwrap(), kept);
    let found = evidence(&state);
    assert_eq!(found.len(), 2);
    let fork = found
        .iter()
        .find(|file| self::read(file)["kind"] == "fork")
        .unwrap();
    let said = format!("PROVEN: broker.test/log signed {before} leaves");
    says(&check(fork, &key), 0, &said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_public_is_watched_by_who_may_read_it() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let keys = replica
        .client
        .get_as(&fleet.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let key = keys["vkeys"][0].as_str().unwrap().to_owned();
    let url = format!("http://{}/ledger", replica.address);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let once = |more: &[&str]| {
        watch(&url, &key, &state, more)
            .arg("--once")
            .secret_file("token", fleet.admin.clone())
            .run()
    };
    says(&once(&[]), 3, "answered 401");
    assert!(!state.exists());
    says(&once(&["--token-file", "token"]), 0, "first contact");
    issue(&fleet, &replica, 3).await;
    says(&once(&["--token-file", "token"]), 0, "which begin with");
}
