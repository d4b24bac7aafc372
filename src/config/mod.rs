//! The configuration: one TOML file, and the environment for secrets.
//!
//! [`Config`] loads completely or not at all. An unknown key, a missing trust setting or two
//! contradicting settings stop the start. Each complaint of [`ConfigErrors`] names the file, the
//! key, the remedy, and the line if there is one. A file that cannot be parsed yields the first
//! error only. Otherwise the contradictions in the text and the variables are reported together,
//! and once there are none, the faults of the files that it names. A fault can hide further ones of
//! the same section.
//!
//! The file holds no secrets. They come from environment variables, or from files that the
//! environment or the configuration names and other users cannot read, and are held in
//! [`SecretString`]. Messages quote keys, never values. All access to the environment goes through
//! [`Environment`], so that tests can pass their own.
//!
//! Relative paths are relative to the directory of the configuration file. [`crate::app`] builds
//! the broker from a [`Config`] and reloads the parts that a running broker can change. Whether a
//! generation fits the policies is decided when it is loaded, not here.
//!
//! | variable | value |
//! |---|---|
//! | `TASKPASS_CONFIG` | the path of the file, unless `--config` gives it |
//! | `TASKPASS_DATABASE_URL` or `…_FILE` | the URL of the PostgreSQL database |
//! | `TASKPASS_SEALING_KEYS` or `…_FILE` | sealing keys: the first seals, all of them open |
//! | `TASKPASS_LOG` | a filter that replaces `log.level` |

mod check;
mod database;
mod document;
mod endpoints;
mod environment;
mod error;
mod exports;
mod restart;
mod sections;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use crate::crypto::webhook::WebhookSecrets;
use crate::domain::catalog::{Resource, TaskType};
use crate::domain::generation::{DecisionLimits, Retention};
use crate::domain::trust::AttestorSpec;
use crate::endpoints::EndpointTable;
use check::Checker;
use document::Document;
pub use environment::{Environment, NotText, ProcessEnvironment};
pub use error::{ConfigError, ConfigErrors, Position};
pub use exports::{Export, ExportFormat, ExportFrom, ExportTo, MAX_TIMEOUT_SECONDS};
pub use sections::{
    AccessTokenAlgorithm, Admin, Aws, ClientCertificates, Keys, Ledger, Limits, Log, LogFormat,
    LogLevel, Metrics, Policy, Postgres, Server, SharedCheckpoint, Sqlite, Store, StoreKind, Tls,
    Witness,
};

/// The variable with the path of the configuration file.
pub const CONFIG_VARIABLE: &str = "TASKPASS_CONFIG";
/// The variable with the database's URL; with `_FILE` appended, the path of a file that holds it.
pub const DATABASE_URL_VARIABLE: &str = "TASKPASS_DATABASE_URL";
/// The variable with the sealing keys; with `_FILE` appended, the path of a file that holds them.
pub const SEALING_KEYS_VARIABLE: &str = "TASKPASS_SEALING_KEYS";
/// The variable with a log filter.
pub const LOG_VARIABLE: &str = "TASKPASS_LOG";
/// The path of the configuration file if neither an argument nor the environment gives one.
pub const DEFAULT_PATH: &str = "taskpass.toml";
/// The host of every development ledger's origin. Production refuses it.
pub const DEV_ORIGIN_HOST: &str = "dev.taskpass.local";

/// The use of the configuration. A new store is marked with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The configuration of `taskpass serve`.
    Production,
    /// The configuration of `taskpass dev`: sealing keys are optional, and the origin must be a
    /// development origin.
    Dev,
}

impl Mode {
    /// The mark in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Dev => "dev",
        }
    }
}

/// Which of the things that a configuration names are available where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them, as on the host of a replica.
    Replica,
    /// The database's URL but no sealing key, as for `taskpass migrate`.
    Database,
    /// The text only, as for writing policies: no secrets, and no files that it names.
    Text,
}

/// Values from the environment or from protected files. Their `Debug` output shows no secret.
#[derive(Debug, Default)]
pub struct Secrets {
    /// The database's URL with its password; `None` for SQLite.
    pub database_url: Option<SecretString>,
    /// Sealing keys in order: the first seals.
    pub sealing_keys: Vec<SecretString>,
    /// The RSA key of RS256, as PEM. [`Config::load`] reads it; otherwise it is `None`.
    pub rs256_private_key: Option<SecretString>,
    /// The signing secrets of webhooks, by the sink's name. [`Config::load`] reads them.
    pub webhooks: Vec<(String, WebhookSecrets)>,
}

impl Secrets {
    /// Whether the text contains a sealing key or the database's URL.
    fn are_in(&self, text: &str) -> bool {
        let keys = self.sealing_keys.iter().chain(&self.database_url);
        let mut keys = keys.map(ExposeSecret::expose_secret);
        keys.any(|secret| !secret.is_empty() && text.contains(secret))
    }
}

/// The whole configuration, checked.
#[derive(Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Config {
    /// The path of the configuration file.
    pub source: PathBuf,
    pub mode: Mode,
    pub server: Server,
    pub store: Store,
    pub ledger: Ledger,
    /// The settings of signing keys.
    pub keys: Keys,
    /// The settings of the first admin.
    pub admin: Admin,
    /// The servers that this replica may ask, by the names that generations use.
    pub endpoints: Arc<EndpointTable>,
    pub attestors: Vec<AttestorSpec>,
    pub resources: Vec<Resource>,
    pub task_types: Vec<TaskType>,
    pub policy: Policy,
    pub limits: Limits,
    /// How long ended tasks and sessions and the bodies of leaves are kept.
    pub retention: Retention,
    /// External sinks that receive the ledger's events.
    pub export: Vec<Export>,
    pub log: Log,
    /// The listener that serves metrics without credentials.
    pub metrics: Metrics,
    /// From [`LOG_VARIABLE`]: a filter that replaces [`Log::level`].
    pub log_filter: Option<String>,
    pub secrets: Secrets,
    /// Whether the files that it names were read.
    with_files: bool,
}

impl Config {
    /// The path of the file: the argument if given, else the environment's, else [`DEFAULT_PATH`].
    pub fn path(
        argument: Option<PathBuf>,
        environment: &dyn Environment,
    ) -> Result<PathBuf, ConfigErrors> {
        if let Some(path) = argument {
            return Ok(path);
        }
        match environment.get(CONFIG_VARIABLE) {
            Ok(Some(path)) if !path.is_empty() => Ok(path.into()),
            Ok(_) => Ok(DEFAULT_PATH.into()),
            Err(NotText) => Err(ConfigError::unplaced(
                Path::new(DEFAULT_PATH),
                CONFIG_VARIABLE,
                "is not UTF-8",
                "set it to a path in UTF-8",
            )
            .into()),
        }
    }

    /// Reads the file and all files that it names, and checks them.
    pub fn load(
        path: &Path,
        environment: &dyn Environment,
        mode: Mode,
    ) -> Result<Self, ConfigErrors> {
        let text = read_text(path)?;
        let mut config = Self::parse(path, &text, environment, mode)?;
        let document = Document::parse(path, &text)?;
        let mut checker = Checker::new(&document);
        config.secrets.rs256_private_key = checker.files(&config);
        config.secrets.webhooks = checker.webhook_secrets(&config);
        checker.endpoint_files(&config, environment);
        checker.finish()?;
        config.with_files = true;
        Ok(config)
    }

    /// Reads the file and checks its text, without its secrets and the files that it names.
    pub fn load_text(path: &Path, mode: Mode) -> Result<Self, ConfigErrors> {
        Self::parse_text(path, &read_text(path)?, mode)
    }

    /// Like [`Self::load_text`] for a given text. `path` serves messages and relative paths.
    pub fn parse_text(path: &Path, text: &str, mode: Mode) -> Result<Self, ConfigErrors> {
        let nothing: BTreeMap<String, String> = BTreeMap::new();
        Self::parse_within(path, text, &nothing, mode, Scope::Text)
    }

    /// Checks a configuration's text without opening the files that it names. The environment's
    /// secrets are read, from their files, too. `path` serves messages and relative paths.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: &dyn Environment,
        mode: Mode,
    ) -> Result<Self, ConfigErrors> {
        Self::parse_within(path, text, environment, mode, Scope::Replica)
    }

    /// Like [`Self::parse`], where only the things in `scope` are available.
    pub fn parse_within(
        path: &Path,
        text: &str,
        environment: &dyn Environment,
        mode: Mode,
        scope: Scope,
    ) -> Result<Self, ConfigErrors> {
        let document = Document::parse(path, text)?;
        let mut file = document.read()?;
        let base = path.parent().unwrap_or(Path::new(""));
        file.resolve_paths(base);
        let mut checker = Checker::new(&document);
        let secrets = checker.secrets(&file, environment, mode, scope);
        let log_filter = checker.log_filter(environment);
        checker.check(&file, mode);
        let endpoints = checker.endpoints(&file);
        checker.finish()?;
        Ok(Self {
            source: path.to_owned(),
            mode,
            server: file.server,
            store: file.store,
            ledger: file.ledger,
            keys: file.keys,
            admin: file.admin,
            endpoints: Arc::new(endpoints),
            attestors: file.attestors,
            resources: file.resources,
            task_types: file.task_types,
            policy: file.policy,
            limits: file.limits,
            retention: file.retention,
            export: file.export,
            log: file.log,
            metrics: file.metrics,
            log_filter,
            secrets,
            with_files: false,
        })
    }

    /// Whether the files that it names were read, so that their contents can be used.
    #[must_use]
    pub fn has_its_files(&self) -> bool {
        self.with_files
    }

    /// The names of the broker itself: its issuer and the audiences of its attestors. No resource
    /// may use one of them.
    #[must_use]
    pub fn own_audiences(&self) -> Vec<String> {
        check::own_audiences(&self.server.issuer, &self.attestors)
    }

    /// The files of the listener's certificate.
    pub fn tls_files(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let tls = self.server.tls.clone();
        let files = [tls.certificate, tls.private_key, tls.client_ca];
        files.into_iter().flatten()
    }

    /// The files whose changes a running broker applies: the configuration itself, the listener's
    /// certificate, and the files of secrets. Files that are read for each use are not included.
    #[must_use]
    pub fn reloaded_files(&self, environment: &dyn Environment) -> Vec<PathBuf> {
        let webhooks = self.export.iter().map(|export| &export.secret_file);
        let named = std::iter::once(&self.keys.rs256_private_key_file).chain(webhooks);
        let named = self.tls_files().chain(named.flatten().cloned());
        let variables = [DATABASE_URL_VARIABLE, SEALING_KEYS_VARIABLE];
        let secrets = variables.into_iter().filter_map(|name| {
            let path = environment.get(&format!("{name}_FILE")).ok().flatten()?;
            (!path.is_empty()).then(|| PathBuf::from(path))
        });
        let files = std::iter::once(self.source.clone());
        files.chain(named).chain(secrets).collect()
    }

    /// The limits that are part of a generation.
    #[must_use]
    pub fn decision_limits(&self) -> DecisionLimits {
        DecisionLimits {
            denials_per_identity: self.limits.denials_per_identity,
            denials_per_attestor: self.limits.denials_per_attestor,
            denial_window_seconds: self.limits.denial_window_seconds,
        }
    }
}

/// Reads the file as UTF-8.
fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let bytes = std::fs::read(path).map_err(|error| {
        ConfigError::unplaced(
            path,
            "",
            format!("cannot be read: {}", error.kind()),
            format!("give the path of a readable file with --config or {CONFIG_VARIABLE}"),
        )
    })?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|b| **b == b'\n');
        ConfigError {
            at: Some(Position {
                line: line.count() + 1,
                column: 1,
            }),
            ..ConfigError::unplaced(path, "", "is not UTF-8", "save the file as UTF-8")
        }
    })?;
    Ok(text)
}

/// The names of the production variables that are set in this environment. The development mode
/// refuses to run with any of them.
#[must_use]
pub fn production_settings(environment: &dyn Environment) -> Vec<String> {
    [DATABASE_URL_VARIABLE, SEALING_KEYS_VARIABLE]
        .into_iter()
        .flat_map(|name| [name.to_owned(), format!("{name}_FILE")])
        .chain([CONFIG_VARIABLE.to_owned()])
        .filter(|name| !matches!(environment.get(name), Ok(None)))
        .collect()
}

#[cfg(test)]
mod tests;
