//! PostgreSQL: the pool and the ledger's connection.
//!
//! [`Postgres::connect`] makes the pool, `acquire` lends a checked connection ([`Fenced`]), and
//! `ledger_connection` makes the ledger's own. `migrate`, `check_schema`, `grant_serving` and
//! `check_confined` serve the start and `taskpass migrate`.
//!
//! The rules: no statement runs on a server that lacks known commits or is a standby
//! ([`super::fence`]). Each connection has timeouts, and the ledger's waits for a synchronous
//! standby regardless of the database's default. Failures: `Unfit` for a pooler, an unusable schema
//! or a role with too many rights, each with the remedy; `NotPrimary` for a wrong server;
//! `Unavailable` for one that does not answer. After an error that ends a connection, no older
//! connection is used again. `take_over_url` answers `false` if the URL names another database. The
//! other files of `store` and `app` call this module.

mod options;
mod roles;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use self::options::{Options, millis};
pub use self::schema::MIGRATIONS;
pub(super) use self::schema::fits;
use super::StoreError;
use super::acknowledged::WatchedConnection;
use super::authenticity::RowGuard;
use super::codec::unsigned;
use super::fence::{Fence, ServerState, ends_connection};
use super::pooler::{check_options, refused_options};
use crate::clock::Timestamp;

/// The size of the pool, and the timeouts.
#[derive(Clone, Copy, Debug)]
pub struct PostgresSettings {
    /// The name of the connections in `pg_stat_activity`. Brokers use [`BROKER`].
    pub name: &'static str,
    /// The largest number of simultaneous connections, not counting those of ledger and lease.
    pub max_connections: u32,
    /// How long a request may wait for a connection.
    pub acquire_timeout_seconds: u64,
    /// How long a statement may run.
    pub statement_timeout_seconds: u64,
    /// How long the ledger's transaction may idle while it holds the lock that all replicas wait
    /// for. A frozen replica loses the lock after this time, so it does not stop the others for
    /// longer.
    pub append_timeout_seconds: u64,
    /// Whether to accept a standby, for tools that only read a store.
    pub standby_will_do: bool,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            name: BROKER,
            max_connections: 16,
            acquire_timeout_seconds: 3,
            statement_timeout_seconds: 5,
            append_timeout_seconds: 2,
            standby_will_do: false,
        }
    }
}

/// The name of brokers in `pg_stat_activity`.
pub const BROKER: &str = "taskpass";

/// A pool of connections to PostgreSQL. Statements get them only through [`Self::acquire`].
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
    options: Arc<ArcSwap<Options>>,
    settings: PostgresSettings,
    fence: Arc<Fence>,
    standby_will_do: bool,
    row_guard: RowGuard,
}

/// A connection of the pool whose server passed the fence's check. It returns to the pool when it
/// is dropped.
#[derive(Debug)]
pub(super) struct Fenced {
    connection: PoolConnection<sqlx::Postgres>,
    /// The start time of its server.
    since: Timestamp,
    fence: Arc<Fence>,
}

impl Fenced {
    /// The connection, for a statement.
    pub(super) fn executor(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Takes the result of a statement. After an error that ends the connection, neither it nor any
    /// older connection is used again.
    pub(super) fn finish<T>(mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        self.keep(outcome)
    }

    /// Takes the result of a statement over rows that decide validity. Returns it only under the
    /// read lease.
    pub(super) fn finish_current<T>(
        mut self,
        outcome: Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.keep_current(outcome)
    }

    /// As [`Self::finish_current`], for a connection on which another statement follows. Its server
    /// then has at least as many leaves.
    pub(super) fn keep_current<T>(
        &mut self,
        outcome: Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let answer = self.keep(outcome)?;
        self.fence.check_lease(Some(self.since))?;
        Ok(answer)
    }

    fn keep<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        if let Err(error) = &outcome
            && ends_connection(error)
        {
            self.connection.close_on_drop();
            self.fence.retire();
        }
        Ok(outcome?)
    }
}

/// The state of a connection's server.
async fn read_server_state(connection: &mut PgConnection) -> Result<ServerState, sqlx::Error> {
    let (in_recovery, since, size): (bool, Timestamp, Option<i64>) = sqlx::query_as(
        "/* fence */ SELECT pg_is_in_recovery(), pg_postmaster_start_time(), \
         (SELECT size FROM ledger_head ORDER BY size DESC LIMIT 1)",
    )
    .fetch_one(connection)
    .await?;
    // A negative size, which no broker writes, counts as an empty log.
    let size = unsigned("head", size.unwrap_or(0)).unwrap_or(0);
    Ok(ServerState {
        size,
        since,
        in_recovery,
    })
}

impl Postgres {
    /// Connects.
    pub async fn connect(
        url: &SecretString,
        settings: PostgresSettings,
    ) -> Result<Self, StoreError> {
        let options = Options::read(url, &settings)?;
        let fence = Arc::new(Fence::default());
        let admitting = Arc::clone(&fence);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(Duration::from_secs(settings.acquire_timeout_seconds))
            .idle_timeout(Duration::from_mins(5))
            // [`Self::acquire`] checks more than whether the connection still answers.
            .test_before_acquire(false)
            .before_acquire(move |_, connection| {
                let admitted = admitting.admits(connection.age);
                Box::pin(async move { Ok(admitted) })
            })
            .connect_with(options.pooled.clone())
            .await
            .map_err(refused_options)?;
        check_options(&pool, &millis(settings.statement_timeout_seconds)).await?;
        Ok(Self {
            pool,
            options: Arc::new(ArcSwap::from_pointee(options)),
            settings,
            fence,
            standby_will_do: settings.standby_will_do,
            row_guard: RowGuard::default(),
        })
    }

    pub(super) fn row_guard(&self) -> &RowGuard {
        &self.row_guard
    }

    /// A connection whose server shows every commit that is known, and is not a standby. Every
    /// statement awaits this, so the future is boxed to keep the callers' futures small.
    pub(super) fn acquire(&self) -> BoxFuture<'_, Result<Fenced, StoreError>> {
        Box::pin(self.try_acquire())
    }

    async fn try_acquire(&self) -> Result<Fenced, StoreError> {
        if let Some(refusal) = self.fence.recent_refusal() {
            return Err(refusal);
        }
        // Read first: the request rests on at most this many leaves.
        let known = self.fence.known();
        let mut refused = None;
        // The first connection may be an old one. Any failure retires all old connections, so the
        // next one is new.
        for _ in 0..2 {
            let mut connection = self.pool.acquire().await?;
            let shown = match read_server_state(&mut connection).await {
                Ok(shown) => shown,
                Err(error) if ends_connection(&error) => {
                    drop(connection.detach());
                    self.fence.retire();
                    refused = Some(StoreError::Unavailable(error));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let refusal = Fence::refusal(known, shown);
            let Some(why) = refusal.filter(|_| !(self.standby_will_do && shown.in_recovery)) else {
                self.fence.note_admission();
                return Ok(Fenced {
                    connection,
                    since: shown.since,
                    fence: Arc::clone(&self.fence),
                });
            };
            drop(connection.detach());
            self.fence.retire();
            if refused.is_some() {
                self.fence.note_refusal(&why);
            }
            refused = Some(StoreError::NotPrimary(why));
        }
        Err(refused.unwrap_or(StoreError::Unavailable(sqlx::Error::PoolTimedOut)))
    }

    /// The fence that all connections are checked against.
    pub(super) fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// The options of the read lease's connection.
    pub(super) fn lease_options(&self) -> PgConnectOptions {
        self.options.load().lease.clone()
    }

    /// The options of the connection that reads the table of endings.
    pub(super) fn follower_options(&self) -> PgConnectOptions {
        self.options.load().pooled.clone()
    }

    /// Uses this URL for new connections, if it names the same database with another user or
    /// password. Existing connections stay. Returns false if it names another database, for which
    /// the broker must be restarted.
    pub fn take_over_url(&self, url: &SecretString) -> Result<bool, StoreError> {
        let newer = Options::read(url, &self.settings)?;
        let server_and_database = |options: &PgConnectOptions| {
            let database = options.get_database().map(str::to_owned);
            let socket = options.get_socket().cloned();
            let host = options.get_host().to_owned();
            (host, options.get_port(), database, socket)
        };
        if server_and_database(&newer.pooled) != server_and_database(&self.options.load().pooled) {
            return Ok(false);
        }
        self.pool.set_connect_options(newer.pooled.clone());
        self.options.store(Arc::new(newer));
        Ok(true)
    }

    /// A new connection with the ledger's short timeouts. Retires the connections of the pool: the
    /// new one may lead to another server.
    pub async fn ledger_connection(&self) -> Result<WatchedConnection, StoreError> {
        let options = self.options.load().ledger.clone();
        let connecting = WatchedConnection::connect(&options);
        let connected = tokio::time::timeout(Duration::from_secs(3), connecting).await;
        let Ok(connection) = connected else {
            return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        };
        let mut connection = connection?;
        self.fence.retire();
        let (in_recovery, synchronous_commit): (bool, String) = sqlx::query_as(
            "/* ledger_connection */ SELECT pg_is_in_recovery(), \
             current_setting('synchronous_commit')",
        )
        .fetch_one(&mut *connection)
        .await?;
        if synchronous_commit != "on" {
            return Err(StoreError::Unfit(format!(
                "synchronous_commit is {synchronous_commit} on the ledger's connection, although \
                 the broker sets it to on; connect the broker to the database itself, without a \
                 pooler"
            )));
        }
        if in_recovery {
            let why = "it is in recovery, as a standby is".to_owned();
            return Err(StoreError::NotPrimary(why));
        }
        Ok(connection)
    }

    /// The database's clock.
    pub async fn clock(&self) -> Result<Timestamp, StoreError> {
        let mut connection = self.acquire().await?;
        let at = sqlx::query_as("/* clock */ SELECT clock_timestamp()")
            .fetch_one(connection.executor())
            .await;
        let (at,): (Timestamp,) = connection.finish(at)?;
        Ok(at)
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}
