//! The sessions of one status list.
//!
//! `listed_plainly` returns the leaves of sessions of which SQL alone shows that they are valid,
//! `listed_in_doubt` the others that may be valid, a page at once, for `domain::validity` to judge.
//!
//! The rule: a session in neither answer is not valid, and none is in both. Most sessions are
//! plain: neither they nor their tasks have a parent. So a list costs one number for each session
//! and no row. The fragments repeat `TaskLife::state_at`, and `Cutoff::kills` for the selectors
//! that are columns; `tests/it/validity/` checks that both answers together agree with the domain.
//! Failures are those of [`super`].

use super::rows::{SessionRow, select_session};
use crate::clock::Timestamp;
use crate::domain::session::Session;
use crate::domain::validity::SessionView;
use crate::store::codec::{signed, unsigned};
use crate::store::validity_sql::{polled, unexpired};
use crate::store::{Store, StoreError, on_pool};

/// The sessions `s` with leaves in `[$1, $2)` whose servers poll status lists, that have not
/// expired at `$3`, whose task `t` is open then by its own record, deadline and heartbeats, and that
/// neither their own record nor a cutoff of one of their columns or of that task ends. `$silent_at`
/// is the end of the time without a heartbeat that `t` is allowed, `$task` its id as a text.
/// `$join` joins `s` with `t`. It makes each database look up the task of each session by its id:
/// by statistics of an emptier table PostgreSQL would read all open tasks for each session.
macro_rules! may_be_valid {
    ($join:literal, $silent_at:literal, $($task:tt)+) => {
        concat!(
            "FROM session AS s ",
            $join,
            " WHERE ",
            polled!(),
            " AND s.leaf_idx >= $1 AND s.leaf_idx < $2 AND ",
            unexpired!("s.", "$3"),
            " AND s.state = 'active' AND t.state = 'open' AND t.deadline > $3 \
             AND (t.heartbeat_seconds IS NULL OR ",
            $silent_at,
            " > $3) AND NOT (",
            cut_off_by!("'all'", "''"),
            " OR ",
            cut_off_by!("'workload'", "s.workload"),
            " OR ",
            cut_off_by!("'resource'", "s.resource"),
            " OR ",
            cut_off_by!("'attestor'", "s.attestor"),
            " OR ",
            cut_off_by!("'signing_key'", "s.kid"),
            " OR ",
            cut_off_by!("'task'", $($task)+),
            ")"
        )
    };
}

/// Whether a cutoff of this kind and value came after the leaf of `s`. The first condition saves
/// the search where no cutoff came at all.
macro_rules! cut_off_by {
    ($kind:literal, $($value:tt)+) => {
        concat!(
            "(s.leaf_idx < (SELECT coalesce(max(idx), -1) FROM cutoff) \
             AND EXISTS (SELECT 1 FROM cutoff AS c WHERE c.kind = ",
            $kind,
            " AND c.value = ",
            $($value)+,
            " AND c.idx > s.leaf_idx))"
        )
    };
}

/// Whether more than the rows of `s` and `t` and the cutoffs of columns decides about `s`.
macro_rules! in_doubt {
    () => {
        "(s.parent_id IS NOT NULL OR t.parent_id IS NOT NULL \
         OR s.leaf_idx < (SELECT coalesce(max(idx), -1) FROM cutoff \
         WHERE kind IN ('generation', 'policy', 'issued_after')))"
    };
}

macro_rules! listed_plainly {
    ($join:literal, $silent_at:literal, $($task:tt)+) => {
        concat!(
            "/* listed_plainly */ SELECT s.leaf_idx ",
            may_be_valid!($join, $silent_at, $($task)+),
            " AND NOT ",
            in_doubt!()
        )
    };
}

macro_rules! listed_in_doubt {
    ($join:literal, $silent_at:literal, $($task:tt)+) => {
        select_session!(
            "/* listed_in_doubt */ WHERE id IN (SELECT s.id ",
            may_be_valid!($join, $silent_at, $($task)+),
            " AND ",
            in_doubt!(),
            " ORDER BY s.leaf_idx LIMIT $4) ORDER BY leaf_idx"
        )
    };
}

/// The id of `t` on SQLite in the form in which cutoffs have it.
macro_rules! sqlite_task {
    () => {
        "lower(substr(hex(t.id), 1, 8) || '-' || substr(hex(t.id), 9, 4) || '-' \
         || substr(hex(t.id), 13, 4) || '-' || substr(hex(t.id), 17, 4) || '-' \
         || substr(hex(t.id), 21))"
    };
}

impl Store {
    /// The leaves in `[from, to)` of sessions whose servers poll status lists and that are plainly
    /// valid at `now`, in any order.
    pub async fn listed_plainly(
        &self,
        from: u64,
        to: u64,
        now: Timestamp,
    ) -> Result<Vec<u64>, StoreError> {
        self.check_trusted()?;
        let rows: Vec<(i64,)> = match self {
            Self::Postgres(postgres) => {
                on_pool!(postgres, finish_current, db => {
                    sqlx::query_as(listed_plainly!(
                        "JOIN LATERAL (SELECT * FROM task WHERE id = s.task_id OFFSET 0) AS t ON true",
                        "t.heard_at + make_interval(secs => least(t.heartbeat_seconds, 1000000000))",
                        "t.id::text"
                    ))
                    .bind(signed(from))
                    .bind(signed(to))
                    .bind(now)
                    .fetch_all(db)
                    .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(listed_plainly!(
                    "CROSS JOIN task AS t ON t.id = s.task_id",
                    "t.heard_at + min(t.heartbeat_seconds, 1000000000) * 1000000",
                    sqlite_task!()
                ))
                .bind(signed(from))
                .bind(signed(to))
                .bind(now)
                .fetch_all(sqlite.readers())
                .await?
            }
        };
        rows.into_iter()
            .map(|(index,)| unsigned("session", index))
            .collect()
    }

    /// Other sessions with leaves in `[from, to)` whose servers poll status lists and that may be
    /// valid at `now`, at most `limit`, in the order of their leaves.
    pub async fn listed_in_doubt(
        &self,
        from: u64,
        to: u64,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let rows: Vec<SessionRow> = match self {
            Self::Postgres(postgres) => {
                on_pool!(postgres, finish_current, db => {
                    sqlx::query_as(listed_in_doubt!(
                        "JOIN LATERAL (SELECT * FROM task WHERE id = s.task_id OFFSET 0) AS t ON true",
                        "t.heard_at + make_interval(secs => least(t.heartbeat_seconds, 1000000000))",
                        "t.id::text"
                    ))
                    .bind(signed(from))
                    .bind(signed(to))
                    .bind(now)
                    .bind(i64::from(limit))
                    .fetch_all(db)
                    .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(listed_in_doubt!(
                    "CROSS JOIN task AS t ON t.id = s.task_id",
                    "t.heard_at + min(t.heartbeat_seconds, 1000000000) * 1000000",
                    sqlite_task!()
                ))
                .bind(signed(from))
                .bind(signed(to))
                .bind(now)
                .bind(i64::from(limit))
                .fetch_all(sqlite.readers())
                .await?
            }
        };
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
    }
}
