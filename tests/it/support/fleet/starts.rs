//! Fleets with different settings, and their first replicas.

use super::*;
use crate::support::postgres::fresh_database;

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

    /// For benchmarks: without a proxy, with additional tables of the configuration, and with these
    /// policies instead of the usual ones, which use roles and would cost every request a query.
    pub async fn for_load(kind: Kind, tables: &str, policies: &str) -> (Self, Replica) {
        let mut fleet = Self::new((kind == Kind::Postgres).then(fresh_database));
        fleet.proxied = false;
        tables.clone_into(&mut fleet.tables);
        fleet.policies = format!("{BOOTSTRAP_POLICY}{policies}");
        let mut replica = fleet.launch();
        if kind == Kind::Postgres {
            fleet.activate(&replica).await;
        }
        replica.process.wait_ready(replica.address);
        (fleet, replica)
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
        crate::support::until("the replica is ready", SOON, async || {
            let answer = replica.client.try_get("/readyz").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        (fleet, replica)
    }
}
