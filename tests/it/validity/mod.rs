//! The SQL that filters and counts agrees with `domain::validity`, on both stores. The tests make
//! random worlds: nested tasks, derived sessions in every state and cutoffs of every kind, with
//! times that often coincide. They compare each statement with the pure functions applied to the
//! rows, which are read one by one.

mod checks;
mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use secrecy::SecretString;
use taskpass::clock::Timestamp;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::digest::Mac;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::cutoff::{Block, Cutoff, Selector};
use taskpass::domain::generation_digest::GenerationDigest;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::revocability::RevocationClass;
use taskpass::domain::session::{EndReason, Session, SessionState};
use taskpass::domain::task::TaskState;
use taskpass::domain::validity::{SessionView, TaskLink, ValidityFacts};
use taskpass::ids::{CutoffId, SessionId, TaskId};
use taskpass::store::append::{ActWrite, Needs, SessionEnd, TaskChange, Writes};
use taskpass::store::cutoffs::SealedCutoff;
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::sqlite::Sqlite;
use taskpass::store::{Store, StoreError};
use uuid::Uuid;

use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::rig::Kind;
use crate::support::sqlite::{SqliteFile, fresh_sqlite};

use world::any_world;

/// A limit above the number of rows in any world.
const ALL: u32 = 100;

/// The range of times in a world, in seconds.
const SPAN: i64 = 30;

const WORKLOADS: [&str; 2] = ["dev:a", "dev:b"];
const ATTESTORS: [&str; 2] = ["dev", "ci"];
const RESOURCES: [&str; 2] = ["orders", "archive"];
const AUDIENCES: [&str; 2] = ["https://o.example", "https://a.example"];
const KEYS: [&str; 2] = ["k1", "k2"];
/// Names with characters that have a meaning in LIKE.
const POLICIES: [&str; 3] = ["p_1%", "pX1%", "p!"];
const MINTERS: [(MinterKind, RevocationClass); 6] = [
    (
        MinterKind::Jwt,
        RevocationClass::Immediate { bound_seconds: 0 },
    ),
    (
        MinterKind::Jwt,
        RevocationClass::Bounded { bound_seconds: 5 },
    ),
    (
        MinterKind::Aws,
        RevocationClass::Bounded { bound_seconds: 5 },
    ),
    (
        MinterKind::Aws,
        RevocationClass::Immediate { bound_seconds: 0 },
    ),
    (MinterKind::Aws, RevocationClass::ExpiryOnly),
    (MinterKind::Jwt, RevocationClass::ExpiryOnly),
];
const HOLDER: &str = "r1";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_800_000_000 + seconds)
}

fn one<T: Copy>(of: &[T], pick: usize) -> T {
    of[pick % of.len()]
}

#[derive(Clone, Debug)]
struct TaskSpec {
    parent: Option<usize>,
    opened: i64,
    life: i64,
    silence: Option<u64>,
    heard: i64,
    end: Option<(usize, i64)>,
}

#[derive(Clone, Debug)]
struct SessionSpec {
    task: usize,
    parent: Option<usize>,
    /// Indexes of workload, attestor, resource, key, generation, policy and minter.
    what: [usize; 7],
    issued: i64,
    life: i64,
    leaf: u64,
    /// End of the mint's lease; `None` if the session is not being minted.
    lease: Option<i64>,
    /// Whether the end is confirmed, its reason, and its time; `None` without an end.
    end: Option<(bool, usize, i64)>,
}

#[derive(Clone, Debug)]
struct CutSpec {
    kind: usize,
    pick: usize,
    block: Block,
    gap: u64,
    committed: i64,
    lifted: bool,
}

#[derive(Clone, Debug)]
struct World {
    tasks: Vec<TaskSpec>,
    sessions: Vec<SessionSpec>,
    cutoffs: Vec<CutSpec>,
    /// Times at which the world is checked.
    times: Vec<i64>,
    /// Counts to check: the selector's kind, its pick, the cutoff's leaf, its time, and the
    /// present.
    counts: Vec<(usize, usize, u64, i64, i64)>,
}

fn task_id(n: usize) -> TaskId {
    Uuid::from_u128(1_000 + n as u128).into()
}

fn session_id(n: usize) -> SessionId {
    Uuid::from_u128(2_000 + n as u128).into()
}

fn digest(pick: usize) -> GenerationDigest {
    GenerationDigest::new([u8::try_from(pick % 2).unwrap(); 32])
}

/// A store that holds one world after another.
struct Stage {
    store: Store,
    mac: Mac,
    database: Option<TestDatabase>,
    _file: Option<SqliteFile>,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
        let mac = SealingKeys::parse(&[key]).unwrap().mac("o");
        let (store, database, file) = match kind {
            Kind::Sqlite => {
                let file = fresh_sqlite();
                let sqlite = Sqlite::open(file.dir(), 2).await.unwrap();
                (Store::Sqlite(sqlite), None, Some(file))
            }
            Kind::Postgres => {
                let database = fresh_database();
                let url = SecretString::from(database.url());
                let connected = Postgres::connect(&url, PostgresSettings::default());
                let store = Store::Postgres(connected.await.unwrap());
                (store, Some(database), None)
            }
        };
        store.authenticate_with(&mac);
        Self {
            store,
            mac,
            database,
            _file: file,
        }
    }

    async fn clear(&self) {
        const SQL: &str = "DELETE FROM session; DELETE FROM task; DELETE FROM cutoff";
        let cleared = match (&self.store, &self.database) {
            (Store::Sqlite(sqlite), _) => sqlx::raw_sql(SQL).execute(sqlite.writer()).await.err(),
            (Store::Postgres(_), Some(database)) => {
                let mut own = database.connect().await;
                sqlx::raw_sql(SQL).execute(&mut own).await.err()
            }
            (Store::Postgres(_), None) => None,
        };
        assert!(cleared.is_none(), "{cleared:?}");
    }

    async fn write(&self, writes: Writes) -> Result<(), StoreError> {
        let mut connection = self.store.ledger_connection().await?;
        connection.enter(&Needs::default()).await?;
        connection.write(&writes).await?;
        connection.commit().await
    }

    async fn set_up(&self, world: &World) -> Result<(), StoreError> {
        self.clear().await;
        let opened = Writes {
            tasks: (0..world.tasks.len()).map(|n| world.task(n)).collect(),
            sessions: (0..world.sessions.len())
                .map(|n| world.session(n))
                .collect(),
            ..Writes::default()
        };
        self.write(opened).await?;
        for (n, spec) in world.tasks.iter().enumerate() {
            // The store ignores some of these heartbeats, because an ended task stays ended.
            let now = at(spec.heard);
            if let Some(held) = self.store.hold_task(task_id(n), now).await? {
                held.hear(now, None, 1).await?;
            }
        }
        let sealed = |cutoff| Box::new(SealedCutoff::seal(cutoff, &self.mac));
        let cutoffs = world.cutoffs();
        let cut = cutoffs.iter().cloned();
        let mut acts: Vec<ActWrite> = cut.map(|cutoff| ActWrite::Cutoff(sealed(cutoff))).collect();
        for (spec, cutoff) in world.cutoffs.iter().zip(cutoffs) {
            if spec.lifted {
                let lifted_index = Some(50);
                acts.push(ActWrite::Lift(sealed(Cutoff {
                    lifted_index,
                    ..cutoff
                })));
            }
        }
        let task_ends = world.tasks.iter().enumerate().filter_map(|(n, spec)| {
            let (state, when) = spec.end?;
            let states = [TaskState::Completed, TaskState::Aborted, TaskState::Expired];
            let end = Some((one(&states, state), at(when), 9));
            let change = TaskChange {
                end,
                ..TaskChange::default()
            };
            Some((task_id(n), change))
        });
        let session_ends = world.sessions.iter().enumerate().filter_map(|(n, spec)| {
            let (is_confirmed, reason, when) = spec.end?;
            let end = SessionEnd {
                state: if is_confirmed {
                    SessionState::Ended
                } else {
                    SessionState::Ending
                },
                reason: one(&EndReason::ALL, reason),
                at: at(when),
            };
            Some((session_id(n), end))
        });
        let ended = Writes {
            task_changes: task_ends.collect(),
            session_ends: session_ends.collect(),
            acts,
            ..Writes::default()
        };
        self.write(ended).await
    }

    /// All rows, each read separately.
    async fn read(&self, world: &World) -> Result<ValidityFacts, StoreError> {
        let mut facts = ValidityFacts::default();
        for n in 0..world.tasks.len() {
            let task = self.store.task(task_id(n)).await?.unwrap();
            let link = TaskLink {
                life: task.life(),
                parent: task.parent,
            };
            facts.tasks.insert(task.id, link);
        }
        for n in 0..world.sessions.len() {
            let session = self.store.session(session_id(n)).await?.unwrap();
            facts.sessions.insert(session.id, session);
        }
        let newest_first = self.store.cutoffs(ALL).await?;
        let cutoffs = newest_first.iter().rev();
        facts.cutoffs = cutoffs.map(|sealed| sealed.claimed().clone()).collect();
        Ok(facts)
    }
}

type Checked = Result<(), TestCaseError>;

fn fail(why: StoreError) -> TestCaseError {
    TestCaseError::fail(format!("{why:?}"))
}

fn ids<'a>(sessions: impl IntoIterator<Item = &'a Session>) -> BTreeSet<SessionId> {
    sessions.into_iter().map(|session| session.id).collect()
}

fn seen(views: &[SessionView]) -> BTreeSet<SessionId> {
    ids(views.iter().map(|view| &view.session))
}

/// A world to check, and its facts.
struct Check<'a> {
    store: &'a Store,
    world: &'a World,
    facts: ValidityFacts,
}

async fn check(stage: &Stage, world: &World) -> Checked {
    stage.set_up(world).await.map_err(fail)?;
    let check = Check {
        store: &stage.store,
        world,
        facts: stage.read(world).await.map_err(fail)?,
    };
    check.reads().await?;
    for time in &world.times {
        check.filters(at(*time)).await?;
        check.blocks(at(*time)).await?;
    }
    for (kind, pick, index, committed, now) in &world.counts {
        let selector = world.selector(*kind, *pick);
        let (committed, now) = (at(*committed), at(*now));
        check.count(&selector, *index, committed, now).await?;
        check.below_acts(*pick, pick / 7, now).await?;
    }
    check.changes(at(world.times[0])).await?;
    check.due_tasks(at(world.times[1])).await
}

fn worlds(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let stage = runtime.block_on(Stage::new(kind));
    let default = Config::default();
    let config = Config {
        cases: (default.cases / 16).max(1),
        max_shrink_iters: 300,
        failure_persistence: None,
        ..default
    };
    let run = TestRunner::new(config).run(&any_world(), |world| {
        runtime.block_on(check(&stage, &world))
    });
    runtime.block_on(stage.store.close());
    if let Err(broken) = run {
        panic!("{broken}");
    }
}

#[test]
fn sql_and_the_domain_agree_in_any_world_on_sqlite() {
    worlds(Kind::Sqlite);
}

#[test]
fn sql_and_the_domain_agree_in_any_world_on_postgresql() {
    worlds(Kind::Postgres);
}
