//! Registered workload keys.

use sqlx::FromRow;

use super::{Store, StoreError, read_current};

/// A registered key, with the MAC that protects the row.
#[derive(Clone, Debug, FromRow)]
pub struct WorkloadKeyRow {
    /// The attestor.
    pub attestor: String,
    /// The workload's name.
    pub workload: String,
    /// The key's thumbprint (RFC 7638).
    pub thumbprint: String,
    /// The public key as a JWK.
    pub jwk: String,
    /// Over all of these.
    pub mac: Vec<u8>,
}

impl Store {
    /// The keys of one workload.
    pub async fn workload_keys(
        &self,
        attestor: &str,
        workload: &str,
    ) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        Ok(read_current!(self, db => {
            sqlx::query_as(
                "/* workload_keys */ SELECT attestor, workload, thumbprint, jwk, mac \
                 FROM workload_key WHERE attestor = $1 AND workload = $2 ORDER BY thumbprint",
            )
            .bind(attestor)
            .bind(workload)
            .fetch_all(db)
            .await?
        }))
    }

    /// Every registered key, at most `limit`.
    pub async fn all_workload_keys(&self, limit: u32) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        Ok(read_current!(self, db => {
            sqlx::query_as(
                "/* all_workload_keys */ SELECT attestor, workload, thumbprint, jwk, mac \
                 FROM workload_key ORDER BY attestor, workload, thumbprint LIMIT $1",
            )
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        }))
    }
}
