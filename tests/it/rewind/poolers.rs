//! Connections that lead to another server than the one that was checked.

use sqlx::PgConnection;

use super::*;
use crate::support::postgres::TestDatabase;

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
    let rig = Rig::on(Kind::Postgres).shared_checkpoint(&lines);
    let mut connection = rig.database().connect().await;
    pretend(rig.database(), &mut connection).await;
    drop(connection);
    let rig = rig.start().await;
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
    let mut rig = Rig::on(Kind::Postgres).start().await;
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
