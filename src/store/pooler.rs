//! Recognises a pooler before PostgreSQL that does not pass on the connection options.
//!
//! `refused_options` recognises one that refuses the options, in the error of a connection.
//! `check_options` asks a new pool for one that accepts and drops them, and warns of settings of the
//! server that make commits unsafe.
//!
//! The rule: without its options a statement has no timeout, and a commit may be answered before it
//! is on disk, so the broker does not start. The failure is `Unfit` with the remedy. `postgres`
//! calls this module for the pool, `acknowledged` for the connections of ledger and lease.

use sqlx::postgres::PgPool;

use super::StoreError;

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
/// timeout, and a commit might be answered before it is on disk. Warns of a server whose own
/// settings let it lose commits in a crash; the broker's options cannot change them.
pub(super) async fn check_options(
    pool: &PgPool,
    statement_timeout: &str,
) -> Result<(), StoreError> {
    let settings: Vec<(String, String)> = sqlx::query_as(
        "/* check_options */ SELECT name, setting FROM pg_catalog.pg_settings \
         WHERE name IN ('statement_timeout', 'fsync', 'full_page_writes')",
    )
    .fetch_all(pool)
    .await?;
    for setting in unsafe_settings(&settings) {
        tracing::warn!(
            "{setting} is off: the database's server can lose acknowledged commits in a crash, and \
             the log is then rewound; set {setting} = on for the server"
        );
    }
    let effective = value(&settings, "statement_timeout").unwrap_or_default();
    if effective == statement_timeout {
        return Ok(());
    }
    Err(StoreError::Unfit(format!(
        "the server at the database's address drops the broker's connection options: \
         statement_timeout is {effective} ms and not {statement_timeout} ms; {CONNECT_DIRECTLY}"
    )))
}

fn value<'a>(settings: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = settings.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

/// The settings that a durable log needs and that are off.
fn unsafe_settings(settings: &[(String, String)]) -> Vec<&'static str> {
    let mut names = vec!["fsync", "full_page_writes"];
    names.retain(|name| value(settings, name) == Some("off"));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_lose_commits_are_named() {
        let settings = |fsync: &str, pages: &str| {
            [("fsync", fsync), ("full_page_writes", pages)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        assert!(unsafe_settings(&settings("on", "on")).is_empty());
        assert_eq!(unsafe_settings(&settings("off", "on")), ["fsync"]);
        assert_eq!(
            unsafe_settings(&settings("off", "off")),
            ["fsync", "full_page_writes"]
        );
        let none = unsafe_settings(&[]);
        assert!(none.is_empty(), "a service may hide its settings");
    }
}
