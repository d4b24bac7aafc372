//! The old log: its store, and the checkpoints that were kept outside it.
//!
//! [`OldLog::open`] opens the store for reading and collects the checkpoints: from the replica's
//! own file, from the location that all replicas share, and from the operator. `lost` compares them
//! with the store; `give_up` and `revoke` record why the log ended.
//!
//! The rule: the old store stays unchanged, so that its receipts can still be verified. `None` from
//! `lost` means that the log can continue. Evidence that no known key signed, or that is missing
//! where the store says that it was kept, is `StartError::Unfit` with the remedy. The commands of
//! `cli` call this file.

use super::CLIENT;
use crate::app::assembly::bootstrap_digest;
use crate::app::ledger::checkpoint_store;
use crate::app::secrets::{key_policy, sealing_keys};
use crate::app::store::open_store_to_read;
use crate::app::succession_record::{first_leaf, read};
use crate::app::{StartError, unfit, unfit_store};
use crate::broker::keys;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::crypto::digest::Mac;
use crate::crypto::jwk::PublicJwk;
use crate::crypto::keyring::KeyPurpose;
use crate::crypto::signer::{LocalSigner, Signer};
use crate::domain::succession::{Succession, SuccessionReason, first_list_after};
use crate::files::read_private;
use crate::ledger::containment::{NotContained, contains, unverified};
use crate::merkle::{
    Checkpoint, EMPTY_ROOT, MAX_NOTE_BYTES, Note, SignedCheckpoint, VerifierKey, WitnessKey,
};
use crate::store::heads::{Head, HeadError, HeadSeal};
use crate::store::{Store, StoreError};

/// An old store, and the checkpoints of its log that were kept outside it.
pub struct OldLog {
    pub(super) origin: String,
    pub(super) store: Store,
    pub(super) config: Config,
    pub(super) mac: Mac,
    /// The log's keys, including pinned keys that its store no longer has.
    keys: Vec<VerifierKey>,
    /// The ids of the log's keys, each with the time of its removal.
    pub(super) records: Vec<(String, Timestamp)>,
    /// The ids of the keys that signed its access tokens.
    access_kids: Vec<String>,
    first_status_list: u64,
    pub(super) head: Head,
    known: Vec<KeptCheckpoint>,
}

/// A checkpoint of the old log that was kept outside its store, with a verified signature.
struct KeptCheckpoint {
    name: String,
    note: Vec<u8>,
    checkpoint: Checkpoint,
}

impl KeptCheckpoint {
    fn head(&self) -> Head {
        Head {
            size: self.checkpoint.size,
            root: self.checkpoint.root,
        }
    }
}

/// A checkpoint that was kept outside the old store, not yet verified.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Evidence {
    /// The file or URL from which it was read.
    pub name: String,
    pub note: Vec<u8>,
}

impl OldLog {
    /// Opens an old store, and collects the checkpoints of its log: from the replica's own file,
    /// from the location that all replicas share, and from `given`. `successor` is the new log's
    /// name. `pinned` holds keys of the old log that its store may no longer have.
    pub async fn open(
        config: Config,
        successor: &str,
        given: Vec<Evidence>,
        pinned: &[VerifierKey],
        now: Timestamp,
    ) -> Result<Self, StartError> {
        let origin = config.ledger.origin.clone();
        let store = open_store_to_read(&config, CLIENT).await?;
        let store = store.ok_or_else(|| unfit(format!("there is no store of `{origin}`")))?;
        let sealer = sealing_keys(&config, &store)?;
        let mac = sealer.mac(&origin);
        store.authenticate_with(&mac);
        let opened = keys::open_keys(&store, &sealer, &origin, now).await;
        let opened = opened.map_err(unfit)?;
        let own = opened.ledger.iter().map(|key| &key.verifier);
        let keys: Vec<VerifierKey> = own.chain(pinned).cloned().collect();
        let of = |purpose| {
            let records = opened.records.iter();
            records.filter(move |record| record.purpose == purpose)
        };
        let records = of(KeyPurpose::Ledger)
            .map(|record| (record.kid.clone(), record.remove_at))
            .collect();
        let access_kids = of(KeyPurpose::AccessToken)
            .map(|record| record.kid.clone())
            .collect();
        let succeeded = match read(&store, &mac).await? {
            Some(record) => Some(record.succession),
            None => first_leaf(&store).await?.and_then(|leaf| leaf.predecessor),
        };
        let head = store.head(&HeadSeal::new(&origin, &mac)).await;
        let head = head.map_err(unfit_head)?.unwrap_or(Head {
            size: 0,
            root: EMPTY_ROOT,
        });
        let location = match store.shared_checkpoint_location().await {
            // A store with an older schema does not record it.
            Err(StoreError::Refused(_)) => None,
            known => known.map_err(unfit_store)?,
        };
        let known = known(&config, &keys, successor, given, location.as_deref()).await?;
        Ok(Self {
            origin,
            store,
            config,
            mac,
            keys,
            records,
            access_kids,
            first_status_list: succeeded.map_or(0, |it| it.first_status_list()),
            head,
            known,
        })
    }

    /// The log's origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The log's head in its store.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The largest checkpoint that was kept outside the store, with its location.
    #[must_use]
    pub fn known(&self) -> Option<(&str, &Checkpoint)> {
        let largest = self.known.iter().max_by_key(|known| known.checkpoint.size);
        largest.map(|known| (&*known.name, &known.checkpoint))
    }

    /// The number of connections that brokers still have to its database.
    pub async fn connected_brokers(&self) -> Result<u64, StartError> {
        self.store.connected_brokers().await.map_err(unfit_store)
    }

    /// Returns a kept checkpoint that the log's store does not contain, with the reason. `None` if
    /// the store contains every kept checkpoint: the log can continue.
    pub async fn lost(&self) -> Result<Option<String>, StartError> {
        for known in &self.known {
            if let Some(why) = self.lacks(known).await? {
                return Ok(Some(format!("{}: {why}", known.name)));
            }
        }
        Ok(None)
    }

    async fn lacks(&self, known: &KeptCheckpoint) -> Result<Option<String>, StartError> {
        match contains(&self.store, Some(self.head), known.head()).await {
            Ok(()) => Ok(None),
            Err(NotContained::Rewound(why)) => Ok(Some(why)),
            Err(unknown @ NotContained::Unknown(_)) => Err(unfit(unknown)),
        }
    }

    /// Creates the record that the log ended because leaves were lost.
    #[must_use]
    pub fn give_up(&self, at: Timestamp) -> Succession {
        self.give_up_as_of(self.known.iter(), SuccessionReason::Lost, None, at)
    }

    /// Creates the record that the log ended because `key` was stolen, and lists the rejected
    /// checkpoints. A checkpoint is rejected if the store does not contain it, and neither another
    /// key nor a witness signed it.
    pub async fn revoke(
        &self,
        key: &VerifierKey,
        at: Timestamp,
    ) -> Result<(Succession, Vec<String>), StartError> {
        let (mut believed, mut not) = (Vec::new(), Vec::new());
        for known in &self.known {
            if self.is_vouched_for(known, key) || self.lacks(known).await?.is_none() {
                believed.push(known);
            } else {
                let Checkpoint { size, root, .. } = &known.checkpoint;
                not.push(format!("{}: size {size} root {root}", known.name));
            }
        }
        let key = Some(key.to_string());
        let succession =
            self.give_up_as_of(believed.into_iter(), SuccessionReason::KeyRevoked, key, at);
        Ok((succession, not))
    }

    /// Whether a witness or another key of the log than `key` signed a checkpoint.
    fn is_vouched_for(&self, known: &KeptCheckpoint, key: &VerifierKey) -> bool {
        let others: Vec<VerifierKey> = self.keys.iter().filter(|it| *it != key).cloned().collect();
        let witnesses = self.config.ledger.witnesses.iter();
        let witnesses: Vec<WitnessKey> = witnesses.filter_map(|it| it.vkey.parse().ok()).collect();
        let by_a_witness = || {
            let cosigned = Note::parse(&known.note).ok()?.cosignatures(&witnesses);
            cosigned.ok().filter(|found| !found.is_empty())
        };
        SignedCheckpoint::open(&known.note, &others).is_ok() || by_a_witness().is_some()
    }

    fn give_up_as_of<'a>(
        &'a self,
        known: impl Iterator<Item = &'a KeptCheckpoint>,
        reason: SuccessionReason,
        revoked_key: Option<String>,
        at: Timestamp,
    ) -> Succession {
        let largest = known.map(KeptCheckpoint::head).max_by_key(|head| head.size);
        let largest = largest.filter(|head| head.size >= self.head.size);
        let last = largest.unwrap_or(self.head);
        Succession {
            origin: self.origin.clone(),
            size: last.size,
            root: last.root.to_string(),
            reason,
            revoked_key,
            first_status_list: Some(first_list_after(self.first_status_list, last.size)),
            at,
        }
    }

    /// Whether `key` is or was one of this log's keys.
    #[must_use]
    pub fn has_key(&self, key: &VerifierKey) -> bool {
        let kid = kid(key);
        key.name() == self.origin && self.records.iter().any(|(known, _)| *known == kid)
    }

    /// Whether this log ever accepted the bootstrap token of another configuration.
    pub async fn has_seen_bootstrap_of(&self, new: &Config) -> Result<bool, StartError> {
        let Some(hex) = &new.admin.bootstrap_token_sha256 else {
            return Ok(false);
        };
        let digest = bootstrap_digest(hex)?;
        let seen = self.store.bootstrap_token(&digest).await;
        Ok(seen.map_err(unfit_store)?.is_some())
    }

    /// The id of another configuration's RS256 key if that key signed tokens of this log.
    pub fn signed_with_key_of(&self, new: &Config) -> Result<Option<String>, StartError> {
        let kid = |config: &Config| {
            let Some(key) = key_policy(config)?.imported.load_full() else {
                return Ok(None);
            };
            let signer = LocalSigner::new(&key).map_err(unfit)?;
            Ok::<_, StartError>(Some(signer.kid().to_owned()))
        };
        let (theirs, own) = (kid(new)?, kid(&self.config)?);
        Ok(theirs.filter(|it| self.access_kids.contains(it) || own.as_ref() == Some(it)))
    }
}

/// Converts a head error. A head that no broker of the old log wrote does not prove where the log
/// ends.
fn unfit_head(error: HeadError) -> StartError {
    match error {
        HeadError::Store(error) => unfit_store(error),
        HeadError::Foreign(why) => unfit(format!(
            "{why}. Remove that row from a copy of the old store, and name the copy in --old-config"
        )),
    }
}

/// The id of a key of the log in its store.
pub(super) fn kid(key: &VerifierKey) -> String {
    PublicJwk::from_ed25519(*key.public_key()).thumbprint()
}

/// Collects the checkpoints that were kept outside the old store: from `given`, the replica's own
/// file, and the location that all replicas share. `kept_at` is the shared location that the store
/// records.
async fn known(
    config: &Config,
    keys: &[VerifierKey],
    successor: &str,
    given: Vec<Evidence>,
    kept_at: Option<&str>,
) -> Result<Vec<KeptCheckpoint>, StartError> {
    let origin = &config.ledger.origin;
    let mut evidence = given;
    let file = &config.ledger.checkpoint_file;
    let name = file.display().to_string();
    // This file may be the only evidence of a loss.
    if let Some(note) = read_private(file, MAX_NOTE_BYTES).map_err(unfit)? {
        evidence.push(Evidence { name, note });
    }
    if let Some(shared) = Box::pin(checkpoint_store(config)).await? {
        let kept = shared.read().await.map_err(unfit)?;
        let name = shared.to_string();
        if kept.note.is_none() && kept_at == Some(&*name) {
            return Err(unfit(format!(
                "{name}: the checkpoint that was kept there is missing: mount the disk or restore \
                 the file; if it is lost, remove the location from the old configuration"
            )));
        }
        evidence.extend(kept.note.map(|note| Evidence { name, note }));
    }
    let mut known = Vec::new();
    for Evidence { name, note } in evidence {
        // A new log that has already begun has overwritten the old log's checkpoint here.
        if unverified(&note).is_ok_and(|known| known.origin == successor) {
            continue;
        }
        let checkpoint = SignedCheckpoint::open(&note, keys).map_err(|error| {
            unfit(format!(
                "{name}: not a checkpoint of `{origin}` signed by a known key ({error}); if the \
                 store no longer has its key, give it with --key"
            ))
        })?;
        let checkpoint = checkpoint.checkpoint().clone();
        if checkpoint.origin != *origin {
            return Err(unfit(format!(
                "{name}: a checkpoint of the log `{}`, not of `{origin}`",
                checkpoint.origin
            )));
        }
        known.push(KeptCheckpoint {
            name,
            note,
            checkpoint,
        });
    }
    Ok(known)
}
