//! The text of a broker's configuration.

use std::path::Path;

use super::issuer::AUDIENCE;

/// The lines of `[store]` for SQLite in the directory `data`.
pub const SQLITE: &str = "kind = \"sqlite\"\n[store.sqlite]\ndata_dir = \"data\"";

/// The lines of `[store]` for SQLite in this directory.
pub fn sqlite_in(directory: impl AsRef<Path>) -> String {
    let directory = directory.as_ref().display();
    format!("kind = \"sqlite\"\n[store.sqlite]\ndata_dir = \"{directory}\"")
}

/// The resource `orders-api`. The caller appends its `actions` and its `verification`.
pub const ORDERS_API: &str = r#"
[[resources]]
name = "orders-api"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
locations = ["https://orders.example/v1"]
"#;

/// The type of task that uses `orders-api`. The caller may append further keys.
pub const JOB: &str = r#"
[[task_types]]
name = "job"
max_deadline_seconds = 3600
resources = ["orders-api"]
"#;

/// A configuration: the sections that every broker needs, and `tables`.
pub struct Configuration<'a> {
    pub issuer: &'a str,
    /// Further lines of `[server]`, and its subtables.
    pub server: &'a str,
    /// The lines of `[store]`.
    pub store: &'a str,
    pub origin: &'a str,
    pub checkpoint_file: &'a str,
    /// The tables of the other sections.
    pub tables: &'a str,
}

impl Default for Configuration<'_> {
    fn default() -> Self {
        Self {
            issuer: "http://127.0.0.1:7070",
            server: "",
            store: SQLITE,
            origin: "broker.test/log",
            checkpoint_file: "checkpoint",
            tables: "",
        }
    }
}

impl Configuration<'_> {
    pub fn text(&self) -> String {
        let Self {
            issuer,
            server,
            store,
            origin,
            checkpoint_file,
            tables,
        } = self;
        format!(
            r#"[server]
issuer = "{issuer}"
{server}
[store]
{store}
[ledger]
origin = "{origin}"
checkpoint_file = "{checkpoint_file}"
{tables}
"#
        )
    }
}

/// The attestor `dev` for the issuer at `url`, whose tokens have the claims `sub` and `run`.
pub fn dev_attestor(url: &str, algorithms: &[&str]) -> String {
    format!(
        r#"
[[attestors]]
kind = "oidc"
name = "dev"
issuer = "{url}"
audience = "{AUDIENCE}"
algorithms = {algorithms:?}
single_tenant = true
identity = "{{sub}}"
instance = "{{run}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
run = {{ type = "string", immutable = true, hidden = true }}
"#
    )
}

/// The tables of a small broker: an attestor of registered keys, a resource and a type of task.
pub fn small_tables() -> String {
    format!(
        r#"
[[attestors]]
kind = "key"
name = "workload"
{ORDERS_API}
actions = ["orders:read"]
verifiers = ["workload:orders-server"]
verification = "introspection"
{JOB}"#
    )
}
