//! Reloads files that change while the broker runs: the listener's certificate, the log level, and
//! the secret files.
//!
//! A worker checks the files every few seconds and at each SIGHUP (`Reloading::run`). It reads the
//! certificate (`reload_tls`) and the configuration (`reload_configuration`), and
//! `SharedSecrets::take_over` applies the secrets.
//!
//! The rule: if a certificate does not match its key yet, or the configuration does not load, the
//! former values stay in force. Each secret is applied by itself, so one that cannot be applied
//! does not prevent the others. All other settings take effect at the next start; a warning names
//! each changed one. Failures: the worker retries at each check until the reload succeeds, because
//! the cause may be a file or a mode that it does not watch. A warning reports the first failure
//! and each new cause, and a metric shows that a reload is pending. Nothing is returned. `app` runs
//! the worker; `config`, `http::tls` and `crypto::sealer` hold the values.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::secrets::read_rsa_key;
use super::{StartError, unfit, unfit_store};
use crate::broker::keys::ImportedKey;
use crate::config::{Config, Environment, LogLevel};
use crate::crypto::digest::{Mac, sha256};
use crate::crypto::key_id::KeyId;
use crate::crypto::sealer::SealingKeys;
use crate::crypto::webhook::WebhookSecrets;
use crate::http::tls::ServedTls;
use crate::metrics::{Metrics, Reloaded};
use crate::shutdown::Hangups;
use crate::store::Store;
use crate::telemetry::LogControl;

/// How often the files are checked.
const INTERVAL: Duration = Duration::from_secs(5);

/// Secrets that the parts of a running broker share, so that a reload reaches all of them.
#[derive(Clone)]
pub(super) struct SharedSecrets {
    pub(super) store: Store,
    pub(super) sealing: Arc<SealingKeys>,
    pub(super) mac: Mac,
    pub(super) imported: ImportedKey,
    pub(super) webhooks: Vec<(String, WebhookSecrets)>,
}

/// The parts of a running broker that a reload can change.
#[derive(Clone)]
pub(super) struct Reloading {
    pub(super) config: Arc<Config>,
    pub(super) tls: Option<ServedTls>,
    pub(super) secrets: SharedSecrets,
    pub(super) metrics: Arc<Metrics>,
}

/// The digest of each file; `None` for one that cannot be read.
type Contents = BTreeMap<PathBuf, Option<[u8; 32]>>;

impl Reloading {
    pub(super) async fn run(
        self,
        mut hangups: Hangups,
        environment: Arc<dyn Environment + Send + Sync>,
        log: LogControl,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut present = Present {
            level: self.config.log.level,
            config: Arc::clone(&self.config),
            waiting: BTreeSet::new(),
            removed_keys: Vec::new(),
        };
        let (mut tls, mut configuration) = (Part::default(), Part::default());
        // `None`, so that the first check reloads: a file may have changed since the start read it.
        let mut seen: Option<Contents> = None;
        loop {
            let hangup = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = hangups.next() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            let files = self.watched_files(&present.config, environment.as_ref());
            let Ok(found) = tokio::task::spawn_blocking(move || contents(files)).await else {
                continue;
            };
            let changed = seen.as_ref() != Some(&found);
            if hangup {
                info!("SIGHUP: files are read again");
            } else if changed && seen.is_some() {
                info!("a file changed: files are read again");
            } else if changed {
                debug!("files are read again after the start");
            }
            let is_new = hangup || changed;
            if hangup || tls.is_due(&found) {
                let reloaded = self.reload_tls().await;
                self.record(Reloaded::Tls, &mut tls, reloaded, &found, is_new);
            }
            if hangup || configuration.is_due(&found) {
                let reloaded = self
                    .reload_configuration(&environment, &log, &mut present)
                    .await;
                let part = &mut configuration;
                self.record(Reloaded::Configuration, part, reloaded, &found, is_new);
            }
            seen = Some(found);
        }
    }

    /// The files that the current configuration names, and those of the certificate in use. Other
    /// paths for the certificate take effect at the next start.
    fn watched_files(&self, present: &Config, environment: &dyn Environment) -> BTreeSet<PathBuf> {
        let configured = present.reloaded_files(environment);
        configured
            .into_iter()
            .chain(self.config.tls_files())
            .collect()
    }

    async fn reload_tls(&self) -> Result<(), String> {
        let Some(tls) = &self.tls else {
            return Ok(());
        };
        let not_after = tls.reload().await.map_err(|error| error.to_string())?;
        debug!(%not_after, "the certificate was read");
        Ok(())
    }

    async fn reload_configuration(
        &self,
        environment: &Arc<dyn Environment + Send + Sync>,
        log: &LogControl,
        present: &mut Present,
    ) -> Result<(), String> {
        let (source, mode) = (self.config.source.clone(), self.config.mode);
        let environment = Arc::clone(environment);
        let loading =
            tokio::task::spawn_blocking(move || Config::load(&source, environment.as_ref(), mode));
        let newer = match loading.await {
            Ok(Ok(newer)) => newer,
            Ok(Err(errors)) => return Err(errors.to_string()),
            // The panic's own text may differ from one attempt to the next.
            Err(_) => return Err("reading it panicked".to_owned()),
        };
        let mut failures = Vec::new();
        let level = newer.log.level;
        if level != present.level {
            match log.set_level(level) {
                Ok(is_set) => {
                    present.level = level;
                    if is_set {
                        info!(level = level.as_str(), "the log level was changed");
                    } else {
                        info!("log.level has no effect: TASKPASS_LOG sets the log level");
                    }
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        let errors = self.secrets.take_over(&newer, &mut present.removed_keys);
        failures.extend(errors.iter().map(ToString::to_string));
        self.tell_waiting(&newer, &mut present.waiting);
        present.config = Arc::new(newer);
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures.join("\n"))
        }
    }

    /// Warns of each changed setting that takes effect at the next start, except those in `told`.
    fn tell_waiting(&self, newer: &Config, told: &mut BTreeSet<String>) {
        let waiting = self.config.settings_for_next_start(newer);
        for setting in waiting.difference(told) {
            warn!(
                setting = setting.as_str(),
                "a setting was changed that takes effect at the next start: restart the broker"
            );
        }
        *told = waiting;
    }

    /// Records the result of an attempt to reload a part. A failure is logged if the attempt
    /// `is_new`, that is, made for a change or a signal, or if the cause changed.
    fn record(
        &self,
        what: Reloaded,
        part: &mut Part,
        reloaded: Result<(), String>,
        found: &Contents,
        is_new: bool,
    ) {
        let Err(error) = reloaded else {
            self.metrics.reload_succeeded(what);
            part.applied = Some(found.clone());
            if part.failure.take().is_some() {
                match what {
                    Reloaded::Tls => info!("the certificate was reloaded after it had failed"),
                    Reloaded::Configuration => {
                        info!("the configuration was reloaded after it had failed");
                    }
                }
            }
            return;
        };
        self.metrics.reload_failed(what);
        if is_new || part.failure.as_ref() != Some(&error) {
            match what {
                Reloaded::Tls => warn!(
                    error,
                    "the certificate was not reloaded: the former one stays in use, and the reload \
                     is retried every few seconds"
                ),
                Reloaded::Configuration => warn!(
                    error,
                    "the configuration was not reloaded: the former one stays in force, and the \
                     reload is retried every few seconds"
                ),
            }
        }
        part.failure = Some(error);
    }
}

/// The state of one part that is reloaded.
#[derive(Default)]
struct Part {
    /// The contents of the files at its last successful reload. `None` before the first one.
    applied: Option<Contents>,
    /// Why the last attempt failed. `None` if it succeeded.
    failure: Option<String>,
}

impl Part {
    /// Whether a file changed since the last successful reload, or the last attempt failed.
    fn is_due(&self, found: &Contents) -> bool {
        self.failure.is_some() || self.applied.as_ref() != Some(found)
    }
}

/// Values of the last configuration that loaded.
struct Present {
    level: LogLevel,
    config: Arc<Config>,
    /// Changed settings that take effect at the next start.
    waiting: BTreeSet<String>,
    /// Removed sealing keys that this process still uses to open envelopes.
    removed_keys: Vec<KeyId>,
}

fn contents(files: BTreeSet<PathBuf>) -> Contents {
    let digest = |path: &PathBuf| {
        // Reading a pipe could block, or consume its content.
        let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
        let bytes = is_file.then(|| std::fs::read(path).ok().map(zeroize::Zeroizing::new));
        bytes.flatten().map(|bytes| sha256(&bytes))
    };
    let digests = files.into_iter().map(|path| {
        let digest = digest(&path);
        (path, digest)
    });
    digests.collect()
}

impl SharedSecrets {
    /// Applies the secrets of a newly loaded configuration. Returns an error for each secret that
    /// was not applied. `removed` holds the removed sealing keys that were already logged; it is
    /// updated.
    fn take_over(&self, newer: &Config, removed: &mut Vec<KeyId>) -> Vec<StartError> {
        let parts = [
            self.take_over_sealing_keys(newer, removed),
            self.take_over_database_url(newer),
            self.take_over_rsa_key(newer),
        ];
        for (name, secrets) in &self.webhooks {
            let mut found = newer.secrets.webhooks.iter();
            if let Some((_, newer)) = found.find(|(other, _)| other == name) {
                secrets.take_over(newer);
            }
        }
        parts.into_iter().filter_map(Result::err).collect()
    }

    fn take_over_sealing_keys(
        &self,
        newer: &Config,
        removed: &mut Vec<KeyId>,
    ) -> Result<(), StartError> {
        let keys = &newer.secrets.sealing_keys;
        // The development mode configures no key: it keeps one in a file next to its checkpoint.
        if keys.is_empty() {
            return Ok(());
        }
        let newer_keys = SealingKeys::parse(keys).map_err(unfit)?;
        let lacking = self.sealing.take_over(&newer_keys);
        self.mac.take_over(&self.sealing.mac(&newer.ledger.origin));
        if !lacking.is_empty() && lacking != *removed {
            info!(
                ?lacking,
                "sealing keys were removed: they still open envelopes until the next start, and seal none"
            );
        }
        *removed = lacking;
        Ok(())
    }

    fn take_over_database_url(&self, newer: &Config) -> Result<(), StartError> {
        let (Store::Postgres(postgres), Some(url)) = (&self.store, &newer.secrets.database_url)
        else {
            return Ok(());
        };
        if postgres.take_over_url(url).map_err(unfit_store)? {
            return Ok(());
        }
        Err(unfit(
            "the database URL names another server or database: restart the broker to use it",
        ))
    }

    fn take_over_rsa_key(&self, newer: &Config) -> Result<(), StartError> {
        if let Some(pem) = &newer.secrets.rs256_private_key {
            self.imported.store(Some(Arc::new(read_rsa_key(pem)?)));
        }
        Ok(())
    }
}
