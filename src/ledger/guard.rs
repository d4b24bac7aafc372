//! The guard against a store that was rewound or forked.
//!
//! While it runs, a replica compares every head it finds with the tree it saw last: the new leaf
//! hashes on top of the old edge must give the new root, which is the whole proof of consistency.
//! Across restarts, the last checkpoint is kept in a file outside the store, and the store's tree
//! must contain that one.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tracing::warn;

use super::Signed;
use super::proofs;
use crate::merkle::{Checkpoint, Note};
use crate::store::Store;
use crate::store::append::Head;

/// The least time between two writes of the file.
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// Keeps the last checkpoint in a file.
pub struct Guard {
    file: Option<PathBuf>,
    newest: watch::Sender<Option<Signed>>,
}

impl Guard {
    /// With the checkpoint in `file`; without a file there is only the guard within the process.
    #[must_use]
    pub fn new(file: Option<PathBuf>) -> Self {
        Self {
            file,
            newest: watch::Sender::new(None),
        }
    }

    /// The writer of the file: run it as a tracked task. It writes the newest checkpoint, at most
    /// every [`WRITE_EVERY`] and a last one at the end: a sync of its own beside each batch's would
    /// take the disk's time from the batches.
    pub fn writer(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut newest = self.newest.subscribe();
        let file = self.file.clone();
        async move {
            while newest.changed().await.is_ok() {
                let signed = newest.borrow_and_update().clone();
                if let (Some(signed), Some(file)) = (signed, file.as_ref())
                    && let Err(error) = write(file, &signed.checkpoint).await
                {
                    warn!(%error, file = %file.display(), "the last checkpoint could not be kept");
                }
                // Over early when the ledger is gone: its last word is written at once. A clone waits,
                // for what it sees must not count as seen.
                let mut end = newest.clone();
                drop(tokio::time::timeout(WRITE_EVERY, end.wait_for(|_| false)).await);
            }
        }
    }

    /// Checks that the store's tree contains the one of the file.
    pub(super) async fn check(
        &self,
        store: &Store,
        origin: &str,
        head: Option<Head>,
    ) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let bytes = match tokio::fs::read(file).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let unreadable = |what: &dyn std::fmt::Display| {
            format!(
                "{}: not a checkpoint of ours ({what}); it is the memory against a rewound \
                 database, so find out what happened to it before you remove it",
                file.display()
            )
        };
        let note = Note::parse(&bytes).map_err(|error| unreadable(&error))?;
        let known: Checkpoint = note
            .unverified_text()
            .parse()
            .map_err(|error| unreadable(&error))?;
        if known.origin != origin {
            return Err(format!(
                "{}: a checkpoint of the log `{}`, but this one is `{origin}`",
                file.display(),
                known.origin
            ));
        }
        let kept = Head {
            size: known.size,
            root: known.root,
        };
        let Some(head) = head.filter(|head| head.size >= kept.size) else {
            let shown = head.unwrap_or(Head {
                size: 0,
                root: crate::merkle::EMPTY_ROOT,
            });
            return Err(rewound(kept, shown));
        };
        let root = proofs::root_at(store, kept.size, head.size).await?;
        if root != kept.root {
            return Err(rewound(
                kept,
                Head {
                    size: kept.size,
                    root,
                },
            ));
        }
        Ok(())
    }

    pub(super) fn remember(&self, signed: &Signed) {
        self.newest.send_replace(Some(signed.clone()));
    }
}

async fn write(file: &PathBuf, checkpoint: &str) -> std::io::Result<()> {
    // Whole or not at all: a torn file would stop the next start.
    let new = file.with_extension("new");
    let mut written = tokio::fs::File::create(&new).await?;
    written.write_all(checkpoint.as_bytes()).await?;
    written.sync_all().await?;
    tokio::fs::rename(&new, file).await
}

/// What to say of a store that shows another tree.
pub(super) fn rewound(ours: Head, theirs: Head) -> String {
    format!(
        "the store was rewound or forked: this replica saw size {} root {}, the store shows size {} \
         root {}; nothing is issued until this is resolved",
        ours.size, ours.root, theirs.size, theirs.root
    )
}
