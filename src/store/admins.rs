//! The roles of each identity.
//!
//! [`AdminBinding`] is a row with its MAC. `roles_of` reads one identity, `bound_roles` all present
//! roles, `admin_bindings` the newest row of each pair, removed roles included.
//!
//! The rule: rows are only added. The newest row of an identity and a role says whether it has that
//! role, so a removed role cannot be restored from an older row. Failures: a row with a wrong MAC
//! is `Forged` and stops the ledger. An identity without rows has an empty set of roles.
//! `admin_bindings` checks no MAC: its callers do. `broker::access` and `broker::administration`
//! read the roles; only the ledger adds rows, by `store::append`.

use std::collections::BTreeSet;

use super::codec::unsigned;
use super::{Store, StoreError, read_current};
use crate::crypto::digest::{Mac, MacError};

/// The purpose under which the MAC of a role binding is computed.
const BINDING_MAC: &str = "admin_binding";

/// The newest row of an identity and a role, with the MAC that protects it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct AdminBinding {
    pub identity: String,
    pub role: String,
    /// True where the role was given, false where it was removed.
    pub bound: bool,
    /// The index of the leaf that records the change.
    pub index: u64,
    /// The MAC over the other fields.
    pub mac: Vec<u8>,
}

impl AdminBinding {
    /// Sets the MAC.
    #[must_use]
    pub fn seal(mut self, mac: &Mac) -> Self {
        self.mac = self.with_fields(|fields| mac.tag(BINDING_MAC, fields));
        self
    }

    /// Checks the MAC.
    pub fn open(&self, mac: &Mac) -> Result<(), MacError> {
        self.with_fields(|fields| mac.verify(BINDING_MAC, fields, &self.mac))
    }

    /// The table and the row, for error messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "the table admin_binding: the role `{}` of {}",
            self.role, self.identity
        )
    }

    fn with_fields<T>(&self, then: impl FnOnce(&[&[u8]]) -> T) -> T {
        let bound: &[u8] = if self.bound { b"bound" } else { b"unbound" };
        then(&[
            self.identity.as_bytes(),
            self.role.as_bytes(),
            bound,
            &self.index.to_be_bytes(),
        ])
    }
}

type Columns = (String, String, bool, i64, Vec<u8>);

/// The newest row of each identity and role.
macro_rules! newest {
    ($label:literal, $rest:literal) => {
        concat!(
            "/* ",
            $label,
            " */ SELECT identity, role, bound, idx, mac FROM admin_binding AS b \
             WHERE idx = (SELECT max(idx) FROM admin_binding AS newest \
             WHERE newest.identity = b.identity AND newest.role = b.role)",
            $rest
        )
    };
}

impl Store {
    /// The roles of one identity.
    pub async fn roles_of(&self, identity: &str) -> Result<BTreeSet<String>, StoreError> {
        self.check_trusted()?;
        let rows: Vec<Columns> = read_current!(self, db => {
            sqlx::query_as(newest!("roles_of", " AND identity = $1"))
                .bind(identity)
                .fetch_all(db)
                .await?
        });
        let mut roles = BTreeSet::new();
        for binding in rows.into_iter().map(binding) {
            let binding = binding?;
            self.check_row(binding.name(), |mac| binding.open(mac))?;
            if binding.bound {
                roles.insert(binding.role);
            }
        }
        Ok(roles)
    }

    /// The newest row of each identity and role, including removed roles. Does not check the MACs.
    pub async fn admin_bindings(&self) -> Result<Vec<AdminBinding>, StoreError> {
        let rows: Vec<Columns> = read_current!(self, db => {
            sqlx::query_as(newest!("admin_bindings", " ORDER BY identity, role"))
                .fetch_all(db)
                .await?
        });
        rows.into_iter().map(binding).collect()
    }

    /// Every role that an identity has now; checks the MACs.
    pub async fn bound_roles(&self) -> Result<Vec<AdminBinding>, StoreError> {
        let mut bound = self.admin_bindings().await?;
        for binding in &bound {
            self.check_row(binding.name(), |mac| binding.open(mac))?;
        }
        bound.retain(|binding| binding.bound);
        Ok(bound)
    }
}

fn binding((identity, role, bound, index, mac): Columns) -> Result<AdminBinding, StoreError> {
    Ok(AdminBinding {
        identity,
        role,
        bound,
        index: unsigned("admin binding", index)?,
        mac,
    })
}
