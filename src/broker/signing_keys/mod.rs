//! The acts of admins on the signing keys: to list, rotate, withdraw and reseal them.

mod reseal;

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::instrument;

use super::access::{Access, Actor, Unverified};
use super::core::Core;
use super::error::BrokerError;
use super::keys::{KeyPolicy, KeyWish, Keys, Recorder};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::crypto::keyring::{KeyPurpose, SigningKeyRecord, signer_preferring};
use crate::crypto::sealer::Sealer;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::ids::CutoffId;
use crate::ledger::Appended;
use crate::ledger::entry::{Entry, KeyChange, NewCutoff};
use crate::mint::Minters;
use crate::policy::AdminAction;

/// A key, as an admin sees it.
#[derive(Clone, Debug)]
pub struct KeySummary {
    /// Its record.
    pub record: SigningKeyRecord,
    /// Whether it signs now.
    pub signing: bool,
}

/// The withdrawal of an access-token key: what follows from it, or would.
#[derive(Clone, Debug)]
pub struct KeyWithdrawal {
    /// The key.
    pub kid: String,
    /// Whether it was withdrawn. Otherwise nothing was touched.
    pub done: bool,
    /// Whether it signed new tokens until now.
    pub signing: bool,
    /// The key that signs new tokens afterwards, where one can at once.
    pub successor: Option<String>,
    /// From when on new tokens are signed again, where none can be at once. `None` with a successor, and
    /// where the operator has to bring another key.
    pub resumes_at: Option<Timestamp>,
    /// Live sessions whose tokens it signed, as far as they could be counted.
    pub matched: Option<u64>,
    /// Until when verifiers that do not ask the broker may take its tokens from a cached key set.
    pub cached_until: Timestamp,
}

/// What admins do to the signing keys.
pub struct SigningKeys {
    core: Core,
    access: Arc<Access>,
    keys: Arc<Keys>,
    /// They name the keys with which they sign now.
    minters: Minters,
    sealer: Arc<dyn Sealer>,
    mac: Mac,
}

impl Recorder for Actor<'_> {
    async fn append(&self, entry: Entry, at: Timestamp) -> Result<Appended, BrokerError> {
        Actor::append(self, entry, at).await
    }
}

impl SigningKeys {
    pub(super) fn new(
        core: Core,
        access: Arc<Access>,
        keys: Arc<Keys>,
        minters: Minters,
        sealer: Arc<dyn Sealer>,
        mac: Mac,
    ) -> Self {
        Self {
            core,
            access,
            keys,
            minters,
            sealer,
            mac,
        }
    }

    /// Every key's record, for admins.
    pub async fn list_keys(&self, evidence: &Evidence) -> Result<Vec<KeySummary>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.list_keys_by(unverified)).await
    }

    async fn list_keys_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<Vec<KeySummary>, BrokerError> {
        unverified.read_as(AdminAction::ManageKeys).await?;
        let now = self.core.now();
        let opened = self.keys.opened_keys(now).await?;
        let active = self.core.active()?;
        let mut signers: BTreeSet<String> = active
            .catalog()
            .resources()
            .filter_map(|resource| {
                let minter = self.minters.of_kind(resource.kind.minter())?;
                minter.signing_key(resource, now)
            })
            .collect();
        let current = self.core.ledger().keys();
        signers.extend(current.first().map(|key| key.signer.kid().to_owned()));
        Ok(opened
            .records
            .into_iter()
            .map(|record| KeySummary {
                signing: signers.contains(&record.kid),
                record,
            })
            .collect())
    }

    /// Makes the next access-token key now; it signs once it has been published long enough.
    #[instrument(skip_all)]
    pub async fn rotate_keys(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.access.call(evidence);
        call.run(async |unverified| {
            let changed = self.rotate(unverified, KeyWish::Rotate).await?;
            Ok(changed.row.kid)
        })
        .await
    }

    /// Rotates the log's key: a leaf names the new one, and checkpoints are signed by both for a
    /// while.
    #[instrument(skip_all)]
    pub async fn rotate_ledger_key(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.access.call(evidence);
        call.run(async |unverified| {
            let changed = self.rotate(unverified, KeyWish::RotateLedger).await?;
            changed.public.ok_or_else(no_key)
        })
        .await
    }

    async fn rotate(
        &self,
        unverified: Unverified<'_>,
        wish: KeyWish<'_>,
    ) -> Result<KeyChange, BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageKeys).await?;
        let changed = self.keys.change(&admin, wish, &admin.name()).await?;
        let changed = changed.ok_or_else(no_key)?;
        self.keys.take_keys(self.core.now()).await?;
        Ok(changed)
    }

    /// Withdraws an access-token key at once, and cuts off what it signed. A dry run touches nothing.
    #[instrument(skip_all)]
    pub async fn revoke_key(
        &self,
        evidence: &Evidence,
        kid: &str,
        dry_run: bool,
    ) -> Result<KeyWithdrawal, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.revoke_key_by(unverified, kid, dry_run))
            .await
    }

    async fn revoke_key_by(
        &self,
        unverified: Unverified<'_>,
        kid: &str,
        dry_run: bool,
    ) -> Result<KeyWithdrawal, BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageKeys).await?;
        let now = self.core.now();
        // Of a key that is in use nothing has to be read: a row that was forged beside it must not
        // keep it from being cut off.
        let keys = self.keys.access_tokens();
        if !keys.iter().any(|key| key.record.kid == kid) {
            self.check_revocable(kid, now).await?;
        }
        admin.use_up().await?;
        let mut withdrawal = self.withdrawal(kid, now);
        if dry_run {
            let selector = Selector::SigningKey(kid.to_owned());
            let counting = self
                .core
                .store()
                .count_matching(&selector, u64::MAX, now, now);
            let (matched, _) = counting.await?;
            withdrawal.matched = Some(matched);
            return Ok(withdrawal);
        }
        let cutoff = Cutoff {
            id: CutoffId::new(now, self.core.random())?,
            index: 0,
            selector: Selector::SigningKey(kid.to_owned()),
            block: Block::UntilLifted,
            reason: "the key was revoked".into(),
            by: admin.name(),
            deny_policy_target: None,
            requested_at: now,
            committed_at: now,
            lifted_index: None,
        };
        // The cutoff first: what the key signed is dead before the key is gone.
        let reason = self.core.commitment(b"the key was revoked".to_vec())?;
        let entry = Entry::Cutoff(Box::new(NewCutoff { cutoff, reason }));
        let appended = admin.append(entry, now).await?;
        if !matches!(appended, Appended::Recorded(_)) {
            let why = "the key's cutoff was not recorded";
            return Err(BrokerError::FailClosed(why.into()));
        }
        // The same act goes on: it is not judged by what comes between its two leaves.
        let wish = KeyWish::Revoke(kid);
        self.keys.change_own(wish, &admin.name()).await?;
        self.keys.follow(now).await?;
        withdrawal.done = true;
        Ok(withdrawal)
    }

    /// What follows from the withdrawal of a key at `now`, by the keys that are loaded.
    fn withdrawal(&self, kid: &str, now: Timestamp) -> KeyWithdrawal {
        let KeyPolicy {
            algorithm,
            schedule,
            imported,
            ..
        } = self.keys.policy();
        let purpose = KeyPurpose::AccessToken;
        let keys = self.keys.access_tokens();
        let mut records: Vec<_> = keys.iter().map(|key| key.record.clone()).collect();
        let signer = |records: &[SigningKeyRecord], at| {
            let signer = signer_preferring(records, purpose, *algorithm, schedule, at);
            signer.map(|record| record.kid.clone())
        };
        let signing = signer(&records, now).as_deref() == Some(kid);
        records.retain(|record| record.kid != kid);
        let successor = signer(&records, now);
        let lead = schedule.publish_lead_seconds;
        let known_at = records
            .iter()
            .map(|record| record.published_at.plus_seconds(lead))
            .filter(|at| signer(&records, *at).is_some());
        let made_at_once = imported.load().is_none().then(|| now.plus_seconds(lead));
        let resumes_at = known_at.chain(made_at_once).min();
        KeyWithdrawal {
            kid: kid.to_owned(),
            done: false,
            signing,
            resumes_at: resumes_at.filter(|_| successor.is_none()),
            successor,
            matched: None,
            cached_until: now.plus_seconds(lead),
        }
    }

    /// Whether a key is there, and one of access tokens.
    async fn check_revocable(&self, kid: &str, now: Timestamp) -> Result<(), BrokerError> {
        let records = self.keys.opened_keys(now).await?.records;
        let found = records.into_iter().find(|record| record.kid == kid);
        let record = found.ok_or(BrokerError::NotFound("key"))?;
        if record.purpose == KeyPurpose::AccessToken {
            return Ok(());
        }
        Err(BrokerError::Invalid {
            pointer: "/kid",
            detail: "only keys of access tokens are revoked here; the log's key is rotated".into(),
        })
    }
}

fn no_key() -> BrokerError {
    BrokerError::FailClosed("no key was made".into())
}
