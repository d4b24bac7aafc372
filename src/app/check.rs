//! Everything that a start relies on and that can be known before it makes anything.

use std::io;

use crate::attest::AttestContext;
use crate::broker::check::{Unfit, check_generation};
use crate::clock::Timestamp;
use crate::config::{Config, ConfigErrors, Mode};
use crate::domain::generation::{Generation, PolicyFile};
use crate::http;
use crate::policy::{self, CompiledGeneration, GenerationParts};

/// Why a configuration cannot serve; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file, or what it names.
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
    /// The certificate, its key, or the authorities of clients.
    #[error(
        "[server.tls] cannot serve: {0}; give a certificate chain and its own private key as PEM"
    )]
    Tls(io::Error),
    /// What would decide.
    #[error("{0}")]
    Generation(#[from] Unfit),
}

impl CheckError {
    /// What [`Self::kind`] gives for what is not a generation's.
    pub const KINDS: &'static [&'static str] = &["configuration", "tls"];

    /// A stable short word for what is wrong: one of [`Self::KINDS`] or of [`Unfit::KINDS`].
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
    /// What its files say should decide.
    pub generation: Generation,
    /// The same, compiled.
    pub compiled: CompiledGeneration,
}

/// Checks all of a configuration that was loaded, and the generation that it gives with the policies
/// of its directory, or with these; `at` as for [`check_generation`]. `serve --check`, `serve`, `taskpass dev` and the commands of
/// `policy` call this, and an activation the part of it that is about the generation
/// ([`check_generation`]). It makes nothing.
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

/// What the configuration's files say should decide, written down and not yet checked.
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

/// What the attestors of a checked generation are built with.
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
