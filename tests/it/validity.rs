//! The SQL that filters and counts agrees with `domain::validity`, on both stores. The tests make
//! random worlds: nested tasks, derived sessions in every state and cutoffs of every kind, with
//! times that often coincide. They compare each statement with the pure functions applied to the
//! rows, which are read one by one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use secrecy::SecretString;
use serde_json::json;
use taskpass::clock::Timestamp;
use taskpass::crypto::SealingKeys;
use taskpass::crypto::digest::Mac;
use taskpass::crypto::random::SystemRandom;
use taskpass::domain::cutoff::{Block, Cutoff, Selector, True};
use taskpass::domain::deny_list::DenyPolicyTarget;
use taskpass::domain::generation::GenerationDigest;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::{EndReason, Session, SessionState};
use taskpass::domain::task::{Task, TaskState};
use taskpass::domain::validity::{SessionView, TaskLink, ValidityFacts};
use taskpass::ids::{CutoffId, SessionId, TaskId};
use taskpass::store::append::{ActWrite, MintLease, Needs, SessionEnd, TaskChange, Writes};
use taskpass::store::cutoffs::{CutoffFilter, SealedCutoff};
use taskpass::store::postgres::{Postgres, PostgresSettings};
use taskpass::store::sessions::SessionFilter;
use taskpass::store::sqlite::Sqlite;
use taskpass::store::{Store, StoreError};
use uuid::Uuid;

use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::rig::Kind;
use crate::support::sqlite::{SqliteFile, fresh_sqlite};

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

fn any_task() -> impl Strategy<Value = TaskSpec> {
    let end = proptest::option::weighted(0.4, (0..3_usize, 0..SPAN));
    let parent = proptest::option::weighted(0.6, any::<usize>());
    let silence = proptest::option::weighted(0.4, 1..12_u64);
    (parent, 0..10_i64, 1..25_i64, silence, 0..20_i64, end).prop_map(
        |(parent, opened, life, silence, heard, end)| TaskSpec {
            parent,
            opened,
            life,
            silence,
            heard,
            end,
        },
    )
}

fn any_session() -> impl Strategy<Value = SessionSpec> {
    let parent = proptest::option::weighted(0.7, any::<usize>());
    let what = any::<[usize; 7]>();
    let lease = proptest::option::weighted(0.2, 0..SPAN);
    let end = proptest::option::weighted(0.4, (any::<bool>(), 0..5_usize, 0..SPAN));
    (
        any::<usize>(),
        parent,
        what,
        0..10_i64,
        1..25_i64,
        0..20_u64,
        lease,
        end,
    )
        .prop_map(
            |(task, parent, what, issued, life, leaf, lease, end)| SessionSpec {
                task,
                parent,
                what,
                issued,
                life,
                leaf,
                lease,
                end,
            },
        )
}

fn any_cutoff() -> impl Strategy<Value = CutSpec> {
    let block = prop_oneof![
        Just(Block::No),
        Just(Block::UntilLifted),
        (0..SPAN).prop_map(|until| Block::Until(at(until))),
    ];
    (
        0..Selector::KINDS.len(),
        any::<usize>(),
        block,
        0..3_u64,
        0..SPAN,
        any::<bool>(),
    )
        .prop_map(|(kind, pick, block, gap, committed, lifted)| CutSpec {
            kind,
            pick,
            block,
            gap,
            committed,
            lifted,
        })
}

fn any_world() -> impl Strategy<Value = World> {
    let count = (
        0..Selector::KINDS.len(),
        any::<usize>(),
        0..22_u64,
        0..SPAN,
        0..SPAN,
    );
    (
        proptest::collection::vec(any_task(), 1..7),
        proptest::collection::vec(any_session(), 1..14),
        proptest::collection::vec(any_cutoff(), 0..6),
        proptest::collection::vec(0..SPAN, 3),
        proptest::collection::vec(count, 12),
    )
        .prop_map(|(tasks, sessions, cutoffs, times, counts)| World {
            tasks,
            sessions,
            cutoffs,
            times,
            counts,
        })
}

fn task_id(n: usize) -> TaskId {
    Uuid::from_u128(1_000 + n as u128).into()
}

fn session_id(n: usize) -> SessionId {
    Uuid::from_u128(2_000 + n as u128).into()
}

impl World {
    fn parent_of(&self, task: usize) -> Option<usize> {
        let pick = self.tasks[task].parent.filter(|_| task > 0)?;
        Some(pick % task)
    }

    fn depth(&self, task: usize) -> u8 {
        self.parent_of(task)
            .map_or(1, |parent| self.depth(parent) + 1)
    }

    fn task_of(&self, session: usize) -> usize {
        self.sessions[session].task % self.tasks.len()
    }

    /// The session that this one is derived from: one of the parent task, as the broker makes them.
    fn derived_from(&self, session: usize) -> Option<usize> {
        let pick = self.sessions[session].parent?;
        let above = self.parent_of(self.task_of(session))?;
        let covering: Vec<usize> = (0..session)
            .filter(|other| self.task_of(*other) == above)
            .collect();
        (!covering.is_empty()).then(|| one(&covering, pick))
    }

    fn task(&self, n: usize) -> Task {
        let spec = &self.tasks[n];
        Task {
            id: task_id(n),
            task_type: "job".into(),
            attestor: one(&ATTESTORS, n).into(),
            owner: one(&WORKLOADS, n).to_owned().try_into().unwrap(),
            owner_instance: None,
            parent: self.parent_of(n).map(task_id),
            depth: self.depth(n),
            state: TaskState::Open,
            opened_at: at(spec.opened),
            deadline: at(spec.opened + spec.life),
            heartbeat_seconds: spec.silence,
            heard_at: at(spec.opened),
            ended_at: None,
            handle_digest: [1; 32],
            handle_key: None,
            attestor_digest: [7; 32],
            sessions_left: 5,
            leaf_index: 0,
        }
    }

    fn session(&self, n: usize) -> (Session, Option<MintLease>) {
        let spec = &self.sessions[n];
        let [
            workload,
            attestor,
            resource,
            key,
            generation,
            policy,
            minter,
        ] = spec.what;
        let (minter, class) = one(&MINTERS, minter);
        let session = Session {
            id: session_id(n),
            task_id: task_id(self.task_of(n)),
            parent: self.derived_from(n).map(session_id),
            decision_id: Uuid::from_u128(3_000 + n as u128).into(),
            leaf_index: spec.leaf,
            attestor: one(&ATTESTORS, attestor).into(),
            workload: one(&WORKLOADS, workload).to_owned().try_into().unwrap(),
            instance: None,
            resource: one(&RESOURCES, resource).into(),
            grant: serde_json::from_value(json!([
                {"type": "api", "actions": ["r"], "locations": ["https://o.example/v1"]}
            ]))
            .unwrap(),
            audience: one(&AUDIENCES, resource / 2).into(),
            minter,
            key: None,
            kid: one(&KEYS, key).into(),
            generation: digest(generation),
            policies: vec!["always".into(), one(&POLICIES, policy).into()],
            revocability: Revocability {
                class,
                open_sessions: OpenSessions::None,
                expires_by: ExpiresBy::Itself,
            },
            issued_at: at(spec.issued),
            expires_at: at(spec.issued + spec.life),
            state: match spec.lease {
                Some(_) => SessionState::Minting,
                None => SessionState::Active,
            },
            end_reason: None,
            ended_at: None,
            confirmed_at: None,
        };
        let lease = spec.lease.map(|until| MintLease {
            until: at(until),
            holder: HOLDER.into(),
        });
        (session, lease)
    }

    fn selector(&self, kind: usize, pick: usize) -> Selector {
        match kind {
            0 => Selector::All(True),
            1 => Selector::Workload(one(&WORKLOADS, pick).to_owned().try_into().unwrap()),
            // The index may name a task that does not exist.
            2 => Selector::Task(task_id(pick % (self.tasks.len() + 1))),
            3 => Selector::Resource(one(&RESOURCES, pick).into()),
            4 => Selector::Attestor(one(&ATTESTORS, pick).into()),
            5 => Selector::Generation(digest(pick)),
            6 => Selector::Policy(one(&POLICIES, pick).into()),
            7 => Selector::SigningKey(one(&KEYS, pick).into()),
            _ => Selector::IssuedAfter(at(i64::try_from(pick % 12).unwrap())),
        }
    }

    fn cutoffs(&self) -> Vec<Cutoff> {
        let mut index = 0;
        let mut all = Vec::new();
        for (n, spec) in self.cutoffs.iter().enumerate() {
            index += 1 + spec.gap;
            all.push(Cutoff {
                id: CutoffId::from(Uuid::from_u128(4_000 + n as u128)),
                index,
                selector: self.selector(spec.kind, spec.pick),
                block: spec.block,
                deny_policy_target: None,
                reason: "why".into(),
                by: "admin".into(),
                requested_at: at(spec.committed),
                committed_at: at(spec.committed),
                lifted_index: None,
            });
        }
        all
    }
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

impl Check<'_> {
    fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.facts.sessions.values()
    }

    fn view(&self, session: &Session) -> SessionView {
        self.facts.view(session.clone())
    }

    /// Every way to read sessions returns all facts about their validity.
    async fn reads(&self) -> Checked {
        for session in self.sessions() {
            let view = self.store.session_view(session.id).await.map_err(fail)?;
            prop_assert_eq!(view.unwrap(), self.view(session));
        }
        for n in 0..self.world.tasks.len() {
            let id = task_id(n);
            let under = self.store.sessions_under(id, ALL).await.map_err(fail)?;
            let below = |session: &&Session| {
                let chain = self.facts.chain(session.task_id);
                chain.0.iter().any(|life| life.id == id)
            };
            let expected = self.sessions().filter(below);
            let expected: BTreeMap<SessionId, SessionView> = expected
                .map(|session| (session.id, self.view(session)))
                .collect();
            prop_assert_eq!(under, expected.into_values().collect::<Vec<_>>());
        }
        Ok(())
    }

    async fn filters(&self, now: Timestamp) -> Checked {
        let filter = SessionFilter {
            live_at: Some(now),
            limit: ALL,
            ..SessionFilter::default()
        };
        let live = self.store.list_sessions(&filter).await.map_err(fail)?;
        let expected = self.sessions().filter(|one| one.life().may_stand(now));
        prop_assert_eq!(seen(&live), ids(expected), "live");
        let valid = self
            .sessions()
            .filter(|one| self.view(one).is_valid_at(now));
        prop_assert!(ids(valid).is_subset(&seen(&live)));

        let external = self.store.active_external(now, None, ALL).await;
        let external = external.map_err(fail)?;
        let at_back_end =
            |one: &&Session| one.is_active_at_back_end() && !one.life().is_expired(now);
        let expected = ids(self.sessions().filter(at_back_end));
        prop_assert_eq!(seen(&external), expected, "external");
        // The sweeper finds every session that it must end.
        let ends = self.sessions().filter(|one| {
            let status = self.view(one).status_at(now);
            one.is_active_at_back_end() && status.state == SessionState::Ending
        });
        prop_assert!(ids(ends).is_subset(&seen(&external)));

        for (from, to) in [(0, 30), (5, 11)] {
            let listed = self.store.listed(from, to, now).await.map_err(fail)?;
            let polled = |one: &&Session| {
                let in_list = (from..to).contains(&one.leaf_index);
                in_list && one.is_in_status_lists() && !one.life().is_expired(now)
            };
            let expected = ids(self.sessions().filter(polled));
            prop_assert_eq!(seen(&listed), expected, "listed");
        }

        let filter = CutoffFilter {
            blocks_at: Some(now),
            limit: ALL,
            ..CutoffFilter::default()
        };
        let blocking = self.store.list_cutoffs(&filter).await.map_err(fail)?;
        let mut expected = self.facts.cutoffs.clone();
        expected.retain(|cutoff| cutoff.blocks(now));
        expected.reverse();
        prop_assert_eq!(blocking, expected, "blocking");
        self.session_groups(now).await
    }

    async fn session_groups(&self, now: Timestamp) -> Checked {
        let groups = self.store.external_session_groups(now).await;
        let groups: BTreeSet<(String, String, [u8; 32])> = groups
            .map_err(fail)?
            .into_iter()
            .map(|group| (group.audience, group.resource, *group.generation.as_bytes()))
            .collect();
        let others = self
            .sessions()
            .filter(|one| !one.minter.is_local() && !one.life().is_expired(now));
        let expected: BTreeSet<_> = others
            .map(|one| {
                let generation = *one.generation.as_bytes();
                (one.audience.clone(), one.resource.clone(), generation)
            })
            .collect();
        prop_assert_eq!(groups, expected, "session groups");
        for audience in AUDIENCES {
            let target = DenyPolicyTarget {
                minter: MinterKind::Aws,
                name: audience.into(),
                registration: "{}".into(),
                capacity: 4,
                propagation_seconds: 60,
            };
            let live = self.store.others_live_at(&target, RESOURCES[0], now).await;
            let expected = self.sessions().any(|one| {
                let there = one.minter == MinterKind::Aws && one.audience == audience;
                there && one.resource != RESOURCES[0] && one.life().may_stand(now)
            });
            prop_assert_eq!(live.map_err(fail)?, expected, "the sessions that are live");
        }
        Ok(())
    }

    /// The external sessions under a task and a session.
    async fn below_acts(&self, task: usize, session: usize, now: Timestamp) -> Checked {
        let task = task_id(task % self.world.tasks.len());
        let session = session_id(session % self.world.sessions.len());
        let found = self.store.external_under(&[task], &[session], now).await;
        let mut kin = BTreeSet::from([session]);
        let under = self.sessions().filter(|one| {
            let chain = self.facts.chain(one.task_id);
            chain.0.iter().any(|life| life.id == task)
        });
        kin.extend(ids(under));
        for _ in 0..self.world.sessions.len() {
            let derived = self.sessions();
            let derived = derived.filter(|one| one.parent.is_some_and(|id| kin.contains(&id)));
            let derived = ids(derived);
            kin.extend(derived);
        }
        let expected = self.sessions().filter(|one| {
            kin.contains(&one.id) && one.is_active_at_back_end() && !one.life().is_expired(now)
        });
        prop_assert_eq!(
            seen(&found.map_err(fail)?),
            ids(expected),
            "the external sessions under a task and a session"
        );
        Ok(())
    }

    async fn count(
        &self,
        selector: &Selector,
        index: u64,
        committed: Timestamp,
        now: Timestamp,
    ) -> Checked {
        let counted = self.store.count_matching(selector, index, committed, now);
        let listed = self.store.list_matching(selector, index, committed, ALL);
        let (counted, listed) = (counted.await.map_err(fail)?, listed.await.map_err(fail)?);
        let matched: Vec<&Session> = self
            .sessions()
            .filter(|one| self.facts.is_ended_by(one, selector, index, committed))
            .collect();
        let over = matched
            .iter()
            .filter(|one| one.life().is_cut_off_everywhere(committed, now))
            .count();
        prop_assert_eq!(seen(&listed), ids(matched.iter().copied()), "matched");
        prop_assert_eq!(counted, (matched.len() as u64, over as u64), "counted");

        // No session that was valid and is cut off is missing in the count.
        let alone = ValidityFacts {
            cutoffs: vec![Cutoff {
                id: CutoffId::from(Uuid::from_u128(5)),
                index,
                selector: selector.clone(),
                block: Block::No,
                deny_policy_target: None,
                reason: String::new(),
                by: String::new(),
                requested_at: committed,
                committed_at: committed,
                lifted_index: None,
            }],
            ..self.facts.clone()
        };
        let killed = self.sessions().filter(|one| {
            let was_valid = self.view(one).is_valid_at(committed);
            was_valid && alone.view((*one).clone()).cut_off_at.is_some()
        });
        prop_assert!(ids(killed).is_subset(&seen(&listed)));
        Ok(())
    }

    /// The cutoffs that are read with a task show whether it is blocked.
    async fn blocks(&self, now: Timestamp) -> Checked {
        for n in 0..self.world.tasks.len() {
            let view = self.store.task_view(task_id(n), now).await.map_err(fail)?;
            let view = view.unwrap();
            prop_assert_eq!(&view.chain, &self.facts.chain(task_id(n)));
            let blocked = self.facts.cutoffs.iter().any(|cutoff| {
                let mut tasks = std::iter::once(&view.task).chain(&view.above);
                cutoff.blocks(now) && tasks.any(|task| cutoff.selector.concerns_task(task))
            });
            prop_assert_eq!(view.is_blocked(now), blocked, "blocked");
        }
        Ok(())
    }

    /// Checks the statements that change rows, last.
    async fn changes(&self, now: Timestamp) -> Checked {
        for n in 0..self.world.tasks.len() {
            let id = task_id(n);
            let held = self.store.hold_task(id, now).await.map_err(fail)?.unwrap();
            let heard = held.hear(now, None, ALL).await.map_err(fail)?;
            let open = self.facts.tasks[&id].life.state_at(now) == TaskState::Open;
            let chain = self.facts.chain(id);
            let above = chain.0.iter().all(|life| life.state == TaskState::Open);
            prop_assert_eq!(heard.is_some(), open && above, "heard");
        }
        for (n, spec) in self.world.sessions.iter().enumerate() {
            let session = &self.facts.sessions[&session_id(n)];
            let settled = self.store.activate_session(session.id, HOLDER, now).await;
            let expected = session.state == SessionState::Minting
                && spec.lease.is_some_and(|until| at(until) > now)
                && !session.life().is_expired(now);
            prop_assert_eq!(settled.map_err(fail)?, expected, "settled");
        }
        let pruned = self.store.prune_cutoffs(at(SPAN), now, ALL).await;
        let blocking = self.facts.cutoffs.iter().filter(|one| one.blocks(now));
        let idle = self.facts.cutoffs.len() - blocking.count();
        prop_assert_eq!(pruned.map_err(fail)?, idle as u64, "pruned");
        Ok(())
    }
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
    check.changes(at(world.times[0])).await
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
