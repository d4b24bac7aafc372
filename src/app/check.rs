//! Checks a configuration and its generation before a start creates anything.

use std::io;

use crate::attest::AttestContext;
use crate::broker::check::{Unfit, check_generation};
use crate::clock::Timestamp;
use crate::config::{Config, ConfigErrors, Mode};
use crate::domain::generation::{Generation, PolicyFile};
use crate::http;
use crate::policy::{self, CompiledGeneration, GenerationParts};

/// Why a broker cannot serve with a configuration. The text says what to do.
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
    /// The generation cannot decide.
    #[error("{0}")]
    Generation(#[from] Unfit),
}

impl CheckError {
    /// The values of [`Self::kind`] for errors outside the generation.
    pub const KINDS: &'static [&'static str] = &["configuration", "tls"];

    /// A stable name of the kind of error: one of [`Self::KINDS`] or of [`Unfit::KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Configuration(_) => Self::KINDS[0],
            Self::Tls(_) => Self::KINDS[1],
            Self::Generation(unfit) => unfit.kind(),
        }
    }
}

/// A configuration that can serve.
#[derive(Debug)]
pub struct Checked {
    /// The generation that its files describe.
    pub generation: Generation,
    /// The same, compiled.
    pub compiled: CompiledGeneration,
}

/// Checks a loaded configuration, and the generation that it describes with the policies of its
/// directory or, if given, with `policies`. `at` is passed to [`check_generation`].
///
/// `serve --check`, `serve`, `taskpass dev` and the `policy` commands call this function. An activation
/// calls [`check_generation`] alone. This function creates nothing.
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
    Ok(Checked {
        compiled: fit.compiled,
        generation,
    })
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
