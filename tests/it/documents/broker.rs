//! Pages whose blocks run against a broker. Each page has a broker of its own.

use super::page::Page;
use crate::support::free_address;

/// A page for a broker in development mode. Only addresses and the admin token are replaced.
pub fn development(path: &'static str) -> Page {
    Page::new(path)
        .set_up(include_str!("development.sh"))
        .replace("http://127.0.0.1:7070", "$URL")
        .replace("http://127.0.0.1:7071/dev", "$ISSUER")
        .replace("tpa_…", "$ADMIN")
}

/// A page for a broker as in production, on SQLite. Only the broker's address is replaced.
pub fn production(path: &'static str) -> Page {
    let address = free_address();
    Page::new(path)
        .env("ADDRESS", address.to_string())
        .env("URL", format!("http://{address}"))
        .env("GITHUB", "yes")
        .set_up(include_str!("production.sh"))
        .replace("--url https://broker.example", "--url $URL")
        .replace(" https://broker.example/v1/", " $URL/v1/")
}
