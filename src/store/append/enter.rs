//! Reads, under the lock, everything that a batch depends on.
//!
//! `postgres` and `sqlite` take the lock and read the rows that [`Needs`] names into
//! a [`View`]. `head_and_server` reads head and server without the lock. PostgreSQL
//! reads in one statement, with lists of rows as JSON; SQLite reads row by row.
//!
//! The rule: both databases return the same facts, and all of them were read after the lock was
//! obtained, so they stay true until COMMIT. Failures: a row that cannot be parsed is `Corrupt`,
//! and the batch fails. An absent row is simply absent from the view; the entries decide its
//! meaning. MACs are not checked here: `ledger::appender` opens head, activation and cutoffs. Only
//! `store::append` calls this module.

use std::time::Instant;

use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor, FromRow, Row};
use uuid::Uuid;

use super::{
    HeadAndServer, LockedTaskFacts, Needs, POSTGRES_LOCK, RetryFacts, Server, SessionFacts, View,
    column,
};
use crate::clock::Timestamp;
use crate::domain::session::SessionState;
use crate::domain::task::{TaskLife, TaskState};
use crate::domain::workload::OneTimeId;
use crate::ids::{SessionId, TaskId};
use crate::merkle::Hash;
use crate::store::StoreError;
use crate::store::codec::{RETRY_ROW_BYTES, digest, retry_digest, retry_rows, signed, unsigned};
use crate::store::cutoffs::{CutoffRow, SealedCutoff};
use crate::store::generations::SealedActivation;
use crate::store::heads::{HeadRow, SealedHead};
use crate::store::keys::SIGNING_KEYS;

macro_rules! changed_cutoffs {
    ($connection:expr, $from:expr) => {{
        let rows: Vec<CutoffRow> = sqlx::query_as(
            "/* changed_cutoffs */ SELECT * FROM cutoff WHERE idx >= $1 \
             UNION SELECT * FROM cutoff WHERE lifted_idx >= $1 ORDER BY idx",
        )
        .bind(signed($from))
        .fetch_all($connection)
        .await?;
        rows.into_iter()
            .map(SealedCutoff::try_from)
            .collect::<Result<Vec<_>, _>>()?
    }};
}

const POSTGRES_ENTER: &str = r"/* ledger_enter */
WITH RECURSIVE chain AS (
    SELECT id, parent_id, depth, state, opened_at, deadline, heartbeat_seconds, heard_at,
        sessions_left, leaf_idx, owner, attestor
    FROM task WHERE id = ANY($3)
    UNION
    SELECT t.id, t.parent_id, t.depth, t.state, t.opened_at, t.deadline, t.heartbeat_seconds,
        t.heard_at, t.sessions_left, t.leaf_idx, t.owner, t.attestor
    FROM task t JOIN chain c ON t.id = c.parent_id
), kin AS (
    SELECT id, parent_id, task_id, state, expires_at, leaf_idx
    FROM session WHERE id = ANY($4)
    UNION
    SELECT s.id, s.parent_id, s.task_id, s.state, s.expires_at, s.leaf_idx
    FROM session s JOIN kin k ON s.id = k.parent_id
)
SELECT
    pg_backend_pid() AS process,
    pg_postmaster_start_time() AS since,
    newest.size, newest.root, newest.batch_id, newest.mac, newest.endings, newest.uncovered,
    decides.idx AS activation_idx, decides.digest AS activation_digest,
    decides.mac AS activation_mac,
    clock_timestamp() AS clock,
    (SELECT at FROM leaf ORDER BY idx DESC LIMIT 1) AS newest_at,
    (SELECT forgotten FROM store_meta) AS forgotten,
    greatest((SELECT max(idx) FROM admin_binding),
        (SELECT max(idx) FROM workload_key WHERE jwk IS NULL)) AS newest_binding,
    (SELECT forgotten_accepted FROM store_meta) AS forgotten_accepted,
    ARRAY(SELECT hash FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT 8192) AS hashes,
    ARRAY(SELECT key FROM one_time WHERE key = ANY($2) ORDER BY key) AS used,
    ARRAY(SELECT binding FROM one_time WHERE key = ANY($2) ORDER BY key) AS bindings,
    (SELECT coalesce(json_agg(json_build_object(
        'id', id, 'parent', parent_id, 'depth', depth, 'state', state, 'index', leaf_idx,
        'opened', (extract(epoch FROM opened_at) * 1000000)::bigint,
        'deadline', (extract(epoch FROM deadline) * 1000000)::bigint,
        'heartbeat', heartbeat_seconds,
        'heard', (extract(epoch FROM heard_at) * 1000000)::bigint,
        'left', sessions_left, 'owner', owner, 'attestor', attestor)), '[]')::text
     FROM chain) AS tasks,
    (SELECT coalesce(json_agg(json_build_object(
        'id', id, 'parent', parent_id, 'task', task_id, 'state', state,
        'expires', (extract(epoch FROM expires_at) * 1000000)::bigint,
        'leaf', leaf_idx)), '[]')::text FROM kin) AS sessions,
    (SELECT coalesce(json_agg(json_build_object(
        'key', encode(key, 'hex'), 'fingerprint', encode(fingerprint, 'hex'),
        'session', session_id, 'task', task_id, 'supersedes', supersedes,
        'expires', (extract(epoch FROM expires_at) * 1000000)::bigint)), '[]')::text
     FROM retry WHERE key = ANY($5)) AS retries,
    (SELECT coalesce(json_agg(json_build_object(
        'owner', w.owner, 'type', w.task_type, 'open', (
            SELECT count(*) FROM (
                SELECT 1 FROM task t
                WHERE t.owner = w.owner AND t.task_type = w.task_type AND t.state = 'open'
                LIMIT w.up_to) counted))), '[]')::text
     FROM unnest($6::text[], $7::text[], $8::int4[]) AS w (owner, task_type, up_to)) AS open_tasks,
    EXISTS (SELECT 1 FROM cutoff WHERE idx >= $9)
        OR EXISTS (SELECT 1 FROM cutoff WHERE lifted_idx >= $9) AS cutoffs_changed
FROM (SELECT 1) AS always
LEFT JOIN (SELECT size, root, batch_id, mac, endings,
        (SELECT min(idx) FROM leaf WHERE idx >= size) AS uncovered
    FROM ledger_head ORDER BY size DESC LIMIT 1) AS newest ON true
LEFT JOIN (SELECT idx, digest, mac FROM activation ORDER BY idx DESC LIMIT 1)
    AS decides ON true";

/// Times are microseconds, so that JSON loses no precision.
#[derive(Deserialize)]
struct TaskJson {
    id: Uuid,
    parent: Option<Uuid>,
    depth: u8,
    state: String,
    opened: i64,
    deadline: i64,
    heartbeat: Option<i64>,
    heard: i64,
    left: u32,
    index: i64,
    owner: String,
    attestor: String,
}

#[derive(Deserialize)]
struct SessionJson {
    id: Uuid,
    parent: Option<Uuid>,
    task: Uuid,
    state: String,
    expires: i64,
    leaf: i64,
}

#[derive(Deserialize)]
struct RetryJson {
    key: String,
    fingerprint: String,
    session: Uuid,
    task: Uuid,
    supersedes: u32,
    expires: i64,
}

#[derive(Deserialize)]
struct OpenJson {
    owner: String,
    r#type: String,
    open: u32,
}

pub(super) async fn postgres(
    connection: &mut PgConnection,
    needs: &Needs,
) -> Result<View, StoreError> {
    connection.execute(POSTGRES_LOCK).await?;
    let now = needs.now.unwrap_or(Timestamp::EPOCH);
    let retries = needs.retries.iter().flat_map(|key| retry_rows(key, now));
    // Taken after the lock was obtained: the wait for it must not widen the clock comparison.
    let asked = Instant::now();
    let row = sqlx::query(POSTGRES_ENTER)
        .bind(signed(needs.hashes_from))
        .bind(column(&needs.one_time, |id| id.as_bytes().to_vec()))
        .bind(needs.tasks.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .bind(
            needs
                .sessions
                .iter()
                .map(|id| id.uuid())
                .collect::<Vec<_>>(),
        )
        .bind(retries.map(|row| row.to_vec()).collect::<Vec<_>>())
        .bind(
            needs
                .open_tasks
                .iter()
                .map(|(owner, _, _)| owner.clone())
                .collect::<Vec<_>>(),
        )
        .bind(
            needs
                .open_tasks
                .iter()
                .map(|(_, kind, _)| kind.clone())
                .collect::<Vec<_>>(),
        )
        .bind(
            needs
                .open_tasks
                .iter()
                .map(|(_, _, limit)| i32::try_from(*limit).unwrap_or(i32::MAX))
                .collect::<Vec<_>>(),
        )
        .bind(signed(needs.cutoffs_from))
        .fetch_one(&mut *connection)
        .await?;
    let mut view = View {
        server: Some(server(&row)?),
        head: head(&row)?,
        activation: activation(
            row.try_get("activation_idx")?,
            row.try_get("activation_digest")?,
            row.try_get("activation_mac")?,
        )?,
        clock: Some((asked, row.try_get("clock")?)),
        newest_at: row.try_get("newest_at")?,
        forgotten: row.try_get("forgotten")?,
        newest_binding: newest_binding(row.try_get("newest_binding")?)?,
        forgotten_accepted: row.try_get("forgotten_accepted")?,
        hashes: hashes(&row.try_get::<Vec<Vec<u8>>, _>("hashes")?)?,
        ..View::default()
    };
    let used: Vec<Vec<u8>> = row.try_get("used")?;
    let bindings: Vec<Option<Vec<u8>>> = row.try_get("bindings")?;
    for (key, binding) in used.iter().zip(bindings) {
        let id = OneTimeId::from_bytes(key).ok_or(StoreError::Corrupt("one-time id"))?;
        view.used.insert(id, binding);
    }
    for task in json::<TaskJson>(&row, "tasks")? {
        let (id, facts) = task_facts(task)?;
        view.tasks.insert(id, facts);
    }
    for session in json::<SessionJson>(&row, "sessions")? {
        let (id, facts) = session_facts(&session)?;
        view.sessions.insert(id, facts);
    }
    for retry in json::<RetryJson>(&row, "retries")? {
        let (key, facts) = retry_facts(&retry)?;
        facts.learn(key, &mut view.retries);
    }
    for open in json::<OpenJson>(&row, "open_tasks")? {
        view.open_tasks.insert((open.owner, open.r#type), open.open);
    }
    if row.try_get("cutoffs_changed")? {
        view.cutoffs = changed_cutoffs!(&mut *connection, needs.cutoffs_from);
    }
    if needs.signing_keys {
        view.signing_keys = sqlx::query_as(SIGNING_KEYS).fetch_all(connection).await?;
    }
    Ok(view)
}

pub(super) async fn head_and_server(
    connection: &mut PgConnection,
) -> Result<HeadAndServer, StoreError> {
    let row = sqlx::query(
        "/* ledger_look */ SELECT pg_backend_pid() AS process, pg_postmaster_start_time() AS since, \
         newest.size, newest.root, newest.batch_id, newest.mac, newest.endings \
         FROM (SELECT 1) AS always LEFT JOIN \
         (SELECT size, root, batch_id, mac, endings FROM ledger_head ORDER BY size DESC LIMIT 1) \
         AS newest ON true",
    )
    .fetch_one(connection)
    .await?;
    Ok(HeadAndServer {
        head: head(&row)?,
        server: server(&row)?,
    })
}

fn newest_binding(index: Option<i64>) -> Result<Option<u64>, StoreError> {
    index
        .map(|index| unsigned("admin binding", index))
        .transpose()
}

fn server(row: &sqlx::postgres::PgRow) -> Result<Server, StoreError> {
    Ok(Server {
        process: row.try_get("process")?,
        since: row.try_get("since")?,
    })
}

/// The values that every batch reads.
#[derive(FromRow)]
struct Facts {
    newest_at: Option<Timestamp>,
    forgotten: Option<Timestamp>,
    forgotten_accepted: Option<Timestamp>,
    newest_binding: Option<i64>,
}

async fn sqlite_facts(connection: &mut SqliteConnection) -> Result<Facts, StoreError> {
    let facts = sqlx::query_as(
        "/* ledger_enter */ SELECT (SELECT at FROM leaf ORDER BY idx DESC LIMIT 1) AS newest_at, \
         (SELECT forgotten FROM store_meta) AS forgotten, \
         (SELECT forgotten_accepted FROM store_meta) AS forgotten_accepted, \
         (SELECT max(idx) FROM (SELECT max(idx) AS idx FROM admin_binding UNION ALL \
         SELECT max(idx) FROM workload_key WHERE jwk IS NULL)) AS newest_binding",
    );
    Ok(facts.fetch_one(connection).await?)
}

pub(super) async fn sqlite(
    connection: &mut SqliteConnection,
    needs: &Needs,
) -> Result<View, StoreError> {
    connection.execute("BEGIN IMMEDIATE").await?;
    let newest: Option<HeadRow> = sqlx::query_as(
        "/* ledger_enter */ SELECT size, root, batch_id, mac, endings, \
         (SELECT min(idx) FROM leaf WHERE idx >= size) AS uncovered \
         FROM ledger_head ORDER BY size DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let decides: Option<(i64, Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "/* ledger_enter */ SELECT idx, digest, mac FROM activation ORDER BY idx DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let new_hashes: Vec<(Vec<u8>,)> = sqlx::query_as(
        "/* ledger_enter */ SELECT hash FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT 8192",
    )
    .bind(signed(needs.hashes_from))
    .fetch_all(&mut *connection)
    .await?;
    let facts = sqlite_facts(connection).await?;
    let (index, digest_bytes, mac) = match decides {
        Some((index, digest, mac)) => (Some(index), Some(digest), Some(mac)),
        None => (None, None, None),
    };
    let mut view = View {
        head: newest.map(SealedHead::try_from).transpose()?,
        activation: activation(index, digest_bytes, mac)?,
        newest_at: facts.newest_at,
        forgotten: facts.forgotten,
        newest_binding: newest_binding(facts.newest_binding)?,
        forgotten_accepted: facts.forgotten_accepted,
        hashes: hashes(&column(&new_hashes, |(hash,)| hash.clone()))?,
        ..View::default()
    };
    for id in &needs.one_time {
        let found: Option<(Option<Vec<u8>>,)> =
            sqlx::query_as("/* ledger_enter */ SELECT binding FROM one_time WHERE key = $1")
                .bind(id.as_bytes())
                .fetch_optional(&mut *connection)
                .await?;
        if let Some((binding,)) = found {
            view.used.insert(*id, binding);
        }
    }
    for id in &needs.tasks {
        for (id, facts) in sqlite_chain(connection, *id).await? {
            view.tasks.insert(id, facts);
        }
    }
    for id in &needs.sessions {
        for (id, facts) in sqlite_kin(connection, *id).await? {
            view.sessions.insert(id, facts);
        }
    }
    let now = needs.now.unwrap_or(Timestamp::EPOCH);
    for key in &needs.retries {
        let [earlier, first, second, third] = retry_rows(key, now);
        let found: Option<(Vec<u8>, SessionId, TaskId, i64, Timestamp)> = sqlx::query_as(
            "/* ledger_enter */ SELECT fingerprint, session_id, task_id, supersedes, expires_at \
             FROM retry WHERE key IN ($1, $2, $3, $4) ORDER BY expires_at DESC, supersedes DESC LIMIT 1",
        )
        .bind(earlier.as_slice())
        .bind(first.as_slice())
        .bind(second.as_slice())
        .bind(third.as_slice())
        .fetch_optional(&mut *connection)
        .await?;
        if let Some((fingerprint, session, task, supersedes, expires_at)) = found {
            let facts = RetryFacts {
                fingerprint: digest("fingerprint", &fingerprint)?,
                session,
                task,
                supersedes: u32::try_from(supersedes).map_err(|_| StoreError::Corrupt("retry"))?,
                expires_at,
            };
            view.retries.insert(*key, facts);
        }
    }
    view.open_tasks = super::open_tasks::sqlite(connection, &needs.open_tasks).await?;
    view.cutoffs = changed_cutoffs!(&mut *connection, needs.cutoffs_from);
    if needs.signing_keys {
        view.signing_keys = sqlx::query_as(SIGNING_KEYS).fetch_all(connection).await?;
    }
    Ok(view)
}

async fn sqlite_chain(
    connection: &mut SqliteConnection,
    id: TaskId,
) -> Result<Vec<(TaskId, LockedTaskFacts)>, StoreError> {
    type Found = (
        Uuid,
        Option<Uuid>,
        i64,
        String,
        i64,
        i64,
        Option<i64>,
        i64,
        i64,
        i64,
        String,
        String,
    );
    let rows: Vec<Found> = sqlx::query_as(
        "/* ledger_enter */ WITH RECURSIVE chain AS ( \
             SELECT * FROM task WHERE id = $1 \
             UNION SELECT t.* FROM task t JOIN chain c ON t.id = c.parent_id) \
         SELECT id, parent_id, depth, state, opened_at, deadline, heartbeat_seconds, heard_at, \
             sessions_left, leaf_idx, owner, attestor \
         FROM chain",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(
            |(
                id,
                parent,
                depth,
                state,
                opened,
                deadline,
                heartbeat,
                heard,
                left,
                index,
                owner,
                attestor,
            )| {
                task_facts(TaskJson {
                    id,
                    parent,
                    depth: u8::try_from(depth).map_err(|_| StoreError::Corrupt("task"))?,
                    state,
                    opened,
                    deadline,
                    heartbeat,
                    heard,
                    left: u32::try_from(left).map_err(|_| StoreError::Corrupt("task"))?,
                    index,
                    owner,
                    attestor,
                })
            },
        )
        .collect()
}

async fn sqlite_kin(
    connection: &mut SqliteConnection,
    id: SessionId,
) -> Result<Vec<(SessionId, SessionFacts)>, StoreError> {
    let rows: Vec<(Uuid, Option<Uuid>, Uuid, String, i64, i64)> = sqlx::query_as(
        "/* ledger_enter */ WITH RECURSIVE kin AS ( \
             SELECT * FROM session WHERE id = $1 \
             UNION SELECT s.* FROM session s JOIN kin k ON s.id = k.parent_id) \
         SELECT id, parent_id, task_id, state, expires_at, leaf_idx FROM kin",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(id, parent, task, state, expires, leaf)| {
            session_facts(&SessionJson {
                id,
                parent,
                task,
                state,
                expires,
                leaf,
            })
        })
        .collect()
}

fn json<T: for<'de> Deserialize<'de>>(
    row: &sqlx::postgres::PgRow,
    column: &'static str,
) -> Result<Vec<T>, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Corrupt(column))
}

/// Reads the columns of the newest head. The row exists for an empty log, too, with NULLs.
fn head(row: &sqlx::postgres::PgRow) -> Result<Option<SealedHead>, StoreError> {
    if row.try_get::<Option<i64>, _>("size")?.is_none() {
        return Ok(None);
    }
    SealedHead::try_from(HeadRow::from_row(row)?).map(Some)
}

fn activation(
    index: Option<i64>,
    digest: Option<Vec<u8>>,
    mac: Option<Vec<u8>>,
) -> Result<Option<SealedActivation>, StoreError> {
    let (Some(index), Some(digest), Some(mac)) = (index, digest, mac) else {
        return Ok(None);
    };
    SealedActivation::from_columns(index, &digest, mac).map(Some)
}

fn hashes(rows: &[Vec<u8>]) -> Result<Vec<Hash>, StoreError> {
    rows.iter()
        .map(|hash| digest("leaf hash", hash).map(Hash::from))
        .collect()
}

fn task_facts(row: TaskJson) -> Result<(TaskId, LockedTaskFacts), StoreError> {
    let corrupt = || StoreError::Corrupt("task");
    let id = TaskId::from(row.id);
    let life = TaskLife {
        id,
        state: TaskState::parse(&row.state).ok_or_else(corrupt)?,
        opened_at: Timestamp::from_micros(row.opened),
        deadline: Timestamp::from_micros(row.deadline),
        heartbeat_seconds: row
            .heartbeat
            .map(|seconds| unsigned("task", seconds))
            .transpose()?,
        heard_at: Timestamp::from_micros(row.heard),
        // An append asks whether the task ended, and not when.
        ended_at: None,
    };
    let facts = LockedTaskFacts {
        life,
        parent: row.parent.map(TaskId::from),
        depth: row.depth,
        sessions_left: row.left,
        leaf_index: unsigned("task", row.index)?,
        owner: row.owner.try_into().map_err(|_| corrupt())?,
        attestor: row.attestor,
    };
    Ok((id, facts))
}

fn session_facts(row: &SessionJson) -> Result<(SessionId, SessionFacts), StoreError> {
    let facts = SessionFacts {
        state: SessionState::parse(&row.state).ok_or(StoreError::Corrupt("session"))?,
        expires_at: Timestamp::from_micros(row.expires),
        leaf_index: unsigned("session", row.leaf)?,
        parent: row.parent.map(SessionId::from),
        task: TaskId::from(row.task),
    };
    Ok((SessionId::from(row.id), facts))
}

fn retry_facts(row: &RetryJson) -> Result<([u8; 32], RetryFacts), StoreError> {
    let key = retry_digest(&unhex::<RETRY_ROW_BYTES>(&row.key)?)?;
    let facts = RetryFacts {
        fingerprint: unhex(&row.fingerprint)?,
        session: SessionId::from(row.session),
        task: TaskId::from(row.task),
        supersedes: row.supersedes,
        expires_at: Timestamp::from_micros(row.expires),
    };
    Ok((key, facts))
}

fn unhex<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], StoreError> {
    let mut out = [0_u8; BYTES];
    for (index, byte) in out.iter_mut().enumerate() {
        let pair = text.get(index * 2..index * 2 + 2);
        *byte = pair
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or(StoreError::Corrupt("retry"))?;
    }
    Ok(out)
}
