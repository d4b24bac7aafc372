//! The composition root: assembles a broker from its configuration, and stops its parts in order.
//!
//! [`start`] first binds the sockets and checks the configuration. Then it opens, in this order:
//! the store, which it claims for this use; the sealing keys; the ledger, whose key the first start
//! creates, and which is checked against the checkpoint kept outside the store; the broker; its
//! signing keys; the generation; the sweeper; the listener. [`App::stop`] reports that the broker
//! is not ready, drains, accepts no more connections, lets tracked requests finish, drains the
//! ledger, and closes the store.
//!
//! The rule: a start that cannot succeed creates nothing, as far as that is known in advance.
//! Failures: a part that fails its check stops the start with a [`StartError`] that names the
//! remedy. With a clock in doubt the broker starts, but fails closed. `cli` and tests call this
//! module, which calls all others.

pub mod check;
mod reload;
pub mod succession;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use zeroize::Zeroizing;

pub use self::check::{CheckError, Checked, check};
use self::reload::{Reloading, SharedSecrets};
use crate::broker::access::rate::IdentityLimiter;
use crate::broker::access::tokens::{AdminTokens, judge_bootstrap, latest_time};
use crate::broker::administration::workload_keys::StoredWorkloadKeys;
use crate::broker::check::Unfit;
use crate::broker::generations::AttestationTrust;
use crate::broker::keys::{self, KeyPolicy, StoredLedgerKeys};
use crate::broker::{Broker, BrokerError, BrokerParts};
use crate::clock::{SharedClock, Timestamp};
use crate::config::{AccessTokenAlgorithm, Config, Environment, Mode, StoreKind};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::KeyPurpose;
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::random::{SystemRandom, random_token, token_digest};
use crate::crypto::sealer::{Sealer, SealingKeys};
use crate::crypto::signer::PrivateKey;
use crate::domain::generation::{Generation, GenerationDigest, PolicyFile};
use crate::domain::succession::Succession;
use crate::export::{Exporter, ExporterParts};
use crate::files::{PrivateDirectory, make_directories, read_private, write_whole};
use crate::http;
use crate::ids::Random;
use crate::ledger::checkpoint_store::{Authorization, CheckpointStore};
use crate::ledger::entry::{OneTimeUse, Request};
use crate::ledger::guard::Guard;
use crate::ledger::witnesses::Witness;
use crate::ledger::{AppendError, Ledger, LedgerKey, LedgerKeySource, LedgerParts};
use crate::metrics::Metrics;
use crate::mint::jwt::JwtMinter;
use crate::mint::{Minter, Minters, aws};
use crate::shutdown::{Hangups, Shutdown, Signals, Stopped};
use crate::store::Store;
use crate::store::meta::StoreMode;
use crate::store::postgres::{BROKER, Postgres, PostgresSettings};
use crate::store::sqlite::Sqlite;
use crate::sweep;
use crate::telemetry::LogControl;

/// The longest file with the sealing key of the development mode.
const MAX_SEALING_KEY_BYTES: usize = 1024;

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

fn unfit_generation(error: Unfit) -> StartError {
    StartError::Check(error.into())
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

    /// Serves until a signal, then stops in order.
    pub async fn run(self) -> Result<Stopped, StartError> {
        let signals = Signals::install().map_err(unfit)?;
        let stopped = self.shutdown.run(signals, self.drain, self.finish).await;
        self.store.close().await;
        Ok(stopped)
    }

    /// Stops without draining, otherwise like [`Self::run`].
    pub async fn stop(self) -> Stopped {
        let stopped = self
            .shutdown
            .drain_then_stop(Duration::ZERO, self.finish)
            .await;
        self.store.close().await;
        stopped
    }
}

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
async fn open_store_to_read(
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

/// An assembled broker that does not serve yet: it has no listener and no sweeper.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Assembled {
    pub broker: Arc<Broker>,
    pub shutdown: Shutdown,
    pub store: Store,
    /// The generation that the configuration's files describe.
    pub generation: Generation,
    secrets: SharedSecrets,
}

/// Assembles a broker.
pub async fn assemble(config: &Config, options: Options) -> Result<Assembled, StartError> {
    assemble_parts(config, options, None, RequiredSuccession::Wholly).await
}

/// Assembles a broker on a store that is open already.
#[cfg(test)]
pub(crate) async fn assemble_on(
    store: Store,
    config: &Config,
    options: Options,
) -> Result<Assembled, StartError> {
    assemble_parts(config, options, Some(store), RequiredSuccession::Wholly).await
}

/// How far the succession of an earlier log must have progressed before the broker may start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RequiredSuccession {
    /// The restrictions of the earlier log were carried over.
    Wholly,
    /// The new log has begun.
    InPart,
}

#[expect(
    clippy::too_many_lines,
    reason = "the parts of a broker, one after the other"
)]
async fn assemble_parts(
    config: &Config,
    options: Options,
    store: Option<Store>,
    succeeded: RequiredSuccession,
) -> Result<Assembled, StartError> {
    let clock = options.clock;
    let now = clock.now();
    let generation = Box::pin(checked(config, options.policies, now)).await?;
    // Fail here if the shared checkpoint's credentials are missing, before anything is created.
    drop(Box::pin(checkpoint_store(config)).await?);
    let metrics = Arc::new(Metrics::new());
    let shutdown = Shutdown::new(Arc::clone(&metrics));

    let store = match store {
        Some(store) => store,
        None => open_store(config).await?,
    };
    prepare_schema(&store, config.mode).await?;
    let mode = match config.mode {
        Mode::Dev => StoreMode::Dev,
        Mode::Production => StoreMode::Production,
    };
    let claimed = store.claim(mode, &config.ledger.origin, now).await;
    claimed.map_err(unfit_store)?;

    let read_lease = Box::pin(hold_read_lease(config, &store, &shutdown)).await?;

    let sealing = sealing_keys(config, &store)?;
    let mac = sealing.mac(&config.ledger.origin);
    store.authenticate_with(&mac);
    let sealing = Arc::new(sealing);
    let sealer: Arc<dyn Sealer> = Arc::clone(&sealing) as Arc<dyn Sealer>;
    let key_policy = key_policy(config)?;
    let secrets = SharedSecrets {
        store: store.clone(),
        sealing,
        mac: mac.clone(),
        imported: Arc::clone(&key_policy.imported),
        webhooks: config.secrets.webhooks.clone(),
    };
    let safe = KeyProtection {
        sealer: Arc::clone(&sealer),
        mac: mac.clone(),
    };
    let known = succession::read(&store, &mac).await?;
    if let Some(known) = known
        .as_ref()
        .filter(|_| succeeded == RequiredSuccession::Wholly)
    {
        known.check_finished(&config.ledger.origin)?;
    }
    let succeeds = known.map(|known| known.succession);
    succession::check_first_leaf(&store, succeeds.as_ref()).await?;
    let ledger = Box::pin(open_ledger(
        config,
        &store,
        &safe,
        &clock,
        &metrics,
        &shutdown,
        succeeds.clone(),
    ))
    .await?;
    let access_keys = LoadedKeys::default();
    let federation_keys = LoadedKeys::default();
    let minter: Arc<dyn Minter> = Arc::new(JwtMinter::new(
        config.server.issuer.clone(),
        Arc::clone(&access_keys),
        key_policy.algorithm,
        key_policy.schedule,
        ledger.first_status_list(),
        read_lease,
    ));
    let aws = aws::minter(
        &config.server.issuer,
        Arc::clone(&federation_keys),
        key_policy.schedule,
        Arc::clone(&config.endpoints),
    );
    let trust = AttestationTrust {
        own_audiences: config.own_audiences(),
        not_before: succeeds.map(|succeeds| succeeds.at),
        workload_keys: Arc::new(StoredWorkloadKeys {
            store: store.clone(),
        }),
        tracker: TaskTracker::new(),
        endpoints: Arc::clone(&config.endpoints),
        plain_issuers: config.mode == Mode::Dev,
    };
    let dev = options.dev_admin_token;
    let admin_tokens = admin_tokens(config, &store, &ledger, dev, now).await?;
    let broker = Broker::new(BrokerParts {
        issuer: config.server.issuer.clone(),
        replica: replica_name()?,
        store: store.clone(),
        ledger,
        clock,
        metrics,
        minters: Minters::new([minter, aws].into_iter().chain(options.minters)),
        access_keys,
        federation_keys,
        key_policy,
        sealer,
        mac,
        trust,
        admin_tokens,
        identities: IdentityLimiter::new(
            config.limits.identity_requests_per_second,
            config.limits.identity_burst,
        ),
        shutdown: shutdown.clone(),
    });
    begin_keys(&broker, now).await.map_err(unfit)?;
    Ok(Assembled {
        broker,
        shutdown,
        store,
        generation,
        secrets,
    })
}

/// Checks the configuration and its generation, and returns the generation.
async fn checked(
    config: &Config,
    policies: Option<Vec<PolicyFile>>,
    now: Timestamp,
) -> Result<Generation, StartError> {
    match check(config, policies.clone(), Some(now)) {
        Ok(checked) => Ok(checked.generation),
        Err(late @ CheckError::Generation(Unfit::Late(_))) => {
            let checked = check(config, policies, None)?;
            // A doubtful clock prevents an activation only: an active generation stays active.
            if !Box::pin(decides_already(config, checked.compiled.digest())).await {
                return Err(late.into());
            }
            Ok(checked.generation)
        }
        Err(refused) => Err(refused.into()),
    }
}

/// Whether this generation is active in the configured store. Opens the store for reading only.
async fn decides_already(config: &Config, digest: GenerationDigest) -> bool {
    let Ok(Some(store)) = open_store_to_read(config, BROKER).await else {
        return false;
    };
    let active = store.active_generation().await;
    store.close().await;
    matches!(active, Ok(Some(active)) if active.sealed.claimed() == digest)
}

/// Loads the signing keys, and creates those that are due. If the replica's clock is in doubt, it
/// starts fail-closed instead of stopping, so that an admin can accept its time.
async fn begin_keys(broker: &Broker, now: Timestamp) -> Result<(), BrokerError> {
    if let Some(doubt) = broker.core.clock_doubt() {
        warn!(%doubt, "started fail-closed: the clock is in doubt until it agrees or is accepted");
        return broker.keys.load(now).await;
    }
    broker.core.horizon().await?;
    broker.keys.follow(now).await.map(drop)
}

/// Starts a broker that serves.
pub async fn start(config: Config, options: Options) -> Result<App, StartError> {
    let clock = Arc::clone(&options.clock);
    // Bind first: a start that fails because an address is in use creates no store and no leaf.
    let mut sockets = http::server::Sockets::bind(&config).map_err(unfit)?;
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
    sweep::begin(broker.core.metrics());
    let sweeping = Arc::clone(&broker);
    drop(shutdown.spawn_worker("sweeper", move |stop| sweep::run(sweeping, stop)));
    let pruning = Arc::clone(&broker);
    drop(shutdown.spawn_worker("pruning", move |stop| sweep::run_pruning(pruning, stop)));
    let denying = Arc::clone(&broker);
    drop(shutdown.spawn_worker("deny lists", move |stop| {
        sweep::run_deny_lists(denying, stop)
    }));
    drop(shutdown.spawn_worker("exports", move |stop| exporter.run(stop)));
    if let Some(socket) = sockets.take_metrics() {
        let served = http::server::start_metrics(
            Arc::clone(broker.core.metrics()),
            &config,
            socket,
            &shutdown,
        )
        .await;
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

/// Takes the lease under which the store returns rows that decide validity, and starts the worker
/// that renews it. Returns the lease's length in seconds; 0 if the store needs no lease.
async fn hold_read_lease(
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

/// Protects the broker's own keys and rows.
struct KeyProtection {
    sealer: Arc<dyn Sealer>,
    mac: Mac,
}

/// Migrates the schema in development mode, and only checks it in production.
async fn prepare_schema(store: &Store, mode: Mode) -> Result<(), StartError> {
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

/// The configured sealing keys. The development mode keeps one in a file next to its checkpoint.
fn sealing_keys(config: &Config, store: &Store) -> Result<SealingKeys, StartError> {
    if !config.secrets.sealing_keys.is_empty() || config.mode == Mode::Production {
        return SealingKeys::parse(&config.secrets.sealing_keys).map_err(|error| {
            unfit(format!(
                "TASKPASS_SEALING_KEYS: {error}; `taskpass keys sealing-key` makes one"
            ))
        });
    }
    let directory = config
        .ledger
        .checkpoint_file
        .parent()
        .ok_or_else(|| unfit("the checkpoint file has no directory"))?;
    let file = directory.join("dev-sealing-key");
    let kept = read_private(&file, MAX_SEALING_KEY_BYTES).map_err(unfit)?;
    let key = if let Some(bytes) = kept.map(Zeroizing::new) {
        let text = std::str::from_utf8(&bytes).map_err(unfit)?;
        SecretString::from(text.trim().to_owned())
    } else {
        let key = SealingKeys::generate(&SystemRandom::new()).map_err(unfit)?;
        make_directories(directory).map_err(unfit)?;
        write_whole(&file, key.expose_secret().as_bytes()).map_err(unfit)?;
        key
    };
    info!(
        store = store.kind(),
        "development: the sealing key is stored next to the checkpoint"
    );
    SealingKeys::parse(&[key]).map_err(|error| unfit(format!("{}: {error}", file.display())))
}

fn read_rsa_key(pem: &SecretString) -> Result<PrivateKey, StartError> {
    PrivateKey::import_rsa_pem(pem.expose_secret().as_bytes())
        .map_err(|error| unfit(format!("keys.rs256_private_key_file: {error}")))
}

fn key_policy(config: &Config) -> Result<KeyPolicy, StartError> {
    let algorithm = match config.keys.access_token_algorithm {
        AccessTokenAlgorithm::Es256 => Algorithm::Es256,
        AccessTokenAlgorithm::EdDsa => Algorithm::EdDsa,
        AccessTokenAlgorithm::Rs256 => Algorithm::Rs256,
    };
    let imported = match &config.secrets.rs256_private_key {
        Some(pem) => Some(Arc::new(read_rsa_key(pem)?)),
        None => None,
    };
    Ok(KeyPolicy {
        algorithm,
        schedule: config.keys.schedule(),
        imported: Arc::new(ArcSwapOption::new(imported)),
        origin: config.ledger.origin.clone(),
    })
}

/// Opens the log. Begins it with a first key if there is none.
async fn open_ledger(
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
async fn checkpoint_store(config: &Config) -> Result<Option<CheckpointStore>, StartError> {
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

/// The digest of `admin.bootstrap_token_sha256`.
fn bootstrap_digest(hex: &str) -> Result<[u8; 32], StartError> {
    let digest = format!("sha256:{hex}").parse::<GenerationDigest>();
    let digest = digest.map_err(|_| unfit("admin.bootstrap_token_sha256 must be 64 hex digits"))?;
    Ok(*digest.as_bytes())
}

async fn admin_tokens(
    config: &Config,
    store: &Store,
    ledger: &Ledger,
    dev: Option<SecretString>,
    now: Timestamp,
) -> Result<AdminTokens, StartError> {
    let bootstrap = match &config.admin.bootstrap_token_sha256 {
        None => None,
        Some(hex) => {
            let digest = bootstrap_digest(hex)?;
            let clock = ledger.clock();
            let latest = latest_time(store, clock, now).await;
            let latest = latest.map_err(unfit_store)?;
            let seen = store.see_bootstrap(&digest, now, latest).await;
            seen.map_err(unfit_store)?;
            let fault = judge_bootstrap(store, clock, &digest, now).await;
            if let Some(why) = fault.map_err(unfit_store)? {
                warn!(
                    why,
                    "admin.bootstrap_token_sha256 names a token that no longer has effect"
                );
            }
            Some(digest)
        }
    };
    Ok(AdminTokens {
        bootstrap,
        dev: dev.map(|token| token_digest(token.expose_secret())),
    })
}

/// Activates the generation of an embedded broker's own files, and records that in the ledger. A
/// broker on PostgreSQL uses the generation that an admin activated.
async fn choose_generation(
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

fn replica_name() -> Result<String, StartError> {
    let token = random_token("replica_", &SystemRandom::new()).map_err(unfit)?;
    Ok(token.expose_secret().chars().take(24).collect())
}
