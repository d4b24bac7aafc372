//! Bindings of roles to identities. An identity with a role is an admin.
//!
//! `bind_admin` binds or unbinds a role, `admin_bindings` lists the bindings, and
//! `check_metrics_reader` authorizes the reading of metrics. The rules: a caller never changes
//! bindings of its own identity; a role is bound only if a policy names it and an attestor can give
//! the identity; the last identity that could activate a generation keeps its role, unless the
//! bootstrap or development token acts.
//!
//! Failures: `OwnBinding`, `Invalid` with the faulty member, `LastAdmin` and `Forbidden`. A binding
//! that exists already is no error, and is recorded again. If the act cannot be recorded, the
//! caller gets `FailClosed`. `http::admin` and `http::ops` call this module. `access` authorizes
//! the caller and checks the successors; the ledger records the act and writes the row.

use tracing::instrument;

use super::Administration;
use crate::attest::Evidence;
use crate::broker::access::{Removal, Unverified};
use crate::broker::error::BrokerError;
use crate::domain::workload::Identity;
use crate::ledger::entry::{AdminBindingChange, Entry};
use crate::policy::AdminAction;

/// The maximum number of roles that a refusal lists.
const SHOWN_ROLES: usize = 16;

impl Administration {
    /// Binds a role to an identity, or unbinds it if `bound` is false.
    #[instrument(skip_all)]
    pub async fn bind_admin(
        &self,
        evidence: &Evidence,
        identity: Identity,
        role: String,
        bound: bool,
    ) -> Result<(), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.bind_admin_by(unverified, identity.clone(), role.clone(), bound))
            .await
    }

    async fn bind_admin_by(
        &self,
        unverified: Unverified<'_>,
        identity: Identity,
        role: String,
        bound: bool,
    ) -> Result<(), BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageAdmins).await?;
        if admin.caller().identity() == Some(&identity) {
            return Err(BrokerError::OwnBinding);
        }
        if !crate::policy::is_role(&role) {
            return Err(BrokerError::Invalid {
                pointer: "/role",
                detail: "a role is 1 to 64 of a-z, 0-9 and `-`".into(),
            });
        }
        if bound && !self.core.active()?.could_attest(&identity) {
            return Err(BrokerError::Invalid {
                pointer: "/workload",
                detail: format!(
                    "no attestor of the active generation gives the identity `{identity}`; write \
                     `<attestor>:` and the name that the attestor's template builds from a token's \
                     claims; `taskpass attest check` shows the identity of a token"
                ),
            });
        }
        if bound {
            let active = self.core.active()?;
            if !active.policy().names_role(&role) {
                let mut named: Vec<&str> = active.policy().roles().take(SHOWN_ROLES).collect();
                if named.is_empty() {
                    named.push("none");
                }
                return Err(BrokerError::Invalid {
                    pointer: "/role",
                    detail: format!(
                        "no policy of the active generation names the role `{role}`, so binding it \
                         would have no effect; correct the name, or first activate a policy that \
                         names it; policies name: {}",
                        named.join(", ")
                    ),
                });
            }
        }
        // The bootstrap token needs no check: it can bind another identity afterwards.
        if !bound && admin.caller().identity().is_some() {
            let (of, role) = (&identity, role.as_str());
            let gone = Removal::Role { of, role };
            self.access.check_successor_without(gone).await?;
        }
        let change = AdminBindingChange {
            identity,
            role,
            bound,
            by: admin.name(),
        };
        admin.record(Entry::AdminBinding(change)).await
    }

    /// All bindings as pairs of identity and role, for admins.
    pub async fn admin_bindings(
        &self,
        evidence: &Evidence,
    ) -> Result<Vec<(String, String)>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.admin_bindings_by(unverified))
            .await
    }

    async fn admin_bindings_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<Vec<(String, String)>, BrokerError> {
        unverified.read_as(AdminAction::ManageAdmins).await?;
        let bindings = self.core.store().bound_roles().await?;
        Ok(bindings
            .into_iter()
            .map(|binding| (binding.identity, binding.role))
            .collect())
    }

    /// Fails unless the caller may read metrics.
    pub async fn check_metrics_reader(&self, evidence: &Evidence) -> Result<(), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.check_metrics_reader_by(unverified))
            .await
    }

    async fn check_metrics_reader_by(&self, unverified: Unverified<'_>) -> Result<(), BrokerError> {
        unverified.read_as(AdminAction::ReadMetrics).await?;
        Ok(())
    }
}
