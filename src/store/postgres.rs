//! PostgreSQL: the pool, the ledger's connection, migrations, and the rights of the serving role.
//!
//! [`Postgres::connect`] makes the pool, `acquire` lends a checked connection ([`Fenced`]), and
//! `ledger_connection` makes the ledger's own. `migrate`, `check_schema`, `grant_serving` and
//! `check_confined` serve the start and `taskpass migrate`.
//!
//! The rules: no statement runs on a server that lacks known commits or is a standby
//! ([`super::fence`]). Each connection has timeouts, and the ledger's waits for a synchronous
//! standby whatever the database's default. Failures: `Unfit` for a pooler, an unusable schema or a
//! role with too many rights, each with the remedy; `NotPrimary` for a wrong server; `Unavailable`
//! for one that does not answer. After an error that ends a connection, no older connection is used
//! again. `take_over_url` answers `false` if the URL names another database. The other files of
//! `store` and `app` call this module.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use super::StoreError;
use super::acknowledged::WatchedConnection;
use super::authenticity::RowGuard;
use super::codec::unsigned;
use super::fence::{Fence, ServerState, ends_connection};
use super::leaves::{OLDEST_BODY, check_leaf_format};
use crate::clock::Timestamp;

/// The migrations, compiled into the binary.
pub static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

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

/// The remedy when a pooler stands between the broker and the server and does not pass on the
/// connection options.
const CONNECT_DIRECTLY: &str = "the broker sets its timeouts and synchronous_commit as options of its \
    connections, and keeps connections of its own for locks, so it needs a server that takes them: \
    let TASKPASS_DATABASE_URL name the primary itself (the direct, unpooled endpoint of a managed \
    database), not a pooler such as PgBouncer or RDS Proxy";

/// Converts the error of a failed connection. If the server or a pooler refused the connection
/// options, the result names cause and remedy; each pooler words that refusal in its own way.
pub(super) fn refused_options(error: sqlx::Error) -> StoreError {
    let told = error.as_database_error().and_then(|database| {
        let (code, message) = (database.code()?, database.message());
        let lower = message.to_ascii_lowercase();
        let of_options = matches!(
            code.as_ref(),
            "08P01" | "0A000" | "42501" | "42704" | "22023"
        ) && ["parameter", "option"]
            .iter()
            .any(|word| lower.contains(word));
        of_options.then(|| format!("{message} (SQLSTATE {code})"))
    });
    match told {
        None => error.into(),
        Some(told) => StoreError::Unfit(format!(
            "the server at the database's address refuses the broker's connection options: {told}; \
             {CONNECT_DIRECTLY}"
        )),
    }
}

/// Refuses a pooler that accepts the connection options and drops them: statements would have no
/// timeout, and a commit might be answered before it is on disk.
async fn check_options(pool: &PgPool, statement_timeout: &str) -> Result<(), StoreError> {
    let (effective,): (String,) = sqlx::query_as(
        "/* check_options */ SELECT setting FROM pg_catalog.pg_settings \
         WHERE name = 'statement_timeout'",
    )
    .fetch_one(pool)
    .await?;
    if effective == statement_timeout {
        return Ok(());
    }
    Err(StoreError::Unfit(format!(
        "the server at the database's address drops the broker's connection options: \
         statement_timeout is {effective} ms and not {statement_timeout} ms; {CONNECT_DIRECTLY}"
    )))
}

/// The name of brokers in `pg_stat_activity`.
pub const BROKER: &str = "taskpass";

fn millis(seconds: u64) -> String {
    seconds.saturating_mul(1_000).to_string()
}

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

/// The options of each kind of connection.
#[derive(Debug)]
struct Options {
    ledger: PgConnectOptions,
    lease: PgConnectOptions,
    pooled: PgConnectOptions,
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

impl Options {
    fn read(url: &SecretString, settings: &PostgresSettings) -> Result<Self, StoreError> {
        let statement = millis(settings.statement_timeout_seconds);
        let idle = millis(settings.append_timeout_seconds);
        // Twice the time for which a frozen replica keeps the lock, so that the next replica gets
        // the lock at its first try.
        let lock = millis(settings.append_timeout_seconds.saturating_mul(2));
        let base = PgConnectOptions::from_str(url.expose_secret())
            .map_err(|_| {
                StoreError::Unfit(
                    "the database URL cannot be read; it looks like \
                     postgres://user:password@host:5432/database"
                        .into(),
                )
            })?
            .application_name(settings.name)
            .disable_statement_logging();
        let ledger = base.clone().options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", lock.as_str()),
            ("idle_in_transaction_session_timeout", idle.as_str()),
            ("default_transaction_isolation", "read committed"),
            // The broker releases a permit after this commit, so it must be on disk, even if
            // the default differs.
            ("synchronous_commit", "on"),
            // The role's default may differ: only a warning tells that a commit was not
            // acknowledged.
            ("client_min_messages", "warning"),
            // Both statements are long, and every lookup in them uses an index: planning them for
            // each batch would cost more than running them.
            ("plan_cache_mode", "force_generic_plan"),
            // The first batch makes these plans, and the plans of foreign key checks, perhaps on
            // empty tables. They stay until a table is analysed, so they must be the plans of large
            // tables from the start.
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
        ]);
        let pooled = base.options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", "2000"),
            ("idle_in_transaction_session_timeout", "5000"),
            // JIT compilation takes longer than any of the pool's statements.
            ("jit", "off"),
        ]);
        let lease = pooled.clone().options([
            ("synchronous_commit", "on"),
            ("client_min_messages", "warning"),
        ]);
        Ok(Self {
            ledger,
            lease,
            pooled,
        })
    }
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
        let (in_recovery,): (bool,) =
            sqlx::query_as("/* ledger_connection */ SELECT pg_is_in_recovery()")
                .fetch_one(&mut *connection)
                .await?;
        if in_recovery {
            let why = "it is in recovery, as a standby is".to_owned();
            return Err(StoreError::NotPrimary(why));
        }
        Ok(connection)
    }

    /// Applies the migrations. Needs the owner's role; `serve` never calls it in production.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.check_leaf_format().await?;
        MIGRATIONS
            .run(&self.pool)
            .await
            .map_err(|error| StoreError::Unfit(format!("migration failed: {error}")))
    }

    /// Checks that this binary can work with the schema: the schema has everything that the binary
    /// uses, and removed nothing that it uses.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        self.check_leaf_format().await?;
        let (applied,): (Option<i64>,) = sqlx::query_as(
            "/* check_schema */ SELECT max(version) FROM _sqlx_migrations WHERE success",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|_| unmigrated())?;
        let (oldest_binary,): (i64,) =
            sqlx::query_as("/* check_schema */ SELECT oldest_binary FROM schema_support")
                .fetch_one(&self.pool)
                .await
                .map_err(|_| unmigrated())?;
        let known = MIGRATIONS.iter().map(|migration| migration.version).max();
        fits(applied.unwrap_or(0), oldest_binary, known.unwrap_or(0))
    }

    /// Refuses a log of another leaf format before anything changes its schema. If the role may not
    /// read the table, the later checks report that.
    async fn check_leaf_format(&self) -> Result<(), StoreError> {
        let (made,): (bool,) =
            sqlx::query_as("/* leaf_format */ SELECT to_regclass('leaf_body') IS NOT NULL")
                .fetch_one(&self.pool)
                .await?;
        if !made {
            return Ok(());
        }
        let oldest: Result<Option<(Vec<u8>,)>, sqlx::Error> =
            sqlx::query_as(OLDEST_BODY).fetch_optional(&self.pool).await;
        match oldest.map_err(StoreError::from) {
            Err(StoreError::Refused(_)) => Ok(()),
            oldest => check_leaf_format(oldest?),
        }
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

    /// Gives `role` the rights that serving needs and no more: leaves, tiles and heads can be
    /// inserted and read, never updated or deleted.
    pub async fn grant_serving(&self, role: &str) -> Result<(), StoreError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if role.is_empty() || role.len() > 63 || !role.bytes().all(fine) {
            return Err(StoreError::Unfit(
                "a role's name is 1 to 63 of a-z, 0-9 and `_`".into(),
            ));
        }
        // An identifier cannot be a parameter; a function in the database quotes it.
        sqlx::query("/* confine_serving */ SELECT taskpass_confine_serving($1)")
            .bind(role)
            .execute(&self.pool)
            .await?;
        self.check_confined(Some(role)).await?;
        sqlx::query(include_str!("grant_serving.sql").trim_end())
            .bind(role)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Checks that a role, or the connected one, has only the rights that serving needs. It must
    /// not be able to become an owner or a superuser by `SET ROLE`: an owner can change every row.
    /// And it must not be able to create objects: a temporary table or function of its own could
    /// stand in for one of the broker's.
    pub async fn check_confined(&self, role: Option<&str>) -> Result<(), StoreError> {
        self.check_no_owner(role).await?;
        self.check_no_creator(role).await
    }

    /// `pg_has_role(…, 'MEMBER')` is true for every kind of membership, inherited or not, for the
    /// role itself, and for a superuser with every role.
    async fn check_no_owner(&self, role: Option<&str>) -> Result<(), StoreError> {
        let found: Option<(String, String, String)> = sqlx::query_as(
            "/* check_no_owner */ SELECT r.rolname::text, o.rolname::text, o.what \
             FROM pg_catalog.pg_roles r CROSS JOIN LATERAL ( \
               SELECT s.oid, s.rolname, CASE WHEN s.rolsuper THEN 'is a superuser' \
                 WHEN s.rolcreaterole THEN 'may create roles and so join others' \
                 ELSE 'may write to every table' END AS what, 0 AS rank \
               FROM pg_catalog.pg_roles s \
               WHERE s.rolsuper OR s.rolcreaterole OR s.rolname = 'pg_write_all_data' \
               UNION ALL SELECT d.datdba, pg_get_userbyid(d.datdba), \
                 'owns the database ' || quote_ident(d.datname), 1 \
               FROM pg_catalog.pg_database d WHERE d.datname = current_database() \
               UNION ALL SELECT n.nspowner, pg_get_userbyid(n.nspowner), \
                 'owns the schema ' || quote_ident(n.nspname), 2 \
               FROM pg_catalog.pg_namespace n WHERE n.oid = (SELECT c.relnamespace \
                 FROM pg_catalog.pg_class c WHERE c.oid = 'ledger_head'::regclass) \
               UNION ALL SELECT c.relowner, pg_get_userbyid(c.relowner), \
                 'owns the table ' || quote_ident(c.relname), 3 \
               FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = \
                 (SELECT h.relnamespace FROM pg_catalog.pg_class h \
                  WHERE h.oid = 'ledger_head'::regclass) \
             ) AS o WHERE r.rolname = coalesce($1, current_user::text) \
             AND pg_has_role(r.oid, o.oid, 'MEMBER') ORDER BY o.oid <> r.oid, o.rank LIMIT 1",
        )
        .bind(role)
        .fetch_optional(&self.pool)
        .await?;
        let Some((role, owner, what)) = found else {
            return Ok(());
        };
        let how = if role == owner {
            format!("the role `{role}` {what}, so it can change every row")
        } else {
            format!(
                "the role `{role}` may become `{owner}` by SET ROLE, which {what}, so it can \
                 change every row; if it is a member of that role, run this as its administrator: \
                 REVOKE \"{owner}\" FROM \"{role}\""
            )
        };
        Err(StoreError::Unfit(format!(
            "{how}; serve with a role that neither owns the database nor is a superuser, made by \
             `taskpass migrate --grant-to ROLE`"
        )))
    }

    async fn check_no_creator(&self, role: Option<&str>) -> Result<(), StoreError> {
        let (role, database, schema, temporary, create): (String, String, String, bool, bool) =
            sqlx::query_as(
                "/* check_confined */ SELECT r.rolname::text, current_database()::text, \
                 n.nspname::text, \
                 has_database_privilege(r.oid, current_database(), 'TEMPORARY'), \
                 has_schema_privilege(r.oid, n.oid, 'CREATE') \
                 FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n \
                 WHERE r.rolname = coalesce($1, current_user::text) AND n.oid = \
                 (SELECT c.relnamespace FROM pg_catalog.pg_class c \
                  WHERE c.oid = 'ledger_head'::regclass)",
            )
            .bind(role)
            .fetch_one(&self.pool)
            .await?;
        let statement = match (temporary, create) {
            (false, false) => return Ok(()),
            (true, _) => {
                format!("REVOKE TEMPORARY ON DATABASE \"{database}\" FROM PUBLIC, \"{role}\"")
            }
            (false, true) => {
                format!("REVOKE CREATE ON SCHEMA \"{schema}\" FROM PUBLIC, \"{role}\"")
            }
        };
        let right = if temporary {
            format!("temporary objects in the database `{database}`")
        } else {
            format!("objects in the schema `{schema}`")
        };
        Err(StoreError::Unfit(format!(
            "the role `{role}` may create {right}, which could stand in for the ledger's own; run \
             this as the owner: {statement}; or serve with a role that neither owns the database nor \
             is a superuser, made by `taskpass migrate --grant-to ROLE`"
        )))
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// The oldest schema that has everything that this binary uses. Raise it with the first statement
/// that needs a newer one.
const OLDEST_SCHEMA: i64 = 3;

/// Compares the schema's version and the oldest binary that it supports with this binary, which
/// knows migrations up to `known`.
pub(super) fn fits(applied: i64, oldest_binary: i64, known: i64) -> Result<(), StoreError> {
    if applied < OLDEST_SCHEMA {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied}, this binary needs {OLDEST_SCHEMA}; run `taskpass \
             migrate` as the role that owns the database"
        )));
    }
    if known < oldest_binary {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied} and supports binaries that know version \
             {oldest_binary}, this one knows up to {known}; run a newer binary"
        )));
    }
    Ok(())
}

fn unmigrated() -> StoreError {
    StoreError::Unfit(
        "the database has no Taskpass schema; run `taskpass migrate` as the role that owns the \
         database"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_served_until_it_takes_something_away() {
        assert!(fits(OLDEST_SCHEMA, 1, OLDEST_SCHEMA).is_ok());
        assert!(fits(OLDEST_SCHEMA + 3, OLDEST_SCHEMA, OLDEST_SCHEMA).is_ok());
        let taken = fits(OLDEST_SCHEMA + 3, OLDEST_SCHEMA + 2, OLDEST_SCHEMA).unwrap_err();
        assert!(taken.to_string().contains("newer binary"), "{taken}");
    }

    #[test]
    fn a_schema_that_lacks_something_is_to_be_migrated() {
        let old = fits(OLDEST_SCHEMA - 1, 0, OLDEST_SCHEMA).unwrap_err();
        assert!(old.to_string().contains("taskpass migrate"), "{old}");
    }
}
