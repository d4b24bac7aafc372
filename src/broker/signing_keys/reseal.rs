//! The change of sealing keys: every envelope is sealed anew, and every MAC renewed, with the first of
//! them. Each row is replaced only as it was read; one that changed meanwhile is read again.

use tracing::{info, instrument};

use super::SigningKeys;
use crate::attest::Evidence;
use crate::broker::access::Unverified;
use crate::broker::error::BrokerError;
use crate::crypto::keyring::SigningKeyRecord;
use crate::ledger::SUCCESSION_MAC;
use crate::ledger::entry::{Entry, Resealed};
use crate::policy::AdminAction;
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::SealedActivation;
use crate::store::keys::SigningKeyRow;

/// How often all rows are gone through, before it is said that others change them.
const ROUNDS: u32 = 8;

/// How many rows were renewed, and how many changed before they could be.
#[derive(Default)]
struct Renewed {
    done: u64,
    missed: u64,
}

impl Renewed {
    fn note(&mut self, replaced: bool) {
        if replaced {
            self.done += 1;
        } else {
            self.missed += 1;
        }
    }
}

impl SigningKeys {
    /// Seals every key anew with the first sealing key, and renews what protects other rows. The
    /// answer is how many rows that were; afterwards older sealing keys can be removed. A leaf says
    /// so, whose head is protected by the first key, and with it all that is below.
    #[instrument(skip_all)]
    pub async fn reseal_keys(&self, evidence: &Evidence) -> Result<u64, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.reseal_keys_by(unverified)).await
    }

    async fn reseal_keys_by(&self, unverified: Unverified<'_>) -> Result<u64, BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageKeys).await?;
        admin.use_up().await?;
        let mut rows = 0;
        for _ in 0..ROUNDS {
            let mut renewed = Renewed::default();
            self.reseal_signing_keys(&mut renewed).await?;
            self.renew_macs(&mut renewed).await?;
            rows += renewed.done;
            if renewed.missed == 0 {
                let by = admin.name();
                info!(rows, by, "resealed with the first sealing key");
                admin.record(Entry::Resealed(Resealed { rows, by })).await?;
                return Ok(rows);
            }
        }
        Err(BrokerError::FailClosed(format!(
            "rows changed {ROUNDS} times while they were resealed, {rows} of them were: once more"
        )))
    }

    async fn reseal_signing_keys(&self, renewed: &mut Renewed) -> Result<(), BrokerError> {
        for (row, record) in &self.core.store().verified_signing_keys().await? {
            let sealer = self.sealer.as_ref();
            // An erased key has no envelope, but its row's MAC is renewed all the same.
            let sealed_well = row.sealed.is_empty() || !sealer.needs_reseal(&row.sealed);
            if sealed_well && !self.mac.is_outdated(&row.mac) {
                continue;
            }
            let envelope = self.envelope_anew(row, record).await?;
            let mac = record.tag(&self.mac, &envelope);
            let replaced = self
                .core
                .store()
                .reseal_key(&row.kid, &row.mac, &envelope, &mac)
                .await?;
            renewed.note(replaced);
        }
        Ok(())
    }

    async fn envelope_anew(
        &self,
        row: &SigningKeyRow,
        record: &SigningKeyRecord,
    ) -> Result<Vec<u8>, BrokerError> {
        if row.sealed.is_empty() {
            return Ok(Vec::new());
        }
        let closed = |why: String| BrokerError::FailClosed(why);
        let sealer = self.sealer.as_ref();
        let secret = sealer.open(record.seal_context(), &row.sealed).await;
        let secret = secret.map_err(|error| closed(error.to_string()))?;
        let envelope = sealer.seal(record.seal_context(), &secret).await;
        envelope.map_err(|error| closed(error.to_string()))
    }

    /// Renews the MACs that an older key made. A row whose MAC does not hold is left as it is, to
    /// be refused by its readers.
    async fn renew_macs(&self, renewed: &mut Renewed) -> Result<(), BrokerError> {
        let mac = &self.mac;
        let store = self.core.store();
        for sealed in store.cutoffs(u32::MAX >> 1).await? {
            if mac.is_outdated(sealed.mac())
                && let Ok(cutoff) = sealed.open(mac)
            {
                let new = SealedCutoff::seal(cutoff.clone(), mac);
                let replaced = store.remac_cutoff(cutoff.id, sealed.mac(), new.mac());
                renewed.note(replaced.await?);
            }
        }
        if let Some(sealed) = store.succession().await? {
            let fields = [sealed.document.as_bytes()];
            if mac.is_outdated(&sealed.mac)
                && mac.verify(SUCCESSION_MAC, &fields, &sealed.mac).is_ok()
            {
                let tag = mac.tag(SUCCESSION_MAC, &fields);
                renewed.note(store.remac_succession(&sealed.mac, &tag).await?);
            }
        }
        if let Some(active) = store.active_generation().await? {
            let sealed = &active.sealed;
            if mac.is_outdated(sealed.mac())
                && let Ok(digest) = sealed.open(mac)
            {
                let (index, old) = (sealed.index(), sealed.mac());
                let new = SealedActivation::seal(index, digest, mac);
                renewed.note(store.remac_activation(index, old, new.mac()).await?);
            }
        }
        for row in store.admin_bindings().await? {
            if mac.is_outdated(&row.mac) && row.open(mac).is_ok() {
                let new = row.clone().seal(mac);
                renewed.note(store.remac_binding(&row, &new.mac).await?);
            }
        }
        for row in store.all_workload_keys(u32::MAX >> 1).await? {
            if mac.is_outdated(&row.mac) && row.open(mac).is_ok() {
                let new = row.clone().seal(mac);
                renewed.note(store.remac_workload_key(&row, &new.mac).await?);
            }
        }
        Ok(())
    }
}
