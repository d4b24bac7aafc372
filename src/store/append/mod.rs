//! The ledger's transaction: the only statements that write leaves and the rows that depend on
//! them.
//!
//! It has three steps, each one statement on PostgreSQL. [`LedgerConnection::enter`] takes the lock
//! and reads everything that the batch depends on ([`Needs`], [`View`]).
//! [`LedgerConnection::write`] writes the outcome ([`Writes`]). [`LedgerConnection::commit`] makes
//! it durable. A statement of its own takes the lock before the statement that reads: at READ
//! COMMITTED a statement sees the rows that were committed when it began, so it must begin after
//! the lock was obtained. Two round trips therefore lie between the lock's answer and COMMIT. Each
//! rare act (a cutoff, a key, an activation) adds one, and so does a batch that ends silent tasks, and
//! a batch that has endings.
//!
//! The rule: every value that is read here is written only under the same lock, so it stays true
//! until COMMIT. There are two exceptions. Heartbeats change a task's row, unless the batch holds it
//! (`hold`). The sweeper closes tasks whose deadline has passed; the end that a batch records, which
//! it judged before the deadline, then replaces that end. Failures: after any error the caller drops the connection. After a failed commit
//! the outcome is unknown; [`LedgerConnection::committed`] answers it on a new connection. Only
//! `ledger::appender` calls this module. It judges the entries and checks the MACs; this module
//! does neither.

mod acts;
mod endings;
mod enter;
mod hold;
mod open_tasks;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use sqlx::Executor;

pub use self::acts::ActWrite;
use super::acknowledged::WatchedConnection;
use super::cutoffs::SealedCutoff;
use super::endings::ChainedEnding;
use super::generations::SealedActivation;
use super::heads::{HEAD, HeadRow, SealedHead};
use super::keys::SigningKeyRow;
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::leaf::Opening;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskLife, TaskState};
use crate::domain::validity::{SessionLife, TaskLink};
use crate::domain::workload::{Identity, OneTime, OneTimeId};
use crate::ids::{DecisionId, SessionId, TaskId};
use crate::merkle::{Hash, Tile};

/// The rows that a batch has to read once it has the lock.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Needs {
    /// The first leaf hash to read: the hashes from here on were appended by other replicas.
    pub hashes_from: u64,
    /// The first leaf index at which a change of a cutoff is read.
    pub cutoffs_from: u64,
    /// One-time ids, to find those that were used.
    pub one_time: Vec<OneTimeId>,
    /// Tasks, read with all their ancestors.
    pub tasks: Vec<TaskId>,
    /// Those of the tasks that no heartbeat may change before the commit.
    pub held_tasks: Vec<TaskId>,
    /// Sessions, read with all sessions that they were derived from.
    pub sessions: Vec<SessionId>,
    /// Digests of `Idempotency-Key`s, to find those that are bound at [`Self::now`].
    pub retries: Vec<[u8; 32]>,
    /// Owner, task type and limit: the open tasks of each pair are counted up to the limit.
    pub open_tasks: Vec<(String, String, u32)>,
    pub signing_keys: bool,
    /// The time of the newest request. `None` in a batch without requests.
    pub now: Option<Timestamp>,
}

/// The facts about a task that an append judges by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct LockedTaskFacts {
    /// The facts that say whether the task is open.
    pub life: TaskLife,
    /// The parent task. `None` for a root task.
    pub parent: Option<TaskId>,
    /// The number of tasks from the root to this one; 1 for a root task.
    pub depth: u8,
    /// The number of credentials that may still be issued under the task.
    pub sessions_left: u32,
    pub owner: Identity,
    /// The attestor that verified the owner.
    pub attestor: String,
    /// The index of the leaf that opened the task.
    pub leaf_index: u64,
}

impl LockedTaskFacts {
    /// The task's link in a chain.
    #[must_use]
    pub fn link(&self) -> TaskLink {
        TaskLink {
            life: self.life,
            parent: self.parent,
        }
    }
}

/// The facts about a session that an append judges by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SessionFacts {
    /// The state on record; it may lag behind the clock and the cutoffs.
    pub state: SessionState,
    pub expires_at: Timestamp,
    /// The index of the leaf that permitted the session.
    pub leaf_index: u64,
    /// The session that it was derived from. `None` for a root session.
    pub parent: Option<SessionId>,
    pub task: TaskId,
}

impl SessionFacts {
    /// The session's part in the rule of [`crate::domain::validity`]. An append asks whether the
    /// session is valid, and not since when it is not.
    #[must_use]
    pub fn life(&self) -> SessionLife {
        SessionLife {
            state: self.state,
            end_reason: None,
            ended_at: None,
            confirmed_at: None,
            expires_at: self.expires_at,
            known_after_seconds: None,
        }
    }
}

/// The recorded use of an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryFacts {
    /// SHA-256 of the request's body.
    pub fingerprint: [u8; 32],
    /// The newest session that was issued for the key.
    pub session: SessionId,
    /// The task of all these sessions.
    pub task: TaskId,
    /// How often a session of this key superseded an earlier one.
    pub supersedes: u32,
    /// From this instant on the key may be used for another request.
    pub expires_at: Timestamp,
}

impl RetryFacts {
    /// Takes over a row. Of several rows of one key the newest counts: the use in each earlier one
    /// expired before the next was recorded, or the row was recorded before schema 5.
    fn learn(self, key: [u8; 32], known: &mut HashMap<[u8; 32], Self>) {
        let earlier = known.get(&key);
        let age = |facts: &Self| (facts.expires_at, facts.supersedes);
        if earlier.is_none_or(|earlier| age(earlier) < age(&self)) {
            known.insert(key, self);
        }
    }

    /// Whether the key is still bound to its recorded use; otherwise it may be used again.
    #[must_use]
    pub fn stands(&self, now: Timestamp) -> bool {
        self.expires_at > now
    }
}

/// The server process that a connection leads to, and the start time of that server. It changes on
/// one connection only if a pooler stands in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    process: i32,
    since: Timestamp,
}

/// The head and the server that a new connection leads to.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct HeadAndServer {
    /// The row of the newest head. `None` in an empty log.
    pub head: Option<SealedHead>,
    pub server: Server,
}

/// The values that were read under the lock.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// `None` on SQLite, which has no servers.
    pub server: Option<Server>,
    /// The row of the newest head. `None` in an empty log.
    pub head: Option<SealedHead>,
    /// The row of the newest activation. `None` if no generation was activated.
    pub activation: Option<SealedActivation>,
    /// The database's clock, and the instant at which it was read. `None` on SQLite, which has no
    /// clock of its own.
    pub clock: Option<(Instant, Timestamp)>,
    /// The time of the newest leaf. `None` in an empty log.
    pub newest_at: Option<Timestamp>,
    /// One-time ids that expired up to this instant may have been deleted. `None` if none were.
    pub forgotten: Option<Timestamp>,
    /// The index of the leaf of the newest change of a role binding, or of the newest removal of a
    /// workload key.
    pub newest_binding: Option<u64>,
    /// One-time ids that expired up to this instant may have been deleted by a fast clock, before
    /// an admin accepted an earlier time. `None` if none were.
    pub forgotten_accepted: Option<Timestamp>,
    /// Leaf hashes from [`Needs::hashes_from`] on, at most [`MAX_HASHES`].
    pub hashes: Vec<Hash>,
    /// One-time ids that were used, with their bindings.
    pub used: HashMap<OneTimeId, Option<Vec<u8>>>,
    /// The needed tasks and their ancestors.
    pub tasks: HashMap<TaskId, LockedTaskFacts>,
    /// The open tasks of [`Needs::held_tasks`] that no heartbeat can change before the commit.
    /// Those that a heartbeat is just changing are missing.
    pub held_tasks: HashSet<TaskId>,
    /// The needed sessions and the sessions that they were derived from.
    pub sessions: HashMap<SessionId, SessionFacts>,
    /// Changed cutoffs, the oldest change first.
    pub cutoffs: Vec<SealedCutoff>,
    /// Idempotency keys that are on record.
    pub retries: HashMap<[u8; 32], RetryFacts>,
    /// The number of open tasks by owner and type, counted up to a limit. The ledger adds upper
    /// bounds that it remembers.
    pub open_tasks: HashMap<(String, String), u32>,
    /// The signing keys; empty unless [`Needs::signing_keys`] is set.
    pub signing_keys: Vec<SigningKeyRow>,
}

/// The largest number of leaf hashes that one `enter` reads. A replica that lags by more catches up
/// outside the lock.
pub const MAX_HASHES: usize = 8_192;

/// The row of a leaf to write.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct LeafRow {
    pub index: u64,
    pub hash: Hash,
    /// The leaf in its stored format.
    pub body: Vec<u8>,
    /// The decision that the leaf records. `None` for an act.
    pub decision: Option<DecisionId>,
    /// The identity that the leaf belongs to. `None` if it belongs to no workload.
    pub subject: Option<String>,
    /// The time of the decision.
    pub at: Timestamp,
    /// The opening of the commitment to the input.
    pub input: Option<Opening>,
    /// The opening of the commitment to the purpose.
    pub purpose: Option<Opening>,
}

/// A change of a task.
#[derive(Clone, Debug, Default)]
pub struct TaskChange {
    /// The final state, its time, and the index of the leaf that records it.
    pub end: Option<(TaskState, Timestamp, u64)>,
    /// The number of credentials taken from the budget, less those given back.
    pub sessions_taken: i64,
    /// The digest of a new handle.
    pub handle: Option<[u8; 32]>,
}

/// The end of a session.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SessionEnd {
    /// `Ended`, or `Ending` where a back end has yet to confirm.
    pub state: SessionState,
    pub reason: EndReason,
    pub at: Timestamp,
}

/// The lease of an unfinished mint.
#[derive(Clone, Debug)]
pub struct MintLease {
    /// From this instant on the sweeper may end the session.
    pub until: Timestamp,
    /// The replica that holds the lease.
    pub holder: String,
}

/// The rows that a batch writes.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Writes {
    /// Leaves, in the order of the log.
    pub leaves: Vec<LeafRow>,
    /// Tiles that these leaves complete.
    pub tiles: Vec<Tile>,
    pub head: Option<SealedHead>,
    /// One-time ids that the batch uses.
    pub one_time: Vec<OneTime>,
    pub tasks: Vec<Task>,
    pub task_changes: BTreeMap<TaskId, TaskChange>,
    /// New sessions, with the lease of those that a back end has yet to mint.
    pub sessions: Vec<(Session, Option<MintLease>)>,
    pub session_ends: BTreeMap<SessionId, SessionEnd>,
    /// Idempotency keys with their new uses.
    pub retries: HashMap<[u8; 32], RetryFacts>,
    pub acts: Vec<ActWrite>,
    /// The endings by the leaves of the batch, in the order of the log.
    pub endings: Vec<ChainedEnding>,
}

impl Writes {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.one_time.is_empty()
    }
}

/// The connection on which one replica's ledger appends.
#[derive(Debug)]
pub enum LedgerConnection {
    /// A dedicated PostgreSQL connection.
    Postgres(Box<WatchedConnection>),
    /// SQLite's one writer, taken from its pool for each batch.
    Sqlite(sqlx::pool::PoolConnection<sqlx::Sqlite>),
}

impl Store {
    /// A connection for the ledger's batches. The caller must drop it after any error.
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
    /// Whether the connection may be kept between batches. SQLite's one writer is shared with all
    /// other writes.
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// The head and the server that the connection leads to. Fails on SQLite, which has no servers.
    pub async fn head_and_server(&mut self) -> Result<HeadAndServer, StoreError> {
        match self {
            Self::Postgres(connection) => enter::head_and_server(connection).await,
            Self::Sqlite(_) => Err(StoreError::Unfit("SQLite has no servers".into())),
        }
    }

    /// Begins the transaction, takes the lock, and reads the rows that the batch depends on.
    pub async fn enter(&mut self, needs: &Needs) -> Result<View, StoreError> {
        match self {
            Self::Postgres(connection) => {
                let mut view = enter::postgres(connection, needs).await?;
                hold::postgres(connection, needs, &mut view).await?;
                Ok(view)
            }
            Self::Sqlite(connection) => {
                let mut view = enter::sqlite(connection, needs).await?;
                hold::sqlite(needs, &mut view);
                Ok(view)
            }
        }
    }

    /// Counts open tasks that [`Self::enter`] did not count. `wanted` has owner, task type and
    /// limit, each pair once; a count stops at its limit.
    pub async fn count_open_tasks(
        &mut self,
        wanted: &[(String, String, u32)],
    ) -> Result<HashMap<(String, String), u32>, StoreError> {
        match self {
            Self::Postgres(connection) => open_tasks::postgres(connection, wanted).await,
            Self::Sqlite(connection) => open_tasks::sqlite(connection, wanted).await,
        }
    }

    /// Writes the outcome of the batch.
    pub async fn write(&mut self, writes: &Writes) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => {
                write::postgres(connection, writes).await?;
                for act in &writes.acts {
                    acts::postgres(connection, act).await?;
                }
                endings::postgres(connection, &writes.endings).await?;
            }
            Self::Sqlite(connection) => {
                write::sqlite(connection, writes).await?;
                for act in &writes.acts {
                    acts::sqlite(connection, act).await?;
                }
                endings::sqlite(connection, &writes.endings).await?;
            }
        }
        Ok(())
    }

    /// Commits the transaction. After an error the outcome is unknown: ask [`Self::committed`] on a
    /// new connection.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => connection.commit().await,
            Self::Sqlite(connection) => {
                connection.execute("COMMIT").await?;
                Ok(())
            }
        }
    }

    /// Ends a transaction that wrote nothing, with a commit that the server acknowledges. Every row
    /// that the transaction read is then on the synchronous standby, too. Without this commit it
    /// may not be: after a crash, or after a cancelled wait for the standby, the server also shows
    /// rows that no standby has. Rows that SQLite shows are durable.
    pub async fn confirm(&mut self) -> Result<(), StoreError> {
        let Self::Postgres(connection) = self else {
            return self.rollback().await;
        };
        sqlx::query("/* confirm */ SELECT pg_logical_emit_message(true, 'taskpass.confirm', '')")
            .execute(&mut ***connection)
            .await?;
        connection.commit().await
    }

    /// The row of the newest head, after a later commit was acknowledged.
    pub async fn confirmed_head(&mut self) -> Result<Option<SealedHead>, StoreError> {
        let row: Option<HeadRow> = match self {
            Self::Postgres(connection) => {
                connection.execute("BEGIN").await?;
                sqlx::query_as(HEAD)
                    .fetch_optional(&mut ***connection)
                    .await?
            }
            Self::Sqlite(connection) => {
                connection.execute("BEGIN").await?;
                sqlx::query_as(HEAD)
                    .fetch_optional(&mut **connection)
                    .await?
            }
        };
        self.confirm().await?;
        row.map(SealedHead::try_from).transpose()
    }

    /// Rolls the transaction back; the connection can be used again.
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

    /// Whether the batch that ends with this head was committed. Takes the lock first, so that a
    /// COMMIT that was still on its way has either arrived or never will. Answers true only after
    /// [`Self::confirm`].
    pub async fn committed(&mut self, head: &SealedHead) -> Result<bool, StoreError> {
        const SQL: &str = "/* committed */ SELECT EXISTS \
             (SELECT 1 FROM ledger_head WHERE batch_id = $1 AND mac = $2)";
        let (found,): (bool,) = match self {
            Self::Postgres(connection) => {
                connection.execute(POSTGRES_LOCK).await?;
                sqlx::query_as(SQL)
                    .bind(head.batch())
                    .bind(head.mac())
                    .fetch_one(&mut ***connection)
                    .await?
            }
            Self::Sqlite(connection) => {
                connection.execute("BEGIN").await?;
                sqlx::query_as(SQL)
                    .bind(head.batch())
                    .bind(head.mac())
                    .fetch_one(&mut **connection)
                    .await?
            }
        };
        if found {
            self.confirm().await?;
        } else {
            self.rollback().await?;
        }
        Ok(found)
    }
}

/// One simple query, so that the transaction and the lock cost one round trip.
const POSTGRES_LOCK: &str =
    "BEGIN; /* ledger_lock */ SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE";

/// Collects one column of a batch's rows.
fn column<T, U>(rows: &[T], value: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(value).collect()
}
