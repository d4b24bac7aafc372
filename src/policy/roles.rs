//! What its roles alone let a workload do to the broker.
//!
//! Before a generation is activated it must be certain that somebody can activate the next one. Which
//! claims that caller's evidence will have is not known then, so none are assumed: a policy that needs
//! a claim counts against the caller. A permit that cannot be evaluated without claims permits
//! nothing, and a forbid that cannot be evaluated forbids.

use std::collections::BTreeSet;

use cedar_policy::{AuthorizationError, Decision, Effect, PolicySet, Response};

use super::admin::AdminAction;
use super::asked::Extent;
use super::generation::CompiledGeneration;
use super::mapping;
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;
use crate::domain::workload::Identity;

impl CompiledGeneration {
    /// Whether a workload of this identity may act on the broker in this way by its roles alone. It
    /// may not where its attestor is none of this generation.
    #[must_use]
    pub fn may_by_role(
        &self,
        identity: &Identity,
        roles: &BTreeSet<String>,
        action: AdminAction,
    ) -> bool {
        self.permitted_by_role(identity, roles, action)
            .unwrap_or(false)
    }

    fn permitted_by_role(
        &self,
        identity: &Identity,
        roles: &BTreeSet<String>,
        action: AdminAction,
    ) -> Option<bool> {
        let scene = self.model.unclaimed_scene(identity, roles)?;
        let (action, broker) = (self.model.action(action.as_str()), self.model.broker());
        let slice = self
            .index
            .slice(&scene.principal, &scene.ancestors, &action, &broker);
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let holding = self.index.holding(&slice, &Extent::default(), &budget);
        let context = mapping::broker_context(&holding).ok()?;
        let request = self.model.request(&scene, &action, &broker, context);
        let request = request.ok()?;
        let mut permitted = false;
        for (set, response) in slice.responses(&request, &scene.entities) {
            if forbids(set, &response) {
                return Some(false);
            }
            permitted |= response.decision() == Decision::Allow;
        }
        Some(permitted)
    }
}

/// Whether a forbid of the set is satisfied, or cannot be evaluated.
fn forbids(set: &PolicySet, response: &Response) -> bool {
    let failed = response.diagnostics().errors().any(|error| match error {
        AuthorizationError::PolicyEvaluationError(error) => set
            .policy(error.policy_id())
            .is_none_or(|policy| policy.effect() == Effect::Forbid),
    });
    let satisfied = response.diagnostics().reason().next().is_some();
    failed || (response.decision() == Decision::Deny && satisfied)
}
