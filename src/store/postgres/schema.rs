//! The schema of the database: its migrations, and whether this binary can work with it.
//!
//! `migrate` applies the migrations as the owner, and `check_schema` compares the versions at the
//! start. The schema states the oldest binary that it supports, and the binary the oldest schema
//! that it can use, so that a newer binary serves before its migration and an older one after.
//!
//! A log of another leaf format is refused before anything is changed. Failures: `Unfit` with the
//! remedy. `app` and `taskpass migrate` call this file; [`crate::store::sqlite`] uses `fits`.

use sqlx::migrate::Migrator;

use super::Postgres;
use crate::store::StoreError;
use crate::store::leaves::{OLDEST_BODY, check_leaf_format};

/// The migrations, compiled into the binary.
pub static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The oldest schema that has everything that this binary uses. Raise it with the first statement
/// that needs a newer one.
const OLDEST_SCHEMA: i64 = 5;

/// Compares the schema's version and the oldest binary that it supports with this binary, which
/// knows migrations up to `known`.
pub(in crate::store) fn fits(
    applied: i64,
    oldest_binary: i64,
    known: i64,
) -> Result<(), StoreError> {
    if applied < OLDEST_SCHEMA {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied}, this binary needs {OLDEST_SCHEMA}; run `taskpass \
             migrate` as the role that owns the database"
        )));
    }
    if known < oldest_binary {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied} and supports binaries that know version \
             {oldest_binary}, this one knows up to {known}; run a newer binary"
        )));
    }
    Ok(())
}

fn unmigrated() -> StoreError {
    StoreError::Unfit(
        "the database has no Taskpass schema; run `taskpass migrate` as the role that owns the \
         database"
            .into(),
    )
}

impl Postgres {
    /// Applies the migrations. Needs the owner's role; `serve` never calls it in production.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.check_leaf_format().await?;
        MIGRATIONS
            .run(&self.pool)
            .await
            .map_err(|error| StoreError::Unfit(format!("migration failed: {error}")))
    }

    /// Checks that this binary can work with the schema: the schema has everything that the binary
    /// uses, and removed nothing that it uses.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        self.check_leaf_format().await?;
        let (applied,): (Option<i64>,) = sqlx::query_as(
            "/* check_schema */ SELECT max(version) FROM _sqlx_migrations WHERE success",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|_| unmigrated())?;
        let (oldest_binary,): (i64,) =
            sqlx::query_as("/* check_schema */ SELECT oldest_binary FROM schema_support")
                .fetch_one(&self.pool)
                .await
                .map_err(|_| unmigrated())?;
        let known = MIGRATIONS.iter().map(|migration| migration.version).max();
        fits(applied.unwrap_or(0), oldest_binary, known.unwrap_or(0))?;
        self.check_rights().await
    }

    /// Checks that the role has the rights that the newest migrations introduced. Without them
    /// credentials would still be issued, but not revoked.
    async fn check_rights(&self) -> Result<(), StoreError> {
        let (role, has_rights): (String, bool) = sqlx::query_as(
            "/* check_schema */ SELECT current_user::text, has_table_privilege('ending', 'INSERT') \
             AND has_function_privilege('ledger_prune_endings(timestamptz, bigint)', 'EXECUTE') \
             AND has_function_privilege('ledger_prune_cosigned(bigint)', 'EXECUTE')",
        )
        .fetch_one(&self.pool)
        .await?;
        if has_rights {
            return Ok(());
        }
        Err(StoreError::Unfit(format!(
            "the role {role} lacks rights on tables of a newer schema; run `taskpass migrate \
             --grant-to {role}` as the role that owns the database"
        )))
    }

    /// Refuses a log of another leaf format before anything changes its schema. If the role may not
    /// read the table, the later checks report that.
    async fn check_leaf_format(&self) -> Result<(), StoreError> {
        let (made,): (bool,) =
            sqlx::query_as("/* leaf_format */ SELECT to_regclass('leaf_body') IS NOT NULL")
                .fetch_one(&self.pool)
                .await?;
        if !made {
            return Ok(());
        }
        let oldest: Result<Option<(Vec<u8>,)>, sqlx::Error> =
            sqlx::query_as(OLDEST_BODY).fetch_optional(&self.pool).await;
        match oldest.map_err(StoreError::from) {
            Err(StoreError::Refused(_)) => Ok(()),
            oldest => check_leaf_format(oldest?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_served_until_it_takes_something_away() {
        assert!(fits(OLDEST_SCHEMA, 1, OLDEST_SCHEMA).is_ok());
        assert!(fits(OLDEST_SCHEMA + 3, OLDEST_SCHEMA, OLDEST_SCHEMA).is_ok());
        let taken = fits(OLDEST_SCHEMA + 3, OLDEST_SCHEMA + 2, OLDEST_SCHEMA).unwrap_err();
        assert!(taken.to_string().contains("newer binary"), "{taken}");
    }

    #[test]
    fn a_schema_that_lacks_something_is_to_be_migrated() {
        let old = fits(OLDEST_SCHEMA - 1, 0, OLDEST_SCHEMA).unwrap_err();
        assert!(old.to_string().contains("taskpass migrate"), "{old}");
    }
}
