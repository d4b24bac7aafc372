//! Rows that only a broker may write carry a MAC that takes the sealing keys. They are checked here,
//! where they are read, so that no reader can forget it. The first row that no broker wrote is kept:
//! from then on the ledger is stopped, and nothing is judged by what the store says.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tracing::error;

use super::{Store, StoreError};
use crate::crypto::digest::{Mac, MacError};

/// Why the ledger must not go on, once that is so.
pub type Alarm = Arc<OnceLock<String>>;

/// Tells rows that a broker wrote from others.
#[derive(Clone, Debug, Default)]
pub(super) struct RowGuard {
    mac: Arc<OnceLock<Mac>>,
    alarm: Alarm,
}

impl RowGuard {
    /// What a row says, if a broker of this log wrote it. `open` checks its MAC, `row` names it.
    pub(super) fn check<T>(
        &self,
        row: impl fmt::Display,
        open: impl FnOnce(&Mac) -> Result<T, MacError>,
    ) -> Result<T, StoreError> {
        let mac = self.mac.get();
        let mac = mac.ok_or_else(|| StoreError::Unfit("no sealing key was given".into()))?;
        open(mac).map_err(|why| {
            let told = format!(
                "{row} was not written by a broker of this log: {why}; nothing is issued until it is \
                 known who wrote it"
            );
            error!(why = told, "the ledger stops");
            // The first reason stays.
            drop(self.alarm.set(told.clone()));
            StoreError::Forged(told)
        })
    }

    /// Nothing is judged by a store of which something is known to be wrong.
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

    /// From now on rows are held against this MAC. Without one, none that has a MAC is read.
    pub fn authenticate_with(&self, mac: &Mac) {
        drop(self.row_guard().mac.set(mac.clone()));
    }

    /// Why the ledger must not go on; empty until something was found. The ledger shares it.
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

    /// Checks every row that has a MAC and decides what somebody may do. One that no broker wrote
    /// stops the ledger.
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
