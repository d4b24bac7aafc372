//! Several replicas start at the same time on a new database. One of them begins the log, and the
//! others accept its key. A signal to stop is obeyed during a start too.

use std::net::TcpListener;

use crate::support::fleet::{Fleet, verify, vkeys};
use crate::support::process::Launch;

const SEALING_KEY: &str = "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Number of replicas that start together.
const REPLICAS: usize = 3;

/// Number of rounds, because a different replica may be first in each.
const ROUNDS: usize = 3;

async fn all_come_up(tables: impl Fn() -> String) {
    for round in 0..ROUNDS {
        let (fleet, replicas) = Fleet::postgres()
            .tables(&tables())
            .start_together(REPLICAS)
            .await;
        let keys = vkeys(&fleet, &replicas[0]).await;
        assert_eq!(keys.len(), 1, "round {round}: {keys:?}");
        for replica in &replicas {
            assert_eq!(vkeys(&fleet, replica).await, keys, "round {round}");
            let granted = replica.ask(&fleet.token()).await.expect(201);
            verify(&fleet, replica, &granted).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_on_a_new_database_all_come_up() {
    all_come_up(String::new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_with_a_shared_checkpoint_all_come_up() {
    let place = tempfile::tempdir().unwrap();
    let rounds = std::cell::Cell::new(0);
    all_come_up(|| {
        rounds.set(rounds.get() + 1);
        let file = place.path().join(format!("place-{}", rounds.get()));
        format!("[ledger.shared_checkpoint]\nfile = \"{}\"", file.display())
    })
    .await;
}

/// The database accepts the connection and never answers, so the start cannot end by itself.
#[test]
fn a_signal_during_the_start_stops_the_broker_in_order() {
    let database = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = database.local_addr().unwrap().port();
    let config = Fleet::sqlite()
        .config(crate::support::free_address())
        .replace(crate::support::configuration::SQLITE, "kind = \"postgres\"");
    let mut starting = Launch::taskpass(["serve"])
        .config(config)
        .file(
            "policies/admin.cedar",
            include_str!("../../policies/admin.cedar"),
        )
        .env("TASKPASS_SEALING_KEYS", SEALING_KEY)
        .env(
            "TASKPASS_DATABASE_URL",
            format!("postgres://u:p@127.0.0.1:{port}/d"),
        )
        .spawn();
    let connection = database.accept().unwrap();
    let ended = starting.terminate();
    assert!(ended.success(), "{ended}: {}", starting.stderr());
    let log = starting.stderr() + &starting.stdout();
    assert!(log.contains("stopped before it served"), "{log}");
    drop(connection);
}
