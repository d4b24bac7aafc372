//! Ensures that a bound identity remains that can activate the next generation. Without one, no
//! admin could repair a policy that permits too little.
//!
//! `Access::successors` judges a new generation, and `Access::check_successor_without` an act that
//! removes a role, a key or an identity's access (`Removal`). `able_to_activate` counts the
//! identities that the new state would leave. An identity counts only if its roles alone permit the
//! activation, an attestor of the generation can attest it, it has the key that its attestor
//! requires, and no cutoff blocks it as far as this replica knows.
//!
//! Failures: a generation that leaves none is `Unfit::LockOut`; an act that would remove the last
//! one is `LastAdmin`. If there is none before the act, the act is not refused. A store that cannot
//! be read is `FailClosed`. `administration` and `revocation` call these checks before they append.
//! The checks are not made under the ledger's lock, so two acts at the same moment can both pass.

use std::collections::{BTreeMap, BTreeSet};

use super::Access;
use super::caller::Caller;
use crate::broker::active::Active;
use crate::broker::check::Unfit;
use crate::broker::error::BrokerError;
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{Identity, encode_value};
use crate::policy::AdminAction;

/// A role, key or access that an act is about to remove from an identity.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) enum Removal<'a> {
    Role {
        of: &'a Identity,
        role: &'a str,
    },
    /// A registered key of a workload.
    Key {
        of: &'a Identity,
        thumbprint: &'a str,
    },
    /// All access, by a revocation.
    Identity(&'a Identity),
}

/// The number of bound identities, and of those that could activate the next generation.
pub(in crate::broker) struct Successors {
    /// The number of identities that are bound to any role.
    pub(in crate::broker) bound: usize,
    pub(in crate::broker) can_activate: usize,
}

impl Access {
    /// Counts the identities that could activate the next generation once `active` decides: bound
    /// identities, and the caller if it is a workload. If there is none, `active` is refused.
    /// Exception: while no identity is bound, a token may activate it, because the bootstrap token
    /// can then bind one.
    pub(in crate::broker) async fn successors(
        &self,
        active: &Active,
        caller: Option<&Caller>,
    ) -> Result<Successors, BrokerError> {
        let mut candidates = self.bound_roles().await?;
        let bound = candidates.len();
        let own = caller.and_then(|caller| Some((caller.identity()?, caller.roles())));
        let by_token = own.is_none();
        if let Some((identity, roles)) = own {
            let known = candidates.entry(identity.to_string()).or_default();
            known.extend(roles);
        }
        let can_activate = self.able_to_activate(active, candidates, None).await?;
        if can_activate == 0 && !(bound == 0 && by_token) {
            return Err(Unfit::LockOut { bound }.into());
        }
        Ok(Successors {
            bound,
            can_activate,
        })
    }

    /// The number of these identities that could activate the next generation once `active`
    /// decides. An identity counts if its roles alone permit the activation, an attestor of that
    /// generation can attest it, and no revocation blocks it. `gone` counts as removed already.
    async fn able_to_activate(
        &self,
        active: &Active,
        candidates: BTreeMap<String, BTreeSet<String>>,
        gone: Option<Removal<'_>>,
    ) -> Result<usize, BrokerError> {
        let mut able = 0;
        for (identity, mut roles) in candidates {
            let Ok(identity) = Identity::try_from(identity) else {
                continue;
            };
            let mut removed = None;
            match gone {
                Some(Removal::Identity(gone)) if *gone == identity => continue,
                Some(Removal::Role { of, role }) if *of == identity => {
                    roles.remove(role);
                }
                Some(Removal::Key { of, thumbprint }) if *of == identity => {
                    removed = Some(thumbprint);
                }
                _ => {}
            }
            let action = AdminAction::ActivateGeneration;
            if active.could_attest(&identity)
                && active.policy().may_by_role(&identity, &roles, action)
                && !self.is_blocked_by_revocation(&identity)
                && self.has_a_key(active, &identity, removed).await?
            {
                able += 1;
            }
        }
        Ok(able)
    }

    /// Whether a revocation blocks an identity, as far as this replica knows.
    fn is_blocked_by_revocation(&self, identity: &Identity) -> bool {
        let attestor = identity.as_str().split_once(':');
        attestor.is_some_and(|(attestor, _)| self.core.ledger().may_block(identity, attestor))
    }

    /// Whether an identity has the key that its attestor requires, either in the generation or
    /// registered. Identities of other kinds of attestors need none. The registered key with the
    /// thumbprint `removed` does not count.
    #[expect(
        clippy::disallowed_methods,
        reason = "the caller learns only whether a successor is left"
    )]
    async fn has_a_key(
        &self,
        active: &Active,
        identity: &Identity,
        removed: Option<&str>,
    ) -> Result<bool, BrokerError> {
        let Some((attestor, workload)) = identity.as_str().split_once(':') else {
            return Ok(false);
        };
        let mut specs = active.policy().attestors().iter();
        let spec = specs.find(|spec| spec.name() == attestor);
        let Some(AttestorSpec::Key(keys)) = spec else {
            return Ok(true);
        };
        let is_its = |name: &str| encode_value(name) == workload;
        if keys.keys.iter().any(|key| is_its(&key.workload)) {
            return Ok(true);
        }
        let registered = self.core.store().registered_keys(u32::MAX >> 1).await?;
        Ok(registered.iter().any(|key| {
            key.attestor == attestor
                && is_its(&key.workload)
                && removed != Some(key.thumbprint.as_str())
        }))
    }

    /// Refuses an act that would remove the last bound identity that could activate the next
    /// generation. If there is none already, the act is not refused.
    pub(in crate::broker) async fn check_successor_without(
        &self,
        gone: Removal<'_>,
    ) -> Result<(), BrokerError> {
        let active = self.core.active()?;
        let bound = self.bound_roles().await?;
        let before = self.able_to_activate(&active, bound.clone(), None).await?;
        if before > 0 && self.able_to_activate(&active, bound, Some(gone)).await? == 0 {
            return Err(BrokerError::LastAdmin);
        }
        Ok(())
    }
}
