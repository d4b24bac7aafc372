//! Sessions: reads of them with everything that decides whether they are valid, and the leases of
//! unfinished mints and unconfirmed ends.
//!
//! `session` and `session_view` read one, `list_sessions` and `sessions_under` a page,
//! `count_matching` and `list_matching` those of a selector. `activate_session`, `unfinished_mints`
//! and `claim_unconfirmed` serve minting and the sweeper; `listed_plainly` and `listed_in_doubt` the
//! status lists; `active_external` and `external_under` the search for orphans.
//!
//! The rule: this module does not judge. A [`SessionView`] carries the session's tasks, ancestors
//! and cutoffs, and `domain::validity` judges it. All rows are read under the read lease. Failures:
//! `None` means that there is no such session. A row that cannot be parsed is `Corrupt`, an unknown
//! minter `Unfit`, a forged cutoff `Forged`. `activate_session` answers `false` if the lease has
//! expired or the session has ended. Only the ledger's transaction creates and ends sessions.
//! `broker` and `sweep` call this module.

mod external;
mod leases;
mod listed;
mod listing;
mod matching;
mod rows;

use std::collections::{HashMap, HashSet};

pub use self::matching::MatchCount;
use self::rows::{SessionRow, facts_under, shown_views};
pub(super) use self::rows::{UnderRow, select_session, select_under, under};
use super::postgres::Fenced;
use super::tasks::json_ids;
use super::{Store, StoreError, on_pool, read_current};
use crate::clock::Timestamp;
use crate::domain::cutoff::Selector;
use crate::domain::session::Session;
use crate::domain::validity::{SessionView, ValidityFacts};
use crate::ids::{SessionId, TaskId};

/// The sessions that a listing shows.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only of this workload.
    pub workload: Option<String>,
    /// Only under exactly this task.
    pub task: Option<TaskId>,
    /// Only on this resource.
    pub resource: Option<String>,
    /// Only those that could be valid: not ended on record, and not expired at this instant.
    pub live_at: Option<Timestamp>,
    /// Only those with a smaller id: the cursor.
    pub before: Option<SessionId>,
    /// The largest number of sessions to return.
    pub limit: u32,
}

impl Store {
    /// One session's record, without the facts that decide whether it is valid. `None` if there is
    /// no such session.
    pub async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let row: Option<SessionRow> = read_current!(self, db => {
            sqlx::query_as(select_session!("/* session */ WHERE id = $1"))
                .bind(id)
                .fetch_optional(db)
                .await?
        });
        row.map(Session::try_from).transpose()
    }

    /// One session with everything that decides whether it is valid, from the primary.
    ///
    /// The parts are read one after the other, not in one snapshot. Each of them can only change
    /// from valid to ended, so an answer "valid" was true at every moment since the first read.
    pub async fn session_view(&self, id: SessionId) -> Result<Option<SessionView>, StoreError> {
        let Some(session) = self.session(id).await? else {
            return Ok(None);
        };
        Ok(self.session_views(vec![session]).await?.pop())
    }

    /// Every session under a task and its descendants, oldest first, at most `limit`.
    pub async fn sessions_under(
        &self,
        task: TaskId,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let rows: Vec<UnderRow> = read_current!(self, db => {
            sqlx::query_as(concat!(
                "/* sessions_under */ WITH RECURSIVE ",
                under!("$2"),
                select_under!()
            ))
            .bind(task)
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        self.check_trusted()?;
        self.views_under(rows, None, None).await
    }

    /// The sessions that are shown in these rows, oldest first, with everything that decides about
    /// them. On PostgreSQL it reads on the connection `held`; without one, on a connection of the
    /// pool. If `newest_cutoff` is known, no cutoff has a leaf after this index.
    pub(super) async fn views_under(
        &self,
        rows: Vec<UnderRow>,
        held: Option<Fenced>,
        newest_cutoff: Option<u64>,
    ) -> Result<Vec<SessionView>, StoreError> {
        let (shown, mut facts) = facts_under(rows)?;
        let leaves = facts.sessions.values().map(|session| session.leaf_index);
        let oldest = leaves.min();
        // A cutoff ends only sessions with earlier leaves.
        let unharmed = newest_cutoff.is_some_and(|newest| Some(newest) <= oldest);
        if !unharmed {
            facts = self.with_cutoffs(facts, &[], held).await?;
        }
        Ok(shown_views(&shown, &facts))
    }

    /// Adds the cutoffs that can end one of these sessions, or one of those in `facts`. `held` as
    /// for [`Self::views_under`].
    async fn with_cutoffs(
        &self,
        mut facts: ValidityFacts,
        sessions: &[Session],
        held: Option<Fenced>,
    ) -> Result<ValidityFacts, StoreError> {
        let all = || sessions.iter().chain(facts.sessions.values());
        let Some(oldest) = all().map(|session| session.leaf_index).min() else {
            return Ok(facts);
        };
        let mut selectors: HashSet<Selector> =
            facts.tasks.keys().map(|id| Selector::Task(*id)).collect();
        selectors.extend(all().flat_map(|session| session.selector_subject().selectors()));
        facts.cutoffs = self.cutoffs_of_on(held, &selectors, oldest).await?;
        Ok(facts)
    }

    /// The sessions of these rows with the facts that decide whether each is valid.
    async fn views_of(&self, rows: Vec<SessionRow>) -> Result<Vec<SessionView>, StoreError> {
        let sessions = rows.into_iter().map(Session::try_from);
        self.session_views(sessions.collect::<Result<_, _>>()?)
            .await
    }

    /// Adds the facts that decide whether each session is valid: three statements, independent of
    /// the number of sessions.
    async fn session_views(&self, sessions: Vec<Session>) -> Result<Vec<SessionView>, StoreError> {
        self.check_trusted()?;
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let parents: Vec<SessionId> = sessions.iter().filter_map(|s| s.parent).collect();
        let ancestors = if parents.is_empty() {
            HashMap::new()
        } else {
            self.ancestors(&parents).await?
        };
        let mut tasks: HashSet<TaskId> = sessions.iter().map(|session| session.task_id).collect();
        tasks.extend(ancestors.values().map(|session| session.task_id));
        let tasks: Vec<TaskId> = tasks.into_iter().collect();
        let tasks = self.task_links(&tasks).await?;
        let facts = ValidityFacts {
            tasks,
            sessions: ancestors,
            cutoffs: Vec::new(),
        };
        let facts = self.with_cutoffs(facts, &sessions, None).await?;
        Ok(sessions
            .into_iter()
            .map(|session| facts.view(session))
            .collect())
    }

    async fn ancestors(
        &self,
        parents: &[SessionId],
    ) -> Result<HashMap<SessionId, Session>, StoreError> {
        let rows: Vec<SessionRow> = match self {
            Self::Postgres(postgres) => {
                on_pool!(postgres, finish_current, db => {
                    sqlx::query_as(select_session!(
                        "/* ancestors */ WHERE id IN (WITH RECURSIVE kin AS ( \
                             SELECT id, parent_id FROM session WHERE id = ANY($1) \
                             UNION SELECT s.id, s.parent_id FROM session s JOIN kin k ON s.id = k.parent_id) \
                         SELECT id FROM kin)"
                    ))
                    .bind(parents.iter().map(|id| id.uuid()).collect::<Vec<_>>())
                    .fetch_all(db)
                    .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(select_session!(
                    "/* ancestors */ WHERE id IN (WITH RECURSIVE kin AS ( \
                         SELECT id, parent_id FROM session \
                         WHERE id IN (SELECT unhex(value) FROM json_each($1)) \
                         UNION SELECT s.id, s.parent_id FROM session s JOIN kin k ON s.id = k.parent_id) \
                     SELECT id FROM kin)"
                ))
                .bind(json_ids(parents.iter().map(|id| id.uuid())))
                .fetch_all(sqlite.readers())
                .await?
            }
        };
        rows.into_iter()
            .map(|row| Ok((row.id, Session::try_from(row)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
