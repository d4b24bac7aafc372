//! Which roles an identity has.

use super::codec::unsigned;
use super::{Store, StoreError, read_current};

/// A role of an identity, with the MAC that protects the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminBinding {
    /// Who.
    pub identity: String,
    /// Which role.
    pub role: String,
    /// The leaf that gave it.
    pub index: u64,
    /// Over all of these.
    pub mac: Vec<u8>,
}

impl Store {
    /// The roles of one identity.
    pub async fn roles_of(&self, identity: &str) -> Result<Vec<AdminBinding>, StoreError> {
        let rows: Vec<(String, String, i64, Vec<u8>)> = read_current!(self, db => {
            sqlx::query_as(
                "/* roles_of */ SELECT identity, role, idx, mac FROM admin_binding \
                 WHERE identity = $1 ORDER BY role",
            )
            .bind(identity)
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(binding).collect()
    }

    /// All bindings.
    pub async fn admin_bindings(&self) -> Result<Vec<AdminBinding>, StoreError> {
        let rows: Vec<(String, String, i64, Vec<u8>)> = read_current!(self, db => {
            sqlx::query_as(
                "/* admin_bindings */ SELECT identity, role, idx, mac FROM admin_binding \
                 ORDER BY identity, role",
            )
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(binding).collect()
    }
}

fn binding(
    (identity, role, index, mac): (String, String, i64, Vec<u8>),
) -> Result<AdminBinding, StoreError> {
    Ok(AdminBinding {
        identity,
        role,
        index: unsigned("admin binding", index)?,
        mac,
    })
}
