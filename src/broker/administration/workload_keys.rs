//! Registered keys of workloads. Admins add and remove them, and attestors of kind `key` look them
//! up.
//!
//! `StoredWorkloadKeys` looks keys up in the store. `add_workload_key`, `remove_workload_key` and
//! `list_workload_keys` are the admins' acts. The rule: no admin gains a right by registering a
//! key. A key is refused if its identity has a right on the broker that the caller does not have.
//! The last identity that could activate a generation keeps its key.
//!
//! Failures: `Invalid` with the faulty member, `Forbidden` for the further right, `LastAdmin`.
//! Removing a key that is not registered is no error, and is recorded. An attestor that cannot read
//! the keys gets `WorkloadKeysUnavailable`, and refuses the evidence as unavailable. `http::admin`
//! calls the acts; `app` gives `StoredWorkloadKeys` to the attestors. `attest::key` judges the key
//! itself; the ledger records the act and writes the row.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use tracing::instrument;

use super::Administration;
use crate::attest::key::registrable;
use crate::attest::{Evidence, WorkloadKeys, WorkloadKeysUnavailable};
use crate::broker::access::{Caller, Removal, Unverified};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::limits::{MAX_NAME_BYTES, MAX_PAGE};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{Identity, OneTime, Reuse, Workload, encode_value};
use crate::ledger::entry::{Entry, WorkloadKeyChange};
use crate::policy::{AdminAction, AdminPrincipal};
use crate::store::Store;
use crate::store::workload_keys::WorkloadKeyRow;

/// Looks up registered keys in the store.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct StoredWorkloadKeys {
    pub store: Store,
}

impl WorkloadKeys for StoredWorkloadKeys {
    fn find<'a>(
        &'a self,
        attestor: &'a str,
        workload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<serde_json::Value>, WorkloadKeysUnavailable>> {
        Box::pin(async move {
            let rows = self.store.workload_keys(attestor, workload).await;
            let rows = rows.map_err(|_| WorkloadKeysUnavailable)?;
            let jwks = rows.iter().filter_map(|row| row.jwk.as_deref());
            jwks.map(|jwk| serde_json::from_str(jwk).map_err(|_| WorkloadKeysUnavailable))
                .collect()
        })
    }
}

impl Administration {
    /// Registers a workload's key. Returns its thumbprint, which names the key in later calls.
    #[instrument(skip_all)]
    pub async fn add_workload_key(
        &self,
        evidence: &Evidence,
        attestor: String,
        workload: String,
        jwk: &serde_json::Value,
    ) -> Result<String, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| {
            self.add_workload_key_by(unverified, attestor.clone(), workload.clone(), jwk)
        })
        .await
    }

    async fn add_workload_key_by(
        &self,
        unverified: Unverified<'_>,
        attestor: String,
        workload: String,
        jwk: &serde_json::Value,
    ) -> Result<String, BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageWorkloads).await?;
        let invalid = |pointer, detail: String| BrokerError::Invalid { pointer, detail };
        if workload.is_empty() || workload.len() > MAX_NAME_BYTES {
            let detail = format!("a workload's name has 1 to {MAX_NAME_BYTES} bytes");
            return Err(invalid("/workload", detail));
        }
        let registers =
            |spec: &AttestorSpec| matches!(spec, AttestorSpec::Key(spec) if spec.name == attestor);
        if !self
            .core
            .active()?
            .policy()
            .attestors()
            .iter()
            .any(registers)
        {
            let detail = "the active generation has no attestor of kind `key` with this name";
            return Err(invalid("/attestor", detail.into()));
        }
        let key = registrable(jwk).map_err(|error| invalid("/jwk", error))?;
        let json = jwk.to_string();
        let change = WorkloadKeyChange {
            attestor,
            workload,
            thumbprint: key.thumbprint().to_owned(),
            jwk: Some(json),
            by: admin.name(),
        };
        let thumbprint = change.thumbprint.clone();
        self.check_gives_no_further_right(admin.caller(), &change)
            .await?;
        admin.record(Entry::WorkloadKey(change)).await?;
        Ok(thumbprint)
    }

    /// Refuses to register a key for an identity that has a right on the broker that the caller
    /// does not have. The holder of a key has the identity's rights, so the caller could use the
    /// key to gain that right.
    async fn check_gives_no_further_right(
        &self,
        caller: &Caller,
        row: &WorkloadKeyChange,
    ) -> Result<(), BrokerError> {
        let identity = format!("{}:{}", row.attestor, encode_value(&row.workload));
        let identity = Identity::try_from(identity).map_err(|error| BrokerError::Invalid {
            pointer: "/workload",
            detail: error.to_string(),
        })?;
        let roles = self.access.roles(&identity).await?;
        // The workload as the `key` attestor would attest it: without claims.
        let workload = Workload {
            attestor: row.attestor.clone(),
            identity,
            instance: None,
            claims: BTreeMap::new(),
            issued_at: Timestamp::EPOCH,
            reuse: Reuse::Once,
            evidence: OneTime {
                must_be_new: false,
                key: [0; 32],
                binding: None,
                issued_at: Timestamp::EPOCH,
                expires_at: Timestamp::EPOCH,
            },
            proofs: Vec::new(),
            key: None,
        };
        let active = self.core.active()?;
        for action in AdminAction::ALL {
            let principal = AdminPrincipal::Workload {
                workload: &workload,
                roles: &roles,
            };
            if active.policy().may(principal, *action)? && !self.access.may(caller, *action)? {
                return Err(BrokerError::Forbidden(action.as_str()));
            }
        }
        Ok(())
    }

    /// Removes a registered key, which is named by its thumbprint.
    #[instrument(skip_all)]
    pub async fn remove_workload_key(
        &self,
        evidence: &Evidence,
        attestor: String,
        workload: String,
        thumbprint: String,
    ) -> Result<(), BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| {
            let (attestor, workload) = (attestor.clone(), workload.clone());
            self.remove_workload_key_by(unverified, attestor, workload, thumbprint.clone())
        })
        .await
    }

    async fn remove_workload_key_by(
        &self,
        unverified: Unverified<'_>,
        attestor: String,
        workload: String,
        thumbprint: String,
    ) -> Result<(), BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageWorkloads).await?;
        // A name that is no valid identity has no role. The bootstrap token needs no check: it can
        // register another key.
        if admin.caller().identity().is_some()
            && let Ok(of) = Identity::try_from(format!("{attestor}:{}", encode_value(&workload)))
        {
            let gone = Removal::Key {
                of: &of,
                thumbprint: &thumbprint,
            };
            self.access.check_successor_without(gone).await?;
        }
        let change = WorkloadKeyChange {
            attestor,
            workload,
            thumbprint,
            jwk: None,
            by: admin.name(),
        };
        admin.record(Entry::WorkloadKey(change)).await
    }

    /// The registered keys, for admins.
    pub async fn list_workload_keys(
        &self,
        evidence: &Evidence,
    ) -> Result<Vec<WorkloadKeyRow>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.list_workload_keys_by(unverified))
            .await
    }

    async fn list_workload_keys_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<Vec<WorkloadKeyRow>, BrokerError> {
        let reader = unverified.read_as(AdminAction::ManageWorkloads).await?;
        Ok(reader.registered_keys(MAX_PAGE).await?)
    }
}
