//! The candidates of a request, by index.
//!
//! Cedar evaluates every policy it is given. Ten thousand of them take milliseconds, of which all
//! but a few are about somebody else. So each policy is filed under the three parts of its scope,
//! and a request looks up only what its own principal, action and resource can meet:
//!
//! | scope | filed under | found by |
//! |---|---|---|
//! | `principal` | any | every request |
//! | `principal is T` | the type T | principals of that type |
//! | `principal == E`, `principal in E`, `principal is T in E` | the entity E | E itself, and whoever is in E |
//!
//! The same holds for resources and actions. An unscoped `forbid` is filed under (any, any, any),
//! and so is in every slice. What is filed under E by `is T in E` may be found by another type than
//! T: a slice may hold too much, never too little, since Cedar still evaluates the scope.
//!
//! Each compartment is a policy set of its own, made at load. A request is evaluated against each
//! compartment it meets, and the answers are joined as Cedar joins policies: one satisfied forbid
//! denies, else one satisfied permit permits, and any error is kept. That this equals one
//! evaluation of the whole set is a property test.
//!
//! Policies that merely observe until a date lie beside the compartments, by their resource, each as
//! a set of its own: they join from their date on, and before it are asked apart.
//!
//! What is filed is the policy as it is evaluated ([`Rule`]). Permits whose terms bind more than they
//! permit have a second set, which is asked where the first permits.

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

/// What an evaluation said, with the policies that determined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one permit and no forbid.
    Permit(Permits),
    /// The satisfied forbids, or none where nothing permits.
    Deny(BTreeSet<String>),
    /// The policies that could not be evaluated. Whatever the others said counts for nothing: one
    /// of these might have been the forbid.
    Error(BTreeSet<String>),
}

/// The permits that determined an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Permits {
    /// Those that permit.
    pub(super) satisfied: BTreeSet<String>,
    /// Those whose terms bind because they apply to a part of what is asked for.
    pub(super) binding: BTreeSet<String>,
}

impl Permits {
    /// Both.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.satisfied.union(&self.binding)
    }
}

impl Answer {
    /// The answer to several things asked for together: an error counts before a denial, and a denial
    /// before a permit.
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
            // Nothing asked for is nothing permitted.
            (true, None) if permits.satisfied.is_empty() => Self::Deny(BTreeSet::new()),
            (true, None) => Self::Permit(permits),
        }
    }
}

/// Joins responses over parts of a policy set into the answer of the whole.
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

/// A policy that merely observes until a date. It is in no compartment: whether it counts depends on
/// when is asked.
#[derive(Debug)]
pub(super) struct Observing {
    /// Its `@id`.
    pub(super) id: String,
    /// From when on it counts.
    pub(super) until: Timestamp,
    effect: Effect,
    own: Compartment,
}

impl Observing {
    /// What it would do to `request`, if anything.
    pub(super) fn would(&self, request: &Request, entities: &Entities) -> Option<ObservedEffect> {
        // Of a permit with terms, those bind where it applies to a part of what is asked for.
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

/// The place of one part of a scope; [`ANY`] is the unconstrained one.
type Part = u32;
const ANY: Part = 0;

/// Policies that are evaluated together.
#[derive(Debug, Default)]
struct Compartment {
    set: PolicySet,
    /// The permits of it whose terms bind more than they permit.
    terms: PolicySet,
    questions: BTreeSet<u32>,
    /// The levels of the deepest condition.
    depth: usize,
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
        Ok(())
    }
}

/// The policies that requests with one principal, action and resource can meet.
#[derive(Debug)]
pub(super) struct Slice<'a> {
    compartments: Vec<&'a Compartment>,
    observing: &'a [Observing],
    /// What they want to know, in order.
    questions: Vec<u32>,
    depth: usize,
}

impl Slice<'_> {
    /// Evaluates `request` with every policy that counts at `at`.
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
            // None of them applies to any part.
            Answer::Deny(_) => Answer::Permit(permits),
            failed @ Answer::Error(_) => failed,
        }
    }

    /// The answer of each set of policies to `request`, those that observe left out.
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

    /// What its policies want to know, by numbers.
    pub(super) fn questions(&self) -> &[u32] {
        &self.questions
    }

    /// How many policies are met; a policy that is filed twice counts twice.
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
    /// The groups that an action is in.
    action_groups: HashMap<EntityUid, Vec<EntityUid>>,
    compartments: HashMap<(Part, Part, Part), usize>,
    sets: Vec<Compartment>,
    /// By the one resource that each is about.
    observing: HashMap<EntityUid, Vec<Observing>>,
    /// When they begin to count, in order.
    dates: Vec<Timestamp>,
    /// What the policies want to know of what is asked for.
    questions: Questions,
}

impl Index {
    /// Files `rules`, each with the time until which it merely observes. `questions` are theirs, and
    /// `actions` the schema's, with their hierarchy.
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
            // About anything but one resource it is not loaded, and counts at once if it were.
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

    /// The groups that an action is in.
    pub(super) fn groups(&self, action: &EntityUid) -> &[EntityUid] {
        self.action_groups
            .get(action)
            .map_or(&[][..], Vec::as_slice)
    }

    /// The policies about `resource` that at `at` merely observe.
    pub(super) fn observing(
        &self,
        resource: &EntityUid,
        at: Timestamp,
    ) -> impl Iterator<Item = &Observing> {
        let about = self.observing.get(resource).into_iter().flatten();
        about.filter(move |own| at < own.until)
    }

    /// How many dates on which a policy begins to count have come by `at`.
    pub(super) fn dates_before(&self, at: Timestamp) -> usize {
        self.dates.partition_point(|date| *date <= at)
    }

    /// The policies that this principal, action and resource can meet.
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
            observing,
            compartments,
        }
    }

    /// Those of the slice's questions that hold for `extent`.
    pub(super) fn holding(
        &self,
        slice: &Slice<'_>,
        extent: &Extent<'_>,
        budget: &Budget,
    ) -> Vec<u32> {
        self.questions.holding(slice.questions(), extent, budget)
    }

    /// Everything that is in compartments as one set: what slices must be equal to.
    #[cfg(test)]
    pub(super) fn whole(&self) -> PolicySet {
        let mut whole = PolicySet::new();
        for policy in self.sets.iter().flat_map(|own| own.set.policies()) {
            // One that is filed twice is added once.
            drop(whole.add(policy.clone()));
        }
        whole
    }

    /// Every part under which something about this entity may be filed.
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
        // Parts are counted, not hashed; a bundle of four thousand million scopes is not loaded.
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
