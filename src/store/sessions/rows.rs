//! The rows of sessions, and how they are selected and read.
//!
//! [`SessionRow`] is a session's columns, which `select_session!` lists. [`UnderRow`] is a row of
//! `select_under!`: a session under a task, with one of the tasks above it. `facts_under`
//! turns such rows into the facts that decide about these sessions, apart from the cutoffs.
//!
//! A row that cannot be parsed is `Corrupt`, an unknown minter `Unfit`. The other files of this
//! module and [`crate::store::heartbeat`] read with these macros.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;

use sqlx::FromRow;

use crate::clock::Timestamp;
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::validity::{SessionView, ValidityFacts};
use crate::domain::workload::KeyBinding;
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::store::StoreError;
use crate::store::codec::{minter, unsigned};
use crate::store::tasks::LinkRow;

#[derive(Clone, FromRow)]
pub(super) struct SessionRow {
    pub(super) id: SessionId,
    task_id: TaskId,
    parent_id: Option<SessionId>,
    decision_id: DecisionId,
    pub(super) leaf_idx: i64,
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
                 FROM above JOIN task t ON t.id = above.link) "
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

pub(in crate::store) use {select_session, select_under, under};

/// A session under a task, or a session that one was derived from, with one of the tasks above it.
#[derive(FromRow)]
pub(in crate::store) struct UnderRow {
    #[sqlx(flatten)]
    pub(super) session: SessionRow,
    #[sqlx(flatten)]
    link: LinkRow,
    is_shown: bool,
}

/// The shown sessions, with everything that decides about them.
pub(super) fn shown_views(shown: &BTreeSet<SessionId>, facts: &ValidityFacts) -> Vec<SessionView> {
    let sessions = shown.iter().filter_map(|id| facts.sessions.get(id));
    sessions
        .map(|session| facts.view(session.clone()))
        .collect()
}

/// The ids of the sessions that are shown in these rows, oldest first, and the facts of their tasks
/// and of the sessions, without cutoffs.
pub(super) fn facts_under(
    rows: Vec<UnderRow>,
) -> Result<(BTreeSet<SessionId>, ValidityFacts), StoreError> {
    let mut facts = ValidityFacts::default();
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
    Ok((shown, facts))
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
