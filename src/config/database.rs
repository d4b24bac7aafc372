//! The database's URL, read as the driver reads it.
//!
//! The driver fills in from its own variables (`PGHOST`, `PGHOSTADDR`, `PGSSLMODE` …) where the URL
//! says nothing, takes the last of a parameter that stands twice, and prefers a socket to a host. So
//! its own options are judged, not the URL's text.

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

/// What is wrong with a database's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DatabaseFault {
    /// It is no URL of PostgreSQL, or the driver does not take it.
    NoUrl,
    /// The driver does not know a parameter of this name.
    Unknown(String),
    /// The database is on another host and need not prove itself.
    Unproven,
}

/// Whether the driver would connect only to a database on this host, or to one that proves with a
/// certificate that it is the one named. `trusted`: whether nobody can interfere on the way.
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

    /// The driver also reads variables of this process; `tests/it/endpoints.rs` sets them for one of
    /// its own.
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
            // The last one counts, under either name.
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
            // Parameters replace the host of the URL.
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
            // A socket is preferred wherever it stands.
            ("postgres://u:p@h/t?host=/var/run&host=db.example", PROVEN),
            ("postgres://u:p@%2Fvar%2Frun/t", PROVEN),
            // This host, and what only looks like it.
            ("postgres://u:p@localhost/t", PROVEN),
            ("postgres://u:p@127.0.0.1:5433/t", PROVEN),
            ("postgres://u:p@127.8.9.1/t", PROVEN),
            ("postgres://u:p@[::1]/t", PROVEN),
            ("postgres://u:p@127.0.0.1.example/t", UNPROVEN),
            ("postgres://u:p@localhost.example/t", UNPROVEN),
            ("postgres://u:p@localhost%2Eexample/t", UNPROVEN),
            ("postgres://u:p@0.0.0.0/t", UNPROVEN),
            ("postgres://u:p@[::ffff:192.0.2.1]/t", UNPROVEN),
            // What the driver does not take.
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
            // What it would ignore.
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
