//! Replicas of the real binary in production mode on one PostgreSQL. Each is behind a proxy of its
//! own, with which a test can lose, hold or cut the traffic to the database.

mod log;
mod records;
mod replica;
mod starts;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use reqwest::tls::Version;
use serde_json::{Value, json};
use taskpass::app;
use taskpass::config::{Config, Mode};
use taskpass::domain::generation::PolicyFile;

use super::configuration::{Configuration, JOB, ORDERS_API, SQLITE, dev_attestor};
use super::http::Client;
use super::issuer::Issuer;
use super::postgres::{TestDatabase, serving};
use super::process::{Launch, Process};
use super::proxy::Proxy;
use super::rig::{Kind, POLICIES};
use super::tls::Identity;
use super::{SOON, free_address, hex, random_bytes, random_hex};

pub use log::{assert_sound, verify, vkeys, whole_log};

const BOOTSTRAP_POLICY: &str = r#"
@id("bootstrap") @description("what the tests do as the operator")
permit (principal == Bootstrap::"token", action in [Action::"listTasks", Action::"listSessions",
  Action::"revokeSession", Action::"revokeMany", Action::"liftCutoff", Action::"introspect",
  Action::"readLedger", Action::"readGeneration", Action::"activateGeneration",
  Action::"readMetrics"], resource == Broker::"taskpass");
"#;

/// The secret that signs a fleet's webhooks.
pub const SINK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The settings that all replicas share.
#[must_use]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
pub struct Fleet {
    pub issuer: Issuer,
    database: Option<TestDatabase>,
    pub admin: String,
    pub sealing_key: String,
    policies: String,
    /// Additional settings of `[server]`.
    server: String,
    /// Additional settings of `[store.sqlite]`.
    sqlite: &'static str,
    /// Whether the replicas listen on all addresses.
    on_all: bool,
    /// Additional tables of the configuration, which may refer to the file `sink.secret`.
    tables: String,
    environment: Vec<(&'static str, String)>,
    /// Rate limits: requests a second and burst of an identity, then of an address.
    limits: [u32; 4],
    proxied: bool,
    /// Whether the issuer URL is the replica's own address, as clients expect that start from it.
    found_by_issuer: bool,
    /// `None` if the replicas do not serve TLS themselves.
    tls: Option<Tls>,
    /// Whether the secrets are in the files [`SEALING_FILE`] and [`DATABASE_FILE`].
    secret_files: bool,
}

/// The arguments with which a client requests a token for reading orders, in a new job.
pub const ORDERS_ARGUMENTS: [&str; 6] = [
    "--resource",
    "orders-api",
    "--action",
    "orders:read",
    "--task-type",
    "job",
];

/// Names of secret files in a replica's directory.
pub const SEALING_FILE: &str = "sealing-keys";
pub const DATABASE_FILE: &str = "database-url";

/// TLS settings of the replicas.
pub struct Tls {
    pub server: Identity,
    /// Additional settings of `[server.tls]`.
    settings: String,
    /// Content of the file `authority.pem`, which `client_ca` may name.
    authority: Option<String>,
}

pub struct Replica {
    pub process: Process,
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub client: Client,
}

impl Fleet {
    fn new(database: Option<TestDatabase>) -> Self {
        let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random_bytes(32));
        Self {
            issuer: Issuer::start(),
            database,
            admin: format!("tpa_{}", random_hex(16)),
            sealing_key: format!("tpk1_{key}"),
            policies: format!("{POLICIES}{BOOTSTRAP_POLICY}"),
            server: String::new(),
            sqlite: "",
            on_all: false,
            tables: String::new(),
            environment: Vec::new(),
            proxied: true,
            found_by_issuer: false,
            tls: None,
            secret_files: false,
            limits: [100_000; 4],
        }
    }

    /// The replicas' database; panics on SQLite.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().unwrap()
    }

    /// Adds these tables to the configuration of replicas that start from now on.
    pub fn add_to_configuration(&mut self, tables: &str) {
        self.tables.push_str(tables);
        self.tables.push('\n');
    }

    /// The text of the policies.
    pub fn policies_text(&self) -> &str {
        &self.policies
    }

    /// The TLS settings; panics without them.
    pub fn tls(&self) -> &Tls {
        self.tls.as_ref().unwrap()
    }

    /// The database; `None` on SQLite.
    pub fn maybe_database(&self) -> Option<&TestDatabase> {
        self.database.as_ref()
    }

    async fn activate(&self, replica: &Replica) {
        let generation = self.generation(replica);
        let activated = replica
            .client
            .post_json(&self.admin, "/v1/generations", &generation)
            .await;
        activated.expect(201);
    }

    /// Starts another replica and waits until it is ready.
    pub fn replica(&self) -> Replica {
        Self::ready(self.launch())
    }

    /// The same with this search path in the database.
    pub fn replica_in(&self, search_path: &str) -> Replica {
        Self::ready(self.launch_in(Some(search_path)))
    }

    fn ready(mut replica: Replica) -> Replica {
        replica.process.wait_ready(replica.address);
        replica
    }

    /// Starts a replica and waits until it answers; with TLS, does not wait.
    pub fn launch(&self) -> Replica {
        self.launch_in(None)
    }

    fn launch_in(&self, search_path: Option<&str>) -> Replica {
        let address = free_address();
        let database = self.database.as_ref();
        // On SQLite there is no connection to cut, so the proxy leads nowhere.
        let proxy = database.map_or_else(|| Proxy::start(address), Proxy::before);
        let mut launch = Launch::taskpass(["serve", "--config", "taskpass.toml"])
            .config(self.config(address))
            .file("policies/fleet.cedar", self.policies.clone());
        launch = if self.secret_files {
            launch
                .secret_file(SEALING_FILE, self.sealing_key.clone())
                .env("TASKPASS_SEALING_KEYS_FILE", SEALING_FILE)
        } else {
            launch.env("TASKPASS_SEALING_KEYS", &self.sealing_key)
        };
        for (name, value) in &self.environment {
            launch = launch.env(name, value);
        }
        if self.tables.contains("sink.secret") {
            launch = launch.secret_file("sink.secret", SINK_SECRET);
        }
        if let Some(database) = database {
            let mut url = if self.proxied {
                database.url_via(proxy.address())
            } else {
                database.url()
            };
            url = serving(&url).to_string();
            if let Some(search_path) = search_path {
                let mut with_options: url::Url = url.parse().unwrap();
                let options = format!("-c search_path={search_path}");
                with_options
                    .query_pairs_mut()
                    .append_pair("options", &options);
                url = with_options.into();
            }
            launch = if self.secret_files {
                launch
                    .secret_file(DATABASE_FILE, url)
                    .env("TASKPASS_DATABASE_URL_FILE", DATABASE_FILE)
            } else {
                launch.env("TASKPASS_DATABASE_URL", url)
            };
        }
        let (process, client) = match &self.tls {
            None => {
                let mut process = launch.spawn();
                process.wait_alive(address);
                (process, Client::new(&format!("http://{address}")))
            }
            Some(tls) => {
                launch = launch
                    .file("certificate.pem", tls.server.pem.clone())
                    .secret_file("private-key.pem", tls.server.key_pem.clone())
                    // Log everything, so that the tests can search for secrets.
                    .env("TASKPASS_LOG", "trace");
                if let Some(authority) = &tls.authority {
                    launch = launch.file("authority.pem", authority.clone());
                }
                (launch.spawn(), tls.client(address, None, Version::TLS_1_3))
            }
        };
        Replica {
            process,
            proxy,
            address,
            client,
        }
    }

    /// The configuration of a replica that listens at this address.
    pub fn config(&self, address: SocketAddr) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.admin.as_bytes());
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let own = if self.found_by_issuer {
            address.to_string()
        } else {
            "127.0.0.1:7070".to_owned()
        };
        let listen = if self.on_all {
            SocketAddr::from(([0, 0, 0, 0], address.port()))
        } else {
            address
        };
        let server = format!(
            "listen = \"{listen}\"\ndrain_seconds = 0\n{}\n{}",
            self.server,
            self.tls.as_ref().map(Tls::section).unwrap_or_default(),
        );
        let store = match &self.database {
            Some(_) => "kind = \"postgres\"".to_owned(),
            None => format!("{SQLITE}\n{}", self.sqlite),
        };
        let tables = format!(
            r#"
[admin]
bootstrap_token_sha256 = "{bootstrap}"
[policy]
directory = "policies"
[limits]
identity_requests_per_second = {}
identity_burst = {}
address_requests_per_second = {}
address_burst = {}
{attestor}
{tables}
{ORDERS_API}
actions = ["orders:read", "orders:write"]
verification = "introspection"
{JOB}
max_open_per_workload = 100000
"#,
            self.limits[0],
            self.limits[1],
            self.limits[2],
            self.limits[3],
            bootstrap = hex(digest.as_ref()),
            attestor = dev_attestor(self.issuer.url(), &["ES256", "RS256"]),
            tables = self.tables,
        );
        let text = Configuration {
            issuer: &format!("{scheme}://{own}"),
            server: &server,
            store: &store,
            tables: &tables,
            ..Configuration::default()
        }
        .text();
        self.issuer.served(&text)
    }

    pub fn generation(&self, replica: &Replica) -> Value {
        let mut environment = BTreeMap::new();
        if let Some(database) = &self.database {
            environment.insert("TASKPASS_DATABASE_URL".to_owned(), database.url());
        }
        environment.insert("TASKPASS_SEALING_KEYS".to_owned(), self.sealing_key.clone());
        let config = Config::parse(
            Path::new("taskpass.toml"),
            &self.config(replica.address),
            &environment,
            Mode::Production,
        );
        let policies = vec![PolicyFile {
            name: "fleet.cedar".into(),
            text: self.policies.clone(),
        }];
        let checked = app::check(&config.unwrap(), Some(policies), None).unwrap();
        serde_json::to_value(checked.generation).unwrap()
    }

    pub fn token(&self) -> String {
        let claims = json!({"sub": "agent:reports", "run": "run-1"});
        self.issuer.token(claims)
    }

    /// Whether `replica` says that a granted credential is active.
    pub async fn is_good(&self, replica: &Replica, granted: &Value) -> bool {
        let token = granted["credential"]["access_token"].as_str().unwrap();
        // Retry while the broker fails closed, as it may for a moment under load.
        let begin = std::time::Instant::now();
        loop {
            let request = replica
                .client
                .request(reqwest::Method::POST, "/oauth2/introspect")
                .bearer_auth(&self.admin)
                .form(&[("token", token)]);
            let answer = super::http::send(request).await;
            if answer.status == 503 && begin.elapsed() < SOON {
                continue;
            }
            return answer.expect(200)["active"] == true;
        }
    }
}

/// The request body of tests without special requirements.
pub fn body() -> Value {
    json!({
        "task": {"type": "job"},
        "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
    })
}
