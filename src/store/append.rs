//! The ledger's transaction: the only statements that write leaves and what hangs on them.
//!
//! It is three steps, each one statement on PostgreSQL: [`LedgerConnection::enter`] takes the lock
//! and reads everything that the batch depends on, [`LedgerConnection::write`] writes what was
//! decided upon it, [`LedgerConnection::commit`] makes it durable. The lock is taken in a statement
//! of its own, before the one that reads: at READ COMMITTED a statement sees what was committed
//! when it began, and it must begin after the lock is ours. So two round trips lie between the
//! lock's answer and COMMIT. Acts that are rare (a cutoff, a key, an activation) add one each.
//!
//! Everything that is read here is written only under the same lock, so what was read stays true
//! until COMMIT.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor, Row};
use uuid::Uuid;

use super::codec::{digest, signed, unsigned};
use super::cutoffs::{CutoffRow, SealedCutoff};
use super::keys::SigningKeyRow;
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::generation::GenerationDigest;
use crate::domain::leaf::Opening;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskLife, TaskState};
use crate::domain::workload::{KeyBinding, OneTime};
use crate::ids::{BatchId, DecisionId, SessionId, TaskId};
use crate::merkle::{Hash, Tile};

/// What a batch has to read once it has the lock.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Leaf hashes from here on: what other replicas appended since this one looked.
    pub hashes_from: u64,
    /// Cutoffs that changed at or after this leaf.
    pub cutoffs_from: u64,
    /// One-time ids, to see which were used.
    pub one_time: Vec<[u8; 32]>,
    /// Tasks, to be read with everything that they are part of.
    pub tasks: Vec<TaskId>,
    /// Sessions, to be read with everything that they were derived from.
    pub sessions: Vec<SessionId>,
    /// Idempotency keys.
    pub retries: Vec<[u8; 32]>,
    /// Owners and task types whose open tasks are to be counted, up to a limit each.
    pub open_tasks: Vec<(String, String, u32)>,
    /// The present instant.
    pub now: Option<Timestamp>,
}

/// The newest head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Leaves in the tree.
    pub size: u64,
    /// The tree's root.
    pub root: Hash,
}

/// What decides about a task in an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFacts {
    /// Whether it is alive.
    pub life: TaskLife,
    /// The task that it is part of.
    pub parent: Option<TaskId>,
    /// Its place in the chain.
    pub depth: u8,
    /// Credentials that may still be issued under it.
    pub sessions_left: u32,
}

/// What decides about a session in an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Its record. The grant in it is what a child's must be within.
    pub state: SessionState,
    /// When it is over in any case.
    pub expires_at: Timestamp,
    /// Its leaf.
    pub leaf_index: u64,
    /// The session that it was derived from.
    pub parent: Option<SessionId>,
    /// Its task.
    pub task: TaskId,
}

/// What an `Idempotency-Key` was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryFacts {
    /// SHA-256 of the request's body.
    pub fingerprint: [u8; 32],
    /// The newest session that it got.
    pub session: SessionId,
    /// The task of all of them.
    pub task: TaskId,
    /// How often it superseded one.
    pub supersedes: u32,
    /// When the key may be used anew.
    pub expires_at: Timestamp,
}

/// What was read under the lock.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The newest head; none in an empty log.
    pub head: Option<Head>,
    /// What decides now.
    pub generation: Option<GenerationDigest>,
    /// Leaf hashes from [`Needs::hashes_from`] on, at most [`MAX_HASHES`].
    pub hashes: Vec<Hash>,
    /// One-time ids that were used, with their bindings.
    pub used: HashMap<[u8; 32], Option<Vec<u8>>>,
    /// Tasks, the ones they are part of included.
    pub tasks: HashMap<TaskId, TaskFacts>,
    /// Sessions, the ones they were derived from included.
    pub sessions: HashMap<SessionId, SessionFacts>,
    /// Changed cutoffs, oldest change first.
    pub cutoffs: Vec<SealedCutoff>,
    /// Idempotency keys that are known.
    pub retries: HashMap<[u8; 32], RetryFacts>,
    /// Open tasks by owner and type.
    pub open_tasks: HashMap<(String, String), u32>,
}

/// Leaf hashes that one `enter` reads at most. A replica that is further behind catches up
/// outside the lock.
pub const MAX_HASHES: usize = 8_192;

/// A leaf to be written.
#[derive(Clone, Debug)]
pub struct LeafRow {
    /// Its place.
    pub index: u64,
    /// Its hash.
    pub hash: Hash,
    /// Its bytes.
    pub body: Vec<u8>,
    /// The decision that it records.
    pub decision: Option<DecisionId>,
    /// The identity whose own it is.
    pub subject: Option<String>,
    /// When it was decided.
    pub at: Timestamp,
    /// What its commitments commit to.
    pub input: Option<Opening>,
    /// What the commitment to the purpose commits to.
    pub purpose: Option<Opening>,
}

/// A change of a task.
#[derive(Clone, Debug, Default)]
pub struct TaskChange {
    /// Its end: the state, when, and the leaf that says so.
    pub end: Option<(TaskState, Timestamp, u64)>,
    /// Credentials taken from its budget.
    pub sessions_taken: u32,
    /// The digest of a new handle.
    pub handle: Option<[u8; 32]>,
}

/// The end of a session.
#[derive(Clone, Debug)]
pub struct SessionEnd {
    /// `Ended`, or `Ending` where a back end has yet to confirm.
    pub state: SessionState,
    /// Why.
    pub reason: EndReason,
    /// When.
    pub at: Timestamp,
}

/// The lease of an unfinished mint.
#[derive(Clone, Debug)]
pub struct MintLease {
    /// When it may be taken for dead.
    pub until: Timestamp,
    /// The replica that holds it.
    pub holder: String,
}

/// What a batch writes.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    /// Leaves, in order.
    pub leaves: Vec<LeafRow>,
    /// Tiles that these leaves complete.
    pub tiles: Vec<Tile>,
    /// The next head.
    pub head: Option<(Head, BatchId)>,
    /// One-time ids that are used up.
    pub one_time: Vec<OneTime>,
    /// New tasks.
    pub tasks: Vec<Task>,
    /// Changed tasks.
    pub task_changes: BTreeMap<TaskId, TaskChange>,
    /// New sessions, with the lease of those that a back end has yet to mint.
    pub sessions: Vec<(Session, Option<MintLease>)>,
    /// Ended sessions.
    pub session_ends: BTreeMap<SessionId, SessionEnd>,
    /// Idempotency keys and what they got.
    pub retries: HashMap<[u8; 32], RetryFacts>,
    /// The rare acts.
    pub acts: Vec<ActWrite>,
}

impl Writes {
    /// Whether there is nothing to write at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.one_time.is_empty()
    }
}

/// A rare act's row.
#[derive(Clone, Debug)]
pub enum ActWrite {
    /// A delegation token, by its digest.
    Delegation {
        /// SHA-256 of the token.
        digest: [u8; 32],
        /// The parent task.
        task: TaskId,
        /// Who may use it.
        child: String,
        /// Credentials that go with it.
        sessions: u32,
        /// Until when.
        expires_at: Timestamp,
    },
    /// A cutoff.
    Cutoff(Box<SealedCutoff>),
    /// A lifted cutoff: the row with its new state.
    Lift(Box<SealedCutoff>),
    /// A generation that decides from this leaf on.
    Activation {
        /// The leaf.
        index: u64,
        /// The generation.
        digest: GenerationDigest,
        /// On whose word.
        by: String,
        /// When.
        at: Timestamp,
        /// Protects the row.
        mac: Vec<u8>,
    },
    /// A new signing key, or one with new dates.
    SigningKey(Box<SigningKeyRow>),
    /// A registered workload key.
    WorkloadKey {
        /// The attestor.
        attestor: String,
        /// The workload's name.
        workload: String,
        /// The key's thumbprint.
        thumbprint: String,
        /// The key; none removes it.
        jwk: Option<String>,
        /// The leaf.
        index: u64,
        /// Protects the row.
        mac: Vec<u8>,
    },
    /// A role of an identity.
    AdminBinding {
        /// Who.
        identity: String,
        /// Which role.
        role: String,
        /// Whether it is given or taken.
        bound: bool,
        /// The leaf.
        index: u64,
        /// Protects the row.
        mac: Vec<u8>,
    },
}

macro_rules! changed_cutoffs {
    ($connection:expr, $from:expr) => {{
        let rows: Vec<CutoffRow> = sqlx::query_as(
            "/* changed_cutoffs */ SELECT * FROM cutoff WHERE changed_idx >= $1 ORDER BY changed_idx",
        )
        .bind(signed($from))
        .fetch_all($connection)
        .await?;
        rows.into_iter()
            .map(SealedCutoff::try_from)
            .collect::<Result<Vec<_>, _>>()?
    }};
}

/// The statement of one rare act, the same on both databases.
macro_rules! write_act {
    ($connection:expr, $act:expr) => {
        match $act {
            ActWrite::Delegation { digest, task, child, sessions, expires_at } => {
                sqlx::query(
                    "/* write_delegation */ INSERT INTO delegation \
                     (digest, task_id, child, sessions, expires_at) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(digest.as_slice())
                .bind(task)
                .bind(child)
                .bind(i32::try_from(*sessions).unwrap_or(i32::MAX))
                .bind(expires_at)
                .execute($connection)
                .await?;
            }
            ActWrite::Cutoff(sealed) => {
                let (blocked_until, until_lifted) = sealed.block_columns();
                let cutoff = &sealed.cutoff;
                sqlx::query(
                    "/* write_cutoff */ INSERT INTO cutoff (id, idx, kind, value, blocked_until, \
                     until_lifted, reason, actor, requested_at, committed_at, changed_idx, \
                     widened_to, mac) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $2, $11, $12)",
                )
                .bind(cutoff.id)
                .bind(signed(cutoff.index))
                .bind(cutoff.selector.kind())
                .bind(cutoff.selector.value())
                .bind(blocked_until)
                .bind(until_lifted)
                .bind(&cutoff.reason)
                .bind(&cutoff.by)
                .bind(cutoff.requested_at)
                .bind(cutoff.committed_at)
                .bind(&cutoff.widened_to)
                .bind(&sealed.mac)
                .execute($connection)
                .await?;
            }
            ActWrite::Lift(sealed) => {
                sqlx::query(
                    "/* write_lift */ UPDATE cutoff SET lifted_idx = $2, changed_idx = $2, mac = $3 \
                     WHERE id = $1 AND lifted_idx IS NULL",
                )
                .bind(sealed.cutoff.id)
                .bind(sealed.cutoff.lifted_index.map(signed))
                .bind(&sealed.mac)
                .execute($connection)
                .await?;
            }
            ActWrite::Activation { index, digest, by, at, mac } => {
                sqlx::query(
                    "/* write_activation */ INSERT INTO activation (idx, digest, actor, at, mac) \
                     VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(signed(*index))
                .bind(digest.as_bytes().as_slice())
                .bind(by)
                .bind(at)
                .bind(mac)
                .execute($connection)
                .await?;
            }
            ActWrite::SigningKey(key) => {
                sqlx::query(
                    "/* write_signing_key */ INSERT INTO signing_key (kid, purpose, algorithm, \
                     sealed, created_at, published_at, active_from, retire_at, remove_at, \
                     revoked_at, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                     ON CONFLICT (kid) DO UPDATE SET sealed = excluded.sealed, \
                     retire_at = excluded.retire_at, remove_at = excluded.remove_at, \
                     revoked_at = excluded.revoked_at, mac = excluded.mac",
                )
                .bind(&key.kid)
                .bind(&key.purpose)
                .bind(&key.algorithm)
                .bind(&key.sealed)
                .bind(key.created_at)
                .bind(key.published_at)
                .bind(key.active_from)
                .bind(key.retire_at)
                .bind(key.remove_at)
                .bind(key.revoked_at)
                .bind(&key.mac)
                .execute($connection)
                .await?;
            }
            ActWrite::WorkloadKey { attestor, workload, thumbprint, jwk: Some(jwk), index, mac } => {
                sqlx::query(
                    "/* write_workload_key */ INSERT INTO workload_key \
                     (attestor, workload, thumbprint, jwk, idx, mac) \
                     VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (attestor, workload, thumbprint) DO UPDATE SET \
                     jwk = excluded.jwk, idx = excluded.idx, mac = excluded.mac",
                )
                .bind(attestor)
                .bind(workload)
                .bind(thumbprint)
                .bind(jwk)
                .bind(signed(*index))
                .bind(mac)
                .execute($connection)
                .await?;
            }
            ActWrite::WorkloadKey { attestor, workload, thumbprint, jwk: None, .. } => {
                sqlx::query(
                    "/* write_workload_key */ DELETE FROM workload_key \
                     WHERE attestor = $1 AND workload = $2 AND thumbprint = $3",
                )
                .bind(attestor)
                .bind(workload)
                .bind(thumbprint)
                .execute($connection)
                .await?;
            }
            ActWrite::AdminBinding { identity, role, bound: true, index, mac } => {
                sqlx::query(
                    "/* write_admin_binding */ INSERT INTO admin_binding (identity, role, idx, mac) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT (identity, role) DO UPDATE SET \
                     idx = excluded.idx, mac = excluded.mac",
                )
                .bind(identity)
                .bind(role)
                .bind(signed(*index))
                .bind(mac)
                .execute($connection)
                .await?;
            }
            ActWrite::AdminBinding { identity, role, bound: false, .. } => {
                sqlx::query(
                    "/* write_admin_binding */ DELETE FROM admin_binding \
                     WHERE identity = $1 AND role = $2",
                )
                .bind(identity)
                .bind(role)
                .execute($connection)
                .await?;
            }
        }
    };
}

/// The connection of one replica's ledger.
#[derive(Debug)]
pub enum LedgerConnection {
    /// A PostgreSQL connection of its own.
    Postgres(Box<PgConnection>),
    /// SQLite's one writer, taken from its pool for each batch.
    Sqlite(sqlx::pool::PoolConnection<sqlx::Sqlite>),
}

impl Store {
    /// A connection for the ledger's batches. After any error it must be dropped, not used again.
    pub async fn ledger_connection(&self) -> Result<LedgerConnection, StoreError> {
        Ok(match self {
            Self::Postgres(postgres) => {
                LedgerConnection::Postgres(Box::new(postgres.ledger_connection().await?))
            }
            Self::Sqlite(sqlite) => LedgerConnection::Sqlite(sqlite.writer().acquire().await?),
        })
    }
}

impl LedgerConnection {
    /// Whether the connection may be kept between batches. SQLite's one writer is for everybody.
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Begins the transaction, takes the lock, and reads what the batch depends on.
    pub async fn enter(&mut self, needs: &Needs) -> Result<View, StoreError> {
        match self {
            Self::Postgres(connection) => enter_postgres(connection, needs).await,
            Self::Sqlite(connection) => enter_sqlite(connection, needs).await,
        }
    }

    /// Writes what was decided.
    pub async fn write(&mut self, writes: &Writes) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => {
                write_postgres(connection, writes).await?;
                for act in &writes.acts {
                    write_act!(&mut **connection, act);
                }
            }
            Self::Sqlite(connection) => {
                write_sqlite(connection, writes).await?;
                for act in &writes.acts {
                    write_act!(&mut **connection, act);
                }
            }
        }
        Ok(())
    }

    /// Makes it durable. After an error nobody knows whether it is: ask [`Self::committed`] on a
    /// new connection.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => connection.execute("COMMIT").await?,
            Self::Sqlite(connection) => {
                connection.execute("COMMIT").await?;
                return Ok(());
            }
        };
        Ok(())
    }

    /// Undoes the transaction: the connection can be used again.
    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => {
                connection.execute("ROLLBACK").await?;
            }
            Self::Sqlite(connection) => {
                connection.execute("ROLLBACK").await?;
            }
        }
        Ok(())
    }

    /// Whether the batch of this id was committed. Takes the lock first, so that a COMMIT that is
    /// still on its way has arrived, or never will.
    pub async fn committed(&mut self, batch: BatchId) -> Result<bool, StoreError> {
        const SQL: &str =
            "/* committed */ SELECT EXISTS (SELECT 1 FROM ledger_head WHERE batch_id = $1)";
        let found: (bool,) = match self {
            Self::Postgres(connection) => {
                connection.execute(POSTGRES_LOCK).await?;
                let found = sqlx::query_as(SQL)
                    .bind(batch)
                    .fetch_one(&mut **connection)
                    .await?;
                connection.execute("ROLLBACK").await?;
                found
            }
            Self::Sqlite(connection) => {
                sqlx::query_as(SQL)
                    .bind(batch)
                    .fetch_one(&mut **connection)
                    .await?
            }
        };
        Ok(found.0)
    }
}

/// One simple query, so that the transaction and the lock cost one round trip.
const POSTGRES_LOCK: &str =
    "BEGIN; /* ledger_lock */ SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE";

const POSTGRES_ENTER: &str = r"/* ledger_enter */
WITH RECURSIVE chain AS (
    SELECT id, parent_id, depth, state, deadline, heartbeat_seconds, heard_at, sessions_left
    FROM task WHERE id = ANY($3)
    UNION
    SELECT t.id, t.parent_id, t.depth, t.state, t.deadline, t.heartbeat_seconds, t.heard_at, t.sessions_left
    FROM task t JOIN chain c ON t.id = c.parent_id
), kin AS (
    SELECT id, parent_id, task_id, state, expires_at, leaf_idx
    FROM session WHERE id = ANY($4)
    UNION
    SELECT s.id, s.parent_id, s.task_id, s.state, s.expires_at, s.leaf_idx
    FROM session s JOIN kin k ON s.id = k.parent_id
)
SELECT
    (SELECT size FROM ledger_head ORDER BY size DESC LIMIT 1) AS size,
    (SELECT root FROM ledger_head ORDER BY size DESC LIMIT 1) AS root,
    (SELECT digest FROM activation ORDER BY idx DESC LIMIT 1) AS generation,
    ARRAY(SELECT hash FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT 8192) AS hashes,
    ARRAY(SELECT key FROM one_time WHERE key = ANY($2) ORDER BY key) AS used,
    ARRAY(SELECT binding FROM one_time WHERE key = ANY($2) ORDER BY key) AS bindings,
    (SELECT coalesce(json_agg(json_build_object(
        'id', id, 'parent', parent_id, 'depth', depth, 'state', state,
        'deadline', (extract(epoch FROM deadline) * 1000000)::bigint,
        'heartbeat', heartbeat_seconds,
        'heard', (extract(epoch FROM heard_at) * 1000000)::bigint,
        'left', sessions_left)), '[]')::text FROM chain) AS tasks,
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
    EXISTS (SELECT 1 FROM cutoff WHERE changed_idx >= $9) AS cutoffs_changed";

/// Times as microseconds, so that nothing is lost on the way through JSON.
#[derive(Deserialize)]
struct TaskJson {
    id: Uuid,
    parent: Option<Uuid>,
    depth: u8,
    state: String,
    deadline: i64,
    heartbeat: Option<i64>,
    heard: i64,
    left: u32,
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

async fn enter_postgres(connection: &mut PgConnection, needs: &Needs) -> Result<View, StoreError> {
    connection.execute(POSTGRES_LOCK).await?;
    let keys = |keys: &[[u8; 32]]| keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>();
    let row = sqlx::query(POSTGRES_ENTER)
        .bind(signed(needs.hashes_from))
        .bind(keys(&needs.one_time))
        .bind(needs.tasks.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .bind(
            needs
                .sessions
                .iter()
                .map(|id| id.uuid())
                .collect::<Vec<_>>(),
        )
        .bind(keys(&needs.retries))
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
        head: head(row.try_get("size")?, row.try_get("root")?)?,
        generation: generation(row.try_get("generation")?)?,
        hashes: hashes(&row.try_get::<Vec<Vec<u8>>, _>("hashes")?)?,
        ..View::default()
    };
    let used: Vec<Vec<u8>> = row.try_get("used")?;
    let bindings: Vec<Option<Vec<u8>>> = row.try_get("bindings")?;
    for (key, binding) in used.iter().zip(bindings) {
        view.used.insert(digest("one-time id", key)?, binding);
    }
    for task in json::<TaskJson>(&row, "tasks")? {
        let (id, facts) = task_facts(&task)?;
        view.tasks.insert(id, facts);
    }
    for session in json::<SessionJson>(&row, "sessions")? {
        let (id, facts) = session_facts(&session)?;
        view.sessions.insert(id, facts);
    }
    for retry in json::<RetryJson>(&row, "retries")? {
        let (key, facts) = retry_facts(&retry)?;
        view.retries.insert(key, facts);
    }
    for open in json::<OpenJson>(&row, "open_tasks")? {
        view.open_tasks.insert((open.owner, open.r#type), open.open);
    }
    if row.try_get("cutoffs_changed")? {
        view.cutoffs = changed_cutoffs!(&mut *connection, needs.cutoffs_from);
    }
    Ok(view)
}

async fn enter_sqlite(
    connection: &mut SqliteConnection,
    needs: &Needs,
) -> Result<View, StoreError> {
    connection.execute("BEGIN IMMEDIATE").await?;
    let newest: Option<(i64, Vec<u8>)> = sqlx::query_as(
        "/* ledger_enter */ SELECT size, root FROM ledger_head ORDER BY size DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let active: Option<(Vec<u8>,)> = sqlx::query_as(
        "/* ledger_enter */ SELECT digest FROM activation ORDER BY idx DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let new_hashes: Vec<(Vec<u8>,)> = sqlx::query_as(
        "/* ledger_enter */ SELECT hash FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT 8192",
    )
    .bind(signed(needs.hashes_from))
    .fetch_all(&mut *connection)
    .await?;
    let (size, root) = newest.unzip();
    let mut view = View {
        head: head(size, root)?,
        generation: generation(active.map(|(digest,)| digest))?,
        hashes: hashes(&column(&new_hashes, |(hash,)| hash.clone()))?,
        ..View::default()
    };
    for key in &needs.one_time {
        let found: Option<(Option<Vec<u8>>,)> =
            sqlx::query_as("/* ledger_enter */ SELECT binding FROM one_time WHERE key = $1")
                .bind(key.as_slice())
                .fetch_optional(&mut *connection)
                .await?;
        if let Some((binding,)) = found {
            view.used.insert(*key, binding);
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
    for key in &needs.retries {
        let found: Option<(Vec<u8>, SessionId, TaskId, i64, Timestamp)> = sqlx::query_as(
            "/* ledger_enter */ SELECT fingerprint, session_id, task_id, supersedes, expires_at \
             FROM retry WHERE key = $1",
        )
        .bind(key.as_slice())
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
    for (owner, kind, limit) in &needs.open_tasks {
        let (open,): (i64,) = sqlx::query_as(
            "/* ledger_enter */ SELECT count(*) FROM (SELECT 1 FROM task \
             WHERE owner = $1 AND task_type = $2 AND state = 'open' LIMIT $3)",
        )
        .bind(owner)
        .bind(kind)
        .bind(i64::from(*limit))
        .fetch_one(&mut *connection)
        .await?;
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        view.open_tasks.insert((owner.clone(), kind.clone()), open);
    }
    view.cutoffs = changed_cutoffs!(&mut *connection, needs.cutoffs_from);
    Ok(view)
}

async fn sqlite_chain(
    connection: &mut SqliteConnection,
    id: TaskId,
) -> Result<Vec<(TaskId, TaskFacts)>, StoreError> {
    type Found = (Uuid, Option<Uuid>, i64, String, i64, Option<i64>, i64, i64);
    let rows: Vec<Found> = sqlx::query_as(
        "/* ledger_enter */ WITH RECURSIVE chain AS ( \
             SELECT * FROM task WHERE id = $1 \
             UNION SELECT t.* FROM task t JOIN chain c ON t.id = c.parent_id) \
         SELECT id, parent_id, depth, state, deadline, heartbeat_seconds, heard_at, sessions_left \
         FROM chain",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(
            |(id, parent, depth, state, deadline, heartbeat, heard, left)| {
                task_facts(&TaskJson {
                    id,
                    parent,
                    depth: u8::try_from(depth).map_err(|_| StoreError::Corrupt("task"))?,
                    state,
                    deadline,
                    heartbeat,
                    heard,
                    left: u32::try_from(left).map_err(|_| StoreError::Corrupt("task"))?,
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

fn head(size: Option<i64>, root: Option<Vec<u8>>) -> Result<Option<Head>, StoreError> {
    let (Some(size), Some(root)) = (size, root) else {
        return Ok(None);
    };
    Ok(Some(Head {
        size: unsigned("head", size)?,
        root: Hash::from(digest("root", &root)?),
    }))
}

fn generation(digest_bytes: Option<Vec<u8>>) -> Result<Option<GenerationDigest>, StoreError> {
    digest_bytes
        .map(|bytes| digest("generation", &bytes).map(GenerationDigest::new))
        .transpose()
}

fn hashes(rows: &[Vec<u8>]) -> Result<Vec<Hash>, StoreError> {
    rows.iter()
        .map(|hash| digest("leaf hash", hash).map(Hash::from))
        .collect()
}

fn task_facts(row: &TaskJson) -> Result<(TaskId, TaskFacts), StoreError> {
    let corrupt = || StoreError::Corrupt("task");
    let id = TaskId::from(row.id);
    let life = TaskLife {
        id,
        state: TaskState::parse(&row.state).ok_or_else(corrupt)?,
        deadline: Timestamp::from_micros(row.deadline),
        heartbeat_seconds: row
            .heartbeat
            .map(|seconds| unsigned("task", seconds))
            .transpose()?,
        heard_at: Timestamp::from_micros(row.heard),
        // An append asks whether it is over, not since when.
        ended_at: None,
    };
    let facts = TaskFacts {
        life,
        parent: row.parent.map(TaskId::from),
        depth: row.depth,
        sessions_left: row.left,
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
    let facts = RetryFacts {
        fingerprint: unhex(&row.fingerprint)?,
        session: SessionId::from(row.session),
        task: TaskId::from(row.task),
        supersedes: row.supersedes,
        expires_at: Timestamp::from_micros(row.expires),
    };
    Ok((unhex(&row.key)?, facts))
}

fn unhex(text: &str) -> Result<[u8; 32], StoreError> {
    let mut out = [0_u8; 32];
    for (index, byte) in out.iter_mut().enumerate() {
        let pair = text.get(index * 2..index * 2 + 2);
        *byte = pair
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or(StoreError::Corrupt("retry"))?;
    }
    Ok(out)
}

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
    INSERT INTO ledger_head (size, root, batch_id)
    SELECT * FROM unnest($16::int8[], $17::bytea[], $18::uuid[])
), once AS (
    INSERT INTO one_time (key, binding, expires_at)
    SELECT * FROM unnest($19::bytea[], $20::bytea[], $21::timestamptz[])
), tasks AS (
    INSERT INTO task (id, task_type, attestor, owner, owner_instance, parent_id, depth, opened_at,
        deadline, heartbeat_seconds, check_at, handle_digest, handle_key, sessions_left, leaf_idx,
        state, heard_at)
    SELECT o.*, 'open', o.opened_at
    FROM unnest($22::uuid[], $23::text[], $24::text[], $25::text[], $26::text[], $27::uuid[],
        $28::int2[], $29::timestamptz[], $30::timestamptz[], $31::int8[], $32::timestamptz[],
        $33::bytea[], $34::text[], $35::int4[], $36::int8[])
        AS o (id, task_type, attestor, owner, owner_instance, parent_id, depth, opened_at, deadline,
            heartbeat_seconds, check_at, handle_digest, handle_key, sessions_left, leaf_idx)
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
        bound_seconds, issued_at, expires_at, state, lease_until, lease_holder, minter)
    SELECT * FROM unnest($43::uuid[], $44::uuid[], $45::uuid[], $46::uuid[], $47::int8[],
        $48::text[], $49::text[], $50::text[], $51::text[], $52::text[], $53::text[], $54::text[],
        $55::text[], $56::bytea[], $57::text[], $58::text[], $59::int8[], $60::timestamptz[],
        $61::timestamptz[], $62::text[], $63::timestamptz[], $64::text[], $75::text[])
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

/// Collects one column of a batch.
fn column<T, U>(rows: &[T], value: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(value).collect()
}

#[expect(
    clippy::too_many_lines,
    reason = "one bind a column, in the order of the statement"
)]
async fn write_postgres(connection: &mut PgConnection, writes: &Writes) -> Result<(), StoreError> {
    let leaves = &writes.leaves;
    let opened: Vec<&LeafRow> = leaves
        .iter()
        .filter(|leaf| leaf.input.is_some() || leaf.purpose.is_some())
        .collect();
    let salt = |opening: &Option<Opening>| opening.as_ref().map(|opening| opening.salt.to_vec());
    let bytes = |opening: &Option<Opening>| opening.as_ref().map(|opening| opening.bytes.clone());
    let tiles = &writes.tiles;
    let heads: Vec<(Head, BatchId)> = writes.head.into_iter().collect();
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
        .bind(column(&heads, |(head, _)| signed(head.size)))
        .bind(column(&heads, |(head, _)| head.root.as_bytes().to_vec()))
        .bind(column(&heads, |(_, batch)| batch.uuid()))
        .bind(column(once, |o| o.key.to_vec()))
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
        .bind(column(tasks, |t| t.life().over_at()))
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
        .bind(column(sessions, |(s, _)| s.revocability.class()))
        .bind(column(sessions, |(s, _)| {
            s.revocability.bound_seconds().map(signed)
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
        .bind(column(&retries, |(key, _)| key.to_vec()))
        .bind(column(&retries, |(_, r)| r.fingerprint.to_vec()))
        .bind(column(&retries, |(_, r)| r.session.uuid()))
        .bind(column(&retries, |(_, r)| r.task.uuid()))
        .bind(column(&retries, |(_, r)| {
            i32::try_from(r.supersedes).unwrap_or(i32::MAX)
        }))
        .bind(column(&retries, |(_, r)| r.expires_at))
        .bind(column(sessions, |(s, _)| s.minter.clone()))
        .execute(connection)
        .await?;
    Ok(())
}

async fn write_sqlite(
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
    if let Some((head, batch)) = &writes.head {
        sqlx::query(
            "/* ledger_write */ INSERT INTO ledger_head (size, root, batch_id) VALUES ($1, $2, $3)",
        )
        .bind(signed(head.size))
        .bind(head.root.as_bytes().as_slice())
        .bind(batch)
        .execute(&mut *connection)
        .await?;
    }
    for once in &writes.one_time {
        sqlx::query(
            "/* ledger_write */ INSERT INTO one_time (key, binding, expires_at) VALUES ($1, $2, $3)",
        )
        .bind(once.key.as_slice())
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
        .bind(i64::from(change.sessions_taken))
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
        .bind(key.as_slice())
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
         handle_digest, handle_key, sessions_left, leaf_idx) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'open', $8, $9, $10, $8, $11, $12, $13, $14, $15)",
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
    .bind(task.life().over_at())
    .bind(task.handle_digest.as_slice())
    .bind(&task.handle_key)
    .bind(i64::from(task.sessions_left))
    .bind(signed(task.leaf_index))
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
         policies, class, bound_seconds, issued_at, expires_at, state, lease_until, lease_holder, minter) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         $19, $20, $21, $22, $23)",
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
    .bind(session.revocability.class())
    .bind(session.revocability.bound_seconds().map(signed))
    .bind(session.issued_at)
    .bind(session.expires_at)
    .bind(session.state.as_str())
    .bind(lease.map(|lease| lease.until))
    .bind(lease.map(|lease| lease.holder.as_str()))
    .bind(&session.minter)
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

/// A grant as JSON; the types it is made of always serialise.
fn details_text(session: &Session) -> String {
    serde_json::to_string(&session.grant).unwrap_or_default()
}

/// Policies' ids as a JSON list.
fn policies_text(session: &Session) -> String {
    serde_json::to_string(&session.policies).unwrap_or_default()
}
