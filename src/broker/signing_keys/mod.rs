//! The acts of admins on the signing keys: list, rotate, revoke and reseal them.
//!
//! `list_keys` reads. `rotate_keys` and `rotate_ledger_key` add a key. `revoke_key` records a
//! cutoff of the key's sessions first and then revokes the key, so that the sessions end even if
//! the second step fails. `reseal` is in a file of its own.
//!
//! The rule: every act requires the right `manageKeys` and is a leaf. Only keys of access tokens
//! can be revoked; a ledger key is rotated instead. Failures: an unknown key is `NotFound`, a key
//! of another purpose `Invalid`, too many published keys `TooManyKeys`. `FailClosed` after the
//! cutoff of a revocation means that the sessions have ended and that the call must be repeated for
//! the key. `http::admin` calls this module. `access` authorizes, `broker::keys` plans and records
//! the change, and each minter names the key that it signs with.

mod reseal;

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::instrument;

use super::access::{Access, Actor, Unverified};
use super::core::Core;
use super::error::BrokerError;
use super::keys::{KeyPolicy, KeyRequest, Keys, Recorder};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::crypto::keyring::{KeyPurpose, SigningKeyRecord, signer_preferring};
use crate::crypto::sealer::Sealer;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::limits::MAX_COUNTED_SESSIONS;
use crate::ids::CutoffId;
use crate::ledger::Appended;
use crate::ledger::entry::{Entry, KeyChange, NewCutoff};
use crate::mint::Minters;
use crate::policy::AdminAction;

/// A key, as admins see it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct KeySummary {
    pub record: SigningKeyRecord,
    /// Whether it signs now.
    pub signing: bool,
}

/// The effect of revoking an access-token key, or of a dry run.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct KeyWithdrawal {
    pub kid: String,
    /// Whether the key was revoked. If not, nothing was changed.
    pub done: bool,
    /// Whether the key signed new tokens until now.
    pub signing: bool,
    /// The key that signs new tokens afterwards. `None` if no key can sign at once.
    pub successor: Option<String>,
    /// When new tokens can be signed again if there is no successor. `None` if there is one, or if
    /// the operator has to supply another key.
    pub resumes_at: Option<Timestamp>,
    /// The number of live sessions whose tokens it signed, at most [`MAX_COUNTED_SESSIONS`]. `None`
    /// if they were not counted.
    pub matched: Option<u64>,
    /// Whether there are more.
    pub has_more: bool,
    /// The time until which verifiers that do not ask the broker may accept the key's tokens
    /// because of a cached key set.
    pub cached_until: Timestamp,
}

/// The acts of admins on the signing keys.
pub struct SigningKeys {
    core: Core,
    access: Arc<Access>,
    keys: Arc<Keys>,
    /// Each returns the id of the key that it signs with now.
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

    /// The records of all keys, for admins.
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

    /// Creates the next access-token key now. It signs after it has been published long enough.
    #[instrument(skip_all)]
    pub async fn rotate_keys(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.access.call(evidence);
        call.run(async |unverified| {
            let changed = self.rotate(unverified, KeyRequest::Rotate).await?;
            Ok(changed.row.kid)
        })
        .await
    }

    /// Rotates the ledger key. A leaf names the new key, and both keys sign checkpoints for a
    /// while.
    #[instrument(skip_all)]
    pub async fn rotate_ledger_key(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.access.call(evidence);
        call.run(async |unverified| {
            let changed = self.rotate(unverified, KeyRequest::RotateLedger).await?;
            changed.public.ok_or_else(no_key)
        })
        .await
    }

    async fn rotate(
        &self,
        unverified: Unverified<'_>,
        request: KeyRequest<'_>,
    ) -> Result<KeyChange, BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageKeys).await?;
        let changed = self.keys.change(&admin, request, &admin.name()).await?;
        let changed = changed.ok_or_else(no_key)?;
        self.keys.take_keys(self.core.now()).await?;
        Ok(changed)
    }

    /// Revokes an access-token key at once, and records a cutoff of the sessions whose tokens it
    /// signed. A dry run changes nothing.
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
        // Do not read the stored keys if this key is loaded: a forged row of another key must not
        // prevent its revocation.
        let keys = self.keys.access_tokens();
        if !keys.iter().any(|key| key.record.kid == kid) {
            self.check_revocable(kid, now).await?;
        }
        admin.use_up().await?;
        let mut withdrawal = self.withdrawal(kid, now);
        if dry_run {
            let selector = Selector::SigningKey(kid.to_owned());
            let store = self.core.store();
            let counted = store
                .count_matching(&selector, u64::MAX, now, now, MAX_COUNTED_SESSIONS)
                .await?;
            withdrawal.matched = Some(counted.matched);
            withdrawal.has_more = counted.has_more;
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
        // Record the cutoff first, so that the sessions end even if revoking the key then fails.
        let reason = self.core.commitment(b"the key was revoked".to_vec())?;
        let entry = Entry::Cutoff(Box::new(NewCutoff { cutoff, reason }));
        let appended = admin.append(entry, now).await?;
        if !matches!(appended, Appended::Recorded(_)) {
            let why = "the key's cutoff was not recorded";
            return Err(BrokerError::ledger(why));
        }
        // This is the second leaf of the same act, so the caller is not checked again.
        let request = KeyRequest::Revoke(kid);
        self.keys.change_own(request, &admin.name()).await?;
        self.keys.follow(now).await?;
        withdrawal.done = true;
        Ok(withdrawal)
    }

    /// The effect of revoking a key at `now`, according to the loaded keys.
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
            has_more: false,
            cached_until: now.plus_seconds(lead),
        }
    }

    /// Fails unless a key exists and is one of access tokens.
    async fn check_revocable(&self, kid: &str, now: Timestamp) -> Result<(), BrokerError> {
        let records = self.keys.opened_keys(now).await?.records;
        let found = records.into_iter().find(|record| record.kid == kid);
        let record = found.ok_or(BrokerError::NotFound("key"))?;
        if record.purpose == KeyPurpose::AccessToken {
            return Ok(());
        }
        Err(BrokerError::Invalid {
            pointer: "/kid",
            detail: "only keys of access tokens can be revoked; rotate a ledger key instead".into(),
        })
    }
}

fn no_key() -> BrokerError {
    BrokerError::ledger("no key was created")
}
