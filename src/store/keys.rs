//! Our own signing keys, sealed; and the renewal of what protects other rows.

use sqlx::FromRow;

use super::{Store, StoreError, read, write};
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
        Ok(read!(self, db => {
            sqlx::query_as(
                "/* signing_keys */ SELECT kid, purpose, algorithm, sealed, created_at, \
                 published_at, active_from, retire_at, remove_at, revoked_at, mac \
                 FROM signing_key ORDER BY created_at, kid",
            )
            .fetch_all(db)
            .await?
        }))
    }

    /// Replaces a key's envelope by one sealed with a newer sealing key.
    pub async fn reseal_key(&self, kid: &str, sealed: &[u8], mac: &[u8]) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* reseal_key */ UPDATE signing_key SET sealed = $2, mac = $3 WHERE kid = $1")
                .bind(kid)
                .bind(sealed)
                .bind(mac)
                .execute(db)
                .await?;
        });
        Ok(())
    }

    /// Replaces the MAC of a cutoff's row by one made with a newer key.
    pub async fn remac_cutoff(&self, id: CutoffId, mac: &[u8]) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* remac_cutoff */ UPDATE cutoff SET mac = $2 WHERE id = $1")
                .bind(id)
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
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* remac_binding */ UPDATE admin_binding SET mac = $3 \
                 WHERE identity = $1 AND role = $2",
            )
            .bind(identity)
            .bind(role)
            .bind(mac)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The same for a workload's key.
    pub async fn remac_workload_key(
        &self,
        attestor: &str,
        workload: &str,
        thumbprint: &str,
        mac: &[u8],
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* remac_workload_key */ UPDATE workload_key SET mac = $4 \
                 WHERE attestor = $1 AND workload = $2 AND thumbprint = $3",
            )
            .bind(attestor)
            .bind(workload)
            .bind(thumbprint)
            .bind(mac)
            .execute(db)
            .await?;
        });
        Ok(())
    }
}
