//! Checks a configuration, its generation, and the files of the broker's state before a start
//! creates anything.
//!
//! [`check`] does all checks, in this order: certificate, generation, data directory, checkpoint
//! file, shared checkpoint file. `generation_of` reads the files that describe the generation.
//!
//! The rule: nothing is created and no lock is taken, so that the check can run while a broker
//! runs. A start makes the same checks. Failures: the first fault is returned as a [`CheckError`]
//! whose text names the remedy and whose `kind` is stable. It does not connect to PostgreSQL, an
//! issuer or an object behind HTTP. `app`, `taskpass serve --check` and the `policy` commands call
//! this module; `broker::check` judges the generation, and the modules of the files judge those.

use std::io;
use std::path::Path;

use crate::attest::AttestContext;
use crate::broker::check::{Unfit, check_generation};
use crate::clock::Timestamp;
use crate::config::{Config, ConfigErrors, Mode, StoreKind};
use crate::domain::generation::{Generation, PolicyFile};
use crate::files::{FileError, check_parent};
use crate::http;
use crate::ledger::checkpoint_store::check_shared_file;
use crate::ledger::guard::check_checkpoint_file;
use crate::policy::{self, CompiledGeneration, GenerationParts};
use crate::store::sqlite::Sqlite;

/// Why a broker cannot serve with a configuration. The text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration file, or a file that it names, cannot be used.
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
    /// The certificate, its key, or the client authorities cannot be used.
    #[error(
        "[server.tls] cannot serve: {0}; give a certificate chain and its own private key as PEM"
    )]
    Tls(io::Error),
    /// The generation cannot be used for decisions.
    #[error("{0}")]
    Generation(#[from] Unfit),
    /// A directory or file of the broker's state cannot be used.
    #[error("`{setting}`: {problem}")]
    State {
        /// The setting that names the directory or file, with its section.
        setting: &'static str,
        /// The problem, with the path.
        problem: String,
    },
}

impl CheckError {
    /// The values of [`Self::kind`] for errors outside the generation.
    pub const KINDS: &'static [&'static str] = &["configuration", "tls", "state"];

    /// A stable name of the kind of error: one of [`Self::KINDS`] or of [`Unfit::KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Configuration(_) => Self::KINDS[0],
            Self::Tls(_) => Self::KINDS[1],
            Self::Generation(unfit) => unfit.kind(),
            Self::State { .. } => Self::KINDS[2],
        }
    }
}

/// A configuration that can serve.
#[derive(Debug)]
pub struct Checked {
    /// The generation that its files describe.
    pub generation: Generation,
    /// The compiled form of `generation`.
    pub compiled: CompiledGeneration,
}

/// Checks a loaded configuration, its generation and the files of the broker's state. The policies
/// come from `policies` if given, otherwise from the configured directory. `at` is passed to
/// [`check_generation`]. If the configuration was loaded without its files, the files of the
/// broker's state are not checked.
///
/// `serve --check`, `serve`, `taskpass dev` and the `policy` commands call this function. An
/// activation calls [`check_generation`] only. This function creates nothing.
pub fn check(
    config: &Config,
    policies: Option<Vec<PolicyFile>>,
    at: Option<Timestamp>,
) -> Result<Checked, CheckError> {
    if config.has_its_files() {
        http::tls::check(&config.server.tls).map_err(CheckError::Tls)?;
    }
    let generation = generation_of(config, policies)?;
    let fit = check_generation(&generation, attest_context(config), at)?;
    if config.has_its_files() {
        check_state(config)?;
    }
    Ok(Checked {
        compiled: fit.compiled,
        generation,
    })
}

/// Refuses a data directory, checkpoint file or shared checkpoint file that a start would refuse or
/// could not create. Creates nothing and takes no lock, so that it can run while a broker runs.
fn check_state(config: &Config) -> Result<(), CheckError> {
    check_data_directory(config).map_err(|error| CheckError::State {
        setting: "store.sqlite.data_dir",
        problem: error.to_string(),
    })?;
    let ledger = &config.ledger;
    let data_dir = config.store.sqlite.as_ref();
    let data_dir = data_dir.map(|sqlite| sqlite.data_dir.as_path());
    let data_dir = data_dir.filter(|_| config.store.kind == StoreKind::Sqlite);
    let own = check_checkpoint_file(&ledger.checkpoint_file, data_dir);
    own.map_err(|problem| CheckError::State {
        setting: "ledger.checkpoint_file",
        problem,
    })?;
    let shared = ledger.shared_checkpoint.as_ref();
    if let Some(file) = shared.and_then(|shared| shared.file.as_ref()) {
        // A start creates these two directories before it reads the shared file.
        let mut made = data_dir.into_iter().chain(ledger.checkpoint_file.parent());
        let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
        let will_be_made = |path: &Path| made.any(|made| made.starts_with(path)) && !path.exists();
        if directory.is_some_and(will_be_made) {
            return Ok(());
        }
        check_shared_file(file).map_err(|error| CheckError::State {
            setting: "ledger.shared_checkpoint.file",
            problem: error.to_string(),
        })?;
    }
    Ok(())
}

fn check_data_directory(config: &Config) -> Result<(), FileError> {
    let (StoreKind::Sqlite, Some(sqlite)) = (config.store.kind, &config.store.sqlite) else {
        return Ok(());
    };
    let directory = Sqlite::check_directory(&sqlite.data_dir)?;
    if config.mode == Mode::Dev {
        return Ok(());
    }
    match directory {
        Some(directory) => directory.check_parent(),
        // A missing parent is created as a private directory.
        None => match check_parent(&sqlite.data_dir) {
            Err(error) if error.is_missing() => Ok(()),
            checked => checked,
        },
    }
}

/// The generation that the configuration's files describe, not yet checked.
fn generation_of(config: &Config, policies: Option<Vec<PolicyFile>>) -> Result<Generation, Unfit> {
    let files = match policies {
        Some(files) => files,
        None => policy::read_directory(&config.policy.directory)
            .map_err(|problem| Unfit::Policy(vec![problem]))?,
    };
    let parts = GenerationParts {
        policies: files,
        attestors: config.attestors.clone(),
        resources: config.resources.clone(),
        task_types: config.task_types.clone(),
        limits: config.decision_limits(),
        retention: config.retention,
    };
    policy::write(parts, &config.own_audiences()).map_err(Unfit::Policy)
}

/// The context in which the attestors of a checked generation are built.
pub(super) fn attest_context(config: &Config) -> AttestContext {
    AttestContext {
        own_issuers: config.own_audiences(),
        ..AttestContext::without_store(
            config.server.issuer.clone(),
            config.endpoints.clone(),
            config.mode == Mode::Dev,
        )
    }
}
