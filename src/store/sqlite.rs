//! SQLite: one process, one writer, a locked data directory.
//!
//! [`Sqlite::open`] locks the directory, creates and migrates the database and opens the pools.
//! `open_to_read` serves tools, `check_directory` the check before a start. `bound_log` and
//! `empty_log` truncate the write-ahead log.
//!
//! The rules: a second process cannot open the directory, and no file in it is accessible to other
//! users. One connection writes. Deleted text is overwritten, also in the write-ahead log.
//! Failures: an unsafe or locked directory, another leaf format and a failed migration are `Unfit`.
//! `None` means that there is no store. `empty_log` answers `false` while a connection still reads;
//! the sweeper tries again. `app` opens the store; the other files of `store` use `writer` and
//! `readers`. `super::sqlite_log` judges the size of the log.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Executor};

use super::StoreError;
use super::authenticity::RowGuard;
use super::leaves::{OLDEST_BODY, check_leaf_format};
use super::postgres::fits;
use super::sqlite_log::WriteAheadLog;
use crate::files::{FileError, PrivateDirectory};

/// The migrations, compiled into the binary.
pub static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The database file in the data directory.
pub const FILE: &str = "taskpass.sqlite";

/// The file that a process locks while it uses the directory.
const LOCK: &str = "lock";

/// The endings that SQLite appends to [`FILE`]. It gives these files the mode of the database file.
const ENDINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// How long a statement waits for another connection's lock; `truncate` repeats the number.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite file with one writer and several readers.
#[derive(Clone, Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Whether the write-ahead log may hold deleted text. It starts as true: an earlier process may
    /// not have emptied the log.
    unscrubbed: Arc<AtomicBool>,
    log: Arc<WriteAheadLog>,
    row_guard: RowGuard,
    /// Held until the store is closed, because a second process would be a second writer.
    lock: Arc<File>,
}

impl Sqlite {
    /// Opens the store in `directory`, creates it if there is none, and migrates its schema.
    /// `readers` is the number of connections that only read.
    pub async fn open(directory: &Path, readers: u32) -> Result<Self, StoreError> {
        let private = PrivateDirectory::open_or_make(directory, true).map_err(unfit)?;
        let lock = lock(&private, directory)?;
        check_files(&private).map_err(unfit)?;
        // Created here, because SQLite would make it readable to other users.
        private.make_file(FILE).map_err(unfit)?;
        let options = options(directory)
            .synchronous(SqliteSynchronous::Full)
            // SQLite overwrites deleted text, so that free pages do not keep it. `empty_log` does
            // so for the write-ahead log.
            .pragma("secure_delete", "on");
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(None)
            .max_lifetime(None)
            // A dropped batch of the ledger leaves its transaction open, and the next user of the
            // connection must not continue it. Without a transaction, ROLLBACK fails harmlessly.
            .after_release(|connection, _| {
                Box::pin(async move {
                    drop(connection.execute("ROLLBACK").await);
                    Ok(true)
                })
            })
            .connect_with(options.clone())
            .await?;
        check_format(&writer).await?;
        MIGRATIONS
            .run(&writer)
            .await
            .map_err(|error| StoreError::Unfit(format!("migration failed: {error}")))?;
        let readers = reading(options, readers).await?;
        Ok(Self {
            writer,
            readers,
            unscrubbed: Arc::new(AtomicBool::new(true)),
            log: Arc::new(WriteAheadLog::of(&directory.join(FILE))),
            row_guard: RowGuard::default(),
            lock: Arc::new(lock),
        })
    }

    /// Opens an empty store in memory. It is gone when its last connection closes.
    #[cfg(test)]
    pub(crate) async fn in_memory() -> Self {
        use std::sync::atomic::AtomicU64;
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let number = OPENED.fetch_add(1, Ordering::SeqCst);
        // All connections to a name with a slash share one database (SQLite's VFS `memdb`).
        let options = SqliteConnectOptions::new()
            .filename(format!("/unit-test-{number}"))
            .vfs("memdb")
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1).connect_with(options.clone()).await.unwrap();
        MIGRATIONS.run(&writer).await.unwrap();
        let readers = pool(4).connect_with(options).await.unwrap();
        Self {
            writer,
            readers,
            unscrubbed: Arc::new(AtomicBool::new(false)),
            log: Arc::new(WriteAheadLog::of(Path::new("unit-test"))),
            row_guard: RowGuard::default(),
            lock: Arc::new(tempfile::tempfile().unwrap()),
        }
    }

    /// Makes the checks of [`Self::open`] on the directory and its files without creating, opening
    /// or locking these files. Returns the directory, or `None` if it is missing and can be
    /// created.
    pub fn check_directory(directory: &Path) -> Result<Option<PrivateDirectory>, FileError> {
        let Some(private) = PrivateDirectory::open_or_check(directory)? else {
            return Ok(None);
        };
        let has_lock = private.check_file(LOCK)?;
        let has_database = check_files(&private)?;
        if !has_lock || !has_database {
            private.check_can_add_files()?;
        }
        Ok(Some(private))
    }

    /// Opens the store in `directory` read-only; does not migrate its schema. `None` if there is no
    /// store.
    pub async fn open_to_read(directory: &Path, readers: u32) -> Result<Option<Self>, StoreError> {
        if !directory.join(FILE).exists() {
            return Ok(None);
        }
        let private = PrivateDirectory::open(directory).map_err(unfit)?;
        let lock = lock(&private, directory)?;
        check_files(&private).map_err(unfit)?;
        let readers = reading(options(directory), readers).await?;
        check_format(&readers).await?;
        let (made,): (bool,) = sqlx::query_as(
            "/* open_to_read */ SELECT EXISTS (SELECT 1 FROM sqlite_master \
             WHERE name = '_sqlx_migrations')",
        )
        .fetch_one(&readers)
        .await?;
        if !made {
            return Ok(None);
        }
        let unfit = |error| StoreError::Unfit(format!("{}: {error}", directory.display()));
        let (applied,): (Option<i64>,) = sqlx::query_as(
            "/* open_to_read */ SELECT max(version) FROM _sqlx_migrations WHERE success",
        )
        .fetch_one(&readers)
        .await
        .map_err(unfit)?;
        let (oldest_binary,): (i64,) =
            sqlx::query_as("/* open_to_read */ SELECT oldest_binary FROM schema_support")
                .fetch_one(&readers)
                .await
                .map_err(unfit)?;
        let known = MIGRATIONS.iter().map(|migration| migration.version).max();
        let known = known.unwrap_or(0);
        fits(applied.unwrap_or(0), oldest_binary, known)?;
        Ok(Some(Self {
            writer: readers.clone(),
            readers,
            unscrubbed: Arc::new(AtomicBool::new(false)),
            log: Arc::new(WriteAheadLog::of(&directory.join(FILE))),
            row_guard: RowGuard::default(),
            lock: Arc::new(lock),
        }))
    }

    pub(super) fn row_guard(&self) -> &RowGuard {
        &self.row_guard
    }

    /// The one connection that writes.
    #[must_use]
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// Connections that only read.
    #[must_use]
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Sets the size of the write-ahead log in bytes from which on nothing is issued.
    pub fn limit_log(&self, bytes: u64) {
        self.log.set_limit(bytes);
    }

    pub(super) fn log(&self) -> &WriteAheadLog {
        &self.log
    }

    /// Truncates the write-ahead log if it has grown and no connection reads from it, and warns if
    /// that fails. Returns its size in bytes.
    pub(super) async fn bound_log(&self) -> Result<u64, StoreError> {
        let mut bytes = self.log.measure();
        if self.log.is_due(Instant::now()) {
            let mut writer = self.writer.acquire().await?;
            let emptied = Self::truncate(&mut writer).await?;
            self.log.note_try(Instant::now(), emptied);
            bytes = self.log.measure();
        }
        if let Some((bytes, file)) = self.log.untold(Instant::now()) {
            tracing::warn!(
                bytes,
                file = %file.display(),
                "the write-ahead log grows: a process reads an old state of the database; end it"
            );
        }
        Ok(bytes)
    }

    /// Records that free text was deleted.
    pub(super) fn note_deletion(&self) {
        self.unscrubbed.store(true, Ordering::SeqCst);
    }

    /// Moves the write-ahead log into the database file and truncates it: it otherwise keeps
    /// overwritten and deleted pages until it grows beyond them. Does nothing if no text was
    /// deleted since the last time. Returns whether it is done; a connection that still reads
    /// prevents it.
    pub(super) async fn empty_log(&self) -> Result<bool, StoreError> {
        let mut writer = self.writer.acquire().await?;
        if !self.unscrubbed.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let emptied = Self::truncate(&mut writer).await?;
        if emptied {
            // No deletion can be in progress, since this function holds the writer.
            self.unscrubbed.store(false, Ordering::SeqCst);
        }
        Ok(emptied)
    }

    async fn truncate(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
        // All writers wait for this statement, so it waits for readers only briefly.
        writer.execute("PRAGMA busy_timeout = 100").await?;
        let emptied: Result<(i64, i64, i64), sqlx::Error> =
            sqlx::query_as("/* empty_log */ PRAGMA wal_checkpoint(TRUNCATE)")
                .fetch_one(&mut *writer)
                .await;
        writer.execute("PRAGMA busy_timeout = 5000").await?;
        let (busy, ..) = emptied?;
        Ok(busy == 0)
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        // If this fails, the lock is released with the last clone, at the latest when the process
        // ends.
        drop(self.lock.unlock());
    }
}

fn options(directory: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(directory.join(FILE))
        .journal_mode(SqliteJournalMode::Wal)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}

/// Refuses a log of another leaf format before anything changes its schema.
async fn check_format(pool: &SqlitePool) -> Result<(), StoreError> {
    let (made,): (bool,) = sqlx::query_as(
        "/* leaf_format */ SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'leaf_body')",
    )
    .fetch_one(pool)
    .await?;
    if !made {
        return Ok(());
    }
    let oldest: Option<(Vec<u8>,)> = sqlx::query_as(OLDEST_BODY).fetch_optional(pool).await?;
    check_leaf_format(oldest)
}

async fn reading(options: SqliteConnectOptions, readers: u32) -> Result<SqlitePool, StoreError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(readers)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options.read_only(true));
    Ok(pool.await?)
}

fn unfit(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unfit(error.to_string())
}

/// Refuses a database that other users can access. Returns whether the database file exists.
fn check_files(directory: &PrivateDirectory) -> Result<bool, FileError> {
    let is_there = directory.check_file(FILE)?;
    for ending in ENDINGS {
        directory.check_file(&format!("{FILE}{ending}"))?;
    }
    Ok(is_there)
}

fn lock(directory: &PrivateDirectory, path: &Path) -> Result<File, StoreError> {
    let unfit_here = |what: &str| StoreError::Unfit(format!("{}: {what}", path.display()));
    let file = directory.open_lock(LOCK).map_err(unfit)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(unfit_here(
            "another process uses this data directory; stop it, or name another directory",
        )),
        Err(TryLockError::Error(error)) => Err(unfit_here(&format!("cannot be locked: {error}"))),
    }
}
