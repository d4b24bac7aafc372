//! `taskpass ledger new-origin`: begins a new log after leaves were lost or the log's key was
//! stolen. It opens the stores directly, because no broker can serve at that time.
//!
//! [`OldLog`] is the old log with its kept checkpoints: `lost` compares them with the store, and
//! `give_up` and `revoke` record why the log ended. [`begin`] begins the new log, and [`begun`]
//! reads how far it is. The rules: the old store stays unchanged, so that its receipts can still be
//! verified. A new log begins only in an empty store, under its own name, and no broker serves it
//! until all restrictions are carried over.
//!
//! Failures: `StartError::Unfit` with the remedy; an interrupted run is resumed by the next. `None`
//! from `lost` means that the log can continue. `cli` calls this module;
//! `app::succession_record` holds the record of the new store, and
//! `broker::administration::succession` carries the restrictions over.

mod old_log;
mod unwitnessed;

use std::sync::Arc;
use std::time::Duration;

pub use self::old_log::{Evidence, OldLog};
pub use self::unwitnessed::UnwitnessedLeaf;
use crate::app::assembly::{Assembled, RequiredSuccession, assemble_parts};
use crate::app::check::{attest_context, check};
use crate::app::secrets::sealing_keys;
use crate::app::store::{open_store, open_store_to_read, prepare_schema};
use crate::app::succession_record::{SuccessionRecord, read};
use crate::app::{Options, StartError, unfit, unfit_store};
use crate::broker::administration::succession::{CarriedOver, OldLogRecords};
use crate::broker::check::check_generation;
use crate::clock::{SharedClock, Timestamp};
use crate::config::{Config, Mode};
use crate::crypto::digest::Mac;
use crate::domain::limits::MAX_CLOCK_SKEW_SECONDS;
use crate::domain::succession::Succession;
use crate::store::Store;
use crate::store::meta::{SealedSuccession, StoreMode};

/// How long the new broker may take to stop: it publishes its last checkpoint.
const STOP: Duration = Duration::from_secs(15);

/// The client name of these commands at the old database. Brokers use another name.
const CLIENT: &str = "taskpass-succession";

/// A new log that has begun.
pub struct NewLog {
    /// The verifier key that clients must pin from now on.
    pub vkey: String,
    /// The log's first signed checkpoint.
    pub checkpoint: String,
    /// The records that were carried over from the old log.
    pub carried: CarriedOver,
}

/// A log that was begun as the successor of another one.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct StartedSuccession {
    pub succession: Succession,
    /// Whether all restrictions of the old log were carried over.
    pub finished: bool,
}

/// Reads the succession from the store of a new log. Returns `None` if the log has not begun.
pub async fn begun(config: &Config) -> Result<Option<StartedSuccession>, StartError> {
    let Some(store) = open_store_to_read(config, CLIENT).await? else {
        return Ok(None);
    };
    let record = read(
        &store,
        &sealing_keys(config, &store)?.mac(&config.ledger.origin),
    )
    .await?;
    let head = store.sealed_head().await.map_err(unfit_store)?;
    store.close().await;
    // Without a first leaf there is no work to resume.
    let record = record.filter(|_| head.is_some());
    Ok(record.map(|record| StartedSuccession {
        finished: !record.unfinished,
        succession: record.succession,
    }))
}

/// Begins the new log in an empty store, and carries over the restrictions of `old`; with `all`,
/// its permissions, too. Resumes an interrupted run with the succession that [`begun`] returns.
pub async fn begin(
    config: &Config,
    clock: SharedClock,
    succession: &Succession,
    old: &OldLog,
    all: bool,
) -> Result<NewLog, StartError> {
    if config.ledger.origin == succession.origin {
        return Err(unfit(
            "ledger.origin is still that of the old log: give the new log another origin",
        ));
    }
    // Refuse an unusable configuration or generation before anything is changed.
    check(config, None, Some(clock.now()))?;
    let mac = sealing_keys(config, &old.store)?.mac(&config.ledger.origin);
    let old_records = OldLogRecords::read(&old.store, &old.mac, clock.now()).await;
    let old_records = old_records.map_err(unfit)?;
    if let Some(generation) = old_records.generation().filter(|_| all) {
        let usable = check_generation(generation, attest_context(config), None);
        usable.map_err(|error| {
            unfit(format!(
                "the old generation cannot be used with this configuration; correct it, or omit \
                 --carry-over and activate a generation: {error}"
            ))
        })?;
    }
    let tokens = old.store.bootstrap_tokens().await.map_err(unfit_store)?;
    let sealed = claim(config, &clock, succession, &tokens, &mac).await?;
    let options = Options {
        clock: Arc::clone(&clock),
        dev_admin_token: None,
        policies: None,
        minters: Vec::new(),
    };
    let assembled = assemble_parts(config, options, None, RequiredSuccession::InPart).await?;
    let carried = carry(&assembled, config, old, old_records, all).await;
    let finished = match &carried {
        Ok(_) => finish(&assembled, succession, &sealed, &mac).await,
        Err(_) => Ok(()),
    };
    let ledger = assembled.broker.core.ledger();
    let vkey = ledger.keys().first().map(|key| key.verifier.to_string());
    let signed = ledger.checkpoints().borrow().clone();
    let stopped = assembled
        .shutdown
        .drain_then_stop(Duration::ZERO, STOP)
        .await;
    assembled.store.close().await;
    let carried = carried?;
    finished?;
    if !stopped.is_clean() {
        return Err(unfit(
            "the new log was begun, but its checkpoint may not have been published; \
             `taskpass serve` publishes it when it starts",
        ));
    }
    Ok(NewLog {
        vkey: vkey.unwrap_or_default(),
        checkpoint: signed.map_or_else(String::new, |signed| signed.checkpoint.to_string()),
        carried,
    })
}

/// Records in the new store which log it succeeds, and that the succession is unfinished.
async fn claim(
    config: &Config,
    clock: &SharedClock,
    succession: &Succession,
    bootstrap_tokens: &[([u8; 32], Timestamp)],
    mac: &Mac,
) -> Result<SealedSuccession, StartError> {
    let store = open_store(config).await?;
    prepare_schema(&store, config.mode).await?;
    check_clock(&store, clock).await?;
    let mode = match config.mode {
        Mode::Dev => StoreMode::Dev,
        Mode::Production => StoreMode::Production,
    };
    let claimed = store.claim(mode, &config.ledger.origin, clock.now()).await;
    claimed.map_err(unfit_store)?;
    // A bootstrap token is valid for one day. That day does not start again under the new log.
    for (digest, first_seen) in bootstrap_tokens {
        let seen = store.see_bootstrap(digest, *first_seen, *first_seen).await;
        seen.map_err(unfit_store)?;
    }
    let record = SuccessionRecord {
        succession: succession.clone(),
        unfinished: true,
    };
    let sealed = record.seal(mac)?;
    let before = store.succession().await.map_err(unfit_store)?;
    let begun = store.sealed_head().await.map_err(unfit_store)?.is_some();
    if let Some(before) = before.filter(|_| !begun) {
        // The new log has no leaf yet, so the earlier record had no effect.
        let updated = store.update_succession(&before.mac, &sealed).await;
        updated.map_err(unfit_store)?;
    }
    let put = store.put_succession(&sealed).await.map_err(unfit_store)?;
    let record = store.succession().await.map_err(unfit_store)?;
    store.close().await;
    record.filter(|_| put).ok_or_else(|| {
        unfit(
            "the new store already holds a log, or a record that it succeeds another one: a new \
             log needs an empty store",
        )
    })
}

/// Checks that this machine's clock agrees with the database's. Attestations older than the
/// succession are refused, so the succession's time must be right.
async fn check_clock(store: &Store, clock: &SharedClock) -> Result<(), StartError> {
    let asked = clock.now();
    let Some(theirs) = store.clock().await.map_err(unfit_store)? else {
        return Ok(());
    };
    let skew = theirs.distance(theirs.clamp(asked, clock.now().max(asked)));
    if skew.as_secs() < MAX_CLOCK_SKEW_SECONDS {
        return Ok(());
    }
    Err(unfit(format!(
        "this machine's clock and the database's differ by {} ms, and attestations made before this \
         instant will be refused permanently: correct the wrong clock",
        skew.as_millis()
    )))
}

async fn finish(
    assembled: &Assembled,
    succession: &Succession,
    sealed: &SealedSuccession,
    mac: &Mac,
) -> Result<(), StartError> {
    let record = SuccessionRecord {
        succession: succession.clone(),
        unfinished: false,
    };
    let record = record.seal(mac)?;
    let updated = assembled
        .store
        .update_succession(&sealed.mac, &record)
        .await;
    updated.map_err(unfit_store)
}

async fn carry(
    assembled: &Assembled,
    config: &Config,
    old: &OldLog,
    old_records: OldLogRecords,
    all: bool,
) -> Result<CarriedOver, StartError> {
    let registered = config.resources.iter().chain(&old.config.resources);
    let registered: Vec<_> = registered.cloned().collect();
    let carried = assembled
        .broker
        .succession
        .succeed(old_records, &registered, all)
        .await;
    carried.map_err(unfit)
}
