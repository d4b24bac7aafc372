//! Registered workload keys: added and removed by an admin, looked up by the `key` attestor.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use tracing::{error, instrument};

use super::admin::Caller;
use super::call::Call;
use super::{Broker, BrokerError};
use crate::attest::key::registrable;
use crate::attest::{Evidence, WorkloadKeys, WorkloadKeysUnavailable};
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::domain::limits::{MAX_NAME_BYTES, MAX_PAGE};
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::{Identity, OneTime, Reuse, Workload, encode_value};
use crate::ledger::entry::{Entry, WorkloadKeyChange};
use crate::policy::{AdminAction, AdminPrincipal};
use crate::store::Store;
use crate::store::workload_keys::WorkloadKeyRow;

/// The purpose under which rows of workload keys are protected.
pub(super) const KEY_MAC: &str = "workload_key";

/// The registered keys of the store.
#[derive(Clone)]
pub struct StoredWorkloadKeys {
    /// Where they are kept.
    pub store: Store,
    /// Protects their rows.
    pub mac: Mac,
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
            rows.iter()
                .map(|row| {
                    if self.mac.verify(KEY_MAC, &fields(row), &row.mac).is_err() {
                        error!(
                            attestor,
                            workload, "a workload key was not written by the broker"
                        );
                        return Err(WorkloadKeysUnavailable);
                    }
                    serde_json::from_str(&row.jwk).map_err(|_| WorkloadKeysUnavailable)
                })
                .collect()
        })
    }
}

pub(super) fn fields(row: &WorkloadKeyRow) -> [&[u8]; 4] {
    [
        row.attestor.as_bytes(),
        row.workload.as_bytes(),
        row.thumbprint.as_bytes(),
        row.jwk.as_bytes(),
    ]
}

impl Broker {
    /// Registers a workload's key; its thumbprint names it from then on.
    #[instrument(skip_all)]
    pub async fn add_workload_key(
        &self,
        evidence: &Evidence,
        attestor: String,
        workload: String,
        jwk: &serde_json::Value,
    ) -> Result<String, BrokerError> {
        let call = self.call(evidence);
        call.run(self.add_workload_key_by(&call, attestor, workload, jwk))
            .await
    }

    async fn add_workload_key_by(
        &self,
        call: &Call<'_>,
        attestor: String,
        workload: String,
        jwk: &serde_json::Value,
    ) -> Result<String, BrokerError> {
        let caller = self.admin(call, AdminAction::ManageWorkloads).await?;
        let invalid = |pointer, detail: String| BrokerError::Invalid { pointer, detail };
        if workload.is_empty() || workload.len() > MAX_NAME_BYTES {
            let detail = format!("a workload's name has 1 to {MAX_NAME_BYTES} bytes");
            return Err(invalid("/workload", detail));
        }
        let registers =
            |spec: &AttestorSpec| matches!(spec, AttestorSpec::Key(spec) if spec.name == attestor);
        if !self.active()?.policy().attestors().iter().any(registers) {
            let detail = "there is no attestor of registered keys by this name";
            return Err(invalid("/attestor", detail.into()));
        }
        let key = registrable(jwk).map_err(|error| invalid("/jwk", error))?;
        let json = jwk.to_string();
        let row = WorkloadKeyRow {
            attestor,
            workload,
            thumbprint: key.thumbprint().to_owned(),
            jwk: json,
            mac: Vec::new(),
        };
        self.check_lends_no_right(&caller, &row).await?;
        let mac = self.parts.mac.tag(KEY_MAC, &fields(&row));
        let change = WorkloadKeyChange {
            attestor: row.attestor,
            workload: row.workload,
            thumbprint: row.thumbprint.clone(),
            jwk: Some(row.jwk),
            mac,
            by: caller.name(),
        };
        self.act(call, Entry::WorkloadKey(change)).await?;
        Ok(row.thumbprint)
    }

    /// Whoever has a key of an identity may do what the identity may. So nobody registers one for
    /// an identity that may do to the broker what they may not: they would widen their own.
    async fn check_lends_no_right(
        &self,
        caller: &Caller,
        row: &WorkloadKeyRow,
    ) -> Result<(), BrokerError> {
        let identity = format!("{}:{}", row.attestor, encode_value(&row.workload));
        let identity = Identity::try_from(identity).map_err(|error| BrokerError::Invalid {
            pointer: "/workload",
            detail: error.to_string(),
        })?;
        let roles = self.roles(&identity).await?;
        // What the `key` attestor would make of it: it yields no claims.
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
                expires_at: Timestamp::EPOCH,
            },
            proofs: Vec::new(),
            key: None,
        };
        let active = self.active()?;
        for action in AdminAction::ALL {
            let theirs = AdminPrincipal::Workload {
                workload: &workload,
                roles: &roles,
            };
            if active.policy().may(theirs, *action)? && !self.may(caller, *action)? {
                return Err(BrokerError::Forbidden(action.as_str()));
            }
        }
        Ok(())
    }

    /// Removes a workload's key.
    #[instrument(skip_all)]
    pub async fn remove_workload_key(
        &self,
        evidence: &Evidence,
        attestor: String,
        workload: String,
        thumbprint: String,
    ) -> Result<(), BrokerError> {
        let call = self.call(evidence);
        call.run(self.remove_workload_key_by(&call, attestor, workload, thumbprint))
            .await
    }

    async fn remove_workload_key_by(
        &self,
        call: &Call<'_>,
        attestor: String,
        workload: String,
        thumbprint: String,
    ) -> Result<(), BrokerError> {
        let caller = self.admin(call, AdminAction::ManageWorkloads).await?;
        let change = WorkloadKeyChange {
            attestor,
            workload,
            thumbprint,
            jwk: None,
            mac: Vec::new(),
            by: caller.name(),
        };
        self.act(call, Entry::WorkloadKey(change)).await
    }

    /// The registered keys, for admins.
    pub async fn list_workload_keys(
        &self,
        evidence: &Evidence,
    ) -> Result<Vec<WorkloadKeyRow>, BrokerError> {
        let call = self.call(evidence);
        call.run(self.list_workload_keys_by(&call)).await
    }

    async fn list_workload_keys_by(
        &self,
        call: &Call<'_>,
    ) -> Result<Vec<WorkloadKeyRow>, BrokerError> {
        self.admin(call, AdminAction::ManageWorkloads).await?;
        call.consume().await?;
        Ok(self.store().all_workload_keys(MAX_PAGE).await?)
    }
}
