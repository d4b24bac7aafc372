//! One PostgreSQL cluster for a whole run, and a fresh database for each test.
//!
//! `TASKPASS_TEST_POSTGRES_URL` names the cluster; `make test` starts one and sets the variable.
//! Without it, the first test process starts a private cluster, which all test processes of the
//! same target directory share. `start.lock` makes sure that only one of them starts it, and each
//! holds `users.lock` shared as long as it lives. A watchdog, in a separate process, stops and
//! removes the cluster when no process has held that lock for a minute, however the users ended.
//!
//! A fresh database is a clone of a template, which is migrated once and named by the digest of the
//! migrations. It is built under another name and renamed when it is complete, so a builder that is
//! killed leaves no partial template.

mod tests;

use std::fs::{self, File};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use url::Url;

use super::{block_on, free_address, hex, random_hex};

/// The environment variable with the URL of an existing cluster.
pub const CLUSTER_VARIABLE: &str = "TASKPASS_TEST_POSTGRES_URL";
/// The key of the advisory lock that the template's builder holds; an arbitrary number.
const TEMPLATE_LOCK: i64 = 0x7461_736b_7061_7373;
/// The serving role; its password is the same. It has exactly the rights that `taskpass migrate`
/// grants.
pub const SERVING: &str = "taskpass_it_serving";
/// How long a private cluster outlives its last user, in seconds.
const IDLE_SECONDS: u32 = 60;

/// A database for one test. Dropping it drops the database and its connections.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    url: Url,
}

/// Creates a migrated, empty database.
pub fn fresh_database() -> TestDatabase {
    create(true)
}

/// Creates a database without a schema.
pub fn empty_database() -> TestDatabase {
    create(false)
}

/// Statements of the owner that record the newest head, and then simulate that eight days have
/// passed.
pub const AGE_HEADS: &str = "SELECT ledger_prune_heads(0, 0); \
     UPDATE ledger_seen SET at = at - interval '8 days', transaction = 0";

impl TestDatabase {
    /// A migrated database in another cluster. It is removed with that cluster.
    pub(super) fn elsewhere(cluster: &Url) -> Self {
        let name = format!("taskpass_it_{}_{}", std::process::id(), random_hex(4));
        let mut url = cluster.clone();
        url.set_path(&name);
        block_on(async || {
            let mut admin = PgConnection::connect(cluster.as_str()).await.unwrap();
            execute(&mut admin, format!("CREATE DATABASE {name}")).await;
            make_serving_role(&mut admin).await;
            admin.close().await.unwrap();
            migrate(&url, &migrations()).await;
        });
        Self { name, url }
    }

    /// The database's name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database's URL, with the rights of the cluster's owner.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The database's URL, with the rights of the serving role.
    pub fn serving_url(&self) -> String {
        serving(&self.url()).to_string()
    }

    /// The address at which the cluster listens.
    pub fn address(&self) -> SocketAddr {
        let host = self.url.host_str().unwrap_or("127.0.0.1");
        let port = self.url.port().unwrap_or(5432);
        (host, port).to_socket_addrs().unwrap().next().unwrap()
    }

    /// The same database through another address, for instance a proxy's.
    pub fn url_via(&self, address: SocketAddr) -> String {
        let mut url = self.url.clone();
        url.set_host(Some(&address.ip().to_string())).unwrap();
        url.set_port(Some(address.port())).unwrap();
        url.to_string()
    }

    /// The database with another address for all later connections, for instance a proxy's.
    pub fn through(mut self, address: SocketAddr) -> Self {
        self.url = Url::parse(&self.url_via(address)).unwrap();
        self
    }

    /// A direct connection, independent of the product.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(self.url.as_str()).await.unwrap()
    }

    /// A small direct pool, independent of the product.
    pub async fn pool(&self) -> PgPool {
        sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .connect(self.url.as_str())
            .await
            .unwrap()
    }
}

impl TestDatabase {
    /// Another database with the current content of this one, like a standby or a backup.
    /// Connections to this database break.
    pub fn copy(&self) -> Self {
        let name = format!("taskpass_it_{}_{}", std::process::id(), random_hex(4));
        let mut url = self.url.clone();
        url.set_path(&name);
        let here = &self.name;
        administer(&[
            format!("ALTER DATABASE {here} ALLOW_CONNECTIONS false"),
            terminate(here),
            format!("CREATE DATABASE {name} TEMPLATE {here}"),
            confine(&name),
            format!("ALTER DATABASE {here} ALLOW_CONNECTIONS true"),
        ]);
        Self { name, url }
    }

    /// Breaks every connection to it.
    pub fn break_connections(&self) {
        administer(&[terminate(&self.name)]);
    }

    /// Simulates a failover: replaces this database by `other` and breaks its connections. The
    /// previous content is lost.
    pub fn fail_over_to(&self, other: Self) {
        let (here, there) = (&self.name, &other.name);
        administer(&[
            format!("ALTER DATABASE {here} ALLOW_CONNECTIONS false"),
            terminate(here),
            format!("ALTER DATABASE {here} RENAME TO {here}_lost"),
            format!("ALTER DATABASE {there} RENAME TO {here}"),
            format!("DROP DATABASE {here}_lost"),
        ]);
    }
}

fn terminate(database: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'"
    )
}

/// Runs statements as the cluster's owner, outside any test's database.
fn administer(statements: &[String]) {
    block_on(async || {
        let mut admin = PgConnection::connect(&CLUSTER.url).await.unwrap();
        for statement in statements {
            execute(&mut admin, statement.clone()).await;
        }
        admin.close().await.unwrap();
    });
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let dropped: sqlx::Result<()> = block_on(async || {
            let mut admin = PgConnection::connect(&CLUSTER.url).await?;
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
            sqlx::query(AssertSqlSafe(drop)).execute(&mut admin).await?;
            admin.close().await
        });
        if let Err(error) = dropped {
            // The whole cluster is removed after the run, so a failure here is harmless.
            eprintln!("could not drop {}: {error}", self.name);
        }
    }
}

fn create(migrated: bool) -> TestDatabase {
    let name = format!("taskpass_it_{}_{}", std::process::id(), random_hex(4));
    let mut url = Url::parse(&CLUSTER.url).unwrap();
    url.set_path(&name);
    block_on(async || {
        let mut admin = PgConnection::connect(&CLUSTER.url).await.unwrap();
        let template = if migrated {
            template(&mut admin).await
        } else {
            "template0".to_owned()
        };
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        execute(&mut admin, create).await;
        // A clone does not inherit the rights of its template database.
        execute(&mut admin, confine(&name)).await;
        admin.close().await.unwrap();
    });
    TestDatabase { name, url }
}

async fn execute(connection: &mut PgConnection, sql: String) {
    sqlx::query(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn exists(admin: &mut PgConnection, database: &str) -> bool {
    sqlx::query("SELECT FROM pg_database WHERE datname = $1")
        .bind(database)
        .fetch_optional(admin)
        .await
        .unwrap()
        .is_some()
}

/// The name of the migrated template, which is built if it does not exist.
async fn template(admin: &mut PgConnection) -> String {
    let migrations = migrations();
    let name = format!("taskpass_template_{}", digest(&migrations));
    if exists(admin, &name).await {
        return name;
    }
    execute(admin, format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})")).await;
    if !exists(admin, &name).await {
        let draft = format!("{name}_draft");
        execute(
            admin,
            format!("DROP DATABASE IF EXISTS {draft} WITH (FORCE)"),
        )
        .await;
        execute(admin, format!("CREATE DATABASE {draft} TEMPLATE template0")).await;
        let mut url = Url::parse(&CLUSTER.url).unwrap();
        url.set_path(&draft);
        make_serving_role(admin).await;
        migrate(&url, &migrations).await;
        // A template with connections cannot be cloned, so connections are not allowed.
        execute(
            admin,
            format!("ALTER DATABASE {draft} ALLOW_CONNECTIONS false"),
        )
        .await;
        execute(admin, format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
    }
    execute(admin, format!("SELECT pg_advisory_unlock({TEMPLATE_LOCK})")).await;
    name
}

fn migrations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres")
}

async fn migrate(url: &Url, migrations: &Path) {
    if !migrations.is_dir() {
        return;
    }
    let migrator = Migrator::new(migrations).await.unwrap();
    let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
    migrator
        .run(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("the migrations do not apply: {error}"));
    for function in [
        "taskpass_confine_serving",
        "taskpass_grant_serving",
        "taskpass_grant_pruning",
    ] {
        let granting = format!("SELECT {function}('{SERVING}')");
        execute(&mut connection, granting).await;
    }
    connection.close().await.unwrap();
}

/// Creates the serving role if the cluster does not have it.
async fn make_serving_role(admin: &mut PgConnection) {
    let make = format!(
        "DO $$ BEGIN CREATE ROLE {SERVING} LOGIN PASSWORD '{SERVING}'; \
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    );
    execute(admin, make).await;
}

/// Revokes the right to create temporary objects, which a new database grants to all roles.
fn confine(database: &str) -> String {
    format!("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
}

/// A database's URL for the serving role.
pub fn serving(url: &str) -> Url {
    let mut url = Url::parse(url).unwrap();
    url.set_username(SERVING).unwrap();
    url.set_password(Some(SERVING)).unwrap();
    url
}

/// A digest over the names and contents of the files in `dir`; a missing directory counts as empty.
fn digest(dir: &Path) -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for file in files {
        let body = fs::read(&file).unwrap();
        context.update(file.file_name().unwrap().as_encoded_bytes());
        context.update(&[0]);
        context.update(&u64::try_from(body.len()).unwrap().to_be_bytes());
        context.update(&body);
    }
    hex(&context.finish().as_ref()[..8])
}

struct Cluster {
    url: String,
    /// The shared lock that keeps a private cluster alive. The end of the process releases it.
    _user: Option<File>,
}

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| match std::env::var(CLUSTER_VARIABLE) {
    Ok(url) => Cluster { url, _user: None },
    Err(_) => join_private_cluster(
        &Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres"),
        IDLE_SECONDS,
    ),
});

fn join_private_cluster(state: &Path, idle_seconds: u32) -> Cluster {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .unwrap();
    // Take this lock first: it keeps the watchdog from stopping a cluster found afterwards.
    let user = lock_file(&state.join("users.lock"));
    user.lock_shared().unwrap();
    let starting = lock_file(&state.join("start.lock"));
    starting.lock().unwrap();
    let url = fs::read_to_string(state.join("url"))
        .ok()
        .filter(|url| answers(url))
        .unwrap_or_else(|| start_private_cluster(state, idle_seconds));
    Cluster {
        url,
        _user: Some(user),
    }
}

pub(super) fn lock_file(path: &Path) -> File {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap()
}

fn answers(url: &str) -> bool {
    block_on(async || {
        let attempt = PgConnection::connect(url);
        match tokio::time::timeout(Duration::from_secs(5), attempt).await {
            Ok(Ok(connection)) => connection.close().await.is_ok(),
            _ => false,
        }
    })
}

fn start_private_cluster(state: &Path, idle_seconds: u32) -> String {
    // Not below the target directory, which the user `postgres` may not be able to enter.
    let dir = tempfile::Builder::new()
        .prefix("taskpass-it-pg-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap()
        .keep();
    let data = dir.join("data");
    let password = random_hex(16);
    let password_file = dir.join("password");
    fs::write(&password_file, format!("{password}\n")).unwrap();
    let owner = Owner::of(&dir);
    // Start the watchdog first, so that the cluster is removed even if this process dies while
    // starting it.
    watch(&owner, state, &dir, idle_seconds);
    if owner.root {
        run(Command::new("chown").args(["-R", "postgres:"]).arg(&dir));
    }
    make_cluster(&owner, &data, &password_file);
    let port = (0..8)
        .map(|_| free_address().port())
        .find(|port| start_server(&owner, &data, *port))
        .unwrap_or_else(|| {
            let log = fs::read_to_string(data.join("server.log")).unwrap_or_default();
            panic!("the private PostgreSQL cluster did not start:\n{log}")
        });
    let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
    let file = state.join("url");
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    std::io::Write::write_all(&mut options.open(file).unwrap(), url.as_bytes()).unwrap();
    url
}

/// Creates a cluster whose owner, `postgres`, has the password in that file.
pub(super) fn make_cluster(owner: &Owner, data: &Path, password: &Path) {
    run(owner
        .command("initdb")
        .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C", "--pgdata"])
        .arg(data)
        .arg("--pwfile")
        .arg(password));
}

pub(super) fn start_server(owner: &Owner, data: &Path, port: u16) -> bool {
    // Loopback only and without a socket file. The data are temporary, so do not sync them to disk.
    // Tests read whole statements from `pg_stat_activity`.
    let options = format!(
        "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
         -c max_connections=300 -c fsync=off -c full_page_writes=off -c timezone=UTC \
         -c track_activity_query_size=8192"
    );
    owner
        .command("pg_ctl")
        .args(["start", "--silent", "--wait", "--timeout=60", "--pgdata"])
        .arg(data)
        .arg("--log")
        .arg(data.join("server.log"))
        .arg("--options")
        .arg(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Starts the watchdog: a shell in its own process group, so that an interrupt of the tests does
/// not reach it. It tries to take the lock exclusively once a second. If it succeeds for the whole
/// idle time, it stops the clusters in `dir` while it holds the lock, and new users wait until
/// then.
pub(super) fn watch(owner: &Owner, state: &Path, dir: &Path, idle_seconds: u32) {
    const WATCHDOG: &str = r#"
        dir=$1 users=$2 limit=$3; shift 3
        exec 9>"$users"
        idle=0
        while sleep 1; do
            if flock --exclusive --nonblock 9; then
                idle=$((idle + 1))
                [ "$idle" -lt "$limit" ] || break
                flock --unlock 9
            else
                idle=0
            fi
        done
        for pid in "$dir"/*/postmaster.pid; do
            [ ! -f "$pid" ] || "$@" stop --silent --mode immediate --pgdata "${pid%/*}"
        done
        rm -rf "$dir"
    "#;
    let pg_ctl = owner.command("pg_ctl");
    run(Command::new("flock").arg("--version"));
    let mut detach = Command::new("sh");
    detach
        .args(["-c", "\"$@\" &", "sh"])
        .args(["sh", "-c", WATCHDOG, "taskpass-it-watchdog"])
        .arg(dir)
        .arg(state.join("users.lock"))
        .arg(idle_seconds.to_string())
        .arg(pg_ctl.get_program())
        .args(pg_ctl.get_args())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(detach.status().unwrap().success());
}

/// The user that runs the cluster: PostgreSQL refuses to run as root, so root's cluster belongs to
/// `postgres`.
pub(super) struct Owner {
    pub(super) root: bool,
}

impl Owner {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            root: fs::metadata(dir).unwrap().uid() == 0,
        }
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let program = postgres_program(program);
        let mut command = if self.root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

/// The path of a PostgreSQL program: in the newest version's directory if the system has one for
/// each version, otherwise in the search path.
pub fn postgres_program(name: &str) -> PathBuf {
    let newest = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let program = entry.path().join("bin").join(name);
            program.exists().then_some((version, program))
        })
        .max();
    newest.map_or_else(|| PathBuf::from(name), |(_, program)| program)
}

/// Runs a command that must succeed; shows its output if it fails.
pub(super) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; or set {CLUSTER_VARIABLE}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
