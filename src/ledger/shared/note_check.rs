//! Checks the note in the location against the store.
//!
//! `check_note` opens the note with the log's keys and shows that the store's tree contains its
//! head. The store is read after the location, over the pool or over a new connection
//! ([`Through`]); `check_pool` shows that both lead to servers with one tree.
//!
//! The rule: the location holds only committed checkpoints, so a store without one has lost or
//! changed leaves. That is an alarm, and so is a note that no key of the log signed. A store or
//! location that does not answer is `Store` or `Unavailable`, and nothing is concluded from it.
//! [`super::SharedCheckpoint`] calls this file.

use std::sync::atomic::Ordering;

use tracing::warn;

use super::{SharedCheckpoint, SharedError};
use crate::domain::succession::SuccessionReason;
use crate::ledger::checkpoint_store::VersionedNote;
use crate::ledger::containment::{NotContained, contains, rewound, succeeded, unverified};
use crate::ledger::{LedgerKey, proofs};
use crate::merkle::{CheckpointError, EMPTY_ROOT, SignedCheckpoint, VerifierKey};
use crate::store::append::{LedgerConnection, Server};
use crate::store::heads::{Head, HeadError};

/// The connection over which the store is read, after the location was read.
pub(in crate::ledger) enum Through<'a> {
    /// The pool, to any server of it.
    Pool,
    /// A new connection, whose server is being checked.
    Connection(&'a mut LedgerConnection),
}

/// The content of the location, checked against the store.
#[derive(Default)]
pub(super) struct CheckedNote {
    /// The head there. `None` if it is of the predecessor log.
    pub(super) there: Option<Head>,
    /// The server that a new connection leads to.
    pub(super) server: Option<Server>,
}

/// A note after the check of its signatures.
enum Opened {
    /// A key of the log signed it.
    Own(Box<SignedCheckpoint>),
    /// No key of the log signed it.
    Foreign(CheckpointError),
}

impl SharedCheckpoint {
    /// The head in the location, if a key of this log signed it and the store's tree contains it.
    pub(super) async fn check_note(
        &self,
        kept: &VersionedNote,
        through: Through<'_>,
    ) -> Result<CheckedNote, SharedError> {
        let Some(note) = &kept.note else {
            return Err(SharedError::Unavailable(format!(
                "{}: the checkpoint that was there is gone",
                self.location
            )));
        };
        self.seen.store(true, Ordering::Relaxed);
        if let Some(succeeds) = &self.succeeds
            && let Ok(known) = unverified(note)
            && known.origin == succeeds.origin
        {
            // This log succeeds the old one, so a broker that still runs the old log must stop.
            return match succeeded(&known, succeeds) {
                Ok(()) => Ok(CheckedNote::default()),
                Err(why) if succeeds.reason == SuccessionReason::KeyRevoked => {
                    // A holder of the revoked key could have signed this checkpoint. Cosigned
                    // checkpoints were checked when the log was given up.
                    warn!(place = %self.location, %why, "a checkpoint by the revoked key is replaced");
                    Ok(CheckedNote::default())
                }
                Err(why) => Err(SharedError::Alarm(format!("{}: {why}", self.location))),
            };
        }
        let opened = self.open(note).await?;
        if let Opened::Own(opened) = &opened
            && self.running.load(Ordering::Relaxed)
        {
            // A server that lacks leaves is not read any more. Before this, the pool may have led
            // to another server.
            self.store.note_committed(opened.checkpoint().size);
        }
        // The store is read after the location, which only ever holds committed checkpoints: so the
        // store must contain this one, even if other replicas append entries meanwhile.
        let (head, server) = match through {
            Through::Pool => (self.store.head(&self.heads).await?, None),
            Through::Connection(connection) => {
                let read = connection.head_and_server().await?;
                let head = read.head.map(|head| self.heads.open(&head)).transpose();
                (head.map_err(HeadError::Foreign)?, Some(read.server))
            }
        };
        let opened = match opened {
            Opened::Own(own) => own,
            Opened::Foreign(error) => {
                return Err(SharedError::Alarm(self.unknown(note, &error, head)));
            }
        };
        let there = opened.checkpoint();
        let kept = Head {
            size: there.size,
            root: there.root,
        };
        if server.is_some() {
            if head.map_or(0, |head| head.size) < kept.size {
                let shown = head.unwrap_or(Head {
                    size: 0,
                    root: EMPTY_ROOT,
                });
                return Err(SharedError::Alarm(format!(
                    "{}: {}",
                    self.location,
                    rewound(kept, shown)
                )));
            }
            self.check_pool(head).await?;
        }
        match contains(&self.store, head, kept).await {
            Ok(()) => Ok(CheckedNote {
                there: Some(kept),
                server,
            }),
            Err(NotContained::Rewound(why)) => {
                Err(SharedError::Alarm(format!("{}: {why}", self.location)))
            }
            Err(NotContained::Unknown(why)) => Err(SharedError::Unavailable(why)),
        }
    }

    /// Opens a note with the known keys or, if none of them signed it, with the keys that are
    /// stored now.
    async fn open(&self, note: &[u8]) -> Result<Opened, SharedError> {
        let opened = SignedCheckpoint::open(note, &verifiers(&self.keys.load_full()));
        if let Ok(own) = opened {
            return Ok(Opened::Own(Box::new(own)));
        }
        let kept = self.key_source.read().await;
        let kept = kept.map_err(SharedError::Unavailable)?;
        Ok(match SignedCheckpoint::open(note, &verifiers(&kept)) {
            Ok(own) => Opened::Own(Box::new(own)),
            Err(error) => Opened::Foreign(error),
        })
    }

    /// The error for a note that no key of this log signed: the note's own claims, and the store's
    /// head.
    fn unknown(&self, note: &[u8], error: &CheckpointError, head: Option<Head>) -> String {
        let says = match unverified(note) {
            Ok(known) => format!(
                "it claims without proof that the log `{}` had size {} root {}",
                known.origin, known.size, known.root
            ),
            Err(_) => "it cannot be read as a checkpoint".to_owned(),
        };
        let shows = match head {
            Some(head) => format!("shows size {} root {}", head.size, head.root),
            None => "is empty".to_owned(),
        };
        format!(
            "{}: not a checkpoint of the log `{}` by a key that the store holds ({error}); {says}, \
             and the store {shows}: the store is older than a change of keys, another log is kept \
             there, or another party wrote to it; find out which before you change anything",
            self.location, self.origin
        )
    }

    /// Checks that the pool's server has the tree of the new connection. Tiles are read through the
    /// pool; from another tree they would prove nothing about that connection's server.
    pub(super) async fn check_pool(&self, shown: Option<Head>) -> Result<(), SharedError> {
        let pooled = self.store.head(&self.heads).await?;
        let size = |head: Option<Head>| head.map_or(0, |head| head.size);
        let (ours, theirs) = (size(shown), size(pooled));
        let same = match shown {
            // If the first leaf was appended in between, the caller tries again.
            None => theirs == 0,
            Some(head) if head.size <= theirs => {
                let root = proofs::root_at(&self.store, head.size, theirs).await;
                root.map_err(SharedError::Unavailable)? == head.root
            }
            Some(_) => false,
        };
        if same {
            return Ok(());
        }
        Err(SharedError::Unavailable(format!(
            "a new connection to the database shows {ours} leaves, an older one {theirs}, and not of \
             one tree: they lead to different servers"
        )))
    }
}

fn verifiers(keys: &[LedgerKey]) -> Vec<VerifierKey> {
    keys.iter().map(|key| key.verifier.clone()).collect()
}
