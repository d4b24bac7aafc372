//! Opens the log, and begins it on the first start.
//!
//! `open_ledger` checks the log against the checkpoints kept outside the store and starts its
//! workers: the appender, the checkpoint writer and the witnesses. `begin_log` writes the first leaf
//! with a new key. `checkpoint_store` is the location that all replicas share.
//!
//! Another replica may begin the log at the same time; then its key is read from the store. A log
//! without keys, and a checkpoint that the store does not contain, are `StartError::Unfit`.
//! [`super::assembly`] and [`super::succession`] call this file.

use std::convert::Infallible;
use std::sync::Arc;

use super::secrets::KeyProtection;
use super::{StartError, unfit, unfit_store};
use crate::broker::keys::{self, StoredLedgerKeys};
use crate::clock::{SharedClock, Timestamp};
use crate::config::Config;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::KeyPurpose;
use crate::domain::succession::Succession;
use crate::ledger::checkpoint_store::{Authorization, CheckpointStore};
use crate::ledger::entry::{OneTimeUse, Request};
use crate::ledger::guard::Guard;
use crate::ledger::witnesses::Witness;
use crate::ledger::{AppendError, Ledger, LedgerKey, LedgerKeySource, LedgerParts};
use crate::metrics::Metrics;
use crate::mint::aws;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Opens the log. Begins it with a first key if there is none.
pub(super) async fn open_ledger(
    config: &Config,
    store: &Store,
    safe: &KeyProtection,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
    succeeds: Option<Succession>,
) -> Result<Ledger, StartError> {
    let origin = config.ledger.origin.as_str();
    let KeyProtection { sealer, mac } = safe;
    let source: Arc<dyn LedgerKeySource> = Arc::new(StoredLedgerKeys {
        store: store.clone(),
        sealer: Arc::clone(sealer),
        origin: origin.to_owned(),
        clock: Arc::clone(clock),
    });
    let parts = |known: Vec<LedgerKey>| LedgerParts {
        store: store.clone(),
        origin: origin.to_owned(),
        keys: keys::ledger_keys(known),
        key_source: Arc::clone(&source),
        mac: mac.clone(),
        clock: Arc::clone(clock),
        metrics: Arc::clone(metrics),
        succeeds: succeeds.clone(),
    };
    let mut known = source.read().await.map_err(unfit)?;
    let is_new = known.is_empty();
    if is_new {
        Box::pin(begin_log(config, store, safe, clock.now(), &parts)).await?;
        known = source.read().await.map_err(unfit)?;
    }
    if known.is_empty() {
        return Err(unfit(
            "the store holds a log but none of its keys; restore the table signing_key",
        ));
    }
    let parts = parts(known);
    let own = config.ledger.checkpoint_file.clone();
    let mut guard = Guard::new(&parts, Some(own), Box::pin(checkpoint_store(config)).await?);
    if is_new {
        guard = guard.of_new_log();
    }
    let writer = guard.writer();
    let (ledger, appender) = Ledger::open(parts, guard).await.map_err(unfit)?;
    drop(shutdown.spawn_worker("ledger", move |stop| appender.run(stop)));
    drop(shutdown.spawn_worker("checkpoint", move |_| async move {
        writer.await;
        Ok::<(), Infallible>(())
    }));
    let witnesses = witnesses(config)?;
    if !witnesses.is_empty() {
        let ledger = ledger.clone();
        drop(shutdown.spawn_worker("witnesses", move |stop| async move {
            ledger.tell_witnesses(witnesses, stop).await;
            Ok::<(), Infallible>(())
        }));
    }
    Ok(ledger)
}

/// Begins the log of an empty store with a new key. Another replica that starts at the same time
/// may begin it first, so the caller reads the log's key from the store.
async fn begin_log(
    config: &Config,
    store: &Store,
    safe: &KeyProtection,
    now: Timestamp,
    parts: &(dyn Fn(Vec<LedgerKey>) -> LedgerParts + Sync),
) -> Result<(), StartError> {
    if store.sealed_head().await.map_err(unfit_store)?.is_some() {
        return Ok(());
    }
    let origin = config.ledger.origin.as_str();
    let made = keys::make_key(
        keys::ledger_key_dates(now),
        KeyPurpose::Ledger,
        Algorithm::EdDsa,
        None,
        safe.sealer.as_ref(),
        &safe.mac,
    )
    .await
    .map_err(unfit)?;
    let unnamed = || unfit(format!("ledger.origin `{origin}` cannot name a key"));
    let parts = parts(vec![made.as_ledger_key(origin).ok_or_else(unnamed)?]);
    let entry = made.genesis(origin, parts.succeeds.clone());
    let request = Request {
        entry: entry.ok_or_else(unnamed)?,
        one_time: OneTimeUse::default(),
        at: now,
    };
    let own = config.ledger.checkpoint_file.clone();
    let guard = Guard::new(&parts, Some(own), Box::pin(checkpoint_store(config)).await?);
    match Ledger::begin(parts, guard, request).await {
        // The caller reads from the store whether the leaf was written.
        Ok(()) | Err(AppendError::Unknown) => Ok(()),
        Err(error) => Err(unfit(error)),
    }
}

/// The witnesses that cosign the log's checkpoints.
fn witnesses(config: &Config) -> Result<Vec<Witness>, StartError> {
    let witnesses = config.ledger.witnesses.iter();
    witnesses
        .map(|witness| {
            let key = witness.vkey.parse().map_err(unfit)?;
            Witness::new(&witness.url, key).map_err(unfit)
        })
        .collect()
}

/// The location of the checkpoint that all replicas share; `None` if none is configured.
pub(super) async fn checkpoint_store(
    config: &Config,
) -> Result<Option<CheckpointStore>, StartError> {
    let Some(shared) = &config.ledger.shared_checkpoint else {
        return Ok(None);
    };
    match (&shared.file, &shared.url) {
        (Some(file), _) => Ok(Some(CheckpointStore::file(file.clone()))),
        (None, Some(url)) => {
            let url = url.parse().map_err(unfit)?;
            let authorization = match (&shared.authorization_file, &shared.s3_region) {
                (Some(file), _) => Authorization::File(file.clone()),
                (None, None) => Authorization::None,
                (None, Some(region)) => {
                    let credentials = aws::own_credentials(region).await;
                    let credentials =
                        credentials.ok_or_else(|| unfit("no AWS credentials were found"))?;
                    Authorization::s3(region.clone(), credentials)
                }
            };
            let store = CheckpointStore::object(url, &shared.headers, authorization);
            store.map(Some).map_err(unfit)
        }
        (None, None) => Ok(None),
    }
}
