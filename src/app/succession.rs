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
//! from `lost` means that the log can continue. `cli` and `app` call this module;
//! `broker::administration::succession` carries the restrictions over.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{attest_context, check};
use super::{
    Assembled, Options, RequiredSuccession, StartError, assemble_parts, bootstrap_digest,
    key_policy, open_store, open_store_to_read, prepare_schema, sealing_keys, unfit, unfit_store,
};
use crate::broker::administration::succession::{CarriedOver, OldLogRecords};
use crate::broker::check::check_generation;
use crate::broker::keys;
use crate::clock::{SharedClock, Timestamp};
use crate::config::{Config, Mode};
use crate::crypto::digest::Mac;
use crate::crypto::jwk::PublicJwk;
use crate::crypto::keyring::KeyPurpose;
use crate::crypto::signer::{LocalSigner, Signer};
use crate::domain::leaf::{Event, Leaf, LeafError};
use crate::domain::limits::MAX_CLOCK_SKEW_SECONDS;
use crate::domain::succession::{Succession, SuccessionReason, first_list_after};
use crate::files::read_private;
use crate::ledger::SUCCESSION_MAC;
use crate::ledger::guard::{NotContained, contains, unverified};
use crate::merkle::{
    Checkpoint, EMPTY_ROOT, Hash, MAX_NOTE_BYTES, Note, SignedCheckpoint, VerifierKey, WitnessKey,
    leaf_hash,
};
use crate::store::cosigned::CosignedRow;
use crate::store::heads::{Head, HeadError, HeadSeal};
use crate::store::meta::{SealedSuccession, StoreMode};
use crate::store::{Store, StoreError};

/// The number of leaves read in one batch.
const BATCH_ROWS: u64 = 1_000;

/// The number of cosignatures read in one batch.
const COSIGNED_BATCH_ROWS: u32 = 256;

/// How long the new broker may take to stop: it publishes its last checkpoint.
const STOP: Duration = Duration::from_secs(15);

/// The client name of these commands at the old database. Brokers use another name.
const CLIENT: &str = "taskpass-succession";

/// An old store, and the checkpoints of its log that were kept outside it.
pub struct OldLog {
    origin: String,
    store: Store,
    config: Config,
    mac: Mac,
    /// The log's keys, including pinned keys that its store no longer has.
    keys: Vec<VerifierKey>,
    /// The ids of the log's keys, each with the time of its removal.
    records: Vec<(String, Timestamp)>,
    /// The ids of the keys that signed its access tokens.
    access_kids: Vec<String>,
    first_status_list: u64,
    head: Head,
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

/// A leaf that only the signatures of one key cover.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct UnwitnessedLeaf {
    pub index: u64,
    pub hash: Hash,
    /// The time of its decision.
    pub at: Timestamp,
    /// The event that it records; `None` if its body was pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The id of the decision that it records, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

/// A new log that has begun.
pub struct NewLog {
    /// The verifier key that clients must pin from now on.
    pub vkey: String,
    /// The log's first signed checkpoint.
    pub checkpoint: String,
    /// The records that were carried over from the old log.
    pub carried: CarriedOver,
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

/// A store's record of the log that its own log succeeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SuccessionRecord {
    /// The succeeded log, and the reason.
    #[serde(flatten)]
    pub(super) succession: Succession,
    /// Whether restrictions of the old log are still to be carried over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unfinished: bool,
}

impl SuccessionRecord {
    fn seal(&self, mac: &Mac) -> Result<SealedSuccession, StartError> {
        let document = serde_json::to_string(self).map_err(unfit)?;
        Ok(SealedSuccession {
            mac: mac.tag(SUCCESSION_MAC, &[document.as_bytes()]),
            document,
        })
    }

    /// Refuses to serve a new log that has not carried over all restrictions of the old one.
    pub(super) fn check_finished(&self, origin: &str) -> Result<(), StartError> {
        if !self.unfinished {
            return Ok(());
        }
        let command = match self.succession.reason {
            SuccessionReason::Lost => "taskpass ledger new-origin",
            SuccessionReason::KeyRevoked => "taskpass keys revoke --ledger",
        };
        Err(unfit(format!(
            "the log `{origin}` was begun to replace `{}`, but the command was interrupted before \
             all restrictions were carried over; run `{command}` again with the same configurations",
            self.succession.origin
        )))
    }
}

/// Reads which log the store's own log succeeds. Fails if the record's MAC does not verify.
pub(super) async fn read(store: &Store, mac: &Mac) -> Result<Option<SuccessionRecord>, StartError> {
    let Some(sealed) = store.succession().await.map_err(unfit_store)? else {
        return Ok(None);
    };
    let document = sealed.document.as_bytes();
    let genuine = mac.verify(SUCCESSION_MAC, &[document], &sealed.mac);
    genuine
        .map_err(|_| unfit("the table succession was changed by another program; restore it"))?;
    serde_json::from_slice(document).map(Some).map_err(unfit)
}

/// The part of the first leaf that names the succeeded log.
struct Genesis {
    predecessor: Option<Succession>,
}

/// Reads the first leaf. Returns `None` if there is none, or if its body was pruned.
async fn first_leaf(store: &Store) -> Result<Option<Genesis>, StartError> {
    let leaf = store.leaf(0).await.map_err(unfit_store)?;
    let Some((hash, body)) = leaf.and_then(|leaf| Some((leaf.hash, leaf.body?))) else {
        return Ok(None);
    };
    if leaf_hash(&body) != hash {
        return Err(unfit("the body of the first leaf does not match its hash"));
    }
    let unread = |error: LeafError| unfit(format!("the first leaf of the log: {error}"));
    let Event::Genesis { predecessor, .. } = Leaf::from_bytes(&body).map_err(unread)?.event else {
        return Err(unfit("the first leaf of the log is not a genesis leaf"));
    };
    Ok(Some(Genesis { predecessor }))
}

/// Checks that the first leaf and the table name the same predecessor. An attacker who can delete a
/// row cannot change a leaf.
pub(super) async fn check_first_leaf(
    store: &Store,
    succeeds: Option<&Succession>,
) -> Result<(), StartError> {
    let Some(Genesis { predecessor: leaf }) = first_leaf(store).await? else {
        return Ok(());
    };
    if leaf.as_ref() == succeeds {
        return Ok(());
    }
    let says = |succession: Option<&Succession>| match succession {
        Some(succession) => format!("the log `{}`", succession.origin),
        None => "no log".to_owned(),
    };
    Err(unfit(format!(
        "by its first leaf this log succeeds {}, but by the table succession it succeeds {}: \
         the table was changed by another program; restore it",
        says(leaf.as_ref()),
        says(succeeds)
    )))
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

    /// The number of leaves under the largest checkpoint that a witness of the old configuration
    /// signed.
    async fn witnessed(&self) -> Result<u64, StartError> {
        let mut most = 0;
        for witness in &self.config.ledger.witnesses {
            let key = witness.vkey.parse().map_err(unfit)?;
            most = most.max(self.witnessed_by(&key).await?);
        }
        Ok(most)
    }

    async fn witnessed_by(&self, key: &WitnessKey) -> Result<u64, StartError> {
        let vkey = key.to_string();
        let mut until = self.head.size;
        while until > 0 {
            let rows = self
                .store
                .cosigned_until(&vkey, until, COSIGNED_BATCH_ROWS)
                .await;
            let rows = rows.map_err(unfit_store)?;
            let Some(last) = rows.last() else { break };
            until = last.size - 1;
            for row in &rows {
                if self.is_witnessed(key, row).await? {
                    return Ok(row.size);
                }
            }
        }
        Ok(0)
    }

    /// Whether a row holds the witness's signature of a checkpoint that the store's tree contains.
    async fn is_witnessed(&self, key: &WitnessKey, row: &CosignedRow) -> Result<bool, StartError> {
        let read = || {
            let note = Note::parse(row.checkpoint.as_bytes()).ok()?;
            let text = note.unverified_text();
            key.cosigned(text, row.line.as_bytes()).ok()?;
            text.parse::<Checkpoint>().ok()
        };
        let Some(seen) = read().filter(|seen| seen.origin == self.origin && seen.size == row.size)
        else {
            return Ok(false);
        };
        let seen = Head {
            size: seen.size,
            root: seen.root,
        };
        match contains(&self.store, Some(self.head), seen).await {
            Ok(()) => Ok(true),
            Err(NotContained::Rewound(_)) => Ok(false),
            Err(unknown @ NotContained::Unknown(_)) => Err(unfit(unknown)),
        }
    }

    /// Passes each leaf to `each` that only `key` covers: no witness and no other key of the log
    /// signed a checkpoint over it. Returns the number of these leaves.
    pub async fn vouched_by_alone(
        &self,
        key: &VerifierKey,
        mut each: impl FnMut(UnwitnessedLeaf) -> Result<(), StartError>,
    ) -> Result<u64, StartError> {
        let own = kid(key);
        let others = self.records.iter().filter(|(kid, _)| *kid != own);
        // The signatures of another key cover every leaf that is older than that key's removal.
        let until = others.map(|(_, removed)| *removed).max();
        let mut count = 0;
        let mut from = self.witnessed().await?;
        while from < self.head.size {
            let leaves = self
                .store
                .leaves(from, BATCH_ROWS)
                .await
                .map_err(unfit_store)?;
            let Some(last) = leaves.last() else { break };
            from = last.index + 1;
            for leaf in leaves {
                if until.is_some_and(|until| leaf.at < until) {
                    continue;
                }
                let body = leaf.body.as_deref();
                let read = body.and_then(|body| serde_json::from_slice(body).ok());
                let text = |name: &str| {
                    let read: Option<&serde_json::Value> = read.as_ref();
                    Some(read?.get(name)?.as_str()?.to_owned())
                };
                count += 1;
                each(UnwitnessedLeaf {
                    index: leaf.index,
                    hash: leaf.hash,
                    at: leaf.at,
                    event: text("event"),
                    decision: text("decision"),
                })?;
            }
        }
        Ok(count)
    }
}

/// The id of a key of the log in its store.
fn kid(key: &VerifierKey) -> String {
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
    if let Some(shared) = Box::pin(super::checkpoint_store(config)).await? {
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
