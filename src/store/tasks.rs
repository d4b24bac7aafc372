//! Tasks: reads of them with all their ancestors, and the tasks that the sweeper has to check.
//!
//! `task` and `tasks` read tasks, `task_chains` and `task_links` their ancestors. `owns_part_of`
//! tells whether an identity owns a task, an ancestor or a descendant. `claim_due_tasks` and
//! `put_off_check` serve the sweeper; `delegation` reads a delegation token.
//!
//! The rule: this module does not judge whether a task is open; `domain::validity` does, from the
//! whole chain. Nor does it judge whether a token has expired. On PostgreSQL all rows that it
//! returns are read under the read lease ([`super::lease`]); SQLite needs none.
//!
//! Failures: `None` means that there is no such task or token; unknown tasks are left out of
//! `task_chains`. A row with an impossible value is `Corrupt`, a column that cannot be decoded is
//! `Refused`; `claim_due_tasks` leaves such rows out. [`super::heartbeat`] records heartbeats, and the ledger's transaction opens and ends
//! tasks. `broker` and `sweep` call this module, and other files of the store use its rows.

use std::collections::HashMap;

use sqlx::FromRow;
use uuid::Uuid;

use super::codec::{digest, unsigned};
use super::{Store, StoreError, on_pool, read_current, write};
use crate::clock::Timestamp;
use crate::domain::task::{Task, TaskChain, TaskLife, TaskState};
use crate::domain::validity::TaskLink;
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

/// The tasks of the rows that can be read. A row that no broker wrote must not hold up the others.
fn readable(rows: impl Iterator<Item = Result<TaskRow, sqlx::Error>>) -> Vec<Task> {
    let tasks = rows.filter_map(|row| {
        let row = row
            .inspect_err(|error| tracing::error!(%error, "a task cannot be read"))
            .ok()?;
        let id = row.id;
        let task = Task::try_from(row);
        task.inspect_err(|error| tracing::error!(task = %id, %error, "a task cannot be read"))
            .ok()
    });
    tasks.collect()
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

    /// Claims open tasks that are due for a check by the sweeper, and returns them as they were at
    /// the claim. On PostgreSQL, rows that another replica has locked are skipped. Each is put off
    /// to `retry_at`, so that a task that cannot be ended now is checked again and does not hold up
    /// others. A row that cannot be read is left out and logged, and tried again at `retry_at`.
    pub async fn claim_due_tasks(
        &self,
        now: Timestamp,
        retry_at: Timestamp,
        limit: u32,
    ) -> Result<Vec<Task>, StoreError> {
        match self {
            Self::Postgres(postgres) => {
                let rows = on_pool!(postgres, db => {
                    sqlx::query(concat!(
                        "/* claim_due_tasks */ UPDATE task SET check_at = $2 WHERE id IN ( \
                             SELECT id FROM task WHERE state = 'open' AND check_at <= $1 \
                             ORDER BY check_at LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING ",
                        task_columns!()
                    ))
                    .bind(now)
                    .bind(retry_at)
                    .bind(i64::from(limit))
                    .fetch_all(db)
                    .await?
                });
                Ok(readable(rows.iter().map(TaskRow::from_row)))
            }
            Self::Sqlite(sqlite) => {
                let rows = sqlx::query(concat!(
                    "/* claim_due_tasks */ UPDATE task SET check_at = $2 WHERE id IN ( \
                         SELECT id FROM task WHERE state = 'open' AND check_at <= $1 \
                         ORDER BY check_at LIMIT $3) RETURNING ",
                    task_columns!()
                ))
                .bind(now)
                .bind(retry_at)
                .bind(i64::from(limit))
                .fetch_all(sqlite.writer())
                .await?;
                Ok(readable(rows.iter().map(TaskRow::from_row)))
            }
        }
    }

    /// Sets when the sweeper next checks a task.
    pub async fn put_off_check(&self, id: TaskId, check_at: Timestamp) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* put_off_check */ UPDATE task SET check_at = $2 WHERE id = $1 AND state = 'open'")
                .bind(id)
                .bind(check_at)
                .execute(db)
                .await?;
        });
        Ok(())
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
    use super::listing;
    use crate::clock::Timestamp;
    use crate::store::Store;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn a_task_that_cannot_be_read_holds_up_no_other() {
        const TASK: &str = "INSERT INTO task (id, task_type, attestor, attestor_digest, owner, \
            depth, state, opened_at, deadline, heard_at, check_at, handle_digest, sessions_left, \
            leaf_idx) VALUES (randomblob(16), 'job', 'dev', zeroblob(32), 'dev:a', 1, 'open', 0, \
            100, 0, 5, zeroblob($1), 1, 0)";
        let sqlite = Sqlite::in_memory().await;
        // A digest of one byte was written by no broker.
        for bytes in [32_i64, 1, 32] {
            let task = sqlx::query(TASK).bind(bytes);
            task.execute(sqlite.writer()).await.unwrap();
        }
        let store = Store::Sqlite(sqlite);
        let claim = async |at| {
            let retry_at = Timestamp::from_micros(at + 50);
            let due = store.claim_due_tasks(Timestamp::from_micros(at), retry_at, 9);
            due.await.unwrap().len()
        };
        assert_eq!(claim(10).await, 2);
        assert_eq!(claim(20).await, 0, "each was put off");
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
