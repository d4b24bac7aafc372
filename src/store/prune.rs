//! Pruning: deletes rows that are no longer needed, and texts that an admin deletes.
//!
//! There is one method for each table; `patrol_openings` finds openings that `prune_openings`
//! passes over, and `scrub` removes deleted bytes from SQLite's write-ahead log.
//!
//! The rules: each statement deletes a bounded number of rows and returns that number, so that the
//! sweeper can continue while there is work, and other writers wait only briefly. No row is deleted
//! that another one refers to. The cost of a statement depends on its bound, and not on how many
//! rows are due; on PostgreSQL one replica prunes at a time. Hashes, tiles and decisions are never deleted, and the bodies that
//! remain are the end of the log. Failures: a failed statement is a `StoreError` and deletes
//! nothing. `forget_purpose` answers `false` if there was no text; `scrub` answers `false` if a
//! reader prevents it. Retention and the present instant come from the caller, `sweep::prune`,
//! which uses the horizon and not the clock.

use uuid::Uuid;

use super::codec::{signed, unsigned};
use super::validity_sql::blocks;
use super::{Store, StoreError, on_pool, read, write};
use crate::clock::Timestamp;
use crate::ids::{SessionId, TaskId};

/// `turn`: whether this statement may prune on PostgreSQL. Only one replica's statement may at a
/// time, and none waits for another. Without its turn a statement finds no rows.
macro_rules! turn {
    () => {
        "turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(7412, 3) AS mine)"
    };
}

/// Deletes a bounded number of rows of one table, those with the earliest time first. The rows are
/// chosen before anything else is done with them, so that the cost does not depend on how many are
/// due. `$lock` makes PostgreSQL pass over rows that another transaction changes; it needs the
/// right to update the table.
macro_rules! prune {
    ($store:expr, $name:literal, $table:literal, $key:literal, $at:literal, $lock:literal, $before:expr, $limit:expr) => {
        match $store {
            Store::Postgres(postgres) => on_pool!(postgres, db => {
                sqlx::query(concat!(
                    "/* ", $name, " */ WITH ", turn!(), ", due AS MATERIALIZED (SELECT ", $key,
                    " FROM ", $table, " WHERE (SELECT mine FROM turn) AND ", $at, " < $1 ORDER BY ",
                    $at, " LIMIT $2", $lock, ") DELETE FROM ", $table, " WHERE ", $key,
                    " IN (SELECT ", $key, " FROM due)"
                ))
                .bind($before)
                .bind(i64::from($limit))
                .execute(db)
                .await?
                .rows_affected()
            }),
            Store::Sqlite(sqlite) => sqlx::query(concat!(
                "/* ", $name, " */ DELETE FROM ", $table, " WHERE ", $key, " IN (SELECT ", $key,
                " FROM ", $table, " WHERE ", $at, " < $1 ORDER BY ", $at, " LIMIT $2)"
            ))
            .bind($before)
            .bind(i64::from($limit))
            .execute(sqlite.writer())
            .await?
            .rows_affected(),
        }
    };
}

/// One step of a walk over the rows of one table whose time is before an instant, in the order of
/// time and id: looks at the next `$limit` rows, and deletes those for which `$free` holds.
macro_rules! walk {
    ($store:expr, $name:literal, $table:literal, $at:literal, $free:literal, $id:ty, $before:expr, $after:expr, $limit:expr) => {{
        let (from, after) = $after.unwrap_or((Timestamp::EPOCH, <$id>::from(Uuid::nil())));
        let limit = i64::from($limit);
        match $store {
            Store::Postgres(postgres) => {
                let (mine, rows, at, id): (bool, i64, Option<Timestamp>, Option<$id>) =
                    on_pool!(postgres, db => {
                        sqlx::query_as(concat!(
                            "/* ", $name, " */ WITH ", turn!(), ", due AS MATERIALIZED (SELECT id, ",
                            $at, " AS at FROM ", $table, " WHERE (SELECT mine FROM turn) AND ", $at,
                            " < $1 AND (", $at, ", id) > ($2, $3) ORDER BY ", $at, ", id LIMIT $4), \
                             free AS MATERIALIZED (SELECT ", $table, ".id FROM due JOIN ", $table,
                            " ON ", $table, ".id = due.id WHERE ", $free, " FOR UPDATE OF ", $table,
                            " SKIP LOCKED), gone AS (DELETE FROM ", $table,
                            " WHERE id IN (SELECT id FROM free) RETURNING id) \
                             SELECT turn.mine, (SELECT count(*) FROM gone), last.at, last.id \
                             FROM turn LEFT JOIN \
                             (SELECT at, id FROM due ORDER BY at DESC, id DESC LIMIT 1) AS last \
                             ON (SELECT count(*) FROM due) >= $4"
                        ))
                        .bind($before)
                        .bind(from)
                        .bind(after)
                        .bind(limit)
                        .fetch_one(db)
                        .await?
                    });
                mine.then(|| {
                    let rows = unsigned("count", rows)?;
                    Ok::<_, StoreError>(Walked { rows, next: at.zip(id) })
                })
                .transpose()
            }
            Store::Sqlite(sqlite) => {
                // The last row of a full step.
                let next: Option<(Timestamp, $id)> = sqlx::query_as(concat!(
                    "/* ", $name, " */ SELECT ", $at, ", id FROM ", $table, " WHERE ", $at,
                    " < $1 AND (", $at, ", id) > ($2, $3) ORDER BY ", $at, ", id LIMIT 1 OFFSET $4"
                ))
                .bind($before)
                .bind(from)
                .bind(after)
                .bind(limit.saturating_sub(1))
                .fetch_optional(sqlite.writer())
                .await?;
                let rows = sqlx::query(concat!(
                    "/* ", $name, " */ DELETE FROM ", $table, " WHERE id IN (SELECT ", $table,
                    ".id FROM (SELECT id FROM ", $table, " WHERE ", $at, " < $1 AND (", $at,
                    ", id) > ($2, $3) ORDER BY ", $at, ", id LIMIT $4) AS due JOIN ", $table, " ON ",
                    $table, ".id = due.id WHERE ", $free, ")"
                ))
                .bind($before)
                .bind(from)
                .bind(after)
                .bind(limit)
                .execute(sqlite.writer())
                .await?
                .rows_affected();
                Ok(Some(Walked { rows, next }))
            }
        }
    }};
}

/// `oldest`: the oldest openings, as many as may be deleted. `$with` and `$where` give a replica
/// its turn.
macro_rules! prune_openings {
    ($where:literal, $($with:tt)*) => {
        concat!(
            "/* prune_openings */ ",
            $($with)*
            "DELETE FROM leaf_opening WHERE idx IN (SELECT oldest.idx FROM \
             (SELECT idx FROM leaf_opening",
            $where,
            " ORDER BY idx LIMIT $2) AS oldest \
             JOIN leaf ON leaf.idx = oldest.idx WHERE leaf.at < $1)"
        )
    };
}

/// One step of a walk over rows that are due for deletion. Rows that other rows refer to are kept
/// and passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked<Id> {
    /// The number of deleted rows.
    pub rows: u64,
    /// The time and the id of the last row of the step, from which the next step goes on. `None`
    /// at the end of the rows that are due.
    pub next: Option<(Timestamp, Id)>,
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
        // The serving role may not update these rows, so it may not lock them either; no statement
        // changes them.
        Ok(prune!(
            self,
            "prune_one_time",
            "one_time",
            "key",
            "expires_at",
            "",
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
            "expires_at",
            " FOR UPDATE SKIP LOCKED",
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
            "expires_at",
            " FOR UPDATE SKIP LOCKED",
            now,
            limit
        ))
    }

    /// Among the next `limit` sessions that expired before `before`, those from which no other was
    /// derived. A session whose end a back end has yet to confirm is kept, however old. `None` if
    /// another replica prunes at this moment.
    pub async fn prune_sessions(
        &self,
        before: Timestamp,
        after: Option<(Timestamp, SessionId)>,
        limit: u32,
    ) -> Result<Option<Walked<SessionId>>, StoreError> {
        walk!(
            self,
            "prune_sessions",
            "session",
            "expires_at",
            "session.state IN ('active', 'ended') \
             AND NOT EXISTS (SELECT 1 FROM session child WHERE child.parent_id = session.id)",
            SessionId,
            before,
            after,
            limit
        )
    }

    /// Sessions that no back end had to deny at or after `before`.
    pub async fn prune_denied(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(prune!(
            self,
            "prune_denied",
            "deny_entry",
            "session_id",
            "keep_until",
            " FOR UPDATE SKIP LOCKED",
            before,
            limit
        ))
    }

    /// Among the next `limit` tasks with a deadline before `before`, those that have ended and have
    /// no sessions, delegations or child tasks. `None` if another replica prunes at this moment.
    pub async fn prune_tasks(
        &self,
        before: Timestamp,
        after: Option<(Timestamp, TaskId)>,
        limit: u32,
    ) -> Result<Option<Walked<TaskId>>, StoreError> {
        walk!(
            self,
            "prune_tasks",
            "task",
            "deadline",
            "task.state <> 'open' \
             AND NOT EXISTS (SELECT 1 FROM task child WHERE child.parent_id = task.id) \
             AND NOT EXISTS (SELECT 1 FROM session WHERE session.task_id = task.id) \
             AND NOT EXISTS (SELECT 1 FROM delegation WHERE delegation.task_id = task.id)",
            TaskId,
            before,
            after,
            limit
        )
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
        let pruned = match self {
            Self::Postgres(postgres) => on_pool!(postgres, db => {
                sqlx::query(prune_openings!(
                    " WHERE (SELECT mine FROM turn)",
                    "WITH ",
                    turn!(),
                    " ",
                ))
                .bind(before)
                .bind(i64::from(limit))
                .execute(db)
                .await?
                .rows_affected()
            }),
            Self::Sqlite(sqlite) => sqlx::query(prune_openings!("",))
                .bind(before)
                .bind(i64::from(limit))
                .execute(sqlite.writer())
                .await?
                .rows_affected(),
        };
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
                 WHERE kept.idx >= $2 AND kept.idx <= $3 AND leaf.idx >= $2 AND leaf.idx <= $3 \
                 AND leaf.at < $1)",
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

    /// Cosignatures on trees that end before the oldest body, the smallest first. The newest one of
    /// each key is always kept, and every one that a leaf with a body may need.
    pub async fn prune_cosigned(&self, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) = on_pool!(postgres, db => {
                    sqlx::query_as("/* prune_cosigned */ SELECT ledger_prune_cosigned($1)")
                        .bind(i64::from(limit))
                        .fetch_one(db)
                        .await?
                });
                unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_cosigned */ DELETE FROM cosigned WHERE (size, vkey) IN ( \
                 SELECT size, vkey FROM cosigned AS past \
                 WHERE size <= (SELECT min(idx) FROM leaf_body) AND EXISTS (SELECT 1 \
                 FROM cosigned AS newer WHERE newer.vkey = past.vkey AND newer.size > past.size) \
                 ORDER BY size LIMIT $1)",
            )
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
