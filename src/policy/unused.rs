//! What policies grant and nobody used: each permit, held against what it permitted of recorded
//! decisions, and a narrower one that would have permitted the same.
//!
//! Used is what was asked for and permitted. What the holder of a credential then did with it is on
//! no record of the broker's: introspections are not recorded, and sessions of AWS are used at AWS.
//! So *unused* here is truly unused, since without a credential nothing can be done; *used* says
//! only that somebody wanted it.
//!
//! A narrower permit is the same with more conditions, so that it permits nothing new by itself. Its
//! terms (life, approval) bind what other permits grant too, as long as it holds beside them: where
//! that could be, its scope is left alone, or the whole would become wider by narrowing a part.

mod proposal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, Policy, PrincipalConstraint, ResourceConstraint,
};
use serde::Serialize;

use super::bundle::NamedPolicy;
use super::decide::PolicyError;
use super::generation::CompiledGeneration;
use super::input::Input;
use super::lint::Reach;
use super::record::{Asked, Recorded};
use super::replay::{self, Untold};
use super::slice::Answer;
use super::stack::with_balanced_stack;
use crate::clock::Timestamp;
use crate::domain::decision::Outcome;
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::grant::ActionName;
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;
use crate::domain::workload::Identity;

pub use proposal::proposed;

use proposal::Narrower;

/// Evaluations that are remembered.
const MAX_REMEMBERED: usize = 100_000;
/// Workloads that are told apart for one policy.
const MAX_WORKLOADS: usize = 10_000;

/// What is on no record of the broker's, so that nobody takes the report for more than it is.
pub const NOT_SEEN: &[&str] = &[
    "what a credential was used for after it was granted: introspections are not recorded, and what \
     was done on AWS is in CloudTrail; a right counts as used when it was asked for and permitted",
    "what conditions keep from a permit: its scope and the registered locations are compared, and \
     some of what is told as unused may have been out of its reach",
    "acts on the broker, which are no grants, and who is bound to a role",
];

/// A resource, and what of it was never used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnusedOn {
    /// Which.
    pub resource: String,
    /// Whether nothing of it was.
    pub entirely: bool,
    /// Its actions that never were.
    pub actions: Vec<String>,
    /// Its registered locations at which nothing was.
    pub locations: Vec<String>,
}

/// What to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Proposal {
    /// Nothing: it can go.
    Remove,
    /// This.
    Narrow {
        /// The policy.
        text: String,
    },
}

/// What became of one permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyUse {
    /// Its `@id`.
    pub policy: String,
    /// Its file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// How many decisions rest on it.
    pub used: u64,
    /// When the last was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// How many workloads used it.
    pub workloads: usize,
    /// What it grants, and nobody had.
    pub unused: Vec<UnusedOn>,
    /// The longest life that it permits; none where it opens tasks alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl_seconds: Option<u64>,
    /// The longest that policy granted where it held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_ttl_seconds: Option<u64>,
    /// What would have sufficed, to be reviewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<Proposal>,
    /// Why no narrower scope is proposed, where something is unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<&'static str>,
}

impl PolicyUse {
    /// Whether there is anything to review.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.used == 0 || !self.unused.is_empty() || self.proposal.is_some()
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Read {
    /// Permits that were evaluated.
    pub permits: u64,
    /// Permits that the present policies would not give any more: they used nothing of these.
    pub no_longer_permitted: u64,
    /// Their leaf or input was pruned: what they used is not known.
    pub pruned: u64,
    /// Permits of which it cannot be told what they use of the present policies.
    pub untold: BTreeMap<Untold, u64>,
    /// Whether there may be more that was not read.
    pub cut_short: bool,
    /// The first of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Timestamp>,
    /// The last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
}

impl Read {
    /// Whether what nobody used of this is what nobody used.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.pruned == 0 && self.untold.is_empty() && !self.cut_short
    }

    /// Permits that used something.
    #[must_use]
    pub fn told(&self) -> u64 {
        let untold: u64 = self.untold.values().sum();
        self.permits - self.no_longer_permitted - untold
    }
}

/// What one evaluation used.
#[derive(Debug, Default)]
struct Seen {
    /// A policy, and on which right of which resource it held.
    rights: Vec<(String, Right)>,
    /// The policies by which the task was opened.
    opening: BTreeSet<String>,
    /// The life that policy granted.
    ttl_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    resource: String,
    /// The registered action.
    action: String,
    /// The registered locations within which it was asked for.
    locations: Vec<String>,
}

#[derive(Debug, Default)]
struct Used {
    count: u64,
    last: Option<Timestamp>,
    workloads: BTreeSet<String>,
    rights: BTreeSet<Right>,
    opened: bool,
    longest_ttl_seconds: u64,
}

/// Recorded decisions, held against the permits of a generation.
#[derive(Debug)]
pub struct Usage<'a> {
    generation: &'a CompiledGeneration,
    now: Timestamp,
    remembered: HashMap<[u8; 32], Result<Option<Arc<Seen>>, Untold>>,
    used: BTreeMap<String, Used>,
    read: Read,
}

impl<'a> Usage<'a> {
    /// Nothing used yet. It is judged by the policies that are enforced at `now`.
    #[must_use]
    pub fn new(generation: &'a CompiledGeneration, now: Timestamp) -> Self {
        Self {
            generation,
            now,
            remembered: HashMap::new(),
            used: BTreeMap::new(),
            read: Read::default(),
        }
    }

    /// What was read.
    #[must_use]
    pub fn read(&self) -> &Read {
        &self.read
    }

    /// Notes that there may be more than was read.
    pub fn note_cut_short(&mut self) {
        self.read.cut_short = true;
    }

    /// Notes a decision of which nothing is left to evaluate.
    pub fn note_pruned(&mut self) {
        self.read.pruned += 1;
    }

    /// Takes one recorded decision into account. Where the log refused what policy had permitted, it
    /// was wanted all the same, and counts.
    pub fn add(&mut self, recorded: &Recorded) -> Result<(), PolicyError> {
        let at = recorded.at();
        self.read.first = Some(self.read.first.map_or(at, |first| first.min(at)));
        self.read.last = Some(self.read.last.map_or(at, |last| last.max(at)));
        let overtaken = matches!(recorded.asked(), Asked::Overtaken(_));
        if !overtaken && recorded.outcome().0 != Outcome::Permit {
            return Ok(());
        }
        let workload = recorded.workload().map(Identity::as_str);
        self.note(at, recorded.input(), workload)
    }

    /// Takes one input that was permitted into account.
    pub(super) fn note(
        &mut self,
        at: Timestamp,
        input: &[u8],
        workload: Option<&str>,
    ) -> Result<(), PolicyError> {
        self.read.permits += 1;
        let judged_at = self.now.max(at);
        let key = replay::key(self.generation.dates_before(judged_at), input);
        let seen = if let Some(known) = self.remembered.get(&key) {
            known.clone()
        } else {
            let input = Input::read(input)?;
            let seen = match self.generation.untold(&input) {
                Some(why @ (Untold::RolesNotRead | Untold::OtherClaims)) => Err(why),
                // For how long its task was opened changes nothing of what it used.
                Some(Untold::LongerTask) | None => {
                    Ok(self.generation.seen(&input, judged_at)?.map(Arc::new))
                }
            };
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.clear();
            }
            self.remembered.insert(key, seen.clone());
            seen
        };
        let seen = match seen {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                self.read.no_longer_permitted += 1;
                return Ok(());
            }
            Err(why) => {
                *self.read.untold.entry(why).or_default() += 1;
                return Ok(());
            }
        };
        let mut policies: BTreeSet<&String> = seen.opening.iter().collect();
        for (policy, right) in &seen.rights {
            policies.insert(policy);
            let used = self.used.entry(policy.clone()).or_default();
            if !used.rights.contains(right) {
                used.rights.insert(right.clone());
            }
        }
        for policy in policies {
            let used = self.used.entry(policy.clone()).or_default();
            used.count += 1;
            // The terms of a permit by which the task was opened bind the whole request.
            used.longest_ttl_seconds = used.longest_ttl_seconds.max(seen.ttl_seconds);
            used.opened |= seen.opening.contains(policy);
            used.last = used.last.max(Some(at));
            if let Some(workload) = workload
                && used.workloads.len() < MAX_WORKLOADS
                && !used.workloads.contains(workload)
            {
                used.workloads.insert(workload.to_owned());
            }
        }
        Ok(())
    }

    /// Every permit of credentials and tasks that is enforced. `generation` is the one that was
    /// compiled. Nothing is proposed where what was used is not known whole.
    #[must_use]
    pub fn report(&self, generation: &Generation) -> Vec<PolicyUse> {
        with_balanced_stack(|| self.report_here(generation))
    }

    fn report_here(&self, generation: &Generation) -> Vec<PolicyUse> {
        let nothing = Used::default();
        let permits = self.generation.policies();
        let permits = permits.filter(|named| named.policy.effect() == Effect::Permit);
        let scoped: Vec<Scoped<'_>> = permits
            .filter_map(|named| Some((named, Scope::of(self.generation, named)?)))
            .collect();
        let enforced =
            |named: &NamedPolicy| named.observed_until.is_none_or(|until| until <= self.now);
        scoped
            .iter()
            .filter(|(named, _)| enforced(named))
            .filter_map(|(named, scope)| {
                let used = self.used.get(&named.id).unwrap_or(&nothing);
                let file = generation.policies.get(named.file)?;
                let others = binds_others(named, scope, &scoped);
                Some(self.judge((named, scope), used, file, others))
            })
            .collect()
    }

    fn judge(
        &self,
        (named, scope): (&NamedPolicy, &Scope),
        used: &Used,
        file: &PolicyFile,
        bound_elsewhere: bool,
    ) -> PolicyUse {
        let unused = self.unused(scope, used);
        let max_ttl_seconds = scope.max_ttl_seconds(self.generation, named);
        let longest = Some(used.longest_ttl_seconds)
            .filter(|seconds| *seconds > 0 && max_ttl_seconds.is_some());
        let narrower = Narrower {
            // What opens tasks as well cannot be about one resource.
            scope: !unused.is_empty() && !bound_elsewhere && !used.opened,
            max_ttl_seconds: longest
                .zip(max_ttl_seconds)
                .filter(|(longest, permitted)| longest < permitted)
                .map(|(longest, _)| longest),
        };
        let known = self.read.complete() && self.read.told() > 0;
        let proposal = if !known {
            None
        } else if used.count == 0 {
            (!bound_elsewhere).then_some(Proposal::Remove)
        } else {
            let text = narrower.write(self.generation, named, used, &unused);
            text.map(|text| Proposal::Narrow { text })
        };
        let wide = used.count == 0 || !unused.is_empty();
        let before = file.text.get(..named.offset).unwrap_or_default();
        PolicyUse {
            policy: named.id.clone(),
            file: file.name.clone(),
            line: before.matches('\n').count() + 1,
            used: used.count,
            last_used: used.last,
            workloads: used.workloads.len(),
            unused,
            max_ttl_seconds,
            longest_ttl_seconds: longest,
            proposal,
            kept: (wide && bound_elsewhere).then_some(
                "its terms also bind what another permit grants: with a narrower scope they would \
                 not, and more would be granted",
            ),
        }
    }

    fn unused(&self, scope: &Scope, used: &Used) -> Vec<UnusedOn> {
        let mut found = Vec::new();
        for (resource, granted) in &scope.rights {
            let on = used.rights.iter().filter(|own| own.resource == *resource);
            let actions: BTreeSet<&String> = on.clone().map(|own| &own.action).collect();
            let locations: BTreeSet<&String> = on.flat_map(|own| &own.locations).collect();
            let registered = self.generation.catalog().resource(resource);
            let all = registered.iter().flat_map(|own| &own.locations);
            let unused = UnusedOn {
                resource: resource.clone(),
                entirely: actions.is_empty(),
                actions: granted
                    .iter()
                    .filter(|action| !actions.contains(action))
                    .cloned()
                    .collect(),
                locations: all
                    .map(|location| location.as_str().to_owned())
                    .filter(|location| !locations.contains(location))
                    .collect(),
            };
            if !unused.actions.is_empty() || !unused.locations.is_empty() {
                found.push(unused);
            }
        }
        found
    }
}

/// A permit with what it reaches.
type Scoped<'a> = (&'a NamedPolicy, Scope);

/// Whether terms of this permit could bind what another one grants. One that merely observes now
/// will be enforced when the proposal still is.
fn binds_others(named: &NamedPolicy, scope: &Scope, permits: &[Scoped<'_>]) -> bool {
    named.obligations != super::bundle::Obligations::default()
        && permits.iter().any(|(other, theirs)| {
            other.id != named.id && !apart(&named.policy, &other.policy) && scope.meets(theirs)
        })
}

/// What a permit's scope reaches.
#[derive(Debug, Default)]
struct Scope {
    /// Registered actions, by resource.
    rights: BTreeMap<String, BTreeSet<String>>,
    opens_tasks: bool,
}

impl Scope {
    /// None where by the types of its scope it is about the broker alone, or nothing registered.
    fn of(generation: &CompiledGeneration, named: &NamedPolicy) -> Option<Self> {
        let model = &generation.model;
        let constraint = named.policy.action_constraint();
        let has_action = |name: &str| {
            let action = model.action(name);
            match &constraint {
                ActionConstraint::Any => true,
                ActionConstraint::Eq(own) => *own == action,
                ActionConstraint::In(all) => {
                    let groups = generation.index.groups(&action);
                    all.contains(&action) || groups.iter().any(|group| all.contains(group))
                }
            }
        };
        let reach = Reach::of(named, model);
        let mut scope = Self {
            opens_tasks: reach.tasks,
            ..Self::default()
        };
        let about = named.policy.resource_constraint();
        let resources = generation.catalog().resources();
        for resource in resources.filter(|_| reach.credentials) {
            let Some(uid) = model.resource(&resource.name) else {
                continue;
            };
            let reached = match &about {
                ResourceConstraint::Any => true,
                ResourceConstraint::Is(kind) => uid.type_name() == kind,
                ResourceConstraint::Eq(own)
                | ResourceConstraint::In(own)
                | ResourceConstraint::IsIn(_, own) => *own == uid,
            };
            let registered = resource.actions.iter().map(ActionName::as_str);
            let actions: BTreeSet<String> = registered
                .filter(|name| reached && has_action(name))
                .map(str::to_owned)
                .collect();
            if !actions.is_empty() {
                scope.rights.insert(resource.name.clone(), actions);
            }
        }
        (scope.opens_tasks || !scope.rights.is_empty()).then_some(scope)
    }

    fn meets(&self, other: &Self) -> bool {
        let both = self.rights.iter().any(|(resource, actions)| {
            let theirs = other.rights.get(resource);
            theirs.is_some_and(|theirs| !actions.is_disjoint(theirs))
        });
        both || self.opens_tasks && other.opens_tasks
    }

    fn max_ttl_seconds(&self, generation: &CompiledGeneration, named: &NamedPolicy) -> Option<u64> {
        let resources = self.rights.keys();
        let known = resources.filter_map(|name| generation.catalog().resource(name));
        let longest = known.map(|resource| resource.max_ttl_seconds).max()?;
        Some(longest.min(named.obligations.max_ttl_seconds.unwrap_or(u64::MAX)))
    }
}

/// Whether nobody can meet both policies, by the principals of their scopes alone.
fn apart(one: &Policy, other: &Policy) -> bool {
    let kind = |constraint: &PrincipalConstraint| -> Option<EntityTypeName> {
        match constraint {
            PrincipalConstraint::Eq(entity) => Some(entity.type_name().clone()),
            PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) => {
                Some(kind.clone())
            }
            _ => None,
        }
    };
    let (one, other) = (one.principal_constraint(), other.principal_constraint());
    if let (PrincipalConstraint::Eq(one), PrincipalConstraint::Eq(other)) = (&one, &other) {
        return one != other;
    }
    matches!((kind(&one), kind(&other)), (Some(one), Some(other)) if one != other)
}

impl CompiledGeneration {
    /// What an input uses of the policies that are enforced at `at`; none where it is not permitted.
    fn seen(&self, input: &Input, at: Timestamp) -> Result<Option<Seen>, PolicyError> {
        let Some(ttl_seconds) = self.permitted_ttl(input, at) else {
            return Ok(None);
        };
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let inquiry = self.inquiry(input, &budget)?;
        let answers = inquiry.answers(at, &budget);
        let mut seen = Seen {
            ttl_seconds,
            ..Seen::default()
        };
        if let Some(Answer::Permit(permits)) = inquiry.opening.and_then(|own| answers.get(own)) {
            seen.opening.clone_from(&permits.satisfied);
        }
        let Some(asked) = &input.credential else {
            return Ok(Some(seen));
        };
        let registered = self.catalog().resource(&asked.resource);
        // In doubt a location is in use: what is not would be proposed for removal.
        let budget = Budget::new(MAX_REQUEST_STEPS);
        for single in &inquiry.singles {
            let own = single
                .asked
                .keys()
                .filter_map(|number| answers.get(*number));
            let Answer::Permit(permits) = Answer::to_all(own) else {
                continue;
            };
            let all = registered.iter().flat_map(|own| &own.locations);
            let within = all
                .filter(|own| own.covers_within(single.location, &budget) || budget.is_exhausted());
            let right = Right {
                resource: asked.resource.clone(),
                action: single.decided_as.to_owned(),
                locations: within.map(|own| own.as_str().to_owned()).collect(),
            };
            let rights = permits.satisfied.into_iter();
            let rights = rights.map(|id| (id, right.clone()));
            seen.rights.extend(rights);
        }
        Ok(Some(seen))
    }
}
