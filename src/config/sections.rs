//! The sections of the file. `taskpass.example.toml` describes every key; a test compares the two.
//!
//! `File` is the whole file, and each section has a type with its defaults. An unknown key is an
//! error everywhere, so that a mistyped setting cannot leave a default in force. The types accept
//! values out of range and contradictions: `config::check` refuses those, and `document.rs` turns
//! errors of the types into complaints with a line. Endpoints, sinks, attestors and the catalog
//! have types in other modules.

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

/// The file as written.
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

/// `[aws]`: the replica's own use of AWS.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// For which roles the replica uses the AWS credentials of its host. `None`: for no role.
    #[serde(default)]
    pub own_credentials: Option<OwnCredentials>,
}

/// `[server]`: the broker's address and its connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The broker's external base URL: the `iss` of its tokens.
    pub issuer: String,
    /// The local address of the listener.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// How long the broker reports that it is not ready before it stops accepting connections, so
    /// that load balancers notice.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// How long accepted requests may take to finish after that.
    #[serde(default = "default_finish_seconds")]
    pub finish_seconds: u64,
    /// The longest time for one request.
    #[serde(default = "default_request_timeout_seconds")]
    pub request_timeout_seconds: u64,
    /// The longest time for a client's TLS handshake and request headers.
    #[serde(default = "default_header_timeout_seconds")]
    pub header_timeout_seconds: u64,
    /// Concurrent connections; more are refused.
    #[serde(default = "default_max_connections")]
    pub max_connections: usize,
    /// Concurrent connections from one address; more are refused.
    #[serde(default)]
    pub max_connections_per_address: Option<usize>,
    /// The networks of the proxies whose `X-Forwarded-For` names the client's address.
    #[serde(default)]
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the ledger's keys, checkpoint and hash tiles need no credential. Entries always need
    /// one.
    #[serde(default)]
    pub public_ledger: bool,
    /// Whether a DPoP proof must contain a nonce of the broker, so that it cannot be prepared in
    /// advance.
    #[serde(default = "default_require_dpop_nonce")]
    pub require_dpop_nonce: bool,
    /// The TLS settings of the listener.
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
    /// Whether every request over loopback comes from this machine: there is no proxy in front of
    /// the broker, and its issuer names this machine only.
    #[must_use]
    pub fn is_of_this_machine_alone(&self) -> bool {
        let own_name = Url::parse(&self.issuer).is_ok_and(|url| is_loopback(&url));
        let proxied = self.tls.terminated_upstream || !self.trusted_proxies.is_empty();
        self.listen.ip().is_loopback() && !proxied && own_name
    }

    /// Concurrent connections from one address. The default is an eighth of all, so that one
    /// address cannot exclude others, but at least 64, so that a small limit does not affect
    /// legitimate connection pools.
    #[must_use]
    pub fn connections_per_address(&self) -> usize {
        let share = (self.max_connections / 8).max(64);
        self.max_connections_per_address.unwrap_or(share)
    }
}

/// 12,000, so that 10,000 idle connections still leave 2,000 for active ones.
fn default_max_connections() -> usize {
    12_000
}

/// `[server.tls]`: the broker's own TLS, or the explicit statement that a proxy terminates it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, as PEM.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// The certificate's private key, as PEM; other users must not read the file.
    #[serde(default)]
    pub private_key: Option<PathBuf>,
    /// How the broker uses client certificates.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// The only authorities whose client certificates are accepted, as PEM.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// A proxy in front of the broker terminates TLS, and only that proxy can reach the broker.
    #[serde(default)]
    pub terminated_upstream: bool,
}

/// How the broker uses client certificates (RFC 8705 §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// They are not requested.
    #[default]
    None,
    /// They are requested but optional. Tokens of a client with a certificate are bound to it.
    Bind,
}

/// `[metrics]`: the listener that serves metrics without credentials.
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

/// The kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// An embedded database: one process and one locked directory.
    Sqlite,
    /// A database server for any number of replicas.
    Postgres,
}

/// `[store]`: the database with all state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Store {
    pub kind: StoreKind,
    #[serde(default)]
    pub sqlite: Option<Sqlite>,
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
    /// Connections for reading, in addition to the one for writing.
    #[serde(default = "default_read_connections")]
    pub read_connections: u32,
    /// The size of the write-ahead log, in bytes, above which the broker issues no credentials.
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
    /// Connections of this replica, in addition to the ledger's own.
    pub max_connections: u32,
    /// The longest time that a request waits for a connection.
    pub acquire_timeout_seconds: u64,
    /// The longest time for one statement.
    pub statement_timeout_seconds: u64,
    /// The longest time that the ledger's append waits for its lock or is idle inside its
    /// transaction. A frozen replica can delay the others for that long.
    pub append_timeout_seconds: u64,
    /// The longest age of the last synchronous commit that the database's server acknowledged. When
    /// the synchronous standby fails, reads that decide validity stop after this time.
    pub read_lease_seconds: u64,
    /// Whether the network to a database on another host is trusted, so that the URL does not need
    /// `sslmode=verify-full`.
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
    /// The file in which this replica keeps the last checkpoint that it saw, outside the store.
    pub checkpoint_file: PathBuf,
    /// The checkpoint that all replicas share.
    pub shared_checkpoint: Option<SharedCheckpoint>,
    /// The witnesses that cosign the log's checkpoints.
    #[serde(default)]
    pub witnesses: Vec<Witness>,
}

/// `[[ledger.witnesses]]`: a witness with the protocol C2SP tlog-witness.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The base URL of its API; the broker appends `/add-checkpoint`.
    pub url: String,
    /// The witness's verifier key.
    pub vkey: String,
}

/// `[ledger.shared_checkpoint]`: a file or an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedCheckpoint {
    /// A file on a disk that all replicas share.
    pub file: Option<PathBuf>,
    /// The URL of an object whose server supports conditional requests.
    pub url: Option<String>,
    /// The file with the `Authorization` header of each request; it is read for each request.
    pub authorization_file: Option<PathBuf>,
    /// The bucket's region if the object is in S3. The broker signs the requests with its own AWS
    /// credentials.
    pub s3_region: Option<String>,
    /// Additional headers of each request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// The algorithm of access tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessTokenAlgorithm {
    /// ECDSA on P-256; every verifier supports it.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519; not every verifier supports it.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSA, for verifiers that support no other algorithm. The operator supplies its key.
    #[serde(rename = "RS256")]
    Rs256,
}

impl AccessTokenAlgorithm {
    /// The algorithm's name in a JWT's header.
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
    /// The algorithm that signs access tokens.
    pub access_token_algorithm: AccessTokenAlgorithm,
    /// The file with the RSA key of RS256, as PEM; other users must not read it.
    pub rs256_private_key_file: Option<PathBuf>,
    /// How long one key signs.
    pub rotation_seconds: u64,
    /// How long a key is published before it signs.
    pub publish_lead_seconds: u64,
    /// How long verifiers may cache the published keys.
    pub jwks_cache_seconds: u64,
}

impl Keys {
    /// When the broker creates keys, signs with them and withdraws them.
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
    /// The directory with the policy files.
    pub directory: PathBuf,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            directory: "policies".into(),
        }
    }
}

/// `[limits]`. The limits on denials affect decisions and belong to the generation; the others
/// protect the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The generation's limit [`DecisionLimits::denials_per_identity`].
    pub denials_per_identity: u32,
    /// The generation's limit [`DecisionLimits::denials_per_attestor`].
    pub denials_per_attestor: u32,
    /// The generation's limit [`DecisionLimits::denial_window_seconds`].
    pub denial_window_seconds: u64,
    /// Requests per second from one address, before evidence is verified.
    pub address_requests_per_second: u32,
    /// The largest burst of requests from one address.
    pub address_burst: u32,
    /// Requests per second of one identity, after its evidence was verified.
    pub identity_requests_per_second: u32,
    /// The largest burst of requests of one identity.
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

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text for reading in a terminal.
    Text,
}

/// The level of the broker's log lines; dependencies log warnings only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level's name in a filter.
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

/// `[log]`: the format and the level of log lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}
