//! A whole broker in this process, on either store, with a clock that the test sets and a real
//! issuer over HTTP. It serves tests that change the time or inspect the broker.

mod asks;
mod assemble;
mod builder;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;
use serde_json::{Value, json};
use taskpass::app::{self, Assembled};
use taskpass::attest::Evidence;
use taskpass::broker::issuance::Issued;
use taskpass::broker::tasks::{Delegation, TaskAuthority, TaskWithSessions};
use taskpass::broker::{Broker, BrokerError};
use taskpass::clock::{Clock, ManualClock, SharedClock, Timestamp};
use taskpass::config::Config;
use taskpass::domain::generation::{Generation, PolicyFile};
use taskpass::domain::request::CredentialRequest;
use taskpass::domain::task::TaskEnd;
use taskpass::http::AppState;
use taskpass::ids::SessionId;
use taskpass::mint::Minter;

use super::http::Client;
use super::issuer::{AUDIENCE, Issuer, unix_seconds};
use super::postgres::{TestDatabase, fresh_database};
use super::random_hex;
use super::server::Server;
use super::sqlite::{SqliteFile, fresh_sqlite};

pub use asks::{
    access_token, ask, ask_in, ask_joining, bearer, child_of, claims, handle, job, refusal,
    with_key,
};
use assemble::assemble;
use rows::{postgres_rows, sqlite_rows};

/// The admin token of every rig.
pub const ADMIN: &str = "tpa_rig-admin-token";

/// The bootstrap token of every rig. The rig's policies permit it nothing.
pub const BOOTSTRAP: &str = "tpa_rig-bootstrap-token";

/// Files in a rig's directory: the arguments of [`Rig::share_checkpoint`] and
/// [`Rig::have_witnesses`].
const SHARED: &str = "shared_checkpoint.toml";
const WITNESSES: &str = "witnesses.toml";
/// The sealing keys, if a test replaced them.
const SEALING: &str = "sealing-keys";
/// The argument of [`Rig::configure_bootstrap`].
const BOOTSTRAP_FILE: &str = "bootstrap_token";
const ENDPOINTS: &str = "endpoints.toml";

/// The kind of a rig's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A broker with its clock, issuer and store.
pub struct Rig {
    pub broker: Arc<Broker>,
    pub clock: Arc<ManualClock>,
    pub issuer: Issuer,
    assembled: Option<Assembled>,
    config: Config,
    policies: String,
    directory: SqliteFile,
    database: Option<TestDatabase>,
}

/// Policies for tests: three agents on two resources.
pub const POLICIES: &str = r#"
@id("open") @description("agents open tasks")
permit (principal in Role::"nobody", action == Action::"openTask", resource);

@id("reports-open") @description("reports opens")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"openTask", resource);

@id("reports") @description("reports reads, ten minutes at most")
@max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"orders:read", resource);

@id("orders-open") @description("orders opens")
permit (principal == Workload::dev::"dev:agent%3Aorders", action == Action::"openTask", resource);

@id("orders") @description("orders reads and writes, two minutes at most")
@max_ttl("120")
permit (principal == Workload::dev::"dev:agent%3Aorders", action in [Action::"orders:read", Action::"orders:write"], resource);

@id("child-open") @description("child opens")
permit (principal == Workload::dev::"dev:agent%3Achild", action == Action::"openTask", resource);

@id("child") @description("child reads and writes")
@max_ttl("900")
permit (principal == Workload::dev::"dev:agent%3Achild", action in [Action::"orders:read", Action::"orders:write"], resource);

@id("slow") @description("writing waits for a person")
@approval("required")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"orders:write", resource);

@id("dev-admin") @description("the rig's admin")
permit (principal == Bootstrap::"dev", action in [Action::"listTasks", Action::"endTask", Action::"listSessions",
  Action::"revokeSession", Action::"revokeMany", Action::"liftCutoff", Action::"readRevocations",
  Action::"introspect", Action::"readLedger", Action::"manageAdmins", Action::"manageKeys",
  Action::"manageWorkloads", Action::"readGeneration", Action::"activateGeneration", Action::"acceptTime"], resource == Broker::"taskpass");
"#;

impl Rig {
    /// Serves the broker over HTTP as on an address that is not loopback, where no operation is
    /// open without credentials.
    pub fn serve(&mut self) -> (Server, Client) {
        let address = super::free_address();
        self.config.server.listen = (Ipv4Addr::UNSPECIFIED, address.port()).into();
        let state = AppState::new(Arc::clone(&self.broker), &self.config);
        let server = Server::start_at(address, taskpass::http::router(state));
        let client = Client::new(&format!("http://localhost:{}", address.port()));
        (server, client)
    }

    /// Activates the rig's files with one more attestor. Returns the generation.
    pub async fn add_attestor(&mut self, attestor: Value) -> Generation {
        self.config
            .attestors
            .push(serde_json::from_value(attestor).unwrap());
        let policies = vec![PolicyFile {
            name: "rig.cedar".into(),
            text: self.policies.clone(),
        }];
        let generation = app::check(&self.config, Some(policies), None)
            .unwrap()
            .generation;
        let activated = self
            .broker
            .administration
            .activate_own("rig", generation.clone())
            .await;
        activated.unwrap();
        generation
    }

    /// Every row of every table, as text.
    pub async fn rows(&self) -> BTreeMap<String, BTreeSet<String>> {
        match &self.database {
            Some(database) => postgres_rows(database).await,
            None => sqlite_rows(&self.directory().join("data/taskpass.sqlite")).await,
        }
    }

    /// A second replica on the same PostgreSQL, with the same clock.
    pub async fn replica(&self) -> Assembled {
        self.replica_by(Arc::clone(&self.clock) as SharedClock)
            .await
    }

    /// A second replica on the same PostgreSQL, with another clock.
    pub async fn replica_by(&self, clock: SharedClock) -> Assembled {
        self.replica_in(fresh_sqlite(), clock).await
    }

    /// A second replica on the same PostgreSQL, configured with another bootstrap token.
    pub async fn replica_with_bootstrap(&self, token: &str) -> Assembled {
        let other = fresh_sqlite();
        std::fs::write(other.dir().join(BOOTSTRAP_FILE), token).unwrap();
        self.replica_in(other, Arc::clone(&self.clock) as SharedClock)
            .await
    }

    async fn replica_in(&self, other: SqliteFile, clock: SharedClock) -> Assembled {
        let url = self.database.as_ref().map(TestDatabase::url);
        std::fs::copy(
            self.directory.dir().join("dev-sealing-key"),
            other.dir().join("dev-sealing-key"),
        )
        .unwrap();
        for name in [SHARED, WITNESSES, SEALING, ENDPOINTS] {
            let said = self.directory.dir().join(name);
            if said.exists() {
                std::fs::copy(said, other.dir().join(name)).unwrap();
            }
        }
        let assembled = assemble(
            other.dir(),
            url,
            &self.issuer,
            clock,
            POLICIES,
            vec![],
            vec![],
        );
        let (assembled, _) = assembled.await.unwrap();
        assembled.broker.generations.follow().await.unwrap();
        assembled
    }

    /// The database; panics on SQLite.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().unwrap()
    }

    /// The directory of SQLite's files, the keys and the checkpoint.
    pub fn directory(&self) -> &Path {
        self.directory.dir()
    }

    /// Sets the lines of `[ledger.shared_checkpoint]`. They apply to this replica and later ones
    /// from the next start on.
    pub fn share_checkpoint(&self, lines: &str) {
        std::fs::write(self.directory.dir().join(SHARED), lines).unwrap();
    }

    /// Sets the configured bootstrap token from the next start on.
    pub fn configure_bootstrap(&self, token: &str) {
        std::fs::write(self.directory.dir().join(BOOTSTRAP_FILE), token).unwrap();
    }

    /// Sets the sealing keys from the next start on; the first one seals new rows.
    pub fn seal_with(&self, keys: &[&str]) {
        std::fs::write(self.directory.dir().join(SEALING), keys.join(",")).unwrap();
    }

    /// Sets the tables of `[[ledger.witnesses]]` from the next start on.
    pub fn have_witnesses(&self, tables: &str) {
        std::fs::write(self.directory.dir().join(WITNESSES), tables).unwrap();
    }

    /// The generation in the rig's files.
    pub fn generation(&self) -> Generation {
        self.assembled.as_ref().unwrap().generation.clone()
    }

    async fn activate(&self) {
        let generation = self.assembled.as_ref().unwrap().generation.clone();
        let activated = self
            .broker
            .administration
            .activate_own("rig", generation)
            .await;
        activated.unwrap();
    }

    /// Stops the broker in order, and starts another on the same store.
    pub async fn restart(&mut self) -> Result<(), app::StartError> {
        self.reopen().await?;
        self.activate().await;
        Ok(())
    }

    /// The same, but the start appends nothing.
    pub async fn reopen(&mut self) -> Result<(), app::StartError> {
        self.stop().await;
        let (assembled, config) = assemble(
            self.directory.dir(),
            self.database.as_ref().map(TestDatabase::url),
            &self.issuer,
            Arc::clone(&self.clock) as SharedClock,
            POLICIES,
            vec![],
            vec![],
        )
        .await?;
        self.broker = Arc::clone(&assembled.broker);
        self.assembled = Some(assembled);
        self.config = config;
        Ok(())
    }

    /// Stops the broker in order.
    pub async fn stop(&mut self) {
        if let Some(old) = self.assembled.take() {
            let second = std::time::Duration::from_secs(1);
            old.shutdown.drain_then_stop(second / 100, second).await;
            old.store.close().await;
        }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A token whose times fit the rig's clock.
    pub fn token(&self, sub: &str, more: Value) -> String {
        let now = self.clock.now().seconds();
        let mut claims = json!({"sub": sub, "run": "run-1", "aud": AUDIENCE, "iat": now,
            "exp": now + 300, "jti": random_hex(16)});
        for (name, value) in more.as_object().cloned().unwrap_or_default() {
            claims[name] = value;
        }
        self.issuer.token(claims)
    }

    pub fn evidence(&self, sub: &str) -> Evidence {
        bearer(&self.token(sub, json!({})))
    }

    /// Requests a credential as `sub`.
    pub async fn issue(
        &self,
        sub: &str,
        request: CredentialRequest,
    ) -> Result<Issued, BrokerError> {
        self.broker
            .issuance
            .issue(self.evidence(sub), request)
            .await
    }

    /// Whether introspection by the admin says that a credential is active.
    pub async fn is_good(&self, issued: &Issued) -> bool {
        is_good(&self.broker, issued).await
    }

    pub async fn end(
        &self,
        issued: &Issued,
        end: TaskEnd,
    ) -> Result<TaskWithSessions, BrokerError> {
        let authority = TaskAuthority::Handle(handle(issued), Evidence::default());
        self.broker
            .tasks
            .end_task(issued.task.id, authority, end)
            .await
    }

    pub async fn heartbeat(&self, issued: &Issued) -> Result<(), BrokerError> {
        let authority = TaskAuthority::Handle(handle(issued), Evidence::default());
        let beat = self.broker.tasks.heartbeat(issued.task.id, authority).await;
        beat.map(|_| ())
    }

    pub async fn delegate(&self, issued: &Issued, child: &str) -> Result<Delegation, BrokerError> {
        self.lend(issued, child, 2).await
    }

    /// A delegation for so many credentials.
    pub async fn lend(
        &self,
        issued: &Issued,
        child: &str,
        sessions: u32,
    ) -> Result<Delegation, BrokerError> {
        let authority = TaskAuthority::Handle(handle(issued), Evidence::default());
        let child = format!("dev:{}", taskpass::domain::workload::encode_value(child));
        let child = child.try_into().unwrap();
        self.broker
            .tasks
            .delegate(issued.task.id, authority, child, sessions, None)
            .await
    }

    pub fn admin(&self) -> Evidence {
        bearer(ADMIN)
    }

    pub async fn revoke(&self, session: SessionId) {
        self.broker
            .revocation
            .revoke_session(&self.admin(), session)
            .await
            .unwrap();
    }
}

/// Whether a broker says that a credential is active.
pub async fn is_good(broker: &Broker, issued: &Issued) -> bool {
    let answer = broker
        .verification
        .introspect(&bearer(ADMIN), &access_token(issued))
        .await;
    matches!(
        answer.unwrap().introspection,
        taskpass::broker::verification::introspect::Introspection::Active(_)
    )
}

/// The endpoint `aws`, at the URL of a stand-in for STS and IAM.
pub fn aws_endpoint(url: &str) -> String {
    format!("[endpoints.aws]\nurl = \"{url}\"\nuse = [\"sts\", \"iam\"]\n")
}

/// The resource `bucket`, whose role comes from the STS at `url`, and the task type `listing`.
pub fn aws_bucket(url: &str) -> String {
    let endpoint = aws_endpoint(url);
    format!(
        r#"
[[resources]]
name = "bucket"
kind = "aws"
owner = "data"
actions = ["s3:*"]
locations = ["arn:aws:s3:::*"]
[resources.aws]
role_arn = "arn:aws:iam::123456789012:role/reports"
mode = "web_identity"
region = "us-east-1"
endpoint = "aws"
[[task_types]]
name = "listing"
max_deadline_seconds = 3600
resources = ["bucket"]
{endpoint}
"#
    )
}

/// The policy that permits `agent:reports` every action on the resource of [`aws_bucket`].
pub const BUCKET_POLICY: &str = r#"
@id("bucket") @description("reports reads its bucket") @max_ttl("600")
permit (principal == Workload::dev::"dev:agent%3Areports", action in Action::"s3:*",
  resource == Aws::"bucket");
"#;

/// The arguments with which a client requests a role session for the resource of [`aws_bucket`].
pub const BUCKET_ARGUMENTS: [&str; 7] = [
    "--resource",
    "bucket",
    "--action",
    "s3:ListAllMyBuckets",
    "--aws",
    "--task-type",
    "listing",
];
