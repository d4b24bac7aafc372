//! The configuration: one TOML file, and the environment for secrets.
//!
//! It loads completely or not at all. An unknown key, a missing trust setting or two settings that
//! contradict each other stop the start, and each complaint says the file, the line, the key and
//! the remedy. Contradictions are all reported at once; only what cannot be read at all stops at
//! the first.
//!
//! No secret stands in the file. They come from the environment, or from a file that the
//! environment names and nobody else may read, and are held in [`SecretString`]; no message quotes
//! a value, only keys. This is the only place that reads the environment, and it does so through
//! [`Environment`], so that a test needs no process of its own.
//!
//! Relative paths are relative to the directory of the configuration file.
//!
//! | variable | holds |
//! |---|---|
//! | `TASKPASS_CONFIG` | the path of the file, where `--config` does not say it |
//! | `TASKPASS_DATABASE_URL` or `…_FILE` | the URL of the PostgreSQL database |
//! | `TASKPASS_SEALING_KEYS` or `…_FILE` | sealing keys: the first seals, all open |
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

/// The name of the variable that names the file.
pub const CONFIG_VARIABLE: &str = "TASKPASS_CONFIG";
/// The variable with the database's URL; with `_FILE` appended, the path of a file that holds it.
pub const DATABASE_URL_VARIABLE: &str = "TASKPASS_DATABASE_URL";
/// The variable with the sealing keys; with `_FILE` appended, the path of a file that holds them.
pub const SEALING_KEYS_VARIABLE: &str = "TASKPASS_SEALING_KEYS";
/// The variable with a log filter.
pub const LOG_VARIABLE: &str = "TASKPASS_LOG";
/// The file that is read when nothing names another.
pub const DEFAULT_PATH: &str = "taskpass.toml";
/// The host of every development ledger's origin. Production refuses it.
pub const DEV_ORIGIN_HOST: &str = "dev.taskpass.local";

/// What the configuration is for. A store is marked with it at birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `taskpass serve`.
    Production,
    /// `taskpass dev`: sealing keys may be left out, and a development origin is wanted.
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

/// How much of what a configuration names is at hand where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it, as on the host of a replica.
    Replica,
    /// The database's URL and no sealing key, as for `taskpass migrate`.
    Database,
    /// The text alone, as where policies are written: no secret, and none of the files that it names.
    Text,
}

/// What came from the environment or from protected files. Its `Debug` shows none of it.
#[derive(Debug, Default)]
pub struct Secrets {
    /// The database, with its password.
    pub database_url: Option<SecretString>,
    /// Sealing keys, in order. Their form is the sealer's business.
    pub sealing_keys: Vec<SecretString>,
    /// The RSA key of RS256, as PEM; read by [`Config::load`].
    pub rs256_private_key: Option<SecretString>,
    /// What signs webhooks, by the sink's name; read by [`Config::load`].
    pub webhooks: Vec<(String, WebhookSecrets)>,
}

impl Secrets {
    /// Whether text holds one of the secrets that have a recognisable form of their own.
    fn are_in(&self, text: &str) -> bool {
        let keys = self.sealing_keys.iter().chain(&self.database_url);
        let mut keys = keys.map(ExposeSecret::expose_secret);
        keys.any(|secret| !secret.is_empty() && text.contains(secret))
    }
}

/// The whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// The file that it came from.
    pub source: PathBuf,
    /// What it is for.
    pub mode: Mode,
    /// The HTTP server.
    pub server: Server,
    /// The store.
    pub store: Store,
    /// The ledger.
    pub ledger: Ledger,
    /// Signing keys.
    pub keys: Keys,
    /// The first admin.
    pub admin: Admin,
    /// The servers that this replica may ask, by the names that generations use.
    pub endpoints: Arc<EndpointTable>,
    /// Which evidence is believed.
    pub attestors: Vec<AttestorSpec>,
    /// What credentials can be for.
    pub resources: Vec<Resource>,
    /// Which kinds of task there are.
    pub task_types: Vec<TaskType>,
    /// Where the policies are.
    pub policy: Policy,
    /// Limits.
    pub limits: Limits,
    /// How long what is over is kept.
    pub retention: Retention,
    /// Sinks outside that are told what the ledger says.
    pub export: Vec<Export>,
    /// Logs.
    pub log: Log,
    /// Where metrics are read without credentials.
    pub metrics: Metrics,
    /// From [`LOG_VARIABLE`]: a filter that replaces [`Log::level`].
    pub log_filter: Option<String>,
    /// Secrets.
    pub secrets: Secrets,
    /// Whether it was loaded with the files that it names.
    with_files: bool,
}

impl Config {
    /// The file to read: the argument, else the environment, else [`DEFAULT_PATH`].
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
                "is not text",
                "set it to a path in UTF-8",
            )
            .into()),
        }
    }

    /// Reads the file and everything that it names, and checks all of it.
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

    /// Reads the file and checks its text, without the secrets and the other files that it names.
    pub fn load_text(path: &Path, mode: Mode) -> Result<Self, ConfigErrors> {
        Self::parse_text(path, &read_text(path)?, mode)
    }

    /// The same for a text. `path` is for messages and relative paths.
    pub fn parse_text(path: &Path, text: &str, mode: Mode) -> Result<Self, ConfigErrors> {
        let nothing: BTreeMap<String, String> = BTreeMap::new();
        Self::parse_within(path, text, &nothing, mode, Scope::Text)
    }

    /// Checks a configuration's text without opening the files that it names, save those of
    /// secrets in the environment. `path` is for messages and relative paths.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: &dyn Environment,
        mode: Mode,
    ) -> Result<Self, ConfigErrors> {
        Self::parse_within(path, text, environment, mode, Scope::Replica)
    }

    /// The same where not all that it names is at hand.
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

    /// Whether it was loaded with the files that it names, so that what they hold can be relied on.
    #[must_use]
    pub fn has_its_files(&self) -> bool {
        self.with_files
    }

    /// The names by which the broker itself is known: its issuer and the audiences of its
    /// attestors. No resource may have one of them.
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

    /// The files whose changes a running broker takes over: the configuration itself, the listener's
    /// certificate, and the files of secrets. Those that are read anew for each use are not among
    /// them.
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

/// The text of the file.
fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let bytes = std::fs::read(path).map_err(|error| {
        ConfigError::unplaced(
            path,
            "",
            format!("cannot be read: {}", error.kind()),
            format!("name a readable file with --config or {CONFIG_VARIABLE}"),
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

/// The production settings that this environment holds, by name. Development mode refuses to run
/// beside any.
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
