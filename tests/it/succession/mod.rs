//! Replacing a log that cannot continue: `taskpass ledger new-origin` and `keys revoke --ledger`,
//! as programs, on stores that lost leaves.

mod accepted;
mod new_log;
mod roles;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use taskpass::app;
use taskpass::app::succession::{OldLog, begin};
use taskpass::clock::Timestamp;
use taskpass::config::{Config, Mode};
use taskpass::store::Store;
use taskpass::store::sqlite::Sqlite;
use tempfile::TempDir;

use crate::support::configuration::{Configuration, JOB, ORDERS_API, sqlite_in};
use crate::support::http::{Answer, Client, send};
use crate::support::issuer::{AUDIENCE, Issuer, unix_seconds};
use crate::support::moto::Moto;
use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::process::{Ended, Launch, Process};
use crate::support::{
    SOON, free_address, hex, make_private_directory, random_bytes, random_hex, until, wait_until,
};

const POLICIES: &str = r#"
@id("agent") @description("an agent opens tasks and reads")
permit (principal == Workload::dev::"dev:agent%3Aa", action in [Action::"openTask", Action::"orders:read"], resource);
@id("thief") @description("so does a thief")
permit (principal == Workload::dev::"dev:thief", action in [Action::"openTask", Action::"orders:read"], resource);
@id("operator-role") @description("operators look")
permit (principal in Role::"operator", action == Action::"listSessions", resource == Broker::"taskpass");
@id("operator") @description("the operator")
permit (principal == Bootstrap::"token", action, resource == Broker::"taskpass");
"#;

/// A role that the tests do not reach; they only check that it is recorded as needing a denial.
const ROLE: &str = "arn:aws:iam::123456789012:role/reports";

pub const OLD: &str = "old.test/log";
/// Maximum lead of the issuer's clock, in seconds.
const AHEAD: i64 = 3;

pub const NEW: &str = "new.test/log";

const THIRD: &str = "third.test/log";

/// A deployment that moves from one log to another.
pub struct World {
    issuer: Issuer,
    directory: TempDir,
    /// The bootstrap token of the new log.
    pub admin: String,
    /// The bootstrap token of the old log.
    old_admin: String,
    /// The bootstrap token of the third log.
    third_admin: String,
    sealing_key: String,
    /// The lines of `[ledger.shared_checkpoint]`.
    place: String,
    /// The lines of `[keys]`.
    keys: String,
    /// Whether the role [`ROLE`] is registered.
    registers_role: bool,
    /// Tables of further resources, and of endpoints.
    resources: String,
    databases: Option<(TestDatabase, TestDatabase)>,
}

pub struct Broker {
    pub process: Process,
    pub client: Client,
    /// The token of its admin.
    pub admin: String,
}

impl World {
    fn new(postgres: bool) -> Self {
        Self::on(postgres.then(|| (fresh_database(), fresh_database())))
    }

    /// On PostgreSQL with the databases of the old and the new log; `None` for SQLite.
    pub fn on(databases: Option<(TestDatabase, TestDatabase)>) -> Self {
        let key = URL_SAFE_NO_PAD.encode(random_bytes(32));
        let world = Self {
            issuer: Issuer::start(),
            directory: tempfile::tempdir().unwrap(),
            admin: format!("tpa_{}", random_hex(16)),
            old_admin: format!("tpa_{}", random_hex(16)),
            third_admin: format!("tpa_{}", random_hex(16)),
            sealing_key: format!("tpk1_{key}"),
            place: "file = \"place\"".to_owned(),
            keys: String::new(),
            registers_role: true,
            resources: String::new(),
            databases,
        };
        std::fs::create_dir(world.path("policies")).unwrap();
        std::fs::write(world.path("policies/all.cedar"), POLICIES).unwrap();
        for origin in [OLD, NEW, THIRD] {
            std::fs::write(
                world.path(file(origin)),
                world.config(origin, free_address()),
            )
            .unwrap();
        }
        world
    }

    /// The bootstrap token of a log.
    fn admin_of(&self, origin: &str) -> &str {
        match origin {
            NEW => &self.admin,
            THIRD => &self.third_admin,
            _ => &self.old_admin,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, origin: &str, address: SocketAddr) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.admin_of(origin).as_bytes());
        let store = if self.databases.is_some() {
            "kind = \"postgres\"".to_owned()
        } else {
            sqlite_in(data(origin))
        };
        let tables = format!(
            r#"
[ledger.shared_checkpoint]
{place}
[keys]
{keys}
[admin]
bootstrap_token_sha256 = "{bootstrap}"
[policy]
directory = "policies"
[[attestors]]
kind = "oidc"
name = "dev"
issuer = "{issuer}"
audience = "{AUDIENCE}"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
leeway_seconds = {AHEAD}
[attestors.claims]
sub = {{ type = "string", immutable = true }}
[[attestors]]
kind = "key"
name = "keys"
{ORDERS_API}
actions = ["orders:read"]
verification = "status_list"
{role}
{resources}
{JOB}"#,
            bootstrap = hex(digest.as_ref()),
            place = self.place,
            keys = self.keys,
            role = if self.registers_role {
                role_of("bucket", ROLE, Some(""))
            } else {
                String::new()
            },
            resources = self.resources,
            issuer = self.issuer.url(),
        );
        let text = Configuration {
            server: &format!("listen = \"{address}\"\ndrain_seconds = 0"),
            store: &store,
            origin,
            tables: &tables,
            ..Configuration::default()
        }
        .text();
        self.issuer.served(&text)
    }

    fn program<const N: usize>(&self, arguments: [&str; N]) -> Launch {
        let launch = Launch::taskpass(arguments).env("TASKPASS_SEALING_KEYS", &self.sealing_key);
        match &self.databases {
            None => launch,
            Some((old, new)) => launch
                .env("TASKPASS_DATABASE_URL", new.serving_url())
                .env("TASKPASS_OLD_DATABASE_URL", old.url()),
        }
    }

    pub fn serve(&self, origin: &str) -> Launch {
        let config = self.path(file(origin));
        let launch = self.program(["serve", "--config", config.to_str().unwrap()]);
        match &self.databases {
            Some((old, _)) if origin == OLD => {
                launch.env("TASKPASS_DATABASE_URL", old.serving_url())
            }
            _ => launch,
        }
    }

    pub fn start(&self, origin: &str) -> Broker {
        let address = free_address();
        std::fs::write(self.path(file(origin)), self.config(origin, address)).unwrap();
        let mut process = self.serve(origin).spawn();
        process.wait_alive(address);
        Broker {
            process,
            client: Client::new(&format!("http://{address}")),
            admin: self.admin_of(origin).to_owned(),
        }
    }

    /// Runs `ledger new-origin` or `keys revoke`, from the old log to the new one.
    fn move_on<const N: usize>(&self, arguments: [&str; N], more: &[&str]) -> Ended {
        self.move_between([OLD, NEW], arguments, more)
    }

    fn move_between<const N: usize>(
        &self,
        logs: [&str; 2],
        arguments: [&str; N],
        more: &[&str],
    ) -> Ended {
        let [old, new] = logs.map(|origin| self.path(file(origin)));
        let mut launch = self.program(arguments);
        for argument in [
            "--config",
            new.to_str().unwrap(),
            "--old-config",
            old.to_str().unwrap(),
        ] {
            launch = launch.arg(argument);
        }
        for argument in more {
            launch = launch.arg(*argument);
        }
        launch.run()
    }

    pub fn begin(&self, more: &[&str]) -> Value {
        let told = ["--yes", "--json"];
        let ended = self.move_on(["ledger", "new-origin"], &[&told, more].concat());
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// Evidence that is certainly newer than everything before it, from a clock that is ahead as
    /// far as permitted.
    fn later_token(&self, sub: &str) -> String {
        let second = unix_seconds();
        wait_until("the next second", SOON, || unix_seconds() > second);
        self.token(sub, AHEAD)
    }

    pub fn token(&self, sub: &str, seconds_ahead: i64) -> String {
        let at = unix_seconds() + seconds_ahead;
        self.issuer
            .token(json!({"sub": sub, "iat": at, "exp": at + 300, "jti": random_hex(16)}))
    }

    fn published(&self) -> (String, u64) {
        let note = std::fs::read_to_string(self.path("place")).unwrap_or_default();
        let mut lines = note.lines();
        let origin = lines.next().unwrap_or_default().to_owned();
        let size = lines.next().and_then(|size| size.parse().ok());
        (origin, size.unwrap_or_default())
    }

    /// Waits until a broker has published everything it appended. Returns the size of its log.
    pub async fn published_by(&self, broker: &Broker) -> u64 {
        let checkpoint = broker
            .client
            .get_as(&broker.admin, "/v1/ledger/checkpoint")
            .await;
        let size: u64 = checkpoint.text().lines().nth(1).unwrap().parse().unwrap();
        until("the checkpoint is published", SOON, async || {
            self.published().1 >= size
        })
        .await;
        size
    }

    /// The configuration of a log, loaded.
    fn read(&self, origin: &str) -> Config {
        let mut environment = BTreeMap::new();
        if let Some((old, new)) = &self.databases {
            let database = if origin == OLD { old } else { new };
            environment.insert("TASKPASS_DATABASE_URL".to_owned(), database.serving_url());
        }
        environment.insert("TASKPASS_SEALING_KEYS".to_owned(), self.sealing_key.clone());
        let path = self.path(file(origin));
        let text = std::fs::read_to_string(&path).unwrap();
        Config::parse(&path, &text, &environment, Mode::Production).unwrap()
    }

    /// The log's key, from a broker that is then stopped.
    async fn key(&self, mut broker: Broker) -> String {
        let keys = broker.client.get_as(&broker.admin, "/v1/ledger/keys").await;
        let key = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
        self.published_by(&broker).await;
        broker.process.terminate();
        key
    }

    /// Runs statements in a log's SQLite file while no broker uses it.
    async fn run_sql(&self, origin: &str, statements: &[&str]) {
        let database = self.path(data(origin)).join("taskpass.sqlite");
        let database = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
        let mut database = sqlx::SqliteConnection::connect_with(&database)
            .await
            .unwrap();
        for sql in statements {
            let sql = sqlx::AssertSqlSafe((*sql).to_owned());
            sqlx::raw_sql(sql).execute(&mut database).await.unwrap();
        }
        database.close().await.unwrap();
    }

    /// Appends entries to the old log and then restores a backup without them. Returns the size
    /// that was published.
    async fn lose(&self, requests: u32) -> u64 {
        let mut old = self.start(OLD);
        block(self, &old, "dev:thief").await;
        self.published_by(&old).await;
        old.process.terminate();
        copy(&self.path("old-data"), &self.path("backup"));
        let mut old = self.start(OLD);
        for _ in 0..requests {
            old.ask(&self.token("agent:a", 0)).await.expect(201);
        }
        let size = self.published_by(&old).await;
        old.process.terminate();
        std::fs::remove_dir_all(self.path("old-data")).unwrap();
        copy(&self.path("backup"), &self.path("old-data"));
        size
    }

    /// Activates the configured generation at a broker on PostgreSQL.
    pub async fn activate(&self, broker: &Broker) {
        let config = self.read(OLD);
        let checked = app::check(&config, None, None).unwrap();
        let generation = serde_json::to_value(checked.generation).unwrap();
        let put = broker
            .client
            .post_json(&broker.admin, "/v1/generations", &generation);
        put.await.expect(201);
    }

    async fn admin(&self, broker: &Broker, path: &str, body: Value) {
        let answer = broker.client.post_json(&broker.admin, path, &body).await;
        assert!(answer.status < 300, "{path}: {}", answer.text());
    }
}

impl Broker {
    pub async fn ask(&self, token: &str) -> Answer {
        let body = json!({
            "task": {"type": "job"},
            "resource": "orders-api",
            "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
        });
        self.client.post_json(token, "/v1/credentials", &body).await
    }

    pub async fn is_good(&self, admin: &str, token: &str) -> bool {
        let request = self
            .client
            .request(Method::POST, "/oauth2/introspect")
            .bearer_auth(admin)
            .form(&[("token", token)]);
        send(request).await.expect(200)["active"] == true
    }
}

fn file(origin: &str) -> &'static str {
    match origin {
        OLD => "old.toml",
        NEW => "new.toml",
        _ => "third.toml",
    }
}

fn data(origin: &str) -> &'static str {
    match origin {
        OLD => "old-data",
        NEW => "new-data",
        _ => "third-data",
    }
}

fn copy(from: &Path, to: &Path) {
    make_private_directory(to);
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

pub fn credential(granted: &Value) -> &str {
    granted["credential"]["access_token"].as_str().unwrap()
}

fn payload(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// The bits of a status list.
async fn list(broker: &Broker, number: u64) -> Vec<u8> {
    let token = broker.client.get(&format!("/status/{number}")).await;
    assert_eq!(token.status, 200, "{}", token.text());
    let packed = payload(&token.text())["status_list"]["lst"].clone();
    let packed = URL_SAFE_NO_PAD.decode(packed.as_str().unwrap()).unwrap();
    let mut bits = Vec::new();
    flate2::read::ZlibDecoder::new(&packed[..])
        .read_to_end(&mut bits)
        .unwrap();
    bits
}

/// Blocks a workload until the block is lifted.
async fn block(world: &World, broker: &Broker, workload: &str) {
    let body = json!({"selector": {"workload": workload}, "block_seconds": "until_lifted", "reason": "stolen", "allow_unknown": true});
    world.admin(broker, "/v1/revocations", body).await;
}

/// The same for any ARN; `list` holds more lines for the tables of the role and of its list.
fn role_of(name: &str, arn: &str, list: Option<&str>) -> String {
    let more = list.unwrap_or_default();
    let list = list.map_or_else(String::new, |more| {
        let writer = "arn:aws:iam::123456789012:role/revoker";
        format!("[resources.aws.revocation]\nrole_arn = \"{writer}\"\n{more}")
    });
    format!(
        r#"
[[resources]]
name = "{name}"
kind = "aws"
owner = "data"
actions = ["s3:Get*"]
locations = ["arn:aws:s3:::{name}/*"]
default_ttl_seconds = 600
[resources.aws]
role_arn = "{arn}"
mode = "web_identity"
region = "eu-central-1"
{more}
{list}
"#
    )
}

fn now() -> Timestamp {
    Timestamp::from_seconds(unix_seconds())
}
