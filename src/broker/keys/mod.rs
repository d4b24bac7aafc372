//! The broker's own signing keys: creates them, publishes them before they sign, rotates them on
//! schedule, and erases them.
//!
//! `Keys::follow` loads the keys of the store, creates those that are due and erases those that are
//! not needed; `Keys::load` only loads. The public parts are `published_jwks` and
//! `federation_jwks`. `changes` plans and records changes; `stored` reads and seals. The rules:
//! each change is a leaf in the transaction that makes it. Replicas find each other's keys by
//! reading the store at intervals; a key is published for longer than such an interval before it
//! signs. An erased key is gone for good, so erasing goes by the horizon and keeps the newest key
//! of each purpose unless it was revoked.
//!
//! Failures: a forged row or an envelope that does not open is `FailClosed`, and the loaded keys
//! stay in use. While the clock is in doubt, all loaded keys are published, because none can be
//! said to have expired. [`Keys`] knows no callers: [`super::signing_keys`] holds the acts of
//! admins on keys. The sweeper and `app` call `follow`; `mint` signs with the loaded keys.

mod changes;
mod stored;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tracing::{info, warn};

pub(super) use self::changes::{KeyRequest, Recorder};
pub use self::stored::{
    KeyProblem, MadeKey, OpenedKeys, StoredLedgerKeys, ledger_key_dates, ledger_keys, make_key,
    open_keys,
};
use super::core::Core;
use super::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::digest::Mac;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::{KeyPurpose, KeySchedule, NewKey, SigningKeyRecord, plan_rotation};
use crate::crypto::loaded::{LoadedKey, LoadedKeys};
use crate::crypto::sealer::Sealer;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer as _};
use crate::mint::Minters;

/// A key that the operator supplied. A running broker can load it again. `None` if there is none.
pub type ImportedKey = Arc<ArcSwapOption<PrivateKey>>;

/// The configuration of the broker's keys.
#[derive(Clone, Debug)]
pub struct KeyPolicy {
    /// The signature algorithm of access tokens.
    pub algorithm: Algorithm,
    /// The rotation schedule of the keys of access tokens.
    pub schedule: KeySchedule,
    /// The operator's key. RS256 needs one, because the broker cannot generate RSA keys.
    pub imported: ImportedKey,
    /// The name of the log, which its verifier keys contain.
    pub origin: String,
}

/// The maximum number of keys that one round creates. The next round creates the keys that are
/// still due.
const MAX_KEYS_AT_ONCE: u64 = 6;

/// Creates, loads and publishes the signing keys.
pub struct Keys {
    core: Core,
    minters: Minters,
    sealer: Arc<dyn Sealer>,
    mac: Mac,
    policy: KeyPolicy,
    access_tokens: LoadedKeys,
    federation: LoadedKeys,
    /// When the current ledger key expires. `None` if it does not expire.
    ledger_key_ends: ArcSwapOption<Timestamp>,
}

/// The parts of [`Keys`] other than the core.
pub(super) struct KeysParts {
    pub(super) minters: Minters,
    pub(super) sealer: Arc<dyn Sealer>,
    pub(super) mac: Mac,
    pub(super) policy: KeyPolicy,
    /// The keys of access tokens, shared with their minter.
    pub(super) access_tokens: LoadedKeys,
    /// The keys of tokens for AWS, shared with their minter.
    pub(super) federation: LoadedKeys,
}

/// Whether no other usable key of its purpose is newer. A key is usable if it is neither erased nor
/// revoked.
fn is_newest(records: &[SigningKeyRecord], key: &SigningKeyRecord) -> bool {
    let age = |key: &SigningKeyRecord| (key.retire_at, key.active_from);
    let usable = |other: &&SigningKeyRecord| {
        other.purpose == key.purpose && !other.erased && other.revoked_at.is_none()
    };
    let newer = |other: &SigningKeyRecord| other.kid != key.kid && age(other) > age(key);
    !records.iter().filter(usable).any(newer)
}

/// The keys that are published at `now`. Without `now`, all loaded keys.
fn jwks(keys: &[LoadedKey], now: Option<Timestamp>) -> serde_json::Value {
    let jwks: Vec<serde_json::Value> = keys
        .iter()
        .filter(|key| now.is_none_or(|now| key.record.is_published(now)))
        .filter_map(|key| {
            let mut jwk = serde_json::to_value(key.signer.public_jwk()).ok()?;
            let members = jwk.as_object_mut()?;
            members.insert("kid".into(), key.record.kid.clone().into());
            members.insert("use".into(), "sig".into());
            members.insert("alg".into(), key.record.algorithm.as_str().into());
            Some(jwk)
        })
        .collect();
    serde_json::json!({ "keys": jwks })
}

impl Keys {
    /// Loads no keys yet: [`Self::load`] and [`Self::follow`] do.
    pub(super) fn new(core: Core, parts: KeysParts) -> Self {
        let KeysParts {
            minters,
            sealer,
            mac,
            policy,
            access_tokens,
            federation,
        } = parts;
        Self {
            core,
            minters,
            sealer,
            mac,
            policy,
            access_tokens,
            federation,
            ledger_key_ends: ArcSwapOption::empty(),
        }
    }

    /// Loads the keys of the store, and creates the keys that are due. Returns the number of
    /// created keys.
    pub async fn follow(&self, now: Timestamp) -> Result<u64, BrokerError> {
        let opened = self.take_keys(now).await?;
        let mut made = u64::from(self.restore_ledger_key().await?);
        for purpose in [KeyPurpose::AccessToken, KeyPurpose::Federation] {
            // Two keys of access tokens may be due: the one that signs and its successor.
            while made < MAX_KEYS_AT_ONCE && self.make_due_key(purpose).await? {
                made += 1;
            }
        }
        if made > 0 {
            // At the present instant: the key's dates are later than `now`.
            self.take_keys(self.core.now()).await?;
        }
        self.erase(&opened).await?;
        Ok(made)
    }

    /// Creates or loads the federation key that the active generation needs, so that the first
    /// request for an AWS role finds it. If this fails, the worker that creates keys tries again.
    pub(super) async fn prepare_federation(&self) {
        let prepared = async {
            if self.federates().await? {
                self.make_due_key(KeyPurpose::Federation).await?;
                self.take_keys(self.core.now()).await?;
            }
            Ok::<_, BrokerError>(())
        };
        if let Err(error) = prepared.await {
            warn!(%error, "the federation key was not created yet; the broker tries again");
        }
    }

    /// Loads the keys of the store, and creates none. The broker uses this while the clock is in
    /// doubt.
    pub async fn load(&self, now: Timestamp) -> Result<(), BrokerError> {
        self.take_keys(now).await.map(drop)
    }

    /// The dates of the key that is due now. `None` if none is due.
    pub(super) async fn due(
        &self,
        records: &[SigningKeyRecord],
        purpose: KeyPurpose,
        now: Timestamp,
    ) -> Result<Option<NewKey>, BrokerError> {
        let policy = &self.policy;
        let algorithm = self.algorithm(purpose);
        let Some(due) = plan_rotation(records, purpose, algorithm, &policy.schedule, now) else {
            return Ok(None);
        };
        let needed = match purpose {
            // While the operator's key is in use, only the operator replaces it.
            KeyPurpose::AccessToken => {
                policy.imported.load().is_none() || !records.iter().any(|key| self.is_imported(key))
            }
            KeyPurpose::Federation => self.federates().await?,
            KeyPurpose::Ledger => false,
        };
        Ok(needed.then_some(due))
    }

    /// Whether the broker needs a key that AWS trusts: for a registered role, or for the deny list
    /// of a role that was registered earlier, in this log or in one that it succeeds.
    async fn federates(&self) -> Result<bool, BrokerError> {
        let registered = self.core.active().is_ok_and(|active| {
            let mut resources = active.catalog().resources();
            resources.any(|resource| resource.kind.needs_federation())
        });
        if registered {
            return Ok(true);
        }
        let targets = self.core.store().deny_policy_targets().await?;
        Ok(targets.iter().any(|target| {
            let minter = self.minters.of_kind(target.minter);
            let list = minter.and_then(|minter| minter.deny_list());
            list.is_some_and(|list| list.needs_federation(target))
        }))
    }

    /// Erases private keys that are no longer needed. Their rows stay, because the schedule of a
    /// purpose depends on whether it has had a key before. Erasing cannot be undone, so it uses the
    /// horizon as the present, and keeps the newest key of each purpose unless it was revoked.
    async fn erase(&self, opened: &OpenedKeys) -> Result<(), BrokerError> {
        if opened.expired.is_empty() {
            return Ok(());
        }
        let horizon = self.core.horizon().await?;
        for row in &opened.expired {
            let record = row.claimed().filter(|record| {
                record.revoked_at.is_some()
                    || record.is_over(horizon) && !is_newest(&opened.records, record)
            });
            if let Some(record) = record {
                let mac = record.tag(&self.mac, &[]);
                let erased = self.core.store().reseal_key(&row.kid, &row.mac, &[], &mac);
                if erased.await? {
                    info!(
                        kid = row.kid,
                        "an expired or revoked private key was erased"
                    );
                }
            }
        }
        Ok(())
    }

    fn is_imported(&self, record: &SigningKeyRecord) -> bool {
        let imported = self.policy.imported.load_full();
        let signer = imported.and_then(|key| LocalSigner::new(&key).ok());
        signer.is_some_and(|signer| signer.kid() == record.kid)
    }

    pub(super) async fn take_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
        let opened = self.opened_keys(now).await?;
        self.access_tokens.store(Arc::new(opened.access.clone()));
        self.federation.store(Arc::new(opened.federation.clone()));
        if !opened.ledger.is_empty() {
            self.core.ledger().take_keys(opened.ledger.clone());
        }
        let ends = opened.ledger_key_ends;
        let left = ends.map(|ends| now.seconds_until(ends));
        self.core.metrics().ledger_key_left(left);
        self.ledger_key_ends.store(ends.map(Arc::new));
        Ok(opened)
    }

    /// When the current ledger key expires. `None` if it does not expire.
    pub(super) fn ledger_key_ends(&self) -> Option<Timestamp> {
        self.ledger_key_ends.load_full().map(|ends| *ends)
    }

    /// The loaded keys of access tokens.
    pub(super) fn access_tokens(&self) -> Arc<Vec<LoadedKey>> {
        self.access_tokens.load_full()
    }

    /// The configuration of the broker's keys.
    pub(super) fn policy(&self) -> &KeyPolicy {
        &self.policy
    }

    pub(super) async fn opened_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
        let opened = open_keys(
            self.core.store(),
            self.sealer.as_ref(),
            &self.policy.origin,
            now,
        )
        .await;
        opened.map_err(|problem| BrokerError::keys(problem.to_string()))
    }

    /// The published keys as a JWK set (RFC 7517).
    #[must_use]
    pub fn published_jwks(&self) -> serde_json::Value {
        jwks(&self.access_tokens.load(), self.core.certain_now())
    }

    /// The published keys of the federation with AWS, as a JWK set.
    #[must_use]
    pub fn federation_jwks(&self) -> serde_json::Value {
        jwks(&self.federation.load(), self.core.certain_now())
    }

    /// The signature algorithms of access tokens.
    #[must_use]
    pub fn signing_algorithms(&self) -> Vec<&'static str> {
        vec![self.policy.algorithm.as_str()]
    }

    /// For how many seconds verifiers may cache the published keys.
    #[must_use]
    pub fn jwks_cache_seconds(&self) -> u64 {
        self.policy.schedule.publish_lead_seconds
    }
}
