//! The recorded uses of `Idempotency-Key`s.

use super::append::RetryFacts;
use super::codec::digest;
use super::{Store, StoreError, read};
use crate::clock::Timestamp;
use crate::ids::{SessionId, TaskId};

impl Store {
    /// The recorded use of a key. [`RetryFacts::stands`] says whether it still binds the key.
    pub async fn retry(&self, key: &[u8; 32]) -> Result<Option<RetryFacts>, StoreError> {
        let row: Option<(Vec<u8>, SessionId, TaskId, i64, Timestamp)> = read!(self, db => {
            sqlx::query_as(
                "/* retry */ SELECT fingerprint, session_id, task_id, \
                 CAST(supersedes AS BIGINT), expires_at FROM retry WHERE key = $1",
            )
            .bind(key.as_slice())
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
