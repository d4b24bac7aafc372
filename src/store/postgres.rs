//! PostgreSQL: the pool, the ledger's connection, migrations.

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
use super::fence::{Fence, Shown, ends_connection};
use super::leaves::{OLDEST_BODY, check_leaf_format};
use crate::clock::Timestamp;

/// The migrations, in the binary.
pub static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How much the pool may take, and how long anything may last.
#[derive(Clone, Copy, Debug)]
pub struct PostgresSettings {
    /// What the database knows the connections by. Brokers are called [`BROKER`].
    pub name: &'static str,
    /// Connections at once, for everything but the ledger.
    pub max_connections: u32,
    /// How long a request may wait for one.
    pub acquire_timeout_seconds: u64,
    /// How long a statement may run.
    pub statement_timeout_seconds: u64,
    /// How long the ledger's transaction may idle while it holds the lock that all replicas wait
    /// for: a frozen replica loses it after this, and so stops nobody for longer.
    pub append_timeout_seconds: u64,
    /// Whether a standby will do, for looking into a store without serving from it.
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

/// What to do about whatever stands between the broker and the server and does not pass on what the
/// broker asks of its connections.
const CONNECT_DIRECTLY: &str = "the broker sets its timeouts and synchronous_commit as options of its \
    connections, and keeps connections of its own for locks, so it needs a server that takes them: \
    let TASKPASS_DATABASE_URL name the primary itself (the direct, unpooled endpoint of a managed \
    database), not a pooler such as PgBouncer or RDS Proxy";

/// The error of a connection that could not be made, with cause and remedy where the other side did
/// not take the options of the connection. Each pooler refuses them in its own words.
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
            "what answers at the database's address refuses the broker's connection options: {told}; \
             {CONNECT_DIRECTLY}"
        )),
    }
}

/// Refuses a pooler that takes the options of a connection and drops them: nothing would bound a
/// statement, and a commit might be answered before it is on disk.
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
        "what answers at the database's address drops the broker's connection options: \
         statement_timeout is {effective} ms and not {statement_timeout} ms; {CONNECT_DIRECTLY}"
    )))
}

/// What brokers are called as the database's clients.
pub const BROKER: &str = "taskpass";

fn millis(seconds: u64) -> String {
    seconds.saturating_mul(1_000).to_string()
}

/// A pool of connections to PostgreSQL. Statements get them by [`Self::acquire`] and in no other way.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
    options: Arc<ArcSwap<Options>>,
    settings: PostgresSettings,
    fence: Arc<Fence>,
    standby_will_do: bool,
    row_guard: RowGuard,
}

/// How each kind of connection is made.
#[derive(Debug)]
struct Options {
    ledger: PgConnectOptions,
    lease: PgConnectOptions,
    pooled: PgConnectOptions,
}

/// A connection of the pool whose server was held against the fence. It goes back into the pool when
/// it is dropped.
#[derive(Debug)]
pub(super) struct Fenced {
    connection: PoolConnection<sqlx::Postgres>,
    /// Since when its server runs.
    since: Timestamp,
    fence: Arc<Fence>,
}

impl Fenced {
    /// The connection, for a statement.
    pub(super) fn executor(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// What a statement on it came to. After an error that ends the connection, neither it nor those
    /// that were made before are used again.
    pub(super) fn finish<T>(mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        self.keep(outcome)
    }

    /// The same for rows that decide validity, which are given only under the read lease.
    pub(super) fn finish_current<T>(
        mut self,
        outcome: Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.keep_current(outcome)
    }

    /// As [`Self::finish_current`], where another statement follows on the connection. Its server has
    /// at least as many leaves then.
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

/// What a connection's server shows.
async fn look(connection: &mut PgConnection) -> Result<Shown, sqlx::Error> {
    let (in_recovery, since, size): (bool, Timestamp, Option<i64>) = sqlx::query_as(
        "/* fence */ SELECT pg_is_in_recovery(), pg_postmaster_start_time(), \
         (SELECT size FROM ledger_head ORDER BY size DESC LIMIT 1)",
    )
    .fetch_one(connection)
    .await?;
    // One that is negative, which none is, is less than any that is known.
    let size = unsigned("head", size.unwrap_or(0)).unwrap_or(0);
    Ok(Shown {
        size,
        since,
        in_recovery,
    })
}

impl Options {
    fn read(url: &SecretString, settings: &PostgresSettings) -> Result<Self, StoreError> {
        let statement = millis(settings.statement_timeout_seconds);
        let idle = millis(settings.append_timeout_seconds);
        // Twice as long as a frozen replica keeps it, so that the one behind it gets through at its
        // first try.
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
            // A permit is released upon this commit: it has to be on disk, whatever the default.
            ("synchronous_commit", "on"),
            // Whatever the role's default: that a commit was not acknowledged is told by a warning.
            ("client_min_messages", "warning"),
            // Its two statements are long, and every lookup in them is by an index: planning them
            // anew for each batch would cost more than running them.
            ("plan_cache_mode", "force_generic_plan"),
            // Those plans, and the ones that foreign keys are checked by, are made at the first batch,
            // perhaps on empty tables, and stay until a table is analysed. They must be the plans of
            // large tables from the beginning.
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
        ]);
        let pooled = base.options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", "2000"),
            ("idle_in_transaction_session_timeout", "5000"),
            // Compiling takes longer than any of its statements.
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
            // [`Self::acquire`] asks more of each connection than whether it still answers.
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

    /// A connection whose server shows all that is known to be committed, and is no standby. It is
    /// awaited in front of every statement, so the future is kept small.
    pub(super) fn acquire(&self) -> BoxFuture<'_, Result<Fenced, StoreError>> {
        Box::pin(self.try_acquire())
    }

    async fn try_acquire(&self) -> Result<Fenced, StoreError> {
        if let Some(refusal) = self.fence.recent_refusal() {
            return Err(refusal);
        }
        // What is known by now is what the request rests on, or more.
        let known = self.fence.known();
        let mut refused = None;
        // The first may be an old one. Whatever is wrong with that retires all like it, and the next
        // is new.
        for _ in 0..2 {
            let mut connection = self.pool.acquire().await?;
            let shown = match look(&mut connection).await {
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

    /// What all connections are held against.
    pub(super) fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// How the connection of the read lease is made.
    pub(super) fn lease_options(&self) -> PgConnectOptions {
        self.options.load().lease.clone()
    }

    /// Makes connections by this URL from now on, where it names the same database with another user
    /// or password. Those that there are go on. False where it names another database, which only a
    /// start may turn to.
    pub fn take_over_url(&self, url: &SecretString) -> Result<bool, StoreError> {
        let newer = Options::read(url, &self.settings)?;
        let place = |options: &PgConnectOptions| {
            let database = options.get_database().map(str::to_owned);
            let socket = options.get_socket().cloned();
            let host = options.get_host().to_owned();
            (host, options.get_port(), database, socket)
        };
        if place(&newer.pooled) != place(&self.options.load().pooled) {
            return Ok(false);
        }
        self.pool.set_connect_options(newer.pooled.clone());
        self.options.store(Arc::new(newer));
        Ok(true)
    }

    /// A new connection with the ledger's short timeouts. The connections of the pool are retired:
    /// the new one may lead to another server than they do.
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

    /// Whether the schema is one that this binary can work with: it has all that we use, and has
    /// taken nothing away that we use.
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

    /// Refuses a log of another leaf format, before anything is done with its schema. What the role
    /// may not read is left to the checks that follow.
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

    /// The database's clock, to be compared with ours.
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
        // An identifier cannot be a parameter; `format` in the database quotes it.
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

    /// Whether a role, or else the one that is connected, is confined to what serving needs. It must not
    /// be able to become an owner, or a superuser, by `SET ROLE` either: an owner can change every row.
    /// And it must not make objects of its own beside ours: with a temporary table or function it could
    /// stand in for ours.
    pub async fn check_confined(&self, role: Option<&str>) -> Result<(), StoreError> {
        self.check_no_owner(role).await?;
        self.check_no_creator(role).await
    }

    /// `pg_has_role(…, 'MEMBER')` holds for membership of every kind, inherited or not, and for the role
    /// itself; of a superuser for all roles.
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
            format!("the role `{role}` {what}, and with that it can change every row")
        } else {
            format!(
                "the role `{role}` may become `{owner}` by SET ROLE, which {what}, and so change every \
                 row; if it is a member of that role, run this as its administrator: REVOKE \
                 \"{owner}\" FROM \"{role}\""
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
            "the role `{role}` may make {right}, and with them change what the ledger rests on; run \
             this as the owner: {statement}; or serve with a role that neither owns the database nor \
             is a superuser, made by `taskpass migrate --grant-to ROLE`"
        )))
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// The oldest schema that has all that this binary uses. Raise it with the first statement that
/// needs a newer one.
const OLDEST_SCHEMA: i64 = 3;

/// Compares a schema and the oldest binary that it serves with this binary, which knows migrations
/// up to `known`.
pub(super) fn fits(applied: i64, oldest_binary: i64, known: i64) -> Result<(), StoreError> {
    if applied < OLDEST_SCHEMA {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied}, this binary needs {OLDEST_SCHEMA}; run `taskpass \
             migrate` with the owner's role"
        )));
    }
    if known < oldest_binary {
        return Err(StoreError::Unfit(format!(
            "the schema has version {applied} and serves binaries that know version \
             {oldest_binary}, this one knows up to {known}; run a newer binary"
        )));
    }
    Ok(())
}

fn unmigrated() -> StoreError {
    StoreError::Unfit(
        "the database has no schema of ours; run `taskpass migrate` with the owner's role".into(),
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
