//! Forgetting what nothing needs any more. Each statement takes a bounded bite and says how much
//! it took, so that the sweeper can go on while there is work and nobody waits for it.

use super::codec::signed;
use super::{Store, StoreError, write};
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
    /// One-time ids whose evidence would be refused for its age anyway.
    pub async fn prune_one_time(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
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

    /// Idempotency keys that may be used anew.
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

    /// Delegation tokens that nobody can use.
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

    /// Sessions that were over before `before` and that no other was derived from. One that a back
    /// end has yet to confirm is kept, however old.
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

    /// Sessions that no back end needs to deny since `before`.
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

    /// Tasks that were over before `before`, without sessions, delegations or descendants.
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

    /// Cutoffs that can kill nothing and block nothing any more: committed before `before`, which
    /// is further back than any credential's life, and not blocking at `now`.
    pub async fn prune_cutoffs(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        Ok(write!(self, db => {
            sqlx::query(
                "/* prune_cutoffs */ DELETE FROM cutoff WHERE id IN (SELECT id FROM cutoff \
                 WHERE committed_at < $1 AND (lifted_idx IS NOT NULL OR (NOT until_lifted \
                 AND (blocked_until IS NULL OR blocked_until < $2))) LIMIT $3)",
            )
            .bind(before)
            .bind(now)
            .bind(i64::from(limit))
            .execute(db)
            .await?
            .rows_affected()
        }))
    }

    /// The purposes and inputs of leaves that were decided before `before`, the oldest first. Only as
    /// many are looked at as may go: that most of what is kept is young must cost nothing.
    pub async fn prune_openings(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        Ok(write!(self, db => {
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
        }))
    }

    /// The bytes of leaves that were written before `before`, oldest first. On PostgreSQL whole
    /// partitions go, once the last of their 2^20 leaves is that old.
    pub async fn prune_bodies(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) =
                    sqlx::query_as("/* prune_bodies */ SELECT ledger_prune_bodies($1)")
                        .bind(before)
                        .fetch_one(postgres.pool())
                        .await?;
                super::codec::unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_bodies */ DELETE FROM leaf_body WHERE idx IN ( \
                 SELECT oldest.idx FROM (SELECT idx FROM leaf_body ORDER BY idx LIMIT $2) AS oldest \
                 JOIN leaf ON leaf.idx = oldest.idx WHERE leaf.at < $1)",
            )
            .bind(before)
            .bind(i64::from(limit))
            .execute(sqlite.writer())
            .await?
            .rows_affected()),
        }
    }

    /// Heads of trees smaller than `below`; the newest is always kept.
    pub async fn prune_heads(&self, below: u64) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let (pruned,): (i64,) =
                    sqlx::query_as("/* prune_heads */ SELECT ledger_prune_heads($1)")
                        .bind(signed(below))
                        .fetch_one(postgres.pool())
                        .await?;
                super::codec::unsigned("count", pruned)
            }
            Self::Sqlite(sqlite) => Ok(sqlx::query(
                "/* prune_heads */ DELETE FROM ledger_head \
                 WHERE size < min($1, (SELECT max(size) FROM ledger_head))",
            )
            .bind(signed(below))
            .execute(sqlite.writer())
            .await?
            .rows_affected()),
        }
    }

    /// Makes room for leaves up to `size`, and some way beyond: tables for bodies, on PostgreSQL.
    pub async fn ensure_partitions(&self, size: u64) -> Result<(), StoreError> {
        const AHEAD: u64 = 2 * 1_048_576;
        if let Self::Postgres(postgres) = self {
            sqlx::query("/* ensure_partitions */ SELECT ledger_ensure_partitions($1, $2)")
                .bind(signed(size))
                .bind(signed(size.saturating_add(AHEAD)))
                .execute(postgres.pool())
                .await?;
        }
        Ok(())
    }
}
