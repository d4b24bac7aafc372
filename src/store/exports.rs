//! The cursors of external sinks: how far each was sent the log, and which replica sends it.
//!
//! The life of a cursor: `register_export`, then `claim_export`, `advance_export` and
//! `release_export` for each delivery; `take_over_export` for a changed registration,
//! `disable_export` for a sink that is gone.
//!
//! The rule: a cursor belongs to a sink's name and a log's origin. Only the replica that holds its
//! lease moves it, and only from the position that this replica last recorded. A time that a wrong
//! clock dated too far ahead counts as past ([`BelievedTimes`]). Failures: `None` or `false` means
//! that another replica holds the sink, its registration is another, or the position has moved; the
//! caller then stops delivering. Nothing is retried here. Only `export` calls this module; it sends
//! the leaves and chooses the pauses.

use super::codec::{signed, unsigned};
use super::{Store, StoreError, read, write};
use crate::clock::Timestamp;

/// The key of a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct ExportKey {
    pub name: String,
    pub origin: String,
}

/// The state of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportCursor {
    /// The digest of the sink's registration.
    pub registration: String,
    /// The index of the first leaf that the sink has not received.
    pub next: u64,
    /// When the next delivery is due.
    pub due_at: Timestamp,
    /// Failed deliveries since the last success.
    pub attempts: u32,
    /// Since when deliveries are off, because the sink answered that it is gone. `None` while they
    /// are on.
    pub disabled_at: Option<Timestamp>,
    /// When a replica with this registration was last running.
    pub seen_at: Timestamp,
}

/// The latest plausible times in a cursor's row. A wrong clock wrote any later time; such a time
/// counts as past, so that no replica waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BelievedTimes {
    /// The latest time at which a sink can be due.
    pub due_at: Timestamp,
    /// The latest time at which a lease can end.
    pub lease_until: Timestamp,
}

impl Store {
    /// Registers a sink. A new one receives the leaves from `start` on. A sink with another
    /// registration continues from its position, is due at once, and its lease ends.
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

    /// The state of a sink. `None` if it was never registered for this log.
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

    /// Records that a replica with this registration of the sink is running.
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

    /// Replaces another registration of the sink by this one, unless a replica with that
    /// registration was seen since `gone` or holds the lease. Returns whether it was replaced.
    pub async fn take_over_export(
        &self,
        key: &ExportKey,
        registration: &str,
        now: Timestamp,
        gone: Timestamp,
        believed: BelievedTimes,
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

    /// Leases a due sink to `holder` until `lease_until`, and returns the index to continue from.
    /// `None` if the sink is not due, is disabled, has another registration, or is leased to
    /// another replica.
    pub async fn claim_export(
        &self,
        key: &ExportKey,
        registration: &str,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        believed: BelievedTimes,
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

    /// Records that a sink received all leaves before `next`, and extends the lease to
    /// `lease_until`. Returns false if the lease was lost, or the position was not `from`.
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

    /// Ends the lease. After a failure the next try is at `failed_until`.
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

    /// Records that a sink answered that it is gone; it receives nothing until it is registered
    /// otherwise.
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
