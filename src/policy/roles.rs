//! The acts on the broker that a workload's roles alone permit.
//!
//! Before a generation is activated, the broker checks that some identity can activate the next
//! one. It does not know the claims that this identity will have then, so it assumes none and
//! counts a policy that needs a claim against the caller: a permit that cannot be evaluated without
//! claims permits nothing, and a forbid that cannot be evaluated forbids.

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
    /// Whether the roles of this identity alone permit an act on the broker. `false` if this
    /// generation does not have its attestor.
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
        let entities = self.model.entities(&scene, slice.actions()).ok()?;
        let mut permitted = false;
        for (set, response) in slice.responses(&request, &entities) {
            if forbids(set, &response) {
                return Some(false);
            }
            permitted |= response.decision() == Decision::Allow;
        }
        Some(permitted)
    }
}

/// Whether a forbid of the set applies or cannot be evaluated.
fn forbids(set: &PolicySet, response: &Response) -> bool {
    let failed = response.diagnostics().errors().any(|error| match error {
        AuthorizationError::PolicyEvaluationError(error) => set
            .policy(error.policy_id())
            .is_none_or(|policy| policy.effect() == Effect::Forbid),
    });
    let satisfied = response.diagnostics().reason().next().is_some();
    failed || (response.decision() == Decision::Deny && satisfied)
}
