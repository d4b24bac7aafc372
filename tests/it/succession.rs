//! Replacing a log that cannot continue: `taskpass ledger new-origin` and `keys revoke --ledger`,
//! as programs, on stores that lost leaves.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aws_sdk_iam::config::{Credentials, SharedCredentialsProvider};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use taskpass::app;
use taskpass::app::succession::{OldLog, begin};
use taskpass::clock::{ManualClock, Timestamp};
use taskpass::config::{Config, Mode};
use taskpass::ledger::checkpoint_store::{Authorization, CheckpointStore, Swapped};
use taskpass::merkle::VerifierKey;
use taskpass::store::Store;
use taskpass::store::sqlite::Sqlite;
use tempfile::TempDir;

use crate::support::http::{Answer, Client, send};
use crate::support::issuer::{AUDIENCE, Issuer, unix_seconds};
use crate::support::moto::Moto;
use crate::support::postgres::{TestDatabase, fresh_database};
use crate::support::process::{Ended, Launch, Process};
use crate::support::rig::aws_endpoint;
use crate::support::witness::{Manner, Witness};
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
            format!(
                "kind = \"sqlite\"\n[store.sqlite]\ndata_dir = \"{}\"",
                data(origin)
            )
        };
        let text = format!(
            r#"
[server]
issuer = "http://127.0.0.1:7070"
listen = "{address}"
drain_seconds = 0
[store]
{store}
[ledger]
origin = "{origin}"
checkpoint_file = "checkpoint"
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
[[resources]]
name = "orders-api"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
actions = ["orders:read"]
locations = ["https://orders.example/v1"]
verification = "status_list"
{role}
{resources}
[[task_types]]
name = "job"
max_deadline_seconds = 3600
resources = ["orders-api"]
"#,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one sequence of steps")]
async fn after_a_loss_a_new_log_begins_and_nothing_from_before_counts() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    let early = old.ask(&world.token("agent:a", 0)).await.expect(201);
    block(&world, &old, "dev:thief").await;
    world.published_by(&old).await;
    old.process.terminate();
    let untouched = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(untouched.code(), Some(2), "{untouched:?}");
    assert!(
        untouched.stderr.contains("no loss is known"),
        "{untouched:?}"
    );
    copy(&world.path("old-data"), &world.path("backup"));
    let mut old = world.start(OLD);
    let late = old.ask(&world.token("agent:a", 0)).await.expect(201);
    let size = world.published_by(&old).await;
    old.process.terminate();
    // The disk is lost, and a backup is restored.
    std::fs::remove_dir_all(world.path("old-data")).unwrap();
    copy(&world.path("backup"), &world.path("old-data"));
    let refused = world.serve(OLD).run();
    assert!(
        refused.stderr.contains("rewound") && refused.code() != Some(0),
        "{refused:?}"
    );

    let told = world.move_on(["ledger", "new-origin"], &[]);
    assert_eq!(told.code(), Some(2), "{told:?}");
    for word in [OLD, NEW, "rewound", &size.to_string(), "--yes"] {
        assert!(told.stderr.contains(word), "{word}: {told:?}");
    }
    assert_eq!(world.published(), (OLD.to_owned(), size));
    assert_an_old_bootstrap_token_is_refused(&world);
    let unused = [0, AHEAD - 1].map(|ahead| world.token("agent:a", ahead));
    let begun = world.begin(&[]);
    assert_eq!(begun["predecessor"]["origin"], OLD);
    assert_eq!(begun["predecessor"]["size"], size);
    assert_eq!(begun["predecessor"]["reason"], "lost");
    assert_eq!(begun["carried_over"]["blocks"], 1);
    assert_eq!(begun["denied"], json!([ROLE]));
    assert_eq!(
        world.published().0,
        NEW,
        "the shared checkpoint belongs to the new log"
    );

    let mut new = world.start(NEW);
    for granted in [&early, &late] {
        assert!(!new.is_good(&world.admin, credential(granted)).await);
        let place = payload(credential(granted))["status"]["status_list"].clone();
        assert_eq!(place["uri"], "http://127.0.0.1:7070/status/0");
    }
    assert_eq!(
        list(&new, 0).await,
        [0xff; 8192],
        "all sessions of the old log are invalid"
    );
    let jwks = new.client.get("/.well-known/jwks.json").await.expect(200);
    let header = credential(&early).split('.').next().unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    assert!(!jwks.to_string().contains(header["kid"].as_str().unwrap()));
    // It is unknown which evidence was used, so all evidence from before the loss is refused.
    for unused in unused {
        let stale = new.ask(&unused).await;
        assert_eq!(stale.status, 401, "{}", stale.text());
    }
    let blocked = new.ask(&world.later_token("thief")).await;
    assert_eq!(blocked.status, 403, "{}", blocked.text());
    assert!(blocked.text().contains("blocked"), "{}", blocked.text());
    let granted = new.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(new.is_good(&world.admin, credential(&granted)).await);
    let place = payload(credential(&granted))["status"]["status_list"].clone();
    assert_eq!(place["uri"], "http://127.0.0.1:7070/status/16");
    let bits = list(&new, 16).await;
    let index = usize::try_from(place["idx"].as_u64().unwrap()).unwrap();
    assert_eq!(
        bits[index / 8] >> (index % 8) & 1,
        0,
        "the new session is valid"
    );
    assert_eq!(
        bits[64..],
        [0; 8192 - 64],
        "no bit is set beyond the log's end"
    );
    let first = new
        .client
        .get_as(&new.admin, "/v1/ledger/entries/0")
        .await
        .expect(200);
    let leaf = first["leaf"].as_str().unwrap();
    let leaf = base64::engine::general_purpose::STANDARD
        .decode(leaf)
        .unwrap();
    let leaf: Value = serde_json::from_slice(&leaf).unwrap();
    assert_eq!(leaf["event"], "genesis");
    assert_eq!(leaf["predecessor"], begun["predecessor"]);
    let receipt = world.path("granted.json");
    std::fs::write(&receipt, granted.to_string()).unwrap();
    let key = begun["vkey"].as_str().unwrap();
    let receipt = receipt.to_str().unwrap();
    // Verify the receipt only, without the credential's signature.
    let verify = [
        "ledger",
        "verify",
        receipt,
        "--key",
        key,
        "--unchecked-signature",
    ];
    assert_eq!(world.program(verify).run().code(), Some(0));
    world.published_by(&new).await;
    new.process.terminate();

    assert_old_log_has_ended(&world, &late);
}

/// In a new store the token's day would begin again, so a holder of the old token could use it.
fn assert_an_old_bootstrap_token_is_refused(world: &World) {
    let digest = |token: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        hex(digest.as_ref())
    };
    let config = world.path(file(NEW));
    let good = std::fs::read_to_string(&config).unwrap();
    let same = good.replace(&digest(&world.admin), &digest(&world.old_admin));
    std::fs::write(&config, same).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("bootstrap_token_sha256"));
    std::fs::write(&config, good).unwrap();
}

fn assert_old_log_has_ended(world: &World, late: &Value) {
    // The shared checkpoint stops a broker on the old log, even one that lost its own checkpoint.
    std::fs::remove_file(world.path("checkpoint")).unwrap();
    let refused = world.serve(OLD).run();
    assert!(
        refused.stderr.contains("another log is kept there"),
        "{refused:?}"
    );
    // A completed succession does not begin another time.
    let stranger = world.path("kept.note");
    std::fs::write(&stranger, late["receipt"]["checkpoint"].as_str().unwrap()).unwrap();
    let twice = ["--yes", "--checkpoint", stranger.to_str().unwrap()];
    let again = world.move_on(["ledger", "new-origin"], &twice);
    assert_eq!(again.code(), Some(2), "{again:?}");
    assert!(again.stderr.contains("has already replaced"), "{again:?}");
    let kept = late["receipt"]["checkpoint"].as_str().unwrap();
    std::fs::write(&stranger, kept.replace(OLD, "third.test/log")).unwrap();
    let foreign = world.move_on(["ledger", "new-origin"], &twice);
    assert_eq!(foreign.code(), Some(3), "{foreign:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_log_key_is_revoked_with_its_log_and_what_only_it_vouches_for_is_listed() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    let keys = old
        .client
        .get_as(&old.admin, "/v1/ledger/keys")
        .await
        .expect(200);
    let first = keys["vkeys"][0].as_str().unwrap().to_owned();
    let published = world.published_by(&old).await;
    old.process.terminate();
    let listed = world.path("alone.jsonl");
    let arguments = ["--list", listed.to_str().unwrap()];
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &arguments);
    assert_eq!(told.code(), Some(2), "{told:?}");
    let lines = std::fs::read_to_string(&listed).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The list includes entries of the sweeper from before the end.
    let size = lines.len() as u64;
    assert!(size >= published);
    assert!(
        told.stderr
            .contains(&format!("{size} leaves, from 0 to {}", size - 1)),
        "{told:?}"
    );
    assert_eq!(lines[0]["event"], "genesis");
    assert!(lines.iter().any(|line| line["decision"].is_string()));
    let stranger = first.replace(OLD, "other.test/log");
    let unknown = world.move_on(["keys", "revoke", "--ledger", &stranger], &[]);
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");

    // A second log key signs too: entries that it signed do not depend on the revoked key alone.
    let mut old = world.start(OLD);
    world.admin(&old, "/v1/keys/rotate-ledger", json!({})).await;
    world.published_by(&old).await;
    old.process.terminate();
    let json = ["--yes", "--json"];
    let ended = world.move_on(["keys", "revoke", "--ledger", &first], &json);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(begun["vouched_by_this_key_alone"]["count"], 0);
    assert_eq!(begun["predecessor"]["reason"], "key_revoked");
    assert_eq!(begun["predecessor"]["revoked_key"], first.as_str());
    let new = world.start(NEW);
    new.ask(&world.later_token("agent:a")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_is_given_up_while_a_broker_still_keeps_it() {
    let world = World::new(true);
    let mut old = world.start(OLD);
    world.activate(&old).await;
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.published_by(&old).await;
    let revoke = || world.move_on(["keys", "revoke", "--ledger", &first], &["--yes"]);
    let told = revoke();
    assert_eq!(told.code(), Some(2), "{told:?}");
    assert!(told.stderr.contains("stop all of them"), "{told:?}");
    assert_eq!(world.published().0, OLD);
    old.process.terminate();
    // The server notices with a delay that the last connection is closed.
    until("the log is replaced", SOON, async || {
        revoke().code() == Some(0)
    })
    .await;
    assert_eq!(world.published().0, NEW);
}

/// The tables of a resource for an AWS role, with or without a list of denied sessions.
fn role(name: &str, lists: bool) -> String {
    role_of(name, &arn(name), lists.then_some(""))
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

fn arn(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_are_registered_no_more_are_denied_or_named_with_their_time() {
    for lost in [true, false] {
        let mut world = World::new(false);
        // Three generations; the last one knows only one role.
        world.resources = format!("{}{}", role("listed", true), role("bare", false));
        let mut old = world.start(OLD);
        old.ask(&world.token("agent:a", 0)).await.expect(201);
        old.process.terminate();
        world.resources = role("once", true);
        world.start(OLD).process.terminate();
        world.resources = String::new();
        let key = if lost {
            world.lose(1).await;
            None
        } else {
            let mut old = world.start(OLD);
            let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
            let key = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
            world.published_by(&old).await;
            old.process.terminate();
            Some(key)
        };
        // A list that only its own row names, and a session that only its own row names.
        let registration = json!({
            "role_arn": arn("row"), "mode": "web_identity", "region": "eu-central-1",
            "revocation": {"role_arn": arn("revoker")}
        });
        let row = format!(
            "INSERT INTO deny_place (minter, name, registration, capacity, propagation_seconds, due_at) \
             VALUES ('aws', '{}', '{registration}', 8, 300, 0)",
            arn("row")
        );
        let session = format!(
            "UPDATE session SET minter = 'aws', is_local = 0, audience = '{}', state = 'active', end_reason = NULL, \
             ended_at = NULL, confirmed_at = NULL, expires_at = expires_at + 3600000000",
            arn("session")
        );
        world.run_sql(OLD, &[&row, &session]).await;
        let arguments = ["--yes", "--json"];
        let ended = match &key {
            None => world.move_on(["ledger", "new-origin"], &arguments),
            Some(key) => world.move_on(["keys", "revoke", "--ledger", key], &arguments),
        };
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("is over"), "{ended:?}");
        let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
        let denied = ["listed", "once", "reports", "row"].map(arn);
        assert_eq!(begun["denied"], json!(denied));
        let left = begun["expires_naturally"].as_array().unwrap();
        let names: Vec<&Value> = left.iter().map(|left| &left["target"]).collect();
        assert_eq!(json!(names), json!(["bare", "session"].map(arn)));
        for left in left {
            let until = time::OffsetDateTime::parse(
                left["until"].as_str().unwrap(),
                &time::format_description::well_known::Rfc3339,
            );
            let hours = (until.unwrap().unix_timestamp() - unix_seconds()) / 3_600;
            assert!((11..=12).contains(&hours), "{left}");
            assert!(
                left["reason"].as_str().unwrap().contains("no deny list"),
                "{left}"
            );
        }
        // Each list is due in the new store, and has its cutoff.
        let store = Store::Sqlite(Sqlite::open(&world.path(data(NEW)), 1).await.unwrap());
        let places = store.deny_policy_targets().await.unwrap();
        let names: Vec<&str> = places.iter().map(|place| &*place.name).collect();
        assert_eq!(names, denied);
        let cutoffs = store.cutoffs(99).await.unwrap();
        for name in &denied {
            let denies = |cutoff: &taskpass::store::cutoffs::SealedCutoff| {
                cutoff.claimed().deny_policy_target.as_deref() == Some(name.as_str())
            };
            assert!(cutoffs.iter().any(denies), "{name}");
        }
        store.close().await;
    }
}

/// Replaces a log whose role is at `moto` and registered only in the old configuration. Returns the
/// report of `keys revoke --ledger`, run with `endpoints` in the new configuration.
async fn give_up_a_log_with_a_role_at(world: &mut World, moto: &Moto, endpoints: &str) -> Value {
    let iam = moto.iam();
    for name in ["once", "revoker"] {
        let made = iam.create_role().role_name(name);
        let trust = r#"{"Version":"2012-10-17","Statement":[]}"#;
        let made = made.assume_role_policy_document(trust).send().await;
        made.unwrap();
    }
    world.registers_role = false;
    let role = role_of("once", &arn("once"), Some("endpoint = \"aws\""));
    world.resources = format!("{role}\n{}", aws_endpoint(&moto.url()));
    let mut old = world.start(OLD);
    if world.databases.is_some() {
        world.activate(&old).await;
    }
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let key = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.published_by(&old).await;
    old.process.terminate();
    endpoints.clone_into(&mut world.resources);
    let new = world.config(NEW, free_address());
    let another = new.replace(
        "issuer = \"http://127.0.0.1:7070\"",
        "issuer = \"http://localhost:7070\"",
    );
    assert_ne!(new, another);
    let revoke = ["keys", "revoke", "--ledger", &key];
    std::fs::write(world.path(file(NEW)), another).unwrap();
    let refused = world.move_on(revoke, &["--yes", "--json"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stdout.contains("server.issuer"), "{refused:?}");
    std::fs::write(world.path(file(NEW)), new).unwrap();
    let report = std::cell::RefCell::new(Value::Null);
    // PostgreSQL notices with a delay that the old broker's last connection is closed.
    until("the log is replaced", SOON, async || {
        let ended = world.move_on(revoke, &["--yes", "--json"]);
        if ended.code() == Some(0) {
            *report.borrow_mut() = serde_json::from_str(&ended.stdout).unwrap();
        }
        ended.code() == Some(0)
    })
    .await;
    report.into_inner()
}

/// Waits until the role `once` denies every session that is older than the new log.
async fn the_role_denies_older_sessions(moto: &Moto) {
    let iam = moto.iam();
    until("the policy is written", SOON, async || {
        let policy = iam.get_role_policy().role_name("once");
        let policy = policy.policy_name("TaskpassRevokedSessions").send().await;
        policy.is_ok_and(|policy| policy.policy_document().contains("TokenIssueTime"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_registered_no_more_gets_the_policy_that_the_report_promises() {
    for postgres in [false, true] {
        let moto = Moto::start();
        let mut world = World::new(postgres);
        let endpoint = aws_endpoint(&moto.url());
        let report = give_up_a_log_with_a_role_at(&mut world, &moto, &endpoint).await;
        assert_eq!(report["denied"], json!([arn("once")]));
        assert_eq!(report["expires_naturally"], json!([]));
        // On SQLite a generation without roles is active, and on PostgreSQL none.
        let _new = world.start(NEW);
        the_role_denies_older_sessions(&moto).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_whose_endpoint_is_configured_no_more_is_reported_as_left_until_it_is_again() {
    let moto = Moto::start();
    let mut world = World::new(false);
    let report = give_up_a_log_with_a_role_at(&mut world, &moto, "").await;
    assert_eq!(report["denied"], json!([]));
    let left = &report["expires_naturally"];
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left[0]["target"], arn("once"));
    let why = left[0]["reason"].as_str().unwrap();
    assert!(
        why.contains("no endpoint `aws`") && why.contains("[endpoints.aws]"),
        "{left}"
    );
    assert!(left[0]["until"].is_string(), "{left}");
    world.resources = aws_endpoint(&moto.url());
    let _new = world.start(NEW);
    the_role_denies_older_sessions(&moto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_under_a_witnessed_checkpoint_are_vouched_for_by_the_witness() {
    let witness = Witness::start("witness.test/w", Manner::Good);
    let mut world = World::new(false);
    world.place = format!("{}\n{}", world.place, witness.table());
    let mut old = world.start(OLD);
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    witness.trust(std::slice::from_ref(&first));
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    let granted = world.published_by(&old).await;
    until("the witness has signed the checkpoint", SOON, async || {
        witness.size() >= granted
    })
    .await;
    // The witness does not see the following entries.
    witness.set(Manner::Status(503));
    until("the witness's signature is stored", SOON, async || {
        let metrics = old.client.get("/metrics").await.text();
        let size = witness.size();
        let kept = format!("taskpass_witness_size{{witness=\"witness.test/w\"}} {size}\n");
        metrics.contains(&kept)
    })
    .await;
    let size = witness.size();
    old.ask(&world.token("agent:a", 0)).await.expect(201);
    old.process.terminate();
    let all = world.published().1;
    assert!(all > size);
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &[]);
    let listed = |from: u64| format!("{} leaves, from {from} to {}", all - from, all - 1);
    assert!(told.stderr.contains(&listed(size)), "{told:?}");
    // A row with a larger size than the witness signed is ignored.
    world
        .run_sql(
            OLD,
            &[
                "DELETE FROM cosigned WHERE size < (SELECT max(size) FROM cosigned)",
                "UPDATE cosigned SET size = (SELECT max(size) FROM ledger_head)",
            ],
        )
        .await;
    let told = world.move_on(["keys", "revoke", "--ledger", &first], &[]);
    assert!(told.stderr.contains(&listed(0)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_permits_is_carried_over_only_when_somebody_says_so() {
    for carry in [false, true] {
        let world = World::new(true);
        let (database, _) = world.databases.as_ref().unwrap();
        let mut old = world.start(OLD);
        world.activate(&old).await;
        let jwk = crate::support::keys::Key::generate(crate::support::keys::Algorithm::EdDsa);
        let registered = json!({"attestor": "keys", "workload": "robot", "jwk": jwk.jwk()});
        world.admin(&old, "/v1/workloads", registered).await;
        let bound = json!({"workload": "dev:boss", "role": "operator"});
        world.admin(&old, "/v1/admins", bound).await;
        block(&world, &old, "dev:thief").await;
        let standby = database.copy();
        until("the broker works again", SOON, async || {
            old.ask(&world.token("agent:a", 0)).await.status == 201
        })
        .await;
        world.published_by(&old).await;
        old.process.terminate();
        database.fail_over_to(standby);
        let begun = world.begin(if carry { &["--carry-over"] } else { &[] });
        let carried = &begun["carried_over"];
        assert_eq!(carried["blocks"], 1);
        assert_eq!(carried["workload_keys"], u64::from(carry));
        assert_eq!(carried["admin_bindings"], u64::from(carry));
        assert_eq!(carried["generation"].is_string(), carry);
        let new = world.start(NEW);
        if !carry {
            world.activate(&new).await;
        }
        let admins = new
            .client
            .get_as(&new.admin, "/v1/admins")
            .await
            .expect(200);
        assert_eq!(admins.to_string().contains("dev:boss"), carry);
        new.ask(&world.later_token("agent:a")).await.expect(201);
        let blocked = new.ask(&world.later_token("thief")).await;
        assert_eq!(blocked.status, 403, "{}", blocked.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_kept_in_a_bucket_that_wants_signed_requests() {
    let moto = Moto::start();
    let (id, secret) = moto.bucket("checkpoints").await;
    moto.enforce().await;
    let mut world = World::new(false);
    let url = format!("{}/checkpoints/of%20all", moto.url());
    world.place = format!("url = \"{url}\"\ns3_region = \"eu-central-1\"");
    let address = free_address();
    std::fs::write(world.path("old.toml"), world.config(OLD, address)).unwrap();
    let launch = |secret: &str| {
        world
            .serve(OLD)
            .env("AWS_ACCESS_KEY_ID", &id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
    };
    let refused = launch("another").run();
    assert!(refused.stderr.contains("shared checkpoint"), "{refused:?}");
    assert!(refused.stderr.contains("403"), "{refused:?}");
    let mut process = launch(&secret).spawn();
    process.wait_ready(address);
    let broker = Broker {
        process,
        client: Client::new(&format!("http://{address}")),
        admin: world.old_admin.clone(),
    };
    let read = async || {
        let region = "eu-central-1".to_owned();
        let credentials = Credentials::new(&id, &secret, None, None, "test");
        let credentials = SharedCredentialsProvider::new(credentials);
        let signed = Authorization::s3(region, credentials);
        let place =
            CheckpointStore::object(url.parse().unwrap(), &BTreeMap::new(), signed).unwrap();
        let kept = place.read().await.unwrap();
        (place, kept)
    };
    for _ in 0..2 {
        broker.ask(&world.token("agent:a", 0)).await.expect(201);
        let checkpoint = broker.client.get_as(&broker.admin, "/v1/ledger/checkpoint");
        let checkpoint = checkpoint.await.text();
        until("the checkpoint is in the bucket", SOON, async || {
            read().await.1.note == Some(checkpoint.clone().into_bytes())
        })
        .await;
    }
    // The bucket refuses to overwrite a checkpoint that the broker has not read.
    let (place, kept) = read().await;
    broker.ask(&world.token("agent:a", 0)).await.expect(201);
    until("the checkpoint changes", SOON, async || {
        read().await.1 != kept
    })
    .await;
    assert_eq!(
        place.swap(&kept, "over it").await.unwrap(),
        Swapped::Changed
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_begun_and_cut_short_serves_nobody_until_it_is_gone_on_with() {
    let world = World::new(false);
    let size = world.lose(1).await;
    // The new store accepts the first leaves, and then fails.
    Store::Sqlite(Sqlite::open(&world.path(data(NEW)), 1).await.unwrap())
        .close()
        .await;
    world
        .run_sql(
            NEW,
            &["CREATE TRIGGER full BEFORE INSERT ON cutoff \
               WHEN (SELECT count(*) FROM cutoff) > 0 BEGIN SELECT RAISE(ABORT, 'full'); END"],
        )
        .await;
    let cut_short = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(cut_short.code(), Some(3), "{cut_short:?}");
    world.run_sql(NEW, &["DROP TRIGGER full"]).await;
    // The shared checkpoint and the replica's file no longer hold the old log's checkpoint.
    assert_eq!(world.published().0, NEW);
    let refused = world.serve(NEW).run();
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    for word in ["interrupted", "taskpass ledger new-origin", OLD, NEW] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    let told = world.move_on(["ledger", "new-origin"], &[]);
    assert!(told.stderr.contains("this one continues it"), "{told:?}");
    let refused = world.serve(NEW).run();
    assert!(refused.stderr.contains("interrupted"), "{refused:?}");

    let begun = world.begin(&[]);
    assert_eq!(begun["predecessor"]["size"], size);
    assert_eq!(begun["carried_over"]["blocks"], 1);
    assert_eq!(begun["denied"], json!([ROLE]));
    let mut new = world.start(NEW);
    let blocked = new.ask(&world.later_token("thief")).await;
    assert_eq!(blocked.status, 403, "{}", blocked.text());
    new.ask(&world.later_token("agent:a")).await.expect(201);
    new.process.terminate();
    let store = Sqlite::open_to_read(&world.path(data(NEW)), 1).await;
    let store = Store::Sqlite(store.unwrap().unwrap());
    let cutoffs = store.cutoffs(100).await.unwrap();
    let kinds: Vec<&str> = cutoffs
        .iter()
        .map(|it| it.claimed().selector.kind())
        .collect();
    assert_eq!(kinds, ["workload", "resource", "all"], "each selector once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_over_stops_a_new_log_before_it_begins() {
    let world = World::new(false);
    let nothing = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(nothing.code(), Some(3), "{nothing:?}");
    assert!(nothing.stderr.contains("there is no store"), "{nothing:?}");
    assert!(
        !world.path(data(OLD)).exists(),
        "the old store is only read"
    );
    let size = world.lose(1).await;
    let stolen = "UPDATE cutoff SET value = 'dev:nobody' WHERE value = 'dev:thief'";
    world.run_sql(OLD, &[stolen]).await;
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("other than the broker: the table cutoff: the cutoff 01"),
        "{refused:?}"
    );
    assert_eq!(world.published(), (OLD.to_owned(), size));
    // The replica's checkpoint may be the only evidence of a loss, so an unreadable file stops the
    // command.
    let [file, kept] = ["checkpoint", "kept"].map(|name| world.path(name));
    std::fs::rename(&file, &kept).unwrap();
    std::fs::create_dir(&file).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains(file.to_str().unwrap()),
        "{refused:?}"
    );
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&kept, &file).unwrap();
    // A shared checkpoint that is missing but existed before stops the command as well.
    let [place, kept] = ["place", "kept"].map(|name| world.path(name));
    std::fs::rename(&place, &kept).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(3), "{refused:?}");
    assert!(refused.stderr.contains("is missing"), "{refused:?}");
    std::fs::rename(&kept, &place).unwrap();
    let back = "UPDATE cutoff SET value = 'dev:thief' WHERE value = 'dev:nobody'";
    world.run_sql(OLD, &[back]).await;
    assert_eq!(world.begin(&[])["carried_over"]["blocks"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_log_gives_out_none_of_the_places_of_the_second() {
    let world = World::new(false);
    let first = world.key(world.start(OLD)).await;
    let yes = ["--yes"];
    let moved = world.move_on(["keys", "revoke", "--ledger", &first], &yes);
    assert_eq!(moved.code(), Some(0), "{moved:?}");
    let place = |granted: &Value| {
        let place = payload(credential(granted))["status"]["status_list"].clone();
        place["uri"].as_str().unwrap().to_owned()
    };
    let new = world.start(NEW);
    let second = new.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(place(&second).ends_with("/status/16"), "{second}");
    let key = world.key(new).await;
    let revoke = ["keys", "revoke", "--ledger", &key];
    // The first log's token is not in the second log's configuration, but its store knows it.
    let config = world.path(file(THIRD));
    let good = std::fs::read_to_string(&config).unwrap();
    let digest =
        |token: &str| hex(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    let first = good.replace(&digest(&world.third_admin), &digest(&world.old_admin));
    std::fs::write(&config, first).unwrap();
    let refused = world.move_between([NEW, THIRD], revoke, &yes);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains("the old log accepted"),
        "{refused:?}"
    );
    std::fs::write(&config, good).unwrap();
    let moved = world.move_between([NEW, THIRD], revoke, &yes);
    assert_eq!(moved.code(), Some(0), "{moved:?}");
    let mut third = world.start(THIRD);
    for number in [0, 16] {
        let bits = list(&third, number).await;
        assert_eq!(
            bits, [0xff; 8192],
            "{number}: all earlier sessions are invalid"
        );
    }
    let granted = third.ask(&world.later_token("agent:a")).await.expect(201);
    assert!(place(&granted).ends_with("/status/32"), "{granted}");
    third.process.terminate();
    // Deleting the record of the succession does not restore the sessions it ended.
    world.run_sql(THIRD, &["DELETE FROM succession"]).await;
    let refused = world.serve(THIRD).run();
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("by its first leaf"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_log_signs_with_no_key_of_the_old_one() {
    let mut world = World::new(false);
    let pem = world.path("rsa.pem");
    std::fs::write(&pem, include_str!("support/test_only_rsa_key.pem")).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&pem, private).unwrap();
    world.keys =
        "access_token_algorithm = \"RS256\"\nrs256_private_key_file = \"rsa.pem\"".to_owned();
    let configured = world.config(NEW, free_address());
    std::fs::write(world.path(file(NEW)), configured).unwrap();
    world.lose(1).await;
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("rs256_private_key_file is a key of the old log"),
        "{refused:?}"
    );
    // The old configuration need not name the key any more: the old store knows it.
    world.keys = String::new();
    let forgotten = world.config(OLD, free_address());
    std::fs::write(world.path(file(OLD)), forgotten).unwrap();
    let refused = world.move_on(["ledger", "new-origin"], &["--yes"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    let another = world.config(NEW, free_address());
    std::fs::write(world.path(file(NEW)), another).unwrap();
    world.begin(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_a_loss_though_the_store_has_more_leaves_than_what_proves_it() {
    let world = World::new(false);
    world.lose(1).await;
    let fork = world.path("fork");
    std::fs::copy(world.path("checkpoint"), &fork).unwrap();
    // The standby that the other replicas use has no record of the shared checkpoint.
    for name in ["place", "checkpoint"] {
        std::fs::remove_file(world.path(name)).unwrap();
    }
    let unheard = "UPDATE store_meta SET shared_place = NULL";
    world.run_sql(OLD, &[unheard]).await;
    let mut old = world.start(OLD);
    for _ in 0..4 {
        old.ask(&world.token("agent:a", 0)).await.expect(201);
    }
    let size = world.published_by(&old).await;
    old.process.terminate();
    let nothing = world.move_on(["ledger", "new-origin"], &[]);
    assert!(nothing.stderr.contains("no loss is known"), "{nothing:?}");
    let kept = ["--checkpoint", fork.to_str().unwrap()];
    let told = world.move_on(["ledger", "new-origin"], &kept);
    for word in ["rewound or forked", fork.to_str().unwrap()] {
        assert!(told.stderr.contains(word), "{told:?}");
    }
    let begun = world.begin(&kept);
    assert!(begun["predecessor"]["size"].as_u64().unwrap() >= size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_revoked_key_signed_is_not_believed() {
    let world = World::new(false);
    let vkey = world.key(world.start(OLD)).await;
    // A tree that the store does not have, signed by the log's key, as its thief could sign it.
    let theirs = world.lose(3).await;
    std::fs::remove_file(world.path("checkpoint")).unwrap();
    let note = std::fs::read_to_string(world.path("place")).unwrap();
    let old = OldLog::open(world.read(OLD), NEW, vec![], &[], now()).await;
    let old = old.unwrap();
    let own = old.head().size;
    assert_eq!(old.known().map(|(_, known)| known.size), Some(theirs));
    drop(old);
    let revoke = ["keys", "revoke", "--ledger", &vkey];
    let told = world.move_on(revoke, &[]);
    assert_eq!(told.code(), Some(2), "{told:?}");
    let root = note.lines().nth(2).unwrap();
    assert!(
        told.stderr.contains(&format!(
            "place: size {theirs} root {root}: the store does not"
        )),
        "{told:?}"
    );
    let ended = world.move_on(revoke, &["--yes", "--json"]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let begun: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(begun["predecessor"]["size"], own);
    assert_ne!(begun["predecessor"]["root"], root);
    assert_eq!(world.published().0, NEW);
    let new = world.start(NEW);
    new.ask(&world.later_token("agent:a")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_retired_long_ago_is_still_known_as_the_logs() {
    let world = World::new(false);
    let mut old = world.start(OLD);
    let keys = old.client.get_as(&old.admin, "/v1/ledger/keys").await;
    let first = keys.expect(200)["vkeys"][0].as_str().unwrap().to_owned();
    world.admin(&old, "/v1/keys/rotate-ledger", json!({})).await;
    world.published_by(&old).await;
    old.process.terminate();
    let later = now().plus_seconds(40 * 86_400);
    let first: VerifierKey = first.parse().unwrap();
    let pinned = std::slice::from_ref(&first);
    let old = OldLog::open(world.read(OLD), NEW, vec![], pinned, later).await;
    let old = old.unwrap();
    assert!(old.has_key(&first));
    let stranger = VerifierKey::new(OLD, *b"01234567890123456789012345678901");
    assert!(!old.has_key(&stranger.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_wrong_clock_no_log_is_given_up() {
    let world = World::new(true);
    let old = OldLog::open(world.read(OLD), NEW, vec![], &[], now()).await;
    let (old, config) = (old.unwrap(), world.read(NEW));
    for wrong in [now().minus_seconds(5), now().plus_seconds(5)] {
        let clock = ManualClock::new(wrong);
        let refused = begin(&config, clock, &old.give_up(wrong), &old, false).await;
        let told = refused.err().unwrap().to_string();
        assert!(told.contains("differ by"), "{told}");
    }
}

fn now() -> Timestamp {
    Timestamp::from_seconds(unix_seconds())
}
