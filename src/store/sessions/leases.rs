//! The leases of unfinished mints and of unconfirmed ends.
//!
//! `activate_session` ends a mint under its lease, and `unfinished_mints` finds those whose lease
//! has expired. `claim_unconfirmed` and `put_off_ending` schedule the tries to end sessions at back
//! ends.
//!
//! The rule: of two replicas only one works on a session at a time. `activate_session` answers
//! `false` if the lease has expired or the session has ended, which is no error. Minting and the
//! sweeper call this file.

use super::rows::{SessionRow, select_session};
use crate::clock::Timestamp;
use crate::domain::session::Session;
use crate::ids::SessionId;
use crate::store::validity_sql::unexpired;
use crate::store::{Store, StoreError, on_pool, read_current, write};

impl Store {
    /// Activates a session whose mint is finished (`minting → active`), if the holder's lease has
    /// not expired. Returns whether it was activated.
    pub async fn activate_session(
        &self,
        id: SessionId,
        holder: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let settled = write!(self, db => {
            sqlx::query(
                concat!(
                    "/* settle_mint */ UPDATE session SET state = 'active', lease_until = NULL \
                     WHERE id = $1 AND state = 'minting' AND lease_holder = $2 \
                     AND lease_until > $3 AND ",
                    unexpired!("", "$3")
                ),
            )
            .bind(id)
            .bind(holder)
            .bind(now)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(settled == 1)
    }

    /// Sessions whose mint is unfinished and whose lease has expired.
    pub async fn unfinished_mints(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let rows: Vec<SessionRow> = read_current!(self, db => {
            sqlx::query_as(select_session!(
                "/* unfinished_mints */ WHERE state = 'minting' AND lease_until <= $1 \
                 ORDER BY lease_until LIMIT $2"
            ))
            .bind(now)
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(Session::try_from).collect()
    }

    /// Unconfirmed ends that are due for another try, with the number of tries so far. Each is put
    /// off to `retry_at`, so that two replicas do not try the same one at once. An end whose mint
    /// may still be finished under a lease waits until that lease expires: before, there is nothing
    /// to end.
    pub async fn claim_unconfirmed(
        &self,
        now: Timestamp,
        retry_at: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Session, u32)>, StoreError> {
        let claimed: Vec<(SessionId, i64)> = match self {
            Self::Postgres(postgres) => on_pool!(postgres, db => {
                sqlx::query_as(
                    "/* claim_unconfirmed */ UPDATE session SET retry_at = $2, attempts = attempts + 1 \
                         WHERE id IN (SELECT id FROM session WHERE state = 'ending' AND retry_at <= $1 \
                             AND (lease_until IS NULL OR lease_until <= $1) ORDER BY retry_at LIMIT $3 FOR UPDATE SKIP LOCKED) \
                         RETURNING id, CAST(attempts AS BIGINT)",
                )
                .bind(now)
                .bind(retry_at)
                .bind(i64::from(limit))
                .fetch_all(db)
                .await?
            }),
            Self::Sqlite(sqlite) => sqlx::query_as(
                "/* claim_unconfirmed */ UPDATE session SET retry_at = $2, attempts = attempts + 1 \
                     WHERE id IN (SELECT id FROM session WHERE state = 'ending' AND retry_at <= $1 \
                         AND (lease_until IS NULL OR lease_until <= $1) ORDER BY retry_at LIMIT $3) RETURNING id, attempts",
            )
            .bind(now)
            .bind(retry_at)
            .bind(i64::from(limit))
            .fetch_all(sqlite.writer())
            .await?,
        };
        let mut out = Vec::with_capacity(claimed.len());
        for (id, attempts) in claimed {
            if let Some(session) = self.session(id).await? {
                out.push((session, u32::try_from(attempts).unwrap_or(u32::MAX)));
            }
        }
        Ok(out)
    }

    /// Sets when an unconfirmed end is tried again.
    pub async fn put_off_ending(
        &self,
        id: SessionId,
        retry_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* put_off_ending */ UPDATE session SET retry_at = $2 WHERE id = $1 AND state = 'ending'")
                .bind(id)
                .bind(retry_at)
                .execute(db)
                .await?;
        });
        Ok(())
    }
}
