//! Replay: evaluates recorded inputs with a candidate generation and compares the results with the
//! recorded decisions.
//!
//! [`Replay::add`] takes one record, and [`Tally`] is the result. The recorded side is the record
//! itself and is not evaluated again, so a replay reports differences between real decisions and
//! those of the candidate: newly permitted, newly denied, another life, another reason. The
//! candidate's policies and catalog both matter: a resource that the candidate does not have, or a
//! shorter maximum, is a difference like a forbid.
//!
//! Some records cannot be compared. A replay counts and skips refusals before policy was evaluated.
//! Where the log refused a request that policy permitted, the replay compares with policy's permit.
//! If the recorded input lacks facts that the candidate needs ([`UnknownReason`]), the replay
//! counts it as unknown. [`NOT_COMPARED`] lists facts that no input contains. An input that cannot
//! be read is an error, which ends the replay.
//!
//! A replay shows the effect of activating the candidate now. So a policy that only observes until
//! a past day is enforced, regardless of the time of the decision.
//!
//! An evaluation uses the clock only to compare it with the enforcement dates of observing
//! policies, and most inputs differ only in their instant. So each replay caches its evaluations.
//! The command `policy replay` calls this file and reads the records by [`super::record`].

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::generation::CompiledGeneration;
use super::input::{self, Input};
use super::record::{DecidedBy, Recorded};
use crate::clock::Timestamp;
use crate::domain::decision::{Outcome, RefusalCode};
use crate::ids::DecisionId;

/// Maximum number of cached evaluations, to bound memory. At the maximum the cache is emptied.
const MAX_REMEMBERED: usize = 200_000;
/// Maximum number of groups, to bound memory. Further workloads of a group are counted together as
/// [`OTHERS`].
const MAX_GROUPS: usize = 10_000;
/// The workload of the groups for all further workloads.
const OTHERS: &str = "(others)";

/// The parts of a configuration that no recorded input shows and a replay therefore cannot compare.
pub const NOT_COMPARED: &[&str] = &[
    "attestors: whether they would accept the same evidence and derive the same identity and \
    claims from it; records lack claims that are newly declared",
    "locations: a request without locations is evaluated at the locations that were registered at \
    its time",
    "the heartbeat intervals and session limits of task types, and the audiences, verification \
    and AWS roles of resources; the recorded revocability of a credential is used",
    "denials beyond the budget: the record has only their number",
];

/// A reason why the candidate's decision about a recorded input is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownReason {
    /// The candidate needs roles, and the generation that decided did not, so they were not read.
    RolesNotRead,
    /// The candidate's attestor declares other claims.
    OtherClaims,
    /// The task was opened for longer than the candidate's task type allows. The record does not
    /// show whether the caller requested this deadline (the candidate would refuse it) or received
    /// the maximum by default (the candidate would shorten it).
    LongerTask,
}

impl UnknownReason {
    /// The reason as text.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        match self {
            Self::RolesNotRead => {
                "the candidate needs the caller's roles, which were not read at the time of the \
                decision"
            }
            Self::OtherClaims => "the candidate's attestor declares other claims",
            Self::LongerTask => {
                "its task was opened for longer than the candidate's task type allows"
            }
        }
    }
}

/// A kind of difference from the recorded decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Permitted on record, denied by the candidate.
    NewlyDenied,
    /// Refused on record, permitted by the candidate.
    NewlyPermitted,
    /// Permitted by both, with another life.
    OtherTtl,
    /// Refused by both, for another reason.
    OtherRefusal,
}

impl DifferenceKind {
    /// Every kind, most severe first.
    pub const ALL: [Self; 4] = [
        Self::NewlyDenied,
        Self::NewlyPermitted,
        Self::OtherTtl,
        Self::OtherRefusal,
    ];

    /// The kind as text.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        match self {
            Self::NewlyDenied => "newly denied",
            Self::NewlyPermitted => "newly permitted",
            Self::OtherTtl => "another life",
            Self::OtherRefusal => "refused for another reason",
        }
    }
}

/// A summary of an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Short {
    pub outcome: Outcome,
    /// The code of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// The granted life in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.outcome.as_str())?;
        match (self.refusal, self.ttl_seconds) {
            (Some(code), _) => write!(f, " ({})", code.as_str()),
            (None, Some(seconds)) => write!(f, " ({seconds} s)"),
            (None, None) => Ok(()),
        }
    }
}

/// A decision that is an example of its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// The decision's id, if its leaf has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionId>,
    /// Leaf index in the log.
    pub index: u64,
    /// The time of the decision.
    pub at: Timestamp,
    /// The outcome on record.
    pub was: Short,
    /// The outcome by the candidate.
    pub would_be: Short,
}

/// The values that distinguish groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct GroupKey {
    pub kind: DifferenceKind,
    /// The identity of the caller.
    pub workload: String,
    /// The requested resource; `task` for a request that only opens a task.
    pub resource: String,
    /// The candidate's policies that determine the outcome. If the candidate permits nothing, the
    /// recorded policies that permitted.
    pub policies: Vec<String>,
}

/// The number of decisions of a group, with an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Group {
    #[serde(flatten)]
    pub key: GroupKey,
    pub count: u64,
    /// The first decision of the group in the log.
    pub example: Example,
}

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Point {
    /// Leaf index in the log.
    pub index: u64,
    /// The time of the decision.
    pub at: Timestamp,
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The first decision that was read and not pruned.
    pub first: Option<Point>,
    /// The last decision that was read and not pruned.
    pub last: Option<Point>,
    /// Number of evaluated decisions.
    pub evaluated: u64,
    /// Number of evaluated decisions without a difference.
    pub unchanged: u64,
    /// Number of requests that were refused before policy was evaluated.
    pub never_asked: u64,
    /// Number of decisions whose leaf or input was pruned.
    pub pruned: u64,
    /// Numbers of decisions about which the candidate's decision is unknown, by reason.
    pub unknown: BTreeMap<UnknownReason, u64>,
    groups: BTreeMap<GroupKey, (u64, Example)>,
}

impl Tally {
    /// The sum of both.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.evaluated += other.evaluated;
        self.unchanged += other.unchanged;
        self.never_asked += other.never_asked;
        self.pruned += other.pruned;
        for point in [other.first, other.last].into_iter().flatten() {
            self.reach(point);
        }
        for (why, count) in other.unknown {
            *self.unknown.entry(why).or_default() += count;
        }
        for (key, (count, example)) in other.groups {
            self.count(key, count, example);
        }
        self
    }

    /// Whether every decision that was read could be compared.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.pruned == 0 && self.unknown.is_empty()
    }

    fn reach(&mut self, point: Point) {
        self.first = Some(self.first.map_or(point, |first| first.min(point)));
        self.last = self.last.max(Some(point));
    }

    /// Number of decisions with this kind of difference.
    #[must_use]
    pub fn of_kind(&self, kind: DifferenceKind) -> u64 {
        let groups = self.groups.iter().filter(|(key, _)| key.kind == kind);
        groups.map(|(_, (count, _))| count).sum()
    }

    /// Whether any decision has a difference.
    #[must_use]
    pub fn changed(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The groups, by kind and then by size, largest first.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        let groups = self.groups.iter().map(|(key, (count, example))| Group {
            key: key.clone(),
            count: *count,
            example: example.clone(),
        });
        let mut groups: Vec<Group> = groups.collect();
        groups.sort_by_key(|group| (group.key.kind, std::cmp::Reverse(group.count)));
        groups
    }

    fn count(&mut self, key: GroupKey, count: u64, example: Example) {
        let key = if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            GroupKey {
                workload: OTHERS.to_owned(),
                ..key
            }
        } else {
            key
        };
        let entry = self
            .groups
            .entry(key)
            .or_insert_with(|| (0, example.clone()));
        entry.0 += count;
        if example.index < entry.1.index {
            entry.1 = example;
        }
    }
}

/// The outcome for an input and the policies that determine it, or the reason why it is unknown.
type ReplayResult = Result<(Short, Vec<String>), UnknownReason>;

/// A replay in one thread.
#[derive(Debug)]
pub struct Replay<'a> {
    candidate: &'a CompiledGeneration,
    at: Timestamp,
    remembered: HashMap<[u8; 32], ReplayResult>,
    tally: Tally,
}

impl<'a> Replay<'a> {
    /// Creates a replay with `candidate`, with every policy that is enforced at `at`: now, or
    /// [`Timestamp::MAX`] to also enforce policies that only observe.
    #[must_use]
    pub fn new(candidate: &'a CompiledGeneration, at: Timestamp) -> Self {
        Self {
            candidate,
            at,
            remembered: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// Ends the replay and returns its result.
    #[must_use]
    pub fn finish(self) -> Tally {
        self.tally
    }

    /// Counts a decision that was pruned and cannot be evaluated.
    pub fn note_pruned(&mut self) {
        self.tally.pruned += 1;
    }

    /// Evaluates one recorded decision.
    pub fn add(&mut self, recorded: &Recorded) -> Result<(), super::PolicyError> {
        self.tally.reach(Point {
            index: recorded.index,
            at: recorded.at(),
        });
        let overtaken = match recorded.decided_by() {
            DecidedBy::Never(_) => {
                self.tally.never_asked += 1;
                return Ok(());
            }
            DecidedBy::Overtaken(_) => true,
            DecidedBy::Policy => false,
        };
        let (outcome, refusal) = recorded.outcome();
        let was = Short {
            outcome: if overtaken { Outcome::Permit } else { outcome },
            refusal: refusal.filter(|_| !overtaken),
            ttl_seconds: recorded.granted_seconds(),
        };
        let (would_be, policies) = match self.evaluate(recorded)? {
            Ok(told) => told,
            Err(why) => {
                *self.tally.unknown.entry(why).or_default() += 1;
                return Ok(());
            }
        };
        self.tally.evaluated += 1;
        let Some(kind) = kind(&was, &would_be) else {
            self.tally.unchanged += 1;
            return Ok(());
        };
        let policies = if policies.is_empty() {
            recorded.policies().to_vec()
        } else {
            policies
        };
        let key = GroupKey {
            kind,
            workload: recorded
                .workload()
                .map(ToString::to_string)
                .unwrap_or_default(),
            resource: recorded.resource().unwrap_or("task").to_owned(),
            policies,
        };
        let example = Example {
            decision: recorded.decision(),
            index: recorded.index,
            at: recorded.at(),
            was,
            would_be,
        };
        self.tally.count(key, 1, example);
        Ok(())
    }

    fn evaluate(&mut self, recorded: &Recorded) -> Result<ReplayResult, super::PolicyError> {
        let at = self.at.max(recorded.at());
        let key = input::key(self.candidate.dates_before(at), recorded.input());
        if let Some(known) = self.remembered.get(&key) {
            return Ok(known.clone());
        }
        let input = Input::read(recorded.input())?;
        let told = match self.candidate.unknown_reason(&input) {
            Some(why) => Err(why),
            None => Ok(self.decide(recorded, &input, at)),
        };
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(key, told.clone());
        Ok(told)
    }

    fn decide(&self, recorded: &Recorded, input: &Input, at: Timestamp) -> (Short, Vec<String>) {
        let decision = self.candidate.decide_at(input, at);
        let permitted = decision.verdict.as_ref().ok();
        let opens_only = recorded.credential().is_none() || recorded.resource().is_none();
        let short = Short {
            outcome: decision.outcome(),
            refusal: decision.verdict.as_ref().err().map(|refusal| refusal.code),
            // A request that only opens a task has no life.
            ttl_seconds: permitted
                .filter(|_| !opens_only)
                .map(|terms| terms.ttl_seconds),
        };
        (short, decision.policies)
    }
}

impl CompiledGeneration {
    /// The reason why this generation's decision about the recorded input is unknown; `None` if it
    /// is known.
    pub(super) fn unknown_reason(&self, input: &Input) -> Option<UnknownReason> {
        if self.asks_for_roles() && !input.knows_roles() {
            return Some(UnknownReason::RolesNotRead);
        }
        // If this generation has no such attestor, it refuses the request. That result is known.
        let attestor = &input.principal.attestor;
        let is_declared = self.attestors().iter().any(|own| own.name() == attestor);
        if is_declared && self.model.workload_scene(&input.principal, None).is_err() {
            return Some(UnknownReason::OtherClaims);
        }
        let task_type = self.catalog().task_type(&input.task.task_type)?;
        let most = task_type.max_deadline_seconds;
        (input.task.opens && input.task.deadline_seconds_left > most)
            .then_some(UnknownReason::LongerTask)
    }
}

fn kind(was: &Short, would_be: &Short) -> Option<DifferenceKind> {
    match (
        was.outcome == Outcome::Permit,
        would_be.outcome == Outcome::Permit,
    ) {
        (true, false) => Some(DifferenceKind::NewlyDenied),
        (false, true) => Some(DifferenceKind::NewlyPermitted),
        (true, true) => {
            // The record of a decision that the log refused has no life.
            let both = was.ttl_seconds.zip(would_be.ttl_seconds);
            both.filter(|(was, would_be)| was != would_be)
                .map(|_| DifferenceKind::OtherTtl)
        }
        (false, false) => (was != would_be).then_some(DifferenceKind::OtherRefusal),
    }
}
