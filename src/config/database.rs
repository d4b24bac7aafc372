//! Checks the database's URL as the driver reads it.
//!
//! The driver completes the URL from its own variables (`PGHOST`, `PGHOSTADDR`, `PGSSLMODE` …),
//! uses the last value of a repeated parameter, and prefers a socket to a host. These checks
//! therefore read the driver's options, not the URL's text.
//!
//! [`check`] accepts a URL that leads to this host, or to a host whose certificate is verified, or
//! any if the network is trusted. Everything else is a [`DatabaseFault`]. So is a parameter that
//! the driver ignores: it could be a mistyped `sslmode`, and the driver logs its value.
//! `config::check` words the complaint, and [`crate::store`] connects.

use std::net::IpAddr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// Parameters that the driver knows. It ignores others and logs their values.
const KNOWN: [&str; 17] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// An error of a database's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DatabaseFault {
    /// It is not a PostgreSQL URL, or the driver rejects it.
    NoUrl,
    /// The driver does not know a parameter of this name.
    Unknown(String),
    /// The database is on another host, and its certificate is not verified.
    Unproven,
}

/// Accepts a URL by which the driver connects to this host only, or to a host whose certificate
/// proves that it is the named one. `trusted` says whether the network in between is trusted.
pub(super) fn check(text: &str, trusted: bool) -> Result<(), DatabaseFault> {
    let url = Url::parse(text).map_err(|_| DatabaseFault::NoUrl)?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(DatabaseFault::NoUrl);
    }
    let known = |key: &str| {
        KNOWN.contains(&key) || key == "statement-cache-capacity" || key.starts_with("options[")
    };
    if let Some((key, _)) = url.query_pairs().find(|(key, _)| !known(key)) {
        let short = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let name = key.len() <= 40 && key.bytes().all(short);
        return Err(DatabaseFault::Unknown(if name {
            key.into_owned()
        } else {
            "…".to_owned()
        }));
    }
    let options: PgConnectOptions = text.parse().map_err(|_| DatabaseFault::NoUrl)?;
    let proven = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
    if trusted || proven || is_on_this_host(&options) {
        return Ok(());
    }
    Err(DatabaseFault::Unproven)
}

fn is_on_this_host(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver also reads environment variables; `tests/it/endpoints.rs` sets them for a
    /// separate process.
    #[test]
    fn a_database_url_is_judged_as_the_driver_reads_it() {
        const PROVEN: Result<(), DatabaseFault> = Ok(());
        const UNPROVEN: Result<(), DatabaseFault> = Err(DatabaseFault::Unproven);
        for (url, expected) in [
            ("postgres://u:p@db.example/t", UNPROVEN),
            ("postgres://u:p@db.example/t?sslmode=disable", UNPROVEN),
            ("postgres://u:p@db.example/t?sslmode=require", UNPROVEN),
            ("postgres://u:p@db.example/t?sslmode=verify-ca", UNPROVEN),
            ("postgres://u:p@db.example/t?sslmode=verify-full", PROVEN),
            ("postgres://u:p@db.example/t?sslmode=VERIFY-FULL", PROVEN),
            ("postgres://u:p@db.example/t?ssl-mode=verify-full", PROVEN),
            // The last value counts, under either name.
            (
                "postgres://u:p@db.example/t?sslmode=verify-full&sslmode=disable",
                UNPROVEN,
            ),
            (
                "postgres://u:p@db.example/t?sslmode=verify-full&ssl-mode=require",
                UNPROVEN,
            ),
            (
                "postgres://u:p@db.example/t?ssl-mode=disable&sslmode=verify-full",
                PROVEN,
            ),
            (
                "postgres://u:p@db.example/t?sslmode=verify-full&%73slmode=disable",
                UNPROVEN,
            ),
            // Parameters replace the URL's host.
            ("postgres://u:p@localhost/t?host=db.example", UNPROVEN),
            ("postgres://u:p@localhost/t?hostaddr=192.0.2.1", UNPROVEN),
            (
                "postgres://u:p@localhost/t?host=localhost&hostaddr=192.0.2.1",
                UNPROVEN,
            ),
            (
                "postgres://u:p@localhost/t?hostaddr=127.0.0.1&host=db.example",
                UNPROVEN,
            ),
            ("postgres://u:p@localhost/t?%68ost=db.example", UNPROVEN),
            ("postgres://u:p@db.example/t?hostaddr=127.0.0.1", PROVEN),
            ("postgres://u:p@db.example/t?host=%2Fvar%2Frun", PROVEN),
            // A socket takes precedence in any position.
            ("postgres://u:p@h/t?host=/var/run&host=db.example", PROVEN),
            ("postgres://u:p@%2Fvar%2Frun/t", PROVEN),
            // This host, and hosts that only look like it.
            ("postgres://u:p@localhost/t", PROVEN),
            ("postgres://u:p@127.0.0.1:5433/t", PROVEN),
            ("postgres://u:p@127.8.9.1/t", PROVEN),
            ("postgres://u:p@[::1]/t", PROVEN),
            ("postgres://u:p@127.0.0.1.example/t", UNPROVEN),
            ("postgres://u:p@localhost.example/t", UNPROVEN),
            ("postgres://u:p@localhost%2Eexample/t", UNPROVEN),
            ("postgres://u:p@0.0.0.0/t", UNPROVEN),
            ("postgres://u:p@[::ffff:192.0.2.1]/t", UNPROVEN),
            // URLs that the driver rejects.
            (
                "postgres://u:p@db.example/t?sslmode=verify_full",
                Err(DatabaseFault::NoUrl),
            ),
            (
                "postgres://u:p@h/t?hostaddr=db.example",
                Err(DatabaseFault::NoUrl),
            ),
            ("mysql://u:p@localhost/t", Err(DatabaseFault::NoUrl)),
            ("hunter2", Err(DatabaseFault::NoUrl)),
            // Parameters that the driver would ignore.
            (
                "postgres://u:p@db.example/t?sslmodes=verify-full",
                Err(DatabaseFault::Unknown("sslmodes".into())),
            ),
            (
                "postgres://u:p@localhost/t?channel_binding=require",
                Err(DatabaseFault::Unknown("channel_binding".into())),
            ),
            (
                "postgres://u:p@localhost/t?hunter2%20hunter2=x",
                Err(DatabaseFault::Unknown("…".into())),
            ),
        ] {
            assert_eq!(check(url, false), expected, "{url}");
        }
        assert_eq!(check("postgres://u:p@db.example/t", true), PROVEN);
        assert!(check("postgres://u:p@db.example/t?sslmodes=x", true).is_err());
    }
}
