//! Tasks: reads of them with all their ancestors, and the tasks that the sweeper has to check.
//!
//! `task` and `tasks` read tasks, `task_chains` and `task_links` their ancestors. `owns_part_of`
//! tells whether an identity owns a task, an ancestor or a descendant. `check_due_tasks` serves the
//! sweeper; `delegation` reads a delegation token.
//!
//! The rule: this module does not judge whether a task is open; `domain::validity` does, from the
//! whole chain. `check_due_tasks`, which judges many rows, mirrors it. Nor does it judge whether a
//! token has expired. On PostgreSQL all rows that it returns are read under the read lease
//! ([`super::lease`]); SQLite needs none.
//!
//! Failures: `None` means that there is no such task or token; unknown tasks are left out of
//! `task_chains`. A row with an impossible value is `Corrupt`, a column that cannot be decoded is
//! `Refused`; `check_due_tasks` counts such rows instead. [`super::heartbeat`] records heartbeats, and
//! the ledger's transaction opens and ends tasks. `broker` and `sweep` call this module, and other files of the store use its rows.

use std::collections::HashMap;

use sqlx::FromRow;
use uuid::Uuid;

use super::codec::{digest, signed, unsigned};
use super::validity_sql::task_expires_at;
use super::{Store, StoreError, on_pool, read_current};
use crate::clock::Timestamp;
use crate::domain::task::{Task, TaskChain, TaskLife, TaskState};
use crate::domain::validity::TaskLink;
use crate::domain::workload::Identity;
use crate::ids::TaskId;

/// The tasks that a listing shows.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Only in this recorded state.
    pub state: Option<TaskState>,
    /// Only of this owner.
    pub owner: Option<String>,
    /// Only those with a smaller id: the cursor.
    pub before: Option<TaskId>,
    /// The largest number of tasks to return; 0, the default, returns none.
    pub limit: u32,
}

#[derive(Clone, FromRow)]
pub(super) struct TaskRow {
    id: TaskId,
    task_type: String,
    attestor: String,
    attestor_digest: Vec<u8>,
    owner: String,
    owner_instance: Option<String>,
    parent_id: Option<TaskId>,
    depth: i64,
    state: String,
    opened_at: Timestamp,
    deadline: Timestamp,
    heartbeat_seconds: Option<i64>,
    heard_at: Timestamp,
    ended_at: Option<Timestamp>,
    handle_digest: Vec<u8>,
    handle_key: Option<String>,
    sessions_left: i64,
    leaf_idx: i64,
}

/// The columns of [`TaskRow`]. The casts widen the columns that are `INTEGER` on PostgreSQL.
macro_rules! task_columns {
    () => {
        "id, task_type, attestor, attestor_digest, owner, owner_instance, parent_id, \
         CAST(depth AS BIGINT) AS depth, state, opened_at, deadline, heartbeat_seconds, \
         heard_at, ended_at, handle_digest, handle_key, \
         CAST(sessions_left AS BIGINT) AS sessions_left, leaf_idx"
    };
}

macro_rules! select_task {
    ($rest:literal) => {
        concat!("SELECT ", task_columns!(), " FROM task ", $rest)
    };
}

/// The columns of [`LinkRow`], under names that no other table has, because some statements also
/// select the columns of sessions.
macro_rules! link_columns {
    () => {
        "id AS link_id, parent_id AS link_parent_id, state AS link_state, \
         opened_at AS link_opened_at, deadline AS link_deadline, \
         heartbeat_seconds AS link_heartbeat_seconds, heard_at AS link_heard_at, \
         ended_at AS link_ended_at"
    };
}

/// `chain`: the tasks that `$tasks` names, and all their ancestors.
macro_rules! task_chains {
    ($tasks:literal) => {
        concat!(
            "/* task_chains */ WITH RECURSIVE chain AS ( \
                 SELECT id, parent_id, state, opened_at, deadline, heartbeat_seconds, heard_at, ended_at \
                 FROM task WHERE id ",
            $tasks,
            " UNION SELECT t.id, t.parent_id, t.state, t.opened_at, t.deadline, \
                 t.heartbeat_seconds, t.heard_at, t.ended_at \
                 FROM task t JOIN chain c ON t.id = c.parent_id) SELECT ",
            link_columns!(),
            " FROM chain"
        )
    };
}

/// Checks due tasks. `$1` is the present instant, `$2` the instant by which tasks have expired, `$3`
/// the next check of those that are claimed, `$4` the earliest next check of the others. A task is
/// suspected to be dated ahead if it was opened before the leaf `$5` and after the time `$6`. `$7`
/// limits the rows. `$silent_at` is as in `task_expires_at!`. `$open` and `$close` stand around the
/// selection of the ids: on PostgreSQL they make an array of it, because the planner would choose a
/// scan of the table for a set of unknown size.
macro_rules! check_due_tasks {
    ($silent_at:literal, $open:literal, $close:literal) => {
        concat!(
            "/* check_due_tasks */ UPDATE task SET \
             state = CASE WHEN deadline <= $2 THEN 'expired' ELSE state END, \
             ended_at = CASE WHEN deadline <= $2 THEN ",
            task_expires_at!($silent_at),
            " ELSE ended_at END, check_at = CASE WHEN deadline <= $2 THEN check_at \
             WHEN leaf_idx < $5 AND opened_at > $6 THEN $3 WHEN ",
            task_expires_at!($silent_at),
            " <= $1 THEN $3 WHEN ",
            task_expires_at!($silent_at),
            " > $4 THEN ",
            task_expires_at!($silent_at),
            " ELSE $4 END \
             WHERE id ",
            $open,
            "SELECT id FROM task WHERE state = 'open' AND check_at <= $1 ORDER BY check_at LIMIT $7",
            $close,
            " RETURNING ",
            link_columns!(),
            ", leaf_idx, owner"
        )
    };
}

pub(super) use {link_columns, task_columns};

impl TryFrom<TaskRow> for Task {
    type Error = StoreError;

    fn try_from(row: TaskRow) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt("task");
        Ok(Self {
            id: row.id,
            task_type: row.task_type,
            attestor: row.attestor,
            attestor_digest: digest("task", &row.attestor_digest)?,
            owner: row.owner.try_into().map_err(|_| corrupt())?,
            owner_instance: row
                .owner_instance
                .map(TryInto::try_into)
                .transpose()
                .map_err(|_| corrupt())?,
            parent: row.parent_id,
            depth: u8::try_from(row.depth).map_err(|_| corrupt())?,
            state: TaskState::parse(&row.state).ok_or_else(corrupt)?,
            opened_at: row.opened_at,
            deadline: row.deadline,
            heartbeat_seconds: row
                .heartbeat_seconds
                .map(|seconds| unsigned("task", seconds))
                .transpose()?,
            heard_at: row.heard_at,
            ended_at: row.ended_at,
            handle_digest: digest("task", &row.handle_digest)?,
            handle_key: row.handle_key,
            sessions_left: u32::try_from(row.sessions_left).map_err(|_| corrupt())?,
            leaf_index: unsigned("task", row.leaf_idx)?,
        })
    }
}

/// The text of a listing by the filters that are set. The first parameter is the cursor, the second
/// the limit; owner and state follow.
fn listing(by_owner: bool, by_state: bool) -> &'static str {
    match (by_owner, by_state) {
        (false, false) => {
            select_task!("/* tasks */ WHERE id < $1 ORDER BY id DESC LIMIT $2")
        }
        (false, true) => {
            select_task!("/* tasks */ WHERE state = $3 AND id < $1 ORDER BY id DESC LIMIT $2")
        }
        (true, false) => {
            select_task!("/* tasks */ WHERE owner = $3 AND id < $1 ORDER BY id DESC LIMIT $2")
        }
        (true, true) => select_task!(
            "/* tasks */ WHERE owner = $3 AND state = $4 AND id < $1 ORDER BY id DESC LIMIT $2"
        ),
    }
}

/// The instants and limits of a check of due tasks.
#[derive(Clone, Copy, Debug)]
pub struct TaskCheck<'a> {
    /// Tasks whose check is due by this instant are checked.
    pub now: Timestamp,
    /// Tasks that expire by this instant have expired. At most `now`; earlier while the clock was
    /// not relied on for long.
    pub over_by: Timestamp,
    /// The next check of claimed tasks.
    pub retry_at: Timestamp,
    /// The times that admins accepted, with the indices of their leaves.
    pub accepted: &'a [(u64, Timestamp)],
    /// The largest number of tasks to check.
    pub limit: u32,
}

/// The result of a check of due tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedTasks {
    /// The number of tasks that ended by their deadline.
    pub past_deadline: u64,
    /// The tasks that are still open on record.
    pub open: Vec<DueTask>,
    /// The number of tasks whose row cannot be read. Each is checked again later.
    pub unreadable: u64,
    /// Whether the limit was reached, so that more tasks may be due.
    pub is_full: bool,
}

/// The facts that decide whether the sweeper ends a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DueTask {
    pub life: TaskLife,
    /// Index of the leaf that opened it.
    pub leaf_index: u64,
}

#[derive(FromRow)]
struct DueRow {
    #[sqlx(flatten)]
    link: LinkRow,
    leaf_idx: i64,
    owner: String,
}

impl TryFrom<DueRow> for DueTask {
    type Error = StoreError;

    fn try_from(row: DueRow) -> Result<Self, StoreError> {
        let (_, link) = row.link.link()?;
        // The append that ends the task reads its owner. There an unreadable one stops the ledger.
        Identity::try_from(row.owner).map_err(|_| StoreError::Corrupt("task"))?;
        Ok(Self {
            life: link.life,
            leaf_index: unsigned("task", row.leaf_idx)?,
        })
    }
}

/// A delegation token's row.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct DelegationRow {
    /// The task that becomes the parent.
    pub task: TaskId,
    /// The identity that may use the token.
    pub child: String,
    /// The number of credentials that the child task may get.
    pub sessions: u32,
    pub expires_at: Timestamp,
}

impl Store {
    /// One task. `None` if there is no such task.
    pub async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        let row: Option<TaskRow> = read_current!(self, db => {
            sqlx::query_as(select_task!("/* task */ WHERE id = $1")).bind(id).fetch_optional(db).await?
        });
        row.map(Task::try_from).transpose()
    }

    /// The tasks of a listing, newest first: ids grow with time.
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, StoreError> {
        let text = listing(filter.owner.is_some(), filter.state.is_some());
        // No task has this id, which is the largest.
        let before = filter.before.unwrap_or(TaskId::from(Uuid::max()));
        let rows: Vec<TaskRow> = read_current!(self, db => {
            let mut query = sqlx::query_as(text).bind(before).bind(i64::from(filter.limit));
            if let Some(owner) = &filter.owner {
                query = query.bind(owner);
            }
            if let Some(state) = filter.state {
                query = query.bind(state.as_str());
            }
            query.fetch_all(db).await?
        });
        rows.into_iter().map(Task::try_from).collect()
    }

    /// Whether an identity owns a task, an ancestor or a descendant of it.
    pub async fn owns_part_of(&self, owner: &str, task: TaskId) -> Result<bool, StoreError> {
        let (owns,): (bool,) = read_current!(self, db => {
            sqlx::query_as(
                "/* owns_part_of */ WITH RECURSIVE \
                 up AS (SELECT id, parent_id, owner FROM task WHERE id = $1 \
                     UNION SELECT t.id, t.parent_id, t.owner FROM task t JOIN up ON t.id = up.parent_id), \
                 down AS (SELECT id, owner FROM task WHERE id = $1 \
                     UNION SELECT t.id, t.owner FROM task t JOIN down ON t.parent_id = down.id) \
                 SELECT EXISTS (SELECT 1 FROM up WHERE owner = $2 \
                     UNION ALL SELECT 1 FROM down WHERE owner = $2)",
            )
            .bind(task)
            .bind(owner)
            .fetch_one(db)
            .await?
        });
        Ok(owns)
    }

    /// The chains of these tasks, each from the task up to its root. Unknown tasks are left out.
    pub async fn task_chains(
        &self,
        ids: &[TaskId],
    ) -> Result<HashMap<TaskId, TaskChain>, StoreError> {
        let links = self.task_links(ids).await?;
        let known = ids.iter().filter(|id| links.contains_key(id));
        let chain = |id: &TaskId| TaskChain::of(*id, |id| links.get(&id).copied());
        Ok(known.map(|id| (*id, chain(id))).collect())
    }

    /// These tasks and all their ancestors.
    pub(super) async fn task_links(
        &self,
        ids: &[TaskId],
    ) -> Result<HashMap<TaskId, TaskLink>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<LinkRow> = match self {
            Self::Postgres(postgres) => {
                on_pool!(postgres, finish_current, db => {
                    sqlx::query_as(task_chains!("= ANY($1)"))
                        .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<_>>())
                        .fetch_all(db)
                        .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(task_chains!("IN (SELECT unhex(value) FROM json_each($1))"))
                    .bind(json_ids(ids.iter().map(|id| id.uuid())))
                    .fetch_all(sqlite.readers())
                    .await?
            }
        };
        rows.into_iter().map(LinkRow::link).collect()
    }

    /// Checks open tasks that are due for a check by the sweeper, in one statement. Of each, by
    /// [`TaskCheck::over_by`]:
    ///
    /// - A task past its deadline ends as expired, without a leaf.
    /// - A task that was silent for too long stays open, and is claimed: its next check is at
    ///   [`TaskCheck::retry_at`], so that another replica leaves it alone, and so that a task that
    ///   cannot be ended now does not hold up others. So is one that may be dated ahead.
    /// - The next check of every other task is at its expiry, and never in the past.
    ///
    /// Returns the tasks that are open afterwards. On PostgreSQL, rows that another replica or a
    /// heartbeat has locked are skipped, and checked in a later call.
    pub async fn check_due_tasks(&self, check: &TaskCheck<'_>) -> Result<CheckedTasks, StoreError> {
        // No leaf has a negative index, so without an accepted time no task is suspected.
        let newest = check.accepted.iter().map(|(index, _)| signed(*index)).max();
        let earliest = check.accepted.iter().map(|(_, time)| *time).min();
        let due: Vec<Result<DueRow, sqlx::Error>> = match self {
            Self::Postgres(postgres) => {
                let rows = on_pool!(postgres, db => {
                    sqlx::query(check_due_tasks!(
                        "heard_at + make_interval(secs => least(heartbeat_seconds, 1000000000))",
                        "= ANY(ARRAY(",
                        " FOR NO KEY UPDATE SKIP LOCKED))"
                    ))
                    .bind(check.now)
                    .bind(check.over_by)
                    .bind(check.retry_at)
                    .bind(check.now.plus_seconds(1))
                    .bind(newest.unwrap_or(-1))
                    .bind(earliest.unwrap_or(Timestamp::MAX))
                    .bind(i64::from(check.limit))
                    .fetch_all(db)
                    .await?
                });
                rows.iter().map(DueRow::from_row).collect()
            }
            Self::Sqlite(sqlite) => {
                let rows = sqlx::query(check_due_tasks!(
                    "heard_at + min(heartbeat_seconds, 1000000000) * 1000000",
                    "IN (",
                    ")"
                ))
                .bind(check.now)
                .bind(check.over_by)
                .bind(check.retry_at)
                .bind(check.now.plus_seconds(1))
                .bind(newest.unwrap_or(-1))
                .bind(earliest.unwrap_or(Timestamp::MAX))
                .bind(i64::from(check.limit))
                .fetch_all(sqlite.writer())
                .await?;
                rows.iter().map(DueRow::from_row).collect()
            }
        };
        let mut checked = CheckedTasks {
            is_full: due.len() >= check.limit as usize,
            ..CheckedTasks::default()
        };
        for row in due {
            match row.map_err(StoreError::from).and_then(DueTask::try_from) {
                Ok(task) if task.life.state == TaskState::Open => checked.open.push(task),
                Ok(_) => checked.past_deadline += 1,
                Err(_) => checked.unreadable += 1,
            }
        }
        Ok(checked)
    }

    /// A delegation token, by its digest. `None` if there is none; it may have expired.
    pub async fn delegation(&self, digest: &[u8; 32]) -> Result<Option<DelegationRow>, StoreError> {
        let row: Option<(TaskId, String, i64, Timestamp)> = read_current!(self, db => {
            sqlx::query_as(
                "/* delegation */ SELECT task_id, child, CAST(sessions AS BIGINT), expires_at \
                 FROM delegation WHERE digest = $1",
            )
            .bind(digest.as_slice())
            .fetch_optional(db)
            .await?
        });
        row.map(|(task, child, sessions, expires_at)| {
            let sessions =
                u32::try_from(sessions).map_err(|_| StoreError::Corrupt("delegation"))?;
            Ok(DelegationRow {
                task,
                child,
                sessions,
                expires_at,
            })
        })
        .transpose()
    }
}

/// The facts that decide about a task, and its parent.
#[derive(Clone, FromRow)]
#[expect(
    clippy::struct_field_names,
    reason = "the columns are read with those of another table"
)]
pub(super) struct LinkRow {
    link_id: TaskId,
    link_parent_id: Option<TaskId>,
    link_state: String,
    link_opened_at: Timestamp,
    link_deadline: Timestamp,
    link_heartbeat_seconds: Option<i64>,
    link_heard_at: Timestamp,
    link_ended_at: Option<Timestamp>,
}

impl LinkRow {
    pub(super) fn link(self) -> Result<(TaskId, TaskLink), StoreError> {
        let life = TaskLife {
            id: self.link_id,
            state: TaskState::parse(&self.link_state).ok_or(StoreError::Corrupt("task"))?,
            opened_at: self.link_opened_at,
            deadline: self.link_deadline,
            heartbeat_seconds: self
                .link_heartbeat_seconds
                .map(|seconds| unsigned("task", seconds))
                .transpose()?,
            heard_at: self.link_heard_at,
            ended_at: self.link_ended_at,
        };
        let link = TaskLink {
            life,
            parent: self.link_parent_id,
        };
        Ok((self.link_id, link))
    }
}

/// Ids as a JSON list of hex texts, which SQLite can expand into rows.
pub(super) fn json_ids(ids: impl Iterator<Item = Uuid>) -> String {
    let list: Vec<String> = ids.map(|id| id.simple().to_string()).collect();
    serde_json::Value::from(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::{TaskCheck, listing};
    use crate::clock::Timestamp;
    use crate::store::Store;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn a_task_that_cannot_be_read_holds_up_no_other() {
        const TASK: &str = "INSERT INTO task (id, task_type, attestor, attestor_digest, owner, \
            depth, state, opened_at, deadline, heard_at, check_at, handle_digest, sessions_left, \
            leaf_idx) VALUES (randomblob(16), 'job', 'dev', zeroblob(32), $2, 1, 'open', 0, \
            100, 0, 5, zeroblob(32), 1, $1)";
        let sqlite = Sqlite::in_memory().await;
        // No broker writes a negative index, or an identity with a space.
        for (index, owner) in [(0_i64, "dev:a"), (-5, "dev:a"), (0, "dev a"), (0, "dev:a")] {
            let task = sqlx::query(TASK).bind(index).bind(owner);
            task.execute(sqlite.writer()).await.unwrap();
        }
        let store = Store::Sqlite(sqlite);
        let check = async |at| {
            let check = TaskCheck {
                now: Timestamp::from_micros(at),
                over_by: Timestamp::from_micros(at),
                retry_at: Timestamp::from_micros(at + 50),
                accepted: &[],
                limit: 9,
            };
            let checked = store.check_due_tasks(&check).await.unwrap();
            (checked.open.len(), checked.unreadable)
        };
        assert_eq!(check(10).await, (2, 2));
        assert_eq!(check(20).await, (0, 0), "each was put off");
    }

    #[tokio::test]
    async fn sqlite_lists_the_tasks_of_an_owner_by_an_index() {
        let sqlite = Sqlite::in_memory().await;
        for by_state in [false, true] {
            let explain = format!("EXPLAIN QUERY PLAN {}", listing(true, by_state));
            let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(explain))
                .fetch_all(sqlite.readers())
                .await
                .unwrap();
            let steps: Vec<String> = plan.into_iter().map(|(_, _, _, step)| step).collect();
            assert_eq!(
                steps,
                ["SEARCH task USING INDEX task_by_owner (owner=? AND id<?)"]
            );
        }
    }
}
