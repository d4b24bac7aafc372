//! Our own signing keys: made, published before they sign, rotated on schedule, withdrawn.
//!
//! Rows hold the private key in a sealed envelope, dates, and a MAC over both. What is public is
//! computed from the private key that was opened. Every change is a leaf in the transaction that
//! makes it. Replicas find each other's keys by looking at the store now and then; a key is
//! published for longer than that before it signs.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use tracing::{info, instrument, warn};

use super::access::Unverified;
use super::key_changes::KeyWish;
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::keyring::{
    KeyPurpose, KeySchedule, NewKey, SigningKeyRecord, ledger_order, newest_ledger_key,
    plan_rotation, signer_preferring,
};
use crate::crypto::sealer::Sealer;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer};
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::succession::Succession;
use crate::ids::CutoffId;
use crate::ledger::entry::{Entry, Genesis, NewCutoff};
use crate::ledger::{Appended, LedgerKey, LedgerKeySource, LedgerKeys};
use crate::merkle::VerifierKey;
use crate::mint::aws::federation::FederationKeys;
use crate::mint::jwt::{AccessTokenKeys, LoadedKey};
use crate::policy::AdminAction;
use crate::store::keys::SigningKeyRow;
use crate::store::{Store, StoreError};

/// A key that the operator brought along, which a running broker can take over anew.
pub type ImportedKey = Arc<ArcSwapOption<PrivateKey>>;

/// How keys are made and follow one another.
#[derive(Clone, Debug)]
pub struct KeyPolicy {
    /// What access tokens are signed with.
    pub algorithm: Algorithm,
    /// How their keys follow one another.
    pub schedule: KeySchedule,
    /// The operator's own key, for RS256, which cannot be made here.
    pub imported: ImportedKey,
    /// The name of the log, which its keys bear.
    pub origin: String,
}

/// The most keys that one round creates. The next round creates the keys that are still due.
const MAX_KEYS_AT_ONCE: u64 = 6;

/// How long the previous ledger key signs along after a rotation.
pub(super) const LEDGER_OVERLAP_SECONDS: u64 = 30 * 86_400;

/// A row that cannot be used, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// A row was not written by a broker of this log.
    #[error("{0}; if a sealing key was taken away, check TASKPASS_SEALING_KEYS")]
    Forged(String),
    /// The envelope does not hold the key that the row names.
    #[error("signing key {0}: its envelope holds another key; check TASKPASS_SEALING_KEYS")]
    Tampered(String),
    /// The envelope does not open.
    #[error("signing key {kid}: {why}; check TASKPASS_SEALING_KEYS")]
    Sealed {
        /// Which.
        kid: String,
        /// Why.
        why: String,
    },
    /// The store did not answer, or nothing could be made.
    #[error("{0}")]
    Unavailable(String),
}

/// All keys of the store, opened.
pub struct OpenedKeys {
    /// Access-token keys, those no longer published left out.
    pub access: Vec<LoadedKey>,
    /// Ledger keys, the current one first.
    pub ledger: Vec<LedgerKey>,
    /// For tokens that are shown to AWS.
    pub federation: Vec<LoadedKey>,
    /// When the current ledger key ends; nothing where it has no end.
    pub ledger_key_ends: Option<Timestamp>,
    /// Every record.
    pub records: Vec<SigningKeyRecord>,
    /// Rows that are over, and still hold a private key.
    over: Vec<SigningKeyRow>,
}

/// No keys of federation yet.
#[must_use]
pub fn no_federation_keys() -> FederationKeys {
    Arc::default()
}

/// Reads, checks and opens the store's keys.
pub async fn open_keys(
    store: &Store,
    sealer: &dyn Sealer,
    origin: &str,
    now: Timestamp,
) -> Result<OpenedKeys, KeyProblem> {
    let verified = store.verified_signing_keys().await;
    let verified = verified.map_err(|error| match error {
        StoreError::Forged(told) => KeyProblem::Forged(told),
        other => KeyProblem::Unavailable(other.to_string()),
    })?;
    let (rows, records): (Vec<_>, Vec<_>) = verified.into_iter().unzip();
    // A log goes on with its newest key even if that ended: without one it could never go on.
    let current = newest_ledger_key(&records).cloned();
    let mut opened = OpenedKeys {
        access: Vec::new(),
        ledger: Vec::new(),
        federation: Vec::new(),
        ledger_key_ends: current
            .as_ref()
            .map(|record| record.remove_at)
            .filter(|end| *end < Timestamp::MAX),
        records: records.clone(),
        over: Vec::new(),
    };
    let mut ledger = Vec::new();
    for (row, record) in rows.into_iter().zip(records) {
        let tampered = || KeyProblem::Tampered(row.kid.clone());
        // An erased key is a removed one, whatever its dates say by the present clock. The current
        // ledger key is never over: a log needs one.
        if record.erased {
            continue;
        }
        let is_current = current.as_ref().is_some_and(|key| key.kid == record.kid);
        if record.is_over(now) && !is_current {
            opened.over.push(row);
            continue;
        }
        // A log's key is good from its leaf on. Another replica, whose clock is a little ahead, may
        // have made it a moment ago.
        let at = match record.purpose {
            KeyPurpose::Ledger => now.max(record.published_at),
            KeyPurpose::AccessToken | KeyPurpose::Federation => now,
        };
        let is_erased = row.sealed.is_empty();
        if is_erased || !(record.is_published(at) || is_current) {
            continue;
        }
        let secret = sealer
            .open(record.seal_context(), &row.sealed)
            .await
            .map_err(|error| KeyProblem::Sealed {
                kid: row.kid.clone(),
                why: error.to_string(),
            })?;
        let key = PrivateKey::from_pkcs8(record.algorithm, secret).map_err(|_| tampered())?;
        let signer = LocalSigner::new(&key).map_err(|_| tampered())?;
        if signer.kid() != record.kid {
            return Err(tampered());
        }
        let signer: Arc<dyn Signer> = Arc::new(signer);
        match record.purpose {
            KeyPurpose::AccessToken => {
                opened
                    .access
                    .push(loaded(record, signer).ok_or_else(tampered)?);
            }
            KeyPurpose::Ledger => {
                let key = ledger_key(origin, signer).ok_or_else(tampered)?;
                ledger.push((record, key));
            }
            KeyPurpose::Federation => {
                let key = loaded(record, signer).ok_or_else(tampered)?;
                opened.federation.push(key);
            }
        }
    }
    ledger.sort_by(|(one, _), (other, _)| ledger_order(other).cmp(&ledger_order(one)));
    opened.ledger = ledger.into_iter().map(|(_, key)| key).collect();
    Ok(opened)
}

/// The log's keys in the store.
pub struct StoredLedgerKeys {
    /// Where they are kept.
    pub store: Store,
    /// Opens them.
    pub sealer: Arc<dyn Sealer>,
    /// The log's name.
    pub origin: String,
    /// The time.
    pub clock: SharedClock,
}

impl LedgerKeySource for StoredLedgerKeys {
    fn read(&self) -> BoxFuture<'_, Result<Vec<LedgerKey>, String>> {
        Box::pin(async {
            let now = self.clock.now();
            let sealer = self.sealer.as_ref();
            let opened = open_keys(&self.store, sealer, &self.origin, now).await;
            let opened = opened.map_err(|problem| problem.to_string())?;
            Ok(opened.ledger)
        })
    }
}

/// Whether no other key of its purpose is newer and has its private half.
fn is_newest(records: &[SigningKeyRecord], key: &SigningKeyRecord) -> bool {
    let age = |key: &SigningKeyRecord| (key.retire_at, key.active_from);
    let usable = |other: &&SigningKeyRecord| {
        other.purpose == key.purpose && !other.erased && other.revoked_at.is_none()
    };
    let newer = |other: &SigningKeyRecord| other.kid != key.kid && age(other) > age(key);
    !records.iter().filter(usable).any(newer)
}

pub(super) fn row_of(record: &SigningKeyRecord, sealed: Vec<u8>, mac: &Mac) -> SigningKeyRow {
    SigningKeyRow {
        kid: record.kid.clone(),
        purpose: record.purpose.as_str().to_owned(),
        algorithm: record.algorithm.as_str().to_owned(),
        created_at: record.created_at,
        published_at: record.published_at,
        active_from: record.active_from,
        retire_at: record.retire_at,
        remove_at: record.remove_at,
        revoked_at: record.revoked_at,
        mac: record.tag(mac, &sealed),
        sealed,
    }
}

fn loaded(record: SigningKeyRecord, signer: Arc<dyn Signer>) -> Option<LoadedKey> {
    let jwk = serde_json::to_vec(signer.public_jwk()).ok()?;
    let verifier = VerificationKey::parse(&jwk).ok()?;
    Some(LoadedKey {
        record,
        signer,
        verifier,
    })
}

fn ledger_key(origin: &str, signer: Arc<dyn Signer>) -> Option<LedgerKey> {
    let public = signer.public_jwk().ed25519_bytes()?;
    let verifier = VerifierKey::new(origin, public).ok()?;
    Some(LedgerKey { signer, verifier })
}

/// A key that was just made, not yet in the store.
pub struct MadeKey {
    row: SigningKeyRow,
    signer: Arc<dyn Signer>,
}

impl MadeKey {
    /// Its row, which is not in the store yet.
    #[must_use]
    pub fn into_row(self) -> SigningKeyRow {
        self.row
    }

    /// Its public part, as a JWK's text.
    pub(super) fn public_jwk(&self) -> Option<String> {
        serde_json::to_string(self.signer.public_jwk()).ok()
    }

    /// As a ledger's key.
    #[must_use]
    pub fn as_ledger_key(&self, origin: &str) -> Option<LedgerKey> {
        ledger_key(origin, Arc::clone(&self.signer))
    }

    /// The first entry of a log that this key signs.
    #[must_use]
    pub fn genesis(&self, origin: &str, succeeds: Option<Succession>) -> Option<Entry> {
        let key = self.as_ledger_key(origin)?;
        Some(Entry::Genesis(Box::new(Genesis {
            vkey: key.verifier.to_string(),
            row: self.row.clone(),
            succeeds,
        })))
    }
}

/// Makes and seals a key.
pub async fn make_key(
    dates: NewKey,
    purpose: KeyPurpose,
    algorithm: Algorithm,
    imported: Option<&PrivateKey>,
    sealer: &dyn Sealer,
    mac: &Mac,
) -> Result<MadeKey, KeyProblem> {
    let unavailable = |why: String| KeyProblem::Unavailable(why);
    let private = match imported.filter(|key| key.algorithm() == algorithm) {
        Some(key) => key.clone(),
        None => PrivateKey::generate(algorithm).map_err(|e| unavailable(e.to_string()))?,
    };
    let signer = LocalSigner::new(&private).map_err(|e| unavailable(e.to_string()))?;
    let record = dates.record(signer.kid().to_owned(), purpose, algorithm);
    let envelope = sealer
        .seal(record.seal_context(), private.expose_pkcs8())
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    Ok(MadeKey {
        row: row_of(&record, envelope, mac),
        signer: Arc::new(signer),
    })
}

/// The dates of a log's key: it signs until an admin rotates it.
#[must_use]
pub fn ledger_key_dates(now: Timestamp) -> NewKey {
    NewKey {
        published_at: now,
        active_from: now,
        retire_at: Timestamp::MAX,
        remove_at: Timestamp::MAX,
    }
}

/// An empty set of access-token keys, to be filled by [`Broker::follow_keys`].
#[must_use]
pub fn no_access_keys() -> AccessTokenKeys {
    Arc::new(ArcSwap::from_pointee(Vec::new()))
}

/// The keys of a ledger, to be swapped when they change.
#[must_use]
pub fn ledger_keys(keys: Vec<LedgerKey>) -> LedgerKeys {
    Arc::new(ArcSwap::from_pointee(keys))
}

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

/// The keys that are published at `now`; without it, those that were when they were loaded.
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

impl Broker {
    /// Takes over the keys that the store holds, and makes the next one when it is due. The answer
    /// is how many were made.
    pub async fn follow_keys(&self, now: Timestamp) -> Result<u64, BrokerError> {
        let opened = self.take_keys(now).await?;
        let mut made = u64::from(self.restore_ledger_key().await?);
        for purpose in [KeyPurpose::AccessToken, KeyPurpose::Federation] {
            // Two of access tokens may be due: the one that signs and its successor.
            while made < MAX_KEYS_AT_ONCE && self.make_due_key(purpose).await? {
                made += 1;
            }
        }
        if made > 0 {
            // By the time of now: the key was made a moment after this began.
            self.take_keys(self.now()).await?;
        }
        self.erase(&opened).await?;
        Ok(made)
    }

    /// Makes or loads the federation key that the active generation needs, so that the first request
    /// for a role of AWS finds it. Where that fails the worker that makes keys tries again.
    pub(super) async fn prepare_federation(&self) {
        let prepared = async {
            if self.federates().await? {
                self.make_due_key(KeyPurpose::Federation).await?;
                self.take_keys(self.now()).await?;
            }
            Ok::<_, BrokerError>(())
        };
        if let Err(error) = prepared.await {
            warn!(%error, "the federation key was not made yet; it is tried again");
        }
    }

    /// Loads the keys that the store holds, and makes none. While the clock is in doubt this is all
    /// that can be done.
    pub async fn load_keys(&self, now: Timestamp) -> Result<(), BrokerError> {
        self.take_keys(now).await.map(drop)
    }

    /// The dates of the key that has to be made now, if one has.
    pub(super) async fn due(
        &self,
        records: &[SigningKeyRecord],
        purpose: KeyPurpose,
        now: Timestamp,
    ) -> Result<Option<NewKey>, BrokerError> {
        let policy = &self.parts.key_policy;
        let algorithm = self.algorithm(purpose);
        let Some(due) = plan_rotation(records, purpose, algorithm, &policy.schedule, now) else {
            return Ok(None);
        };
        let needed = match purpose {
            // The operator's own key is replaced by the operator.
            KeyPurpose::AccessToken => {
                policy.imported.load().is_none() || !records.iter().any(|key| self.is_imported(key))
            }
            KeyPurpose::Federation => self.federates().await?,
            KeyPurpose::Ledger => false,
        };
        Ok(needed.then_some(due))
    }

    /// Whether the broker needs AWS to trust it: for a registered role, or for the list of denied
    /// sessions of a role that was registered once, here or in a log that this one succeeds.
    async fn federates(&self) -> Result<bool, BrokerError> {
        let registered = self.active().is_ok_and(|active| {
            let mut resources = active.catalog().resources();
            resources.any(|resource| resource.kind.needs_federation())
        });
        if registered {
            return Ok(true);
        }
        let places = self.store().deny_places().await?;
        Ok(places.iter().any(|place| {
            let minter = self.minters().of_kind(place.minter);
            let list = minter.and_then(|minter| minter.deny_list());
            list.is_some_and(|list| list.needs_federation(place))
        }))
    }

    /// Forgets private keys that nothing needs any more. Their rows stay: a purpose that has signed
    /// before starts differently from one that never has.
    /// It goes by the horizon, since it cannot be undone, and leaves the newest of each purpose.
    async fn erase(&self, opened: &OpenedKeys) -> Result<(), BrokerError> {
        if opened.over.is_empty() {
            return Ok(());
        }
        let horizon = self.horizon().await?;
        for row in &opened.over {
            let record = row.claimed().filter(|record| {
                record.revoked_at.is_some()
                    || record.is_over(horizon) && !is_newest(&opened.records, record)
            });
            if let Some(record) = record {
                let mac = record.tag(&self.parts.mac, &[]);
                let erased = self.store().reseal_key(&row.kid, &row.mac, &[], &mac);
                if erased.await? {
                    info!(kid = row.kid, "a private key that is over was erased");
                }
            }
        }
        Ok(())
    }

    fn is_imported(&self, record: &SigningKeyRecord) -> bool {
        let imported = self.parts.key_policy.imported.load_full();
        let signer = imported.and_then(|key| LocalSigner::new(&key).ok());
        signer.is_some_and(|signer| signer.kid() == record.kid)
    }

    pub(super) async fn take_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
        let opened = self.opened_keys(now).await?;
        self.parts
            .access_keys
            .store(Arc::new(opened.access.clone()));
        self.parts
            .federation_keys
            .store(Arc::new(opened.federation.clone()));
        if !opened.ledger.is_empty() {
            self.ledger().take_keys(opened.ledger.clone());
        }
        self.note_ledger_key(opened.ledger_key_ends, now);
        Ok(opened)
    }

    async fn opened_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
        let opened = open_keys(
            self.store(),
            self.parts.sealer.as_ref(),
            &self.parts.key_policy.origin,
            now,
        )
        .await;
        opened.map_err(|problem| BrokerError::FailClosed(problem.to_string()))
    }

    /// The published keys as a JWK set (RFC 7517).
    #[must_use]
    pub fn published_jwks(&self) -> serde_json::Value {
        jwks(&self.parts.access_keys.load(), self.certain_now())
    }

    /// The published keys of the federation with AWS, as a JWK set.
    #[must_use]
    pub fn federation_jwks(&self) -> serde_json::Value {
        jwks(&self.parts.federation_keys.load(), self.certain_now())
    }

    /// The algorithms of published keys.
    #[must_use]
    pub fn signing_algorithms(&self) -> Vec<&'static str> {
        vec![self.parts.key_policy.algorithm.as_str()]
    }

    /// How long verifiers may cache the published keys.
    #[must_use]
    pub fn jwks_cache_seconds(&self) -> u64 {
        self.parts.key_policy.schedule.publish_lead_seconds
    }

    /// Every key's record, for admins.
    pub async fn list_keys(&self, evidence: &Evidence) -> Result<Vec<KeySummary>, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.list_keys_by(unverified)).await
    }

    async fn list_keys_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<Vec<KeySummary>, BrokerError> {
        unverified.read_as(AdminAction::ManageKeys).await?;
        let now = self.now();
        let opened = self.opened_keys(now).await?;
        let active = self.active()?;
        let mut signers: BTreeSet<String> = active
            .catalog()
            .resources()
            .filter_map(|resource| {
                let minter = self.minters().of_kind(resource.kind.minter())?;
                minter.signing_key(resource, now)
            })
            .collect();
        let current = self.ledger().keys();
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

    /// Withdraws an access-token key at once, and cuts off what it signed. A dry run touches nothing.
    #[instrument(skip_all)]
    pub async fn revoke_key(
        &self,
        evidence: &Evidence,
        kid: &str,
        dry_run: bool,
    ) -> Result<KeyWithdrawal, BrokerError> {
        let call = self.call(evidence);
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
        let now = self.now();
        // Of a key that is in use nothing has to be read: a row that was forged beside it must not
        // keep it from being cut off.
        let keys = self.parts.access_keys.load_full();
        if !keys.iter().any(|key| key.record.kid == kid) {
            self.check_revocable(kid, now).await?;
        }
        admin.use_up().await?;
        let mut withdrawal = self.withdrawal(kid, now);
        if dry_run {
            let selector = Selector::SigningKey(kid.to_owned());
            let radius = self.blast_radius(&selector, u64::MAX, now).await?;
            withdrawal.matched = Some(radius.matched);
            return Ok(withdrawal);
        }
        let cutoff = Cutoff {
            id: CutoffId::new(now, &self.random)?,
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
        let reason = self.commitment(b"the key was revoked".to_vec())?;
        let entry = Entry::Cutoff(Box::new(NewCutoff { cutoff, reason }));
        let appended = admin.append(entry, now).await?;
        if !matches!(appended, Appended::Recorded(_)) {
            let why = "the key's cutoff was not recorded";
            return Err(BrokerError::FailClosed(why.into()));
        }
        // The same act goes on: it is not judged by what comes between its two leaves.
        self.change_keys(None, KeyWish::Revoke(kid), &admin.name())
            .await?;
        self.follow_keys(now).await?;
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
        } = &self.parts.key_policy;
        let purpose = KeyPurpose::AccessToken;
        let keys = self.parts.access_keys.load_full();
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
        let records = self.opened_keys(now).await?.records;
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
