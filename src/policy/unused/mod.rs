//! Unused rights: compares each permit with the recorded decisions that rest on it, and proposes a
//! narrower permit that would have permitted the same.
//!
//! [`Usage::add`] takes one record, and [`Usage::report`] returns a [`PolicyUse`] for each permit.
//! A right counts as used if it was requested and permitted. The broker has no record of the
//! credential's later use: introspections are not recorded, and AWS sessions are used at AWS. So an
//! *unused* right was certainly not exercised, because that needs a credential. A *used* right was
//! only requested.
//!
//! A narrower permit is the same permit with more conditions, so by itself it permits nothing new.
//! But its terms (life, approval) also bind rights that other permits grant while it applies too.
//! Where this is possible, its scope is left unchanged; narrowing it would lift those terms and so
//! widen the whole.
//!
//! If the use is not completely known (pruned records, inputs that lack a fact, reading that
//! stopped early), there are no proposals. An input that cannot be read is a [`PolicyError`]. The
//! command `policy unused` calls this file; `proposal` writes the narrower policies and compiles
//! the result. Nothing is activated here.

mod proposal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, Policy, PrincipalConstraint, ResourceConstraint,
};
use serde::Serialize;

use super::bundle::NamedPolicy;
use super::error::PolicyError;
use super::generation::CompiledGeneration;
use super::input::{self, Input};
use super::lint::Reach;
use super::record::{DecidedBy, Recorded};
use super::replay::UnknownReason;
use super::slice::Answer;
use super::stack::with_balanced_stack;
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::decision::Outcome;
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;
use crate::domain::workload::Identity;

pub use proposal::proposed;

use proposal::Narrower;

/// Maximum number of cached evaluations, to bound memory. At the maximum the cache is emptied.
const MAX_REMEMBERED: usize = 100_000;
/// Maximum number of distinct workloads that are counted for one policy, to bound memory. Further
/// ones are not counted.
const MAX_WORKLOADS: usize = 10_000;

/// The limits of the report: facts that the broker has no record of.
pub const NOT_SEEN: &[&str] = &[
    "the use of a credential after it was granted: introspections are not recorded, and \
    CloudTrail has the actions on AWS; a right counts as used if it was requested and permitted",
    "the conditions of a permit: only its scope and the registered locations are compared, so its \
    conditions may exclude some of the rights reported as unused",
    "acts on the broker, which are not grants, and the identities that are bound to a role",
];

/// The unused rights on one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct UnusedOn {
    pub resource: String,
    /// Whether no right on the resource was used.
    pub entirely: bool,
    /// Its actions that no decision used.
    pub actions: Vec<String>,
    /// Its registered locations without a used right.
    pub locations: Vec<String>,
}

/// A proposed replacement for a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Proposal {
    /// Remove the policy from the bundle.
    Remove,
    /// Replace the policy by a narrower one.
    Narrow {
        /// The new policy, in Cedar syntax.
        text: String,
    },
}

/// The use of one permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct PolicyUse {
    /// The `@id` of the policy.
    pub policy: String,
    pub file: String,
    /// Line number in the file, from 1.
    pub line: usize,
    /// Number of decisions that rest on it.
    pub used: u64,
    /// The time of the last of these decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// Number of workloads that used it. Counting stops at `MAX_WORKLOADS`.
    pub workloads: usize,
    /// The granted rights that no workload used.
    pub unused: Vec<UnusedOn>,
    /// The longest life that it permits, in seconds; `None` if it opens tasks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl_seconds: Option<u64>,
    /// The longest life that policy granted where the permit applied, in seconds. `None` if it was
    /// never used for a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_ttl_seconds: Option<u64>,
    /// A proposal that would have sufficed, for review. `None` if none is narrower, or if the use
    /// is not completely known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<Proposal>,
    /// Why no narrower scope is proposed, if rights are unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<&'static str>,
}

impl PolicyUse {
    /// Whether the permit needs a review.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.used == 0 || !self.unused.is_empty() || self.proposal.is_some()
    }
}

/// Statistics about the decisions that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Read {
    /// Number of permits that were evaluated.
    pub permits: u64,
    /// Number of permits that the present policies would refuse. They count as no use.
    pub no_longer_permitted: u64,
    /// Number of decisions whose leaf or input was pruned. Their use is unknown.
    pub pruned: u64,
    /// Numbers of permits whose use under the present policies is unknown, by reason.
    #[serde(rename = "untold")]
    pub unknown: BTreeMap<UnknownReason, u64>,
    /// Whether reading stopped before the end.
    pub cut_short: bool,
    /// The time of the first decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Timestamp>,
    /// The time of the last decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
}

impl Read {
    /// Whether the unused rights in these decisions are unused in all decisions.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.pruned == 0 && self.unknown.is_empty() && !self.cut_short
    }

    /// Number of permits that used a right.
    #[must_use]
    pub fn told(&self) -> u64 {
        let unknown: u64 = self.unknown.values().sum();
        self.permits - self.no_longer_permitted - unknown
    }
}

/// The rights that one evaluation used.
#[derive(Debug, Default)]
struct Seen {
    /// The policies that applied, each with the right that it applied to.
    rights: Vec<(String, Right)>,
    /// The policies by which the task was opened.
    opening: BTreeSet<String>,
    /// The life that policy granted, in seconds.
    ttl_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    resource: String,
    action: String,
    /// The registered locations that cover the requested ones.
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

/// The use of a generation's permits in recorded decisions.
#[derive(Debug)]
pub struct Usage<'a> {
    generation: &'a CompiledGeneration,
    now: Timestamp,
    remembered: HashMap<[u8; 32], Result<Option<Arc<Seen>>, UnknownReason>>,
    used: BTreeMap<String, Used>,
    read: Read,
}

impl<'a> Usage<'a> {
    /// Starts without any use. Judges by the policies that are enforced at `now`.
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

    /// Statistics about the decisions that were read.
    #[must_use]
    pub fn read(&self) -> &Read {
        &self.read
    }

    /// Notes that reading stopped before the end.
    pub fn note_cut_short(&mut self) {
        self.read.cut_short = true;
    }

    /// Counts a decision that was pruned and cannot be evaluated.
    pub fn note_pruned(&mut self) {
        self.read.pruned += 1;
    }

    /// Adds one recorded decision. A request that policy permitted and the log refused counts as
    /// used.
    pub fn add(&mut self, recorded: &Recorded) -> Result<(), PolicyError> {
        let at = recorded.at();
        self.read.first = Some(self.read.first.map_or(at, |first| first.min(at)));
        self.read.last = Some(self.read.last.map_or(at, |last| last.max(at)));
        let overtaken = matches!(recorded.decided_by(), DecidedBy::Overtaken(_));
        if !overtaken && recorded.outcome().0 != Outcome::Permit {
            return Ok(());
        }
        let workload = recorded.workload().map(Identity::as_str);
        self.note(at, recorded.input(), workload)
    }

    /// Adds one permitted input.
    pub(super) fn note(
        &mut self,
        at: Timestamp,
        input: &[u8],
        workload: Option<&str>,
    ) -> Result<(), PolicyError> {
        self.read.permits += 1;
        let judged_at = self.now.max(at);
        let key = input::key(self.generation.dates_before(judged_at), input);
        let seen = if let Some(known) = self.remembered.get(&key) {
            known.clone()
        } else {
            let input = Input::read(input)?;
            let seen = match self.generation.unknown_reason(&input) {
                Some(why @ (UnknownReason::RolesNotRead | UnknownReason::OtherClaims)) => Err(why),
                // The length of its task's deadline does not affect the use.
                Some(UnknownReason::LongerTask) | None => {
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
                *self.read.unknown.entry(why).or_default() += 1;
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

    /// Every enforced permit for credentials and tasks, with its use. `generation` is the source of
    /// the compiled generation. Makes no proposals if the use is not completely known.
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
            // A permit that also opens tasks cannot be narrowed to one resource.
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
                "its terms also bind rights that another permit grants; a narrower scope would \
                lift these terms and so grant more",
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

/// A permit and its scope.
type Scoped<'a> = (&'a NamedPolicy, Scope);

/// Whether terms of this permit could bind a right that another permit grants. Also true for a
/// permit that only observes now, because it may be enforced while the proposal is in effect.
fn binds_others(named: &NamedPolicy, scope: &Scope, permits: &[Scoped<'_>]) -> bool {
    named.obligations != super::bundle::Obligations::default()
        && permits.iter().any(|(other, theirs)| {
            other.id != named.id && !apart(&named.policy, &other.policy) && scope.meets(theirs)
        })
}

/// The rights that a permit's scope covers.
#[derive(Debug, Default)]
struct Scope {
    /// The registered actions, by resource.
    rights: BTreeMap<String, BTreeSet<String>>,
    opens_tasks: bool,
}

impl Scope {
    /// `None` if its scope covers acts on the broker only, or nothing that is registered.
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

/// Whether the principal scopes of both policies exclude each other.
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
    /// The rights that an input uses by the policies that are enforced at `at`; `None` if it is not
    /// permitted.
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
        // If `budget` runs out, count the location as used: unused ones are proposed for removal.
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
