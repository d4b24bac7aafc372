//! Our own signing keys: made, published before they sign, rotated on schedule, withdrawn.
//!
//! Rows hold the private key in a sealed envelope, dates, and a MAC over both. What is public is
//! computed from the private key that was opened. Every change is a leaf in the transaction that
//! makes it. Replicas find each other's keys by looking at the store now and then; a key is
//! published for longer than that before it signs.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tracing::{info, instrument};

use super::admin::BINDING_MAC;
use super::call::Call;
use super::workloads::{self, KEY_MAC};
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::keyring::{KeyPurpose, KeySchedule, NewKey, SigningKeyRecord, plan_rotation};
use crate::crypto::sealer::Sealer;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer};
use crate::domain::aws::AwsMode;
use crate::domain::cutoff::{Block, Cutoff, Selector};
use crate::domain::succession::Succession;
use crate::ids::CutoffId;
use crate::ledger::entry::{Entry, OneTimeUse, Request};
use crate::ledger::{
    ACTIVATION_MAC, Appended, CUTOFF_MAC, LedgerKey, LedgerKeySource, LedgerKeys, SUCCESSION_MAC,
};
use crate::merkle::VerifierKey;
use crate::mint::aws::federation::{FEDERATION_ALGORITHM, FederationKeys};
use crate::mint::jwt::{AccessTokenKeys, LoadedKey};
use crate::policy::AdminAction;
use crate::store::Store;
use crate::store::cutoffs::SealedCutoff;
use crate::store::generations::Activation;
use crate::store::keys::SigningKeyRow;

/// How keys are made and follow one another.
#[derive(Clone, Debug)]
pub struct KeyPolicy {
    /// What access tokens are signed with.
    pub algorithm: Algorithm,
    /// How their keys follow one another.
    pub schedule: KeySchedule,
    /// The operator's own key, for RS256, which cannot be made here.
    pub imported: Option<PrivateKey>,
    /// The name of the log, which its keys bear.
    pub origin: String,
}

/// How long the previous ledger key signs along after a rotation.
const LEDGER_OVERLAP_SECONDS: u64 = 30 * 86_400;

/// A row that cannot be used, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// The row was changed by something other than the broker.
    #[error("signing key {0}: its row was changed by something other than the broker")]
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
    mac: &Mac,
    origin: &str,
    now: Timestamp,
) -> Result<OpenedKeys, KeyProblem> {
    let rows = store
        .signing_keys()
        .await
        .map_err(|error| KeyProblem::Unavailable(error.to_string()))?;
    let mut opened = OpenedKeys {
        access: Vec::new(),
        ledger: Vec::new(),
        federation: Vec::new(),
        records: Vec::new(),
        over: Vec::new(),
    };
    for row in rows {
        let tampered = || KeyProblem::Tampered(row.kid.clone());
        let record = record_of(&row).ok_or_else(tampered)?;
        record
            .verify_tag(mac, &row.sealed, &row.mac)
            .map_err(|_| tampered())?;
        opened.records.push(record.clone());
        if record.is_over(now) && !row.sealed.is_empty() {
            opened.over.push(row);
            continue;
        }
        // A log's key is good from its leaf on. Another replica, whose clock is a little ahead, may
        // have made it a moment ago.
        let at = match record.purpose {
            KeyPurpose::Ledger => now.max(record.published_at),
            KeyPurpose::AccessToken | KeyPurpose::Federation => now,
        };
        if !record.is_published(at) {
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
                // Rows come oldest first; the newest key is the current one.
                opened.ledger.insert(0, key);
            }
            KeyPurpose::Federation => {
                let key = loaded(record, signer).ok_or_else(tampered)?;
                opened.federation.push(key);
            }
        }
    }
    Ok(opened)
}

/// The log's keys in the store.
pub struct StoredLedgerKeys {
    /// Where they are kept.
    pub store: Store,
    /// Opens them.
    pub sealer: Arc<dyn Sealer>,
    /// Protects their rows.
    pub mac: Mac,
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
            let opened = open_keys(&self.store, sealer, &self.mac, &self.origin, now).await;
            let opened = opened.map_err(|problem| problem.to_string())?;
            Ok(opened.ledger)
        })
    }
}

fn record_of(row: &SigningKeyRow) -> Option<SigningKeyRecord> {
    Some(SigningKeyRecord {
        kid: row.kid.clone(),
        purpose: row.purpose.parse().ok()?,
        algorithm: row.algorithm.parse().ok()?,
        created_at: row.created_at,
        published_at: row.published_at,
        active_from: row.active_from,
        retire_at: row.retire_at,
        remove_at: row.remove_at,
        revoked_at: row.revoked_at,
    })
}

fn row_of(record: &SigningKeyRecord, sealed: Vec<u8>, mac: &Mac) -> SigningKeyRow {
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
    record: SigningKeyRecord,
    signer: Arc<dyn Signer>,
}

impl MadeKey {
    /// As a ledger's key.
    #[must_use]
    pub fn as_ledger_key(&self, origin: &str) -> Option<LedgerKey> {
        ledger_key(origin, Arc::clone(&self.signer))
    }

    /// The first entry of a log that this key signs.
    #[must_use]
    pub fn genesis(&self, origin: &str, succeeds: Option<Succession>) -> Option<Entry> {
        let key = self.as_ledger_key(origin)?;
        Some(Entry::Genesis {
            vkey: key.verifier.to_string(),
            row: Box::new(self.row.clone()),
            succeeds,
        })
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
        record,
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
    pub signs: bool,
}

fn jwks(keys: &[LoadedKey], now: Timestamp) -> serde_json::Value {
    let jwks: Vec<serde_json::Value> = keys
        .iter()
        .filter(|key| key.record.is_published(now))
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
        let mut opened = self.take_keys(now).await?;
        self.erase(&opened.over).await?;
        let mut made = 0;
        for purpose in [KeyPurpose::AccessToken, KeyPurpose::Federation] {
            if let Some(dates) = self.due(&opened.records, purpose, now) {
                self.add_key(None, purpose, dates, "schedule").await?;
                made += 1;
            }
        }
        if made > 0 {
            opened = self.take_keys(now).await?;
            info!(keys = opened.access.len(), made, "a signing key was made");
        }
        Ok(made)
    }

    /// The dates of the key that has to be made now, if one has.
    fn due(
        &self,
        records: &[SigningKeyRecord],
        purpose: KeyPurpose,
        now: Timestamp,
    ) -> Option<NewKey> {
        let policy = &self.parts.key_policy;
        let needed = match purpose {
            // The operator's own key is replaced by the operator.
            KeyPurpose::AccessToken => {
                policy.imported.is_none() || !records.iter().any(|key| self.is_imported(key))
            }
            KeyPurpose::Federation => self.federates(),
            KeyPurpose::Ledger => false,
        };
        let algorithm = self.algorithm(purpose);
        let due = plan_rotation(records, purpose, algorithm, &policy.schedule, now);
        due.filter(|_| needed)
    }

    fn algorithm(&self, purpose: KeyPurpose) -> Algorithm {
        match purpose {
            KeyPurpose::AccessToken => self.parts.key_policy.algorithm,
            KeyPurpose::Federation => FEDERATION_ALGORITHM,
            KeyPurpose::Ledger => Algorithm::EdDsa,
        }
    }

    /// Whether anything that is registered needs AWS to trust us.
    fn federates(&self) -> bool {
        self.active().is_ok_and(|active| {
            let mut roles = active.catalog().resources().filter_map(|r| r.aws.as_ref());
            roles.any(|role| role.mode == AwsMode::WebIdentity)
        })
    }

    /// Forgets private keys that nothing needs any more. Their rows stay: a purpose that has signed
    /// before starts differently from one that never has.
    async fn erase(&self, over: &[SigningKeyRow]) -> Result<(), BrokerError> {
        for row in over {
            if let Some(record) = record_of(row) {
                let mac = record.tag(&self.parts.mac, &[]);
                self.store()
                    .reseal_key(&row.kid, &row.mac, &[], &mac)
                    .await?;
                info!(kid = row.kid, "a private key that is over was erased");
            }
        }
        Ok(())
    }

    fn is_imported(&self, record: &SigningKeyRecord) -> bool {
        let imported = self.parts.key_policy.imported.as_ref();
        let signer = imported.and_then(|key| LocalSigner::new(key).ok());
        signer.is_some_and(|signer| signer.kid() == record.kid)
    }

    async fn take_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
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
        Ok(opened)
    }

    async fn opened_keys(&self, now: Timestamp) -> Result<OpenedKeys, BrokerError> {
        let opened = open_keys(
            self.store(),
            self.parts.sealer.as_ref(),
            &self.parts.mac,
            &self.parts.key_policy.origin,
            now,
        )
        .await;
        opened.map_err(|problem| BrokerError::FailClosed(problem.to_string()))
    }

    async fn add_key(
        &self,
        call: Option<&Call<'_>>,
        purpose: KeyPurpose,
        dates: NewKey,
        by: &str,
    ) -> Result<String, BrokerError> {
        let imported = self.parts.key_policy.imported.as_ref();
        let made = make_key(
            dates,
            purpose,
            self.algorithm(purpose),
            imported.filter(|_| purpose == KeyPurpose::AccessToken),
            self.parts.sealer.as_ref(),
            &self.parts.mac,
        )
        .await
        .map_err(|problem| BrokerError::FailClosed(problem.to_string()))?;
        let public = serde_json::to_string(made.signer.public_jwk()).ok();
        let entry = Entry::PutKey {
            row: Box::new(made.row),
            change: "added",
            public,
            by: by.to_owned(),
        };
        match self.append_key(call, entry).await? {
            Appended::Recorded(_) => Ok(made.record.kid),
            _ => Err(BrokerError::FailClosed("the key was not recorded".into())),
        }
    }

    async fn append_key(
        &self,
        call: Option<&Call<'_>>,
        entry: Entry,
    ) -> Result<Appended, BrokerError> {
        let at = self.now();
        if let Some(call) = call {
            return call.append(entry, at).await;
        }
        let request = Request {
            entry,
            one_time: OneTimeUse::default(),
            at,
        };
        Ok(self.ledger().append(request).await?)
    }

    /// The published keys as a JWK set (RFC 7517).
    #[must_use]
    pub fn published_jwks(&self) -> serde_json::Value {
        jwks(&self.parts.access_keys.load(), self.now())
    }

    /// The published keys of the federation with AWS, as a JWK set.
    #[must_use]
    pub fn federation_jwks(&self) -> serde_json::Value {
        jwks(&self.parts.federation_keys.load(), self.now())
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
        call.run(self.list_keys_by(&call)).await
    }

    async fn list_keys_by(&self, call: &Call<'_>) -> Result<Vec<KeySummary>, BrokerError> {
        self.admin(call, AdminAction::ManageKeys).await?;
        let now = self.now();
        call.consume().await?;
        let opened = self.opened_keys(now).await?;
        let active = self.active()?;
        let mut signers: BTreeSet<String> = active
            .catalog()
            .resources()
            .filter_map(|resource| {
                let minter = self.minters().of_kind(&resource.kind)?;
                minter.signing_key(resource, now)
            })
            .collect();
        let current = self.ledger().keys();
        signers.extend(current.first().map(|key| key.signer.kid().to_owned()));
        Ok(opened
            .records
            .into_iter()
            .map(|record| KeySummary {
                signs: signers.contains(&record.kid),
                record,
            })
            .collect())
    }

    /// Makes the next access-token key now; it signs once it has been published long enough.
    #[instrument(skip_all)]
    pub async fn rotate_keys(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.call(evidence);
        call.run(self.rotate_keys_by(&call)).await
    }

    async fn rotate_keys_by(&self, call: &Call<'_>) -> Result<String, BrokerError> {
        let caller = self.admin(call, AdminAction::ManageKeys).await?;
        let now = self.now();
        call.consume().await?;
        let schedule = self.parts.key_policy.schedule;
        let active_from = now.plus_seconds(schedule.publish_lead_seconds);
        let retire_at = active_from.plus_seconds(schedule.period_seconds);
        let dates = NewKey {
            published_at: now,
            active_from,
            retire_at,
            remove_at: retire_at
                .plus_seconds(schedule.max_ttl_seconds)
                .plus_seconds(schedule.margin_seconds),
        };
        let kid = self
            .add_key(Some(call), KeyPurpose::AccessToken, dates, &caller.name())
            .await?;
        self.take_keys(now).await?;
        Ok(kid)
    }

    /// Rotates the log's key: a leaf names the new one, and checkpoints are signed by both for a
    /// while.
    #[instrument(skip_all)]
    pub async fn rotate_ledger_key(&self, evidence: &Evidence) -> Result<String, BrokerError> {
        let call = self.call(evidence);
        call.run(self.rotate_ledger_key_by(&call)).await
    }

    async fn rotate_ledger_key_by(&self, call: &Call<'_>) -> Result<String, BrokerError> {
        let caller = self.admin(call, AdminAction::ManageKeys).await?;
        let now = self.now();
        call.consume().await?;
        let origin = self.ledger().origin().to_owned();
        let made = make_key(
            ledger_key_dates(now),
            KeyPurpose::Ledger,
            Algorithm::EdDsa,
            None,
            self.parts.sealer.as_ref(),
            &self.parts.mac,
        )
        .await
        .map_err(|problem| BrokerError::FailClosed(problem.to_string()))?;
        let closed = |what: &str| BrokerError::FailClosed(what.to_owned());
        let key = made.as_ledger_key(&origin);
        let vkey = key
            .ok_or_else(|| closed("the key was not made"))?
            .verifier
            .to_string();
        self.put_key(
            Some(call),
            made.row.clone(),
            "added",
            Some(vkey.clone()),
            &caller.name(),
        )
        .await?;
        let until = now.plus_seconds(LEDGER_OVERLAP_SECONDS);
        for row in self.store().signing_keys().await? {
            let old = record_of(&row).filter(|old| {
                old.purpose == KeyPurpose::Ledger
                    && old.kid != made.record.kid
                    && old.remove_at == Timestamp::MAX
            });
            if let Some(old) = old {
                self.retire(row, old, until, &caller.name()).await?;
            }
        }
        self.take_keys(now).await?;
        Ok(vkey)
    }

    /// Gives a key new dates. What it is sealed as holds its dates, so it is sealed anew.
    async fn retire(
        &self,
        row: SigningKeyRow,
        mut record: SigningKeyRecord,
        until: Timestamp,
        by: &str,
    ) -> Result<(), BrokerError> {
        let sealer = self.parts.sealer.as_ref();
        let closed = |why: String| BrokerError::FailClosed(why);
        let secret = sealer
            .open(record.seal_context(), &row.sealed)
            .await
            .map_err(|error| closed(error.to_string()))?;
        record.retire_at = until;
        record.remove_at = until;
        let envelope = sealer
            .seal(record.seal_context(), &secret)
            .await
            .map_err(|error| closed(error.to_string()))?;
        let row = row_of(&record, envelope, &self.parts.mac);
        self.put_key(None, row, "retired", None, by).await
    }

    /// Records a key of ours. An entry of an admin's call is judged by the cutoffs; one that ends
    /// an act that was begun is not.
    async fn put_key(
        &self,
        call: Option<&Call<'_>>,
        row: SigningKeyRow,
        change: &'static str,
        public: Option<String>,
        by: &str,
    ) -> Result<(), BrokerError> {
        let entry = Entry::PutKey {
            row: Box::new(row),
            change,
            public,
            by: by.to_owned(),
        };
        match self.append_key(call, entry).await? {
            Appended::Recorded(_) => Ok(()),
            _ => Err(BrokerError::FailClosed("the key was not recorded".into())),
        }
    }

    /// Withdraws an access-token key at once, and cuts off what it signed.
    #[instrument(skip_all)]
    pub async fn revoke_key(&self, evidence: &Evidence, kid: &str) -> Result<(), BrokerError> {
        let call = self.call(evidence);
        call.run(self.revoke_key_by(&call, kid)).await
    }

    async fn revoke_key_by(&self, call: &Call<'_>, kid: &str) -> Result<(), BrokerError> {
        let caller = self.admin(call, AdminAction::ManageKeys).await?;
        let now = self.now();
        let rows = self.store().signing_keys().await?;
        let found = rows.into_iter().find(|row| row.kid == kid);
        let found = found.and_then(|row| record_of(&row).map(|record| (row, record)));
        let Some((row, mut record)) = found else {
            return Err(BrokerError::NotFound("key"));
        };
        if record.purpose != KeyPurpose::AccessToken {
            return Err(BrokerError::Invalid {
                pointer: "/kid",
                detail: "only keys of access tokens are revoked here; the log's key is rotated"
                    .into(),
            });
        }
        record
            .verify_tag(&self.parts.mac, &row.sealed, &row.mac)
            .map_err(|error| BrokerError::FailClosed(error.to_string()))?;
        call.consume().await?;
        let (commitment, opening) = self.commitment(b"the key was revoked".to_vec())?;
        let cutoff = Cutoff {
            id: CutoffId::new(now, &self.random)?,
            index: 0,
            selector: Selector::SigningKey(kid.to_owned()),
            block: Block::UntilLifted,
            reason: "the key was revoked".into(),
            by: caller.name(),
            widened_to: None,
            requested_at: now,
            committed_at: now,
            lifted_index: None,
        };
        // The cutoff first: what the key signed is dead before the key is gone.
        let entry = Entry::Cutoff(Box::new(cutoff), commitment, opening);
        let appended = call.append(entry, now).await?;
        if !matches!(appended, Appended::Recorded(_)) {
            let why = "the key's cutoff was not recorded";
            return Err(BrokerError::FailClosed(why.into()));
        }
        record.revoked_at = Some(now);
        let row = row_of(&record, row.sealed, &self.parts.mac);
        // The same act goes on: it is not judged by what comes between its two leaves.
        self.put_key(None, row, "revoked", None, &caller.name())
            .await?;
        self.follow_keys(now).await?;
        Ok(())
    }

    /// Seals every key anew with the first sealing key, and renews what protects other rows. The
    /// answer is how many rows that were; afterwards older sealing keys can be removed.
    #[instrument(skip_all)]
    pub async fn reseal_keys(&self, evidence: &Evidence) -> Result<u64, BrokerError> {
        let call = self.call(evidence);
        call.run(self.reseal_keys_by(&call)).await
    }

    async fn reseal_keys_by(&self, call: &Call<'_>) -> Result<u64, BrokerError> {
        self.admin(call, AdminAction::ManageKeys).await?;
        call.consume().await?;
        let mut resealed = 0;
        for row in self.store().signing_keys().await? {
            let closed = |why: String| BrokerError::FailClosed(why);
            let record = record_of(&row).ok_or_else(|| closed("an unreadable key".into()))?;
            record
                .verify_tag(&self.parts.mac, &row.sealed, &row.mac)
                .map_err(|error| closed(error.to_string()))?;
            let sealer = self.parts.sealer.as_ref();
            // An erased key has no envelope, but its row's MAC is renewed all the same.
            let erased = row.sealed.is_empty();
            let sealed_well = erased || !sealer.needs_reseal(&row.sealed);
            if sealed_well && !self.parts.mac.is_outdated(&row.mac) {
                continue;
            }
            let envelope = if erased {
                Vec::new()
            } else {
                let secret = sealer
                    .open(record.seal_context(), &row.sealed)
                    .await
                    .map_err(|error| closed(error.to_string()))?;
                sealer
                    .seal(record.seal_context(), &secret)
                    .await
                    .map_err(|error| closed(error.to_string()))?
            };
            let mac = record.tag(&self.parts.mac, &envelope);
            self.store()
                .reseal_key(&row.kid, &row.mac, &envelope, &mac)
                .await?;
            resealed += 1;
        }
        Ok(resealed + self.renew_macs().await?)
    }

    /// Renews the MACs that an older key made. A row whose MAC does not hold is left as it is, to
    /// be refused by whoever reads it.
    async fn renew_macs(&self) -> Result<u64, BrokerError> {
        let mac = &self.parts.mac;
        let renewed = |purpose: &str, fields: &[&[u8]], old: &[u8]| {
            let holds = mac.is_outdated(old) && mac.verify(purpose, fields, old).is_ok();
            holds.then(|| mac.tag(purpose, fields))
        };
        let mut count = 0;
        for sealed in self.store().cutoffs(u32::MAX >> 1).await? {
            let owned = SealedCutoff::mac_fields(&sealed.cutoff);
            let fields: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
            if let Some(tag) = renewed(CUTOFF_MAC, &fields, &sealed.mac) {
                self.store()
                    .remac_cutoff(sealed.cutoff.id, &sealed.mac, &tag)
                    .await?;
                count += 1;
            }
        }
        if let Some(sealed) = self.store().succession().await? {
            let fields = [sealed.document.as_bytes()];
            if let Some(tag) = renewed(SUCCESSION_MAC, &fields, &sealed.mac) {
                self.store().remac_succession(&sealed.mac, &tag).await?;
                count += 1;
            }
        }
        if let Some(active) = self.store().active_generation().await? {
            let owned = Activation::mac_fields(active.index, active.digest);
            let fields: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
            if let Some(tag) = renewed(ACTIVATION_MAC, &fields, &active.mac) {
                let store = self.store();
                store
                    .remac_activation(active.index, &active.mac, &tag)
                    .await?;
                count += 1;
            }
        }
        for row in self.store().admin_bindings().await? {
            let fields = [row.identity.as_bytes(), row.role.as_bytes()];
            if let Some(tag) = renewed(BINDING_MAC, &fields, &row.mac) {
                self.store()
                    .remac_binding(&row.identity, &row.role, &row.mac, &tag)
                    .await?;
                count += 1;
            }
        }
        for row in self.store().all_workload_keys(u32::MAX >> 1).await? {
            if let Some(tag) = renewed(KEY_MAC, &workloads::fields(&row), &row.mac) {
                let store = self.store();
                store.remac_workload_key(&row, &tag).await?;
                count += 1;
            }
        }
        Ok(count)
    }
}
