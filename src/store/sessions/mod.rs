//! Sessions: reads of them with everything that decides whether they are valid, and the leases of
//! unfinished mints and unconfirmed ends.
//!
//! `session` and `session_view` read one, `list_sessions` and `sessions_under` a page,
//! `count_matching` and `list_matching` those of a selector. `activate_session`, `unfinished_mints`
//! and `claim_unconfirmed` serve minting and the sweeper; `listed` the status lists;
//! `active_external` and `external_under` the search for orphans.
//!
//! The rule: this module does not judge. A [`SessionView`] carries the session's tasks, ancestors
//! and cutoffs, and `domain::validity` judges it. All rows are read under the read lease. Failures:
//! `None` means that there is no such session. A row that cannot be parsed is `Corrupt`, an unknown
//! minter `Unfit`, a forged cutoff `Forged`. `activate_session` answers `false` if the lease has
//! expired or the session has ended. Only the ledger's transaction creates and ends sessions.
//! `broker` and `sweep` call this module.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::FromRow;
use uuid::Uuid;

use super::codec::{minter, signed, unsigned};
use super::tasks::{LinkRow, json_ids};
use super::validity_sql::{
    active_at_back_end, cut_off_everywhere, lived, may_stand, polled, selected, selected_tasks,
    task_lived, unexpired,
};
use super::{Store, StoreError, on_pool, read_current, write};
use crate::clock::Timestamp;
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::generation::GenerationDigest;
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::validity::{SessionView, ValidityFacts};
use crate::domain::workload::KeyBinding;
use crate::ids::{DecisionId, SessionId, TaskId};

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

#[derive(Clone, FromRow)]
pub(super) struct SessionRow {
    id: SessionId,
    task_id: TaskId,
    parent_id: Option<SessionId>,
    decision_id: DecisionId,
    leaf_idx: i64,
    attestor: String,
    workload: String,
    instance: Option<String>,
    resource: String,
    details: String,
    audience: String,
    minter: String,
    key_binding: Option<String>,
    kid: String,
    generation: Vec<u8>,
    policies: String,
    class: String,
    bound_seconds: Option<i64>,
    open_sessions: String,
    expires_by: String,
    issued_at: Timestamp,
    expires_at: Timestamp,
    state: String,
    end_reason: Option<String>,
    ended_at: Option<Timestamp>,
    confirmed_at: Option<Timestamp>,
}

macro_rules! select_session {
    ($($rest:tt)+) => {
        concat!(
            "SELECT id, task_id, parent_id, decision_id, leaf_idx, attestor, workload, instance, ",
            "resource, details, audience, minter, key_binding, kid, generation, policies, class, ",
            "bound_seconds, open_sessions, expires_by, issued_at, expires_at, state, end_reason, ",
            "ended_at, confirmed_at ",
            "FROM session ",
            $($rest)+
        )
    };
}

/// `dead`: the sessions that a cutoff ends (`ValidityFacts::is_ended_by`). Every condition is
/// static text. [`bind_matching`] binds the first eight parameters.
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

/// `shown`: the first sessions under the task `$1`, at most `$limit`; `kin`: these and the sessions
/// that they were derived from; `above`: every task above any of them.
macro_rules! under {
    ($limit:literal) => {
        concat!(
            "tree AS ( \
                 SELECT id FROM task WHERE id = $1 \
                 UNION SELECT t.id FROM task t JOIN tree ON t.parent_id = tree.id), \
             shown AS ( \
                 SELECT id FROM session WHERE task_id IN (SELECT id FROM tree) ORDER BY id LIMIT ",
            $limit,
            "), kin AS ( \
                 SELECT id, parent_id, task_id FROM session WHERE id IN (SELECT id FROM shown) \
                 UNION SELECT s.id, s.parent_id, s.task_id \
                 FROM session s JOIN kin ON s.id = kin.parent_id), \
             above AS ( \
                 SELECT task_id AS origin, task_id AS link FROM kin \
                 UNION SELECT above.origin, t.parent_id \
                 FROM above JOIN task t ON t.id = above.link WHERE t.parent_id IS NOT NULL) "
        )
    };
}

/// The rows of [`under`]: each session once per task above it, as [`UnderRow`].
macro_rules! select_under {
    () => {
        concat!(
            "SELECT own.*, link.*, own.id IN (SELECT id FROM shown) AS is_shown FROM (",
            $crate::store::sessions::select_session!("WHERE id IN (SELECT id FROM kin)"),
            ") AS own JOIN above ON above.origin = own.task_id JOIN (SELECT ",
            $crate::store::tasks::link_columns!(),
            " FROM task) AS link ON link.link_id = above.link"
        )
    };
}

pub(super) use {select_session, select_under, under};

/// A session under a task, or a session that one was derived from, with one of the tasks above it.
#[derive(FromRow)]
pub(super) struct UnderRow {
    #[sqlx(flatten)]
    session: SessionRow,
    #[sqlx(flatten)]
    link: LinkRow,
    is_shown: bool,
}

/// The sessions that are shown in these rows, oldest first, with everything that decides about
/// them. `cutoffs` are those with leaves after the oldest of them.
pub(super) fn views_under(
    rows: Vec<UnderRow>,
    cutoffs: Vec<Cutoff>,
) -> Result<Vec<SessionView>, StoreError> {
    let mut facts = ValidityFacts {
        cutoffs,
        ..ValidityFacts::default()
    };
    let mut shown = BTreeSet::new();
    for row in rows {
        let (task, link) = row.link.link()?;
        facts.tasks.insert(task, link);
        let id = row.session.id;
        if row.is_shown {
            shown.insert(id);
        }
        if let Entry::Vacant(unknown) = facts.sessions.entry(id) {
            unknown.insert(row.session.try_into()?);
        }
    }
    let sessions = shown.iter().filter_map(|id| facts.sessions.get(id));
    Ok(sessions
        .map(|session| facts.view(session.clone()))
        .collect())
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

impl TryFrom<SessionRow> for Session {
    type Error = StoreError;

    fn try_from(row: SessionRow) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt("session");
        let bound = row
            .bound_seconds
            .map(|seconds| unsigned("session", seconds))
            .transpose()?;
        let revocability = Revocability {
            class: RevocationClass::from_parts(&row.class, bound).ok_or_else(corrupt)?,
            open_sessions: OpenSessions::parse(&row.open_sessions).ok_or_else(corrupt)?,
            expires_by: ExpiresBy::parse(&row.expires_by).ok_or_else(corrupt)?,
        };
        let generation: [u8; 32] = row.generation.try_into().map_err(|_| corrupt())?;
        let key = match row.key_binding {
            Some(text) => Some(KeyBinding::from_text(&text).ok_or_else(corrupt)?),
            None => None,
        };
        let end_reason = match row.end_reason {
            Some(text) => Some(EndReason::parse(&text).ok_or_else(corrupt)?),
            None => None,
        };
        Ok(Self {
            id: row.id,
            task_id: row.task_id,
            parent: row.parent_id,
            decision_id: row.decision_id,
            leaf_index: unsigned("session", row.leaf_idx)?,
            attestor: row.attestor,
            workload: row.workload.try_into().map_err(|_| corrupt())?,
            instance: row
                .instance
                .map(TryInto::try_into)
                .transpose()
                .map_err(|_| corrupt())?,
            resource: row.resource,
            grant: serde_json::from_str(&row.details).map_err(|_| corrupt())?,
            audience: row.audience,
            minter: minter(&row.minter)?,
            key,
            kid: row.kid,
            generation: GenerationDigest::new(generation),
            policies: serde_json::from_str(&row.policies).map_err(|_| corrupt())?,
            revocability,
            issued_at: row.issued_at,
            expires_at: row.expires_at,
            state: SessionState::parse(&row.state).ok_or_else(corrupt)?,
            end_reason,
            ended_at: row.ended_at,
            confirmed_at: row.confirmed_at,
        })
    }
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

    /// The sessions of a listing, newest first, with everything that decides about them.
    pub async fn list_sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionView>, StoreError> {
        let rows: Vec<SessionRow> = read_current!(self, db => {
            sqlx::query_as(select_session!(
                "/* list_sessions */ WHERE ($1 IS NULL OR workload = $1) \
                 AND ($2 IS NULL OR task_id = $2) AND ($3 IS NULL OR resource = $3) \
                 AND ($4 IS NULL OR (",
                may_stand!("", "$4"),
                ")) AND ($5 IS NULL OR id < $5) ORDER BY id DESC LIMIT $6"
            ))
            .bind(&filter.workload)
            .bind(filter.task)
            .bind(&filter.resource)
            .bind(filter.live_at)
            .bind(filter.before)
            .bind(i64::from(filter.limit))
            .fetch_all(db)
            .await?
        });
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
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
        let oldest = rows.iter().map(|row| row.session.leaf_idx).min();
        let cutoffs = match oldest {
            Some(oldest) => self.cutoffs_after(unsigned("session", oldest)?).await?,
            None => Vec::new(),
        };
        views_under(rows, cutoffs)
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
        let leaves = sessions.iter().chain(ancestors.values());
        let oldest = leaves.map(|session| session.leaf_index).min().unwrap_or(0);
        let facts = ValidityFacts {
            tasks,
            sessions: ancestors,
            cutoffs: self.cutoffs_after(oldest).await?,
        };
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
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
    }

    /// Activates a session whose mint is finished (`minting → active`), if the holder's lease has
    /// not expired. Returns whether it was activated.
    pub async fn activate_session(
        &self,
        id: SessionId,
        holder: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let settled = write!(self, db => {
            sqlx::query(
                concat!(
                    "/* settle_mint */ UPDATE session SET state = 'active', lease_until = NULL \
                     WHERE id = $1 AND state = 'minting' AND lease_holder = $2 \
                     AND lease_until > $3 AND ",
                    unexpired!("", "$3")
                ),
            )
            .bind(id)
            .bind(holder)
            .bind(now)
            .execute(db)
            .await?
            .rows_affected()
        });
        Ok(settled == 1)
    }

    /// Sessions whose mint is unfinished and whose lease has expired.
    pub async fn unfinished_mints(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let rows: Vec<SessionRow> = read_current!(self, db => {
            sqlx::query_as(select_session!(
                "/* unfinished_mints */ WHERE state = 'minting' AND lease_until <= $1 \
                 ORDER BY lease_until LIMIT $2"
            ))
            .bind(now)
            .bind(i64::from(limit))
            .fetch_all(db)
            .await?
        });
        rows.into_iter().map(Session::try_from).collect()
    }

    /// Unconfirmed ends that are due for another try, with the number of tries so far. Each is put
    /// off to `retry_at`, so that two replicas do not try the same one at once. An end whose mint
    /// may still be finished under a lease waits until that lease expires: before, there is nothing
    /// to end.
    pub async fn claim_unconfirmed(
        &self,
        now: Timestamp,
        retry_at: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Session, u32)>, StoreError> {
        let claimed: Vec<(SessionId, i64)> = match self {
            Self::Postgres(postgres) => on_pool!(postgres, db => {
                sqlx::query_as(
                    "/* claim_unconfirmed */ UPDATE session SET retry_at = $2, attempts = attempts + 1 \
                         WHERE id IN (SELECT id FROM session WHERE state = 'ending' AND retry_at <= $1 \
                             AND (lease_until IS NULL OR lease_until <= $1) ORDER BY retry_at LIMIT $3 FOR UPDATE SKIP LOCKED) \
                         RETURNING id, CAST(attempts AS BIGINT)",
                )
                .bind(now)
                .bind(retry_at)
                .bind(i64::from(limit))
                .fetch_all(db)
                .await?
            }),
            Self::Sqlite(sqlite) => sqlx::query_as(
                "/* claim_unconfirmed */ UPDATE session SET retry_at = $2, attempts = attempts + 1 \
                     WHERE id IN (SELECT id FROM session WHERE state = 'ending' AND retry_at <= $1 \
                         AND (lease_until IS NULL OR lease_until <= $1) ORDER BY retry_at LIMIT $3) RETURNING id, attempts",
            )
            .bind(now)
            .bind(retry_at)
            .bind(i64::from(limit))
            .fetch_all(sqlite.writer())
            .await?,
        };
        let mut out = Vec::with_capacity(claimed.len());
        for (id, attempts) in claimed {
            if let Some(session) = self.session(id).await? {
                out.push((session, u32::try_from(attempts).unwrap_or(u32::MAX)));
            }
        }
        Ok(out)
    }

    /// Sets when an unconfirmed end is tried again.
    pub async fn put_off_ending(
        &self,
        id: SessionId,
        retry_at: Timestamp,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query("/* put_off_ending */ UPDATE session SET retry_at = $2 WHERE id = $1 AND state = 'ending'")
                .bind(id)
                .bind(retry_at)
                .execute(db)
                .await?;
        });
        Ok(())
    }

    /// The sessions with leaves in `[from, to)` whose servers poll status lists and that have not
    /// expired at `now`, with everything that decides about them.
    pub async fn listed(
        &self,
        from: u64,
        to: u64,
        now: Timestamp,
    ) -> Result<Vec<SessionView>, StoreError> {
        let rows: Vec<SessionRow> = read_current!(self, db => {
            sqlx::query_as(select_session!(
                "/* listed */ WHERE ",
                polled!(),
                " AND leaf_idx >= $1 AND leaf_idx < $2 AND ",
                unexpired!("", "$3")
            ))
            .bind(signed(from))
            .bind(signed(to))
            .bind(now)
            .fetch_all(db)
            .await?
        });
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
    }

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
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
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
        let sessions = rows
            .into_iter()
            .map(Session::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        self.session_views(sessions).await
    }
}

/// `$1` is the present instant, or the expiry of the last session that was read.
const ACTIVE_EXTERNAL: &str = select_session!(
    "/* active_external */ WHERE ",
    active_at_back_end!(),
    " AND (expires_at, id) > ($1, $2) ORDER BY expires_at, id LIMIT $3"
);

#[cfg(test)]
mod tests;
