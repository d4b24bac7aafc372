//! The sessions in a fleet's database, and their permits in its log.

use super::*;

impl Fleet {
    /// Numbers of sessions without a permit and of permits without a session. A crash must not
    /// leave either.
    pub fn orphans(&self) -> (i64, i64) {
        crate::support::block_on(async || {
            let pool = self.database().pool().await;
            let sessions: (i64,) = sqlx::query_as(
                "SELECT count(*) FROM session s WHERE NOT EXISTS (SELECT 1 FROM leaf l \
                 JOIN leaf_body b ON b.idx = l.idx WHERE l.idx = s.leaf_idx \
                 AND l.decision_id = s.decision_id \
                 AND convert_from(b.body, 'UTF8')::json ->> 'session' = s.id::text)",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            let permits: (i64,) = sqlx::query_as(
                "SELECT count(*) FROM leaf_body WHERE convert_from(body, 'UTF8')::json ->> 'outcome' = 'permit' \
                 AND NOT EXISTS (SELECT 1 FROM session s WHERE s.leaf_idx = leaf_body.idx)",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            (sessions.0, permits.0)
        })
    }

    /// The state, end reason and task of each session after the first `seen`, in the order of their
    /// leaves.
    pub async fn sessions_after(&self, seen: i64) -> Vec<(String, Option<String>, uuid::Uuid)> {
        let pool = self.database().pool().await;
        sqlx::query_as("SELECT state, end_reason, task_id FROM session ORDER BY leaf_idx OFFSET $1")
            .bind(seen)
            .fetch_all(&pool)
            .await
            .unwrap()
    }

    /// Number of sessions that have not ended.
    pub async fn alive(&self) -> usize {
        let sessions = self.sessions_after(0).await;
        let alive = sessions.iter().filter(|(state, ..)| state != "ended");
        alive.count()
    }

    /// Number of sessions.
    pub fn sessions(&self) -> i64 {
        crate::support::block_on(async || {
            let pool = self.database().pool().await;
            let count: (i64,) = sqlx::query_as("SELECT count(*) FROM session")
                .fetch_one(&pool)
                .await
                .unwrap();
            count.0
        })
    }
}
