//! One suite for both stores: each case lists the statements that it covers and states the answers
//! that both databases must give. The suite fails if a statement has no case.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use secrecy::SecretString;
use serde_json::json;
use sqlx::Connection;
use taskpass::clock::Timestamp;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::digest::Mac;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::cutoff::{Block, Cutoff, Selector, True};
use taskpass::domain::deny_list::{
    DenyPolicyTarget, DenyReason, DenyRequest, DenyRoom, RevocationProgress,
};
use taskpass::domain::endpoint::EndpointsDigest;
use taskpass::domain::generation::GenerationDigest;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::leaf::Opening;
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::{EndReason, Session, SessionState};
use taskpass::domain::task::{Task, TaskState};
use taskpass::domain::workload::OneTime;
use taskpass::ids::{BatchId, CutoffId, DecisionId, SessionId, TaskId};
use taskpass::merkle::{Hash, Tile, leaf_hash};
use taskpass::store::admins::AdminBinding;
use taskpass::store::append::{
    ActWrite, LeafRow, MintLease, Needs, RetryFacts, SessionEnd, TaskChange, View, Writes,
};
use taskpass::store::cosigned::CosignedRow;
use taskpass::store::cutoffs::{CutoffFilter, SealedCutoff};
use taskpass::store::deny_lists::SessionGroup;
use taskpass::store::exports::{BelievedTimes, ExportCursor, ExportKey};
use taskpass::store::generations::SealedActivation;
use taskpass::store::heads::{Head, HeadSeal, SealedHead};
use taskpass::store::keys::SigningKeyRow;
use taskpass::store::meta::{BootstrapToken, SealedSuccession, StoreMode};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::replicas::ReplicaRow;
use taskpass::store::sessions::SessionFilter;
use taskpass::store::sqlite::Sqlite;
use taskpass::store::tasks::TaskFilter;
use taskpass::store::workload_keys::WorkloadKeyRow;
use taskpass::store::{Store, StoreError};
use uuid::Uuid;

use crate::support::postgres::{AGE_HEADS, TestDatabase, fresh_database};
use crate::support::sqlite::{SqliteFile, fresh_sqlite};

/// A store for one test; dropping it removes its file or database.
struct Place {
    store: Store,
    file: Option<SqliteFile>,
    database: Option<TestDatabase>,
}

thread_local! {
    /// The URL of this thread's test database, for work that only the owner may do; `None` on
    /// SQLite.
    static OWNED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Simulates that eight days have passed since the database saw its heads.
async fn age_heads() {
    if let Some(url) = OWNED.take() {
        let mut owner = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AGE_HEADS).execute(&mut owner).await.unwrap();
        OWNED.set(Some(url));
    }
}

async fn sqlite() -> Place {
    let file = fresh_sqlite();
    let store = Store::Sqlite(Sqlite::open(file.dir(), 2).await.unwrap());
    store.authenticate_with(&newer_mac());
    Place {
        store,
        file: Some(file),
        database: None,
    }
}

async fn postgres() -> Place {
    let database = fresh_database();
    let url = SecretString::from(database.url());
    OWNED.set(Some(database.url()));
    let connected = Postgres::connect(&url, PostgresSettings::default());
    let store = Store::Postgres(connected.await.unwrap());
    store.ensure_partitions(0).await.unwrap();
    store.authenticate_with(&newer_mac());
    Place {
        store,
        file: None,
        database: Some(database),
    }
}

macro_rules! cases {
    ($($(#[$doc:meta])* [$($label:literal)+] async fn $name:ident($store:ident: &Store) $body:block)+) => {
        /// The statements that the cases cover.
        pub const CLAIMED: &[&str] = &[$($($label,)+)+];

        $($(#[$doc])* mod $name {
            use super::*;

            async fn case($store: &Store) $body

            #[tokio::test]
            async fn on_sqlite() {
                let place = sqlite().await;
                case(&place.store).await;
                place.store.close().await;
            }

            #[tokio::test]
            async fn on_postgresql() {
                let place = postgres().await;
                case(&place.store).await;
                place.store.close().await;
            }
        })+
    };
}

// These modules use the macro, so they must follow it.
mod ledger;
mod lives;
mod outside;
mod reads;

fn sources(directory: impl AsRef<std::path::Path>) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                sources(path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn every_statement_has_a_case() {
    let mut named = BTreeSet::new();
    for entry in sources("src/store") {
        let text = std::fs::read_to_string(&entry).unwrap();
        let mut rest = text.as_str();
        while let Some((_, after)) = rest.split_once("/* ") {
            let Some((label, tail)) = after.split_once(" */") else {
                break;
            };
            if label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                named.insert(label.to_owned());
            }
            rest = tail;
        }
    }
    let claimed = [
        // Every new pool runs this statement, and `poolers` tests its refusals.
        &["check_options"],
        ledger::CLAIMED,
        lives::CLAIMED,
        outside::CLAIMED,
        reads::CLAIMED,
    ]
    .concat();
    let claimed: BTreeSet<String> = claimed.into_iter().map(str::to_owned).collect();
    assert!(
        named.len() > 50,
        "the search finds too few statement labels"
    );
    assert_eq!(
        named.difference(&claimed).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_800_000_000 + seconds)
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn task_id(n: u128) -> TaskId {
    uuid(n).into()
}

fn session_id(n: u128) -> SessionId {
    uuid(n).into()
}

fn task(n: u128, parent: Option<u128>) -> Task {
    Task {
        id: task_id(n),
        task_type: "job".into(),
        attestor: "dev".into(),
        owner: "dev:a".to_owned().try_into().unwrap(),
        owner_instance: Some("run-1".to_owned().try_into().unwrap()),
        parent: parent.map(task_id),
        depth: if parent.is_some() { 2 } else { 1 },
        state: TaskState::Open,
        opened_at: at(0),
        deadline: at(1_000),
        heartbeat_seconds: None,
        heard_at: at(0),
        ended_at: None,
        handle_digest: [u8::try_from(n).unwrap(); 32],
        handle_key: None,
        attestor_digest: [7; 32],
        sessions_left: 5,
        leaf_index: 0,
    }
}

fn session(n: u128, task: u128, parent: Option<u128>) -> Session {
    Session {
        id: session_id(n),
        task_id: task_id(task),
        parent: parent.map(session_id),
        decision_id: uuid(n + 1_000).into(),
        leaf_index: 0,
        attestor: "dev".into(),
        workload: "dev:a".to_owned().try_into().unwrap(),
        instance: None,
        resource: "orders".into(),
        grant: serde_json::from_value(json!([
            {"type": "api", "actions": ["r"], "locations": ["https://o.example/v1"]}
        ]))
        .unwrap(),
        audience: "https://o.example".into(),
        minter: MinterKind::Jwt,
        key: None,
        kid: "k1".into(),
        generation: GenerationDigest::new([7; 32]),
        policies: vec!["p_1%".into(), "ünï".into()],
        revocability: Revocability {
            class: RevocationClass::Immediate { bound_seconds: 0 },
            open_sessions: OpenSessions::Kept,
            expires_by: ExpiresBy::Broker,
        },
        issued_at: at(0),
        expires_at: at(500),
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    }
}

fn leaf(index: u64) -> LeafRow {
    let body = format!("leaf {index}").into_bytes();
    LeafRow {
        index,
        hash: leaf_hash(&body),
        body,
        decision: Some(uuid(u128::from(index) + 500).into()),
        subject: Some("dev:a".into()),
        at: at(i64::try_from(index).unwrap()),
        input: Some(Opening {
            salt: [1; 16],
            bytes: b"input".to_vec(),
        }),
        purpose: None,
    }
}

fn hash(n: u64) -> Hash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Hash::from(bytes)
}

fn head(size: u64) -> Head {
    Head {
        size,
        root: hash(size + 9_000),
    }
}

static KEYS: LazyLock<[SecretString; 2]> =
    LazyLock::new(|| [(); 2].map(|()| SealingKeys::generate(&SystemRandom::new()).unwrap()));

/// The MAC that protects rows in these tests.
fn mac() -> Mac {
    SealingKeys::parse(&KEYS[..1]).unwrap().mac("o")
}

/// The same after a new sealing key was added as the first.
fn newer_mac() -> Mac {
    let keys = [KEYS[1].clone(), KEYS[0].clone()];
    SealingKeys::parse(&keys).unwrap().mac("o")
}

fn head_seal() -> HeadSeal {
    HeadSeal::new("o", &mac())
}

/// The sealed head of a log with `size` leaves.
fn sealed(size: u64, n: u128) -> SealedHead {
    head_seal().seal(head(size), batch(n))
}

fn batch(n: u128) -> BatchId {
    uuid(n + 70_000).into()
}

/// Writes one batch as the ledger does, and returns the view before it.
async fn append(store: &Store, needs: &Needs, writes: &Writes) -> Result<View, StoreError> {
    let mut connection = store.ledger_connection().await?;
    let view = connection.enter(needs).await?;
    connection.write(writes).await?;
    connection.commit().await?;
    Ok(view)
}

async fn seed(store: &Store, writes: Writes) {
    append(store, &Needs::default(), &writes).await.unwrap();
}

async fn seen(store: &Store, needs: Needs) -> View {
    let mut connection = store.ledger_connection().await.unwrap();
    let view = connection.enter(&needs).await.unwrap();
    connection.rollback().await.unwrap();
    view
}

fn cutoff(n: u128, index: u64, selector: Selector, block: Block) -> SealedCutoff {
    let cutoff = Cutoff {
        id: CutoffId::from(uuid(n)),
        index,
        selector,
        block,
        reason: "why ✓".into(),
        by: "admin".into(),
        deny_policy_target: None,
        requested_at: at(1),
        committed_at: at(2),
        lifted_index: None,
    };
    SealedCutoff::seal(cutoff, &mac())
}

fn deny_target(name: &str) -> DenyPolicyTarget {
    DenyPolicyTarget {
        minter: MinterKind::Aws,
        name: name.into(),
        registration: "{}".into(),
        capacity: 4,
        propagation_seconds: 60,
    }
}

fn acts(acts: Vec<ActWrite>) -> Writes {
    Writes {
        acts,
        ..Writes::default()
    }
}

/// Whether the store accepts the heartbeat.
async fn heartbeat_accepted(store: &Store, task: TaskId, now: Timestamp) -> bool {
    let Some(held) = store.hold_task(task, now).await.unwrap() else {
        return false;
    };
    held.hear(now, None, 9).await.unwrap().is_some()
}

/// Checks the rights of the serving role, acting as that role.
#[tokio::test]
async fn the_serving_role_changes_no_leaf_tile_head_or_generation() {
    let database = fresh_database();
    let url = SecretString::from(database.url());
    let owner = Postgres::connect(&url, PostgresSettings::default());
    let owner = owner.await.unwrap();
    let store = Store::Postgres(owner.clone());
    store.ensure_partitions(0).await.unwrap();
    let writes = Writes {
        leaves: vec![leaf(0)],
        head: Some(sealed(1, 1)),
        ..Writes::default()
    };
    seed(&store, writes).await;
    let role = format!("serving_{}", database.name().to_lowercase());
    let mut connection = database.connect().await;
    let run = async |connection: &mut sqlx::PgConnection, sql: String| {
        let ran = sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(connection)
            .await;
        ran.map(|_| ()).map_err(|error| {
            let code = error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code);
            code.map_or_else(|| error.to_string(), std::borrow::Cow::into_owned)
        })
    };
    run(&mut connection, format!("CREATE ROLE {role}"))
        .await
        .unwrap();
    owner.grant_serving(&role).await.unwrap();
    let mut forbidden: Vec<String> = vec![
        "UPDATE leaf SET hash = hash".into(),
        "UPDATE leaf_body SET body = body".into(),
        "UPDATE tile SET root = root".into(),
        "UPDATE cosigned SET line = line".into(),
        "UPDATE ledger_head SET root = root".into(),
        "UPDATE generation SET body = body".into(),
        "UPDATE activation SET digest = digest".into(),
        "CREATE TABLE t (x int)".into(),
        "CREATE TEMPORARY TABLE t (x int)".into(),
        "UPDATE session SET details = details".into(),
        "UPDATE session SET expires_at = expires_at".into(),
        "UPDATE task SET deadline = deadline".into(),
        "UPDATE cutoff SET value = value".into(),
        "UPDATE admin_binding SET bound = bound".into(),
        "UPDATE workload_key SET jwk = jwk".into(),
        "UPDATE signing_key SET published_at = published_at".into(),
        "UPDATE one_time SET binding = binding".into(),
        "INSERT INTO ledger_seen VALUES ('epoch', 1, 0)".into(),
        "UPDATE ledger_seen SET at = 'epoch'".into(),
        "DELETE FROM ledger_seen".into(),
        "SELECT ledger_seen_before('0')".into(),
        "DELETE FROM admin_binding".into(),
        "DELETE FROM workload_key".into(),
        "DELETE FROM signing_key".into(),
        "DELETE FROM succession".into(),
        "DELETE FROM store_meta".into(),
    ];
    for table in [
        "leaf",
        "leaf_body",
        "tile",
        "cosigned",
        "ledger_head",
        "generation",
        "activation",
    ] {
        forbidden.push(format!("DELETE FROM {table}"));
        forbidden.push(format!("TRUNCATE {table}"));
    }
    for sql in forbidden {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {sql}; ROLLBACK");
        let tried = run(&mut connection, sql.clone()).await;
        assert_eq!(tried, Err("42501".to_owned()), "{sql}");
        run(&mut connection, "ROLLBACK".into()).await.unwrap();
    }
    for sql in [
        "SELECT FROM leaf, leaf_body, tile, cosigned, ledger_head, generation, activation, session, cutoff",
        "SELECT id FROM ledger_lock FOR UPDATE",
        "DELETE FROM session",
        "DELETE FROM one_time",
        "UPDATE export_cursor SET next_idx = 0",
        "INSERT INTO cosigned VALUES (1, 'k', 'w', 'l', 'c')",
        "SELECT ledger_prune_heads(0, 1)",
        "UPDATE activation SET mac = mac",
    ] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {sql}; ROLLBACK");
        assert_eq!(run(&mut connection, sql.clone()).await, Ok(()), "{sql}");
    }
    let gone = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    run(&mut connection, gone).await.unwrap();
}

#[tokio::test]
async fn on_postgresql_a_commit_that_the_server_warns_of_is_not_acknowledged() {
    let place = postgres().await;
    let database = place.database.as_ref().unwrap();
    // The broker must see warnings even if the database's default hides them.
    let mut admin = database.connect().await;
    let quiet = format!(
        "ALTER DATABASE {} SET client_min_messages = error",
        database.name()
    );
    let quiet = sqlx::raw_sql(sqlx::AssertSqlSafe(quiet));
    quiet.execute(&mut admin).await.unwrap();
    let mut connection = place.store.ledger_connection().await.unwrap();
    connection.enter(&Needs::default()).await.unwrap();
    connection.commit().await.unwrap();
    // The transaction has already ended.
    let told = connection.commit().await.unwrap_err().to_string();
    assert!(told.contains("no transaction in progress"), "{told}");
    connection.enter(&Needs::default()).await.unwrap();
    connection.commit().await.unwrap();
    place.store.close().await;
}

#[tokio::test]
async fn on_postgresql_a_reader_of_all_bodies_keeps_no_room_from_being_made_and_appends_hardly() {
    let place = postgres().await;
    let database = place.database.as_ref().unwrap();
    // Lock the bodies like `pg_dump`, which holds its lock for a long time.
    let mut reader = database.connect().await;
    let mut begun = sqlx::Connection::begin(&mut reader).await.unwrap();
    let reading = sqlx::query("LOCK TABLE leaf_body IN ACCESS SHARE MODE");
    reading.execute(&mut *begun).await.unwrap();

    let store = &place.store;
    store.ensure_partitions(20_000_000).await.unwrap();
    // The last leaf of the first partition, so that this partition can be dropped, and a leaf of a
    // later one.
    let leaves = vec![leaf(16_777_215), leaf(17_000_000)];
    seed(
        store,
        Writes {
            leaves,
            head: Some(sealed(17_000_001, 1)),
            ..Writes::default()
        },
    )
    .await;
    age_heads().await;
    let dropping = async {
        let begin = std::time::Instant::now();
        let dropped = store.prune_bodies(at(18_000_000), 9).await;
        (dropped.map_err(drop), begin.elapsed())
    };
    let appending = async {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let begin = std::time::Instant::now();
        let leaves = vec![leaf(16_777_216)];
        seed(
            store,
            Writes {
                leaves,
                ..Writes::default()
            },
        )
        .await;
        begin.elapsed()
    };
    let ((dropped, tried), appended) = tokio::join!(dropping, appending);
    assert_eq!(dropped, Err(()), "the partition is being read");
    // Dropping waits for the lock for a tenth of a second. Without that limit it would wait until
    // the reader ends.
    let soon = std::time::Duration::from_secs(10);
    assert!(tried < soon && appended < soon, "{tried:?}, {appended:?}");

    begun.rollback().await.unwrap();
    assert_eq!(store.prune_bodies(at(18_000_000), 9).await.unwrap(), 1);
    assert_eq!(store.leaf(16_777_215).await.unwrap().unwrap().body, None);
    assert!(
        store
            .leaf(17_000_000)
            .await
            .unwrap()
            .unwrap()
            .body
            .is_some()
    );
    store.close().await;
}

#[tokio::test]
async fn on_sqlite_what_is_left_of_the_bodies_is_the_end_of_the_log() {
    let place = sqlite().await;
    let store = &place.store;
    // The leaves carry the times of their decisions, which differ from the order of commits.
    let dated = [100, 110, 130, 120, 140];
    let leaves = (0..).zip(dated).map(|(index, dated)| LeafRow {
        at: at(dated),
        ..leaf(index)
    });
    let leaves = leaves.collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    let kept = async || {
        let leaves = store.leaves(0, 9).await.unwrap();
        let kept = leaves.into_iter().filter(|leaf| leaf.body.is_some());
        kept.map(|leaf| leaf.index).collect::<Vec<_>>()
    };
    assert_eq!(store.prune_bodies(at(125), 9).await.unwrap(), 2);
    assert_eq!(
        kept().await,
        [2, 3, 4],
        "no body after a younger leaf is deleted"
    );
    assert_eq!(store.prune_bodies(at(125), 9).await.unwrap(), 0);
    assert_eq!(
        store.prune_bodies(at(131), 1).await.unwrap(),
        1,
        "one at a time"
    );
    assert_eq!(store.prune_bodies(at(140), 9).await.unwrap(), 1);
    assert_eq!(kept().await, [4]);
    store.close().await;
}

#[tokio::test]
async fn on_sqlite_what_was_deleted_is_in_nofile_even_when_a_reader_had_held_the_log() {
    let place = sqlite().await;
    let (store, directory) = (&place.store, place.file.as_ref().unwrap().dir());
    let Store::Sqlite(sqlite) = store else {
        unreachable!("the store is SQLite")
    };
    let canary = b"a deleted text for the search";
    let found = || {
        let files = std::fs::read_dir(directory).unwrap();
        let mut bytes = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        bytes.any(|bytes| bytes.windows(canary.len()).any(|part| part == canary))
    };
    let mut reader = sqlite.readers().begin().await.unwrap();
    let read = sqlx::query("SELECT count(*) FROM leaf").execute(&mut *reader);
    read.await.unwrap();
    let leaves = (0..300).map(|index| LeafRow {
        purpose: Some(Opening {
            salt: [2; 16],
            bytes: canary.repeat(30),
        }),
        ..leaf(index)
    });
    let leaves = leaves.collect();
    seed(
        store,
        Writes {
            leaves,
            ..Writes::default()
        },
    )
    .await;
    assert_eq!(store.prune_openings(at(300), 1_000).await.unwrap(), 300);
    assert!(
        !store.scrub().await.unwrap(),
        "the write-ahead log is being read"
    );
    assert!(found());
    reader.rollback().await.unwrap();
    assert!(store.scrub().await.unwrap());
    assert!(!found());
    assert!(
        store.scrub().await.unwrap(),
        "a second call finds nothing to do"
    );
    store.close().await;
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let postgres = names("migrations/postgres");
    assert!(postgres.contains("0001_foundation.sql"));
    assert_eq!(postgres, names("migrations/sqlite"));
}
