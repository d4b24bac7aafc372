//! The laws as properties: random histories, on either store, against a small model of the valid
//! credentials.
//!
//! A history is a list of steps: open, join, delegate, end, hear, revoke, cut off, lift, wait,
//! sweep, restart. The model knows tasks, credentials and cutoffs. After every step it says which
//! of all credentials released so far are valid, and the broker must agree, whether or not a
//! sweeper has run. The broker must accept exactly the requests that the model accepts. At the end,
//! the test finds the leaf of every credential, and searches the store for secrets that it must not
//! contain.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::clock::Timestamp;
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::request::CredentialRequest;
use taskpass::domain::task::TaskEnd;
use taskpass::domain::workload::encode_value;
use taskpass::ids::CutoffId;
use taskpass::sweep;

use crate::support::rig::{
    Kind, Rig, access_token, ask_in, ask_joining, child_of, claims, handle, job,
};

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
}

type Checked = Result<(), TestCaseError>;

impl World {
    async fn new(kind: Kind) -> Self {
        Self {
            rig: Rig::new(kind).await,
            model: Model::default(),
        }
    }

    fn pick(&self, session: usize) -> Option<usize> {
        let count = self.model.sessions.len();
        (count > 0).then(|| count - 1 - session % count)
    }

    async fn take(&mut self, step: &Step) -> Checked {
        let now = self.rig.now();
        match *step {
            Step::Open {
                agent,
                actions,
                ttl,
                deadline,
                watched,
            } => {
                self.open(agent, ACTIONS[actions], ttl, deadline, watched)
                    .await?;
            }
            Step::Join {
                session,
                actions,
                ttl,
            } => self.join(session, ACTIONS[actions], ttl).await?,
            Step::Delegate {
                session,
                actions,
                ttl,
            } => self.delegate(session, ACTIONS[actions], ttl).await?,
            Step::End { session, complete } => {
                if let Some(session) = self.opener(session) {
                    let task = self.model.sessions[session].task;
                    let end = if complete {
                        TaskEnd::Complete
                    } else {
                        TaskEnd::Abort
                    };
                    let ended = self
                        .rig
                        .end(&self.model.sessions[session].issued, end)
                        .await;
                    if self
                        .model
                        .is_caller_blocked(self.model.tasks[task].agent, now)
                    {
                        prop_assert!(matches!(ended, Err(BrokerError::Blocked(_))), "{ended:?}");
                    } else {
                        prop_assert!(ended.is_ok(), "ending a task is idempotent: {ended:?}");
                        self.model.tasks[task].ended = true;
                    }
                }
            }
            Step::Beat { session } => {
                if let Some(session) = self.opener(session) {
                    let task = self.model.sessions[session].task;
                    let beat = self
                        .rig
                        .heartbeat(&self.model.sessions[session].issued)
                        .await;
                    let blocked = self.model.is_task_blocked(task, now);
                    let may = self.model.is_open(task, now) && !blocked;
                    prop_assert_eq!(beat.is_ok(), may, "{:?}", beat);
                    if blocked {
                        prop_assert!(matches!(beat, Err(BrokerError::Blocked(_))), "{beat:?}");
                    }
                    let task = &mut self.model.tasks[task];
                    if beat.is_ok() && task.silent_at.is_some() {
                        task.silent_at = Some(now.plus_seconds(HEARTBEAT_SECONDS));
                    }
                }
            }
            Step::Revoke { session } => {
                if let Some(session) = self.pick(session) {
                    self.rig
                        .revoke(self.model.sessions[session].issued.session.id)
                        .await;
                    self.model.sessions[session].ended = true;
                }
            }
            Step::CutOff {
                what,
                session,
                block,
            } => self.cut_off(what, session, block).await?,
            Step::Lift { cutoff } => {
                let count = self.model.cutoffs.len();
                if count > 0 {
                    let cutoff = &mut self.model.cutoffs[cutoff % count];
                    let lifted = self
                        .rig
                        .broker
                        .revocation
                        .lift(&self.rig.admin(), cutoff.id)
                        .await;
                    prop_assert!(lifted.is_ok(), "{lifted:?}");
                    cutoff.lifted = true;
                }
            }
            Step::Wait { seconds } => self.rig.clock.advance(seconds),
            Step::Sweep => sweep::sweep(&self.rig.broker, now).await,
            Step::Restart => self.rig.restart().await.map_err(|error| fail(&error))?,
        }
        Ok(())
    }

    /// The session that was issued with the task's handle, for the task of the picked session.
    fn opener(&self, session: usize) -> Option<usize> {
        let task = self.model.sessions[self.pick(session)?].task;
        let sessions = &self.model.sessions;
        sessions
            .iter()
            .position(|one| one.task == task && one.issued.task.handle.is_some())
    }

    fn kid(&self) -> String {
        let sessions = &self.model.sessions;
        sessions
            .first()
            .map_or_else(String::new, |one| one.issued.session.kid.clone())
    }

    async fn open(
        &mut self,
        agent: usize,
        actions: &'static [&'static str],
        ttl: Option<u64>,
        deadline: u64,
        watched: bool,
    ) -> Checked {
        let now = self.rig.now();
        let mut new = job();
        new.deadline_seconds = Some(deadline);
        if watched {
            new.task_type = "watched".into();
            new.heartbeat_seconds = Some(HEARTBEAT_SECONDS);
        }
        let left = if watched {
            deadline.min(HEARTBEAT_SECONDS)
        } else {
            deadline
        };
        let mut fits = allowed(agent, actions, ttl, deadline);
        // The broker may shorten a watched task's first credential, so the model requires no grant
        // here.
        if watched && fits.is_some_and(|ttl| ttl > left) {
            fits = None;
        }
        let blocked = self.model.is_blocked(agent, None, &self.kid(), now);
        let before = self.model.sessions.len();
        let asked = CredentialRequest {
            ttl_seconds: ttl,
            ..ask_in(new, actions)
        };
        let answer = self.rig.issue(AGENTS[agent].0, asked).await;
        if let Some(fits) = fits.filter(|_| !blocked) {
            let issued = answer.map_err(|error| fail(&error))?;
            prop_assert_eq!(now.plus_seconds(fits), issued.session.expires_at);
            self.model.tasks.push(Task {
                agent,
                parent: None,
                deadline: now.plus_seconds(deadline),
                silent_at: watched.then(|| now.plus_seconds(HEARTBEAT_SECONDS)),
                ended: false,
                sessions: 1,
            });
            return self.issued(self.model.tasks.len() - 1, None, actions, issued);
        }
        match answer {
            // A watched task's credential may outlast the heartbeat timeout, because validity is
            // checked at use.
            Ok(issued)
                if watched && !blocked && allowed(agent, actions, ttl, deadline).is_some() =>
            {
                self.model.tasks.push(Task {
                    agent,
                    parent: None,
                    deadline: now.plus_seconds(deadline),
                    silent_at: Some(now.plus_seconds(HEARTBEAT_SECONDS)),
                    ended: false,
                    sessions: 1,
                });
                self.issued(self.model.tasks.len() - 1, None, actions, issued)
            }
            answer => {
                prop_assert!(
                    matches!(answer, Err(BrokerError::Denied(_))),
                    "{:?}",
                    answer
                );
                prop_assert_eq!(before, self.model.sessions.len());
                Ok(())
            }
        }
    }

    async fn join(
        &mut self,
        session: usize,
        actions: &'static [&'static str],
        ttl: Option<u64>,
    ) -> Checked {
        let Some(opener) = self.opener(session) else {
            return Ok(());
        };
        let now = self.rig.now();
        let task = self.model.sessions[opener].task;
        let agent = self.model.tasks[task].agent;
        let chain = self.model.task_chain(task);
        let left = chain
            .iter()
            .map(|task| now.seconds_until(self.model.tasks[*task].deadline));
        let fits = allowed(agent, actions, ttl, left.min().unwrap_or(0)).is_some();
        let simple = chain.len() == 1 && self.model.tasks[task].silent_at.is_none();
        let may = fits
            && self.model.is_open(task, now)
            && !self.model.is_blocked(agent, Some(task), &self.kid(), now)
            && !self.model.is_task_blocked(task, now);
        let asked = ask_joining(&self.model.sessions[opener].issued, actions);
        let asked = CredentialRequest {
            ttl_seconds: ttl,
            ..asked
        };
        let answer = self.rig.issue(AGENTS[agent].0, asked).await;
        match answer {
            Ok(issued) => {
                prop_assert!(
                    may,
                    "the broker let a request join a task that has ended, is blocked or does not permit it"
                );
                self.model.tasks[task].sessions += 1;
                prop_assert!(self.model.tasks[task].sessions <= MAX_SESSIONS);
                let covered = issued.session.parent;
                let parent = self
                    .model
                    .sessions
                    .iter()
                    .position(|one| Some(one.issued.session.id) == covered);
                prop_assert_eq!(parent.is_some(), chain.len() > 1);
                self.issued(task, parent, actions, issued)
            }
            Err(error) => {
                let full = self.model.tasks[task].sessions >= MAX_SESSIONS;
                let lent = self.model.tasks.iter().any(|one| one.parent == Some(task));
                prop_assert!(!may || !simple || full || lent, "{error}");
                Ok(())
            }
        }
    }

    async fn delegate(
        &mut self,
        session: usize,
        actions: &'static [&'static str],
        ttl: Option<u64>,
    ) -> Checked {
        let Some(opener) = self.opener(session) else {
            return Ok(());
        };
        let now = self.rig.now();
        let parent = self.model.sessions[opener].task;
        let id = self.model.sessions[opener].issued.task.id;
        // Enough for a child that delegates one credential to its own child.
        let sessions = if self.model.tasks[parent].parent.is_none() {
            3
        } else {
            1
        };
        let held = &self.model.sessions[opener].issued;
        let lent = self.rig.lend(held, AGENTS[CHILD].0, sessions).await;
        let Ok(delegation) = lent else {
            return Ok(());
        };
        prop_assert!(
            self.model.is_open(parent, now),
            "an ended task must not delegate"
        );
        prop_assert!(
            !self.model.is_task_blocked(parent, now),
            "a blocked task must not delegate"
        );
        let asked = ask_in(child_of(id, &delegation), actions);
        let asked = CredentialRequest {
            ttl_seconds: ttl,
            ..asked
        };
        let covering: Vec<usize> = (0..self.model.sessions.len())
            .filter(|one| {
                let held = &self.model.sessions[*one];
                held.task == parent
                    && self.model.is_good(*one, now)
                    && actions.iter().all(|action| held.actions.contains(action))
            })
            .collect();
        match self.rig.issue(AGENTS[CHILD].0, asked).await {
            Ok(issued) => {
                let by = issued.session.parent;
                let by = covering
                    .into_iter()
                    .find(|one| Some(self.model.sessions[*one].issued.session.id) == by);
                prop_assert!(
                    by.is_some(),
                    "no session of the parent task covers the grant"
                );
                prop_assert!(!self.model.is_blocked(CHILD, Some(parent), &self.kid(), now));
                let above = &self.model.sessions[by.unwrap_or_default()].issued;
                prop_assert!(issued.session.expires_at <= above.session.expires_at);
                prop_assert!(issued.task.deadline <= above.task.deadline);
                self.model.tasks.push(Task {
                    agent: CHILD,
                    parent: Some(parent),
                    deadline: issued.task.deadline,
                    silent_at: None,
                    ended: false,
                    sessions: 1,
                });
                self.issued(self.model.tasks.len() - 1, by, actions, issued)
            }
            Err(error) => {
                let refused = matches!(error, BrokerError::Denied(_));
                prop_assert!(refused, "{error}");
                Ok(())
            }
        }
    }

    fn issued(
        &mut self,
        task: usize,
        parent: Option<usize>,
        actions: &'static [&'static str],
        issued: Issued,
    ) -> Checked {
        for task in self.model.task_chain(task) {
            let deadline = self.model.tasks[task].deadline;
            prop_assert!(
                issued.session.expires_at <= deadline,
                "the session outlives its task"
            );
        }
        self.model.sessions.push(Session {
            task,
            parent,
            actions,
            ended: false,
            issued,
        });
        Ok(())
    }

    async fn cut_off(&mut self, what: usize, session: usize, block: Option<u64>) -> Checked {
        let Some(picked) = self.pick(session) else {
            return Ok(());
        };
        let now = self.rig.now();
        let task = self.model.sessions[picked].task;
        let agent = self.model.tasks[task].agent;
        let record = &self.model.sessions[picked].issued.session;
        let (selector, cut) = match what {
            0 => (Selector::All(True), Cut::All),
            1 => {
                let identity = format!("dev:{}", encode_value(AGENTS[agent].0));
                let identity = identity.try_into().map_err(|_| fail(&"an identity"))?;
                (Selector::Workload(identity), Cut::Agent(agent))
            }
            2 => (Selector::Task(record.task_id), Cut::Task(task)),
            3 => (Selector::Resource("orders-api".into()), Cut::Resource),
            _ => (
                Selector::SigningKey(record.kid.clone()),
                Cut::Key(record.kid.clone()),
            ),
        };
        let (ask, blocks) = match block {
            Some(seconds) => (
                BlockRequest::Seconds(seconds),
                Some(now.plus_seconds(seconds)),
            ),
            None => (BlockRequest::UntilLifted, None),
        };
        let admin = self.rig.admin();
        let expected: Vec<usize> = {
            let cuts = |one: &usize| {
                self.model.session_chain(*one).iter().any(|one| {
                    let session = &self.model.sessions[*one];
                    let agent = self.model.tasks[session.task].agent;
                    self.model
                        .cuts(&cut, agent, session.task, Some(&session.issued.session.kid))
                })
            };
            (0..self.model.sessions.len())
                .filter(|one| self.model.is_good(*one, now) && cuts(one))
                .collect()
        };
        let done = self
            .rig
            .broker
            .revocation
            .revoke_many(
                &admin,
                RevokeRequest {
                    selector,
                    block: ask,
                    deny_all_earlier_sessions: false,
                    reason: "why".into(),
                    allow_unknown: false,
                    dry_run: false,
                },
            )
            .await;
        let done = done.map_err(|error| fail(&error))?;
        let radius = done.radius.ok_or_else(|| fail(&"not counted"))?;
        prop_assert!(
            radius.matched >= expected.len() as u64,
            "the cutoff must count the sessions that it ends"
        );
        prop_assert_eq!(radius.matched, radius.ended + radius.ending);
        let made = done.cutoff.ok_or_else(|| fail(&"no cutoff"))?;
        if let Cut::Task(task) = cut {
            // Lifting the block does not open the task again.
            self.model.tasks[task].ended = true;
        }
        self.model.cutoffs.push(Cutoff {
            id: made.id,
            cut,
            index: made.index,
            blocks,
            lifted: false,
        });
        Ok(())
    }

    /// Checks that the broker and the model agree on every credential.
    async fn compare(&self) -> Checked {
        let now = self.rig.now();
        for (n, session) in self.model.sessions.iter().enumerate() {
            let told = self.rig.is_good(&session.issued).await;
            prop_assert_eq!(
                told,
                self.model.is_good(n, now),
                "credential {} at {:?}",
                n,
                now
            );
        }
        Ok(())
    }

    /// Checks that each credential has its leaf, that the log is consistent, and that the store
    /// holds no secret.
    async fn check_leaves_and_secrets(mut self) -> Checked {
        let (broker, store) = (&self.rig.broker, self.rig.broker.core.store());
        let keys: Vec<_> = broker
            .core
            .ledger()
            .keys()
            .iter()
            .map(|key| key.verifier.clone())
            .collect();
        let size = broker.core.ledger().basis();
        let mut secrets = Vec::new();
        for session in &self.model.sessions {
            let issued = &session.issued;
            issued.receipt.verify(&keys).map_err(|error| fail(&error))?;
            let stored = store
                .leaf(issued.receipt.index)
                .await
                .map_err(|error| fail(&error))?;
            let stored = stored.ok_or_else(|| fail(&"a leaf is gone"))?;
            prop_assert_eq!(stored.body.as_deref(), Some(&issued.receipt.leaf[..]));
            let claims = claims(issued);
            let leaf: Value = serde_json::from_slice(&issued.receipt.leaf).map_err(|e| fail(&e))?;
            let hash = URL_SAFE_NO_PAD.encode(issued.receipt.leaf_hash.as_bytes());
            prop_assert_eq!(&claims["dec"], &json!(hash));
            prop_assert_eq!(&leaf["outcome"], "permit");
            prop_assert_eq!(&leaf["session"], &claims["jti"]);
            prop_assert_eq!(&leaf["grant"], &claims["authorization_details"]);
            let exp = claims["exp"].as_i64().unwrap_or_default();
            prop_assert_eq!(exp, issued.session.expires_at.seconds());
            let grown =
                taskpass::ledger::proofs::consistency(store, issued.receipt.tree_size, size, size);
            grown.await.map_err(|error| fail(&error))?;
            secrets.push(access_token(issued).expose_secret().to_owned());
            if issued.task.handle.is_some() {
                secrets.push(handle(issued).expose_secret().to_owned());
            }
        }
        self.rig.stop().await;
        for (name, bytes) in files_below(self.rig.directory()) {
            for secret in &secrets {
                // Search for the signature alone as well: a token may be stored in parts.
                let part = secret.rsplit('.').next().unwrap_or(secret).as_bytes();
                let found = bytes.windows(part.len()).any(|window| window == part);
                prop_assert!(!found, "the store holds a secret in {name}");
            }
        }
        Ok(())
    }
}

fn files_below(directory: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
    found
}

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
