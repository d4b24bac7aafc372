//! Checks selectors: whether they name a known object, and which options they permit.
//!
//! `check_known` and `check_name` check the name, `block_until` the length of the block
//! ([`BlockRequest`]), `deny_policy_target` the option that denies all earlier sessions of a role,
//! and `concerns` whether a cutoff affects an identity itself.
//!
//! The rule: a revocation by a name that nothing has is refused unless the caller insists, because
//! it is probably a typing error. A role is denied as a whole only if no other resource uses it.
//! Failures: `UnknownSelector` for an unknown name, `Invalid` with the member at fault for a wrong
//! option. `concerns` answers `false` for selectors that name neither an identity nor a task. Only
//! `revoke` calls this module; it reads the store and the active generation, and changes nothing.

use super::Revocation;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Block, Selector};
use crate::domain::deny_list::DenyPolicyTarget;
use crate::domain::limits::{DEFAULT_BLOCK_SECONDS, MAX_BLOCK_SECONDS, MAX_NAME_BYTES};
use crate::domain::text::is_unprintable;
use crate::domain::workload::Identity;
use crate::store::tasks::TaskFilter;

/// For how long an admin wants to refuse new requests that the selector matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRequest {
    /// The default of the selector's kind.
    Default,
    /// This number of seconds; zero blocks nothing.
    Seconds(u64),
    /// Until an admin lifts the cutoff.
    UntilLifted,
}

impl Revocation {
    /// Whether a selector names an identity, or a task such that the identity owns it, an ancestor
    /// or a descendant. Tasks never change their owner, and a task that is cut off gets no new
    /// descendants.
    pub(super) async fn concerns(
        &self,
        selector: &Selector,
        own: &Identity,
    ) -> Result<bool, BrokerError> {
        Ok(match selector {
            Selector::Workload(identity) => identity == own,
            Selector::Task(task) => self.core.store().owns_part_of(own.as_str(), *task).await?,
            Selector::Resource(_)
            | Selector::Attestor(_)
            | Selector::Generation(_)
            | Selector::Policy(_)
            | Selector::SigningKey(_)
            | Selector::IssuedAfter(_)
            | Selector::All(_) => false,
        })
    }

    /// Refuses a selector if nothing of its name exists and no session on record matches it. Such a
    /// name is probably a typing error.
    pub(super) async fn check_known(
        &self,
        selector: &Selector,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        if self.exists(selector).await? || self.is_on_record(selector, now).await? {
            return Ok(());
        }
        Err(BrokerError::UnknownSelector(Box::new(selector.clone())))
    }

    /// Whether the object that a selector names exists now.
    async fn exists(&self, selector: &Selector) -> Result<bool, BrokerError> {
        let active = self.core.active()?;
        Ok(match selector {
            Selector::Workload(identity) => self.knows_workload(identity).await?,
            Selector::Task(task) => self.core.store().task(*task).await?.is_some(),
            Selector::Resource(name) => active.catalog().resource(name).is_some(),
            Selector::Attestor(name) => active
                .policy()
                .attestors()
                .iter()
                .any(|attestor| attestor.name() == name),
            Selector::Generation(digest) => self.core.store().generation(*digest).await?.is_some(),
            Selector::Policy(id) => active.policy().policy_ids().any(|known| known == id),
            Selector::SigningKey(kid) => {
                let keys = self.core.store().signing_keys().await?;
                keys.iter().any(|key| key.kid == *kid)
            }
            Selector::IssuedAfter(_) | Selector::All(_) => true,
        })
    }

    /// Whether an identity has a role, a registered key or an open task.
    #[expect(
        clippy::disallowed_methods,
        reason = "the caller learns only whether there is a task"
    )]
    async fn knows_workload(&self, identity: &Identity) -> Result<bool, BrokerError> {
        let tasks = TaskFilter {
            owner: Some(identity.to_string()),
            limit: 1,
            ..TaskFilter::default()
        };
        if !self.access.roles(identity).await?.is_empty()
            || !self.core.store().tasks(&tasks).await?.is_empty()
        {
            return Ok(true);
        }
        let Some((attestor, workload)) = identity.as_str().split_once(':') else {
            return Ok(false);
        };
        let keys = self.core.store().workload_keys(attestor, workload).await?;
        Ok(!keys.is_empty())
    }

    async fn is_on_record(&self, selector: &Selector, now: Timestamp) -> Result<bool, BrokerError> {
        let any = self.core.store().list_matching(selector, u64::MAX, now, 1);
        Ok(!any.await?.is_empty())
    }

    /// The deny target of a resource, for denying all its earlier sessions at once. A role that
    /// another resource uses is refused: the other resource's sessions would be denied too, but
    /// stay recorded as valid.
    pub(super) async fn deny_policy_target(
        &self,
        selector: &Selector,
        now: Timestamp,
    ) -> Result<DenyPolicyTarget, BrokerError> {
        let invalid = |detail: String| BrokerError::Invalid {
            pointer: "/deny_all_earlier_sessions",
            detail,
        };
        let name = match selector {
            Selector::Resource(name) => name,
            Selector::Workload(_)
            | Selector::Task(_)
            | Selector::Attestor(_)
            | Selector::Generation(_)
            | Selector::Policy(_)
            | Selector::SigningKey(_)
            | Selector::IssuedAfter(_)
            | Selector::All(_) => {
                return Err(invalid(
                    "only the revocation of a resource can deny all earlier sessions".into(),
                ));
            }
        };
        let active = self.core.active()?;
        let catalog = active.catalog();
        let resource = catalog
            .resource(name)
            .ok_or_else(|| invalid(format!("there is no resource `{name}`")))?;
        let target = self.deny_lists.target_for(resource)?.ok_or_else(|| {
            invalid(format!(
                "sessions of `{name}` are not ended by a deny list at their back end"
            ))
        })?;
        let other = catalog.resources().find(|other| {
            other.name != *name
                && other.kind.minter() == resource.kind.minter()
                && other.audience() == target.name
        });
        if let Some(other) = other {
            return Err(invalid(format!(
                "`{}` uses the same role, so its sessions would be denied too; revoke both \
                 resources without this option, or give each its own role",
                other.name
            )));
        }
        if self.core.store().others_live_at(&target, name, now).await? {
            return Err(invalid(format!(
                "another resource used the role of `{name}`, and its sessions have not expired; \
                 they would be denied too; revoke without this option"
            )));
        }
        Ok(target)
    }
}

/// Refuses a selector whose value cannot be the name of any object.
pub(super) fn check_name(selector: &Selector) -> Result<(), BrokerError> {
    let name = selector.value();
    let named = match selector {
        Selector::Resource(_)
        | Selector::Attestor(_)
        | Selector::Policy(_)
        | Selector::SigningKey(_) => {
            (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(is_unprintable)
        }
        Selector::Workload(_)
        | Selector::Task(_)
        | Selector::Generation(_)
        | Selector::IssuedAfter(_)
        | Selector::All(_) => true,
    };
    if named {
        return Ok(());
    }
    Err(BrokerError::Invalid {
        pointer: "/selector",
        detail: format!("a name has 1 to {MAX_NAME_BYTES} bytes and no unprintable character"),
    })
}

pub(super) fn block_until(
    selector: &Selector,
    asked: BlockRequest,
    now: Timestamp,
) -> Result<Block, BrokerError> {
    match asked {
        BlockRequest::Default if selector.blocks_by_default() => {
            Ok(Block::Until(now.plus_seconds(DEFAULT_BLOCK_SECONDS)))
        }
        BlockRequest::Default | BlockRequest::Seconds(0) => Ok(Block::No),
        BlockRequest::Seconds(seconds) if seconds <= MAX_BLOCK_SECONDS => {
            Ok(Block::Until(now.plus_seconds(seconds)))
        }
        BlockRequest::Seconds(_) => Err(BrokerError::Invalid {
            pointer: "/block_seconds",
            detail: format!("must be at most {MAX_BLOCK_SECONDS}, or \"until_lifted\""),
        }),
        BlockRequest::UntilLifted => Ok(Block::UntilLifted),
    }
}
