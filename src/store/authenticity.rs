//! Checks of the rows that only a broker may write. Each carries a MAC under the sealing keys.
//!
//! `RowGuard::check` opens a row and keeps the alarm; `Store::authenticate_with` sets the key, and
//! `Store::check_rows` checks all rows that decide about validity or rights.
//!
//! The rule: the check is made here, on reading, so that no reader can omit it. The first forged
//! row is kept as the alarm: from then on the ledger is stopped, and nothing is judged by the
//! store. Failures: a wrong MAC is `Forged`, and so is every later trusted read. A store without a
//! key is `Unfit`. An alarm ends only with the process. The store's own files call `check_row`; the
//! ledger shares the alarm, and `broker::health` calls `check_rows`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tracing::error;

use super::{Store, StoreError};
use crate::crypto::digest::{Mac, MacError};

/// The reason for which the ledger must stop; empty until a forged row is found.
pub type Alarm = Arc<OnceLock<String>>;

/// Checks the MACs of rows, and keeps the alarm.
#[derive(Clone, Debug, Default)]
pub(super) struct RowGuard {
    mac: Arc<OnceLock<Mac>>,
    alarm: Alarm,
}

impl RowGuard {
    /// Returns the content of a row if a broker of this log wrote it. `open` checks the MAC, `row`
    /// names the row in the error.
    pub(super) fn check<T>(
        &self,
        row: impl fmt::Display,
        open: impl FnOnce(&Mac) -> Result<T, MacError>,
    ) -> Result<T, StoreError> {
        let mac = self.mac.get();
        let mac = mac.ok_or_else(|| StoreError::Unfit("no sealing key was given".into()))?;
        open(mac).map_err(|why| {
            let told = format!(
                "{row} was not written by a broker of this log: {why}; nothing is issued; find out \
                 who wrote it"
            );
            error!(why = told, "the ledger stops");
            // A later reason does not replace the first.
            drop(self.alarm.set(told.clone()));
            StoreError::Forged(told)
        })
    }

    /// Fails once a forged row was found: nothing in such a store can be trusted.
    pub(super) fn check_trusted(&self) -> Result<(), StoreError> {
        match self.alarm.get() {
            None => Ok(()),
            Some(why) => Err(StoreError::Forged(why.clone())),
        }
    }
}

impl Store {
    fn row_guard(&self) -> &RowGuard {
        match self {
            Self::Postgres(postgres) => postgres.row_guard(),
            Self::Sqlite(sqlite) => sqlite.row_guard(),
        }
    }

    /// Sets the MAC that rows are checked with. Without one, no row that has a MAC is read.
    pub fn authenticate_with(&self, mac: &Mac) {
        drop(self.row_guard().mac.set(mac.clone()));
    }

    /// The reason for which the ledger must stop; empty until a forged row is found. The ledger
    /// shares it.
    #[must_use]
    pub fn alarm(&self) -> Alarm {
        Arc::clone(&self.row_guard().alarm)
    }

    pub(super) fn check_row<T>(
        &self,
        row: impl fmt::Display,
        open: impl FnOnce(&Mac) -> Result<T, MacError>,
    ) -> Result<T, StoreError> {
        self.row_guard().check(row, open)
    }

    pub(super) fn check_trusted(&self) -> Result<(), StoreError> {
        self.row_guard().check_trusted()
    }

    /// Checks every row that has a MAC and decides about validity or rights. A forged one stops the
    /// ledger.
    pub async fn check_rows(&self) -> Result<(), StoreError> {
        for sealed in self.cutoffs(u32::MAX >> 1).await? {
            self.check_row(sealed.name(), |mac| sealed.open(mac))?;
        }
        for binding in self.admin_bindings().await? {
            self.check_row(binding.name(), |mac| binding.open(mac))?;
        }
        for key in self.all_workload_keys(u32::MAX >> 1).await? {
            self.check_row(key.name(), |mac| key.open(mac))?;
        }
        self.verified_signing_keys().await?;
        if let Some(active) = self.active_generation().await? {
            self.check_row(active.sealed.name(), |mac| active.sealed.open(mac))?;
        }
        Ok(())
    }
}
