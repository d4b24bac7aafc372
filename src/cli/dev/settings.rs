//! The samples, as a configuration and its policies. They also serve as documentation and in tests.
//!
//! Samples that do not load are [`CliError::Usage`]. `super` starts the broker with them, and
//! `cli::policy` reads them with `--dev`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::CliError;
use crate::config::{Config, DATABASE_URL_VARIABLE, DEV_ORIGIN_HOST, Mode};
use crate::domain::generation::PolicyFile;

/// The values that differ between starts.
pub(super) struct Settings<'a> {
    pub(super) listen: SocketAddr,
    /// The URL of the development issuer.
    pub(super) issuer: &'a str,
    /// The directory of the store and of its files.
    pub(super) data_dir: &'a Path,
    /// A PostgreSQL database to use instead of SQLite.
    pub(super) database_url: Option<&'a str>,
}

/// The sample policies that are part of the binary.
pub(super) fn policies() -> Vec<PolicyFile> {
    let file = |name: &str, text: &str| PolicyFile {
        name: name.into(),
        text: text.into(),
    };
    vec![
        file("admin.cedar", include_str!("../../../policies/admin.cedar")),
        file(
            "orders.cedar",
            include_str!("../../../policies/orders.cedar"),
        ),
    ]
}

/// The configuration that `taskpass policy … --dev` reads.
pub(crate) fn sample_configuration() -> String {
    Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
        issuer: "http://127.0.0.1:7071/dev",
        data_dir: Path::new(".taskpass"),
        database_url: None,
    }
    .text()
}

impl Settings<'_> {
    /// Parses and checks the configuration.
    pub(super) fn config(&self) -> Result<Config, CliError> {
        let mut environment = BTreeMap::new();
        if let Some(url) = self.database_url {
            environment.insert(DATABASE_URL_VARIABLE.to_owned(), url.to_owned());
        }
        let path = Path::new("development-settings.toml");
        Config::parse(path, &self.text(), &environment, Mode::Dev)
            .map_err(|errors| CliError::Usage(errors.to_string()))
    }

    fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let url = format!("http://{}", self.listen);
        let data_dir = self.data_dir.to_string_lossy();
        let store = if self.database_url.is_some() {
            "kind = \"postgres\"".to_owned()
        } else {
            format!(
                "kind = \"sqlite\"\n[store.sqlite]\ndata_dir = {}",
                quoted(&data_dir)
            )
        };
        let checkpoint = self.data_dir.join("checkpoint");
        format!(
            r#"
[server]
issuer = "{url}"
listen = "{listen}"
drain_seconds = 0

[store]
{store}

[ledger]
origin = "{DEV_ORIGIN_HOST}/log"
checkpoint_file = {checkpoint}

[policy]
directory = "policies"

[log]
format = "text"
level = "warn"

[endpoints.dev-issuer]
url = "{issuer}"
use = ["discovery"]

[[attestors]]
kind = "oidc"
name = "dev"
issuer = "{issuer}"
discovery = "dev-issuer"
audience = "{url}"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"

[attestors.claims]
sub = {{ type = "string", immutable = true }}

[[resources]]
name = "orders-api"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
actions = ["orders:read", "orders:write"]
locations = ["https://orders.example/v1"]
verifiers = ["dev:service%3Aorders"]
verification = "introspection"

[[task_types]]
name = "nightly-report"
max_deadline_seconds = 3600
resources = ["orders-api"]

[[task_types]]
name = "fix-order"
max_deadline_seconds = 600
resources = ["orders-api"]
"#,
            listen = self.listen,
            issuer = self.issuer,
            checkpoint = quoted(&checkpoint.to_string_lossy()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_load_on_both_stores() {
        for database_url in [None, Some("postgres://u:p@127.0.0.1/d")] {
            let settings = Settings {
                listen: "[::1]:7070".parse().unwrap(),
                issuer: "http://[::1]:7071/dev",
                data_dir: Path::new("a \"quoted\" directory"),
                database_url,
            };
            let config = settings.config().unwrap();
            assert_eq!(config.ledger.origin, "dev.taskpass.local/log");
            crate::app::check(&config, Some(policies()), None).unwrap();
        }
    }
}
