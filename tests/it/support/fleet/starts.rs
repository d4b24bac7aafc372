//! The settings of a fleet, and the start of its first replicas.

use super::*;
use crate::support::postgres::fresh_database;
use crate::support::until;

impl Fleet {
    /// A fleet of one replica on SQLite.
    pub fn sqlite() -> Self {
        Self::new(None)
    }

    /// A fleet on a new PostgreSQL database.
    pub fn postgres() -> Self {
        Self::new(Some(fresh_database()))
    }

    /// A fleet on this kind of store.
    pub fn on(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => Self::sqlite(),
            Kind::Postgres => Self::postgres(),
        }
    }

    /// A fleet on this PostgreSQL database.
    pub fn on_database(database: TestDatabase) -> Self {
        Self::new(Some(database))
    }

    /// Sets additional lines of `[server]`.
    pub fn server(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.server);
        self
    }

    /// Sets additional lines of `[store.sqlite]`.
    pub fn sqlite_settings(mut self, lines: &'static str) -> Self {
        self.sqlite = lines;
        self
    }

    /// Sets the rate limits: requests a second and burst of an identity, then of an address.
    pub fn limits(mut self, limits: [u32; 4]) -> Self {
        self.limits = limits;
        self
    }

    /// Adds policies to the fleet's own.
    pub fn more_policies(mut self, text: &str) -> Self {
        self.policies.push_str(text);
        self
    }

    /// Adds tables to the configuration. Webhooks may refer to the file `sink.secret`, which
    /// contains [`SINK_SECRET`].
    pub fn tables(mut self, text: &str) -> Self {
        self.add_to_configuration(text);
        self
    }

    /// Adds tables for the fleet's issuer, such as attestors.
    pub fn attestors(self, tables: impl FnOnce(&Issuer) -> String) -> Self {
        let text = tables(&self.issuer);
        self.tables(&text)
    }

    /// Sets environment variables of the replicas.
    pub fn environment(mut self, variables: Vec<(&'static str, String)>) -> Self {
        self.environment = variables;
        self
    }

    /// The replicas listen on all addresses of this machine; the tests connect on loopback.
    pub fn on_all_addresses(mut self) -> Self {
        self.on_all = true;
        self
    }

    /// The issuer URL is the replica's own address, for clients that find a server's endpoints
    /// through its issuer.
    pub fn found_by_issuer(mut self) -> Self {
        self.found_by_issuer = true;
        self
    }

    /// The secrets are in the files [`SEALING_FILE`] and [`DATABASE_FILE`].
    pub fn secret_files(mut self) -> Self {
        self.secret_files = true;
        self
    }

    /// The replicas serve TLS, with additional settings of `[server.tls]`; `authority` is the
    /// content of the file `authority.pem`.
    pub fn over_tls(mut self, settings: &str, authority: Option<String>) -> Self {
        self.tls = Some(Tls {
            server: Identity::server(),
            settings: settings.to_owned(),
            authority,
        });
        self.found_by_issuer()
    }

    /// Starts the first replica, activates a generation, and waits until the replica is ready.
    pub async fn start(self) -> (Self, Replica) {
        // On SQLite a replica activates its own files.
        if self.database.is_none() && self.tls.is_none() {
            let replica = self.replica();
            return (self, replica);
        }
        let replica = self.launch();
        if self.database.is_some() {
            self.activate(&replica).await;
        }
        until("the replica is ready", SOON, async || {
            let answer = replica.client.try_get("/readyz").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        (self, replica)
    }

    /// Starts so many replicas at the same time on PostgreSQL, and waits until they are ready.
    pub async fn start_together(self, count: usize) -> (Self, Vec<Replica>) {
        let mut replicas: Vec<Replica> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| self.launch())).collect();
            let started = starting.into_iter().map(|one| one.join().unwrap());
            started.collect()
        });
        self.activate(&replicas[0]).await;
        for replica in &mut replicas {
            replica.process.wait_ready(replica.address);
        }
        (self, replicas)
    }

    /// For benchmarks: without a proxy, with additional tables of the configuration, and with these
    /// policies instead of the usual ones, which use roles and would cost every request a query.
    pub async fn for_load(kind: Kind, tables: &str, policies: &str) -> (Self, Replica) {
        let mut fleet = Self::on(kind).tables(tables);
        fleet.proxied = false;
        fleet.policies = format!("{BOOTSTRAP_POLICY}{policies}");
        fleet.start().await
    }
}
