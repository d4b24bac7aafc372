//! The live sessions of external minters, for the search for orphans: sessions that are active at a
//! back end although a task's end, a cutoff or an ancestor has ended them.
//!
//! `active_external` reads all of them page by page, `external_under` those below given tasks and
//! sessions. Both return everything that decides about each session, and judge none.
//!
//! Failures are those of [`super`]. The sweeper and the broker's `revocation` call this file.

use uuid::Uuid;

use super::rows::{SessionRow, select_session};
use crate::clock::Timestamp;
use crate::domain::validity::SessionView;
use crate::ids::{SessionId, TaskId};
use crate::store::tasks::json_ids;
use crate::store::validity_sql::{active_at_back_end, unexpired};
use crate::store::{Store, StoreError, on_pool, read_current};

/// The sessions that are active at their back ends and are either under the given tasks and their
/// descendants, or among the given sessions and those derived from them. `$tasks` and `$sessions`
/// select them, and `$3` is the present instant.
macro_rules! external_under {
    ($tasks:literal, $sessions:literal) => {
        concat!(
            "/* external_under */ WITH RECURSIVE tree AS ( \
                 SELECT id FROM task WHERE id IN (",
            $tasks,
            ") UNION SELECT t.id FROM task t JOIN tree ON t.parent_id = tree.id), \
             kin AS ( \
                 SELECT id FROM session WHERE id IN (",
            $sessions,
            ") UNION SELECT s.id FROM session s JOIN tree ON s.task_id = tree.id \
                 UNION SELECT s.id FROM session s JOIN kin ON s.parent_id = kin.id) ",
            select_session!(
                "WHERE id IN (SELECT id FROM kin) AND ",
                active_at_back_end!(),
                " AND ",
                unexpired!("", "$3"),
                " ORDER BY id"
            )
        )
    };
}

/// `$1` is the present instant, or the expiry of the last session that was read.
pub(super) const ACTIVE_EXTERNAL: &str = select_session!(
    "/* active_external */ WHERE ",
    active_at_back_end!(),
    " AND (expires_at, id) > ($1, $2) ORDER BY expires_at, id LIMIT $3"
);

impl Store {
    /// Unexpired sessions of external minters that are recorded as `active`, ordered by expiry,
    /// with everything that decides about them. Some may have ended by their task's end, a cutoff
    /// or an ancestor; the sweeper ends these after a mass revocation. `after` is the expiry and
    /// the id of the last session that was read.
    pub async fn active_external(
        &self,
        now: Timestamp,
        after: Option<(Timestamp, SessionId)>,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        // A session that expires at this instant has expired, regardless of its id.
        let (expiry, id) = after.unwrap_or((now, SessionId::from(Uuid::max())));
        let rows: Vec<SessionRow> = read_current!(self, db => {
            sqlx::query_as(ACTIVE_EXTERNAL)
                .bind(expiry)
                .bind(id)
                .bind(i64::from(limit))
                .fetch_all(db)
                .await?
        });
        self.views_of(rows).await
    }

    /// The unexpired, active sessions of external minters that are under these tasks and their
    /// descendants, or among these sessions and those derived from them, with everything that
    /// decides about them. Ordered by id.
    pub async fn external_under(
        &self,
        tasks: &[TaskId],
        sessions: &[SessionId],
        now: Timestamp,
    ) -> Result<Vec<SessionView>, StoreError> {
        let tasks = tasks.iter().map(|id| id.uuid());
        let sessions = sessions.iter().map(|id| id.uuid());
        let rows: Vec<SessionRow> = match self {
            Self::Postgres(postgres) => on_pool!(postgres, finish_current, db => {
                sqlx::query_as(external_under!(
                    "SELECT unnest($1::uuid[])",
                    "SELECT unnest($2::uuid[])"
                ))
                .bind(tasks.collect::<Vec<_>>())
                .bind(sessions.collect::<Vec<_>>())
                .bind(now)
                .fetch_all(db)
                .await?
            }),
            Self::Sqlite(sqlite) => {
                sqlx::query_as(external_under!(
                    "SELECT unhex(value) FROM json_each($1)",
                    "SELECT unhex(value) FROM json_each($2)"
                ))
                .bind(json_ids(tasks))
                .bind(json_ids(sessions))
                .bind(now)
                .fetch_all(sqlite.readers())
                .await?
            }
        };
        self.views_of(rows).await
    }
}
