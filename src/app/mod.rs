//! The composition root: assembles a broker from its configuration, and stops its parts in order.
//!
//! [`start`] first binds the sockets and checks the configuration. Then it opens, in this order:
//! the store, which it claims for this use; the sealing keys; the ledger, whose key the first start
//! creates, and which is checked against the checkpoint kept outside the store; the broker; its
//! signing keys; the generation ([`prepare`]); the workers; the listeners ([`Prepared::serve`]). At a
//! signal [`App::run`] reports that the broker is not ready, drains, accepts no more connections,
//! lets tracked requests finish, drains the ledger, and closes the store.
//!
//! The rule: a start that cannot succeed creates nothing, as far as that is known in advance.
//! Failures: a part that fails its check stops the start with a [`StartError`] that names the
//! remedy. With a clock in doubt the broker starts, but fails closed. `cli` and tests call this
//! module, which calls all others.

mod assembly;
pub mod check;
mod generation;
mod ledger;
mod reload;
mod secrets;
mod store;
pub mod succession;
mod succession_record;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tracing::info;

#[cfg(test)]
pub(crate) use self::assembly::assemble_on;
pub use self::assembly::{Assembled, assemble};
pub use self::check::{CheckError, Checked, check};
use self::generation::choose_generation;
use self::reload::{Reloading, SharedSecrets};
pub use self::store::open_store;
use crate::broker::Broker;
use crate::clock::SharedClock;
use crate::config::{Config, Environment};
use crate::domain::generation::PolicyFile;
use crate::export::{Exporter, ExporterParts};
use crate::mint::Minter;
use crate::shutdown::{Hangups, Shutdown, Signals, Stopped};
use crate::store::Store;
use crate::telemetry::LogControl;
use crate::{http, sweep};

/// Settings that are not part of the configuration.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Options {
    pub clock: SharedClock,
    /// The admin token of the development mode; `None` in production.
    pub dev_admin_token: Option<SecretString>,
    /// Policies that replace those of the configured directory, if given.
    pub policies: Option<Vec<PolicyFile>>,
    /// Additional minters. A minter of a built-in kind replaces the built-in one.
    pub minters: Vec<Arc<dyn Minter>>,
}

/// Why a broker did not start. The text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A part of the broker failed its check.
    #[error("{0}")]
    Unfit(String),
    /// The configuration or its generation cannot be used.
    #[error(transparent)]
    Check(#[from] CheckError),
}

fn unfit(error: impl std::fmt::Display) -> StartError {
    StartError::Unfit(error.to_string())
}

/// A store's error with its cause, which the error's own text omits.
fn unfit_store(error: crate::store::StoreError) -> StartError {
    match std::error::Error::source(&error) {
        Some(cause) => StartError::Unfit(format!("{error}: {cause}")),
        None => unfit(error),
    }
}

/// A serving broker.
#[expect(missing_docs, reason = "the names say it all")]
pub struct App {
    pub broker: Arc<Broker>,
    pub shutdown: Shutdown,
    pub address: SocketAddr,
    store: Store,
    drain: Duration,
    finish: Duration,
    reloading: Reloading,
}

impl App {
    /// Reloads files that change from now on; each of `hangups` triggers a check at once.
    pub fn reload_on(
        &self,
        hangups: Hangups,
        environment: impl Environment + Send + Sync + 'static,
        log: LogControl,
    ) {
        let reloading = self.reloading.clone();
        drop(self.shutdown.spawn_worker("reload", move |stop| {
            reloading.run(hangups, Arc::new(environment), log, stop)
        }));
    }

    /// Serves until a signal, then stops in order. The caller installs the signals before the start,
    /// so that one that comes as soon as the broker serves stops it in order too.
    pub async fn run(self, signals: Signals) -> Stopped {
        let stopped = self.shutdown.run(signals, self.drain, self.finish).await;
        self.store.close().await;
        stopped
    }
}

/// Starts a broker that serves.
pub async fn start(config: Config, options: Options) -> Result<App, StartError> {
    prepare(config, options).await?.serve().await
}

/// A broker that is complete and does not serve yet: no listener and no worker runs. It can be
/// dropped.
pub struct Prepared {
    config: Config,
    sockets: http::server::Sockets,
    exporter: Exporter,
    broker: Arc<Broker>,
    shutdown: Shutdown,
    store: Store,
    secrets: SharedSecrets,
}

/// Opens the store and the ledger, and chooses the generation. The returned future can be dropped
/// at any time, like a process that ends.
pub async fn prepare(config: Config, options: Options) -> Result<Prepared, StartError> {
    let clock = Arc::clone(&options.clock);
    // Bind first: a start that fails because an address is in use creates no store and no leaf.
    let sockets = http::server::Sockets::bind(&config).map_err(unfit)?;
    let Assembled {
        broker,
        shutdown,
        store,
        generation,
        secrets,
    } = assemble(&config, options).await?;
    let core = broker.core.clone();
    let exporter = Exporter::new(
        &config,
        ExporterParts {
            ledger: broker.core.ledger().clone(),
            replica: broker.core.replica().to_owned(),
            clock,
            goes_by_the_right_clock: Box::new(move || core.goes_by_the_right_clock()),
            metrics: Arc::clone(broker.core.metrics()),
        },
    )
    .map_err(unfit)?;
    choose_generation(&broker, &config, generation, &shutdown).await?;
    Ok(Prepared {
        config,
        sockets,
        exporter,
        broker,
        shutdown,
        store,
        secrets,
    })
}

impl Prepared {
    /// Starts the workers and the listeners. Run the future to its end: a listener may already have
    /// accepted a request.
    pub async fn serve(self) -> Result<App, StartError> {
        let Self {
            config,
            mut sockets,
            exporter,
            broker,
            shutdown,
            store,
            secrets,
        } = self;
        sweep::begin(broker.core.metrics());
        sweep::spawn(&broker, &shutdown);
        let follower = broker.core.ledger().follower();
        let woken = broker.core.clone();
        drop(shutdown.spawn_worker("endings", move |stop| {
            follower.run(stop, move |awaited| woken.wake_for(awaited))
        }));
        drop(shutdown.spawn_worker("exports", move |stop| exporter.run(stop)));
        if let Some(socket) = sockets.take_metrics() {
            let metrics = Arc::clone(broker.core.metrics());
            let served = http::server::start_metrics(metrics, &config, socket, &shutdown).await;
            info!(address = %served.map_err(unfit)?, "serving metrics");
        }
        let served = http::server::start(Arc::clone(&broker), &config, sockets, &shutdown).await;
        let served = served.map_err(unfit)?;
        shutdown.started();
        info!(
            address = %served.address,
            issuer = config.server.issuer,
            store = store.kind(),
            replica = broker.core.replica(),
            endpoints = %broker.generations.endpoints_digest(),
            "serving"
        );
        Ok(App {
            address: served.address,
            store,
            drain: Duration::from_secs(config.server.drain_seconds),
            finish: Duration::from_secs(config.server.finish_seconds),
            reloading: Reloading {
                metrics: Arc::clone(broker.core.metrics()),
                tls: served.tls,
                secrets,
                config: Arc::new(config),
            },
            broker,
            shutdown,
        })
    }
}
