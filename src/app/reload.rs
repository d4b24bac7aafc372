//! Reloads files that change while the broker runs: the listener's certificate, the log level, and the
//! secret files.
//!
//! A worker checks the files every few seconds and at each SIGHUP. It applies each part whole or not at
//! all. If a certificate does not match its key yet, or the configuration does not load, the former
//! values stay in force, and a warning and a metric report the failure. All other settings take effect
//! at the next start.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{StartError, read_rsa_key, unfit, unfit_store};
use crate::broker::keys::ImportedKey;
use crate::config::{Config, Environment, LogLevel};
use crate::crypto::digest::{Mac, sha256};
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
            // `None`, so that the first check reloads: a file may have changed since the start read it.
            contents: None,
        };
        loop {
            let hangup = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = hangups.next() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            let files = present.config.reloaded_files(environment.as_ref());
            let Ok(found) = tokio::task::spawn_blocking(move || contents(files)).await else {
                continue;
            };
            if !hangup && present.contents.as_ref() == Some(&found) {
                continue;
            }
            match (&present.contents, hangup) {
                (_, true) => info!("SIGHUP: files are read again"),
                (Some(_), false) => info!("a file changed: files are read again"),
                (None, false) => debug!("files are read again after the start"),
            }
            present.contents = Some(found);
            self.reload_tls().await;
            self.reload_configuration(&environment, &log, &mut present)
                .await;
        }
    }

    async fn reload_tls(&self) {
        let Some(tls) = &self.tls else {
            return;
        };
        match tls.reload().await {
            Ok(not_after) => debug!(%not_after, "the certificate was read"),
            Err(error) => {
                self.metrics.reload_failed(Reloaded::Tls);
                warn!(%error, "the certificate was not reloaded: the former one is served on");
            }
        }
    }

    async fn reload_configuration(
        &self,
        environment: &Arc<dyn Environment + Send + Sync>,
        log: &LogControl,
        present: &mut Present,
    ) {
        let (source, mode) = (self.config.source.clone(), self.config.mode);
        let environment = Arc::clone(environment);
        let loading =
            tokio::task::spawn_blocking(move || Config::load(&source, environment.as_ref(), mode));
        let newer = match loading.await {
            Ok(Ok(newer)) => newer,
            Ok(Err(errors)) => {
                let error = unfit(errors);
                return self.refuse(&error);
            }
            Err(error) => return self.refuse(&unfit(error)),
        };
        let level = newer.log.level;
        if level != present.level {
            match log.set_level(level) {
                Ok(true) => info!(level = level.as_str(), "the log level was changed"),
                Ok(false) => info!("the log level is TASKPASS_LOG's: log.level has no effect"),
                Err(error) => self.refuse(&unfit(error)),
            }
            present.level = level;
        }
        for error in self.secrets.take_over(&newer) {
            self.refuse(&error);
        }
        present.config = Arc::new(newer);
    }

    fn refuse(&self, error: &StartError) {
        self.metrics.reload_failed(Reloaded::Configuration);
        warn!(%error, "the configuration was not reloaded: the former one stays in force");
    }
}

/// The settings and file contents of the last reload.
struct Present {
    level: LogLevel,
    config: Arc<Config>,
    contents: Option<Contents>,
}

fn contents(files: Vec<PathBuf>) -> Contents {
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
    /// Applies the secrets of a newly loaded configuration. Returns an error for each secret that was
    /// not applied.
    fn take_over(&self, newer: &Config) -> Vec<StartError> {
        let parts = [
            self.take_over_sealing_keys(newer),
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

    fn take_over_sealing_keys(&self, newer: &Config) -> Result<(), StartError> {
        let keys = &newer.secrets.sealing_keys;
        // The development mode configures none: it keeps its key in a file next to its checkpoint.
        if keys.is_empty() {
            return Ok(());
        }
        let newer_keys = SealingKeys::parse(keys).map_err(unfit)?;
        let lacking = self.sealing.take_over(&newer_keys);
        self.mac.take_over(&self.sealing.mac(&newer.ledger.origin));
        if !lacking.is_empty() {
            info!(
                ?lacking,
                "sealing keys were removed: they open until the next start, and seal nothing"
            );
        }
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
            "the database URL names another server or database: restart the broker to go there",
        ))
    }

    fn take_over_rsa_key(&self, newer: &Config) -> Result<(), StartError> {
        if let Some(pem) = &newer.secrets.rs256_private_key {
            self.imported.store(Some(Arc::new(read_rsa_key(pem)?)));
        }
        Ok(())
    }
}
