//! Where everything is kept: PostgreSQL for production with any number of replicas, SQLite for one
//! process with nothing to set up.
//!
//! [`Store`] is an enum with one method a question; each method has its SQL beside it, in one text
//! where both databases read it alike and in two where they do not. One conformance suite runs
//! every method on both. [`postgres`] and [`sqlite`] hold what is truly different: pools,
//! connections and settings.
//!
//! What makes leaves is written by [`append`] and by nothing else, in the ledger's own
//! transaction. The other writers here touch what is no act: heartbeats, the sweeper's notes,
//! pruning, generations that nobody has activated yet.
//!
//! SQL never says `now()`: time is a parameter.

pub mod admins;
pub mod append;
mod codec;
pub mod cosigned;
pub mod cutoffs;
pub mod deny_lists;
pub mod exports;
pub mod generations;
pub mod keys;
pub mod leaves;
pub mod meta;
pub mod postgres;
pub mod prune;
pub mod replicas;
pub mod retries;
pub mod sessions;
pub mod sqlite;
pub mod tasks;
pub mod workload_keys;

use self::postgres::Postgres;
use self::sqlite::Sqlite;

/// The store.
#[derive(Clone, Debug)]
pub enum Store {
    /// PostgreSQL.
    Postgres(Postgres),
    /// SQLite.
    Sqlite(Sqlite),
}

/// Runs the same statement on whichever database it is, for reading.
macro_rules! read {
    ($store:expr, $db:ident => $body:expr) => {
        match $store {
            $crate::store::Store::Postgres(postgres) => {
                let $db = postgres.pool();
                $body
            }
            $crate::store::Store::Sqlite(sqlite) => {
                let $db = sqlite.readers();
                $body
            }
        }
    };
}

/// The same, for writing: SQLite has one writer.
macro_rules! write {
    ($store:expr, $db:ident => $body:expr) => {
        match $store {
            $crate::store::Store::Postgres(postgres) => {
                let $db = postgres.pool();
                $body
            }
            $crate::store::Store::Sqlite(sqlite) => {
                let $db = sqlite.writer();
                $body
            }
        }
    };
}

pub(crate) use {read, write};

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be reached, was too slow, or refused to serve. Trying again may help.
    #[error("the store is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// It refused what it was given. Trying again does not help.
    #[error("the store refused a statement")]
    Refused(#[source] sqlx::Error),
    /// A row holds what we never wrote.
    #[error("the store holds an unreadable {0}")]
    Corrupt(&'static str),
    /// The store is not fit for this process; the text says why and what to do.
    #[error("{0}")]
    Unfit(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let refused = match &error {
            sqlx::Error::Database(database) => is_refusal(database.as_ref()),
            sqlx::Error::RowNotFound
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. } => true,
            _ => false,
        };
        if refused {
            Self::Refused(error)
        } else {
            Self::Unavailable(error)
        }
    }
}

/// Whether an error is about the statement's content: SQLSTATE classes 22 (data) and 23
/// (integrity), 42 (ours to mend); in SQLite, constraints, types and sizes.
fn is_refusal(error: &dyn sqlx::error::DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    if error
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some()
    {
        return ["22", "23", "42"]
            .iter()
            .any(|class| code.starts_with(class));
    }
    // The low byte is SQLite's primary result code: TOOBIG 18, CONSTRAINT 19, MISMATCH 20, RANGE 25.
    let primary = code.parse::<u32>().unwrap_or(0) & 0xff;
    matches!(primary, 1 | 18 | 19 | 20 | 25)
}

impl Store {
    /// The kind of store, for logs and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// Closes every connection; in SQLite also folds the write-ahead log into the file.
    pub async fn close(&self) {
        match self {
            Self::Postgres(postgres) => postgres.close().await,
            Self::Sqlite(sqlite) => sqlite.close().await,
        }
    }
}
