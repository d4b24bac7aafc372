//! Assembles a rig's broker from the files in its directory.

use taskpass::app::Options;
use taskpass::config::Mode;

use super::*;
use crate::support::configuration::{Configuration, ORDERS_API, dev_attestor, sqlite_in};

pub(super) async fn assemble(
    directory: &Path,
    database: Option<String>,
    issuer: &Issuer,
    clock: SharedClock,
    policies: &str,
    minters: Vec<Arc<dyn Minter>>,
    resources: Vec<Value>,
) -> Result<(Assembled, Config), app::StartError> {
    let (store, environment) = store_section(directory, database);
    let shared = std::fs::read_to_string(directory.join(SHARED))
        .map(|lines| format!("[ledger.shared_checkpoint]\n{lines}"))
        .unwrap_or_default();
    let witnesses = std::fs::read_to_string(directory.join(WITNESSES)).unwrap_or_default();
    let bootstrap = std::fs::read_to_string(directory.join(BOOTSTRAP_FILE));
    let bootstrap = bootstrap.unwrap_or_else(|_| BOOTSTRAP.to_owned());
    let endpoints = std::fs::read_to_string(directory.join(ENDPOINTS)).unwrap_or_default();
    // Every resource needs a way of introspection: a policy, or verifiers.
    let verifiers = if policies.contains("\"introspect\"") {
        ""
    } else {
        "verifiers = [\"dev:service%3Aorders\"]"
    };
    let tables = format!(
        r#"
{shared}
{witnesses}
[aws.own_credentials]
region = "eu-central-1"
role_arns = ["arn:aws:iam::123456789012:role/reports"]
[admin]
bootstrap_token_sha256 = "{bootstrap}"
[policy]
directory = "policies"
[limits]
denials_per_identity = 1000
identity_requests_per_second = 100000
identity_burst = 100000
{attestor}
{ORDERS_API}
actions = ["orders:read", "orders:write"]
{verifiers}
verification = "introspection"
[[resources]]
name = "archive-api"
kind = "jwt"
owner = "orders"
audience = "https://archive.example"
actions = ["orders:read"]
locations = ["https://archive.example"]
verification = "offline"
[[task_types]]
name = "job"
max_deadline_seconds = 3600
resources = ["orders-api", "archive-api"]
max_sessions = 6
max_open_per_workload = 50
[[task_types]]
name = "watched"
max_deadline_seconds = 3600
max_heartbeat_seconds = 60
resources = ["orders-api"]
{endpoints}
"#,
        bootstrap = bootstrap_hash(&bootstrap),
        attestor = dev_attestor(issuer.url(), &["ES256"]),
    );
    let text = Configuration {
        server: "listen = \"127.0.0.1:7070\"",
        store: &store,
        origin: "dev.taskpass.local/rig",
        checkpoint_file: directory.join("checkpoint").to_str().unwrap(),
        tables: &tables,
        ..Configuration::default()
    }
    .text();
    let mut config = Config::parse(
        &directory.join("taskpass.toml"),
        &issuer.served(&text),
        &environment,
        Mode::Dev,
    )
    .unwrap();
    for resource in resources {
        let name = resource["name"].as_str().unwrap().to_owned();
        config
            .resources
            .push(serde_json::from_value(resource).unwrap());
        config.task_types[0].resources.insert(name);
    }
    let options = Options {
        clock,
        dev_admin_token: Some(SecretString::from(ADMIN)),
        policies: Some(vec![PolicyFile {
            name: "rig.cedar".into(),
            text: policies.to_owned(),
        }]),
        minters,
    };
    let assembled = app::assemble(&config, options).await?;
    Ok((assembled, config))
}

/// The lines of `[store]`, and the environment for loading the configuration.
fn store_section(directory: &Path, database: Option<String>) -> (String, BTreeMap<String, String>) {
    let mut environment = BTreeMap::new();
    if let Ok(keys) = std::fs::read_to_string(directory.join(SEALING)) {
        environment.insert("TASKPASS_SEALING_KEYS".to_owned(), keys);
    }
    let Some(url) = database else {
        return (sqlite_in(directory.join("data")), environment);
    };
    environment.insert("TASKPASS_DATABASE_URL".to_owned(), url);
    // Wait longer for connections, so that tests with many requests do not fail on a busy machine.
    let section = "kind = \"postgres\"\n[store.postgres]\nacquire_timeout_seconds = 20";
    (section.to_owned(), environment)
}

fn bootstrap_hash(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    crate::support::hex(digest.as_ref())
}
