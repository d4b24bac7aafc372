//! Authenticated callers, their roles, and the acts that policy permits them.
//!
//! `Caller` is the bearer of the bootstrap token, of the development token, or of a task's handle,
//! or an attested workload. `Access::may` asks policy about an act. An admin is an attested
//! identity that a role was bound to; Cedar policy decides which acts the role permits. The rule:
//! only policy grants acts. The exceptions are the acts of the bootstrap token that
//! `AdminAction::always_open_to_bootstrap` names, and accepting the time. A handle has no right as
//! an admin.
//!
//! Failures: `may` returns `false` for a refusal; without an active generation, or if policy cannot
//! be evaluated, it returns an error (`NoGeneration`, `FailClosed`). A failed read of roles is
//! `FailClosed`. `access::evidence` and `access::tokens` make callers; the services ask about them.
//! Nothing here verifies evidence or checks cutoffs.

use std::collections::{BTreeMap, BTreeSet};

use super::Access;
use crate::broker::active::Active;
use crate::broker::error::BrokerError;
use crate::domain::workload::{Identity, Instance, Workload};
use crate::policy::{AdminAction, AdminPrincipal};

/// An authenticated caller.
#[derive(Debug)]
pub(in crate::broker) struct Caller {
    who: CallerKind,
}

#[derive(Debug)]
enum CallerKind {
    Bootstrap,
    Dev,
    Handle,
    Workload {
        workload: Box<Workload>,
        roles: BTreeSet<String>,
    },
}

impl Caller {
    /// The bearer of the bootstrap token.
    pub(super) fn bootstrap() -> Self {
        let who = CallerKind::Bootstrap;
        Self { who }
    }

    /// The bearer of the development mode's token.
    pub(super) fn dev() -> Self {
        Self {
            who: CallerKind::Dev,
        }
    }

    /// An attested workload, with the roles that admins bound to its identity.
    pub(super) fn workload(workload: Workload, roles: BTreeSet<String>) -> Self {
        let workload = Box::new(workload);
        Self {
            who: CallerKind::Workload { workload, roles },
        }
    }

    /// The bearer of a task's handle, which has rights on that task only.
    pub(super) fn by_handle() -> Self {
        Self {
            who: CallerKind::Handle,
        }
    }

    /// Whether it is the bearer of the bootstrap token.
    pub(super) fn is_bootstrap(&self) -> bool {
        matches!(self.who, CallerKind::Bootstrap)
    }

    /// The identity. `None` for a token or a handle.
    #[must_use]
    pub(in crate::broker) fn identity(&self) -> Option<&Identity> {
        match &self.who {
            CallerKind::Bootstrap | CallerKind::Dev | CallerKind::Handle => None,
            CallerKind::Workload { workload, .. } => Some(&workload.identity),
        }
    }

    /// The name under which its acts are recorded.
    #[must_use]
    pub(in crate::broker) fn name(&self) -> String {
        match &self.who {
            CallerKind::Bootstrap => "bootstrap-token".into(),
            CallerKind::Dev => "dev-admin-token".into(),
            CallerKind::Handle => "handle".into(),
            CallerKind::Workload { workload, .. } => workload.identity.to_string(),
        }
    }

    /// The roles that admins bound to it; empty for a token or a handle.
    pub(in crate::broker) fn roles(&self) -> BTreeSet<String> {
        match &self.who {
            CallerKind::Bootstrap | CallerKind::Dev | CallerKind::Handle => BTreeSet::new(),
            CallerKind::Workload { roles, .. } => roles.clone(),
        }
    }

    /// Whether a record of this identity and instance belongs to the caller.
    #[must_use]
    pub(in crate::broker) fn owns(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        match &self.who {
            CallerKind::Bootstrap | CallerKind::Dev | CallerKind::Handle => false,
            CallerKind::Workload { workload, .. } => workload.is(identity, instance),
        }
    }
}

impl Access {
    /// Whether policy permits the caller this act.
    pub(in crate::broker) fn may(
        &self,
        caller: &Caller,
        action: AdminAction,
    ) -> Result<bool, BrokerError> {
        let principal = match &caller.who {
            // While the clock is in doubt, attestations cannot be verified. So the bootstrap token
            // may accept the time without a decision of policy.
            CallerKind::Bootstrap
                if action == AdminAction::AcceptTime || action.always_open_to_bootstrap() =>
            {
                return Ok(true);
            }
            CallerKind::Bootstrap => AdminPrincipal::Bootstrap,
            CallerKind::Dev => AdminPrincipal::Dev,
            CallerKind::Handle => return Ok(false),
            CallerKind::Workload { workload, roles } => {
                AdminPrincipal::Workload { workload, roles }
            }
        };
        Ok(self.core.active()?.policy().may(principal, action)?)
    }

    /// The roles that admins bound to an identity.
    pub(in crate::broker) async fn roles(
        &self,
        identity: &Identity,
    ) -> Result<BTreeSet<String>, BrokerError> {
        Ok(self.core.store().roles_of(identity.as_str()).await?)
    }

    /// Every bound identity with its roles.
    pub(in crate::broker) async fn bound_roles(
        &self,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, BrokerError> {
        let mut bound: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for binding in self.core.store().bound_roles().await? {
            bound
                .entry(binding.identity)
                .or_default()
                .insert(binding.role);
        }
        Ok(bound)
    }

    /// The caller's roles, if a policy on tasks and credentials uses roles. Otherwise `None`: the
    /// roles are not read, which saves one query a request. The decision records the difference
    /// between `None` and an empty set.
    pub(in crate::broker) async fn roles_asked_for(
        &self,
        active: &Active,
        identity: &Identity,
    ) -> Result<Option<BTreeSet<String>>, BrokerError> {
        if active.policy().asks_for_roles() {
            return Ok(Some(self.roles(identity).await?));
        }
        Ok(None)
    }
}
