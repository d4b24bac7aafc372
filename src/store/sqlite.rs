//! SQLite: one process, one writer, a locked data directory.

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

/// The migrations, in the binary.
pub static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The file in the data directory that holds everything.
pub const FILE: &str = "taskpass.sqlite";

/// The file that a process locks for as long as it uses the directory.
const LOCK: &str = "lock";

/// What SQLite appends to the name of [`FILE`]. It gives these files the mode of that one.
const ENDINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// How long a statement waits for another connection's lock; `empty_log` has it in words.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite file with one writer and several readers.
#[derive(Clone, Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Whether the write-ahead log may hold what was deleted. A process before this one may not have
    /// come to emptying it.
    unscrubbed: Arc<AtomicBool>,
    log: Arc<WriteAheadLog>,
    row_guard: RowGuard,
    /// Held until the store is closed: a second process would be a second writer.
    lock: Arc<File>,
}

impl Sqlite {
    /// Opens the store in `directory`, makes it if there is none, and brings its schema up to date.
    /// Beside the one connection that writes there are so many that read.
    pub async fn open(directory: &Path, readers: u32) -> Result<Self, StoreError> {
        let private = PrivateDirectory::open_or_make(directory, true).map_err(unfit)?;
        let lock = lock(&private, directory)?;
        check_files(&private).map_err(unfit)?;
        // Made here and not by SQLite, which would make it readable to others.
        private.make_file(FILE).map_err(unfit)?;
        let options = options(directory)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is gone from the file: a person's text must not stay in pages that are
            // free. The write-ahead log is seen to by `empty_log`.
            .pragma("secure_delete", "on");
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(None)
            .max_lifetime(None)
            // A batch of the ledger that was dropped half-way leaves its transaction open; whoever
            // is next must not find itself inside. Without one this is an error of no interest.
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
            .filename(format!("file:/unit-test-{number}"))
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

    /// Makes the checks of [`Self::open`] on the directory and its files, and makes, opens and locks
    /// none of these files. Returns the directory, or `None` if it is missing and can be made.
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

    /// Opens the store in `directory` to be read and not changed, its schema included. Nothing where
    /// there is none.
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

    /// The size of the write-ahead log from which on nothing is issued.
    pub fn limit_log(&self, bytes: u64) {
        self.log.set_limit(bytes);
    }

    pub(super) fn log(&self) -> &WriteAheadLog {
        &self.log
    }

    /// Cuts the write-ahead log off where it has grown and nothing reads from it, and says so where it
    /// cannot be. The answer is its size in bytes.
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

    /// What somebody wrote was deleted.
    pub(super) fn note_deletion(&self) {
        self.unscrubbed.store(true, Ordering::SeqCst);
    }

    /// Folds the write-ahead log into the file and cuts it off: whatever was overwritten or deleted
    /// stays in it otherwise, for as long as nothing longer is written. Nothing is to be done when
    /// nothing was deleted since the last time. Whether it is done; a long reader keeps it from being.
    pub(super) async fn empty_log(&self) -> Result<bool, StoreError> {
        let mut writer = self.writer.acquire().await?;
        if !self.unscrubbed.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let emptied = Self::truncate(&mut writer).await?;
        if emptied {
            // With the writer at hand: what was noted meanwhile was deleted before.
            self.unscrubbed.store(false, Ordering::SeqCst);
        }
        Ok(emptied)
    }

    async fn truncate(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
        // All writers wait for this one: it may not wait for a reader as long as they may for it.
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
        // If this fails the lock goes with the last clone, at the latest with the process.
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

/// Refuses a log of another leaf format, before anything is done with its schema.
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

/// Refuses a database that other users can get at. True if the database is there.
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
