//! `taskpass ledger new-origin`: the way on after leaves were lost, or after somebody else had the
//! log's key. It works on stores, not through a broker, for there is none that could serve.
//!
//! The new log is begun in a store of its own, under a name of its own; the old store stays as it
//! is, to be verified for as long as receipts of it are shown.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Assembled, Options, StartError, assemble, open_store, open_store_as, prepare_schema,
    sealing_keys, unfit, unfit_store,
};
use crate::broker::keys;
use crate::broker::succession::{CarriedOver, Legacy};
use crate::clock::{SharedClock, Timestamp};
use crate::config::{Config, Mode};
use crate::crypto::digest::Mac;
use crate::crypto::keyring::KeyPurpose;
use crate::domain::succession::{Succession, Why};
use crate::ledger::SUCCESSION_MAC;
use crate::ledger::guard::{contains, unverified};
use crate::merkle::{
    Checkpoint, EMPTY_ROOT, Hash, Note, SignedCheckpoint, VerifierKey, WitnessKey,
};
use crate::store::Store;
use crate::store::append::Head;
use crate::store::cosigned::CosignedRow;
use crate::store::meta::{SealedSuccession, StoreMode};

/// Leaves that are read at once.
const BITE: u64 = 1_000;

/// Words of witnesses that are read at once.
const COSIGNED_BITE: u32 = 256;

/// How long the new broker may take to go down again: its last checkpoint is published.
const STOP: Duration = Duration::from_secs(15);

/// What an old store holds, and what its log was when it was last seen elsewhere.
pub struct Old {
    origin: String,
    store: Store,
    config: Config,
    kids: Vec<(VerifierKey, String)>,
    records: Vec<(String, Timestamp)>,
    head: Head,
    known: Option<(String, Checkpoint)>,
}

/// A checkpoint that somebody kept.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Where it was.
    pub name: String,
    /// The signed note.
    pub note: Vec<u8>,
}

/// A leaf that only one key vouches for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Orphan {
    /// Its place.
    pub index: u64,
    /// Its hash.
    pub hash: Hash,
    /// When it was decided.
    pub at: Timestamp,
    /// What it records, where its body was not pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The decision that it records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

/// A log that has begun.
pub struct Begun {
    /// The verifier key to pin from now on.
    pub vkey: String,
    /// Its first signed checkpoint.
    pub checkpoint: String,
    /// What was carried over.
    pub carried: CarriedOver,
}

/// Which log a store's own takes the place of, if the broker wrote that.
pub(super) async fn read(store: &Store, mac: &Mac) -> Result<Option<Succession>, StartError> {
    let Some(sealed) = store.succession().await.map_err(unfit_store)? else {
        return Ok(None);
    };
    let document = sealed.document.as_bytes();
    let genuine = mac.verify(SUCCESSION_MAC, &[document], &sealed.mac);
    genuine.map_err(|_| unfit("the table succession was changed by something else than us"))?;
    serde_json::from_slice(document).map(Some).map_err(unfit)
}

impl Old {
    /// Opens what is left of an old log, and finds the last of its checkpoints that is known: in the
    /// replica's own file, in the place of all replicas, among `given`. `successor` is the new log's
    /// name; `pinned` are keys of the old one that its store may have forgotten.
    pub async fn open(
        config: Config,
        successor: &str,
        given: Vec<Evidence>,
        pinned: &[VerifierKey],
        now: Timestamp,
    ) -> Result<Self, StartError> {
        let origin = config.ledger.origin.clone();
        let store = open_store_as(&config, "taskpass-succession").await?;
        if config.mode == Mode::Production {
            prepare_schema(&store, config.mode).await?;
        }
        let sealer = sealing_keys(&config, &store)?;
        let opened = keys::open_keys(&store, &sealer, &sealer.mac(), &origin, now).await;
        let opened = opened.map_err(unfit)?;
        let kids: Vec<(VerifierKey, String)> = opened
            .ledger
            .iter()
            .map(|key| (key.verifier.clone(), key.signer.kid().to_owned()))
            .collect();
        let own = kids.iter().map(|(key, _)| key);
        let keys: Vec<VerifierKey> = own.chain(pinned).cloned().collect();
        let ledger_keys = opened.records.iter();
        let records = ledger_keys
            .filter(|record| record.purpose == KeyPurpose::Ledger)
            .map(|record| (record.kid.clone(), record.remove_at))
            .collect();
        let head = store.head().await.map_err(unfit_store)?.unwrap_or(Head {
            size: 0,
            root: EMPTY_ROOT,
        });
        let mut evidence = given;
        let file = &config.ledger.checkpoint_file;
        if let Ok(note) = tokio::fs::read(file).await {
            let name = file.display().to_string();
            evidence.push(Evidence { name, note });
        }
        if let Some(place) = Box::pin(super::shared_place(&config)).await? {
            let kept = place.read().await.map_err(unfit)?;
            let name = place.to_string();
            evidence.extend(kept.note.map(|note| Evidence { name, note }));
        }
        let mut known: Option<(String, Checkpoint)> = None;
        for Evidence { name, note } in evidence {
            // Where the new log has begun already, it has taken the old one's place.
            if unverified(&note).is_ok_and(|known| known.origin == successor) {
                continue;
            }
            let checkpoint = SignedCheckpoint::open(&note, &keys).map_err(|error| {
                unfit(format!(
                    "{name}: not a checkpoint of `{origin}` by a key that is known ({error}); if \
                     the store has forgotten its key, give it with --key"
                ))
            })?;
            let checkpoint = checkpoint.checkpoint().clone();
            if checkpoint.origin != origin {
                return Err(unfit(format!(
                    "{name}: a checkpoint of the log `{}`, not of `{origin}`",
                    checkpoint.origin
                )));
            }
            if known
                .as_ref()
                .is_none_or(|(_, it)| it.size < checkpoint.size)
            {
                known = Some((name, checkpoint));
            }
        }
        Ok(Self {
            origin,
            store,
            config,
            kids,
            records,
            head,
            known,
        })
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What its store shows.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The last checkpoint that somebody kept, and where.
    #[must_use]
    pub fn known(&self) -> Option<(&str, &Checkpoint)> {
        self.known.as_ref().map(|(name, known)| (&**name, known))
    }

    /// How many connections to its database brokers still have.
    pub async fn connected_brokers(&self) -> Result<u64, StartError> {
        self.store.connected_brokers().await.map_err(unfit_store)
    }

    /// Why the log cannot go on: what its store lacks. Nothing where it lacks nothing.
    pub async fn lost(&self) -> Result<Option<String>, StartError> {
        let Some((name, known)) = self.known() else {
            return Ok(None);
        };
        let kept = Head {
            size: known.size,
            root: known.root,
        };
        let contained = contains(&self.store, Some(self.head), kept).await;
        let rewound = contained.map_err(unfit)?.err();
        Ok(rewound.map(|why| format!("{name}: {why}")))
    }

    /// The succession that gives this log up.
    pub fn give_up(&self, why: Why, key: Option<&VerifierKey>, at: Timestamp) -> Succession {
        let last = self.known.as_ref().map(|(_, known)| Head {
            size: known.size,
            root: known.root,
        });
        let last = last.filter(|last| why == Why::Lost || last.size > self.head.size);
        let last = last.unwrap_or(self.head);
        Succession {
            origin: self.origin.clone(),
            size: last.size,
            root: last.root.to_string(),
            why,
            revoked_key: key.map(ToString::to_string),
            at,
        }
    }

    /// Whether a key was one of this log's.
    #[must_use]
    pub fn has_key(&self, key: &VerifierKey) -> bool {
        self.kids.iter().any(|(known, _)| known == key)
    }

    /// How many leaves stand under a checkpoint that a witness of the old configuration signed.
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
            let rows = self.store.cosigned_until(&vkey, until, COSIGNED_BITE).await;
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

    /// Whether a row is the witness's word, and the store's tree contains what that is about.
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
        let contained = contains(&self.store, Some(self.head), seen).await;
        Ok(contained.map_err(unfit)?.is_ok())
    }

    /// The leaves that only `key` vouches for: those that no checkpoint covers which another key of
    /// the log, or a witness, signed along.
    pub async fn vouched_by_alone(
        &self,
        key: &VerifierKey,
        mut each: impl FnMut(Orphan) -> Result<(), StartError>,
    ) -> Result<u64, StartError> {
        let own = self.kids.iter().find(|(known, _)| known == key);
        let others = self
            .records
            .iter()
            .filter(|(kid, _)| own.is_none_or(|(_, own)| own != kid));
        // What another key signed before it was removed covers all that was there by then.
        let until = others.map(|(_, removed)| *removed).max();
        let mut count = 0;
        let mut from = self.witnessed().await?;
        while from < self.head.size {
            let leaves = self.store.leaves(from, BITE).await.map_err(unfit_store)?;
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
                each(Orphan {
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

/// Begins the new log in an empty store, and takes over from `old` what forbids, and with `all` what
/// permits, too. What was begun and cut short is taken up again.
pub async fn begin(
    config: &Config,
    clock: SharedClock,
    succession: &Succession,
    old: &Old,
    all: bool,
) -> Result<Begun, StartError> {
    if config.ledger.origin == succession.origin {
        return Err(unfit(
            "ledger.origin is still the old one: give the new log a name of its own",
        ));
    }
    let store = open_store(config).await?;
    prepare_schema(&store, config.mode).await?;
    let mode = match config.mode {
        Mode::Dev => StoreMode::Dev,
        Mode::Production => StoreMode::Production,
    };
    let claimed = store.claim(mode, &config.ledger.origin, clock.now()).await;
    claimed.map_err(unfit_store)?;
    let mac = sealing_keys(config, &store)?.mac();
    let begun = read(&store, &mac).await?;
    // One that was begun before and cut short keeps the time at which the old log was given up.
    let same = begun.filter(|begun| {
        let at = succession.at;
        Succession {
            at,
            ..begun.clone()
        } == *succession
    });
    let document = serde_json::to_string(same.as_ref().unwrap_or(succession)).map_err(unfit)?;
    let sealed = SealedSuccession {
        mac: mac.tag(SUCCESSION_MAC, &[document.as_bytes()]),
        document,
    };
    let put = store.put_succession(&sealed).await.map_err(unfit_store)?;
    store.close().await;
    if !put {
        return Err(unfit(
            "the new store holds a log already, or was told of another one to succeed: a new log \
             needs an empty store",
        ));
    }
    let options = Options {
        clock: Arc::clone(&clock),
        dev_admin_token: None,
        policies: None,
        minters: Vec::new(),
    };
    let assembled = assemble(config, options).await?;
    let carried = carry(&assembled, config, old, all, clock.now()).await;
    let ledger = assembled.broker.ledger();
    let vkey = ledger.keys().first().map(|key| key.verifier.to_string());
    let signed = ledger.checkpoints().borrow().clone();
    let stopped = assembled
        .shutdown
        .drain_then_stop(Duration::ZERO, STOP)
        .await;
    assembled.store.close().await;
    let carried = carried?;
    if !stopped.is_clean() {
        return Err(unfit(
            "the new log was begun, but its checkpoint may not have been published; \
             `taskpass serve` does that when it starts",
        ));
    }
    Ok(Begun {
        vkey: vkey.unwrap_or_default(),
        checkpoint: signed.map_or_else(String::new, |signed| signed.checkpoint.to_string()),
        carried,
    })
}

async fn carry(
    assembled: &Assembled,
    config: &Config,
    old: &Old,
    all: bool,
    now: Timestamp,
) -> Result<CarriedOver, StartError> {
    let broker = &assembled.broker;
    let legacy: Legacy = broker.legacy(&old.store, now).await.map_err(unfit)?;
    let registered = config.resources.iter().chain(&old.config.resources);
    let registered: Vec<_> = registered.cloned().collect();
    let carried = broker.succeed(legacy, &registered, all).await;
    carried.map_err(unfit)
}
