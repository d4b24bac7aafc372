//! Verifies a whole exported log: its entries are those under the signed checkpoint, and each act
//! comes after the acts that it depends on.
//!
//! Each fault is reported to the [`Verification`], one by one up to a limit and then as a count.
//! `super` calls [`verify`]; `merkle::log_file` reads the file, `super::heads` checks its
//! checkpoint.

use std::collections::{BTreeMap, HashSet};
use std::io::BufRead;

use super::credential::{Credential, Logged, Signers};
use super::heads::{Heads, with_causes};
use super::verification::{Claim, InputKind, Verification};
use super::{Request, decision_of};
use crate::domain::decision::Outcome;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::leaf::{DecisionLeaf, Effect, Event, Leaf};
use crate::ids::{SessionId, TaskId};
use crate::merkle::{LogEntry, LogReader};

/// How many faults of order are reported one by one; the rest are counted.
const TOLD: u64 = 10;
/// The purpose of keys that sign credentials, as leaves name it.
const ACCESS_TOKEN: &str = "access_token";

/// The decision that a credential names, as found in the log.
struct Found {
    entry: LogEntry,
    leaf: Leaf,
}

/// The state while a log is read.
#[derive(Default)]
struct Order {
    sessions: HashSet<SessionId>,
    tasks: HashSet<TaskId>,
    /// Sessions and tasks that were acted on before they appeared. This is excused if bodies were
    /// pruned before, but it is a fault if they appear later.
    excused_sessions: HashSet<SessionId>,
    excused_tasks: HashSet<TaskId>,
    generations: HashSet<GenerationDigest>,
    counts: BTreeMap<&'static str, u64>,
    /// Whether the log guarantees that each of its heads is the broker's.
    heads_authenticated: bool,
    pruned: u64,
    faults: u64,
}

/// Reads a log to its end, and reports the claims that it proves.
pub(super) fn verify(verdict: &mut Verification, input: impl BufRead, request: &Request<'_>) {
    let mut reader = match LogReader::unsigned(input) {
        Ok(reader) => reader,
        Err(error) => return verdict.fail(Claim::Logged, with_causes(&error)),
    };
    verdict.kind = Some(InputKind::Log);
    let mut heads = Heads::open(verdict, request.trust, request.given, request.proofs);
    // A log without a trusted signature need not be read to its end.
    let head = reader.checkpoint();
    if heads.largest(&head.origin) < head.size
        && let Err(error) = request.trust.open(reader.note().as_bytes())
    {
        return verdict.fail(Claim::Logged, with_causes(&error));
    }
    let sizes: Vec<u64> = heads.sizes().collect();
    for size in &sizes {
        reader.want_root(*size);
    }
    let credential = match request.credential.map(Credential::parse).transpose() {
        Ok(credential) => credential,
        Err(why) => return verdict.fail(Claim::Decided, why),
    };
    let wanted = credential.as_ref().and_then(Credential::leaf_hash);
    let kid = credential.as_ref().and_then(Credential::kid);
    let (mut found, mut key) = (None, None);
    let mut order = Order::default();
    let origin = reader.checkpoint().origin.clone();
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return verdict.fail(Claim::Logged, with_causes(&error)),
        };
        let leaf = order.take(verdict, &entry, &origin);
        // The signing key must appear before the decision.
        if found.is_none() && key.is_none() {
            let named = leaf.as_ref().and_then(|leaf| signing_key(leaf, kid));
            key = named.map(|jwk| (entry.index, jwk.to_owned()));
        }
        if wanted == Some(entry.hash) {
            found = leaf.map(|leaf| Found { entry, leaf });
        }
    }
    if let Err(error) = reader.finish() {
        return verdict.fail(Claim::Logged, with_causes(&error));
    }
    for size in sizes {
        if let Some(root) = reader.root_at(size) {
            heads.learn(size, root);
        }
    }
    let head = reader.checkpoint().clone();
    heads.learn(head.size, head.root);
    let largest = heads.largest(&head.origin);
    if largest > head.size {
        return verdict.fail(
            Claim::Logged,
            format!(
                "THE LOG WAS CUT: a given checkpoint was signed over {largest} leaves, but this log \
                 has {}",
                head.size
            ),
        );
    }
    let Some(vouched) = heads.vouched(verdict, request.trust, &head, reader.note().as_bytes())
    else {
        return;
    };
    order.tell(verdict);
    verdict.show(
        Claim::Logged,
        format!(
            "yes, all {} leaves of {}, in order, by {vouched}{}",
            head.size,
            head.origin,
            order.summary()
        ),
    );
    match (credential, found) {
        (None, _) => without_credential(verdict, request),
        (Some(_), None) => verdict.fail(
            Claim::Decided,
            "the log does not hold the decision that this credential names, or its body was pruned",
        ),
        (Some(credential), Some(Found { entry, leaf })) => {
            let decision = decision_of(verdict, &leaf);
            let logged = key.as_ref().map(|(index, jwk)| Logged {
                index: *index,
                jwk,
                is_brokers: order.heads_authenticated,
            });
            let signers = Signers::of(request, logged);
            credential.check(verdict, &entry.hash, (entry.index, &leaf), &signers);
            request.check_use(verdict, decision, std::slice::from_ref(&credential));
            heads.before_use(verdict, &head, (entry.index, leaf.at), request.used_at);
        }
    }
}

/// Reports the claims that a log without a credential cannot prove.
fn without_credential(verdict: &mut Verification, request: &Request<'_>) {
    verdict.leave(Claim::Decided, "no credential was given");
    request.wants_a_credential(verdict);
    if request.used_at.is_some() {
        let why = "--used-at needs the credential that was used: give it with --credential-file";
        verdict.fail(Claim::LoggedBeforeUse, why);
    }
}

/// The public key that a leaf records for signing credentials under this id.
fn signing_key<'a>(leaf: &'a Leaf, wanted: Option<&str>) -> Option<&'a str> {
    match leaf.event.facets().effect {
        Effect::AddsKey(key) if key.purpose == ACCESS_TOKEN && Some(key.kid) == wanted => {
            key.public
        }
        Effect::AddsKey(_)
        | Effect::EndsKey
        | Effect::Begins(_)
        | Effect::Permits(_)
        | Effect::EndsTasks(..)
        | Effect::EndsSession(..)
        | Effect::CutsOff(_)
        | Effect::CutsOffIssuedAfter(_)
        | Effect::Nothing => None,
    }
}

impl Order {
    /// Processes one entry. Returns its leaf if it can be read.
    fn take(&mut self, verdict: &mut Verification, entry: &LogEntry, origin: &str) -> Option<Leaf> {
        let Some(bytes) = &entry.leaf else {
            // Retention prunes a log from its beginning.
            if entry.index > self.pruned {
                let why = "has no body, although earlier ones have: it was removed, not pruned";
                self.fault(verdict, entry.index, why);
            }
            self.pruned += 1;
            return None;
        };
        let leaf = match Leaf::from_bytes(bytes) {
            Ok(leaf) => leaf,
            Err(error) => {
                self.fault(verdict, entry.index, &format!("cannot be read: {error}"));
                return None;
            }
        };
        if leaf.origin != origin {
            let why = format!("belongs to the log {}", leaf.origin);
            self.fault(verdict, entry.index, &why);
        }
        if (entry.index == 0) != matches!(leaf.event, Event::Genesis { .. }) {
            self.fault(
                verdict,
                entry.index,
                "is a genesis leaf that is not the first, or the first leaf is not one",
            );
        }
        if let Err(why) = self.follow(&leaf.event) {
            self.fault(verdict, entry.index, &why);
        }
        Some(leaf)
    }

    /// Checks that an event comes after the events that it depends on. Once bodies were pruned, a
    /// missing event is excused unless it appears later.
    fn follow(&mut self, event: &Event) -> Result<(), String> {
        let (name, result) = match event {
            Event::Genesis {
                heads_authenticated,
                ..
            } => {
                self.heads_authenticated = *heads_authenticated;
                ("beginning", Ok(()))
            }
            Event::Activated { generation, .. } => {
                self.generations.insert(*generation);
                ("activation", Ok(()))
            }
            Event::Decision(decision) if decision.outcome == Outcome::Permit => {
                ("permit", self.permit(decision))
            }
            Event::Decision(decision) => {
                self.tasks.extend(decision.task);
                ("refusal", self.decided_by(decision.generation))
            }
            Event::TaskOpened(opened) => {
                self.tasks.insert(opened.task);
                ("task opened", self.first_of_task(opened.task))
            }
            Event::SessionEnded { session, .. } => ("session ended", self.of_session(*session)),
            Event::EndConfirmed { session, .. } => {
                ("end confirmed or not", self.of_session(*session))
            }
            Event::TaskEnded { task, .. } => ("task ended", self.of_task(*task)),
            Event::TasksEnded { tasks, .. } => (
                "tasks ended",
                tasks.iter().try_for_each(|task| self.of_task(*task)),
            ),
            Event::Delegated { .. }
            | Event::Cutoff { .. }
            | Event::CutoffLifted { .. }
            | Event::TimeAccepted { .. }
            | Event::Key { .. }
            | Event::Admin { .. }
            | Event::DenialsOmitted { .. } => ("other act", Ok(())),
        };
        *self.counts.entry(name).or_default() += 1;
        result
    }

    fn permit(&mut self, decision: &DecisionLeaf) -> Result<(), String> {
        self.tasks.extend(decision.task);
        if let Some(session) = decision.session {
            if !self.sessions.insert(session) {
                return Err("permits a session that was permitted before".into());
            }
            if self.excused_sessions.contains(&session) {
                return Err("permits a session that had ended before".into());
            }
        }
        if let Some(task) = decision.task {
            self.first_of_task(task)?;
        }
        self.decided_by(decision.generation)
    }

    fn first_of_task(&self, task: TaskId) -> Result<(), String> {
        if self.excused_tasks.contains(&task) {
            return Err("belongs to a task that had ended before".into());
        }
        Ok(())
    }

    fn decided_by(&self, generation: GenerationDigest) -> Result<(), String> {
        self.excuse(self.generations.contains(&generation))
            .map_err(|()| "comes before the activation of the generation that decided it".into())
    }

    fn of_session(&mut self, session: SessionId) -> Result<(), String> {
        if self.sessions.contains(&session) {
            return Ok(());
        }
        self.excuse(false)
            .map_err(|()| "comes before its session's decision")?;
        self.excused_sessions.insert(session);
        Ok(())
    }

    fn of_task(&mut self, task: TaskId) -> Result<(), String> {
        if self.tasks.contains(&task) {
            return Ok(());
        }
        self.excuse(false)
            .map_err(|()| "comes before the task was opened")?;
        self.excused_tasks.insert(task);
        Ok(())
    }

    /// Whether an event was seen, or may have been in a pruned body.
    fn excuse(&self, there: bool) -> Result<(), ()> {
        if there || self.pruned > 0 {
            Ok(())
        } else {
            Err(())
        }
    }

    fn fault(&mut self, verdict: &mut Verification, index: u64, why: &str) {
        self.faults += 1;
        if self.faults <= TOLD {
            verdict.fail(Claim::Logged, format!("leaf {index} {why}"));
        }
    }

    fn tell(&self, verdict: &mut Verification) {
        if self.faults > TOLD {
            let more = self.faults - TOLD;
            verdict.fail(
                Claim::Logged,
                format!("{more} more leaves are out of order"),
            );
        }
        if self.pruned > 0 {
            verdict.notes.push(format!(
                "{} bodies were pruned: their hashes are in the tree, but their contents were not \
                 verified, and entries that depend on them were accepted",
                self.pruned
            ));
        }
    }

    fn summary(&self) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(name, count)| format!("{count} × {name}"))
            .collect();
        if counts.is_empty() {
            return String::new();
        }
        format!(" ({})", counts.join(", "))
    }
}
