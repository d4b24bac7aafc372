//! One suite over both stores: each case names the statements that it is about and says what both
//! databases must answer. A statement that no case names fails the suite, so a new one needs a case.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use secrecy::SecretString;
use serde_json::json;
use taskpass::clock::Timestamp;
use taskpass::domain::catalog::Revocability;
use taskpass::domain::cutoff::{Block, Cutoff, Selector, True};
use taskpass::domain::deny_list::{DenyAsk, DenyPlace, DenyStanding};
use taskpass::domain::generation::GenerationDigest;
use taskpass::domain::leaf::Opening;
use taskpass::domain::session::{EndReason, Session, SessionState};
use taskpass::domain::task::{Task, TaskState};
use taskpass::domain::workload::OneTime;
use taskpass::ids::{BatchId, CutoffId, DecisionId, SessionId, TaskId};
use taskpass::merkle::{Hash, Tile};
use taskpass::store::append::{
    ActWrite, Head, LeafRow, MintLease, Needs, RetryFacts, SessionEnd, TaskChange, View, Writes,
};
use taskpass::store::cosigned::CosignedRow;
use taskpass::store::cutoffs::SealedCutoff;
use taskpass::store::exports::{ExportCursor, ExportKey};
use taskpass::store::keys::SigningKeyRow;
use taskpass::store::meta::{SealedSuccession, StoreMode};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::sessions::SessionFilter;
use taskpass::store::sqlite::Sqlite;
use taskpass::store::tasks::TaskFilter;
use taskpass::store::{Store, StoreError};
use uuid::Uuid;

use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::sqlite::{SqliteFile, fresh_sqlite};

/// A store of its own, and what keeps it there.
struct Place {
    store: Store,
    _file: Option<SqliteFile>,
    _database: Option<TestDatabase>,
}

async fn sqlite() -> Place {
    let file = fresh_sqlite();
    let store = Store::Sqlite(Sqlite::open(file.dir(), 2).await.unwrap());
    Place {
        store,
        _file: Some(file),
        _database: None,
    }
}

async fn postgres() -> Place {
    let database = fresh_database();
    let url = SecretString::from(database.url());
    let connected = Postgres::connect(&url, PostgresSettings::default());
    let store = Store::Postgres(connected.await.unwrap());
    store.ensure_partitions(0).await.unwrap();
    Place {
        store,
        _file: None,
        _database: Some(database),
    }
}

macro_rules! cases {
    ($($(#[$doc:meta])* [$($label:literal)+] async fn $name:ident($store:ident: &Store) $body:block)+) => {
        /// The statements that have a case.
        const CLAIMED: &[&str] = &[$($($label,)+)+];

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

#[test]
fn every_statement_has_a_case() {
    let mut named = BTreeSet::new();
    for entry in std::fs::read_dir("src/store").unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
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
    let claimed: BTreeSet<String> = CLAIMED.iter().map(|label| (*label).to_owned()).collect();
    assert!(named.len() > 50, "the labels are not found any more");
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
        minter: "jwt".into(),
        key: None,
        kid: "k1".into(),
        generation: GenerationDigest::new([7; 32]),
        policies: vec!["p_1%".into(), "ünï".into()],
        revocability: Revocability::IMMEDIATE,
        issued_at: at(0),
        expires_at: at(500),
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    }
}

fn leaf(index: u64) -> LeafRow {
    LeafRow {
        index,
        hash: hash(index),
        body: format!("leaf {index}").into_bytes(),
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

fn batch(n: u128) -> BatchId {
    uuid(n + 70_000).into()
}

/// Writes one batch as the ledger does, and gives back what it saw before.
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
    SealedCutoff {
        cutoff: Cutoff {
            id: CutoffId::from(uuid(n)),
            index,
            selector,
            block,
            reason: "why ✓".into(),
            by: "admin".into(),
            widened_to: None,
            requested_at: at(1),
            committed_at: at(2),
            lifted_index: None,
        },
        mac: vec![1; 32],
    }
}

fn deny_place(name: &str) -> DenyPlace {
    DenyPlace {
        minter: "aws".into(),
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

cases! {
    ["ledger_lock" "ledger_enter" "ledger_write" "head" "leaf_hashes" "leaves" "decision_index" "decisions" "openings" "committed"]
    async fn a_batch_is_read_back_as_it_was_written(store: &Store) {
        assert_eq!(store.head().await.unwrap(), None);
        let first = seen(store, Needs::default()).await;
        assert_eq!((first.head, first.generation, first.hashes.len()), (None, None, 0));
        let writes = Writes {
            leaves: (0..3).map(leaf).collect(),
            head: Some((head(3), batch(1))),
            ..Writes::default()
        };
        seed(store, writes).await;
        assert_eq!(store.head().await.unwrap(), Some(head(3)));
        assert_eq!(store.leaf_hashes(1, 10).await.unwrap(), vec![hash(1), hash(2)]);
        assert_eq!(store.leaf_hashes(3, 10).await.unwrap(), vec![]);
        assert_eq!(store.leaf_hashes(u64::MAX, u64::MAX).await.unwrap(), vec![]);
        let leaves = store.leaves(0, 2).await.unwrap();
        assert_eq!(leaves.len(), 2);
        assert_eq!(leaves[1].body.as_deref(), Some(&b"leaf 1"[..]));
        assert_eq!((leaves[1].hash, leaves[1].at), (hash(1), at(1)));
        assert_eq!(leaves[1].subject.as_deref(), Some("dev:a"));
        assert_eq!(store.leaf(3).await.unwrap(), None);
        assert_eq!(store.decision_index(uuid(502).into()).await.unwrap(), Some(2));
        assert_eq!(store.decision_index(DecisionId::from(uuid(9))).await.unwrap(), None);
        let decisions = store.decisions(1, 5).await.unwrap();
        let found: Vec<_> = decisions.iter().map(|row| (row.index, row.hash, row.at)).collect();
        assert_eq!(found, [(1, hash(1), at(1)), (2, hash(2), at(2))]);
        let input = decisions[1].input.as_ref().unwrap();
        assert_eq!((input.bytes.as_slice(), decisions[1].body.as_deref()), (&b"input"[..], Some(&b"leaf 2"[..])));
        assert_eq!(store.decisions(0, 1).await.unwrap()[0].index, 0);
        assert_eq!(store.decisions(3, 5).await.unwrap(), vec![]);
        let openings = store.openings(2).await.unwrap();
        assert_eq!(openings.input.unwrap().bytes, b"input");
        assert_eq!((openings.purpose, store.openings(99).await.unwrap().input), (None, None));
        let view = seen(store, Needs { hashes_from: 1, ..Needs::default() }).await;
        assert_eq!((view.head, view.hashes), (Some(head(3)), vec![hash(1), hash(2)]));

        let mut connection = store.ledger_connection().await.unwrap();
        assert!(connection.committed(batch(1)).await.unwrap());
        assert!(!connection.committed(batch(2)).await.unwrap());
    }

    ["tile" "tile_roots"]
    async fn full_tiles_are_found_by_level_and_place(store: &Store) {
        let tile = |level, index| Tile { level, index, hashes: vec![hash(index); 256], root: hash(index + 40) };
        seed(store, Writes { tiles: vec![tile(0, 0), tile(0, 1), tile(1, 0)], ..Writes::default() }).await;
        assert_eq!(store.tile(0, 1).await.unwrap(), Some(vec![hash(1); 256]));
        assert_eq!(store.tile(2, 0).await.unwrap(), None);
        assert_eq!(store.tile_roots(0, 0, 10).await.unwrap(), vec![hash(40), hash(41)]);
        assert_eq!(store.tile_roots(0, 1, 1).await.unwrap(), vec![hash(41)]);
        let again = append(store, &Needs::default(), &Writes { tiles: vec![tile(0, 1)], ..Writes::default() }).await;
        assert!(matches!(again, Err(StoreError::Refused(_))), "a tile is written once");
    }

    ["prune_one_time"]
    async fn evidence_is_used_once_and_forgotten_after_its_time(store: &Store) {
        let once = |n: u8, seconds| OneTime { must_be_new: false, key: [n; 32], binding: (n == 2).then_some([9; 32]), expires_at: at(seconds) };
        seed(store, Writes { one_time: vec![once(1, 10), once(2, 20)], ..Writes::default() }).await;
        let view = seen(store, Needs { one_time: vec![[1; 32], [2; 32], [3; 32]], ..Needs::default() }).await;
        assert_eq!(view.used, HashMap::from([([1; 32], None), ([2; 32], Some(vec![9; 32]))]));
        let twice = append(store, &Needs::default(), &Writes { one_time: vec![once(1, 10)], ..Writes::default() }).await;
        assert!(matches!(twice, Err(StoreError::Refused(_))));
        assert_eq!(store.prune_one_time(at(10), 10).await.unwrap(), 0, "not in its last instant");
        assert_eq!(store.prune_one_time(at(11), 10).await.unwrap(), 1);
        assert_eq!(store.prune_one_time(at(99), 0).await.unwrap(), 0);
    }

    ["task" "tasks" "task_chains" "heartbeat" "claim_due_tasks" "put_off_check"]
    async fn a_task_is_kept_heard_and_looked_at_when_due(store: &Store) {
        let watched = Task { heartbeat_seconds: Some(60), ..task(2, Some(1)) };
        seed(store, Writes { tasks: vec![task(1, None), watched.clone(), task(3, None)], ..Writes::default() }).await;
        assert_eq!(store.task(task_id(2)).await.unwrap(), Some(watched));
        assert_eq!(store.task(task_id(9)).await.unwrap(), None);

        let all = TaskFilter { limit: 2, ..TaskFilter::default() };
        let page = |tasks: Vec<Task>| tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
        let first = page(store.tasks(&all).await.unwrap());
        assert_eq!(first, [task_id(3), task_id(2)], "newest first");
        let rest = TaskFilter { before: Some(task_id(2)), ..all.clone() };
        assert_eq!(page(store.tasks(&rest).await.unwrap()), [task_id(1)]);
        let others = TaskFilter { owner: Some("dev:b".into()), ..all.clone() };
        assert_eq!(store.tasks(&others).await.unwrap(), vec![]);
        let over = TaskFilter { state: Some(TaskState::Completed), ..all };
        assert_eq!(store.tasks(&over).await.unwrap(), vec![]);

        let chains = store.task_chains(&[task_id(2), task_id(9)]).await.unwrap();
        let chain: Vec<TaskId> = chains[&task_id(2)].0.iter().map(|life| life.id).collect();
        assert_eq!((chain, chains.len()), (vec![task_id(2), task_id(1)], 1));
        assert!(store.task_chains(&[]).await.unwrap().is_empty());
        let view = seen(store, Needs { tasks: vec![task_id(2)], ..Needs::default() }).await;
        assert_eq!(view.tasks.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&task_id(1), &task_id(2)]));
        assert_eq!(view.tasks[&task_id(2)].parent, Some(task_id(1)));
        let owner = ("dev:a".to_owned(), "job".to_owned());
        let count = Needs { open_tasks: vec![(owner.0.clone(), owner.1.clone(), 2)], now: Some(at(1)), ..Needs::default() };
        assert_eq!(seen(store, count).await.open_tasks[&owner], 2, "counted up to the limit only");

        assert!(store.heartbeat(task_id(2), at(59)).await.unwrap());
        assert!(store.heartbeat(task_id(2), at(20)).await.unwrap(), "an older one does no harm");
        assert_eq!(store.task(task_id(2)).await.unwrap().unwrap().heard_at, at(59));
        assert!(!store.heartbeat(task_id(2), at(119)).await.unwrap(), "silent for its whole time");
        assert!(!store.heartbeat(task_id(1), at(1_000)).await.unwrap(), "past its deadline");
        assert!(!store.heartbeat(task_id(9), at(1)).await.unwrap());

        let due = page(store.claim_due_tasks(at(60), at(70), 5).await.unwrap());
        assert_eq!(due, [task_id(2)], "when it would have been silent");
        assert_eq!(page(store.claim_due_tasks(at(69), at(79), 5).await.unwrap()), []);
        store.put_off_check(task_id(2), at(119)).await.unwrap();
        assert_eq!(page(store.claim_due_tasks(at(118), at(130), 5).await.unwrap()), []);
        assert_eq!(page(store.claim_due_tasks(at(119), at(130), 5).await.unwrap()), [task_id(2)]);
        assert_eq!(store.claim_due_tasks(at(1_000), at(1_100), 2).await.unwrap().len(), 2);

        let end = TaskChange { end: Some((TaskState::Completed, at(7), 4)), sessions_taken: 2, handle: Some([8; 32]) };
        seed(store, Writes { task_changes: BTreeMap::from([(task_id(1), end)]), ..Writes::default() }).await;
        let ended = store.task(task_id(1)).await.unwrap().unwrap();
        assert_eq!((ended.state, ended.ended_at, ended.sessions_left), (TaskState::Completed, Some(at(7)), 3));
        assert_eq!(ended.handle_digest, [8; 32]);
        assert!(!store.heartbeat(task_id(1), at(8)).await.unwrap(), "nothing brings it back");
    }

    ["session" "list_sessions" "sessions_under" "ancestors" "matching" "cutoffs_after"]
    async fn a_session_is_seen_with_all_that_decides_about_it(store: &Store) {
        let mut child = session(12, 2, Some(11));
        child.resource = "archive".into();
        child.leaf_index = 1;
        let writes = Writes {
            tasks: vec![task(1, None), task(2, Some(1))],
            sessions: vec![(session(11, 1, None), None), (child.clone(), None)],
            ..Writes::default()
        };
        seed(store, writes).await;
        assert_eq!(store.session(session_id(12)).await.unwrap(), Some(child));
        assert_eq!(store.session(session_id(99)).await.unwrap(), None);
        let view = store.session_view(session_id(12)).await.unwrap().unwrap();
        assert_eq!((view.ancestors.len(), view.tasks.0.len()), (1, 2));
        assert!(view.is_valid_at(at(499)) && !view.is_valid_at(at(500)));

        let page = |filter: SessionFilter| async move {
            let views = store.list_sessions(&SessionFilter { limit: 5, ..filter }).await.unwrap();
            views.into_iter().map(|view| view.session.id).collect::<Vec<_>>()
        };
        let none = SessionFilter::default;
        assert_eq!(page(none()).await, [session_id(12), session_id(11)]);
        assert_eq!(page(SessionFilter { before: Some(session_id(12)), ..none() }).await, [session_id(11)]);
        assert_eq!(page(SessionFilter { resource: Some("archive".into()), ..none() }).await, [session_id(12)]);
        assert_eq!(page(SessionFilter { task: Some(task_id(1)), ..none() }).await, [session_id(11)]);
        assert_eq!(page(SessionFilter { workload: Some("dev:b".into()), ..none() }).await, []);
        assert_eq!(page(SessionFilter { live_at: Some(at(500)), ..none() }).await, []);
        let under = store.sessions_under(task_id(1), 5).await.unwrap();
        assert_eq!(under.len(), 2, "descendants too");
        assert_eq!(store.sessions_under(task_id(2), 5).await.unwrap().len(), 1);

        let killed = |selector: Selector| async move {
            let counted = store.count_matching(&selector, 5, at(3), at(3)).await.unwrap();
            let listed = store.list_matching(&selector, 5, at(3), 9).await.unwrap();
            assert_eq!(counted.0, listed.len() as u64);
            counted.0
        };
        assert_eq!(killed(Selector::All(True)).await, 2);
        assert_eq!(killed(Selector::Resource("orders".into())).await, 2, "what was derived from it too");
        assert_eq!(killed(Selector::Resource("archive".into())).await, 1);
        assert_eq!(killed(Selector::Task(task_id(2))).await, 1);
        assert_eq!(killed(Selector::Policy("p_1%".into())).await, 2);
        assert_eq!(killed(Selector::Policy("ünï".into())).await, 2);
        assert_eq!(killed(Selector::Policy("pX1%".into())).await, 0, "`_` is no wildcard");
        assert_eq!(killed(Selector::SigningKey("k2".into())).await, 0);
        assert_eq!(killed(Selector::Generation(GenerationDigest::new([7; 32]))).await, 2);
        assert_eq!(store.count_matching(&Selector::All(True), 1, at(3), at(3)).await.unwrap().0, 2, "by its parent");
        assert_eq!(store.count_matching(&Selector::All(True), 0, at(3), at(3)).await.unwrap(), (0, 0));
        assert_eq!(store.count_matching(&Selector::All(True), 5, at(500), at(500)).await.unwrap(), (0, 0));

        let cut = cutoff(60, 1, Selector::Resource("orders".into()), Block::No);
        seed(store, acts(vec![ActWrite::Cutoff(Box::new(cut))])).await;
        let view = store.session_view(session_id(12)).await.unwrap().unwrap();
        assert_eq!(view.cut_off_at, Some(at(2)), "by what it was derived from");
        let orphan = Writes { session_ends: BTreeMap::from([(session_id(11), SessionEnd { state: SessionState::Ended, reason: EndReason::Revoked, at: at(4) })]), ..Writes::default() };
        seed(store, orphan).await;
        let ended = store.session(session_id(11)).await.unwrap().unwrap();
        assert_eq!((ended.ended_at, ended.confirmed_at), (Some(at(4)), Some(at(4))));
        let view = seen(store, Needs { sessions: vec![session_id(12)], ..Needs::default() }).await;
        assert_eq!(view.sessions[&session_id(11)].state, SessionState::Ended);
    }

    ["settle_mint" "unfinished_mints" "claim_unconfirmed" "put_off_ending" "active_external"]
    async fn a_mint_elsewhere_is_settled_once_and_its_end_is_tried_until_confirmed(store: &Store) {
        let minting = |n| {
            let mut one = session(n, 1, None);
            one.state = SessionState::Minting;
            one.minter = "aws".into();
            one.revocability = Revocability::Bounded { bound_seconds: 60 };
            (one, Some(MintLease { until: at(20), holder: "r1".into() }))
        };
        seed(store, Writes { tasks: vec![task(1, None)], sessions: vec![minting(11), minting(12)], ..Writes::default() }).await;
        assert!(!store.settle_mint(session_id(11), "r2", at(1)).await.unwrap(), "another's");
        assert!(!store.settle_mint(session_id(11), "r1", at(20)).await.unwrap(), "its lease is over");
        assert!(store.settle_mint(session_id(11), "r1", at(19)).await.unwrap());
        assert!(!store.settle_mint(session_id(11), "r1", at(19)).await.unwrap(), "once");
        assert_eq!(store.unfinished_mints(at(19), 5).await.unwrap().len(), 0);
        let dead = store.unfinished_mints(at(20), 5).await.unwrap();
        assert_eq!(dead.iter().map(|one| one.id).collect::<Vec<_>>(), [session_id(12)]);
        let external = store.active_external(at(20), None, 5).await.unwrap();
        assert_eq!(external.len(), 1);
        assert_eq!(store.active_external(at(20), Some(session_id(11)), 5).await.unwrap().len(), 0);

        let end = |n| (session_id(n), SessionEnd { state: SessionState::Ending, reason: EndReason::Failed, at: at(21) });
        seed(store, Writes { session_ends: BTreeMap::from([end(11), end(12)]), ..Writes::default() }).await;
        assert_eq!(store.claim_unconfirmed(at(20), at(30), 5).await.unwrap().len(), 0, "not due");
        let claimed = store.claim_unconfirmed(at(21), at(30), 5).await.unwrap();
        assert_eq!(claimed.iter().map(|(_, tries)| *tries).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(store.claim_unconfirmed(at(29), at(40), 5).await.unwrap().len(), 0, "somebody is at it");
        store.put_off_ending(session_id(12), at(90)).await.unwrap();
        let again = store.claim_unconfirmed(at(30), at(40), 5).await.unwrap();
        assert_eq!((again.len(), again[0].0.id, again[0].1), (1, session_id(11), 2));
    }

    ["listed"]
    async fn a_status_list_is_read_by_the_places_of_leaves(store: &Store) {
        let one = |n: u128, class: Revocability, minter: &str| {
            let mut one = session(n, 1, None);
            one.leaf_index = u64::try_from(n).unwrap();
            one.revocability = class;
            one.minter = minter.into();
            (one, None)
        };
        let bounded = Revocability::Bounded { bound_seconds: 30 };
        let sessions = vec![
            one(11, bounded, "jwt"),
            one(12, bounded, "jwt"),
            one(13, bounded, "aws"),
            one(14, Revocability::IMMEDIATE, "jwt"),
        ];
        seed(store, Writes { tasks: vec![task(1, None)], sessions, ..Writes::default() }).await;
        let listed = async |from, to, now| {
            let views = store.listed(from, to, now).await.unwrap();
            views.iter().map(|view| view.session.leaf_index).collect::<Vec<_>>()
        };
        let expiry = session(11, 1, None).expires_at;
        assert_eq!(listed(11, 12, at(1)).await, [11], "the end is not in it");
        assert_eq!(listed(0, 99, at(1)).await.len(), 2);
        assert!(listed(0, 99, expiry).await.is_empty());
    }

    ["retry" "prune_retries"]
    async fn an_idempotency_key_is_known_until_it_may_be_used_anew(store: &Store) {
        let facts = |supersedes| RetryFacts { fingerprint: [5; 32], session: session_id(11), task: task_id(1), supersedes, expires_at: at(50) };
        for supersedes in [0, 1] {
            seed(store, Writes { retries: HashMap::from([([4; 32], facts(supersedes))]), ..Writes::default() }).await;
            assert_eq!(store.retry(&[4; 32], at(49)).await.unwrap(), Some(facts(supersedes)), "the newer one replaces");
        }
        assert_eq!(store.retry(&[4; 32], at(50)).await.unwrap(), None);
        assert_eq!(store.retry(&[3; 32], at(0)).await.unwrap(), None);
        let view = seen(store, Needs { retries: vec![[4; 32]], ..Needs::default() }).await;
        assert_eq!(view.retries[&[4; 32]], facts(1));
        assert_eq!((store.prune_retries(at(50), 5).await.unwrap(), store.prune_retries(at(51), 5).await.unwrap()), (0, 1));
    }

    ["delegation" "write_delegation"]
    async fn a_delegation_is_found_by_its_digest(store: &Store) {
        let write = ActWrite::Delegation { digest: [6; 32], task: task_id(1), child: "dev:c".into(), sessions: 3, expires_at: at(30) };
        seed(store, Writes { tasks: vec![task(1, None)], acts: vec![write], ..Writes::default() }).await;
        let found = store.delegation(&[6; 32]).await.unwrap().unwrap();
        assert_eq!((found.task, found.child.as_str(), found.sessions, found.expires_at), (task_id(1), "dev:c", 3, at(30)));
        assert!(store.delegation(&[7; 32]).await.unwrap().is_none());
        assert_eq!((store.prune_delegations(at(30), 5).await.unwrap(), store.prune_delegations(at(31), 5).await.unwrap()), (0, 1));
    }

    ["cutoff" "cutoffs" "changed_cutoffs" "write_cutoff" "write_lift" "remac_cutoff" "prune_cutoffs"]
    async fn a_cutoff_is_learnt_lifted_once_and_kept_while_it_matters(store: &Store) {
        let held = cutoff(61, 3, Selector::All(True), Block::UntilLifted);
        let timed = cutoff(62, 4, Selector::Workload("dev:a".to_owned().try_into().unwrap()), Block::Until(at(40)));
        let gone = cutoff(63, 5, Selector::Policy("p".into()), Block::No);
        let write = |one: &SealedCutoff| ActWrite::Cutoff(Box::new(one.clone()));
        seed(store, acts(vec![write(&held), write(&timed), write(&gone)])).await;
        assert_eq!(store.cutoff(held.cutoff.id).await.unwrap(), Some(held.clone()));
        assert_eq!(store.cutoffs(2).await.unwrap(), [gone.clone(), timed.clone()], "newest first");
        let later: Vec<u64> = store.cutoffs_after(3).await.unwrap().iter().map(|one| one.index).collect();
        assert_eq!(later, [4, 5], "those after a leaf, not the leaf's own");
        let changed = |from| async move { seen(store, Needs { cutoffs_from: from, ..Needs::default() }).await.cutoffs };
        assert_eq!(changed(4).await, [timed.clone(), gone.clone()]);

        assert_eq!(store.prune_cutoffs(at(3), at(39), 9).await.unwrap(), 1, "what blocks is kept");
        assert_eq!(store.prune_cutoffs(at(2), at(99), 9).await.unwrap(), 0, "what may still kill is kept");
        let mut lifted = held.clone();
        lifted.cutoff.lifted_index = Some(9);
        lifted.mac = vec![2; 32];
        seed(store, acts(vec![ActWrite::Lift(Box::new(lifted.clone()))])).await;
        assert_eq!(changed(5).await, [lifted.clone()], "a lift is a change");
        let mut again = lifted.clone();
        again.cutoff.lifted_index = Some(12);
        seed(store, acts(vec![ActWrite::Lift(Box::new(again))])).await;
        assert_eq!(store.cutoff(held.cutoff.id).await.unwrap(), Some(lifted.clone()), "once");

        store.remac_cutoff(held.cutoff.id, &[1; 32], &[9; 32]).await.unwrap();
        assert_eq!(store.cutoff(held.cutoff.id).await.unwrap().unwrap().mac, [2; 32], "it changed meanwhile");
        store.remac_cutoff(held.cutoff.id, &[2; 32], &[9; 32]).await.unwrap();
        assert_eq!(store.cutoff(held.cutoff.id).await.unwrap().unwrap().mac, [9; 32]);
        assert_eq!(store.prune_cutoffs(at(3), at(41), 9).await.unwrap(), 2);
    }

    ["put_generation" "generation" "active_generation" "write_activation" "remac_activation"]
    async fn the_newest_activation_decides(store: &Store) {
        assert_eq!(store.active_generation().await.unwrap(), None);
        let (one, two) = (GenerationDigest::new([1; 32]), GenerationDigest::new([2; 32]));
        for (digest, body) in [(one, b"one"), (two, b"two"), (one, b"new")] {
            store.put_generation(digest, body, at(0)).await.unwrap();
        }
        assert_eq!(store.generation(one).await.unwrap().unwrap(), b"one", "what is stored stays");
        assert_eq!(store.generation(GenerationDigest::new([3; 32])).await.unwrap(), None);
        let activate = |index, digest| ActWrite::Activation { index, digest, by: "x".into(), at: at(1), mac: vec![1; 32] };
        seed(store, acts(vec![activate(4, one), activate(8, two)])).await;
        let active = store.active_generation().await.unwrap().unwrap();
        assert_eq!((active.digest, active.index), (two, 8));
        assert_eq!(seen(store, Needs::default()).await.generation, Some(two));
        let unknown = activate(9, GenerationDigest::new([3; 32]));
        assert!(append(store, &Needs::default(), &acts(vec![unknown])).await.is_err(), "stored before it is activated");
        store.remac_activation(8, &[7; 32], &[9; 32]).await.unwrap();
        assert_eq!(store.active_generation().await.unwrap().unwrap().mac, [1; 32]);
        store.remac_activation(8, &[1; 32], &[9; 32]).await.unwrap();
        assert_eq!(store.active_generation().await.unwrap().unwrap().mac, [9; 32]);
    }

    ["signing_keys" "write_signing_key" "reseal_key"]
    async fn a_signing_key_is_kept_sealed_and_resealed_by_comparison(store: &Store) {
        let key = SigningKeyRow {
            kid: "k1".into(), purpose: "access_token".into(), algorithm: "ES256".into(), sealed: vec![1],
            created_at: at(0), published_at: at(1), active_from: at(2), retire_at: at(3), remove_at: at(4),
            revoked_at: None, mac: vec![1],
        };
        let revoked = SigningKeyRow { revoked_at: Some(at(9)), mac: vec![2], ..key.clone() };
        for row in [&key, &revoked] {
            seed(store, acts(vec![ActWrite::SigningKey(Box::new(row.clone()))])).await;
        }
        let kept = store.signing_keys().await.unwrap();
        assert_eq!((kept.len(), kept[0].revoked_at), (1, Some(at(9))));
        store.reseal_key("k1", &[1], &[8], &[8]).await.unwrap();
        assert_eq!(store.signing_keys().await.unwrap()[0].sealed, [1], "its dates changed meanwhile");
        store.reseal_key("k1", &[2], &[8], &[8]).await.unwrap();
        let kept = store.signing_keys().await.unwrap().remove(0);
        assert_eq!((kept.sealed, kept.mac, kept.revoked_at), (vec![8], vec![8], Some(at(9))));
    }

    ["workload_keys" "all_workload_keys" "write_workload_key" "remac_workload_key"]
    async fn a_workload_key_is_added_renewed_and_removed(store: &Store) {
        let write = |thumbprint: &str, jwk: Option<&str>| ActWrite::WorkloadKey {
            attestor: "key".into(), workload: "w".into(), thumbprint: thumbprint.into(), jwk: jwk.map(Into::into), index: 1, mac: vec![1],
        };
        seed(store, acts(vec![write("b", Some("{}")), write("a", Some("{}")), write("a", Some("{1}"))])).await;
        let keys = store.workload_keys("key", "w").await.unwrap();
        assert_eq!(keys.iter().map(|key| (key.thumbprint.as_str(), key.jwk.as_str())).collect::<Vec<_>>(), [("a", "{1}"), ("b", "{}")]);
        assert!(store.workload_keys("key", "v").await.unwrap().is_empty());
        assert_eq!(store.all_workload_keys(1).await.unwrap().len(), 1);
        store.remac_workload_key(&keys[0], &[9]).await.unwrap();
        assert_eq!(store.workload_keys("key", "w").await.unwrap()[0].mac, [9]);
        store.remac_workload_key(&keys[0], &[7]).await.unwrap();
        assert_eq!(store.workload_keys("key", "w").await.unwrap()[0].mac, [9], "it changed meanwhile");
        seed(store, acts(vec![write("a", None)])).await;
        assert_eq!(store.all_workload_keys(9).await.unwrap().len(), 1);
    }

    ["roles_of" "admin_bindings" "write_admin_binding" "remac_binding"]
    async fn a_role_is_given_and_taken(store: &Store) {
        let write = |role: &str, bound| ActWrite::AdminBinding { identity: "dev:a".into(), role: role.into(), bound, index: 3, mac: vec![1] };
        seed(store, acts(vec![write("auditor", true), write("admin", true), write("admin", true)])).await;
        let roles = store.roles_of("dev:a").await.unwrap();
        assert_eq!(roles.iter().map(|one| one.role.as_str()).collect::<Vec<_>>(), ["admin", "auditor"]);
        assert!(store.roles_of("dev:A").await.unwrap().is_empty());
        store.remac_binding("dev:a", "admin", &[1], &[9]).await.unwrap();
        store.remac_binding("dev:a", "admin", &[1], &[7]).await.unwrap();
        assert_eq!(store.admin_bindings().await.unwrap()[0].mac, [9], "compared before it is set");
        seed(store, acts(vec![write("admin", false)])).await;
        assert_eq!(store.admin_bindings().await.unwrap().len(), 1);
    }

    ["claim" "bootstrap_first_seen" "clock" "check_schema"]
    async fn a_store_is_marked_at_birth(store: &Store) {
        store.claim(StoreMode::Production, "log.example", at(0)).await.unwrap();
        store.claim(StoreMode::Production, "log.example", at(9)).await.unwrap();
        for (mode, origin) in [(StoreMode::Dev, "log.example"), (StoreMode::Production, "other.example")] {
            assert!(matches!(store.claim(mode, origin, at(1)).await, Err(StoreError::Unfit(_))));
        }
        assert_eq!(store.bootstrap_first_seen(&[1; 32], at(5)).await.unwrap(), at(5));
        assert_eq!(store.bootstrap_first_seen(&[1; 32], at(9)).await.unwrap(), at(5), "the first time counts");
        assert_eq!(store.bootstrap_first_seen(&[2; 32], at(9)).await.unwrap(), at(9), "another begins anew");
        let clock = store.clock().await.unwrap();
        assert_eq!(clock.is_some(), store.kind() == "postgres");
        if let Store::Postgres(postgres) = store {
            postgres.check_schema().await.unwrap();
        }
    }

    ["put_succession" "succession" "remac_succession"]
    async fn an_empty_store_is_told_once_which_log_it_succeeds(store: &Store) {
        let sealed = |document: &str, mac: u8| SealedSuccession {
            document: document.into(),
            mac: vec![mac],
        };
        assert_eq!(store.succession().await.unwrap(), None);
        assert!(store.put_succession(&sealed("one", 1)).await.unwrap());
        assert!(store.put_succession(&sealed("one", 2)).await.unwrap(), "asked again");
        assert!(!store.put_succession(&sealed("two", 1)).await.unwrap());
        assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 1)));
        store.remac_succession(&[9], &[3]).await.unwrap();
        store.remac_succession(&[1], &[3]).await.unwrap();
        assert_eq!(store.succession().await.unwrap(), Some(sealed("one", 3)));
    }

    ["prune_openings" "prune_heads" "ensure_partitions" "grant_serving"]
    async fn pruning_leaves_what_proves(store: &Store) {
        let writes = |from: u64| Writes {
            leaves: (from..from + 2).map(leaf).collect(),
            head: Some((head(from + 2), batch(u128::from(from)))),
            ..Writes::default()
        };
        for from in [0, 2, 4] {
            seed(store, writes(from)).await;
        }
        assert_eq!(store.prune_openings(at(2), 9).await.unwrap(), 2, "by the leaf's time");
        assert_eq!(store.openings(1).await.unwrap().input, None);
        assert!(store.openings(2).await.unwrap().input.is_some());
        assert!(store.leaf(1).await.unwrap().unwrap().body.is_some());
        assert_eq!(store.prune_heads(4).await.unwrap(), 1);
        assert_eq!(store.prune_heads(u64::MAX).await.unwrap(), 1, "all but the newest");
        assert_eq!(store.head().await.unwrap(), Some(head(6)));

        let writes = Writes {
            tasks: vec![task(1, None), task(2, Some(1))],
            sessions: vec![(session(11, 1, None), None), (session(12, 2, Some(11)), None)],
            ..Writes::default()
        };
        seed(store, writes).await;
        let end = |n| (task_id(n), TaskChange { end: Some((TaskState::Expired, at(1_000), 9)), ..TaskChange::default() });
        seed(store, Writes { task_changes: BTreeMap::from([end(1), end(2)]), ..Writes::default() }).await;
        assert_eq!(store.prune_tasks(at(9_999), 9).await.unwrap(), 0, "none that has sessions");
        assert_eq!(store.prune_sessions(at(500), 9).await.unwrap(), 0, "none in its last instant");
        assert_eq!(store.prune_sessions(at(501), 9).await.unwrap(), 1, "the child, not what it came from");
        assert_eq!(store.prune_sessions(at(501), 9).await.unwrap(), 1);
        assert_eq!(store.prune_tasks(at(1_001), 9).await.unwrap(), 1, "the child, not the one above it");
        assert_eq!(store.prune_tasks(at(1_001), 9).await.unwrap(), 1);
        store.ensure_partitions(3_000_000).await.unwrap();
    }

    ["prune_bodies"]
    async fn bodies_go_and_hashes_stay(store: &Store) {
        // The last leaf of what PostgreSQL keeps in one partition.
        let last = 1_048_575;
        let writes = Writes { leaves: vec![leaf(0), leaf(last)], ..Writes::default() };
        seed(store, writes).await;
        let body = async |idx| store.leaf(idx).await.unwrap().unwrap().body.is_some();
        store.prune_bodies(at(0), 9).await.unwrap();
        assert!(body(0).await, "as old as that is not older");
        store.prune_bodies(at(i64::try_from(last).unwrap()), 9).await.unwrap();
        assert!(body(last).await, "as old as that is not older");
        store.prune_bodies(at(i64::try_from(last).unwrap() + 1), 9).await.unwrap();
        assert!(!body(0).await && !body(last).await);
        assert_eq!(store.prune_bodies(at(9_999_999), 9).await.unwrap(), 0);
        store.ensure_partitions(last + 1).await.unwrap();
        seed(store, Writes { leaves: vec![leaf(last + 1)], ..Writes::default() }).await;
        assert!(body(last + 1).await);
    }

    ["put_deny_place" "nudge_deny_place" "ask_deny" "deny_standing" "count_denied"
        "denied_sessions" "note_denied" "adopt_denied" "prune_denied"]
    async fn sessions_are_put_on_a_list_while_it_has_room_and_seen_on_it(store: &Store) {
        let (place, other) = (deny_place("role"), deny_place("other"));
        for place in [&place, &other] {
            store.put_deny_place(place, at(0)).await.unwrap();
        }
        let ask = |n, until, room| DenyAsk {
            session: session_id(n), at: at(10), keep_until: at(until), room,
        };
        store.ask_deny(&other, &ask(9, 100, 1)).await.unwrap();
        for (n, until, room) in [(1, 100, 2), (2, 200, 2), (3, 300, 2), (1, 900, 9)] {
            store.ask_deny(&place, &ask(n, until, room)).await.unwrap();
        }
        let standing = async |n| store.deny_standing(session_id(n)).await.unwrap();
        let asked = DenyStanding {
            requested_at: at(10), listed: true, written_at: None, read_at: None,
        };
        assert_eq!(standing(1).await, Some(asked));
        assert_eq!(standing(3).await, Some(DenyStanding { listed: false, ..asked }));
        assert_eq!(standing(4).await, None);
        let listed = async |now| {
            let mut ids = store.denied_sessions(&place, at(now)).await.unwrap();
            ids.sort_unstable();
            let counted = store.count_denied(&place, at(now)).await.unwrap();
            assert_eq!(counted, (ids.len() as u64, 0));
            ids
        };
        assert_eq!(listed(99).await, [session_id(1), session_id(2)]);
        assert_eq!(listed(100).await, [session_id(2)], "asking again did not keep it longer");

        // One that found no room gets what comes free, and stays.
        store.ask_deny(&place, &ask(3, 300, 2)).await.unwrap();
        assert!(!standing(3).await.unwrap().listed);
        store.ask_deny(&place, &ask(3, 300, 3)).await.unwrap();
        assert!(standing(3).await.unwrap().listed);
        store.ask_deny(&place, &ask(3, 900, 0)).await.unwrap();
        assert_eq!(listed(299).await, [session_id(3)]);
        assert_eq!(listed(300).await, []);

        let written = async |n| standing(n).await.unwrap().written_at;
        let nobody = store.note_denied(&place, "a", &[session_id(1)], at(19)).await;
        nobody.unwrap();
        assert_eq!(written(1).await, None, "only who has the lease notes what it read");
        store.claim_deny_places("a", at(19), at(900), 5).await.unwrap();
        store.note_denied(&place, "a", &[session_id(1), session_id(77)], at(20)).await.unwrap();
        store.note_denied(&place, "a", &[session_id(1), session_id(2)], at(30)).await.unwrap();
        assert_eq!((written(1).await, written(2).await), (Some(at(20)), Some(at(30))));
        store.note_denied(&place, "a", &[session_id(2)], at(40)).await.unwrap();
        assert_eq!((written(1).await, written(2).await), (None, Some(at(30))));
        store.note_denied(&place, "a", &[session_id(1)], at(150)).await.unwrap();
        assert_eq!((written(1).await, written(2).await), (None, None), "the first is not on it any more");
        assert_eq!(written(9).await, None);

        assert_eq!(store.prune_denied(at(100), 9).await.unwrap(), 0);
        assert_eq!(store.prune_denied(at(101), 9).await.unwrap(), 2);
        assert_eq!((standing(1).await, standing(9).await), (None, None));

        // What a document names beyond our records is taken over, and what is ours stays as it is.
        let named = [session_id(3), session_id(50)];
        store.adopt_denied(&place, &named, at(160), at(700)).await.unwrap();
        assert_eq!(listed(299).await, [session_id(3), session_id(50)]);
        assert_eq!(written(50).await, Some(at(160)));
        assert_eq!(listed(699).await, [session_id(50)]);
    }

    ["others_live_at"]
    async fn sessions_of_another_resource_at_a_place_are_seen_while_they_live(store: &Store) {
        let made = session(11, 1, None);
        let place = DenyPlace {
            name: made.audience.clone(), minter: made.minter.clone(), ..deny_place("x")
        };
        let others = async |place: &DenyPlace, resource: &str, now| {
            store.others_live_at(place, resource, now).await.unwrap()
        };
        assert!(!others(&place, "other", at(0)).await);
        let writes = Writes {
            tasks: vec![task(1, None)],
            sessions: vec![(made.clone(), None)],
            ..Writes::default()
        };
        seed(store, writes).await;
        assert!(others(&place, "other", at(0)).await);
        assert!(!others(&place, &made.resource, at(0)).await);
        assert!(!others(&deny_place("elsewhere"), "other", at(0)).await);
        assert!(!others(&place, "other", made.expires_at).await);
    }

    ["claim_deny_places" "next_deny_generation" "deny_place_done" "deny_place_failed" "widening"
        "nudge_deny_place" "note_widening"]
    async fn a_list_is_one_replicas_at_a_time(store: &Store) {
        let place = deny_place("role");
        store.put_deny_place(&place, at(0)).await.unwrap();
        let claim = async |holder, now, until| {
            let claimed = store.claim_deny_places(holder, at(now), at(until), 5).await.unwrap();
            claimed.into_iter().map(|claimed| (claimed.place, claimed.attempts)).collect::<Vec<_>>()
        };
        assert_eq!(claim("a", -1, 50).await, [], "not due yet");
        assert_eq!(claim("a", 0, 50).await, [(place.clone(), 0)]);
        assert_eq!(claim("b", 49, 90).await, []);
        let next = async |holder, standing, now| {
            store.next_deny_generation(&place, holder, standing, at(now)).await.unwrap()
        };
        assert_eq!((next("a", 0, 1).await, next("a", 1, 1).await), (Some(1), Some(2)));
        assert_eq!(next("a", 70, 1).await, Some(71), "greater than the one that stands");
        assert_eq!((next("b", 0, 1).await, next("a", 0, 50).await), (None, None));

        // Asked for meanwhile: due at once, not at the time that the holder sets.
        store.nudge_deny_place(&place, at(3)).await.unwrap();
        store.deny_place_done(&place, "b", None, at(5), at(999)).await.unwrap();
        store.deny_place_done(&place, "a", Some(at(4)), at(5), at(65)).await.unwrap();
        let widening = store.widening(&place).await.unwrap().unwrap();
        assert_eq!(
            (widening.issued_before, widening.written_at, widening.read_at),
            (at(4), at(5), Some(at(5)))
        );
        assert_eq!(claim("b", 5, 90).await, [(place.clone(), 0)]);
        store.deny_place_done(&place, "b", Some(at(4)), at(8), at(65)).await.unwrap();
        let widening = store.widening(&place).await.unwrap().unwrap();
        assert_eq!((widening.written_at, widening.read_at), (at(5), Some(at(8))));
        assert_eq!(claim("a", 64, 99).await, []);
        assert_eq!(claim("a", 65, 99).await.len(), 1);
        // The same word leaves its time as it is, another begins anew; only its holder notes it.
        store.note_widening(&place, "a", Some(at(4))).await.unwrap();
        store.note_widening(&place, "b", None).await.unwrap();
        assert_eq!(store.widening(&place).await.unwrap().unwrap().written_at, at(5));
        store.note_widening(&place, "a", None).await.unwrap();
        assert_eq!(store.widening(&place).await.unwrap(), None);
        store.deny_place_failed(&place, "b", at(66)).await.unwrap();
        store.deny_place_failed(&place, "a", at(80)).await.unwrap();
        store.nudge_deny_place(&place, at(70)).await.unwrap();
        assert_eq!(claim("a", 79, 99).await, [], "a failing one keeps to its pauses");
        assert_eq!(claim("a", 80, 99).await, [(place.clone(), 1)]);
        // Its holder died: another takes over when the lease is over.
        assert_eq!(claim("b", 98, 150).await, []);
        let changed = DenyPlace { capacity: 9, ..place.clone() };
        store.put_deny_place(&changed, at(98)).await.unwrap();
        assert_eq!(claim("b", 99, 150).await, [(changed, 1)]);
        store.deny_place_done(&place, "b", None, at(100), at(200)).await.unwrap();
        assert_eq!(store.widening(&place).await.unwrap(), None);
    }

    ["register_export" "export_cursor" "claim_export" "advance_export" "release_export"
        "disable_export"]
    async fn a_cursor_is_moved_by_whoever_has_its_lease_and_from_where_it_was(store: &Store) {
        let key = ExportKey { name: "siem".into(), origin: "broker.test/log".into() };
        let cursor = async || store.export_cursor(&key).await.unwrap().unwrap();
        assert_eq!(store.export_cursor(&key).await.unwrap(), None);
        store.register_export(&key, "one", 7, at(0)).await.unwrap();
        // Registered again as it was, by another replica that saw a longer log.
        store.register_export(&key, "one", 9, at(5)).await.unwrap();
        let begun = ExportCursor {
            registration: "one".into(),
            next: 7,
            due_at: at(0),
            attempts: 0,
            disabled_at: None,
        };
        assert_eq!(cursor().await, begun);
        let other = ExportKey { origin: "broker.test/log-2".into(), ..key.clone() };
        assert_eq!(store.export_cursor(&other).await.unwrap(), None);

        let claim = async |what: &str, holder: &str, now, until| {
            store.claim_export(&key, what, holder, at(now), at(until)).await.unwrap()
        };
        assert_eq!(claim("one", "a", -1, 60).await, None, "not due yet");
        assert_eq!(claim("two", "a", 0, 60).await, None, "another sink by that name");
        assert_eq!(claim("one", "a", 0, 60).await, Some(7));
        assert_eq!(claim("one", "b", 59, 90).await, None);
        assert_eq!(claim("one", "a", 10, 70).await, Some(7), "its holder's still");
        let advance = async |holder: &str, from, next, until| {
            store.advance_export(&key, holder, from, next, at(until)).await.unwrap()
        };
        assert!(!advance("b", 7, 8, 90).await);
        assert!(!advance("a", 6, 8, 90).await, "not from where it was");
        assert!(advance("a", 7, 12, 90).await);
        assert_eq!(cursor().await.next, 12);
        assert_eq!(claim("one", "b", 89, 150).await, None, "the lease went on with it");
        // Its holder is silent: another goes on, and what the first says later counts no more.
        assert_eq!(claim("one", "b", 90, 150).await, Some(12));
        assert!(!advance("a", 12, 13, 200).await);
        store.release_export(&key, "a", Some(at(999))).await.unwrap();
        assert_eq!(cursor().await.due_at, at(0));

        store.release_export(&key, "b", Some(at(100))).await.unwrap();
        assert_eq!((cursor().await.attempts, cursor().await.due_at), (1, at(100)));
        assert_eq!(claim("one", "a", 99, 150).await, None, "it keeps to its pause");
        assert_eq!(claim("one", "a", 100, 150).await, Some(12));
        store.release_export(&key, "a", Some(at(101))).await.unwrap();
        assert_eq!(cursor().await.attempts, 2);
        assert_eq!(claim("one", "b", 101, 150).await, Some(12));
        assert!(advance("b", 12, 13, 160).await);
        assert_eq!(cursor().await.attempts, 0);
        store.release_export(&key, "b", None).await.unwrap();
        assert_eq!((cursor().await.attempts, cursor().await.due_at), (0, at(101)));

        assert_eq!(claim("one", "a", 102, 150).await, Some(13));
        store.disable_export(&key, "b", at(103)).await.unwrap();
        assert_eq!(cursor().await.disabled_at, None);
        store.disable_export(&key, "a", at(103)).await.unwrap();
        assert_eq!(cursor().await.disabled_at, Some(at(103)));
        assert_eq!(claim("one", "a", 500, 600).await, None, "told nothing any more");
        // Registered otherwise, it goes on from where it was, and whoever was at it is not any more.
        store.register_export(&key, "three", 0, at(500)).await.unwrap();
        assert_eq!(claim("three", "a", 500, 600).await, Some(13));
        store.register_export(&key, "two", 0, at(501)).await.unwrap();
        assert!(!advance("a", 13, 14, 600).await);
        assert_eq!(cursor().await, ExportCursor {
            registration: "two".into(),
            next: 13,
            due_at: at(501),
            attempts: 0,
            disabled_at: None,
        });
        assert_eq!(claim("two", "a", 501, 600).await, Some(13));
    }

    ["put_cosigned" "last_cosigned" "cosigned_over" "cosigned_over_by" "cosigned_until"]
    async fn what_witnesses_said_is_kept_and_found_by_size_and_by_whose_word_it_is(store: &Store) {
        let row = |size, witness: &str, line: &str| CosignedRow {
            size,
            vkey: format!("{witness}+key"),
            witness: witness.into(),
            line: line.into(),
            checkpoint: format!("log {size}"),
        };
        assert_eq!(store.last_cosigned("a+key").await.unwrap(), None);
        assert_eq!(store.cosigned_over(0, None).await.unwrap(), []);
        for row in [row(5, "a", "5"), row(9, "b", "9"), row(9, "a", "9"), row(30, "b", "30")] {
            store.put_cosigned(&row).await.unwrap();
        }
        // Its first word on a size stays.
        store.put_cosigned(&row(5, "a", "later")).await.unwrap();
        assert_eq!(store.last_cosigned("a+key").await.unwrap(), Some(9));
        assert_eq!(store.last_cosigned("b+key").await.unwrap(), Some(30));
        let over = async |index, witness| store.cosigned_over(index, witness).await.unwrap();
        assert_eq!(over(4, None).await, [row(5, "a", "5")]);
        let both = [row(9, "a", "9"), row(9, "b", "9")];
        assert_eq!(over(5, None).await, both, "leaf 5 is not in a tree of 5");
        assert_eq!(over(0, Some("b")).await, both, "with the words of the others");
        assert_eq!(over(9, Some("a")).await, []);
        assert_eq!(over(29, None).await, [row(30, "b", "30")]);
        assert_eq!(over(30, None).await, []);
        let until = async |size, count| store.cosigned_until("b+key", size, count).await.unwrap();
        assert_eq!(until(30, 9).await, [row(30, "b", "30"), row(9, "b", "9")]);
        assert_eq!(until(29, 9).await, [row(9, "b", "9")]);
        assert_eq!(until(30, 1).await, [row(30, "b", "30")]);
    }

    ["widened_at"]
    async fn the_last_cutoff_that_was_widened_to_a_place_is_found(store: &Store) {
        let widened = |n, place: &str, committed| {
            let mut sealed = cutoff(n, u64::try_from(n).unwrap(), Selector::Resource("r".into()), Block::No);
            sealed.cutoff.widened_to = Some(place.into());
            sealed.cutoff.committed_at = at(committed);
            ActWrite::Cutoff(Box::new(sealed))
        };
        let plain = ActWrite::Cutoff(Box::new(cutoff(4, 4, Selector::All(True), Block::No)));
        seed(store, acts(vec![widened(1, "role", 10), widened(2, "role", 20), widened(3, "other", 30), plain])).await;
        let at_role = async |since| store.widened_at("role", at(since)).await.unwrap();
        assert_eq!((at_role(0).await, at_role(19).await, at_role(20).await), (Some(at(20)), Some(at(20)), None));
        assert_eq!(store.cutoff(CutoffId::from(uuid(1))).await.unwrap().unwrap().cutoff.widened_to.as_deref(), Some("role"));
    }

    ["prune_sessions" "prune_tasks" "prune_delegations"]
    async fn what_the_store_cannot_hold_is_refused_and_nothing_of_it_stays(store: &Store) {
        let mut bad = session(11, 1, None);
        bad.kid = "nul \0".into();
        let mut lost = session(12, 77, None);
        lost.task_id = task_id(77);
        for session in [bad, lost] {
            let writes = Writes {
                tasks: vec![task(1, None)],
                leaves: vec![leaf(0)],
                sessions: vec![(session.clone(), None)],
                ..Writes::default()
            };
            let refused = append(store, &Needs::default(), &writes).await;
            // SQLite keeps U+0000; it is refused at the door, before any store.
            if session.kid.contains('\0') && store.kind() == "sqlite" {
                continue;
            }
            assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
            if store.kind() == "postgres" {
                assert_eq!(store.task(task_id(1)).await.unwrap(), None);
                assert_eq!(store.leaf(0).await.unwrap(), None);
            }
        }
    }
}

/// What the role that serves may do, tried as that role.
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
        head: Some((head(1), batch(1))),
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
        "SELECT ledger_prune_heads(0)",
        "UPDATE activation SET mac = mac",
    ] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {sql}; ROLLBACK");
        assert_eq!(run(&mut connection, sql.clone()).await, Ok(()), "{sql}");
    }
    let gone = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    run(&mut connection, gone).await.unwrap();
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
