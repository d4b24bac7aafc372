//! The sessions that a cutoff ends: their number, and some of them.
//!
//! Each kind of selector has statements of its own ([`Statements::of`]), so that each can go by the
//! index that serves it. They select by the same rule as `ValidityFacts::is_ended_by` decides in
//! Rust; a property test holds both equal.
//!
//! The rule: a statement stops at a number of sessions, so that its cost is bounded. Failures: a
//! policy whose id cannot be written as JSON is `Corrupt`. The broker's `revocation` and
//! `signing_keys` call this file.

use super::rows::{SessionRow, select_session};
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::validity::SessionView;
use crate::ids::TaskId;
use crate::store::codec::{signed, unsigned};
use crate::store::validity_sql::{cut_off_everywhere, lived, task_lived};
use crate::store::{Store, StoreError, read_current};

/// `found`: at most `$3` of the sessions that a cutoff at the leaf `$2`, committed at `$1`, ends.
/// `dead` are these sessions: those that match the selector (`$selected`, `Selector::matches`), and
/// those derived from them, with the columns that the count needs. `$tree` defines the table of tasks that `$selected` needs.
macro_rules! matching {
    ($label:literal, $tree:literal, $selected:literal, $($rest:tt)+) => {
        concat!(
            $label,
            " WITH RECURSIVE ",
            $tree,
            "dead AS ( \
                 SELECT * FROM (SELECT id, state, class, bound_seconds, in_status_lists, expires_at \
                 FROM session WHERE ",
            lived!("", "$1"),
            " AND leaf_idx < $2 \
                 AND EXISTS (SELECT 1 FROM task WHERE task.id = session.task_id AND ",
            task_lived!("task.", "$1"),
            ") AND ",
            $selected,
            " LIMIT $3) AS direct \
                 UNION SELECT s.id, s.state, s.class, s.bound_seconds, s.in_status_lists, s.expires_at \
                 FROM session s JOIN dead ON s.parent_id = dead.id WHERE ",
            lived!("s.", "$1"),
            "), found AS (SELECT * FROM dead LIMIT $3) ",
            $($rest)+
        )
    };
}

/// The statements of one kind of selector. `$now` and `$elapsed` are parameters of the count.
macro_rules! statements {
    ($label:literal, $tree:literal, $selected:literal, $now:literal, $elapsed:literal) => {
        Statements {
            count: matching!(
                $label,
                $tree,
                $selected,
                "SELECT count(*), count(*) FILTER (WHERE ",
                cut_off_everywhere!($now, $elapsed),
                ") FROM found"
            ),
            list: matching!(
                $label,
                $tree,
                $selected,
                select_session!("WHERE id IN (SELECT id FROM found) ORDER BY id")
            ),
        }
    };
}

/// Binds the value of a selector, if it has one, as the next parameter.
macro_rules! bind_value {
    ($query:expr, $value:expr) => {{
        let query = $query;
        match $value {
            SelectorValue::None => query,
            SelectorValue::Text(text) => query.bind(text),
            SelectorValue::Bytes(bytes) => query.bind(bytes),
            SelectorValue::Task(task) => query.bind(task),
            SelectorValue::Time(at) => query.bind(at),
        }
    }};
}

/// The texts of one kind of selector.
pub(super) struct Statements {
    pub(super) count: &'static str,
    pub(super) list: &'static str,
}

impl Statements {
    pub(super) fn of(selector: &Selector) -> Self {
        match selector {
            Selector::All(_) => statements!("/* matching_all */", "", "1 = 1", "$4", "$5"),
            Selector::Workload(_) => {
                statements!("/* matching_workload */", "", "workload = $4", "$5", "$6")
            }
            Selector::Resource(_) => {
                statements!("/* matching_resource */", "", "resource = $4", "$5", "$6")
            }
            Selector::Attestor(_) => {
                statements!("/* matching_attestor */", "", "attestor = $4", "$5", "$6")
            }
            Selector::SigningKey(_) => {
                statements!("/* matching_signing_key */", "", "kid = $4", "$5", "$6")
            }
            Selector::Generation(_) => {
                statements!(
                    "/* matching_generation */",
                    "",
                    "generation = $4",
                    "$5",
                    "$6"
                )
            }
            Selector::Policy(_) => statements!(
                "/* matching_policy */",
                "",
                "replace(policies, $4, '') <> policies",
                "$5",
                "$6"
            ),
            Selector::Task(_) => statements!(
                "/* matching_task */",
                "tree AS (SELECT id FROM task WHERE id = $4 \
                 UNION SELECT t.id FROM task t JOIN tree ON t.parent_id = tree.id), ",
                "task_id IN (SELECT id FROM tree)",
                "$5",
                "$6"
            ),
            Selector::IssuedAfter(_) => statements!(
                "/* matching_issued_after */",
                "tree AS (SELECT id FROM task WHERE opened_at > $4 \
                 UNION SELECT t.id FROM task t JOIN tree ON t.parent_id = tree.id), ",
                "(issued_at > $4 OR task_id IN (SELECT id FROM tree))",
                "$5",
                "$6"
            ),
        }
    }
}

/// The value that the statements of a selector compare with.
enum SelectorValue {
    None,
    Text(String),
    Bytes(Vec<u8>),
    Task(TaskId),
    Time(Timestamp),
}

impl SelectorValue {
    fn of(selector: &Selector) -> Result<Self, StoreError> {
        Ok(match selector {
            Selector::All(_) => Self::None,
            Selector::Workload(_)
            | Selector::Resource(_)
            | Selector::Attestor(_)
            | Selector::SigningKey(_) => Self::Text(selector.value()),
            Selector::Generation(digest) => Self::Bytes(digest.as_bytes().to_vec()),
            // As it appears in the JSON list of a session's policies. SQL finds it by `replace`,
            // which both databases compare byte by byte; SQLite's LIKE ignores case.
            Selector::Policy(id) => {
                let text = serde_json::to_string(id);
                Self::Text(text.map_err(|_| StoreError::Corrupt("policy"))?)
            }
            Selector::Task(id) => Self::Task(*id),
            Selector::IssuedAfter(at) => Self::Time(*at),
        })
    }
}

/// How many sessions a cutoff ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchCount {
    /// The number of sessions (`ValidityFacts::is_ended_by`), as far as they were counted.
    pub matched: u64,
    /// How many of these no resource accepts any more, given the cutoff.
    pub cut_off: u64,
    /// Whether counting stopped: more than `matched` sessions match.
    pub has_more: bool,
}

impl Store {
    /// Counts the sessions that a cutoff at `index`, committed at `at`, ends, and those of them that
    /// no resource accepts any more at `now`. Stops after `most`.
    pub async fn count_matching(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
        now: Timestamp,
        most: u32,
    ) -> Result<MatchCount, StoreError> {
        let (text, value) = (Statements::of(selector).count, SelectorValue::of(selector)?);
        let elapsed = (now.micros() - at.micros()).div_euclid(1_000_000);
        // One more shows that there are more.
        let limit = i64::from(most) + 1;
        let (found, cut_off): (i64, i64) = read_current!(self, db => {
            let query = sqlx::query_as(text).bind(at).bind(signed(index)).bind(limit);
            bind_value!(query, &value).bind(now).bind(elapsed).fetch_one(db).await?
        });
        let (found, cut_off) = (unsigned("count", found)?, unsigned("count", cut_off)?);
        let matched = found.min(u64::from(most));
        Ok(MatchCount {
            matched,
            cut_off: cut_off.min(matched),
            has_more: found > matched,
        })
    }

    /// Some of these sessions, at most `limit`, ordered by id, with everything that decides about
    /// them: four statements, independent of the number of sessions.
    pub async fn list_matching(
        &self,
        selector: &Selector,
        index: u64,
        at: Timestamp,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let (text, value) = (Statements::of(selector).list, SelectorValue::of(selector)?);
        let rows: Vec<SessionRow> = read_current!(self, db => {
            let query = sqlx::query_as(text).bind(at).bind(signed(index));
            bind_value!(query.bind(i64::from(limit)), &value).fetch_all(db).await?
        });
        self.views_of(rows).await
    }
}
