//! The sessions that a cutoff ends: their number, and the first of them.
//!
//! `count_matching` and `list_matching` select by the same text as `ValidityFacts::is_ended_by`
//! decides in Rust; a property test holds both equal. [`SelectorColumns`] are the parameters of
//! that text.
//!
//! Failures: a selector whose value cannot be written as JSON is `Corrupt`. The broker's
//! `revocation` calls this file.

use super::rows::{SessionRow, select_session};
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::validity::SessionView;
use crate::ids::TaskId;
use crate::store::codec::{signed, unsigned};
use crate::store::validity_sql::{cut_off_everywhere, lived, selected, selected_tasks, task_lived};
use crate::store::{Store, StoreError, read_current};

/// `dead`: the sessions that a cutoff ends (`ValidityFacts::is_ended_by`). Every condition is
/// static text. `bind_matching` binds the first eight parameters.
macro_rules! matching {
    ($($rest:tt)*) => {
        concat!(
            "/* matching */ WITH RECURSIVE ",
            selected_tasks!(),
            ", dead AS ( \
                 SELECT id FROM session WHERE ",
            lived!("", "$1"),
            " AND leaf_idx < $2 \
                 AND EXISTS (SELECT 1 FROM task WHERE task.id = session.task_id AND ",
            task_lived!("task.", "$1"),
            ") AND ",
            selected!(),
            " UNION SELECT s.id FROM session s JOIN dead ON s.parent_id = dead.id WHERE ",
            lived!("s.", "$1"),
            ") ",
            $($rest)*
        )
    };
}

macro_rules! bind_matching {
    ($query:expr, $columns:expr, $index:expr, $at:expr) => {
        $query
            .bind($at)
            .bind(signed($index))
            .bind($columns.kind)
            .bind($columns.task)
            .bind(&$columns.value)
            .bind(&$columns.generation)
            .bind(&$columns.policy)
            .bind($columns.issued_after)
    };
}

/// The columns that [`matching`] compares with a selector.
struct SelectorColumns {
    kind: &'static str,
    value: String,
    task: Option<TaskId>,
    generation: Option<Vec<u8>>,
    issued_after: Option<Timestamp>,
    /// A policy's id as it appears in the JSON list of a session's policies. SQL finds it by
    /// `replace`, which both databases compare byte by byte; SQLite's LIKE ignores case.
    policy: String,
}

impl SelectorColumns {
    fn new(selector: &Selector) -> Result<Self, StoreError> {
        let value = selector.value();
        let policy = serde_json::to_string(&value).map_err(|_| StoreError::Corrupt("policy"))?;
        let mut columns = Self {
            kind: selector.kind(),
            task: None,
            generation: None,
            issued_after: None,
            policy,
            value,
        };
        match selector {
            Selector::Task(id) => columns.task = Some(*id),
            Selector::Generation(digest) => {
                columns.generation = Some(digest.as_bytes().to_vec());
            }
            Selector::IssuedAfter(at) => columns.issued_after = Some(*at),
            // The statement compares these as text.
            Selector::Workload(_)
            | Selector::Resource(_)
            | Selector::Attestor(_)
            | Selector::Policy(_)
            | Selector::SigningKey(_)
            | Selector::All(_) => {}
        }
        Ok(columns)
    }
}

impl Store {
    /// Returns two counts: how many sessions a cutoff at `index`, committed at `at`, ends
    /// (`ValidityFacts::is_ended_by`), and how many of these no resource accepts any more at `now`,
    /// given the cutoff.
    pub async fn count_matching(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let columns = SelectorColumns::new(selector)?;
        let elapsed = (now.micros() - at.micros()).div_euclid(1_000_000);
        let (matched, over): (i64, i64) = read_current!(self, db => {
            let query = sqlx::query_as(matching!(
                "SELECT count(*), count(*) FILTER (WHERE ",
                cut_off_everywhere!("$9", "$10"),
                ") FROM dead JOIN session USING (id)"
            ));
            bind_matching!(query, columns, index, at).bind(now).bind(elapsed).fetch_one(db).await?
        });
        Ok((unsigned("count", matched)?, unsigned("count", over)?))
    }

    /// The first of these sessions by id, at most `limit`, with everything that decides about them:
    /// four statements, independent of the number of sessions.
    pub async fn list_matching(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let columns = SelectorColumns::new(selector)?;
        let rows: Vec<SessionRow> = read_current!(self, db => {
            let query = sqlx::query_as(concat!(
                matching!(),
                select_session!(
                    "WHERE id IN (SELECT id FROM dead ORDER BY id LIMIT $9) ORDER BY id"
                )
            ));
            let query = bind_matching!(query, columns, index, at);
            query.bind(i64::from(limit)).fetch_all(db).await?
        });
        self.views_of(rows).await
    }
}
