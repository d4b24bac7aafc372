//! The connection options of the ledger, the lease and the pool, and the check that they arrive.
//!
//! [`Options::read`] derives them from the URL and the settings. `check_options` and
//! `refused_options` recognise a pooler between the broker and the server, which drops or refuses
//! options.
//!
//! The rule: each connection has timeouts, and those whose commits count wait for the disk
//! regardless of the database's default. Failures: `Unfit` with the remedy, for a URL that cannot
//! be read and for a pooler. [`super::Postgres`] connects with these options.

use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool};

use super::PostgresSettings;
use crate::store::StoreError;

/// The remedy when a pooler stands between the broker and the server and does not pass on the
/// connection options.
const CONNECT_DIRECTLY: &str = "the broker sets its timeouts and synchronous_commit as options of its \
    connections, and keeps connections of its own for locks, so it needs a server that takes them: \
    let TASKPASS_DATABASE_URL name the primary itself (the direct, unpooled endpoint of a managed \
    database), not a pooler such as PgBouncer or RDS Proxy";

/// Converts the error of a failed connection. If the server or a pooler refused the connection
/// options, the result names cause and remedy; each pooler words that refusal in its own way.
pub(in crate::store) fn refused_options(error: sqlx::Error) -> StoreError {
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
pub(super) async fn check_options(
    pool: &PgPool,
    statement_timeout: &str,
) -> Result<(), StoreError> {
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

pub(super) fn millis(seconds: u64) -> String {
    seconds.saturating_mul(1_000).to_string()
}

/// The options of each kind of connection.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) ledger: PgConnectOptions,
    pub(super) lease: PgConnectOptions,
    pub(super) pooled: PgConnectOptions,
}

impl Options {
    pub(super) fn read(
        url: &SecretString,
        settings: &PostgresSettings,
    ) -> Result<Self, StoreError> {
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
