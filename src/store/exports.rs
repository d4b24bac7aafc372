//! How far sinks outside were told what the log says, and who tells them.
//!
//! A cursor belongs to a sink's name and a log's origin. Only the replica that has its lease moves
//! it, and only from where that replica left it.

use super::codec::{signed, unsigned};
use super::{Store, StoreError, read, write};
use crate::clock::Timestamp;

/// Which cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportKey {
    /// The sink.
    pub name: String,
    /// The log.
    pub origin: String,
}

/// How far a sink was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportCursor {
    /// What the sink was when it was last registered.
    pub registration: String,
    /// The first leaf that it was not told.
    pub next: u64,
    /// When it is told more.
    pub due_at: Timestamp,
    /// Failures in a row.
    pub attempts: u32,
    /// Since when it is told nothing, because it said that it is gone.
    pub disabled_at: Option<Timestamp>,
    /// When a replica that knows the sink so was last there.
    pub seen_at: Timestamp,
}

/// How far ahead times in a cursor's row can be. Those beyond were written by a clock that was
/// wrong, and count as past: nobody has to wait until it would have been right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed {
    /// The latest that a sink can be due.
    pub due_at: Timestamp,
    /// The latest that a lease can end.
    pub lease_until: Timestamp,
}

impl Store {
    /// Registers a sink: a new one is told what follows `start`; one that was registered otherwise
    /// goes on from where it was, and is tried at once; whoever delivered to the other is its holder
    /// no longer.
    pub async fn register_export(
        &self,
        key: &ExportKey,
        registration: &str,
        start: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* register_export */ INSERT INTO export_cursor \
                 (name, origin, registration, next_idx, due_at, seen_at) \
                 VALUES ($1, $2, $3, $4, $5, $5) \
                 ON CONFLICT (name, origin) DO UPDATE SET registration = excluded.registration, \
                 due_at = excluded.due_at, attempts = 0, disabled_at = NULL, \
                 lease_holder = NULL, lease_until = NULL, seen_at = excluded.seen_at \
                 WHERE export_cursor.registration <> excluded.registration",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(registration)
            .bind(signed(start))
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// How far a sink was told.
    pub async fn export_cursor(&self, key: &ExportKey) -> Result<Option<ExportCursor>, StoreError> {
        type Row = (String, i64, Timestamp, i64, Option<Timestamp>, Timestamp);
        let row: Option<Row> = read!(self, db => {
            sqlx::query_as(
                "/* export_cursor */ SELECT registration, next_idx, due_at, attempts, disabled_at, \
                 seen_at FROM export_cursor WHERE name = $1 AND origin = $2",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .fetch_optional(db)
            .await?
        });
        row.map(
            |(registration, next, due_at, attempts, disabled_at, seen_at)| {
                Ok(ExportCursor {
                    registration,
                    next: unsigned("export cursor", next)?,
                    due_at,
                    attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
                    disabled_at,
                    seen_at,
                })
            },
        )
        .transpose()
    }

    /// A replica that knows a sink as it is registered is there.
    pub async fn see_export(
        &self,
        key: &ExportKey,
        registration: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* see_export */ UPDATE export_cursor SET seen_at = $4 \
                 WHERE name = $1 AND origin = $2 AND registration = $3",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(registration)
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Registers a sink as we know it in place of how others knew it, none of whom was seen since
    /// `gone` or has its lease. Whether that was so.
    pub async fn take_over_export(
        &self,
        key: &ExportKey,
        registration: &str,
        now: Timestamp,
        gone: Timestamp,
        believed: Believed,
    ) -> Result<bool, StoreError> {
        let taken = write!(self, db => {
            sqlx::query(
                "/* take_over_export */ UPDATE export_cursor SET registration = $3, due_at = $4, \
                 attempts = 0, disabled_at = NULL, lease_holder = NULL, lease_until = NULL, \
                 seen_at = $4 \
                 WHERE name = $1 AND origin = $2 AND registration <> $3 \
                 AND (seen_at <= $5 OR seen_at > $6) \
                 AND (lease_until IS NULL OR lease_until <= $4 OR lease_until > $6)",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(registration)
            .bind(now)
            .bind(gone)
            .bind(believed.lease_until)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(taken == 1)
    }

    /// Makes a sink that is due ours alone until `lease_until`, and says from where it is told more.
    /// Nothing when it is another's, or registered otherwise than we know it.
    pub async fn claim_export(
        &self,
        key: &ExportKey,
        registration: &str,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        believed: Believed,
    ) -> Result<Option<u64>, StoreError> {
        let row: Option<(i64,)> = write!(self, db => {
            sqlx::query_as(
                "/* claim_export */ UPDATE export_cursor \
                 SET lease_holder = $4, lease_until = $6, due_at = $5 \
                 WHERE name = $1 AND origin = $2 AND registration = $3 AND disabled_at IS NULL \
                 AND (due_at <= $5 OR due_at > $7) \
                 AND (lease_until IS NULL OR lease_until <= $5 OR lease_until > $8 \
                 OR lease_holder = $4) \
                 RETURNING next_idx",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(registration)
            .bind(holder)
            .bind(now)
            .bind(lease_until)
            .bind(believed.due_at)
            .bind(believed.lease_until)
            .fetch_optional(db)
            .await?
        });
        row.map(|(next,)| unsigned("export cursor", next))
            .transpose()
    }

    /// A sink was told all before `next`, and stays its holder's until `lease_until`. Whether it
    /// was still the holder's, and where the holder left it.
    pub async fn advance_export(
        &self,
        key: &ExportKey,
        holder: &str,
        from: u64,
        next: u64,
        lease_until: Timestamp,
    ) -> Result<bool, StoreError> {
        let moved = write!(self, db => {
            sqlx::query(
                "/* advance_export */ UPDATE export_cursor \
                 SET next_idx = $5, lease_until = $6, attempts = 0 \
                 WHERE name = $1 AND origin = $2 AND lease_holder = $3 AND next_idx = $4",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(holder)
            .bind(signed(from))
            .bind(signed(next))
            .bind(lease_until)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(moved == 1)
    }

    /// Gives a sink back. After a failure it is tried again at the time that is given.
    pub async fn release_export(
        &self,
        key: &ExportKey,
        holder: &str,
        failed_until: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* release_export */ UPDATE export_cursor \
                 SET lease_holder = NULL, lease_until = NULL, \
                 attempts = CASE WHEN $4 IS NULL THEN attempts ELSE attempts + 1 END, \
                 due_at = COALESCE($4, due_at) \
                 WHERE name = $1 AND origin = $2 AND lease_holder = $3",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(holder)
            .bind(failed_until)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// A sink said that it is gone: it is told nothing until it is registered otherwise.
    pub async fn disable_export(
        &self,
        key: &ExportKey,
        registration: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* disable_export */ UPDATE export_cursor \
                 SET disabled_at = $4, lease_holder = NULL, lease_until = NULL \
                 WHERE name = $1 AND origin = $2 AND registration = $3",
            )
            .bind(&key.name)
            .bind(&key.origin)
            .bind(registration)
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }
}
