//! Our own signing keys, sealed; and the renewal of what protects other rows.

use sqlx::FromRow;

use super::admins::AdminBinding;
use super::workload_keys::WorkloadKeyRow;
use super::{Store, StoreError, read_current, write};
use crate::clock::Timestamp;
use crate::crypto::digest::{Mac, MacError, sha256_parts};
use crate::crypto::keyring::SigningKeyRecord;
use crate::ids::CutoffId;

/// A signing key's row. The public part is derived from the opened private one, never read here.
#[derive(Clone, Debug, FromRow)]
pub struct SigningKeyRow {
    /// Its id.
    pub kid: String,
    /// What it signs.
    pub purpose: String,
    /// With which algorithm.
    pub algorithm: String,
    /// The private key in a sealed envelope.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was first published.
    pub published_at: Timestamp,
    /// From when on it may sign.
    pub active_from: Timestamp,
    /// When it stops signing.
    pub retire_at: Timestamp,
    /// When it stops being published.
    pub remove_at: Timestamp,
    /// When it was withdrawn.
    pub revoked_at: Option<Timestamp>,
    /// Over the dates, so that nobody revives a key by writing to the table.
    pub mac: Vec<u8>,
}

impl SigningKeyRow {
    /// What the row is called when it is refused.
    #[must_use]
    pub fn name(&self) -> String {
        format!("the table signing_key: the key `{}`", self.kid)
    }

    /// What the row says. Nothing where no broker writes such a row.
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

    /// The key's record, if a broker of this log wrote its row.
    pub fn open(&self, mac: &Mac) -> Result<SigningKeyRecord, MacError> {
        let record = self.claimed().ok_or(MacError::Mismatch)?;
        record.verify_tag(mac, &self.sealed, &self.mac)?;
        Ok(record)
    }
}

/// A digest over all keys of a purpose as they are. A change of them that was planned upon one set of
/// rows is recorded only upon the same.
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
    /// Every signing key, oldest first.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, StoreError> {
        Ok(read_current!(self, db => sqlx::query_as(SIGNING_KEYS).fetch_all(db).await?))
    }

    /// Every signing key with its record, oldest first. A row that no broker wrote stops the ledger.
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

    /// Replaces a key's envelope by one sealed with a newer sealing key, if its row is still the one
    /// with the MAC `old`: what was changed meanwhile has new dates, which these do not fit. Whether it
    /// was replaced.
    pub async fn reseal_key(
        &self,
        kid: &str,
        old: &[u8],
        sealed: &[u8],
        mac: &[u8],
    ) -> Result<bool, StoreError> {
        // Under the ledger's lock: a change of keys that was planned upon this row is recorded before,
        // and is found by its MAC, or comes after, and finds another one. SQLite has one writer.
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

    /// Replaces the MAC `old` of a cutoff's row by one made with a newer key. A row that has another
    /// by now, because the cutoff was lifted meanwhile, is left alone. Whether it was replaced.
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

    /// The same for an activation.
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

    /// The same for a role binding.
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

    /// The same for a workload's key.
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
