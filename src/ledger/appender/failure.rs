//! The failure of a batch, and the conclusions for its entries.

use std::time::Duration;

use crate::store::StoreError;

/// Why a batch failed.
pub(super) enum Failure {
    /// The store refused the content of an entry: halving the batch finds the entry.
    Content(StoreError),
    /// The store did not answer; nothing was committed.
    Unavailable(StoreError),
    /// The outcome of the commit is unknown.
    Unknown,
    /// The ledger stops for good.
    Fatal(String),
}

/// A time-out before anything was committed.
pub(super) fn too_slow(step: &str, patience: Duration) -> Failure {
    let error = std::io::Error::other(format!("{step} took more than {patience:?}"));
    Failure::Unavailable(StoreError::Unavailable(sqlx::Error::Io(error)))
}

pub(super) fn failure(error: StoreError) -> Failure {
    match error {
        StoreError::Refused(_) => Failure::Content(error),
        StoreError::Unavailable(_) | StoreError::NotPrimary(_) => Failure::Unavailable(error),
        StoreError::Corrupt(_) | StoreError::Unfit(_) | StoreError::Forged(_) => {
            Failure::Fatal(error.to_string())
        }
    }
}

/// The failure of a write. Under the lock, a row that exists already was not written by a broker of
/// this log.
pub(super) fn unwritten(error: StoreError) -> Failure {
    match error.occupied() {
        Some(row) => Failure::Fatal(format!(
            "a row of the log that this batch was to write exists already, so no broker of this \
             log wrote it: {row}; nothing is issued; find out who wrote it"
        )),
        None => failure(error),
    }
}

/// The failure of a statement before the store received any row of the batch. No entry can be the
/// cause, so the batch is not halved.
pub(super) fn unanswered(error: StoreError) -> Failure {
    match failure(error) {
        Failure::Content(error) => Failure::Unavailable(error),
        other => other,
    }
}
