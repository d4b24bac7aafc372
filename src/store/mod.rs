//! The store: PostgreSQL for production with any number of replicas, SQLite for one process without
//! any setup.
//!
//! [`Store`] is an enum with one method per question. Each method contains its SQL: one text where
//! both databases can run it, otherwise two. One conformance suite runs every method on both.
//! [`postgres`] and [`sqlite`] hold only the differences: pools, connections and settings. Only
//! [`append`] writes leaves and the rows that depend on them, in the ledger's own transaction. The
//! other writers here change rows that record no act: heartbeats, the sweeper's times, deny lists,
//! cursors of exports, cosignatures, marks of the store, new MACs, and pruning.
//!
//! The store returns facts. [`crate::domain::validity`] judges whether something is valid; where a
//! statement has to judge many rows, its condition is a fragment of `validity_sql`. Every statement
//! of PostgreSQL's pool runs on a connection whose server was checked against the commits that this
//! process knows ([`fence`]). Rows that decide validity are returned only under a lease
//! ([`lease`]). SQL never calls `now()`: time is a parameter. Every method fails with a
//! [`StoreError`], which tells a failure that may pass (`Unavailable`, `NotPrimary`) from a refused
//! statement, a forged row and an unreadable one. Nothing is tried again here: the callers decide.
//! The store knows no callers' rights; `broker::access` does.

pub mod acknowledged;
pub mod admins;
pub mod append;
pub mod authenticity;
mod codec;
pub mod cosigned;
pub mod cutoffs;
pub mod deny_entries;
pub mod deny_lists;
pub mod endings;
pub mod endings_reader;
pub mod exports;
mod fence;
pub mod generations;
pub mod heads;
pub mod heartbeat;
pub mod keys;
pub mod lease;
pub mod leaves;
pub mod meta;
mod pooler;
pub mod postgres;
pub mod prune;
pub mod replicas;
pub mod retries;
pub mod sessions;
pub mod sqlite;
pub mod sqlite_log;
pub mod tasks;
mod validity_sql;
pub mod workload_keys;

use std::time::Duration;

use self::lease::ReadLease;
use self::postgres::Postgres;
use self::sqlite::Sqlite;

/// The store.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Store {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// Runs a statement on a connection of PostgreSQL's pool.
macro_rules! on_pool {
    ($postgres:expr, $db:ident => $body:expr) => {
        $crate::store::on_pool!($postgres, finish, $db => $body)
    };
    ($postgres:expr, $finish:ident, $db:ident => $body:expr) => {{
        let mut connection = $postgres.acquire().await?;
        let outcome = async {
            let $db = connection.executor();
            Ok::<_, sqlx::Error>($body)
        }
        .await;
        connection.$finish(outcome)?
    }};
}

/// Runs one statement that both databases understand, for reading.
macro_rules! read {
    ($store:expr, $db:ident => $body:expr) => {
        $crate::store::read!($store, finish, $db => $body)
    };
    ($store:expr, $finish:ident, $db:ident => $body:expr) => {
        match $store {
            $crate::store::Store::Postgres(postgres) => {
                $crate::store::on_pool!(postgres, $finish, $db => $body)
            }
            $crate::store::Store::Sqlite(sqlite) => {
                let $db = sqlite.readers();
                $body
            }
        }
    };
}

/// Runs one statement that both databases understand, for reading rows that decide whether
/// something is valid: sessions, tasks, cutoffs, roles, keys, the active generation. They are
/// returned only while the server is known to be the primary ([`fence`]). A test checks that every
/// statement over these tables uses this macro.
macro_rules! read_current {
    ($store:expr, $db:ident => $body:expr) => {
        $crate::store::read!($store, finish_current, $db => $body)
    };
}

/// Runs one statement that both databases understand, for writing. On SQLite it waits for the one
/// writer.
macro_rules! write {
    ($store:expr, $db:ident => $body:expr) => {
        match $store {
            $crate::store::Store::Postgres(postgres) => {
                $crate::store::on_pool!(postgres, $db => $body)
            }
            $crate::store::Store::Sqlite(sqlite) => {
                let $db = sqlite.writer();
                $body
            }
        }
    };
}

pub(crate) use {on_pool, read, read_current, write};

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be reached, was too slow, or refused to serve. Trying again may help.
    #[error("the store is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused the statement or its values. Trying again does not help.
    #[error("the store refused a statement")]
    Refused(#[source] sqlx::Error),
    /// The database's server is not known to be the primary. Trying again may help.
    #[error("the database's server is not known to be the primary: {0}")]
    NotPrimary(String),
    /// A row was not written by a broker of this log.
    #[error("{0}")]
    Forged(String),
    /// A row holds a value that no broker writes.
    #[error("the store holds an unreadable {0}")]
    Corrupt(&'static str),
    /// The store is not fit for this process; the text says why and how to correct it.
    #[error("{0}")]
    Unfit(String),
}

/// The tables of the log: their rows are inserted under the lock only.
const LOG_TABLES: [&str; 6] = [
    "leaf",
    "leaf_body",
    "tile",
    "ledger_head",
    "activation",
    "ending",
];

impl StoreError {
    /// The database's message if the error is that a row of the log could not be inserted because
    /// another row has its key. `None` for every other error.
    #[must_use]
    pub fn occupied(&self) -> Option<String> {
        let Self::Refused(sqlx::Error::Database(error)) = self else {
            return None;
        };
        if !error.is_unique_violation() {
            return None;
        }
        let told = error.message();
        let table = match error.table() {
            // Bodies are stored in partitions.
            Some(table) if table.starts_with("leaf_body_") => "leaf_body",
            Some(table) => table,
            // `UNIQUE constraint failed: leaf.idx`
            None => told.rsplit(": ").next()?.split('.').next()?,
        };
        let detail = error
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .and_then(|error| error.detail());
        LOG_TABLES
            .contains(&table)
            .then(|| format!("table {table}: {}", detail.unwrap_or(told)))
    }
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

/// Whether an error is about the statement or its values: SQLSTATE classes 22 (data), 23
/// (integrity) and 42 (a wrong statement); in SQLite a wrong statement, constraints, types and
/// sizes.
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
    // SQLite's primary result code is the low byte: TOOBIG 18, CONSTRAINT 19, MISMATCH 20, RANGE
    // 25.
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

    /// Truncates SQLite's write-ahead log if it has grown and no connection reads from it. Returns
    /// its size in bytes; `None` on PostgreSQL, which manages its own.
    pub async fn bound_log(&self) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Postgres(_) => Ok(None),
            Self::Sqlite(sqlite) => sqlite.bound_log().await.map(Some),
        }
    }

    /// The reason not to issue anything, if the write-ahead log has reached its limit. `None` if it
    /// has not, and on PostgreSQL.
    #[must_use]
    pub fn overfull(&self) -> Option<String> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(sqlite) => sqlite.log().overfull(),
        }
    }

    /// Records that this many leaves are committed: a server that shows fewer is not read any more.
    pub fn note_committed(&self, size: u64) {
        if let Self::Postgres(postgres) = self {
            postgres.fence().raise(size);
        }
    }

    /// The number of leaves that are known to be committed.
    #[must_use]
    pub fn known_committed(&self) -> u64 {
        match self {
            Self::Postgres(postgres) => postgres.fence().known(),
            // One process reads its own file, which cannot lag.
            Self::Sqlite(_) => 0,
        }
    }

    /// From now on, rows that decide validity are returned only within `bound` of a commit that
    /// their server acknowledged. Makes the first such commit; the caller must keep renewing the
    /// returned lease. `None` on SQLite, where one process reads its own file.
    pub async fn hold_read_lease(
        &self,
        bound: Duration,
        number: i32,
    ) -> Result<Option<ReadLease>, StoreError> {
        let Self::Postgres(postgres) = self else {
            return Ok(None);
        };
        let mut lease = ReadLease::new(postgres.clone(), bound, number);
        lease.renew().await?;
        postgres.fence().demand_lease(bound);
        Ok(Some(lease))
    }

    /// Fails with [`StoreError::NotPrimary`] if rows that decide validity cannot be read now.
    pub fn check_read_lease(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(postgres) => postgres.fence().check_lease(None),
            Self::Sqlite(_) => Ok(()),
        }
    }

    /// The largest age of a row that is read now.
    #[must_use]
    pub fn read_lease_age(&self) -> Duration {
        match self {
            Self::Postgres(postgres) => postgres.fence().lease_age().unwrap_or_default(),
            Self::Sqlite(_) => Duration::ZERO,
        }
    }

    /// Closes every connection; SQLite also moves the write-ahead log into the database file.
    pub async fn close(&self) {
        match self {
            Self::Postgres(postgres) => postgres.close().await,
            Self::Sqlite(sqlite) => sqlite.close().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Tables whose rows decide whether something is valid.
    const VALIDITY: [&str; 9] = [
        "session",
        "task",
        "cutoff",
        "admin_binding",
        "workload_key",
        "signing_key",
        "activation",
        "delegation",
        "ending",
    ];

    /// Whether a statement reads one of these tables.
    fn decides(statement: &str) -> bool {
        let words: Vec<&str> = statement
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .collect();
        words
            .windows(2)
            .any(|pair| ["FROM", "JOIN"].contains(&pair[0]) && VALIDITY.contains(&pair[1]))
    }

    /// Whether a macro of the file builds the statement, over one of these tables.
    fn is_made(statement: &str) -> bool {
        statement.contains("select_") || statement.contains("newest!")
    }

    /// The texts between `open` and its closing parenthesis.
    fn invocations<'a>(source: &'a str, open: &str) -> Vec<&'a str> {
        let mut found = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find(open) {
            rest = &rest[start + open.len()..];
            let mut depth = 1_u32;
            let end = rest.find(|c| {
                depth = match c {
                    '(' => depth + 1,
                    ')' => depth - 1,
                    _ => depth,
                };
                depth == 0
            });
            found.push(&rest[..end.unwrap()]);
        }
        found
    }

    #[test]
    fn no_row_that_decides_validity_is_read_without_the_lease() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
        let mut current = 0;
        let mut paths = vec![root.clone()];
        while let Some(path) = paths.pop() {
            // The ledger's own connection reads under the lock; this file holds the macros
            // themselves.
            if path == root.join("append") || path == root.join("mod.rs") {
                continue;
            }
            if path.is_dir() {
                let entries = std::fs::read_dir(path).unwrap();
                paths.extend(entries.map(|entry| entry.unwrap().path()));
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            for plain in [" read!(", "on_pool!(postgres, db"] {
                for statement in invocations(&source, plain) {
                    let changes = statement.contains("UPDATE ") || statement.contains("INSERT ");
                    assert!(
                        changes || !decides(statement) && !is_made(statement),
                        "{}: use read_current! for this statement: {statement}",
                        path.display()
                    );
                }
            }
            for statement in invocations(&source, "read_current!(") {
                current += usize::from(decides(statement) || is_made(statement));
            }
        }
        // The search does find such statements.
        assert!(current >= 20, "{current}");
    }
}
