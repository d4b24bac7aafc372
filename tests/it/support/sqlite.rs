//! A fresh SQLite file in a directory of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory for a SQLite database. It is removed when dropped.
#[derive(Debug)]
pub struct SqliteFile {
    dir: TempDir,
}

/// A directory for one test's SQLite database, empty at first.
pub fn fresh_sqlite() -> SqliteFile {
    SqliteFile {
        dir: tempfile::Builder::new()
            .prefix("taskpass-it-")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir()
            .unwrap(),
    }
}

impl SqliteFile {
    /// The directory with the database, its write-ahead log and its lock, for searches for secrets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of the database file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("taskpass.db")
    }

    /// The URL of the file, which creates it on connection.
    pub fn url(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.path().display())
    }
}

mod tests {
    use super::*;
    use sqlx::{Connection, Row};

    #[tokio::test]
    async fn files_are_apart_and_go_with_their_owner() {
        let (one, two) = (fresh_sqlite(), fresh_sqlite());
        let mut here = sqlx::SqliteConnection::connect(&one.url()).await.unwrap();
        sqlx::query("CREATE TABLE t (x INTEGER) STRICT")
            .execute(&mut here)
            .await
            .unwrap();
        let mut there = sqlx::SqliteConnection::connect(&two.url()).await.unwrap();
        let tables = sqlx::query("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&mut there)
            .await
            .unwrap();
        assert_eq!(tables.get::<i64, _>(0), 0);

        let path = one.path();
        assert!(path.exists());
        drop(one);
        assert!(!path.exists());
    }
}
