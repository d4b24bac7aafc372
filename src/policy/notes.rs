//! Finds policies that load but probably do not have the intended effect.
//!
//! [`Notes`] has four lists: permits that name a URL but not the locations below it, forbids about
//! locations that no request can have, policies that test whether an AWS request has no region, and
//! registered AWS actions that leave access behind.
//!
//! A note is a hint: it refuses nothing and changes no decision. If comparing the patterns takes
//! more than `MAX_LOAD_STEPS`, the lists of locations and of lasting actions end early, and no note
//! says so. `super::generation` collects the notes when it compiles, and `policy check` prints
//! them. `super::asked` has the comparisons of a policy, and a variable `own` is the element that a
//! closure looks at.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{Effect, ResourceConstraint};
use serde::Serialize;

use super::asked::Fact;
use super::asked::question::{ExtentQuestion, Questions, Relation};
use super::asked::rewrite::Rule;
use super::asked::text::AskedText;
use super::bundle::NamedPolicy;
use crate::domain::catalog::{Catalog, Resource};
use crate::domain::kind::{DetailType, ResourceKind};
use crate::domain::lasting::lasting_actions;
use crate::domain::limits::MAX_LOAD_STEPS;
use crate::domain::location::Location;
use crate::domain::pattern::Budget;

/// Findings about the policies of a generation. All lists except `without_region` are incomplete if
/// comparing the patterns would take too many steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Permits that name URLs by `==` and do not cover the locations below them.
    pub single_locations: Vec<NamedLocations>,
    /// Forbids that name locations which no request can have.
    pub unmet_locations: Vec<NamedLocations>,
    /// Policies that can be about AWS resources only and that test, alone or in a branch of an
    /// `||`, whether the request has no region. Every request for AWS has a region, so this part is
    /// never true.
    pub without_region: Vec<String>,
    /// Registered AWS actions by which a session leaves access behind that outlives it.
    pub lasting: Vec<Lasting>,
}

/// A registered action by which a session of its resource leaves access behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Lasting {
    pub resource: String,
    /// The registered action or pattern.
    pub action: String,
    /// The AWS action that it allows.
    pub allows: String,
    /// The access that outlives the session.
    pub leaves: String,
}

/// The locations in a policy that are worth a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedLocations {
    /// The `@id` of the policy.
    pub policy: String,
    /// The first of these locations in the order of their texts.
    pub first: String,
    /// The number of these locations.
    pub count: usize,
}

impl NamedLocations {
    fn of(policy: &NamedPolicy, locations: BTreeSet<String>) -> Option<Self> {
        Some(Self {
            policy: policy.id.clone(),
            count: locations.len(),
            first: locations.into_iter().next()?,
        })
    }
}

impl Notes {
    pub(super) fn of<'a>(
        rules: impl Iterator<Item = (&'a NamedPolicy, &'a Rule)>,
        questions: &Questions,
        catalog: &Catalog,
    ) -> Self {
        let budget = Budget::new(MAX_LOAD_STEPS);
        let mut notes = Self::default();
        for (named, rule) in rules {
            let asked = rule.questions.iter().filter_map(|own| questions.get(*own));
            let asked: Vec<&ExtentQuestion> = asked.collect();
            if named.policy.effect() == Effect::Permit {
                let locations = single_locations(&asked, &budget);
                notes
                    .single_locations
                    .extend(NamedLocations::of(named, locations));
            } else {
                let locations = unmet_locations(named, &asked, catalog, &budget);
                notes
                    .unmet_locations
                    .extend(NamedLocations::of(named, locations));
            }
            let in_regions = resources(named, catalog).all(|own| always_has_a_region(&own.kind));
            if in_regions && asked.iter().any(|own| own.wants_no(Fact::Region)) {
                notes.without_region.push(named.id.clone());
            }
        }
        notes.lasting = lasting(catalog, &budget);
        notes
    }
}

/// Whether every request for a resource of this kind has a region.
fn always_has_a_region(kind: &ResourceKind) -> bool {
    match kind.detail_type() {
        DetailType::Api => false,
        DetailType::Aws => true,
    }
}

fn lasting(catalog: &Catalog, budget: &Budget) -> Vec<Lasting> {
    let of_resource = |resource: &Arc<Resource>| {
        let found = lasting_actions(resource, budget).into_iter();
        let name = resource.name.clone();
        found
            .map(|own| Lasting {
                resource: name.clone(),
                action: own.action.to_string(),
                allows: own.allows,
                leaves: own.leaves.to_owned(),
            })
            .collect::<Vec<_>>()
    };
    catalog.resources().flat_map(of_resource).collect()
}

/// The resources that a policy can be about.
fn resources<'a>(named: &NamedPolicy, catalog: &'a Catalog) -> impl Iterator<Item = &'a Resource> {
    let only = match named.policy.resource_constraint() {
        ResourceConstraint::Eq(resource) => Some(resource.id().unescaped().to_owned()),
        _ => None,
    };
    let all = catalog.resources().map(AsRef::as_ref);
    all.filter(move |own: &&Resource| only.as_ref().is_none_or(|only| own.name == *only))
}

/// The URLs that a permit names by `==` without the locations below them. A request for a URL also
/// asks for everything below that URL, so `==` alone permits no such request. An ARN is left out,
/// because it covers nothing below itself.
fn single_locations(asked: &[&ExtentQuestion], budget: &Budget) -> BTreeSet<String> {
    let mut locations = BTreeSet::new();
    for patterns in asked
        .iter()
        .flat_map(|own| own.sets(Fact::Location, Relation::Covered))
    {
        for text in patterns.exact() {
            let Ok(location) = Location::try_from(text.clone()) else {
                continue;
            };
            let below = AskedText::of_location(&location);
            let covered = below.iter().all(|own| patterns.covers(own, budget));
            if budget.is_exhausted() {
                return locations;
            }
            if !location.is_arn() && !covered {
                locations.insert(text.clone());
            }
        }
    }
    locations
}

/// The named locations that overlap no registered location, or that have a spelling which requests
/// never have.
fn unmet_locations(
    named: &NamedPolicy,
    asked: &[&ExtentQuestion],
    catalog: &Catalog,
    budget: &Budget,
) -> BTreeSet<String> {
    let registered: Vec<AskedText> = resources(named, catalog)
        .flat_map(|resource| &resource.locations)
        .flat_map(AskedText::of_location)
        .collect();
    let mut locations = BTreeSet::new();
    for patterns in asked
        .iter()
        .flat_map(|own| own.sets(Fact::Location, Relation::Met))
    {
        for (text, single) in patterns.singles() {
            let met = registered.iter().any(|own| single.overlaps(own, budget));
            if budget.is_exhausted() {
                return locations;
            }
            if !met || has_other_spelling(&text) {
                locations.insert(text);
            }
        }
    }
    locations
}

/// Whether a URL contains a part that [`Location`] refuses: an empty segment, an escape, a
/// backslash, a fragment, a query, or parameters after `;`.
fn has_other_spelling(text: &str) -> bool {
    text.strip_prefix("https://")
        .is_some_and(|rest| rest.contains("//") || rest.contains(['%', '\\', '#', '?', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_part_that_no_location_has_is_another_spelling() {
        for text in ["a//x", "a/%70ay", "a\\x", "a#x", "a?x=1", "a;x"] {
            let url = format!("https://billing.example/{text}");
            assert!(has_other_spelling(&url), "{url}");
            Location::try_from(url).unwrap_err();
        }
        for text in [
            "https://billing.example/a/x",
            "arn:aws:s3:::reports/20??.csv",
        ] {
            assert!(!has_other_spelling(text), "{text}");
        }
    }
}
