//! The index that finds the candidate policies of a request.
//!
//! Cedar evaluates every policy that it is given. Evaluating ten thousand takes milliseconds, and
//! nearly all of them are about other workloads. So each policy is filed under the three parts of
//! its scope, and a request looks up only the entries of its own principal, action and resource:
//!
//! | scope | filed under | found by |
//! |---|---|---|
//! | `principal` | any | every request |
//! | `principal is T` | the type T | principals of that type |
//! | `principal == E`, `principal in E`, `principal is T in E` | the entity E | E and every entity in E |
//!
//! The same holds for resources and actions. An unscoped `forbid` is filed under (any, any, any)
//! and so is in every slice. A principal of another type can find a policy that `is T in E` filed
//! under E. A slice may contain too many policies, because Cedar still evaluates the scope, but
//! never too few.
//!
//! Each compartment is a policy set of its own, built at load. A request is evaluated against each
//! of its compartments, and the answers are joined by Cedar's rules: one satisfied forbid denies,
//! else one satisfied permit permits. If any policy fails, the answer is [`Answer::Error`]
//! regardless of the others. A property test shows that the result equals one evaluation of the
//! whole set.
//!
//! Policies that only observe until a date are kept outside the compartments, by resource, each in
//! a set of its own. They join the others from their date on and are evaluated separately before
//! it.
//!
//! The index contains the evaluated form of policies ([`Rule`]). Permits whose terms bind more
//! requests than they permit have a second set, which is evaluated if the first permits.
//! `super::generation` builds the index; `super::inquiry`, `super::decide` and `super::roles` use
//! it.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, Authorizer, Decision, Effect, Entities, EntityTypeName, EntityUid, Policy,
    PolicySet, PrincipalConstraint, Request, ResourceConstraint, Response,
};

use super::asked::Extent;
use super::asked::question::Questions;
use super::asked::rewrite::Rule;
use super::stack::with_evaluation_stack;
use crate::clock::Timestamp;
use crate::domain::decision::ObservedEffect;
use crate::domain::pattern::Budget;

/// The answer of an evaluation and the policies that determined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one permit and no forbid applies.
    Permit(Permits),
    /// The satisfied forbids; empty if no permit applies.
    Deny(BTreeSet<String>),
    /// The policies that could not be evaluated. The others are ignored, because one of these could
    /// have been a forbid that applies.
    Error(BTreeSet<String>),
}

/// The permits that determined an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Permits {
    pub(super) satisfied: BTreeSet<String>,
    /// The permits whose terms bind because they apply to a part of the request.
    pub(super) binding: BTreeSet<String>,
}

impl Permits {
    /// Satisfied and binding permits.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.satisfied.union(&self.binding)
    }
}

impl Answer {
    /// The answer for several rights together: an error takes precedence over a denial, and a
    /// denial over a permit.
    pub(super) fn to_all<'a>(answers: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut permits = Permits::default();
        let (mut forbids, mut errors): (Option<BTreeSet<String>>, BTreeSet<String>) =
            (None, BTreeSet::new());
        for answer in answers {
            match answer {
                Self::Permit(own) => {
                    permits.satisfied.extend(own.satisfied.iter().cloned());
                    permits.binding.extend(own.binding.iter().cloned());
                }
                Self::Deny(ids) => forbids.get_or_insert_default().extend(ids.iter().cloned()),
                Self::Error(ids) => errors.extend(ids.iter().cloned()),
            }
        }
        match (errors.is_empty(), forbids) {
            (false, _) => Self::Error(errors),
            (true, Some(forbids)) => Self::Deny(forbids),
            // Without any right the answer is a denial.
            (true, None) if permits.satisfied.is_empty() => Self::Deny(BTreeSet::new()),
            (true, None) => Self::Permit(permits),
        }
    }
}

/// Joins responses over parts of a policy set into the answer of the whole set.
pub(super) fn join(responses: impl IntoIterator<Item = Response>) -> Answer {
    let mut permits = BTreeSet::new();
    let mut forbids = BTreeSet::new();
    let mut errors = BTreeSet::new();
    for response in responses {
        let reasons = response.diagnostics().reason().map(ToString::to_string);
        match response.decision() {
            Decision::Allow => permits.extend(reasons),
            Decision::Deny => forbids.extend(reasons),
        }
        errors.extend(response.diagnostics().errors().map(|error| match error {
            cedar_policy::AuthorizationError::PolicyEvaluationError(e) => e.policy_id().to_string(),
        }));
    }
    if !errors.is_empty() {
        return Answer::Error(errors);
    }
    if !forbids.is_empty() || permits.is_empty() {
        return Answer::Deny(forbids);
    }
    Answer::Permit(Permits {
        satisfied: permits,
        binding: BTreeSet::new(),
    })
}

/// A policy that only observes until a date. It is in no compartment, because whether it is
/// enforced depends on the instant of the request.
#[derive(Debug)]
pub(super) struct Observing {
    /// The `@id` of the policy.
    pub(super) id: String,
    /// The instant of enforcement.
    pub(super) until: Timestamp,
    effect: Effect,
    own: Compartment,
}

impl Observing {
    /// The effect that it would have on `request`; `None` if it does not apply.
    pub(super) fn would(&self, request: &Request, entities: &Entities) -> Option<ObservedEffect> {
        // The terms of a permit bind if it applies to a part of the request.
        let answers = with_evaluation_stack(self.own.depth, || {
            let ask = |set| Authorizer::new().is_authorized(request, set, entities);
            [&self.own.set, &self.own.terms].map(ask)
        });
        let mut all = answers.iter().map(cedar_policy::Response::diagnostics);
        if all.clone().any(|own| own.errors().next().is_some()) {
            return Some(ObservedEffect::Error);
        }
        all.any(|own| own.reason().next().is_some()).then_some(())?;
        Some(match self.effect {
            Effect::Permit => ObservedEffect::Permit,
            Effect::Forbid => ObservedEffect::Forbid,
        })
    }
}

/// An interned part of a scope. [`ANY`] is the unconstrained one.
type Part = u32;
const ANY: Part = 0;

/// Policies that are evaluated together.
#[derive(Debug, Default)]
struct Compartment {
    set: PolicySet,
    /// The permits whose terms bind more requests than they permit.
    terms: PolicySet,
    questions: BTreeSet<u32>,
    /// Depth of the deepest condition, in levels.
    depth: usize,
    /// The actions that its conditions look up, by name.
    looked_up: BTreeSet<String>,
}

impl Compartment {
    fn add(&mut self, rule: &Rule) -> Result<(), String> {
        let refused = |error: cedar_policy::PolicySetError| error.to_string();
        self.set.add(rule.policy.clone()).map_err(refused)?;
        if let Some(terms) = &rule.terms {
            self.terms.add(terms.clone()).map_err(refused)?;
        }
        self.questions.extend(&rule.questions);
        self.depth = self.depth.max(rule.depth);
        self.looked_up.extend(rule.looked_up.iter().cloned());
        Ok(())
    }
}

/// The candidate policies of requests with one principal, action and resource.
#[derive(Debug)]
pub(super) struct Slice<'a> {
    compartments: Vec<&'a Compartment>,
    observing: &'a [Observing],
    /// The numbers of their questions, sorted.
    questions: Vec<u32>,
    depth: usize,
    /// The requested action, and those that conditions look up, by name.
    actions: BTreeSet<String>,
}

impl Slice<'_> {
    /// The names of the actions whose ancestors an evaluation reads. The entities for it must have
    /// these actions ([`super::mapping::Model::entities`]).
    pub(super) fn actions(&self) -> impl Iterator<Item = &str> {
        self.actions.iter().map(String::as_str)
    }

    /// Evaluates `request` with every policy that is enforced at `at`.
    pub(super) fn evaluate(&self, request: &Request, entities: &Entities, at: Timestamp) -> Answer {
        with_evaluation_stack(self.depth, || self.evaluate_here(request, entities, at))
    }

    fn evaluate_here(&self, request: &Request, entities: &Entities, at: Timestamp) -> Answer {
        let authorizer = Authorizer::new();
        let enforced = self.observing.iter().filter(|own| own.until <= at);
        let counting = || {
            let observed = enforced.clone().map(|own| &own.own);
            self.compartments.iter().copied().chain(observed)
        };
        let ask = |set: &PolicySet| authorizer.is_authorized(request, set, entities);
        let mut permits = match join(counting().map(|own| ask(&own.set))) {
            Answer::Permit(permits) => permits,
            refused => return refused,
        };
        let with_terms = counting().filter(|own| !own.terms.is_empty());
        match join(with_terms.map(|own| ask(&own.terms))) {
            Answer::Permit(binding) => {
                permits.binding = binding.satisfied;
                Answer::Permit(permits)
            }
            // No terms apply to any part.
            Answer::Deny(_) => Answer::Permit(permits),
            failed @ Answer::Error(_) => failed,
        }
    }

    /// The response of each policy set to `request`, without observing policies.
    pub(super) fn responses(
        &self,
        request: &Request,
        entities: &Entities,
    ) -> Vec<(&PolicySet, cedar_policy::Response)> {
        with_evaluation_stack(self.depth, || {
            let sets = self.compartments.iter().map(|own| &own.set);
            let ask = |set| (set, Authorizer::new().is_authorized(request, set, entities));
            sets.map(ask).collect()
        })
    }

    /// The numbers of its policies' questions, sorted.
    pub(super) fn questions(&self) -> &[u32] {
        &self.questions
    }

    /// Number of policies in the slice. A policy that is filed twice counts twice.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let sets = self.compartments.iter();
        sets.map(|own| own.set.num_of_policies()).sum()
    }
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    types: HashMap<EntityTypeName, Part>,
    entities: HashMap<EntityUid, Part>,
    /// The groups of each action.
    action_groups: HashMap<EntityUid, Vec<EntityUid>>,
    compartments: HashMap<(Part, Part, Part), usize>,
    sets: Vec<Compartment>,
    /// The observing policies, by the one resource that each is about.
    observing: HashMap<EntityUid, Vec<Observing>>,
    /// The enforcement dates of the observing policies, sorted.
    dates: Vec<Timestamp>,
    /// The questions of all policies.
    questions: Questions,
}

impl Index {
    /// Files `rules`, each with the end of its observation, if it only observes. `questions` are
    /// the questions of the rules, and `actions` the schema's actions with their hierarchy.
    pub(super) fn new<'a>(
        rules: impl IntoIterator<Item = (&'a Rule, Option<Timestamp>)>,
        questions: Questions,
        actions: &Entities,
    ) -> Result<Self, String> {
        let mut index = Self {
            questions,
            ..Self::default()
        };
        for action in actions.iter() {
            let groups = actions.ancestors(&action.uid());
            let groups = groups.into_iter().flatten().cloned().collect();
            index.action_groups.insert(action.uid(), groups);
        }
        for (rule, observed_until) in rules {
            let policy = &rule.policy;
            // Loading refuses an observing policy that is not about one resource. If one got here,
            // it would be enforced at once.
            if let (Some(until), ResourceConstraint::Eq(resource)) =
                (observed_until, policy.resource_constraint())
            {
                let mut own = Compartment::default();
                own.add(rule)?;
                index.dates.push(until);
                index
                    .observing
                    .entry(resource)
                    .or_default()
                    .push(Observing {
                        id: policy.id().to_string(),
                        until,
                        effect: policy.effect(),
                        own,
                    });
                continue;
            }
            for place in index.places(policy) {
                let next = index.sets.len();
                let set = *index.compartments.entry(place).or_insert(next);
                if set == next {
                    index.sets.push(Compartment::default());
                }
                if let Some(set) = index.sets.get_mut(set) {
                    set.add(rule)?;
                }
            }
        }
        index.dates.sort();
        Ok(index)
    }

    /// The groups that contain an action.
    pub(super) fn groups(&self, action: &EntityUid) -> &[EntityUid] {
        self.action_groups
            .get(action)
            .map_or(&[][..], Vec::as_slice)
    }

    /// The policies about `resource` that only observe at `at`.
    pub(super) fn observing(
        &self,
        resource: &EntityUid,
        at: Timestamp,
    ) -> impl Iterator<Item = &Observing> {
        let about = self.observing.get(resource).into_iter().flatten();
        about.filter(move |own| at < own.until)
    }

    /// Number of enforcement dates that are at or before `at`.
    pub(super) fn dates_before(&self, at: Timestamp) -> usize {
        self.dates.partition_point(|date| *date <= at)
    }

    /// The candidate policies for this principal, action and resource.
    pub(super) fn slice(
        &self,
        principal: &EntityUid,
        ancestors: &[EntityUid],
        action: &EntityUid,
        resource: &EntityUid,
    ) -> Slice<'_> {
        let principals = self.parts(principal, ancestors);
        let resources = self.parts(resource, &[]);
        let actions = self.parts(action, self.groups(action));
        let mut met: BTreeSet<usize> = BTreeSet::new();
        for p in &principals {
            for a in &actions {
                for r in &resources {
                    met.extend(self.compartments.get(&(*p, *a, *r)));
                }
            }
        }
        let met = met.into_iter().filter_map(|set| self.sets.get(set));
        let compartments: Vec<&Compartment> = met.collect();
        let observing = self.observing.get(resource).map_or(&[][..], Vec::as_slice);
        let all = || {
            let observing = observing.iter().map(|own| &own.own);
            compartments.iter().copied().chain(observing)
        };
        let questions: BTreeSet<u32> = all().flat_map(|own| &own.questions).copied().collect();
        Slice {
            questions: questions.into_iter().collect(),
            depth: all().map(|own| own.depth).max().unwrap_or(0),
            actions: all()
                .flat_map(|own| own.looked_up.iter().cloned())
                .chain([action.id().unescaped().to_owned()])
                .collect(),
            observing,
            compartments,
        }
    }

    /// The questions of the slice that hold for `extent`.
    pub(super) fn holding(
        &self,
        slice: &Slice<'_>,
        extent: &Extent<'_>,
        budget: &Budget,
    ) -> Vec<u32> {
        self.questions.holding(slice.questions(), extent, budget)
    }

    /// All policies of the compartments in one set. Slices must give the same answers as this set.
    #[cfg(test)]
    pub(super) fn whole(&self) -> PolicySet {
        let mut whole = PolicySet::new();
        for policy in self.sets.iter().flat_map(|own| own.set.policies()) {
            // A policy that is filed twice is added once.
            drop(whole.add(policy.clone()));
        }
        whole
    }

    /// Every part under which a policy about this entity can be filed.
    fn parts(&self, entity: &EntityUid, ancestors: &[EntityUid]) -> Vec<Part> {
        let mut parts = vec![ANY];
        parts.extend(self.types.get(entity.type_name()));
        parts.extend(self.entities.get(entity));
        parts.extend(ancestors.iter().filter_map(|a| self.entities.get(a)));
        parts
    }

    fn places(&mut self, policy: &Policy) -> BTreeSet<(Part, Part, Part)> {
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Any => ANY,
            PrincipalConstraint::Is(kind) => self.type_part(kind),
            PrincipalConstraint::Eq(entity)
            | PrincipalConstraint::In(entity)
            | PrincipalConstraint::IsIn(_, entity) => self.entity_part(entity),
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Any => ANY,
            ResourceConstraint::Is(kind) => self.type_part(kind),
            ResourceConstraint::Eq(entity)
            | ResourceConstraint::In(entity)
            | ResourceConstraint::IsIn(_, entity) => self.entity_part(entity),
        };
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => vec![ANY],
            ActionConstraint::Eq(action) => vec![self.entity_part(action)],
            ActionConstraint::In(actions) => {
                actions.into_iter().map(|a| self.entity_part(a)).collect()
            }
        };
        actions
            .into_iter()
            .map(|action| (principal, action, resource))
            .collect()
    }

    fn next_part(&self) -> Part {
        // Parts are numbered, not hashed. A bundle with 2^32 scopes does not load.
        Part::try_from(self.types.len() + self.entities.len() + 1).unwrap_or(Part::MAX)
    }

    fn type_part(&mut self, kind: EntityTypeName) -> Part {
        let next = self.next_part();
        *self.types.entry(kind).or_insert(next)
    }

    fn entity_part(&mut self, entity: EntityUid) -> Part {
        let next = self.next_part();
        *self.entities.entry(entity).or_insert(next)
    }
}
