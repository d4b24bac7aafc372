//! Replicas of the real binary in production mode on one PostgreSQL, each behind a proxy of its
//! own where a test wants to lose, hold or cut what it says to the database.

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

/// What signs the webhooks of a fleet.
pub const SINK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What all replicas share.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
pub struct Fleet {
    pub issuer: Issuer,
    database: Option<TestDatabase>,
    pub admin: String,
    /// What seals its keys.
    pub sealing_key: String,
    policies: String,
    /// More settings of `[server]`.
    server: &'static str,
    /// More settings of `[store.sqlite]`.
    sqlite: &'static str,
    /// Whether it listens on every address.
    on_all: bool,
    /// More tables of attestors.
    attestors: String,
    /// Tables of sinks, which may name the file `sink.secret`.
    exports: String,
    /// More tables of the configuration.
    tables: String,
    /// More variables of the environment.
    environment: Vec<(&'static str, String)>,
    /// What a caller may do: identities and addresses, a second and at once.
    limits: [u32; 4],
    proxied: bool,
    /// Whether the issuer is where the replica is found, as clients expect that start there.
    found_by_issuer: bool,
    /// Where it ends TLS itself.
    tls: Option<Tls>,
    /// Whether its secrets are in the files [`SEALING_FILE`] and [`DATABASE_FILE`].
    secret_files: bool,
}

/// The arguments by which a client requests a token for reading orders, in a new job.
pub const ORDERS_ARGUMENTS: [&str; 6] = [
    "--resource",
    "orders-api",
    "--action",
    "orders:read",
    "--task-type",
    "job",
];

/// In a replica's directory, where its secrets are in files.
pub const SEALING_FILE: &str = "sealing-keys";
pub const DATABASE_FILE: &str = "database-url";

/// How a replica ends TLS.
pub struct Tls {
    /// Its own certificate.
    pub server: Identity,
    /// More settings of `[server.tls]`.
    settings: String,
    /// Whose clients' certificates it accepts, in the file `authority.pem`.
    authority: Option<String>,
}

/// One replica.
pub struct Replica {
    pub process: Process,
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub client: Client,
}

impl Fleet {
    /// One replica on SQLite, which decides by its own files.
    pub fn embedded() -> (Self, Replica) {
        let fleet = Self::new(None);
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same with limits: an identity's requests a second and at once, then an address's.
    pub fn embedded_with_limits(limits: [u32; 4]) -> (Self, Replica) {
        Self::embedded_limited("", limits)
    }

    /// The same with more settings of `[server]`.
    pub fn embedded_limited(server: &'static str, limits: [u32; 4]) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.server = server;
        fleet.limits = limits;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same with more settings of `[server]`.
    pub fn embedded_with(server: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.server = server;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same with more settings of `[store.sqlite]`.
    pub fn embedded_on(sqlite: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(None);
        fleet.sqlite = sqlite;
        let replica = fleet.replica();
        (fleet, replica)
    }

    /// The same on every address of this machine; the tests reach it on loopback.
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

    /// For measurements: no proxy in between, and a policy for each of so many agents, named
    /// `agent:0` and so on.
    pub async fn for_load(agents: usize, kind: Kind) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        fleet.proxied = false;
        // None of the others asks about roles at work, which would cost each request a query.
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

    /// The database that they share.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().unwrap()
    }

    /// A replica on a new database, which nobody has told what decides.
    pub fn before_activation() -> (Self, Replica) {
        let fleet = Self::new(Some(fresh_database()));
        let replica = fleet.launch();
        (fleet, replica)
    }

    /// A database, an issuer, and a first replica that was told what decides.
    pub async fn start() -> (Self, Replica) {
        Self::start_with("").await
    }

    /// The same with more settings of `[server]`.
    pub async fn start_with(server: &'static str) -> (Self, Replica) {
        let mut fleet = Self::new(Some(fresh_database()));
        fleet.server = server;
        let replica = fleet.launch();
        fleet.activate(&replica).await;
        (fleet, replica)
    }

    /// The same on this database, with more tables of the configuration.
    pub async fn start_on(database: TestDatabase, tables: &str) -> (Self, Replica) {
        let mut fleet = Self::new(Some(database));
        tables.clone_into(&mut fleet.tables);
        let replica = fleet.launch();
        fleet.activate(&replica).await;
        (fleet, replica)
    }

    /// So many replicas that start at the same time on a database which none has used before, ready.
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

    /// One replica on this kind of store that believes more attestors and has more policies.
    pub async fn believing(
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

    /// The same with more tables of the configuration and variables of the environment in place of
    /// more attestors.
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

    /// One replica on this kind of store that tells sinks what it records; webhooks are signed
    /// with [`SINK_SECRET`].
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

    /// The same with its secrets in files, and with more policies.
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

    /// The configuration of an embedded one.
    pub fn embedded_config() -> String {
        Self::exporting_config("")
    }

    /// Replicas that are started from now on have these tables in their configuration too.
    pub fn add_to_configuration(&mut self, tables: &str) {
        self.attestors.push_str(tables);
    }

    /// The configuration of an embedded one that tells sinks what it records.
    pub fn exporting_config(exports: &str) -> String {
        let mut fleet = Self::new(None);
        exports.clone_into(&mut fleet.exports);
        fleet.config(free_address())
    }

    /// The same embedded, with its own address as its issuer: for others' clients, which find a
    /// server's endpoints through its issuer.
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

    /// The same over TLS, with more settings of `[server.tls]`; `authority` is the content of the
    /// file `authority.pem`.
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
        super::until("it is ready", SOON, async || {
            let answer = replica.client.try_get("/readyz").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        (fleet, replica)
    }

    /// What decides, as text.
    pub fn policies_text(&self) -> &str {
        &self.policies
    }

    /// How the replicas end TLS.
    pub fn tls(&self) -> &Tls {
        self.tls.as_ref().unwrap()
    }

    /// The database, where there is one.
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

    /// One more replica, ready.
    pub fn replica(&self) -> Replica {
        Self::ready(self.launch())
    }

    /// One more, which finds in the database what is first in this search path.
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
        // On SQLite there is nothing to be cut off from; the proxy then leads nowhere.
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
                    // All that anybody says, to look for what nobody may.
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

    /// The configuration of a replica there.
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

    /// A fresh attestation.
    pub fn token(&self) -> String {
        let claims = json!({"sub": "agent:reports", "run": "run-1"});
        self.issuer.token(claims)
    }

    /// Whether `replica` says that a granted credential is good.
    pub async fn is_good(&self, replica: &Replica, granted: &Value) -> bool {
        let token = granted["credential"]["access_token"].as_str().unwrap();
        // A broker that is closed for a moment, as under load, has not said: it is asked again.
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

    /// Sessions and permits, each without its counterpart: what no crash may leave.
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

    /// The sessions on record after the first `seen`, in the order of their leaves: state, reason of
    /// the end, task.
    pub async fn sessions_after(&self, seen: i64) -> Vec<(String, Option<String>, uuid::Uuid)> {
        let pool = self.database().pool().await;
        sqlx::query_as("SELECT state, end_reason, task_id FROM session ORDER BY leaf_idx OFFSET $1")
            .bind(seen)
            .fetch_all(&pool)
            .await
            .unwrap()
    }

    /// How many sessions are alive.
    pub async fn alive(&self) -> usize {
        let sessions = self.sessions_after(0).await;
        let alive = sessions.iter().filter(|(state, ..)| state != "ended");
        alive.count()
    }

    /// How many sessions there are.
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
    /// A client of the replica there, with a certificate or without.
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
    /// The nonce that a DPoP proof has to contain now.
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

    /// Asks for a credential.
    pub async fn ask(&self, token: &str) -> Answer {
        self.client
            .post_json(token, "/v1/credentials", &body())
            .await
    }

    /// A connection of nobody's.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// What [`Self::ask`] sends, with an `Idempotency-Key`, as bytes: so that they can be sent in
    /// parts, and the answer be read in parts. `headers` are more of them, each with its line's end.
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

    /// A connection on which the head of a request was read, and half of its body is sent.
    pub fn half_a_request(&self, token: &str, key: &str) -> TcpStream {
        const CONTINUE: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let request = self.raw_request(token, key, "Expect: 100-continue\r\n");
        let half = request.len() - body().to_string().len() / 2;
        let mut stream = self.connect();
        stream.write_all(&request[..half]).unwrap();
        // The server says so when it has read the head and wants the body.
        let mut go_on = [0; CONTINUE.len()];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, CONTINUE);
        stream
    }

    /// Asks again with an `Idempotency-Key`, on a new connection.
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

/// What is asked for by who asks for nothing special.
pub fn body() -> Value {
    json!({
        "task": {"type": "job"},
        "resource": "orders-api",
        "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
    })
}

/// The verified receipt of an answer, under the log's keys.
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

/// The log's keys, as a replica tells them.
pub async fn vkeys(fleet: &Fleet, replica: &Replica) -> Vec<String> {
    let keys = replica.client.get_as(&fleet.admin, "/v1/ledger/keys").await;
    serde_json::from_value(keys.expect(200)["vkeys"].clone()).unwrap()
}

/// Nothing is without its counterpart, and the log goes on from where an earlier grant saw it.
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
