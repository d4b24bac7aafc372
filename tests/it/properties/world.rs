//! Plays steps on a broker, and compares it with the model after each.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret;
use serde_json::json;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::request::CredentialRequest;
use taskpass::domain::task::TaskEnd;
use taskpass::domain::workload::encode_value;
use taskpass::sweep;

use super::*;
use crate::support::rig::{access_token, ask_in, ask_joining, child_of, claims, handle, job};

impl World {
    pub(super) async fn new(kind: Kind) -> Self {
        Self {
            rig: Rig::on(kind).start().await,
            model: Model::default(),
            followed: None,
        }
    }

    pub(super) fn pick(&self, session: usize) -> Option<usize> {
        let count = self.model.sessions.len();
        (count > 0).then(|| count - 1 - session % count)
    }

    pub(super) async fn take(&mut self, step: &Step) -> Checked {
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
            Step::End { session, complete } => self.end(session, complete).await?,
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
            Step::Restart => {
                // The follower holds the store.
                self.followed = None;
                self.rig.restart().await.map_err(|error| fail(&error))?;
            }
        }
        Ok(())
    }

    /// Completes or aborts the task of the picked session. Ending an ended task succeeds.
    async fn end(&mut self, session: usize, complete: bool) -> Checked {
        let Some(session) = self.opener(session) else {
            return Ok(());
        };
        let now = self.rig.now();
        let end = if complete {
            TaskEnd::Complete
        } else {
            TaskEnd::Abort
        };
        let picked = &self.model.sessions[session];
        let task = picked.task;
        let ended = self.rig.end(&picked.issued, end).await;
        let agent = self.model.tasks[task].agent;
        if self.model.is_caller_blocked(agent, now) {
            prop_assert!(matches!(ended, Err(BrokerError::Blocked(_))), "{ended:?}");
        } else {
            prop_assert!(ended.is_ok(), "{ended:?}");
            self.model.tasks[task].ended = true;
        }
        Ok(())
    }

    /// The session that was issued with the task's handle, for the task of the picked session.
    pub(super) fn opener(&self, session: usize) -> Option<usize> {
        let task = self.model.sessions[self.pick(session)?].task;
        let sessions = &self.model.sessions;
        sessions
            .iter()
            .position(|one| one.task == task && one.issued.task.handle.is_some())
    }

    pub(super) fn kid(&self) -> String {
        let sessions = &self.model.sessions;
        sessions
            .first()
            .map_or_else(String::new, |one| one.issued.session.kid.clone())
    }

    pub(super) async fn open(
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

    pub(super) async fn join(
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

    pub(super) async fn delegate(
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

    pub(super) fn issued(
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

    pub(super) async fn cut_off(
        &mut self,
        what: usize,
        session: usize,
        block: Option<u64>,
    ) -> Checked {
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
    pub(super) async fn compare(&self) -> Checked {
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
    pub(super) async fn check_leaves_and_secrets(mut self) -> Checked {
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
