//! The sessions on deny lists at back ends: which are to be denied, which have room on the list,
//! and which were read back.
//!
//! An entry is requested (`note_deny_wish`, `request_denial`), listed when there is room
//! (`list_waiting`), and confirmed when a document that names it was read (`note_denied`).
//!
//! The rule: every change of a list's room is made under the lock of its row in `deny_place`, so
//! that no two replicas assign the same room. Sessions that an admin revoked come before all
//! others. Failures: a session without room stays waiting, which is no error. `None` of
//! `revocation_progress` means that no denial was requested. A replica that has lost its lease
//! records nothing in `note_denied` and gets 0. `broker::revocation` calls this module, and writes
//! the documents; the targets are in [`super::deny_lists`].

use sqlx::Connection as _;

use super::codec::unsigned;
use super::deny_lists::ClaimedTarget;
use super::tasks::json_ids;
use super::{Store, StoreError, on_pool, read, write};
use crate::clock::Timestamp;
use crate::domain::deny_list::{
    DenyPolicyTarget, DenyReason, DenyRequest, DenyRoom, RevocationProgress,
};
use crate::ids::SessionId;

/// Runs statements in one transaction that holds the row of a deny list's target. `$fits` is the
/// number of sessions for which the back end had room, if fewer than registered.
macro_rules! locked {
    ($store:expr, $target:expr, ($db:ident, $fits:ident) => $body:expr) => {{
        match $store {
            Store::Postgres(postgres) => on_pool!(postgres, connection => {
                let mut $db = connection.begin().await?;
                // The lock does not conflict with foreign keys that refer to the row.
                let row: Option<(Option<i64>,)> = sqlx::query_as(
                    "/* lock_deny_place */ SELECT fits FROM deny_place \
                     WHERE minter = $1 AND name = $2 FOR NO KEY UPDATE",
                )
                .bind($target.minter.as_str())
                .bind(&$target.name)
                .fetch_optional(&mut *$db)
                .await?;
                let $fits = row.and_then(|(fits,)| fits);
                let done = $body;
                $db.commit().await?;
                done
            }),
            Store::Sqlite(sqlite) => {
                let mut $db = sqlite.writer().begin_with("BEGIN IMMEDIATE").await?;
                let row: Option<(Option<i64>,)> = sqlx::query_as(
                    "/* lock_deny_place */ SELECT fits FROM deny_place \
                     WHERE minter = $1 AND name = $2",
                )
                .bind($target.minter.as_str())
                .bind(&$target.name)
                .fetch_optional(&mut *$db)
                .await?;
                let $fits = row.and_then(|(fits,)| fits);
                let done = $body;
                $db.commit().await?;
                done
            }
        }
    }};
}

/// Lists waiting sessions as far as there is room: those that an admin revoked first, then by the
/// time of the request. A session that has ended and expires before the list is sure to hold is not
/// worth its room.
macro_rules! list_waiting {
    ($db:ident, $fits:expr, $target:expr, $now:expr) => {{
        let rows: Vec<(SessionId,)> = sqlx::query_as(
            "/* list_waiting */ UPDATE deny_entry SET listed = true WHERE session_id IN ( \
             SELECT w.session_id FROM (SELECT session_id, wish, \
             row_number() OVER (ORDER BY wish DESC, requested_at, session_id) AS nth \
             FROM deny_entry WHERE minter = $1 AND place = $2 AND NOT listed \
             AND requested_at IS NOT NULL AND keep_until > $3 \
             AND (wish = 2 OR keep_until > $4)) AS w \
             WHERE w.nth + (SELECT count(*) FROM deny_entry \
             WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3) \
             <= CASE w.wish WHEN 2 THEN CAST($5 AS bigint) WHEN 1 THEN CAST($6 AS bigint) \
             ELSE CAST($7 AS bigint) END) RETURNING session_id",
        )
        .bind($target.minter.as_str())
        .bind(&$target.name)
        .bind($now)
        .bind($now.plus_seconds($target.propagation_seconds + SKEW_SECONDS))
        .bind(room($target, DenyReason::Admin, $fits))
        .bind(room($target, DenyReason::Unknown, $fits))
        .bind(room($target, DenyReason::Over, $fits))
        .fetch_all(&mut *$db)
        .await?;
        rows.into_iter().map(|(id,)| id).collect::<Vec<_>>()
    }};
}

/// The largest clock difference between a back end and the broker, in seconds; a session stays
/// listed that much longer.
pub const SKEW_SECONDS: u64 = 5;

fn room(target: &DenyPolicyTarget, wish: DenyReason, fits: Option<i64>) -> i64 {
    let registered = i64::from(target.room_for(wish));
    fits.map_or(registered, |fits| registered.min(fits))
}

impl Store {
    /// The progress of a session's denial. `None` if it was never requested.
    pub async fn revocation_progress(
        &self,
        session: SessionId,
    ) -> Result<Option<RevocationProgress>, StoreError> {
        type Row = (Timestamp, bool, Option<Timestamp>, Option<Timestamp>);
        let row: Option<Row> = read!(self, db => {
            sqlx::query_as(
                "/* revocation_progress */ SELECT e.requested_at, e.listed, e.written_at, p.read_at \
                 FROM deny_entry e JOIN deny_place p ON p.minter = e.minter AND p.name = e.place \
                 WHERE e.session_id = $1 AND e.requested_at IS NOT NULL",
            )
            .bind(session)
            .fetch_optional(db)
            .await?
        });
        Ok(row.map(
            |(requested_at, listed, written_at, read_at)| RevocationProgress {
                requested_at,
                listed,
                written_at,
                read_at,
            },
        ))
    }

    /// Records that a session is to be denied, before its end is recorded, so that a crash in
    /// between does not lose the request. The priority of a request is raised and never lowered.
    pub async fn note_deny_wish(
        &self,
        target: &DenyPolicyTarget,
        ask: &DenyRequest,
    ) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* note_deny_wish */ INSERT INTO deny_entry \
                 (session_id, minter, place, wish, listed, keep_until) \
                 VALUES ($1, $2, $3, $4, false, $5) ON CONFLICT (session_id) DO UPDATE \
                 SET wish = CASE WHEN excluded.wish > deny_entry.wish THEN excluded.wish \
                 ELSE deny_entry.wish END",
            )
            .bind(ask.session)
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(ask.wish as i16)
            .bind(ask.keep_until)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Requests that a session be denied at a known target, and lists waiting sessions as far as
    /// there is room. A second request raises the priority and changes nothing else.
    pub async fn request_denial(
        &self,
        target: &DenyPolicyTarget,
        ask: &DenyRequest,
    ) -> Result<(), StoreError> {
        locked!(self, target, (db, fits) => {
            sqlx::query(
                "/* ask_deny */ INSERT INTO deny_entry \
                 (session_id, minter, place, wish, requested_at, listed, keep_until) \
                 VALUES ($1, $2, $3, $4, $5, false, $6) ON CONFLICT (session_id) DO UPDATE SET \
                 wish = CASE WHEN excluded.wish > deny_entry.wish THEN excluded.wish \
                 ELSE deny_entry.wish END, \
                 requested_at = COALESCE(deny_entry.requested_at, excluded.requested_at), \
                 keep_until = CASE WHEN deny_entry.listed THEN deny_entry.keep_until \
                 ELSE excluded.keep_until END",
            )
            .bind(ask.session)
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(ask.wish as i16)
            .bind(ask.at)
            .bind(ask.keep_until)
            .execute(&mut *db)
            .await?;
            list_waiting!(db, fits, target, ask.at)
        });
        self.schedule_deny_policy(target, ask.at).await
    }

    /// Lists the sessions that wait for room at a target, as far as there is room at `now`.
    pub async fn list_waiting(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<Vec<SessionId>, StoreError> {
        Ok(locked!(self, target, (db, fits) => list_waiting!(db, fits, target, now)))
    }

    /// The state of the room on a target's list at `now`.
    pub async fn deny_room(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<DenyRoom, StoreError> {
        type Row = (i64, Option<i64>, Option<bool>);
        let (count, failures, is_short): Row = read!(self, db => {
            sqlx::query_as(
                "/* deny_room */ SELECT count(*), \
                 (SELECT attempts FROM deny_place WHERE minter = $1 AND name = $2), \
                 (SELECT fits IS NOT NULL FROM deny_place WHERE minter = $1 AND name = $2) \
                 FROM deny_entry WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(now)
            .fetch_one(db)
            .await?
        });
        Ok(DenyRoom {
            listed: unsigned("count", count)?,
            failures: u32::try_from(failures.unwrap_or(0)).unwrap_or(u32::MAX),
            is_short: is_short.unwrap_or(false),
        })
    }

    /// Imports sessions that the remote document names and the store does not. They occupy their
    /// room already, even beyond the registered capacity, and stay denied: a list without one of
    /// them would make it valid again. If the list is full, sessions that no document names yet are
    /// taken off, those that an admin revoked last. Returns the sessions that were taken off.
    pub async fn import_denied(
        &self,
        target: &DenyPolicyTarget,
        sessions: &[SessionId],
        now: Timestamp,
        keep_until: Timestamp,
    ) -> Result<Vec<SessionId>, StoreError> {
        let left = locked!(self, target, (db, _fits) => {
            let listed: Vec<(SessionId, bool)> = sqlx::query_as(
                "/* adopt_denied */ SELECT session_id, written_at IS NOT NULL FROM deny_entry \
                 WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3 \
                 ORDER BY wish DESC, requested_at, session_id",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(now)
            .fetch_all(&mut *db)
            .await?;
            let is_new = |id: &&SessionId| !listed.iter().any(|(listed, _)| listed == *id);
            let new: Vec<SessionId> = sessions.iter().filter(is_new).copied().collect();
            let capacity = usize::try_from(target.capacity).unwrap_or(usize::MAX);
            let mut excess = (listed.len() + new.len()).saturating_sub(capacity);
            let mut left = Vec::new();
            for (id, written) in listed.iter().rev() {
                if excess > 0 && !written && !sessions.contains(id) {
                    sqlx::query(
                        "/* adopt_denied */ UPDATE deny_entry SET listed = false \
                         WHERE session_id = $1",
                    )
                    .bind(id)
                    .execute(&mut *db)
                    .await?;
                    left.push(*id);
                    excess -= 1;
                }
            }
            for id in &new {
                sqlx::query(
                    "/* adopt_denied */ INSERT INTO deny_entry \
                     (session_id, minter, place, wish, requested_at, listed, written_at, keep_until) \
                     VALUES ($1, $2, $3, 2, $4, true, $4, $5) \
                     ON CONFLICT (session_id) DO UPDATE SET listed = true, \
                     wish = 2, requested_at = COALESCE(deny_entry.requested_at, $4), \
                     written_at = COALESCE(deny_entry.written_at, $4)",
                )
                .bind(id)
                .bind(target.minter.as_str())
                .bind(&target.name)
                .bind(now)
                .bind(keep_until)
                .execute(&mut *db)
                .await?;
            }
            left
        });
        Ok(left)
    }

    /// Takes all but the first `keep` sessions that no document names yet off a target's list;
    /// those that an admin revoked are kept longest. Returns the sessions that were taken off.
    pub async fn unlist_unwritten(
        &self,
        target: &DenyPolicyTarget,
        keep: usize,
        now: Timestamp,
    ) -> Result<Vec<SessionId>, StoreError> {
        Ok(locked!(self, target, (db, _fits) => {
            let unwritten: Vec<(SessionId,)> = sqlx::query_as(
                "/* unlist_unwritten */ SELECT session_id FROM deny_entry \
                 WHERE minter = $1 AND place = $2 AND listed AND written_at IS NULL \
                 AND keep_until > $3 ORDER BY wish DESC, requested_at, session_id",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(now)
            .fetch_all(&mut *db)
            .await?;
            let left: Vec<_> = unwritten.into_iter().skip(keep).map(|(id,)| id).collect();
            for id in &left {
                sqlx::query(
                    "/* unlist_unwritten */ UPDATE deny_entry SET listed = false \
                     WHERE session_id = $1",
                )
                .bind(id)
                .execute(&mut *db)
                .await?;
            }
            left
        }))
    }

    /// The sessions that a target's document must name at `now`.
    pub async fn denied_sessions(
        &self,
        target: &DenyPolicyTarget,
        now: Timestamp,
    ) -> Result<Vec<SessionId>, StoreError> {
        let rows: Vec<(SessionId,)> = read!(self, db => {
            sqlx::query_as(
                "/* denied_sessions */ SELECT session_id FROM deny_entry \
                 WHERE minter = $1 AND place = $2 AND listed AND keep_until > $3",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(now)
            .fetch_all(db)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Records which sessions a document that was read at `now` names: those that are new in it,
    /// and those that are no longer in it. Only the lease holder may record, so that a slow reader
    /// cannot overwrite newer facts. Returns how many are new.
    pub async fn note_denied(
        &self,
        target: &DenyPolicyTarget,
        holder: &str,
        present: &[SessionId],
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        macro_rules! note {
            ($present:literal) => {
                concat!(
                    "/* note_denied */ UPDATE deny_entry SET written_at = \
                     CASE WHEN session_id IN ",
                    $present,
                    " THEN COALESCE(written_at, $4) END \
                     WHERE minter = $1 AND place = $2 AND listed AND keep_until > $4 \
                     AND (written_at IS NULL) = (session_id IN ",
                    $present,
                    ") AND EXISTS (SELECT 1 FROM deny_place \
                     WHERE minter = $1 AND name = $2 AND lease_holder = $5) \
                     RETURNING written_at IS NOT NULL"
                )
            };
        }
        let changed: Vec<(bool,)> = match self {
            Self::Postgres(postgres) => {
                let ids: Vec<_> = present.iter().map(|id| id.uuid()).collect();
                on_pool!(postgres, db => {
                    sqlx::query_as(note!("(SELECT unnest($3))"))
                        .bind(target.minter.as_str())
                        .bind(&target.name)
                        .bind(ids)
                        .bind(now)
                        .bind(holder)
                        .fetch_all(db)
                        .await?
                })
            }
            Self::Sqlite(sqlite) => {
                sqlx::query_as(note!("(SELECT unhex(value) FROM json_each($3))"))
                    .bind(target.minter.as_str())
                    .bind(&target.name)
                    .bind(json_ids(present.iter().map(|id| id.uuid())))
                    .bind(now)
                    .bind(holder)
                    .fetch_all(sqlite.writer())
                    .await?
            }
        };
        Ok(changed.iter().map(|(written,)| u64::from(*written)).sum())
    }

    /// Records that a target's back end refused a document for its size at `now`, and how many
    /// sessions the remote document names.
    pub async fn mark_deny_policy_short(
        &self,
        claimed: &ClaimedTarget,
        fits: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let target = &claimed.target;
        write!(self, db => {
            sqlx::query(
                "/* deny_place_short */ UPDATE deny_place SET fits = $3, refused_at = $4 \
                 WHERE minter = $1 AND name = $2",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .bind(i64::try_from(fits).unwrap_or(i64::MAX))
            .bind(now)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// Records that a target's back end has room for the whole registered capacity.
    pub async fn mark_deny_policy_fits(&self, target: &DenyPolicyTarget) -> Result<(), StoreError> {
        write!(self, db => {
            sqlx::query(
                "/* deny_place_fits */ UPDATE deny_place SET fits = NULL, refused_at = NULL \
                 WHERE minter = $1 AND name = $2",
            )
            .bind(target.minter.as_str())
            .bind(&target.name)
            .execute(db)
            .await?;
        });
        Ok(())
    }

    /// The number of targets that have less room than registered.
    pub async fn count_short_deny_policies(&self) -> Result<u64, StoreError> {
        let (count,): (i64,) = read!(self, db => {
            sqlx::query_as(
                "/* short_deny_places */ SELECT count(*) FROM deny_place WHERE fits IS NOT NULL",
            )
            .fetch_one(db)
            .await?
        });
        unsigned("count", count)
    }
}
