//! One suite for both stores: each case lists the statements that it covers and states the answers
//! that both databases must give. The suite fails if a statement has no case.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
use taskpass::domain::generation_digest::GenerationDigest;
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
use taskpass::store::endings::{
    ChainedEnding, EndingPosition, EndingRecord, EndingSubject, EndingsChain,
};
use taskpass::store::exports::{BelievedTimes, ExportCursor, ExportKey};
use taskpass::store::generations::SealedActivation;
use taskpass::store::heads::{Head, HeadSeal, SealedHead};
use taskpass::store::keys::SigningKeyRow;
use taskpass::store::meta::{BootstrapToken, SealedSuccession, StoreMode};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::prune::Walked;
use taskpass::store::replicas::ReplicaRow;
use taskpass::store::sessions::{MatchCount, SessionFilter};
use taskpass::store::sqlite::Sqlite;
use taskpass::store::tasks::{CheckedTasks, TaskCheck, TaskFilter};
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

/// Runs each case on both stores, and lists the statements that the cases cover. A case is an async
/// function of the store.
macro_rules! cases {
    ($($name:ident: $($label:literal)+;)+) => {
        /// The statements that the cases cover.
        pub const CLAIMED: &[&str] = &[$($($label,)+)+];

        $(mod $name {
            use super::*;

            #[tokio::test]
            async fn on_sqlite() {
                let place = sqlite().await;
                super::$name(&place.store).await;
                place.store.close().await;
            }

            #[tokio::test]
            async fn on_postgresql() {
                let place = postgres().await;
                super::$name(&place.store).await;
                place.store.close().await;
            }
        })+
    };
}

// These modules use the macro, so they must follow it.
mod acts;
mod databases;
mod deny_lists;
mod endings;
mod ledger;
mod lives;
mod marks;
mod outside;
mod pruning;
mod reads;
mod sessions;
mod upgrades;

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
        acts::CLAIMED,
        deny_lists::CLAIMED,
        endings::CLAIMED,
        ledger::CLAIMED,
        lives::CLAIMED,
        marks::CLAIMED,
        outside::CLAIMED,
        pruning::CLAIMED,
        reads::CLAIMED,
        sessions::CLAIMED,
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
    head_seal().seal(head(size), batch(n), EndingsChain::EMPTY)
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
