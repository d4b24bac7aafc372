//! Registered workload keys.
//!
//! [`WorkloadKeyRow`] is a row with its MAC. `workload_keys` reads the keys of one workload,
//! `registered_keys` all present ones, `all_workload_keys` the newest row of each, removed keys
//! included.
//!
//! The rule: rows are only added. The newest row of a key says whether it is registered, so a
//! removed key cannot be restored from an older row. Failures: a row with a wrong MAC is `Forged`
//! and stops the ledger. A workload without rows has no keys. `all_workload_keys` checks no MAC:
//! its callers do. `broker::administration` and the attestors of kind `key` read the keys; only the
//! ledger adds rows, by `store::append`. The JWK itself is judged by `attest::key`.

use super::codec::unsigned;
use super::{Store, StoreError, read_current};
use crate::crypto::digest::{Mac, MacError};

/// The purpose under which the MAC of a workload key is computed.
const KEY_MAC: &str = "workload_key";

/// The newest row of a key, with the MAC that protects it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct WorkloadKeyRow {
    pub attestor: String,
    pub workload: String,
    /// The key's thumbprint (RFC 7638).
    pub thumbprint: String,
    /// The public key as a JWK. `None` where the key was removed.
    pub jwk: Option<String>,
    /// The index of the leaf that records the change.
    pub index: u64,
    /// The MAC over the other fields.
    pub mac: Vec<u8>,
}

impl WorkloadKeyRow {
    /// Sets the MAC.
    #[must_use]
    pub fn seal(mut self, mac: &Mac) -> Self {
        self.mac = self.with_fields(|fields| mac.tag(KEY_MAC, fields));
        self
    }

    /// Checks the MAC.
    pub fn open(&self, mac: &Mac) -> Result<(), MacError> {
        self.with_fields(|fields| mac.verify(KEY_MAC, fields, &self.mac))
    }

    /// The table and the row, for error messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "the table workload_key: the key {} of `{}` at `{}`",
            self.thumbprint, self.workload, self.attestor
        )
    }

    fn with_fields<T>(&self, then: impl FnOnce(&[&[u8]]) -> T) -> T {
        let kind: &[u8] = if self.jwk.is_some() {
            b"added"
        } else {
            b"removed"
        };
        then(&[
            self.attestor.as_bytes(),
            self.workload.as_bytes(),
            self.thumbprint.as_bytes(),
            kind,
            self.jwk.as_deref().unwrap_or_default().as_bytes(),
            &self.index.to_be_bytes(),
        ])
    }
}

type Columns = (String, String, String, Option<String>, i64, Vec<u8>);

/// The newest row of each key.
macro_rules! newest {
    ($label:literal, $rest:literal) => {
        concat!(
            "/* ",
            $label,
            " */ SELECT attestor, workload, thumbprint, jwk, idx, mac FROM workload_key AS k \
             WHERE idx = (SELECT max(idx) FROM workload_key AS newest \
             WHERE newest.attestor = k.attestor AND newest.workload = k.workload \
             AND newest.thumbprint = k.thumbprint)",
            $rest
        )
    };
}

impl Store {
    /// The registered keys of one workload.
    pub async fn workload_keys(
        &self,
        attestor: &str,
        workload: &str,
    ) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        self.check_trusted()?;
        let rows: Vec<Columns> = read_current!(self, db => {
            sqlx::query_as(newest!(
                "workload_keys",
                " AND attestor = $1 AND workload = $2 ORDER BY thumbprint"
            ))
            .bind(attestor)
            .bind(workload)
            .fetch_all(db)
            .await?
        });
        self.registered(rows)
    }

    /// Every registered key, at most `limit`.
    pub async fn registered_keys(&self, limit: u32) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        let rows: Vec<Columns> = read_current!(self, db => {
            sqlx::query_as(newest!(
                "registered_keys",
                " AND jwk IS NOT NULL ORDER BY attestor, workload, thumbprint LIMIT $1"
            ))
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        self.registered(rows)
    }

    /// The newest row of each key, at most `limit`, including removed keys. Does not check the
    /// MACs.
    pub async fn all_workload_keys(&self, limit: u32) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        let rows: Vec<Columns> = read_current!(self, db => {
            sqlx::query_as(newest!(
                "all_workload_keys",
                " ORDER BY attestor, workload, thumbprint LIMIT $1"
            ))
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(key).collect()
    }

    fn registered(&self, rows: Vec<Columns>) -> Result<Vec<WorkloadKeyRow>, StoreError> {
        let keys: Vec<_> = rows.into_iter().map(key).collect::<Result<_, _>>()?;
        for key in &keys {
            self.check_row(key.name(), |mac| key.open(mac))?;
        }
        Ok(keys.into_iter().filter(|key| key.jwk.is_some()).collect())
    }
}

fn key(
    (attestor, workload, thumbprint, jwk, index, mac): Columns,
) -> Result<WorkloadKeyRow, StoreError> {
    Ok(WorkloadKeyRow {
        attestor,
        workload,
        thumbprint,
        jwk,
        index: unsigned("workload key", index)?,
        mac,
    })
}
