//! Chooses the generation that decides from the start on.
//!
//! An embedded broker activates its own files and records that. A broker on PostgreSQL follows the
//! generation that an admin activated, and starts even without it, because readiness reports a
//! replica that is behind.
//!
//! The rule: a replica whose clock is in doubt records nothing. It activates its files as soon as
//! the doubt has ended. A generation that cannot be used stops the start. [`super::start`] calls
//! this file.
//!
//! A failure of the activation is a [`StartError`], and the broker does not start; a failure to
//! follow on PostgreSQL is only a warning. `broker::generations` activates and follows.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{StartError, unfit};
use crate::broker::check::Unfit;
use crate::broker::{Broker, BrokerError};
use crate::config::{Config, Mode, StoreKind};
use crate::domain::generation::Generation;
use crate::shutdown::Shutdown;

fn unfit_generation(error: Unfit) -> StartError {
    StartError::Check(error.into())
}

/// Activates the generation of an embedded broker's own files, and records that in the ledger. A
/// broker on PostgreSQL uses the generation that an admin activated.
pub(super) async fn choose_generation(
    broker: &Arc<Broker>,
    config: &Config,
    generation: Generation,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    if config.mode == Mode::Production && config.store.kind == StoreKind::Postgres {
        // Start even if this fails: readiness reports a replica that is behind.
        if let Err(behind) = broker.generations.follow().await {
            warn!(error = %behind, "started without the active generation");
        }
        return Ok(());
    }
    let by = match config.mode {
        Mode::Dev => "dev-start",
        Mode::Production => "embedded-start",
    };
    if broker.core.clock_doubt().is_none() {
        return activate_own(broker, by, generation).await;
    }
    // A replica whose clock is in doubt records nothing. The previously active generation decides
    // which admins may accept its time.
    if let Err(behind) = broker.generations.follow().await {
        warn!(error = %behind, "started without the previously active generation");
    }
    let broker = Arc::clone(broker);
    drop(shutdown.spawn_worker("generation", move |stop| async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            if broker.core.clock_doubt().is_some() {
                continue;
            }
            match activate_own(&broker, by, generation.clone()).await {
                Err(_) if broker.core.clock_doubt().is_some() => {}
                Err(unfit) => return Err(unfit),
                Ok(()) => break,
            }
        }
        // A worker that ends stops the process.
        stop.cancelled().await;
        Ok(())
    }));
    Ok(())
}

async fn activate_own(
    broker: &Broker,
    by: &'static str,
    generation: Generation,
) -> Result<(), StartError> {
    match broker.administration.activate_own(by, generation).await {
        Ok(_) => Ok(()),
        Err(BrokerError::Unfit(problem)) => Err(unfit_generation(*problem)),
        Err(error) => Err(unfit(error)),
    }
}
