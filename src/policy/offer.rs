//! Finds the part of a refused request that would be permitted, to tell the caller.
//!
//! [`CompiledGeneration::offer`] takes the single rights that policy permits without approval,
//! groups them into objects, and lets policy decide about the result. So an offer reveals only
//! facts that the caller could learn by requesting it.
//!
//! There is no offer (`None`) if opening the task is refused or needs approval, if no part is
//! permitted, or if the budget of steps runs out. A missing offer does not change the refusal.
//! `super::decide` is the only caller; the caller of the broker must send the smaller request
//! itself.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::{EvaluationOptions, RightAnswer};
use super::generation::CompiledGeneration;
use super::input::{CredentialInput, Input};
use super::slice::Answer;
use crate::domain::action::ActionName;
use crate::domain::decision::Allowed;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::limits::MAX_DETAILS;
use crate::domain::location::Location;
use crate::domain::pattern::Budget;

/// Actions at locations.
type Rights<'a> = BTreeSet<(&'a ActionName, &'a Location)>;

impl CompiledGeneration {
    /// The part of this request that policy would permit by itself. It is evaluated again before it
    /// is returned.
    pub(super) fn offer(
        &self,
        input: &Input,
        opening: Option<&Answer>,
        right_answers: &[RightAnswer<'_>],
        options: EvaluationOptions<'_>,
    ) -> Option<Allowed> {
        let asked = input.credential.as_ref()?;
        let opening: BTreeSet<String> = match opening {
            Some(Answer::Permit(permits)) => permits.all().cloned().collect(),
            Some(_) => return None,
            None => BTreeSet::new(),
        };
        if self.terms(&opening).approval {
            return None;
        }
        let (rights, permits) = self.permitted_part(right_answers, options.budget)?;
        let details = regroup(&asked.authorization_details, &rights);
        if details.is_empty() {
            return None;
        }
        let terms = self.terms(opening.union(&permits));
        let max = self.max_ttl(asked, &input.task, terms);
        let smaller = CredentialInput {
            authorization_details: details,
            ..asked.clone()
        };
        let at_most = self.would_permit(input, &smaller, Some(max), options);
        if !at_most && !self.would_permit(input, &smaller, asked.ttl_seconds, options) {
            return None;
        }
        Some(Allowed {
            authorization_details: Some(smaller.authorization_details),
            max_ttl_seconds: at_most.then_some(max),
            ..Allowed::default()
        })
    }

    /// The rights that are permitted without approval, with their permits. A location covers
    /// everything below it, so a location with a refused one below it is left out. `None` if
    /// `budget` runs out.
    fn permitted_part<'a>(
        &self,
        right_answers: &'a [RightAnswer<'a>],
        budget: &Budget,
    ) -> Option<(Rights<'a>, BTreeSet<String>)> {
        // A right has several answers if it covers several registered actions.
        let mut free: BTreeMap<&ActionName, BTreeMap<&Location, BTreeSet<&String>>> =
            BTreeMap::new();
        let mut refused: BTreeMap<&ActionName, BTreeSet<&Location>> = BTreeMap::new();
        for right in right_answers {
            match &right.answer {
                Answer::Permit(permits) if !self.terms(permits.all()).approval => {
                    let free = free.entry(right.action).or_default();
                    free.entry(right.location)
                        .or_default()
                        .extend(permits.all());
                }
                _ => {
                    refused
                        .entry(right.action)
                        .or_default()
                        .insert(right.location);
                }
            }
        }
        let mut rights = BTreeSet::new();
        let mut permits = BTreeSet::new();
        for (action, locations) in free {
            let refused = refused.get(action);
            for (location, own) in locations {
                let mut refused = refused.into_iter().flatten();
                let reaches_refused = refused.any(|no| location.covers_within(no, budget));
                if budget.is_exhausted() {
                    return None;
                }
                if !reaches_refused {
                    permits.extend(own.into_iter().cloned());
                    rights.insert((action, location));
                }
            }
        }
        Some((rights, permits))
    }

    pub(super) fn would_permit(
        &self,
        input: &Input,
        smaller: &CredentialInput,
        ttl_seconds: Option<u64>,
        options: EvaluationOptions<'_>,
    ) -> bool {
        let input = Input {
            credential: Some(CredentialInput {
                ttl_seconds,
                ..smaller.clone()
            }),
            ..input.clone()
        };
        let options = EvaluationOptions {
            with_offer: false,
            ..options
        };
        self.evaluate_or_refuse(&input, options).verdict.is_ok()
    }
}

/// Writes exactly these rights as objects: within each requested object, actions with the same
/// locations share one object. Returns at most as many objects as one request may have.
fn regroup(asked: &[AuthorizationDetail], rights: &Rights<'_>) -> Vec<AuthorizationDetail> {
    let mut objects: Vec<AuthorizationDetail> = Vec::new();
    for detail in asked {
        let mut groups: BTreeMap<BTreeSet<Location>, BTreeSet<ActionName>> = BTreeMap::new();
        for action in detail.actions() {
            let locations: BTreeSet<Location> = detail
                .locations()
                .iter()
                .filter(|location| rights.contains(&(action, *location)))
                .cloned()
                .collect();
            if !locations.is_empty() {
                groups.entry(locations).or_default().insert(action.clone());
            }
        }
        for (locations, actions) in groups {
            let object = detail.with_rights(actions, locations);
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
    }
    objects.truncate(MAX_DETAILS);
    objects
}
