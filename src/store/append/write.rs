//! Writes the outcome of a batch: leaves, tiles, the head, one-time ids, tasks, sessions, retries.
//!
//! `postgres` writes everything in one statement, with one array for each column; `sqlite` row by
//! row. Both have the same effect.
//!
//! The rule: a session that has ended is not ended again: its row keeps its first end. All other
//! rows were judged by the ledger's entries; this module checks nothing. Failures: any failed
//! statement is returned as a `StoreError`, and the transaction rolls back. A leaf, head, tile,
//! task, session or one-time id that exists already violates its key and fails the batch. Only
//! `store::append` calls this module; it writes the rare acts by `acts`.

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use super::{LeafRow, MintLease, RetryFacts, SessionEnd, TaskChange, Writes, column};
use crate::domain::leaf::Opening;
use crate::domain::session::Session;
use crate::domain::task::Task;
use crate::domain::workload::KeyBinding;
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::merkle::Tile;
use crate::store::StoreError;
use crate::store::codec::{retry_row, signed};
use crate::store::heads::SealedHead;

const POSTGRES_WRITE: &str = r"/* ledger_write */
WITH leaves AS (
    INSERT INTO leaf (idx, hash, decision_id, subject, at)
    SELECT * FROM unnest($1::int8[], $2::bytea[], $3::uuid[], $4::text[], $5::timestamptz[])
), bodies AS (
    INSERT INTO leaf_body (idx, body) SELECT * FROM unnest($1::int8[], $6::bytea[])
), openings AS (
    INSERT INTO leaf_opening (idx, input_salt, input, purpose_salt, purpose)
    SELECT * FROM unnest($7::int8[], $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[])
), tiles AS (
    INSERT INTO tile (level, idx, root, hashes)
    SELECT * FROM unnest($12::int2[], $13::int8[], $14::bytea[], $15::bytea[])
), heads AS (
    INSERT INTO ledger_head (size, root, batch_id, mac, endings)
    SELECT * FROM unnest($16::int8[], $17::bytea[], $18::uuid[], $76::bytea[], $82::bytea[])
), once AS (
    INSERT INTO one_time (key, binding, expires_at)
    SELECT * FROM unnest($19::bytea[], $20::bytea[], $21::timestamptz[])
), tasks AS (
    INSERT INTO task (id, task_type, attestor, owner, owner_instance, parent_id, depth, opened_at,
        deadline, heartbeat_seconds, check_at, handle_digest, handle_key, sessions_left, leaf_idx,
        attestor_digest, state, heard_at)
    SELECT o.*, 'open', o.opened_at
    FROM unnest($22::uuid[], $23::text[], $24::text[], $25::text[], $26::text[], $27::uuid[],
        $28::int2[], $29::timestamptz[], $30::timestamptz[], $31::int8[], $32::timestamptz[],
        $33::bytea[], $34::text[], $35::int4[], $36::int8[], $77::bytea[])
        AS o (id, task_type, attestor, owner, owner_instance, parent_id, depth, opened_at, deadline,
            heartbeat_seconds, check_at, handle_digest, handle_key, sessions_left, leaf_idx,
            attestor_digest)
), task_changes AS (
    UPDATE task SET
        state = coalesce(c.state, task.state),
        ended_at = coalesce(c.ended_at, task.ended_at),
        end_idx = coalesce(c.end_idx, task.end_idx),
        sessions_left = task.sessions_left - c.taken,
        handle_digest = coalesce(c.handle, task.handle_digest)
    FROM unnest($37::uuid[], $38::text[], $39::timestamptz[], $40::int8[], $41::int4[], $42::bytea[])
        AS c (id, state, ended_at, end_idx, taken, handle)
    WHERE task.id = c.id
), sessions AS (
    INSERT INTO session (id, task_id, parent_id, decision_id, leaf_idx, attestor, workload,
        instance, resource, details, audience, key_binding, kid, generation, policies, class,
        bound_seconds, issued_at, expires_at, state, lease_until, lease_holder, minter, is_local,
        in_status_lists, open_sessions, expires_by)
    SELECT * FROM unnest($43::uuid[], $44::uuid[], $45::uuid[], $46::uuid[], $47::int8[],
        $48::text[], $49::text[], $50::text[], $51::text[], $52::text[], $53::text[], $54::text[],
        $55::text[], $56::bytea[], $57::text[], $58::text[], $59::int8[], $60::timestamptz[],
        $61::timestamptz[], $62::text[], $63::timestamptz[], $64::text[], $75::text[], $78::bool[],
        $79::bool[], $80::text[], $81::text[])
), session_ends AS (
    UPDATE session SET
        state = e.state,
        end_reason = e.reason,
        ended_at = coalesce(session.ended_at, e.at),
        confirmed_at = CASE WHEN e.state = 'ended' THEN e.at END,
        retry_at = CASE WHEN e.state = 'ending' THEN e.at END
    FROM unnest($65::uuid[], $66::text[], $67::text[], $68::timestamptz[]) AS e (id, state, reason, at)
    WHERE session.id = e.id AND session.state <> 'ended'
)
INSERT INTO retry (key, fingerprint, session_id, task_id, supersedes, expires_at)
SELECT * FROM unnest($69::bytea[], $70::bytea[], $71::uuid[], $72::uuid[], $73::int4[], $74::timestamptz[])
ON CONFLICT (key) DO UPDATE SET
    fingerprint = excluded.fingerprint, session_id = excluded.session_id,
    task_id = excluded.task_id, supersedes = excluded.supersedes, expires_at = excluded.expires_at";

#[expect(
    clippy::too_many_lines,
    reason = "one bind a column, in the order of the statement"
)]
pub(super) async fn postgres(
    connection: &mut PgConnection,
    writes: &Writes,
) -> Result<(), StoreError> {
    let leaves = &writes.leaves;
    let opened: Vec<&LeafRow> = leaves
        .iter()
        .filter(|leaf| leaf.input.is_some() || leaf.purpose.is_some())
        .collect();
    let salt = |opening: &Option<Opening>| opening.as_ref().map(|opening| opening.salt.to_vec());
    let bytes = |opening: &Option<Opening>| opening.as_ref().map(|opening| opening.bytes.clone());
    let tiles = &writes.tiles;
    let heads: Vec<&SealedHead> = writes.head.iter().collect();
    let once = &writes.one_time;
    let tasks = &writes.tasks;
    let changes: Vec<(&TaskId, &TaskChange)> = writes.task_changes.iter().collect();
    let sessions = &writes.sessions;
    let ends: Vec<(&SessionId, &SessionEnd)> = writes.session_ends.iter().collect();
    let retries: Vec<(&[u8; 32], &RetryFacts)> = writes.retries.iter().collect();
    sqlx::query(POSTGRES_WRITE)
        .bind(column(leaves, |l| signed(l.index)))
        .bind(column(leaves, |l| l.hash.as_bytes().to_vec()))
        .bind(column(leaves, |l| l.decision.map(DecisionId::uuid)))
        .bind(column(leaves, |l| l.subject.clone()))
        .bind(column(leaves, |l| l.at))
        .bind(column(leaves, |l| l.body.clone()))
        .bind(column(&opened, |l| signed(l.index)))
        .bind(column(&opened, |l| salt(&l.input)))
        .bind(column(&opened, |l| bytes(&l.input)))
        .bind(column(&opened, |l| salt(&l.purpose)))
        .bind(column(&opened, |l| bytes(&l.purpose)))
        .bind(column(tiles, |t| i16::from(t.level)))
        .bind(column(tiles, |t| signed(t.index)))
        .bind(column(tiles, |t| t.root.as_bytes().to_vec()))
        .bind(column(tiles, tile_bytes))
        .bind(column(&heads, |head| signed(head.size())))
        .bind(column(&heads, |head| head.root().as_bytes().to_vec()))
        .bind(column(&heads, |head| head.batch().uuid()))
        .bind(column(once, |o| o.id().as_bytes().to_vec()))
        .bind(column(once, |o| o.binding.map(|binding| binding.to_vec())))
        .bind(column(once, |o| o.expires_at))
        .bind(column(tasks, |t| t.id.uuid()))
        .bind(column(tasks, |t| t.task_type.clone()))
        .bind(column(tasks, |t| t.attestor.clone()))
        .bind(column(tasks, |t| t.owner.to_string()))
        .bind(column(tasks, |t| {
            t.owner_instance.as_ref().map(ToString::to_string)
        }))
        .bind(column(tasks, |t| t.parent.map(TaskId::uuid)))
        .bind(column(tasks, |t| i16::from(t.depth)))
        .bind(column(tasks, |t| t.opened_at))
        .bind(column(tasks, |t| t.deadline))
        .bind(column(tasks, |t| t.heartbeat_seconds.map(signed)))
        .bind(column(tasks, |t| t.life().expires_at()))
        .bind(column(tasks, |t| t.handle_digest.to_vec()))
        .bind(column(tasks, |t| t.handle_key.clone()))
        .bind(column(tasks, |t| {
            i32::try_from(t.sessions_left).unwrap_or(i32::MAX)
        }))
        .bind(column(tasks, |t| signed(t.leaf_index)))
        .bind(column(&changes, |(id, _)| id.uuid()))
        .bind(column(&changes, |(_, c)| {
            c.end.map(|(state, _, _)| state.as_str())
        }))
        .bind(column(&changes, |(_, c)| c.end.map(|(_, at, _)| at)))
        .bind(column(&changes, |(_, c)| {
            c.end.map(|(_, _, index)| signed(index))
        }))
        .bind(column(&changes, |(_, c)| {
            i32::try_from(c.sessions_taken).unwrap_or(i32::MAX)
        }))
        .bind(column(&changes, |(_, c)| {
            c.handle.map(|handle| handle.to_vec())
        }))
        .bind(column(sessions, |(s, _)| s.id.uuid()))
        .bind(column(sessions, |(s, _)| s.task_id.uuid()))
        .bind(column(sessions, |(s, _)| s.parent.map(SessionId::uuid)))
        .bind(column(sessions, |(s, _)| s.decision_id.uuid()))
        .bind(column(sessions, |(s, _)| signed(s.leaf_index)))
        .bind(column(sessions, |(s, _)| s.attestor.clone()))
        .bind(column(sessions, |(s, _)| s.workload.to_string()))
        .bind(column(sessions, |(s, _)| {
            s.instance.as_ref().map(ToString::to_string)
        }))
        .bind(column(sessions, |(s, _)| s.resource.clone()))
        .bind(column(sessions, |(s, _)| details_text(s)))
        .bind(column(sessions, |(s, _)| s.audience.clone()))
        .bind(column(sessions, |(s, _)| {
            s.key.as_ref().map(KeyBinding::to_text)
        }))
        .bind(column(sessions, |(s, _)| s.kid.clone()))
        .bind(column(sessions, |(s, _)| s.generation.as_bytes().to_vec()))
        .bind(column(sessions, |(s, _)| policies_text(s)))
        .bind(column(sessions, |(s, _)| s.revocability.class.as_str()))
        .bind(column(sessions, |(s, _)| {
            s.revocability.class.bound_seconds().map(signed)
        }))
        .bind(column(sessions, |(s, _)| s.issued_at))
        .bind(column(sessions, |(s, _)| s.expires_at))
        .bind(column(sessions, |(s, _)| s.state.as_str()))
        .bind(column(sessions, |(_, lease)| {
            lease.as_ref().map(|lease| lease.until)
        }))
        .bind(column(sessions, |(_, lease)| {
            lease.as_ref().map(|lease| lease.holder.clone())
        }))
        .bind(column(&ends, |(id, _)| id.uuid()))
        .bind(column(&ends, |(_, e)| e.state.as_str()))
        .bind(column(&ends, |(_, e)| e.reason.as_str()))
        .bind(column(&ends, |(_, e)| e.at))
        .bind(column(&retries, |(key, r)| {
            retry_row(key, r.expires_at).to_vec()
        }))
        .bind(column(&retries, |(_, r)| r.fingerprint.to_vec()))
        .bind(column(&retries, |(_, r)| r.session.uuid()))
        .bind(column(&retries, |(_, r)| r.task.uuid()))
        .bind(column(&retries, |(_, r)| {
            i32::try_from(r.supersedes).unwrap_or(i32::MAX)
        }))
        .bind(column(&retries, |(_, r)| r.expires_at))
        .bind(column(sessions, |(s, _)| s.minter.as_str()))
        .bind(column(&heads, |head| head.mac().to_vec()))
        .bind(column(tasks, |t| t.attestor_digest.to_vec()))
        .bind(column(sessions, |(s, _)| s.minter.is_local()))
        .bind(column(sessions, |(s, _)| s.is_in_status_lists()))
        .bind(column(sessions, |(s, _)| {
            s.revocability.open_sessions.as_str()
        }))
        .bind(column(sessions, |(s, _)| {
            s.revocability.expires_by.as_str()
        }))
        .bind(column(&heads, |head| head.endings().as_bytes().to_vec()))
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn sqlite(
    connection: &mut SqliteConnection,
    writes: &Writes,
) -> Result<(), StoreError> {
    for leaf in &writes.leaves {
        sqlite_leaf(connection, leaf).await?;
    }
    for tile in &writes.tiles {
        sqlx::query("/* ledger_write */ INSERT INTO tile (level, idx, root, hashes) VALUES ($1, $2, $3, $4)")
            .bind(i64::from(tile.level))
            .bind(signed(tile.index))
            .bind(tile.root.as_bytes().as_slice())
            .bind(tile_bytes(tile))
            .execute(&mut *connection)
            .await?;
    }
    if let Some(head) = &writes.head {
        sqlx::query(
            "/* ledger_write */ INSERT INTO ledger_head (size, root, batch_id, mac, endings) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(signed(head.size()))
        .bind(head.root().as_bytes().as_slice())
        .bind(head.batch())
        .bind(head.mac())
        .bind(head.endings().as_bytes().as_slice())
        .execute(&mut *connection)
        .await?;
    }
    for once in &writes.one_time {
        sqlx::query(
            "/* ledger_write */ INSERT INTO one_time (key, binding, expires_at) VALUES ($1, $2, $3)",
        )
        .bind(once.id().as_bytes())
        .bind(once.binding.as_ref().map(<[u8; 32]>::as_slice))
        .bind(once.expires_at)
        .execute(&mut *connection)
        .await?;
    }
    for task in &writes.tasks {
        sqlite_task(connection, task).await?;
    }
    for (id, change) in &writes.task_changes {
        sqlx::query(
            "/* ledger_write */ UPDATE task SET state = coalesce($2, state), \
             ended_at = coalesce($3, ended_at), end_idx = coalesce($4, end_idx), \
             sessions_left = sessions_left - $5, handle_digest = coalesce($6, handle_digest) \
             WHERE id = $1",
        )
        .bind(id)
        .bind(change.end.map(|(state, _, _)| state.as_str()))
        .bind(change.end.map(|(_, at, _)| at))
        .bind(change.end.map(|(_, _, index)| signed(index)))
        .bind(change.sessions_taken)
        .bind(change.handle.as_ref().map(<[u8; 32]>::as_slice))
        .execute(&mut *connection)
        .await?;
    }
    for (session, lease) in &writes.sessions {
        sqlite_session(connection, session, lease.as_ref()).await?;
    }
    for (id, end) in &writes.session_ends {
        sqlx::query(
            "/* ledger_write */ UPDATE session SET state = $2, end_reason = $3, \
             ended_at = coalesce(ended_at, $4), \
             confirmed_at = CASE WHEN $2 = 'ended' THEN $4 END, \
             retry_at = CASE WHEN $2 = 'ending' THEN $4 END \
             WHERE id = $1 AND state <> 'ended'",
        )
        .bind(id)
        .bind(end.state.as_str())
        .bind(end.reason.as_str())
        .bind(end.at)
        .execute(&mut *connection)
        .await?;
    }
    for (key, retry) in &writes.retries {
        sqlx::query(
            "/* ledger_write */ INSERT INTO retry \
             (key, fingerprint, session_id, task_id, supersedes, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO UPDATE SET \
             fingerprint = excluded.fingerprint, session_id = excluded.session_id, \
             task_id = excluded.task_id, supersedes = excluded.supersedes, \
             expires_at = excluded.expires_at",
        )
        .bind(retry_row(key, retry.expires_at).as_slice())
        .bind(retry.fingerprint.as_slice())
        .bind(retry.session)
        .bind(retry.task)
        .bind(i64::from(retry.supersedes))
        .bind(retry.expires_at)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn sqlite_leaf(connection: &mut SqliteConnection, leaf: &LeafRow) -> Result<(), StoreError> {
    sqlx::query(
        "/* ledger_write */ INSERT INTO leaf (idx, hash, decision_id, subject, at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(signed(leaf.index))
    .bind(leaf.hash.as_bytes().as_slice())
    .bind(leaf.decision)
    .bind(&leaf.subject)
    .bind(leaf.at)
    .execute(&mut *connection)
    .await?;
    sqlx::query("/* ledger_write */ INSERT INTO leaf_body (idx, body) VALUES ($1, $2)")
        .bind(signed(leaf.index))
        .bind(&leaf.body)
        .execute(&mut *connection)
        .await?;
    if leaf.input.is_none() && leaf.purpose.is_none() {
        return Ok(());
    }
    let (input, purpose) = (leaf.input.as_ref(), leaf.purpose.as_ref());
    sqlx::query(
        "/* ledger_write */ INSERT INTO leaf_opening (idx, input_salt, input, purpose_salt, purpose) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(signed(leaf.index))
    .bind(input.map(|opening| opening.salt.as_slice()))
    .bind(input.map(|opening| opening.bytes.as_slice()))
    .bind(purpose.map(|opening| opening.salt.as_slice()))
    .bind(purpose.map(|opening| opening.bytes.as_slice()))
    .execute(&mut *connection)
    .await?;
    Ok(())
}

async fn sqlite_task(connection: &mut SqliteConnection, task: &Task) -> Result<(), StoreError> {
    sqlx::query(
        "/* ledger_write */ INSERT INTO task (id, task_type, attestor, owner, owner_instance, \
         parent_id, depth, state, opened_at, deadline, heartbeat_seconds, heard_at, check_at, \
         handle_digest, handle_key, sessions_left, leaf_idx, attestor_digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'open', $8, $9, $10, $8, $11, $12, $13, $14, $15, $16)",
    )
    .bind(task.id)
    .bind(&task.task_type)
    .bind(&task.attestor)
    .bind(&task.owner)
    .bind(&task.owner_instance)
    .bind(task.parent)
    .bind(i64::from(task.depth))
    .bind(task.opened_at)
    .bind(task.deadline)
    .bind(task.heartbeat_seconds.map(signed))
    .bind(task.life().expires_at())
    .bind(task.handle_digest.as_slice())
    .bind(&task.handle_key)
    .bind(i64::from(task.sessions_left))
    .bind(signed(task.leaf_index))
    .bind(task.attestor_digest.as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

async fn sqlite_session(
    connection: &mut SqliteConnection,
    session: &Session,
    lease: Option<&MintLease>,
) -> Result<(), StoreError> {
    sqlx::query(
        "/* ledger_write */ INSERT INTO session (id, task_id, parent_id, decision_id, leaf_idx, \
         attestor, workload, instance, resource, details, audience, key_binding, kid, generation, \
         policies, class, bound_seconds, issued_at, expires_at, state, lease_until, lease_holder, \
         minter, is_local, in_status_lists, open_sessions, expires_by) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         $19, $20, $21, $22, $23, $24, $25, $26, $27)",
    )
    .bind(session.id)
    .bind(session.task_id)
    .bind(session.parent)
    .bind(session.decision_id)
    .bind(signed(session.leaf_index))
    .bind(&session.attestor)
    .bind(&session.workload)
    .bind(&session.instance)
    .bind(&session.resource)
    .bind(details_text(session))
    .bind(&session.audience)
    .bind(session.key.as_ref().map(KeyBinding::to_text))
    .bind(&session.kid)
    .bind(session.generation.as_bytes().as_slice())
    .bind(policies_text(session))
    .bind(session.revocability.class.as_str())
    .bind(session.revocability.class.bound_seconds().map(signed))
    .bind(session.issued_at)
    .bind(session.expires_at)
    .bind(session.state.as_str())
    .bind(lease.map(|lease| lease.until))
    .bind(lease.map(|lease| lease.holder.as_str()))
    .bind(session.minter.as_str())
    .bind(session.minter.is_local())
    .bind(session.is_in_status_lists())
    .bind(session.revocability.open_sessions.as_str())
    .bind(session.revocability.expires_by.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

fn tile_bytes(tile: &Tile) -> Vec<u8> {
    let hashes = tile.hashes.iter();
    hashes
        .flat_map(|hash| hash.as_bytes().iter().copied())
        .collect()
}

/// The grant as JSON. Its types always serialise.
fn details_text(session: &Session) -> String {
    serde_json::to_string(&session.grant).unwrap_or_default()
}

/// The ids of the policies as a JSON list.
fn policies_text(session: &Session) -> String {
    serde_json::to_string(&session.policies).unwrap_or_default()
}
