//! The listing of sessions.
//!
//! The rule: each combination of filters has a text of its own, which names only the columns that
//! it filters by, so that both databases can go by an index. The first parameter is the cursor, the
//! second the limit; the values of the filters follow in the order of the columns in [`text`].
//! Failures are those of [`super`].

use uuid::Uuid;

use super::SessionFilter;
use super::rows::{SessionRow, select_session};
use crate::domain::session::Session;
use crate::domain::validity::SessionView;
use crate::ids::SessionId;
use crate::store::validity_sql::may_stand;
use crate::store::{Store, StoreError, read_current};

/// A listing by some conditions, and with `live` by [`may_stand`] as well.
macro_rules! listing {
    ($($condition:literal),*) => {
        select_session!(
            "/* list_sessions */ WHERE ",
            $($condition, " AND ",)*
            "id < $1 ORDER BY id DESC LIMIT $2"
        )
    };
    ($($condition:literal,)* live $now:literal) => {
        select_session!(
            "/* list_sessions */ WHERE ",
            $($condition, " AND ",)*
            may_stand!("", $now),
            " AND id < $1 ORDER BY id DESC LIMIT $2"
        )
    };
}

/// The text for the filters that are set: workload, task, resource, live.
pub(super) fn text(filters: [bool; 4]) -> &'static str {
    match filters {
        [false, false, false, false] => listing!(),
        [false, false, false, true] => listing!(live "$3"),
        [false, false, true, false] => listing!("resource = $3"),
        [false, false, true, true] => listing!("resource = $3", live "$4"),
        [false, true, false, false] => listing!("task_id = $3"),
        [false, true, false, true] => listing!("task_id = $3", live "$4"),
        [false, true, true, false] => listing!("task_id = $3", "resource = $4"),
        [false, true, true, true] => listing!("task_id = $3", "resource = $4", live "$5"),
        [true, false, false, false] => listing!("workload = $3"),
        [true, false, false, true] => listing!("workload = $3", live "$4"),
        [true, false, true, false] => listing!("workload = $3", "resource = $4"),
        [true, false, true, true] => listing!("workload = $3", "resource = $4", live "$5"),
        [true, true, false, false] => listing!("workload = $3", "task_id = $4"),
        [true, true, false, true] => listing!("workload = $3", "task_id = $4", live "$5"),
        [true, true, true, false] => {
            listing!("workload = $3", "task_id = $4", "resource = $5")
        }
        [true, true, true, true] => {
            listing!("workload = $3", "task_id = $4", "resource = $5", live "$6")
        }
    }
}

impl Store {
    /// The sessions of a listing, newest first, with everything that decides about them.
    pub async fn list_sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionView>, StoreError> {
        let text = text([
            filter.workload.is_some(),
            filter.task.is_some(),
            filter.resource.is_some(),
            filter.live_at.is_some(),
        ]);
        // No session has this id, which is the largest.
        let before = filter.before.unwrap_or(SessionId::from(Uuid::max()));
        let rows: Vec<SessionRow> = read_current!(self, db => {
            let mut query = sqlx::query_as(text).bind(before).bind(i64::from(filter.limit));
            if let Some(workload) = &filter.workload {
                query = query.bind(workload);
            }
            if let Some(task) = filter.task {
                query = query.bind(task);
            }
            if let Some(resource) = &filter.resource {
                query = query.bind(resource);
            }
            if let Some(now) = filter.live_at {
                query = query.bind(now);
            }
            query.fetch_all(db).await?
        });
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
    }
}
