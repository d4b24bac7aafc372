//! The broker's sealed signing keys, and the renewal of the MACs of other rows: cutoffs,
//! activations, role bindings and workload keys.
//!
//! `verified_signing_keys` reads the keys and checks their MACs; `signing_keys` does not check
//! them. `keys_basis` identifies the state of a purpose's keys. `reseal_key` and the `remac_…`
//! functions replace envelopes and MACs after a change of the sealing keys.
//!
//! The rules: a row is replaced only if it still has the MAC that was read (compare and swap). A
//! public key is derived from the opened private key, never read from a row. A row that no broker
//! wrote is not accepted as a key. Failures: a forged key is `Forged` and stops the ledger.
//! `Ok(false)` means that the row has changed since it was read and was left alone. `broker::keys`
//! and `broker::signing_keys` call this module, and make the new MACs and envelopes; new keys are
//! written by the ledger's transaction (`append::acts`).

use sqlx::FromRow;

use super::admins::AdminBinding;
use super::workload_keys::WorkloadKeyRow;
use super::{Store, StoreError, read_current, write};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError, sha256_parts};
use crate::crypto::keyring::SigningKeyRecord;
use crate::ids::CutoffId;

/// A signing key's row. The public key is derived from the opened private key, never read here.
#[derive(Clone, Debug, FromRow)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SigningKeyRow {
    pub kid: String,
    /// The purpose: access tokens, checkpoints and so on.
    pub purpose: String,
    pub algorithm: String,
    /// The private key in a sealed envelope; empty once it was erased.
    pub sealed: Vec<u8>,
    pub created_at: Timestamp,
    /// When the key was first published.
    pub published_at: Timestamp,
    /// From when on it may sign.
    pub active_from: Timestamp,
    /// When it stops signing.
    pub retire_at: Timestamp,
    /// When it stops being published.
    pub remove_at: Timestamp,
    /// When it was revoked. `None` if it was not.
    pub revoked_at: Option<Timestamp>,
    /// The MAC over the other fields, so that a write to the table cannot revive a key.
    pub mac: Vec<u8>,
}

impl SigningKeyRow {
    /// The table and the row, for error messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("the table signing_key: the key `{}`", self.kid)
    }

    /// The content of the row, without a check of the MAC. `None` if its purpose or algorithm is
    /// unknown; no broker writes such a row.
    #[must_use]
    pub fn claimed(&self) -> Option<SigningKeyRecord> {
        Some(SigningKeyRecord {
            kid: self.kid.clone(),
            purpose: self.purpose.parse().ok()?,
            algorithm: self.algorithm.parse().ok()?,
            created_at: self.created_at,
            published_at: self.published_at,
            active_from: self.active_from,
            retire_at: self.retire_at,
            remove_at: self.remove_at,
            revoked_at: self.revoked_at,
            erased: self.sealed.is_empty(),
        })
    }

    /// Checks the MAC and returns the key's record. Opens no envelope.
    pub fn open(&self, mac: &Mac) -> Result<SigningKeyRecord, MacError> {
        let record = self.claimed().ok_or(MacError::Mismatch)?;
        record.verify_tag(mac, &self.sealed, &self.mac)?;
        Ok(record)
    }
}

/// A digest over all keys of a purpose in their present state. A change of keys is planned from
/// such a state. The ledger records the change only if the rows still have the same digest under
/// its lock.
#[must_use]
pub fn keys_basis(rows: &[SigningKeyRow], purpose: &str) -> [u8; 32] {
    let of_purpose = rows.iter().filter(|row| row.purpose == purpose);
    let mut fields: Vec<[&[u8]; 2]> = of_purpose
        .map(|row| [row.kid.as_bytes(), row.mac.as_slice()])
        .collect();
    fields.sort_unstable();
    sha256_parts(purpose, &fields.concat())
}

/// All columns of all keys, oldest first.
pub(super) const SIGNING_KEYS: &str = "/* signing_keys */ SELECT kid, purpose, algorithm, sealed, \
     created_at, published_at, active_from, retire_at, remove_at, revoked_at, mac \
     FROM signing_key ORDER BY created_at, kid";

impl Store {
    /// Every signing key, oldest first. Does not check the MACs.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, StoreError> {
        Ok(read_current!(self, db => sqlx::query_as(SIGNING_KEYS).fetch_all(db).await?))
    }

    /// Every signing key with its record, oldest first. A forged row fails the read, and
    /// `check_row` stops the ledger.
    pub async fn verified_signing_keys(
        &self,
    ) -> Result<Vec<(SigningKeyRow, SigningKeyRecord)>, StoreError> {
        let rows = self.signing_keys().await?;
        let verified = |row: SigningKeyRow| {
            let record = self.check_row(row.name(), |mac| row.open(mac))?;
            Ok((row, record))
        };
        rows.into_iter().map(verified).collect()
    }

    /// Replaces a key's envelope and MAC, if the row still has the MAC `old`. A row that changed
    /// since it was read has other dates, which the new MAC does not cover. Returns whether the row
    /// was replaced.
    pub async fn reseal_key(
        &self,
        kid: &str,
        old: &[u8],
        sealed: &[u8],
        mac: &[u8],
    ) -> Result<bool, StoreError> {
        // Takes the ledger's lock, because a change of keys compares the MACs of these rows with
        // its basis under that lock. A concurrent change is recorded either before this update,
        // which then changes nothing, or after it, and is then planned again. SQLite has one
        // writer. The other tables need no lock: no entry of the ledger compares their MACs.
        let sql = match self {
            Self::Postgres(_) => {
                "/* reseal_key */ UPDATE signing_key SET sealed = $3, mac = $4 \
                 WHERE kid = $1 AND mac = $2 \
                 AND 1 = (SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE)"
            }
            Self::Sqlite(_) => {
                "/* reseal_key */ UPDATE signing_key SET sealed = $3, mac = $4 \
                 WHERE kid = $1 AND mac = $2"
            }
        };
        let replaced = write!(self, db => {
            sqlx::query(sql)
                .bind(kid)
                .bind(old)
                .bind(sealed)
                .bind(mac)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(replaced == 1)
    }

    /// Replaces the MAC `old` of a cutoff's row by one under a newer sealing key. Returns false if
    /// the row has another MAC by now, because the cutoff was lifted; the row then stays as it is.
    pub async fn remac_cutoff(
        &self,
        id: CutoffId,
        old: &[u8],
        mac: &[u8],
    ) -> Result<bool, StoreError> {
        let replaced = write!(self, db => {
            sqlx::query("/* remac_cutoff */ UPDATE cutoff SET mac = $3 WHERE id = $1 AND mac = $2")
                .bind(id)
                .bind(old)
                .bind(mac)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(replaced == 1)
    }

    /// Replaces the MAC `old` of the activation by the leaf at `index`. Returns false if the row
    /// has another MAC by now; it then stays as it is.
    pub async fn remac_activation(
        &self,
        index: u64,
        old: &[u8],
        mac: &[u8],
    ) -> Result<bool, StoreError> {
        let replaced = write!(self, db => {
            sqlx::query("/* remac_activation */ UPDATE activation SET mac = $3 WHERE idx = $1 AND mac = $2")
                .bind(super::codec::signed(index))
                .bind(old)
                .bind(mac)
                .execute(db)
                .await?
                .rows_affected()
        });
        Ok(replaced == 1)
    }

    /// Replaces the MAC of a role binding's row, if the row is still `old`. Returns whether it was
    /// replaced.
    pub async fn remac_binding(&self, old: &AdminBinding, mac: &[u8]) -> Result<bool, StoreError> {
        let replaced = write!(self, db => {
            sqlx::query(
                "/* remac_binding */ UPDATE admin_binding SET mac = $5 \
                 WHERE identity = $1 AND role = $2 AND idx = $3 AND mac = $4",
            )
            .bind(&old.identity)
            .bind(&old.role)
            .bind(super::codec::signed(old.index))
            .bind(&old.mac)
            .bind(mac)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(replaced == 1)
    }

    /// Replaces the MAC of a workload key's row, if the row is still `old`. Returns whether it was
    /// replaced.
    pub async fn remac_workload_key(
        &self,
        old: &WorkloadKeyRow,
        mac: &[u8],
    ) -> Result<bool, StoreError> {
        let replaced = write!(self, db => {
            sqlx::query(
                "/* remac_workload_key */ UPDATE workload_key SET mac = $6 \
                 WHERE attestor = $1 AND workload = $2 AND thumbprint = $3 AND idx = $4 AND mac = $5",
            )
            .bind(&old.attestor)
            .bind(&old.workload)
            .bind(&old.thumbprint)
            .bind(super::codec::signed(old.index))
            .bind(&old.mac)
            .bind(mac)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(replaced == 1)
    }
}
