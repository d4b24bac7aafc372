//! Pruning: deletes rows that are no longer needed, and texts that an admin deletes.
//!
//! There is one method for each table; `patrol_openings` finds openings that `prune_openings`
//! passes over, and `scrub` removes deleted bytes from SQLite's write-ahead log.
//!
//! The rules: each statement deletes a bounded number of rows and returns that number, so that the
//! sweeper can continue while there is work, and other writers wait only briefly. No row is deleted
//! that another one refers to. Hashes, tiles and decisions are never deleted, and the bodies that
//! remain are the end of the log. Failures: a failed statement is a `StoreError` and deletes
//! nothing. `forget_purpose` answers `false` if there was no text; `scrub` answers `false` if a
//! reader prevents it. Retention and the present instant come from the caller, `sweep::prune`,
//! which uses the horizon and not the clock.

use super::codec::{signed, unsigned};
use super::validity_sql::blocks;
use super::{Store, StoreError, on_pool, read, write};
use crate::clock::Timestamp;

/// Deletes a bounded number of rows of one table by their time.
macro_rules! prune {
    ($store:expr, $name:literal, $table:literal, $key:literal, $condition:literal, $at:expr, $limit:expr) => {
        write!($store, db => {
            sqlx::query(concat!(
                "/* ", $name, " */ DELETE FROM ", $table, " WHERE ", $key, " IN (SELECT ", $key,
                " FROM ", $table, " WHERE ", $condition, " LIMIT $2)"
            ))
            .bind($at)
            .bind(i64::from($limit))
            .execute(db)
            .await?
            .rows_affected()
        })
    };
}

impl Store {
    /// One-time ids that expired before `now`. Records the bound first: evidence that expires no
    /// later is refused from then on, since its use can no longer be ruled out.
    pub async fn prune_one_time(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* note_forgotten */ UPDATE store_meta SET forgotten = \
                 (SELECT max(expires_at) FROM one_time WHERE expires_at < $1) \
                 WHERE EXISTS (SELECT 1 FROM one_time WHERE expires_at < $1 \
                 AND (forgotten IS NULL OR expires_at > forgotten))",
            )
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(prune!(
            self,
            "prune_one_time",
            "one_time",
            "key",
            "expires_at < $1",
            now,
            limit
        ))
    }

    /// Idempotency keys whose use has expired.
    pub async fn prune_retries(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_retries",
            "retry",
            "key",
            "expires_at < $1",
            now,
            limit
        ))
    }

    /// Delegation tokens that have expired.
    pub async fn prune_delegations(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_delegations",
            "delegation",
            "digest",
            "expires_at < $1",
            now,
            limit
        ))
    }

    /// Sessions that expired before `before` and from which no other was derived. A session whose
    /// end a back end has yet to confirm is kept, however old.
    pub async fn prune_sessions(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_sessions",
            "session",
            "id",
            "expires_at < $1 AND state IN ('active', 'ended') \
             AND NOT EXISTS (SELECT 1 FROM session child WHERE child.parent_id = session.id)",
            before,
            limit
        ))
    }

    /// Sessions that no back end had to deny at or after `before`.
    pub async fn prune_denied(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_denied",
            "deny_entry",
            "session_id",
            "keep_until < $1",
            before,
            limit
        ))
    }

    /// Ended tasks with a deadline before `before`, without sessions, delegations or child tasks.
    pub async fn prune_tasks(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_tasks",
            "task",
            "id",
            "deadline < $1 AND state <> 'open' \
             AND NOT EXISTS (SELECT 1 FROM task child WHERE child.parent_id = task.id) \
             AND NOT EXISTS (SELECT 1 FROM session WHERE session.task_id = task.id) \
             AND NOT EXISTS (SELECT 1 FROM delegation WHERE delegation.task_id = task.id)",
            before,
            limit
        ))
    }

    /// Cutoffs that can no longer end or block anything: committed before `before`, which is
    /// further back than any credential's life, and not blocking at `now`.
    pub async fn prune_cutoffs(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        Ok(write!(self, db => {
            sqlx::query(concat!(
                "/* prune_cutoffs */ DELETE FROM cutoff WHERE id IN (SELECT id FROM cutoff \
                 WHERE committed_at < $1 AND NOT (",
                blocks!("$2"),
                ") LIMIT $3)"
            ))
            .bind(before)
            .bind(now)
            .bind(i64::from(limit))
            .execute(db)
            .await?
            .rows_affected()
        }))
    }

    /// Endings of leaves that were decided before `before`, the oldest first, and none behind a
    /// younger one: the rows that remain are the end of the table. PostgreSQL also keeps those of
    /// the last hour by its own clock.
    pub async fn prune_endings(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) = on_pool!(postgres, db => {
                    sqlx::query_as("/* prune_endings */ SELECT ledger_prune_endings($1, $2)")
                        .bind(before)
                        .bind(i64::from(limit))
                        .fetch_one(db)
                        .await?
                });
                unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_endings */ WITH oldest AS ( \
                 SELECT kept.idx, kept.n, leaf.at FROM \
                 (SELECT idx, n FROM ending ORDER BY idx, n LIMIT $2) AS kept \
                 JOIN leaf ON leaf.idx = kept.idx) \
                 DELETE FROM ending WHERE (idx, n) IN (SELECT idx, n FROM oldest WHERE idx < \
                 COALESCE((SELECT min(idx) FROM oldest WHERE at >= $1), 9223372036854775807))",
            )
            .bind(before)
            .bind(i64::from(limit))
            .execute(sqlite.writer())
            .await?
            .rows_affected()),
        }
    }

    /// The openings of leaves that were decided before `before`, the oldest first. Reads only as
    /// many rows as it may delete, so that the young rows, which are most of the table, cost
    /// nothing.
    pub async fn prune_openings(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let pruned = write!(self, db => {
            sqlx::query(
                "/* prune_openings */ DELETE FROM leaf_opening WHERE idx IN ( \
                 SELECT oldest.idx FROM \
                 (SELECT idx FROM leaf_opening ORDER BY idx LIMIT $2) AS oldest \
                 JOIN leaf ON leaf.idx = oldest.idx WHERE leaf.at < $1)",
            )
            .bind(before)
            .bind(i64::from(limit))
            .execute(db)
            .await?
            .rows_affected()
        });
        if pruned > 0 {
            self.note_deletion();
        }
        Ok(pruned)
    }

    /// Deletes the openings of leaves from `from` on that were decided before `before`, among the
    /// next `limit`. [`Self::prune_openings`] looks at the oldest only, where leaves that are dated
    /// ahead hide the openings behind them. Returns how many were deleted and the leaf to continue
    /// from; `None` at the end of the log.
    pub async fn patrol_openings(
        &self,
        before: Timestamp,
        from: u64,
        limit: u32,
    ) -> Result<(u64, Option<u64>), StoreError> {
        let (last,): (Option<i64>,) = read!(self, db => {
            sqlx::query_as(
                "/* patrol_openings */ SELECT max(idx) FROM \
                 (SELECT idx FROM leaf_opening WHERE idx >= $1 ORDER BY idx LIMIT $2) AS next",
            )
            .bind(signed(from))
            .bind(i64::from(limit))
            .fetch_one(db)
            .await?
        });
        let Some(last) = last else {
            return Ok((0, None));
        };
        let pruned = write!(self, db => {
            sqlx::query(
                "/* patrol_openings */ DELETE FROM leaf_opening WHERE idx IN ( \
                 SELECT kept.idx FROM leaf_opening AS kept JOIN leaf ON leaf.idx = kept.idx \
                 WHERE kept.idx >= $2 AND kept.idx <= $3 AND leaf.at < $1)",
            )
            .bind(before)
            .bind(signed(from))
            .bind(last)
            .execute(db)
            .await?
            .rows_affected()
        });
        if pruned > 0 {
            self.note_deletion();
        }
        Ok((pruned, Some(unsigned("leaf", last)?.saturating_add(1))))
    }

    /// The bodies of leaves that were written before `before`, oldest first, and never one behind a
    /// younger body: the dates of leaves do not follow the log's order exactly, and the bodies that
    /// remain must be the end of the log. On PostgreSQL whole partitions are dropped, once the last
    /// of their 2^24 leaves is that old, and seven days after the database saw the log beyond them.
    pub async fn prune_bodies(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) = on_pool!(postgres, db => {
                    sqlx::query_as("/* prune_bodies */ SELECT ledger_prune_bodies($1)")
                        .bind(before)
                        .fetch_one(db)
                        .await?
                });
                unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_bodies */ WITH oldest AS ( \
                 SELECT kept.idx, leaf.at FROM \
                 (SELECT idx FROM leaf_body ORDER BY idx LIMIT $2) AS kept \
                 JOIN leaf ON leaf.idx = kept.idx) \
                 DELETE FROM leaf_body WHERE idx IN (SELECT idx FROM oldest WHERE idx < \
                 COALESCE((SELECT min(idx) FROM oldest WHERE at >= $1), 9223372036854775807))",
            )
            .bind(before)
            .bind(i64::from(limit))
            .execute(sqlite.writer())
            .await?
            .rows_affected()),
        }
    }

    /// Heads of trees smaller than `below`, the smallest first. The newest head is always kept, and
    /// on PostgreSQL also those that were the newest within the last day or came since.
    pub async fn prune_heads(&self, below: u64, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) = on_pool!(postgres, db => {
                    sqlx::query_as("/* prune_heads */ SELECT ledger_prune_heads($1, $2)")
                        .bind(signed(below))
                        .bind(i64::from(limit))
                        .fetch_one(db)
                        .await?
                });
                unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_heads */ DELETE FROM ledger_head WHERE size IN ( \
                 SELECT size FROM ledger_head \
                 WHERE size < min($1, (SELECT max(size) FROM ledger_head)) \
                 ORDER BY size LIMIT $2)",
            )
            .bind(signed(below))
            .bind(i64::from(limit))
            .execute(sqlite.writer())
            .await?
            .rows_affected()),
        }
    }

    /// Deletes the free text of an act: a leaf's purpose or reason with the salt of its commitment,
    /// and its copy in a cutoff's row. The decision stays, and a cutoff keeps blocking. Returns
    /// whether there was such a text.
    pub async fn forget_purpose(&self, index: u64) -> Result<bool, StoreError> {
        let opened = write!(self, db => {
            sqlx::query(
                "/* forget_purpose */ UPDATE leaf_opening SET purpose = NULL, purpose_salt = NULL \
                 WHERE idx = $1 AND (purpose IS NOT NULL OR purpose_salt IS NOT NULL)",
            )
            .bind(signed(index))
            .execute(db)
            .await?
            .rows_affected()
        });
        let copied = write!(self, db => {
            sqlx::query(
                "/* forget_purpose */ UPDATE cutoff SET reason = '' WHERE idx = $1 AND reason <> ''",
            )
            .bind(signed(index))
            .execute(db)
            .await?
            .rows_affected()
        });
        let forgotten = opened + copied > 0;
        if forgotten {
            self.note_deletion();
        }
        Ok(forgotten)
    }

    /// Records that free text was deleted: see [`Self::scrub`].
    fn note_deletion(&self) {
        if let Self::Sqlite(sqlite) = self {
            sqlite.note_deletion();
        }
    }

    /// Removes the bytes of deleted text from SQLite's write-ahead log, which otherwise keeps old
    /// pages until it is overwritten. Returns whether they are gone; a connection that still reads
    /// prevents it. PostgreSQL manages its own log.
    pub async fn scrub(&self) -> Result<bool, StoreError> {
        match self {
            Self::Postgres(_) => Ok(true),
            Self::Sqlite(sqlite) => sqlite.empty_log().await,
        }
    }

    /// Creates the tables for the bodies of leaves up to `size` and some beyond; on PostgreSQL
    /// only.
    pub async fn ensure_partitions(&self, size: u64) -> Result<(), StoreError> {
        const AHEAD: u64 = 2 * 1_048_576;
        if let Self::Postgres(postgres) = self {
            on_pool!(postgres, db => {
                sqlx::query("/* ensure_partitions */ SELECT ledger_ensure_partitions($1, $2)")
                    .bind(signed(size))
                    .bind(signed(size.saturating_add(AHEAD)))
                    .execute(db)
                    .await?
            });
        }
        Ok(())
    }
}
