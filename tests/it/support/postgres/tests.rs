//! The clusters and databases that these helpers make.

use super::*;
use crate::support::wait_until;

#[tokio::test]
async fn databases_are_migrated_apart_and_go_with_their_owner() {
    let (one, two) = (fresh_database(), fresh_database());
    let mut here = one.connect().await;
    execute(&mut here, "CREATE TABLE only_here (x int)".into()).await;
    let found: Option<String> = sqlx::query_scalar("SELECT to_regclass('only_here')::text")
        .fetch_one(&mut two.connect().await)
        .await
        .unwrap();
    assert_eq!(found, None);
    if let Ok(migrations) = fs::read_dir("migrations/postgres") {
        let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations")
            .fetch_one(&mut here)
            .await
            .unwrap();
        assert_eq!(usize::try_from(applied).unwrap(), migrations.count());
    }

    // Dropping works although a connection is open.
    let name = one.name().to_owned();
    drop(one);
    let mut admin = PgConnection::connect(&CLUSTER.url).await.unwrap();
    assert!(!exists(&mut admin, &name).await);
    assert!(exists(&mut admin, two.name()).await);
}

#[tokio::test]
async fn an_empty_database_is_empty() {
    let database = empty_database();
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&mut database.connect().await)
            .await
            .unwrap();
    assert_eq!(tables, 0);
}

#[test]
fn many_ask_for_the_template_at_once() {
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(fresh_database);
        }
    });
}

#[test]
fn a_private_cluster_is_shared_and_ends_when_nobody_uses_it() {
    let state = tempfile::tempdir().unwrap();
    let first = join_private_cluster(state.path(), 2);
    let second = join_private_cluster(state.path(), 2);
    assert_eq!(first.url, second.url);
    let url = first.url.clone();
    drop(first);
    // Longer than the idle time, so that only the second user keeps the cluster alive.
    std::thread::sleep(Duration::from_secs(4));
    assert!(answers(&url));
    drop(second);
    wait_until(
        "the watchdog stops the cluster",
        Duration::from_secs(30),
        || !answers(&url),
    );
}
