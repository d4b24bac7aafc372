//! Rows that an attacker with the serving role's rights writes into the tables of the log: no
//! replica accepts, extends or signs them.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use taskpass::app::Assembled;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::{Broker, BrokerError};
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::task::TaskEnd;
use taskpass::ledger::LedgerStatus;
use taskpass::merkle::{Edge, Hash, leaf_hash};

use crate::support::postgres::AGE_HEADS;
use crate::support::rig::{Kind, Rig, access_token, ask, is_good};
use crate::support::{SOON, until};

/// A connection with exactly the serving role's rights.
struct Writer {
    role: String,
    connection: PgConnection,
}

impl Writer {
    async fn on(rig: &Rig) -> Self {
        let role = format!("writer_{}", rig.database().name().to_lowercase());
        let mut connection = rig.database().connect().await;
        run(&mut connection, &format!("CREATE ROLE {role}")).await;
        run(
            &mut connection,
            &format!("SELECT taskpass_grant_serving('{role}'); SET ROLE {role}"),
        )
        .await;
        Self { role, connection }
    }

    async fn run(&mut self, sql: &str) {
        run(&mut self.connection, sql).await;
    }

    /// The hashes of all leaves, in order.
    async fn hashes(&mut self) -> Vec<Hash> {
        let rows = sqlx::query("SELECT hash FROM leaf ORDER BY idx");
        let rows = rows.fetch_all(&mut self.connection).await.unwrap();
        let hash = |row: &sqlx::postgres::PgRow| row.get::<Vec<u8>, _>("hash");
        let hashes = rows.iter().map(hash);
        hashes
            .map(|hash| Hash::from_slice(&hash).unwrap())
            .collect()
    }

    /// Inserts a leaf with its body at `index`.
    async fn leaf(&mut self, index: usize, body: &[u8]) {
        let index = i64::try_from(index).unwrap();
        sqlx::query("INSERT INTO leaf (idx, hash, at) SELECT $1, $2, max(at) FROM leaf")
            .bind(index)
            .bind(leaf_hash(body).as_bytes().as_slice())
            .execute(&mut self.connection)
            .await
            .unwrap();
        sqlx::query("INSERT INTO leaf_body (idx, body) VALUES ($1, $2)")
            .bind(index)
            .bind(body)
            .execute(&mut self.connection)
            .await
            .unwrap();
    }

    /// Inserts a head over these leaves, with the MAC of the newest head.
    async fn head(&mut self, hashes: &[Hash]) -> Edge {
        let mut edge = Edge::empty();
        drop(edge.append(hashes));
        sqlx::query(
            "INSERT INTO ledger_head (size, root, batch_id, mac, endings) \
             SELECT $1, $2, gen_random_uuid(), mac, endings FROM ledger_head ORDER BY size DESC LIMIT 1",
        )
        .bind(i64::try_from(edge.size()).unwrap())
        .bind(edge.root().as_bytes().as_slice())
        .execute(&mut self.connection)
        .await
        .unwrap();
        edge
    }

    async fn gone(mut self) {
        let role = self.role;
        let gone = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
        run(&mut self.connection, &gone).await;
        self.connection.close().await.unwrap();
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection);
    ran.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The body of a leaf of this log with this event.
fn body(rig: &Rig, event: &Value) -> Vec<u8> {
    let mut leaf = json!({"v": 2, "origin": rig.broker.core.ledger().origin(), "at": rig.now()});
    let members = event.as_object().unwrap().clone();
    leaf.as_object_mut().unwrap().extend(members);
    serde_json::to_vec(&leaf).unwrap()
}

/// Two replicas on PostgreSQL, with one grant.
async fn two() -> (Rig, Assembled) {
    let rig = Rig::on(Kind::Postgres).start().await;
    let idle = rig.replica().await;
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    (rig, idle)
}

async fn stop(other: Assembled) {
    other.shutdown.drain_then_stop(Duration::ZERO, SOON).await;
}

/// Runs the broker's regular check of its store, after which the ledger must have stopped. Returns
/// the reason.
async fn stopped(broker: &Broker) -> String {
    drop(broker.health.check_health().await);
    match broker.core.ledger().status() {
        LedgerStatus::Stopped(why) => why,
        other => panic!("it goes on: {other:?}"),
    }
}

/// Asserts that every replica has stopped, issues nothing and has signed nothing beyond `size`.
async fn all_stopped(rig: &Rig, idle: &Assembled, size: u64, named: &[&str]) {
    for broker in [&rig.broker, &idle.broker] {
        let why = stopped(broker).await;
        for named in named {
            assert!(why.contains(named), "{named} in {why}");
        }
        let asked = broker
            .issuance
            .issue(rig.evidence("agent:reports"), ask(&["orders:read"]));
        let asked = asked.await;
        assert!(
            matches!(asked, Err(BrokerError::FailClosed(_))),
            "{asked:?}"
        );
        let signed = broker.core.ledger().checkpoints().borrow().clone().unwrap();
        assert!(signed.head.size <= size, "{signed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_head_over_a_key_of_somebody_elses_is_neither_followed_nor_signed() {
    let (mut rig, idle) = two().await;
    let size = rig.broker.core.ledger().basis();
    let mut writer = Writer::on(&rig).await;
    let mut hashes = writer.hashes().await;
    let key = body(
        &rig,
        &json!({"event": "key", "purpose": "access_token", "kid": "theirs", "change": "added",
            "public_key": "{}", "by": "schedule"}),
    );
    writer.leaf(hashes.len(), &key).await;
    hashes.push(leaf_hash(&key));
    let forged = writer.head(&hashes).await;
    let named = [format!("size {}", size + 1), forged.root().to_string()];
    let named = [named[0].as_str(), named[1].as_str(), "ledger_head"];
    all_stopped(&rig, &idle, size, &named).await;
    stop(idle).await;
    let told = rig
        .restart()
        .await
        .expect_err("the broker must not start")
        .to_string();
    assert!(named.iter().all(|named| told.contains(named)), "{told}");
    writer.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_behind_the_newest_head_stops_every_replica_whatever_it_says() {
    let session = "0197a000-0000-7000-8000-000000000001";
    for event in [
        json!({"event": "key", "purpose": "access_token", "kid": "theirs", "change": "added",
            "public_key": "{}", "by": "schedule"}),
        json!({"event": "session_ended", "session": session, "reason": "revoked", "by": "dev:a"}),
        json!({"event": "cutoff_lifted", "id": session, "by": "dev:a"}),
        json!({"event": "admin", "change": "admin_bound", "subject": "dev:a", "value": "admin",
            "by": "dev-admin-token"}),
    ] {
        let (rig, idle) = two().await;
        let size = rig.broker.core.ledger().basis();
        let mut writer = Writer::on(&rig).await;
        let index = writer.hashes().await.len();
        writer.leaf(index, &body(&rig, &event)).await;
        let named = format!("leaf {index} is behind the newest head (size {size})");
        all_stopped(&rig, &idle, size, &[&named]).await;
        // A reader of the log does not get the forged leaf either.
        let (admin, index) = (rig.admin(), u64::try_from(index).unwrap());
        assert!(
            rig.broker
                .administration
                .ledger_entry(&admin, index)
                .await
                .is_err()
        );
        stop(idle).await;
        writer.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_there_before_its_leaf_stops_the_replica_that_would_write_it() {
    let (rig, idle) = two().await;
    let size = rig.broker.core.ledger().basis();
    let mut writer = Writer::on(&rig).await;
    writer
        .run("INSERT INTO leaf_body (idx, body) SELECT max(idx) + 1, 'x' FROM leaf")
        .await;
    for broker in [&rig.broker, &idle.broker] {
        let asked = broker
            .issuance
            .issue(rig.evidence("agent:reports"), ask(&["orders:read"]));
        assert!(asked.await.is_err());
        let why = stopped(broker).await;
        assert!(why.contains("table leaf_body"), "{why}");
        assert_eq!(
            broker.core.ledger().head().await.unwrap().unwrap().size,
            size
        );
    }
    stop(idle).await;
    writer.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_inserted_while_a_batch_is_written_is_not_taken_for_the_brokers() {
    let (rig, idle) = two().await;
    let size = rig.broker.core.ledger().basis();
    let mut writer = Writer::on(&rig).await;
    let leaf = body(
        &rig,
        &json!({"event": "cutoff_lifted", "id": "0197a000-0000-7000-8000-000000000001", "by": "x"}),
    );
    // The leaf is invisible until its commit, and the broker's insert of the same index waits for
    // it.
    writer.run("BEGIN").await;
    writer.leaf(usize::try_from(size).unwrap(), &leaf).await;
    let evidence = rig.evidence("agent:reports");
    let issuing = rig.broker.issuance.issue(evidence, ask(&["orders:read"]));
    let committing = async {
        let watching = rig.database().pool().await;
        until("the broker waits for the foreign leaf", SOON, async || {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '/* ledger_write */%'",
            )
            .fetch_one(&watching)
            .await
            .unwrap();
            waiting > 0
        })
        .await;
        writer.run("COMMIT").await;
    };
    let (issued, ()) = tokio::join!(issuing, committing);
    assert!(issued.is_err(), "{issued:?}");
    let named = format!("leaf {size} is behind the newest head");
    let why = stopped(&rig.broker).await;
    assert!(why.contains("table leaf") || why.contains(&named), "{why}");
    let why = stopped(&idle.broker).await;
    assert!(why.contains(&named), "{why}");
    stop(idle).await;
    writer.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_head_that_is_put_in_again_changes_nothing() {
    let (rig, idle) = two().await;
    let mut owner = rig.database().connect().await;
    run(
        &mut owner,
        "CREATE TABLE kept AS SELECT * FROM ledger_head; GRANT SELECT ON kept TO PUBLIC",
    )
    .await;
    run(&mut owner, AGE_HEADS).await;
    run(&mut owner, "SELECT ledger_prune_heads(9999, 9999)").await;
    let mut writer = Writer::on(&rig).await;
    writer
        .run("INSERT INTO ledger_head SELECT * FROM kept ON CONFLICT DO NOTHING")
        .await;
    for broker in [&rig.broker, &idle.broker] {
        broker.health.check_health().await.unwrap();
        let asked = broker
            .issuance
            .issue(rig.evidence("agent:reports"), ask(&["orders:read"]));
        asked.await.unwrap();
        assert_eq!(broker.core.ledger().status(), LedgerStatus::Serving);
    }
    stop(idle).await;
    writer.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_activation_takes_no_replica_back_to_an_older_generation() {
    let (rig, idle) = two().await;
    let mut writer = Writer::on(&rig).await;
    // The earlier generation, with a MAC that was valid for its own activation.
    writer
        .run(
            "INSERT INTO activation (idx, digest, actor, at, mac) \
             SELECT idx + 1000, digest, actor, at, mac FROM activation ORDER BY idx DESC LIMIT 1",
        )
        .await;
    for broker in [&rig.broker, &idle.broker] {
        assert!(broker.generations.follow().await.is_err());
        let asked = broker
            .issuance
            .issue(rig.evidence("agent:reports"), ask(&["orders:read"]));
        assert!(asked.await.is_err());
        let why = stopped(broker).await;
        assert!(why.contains("table activation"), "{why}");
    }
    stop(idle).await;
    writer.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cutoff_that_was_edited_stops_every_replica() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let issued = rig.issue("agent:reports", ask(&["orders:read"])).await;
    let issued = issued.unwrap();
    let idle = rig.replica().await;
    rig.broker
        .revocation
        .revoke_many(&rig.admin(), drill())
        .await
        .unwrap();
    assert!(!is_good(&idle.broker, &issued).await);
    // The serving role may not change cutoffs. An owner may, but has no sealing key.
    let mut owner = rig.database().connect().await;
    run(
        &mut owner,
        "UPDATE cutoff SET kind = 'resource', value = 'archive-api'",
    )
    .await;
    // It no longer matches the session, so only the regular check of all rows finds it.
    for broker in [&rig.broker, &idle.broker] {
        broker.core.store().check_rows().await.unwrap_err();
        let answer = broker
            .verification
            .introspect(&rig.admin(), &access_token(&issued))
            .await;
        assert!(answer.is_err(), "{answer:?}");
        let why = stopped(broker).await;
        assert!(why.contains("the table cutoff"), "{why}");
    }
    stop(idle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cutoff_that_matches_is_checked_at_use() {
    let rig = Rig::on(Kind::Postgres).start().await;
    let issued = rig.issue("agent:reports", ask(&["orders:read"])).await;
    let issued = issued.unwrap();
    rig.broker
        .revocation
        .revoke_many(&rig.admin(), drill())
        .await
        .unwrap();
    let mut owner = rig.database().connect().await;
    run(
        &mut owner,
        "UPDATE cutoff SET committed_at = committed_at + interval '1 hour'",
    )
    .await;
    let answer = rig
        .broker
        .verification
        .introspect(&rig.admin(), &access_token(&issued))
        .await;
    assert!(answer.is_err(), "{answer:?}");
    let why = stopped(&rig.broker).await;
    assert!(why.contains("the table cutoff"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_was_taken_is_not_put_back_from_its_older_row() {
    let (rig, idle) = two().await;
    let bind = async |bound| {
        let who = "dev:agent%3Aorders".to_owned().try_into().unwrap();
        let admin = rig.admin();
        let bound = rig
            .broker
            .administration
            .bind_admin(&admin, who, "nobody".into(), bound);
        bound.await.unwrap();
    };
    bind(true).await;
    bind(false).await;
    let mut writer = Writer::on(&rig).await;
    for sql in [
        "INSERT INTO admin_binding SELECT * FROM admin_binding WHERE bound",
        "UPDATE admin_binding SET bound = true",
        "DELETE FROM admin_binding",
    ] {
        let tried = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        assert!(
            tried.execute(&mut writer.connection).await.is_err(),
            "{sql}"
        );
    }
    assert!(
        rig.broker
            .administration
            .admin_bindings(&rig.admin())
            .await
            .unwrap()
            .is_empty()
    );
    writer
        .run(
            "INSERT INTO admin_binding SELECT identity, role, bound, idx + 1000, mac \
             FROM admin_binding WHERE bound",
        )
        .await;
    for broker in [&rig.broker, &idle.broker] {
        let why = stopped(broker).await;
        assert!(why.contains("the table admin_binding"), "{why}");
    }
    stop(idle).await;
    writer.gone().await;
}

/// Changes that the serving role can make to the table of signing keys.
const FORGED_KEYS: [&str; 3] = [
    "INSERT INTO signing_key SELECT 'junk', purpose, algorithm, sealed, created_at, published_at, \
     active_from, retire_at, remove_at, revoked_at, mac FROM signing_key LIMIT 1",
    "UPDATE signing_key SET mac = '\\x00' WHERE purpose = 'access_token'",
    "UPDATE signing_key SET sealed = '', revoked_at = now() WHERE purpose = 'access_token'",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_signing_key_stops_every_replica() {
    for forged in FORGED_KEYS {
        let (rig, idle) = two().await;
        let mut writer = Writer::on(&rig).await;
        writer.run(forged).await;
        // One replica follows the keys, as it does every second. The other checks its store.
        assert!(rig.broker.keys.follow(rig.now()).await.is_err());
        let size = rig.broker.core.ledger().basis();
        all_stopped(&rig, &idle, size, &["the table signing_key", "not written"]).await;
        stop(idle).await;
        writer.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_signing_key_keeps_no_key_from_being_cut_off() {
    for forged in FORGED_KEYS {
        let (rig, idle) = two().await;
        let issued = rig.issue("agent:reports", ask(&["orders:read"])).await;
        let issued = issued.unwrap();
        let keys = rig
            .broker
            .signing_keys
            .list_keys(&rig.admin())
            .await
            .unwrap();
        let signing = keys.iter().find(|key| {
            key.signing && key.record.purpose == taskpass::crypto::keyring::KeyPurpose::AccessToken
        });
        let kid = signing.unwrap().record.kid.clone();
        let mut writer = Writer::on(&rig).await;
        writer.run(forged).await;
        // The revocation fails when it reads the rows, which is after its cutoff was committed.
        let revoked = rig
            .broker
            .signing_keys
            .revoke_key(&rig.admin(), &kid, false)
            .await;
        assert!(revoked.is_err(), "{revoked:?}");
        let cut: Vec<String> =
            sqlx::query_scalar("SELECT value FROM cutoff WHERE kind = 'signing_key'")
                .fetch_all(&mut writer.connection)
                .await
                .unwrap();
        assert_eq!(cut, [kid]);
        for broker in [&rig.broker, &idle.broker] {
            stopped(broker).await;
            let answer = broker
                .verification
                .introspect(&rig.admin(), &access_token(&issued))
                .await;
            assert!(answer.is_err(), "{answer:?}");
        }
        stop(idle).await;
        writer.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_not_revived_by_the_serving_role() {
    let (rig, idle) = two().await;
    let issued = rig.issue("agent:reports", ask(&["orders:read"])).await;
    let issued = issued.unwrap();
    rig.revoke(issued.session.id).await;
    rig.end(&issued, TaskEnd::Complete).await.unwrap();
    let kid = rig
        .broker
        .signing_keys
        .rotate_keys(&rig.admin())
        .await
        .unwrap();
    rig.broker
        .signing_keys
        .revoke_key(&rig.admin(), &kid, false)
        .await
        .unwrap();
    let mut writer = Writer::on(&rig).await;
    let ended = [
        "UPDATE session SET state = 'active', end_reason = NULL, ended_at = NULL, \
         confirmed_at = NULL WHERE state = 'ended'",
        "UPDATE task SET state = 'open', ended_at = NULL WHERE state <> 'open'",
        "UPDATE signing_key SET revoked_at = NULL WHERE revoked_at IS NOT NULL",
        "UPDATE signing_key SET remove_at = 'infinity' WHERE remove_at < 'infinity'",
    ];
    for sql in ended {
        let tried = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let told = tried.execute(&mut writer.connection).await.unwrap_err();
        assert!(
            told.to_string().contains("does not begin again"),
            "{sql}: {told}"
        );
    }
    assert!(!rig.is_good(&issued).await);
    stop(idle).await;
    writer.gone().await;
}

/// A revocation of everything, without a block.
fn drill() -> RevokeRequest {
    RevokeRequest {
        selector: Selector::All(True),
        block: BlockRequest::Seconds(0),
        deny_all_earlier_sessions: false,
        reason: "drill".into(),
        allow_unknown: false,
        dry_run: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_that_no_broker_wrote_stops_every_replica_that_follows() {
    let (rig, idle) = two().await;
    let mut followers = [&rig.broker, &idle.broker].map(|broker| broker.core.ledger().follower());
    for follower in &mut followers {
        follower.read_on().await.unwrap();
    }
    let mut writer = Writer::on(&rig).await;
    writer
        .run(
            "INSERT INTO ending SELECT max(size), 0, 'cutoff', 'all=', '2030-01-01', \
             decode(repeat('00', 32), 'hex') FROM ledger_head",
        )
        .await;
    for follower in &mut followers {
        let told = follower.read_on().await.unwrap_err().to_string();
        assert!(told.contains("the table ending"), "{told}");
    }
    for broker in [&rig.broker, &idle.broker] {
        let why = stopped(broker).await;
        assert!(why.contains("the table ending"), "{why}");
    }
    stop(idle).await;
    writer.gone().await;
}
