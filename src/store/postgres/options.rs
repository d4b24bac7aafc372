//! The connection options of the ledger, the lease and the pool.
//!
//! [`Options::read`] derives them from the URL and the settings.
//!
//! The rule: each connection has timeouts, and those whose commits count wait for the disk
//! regardless of the database's default. The failure is `Unfit` with the remedy, for a URL that
//! cannot be read. [`super::Postgres`] connects with these options; `store::pooler` recognises a
//! pooler that does not pass them on.

use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::PostgresSettings;
use crate::store::StoreError;

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
            // Each statement looks up few rows by an index. With medium tables the planner would
            // read a whole table for a step of a recursive query.
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
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
