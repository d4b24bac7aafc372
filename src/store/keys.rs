//! Our own signing keys, sealed; and the renewal of what protects other rows.

use sqlx::FromRow;

use super::workload_keys::WorkloadKeyRow;
use super::{Store, StoreError, read_current, write};
use crate::clock::Timestamp;
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

impl Store {
    /// Every signing key, oldest first.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, StoreError> {
        Ok(read_current!(self, db => {
            sqlx::query_as(
                "/* signing_keys */ SELECT kid, purpose, algorithm, sealed, created_at, \
                 published_at, active_from, retire_at, remove_at, revoked_at, mac \
                 FROM signing_key ORDER BY created_at, kid",
            )
            .fetch_all(db)
            .await?
        }))
    }

    /// Replaces a key's envelope by one sealed with a newer sealing key, if its row is still the one
    /// with the MAC `old`: what was changed meanwhile has new dates, which these do not fit.
    pub async fn reseal_key(
        &self,
        kid: &str,
        old: &[u8],
        sealed: &[u8],
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* reseal_key */ UPDATE signing_key SET sealed = $3, mac = $4 WHERE kid = $1 AND mac = $2")
                .bind(kid)
                .bind(old)
                .bind(sealed)
                .bind(mac)
                .execute(db)
                .await?;
        });
        Ok(())
    }

    /// Replaces the MAC `old` of a cutoff's row by one made with a newer key. A row that has another
    /// by now, because the cutoff was lifted meanwhile, is left alone.
    pub async fn remac_cutoff(
        &self,
        id: CutoffId,
        old: &[u8],
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* remac_cutoff */ UPDATE cutoff SET mac = $3 WHERE id = $1 AND mac = $2")
                .bind(id)
                .bind(old)
                .bind(mac)
                .execute(db)
                .await?;
        });
        Ok(())
    }

    /// The same for an activation.
    pub async fn remac_activation(
        &self,
        index: u64,
        old: &[u8],
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* remac_activation */ UPDATE activation SET mac = $3 WHERE idx = $1 AND mac = $2")
                .bind(super::codec::signed(index))
                .bind(old)
                .bind(mac)
                .execute(db)
                .await?;
        });
        Ok(())
    }

    /// The same for a role binding.
    pub async fn remac_binding(
        &self,
        identity: &str,
        role: &str,
        old: &[u8],
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* remac_binding */ UPDATE admin_binding SET mac = $4 \
                 WHERE identity = $1 AND role = $2 AND mac = $3",
            )
            .bind(identity)
            .bind(role)
            .bind(old)
            .bind(mac)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The same for a workload's key.
    pub async fn remac_workload_key(
        &self,
        row: &WorkloadKeyRow,
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* remac_workload_key */ UPDATE workload_key SET mac = $5 \
                 WHERE attestor = $1 AND workload = $2 AND thumbprint = $3 AND mac = $4",
            )
            .bind(&row.attestor)
            .bind(&row.workload)
            .bind(&row.thumbprint)
            .bind(&row.mac)
            .bind(mac)
            .execute(db)
            .await?;
        });
        Ok(())
    }
}
