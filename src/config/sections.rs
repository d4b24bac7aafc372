//! The sections of the file. `taskpass.example.toml` describes every key; a test holds the two
//! together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::exports::Export;
use crate::crypto::keyring::KeySchedule;
use crate::domain::catalog::{Resource, TaskType};
use crate::domain::generation::{DecisionLimits, Retention};
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::revocability::DEFAULT_READ_LEASE_SECONDS;
use crate::domain::trust::AttestorSpec;
use crate::endpoints::{EndpointSpec, OwnCredentials};

/// Whether a URL names this machine by a loopback address or as `localhost`.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The file as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    #[serde(default)]
    pub(super) keys: Keys,
    #[serde(default)]
    pub(super) admin: Admin,
    #[serde(default)]
    pub(super) endpoints: BTreeMap<String, EndpointSpec>,
    #[serde(default)]
    pub(super) aws: Aws,
    #[serde(default)]
    pub(super) attestors: Vec<AttestorSpec>,
    #[serde(default)]
    pub(super) resources: Vec<Resource>,
    #[serde(default)]
    pub(super) task_types: Vec<TaskType>,
    #[serde(default)]
    pub(super) policy: Policy,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) retention: Retention,
    #[serde(default)]
    pub(super) export: Vec<Export>,
    #[serde(default)]
    pub(super) log: Log,
    #[serde(default)]
    pub(super) metrics: Metrics,
}

impl File {
    /// Makes relative paths relative to the file's own directory.
    pub(super) fn resolve_paths(&mut self, base: &Path) {
        let tls = &mut self.server.tls;
        let (shared, authorization) = match &mut self.ledger.shared_checkpoint {
            Some(shared) => (shared.file.as_mut(), shared.authorization_file.as_mut()),
            None => (None, None),
        };
        let optional = [
            shared,
            authorization,
            tls.certificate.as_mut(),
            tls.private_key.as_mut(),
            tls.client_ca.as_mut(),
            self.keys.rs256_private_key_file.as_mut(),
            self.store
                .sqlite
                .as_mut()
                .map(|sqlite| &mut sqlite.data_dir),
        ];
        let always = [&mut self.ledger.checkpoint_file, &mut self.policy.directory];
        let exports = self.export.iter_mut().flat_map(Export::paths_mut);
        let endpoints = self.endpoints.values_mut();
        let endpoints = endpoints.flat_map(|own| [own.ca_file.as_mut(), own.token_file.as_mut()]);
        let all = optional.into_iter().chain(endpoints).flatten();
        for path in all.chain(always).chain(exports) {
            *path = base.join(&*path);
        }
    }
}

/// `[aws]`: what the replica does with AWS by itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// For which roles the AWS credentials of the host are used. `None`: for no role.
    #[serde(default)]
    pub own_credentials: Option<OwnCredentials>,
}

/// `[server]`: where and how the broker is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The base URL by which the world knows the broker: the `iss` of its tokens.
    pub issuer: String,
    /// The address to listen on.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// How long the broker is unready before it stops accepting, so that balancers notice.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// How long accepted requests may then take to finish.
    #[serde(default = "default_finish_seconds")]
    pub finish_seconds: u64,
    /// The longest time that a request may take.
    #[serde(default = "default_request_timeout_seconds")]
    pub request_timeout_seconds: u64,
    /// The longest time that a client may take over its TLS handshake and request headers.
    #[serde(default = "default_header_timeout_seconds")]
    pub header_timeout_seconds: u64,
    /// Connections at once; more are refused.
    #[serde(default = "default_max_connections")]
    pub max_connections: usize,
    /// Connections at once from one address; more are refused.
    #[serde(default)]
    pub max_connections_per_address: Option<usize>,
    /// The networks of the proxies whose `X-Forwarded-For` names the client's address.
    #[serde(default)]
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the ledger's keys, checkpoint and hash tiles are for everyone. Entries never are.
    #[serde(default)]
    pub public_ledger: bool,
    /// Whether a DPoP proof has to contain a nonce of ours, so that none is made ahead of time.
    #[serde(default = "default_require_dpop_nonce")]
    pub require_dpop_nonce: bool,
    /// TLS.
    #[serde(default)]
    pub tls: Tls,
}

fn default_require_dpop_nonce() -> bool {
    true
}

fn default_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 8443))
}

fn default_drain_seconds() -> u64 {
    5
}

fn default_finish_seconds() -> u64 {
    30
}

fn default_request_timeout_seconds() -> u64 {
    15
}

fn default_header_timeout_seconds() -> u64 {
    5
}

impl Server {
    /// Whether every request that comes over loopback was made on this machine: no proxy stands
    /// before the broker, and callers know it by a name that leads to this machine alone.
    #[must_use]
    pub fn is_of_this_machine_alone(&self) -> bool {
        let own_name = Url::parse(&self.issuer).is_ok_and(|url| is_loopback(&url));
        let proxied = self.tls.terminated_upstream || !self.trusted_proxies.is_empty();
        self.listen.ip().is_loopback() && !proxied && own_name
    }

    /// Connections at once from one address: where nothing is said an eighth of all, so that one
    /// cannot keep the others out, and not so few that a small limit troubles honest pools.
    #[must_use]
    pub fn connections_per_address(&self) -> usize {
        let share = (self.max_connections / 8).max(64);
        self.max_connections_per_address.unwrap_or(share)
    }
}

/// Ten thousand that say nothing leave room for those who speak.
fn default_max_connections() -> usize {
    12_000
}

/// `[server.tls]`: our own TLS, or the express statement that somebody else ends it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, as PEM.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its private key, as PEM; nobody else may read the file.
    #[serde(default)]
    pub private_key: Option<PathBuf>,
    /// What follows from a client's certificate.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// The only authorities whose client certificates are accepted, as PEM.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// A proxy before us ends TLS, and nothing but that proxy can reach us.
    #[serde(default)]
    pub terminated_upstream: bool,
}

/// What follows from a client's certificate (RFC 8705 §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// Nothing: none is asked for.
    #[default]
    None,
    /// One is asked for, not demanded, and what its holder gets is bound to it.
    Bind,
}

/// `[metrics]`: where metrics are read without credentials.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The address of a listener that serves metrics, and nothing else, to every client.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Whether only clients that may read metrics can reach `listen` from other machines.
    #[serde(default)]
    pub trusted_network: bool,
}

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// Embedded: one process, one locked directory.
    Sqlite,
    /// PostgreSQL: any number of replicas.
    Postgres,
}

/// `[store]`: where everything is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Which database.
    pub kind: StoreKind,
    /// Settings of the embedded store.
    #[serde(default)]
    pub sqlite: Option<Sqlite>,
    /// Settings of PostgreSQL.
    #[serde(default)]
    pub postgres: Option<Postgres>,
}

impl Store {
    /// The settings of PostgreSQL, or their defaults.
    #[must_use]
    pub fn postgres_or_default(&self) -> Postgres {
        self.postgres.clone().unwrap_or_default()
    }
}

/// `[store.sqlite]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sqlite {
    /// The directory of the database; locked while the broker runs.
    pub data_dir: PathBuf,
    /// Connections that read beside the one that writes.
    #[serde(default = "default_read_connections")]
    pub read_connections: u32,
    /// The size of the write-ahead log, in bytes, from which on nothing is issued.
    #[serde(default = "default_max_wal_bytes")]
    pub max_wal_bytes: u64,
}

fn default_max_wal_bytes() -> u64 {
    1 << 30
}

fn default_read_connections() -> u32 {
    4
}

/// `[store.postgres]`. The URL is a secret and comes from the environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Connections of this replica, the ledger's own beside them.
    pub max_connections: u32,
    /// How long a request may wait for a connection.
    pub acquire_timeout_seconds: u64,
    /// How long one statement may run.
    pub statement_timeout_seconds: u64,
    /// How long the ledger's append may wait for its lock, or idle inside its transaction: how
    /// long a frozen replica can hold up the others.
    pub append_timeout_seconds: u64,
    /// How old the last synchronous commit may be that the database's server acknowledged while what
    /// decides validity is read from it. With the synchronous standby gone, reads stop after this.
    pub read_lease_seconds: u64,
    /// Whether nobody can listen or interfere between us and a database on another host, so that
    /// the URL need not ask for `sslmode=verify-full`.
    pub trusted_network: bool,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            max_connections: 16,
            acquire_timeout_seconds: 3,
            statement_timeout_seconds: 5,
            append_timeout_seconds: 2,
            read_lease_seconds: DEFAULT_READ_LEASE_SECONDS,
            trusted_network: false,
        }
    }
}

/// `[ledger]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The log's name in checkpoints and leaves, without a scheme; it never changes.
    pub origin: String,
    /// Where this replica keeps the last checkpoint that it saw, outside the store.
    pub checkpoint_file: PathBuf,
    /// Where all replicas keep one together.
    pub shared_checkpoint: Option<SharedCheckpoint>,
    /// Who signs its checkpoints along.
    #[serde(default)]
    pub witnesses: Vec<Witness>,
}

/// `[[ledger.witnesses]]`: one that speaks C2SP tlog-witness.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The prefix of its submissions: `add-checkpoint` is added.
    pub url: String,
    /// The key that it signs with.
    pub vkey: String,
}

/// `[ledger.shared_checkpoint]`: a file or an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedCheckpoint {
    /// A file on a disk that all replicas share.
    pub file: Option<PathBuf>,
    /// An object that heeds conditional requests.
    pub url: Option<String>,
    /// What goes as `Authorization` with each request; read anew each time.
    pub authorization_file: Option<PathBuf>,
    /// The region of the bucket, where the object is one of S3: requests are signed with the
    /// broker's own credentials of AWS.
    pub s3_region: Option<String>,
    /// Other headers that go with each request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// The algorithm of access tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessTokenAlgorithm {
    /// ECDSA on P-256; every verifier has it.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSA, for verifiers that know nothing else; its key is brought along.
    #[serde(rename = "RS256")]
    Rs256,
}

impl AccessTokenAlgorithm {
    /// The name in a JWT's header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Rs256 => "RS256",
        }
    }
}

/// `[keys]`: the keys of access tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// What access tokens are signed with.
    pub access_token_algorithm: AccessTokenAlgorithm,
    /// The RSA key of RS256, as PEM; nobody else may read the file.
    pub rs256_private_key_file: Option<PathBuf>,
    /// How long one key signs.
    pub rotation_seconds: u64,
    /// How long a key is published before it signs.
    pub publish_lead_seconds: u64,
    /// How long verifiers may cache the published keys.
    pub jwks_cache_seconds: u64,
}

impl Keys {
    /// When keys are made, sign and are withdrawn.
    #[must_use]
    pub fn schedule(&self) -> KeySchedule {
        KeySchedule {
            publish_lead_seconds: self.publish_lead_seconds,
            period_seconds: self.rotation_seconds,
            slack_seconds: (self.rotation_seconds / 10).min(86_400),
            max_ttl_seconds: MAX_TTL_SECONDS,
            margin_seconds: 300,
        }
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            access_token_algorithm: AccessTokenAlgorithm::Es256,
            rs256_private_key_file: None,
            rotation_seconds: 2_592_000,
            publish_lead_seconds: 86_400,
            jwks_cache_seconds: 3_600,
        }
    }
}

/// `[admin]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// SHA-256, in hex, of the token that `taskpass keys bootstrap` printed.
    #[serde(default)]
    pub bootstrap_token_sha256: Option<String>,
}

/// `[policy]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The directory of the policies.
    pub directory: PathBuf,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            directory: "policies".into(),
        }
    }
}

/// `[limits]`. The limits on denials decide and are part of the generation; the others protect
/// the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// See [`DecisionLimits::denials_per_identity`].
    pub denials_per_identity: u32,
    /// See [`DecisionLimits::denials_per_attestor`].
    pub denials_per_attestor: u32,
    /// See [`DecisionLimits::denial_window_seconds`].
    pub denial_window_seconds: u64,
    /// Requests a second from one address, before anything is verified.
    pub address_requests_per_second: u32,
    /// How many of them may come at once.
    pub address_burst: u32,
    /// Requests a second of one identity, once it is verified.
    pub identity_requests_per_second: u32,
    /// How many of them may come at once.
    pub identity_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let decisions = DecisionLimits::default();
        Self {
            denials_per_identity: decisions.denials_per_identity,
            denials_per_attestor: decisions.denials_per_attestor,
            denial_window_seconds: decisions.denial_window_seconds,
            address_requests_per_second: 200,
            address_burst: 400,
            identity_requests_per_second: 50,
            identity_burst: 100,
        }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// How much the broker says; its dependencies stay at warnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may fail soon.
    Warn,
    /// And what happened.
    #[default]
    Info,
    /// And how.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The name in a filter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The form of lines.
    pub format: LogFormat,
    /// How much is said.
    pub level: LogLevel,
}
