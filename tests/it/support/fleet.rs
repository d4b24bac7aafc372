//! Replicas of the real binary in production mode on one PostgreSQL. Each is behind a proxy of its
//! own, with which a test can lose, hold or cut the traffic to the database.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::tls::Version;
use serde_json::{Value, json};
use taskpass::app;
use taskpass::config::{Config, Mode};
use taskpass::domain::generation::PolicyFile;

use super::http::{Answer, Client};
use super::issuer::{AUDIENCE, Issuer};
use super::postgres::{TestDatabase, fresh_database, serving};
use super::process::{Launch, Process};
use super::proxy::Proxy;
use super::rig::{Kind, POLICIES};
use super::tls::Identity;
use super::{SOON, free_address, hex, random_bytes, random_hex};

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
    server: &'static str,
    /// Additional settings of `[store.sqlite]`.
    sqlite: &'static str,
    /// Whether the replicas listen on all addresses.
    on_all: bool,
    /// Additional tables of attestors.
    attestors: String,
    /// Tables of sinks, which may refer to the file `sink.secret`.
    exports: String,
    /// Additional tables of the configuration.
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
    /// One replica on SQLite, which activates its own files.
    pub fn embedded() -> (Self, Replica) {
        let fleet = Self::new(None);
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same with rate limits: requests a second and burst of an identity, then of an address.
    pub fn embedded_with_limits(limits: [u32; 4]) -> (Self, Replica) {
        Self::embedded_limited("", limits)
    }

    /// The same with additional settings of `[server]`.
    pub fn embedded_limited(server: &'static str, limits: [u32; 4]) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.server = server;
        fleet.limits = limits;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// One replica on SQLite with additional settings of `[server]`.
    pub fn embedded_with(server: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.server = server;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same with additional settings of `[store.sqlite]`.
    pub fn embedded_on(sqlite: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.sqlite = sqlite;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same, listening on all addresses of this machine; the tests connect on loopback.
    pub fn listening_on_all(server: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.server = server;
        fleet.on_all = true;
        let replica = fleet.replica();
        (fleet, replica)
    }

    fn new(database: Option<TestDatabase>) -> Self {
        let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random_bytes(32));
        Self {
            issuer: Issuer::start(),
            database,
            admin: format!("tpa_{}", random_hex(16)),
            sealing_key: format!("tpk1_{key}"),
            policies: format!("{POLICIES}{BOOTSTRAP_POLICY}"),
            server: "",
            sqlite: "",
            on_all: false,
            attestors: String::new(),
            exports: String::new(),
            tables: String::new(),
            environment: Vec::new(),
            proxied: true,
            found_by_issuer: false,
            tls: None,
            secret_files: false,
            limits: [100_000; 4],
        }
    }

    /// For benchmarks: without a proxy, and with a policy for each of so many agents, named
    /// `agent:0` and so on.
    pub async fn for_load(agents: usize, kind: Kind) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        fleet.proxied = false;
        // Remove the other policies: those that use roles would cost every request a query.
        BOOTSTRAP_POLICY.clone_into(&mut fleet.policies);
        for n in 0..agents {
            let who = format!("principal == Workload::dev::\"dev:agent%3A{n}\"");
            let policies = format!(
                "@id(\"open-{n}\") @description(\"opens\") permit ({who}, \
                 action == Action::\"openTask\", resource == TaskType::\"job\");\n\
                 @id(\"read-{n}\") @description(\"reads\") @max_ttl(\"600\") permit ({who}, \
                 action == Action::\"orders:read\", resource == Api::\"orders-api\");\n"
            );
            fleet.policies.push_str(&policies);
        }
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
    }

    /// The replicas' database; panics on SQLite.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().unwrap()
    }

    /// A replica on a new database, without an active generation.
    pub fn before_activation() -> (Self, Replica) {
        let fleet = Self::new(Some(fresh_database()));
        let replica = fleet.launch();
        (fleet, replica)
    }

    /// A fleet on a new database, with a first replica and an active generation.
    pub async fn start() -> (Self, Replica) {
        Self::start_with("").await
    }

    /// The same with additional settings of `[server]`.
    pub async fn start_with(server: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(Some(fresh_database()));
        fleet.server = server;
        let replica = fleet.launch();
        fleet.activate(&replica).await;
        (fleet, replica)
    }

    /// The same on this database, with additional tables of the configuration.
    pub async fn start_on(database: TestDatabase, tables: &str) -> (Self, Replica) {
        let mut fleet = Self::new(Some(database));
        tables.clone_into(&mut fleet.tables);
        let replica = fleet.launch();
        fleet.activate(&replica).await;
        (fleet, replica)
    }

    /// Starts so many replicas at the same time on a new database, and waits until they are ready.
    pub async fn start_together(count: usize, tables: &str) -> (Self, Vec<Replica>) {
        let mut fleet = Self::new(Some(fresh_database()));
        tables.clone_into(&mut fleet.tables);
        let mut replicas: Vec<Replica> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| fleet.launch())).collect();
            let started = starting.into_iter().map(|one| one.join().unwrap());
            started.collect()
        });
        fleet.activate(&replicas[0]).await;
        for replica in &mut replicas {
            replica.process.wait_ready(replica.address);
        }
        (fleet, replicas)
    }

    /// One replica on this kind of store.
    pub async fn on(kind: Kind) -> (Self, Replica) {
        match kind {
            Kind::Sqlite => Self::embedded(),
            Kind::Postgres => Self::start().await,
        }
    }

    /// One replica on this kind of store with additional attestors and policies.
    pub async fn with_attestors(
        kind: Kind,
        attestors: impl Fn(&Issuer) -> String,
        policies: &str,
    ) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        fleet.attestors = attestors(&fleet.issuer);
        fleet.policies.push_str(policies);
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
    }

    /// The same with additional tables of the configuration and environment variables, without
    /// additional attestors.
    pub async fn in_environment(
        kind: Kind,
        environment: Vec<(&'static str, String)>,
        tables: &str,
        policies: &str,
    ) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        fleet.environment = environment;
        tables.clone_into(&mut fleet.tables);
        fleet.policies.push_str(policies);
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
    }

    /// One replica on this kind of store that exports to sinks; webhooks are signed with
    /// [`SINK_SECRET`].
    pub async fn exporting(kind: Kind, exports: &str) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        exports.clone_into(&mut fleet.exports);
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
    }

    /// The same with its secrets in files, and with additional policies.
    pub async fn with_secret_files(kind: Kind, exports: &str, policies: &str) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        exports.clone_into(&mut fleet.exports);
        fleet.policies.push_str(policies);
        fleet.secret_files = true;
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
    }

    /// The configuration of a replica on SQLite.
    pub fn embedded_config() -> String {
        Self::exporting_config("")
    }

    /// Adds these tables to the configuration of replicas that start from now on.
    pub fn add_to_configuration(&mut self, tables: &str) {
        self.attestors.push_str(tables);
    }

    /// The configuration of a replica on SQLite that exports to sinks.
    pub fn exporting_config(exports: &str) -> String {
        let mut fleet = Self::new(None);
        exports.clone_into(&mut fleet.exports);
        fleet.config(free_address())
    }

    /// A replica on SQLite whose issuer is its own address, for clients that find a server's
    /// endpoints through its issuer.
    pub fn found_by_issuer(
        attestors: impl Fn(&Issuer) -> String,
        policies: &str,
    ) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.found_by_issuer = true;
        fleet.attestors = attestors(&fleet.issuer);
        fleet.policies.push_str(policies);
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// A replica that serves TLS, with additional settings of `[server.tls]`; `authority` is the
    /// content of the file `authority.pem`.
    pub async fn over_tls(
        settings: &str,
        authority: Option<String>,
        attestors: impl Fn(&Issuer) -> String,
        policies: &str,
    ) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.found_by_issuer = true;
        fleet.attestors = attestors(&fleet.issuer);
        fleet.policies.push_str(policies);
        fleet.tls = Some(Tls {
            server: Identity::server(),
            settings: settings.to_owned(),
            authority,
        });
        let replica = fleet.launch();
        super::until("the replica is ready", SOON, async || {
            let answer = replica.client.try_get("/readyz").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        (fleet, replica)
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

    fn launch(&self) -> Replica {
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
        if !self.exports.is_empty() {
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
        let text = format!(
            r#"
[server]
issuer = "{scheme}://{own}"
listen = "{listen}"
drain_seconds = 0
{server}
{tls}
{store}
[ledger]
origin = "broker.test/log"
checkpoint_file = "checkpoint"
[admin]
bootstrap_token_sha256 = "{bootstrap}"
[policy]
directory = "policies"
[limits]
identity_requests_per_second = {}
identity_burst = {}
address_requests_per_second = {}
address_burst = {}
[[attestors]]
kind = "oidc"
name = "dev"
issuer = "{issuer}"
audience = "{AUDIENCE}"
algorithms = ["ES256", "RS256"]
single_tenant = true
identity = "{{sub}}"
instance = "{{run}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
run = {{ type = "string", immutable = true, hidden = true }}
{attestors}
[[resources]]
name = "orders-api"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
actions = ["orders:read", "orders:write"]
locations = ["https://orders.example/v1"]
verification = "introspection"
[[task_types]]
name = "job"
max_deadline_seconds = 3600
resources = ["orders-api"]
max_open_per_workload = 100000
{exports}
{tables}
"#,
            self.limits[0],
            self.limits[1],
            self.limits[2],
            self.limits[3],
            listen = if self.on_all {
                SocketAddr::from(([0, 0, 0, 0], address.port()))
            } else {
                address
            },
            scheme = if self.tls.is_some() { "https" } else { "http" },
            tls = self.tls.as_ref().map(Tls::section).unwrap_or_default(),
            own = if self.found_by_issuer {
                address.to_string()
            } else {
                "127.0.0.1:7070".to_owned()
            },
            store = match &self.database {
                Some(_) => "[store]\nkind = \"postgres\"".to_owned(),
                None => format!(
                    "[store]\nkind = \"sqlite\"\n[store.sqlite]\ndata_dir = \"data\"\n{}",
                    self.sqlite
                ),
            },
            bootstrap = hex(digest.as_ref()),
            server = self.server,
            attestors = self.attestors,
            exports = self.exports,
            tables = self.tables,
            issuer = self.issuer.url(),
        );
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

    /// Numbers of sessions without a permit and of permits without a session. A crash must not
    /// leave either.
    pub fn orphans(&self) -> (i64, i64) {
        super::block_on(async || {
            let pool = self.database().pool().await;
            let sessions: (i64,) = sqlx::query_as(
                "SELECT count(*) FROM session s WHERE NOT EXISTS (SELECT 1 FROM leaf l \
                 JOIN leaf_body b ON b.idx = l.idx WHERE l.idx = s.leaf_idx \
                 AND l.decision_id = s.decision_id \
                 AND convert_from(b.body, 'UTF8')::json ->> 'session' = s.id::text)",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            let permits: (i64,) = sqlx::query_as(
                "SELECT count(*) FROM leaf_body WHERE convert_from(body, 'UTF8')::json ->> 'outcome' = 'permit' \
                 AND NOT EXISTS (SELECT 1 FROM session s WHERE s.leaf_idx = leaf_body.idx)",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            (sessions.0, permits.0)
        })
    }

    /// The state, end reason and task of each session after the first `seen`, in the order of their
    /// leaves.
    pub async fn sessions_after(&self, seen: i64) -> Vec<(String, Option<String>, uuid::Uuid)> {
        let pool = self.database().pool().await;
        sqlx::query_as("SELECT state, end_reason, task_id FROM session ORDER BY leaf_idx OFFSET $1")
            .bind(seen)
            .fetch_all(&pool)
            .await
            .unwrap()
    }

    /// Number of sessions that have not ended.
    pub async fn alive(&self) -> usize {
        let sessions = self.sessions_after(0).await;
        let alive = sessions.iter().filter(|(state, ..)| state != "ended");
        alive.count()
    }

    /// Number of sessions.
    pub fn sessions(&self) -> i64 {
        super::block_on(async || {
            let pool = self.database().pool().await;
            let count: (i64,) = sqlx::query_as("SELECT count(*) FROM session")
                .fetch_one(&pool)
                .await
                .unwrap();
            count.0
        })
    }
}

impl Tls {
    /// A client of the replica at this address, with or without a certificate.
    pub fn client(&self, address: SocketAddr, own: Option<&Identity>, version: Version) -> Client {
        let own = own.map(Identity::both_pem);
        let base = format!("https://{address}");
        Client::over_tls(&base, &self.server.pem, own.as_deref(), version)
    }

    fn section(&self) -> String {
        format!(
            "[server.tls]\ncertificate = \"certificate.pem\"\nprivate_key = \"private-key.pem\"\n{}",
            self.settings
        )
    }
}

impl Replica {
    /// The current nonce for DPoP proofs.
    pub async fn nonce(&self) -> String {
        let request = self.client.request(reqwest::Method::GET, "/livez");
        let answer = super::http::send(request.header("dpop", "x")).await;
        answer.header("dpop-nonce").unwrap().to_owned()
    }

    /// `taskpass exec`, which runs `command` with a token for reading orders.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Launch {
        let url = format!("http://{}", self.address);
        let parts = [
            &["exec", "--url", &url][..],
            &ORDERS_ARGUMENTS,
            options,
            &["--"],
            command,
        ];
        Launch::taskpass(parts.concat())
    }

    /// Requests a credential.
    pub async fn ask(&self, token: &str) -> Answer {
        self.client
            .post_json(token, "/v1/credentials", &body())
            .await
    }

    /// A raw connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// The bytes of the request that [`Self::ask`] sends, with an `Idempotency-Key`, so that a test
    /// can send them in parts. `headers` are additional header lines, each with its line end.
    pub fn raw_request(&self, token: &str, key: &str, headers: &str) -> Vec<u8> {
        let body = body().to_string();
        format!(
            "POST /v1/credentials HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
             Idempotency-Key: \"{key}\"\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        )
        .into_bytes()
    }

    /// A connection on which the server has read a request's head, and half of the body was sent.
    pub fn half_a_request(&self, token: &str, key: &str) -> TcpStream {
        const CONTINUE: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let request = self.raw_request(token, key, "Expect: 100-continue\r\n");
        let half = request.len() - body().to_string().len() / 2;
        let mut stream = self.connect();
        stream.write_all(&request[..half]).unwrap();
        // The server answers `100 Continue` when it has read the head and wants the body.
        let mut go_on = [0; CONTINUE.len()];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, CONTINUE);
        stream
    }

    /// Requests a credential with an `Idempotency-Key`, on a new connection.
    pub async fn ask_again(&self, token: &str, key: &str) -> Answer {
        let client = Client::new(&format!("http://{}", self.address));
        let request = client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(token)
            .header("Idempotency-Key", format!("\"{key}\""))
            .json(&body());
        super::http::send(request).await
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

/// Verifies the receipt of an answer with the log's keys.
pub async fn verify(
    fleet: &Fleet,
    replica: &Replica,
    granted: &Value,
) -> taskpass::merkle::Receipt {
    let keys = vkeys(fleet, replica).await;
    let keys: Vec<taskpass::merkle::VerifierKey> =
        keys.iter().map(|key| key.parse().unwrap()).collect();
    let receipt: taskpass::merkle::Receipt =
        serde_json::from_value(granted["receipt"].clone()).unwrap();
    receipt.verify(&keys).unwrap();
    receipt
}

/// The log's keys, as a replica publishes them.
pub async fn vkeys(fleet: &Fleet, replica: &Replica) -> Vec<String> {
    let keys = replica.client.get_as(&fleet.admin, "/v1/ledger/keys").await;
    serde_json::from_value(keys.expect(200)["vkeys"].clone()).unwrap()
}

/// Asserts that no session or permit lacks its counterpart, and that the log continues the tree of
/// an earlier grant.
pub async fn assert_sound(fleet: &Fleet, replica: &Replica, earlier: &Value) {
    assert_eq!(
        fleet.orphans(),
        (0, 0),
        "a session without its leaf, or a permit without its session"
    );
    let granted = replica.ask(&fleet.token()).await.expect(201);
    let receipt = verify(fleet, replica, &granted).await;
    let old = verify(fleet, replica, earlier).await;
    let path = format!(
        "/v1/ledger/consistency?from={}&to={}",
        old.tree_size, receipt.tree_size
    );
    let proof = replica.client.get_as(&fleet.admin, &path).await.expect(200);
    let proof: Vec<taskpass::merkle::Hash> =
        serde_json::from_value(proof["consistency_proof"].clone()).unwrap();
    let root = |checkpoint: &str| checkpoint.lines().nth(2).unwrap().parse().unwrap();
    taskpass::merkle::verify_consistency(
        old.tree_size,
        receipt.tree_size,
        &proof,
        &root(&old.checkpoint),
        &root(&receipt.checkpoint),
    )
    .unwrap();
}

/// A replica's newest checkpoint, and every leaf under it, byte for byte.
pub async fn whole_log(fleet: &Fleet, replica: &Replica) -> (String, Vec<Vec<u8>>) {
    let get = async |path: &str| replica.client.get_as(&fleet.admin, path).await;
    let checkpoint = get("/v1/ledger/checkpoint").await;
    assert_eq!(checkpoint.status, 200);
    let checkpoint = checkpoint.text();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let mut leaves = Vec::new();
    for index in 0..size {
        let entry = get(&format!("/v1/ledger/entries/{index}"))
            .await
            .expect(200);
        let leaf = entry["leaf"].as_str().unwrap();
        leaves.push(STANDARD.decode(leaf).unwrap());
    }
    (checkpoint, leaves)
}
