//! Opens the configured store: to serve, to read, or without a claim.
//!
//! `open_store` and `open_store_to_read` open it, `prepare_schema` migrates or checks the schema,
//! and `hold_read_lease` takes the lease under which rows that decide validity are read.
//!
//! Opening claims nothing. A directory that other users could replace, a missing setting and a
//! schema that does not fit are `StartError::Unfit` with the remedy. [`super::assembly`] and
//! [`super::succession`] call this file.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use super::{StartError, unfit, unfit_store};
use crate::config::{Config, Mode, StoreKind};
use crate::crypto::random::SystemRandom;
use crate::files::PrivateDirectory;
use crate::ids::Random;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::postgres::{BROKER, Postgres, PostgresSettings};
use crate::store::sqlite::Sqlite;

/// Opens the configured store, without claiming it.
pub async fn open_store(config: &Config) -> Result<Store, StartError> {
    open_store_as(config, BROKER, false).await
}

/// Opens the configured store, without claiming it. `name` is the client name at a PostgreSQL
/// database. `standby_will_do` says whether the database may be a standby.
async fn open_store_as(
    config: &Config,
    name: &'static str,
    standby_will_do: bool,
) -> Result<Store, StartError> {
    match config.store.kind {
        StoreKind::Sqlite => {
            let settings = sqlite_settings(config)?;
            let sqlite = Sqlite::open(&settings.data_dir, settings.read_connections).await;
            let sqlite = sqlite.map_err(unfit_store)?;
            check_data_directory(config, &settings.data_dir)?;
            sqlite.limit_log(settings.max_wal_bytes);
            Ok(Store::Sqlite(sqlite))
        }
        StoreKind::Postgres => {
            let url = config.secrets.database_url.as_ref();
            let url = url.ok_or_else(|| unfit("TASKPASS_DATABASE_URL is missing"))?;
            let settings = config.store.postgres_or_default();
            let settings = PostgresSettings {
                name,
                max_connections: settings.max_connections,
                acquire_timeout_seconds: settings.acquire_timeout_seconds,
                statement_timeout_seconds: settings.statement_timeout_seconds,
                append_timeout_seconds: settings.append_timeout_seconds,
                standby_will_do,
            };
            let postgres = Postgres::connect(url, settings).await;
            Ok(Store::Postgres(postgres.map_err(unfit_store)?))
        }
    }
}

/// Opens the configured store for reading only. Returns `None` if there is no store.
pub(super) async fn open_store_to_read(
    config: &Config,
    name: &'static str,
) -> Result<Option<Store>, StartError> {
    let store = match config.store.kind {
        StoreKind::Sqlite => {
            let settings = sqlite_settings(config)?;
            let readers = settings.read_connections;
            let sqlite = Sqlite::open_to_read(&settings.data_dir, readers).await;
            let sqlite = sqlite.map_err(unfit_store)?;
            if sqlite.is_some() {
                check_data_directory(config, &settings.data_dir)?;
            }
            sqlite.map(Store::Sqlite)
        }
        StoreKind::Postgres => Some(open_store_as(config, name, true).await?),
    };
    // Opening a SQLite file has already checked its schema.
    if let Some(Store::Postgres(postgres)) = &store {
        postgres.check_schema().await.map_err(unfit_store)?;
    }
    Ok(store)
}

/// Refuses a database directory that other users could replace. The development mode is exempt: its
/// directory is below the working directory, whose permissions the developer chooses.
fn check_data_directory(config: &Config, data_dir: &Path) -> Result<(), StartError> {
    if config.mode == Mode::Dev {
        return Ok(());
    }
    let directory = PrivateDirectory::open(data_dir).map_err(unfit)?;
    directory.check_parent().map_err(unfit)
}

fn sqlite_settings(config: &Config) -> Result<&crate::config::Sqlite, StartError> {
    let settings = config.store.sqlite.as_ref();
    settings.ok_or_else(|| unfit("[store.sqlite] is missing"))
}

/// Migrates the schema in development mode, and only checks it in production.
pub(super) async fn prepare_schema(store: &Store, mode: Mode) -> Result<(), StartError> {
    let Store::Postgres(postgres) = store else {
        return Ok(());
    };
    match mode {
        Mode::Dev => postgres.migrate().await.map_err(unfit_store),
        Mode::Production => {
            postgres.check_schema().await.map_err(unfit_store)?;
            postgres.check_confined(None).await.map_err(unfit_store)
        }
    }
}

/// Takes the lease under which the store returns rows that decide validity, and starts the worker
/// that renews it. Returns the lease's length in seconds; 0 if the store needs no lease.
pub(super) async fn hold_read_lease(
    config: &Config,
    store: &Store,
    shutdown: &Shutdown,
) -> Result<u64, StartError> {
    let seconds = config.store.postgres_or_default().read_lease_seconds;
    let mut number = [0; 4];
    SystemRandom::new().fill(&mut number).map_err(unfit)?;
    let lease = store
        .hold_read_lease(Duration::from_secs(seconds), i32::from_ne_bytes(number))
        .await
        .map_err(unfit_store)?;
    let Some(mut lease) = lease else {
        return Ok(0);
    };
    drop(shutdown.spawn_worker("read lease", move |stop| async move {
        let mut failing = false;
        loop {
            let renewed = async {
                tokio::time::sleep(lease.interval()).await;
                lease.renew().await
            };
            let renewed = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok::<(), Infallible>(()),
                renewed = renewed => renewed,
            };
            match renewed {
                Ok(()) => failing = false,
                Err(error) if failing => tracing::debug!(%error, "the read lease was not renewed"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(%error, "the read lease was not renewed; retrying");
                }
            }
        }
    }));
    Ok(seconds)
}
