//! Checks that the file's types cannot make: ranges, contradictions, the secrets, and the files
//! that it names.
//!
//! `Checker` collects the faults, and `Checker::finish` returns all of them as [`ConfigErrors`]. A
//! fault in one section does not hide those of the others, but can hide further ones of its own. A
//! setting without effect is refused like a wrong one: its author believes that it works. Secrets
//! come only from files that other users cannot access.
//!
//! `Config::parse` checks the text and the variables, and `Config::load` then the other files.
//! Rules of the domain are checked by its own types ([`Catalog`], `KeySchedule`), whose errors this
//! file gives a line. Sinks and endpoints have files of their own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretString};
use tracing_subscriber::EnvFilter;
use url::Url;
use zeroize::Zeroizing;

use super::database::{self, DatabaseFault};
use super::document::{Document, catalog_complaint};
use super::environment::{Environment, NotText};
use super::error::{ConfigError, ConfigErrors};
use super::sections::{self, AccessTokenAlgorithm, ClientCertificates, StoreKind};
use super::{
    Config, DATABASE_URL_VARIABLE, DEV_ORIGIN_HOST, LOG_VARIABLE, Mode, SEALING_KEYS_VARIABLE,
    Scope, Secrets,
};
use crate::crypto::sealer::SealingKeys;
use crate::crypto::signer::PrivateKey;
use crate::domain::catalog::{Catalog, CatalogError, Resource, TaskType};
use crate::domain::limits::{CUT_WAL_BYTES, MAX_LEDGER_KEYS, MAX_NAME_BYTES};
use crate::domain::trust::AttestorSpec;
use crate::files::secret_in;
use crate::merkle::{MAX_NOTE_SIGNATURES, WitnessKey};

/// The longest origin of a log, in bytes.
const MAX_ORIGIN_BYTES: usize = 255;

/// The most witnesses of one log. A note holds that many signatures and those of the log's keys.
const MAX_WITNESSES: usize = 16;
const _: () = assert!(MAX_WITNESSES + MAX_LEDGER_KEYS <= MAX_NOTE_SIGNATURES);

/// Collects the errors of a configuration.
pub(super) struct Checker<'d> {
    document: &'d Document<'d>,
    errors: Vec<ConfigError>,
}

pub(super) fn own_audiences(issuer: &str, attestors: &[AttestorSpec]) -> Vec<String> {
    let audiences = attestors
        .iter()
        .filter_map(|spec| spec.audience().map(str::to_owned));
    let all: BTreeSet<_> = audiences.chain([issuer.to_owned()]).collect();
    all.into_iter().collect()
}

impl<'d> Checker<'d> {
    pub(super) fn new(document: &'d Document<'d>) -> Self {
        Self {
            document,
            errors: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        ConfigErrors::check(self.errors)
    }

    pub(super) fn refuse(
        &mut self,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.errors.push(self.document.error(key, problem, remedy));
    }

    fn refuse_variable(&mut self, name: &str, problem: &str, remedy: impl Into<String>) {
        let path = self.document.path();
        self.errors
            .push(ConfigError::unplaced(path, name, problem, remedy));
    }

    pub(super) fn range(&mut self, key: &str, value: u64, min: u64, max: u64) {
        if !(min..=max).contains(&value) {
            self.refuse(
                key,
                format!("is {value}"),
                format!("give a whole number from {min} to {max}"),
            );
        }
    }

    pub(super) fn check(&mut self, file: &sections::File, mode: Mode) {
        self.issuer(file);
        self.tls(file);
        self.trusted_proxies(file);
        self.metrics(file);
        self.times(file);
        self.store(file, mode);
        self.ledger(file, mode);
        self.keys(file);
        self.admin(file);
        self.attestors(file);
        self.catalog(file);
        self.limits(file);
        self.exports(file);
    }

    fn issuer(&mut self, file: &sections::File) {
        let key = "server.issuer";
        let remedy = "give the external base URL, for example https://broker.example";
        let Ok(url) = Url::parse(&file.server.issuer) else {
            return self.refuse(key, "is not a URL", remedy);
        };
        let secure = url.scheme() == "https" && url.host().is_some();
        if !(secure || is_plain_on_loopback(&url)) {
            let remedy = "use https; http is for loopback addresses only";
            return self.refuse(key, "is neither https nor http on loopback", remedy);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return self.refuse(key, "has a query or a fragment", "remove it");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return self.refuse(key, "has a user or a password", "remove it");
        }
        if file.server.issuer.ends_with('/') {
            let remedy = "remove it: tokens carry the issuer exactly as written";
            return self.refuse(key, "has a trailing slash", remedy);
        }
        if url.path() != "/" {
            let remedy = "give the broker its own host name and remove the path";
            return self.refuse(key, "has a path", remedy);
        }
        if url.as_str().trim_end_matches('/') != file.server.issuer {
            let remedy = format!("write {}", url.as_str().trim_end_matches('/'));
            return self.refuse(key, "is not in its normal form", remedy);
        }
        let tls = &file.server.tls;
        if url.scheme() == "https" && tls.certificate.is_none() && !tls.terminated_upstream {
            self.refuse(
                key,
                "is https, but nothing serves TLS",
                "configure [server.tls], or set terminated_upstream there",
            );
        }
        if url.scheme() == "http" && tls.certificate.is_some() {
            let remedy = "write https, or remove the certificate";
            self.refuse(key, "is http, but [server.tls] serves TLS", remedy);
        }
    }

    fn tls(&mut self, file: &sections::File) {
        let tls = &file.server.tls;
        match (&tls.certificate, &tls.private_key) {
            (Some(_), None) => self.refuse(
                "server.tls.certificate",
                "has no private key",
                "add private_key",
            ),
            (None, Some(_)) => self.refuse(
                "server.tls.private_key",
                "has no certificate",
                "add certificate",
            ),
            _ => {}
        }
        if tls.client_ca.is_some() && tls.certificate.is_none() {
            let remedy = "the broker must serve TLS itself: add certificate and private_key";
            self.refuse("server.tls.client_ca", "has no effect without TLS", remedy);
        } else if tls.client_ca.is_some() && tls.client_certificates == ClientCertificates::None {
            let remedy = "write client_certificates = \"bind\", or remove it";
            self.refuse(
                "server.tls.client_ca",
                "has no effect: client certificates are not requested",
                remedy,
            );
        }
        if tls.client_certificates == ClientCertificates::Bind && tls.certificate.is_none() {
            // Only the end of the TLS connection sees the client's key. Clients that bypass a proxy
            // could forge a header with which the proxy passes the key on.
            self.refuse(
                "server.tls.client_certificates",
                "cannot bind tokens: the broker does not see client certificates",
                "the broker must serve TLS itself: add certificate and private_key, or \
                 write \"none\"",
            );
        }
        if tls.terminated_upstream && (tls.certificate.is_some() || tls.private_key.is_some()) {
            self.refuse(
                "server.tls.terminated_upstream",
                "contradicts the configured certificate",
                "keep only one of the two",
            );
        }
        let loopback = file.server.listen.ip().is_loopback();
        if !loopback && tls.certificate.is_none() && !tls.terminated_upstream {
            self.refuse(
                "server.listen",
                "is reachable from other machines without TLS",
                "configure [server.tls], or set terminated_upstream there, or listen \
                 on 127.0.0.1",
            );
        }
    }

    /// Refuses networks that may be wider than intended: clients in them could choose the address
    /// that the broker records for them.
    fn trusted_proxies(&mut self, file: &sections::File) {
        for (index, network) in file.server.trusted_proxies.iter().enumerate() {
            let key = format!("server.trusted_proxies.{index}");
            if network.prefix_len() == 0 {
                let remedy = "name only the networks of the proxies";
                self.refuse(&key, "contains every address", remedy);
            } else if network.trunc() != *network {
                let remedy = format!("write {}", network.trunc());
                self.refuse(&key, "has bits beyond its prefix", remedy);
            } else if let IpNet::V6(v6) = network
                && v6.addr().to_ipv4_mapped().is_some()
            {
                let remedy = "write it as an IPv4 network, such as 10.0.0.0/8";
                self.refuse(&key, "maps IPv4 addresses", remedy);
            }
        }
    }

    fn metrics(&mut self, file: &sections::File) {
        let metrics = &file.metrics;
        let Some(listen) = metrics.listen else {
            if metrics.trusted_network {
                self.refuse(
                    "metrics.trusted_network",
                    "has no effect without `listen`",
                    "add metrics.listen, or remove it",
                );
            }
            return;
        };
        if !listen.ip().is_loopback() && !metrics.trusted_network {
            self.refuse(
                "metrics.listen",
                "shows metrics to other machines without credentials",
                "listen on 127.0.0.1, or set `trusted_network = true` if only clients that may \
                 read metrics can reach it",
            );
        }
        let server = file.server.listen;
        let overlap = listen.ip() == server.ip()
            || listen.ip().is_unspecified()
            || server.ip().is_unspecified();
        if listen.port() != 0 && listen.port() == server.port() && overlap {
            self.refuse(
                "metrics.listen",
                "is the address of server.listen, which callers can reach",
                "give metrics another port",
            );
        }
    }

    fn times(&mut self, file: &sections::File) {
        let server = &file.server;
        let ranges = [
            ("drain_seconds", server.drain_seconds, 0, 300),
            ("finish_seconds", server.finish_seconds, 1, 600),
            (
                "request_timeout_seconds",
                server.request_timeout_seconds,
                1,
                300,
            ),
            (
                "header_timeout_seconds",
                server.header_timeout_seconds,
                1,
                60,
            ),
            (
                "max_connections",
                server.max_connections as u64,
                1,
                1_000_000,
            ),
            (
                "max_connections_per_address",
                server.connections_per_address() as u64,
                1,
                1_000_000,
            ),
        ];
        for (name, value, min, max) in ranges {
            self.range(&format!("server.{name}"), value, min, max);
        }
        if server.finish_seconds < server.request_timeout_seconds {
            self.refuse(
                "server.finish_seconds",
                "is shorter than request_timeout_seconds: a stop would interrupt requests",
                format!("give at least {}", server.request_timeout_seconds),
            );
        }
        if server.header_timeout_seconds > server.request_timeout_seconds {
            self.refuse(
                "server.header_timeout_seconds",
                "is longer than request_timeout_seconds",
                format!("give at most {}", server.request_timeout_seconds),
            );
        }
    }

    fn store(&mut self, file: &sections::File, mode: Mode) {
        let store = &file.store;
        match store.kind {
            StoreKind::Sqlite => {
                if store.postgres.is_some() {
                    let remedy = "remove it, or set `kind = \"postgres\"`";
                    self.refuse("store.postgres", "is not used by `sqlite`", remedy);
                }
                match &store.sqlite {
                    None => self.refuse(
                        "store.kind",
                        "is `sqlite`, which needs a directory",
                        "add [store.sqlite] with data_dir",
                    ),
                    Some(sqlite) => {
                        let connections = u64::from(sqlite.read_connections);
                        self.range("store.sqlite.read_connections", connections, 1, 64);
                        let (least, most) = (CUT_WAL_BYTES, 1 << 40);
                        let bytes = sqlite.max_wal_bytes;
                        self.range("store.sqlite.max_wal_bytes", bytes, least, most);
                        let beside = file.ledger.checkpoint_file.starts_with(&sqlite.data_dir);
                        if mode == Mode::Production && beside {
                            self.refuse(
                                "ledger.checkpoint_file",
                                "is in the store's directory and would be rewound with it",
                                "store it in another directory, if possible on another disk",
                            );
                        }
                    }
                }
            }
            StoreKind::Postgres => {
                if store.sqlite.is_some() {
                    let remedy = "remove it, or set `kind = \"sqlite\"`";
                    self.refuse("store.sqlite", "is not used by `postgres`", remedy);
                }
                let postgres = store.postgres_or_default();
                let ranges = [
                    (
                        "max_connections",
                        u64::from(postgres.max_connections),
                        2,
                        1_000,
                    ),
                    (
                        "acquire_timeout_seconds",
                        postgres.acquire_timeout_seconds,
                        1,
                        60,
                    ),
                    (
                        "statement_timeout_seconds",
                        postgres.statement_timeout_seconds,
                        1,
                        60,
                    ),
                    (
                        "append_timeout_seconds",
                        postgres.append_timeout_seconds,
                        1,
                        10,
                    ),
                    ("read_lease_seconds", postgres.read_lease_seconds, 2, 60),
                ];
                for (name, value, min, max) in ranges {
                    self.range(&format!("store.postgres.{name}"), value, min, max);
                }
            }
        }
    }

    fn ledger(&mut self, file: &sections::File, mode: Mode) {
        let key = "ledger.origin";
        let origin = &file.ledger.origin;
        let remedy = "give a name without a scheme, for example broker.example/log";
        if origin.is_empty() || origin.len() > MAX_ORIGIN_BYTES {
            let problem = format!("is empty or longer than {MAX_ORIGIN_BYTES} bytes");
            return self.refuse(key, problem, remedy);
        }
        let plain = |b: u8| b.is_ascii_graphic() && b != b'+';
        if !origin.bytes().all(plain) {
            let problem = "has a space, a plus sign or an unprintable character";
            return self.refuse(key, problem, remedy);
        }
        if origin.contains("://") {
            return self.refuse(key, "has a scheme", remedy);
        }
        let host = origin.split(['/', ':']).next().unwrap_or_default();
        let host = host.to_ascii_lowercase();
        let dev = host == DEV_ORIGIN_HOST || host.ends_with(&format!(".{DEV_ORIGIN_HOST}"));
        match mode {
            Mode::Production if dev => {
                self.refuse(key, "is the origin of a development ledger", remedy);
            }
            Mode::Dev if !dev => {
                let remedy = format!("use {DEV_ORIGIN_HOST} for development");
                self.refuse(key, "is not the origin of a development ledger", remedy);
            }
            _ => {}
        }
        if let Some(shared) = &file.ledger.shared_checkpoint {
            self.shared_checkpoint(shared, file);
        }
        self.witnesses(&file.ledger.witnesses, origin);
    }

    fn witnesses(&mut self, witnesses: &[sections::Witness], origin: &str) {
        if witnesses.len() > MAX_WITNESSES {
            let remedy = format!("keep at most {MAX_WITNESSES}");
            self.refuse("ledger.witnesses", "has too many entries", remedy);
        }
        let mut names = BTreeSet::from([origin.to_owned()]);
        for (index, witness) in witnesses.iter().enumerate() {
            let key = |part: &str| format!("ledger.witnesses.{index}.{part}");
            if !is_safe_to_ask(&witness.url) {
                self.refuse(
                    &key("url"),
                    "is not safe to send requests to",
                    "give an https URL (http on loopback only) without a user, password, query or \
                     fragment; the broker appends `/add-checkpoint` to it",
                );
            }
            match witness.vkey.parse::<WitnessKey>() {
                Err(error) => self.refuse(
                    &key("vkey"),
                    format!("is not a witness key: {error}"),
                    "give the key that the witness publishes, of type 0x04: <name>+<id>+<base64>",
                ),
                Ok(vkey) if !names.insert(vkey.name().to_owned()) => self.refuse(
                    &key("vkey"),
                    format!("has the name of another witness, `{}`", vkey.name()),
                    "list each witness once",
                ),
                Ok(_) => {}
            }
        }
    }

    fn shared_checkpoint(&mut self, shared: &sections::SharedCheckpoint, file: &sections::File) {
        let key = |part: &str| format!("ledger.shared_checkpoint{part}");
        match (&shared.file, &shared.url) {
            (None, None) => {
                let remedy = "give a file on a disk that all replicas share, or a url";
                return self.refuse(&key(""), "names neither a file nor a URL", remedy);
            }
            (Some(_), Some(_)) => {
                return self.refuse(
                    &key(".url"),
                    "is set together with file",
                    "remove one of them",
                );
            }
            (Some(path), None) => {
                if *path == file.ledger.checkpoint_file {
                    let remedy = "give another path: that one is this replica's own";
                    self.refuse(&key(".file"), "is ledger.checkpoint_file", remedy);
                }
                let sqlite = file.store.sqlite.as_ref();
                if sqlite.is_some_and(|sqlite| path.starts_with(&sqlite.data_dir)) {
                    let problem = "is in the store's directory and would be rewound with it";
                    self.refuse(&key(".file"), problem, "store it in another directory");
                }
                let asked = shared.authorization_file.is_some() || shared.s3_region.is_some();
                if asked || !shared.headers.is_empty() {
                    let remedy = "remove authorization_file, s3_region and headers";
                    self.refuse(&key(".file"), "takes no headers", remedy);
                }
                return;
            }
            (None, Some(text)) => {
                if !is_safe_to_ask(text) {
                    self.refuse(
                        &key(".url"),
                        "is not safe to send requests to",
                        "give an https URL (http on loopback only) without a user, password, query \
                         or fragment; put secrets into authorization_file",
                    );
                }
            }
        }
        if shared.s3_region.is_some() && shared.authorization_file.is_some() {
            let remedy = "remove one of them: S3 requires AWS signatures";
            self.refuse(
                &key(".s3_region"),
                "is set together with authorization_file",
                remedy,
            );
        }
        let secret = |name: &&String| {
            let name = name.to_ascii_lowercase();
            ["authorization", "cookie", "if-match", "if-none-match"].contains(&name.as_str())
        };
        if let Some(name) = shared.headers.keys().find(secret) {
            let remedy = "remove it; put secrets into authorization_file";
            self.refuse(&key(".headers"), format!("must not have `{name}`"), remedy);
        }
        let header = |(name, value): &(&String, &String)| {
            reqwest::header::HeaderName::try_from(*name).is_err()
                || reqwest::header::HeaderValue::try_from(*value).is_err()
        };
        if let Some((name, _)) = shared.headers.iter().find(header) {
            let remedy = "give header names and values that are valid in HTTP";
            self.refuse(
                &key(".headers"),
                format!("`{name}` is not a valid header"),
                remedy,
            );
        }
    }

    fn keys(&mut self, file: &sections::File) {
        let keys = &file.keys;
        let rs256 = keys.access_token_algorithm == AccessTokenAlgorithm::Rs256;
        match (&keys.rs256_private_key_file, rs256) {
            (None, true) => self.refuse(
                "keys.access_token_algorithm",
                "is RS256, for which the broker does not create keys",
                "add rs256_private_key_file, or use ES256",
            ),
            (Some(_), false) => self.refuse(
                "keys.rs256_private_key_file",
                "is not used by this algorithm",
                "remove it, or set `access_token_algorithm = \"RS256\"`",
            ),
            _ => {}
        }
        let ranges = [
            ("rotation_seconds", keys.rotation_seconds, 3_600, 31_536_000),
            (
                "publish_lead_seconds",
                keys.publish_lead_seconds,
                60,
                2_592_000,
            ),
            ("jwks_cache_seconds", keys.jwks_cache_seconds, 60, 86_400),
        ];
        for (name, value, min, max) in ranges {
            self.range(&format!("keys.{name}"), value, min, max);
        }
        if keys.publish_lead_seconds >= keys.rotation_seconds {
            self.refuse(
                "keys.publish_lead_seconds",
                "is not shorter than rotation_seconds: the next key would be due before the current \
                 one signs",
                format!("give less than {}", keys.rotation_seconds),
            );
        } else if keys.schedule().check().is_err() {
            let slack = keys.schedule().slack_seconds;
            self.refuse(
                "keys.publish_lead_seconds",
                format!(
                    "leaves less than {slack} seconds of rotation_seconds, which the broker \
                     reserves for creating the next key"
                ),
                format!(
                    "give less than {}",
                    keys.rotation_seconds.saturating_sub(slack)
                ),
            );
        }
        if keys.publish_lead_seconds < keys.jwks_cache_seconds {
            self.refuse(
                "keys.publish_lead_seconds",
                "is shorter than jwks_cache_seconds: verifiers would receive tokens of unknown keys",
                format!("give at least {}", keys.jwks_cache_seconds),
            );
        }
    }

    fn admin(&mut self, file: &sections::File) {
        let Some(hash) = &file.admin.bootstrap_token_sha256 else {
            return;
        };
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.refuse(
                "admin.bootstrap_token_sha256",
                "is not 64 hex digits",
                "give the SHA-256 that `taskpass keys bootstrap` printed, never the token itself",
            );
        }
    }

    fn attestors(&mut self, file: &sections::File) {
        if file.attestors.is_empty() {
            let remedy = "add an [[attestors]] that names an issuer you trust";
            self.refuse(
                "attestors",
                "is empty: no evidence could be accepted",
                remedy,
            );
        }
        let mut names = BTreeSet::new();
        let mut pairs = BTreeSet::new();
        for (index, spec) in file.attestors.iter().enumerate() {
            let key = |part: &str| format!("attestors.{index}.{part}");
            let name = spec.name();
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
                let remedy = format!("use 1 to {MAX_NAME_BYTES} of a-z, 0-9, `-` and `_`");
                self.refuse(
                    &key("name"),
                    "is empty, too long or has a character that is not allowed",
                    remedy,
                );
            }
            if !names.insert(name) {
                let remedy = "give each attestor a different name";
                self.refuse(&key("name"), "is used twice", remedy);
            }
            let oidc = match spec {
                AttestorSpec::Oidc(oidc) => oidc,
                AttestorSpec::Key(spec) => {
                    for (at, registered) in spec.keys.iter().enumerate() {
                        let private = ["d", "k"].iter().any(|m| registered.jwk.get(m).is_some());
                        if private {
                            self.refuse(
                                &key(&format!("keys.{at}.jwk")),
                                "holds a private or symmetric key",
                                "give the public key of a new pair: treat this one as compromised",
                            );
                        }
                    }
                    continue;
                }
                AttestorSpec::Spiffe(_) => continue,
            };
            if !pairs.insert((oidc.issuer.trim_end_matches('/'), &oidc.audience)) {
                self.refuse(
                    &key("audience"),
                    "is shared with another attestor of the same issuer: one token would yield two \
                     identities",
                    "merge the two attestors, or give each its own audience",
                );
            }
            if oidc.issuer.trim_end_matches('/') == file.server.issuer.trim_end_matches('/') {
                self.refuse(
                    &key("issuer"),
                    "is the broker's own issuer: its tokens would be accepted as attestations",
                    "give the issuer of your workloads",
                );
            }
            if oidc.audience.is_empty() {
                self.refuse(
                    &key("audience"),
                    "is empty",
                    "give a value that identifies this broker only",
                );
            }
        }
    }

    fn catalog(&mut self, file: &sections::File) {
        let own = own_audiences(&file.server.issuer, &file.attestors);
        let result = Catalog::new(file.resources.clone(), file.task_types.clone(), &own);
        let Err(error) = result else { return };
        let (what, name) = match &error {
            CatalogError::Name { what, name }
            | CatalogError::Duplicate { what, name }
            | CatalogError::Invalid { what, name, .. } => (*what, name),
        };
        let (list, index) = if what == "resource" {
            let named = |r: &Resource| r.name == *name;
            ("resources", file.resources.iter().rposition(named))
        } else {
            let named = |t: &TaskType| t.name == *name;
            ("task_types", file.task_types.iter().rposition(named))
        };
        let key = format!("{list}.{}", index.unwrap_or_default());
        let (problem, remedy) = catalog_complaint(&error);
        self.refuse(&key, problem, remedy);
    }

    fn limits(&mut self, file: &sections::File) {
        let limits = &file.limits;
        let retention = &file.retention;
        let ranges = [
            (
                "limits.denials_per_identity",
                limits.denials_per_identity,
                1_000_000,
            ),
            (
                "limits.denials_per_attestor",
                limits.denials_per_attestor,
                1_000_000,
            ),
            (
                "limits.address_requests_per_second",
                limits.address_requests_per_second,
                1_000_000,
            ),
            ("limits.address_burst", limits.address_burst, 1_000_000),
            (
                "limits.identity_requests_per_second",
                limits.identity_requests_per_second,
                1_000_000,
            ),
            ("limits.identity_burst", limits.identity_burst, 1_000_000),
            ("retention.bodies_days", retention.bodies_days, 36_500),
            ("retention.openings_days", retention.openings_days, 36_500),
            ("retention.sessions_days", retention.sessions_days, 36_500),
        ];
        for (key, value, max) in ranges {
            self.range(key, u64::from(value), 1, max);
        }
        let window = limits.denial_window_seconds;
        self.range("limits.denial_window_seconds", window, 1, 3_600);
        if limits.denials_per_identity > limits.denials_per_attestor {
            self.refuse(
                "limits.denials_per_identity",
                "is more than denials_per_attestor: one identity could use up the attestor's limit",
                format!("give at most {}", limits.denials_per_attestor),
            );
        }
        if retention.openings_days > retention.bodies_days {
            self.refuse(
                "retention.openings_days",
                "is more than bodies_days: the bodies would be deleted before their openings",
                format!("give at most {}", retention.bodies_days),
            );
        }
    }

    pub(super) fn log_filter(&mut self, environment: &dyn Environment) -> Option<String> {
        let Ok(filter) = environment.get(LOG_VARIABLE) else {
            self.refuse_variable(LOG_VARIABLE, "is not UTF-8", "set it to a filter in UTF-8");
            return None;
        };
        let filter = filter.filter(|text| !text.is_empty())?;
        if EnvFilter::builder().parse(&filter).is_err() {
            let remedy = "write it like `warn,taskpass=debug`";
            self.refuse_variable(LOG_VARIABLE, "is not a filter", remedy);
            return None;
        }
        Some(filter)
    }

    /// Reads the secrets in the environment, and checks that they fit the file.
    pub(super) fn secrets(
        &mut self,
        file: &sections::File,
        environment: &dyn Environment,
        mode: Mode,
        scope: Scope,
    ) -> Secrets {
        if scope == Scope::Text {
            return Secrets::default();
        }
        let database_url = self.database_url(file, environment);
        let sealing_keys = if scope == Scope::Replica {
            self.sealing_keys(environment, mode)
        } else {
            Vec::new()
        };
        Secrets {
            database_url,
            sealing_keys,
            rs256_private_key: None,
            webhooks: Vec::new(),
        }
    }

    fn database_url(
        &mut self,
        file: &sections::File,
        environment: &dyn Environment,
    ) -> Option<SecretString> {
        let database_url = self.secret(environment, DATABASE_URL_VARIABLE);
        match (file.store.kind, &database_url) {
            (StoreKind::Sqlite, Some(_)) => self.refuse(
                "store.kind",
                format!("is `sqlite`, but {DATABASE_URL_VARIABLE} names a database"),
                "unset the variable, or set `kind = \"postgres\"`",
            ),
            (StoreKind::Postgres, None) => self.refuse(
                "store.kind",
                "is `postgres`, but no database is named",
                format!("set {DATABASE_URL_VARIABLE} or {DATABASE_URL_VARIABLE}_FILE"),
            ),
            (StoreKind::Postgres, Some(url)) => {
                let trusted = file.store.postgres_or_default().trusted_network;
                match database::check(url, trusted) {
                    Ok(()) => {}
                    Err(DatabaseFault::NoUrl) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        "is not a PostgreSQL URL",
                        "write it like postgres://user:password@host/database",
                    ),
                    Err(DatabaseFault::Unknown(name)) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        &format!("has the parameter `{name}`, which would be ignored"),
                        "remove it or correct its spelling; put server settings into the parameter \
                         `options`",
                    ),
                    Err(DatabaseFault::Unproven) => self.refuse_variable(
                        DATABASE_URL_VARIABLE,
                        "leads, together with the environment's variables, to a database on another \
                         host without verifying its certificate",
                        "append sslmode=verify-full&sslrootcert=FILE, or set `trusted_network = \
                         true` in [store.postgres] if the network between the two is trusted",
                    ),
                }
            }
            (StoreKind::Sqlite, None) => {}
        }
        database_url.map(|url| SecretString::from(url.as_str()))
    }

    fn sealing_keys(&mut self, environment: &dyn Environment, mode: Mode) -> Vec<SecretString> {
        let keys = self.secret(environment, SEALING_KEYS_VARIABLE);
        if keys.is_none() && mode == Mode::Production {
            self.refuse_variable(
                SEALING_KEYS_VARIABLE,
                "is not set: the broker could not seal its own keys",
                format!("set it or {SEALING_KEYS_VARIABLE}_FILE to at least one sealing key"),
            );
        }
        let listed = keys.as_ref().map_or("", |keys| keys.as_str());
        let listed: Vec<&str> = listed
            .split([',', '\n'])
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_some() && listed.is_empty() {
            let remedy = "give sealing keys, separated by commas or lines";
            self.refuse_variable(SEALING_KEYS_VARIABLE, "holds no key", remedy);
        }
        if listed.iter().collect::<BTreeSet<_>>().len() < listed.len() {
            let remedy = "give each key once; the first seals, all of them open";
            self.refuse_variable(SEALING_KEYS_VARIABLE, "holds a key twice", remedy);
        }
        let listed: Vec<SecretString> = listed.into_iter().map(SecretString::from).collect();
        if !listed.is_empty()
            && let Err(error) = SealingKeys::parse(&listed)
        {
            let problem = format!("cannot seal: {error}");
            let remedy = "make a key with `taskpass keys sealing-key`";
            self.refuse_variable(SEALING_KEYS_VARIABLE, &problem, remedy);
        }
        listed
    }

    /// The value of `name`, or the content of the file that `name_FILE` names.
    fn secret(&mut self, environment: &dyn Environment, name: &str) -> Option<Zeroizing<String>> {
        let file_name = format!("{name}_FILE");
        let mut read = |name: &str| {
            let value = environment.get(name).unwrap_or_else(|NotText| {
                self.refuse_variable(name, "is not UTF-8", "set it in UTF-8");
                None
            });
            value.map(Zeroizing::new)
        };
        match (read(name), read(&file_name)) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                let remedy = format!("unset it or {file_name}");
                self.refuse_variable(name, "is set together with its _FILE variable", remedy);
                None
            }
            (Some(value), None) if value.trim().is_empty() => {
                self.refuse_variable(name, "is set and empty", "give it a value or unset it");
                None
            }
            (Some(value), None) => Some(trimmed(&value)),
            (None, Some(path)) => {
                match read_secret(Path::new(path.as_str())) {
                    Ok(text) if secret_in(&text).is_empty() => self.refuse_variable(
                        &file_name,
                        "names an empty file",
                        "write the secret to it",
                    ),
                    Ok(text) => return Some(trimmed(&text)),
                    Err((problem, remedy)) => self.refuse_variable(&file_name, &problem, remedy),
                }
                None
            }
        }
    }

    /// Checks the files that the configuration names. Returns the RSA key if one is configured.
    pub(super) fn files(&mut self, config: &Config) -> Option<SecretString> {
        let tls = &config.server.tls;
        let open = [
            ("server.tls.certificate", &tls.certificate),
            ("server.tls.client_ca", &tls.client_ca),
        ];
        for (key, path) in open {
            if let Some(path) = path
                && let Err(error) = std::fs::read(path)
            {
                self.refuse(
                    key,
                    unreadable(path, &error),
                    "make it readable to the broker",
                );
            }
        }
        self.protected("server.tls.private_key", tls.private_key.as_ref());
        if config.mode == Mode::Production && !config.policy.directory.is_dir() {
            let problem = format!("is not a directory: {}", config.policy.directory.display());
            let remedy = "give the directory of the policies";
            self.refuse("policy.directory", problem, remedy);
        }
        let shared = config.ledger.shared_checkpoint.as_ref();
        self.protected(
            "ledger.shared_checkpoint.authorization_file",
            shared.and_then(|shared| shared.authorization_file.as_ref()),
        );
        let key = "keys.rs256_private_key_file";
        let rsa = self.protected(key, config.keys.rs256_private_key_file.as_ref())?;
        if let Err(error) = PrivateKey::import_rsa_pem(rsa.expose_secret().as_bytes()) {
            let problem = format!("names a file that cannot be used: {error}");
            let remedy = "give a PEM file with one RSA key of 2048 to 4096 bits";
            self.refuse(key, problem, remedy);
        }
        Some(rsa)
    }

    fn protected(&mut self, key: &str, path: Option<&PathBuf>) -> Option<SecretString> {
        match read_secret(path?) {
            Ok(text) => Some(SecretString::from(text.as_str())),
            Err((problem, remedy)) => {
                self.refuse(key, problem, remedy);
                None
            }
        }
    }
}

fn trimmed(text: &str) -> Zeroizing<String> {
    Zeroizing::new(secret_in(text).to_owned())
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("names {}, which cannot be read: {error}", path.display())
}

/// The directory where container engines mount secrets. Files there have the owner and mode that
/// they have outside the container, so their mode does not show who can read them: only the broker
/// runs inside.
const CONTAINER_SECRETS: &str = "/run/secrets";

/// Whether other users than the owner can access a secret file. As in PostgreSQL, a file of root
/// may be readable to its group, because orchestrators pass secrets to services that way.
fn is_exposed(mode: u32, owned_by_root: bool) -> bool {
    let forbidden = if owned_by_root { 0o037 } else { 0o077 };
    mode & forbidden != 0
}

/// Reads a file that other users must not access. The error is the problem and the remedy.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, (String, String)> {
    let unreadable = |error: std::io::Error| {
        let remedy = "make it readable to the broker only".to_owned();
        (unreadable(path, &error), remedy)
    };
    let mut file = File::open(path).map_err(unreadable)?;
    // Check the opened file: its name may refer to another file a moment later.
    let metadata = file.metadata().map_err(unreadable)?;
    let others = !path.starts_with(CONTAINER_SECRETS);
    if others && is_exposed(metadata.mode(), metadata.uid() == 0) {
        let mode = metadata.mode() & 0o777;
        return Err((
            format!(
                "names {}, which others can read or write (mode {mode:04o})",
                path.display()
            ),
            format!("chmod 0600 {}", path.display()),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// Whether a URL contains no secret, and answers from it cannot be changed in transit.
fn is_safe_to_ask(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let plain = url.username().is_empty() && url.password().is_none();
        let bare = url.query().is_none() && url.fragment().is_none();
        plain && bare && (url.scheme() == "https" || is_plain_on_loopback(&url))
    })
}

fn is_plain_on_loopback(url: &Url) -> bool {
    url.scheme() == "http" && sections::is_loopback(url)
}

#[cfg(test)]
mod tests;
