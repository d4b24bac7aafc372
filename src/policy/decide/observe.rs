//! The effect that policies which only observe would have had on a decision.
//!
//! They are evaluated separately, so that they cannot change the verdict. Each policy's strongest
//! effect on a part of the request is reported, and the outcome as if all were enforced. No report
//! is made (`None`) where no observing policy applies, or where the budget of steps runs out.

use std::collections::BTreeMap;

use super::super::generation::CompiledGeneration;
use super::super::input::Input;
use super::EvaluationOptions;
use super::life::bounded;
use crate::clock::Timestamp;
use crate::domain::decision::{Observed, ObservedEffect, ObservedPolicy, Outcome, Refusal};
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;

impl CompiledGeneration {
    /// The effect that the observing policies would have had. The verdict is computed without them.
    pub(super) fn observe(&self, input: &Input) -> Option<Observed> {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let policies = self.observed_policies(input, &budget)?;
        let options = EvaluationOptions::plain(Timestamp::MAX, &budget);
        let verdict = bounded(self.evaluate_or_refuse(input, options), input).verdict;
        let refusal = verdict.as_ref().err();
        Some(Observed {
            policies,
            outcome_if_enforced: refusal.map_or(Outcome::Permit, Refusal::outcome),
            refusal: refusal.map(|refusal| refusal.code),
            ttl_seconds: verdict.as_ref().ok().map(|terms| terms.ttl_seconds),
        })
    }

    /// The observing policies that apply to any part of the request or fail on it; `None` if there
    /// are none.
    fn observed_policies(&self, input: &Input, budget: &Budget) -> Option<Vec<ObservedPolicy>> {
        let asked = input.credential.as_ref()?;
        let resource = self.model.resource(&asked.resource)?;
        self.index.observing(&resource, input.now).next()?;
        // A request with unknown names has no parts to evaluate.
        self.check_names(input, budget).ok()?;
        let inquiry = self.inquiry(input, budget).ok()?;
        if budget.is_exhausted() {
            return None;
        }
        let mut found = BTreeMap::new();
        for own in self.index.observing(&resource, input.now) {
            let effects = inquiry
                .credential_requests()
                .filter_map(|request| own.would(request, &inquiry.entities));
            // If the policy errors for any part of the request, report the error instead of its
            // effect on the others.
            let effect = effects.reduce(|one, other| match other {
                ObservedEffect::Error => other,
                _ => one,
            });
            let Some(effect) = effect else {
                continue;
            };
            let policy = ObservedPolicy {
                policy: own.id.clone(),
                effect,
                enforced_from: own.until,
            };
            found.insert(own.id.as_str(), policy);
        }
        let found: Vec<ObservedPolicy> = found.into_values().collect();
        (!found.is_empty()).then_some(found)
    }
}
