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
//! candidate is held against policy's permit.
//!
//! Evaluation does not read the clock beside comparing it with the dates of observed policies, and
//! most inputs repeat themselves but for their instant. So each replay remembers what it evaluated.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::generation::CompiledGeneration;
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

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Decisions that were evaluated.
    pub evaluated: u64,
    /// Of these, how many come out as they did.
    pub unchanged: u64,
    /// Refused before policy was asked.
    pub never_asked: u64,
    /// Their leaf or input was pruned.
    pub pruned: u64,
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
        for (key, (count, example)) in other.groups {
            self.count(key, count, example);
        }
        self
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

/// A replay by one thread.
#[derive(Debug)]
pub struct Replay<'a> {
    candidate: &'a CompiledGeneration,
    as_if_enforced: bool,
    remembered: HashMap<[u8; 32], (Short, Vec<String>)>,
    tally: Tally,
}

impl<'a> Replay<'a> {
    /// A replay by `candidate`, at the instant of each decision, or as if each policy that merely
    /// observes were enforced already.
    #[must_use]
    pub fn new(candidate: &'a CompiledGeneration, as_if_enforced: bool) -> Self {
        Self {
            candidate,
            as_if_enforced,
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
        let (would_be, policies) = self.evaluate(recorded)?;
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

    fn evaluate(
        &mut self,
        recorded: &Recorded,
    ) -> Result<(Short, Vec<String>), super::PolicyError> {
        let key = self.key(recorded);
        if let Some(known) = self.remembered.get(&key) {
            return Ok(known.clone());
        }
        let decision = if self.as_if_enforced {
            self.candidate.redecide_as_if_enforced(recorded.input())?
        } else {
            self.candidate.redecide(recorded.input())?
        };
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
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        let known = (short, decision.policies);
        self.remembered.insert(key, known.clone());
        Ok(known)
    }

    fn key(&self, recorded: &Recorded) -> [u8; 32] {
        let phase = if self.as_if_enforced {
            0
        } else {
            self.candidate.dates_before(recorded.at())
        };
        key(phase, recorded.input())
    }
}

/// Inputs of one key have one outcome: all of it but the instant, and which dates have come.
pub(super) fn key(phase: usize, input: &[u8]) -> [u8; 32] {
    const AFTER_NOW: &[u8] = b",\"principal\":";
    let at = input
        .windows(AFTER_NOW.len())
        .position(|part| part == AFTER_NOW);
    let mut bytes = phase.to_be_bytes().to_vec();
    bytes.extend_from_slice(input.get(at.unwrap_or_default()..).unwrap_or(input));
    sha256(&bytes)
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
