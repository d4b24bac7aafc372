//! What a candidate would have decided of what was decided: recorded inputs, evaluated by another
//! generation.
//!
//! The recorded side is the record itself and is not evaluated again. So what is told is the
//! difference between what happened and what would have: newly permitted, newly denied, another
//! life, another reason. Policies and catalogue both count, since the evaluation asks both: a
//! resource that the candidate does not have, or a shorter maximum, is a difference like a forbid.
//!
//! What no evaluation can tell is counted and left out: refusals before policy was asked, and
//! whatever the log or a back end would have said. Where the log refused what policy permitted, the
//! candidate is held against policy's permit. Where the recorded input lacks what the candidate asks
//! for ([`Untold`]), nothing is said of it either way; and what is in no input at all is named
//! ([`NOT_COMPARED`]).
//!
//! The question is what the candidate would do if it were activated now. So a policy that merely
//! observes until a day that is over counts, whenever the decision was made.
//!
//! Evaluation does not read the clock beside comparing it with the dates of observed policies, and
//! most inputs repeat themselves but for their instant. So each replay remembers what it evaluated.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::generation::CompiledGeneration;
use super::input::Input;
use super::record::{Asked, Recorded};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::domain::decision::{Outcome, RefusalCode};
use crate::ids::DecisionId;

/// Evaluations that are remembered.
const MAX_REMEMBERED: usize = 200_000;
/// Groups that are told apart; what comes after is counted for others together.
const MAX_GROUPS: usize = 10_000;
/// The name of those others.
const OTHERS: &str = "(others)";

/// What of a configuration no recorded input shows, so that nobody takes a replay for more than it
/// is.
pub const NOT_COMPARED: &[&str] = &[
    "attestors: whether they would believe the same evidence, and which identity and claims they \
     would make of it; a claim that is newly declared is absent from what is on record",
    "locations: who named none is evaluated at those that were registered then",
    "heartbeats and numbers of sessions that task types ask for, and audiences, verification and \
     roles at AWS of resources; a credential's revocability is the recorded one",
    "denials beyond the budget, which are on record as a number",
];

/// Why a recorded input cannot tell what the candidate would have made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Untold {
    /// The candidate asks for roles, and whoever decided did not, so that they were not read.
    RolesNotRead,
    /// The candidate's attestor declares other claims.
    OtherClaims,
    /// The task was opened for longer than the candidate's task type has it: whether that was asked
    /// for, and would be refused, or was the most there was, and would be cut, is not on record.
    LongerTask,
}

impl Untold {
    /// As people read it.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        match self {
            Self::RolesNotRead => {
                "the candidate asks for roles, and they were not read when it was decided"
            }
            Self::OtherClaims => "the candidate's attestor declares other claims",
            Self::LongerTask => {
                "its task was opened for longer than the candidate's task type has it"
            }
        }
    }
}

/// How a decision would have come out differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It was permitted, and would not be.
    NewlyDenied,
    /// It was refused, and would be permitted.
    NewlyPermitted,
    /// It would live otherwise long.
    OtherTtl,
    /// It would be refused for another reason.
    OtherRefusal,
}

impl Kind {
    /// All of them, the gravest first.
    pub const ALL: [Self; 4] = [
        Self::NewlyDenied,
        Self::NewlyPermitted,
        Self::OtherTtl,
        Self::OtherRefusal,
    ];

    /// As people read it.
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

/// An outcome in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Short {
    /// What was decided.
    pub outcome: Outcome,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalCode>,
    /// The life that is granted.
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

/// One decision that stands for its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionId>,
    /// Where in the log.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub was: Short,
    /// What would have.
    pub would_be: Short,
}

/// What is told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GroupKey {
    /// How it would differ.
    pub kind: Kind,
    /// Whose request.
    pub workload: String,
    /// For what; `task` where a task was to be opened.
    pub resource: String,
    /// By which policies: those of the candidate that determine it; where nothing permits any more,
    /// those on record that did.
    pub policies: Vec<String>,
}

/// How often, and one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What it is about.
    #[serde(flatten)]
    pub key: GroupKey,
    /// How many.
    pub count: u64,
    /// The first of them in the log.
    pub example: Example,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Point {
    /// The leaf's index.
    pub index: u64,
    /// When it was decided.
    pub at: Timestamp,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The first decision of all that were read and not pruned.
    pub first: Option<Point>,
    /// The last.
    pub last: Option<Point>,
    /// Decisions that were evaluated.
    pub evaluated: u64,
    /// Of these, how many come out as they did.
    pub unchanged: u64,
    /// Refused before policy was asked.
    pub never_asked: u64,
    /// Their leaf or input was pruned.
    pub pruned: u64,
    /// Of these it cannot be told what the candidate would have made.
    pub untold: BTreeMap<Untold, u64>,
    groups: BTreeMap<GroupKey, (u64, Example)>,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.evaluated += other.evaluated;
        self.unchanged += other.unchanged;
        self.never_asked += other.never_asked;
        self.pruned += other.pruned;
        for point in [other.first, other.last].into_iter().flatten() {
            self.reach(point);
        }
        for (why, count) in other.untold {
            *self.untold.entry(why).or_default() += count;
        }
        for (key, (count, example)) in other.groups {
            self.count(key, count, example);
        }
        self
    }

    /// Whether everything that was read could be told.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.pruned == 0 && self.untold.is_empty()
    }

    fn reach(&mut self, point: Point) {
        self.first = Some(self.first.map_or(point, |first| first.min(point)));
        self.last = self.last.max(Some(point));
    }

    /// How many would differ in this way.
    #[must_use]
    pub fn of_kind(&self, kind: Kind) -> u64 {
        let groups = self.groups.iter().filter(|(key, _)| key.kind == kind);
        groups.map(|(_, (count, _))| count).sum()
    }

    /// Whether anything would differ.
    #[must_use]
    pub fn changed(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The groups, by kind, the largest first.
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

/// What an input comes to, with the policies that determine it.
type Told = Result<(Short, Vec<String>), Untold>;

/// A replay by one thread.
#[derive(Debug)]
pub struct Replay<'a> {
    candidate: &'a CompiledGeneration,
    at: Timestamp,
    remembered: HashMap<[u8; 32], Told>,
    tally: Tally,
}

impl<'a> Replay<'a> {
    /// A replay by `candidate`, with every policy that is enforced at `at`: now, or
    /// [`Timestamp::MAX`] for whatever merely observes.
    #[must_use]
    pub fn new(candidate: &'a CompiledGeneration, at: Timestamp) -> Self {
        Self {
            candidate,
            at,
            remembered: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// What came of it.
    #[must_use]
    pub fn finish(self) -> Tally {
        self.tally
    }

    /// Notes a decision of which nothing is left to evaluate.
    pub fn note_pruned(&mut self) {
        self.tally.pruned += 1;
    }

    /// Evaluates one recorded decision.
    pub fn add(&mut self, recorded: &Recorded) -> Result<(), super::PolicyError> {
        self.tally.reach(Point {
            index: recorded.index,
            at: recorded.at(),
        });
        let overtaken = match recorded.asked() {
            Asked::Never(_) => {
                self.tally.never_asked += 1;
                return Ok(());
            }
            Asked::Overtaken(_) => true,
            Asked::Policy => false,
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
                *self.tally.untold.entry(why).or_default() += 1;
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

    fn evaluate(&mut self, recorded: &Recorded) -> Result<Told, super::PolicyError> {
        let at = self.at.max(recorded.at());
        let key = key(self.candidate.dates_before(at), recorded.input());
        if let Some(known) = self.remembered.get(&key) {
            return Ok(known.clone());
        }
        let input = Input::read(recorded.input())?;
        let told = match self.candidate.untold(&input) {
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
            // A task that is opened alone has nothing that could live.
            ttl_seconds: permitted
                .filter(|_| !opens_only)
                .map(|terms| terms.ttl_seconds),
        };
        (short, decision.policies)
    }
}

impl CompiledGeneration {
    /// Why a recorded input does not tell what this generation would make of it, if it does not.
    pub(super) fn untold(&self, input: &Input) -> Option<Untold> {
        if self.asks_for_roles() && !input.knows_roles() {
            return Some(Untold::RolesNotRead);
        }
        // Who is of no attestor any more is refused, and that is known.
        let attestor = &input.principal.attestor;
        let is_declared = self.attestors().iter().any(|own| own.name() == attestor);
        if is_declared && self.model.workload_scene(&input.principal, None).is_err() {
            return Some(Untold::OtherClaims);
        }
        let task_type = self.catalog().task_type(&input.task.task_type)?;
        let most = task_type.max_deadline_seconds;
        (input.task.opens && input.task.deadline_seconds_left > most).then_some(Untold::LongerTask)
    }
}

/// Inputs of one key have one outcome: all of it but the instant, and which dates have come.
pub(super) fn key(phase: usize, input: &[u8]) -> [u8; 32] {
    let mut bytes = phase.to_be_bytes().to_vec();
    let (before, after) = around_instant(input).unwrap_or((input, &[]));
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(after);
    sha256(&bytes)
}

/// What of an input stands before and after its instant, as inputs are written here. Another order
/// of its members is read as well, and then the instant counts.
fn around_instant(input: &[u8]) -> Option<(&[u8], &[u8])> {
    const BEFORE: &[u8] = b"{\"format\":";
    const NOW: &[u8] = b",\"now\":\"";
    let format = input.strip_prefix(BEFORE)?;
    let digits = format
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (_, rest) = format.split_at_checked(digits)?;
    let instant = rest.strip_prefix(NOW)?;
    let end = instant.iter().position(|byte| *byte == b'"')?;
    let before = input.get(..BEFORE.len() + digits)?;
    Some((before, instant.get(end..)?))
}

fn kind(was: &Short, would_be: &Short) -> Option<Kind> {
    match (
        was.outcome == Outcome::Permit,
        would_be.outcome == Outcome::Permit,
    ) {
        (true, false) => Some(Kind::NewlyDenied),
        (false, true) => Some(Kind::NewlyPermitted),
        (true, true) => {
            // What the log overtook has no life on record.
            let both = was.ttl_seconds.zip(would_be.ttl_seconds);
            both.filter(|(was, would_be)| was != would_be)
                .map(|_| Kind::OtherTtl)
        }
        (false, false) => (was != would_be).then_some(Kind::OtherRefusal),
    }
}
