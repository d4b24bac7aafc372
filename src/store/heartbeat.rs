//! A task with everything that decides whether its caller may keep it open, and the heartbeat
//! itself.
//!
//! `Store::hold_task` reads a [`TaskView`], and [`HeldTask::hear`] records the heartbeat. On
//! PostgreSQL that takes two statements on one connection of the pool: the read, and the update,
//! which also returns the sessions. The pool gives out only connections to the current primary.
//! SQLite cannot update a row within a query, so it runs three statements. If a cutoff may be newer
//! than one of the sessions, one more statement reads the cutoffs that can end them.
//!
//! Of the cutoffs, the read returns those that decide about the task: the blocks in force with a
//! selector of the task, of an ancestor or of their owners, and the accepted times. It finds them
//! by their selectors, so that its cost does not grow with the number of cutoffs.
//!
//! The rule: the update repeats those conditions that can have changed. It changes nothing if the
//! task has ended or expired, if an ancestor's end is recorded or, with `undisturbed_since`, if a
//! cutoff or an activation came since the read. It does not repeat [`TaskView::is_open`], which
//! also covers ancestors that have expired without a record; the caller tests that before.
//!
//! Failures: `None` of `hold_task` means that there is no such task; `None` of `hear` that nothing
//! was recorded. After an error of `hear`, the heartbeat may have been recorded. A forged cutoff is
//! `Forged`, and so is every later read. Of the callers outside of the store, `broker::tasks`
//! records heartbeats. It checks the owner's attestor, and appends under the ledger's lock if
//! `hear` returned `None`; `broker::access` compares the handle.

use sqlx::{FromRow, Row};

use super::codec::{digest, signed, unsigned};
use super::cutoffs::CutoffRow;
use super::postgres::Fenced;
use super::sessions::{UnderRow, select_under, under};
use super::tasks::{TaskRow, task_columns};
use super::validity_sql::{blocks, chain, chain_open, task_open, undisturbed_since};
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::cutoff::Cutoff;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::task::{Task, TaskChain};
use crate::domain::validity::{SessionView, TaskLink, is_dated_ahead};
use crate::ids::{CutoffId, SessionId, TaskId};

/// A task with everything that decides about it, read in one statement.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct TaskView {
    pub task: Task,
    /// The task and all its ancestors.
    pub chain: TaskChain,
    /// The records of the ancestors, in no order.
    pub above: Vec<Task>,
    /// The cutoffs that block one of these tasks, or the owner of one, at the instant of the read,
    /// and the times that were accepted after the oldest of the tasks was opened; oldest first.
    pub cutoffs: Vec<Cutoff>,
    /// The index of the newest cutoff of all at the time of the read. `None` if there was none.
    pub newest_cutoff: Option<u64>,
    /// The number of leaves in the log at the time of the read.
    pub as_of: u64,
    /// The generation of the newest activation. Its MAC is not checked here, but by
    /// [`Store::check_rows`]. The caller only compares it with the generation that it uses.
    pub generation: Option<GenerationDigest>,
}

impl TaskView {
    /// Whether the task and each one above it is open at `now`, and none was opened by a clock
    /// whose time was rejected later.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        let accepted: Vec<_> = self.cutoffs.iter().filter_map(Cutoff::accepted).collect();
        let mut tasks = std::iter::once(&self.task).chain(&self.above);
        self.chain.ended(now).is_none()
            && !tasks.any(|task| is_dated_ahead(task.opened_at, task.leaf_index, &accepted))
    }

    /// Whether a cutoff blocks the task, an ancestor, or the owner of either.
    #[must_use]
    pub fn is_blocked(&self, now: Timestamp) -> bool {
        let mut blocking = self.cutoffs.iter().filter(|cutoff| cutoff.blocks(now));
        blocking.any(|cutoff| {
            let mut tasks = std::iter::once(&self.task).chain(&self.above);
            tasks.any(|task| cutoff.selector.concerns_task(task))
        })
    }
}

/// A task that was read for a heartbeat. On PostgreSQL it may hold the connection of the read, so
/// that the heartbeat needs no other.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct HeldTask {
    pub view: TaskView,
    store: Store,
    connection: Option<Fenced>,
}

/// A recorded heartbeat.
#[derive(Clone, Debug)]
pub struct RecordedHeartbeat {
    /// The time of the task's last heartbeat.
    pub heard_at: Timestamp,
    /// The first sessions under the task, oldest first, with everything that decides about them.
    pub sessions: Vec<SessionView>,
}

/// One of the tasks. The row of the requested task is repeated for each cutoff.
#[derive(FromRow)]
struct TaskViewRow {
    #[sqlx(flatten)]
    task: TaskRow,
    as_of: Option<i64>,
    /// The digest of the newest activation's generation.
    decides: Option<Vec<u8>>,
    newest_cutoff: Option<i64>,
    cutoff_id: Option<CutoffId>,
    idx: Option<i64>,
    kind: Option<String>,
    value: Option<String>,
    blocked_until: Option<Timestamp>,
    until_lifted: Option<bool>,
    reason: Option<String>,
    actor: Option<String>,
    requested_at: Option<Timestamp>,
    committed_at: Option<Timestamp>,
    lifted_idx: Option<i64>,
    deny_policy_target: Option<String>,
    mac: Option<Vec<u8>>,
}

impl TaskViewRow {
    /// The cutoff of the row, if it carries one.
    fn cutoff(&mut self) -> Option<CutoffRow> {
        Some(CutoffRow {
            id: self.cutoff_id?,
            idx: self.idx?,
            kind: self.kind.take()?,
            value: self.value.take()?,
            blocked_until: self.blocked_until,
            until_lifted: self.until_lifted?,
            reason: self.reason.take()?,
            actor: self.actor.take()?,
            requested_at: self.requested_at?,
            committed_at: self.committed_at?,
            lifted_idx: self.lifted_idx,
            deny_policy_target: self.deny_policy_target.take(),
            mac: self.mac.take()?,
        })
    }
}

/// The columns of a cutoff in [`TaskViewRow`].
macro_rules! cutoff_columns {
    () => {
        "c.id AS cutoff_id, c.idx, c.kind, c.value, c.blocked_until, c.until_lifted, c.reason, \
         c.actor, c.requested_at, c.committed_at, c.lifted_idx, c.deny_policy_target, c.mac"
    };
}

/// `above`: the task `$1` and its ancestors; `wanted`: the selectors whose blocks concern them
/// (`Selector::concerns_task`). `$2` is the present instant, `$id` the text of a task's id.
/// `$of_selector` and `$end` enclose the search for the cutoffs of one selector. They make each
/// database search by the index, also where it expects many selectors.
macro_rules! task_view {
    ($id:literal, $of_selector:literal, $end:literal) => {
        concat!(
            "/* task_view */ WITH RECURSIVE above AS ( \
                 SELECT * FROM task WHERE id = $1 \
                 UNION SELECT t.* FROM task t JOIN above ON t.id = above.parent_id), \
             wanted AS ( \
                 SELECT 'all' AS kind, '' AS value \
                 UNION SELECT 'workload', owner FROM above \
                 UNION SELECT 'attestor', attestor FROM above \
                 UNION SELECT 'task', ",
            $id,
            " FROM above) SELECT ",
            task_columns!(),
            ", (SELECT size FROM ledger_head ORDER BY size DESC LIMIT 1) AS as_of, \
             (SELECT digest FROM activation ORDER BY idx DESC LIMIT 1) AS decides, \
             (SELECT max(idx) FROM cutoff) AS newest_cutoff, \
             cut.* FROM above LEFT JOIN (SELECT ",
            cutoff_columns!(),
            " FROM wanted AS w ",
            $of_selector,
            " c.kind = w.kind AND c.value = w.value AND ",
            blocks!("$2"),
            $end,
            " UNION ALL SELECT ",
            cutoff_columns!(),
            " FROM cutoff AS c WHERE c.kind = 'issued_after' \
             AND c.idx > (SELECT min(leaf_idx) FROM above)) AS cut \
             ON above.id = $1 ORDER BY cut.idx"
        )
    };
}

/// OFFSET keeps PostgreSQL from joining with all cutoffs at once.
const POSTGRES_TASK_VIEW: &str = task_view!(
    "CAST(id AS text)",
    "CROSS JOIN LATERAL (SELECT * FROM cutoff AS c WHERE",
    " OFFSET 0) AS c"
);

/// CROSS JOIN keeps SQLite from reading all cutoffs first.
const SQLITE_TASK_VIEW: &str = task_view!(
    "lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || \
     substr(hex(id), 13, 4) || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21))",
    "CROSS JOIN cutoff AS c WHERE",
    ""
);

/// `$1` is the task, `$2` the present instant, `$3` the size of the log since which no cutoff and
/// no activation may have come, `$4` the largest number of sessions.
const POSTGRES_HEARTBEAT: &str = concat!(
    "/* heartbeat */ WITH RECURSIVE ",
    chain!("$1"),
    ", beat AS ( \
         UPDATE task SET heard_at = greatest(heard_at, $2) WHERE id = $1 AND ",
    task_open!("heard_at + make_interval(secs => heartbeat_seconds)", "$2"),
    " AND ",
    chain_open!(),
    " AND ",
    undisturbed_since!("$3"),
    " RETURNING heard_at), ",
    under!("$4"),
    "SELECT beat.heard_at AS beat_at, found.* FROM beat LEFT JOIN (",
    select_under!(),
    ") AS found ON true"
);

const SQLITE_HEARTBEAT: &str = concat!(
    "/* heartbeat */ WITH RECURSIVE ",
    chain!("$1"),
    " UPDATE task SET heard_at = max(heard_at, $2) WHERE id = $1 AND ",
    task_open!("heard_at + heartbeat_seconds * 1000000", "$2"),
    " AND ",
    chain_open!(),
    " AND ",
    undisturbed_since!("$3"),
    " RETURNING heard_at"
);

const SQLITE_UNDER: &str = concat!(
    "/* heartbeat */ WITH RECURSIVE ",
    under!("$2"),
    select_under!()
);

impl Store {
    /// A task with everything that decides about it at `now`. `None` if there is no such task.
    pub async fn task_view(
        &self,
        id: TaskId,
        now: Timestamp,
    ) -> Result<Option<TaskView>, StoreError> {
        let held = self.hold_task(id, now).await?;
        Ok(held.map(HeldTask::into_view))
    }

    /// A task with everything that decides about it at `now`, for a heartbeat by
    /// [`HeldTask::hear`]. `None` if there is no such task. On PostgreSQL the result holds the
    /// connection.
    pub async fn hold_task(
        &self,
        id: TaskId,
        now: Timestamp,
    ) -> Result<Option<HeldTask>, StoreError> {
        let (rows, connection): (Vec<TaskViewRow>, _) = match self {
            Self::Postgres(postgres) => {
                let mut connection = postgres.acquire().await?;
                let rows = sqlx::query_as(POSTGRES_TASK_VIEW)
                    .bind(id)
                    .bind(now)
                    .fetch_all(connection.executor())
                    .await;
                (connection.keep_current(rows)?, Some(connection))
            }
            Self::Sqlite(sqlite) => {
                let rows = sqlx::query_as(SQLITE_TASK_VIEW)
                    .bind(id)
                    .bind(now)
                    .fetch_all(sqlite.readers())
                    .await?;
                (rows, None)
            }
        };
        let view = self.viewed(id, rows)?;
        Ok(view.map(|view| HeldTask {
            view,
            store: self.clone(),
            connection,
        }))
    }

    fn viewed(&self, id: TaskId, rows: Vec<TaskViewRow>) -> Result<Option<TaskView>, StoreError> {
        let (mut own, mut above, mut cutoffs) = (None, Vec::new(), Vec::new());
        let (mut as_of, mut generation, mut newest_cutoff) = (0, None, None);
        for mut row in rows {
            if let Some(cutoff) = row.cutoff() {
                cutoffs.push(self.opened(cutoff)?);
            }
            as_of = unsigned("head", row.as_of.unwrap_or(0))?;
            generation = match &row.decides {
                Some(bytes) => Some(GenerationDigest::new(digest("activation", bytes)?)),
                None => None,
            };
            newest_cutoff = match row.newest_cutoff {
                Some(index) => Some(unsigned("cutoff", index)?),
                None => None,
            };
            let task = Task::try_from(row.task)?;
            if task.id == id {
                own = Some(task);
            } else {
                above.push(task);
            }
        }
        let Some(task) = own else {
            return Ok(None);
        };
        // Earlier reads may have found a forged row.
        self.check_trusted()?;
        let chain = TaskChain::of(id, |id| {
            let mut links = std::iter::once(&task).chain(&above);
            let link = links.find(|link| link.id == id)?;
            Some(TaskLink {
                life: link.life(),
                parent: link.parent,
            })
        });
        Ok(Some(TaskView {
            task,
            chain,
            above,
            cutoffs,
            newest_cutoff,
            as_of,
            generation,
        }))
    }
}

impl HeldTask {
    /// The view without the connection, which returns to the pool.
    #[must_use]
    pub fn into_view(self) -> TaskView {
        self.view
    }

    /// Records a heartbeat at `now`, and returns at most `limit` sessions under the task. `None` if
    /// the task has ended or expired, if the end of an ancestor is recorded, or, with
    /// `undisturbed_since`, if a cutoff or an activation came since the log had that size: the
    /// judgement by the view would no longer hold. The caller tests with [`TaskView::is_open`]
    /// whether an ancestor has expired.
    pub async fn hear(
        self,
        now: Timestamp,
        undisturbed_since: Option<u64>,
        limit: u32,
    ) -> Result<Option<RecordedHeartbeat>, StoreError> {
        // Without a size, a cutoff or activation since then is not looked for: no index is so
        // large.
        let since = undisturbed_since.map_or(i64::MAX, signed);
        let id = self.view.task.id;
        let (heard_at, rows, held) = match &self.store {
            Store::Postgres(postgres) => {
                let mut connection = match self.connection {
                    Some(connection) => connection,
                    None => postgres.acquire().await?,
                };
                let rows = sqlx::query(POSTGRES_HEARTBEAT)
                    .bind(id)
                    .bind(now)
                    .bind(since)
                    .bind(i64::from(limit))
                    .fetch_all(connection.executor())
                    .await;
                let rows = connection.keep_current(rows)?;
                let Some(first) = rows.first() else {
                    return Ok(None);
                };
                let heard_at: Timestamp = first.try_get("beat_at")?;
                let mut under = Vec::with_capacity(rows.len());
                for row in &rows {
                    // Without a session there is one row, which carries only the time of the
                    // heartbeat.
                    if row.try_get::<Option<SessionId>, _>("id")?.is_some() {
                        under.push(UnderRow::from_row(row)?);
                    }
                }
                (heard_at, under, Some(connection))
            }
            Store::Sqlite(sqlite) => {
                let heard: Vec<(Timestamp,)> = sqlx::query_as(SQLITE_HEARTBEAT)
                    .bind(id)
                    .bind(now)
                    .bind(since)
                    .fetch_all(sqlite.writer())
                    .await?;
                let Some((heard_at,)) = heard.first().copied() else {
                    return Ok(None);
                };
                let under: Vec<UnderRow> = sqlx::query_as(SQLITE_UNDER)
                    .bind(id)
                    .bind(i64::from(limit))
                    .fetch_all(sqlite.readers())
                    .await?;
                (heard_at, under, None)
            }
        };
        // No cutoff came since a size that the view covers, so its newest one is still the newest.
        let undisturbed = undisturbed_since.is_some_and(|since| since <= self.view.as_of);
        let newest_cutoff = undisturbed.then_some(self.view.newest_cutoff.unwrap_or(0));
        let sessions = self.store.views_under(rows, held, newest_cutoff).await?;
        Ok(Some(RecordedHeartbeat { heard_at, sessions }))
    }
}
