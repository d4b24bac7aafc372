//! The change of sealing keys: seals every envelope again and renews every MAC with the first
//! sealing key.
//!
//! `reseal_keys` goes over all rows in rounds: `reseal_signing_keys` for the envelopes,
//! `renew_macs` for cutoffs, the succession, the activation, role bindings and workload keys. The
//! last step is a leaf.
//!
//! The rule: a row is replaced only if it has not changed since it was read; otherwise it is read
//! again in the next round. A row with an invalid MAC is never given a valid one. Failures: a
//! forged signing key, an envelope that does not open, and rows that change in each of `ROUNDS`
//! rounds are `FailClosed`; the rows that were renewed until then stay renewed, and the act can be
//! repeated. Another row with an invalid MAC is left alone, for its readers to refuse.
//! `http::admin` calls this act; `store::keys` replaces the rows.

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

/// How often all rows are processed before the call fails, because others keep changing them.
const ROUNDS: u32 = 8;

/// The result of one round.
#[derive(Default)]
struct Renewed {
    /// The number of renewed rows.
    done: u64,
    /// The number of rows that had changed since they were read.
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
    /// Seals every key again with the first sealing key, and renews the MACs of other rows with it.
    /// Returns the number of renewed rows. Afterwards older sealing keys can be removed. The act is
    /// a leaf. The head over that leaf has a MAC by the first sealing key, and covers all earlier
    /// leaves.
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
        Err(BrokerError::keys(format!(
            "{rows} rows were resealed, but others changed in each of {ROUNDS} rounds; try again"
        )))
    }

    async fn reseal_signing_keys(&self, renewed: &mut Renewed) -> Result<(), BrokerError> {
        for (row, record) in &self.core.store().verified_signing_keys().await? {
            let sealer = self.sealer.as_ref();
            // An erased key has no envelope, but its row has a MAC to renew.
            let seal_is_current = row.sealed.is_empty() || !sealer.needs_reseal(&row.sealed);
            if seal_is_current && !self.mac.is_outdated(&row.mac) {
                continue;
            }
            let envelope = self.reseal_envelope(row, record).await?;
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

    async fn reseal_envelope(
        &self,
        row: &SigningKeyRow,
        record: &SigningKeyRecord,
    ) -> Result<Vec<u8>, BrokerError> {
        if row.sealed.is_empty() {
            return Ok(Vec::new());
        }
        let closed = |why: String| BrokerError::keys(why);
        let sealer = self.sealer.as_ref();
        let secret = sealer.open(record.seal_context(), &row.sealed).await;
        let secret = secret.map_err(|error| closed(error.to_string()))?;
        let envelope = sealer.seal(record.seal_context(), &secret).await;
        envelope.map_err(|error| closed(error.to_string()))
    }

    /// Renews the MACs that were made with an older key. A row with an invalid MAC stays unchanged,
    /// so that its readers refuse it.
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
