//! Two PostgreSQL servers for one test: a primary, and a standby that replicates from it,
//! asynchronously (PostgreSQL's default) or synchronously.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::{Connection, PgConnection};
use url::Url;

use super::postgres::{Owner, TestDatabase, lock_file, make_cluster, run, start_server, watch};
use super::{SOON, block_on, free_address, random_hex, wait_until};

/// How long the servers outlive a killed test, in seconds.
const IDLE_SECONDS: u32 = 2;

/// A primary and its standby.
pub struct Pair {
    owner: Owner,
    dir: PathBuf,
    password: String,
    port: u16,
    standby_port: u16,
    /// Keeps the servers running.
    _user: File,
}

impl Pair {
    /// Starts both servers; the standby begins as a copy of the primary.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("taskpass-it-pair-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .unwrap()
            .keep();
        let password = random_hex(16);
        fs::write(dir.join("password"), format!("{password}\n")).unwrap();
        let owner = Owner::of(&dir);
        let user = lock_file(&dir.join("users.lock"));
        user.lock_shared().unwrap();
        watch(&owner, &dir, &dir, IDLE_SECONDS);
        if owner.root {
            run(Command::new("chown").args(["-R", "postgres:"]).arg(&dir));
        }
        make_cluster(&owner, &dir.join("primary"), &dir.join("password"));
        let mut pair = Self {
            owner,
            dir,
            password,
            port: 0,
            standby_port: 0,
            _user: user,
        };
        pair.port = pair.serve("primary");
        pair.copy(pair.port, "standby");
        pair.standby_port = pair.serve("standby");
        pair
    }

    /// The same, but the primary acknowledges a commit only after the standby has it.
    pub fn start_synchronous() -> Self {
        let pair = Self::start();
        pair.run_sql(&[
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        ]);
        wait_until("commits wait for the standby", SOON, || {
            pair.ask::<i64>("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
                == 1
        });
        pair
    }

    /// Makes a standby of the server at `port`.
    fn copy(&self, port: u16, server: &str) {
        run(self
            .owner
            .command("pg_basebackup")
            .env("PGPASSWORD", &self.password)
            .args([
                "--host=127.0.0.1",
                "--username=postgres",
                "--checkpoint=fast",
            ])
            .args(["--no-sync", "--write-recovery-conf", "--wal-method=stream"])
            .arg(format!("--port={port}"))
            .arg("--pgdata")
            .arg(self.data(server)));
    }

    fn run_sql(&self, statements: &[&'static str]) {
        block_on(async || {
            let mut admin = PgConnection::connect(self.url().as_str()).await.unwrap();
            for sql in statements {
                sqlx::raw_sql(*sql).execute(&mut admin).await.unwrap();
            }
            admin.close().await.unwrap();
        });
    }

    /// The primary's answer to a query.
    fn ask<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        block_on(async || {
            let mut admin = PgConnection::connect(self.url().as_str()).await.unwrap();
            let found = sqlx::query_scalar(sql).fetch_one(&mut admin).await.unwrap();
            admin.close().await.unwrap();
            found
        })
    }

    /// The address of the original primary.
    pub fn primary_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The standby's address, before its promotion and after.
    pub fn standby_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.standby_port).into()
    }

    /// Promotes the standby at its own address once it is up to date. The primary keeps running at
    /// its address without a standby, so two servers accept writes.
    pub fn promote(&self) {
        self.wait_for_standby();
        run(self
            .owner
            .command("pg_ctl")
            .args(["promote", "--silent", "--wait", "--pgdata"])
            .arg(self.data("standby")));
    }

    /// Restarts the old primary at its own address, as a standby of the promoted server.
    pub fn return_primary(&self) {
        self.stop("primary");
        self.copy(self.standby_port, "returned");
        let returned = self.data("returned");
        assert!(
            start_server(&self.owner, &returned, self.port),
            "{}",
            log(&returned)
        );
    }

    /// Stops the standby at once, as if its machine had failed.
    pub fn stop_standby(&self) {
        self.stop("standby");
    }

    /// Crashes and restarts the primary. Commits that its standby lacked are visible afterwards.
    pub fn crash_primary(&self) {
        self.stop("primary");
        let primary = self.data("primary");
        assert!(
            start_server(&self.owner, &primary, self.port),
            "{}",
            log(&primary)
        );
    }

    /// Number of the broker's appends that wait for the standby.
    pub fn waiting_appends(&self) -> i64 {
        self.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'",
        )
    }

    /// Cancels each wait for the standby: PostgreSQL then answers COMMIT as if it had succeeded.
    pub fn cancel_waits(&self) -> i64 {
        self.ask(
            "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
             WHERE wait_event = 'SyncRep') AS cancelled",
        )
    }

    /// Starts the standby again.
    pub fn restart_standby(&self) {
        let standby = self.data("standby");
        assert!(
            start_server(&self.owner, &standby, self.standby_port),
            "{}",
            log(&standby)
        );
    }

    fn data(&self, server: &str) -> PathBuf {
        self.dir.join(server)
    }

    /// Starts a server at a free port.
    fn serve(&self, server: &str) -> u16 {
        let data = self.data(server);
        (0..8)
            .map(|_| free_address().port())
            .find(|port| start_server(&self.owner, &data, *port))
            .unwrap_or_else(|| panic!("{server} did not start:\n{}", log(&data)))
    }

    fn stop(&self, server: &str) {
        run(self
            .owner
            .command("pg_ctl")
            .args(["stop", "--silent", "--mode=immediate", "--pgdata"])
            .arg(self.data(server)));
    }

    fn url(&self) -> Url {
        let (password, port) = (&self.password, self.port);
        Url::parse(&format!(
            "postgres://postgres:{password}@127.0.0.1:{port}/postgres"
        ))
        .unwrap()
    }

    /// A migrated database.
    pub fn database(&self) -> TestDatabase {
        TestDatabase::elsewhere(&self.url())
    }

    fn wait_for_standby(&self) {
        const CAUGHT_UP: &str = "SELECT count(*) FROM pg_stat_replication \
            WHERE state = 'streaming' AND replay_lsn >= pg_current_wal_lsn()";
        wait_until("the standby is up to date", SOON, || {
            self.ask::<i64>(CAUGHT_UP) == 1
        });
    }

    /// Stops the standby once it is up to date, so that it lacks later commits.
    pub fn cut_off_standby(&self) {
        self.wait_for_standby();
        self.stop("standby");
    }

    /// Stops the primary as if its machine had failed, and starts the standby as the primary at its
    /// address.
    pub fn fail_over(&self) {
        self.stop("primary");
        let standby = self.data("standby");
        assert!(
            start_server(&self.owner, &standby, self.port),
            "{}",
            log(&standby)
        );
        run(self
            .owner
            .command("pg_ctl")
            .args(["promote", "--silent", "--wait", "--pgdata"])
            .arg(&standby));
    }
}

fn log(data: &Path) -> String {
    fs::read_to_string(data.join("server.log")).unwrap_or_default()
}
