//! `taskpass serve`: runs the broker in production.
//!
//! A faulty configuration is [`CliError::Usage`]; a state that cannot be used, and a worker that
//! ended on its own, is [`CliError::Unavailable`]. `crate::app` assembles and runs the broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tracing::info;

use super::CliError;
use super::output::Form;
use crate::app::{self, CheckError, StartError};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Config, Mode, ProcessEnvironment};
use crate::shutdown::{Hangups, Signals, Stopped};
use crate::telemetry;

/// Run the broker
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  taskpass serve --config taskpass.toml\n  taskpass serve --check"
)]
pub(super) struct Serve {
    #[command(flatten)]
    file: ConfigFile,
    /// Check the configuration, its files and the policies, and start no broker
    #[arg(long)]
    check: bool,
}

/// The path of the configuration.
#[derive(Args, Clone, Debug)]
pub(super) struct ConfigFile {
    /// The configuration file [default: `TASKPASS_CONFIG`, else taskpass.toml]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl ConfigFile {
    pub(super) fn path(&self) -> Result<PathBuf, CliError> {
        Config::path(self.config.clone(), &ProcessEnvironment)
            .map_err(|errors| CliError::Usage(errors.to_string()))
    }

    pub(super) fn load(&self) -> Result<Config, CliError> {
        let path: &Path = &self.path()?;
        Config::load(path, &ProcessEnvironment, Mode::Production)
            .map_err(|errors| CliError::Usage(errors.to_string()))
    }
}

impl Serve {
    pub(super) async fn run(self, form: Form) -> Result<(), CliError> {
        // From here on SIGHUP does not end the process, not even during the start.
        let hangups = Hangups::install().map_err(CliError::unavailable)?;
        let config = self.file.load()?;
        if self.check {
            let now = SystemClock.now();
            let checked = app::check(&config, None, Some(now));
            let generation = checked.map_err(refused)?.generation;
            let file = config.source.display().to_string();
            let (attestors, resources) = (generation.attestors.len(), generation.resources.len());
            let (task_types, policies) = (generation.task_types.len(), generation.policies.len());
            let sinks = config.export.len();
            return form.write(
                &json!({
                    "good": true, "file": file, "attestors": attestors, "resources": resources,
                    "task_types": task_types, "policy_files": policies, "sinks": sinks,
                }),
                format!(
                    "{file}: good: {attestors} attestor(s), {resources} resource(s), {task_types} task \
                     type(s), {policies} policy file(s), {sinks} sink(s)"
                ),
            );
        }
        let log = telemetry::init(&config.log, config.log_filter.as_deref())
            .map_err(|error| CliError::Usage(error.to_string()))?;
        let options = app::Options {
            clock: Arc::new(SystemClock),
            dev_admin_token: None,
            policies: None,
            minters: Vec::new(),
        };
        // Before the start, since a supervisor may stop the broker as soon as it serves.
        let mut signals = Signals::install().map_err(CliError::unavailable)?;
        let prepared = tokio::select! {
            prepared = app::prepare(config, options) => prepared.map_err(not_started)?,
            name = signals.next() => {
                info!(signal = name, "stopped before it served");
                return Ok(());
            }
        };
        let app = prepared.serve().await.map_err(not_started)?;
        app.reload_on(hangups, ProcessEnvironment, log);
        in_order(&app.run(signals).await)
    }
}

/// The failure for a start that did not succeed.
fn not_started(error: StartError) -> CliError {
    match error {
        StartError::Check(error) => refused(error),
        other @ StartError::Unfit(_) => CliError::unavailable(other),
    }
}

/// The failure for a refused configuration, or for state that cannot be used with it.
fn refused(error: CheckError) -> CliError {
    match error {
        CheckError::State { .. } => CliError::unavailable(error),
        other => CliError::Usage(other.to_string()),
    }
}

/// Fails if the broker did not stop cleanly.
pub(super) fn in_order(stopped: &Stopped) -> Result<(), CliError> {
    if stopped.is_clean() {
        return Ok(());
    }
    Err(CliError::Unavailable(match stopped.failed_worker {
        Some(worker) => format!("stopped because the worker `{worker}` ended"),
        None => format!(
            "stopped with {} request(s) and {} worker(s) unfinished",
            stopped.unfinished_requests, stopped.unfinished_workers
        ),
    }))
}
