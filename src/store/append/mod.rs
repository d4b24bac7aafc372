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

mod acts;
mod enter;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use sqlx::Executor;

pub use self::acts::ActWrite;
use super::acknowledged::WatchedConnection;
use super::cutoffs::SealedCutoff;
use super::generations::SealedActivation;
use super::heads::{HEAD, HeadRow, SealedHead};
use super::keys::SigningKeyRow;
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::leaf::Opening;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::domain::task::{Task, TaskLife, TaskState};
use crate::domain::validity::{SessionLife, TaskLink};
use crate::domain::workload::{Identity, OneTime};
use crate::ids::{DecisionId, SessionId, TaskId};
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
    /// Whether the signing keys are to be read.
    pub signing_keys: bool,
    /// The present instant.
    pub now: Option<Timestamp>,
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
    /// Its owner.
    pub owner: Identity,
    /// The attestor that verified its owner.
    pub attestor: String,
    /// The leaf that opened it.
    pub leaf_index: u64,
}

impl TaskFacts {
    /// Its link in a chain.
    #[must_use]
    pub fn link(&self) -> TaskLink {
        TaskLink {
            life: self.life,
            parent: self.parent,
        }
    }
}

/// What decides about a session in an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Its state on record.
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

impl SessionFacts {
    /// Its record's part in the rule of [`crate::domain::validity`]. An append asks whether the session
    /// stands, and not since when it does not.
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

impl RetryFacts {
    /// Whether the key still means what it was used for; otherwise it may be used anew.
    #[must_use]
    pub fn stands(&self, now: Timestamp) -> bool {
        self.expires_at > now
    }
}

/// Which server process a connection leads to, and since when that server runs. It changes on a
/// connection only where a pooler stands in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    process: i32,
    since: Timestamp,
}

/// What a new connection shows.
#[derive(Clone, Debug)]
pub struct Look {
    /// The newest head's row; none in an empty log.
    pub head: Option<SealedHead>,
    /// Who says so.
    pub server: Server,
}

/// What was read under the lock.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Who says all this; nothing is known of SQLite, which has no servers.
    pub server: Option<Server>,
    /// The newest head's row; none in an empty log.
    pub head: Option<SealedHead>,
    /// The newest activation's row.
    pub activation: Option<SealedActivation>,
    /// The database's clock, and the instant at which it was asked; SQLite has no clock of its own.
    pub clock: Option<(Instant, Timestamp)>,
    /// When the newest leaf was decided.
    pub newest_at: Option<Timestamp>,
    /// One-time ids that ran out up to this instant may have been forgotten.
    pub forgotten: Option<Timestamp>,
    /// The leaf of the newest change of a role binding, or of the newest removal of a registered key.
    pub newest_binding: Option<u64>,
    /// The same for ids that were forgotten by a clock that was ahead, before a time was accepted.
    pub forgotten_accepted: Option<Timestamp>,
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
    /// The signing keys, if they were asked for.
    pub signing_keys: Vec<SigningKeyRow>,
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
    /// Credentials taken from its budget, less those given back.
    pub sessions_taken: i64,
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
    pub head: Option<SealedHead>,
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

/// The connection of one replica's ledger.
#[derive(Debug)]
pub enum LedgerConnection {
    /// A PostgreSQL connection of its own.
    Postgres(Box<WatchedConnection>),
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

    /// What the connection shows, and who says so. SQLite's shows what its store shows.
    pub async fn look(&mut self) -> Result<Look, StoreError> {
        match self {
            Self::Postgres(connection) => enter::look(connection).await,
            Self::Sqlite(_) => Err(StoreError::Unfit("SQLite has no servers".into())),
        }
    }

    /// Begins the transaction, takes the lock, and reads what the batch depends on.
    pub async fn enter(&mut self, needs: &Needs) -> Result<View, StoreError> {
        match self {
            Self::Postgres(connection) => enter::postgres(connection, needs).await,
            Self::Sqlite(connection) => enter::sqlite(connection, needs).await,
        }
    }

    /// Writes what was decided.
    pub async fn write(&mut self, writes: &Writes) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => {
                write::postgres(connection, writes).await?;
                for act in &writes.acts {
                    acts::postgres(connection, act).await?;
                }
            }
            Self::Sqlite(connection) => {
                write::sqlite(connection, writes).await?;
                for act in &writes.acts {
                    acts::sqlite(connection, act).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes it durable. After an error it is not known whether it is: ask [`Self::committed`] on a
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

    /// Ends a transaction that wrote nothing by a commit that the server acknowledges: all that was
    /// read in it is then on its synchronous standby, too. A row can be read that is not: after a
    /// crash the server shows what it wrote before any standby had it, and so it does when a wait for
    /// the standby was cancelled. What SQLite shows is durable.
    pub async fn confirm(&mut self) -> Result<(), StoreError> {
        let Self::Postgres(connection) = self else {
            return self.rollback().await;
        };
        sqlx::query("/* confirm */ SELECT pg_logical_emit_message(true, 'taskpass.confirm', '')")
            .execute(&mut ***connection)
            .await?;
        connection.commit().await
    }

    /// The newest head's row, once a commit that came after it was acknowledged.
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

    /// Whether the batch that ends with this head was committed. Takes the lock first, so that a
    /// COMMIT that is still on its way has arrived, or never will. That it was is answered only once it
    /// is confirmed ([`Self::confirm`]).
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

/// Collects one column of a batch.
fn column<T, U>(rows: &[T], value: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(value).collect()
}
