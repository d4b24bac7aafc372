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

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, Authorizer, Decision, Effect, Entities, EntityTypeName, EntityUid, Policy,
    PolicySet, PrincipalConstraint, Request, ResourceConstraint, Response,
};

use crate::clock::Timestamp;
use crate::domain::decision::ObservedEffect;

/// What an evaluation said, with the policies that determined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one permit and no forbid: all satisfied permits.
    Permit(BTreeSet<String>),
    /// The satisfied forbids, or none where nothing permits.
    Deny(BTreeSet<String>),
    /// The policies that could not be evaluated. Whatever the others said counts for nothing: one
    /// of these might have been the forbid.
    Error(BTreeSet<String>),
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
    Answer::Permit(permits)
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
    set: PolicySet,
}

impl Observing {
    /// What it would do to `request`, if anything.
    pub(super) fn would(&self, request: &Request, entities: &Entities) -> Option<ObservedEffect> {
        let answer = Authorizer::new().is_authorized(request, &self.set, entities);
        if answer.diagnostics().errors().next().is_some() {
            return Some(ObservedEffect::Error);
        }
        answer.diagnostics().reason().next()?;
        Some(match self.effect {
            Effect::Permit => ObservedEffect::Permit,
            Effect::Forbid => ObservedEffect::Forbid,
        })
    }
}

/// The place of one part of a scope; [`ANY`] is the unconstrained one.
type Part = u32;
const ANY: Part = 0;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    types: HashMap<EntityTypeName, Part>,
    entities: HashMap<EntityUid, Part>,
    /// The groups that an action is in.
    action_groups: HashMap<EntityUid, Vec<EntityUid>>,
    compartments: HashMap<(Part, Part, Part), usize>,
    sets: Vec<PolicySet>,
    /// By the one resource that each is about.
    observing: HashMap<EntityUid, Vec<Observing>>,
    /// When they begin to count, in order.
    dates: Vec<Timestamp>,
}

impl Index {
    /// Files `policies`, each with the time until which it merely observes. `actions` are the
    /// schema's, with their hierarchy.
    pub(super) fn new<'a>(
        policies: impl IntoIterator<Item = (&'a Policy, Option<Timestamp>)>,
        actions: &Entities,
    ) -> Result<Self, String> {
        let mut index = Self::default();
        for action in actions.iter() {
            let groups = actions.ancestors(&action.uid());
            let groups = groups.into_iter().flatten().cloned().collect();
            index.action_groups.insert(action.uid(), groups);
        }
        for (policy, observed_until) in policies {
            // About anything but one resource it is not loaded, and counts at once if it were.
            if let (Some(until), ResourceConstraint::Eq(resource)) =
                (observed_until, policy.resource_constraint())
            {
                let set = PolicySet::from_policies([policy.clone()]).map_err(|e| e.to_string())?;
                index.dates.push(until);
                index
                    .observing
                    .entry(resource)
                    .or_default()
                    .push(Observing {
                        id: policy.id().to_string(),
                        until,
                        effect: policy.effect(),
                        set,
                    });
                continue;
            }
            for place in index.places(policy) {
                let next = index.sets.len();
                let set = *index.compartments.entry(place).or_insert(next);
                if set == next {
                    index.sets.push(PolicySet::new());
                }
                if let Some(set) = index.sets.get_mut(set) {
                    set.add(policy.clone()).map_err(|error| error.to_string())?;
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

    /// The compartments that this principal, action and resource can meet.
    pub(super) fn slice<'a>(
        &'a self,
        principal: &EntityUid,
        ancestors: &[EntityUid],
        action: &EntityUid,
        resource: &EntityUid,
    ) -> impl Iterator<Item = &'a PolicySet> + use<'a> {
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
        met.into_iter().filter_map(|set| self.sets.get(set))
    }

    /// Evaluates `request` against its slice, with every policy that counts at `at`.
    pub(super) fn evaluate(
        &self,
        request: &Request,
        ancestors: &[EntityUid],
        entities: &Entities,
        at: Timestamp,
    ) -> Answer {
        let (Some(principal), Some(action), Some(resource)) =
            (request.principal(), request.action(), request.resource())
        else {
            return Answer::Deny(BTreeSet::new());
        };
        let authorizer = Authorizer::new();
        let slice = self.slice(principal, ancestors, action, resource);
        let observed = self.observing.get(resource).into_iter().flatten();
        let enforced = observed.filter(|own| own.until <= at).map(|own| &own.set);
        join(
            slice
                .chain(enforced)
                .map(|set| authorizer.is_authorized(request, set, entities)),
        )
    }

    /// How many policies a request meets; a policy that is filed twice counts twice.
    #[cfg(test)]
    pub(super) fn slice_len(
        &self,
        principal: &EntityUid,
        ancestors: &[EntityUid],
        action: &EntityUid,
        resource: &EntityUid,
    ) -> usize {
        self.slice(principal, ancestors, action, resource)
            .map(PolicySet::num_of_policies)
            .sum()
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
