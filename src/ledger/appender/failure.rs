//! The failure of a batch, and what it says about the entries in it.

use std::time::Duration;

use crate::store::StoreError;

/// Why a batch failed.
pub(super) enum Failure {
    /// The store refused the content of an entry: halving the batch finds out which.
    Content(StoreError),
    /// The store was not there; nothing was committed.
    Unavailable(StoreError),
    /// It is not known whether the batch was committed.
    Unknown,
    /// The ledger stops for good.
    Fatal(String),
}

/// Nothing was committed.
pub(super) fn too_slow(what: &str, patience: Duration) -> Failure {
    let error = std::io::Error::other(format!("{what} took more than {patience:?}"));
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

/// The failure of a write. A row that is there already, under the lock, was written by something
/// other than a broker of this log.
pub(super) fn unwritten(error: StoreError) -> Failure {
    match error.occupied() {
        Some(row) => Failure::Fatal(format!(
            "a row of the log that this batch was to write is there already, so it was not written by \
             a broker of this log: {row}; nothing is issued until it is known who wrote it"
        )),
        None => failure(error),
    }
}

/// The same where nothing of a batch was given to the store yet: no entry is to blame.
pub(super) fn unanswered(error: StoreError) -> Failure {
    match failure(error) {
        Failure::Content(error) => Failure::Unavailable(error),
        other => other,
    }
}
