//! The keys that come from the configuration: sealing keys and an imported signing key.
//!
//! `sealing_keys` reads the sealing keys; the development mode keeps one in a file next to its
//! checkpoint. `key_policy` reads the RS256 key, if one is configured, and the dates of keys.
//! [`KeyProtection`] seals the broker's keys and tags its rows.
//!
//! Production never creates a sealing key. A key that cannot be read is `StartError::Unfit` with its
//! setting. [`super::assembly`], [`super::reload`] and [`super::succession`] call this file.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use secrecy::{ExposeSecret, SecretString};
use tracing::info;
use zeroize::Zeroizing;

use super::{StartError, unfit};
use crate::broker::keys::KeyPolicy;
use crate::config::{AccessTokenAlgorithm, Config, Mode};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::Algorithm;
use crate::crypto::random::SystemRandom;
use crate::crypto::sealer::{Sealer, SealingKeys};
use crate::crypto::signer::PrivateKey;
use crate::files::{make_directories, read_private, write_whole};
use crate::store::Store;

/// The longest file with the sealing key of the development mode.
const MAX_SEALING_KEY_BYTES: usize = 1024;

/// Protects the broker's own keys and rows.
pub(super) struct KeyProtection {
    pub(super) sealer: Arc<dyn Sealer>,
    pub(super) mac: Mac,
}

/// The configured sealing keys. The development mode keeps one in a file next to its checkpoint.
pub(super) fn sealing_keys(config: &Config, store: &Store) -> Result<SealingKeys, StartError> {
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

pub(super) fn read_rsa_key(pem: &SecretString) -> Result<PrivateKey, StartError> {
    PrivateKey::import_rsa_pem(pem.expose_secret().as_bytes())
        .map_err(|error| unfit(format!("keys.rs256_private_key_file: {error}")))
}

pub(super) fn key_policy(config: &Config) -> Result<KeyPolicy, StartError> {
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
