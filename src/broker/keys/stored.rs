//! The signing keys in the store. A row holds the private key in a sealed envelope, its dates, and
//! a MAC over both.
//!
//! `open_keys` reads, checks and opens all keys into `OpenedKeys`. `make_key` creates and seals one
//! (`MadeKey`). `StoredLedgerKeys` gives the ledger its keys. The rules: the public key is computed
//! from the opened private key and never read from a row. Only published keys are opened. The
//! current ledger key is opened even after its expiry, because a log without a key could not
//! continue.
//!
//! Failures, as a `KeyProblem`: `Forged` if the MAC of a row is wrong, `Sealed` if an envelope does
//! not open, `Tampered` if it holds another key than the row names, `Unavailable` if the store or
//! the sealer fails. One such row fails the whole read. `broker::keys` and `app` call this module.
//! `store::keys` verifies the MACs, `crypto::sealer` opens the envelopes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use crate::clock::{SharedClock, Timestamp};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::keyring::{
    KeyPurpose, NewKey, SigningKeyRecord, ledger_order, newest_ledger_key,
};
use crate::crypto::loaded::LoadedKey;
use crate::crypto::sealer::Sealer;
use crate::crypto::signer::{LocalSigner, PrivateKey, Signer};
use crate::domain::succession::Succession;
use crate::ledger::entry::{Entry, Genesis};
use crate::ledger::{LedgerKey, LedgerKeySource, LedgerKeys};
use crate::merkle::VerifierKey;
use crate::store::keys::SigningKeyRow;
use crate::store::{Store, StoreError};

/// Why a key cannot be used, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// No broker of this log wrote the row.
    #[error("{0}; if a sealing key was removed, check TASKPASS_SEALING_KEYS")]
    Forged(String),
    /// The envelope does not hold the key that the row names.
    #[error("signing key {0}: its envelope holds another key; check TASKPASS_SEALING_KEYS")]
    Tampered(String),
    /// The envelope does not open.
    #[error("signing key {kid}: {why}; check TASKPASS_SEALING_KEYS")]
    #[expect(missing_docs, reason = "the names say it all")]
    Sealed { kid: String, why: String },
    /// The store did not answer, or a key could not be created.
    #[error("{0}")]
    Unavailable(String),
}

/// The opened keys of the store.
pub struct OpenedKeys {
    /// The published keys of access tokens.
    pub access: Vec<LoadedKey>,
    /// The published keys of the ledger, the current one first.
    pub ledger: Vec<LedgerKey>,
    /// The published keys of tokens for AWS.
    pub federation: Vec<LoadedKey>,
    /// When the current ledger key expires. `None` if it does not expire.
    pub ledger_key_ends: Option<Timestamp>,
    /// The records of all keys, also of erased ones.
    pub records: Vec<SigningKeyRecord>,
    /// The rows of expired and revoked keys that still hold a private key.
    pub(super) expired: Vec<SigningKeyRow>,
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
    // A log keeps using its newest key even if that has expired. Without a key it could not
    // continue.
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
        expired: Vec::new(),
    };
    let mut ledger = Vec::new();
    for (row, record) in rows.into_iter().zip(records) {
        let tampered = || KeyProblem::Tampered(row.kid.clone());
        // An erased key counts as removed, regardless of its dates. The current ledger key never
        // counts as expired, because a log needs one.
        if record.erased {
            continue;
        }
        let is_current = current.as_ref().is_some_and(|key| key.kid == record.kid);
        if record.is_over(now) && !is_current {
            opened.expired.push(row);
            continue;
        }
        // A log's key is valid from its leaf on. Another replica, whose clock is slightly ahead,
        // may have just created it.
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

/// Reads the log's keys from the store.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct StoredLedgerKeys {
    pub store: Store,
    /// Opens the envelopes of the keys.
    pub sealer: Arc<dyn Sealer>,
    pub origin: String,
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

/// A created key that is not in the store yet.
pub struct MadeKey {
    row: SigningKeyRow,
    signer: Arc<dyn Signer>,
}

impl MadeKey {
    /// Its row, to be inserted into the store.
    #[must_use]
    pub fn into_row(self) -> SigningKeyRow {
        self.row
    }

    /// Its public key, as the text of a JWK.
    pub(super) fn public_jwk(&self) -> Option<String> {
        serde_json::to_string(self.signer.public_jwk()).ok()
    }

    /// The key as a ledger key. `None` if it has another algorithm, or if `origin` is no valid
    /// name.
    #[must_use]
    pub fn as_ledger_key(&self, origin: &str) -> Option<LedgerKey> {
        ledger_key(origin, Arc::clone(&self.signer))
    }

    /// The first entry of a log that this key signs. `None` under the same conditions as
    /// [`Self::as_ledger_key`].
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

/// Creates and seals a key. Uses `imported` instead of a new private key if its algorithm fits.
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

/// The dates of a ledger key: it signs until an admin rotates it.
#[must_use]
pub fn ledger_key_dates(now: Timestamp) -> NewKey {
    NewKey {
        published_at: now,
        active_from: now,
        retire_at: Timestamp::MAX,
        remove_at: Timestamp::MAX,
    }
}

/// The keys of a ledger, which can be replaced as a whole.
#[must_use]
pub fn ledger_keys(keys: Vec<LedgerKey>) -> LedgerKeys {
    Arc::new(ArcSwap::from_pointee(keys))
}
