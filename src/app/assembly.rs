//! Assembles a broker that does not serve yet.
//!
//! [`assemble`] checks the configuration and its generation, then opens in this order: the store,
//! which it claims; the read lease; the sealing keys; the ledger; the minters; the admin tokens; the
//! broker; its signing keys. `assemble_parts` also serves the succession, whose log may be begun and
//! not yet complete.
//!
//! The rule: a start that cannot succeed creates nothing, as far as that is known in advance. Each
//! failed check is a [`StartError`] with the remedy. With a clock in doubt the broker is assembled
//! and fails closed. [`super::start`] and [`super::succession`] call this file.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::check::{CheckError, check};
use super::ledger::{checkpoint_store, open_ledger};
use super::reload::SharedSecrets;
use super::secrets::{KeyProtection, key_policy, sealing_keys};
use super::store::{hold_read_lease, open_store, open_store_to_read, prepare_schema};
use super::{Options, StartError, succession_record, unfit, unfit_store};
use crate::broker::access::rate::IdentityLimiter;
use crate::broker::access::tokens::{AdminTokens, judge_bootstrap, latest_time};
use crate::broker::administration::workload_keys::StoredWorkloadKeys;
use crate::broker::check::Unfit;
use crate::broker::generations::AttestationTrust;
use crate::broker::{Broker, BrokerError, BrokerParts};
use crate::clock::Timestamp;
use crate::config::{Config, Mode};
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::random::{SystemRandom, random_token, token_digest};
use crate::crypto::sealer::Sealer;
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::generation_digest::GenerationDigest;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::mint::jwt::JwtMinter;
use crate::mint::{Minter, Minters, aws};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::meta::StoreMode;
use crate::store::postgres::BROKER;

/// An assembled broker that does not serve yet: it has no listener and no sweeper.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Assembled {
    pub broker: Arc<Broker>,
    pub shutdown: Shutdown,
    pub store: Store,
    /// The generation that the configuration's files describe.
    pub generation: Generation,
    pub(super) secrets: SharedSecrets,
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
pub(super) enum RequiredSuccession {
    /// The restrictions of the earlier log were carried over.
    Wholly,
    /// The new log has begun.
    InPart,
}

#[expect(
    clippy::too_many_lines,
    reason = "the parts of a broker, one after the other"
)]
pub(super) async fn assemble_parts(
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
    let known = succession_record::read(&store, &mac).await?;
    if let Some(known) = known
        .as_ref()
        .filter(|_| succeeded == RequiredSuccession::Wholly)
    {
        known.check_finished(&config.ledger.origin)?;
    }
    let succeeds = known.map(|known| known.succession);
    succession_record::check_first_leaf(&store, succeeds.as_ref()).await?;
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

/// The digest of `admin.bootstrap_token_sha256`.
pub(super) fn bootstrap_digest(hex: &str) -> Result<[u8; 32], StartError> {
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

fn replica_name() -> Result<String, StartError> {
    let token = random_token("replica_", &SystemRandom::new()).map_err(unfit)?;
    Ok(token.expose_secret().chars().take(24).collect())
}
