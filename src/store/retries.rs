//! The recorded uses of `Idempotency-Key`s.

use super::append::RetryFacts;
use super::codec::{digest, retry_rows};
use super::{Store, StoreError, read};
use crate::clock::Timestamp;
use crate::ids::{SessionId, TaskId};

impl Store {
    /// The newest recorded use of a key that can bind it at `now`. [`RetryFacts::stands`] says
    /// whether it does.
    pub async fn retry(
        &self,
        key: &[u8; 32],
        now: Timestamp,
    ) -> Result<Option<RetryFacts>, StoreError> {
        let [earlier, first, second, third] = retry_rows(key, now);
        let row: Option<(Vec<u8>, SessionId, TaskId, i64, Timestamp)> = read!(self, db => {
            sqlx::query_as(
                "/* retry */ SELECT fingerprint, session_id, task_id, \
                 CAST(supersedes AS BIGINT), expires_at FROM retry \
                 WHERE key IN ($1, $2, $3, $4) ORDER BY expires_at DESC, supersedes DESC LIMIT 1",
            )
            .bind(earlier.as_slice())
            .bind(first.as_slice())
            .bind(second.as_slice())
            .bind(third.as_slice())
            .fetch_optional(db)
            .await?
        });
        row.map(|(fingerprint, session, task, supersedes, expires_at)| {
            Ok(RetryFacts {
                fingerprint: digest("retry", &fingerprint)?,
                session,
                task,
                supersedes: u32::try_from(supersedes).map_err(|_| StoreError::Corrupt("retry"))?,
                expires_at,
            })
        })
        .transpose()
    }
}
