//! The laws as properties: random histories, on either store, against a small model of the valid
//! credentials.
//!
//! A history is a list of steps: open, join, delegate, end, hear, revoke, cut off, lift, wait,
//! sweep, restart. The model knows tasks, credentials and cutoffs. After every step it says which
//! of all credentials released so far are valid, and the broker must agree, whether or not a
//! sweeper has run. A follower of the endings must know of every session that the store calls ended,
//! and of no other. The broker must accept exactly the requests that the model accepts. At the end,
//! the test finds the leaf of every credential, and searches the store for secrets that it must not
//! contain.

mod followed;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value;
use taskpass::broker::issuance::Issued;
use taskpass::clock::Timestamp;
use taskpass::ids::CutoffId;

use self::followed::Followed;
use crate::support::rig::{Kind, Rig};

/// The agents, each with the actions and the longest lifetime (in seconds) that the rig's policies
/// give it.
const AGENTS: [(&str, &[&str], u64); 4] = [
    ("agent:reports", &["orders:read"], 600),
    ("agent:orders", &["orders:read", "orders:write"], 120),
    ("agent:child", &["orders:read", "orders:write"], 900),
    ("agent:stranger", &[], 0),
];
const DEFAULT_TTL: u64 = 300;
const ACTIONS: [&[&str]; 3] = [
    &["orders:read"],
    &["orders:write"],
    &["orders:read", "orders:write"],
];
const CHILD: usize = 2;
/// Limits of the rig's task type `job`.
const MAX_SESSIONS: usize = 6;
const HEARTBEAT_SECONDS: u64 = 60;

/// One step. A number picks an existing object, modulo the number of objects.
#[derive(Clone, Debug)]
enum Step {
    Open {
        agent: usize,
        actions: usize,
        ttl: Option<u64>,
        deadline: u64,
        watched: bool,
    },
    Join {
        session: usize,
        actions: usize,
        ttl: Option<u64>,
    },
    Delegate {
        session: usize,
        actions: usize,
        ttl: Option<u64>,
    },
    End {
        session: usize,
        complete: bool,
    },
    Beat {
        session: usize,
    },
    Revoke {
        session: usize,
    },
    CutOff {
        what: usize,
        session: usize,
        block: Option<u64>,
    },
    Lift {
        cutoff: usize,
    },
    Wait {
        seconds: u64,
    },
    Sweep,
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    // Most requests should succeed, because refused requests do not extend the history.
    let ttl = || proptest::option::weighted(0.5, prop_oneof![4 => 1..120_u64, 1 => 1..1_000_u64]);
    let actions = || prop_oneof![4 => Just(0), 1 => 1..ACTIONS.len()];
    // Counted from the newest. Rarely an old session, because most old ones have ended.
    let session = || prop_oneof![3 => 0..4_usize, 1 => any::<usize>()];
    let agent = || prop_oneof![6 => 0..2_usize, 1 => 2..AGENTS.len()];
    prop_oneof![
        6 => (agent(), actions(), ttl(), 30..3_600_u64, proptest::bool::weighted(0.2)).prop_map(
            |(agent, actions, ttl, deadline, watched)| Step::Open { agent, actions, ttl, deadline, watched }
        ),
        3 => (session(), actions(), ttl()).prop_map(|(session, actions, ttl)| Step::Join { session, actions, ttl }),
        6 => (session(), actions(), ttl()).prop_map(|(session, actions, ttl)| Step::Delegate { session, actions, ttl }),
        2 => (session(), any::<bool>()).prop_map(|(session, complete)| Step::End { session, complete }),
        2 => session().prop_map(|session| Step::Beat { session }),
        2 => session().prop_map(|session| Step::Revoke { session }),
        1 => (0..5_usize, session(), proptest::option::weighted(0.8, 0..200_u64)).prop_map(
            |(what, session, block)| Step::CutOff { what, session, block }
        ),
        2 => any::<usize>().prop_map(|cutoff| Step::Lift { cutoff }),
        4 => prop_oneof![4 => 1..30_u64, 1 => 30..700_u64].prop_map(|seconds| Step::Wait { seconds }),
        2 => Just(Step::Sweep),
        1 => Just(Step::Restart),
    ]
}

struct Task {
    agent: usize,
    parent: Option<usize>,
    deadline: Timestamp,
    silent_at: Option<Timestamp>,
    ended: bool,
    sessions: usize,
}

struct Session {
    task: usize,
    /// Index of the session that this one was derived from.
    parent: Option<usize>,
    actions: &'static [&'static str],
    ended: bool,
    issued: Issued,
}

enum Cut {
    All,
    Agent(usize),
    Task(usize),
    Resource,
    Key(String),
}

struct Cutoff {
    id: CutoffId,
    cut: Cut,
    index: u64,
    /// End of the block; `None` while it lasts until lifted.
    blocks: Option<Timestamp>,
    lifted: bool,
}

/// The expected state.
#[derive(Default)]
struct Model {
    tasks: Vec<Task>,
    sessions: Vec<Session>,
    cutoffs: Vec<Cutoff>,
}

impl Model {
    fn task_chain(&self, task: usize) -> Vec<usize> {
        std::iter::successors(Some(task), |task| self.tasks[*task].parent).collect()
    }

    fn session_chain(&self, session: usize) -> Vec<usize> {
        std::iter::successors(Some(session), |one| self.sessions[*one].parent).collect()
    }

    fn is_open(&self, task: usize, now: Timestamp) -> bool {
        self.task_chain(task).into_iter().all(|task| {
            let task = &self.tasks[task];
            !task.ended && now < task.deadline && task.silent_at.is_none_or(|at| now < at)
        })
    }

    fn cuts(&self, cut: &Cut, agent: usize, task: usize, kid: Option<&str>) -> bool {
        match cut {
            Cut::All | Cut::Resource => true,
            Cut::Agent(own) => *own == agent,
            Cut::Task(own) => self.task_chain(task).contains(own),
            Cut::Key(own) => kid == Some(own),
        }
    }

    fn is_good(&self, session: usize, now: Timestamp) -> bool {
        let chain = self.session_chain(session);
        chain.into_iter().all(|one| {
            let session = &self.sessions[one];
            let agent = self.tasks[session.task].agent;
            let record = &session.issued.session;
            !session.ended
                && now < record.expires_at
                && self.is_open(session.task, now)
                && !self.cutoffs.iter().any(|cutoff| {
                    record.leaf_index < cutoff.index
                        && self.cuts(&cutoff.cut, agent, session.task, Some(&record.kid))
                })
        })
    }

    /// Whether a cutoff blocks a request under `task`.
    fn is_blocked(&self, agent: usize, task: Option<usize>, kid: &str, now: Timestamp) -> bool {
        self.cutoffs.iter().any(|cutoff| {
            let holds = cutoff.holds(now);
            let meets = match (&cutoff.cut, task) {
                (Cut::Task(_), None) => false,
                (cut, Some(task)) => self.cuts(cut, agent, task, Some(kid)),
                (cut, None) => self.cuts(cut, agent, usize::MAX, Some(kid)),
            };
            holds && meets
        })
    }

    /// Whether a cutoff blocks every request of an agent.
    fn is_caller_blocked(&self, agent: usize, now: Timestamp) -> bool {
        self.cutoffs.iter().any(|cutoff| {
            let meets = match cutoff.cut {
                Cut::All => true,
                Cut::Agent(own) => own == agent,
                Cut::Task(_) | Cut::Resource | Cut::Key(_) => false,
            };
            cutoff.holds(now) && meets
        })
    }

    /// Whether a cutoff blocks a task, one of its ancestors, or the owner of one of these.
    fn is_task_blocked(&self, task: usize, now: Timestamp) -> bool {
        self.task_chain(task).into_iter().any(|link| {
            let named = |cutoff: &Cutoff| matches!(cutoff.cut, Cut::Task(own) if own == link);
            self.is_caller_blocked(self.tasks[link].agent, now)
                || self
                    .cutoffs
                    .iter()
                    .any(|cutoff| cutoff.holds(now) && named(cutoff))
        })
    }
}

impl Cutoff {
    fn holds(&self, now: Timestamp) -> bool {
        !self.lifted && self.blocks.is_none_or(|until| now < until)
    }
}

/// The lifetime that policy and the task permit, in seconds; `None` if they refuse.
fn allowed(agent: usize, actions: &[&str], ttl: Option<u64>, left: u64) -> Option<u64> {
    let (_, own, max) = AGENTS[agent];
    let max = max.min(left);
    let asked = ttl.unwrap_or(DEFAULT_TTL.min(max));
    let fits = actions.iter().all(|action| own.contains(action));
    (fits && asked <= max && asked > 0).then_some(asked)
}

struct World {
    rig: Rig,
    model: Model,
    /// `None` after a restart, until the next comparison.
    followed: Option<Followed>,
}

type Checked = Result<(), TestCaseError>;

fn fail(why: &dyn std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(why.to_string())
}

fn histories(kind: Kind) {
    // A case runs a whole broker, so the default is few cases; `PROPTEST_CASES` sets more.
    let default = Config::default();
    let config = Config {
        cases: (default.cases / 8).max(1),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..default
    };
    let mut runner = TestRunner::new(config);
    let steps = proptest::collection::vec(any_step(), 20..60);
    let run = runner.run(&steps, |steps| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let checked = runtime.block_on(async {
            let mut world = World::new(kind).await;
            for step in &steps {
                world.take(step).await?;
                world.compare().await?;
                world.compare_follower().await?;
            }
            world.check_leaves_and_secrets().await
        });
        runtime.shutdown_timeout(Duration::from_secs(2));
        checked
    });
    if let Err(broken) = run {
        panic!("{broken}");
    }
}

#[test]
fn the_laws_hold_in_any_history_on_sqlite() {
    histories(Kind::Sqlite);
}

#[test]
fn the_laws_hold_in_any_history_on_postgresql() {
    histories(Kind::Postgres);
}
