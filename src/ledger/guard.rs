//! The guard against a rewound or forked store.
//!
//! A running replica compares every head that it reads with the tree that it saw last: the new leaf
//! hashes on top of the old edge must give the new root, which is a complete consistency proof. For
//! restarts, each replica keeps the last checkpoint in a file outside the store (`check_file`,
//! `write_file`), and the store's tree must contain that checkpoint ([`contains`]). For other
//! replicas and failovers of the database, all replicas share one checkpoint ([`super::shared`]).
//!
//! Failures: a store that lacks the checkpoint is an error with both heads, and the start or the
//! ledger stops. So does a file that cannot be read or is not a checkpoint of this log. A missing
//! file is only logged. A file that cannot be written is a warning: the broker goes on.
//! `ledger::appender` and `app` call the guard; `containment` compares the trees. It verifies no
//! signature on the replica's own file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::checkpoint_store::CheckpointStore;
use super::containment::{contains, succeeded, unverified};
use super::shared::{SharedCheckpoint, SharedError, Through};
use super::{LedgerParts, Signed};
use crate::domain::succession::Succession;
use crate::files::{
    check_parent, check_parent_or_makable, make_directory_of, read_private, write_whole,
};
use crate::merkle::{Checkpoint, MAX_NOTE_BYTES};
use crate::store::Store;
use crate::store::append::Server;
use crate::store::authenticity::Alarm;
use crate::store::heads::Head;

/// The least time between two writes of the file.
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// Keeps the last checkpoint outside the store.
pub struct Guard {
    file: Option<PathBuf>,
    shared: Option<Arc<SharedCheckpoint>>,
    /// Whether the log was empty when this start first read it.
    of_new_log: bool,
    alarm: Alarm,
    newest: watch::Sender<Option<Signed>>,
}

impl Guard {
    /// A guard with a checkpoint file of this replica and the checkpoint that all replicas share.
    /// Without either it guards only the running process.
    #[must_use]
    pub fn new(
        parts: &LedgerParts,
        file: Option<PathBuf>,
        location: Option<CheckpointStore>,
    ) -> Self {
        // Shared with the store, because a forged row that the store finds stops the ledger, too.
        let alarm = parts.store.alarm();
        let shared = location.map(|location| {
            let shared = SharedCheckpoint::new(location, parts, Arc::clone(&alarm));
            Arc::new(shared)
        });
        Self {
            file,
            shared,
            of_new_log: false,
            alarm,
            newest: watch::Sender::new(None),
        }
    }

    /// For a log that was empty when this start first read it, so no checkpoint file is expected
    /// yet.
    #[must_use]
    pub fn of_new_log(mut self) -> Self {
        self.of_new_log = true;
        self
    }

    /// Writes the file and the shared checkpoint: run it as a tracked task.
    pub fn writer(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let file = self.write_file();
        let shared = self.shared.clone();
        let newest = self.newest.subscribe();
        let publish = async move {
            if let Some(shared) = shared {
                Box::pin(shared.run(newest)).await;
            }
        };
        async move {
            tokio::join!(file, publish);
        }
    }

    /// Writes the newest checkpoint to the file, at most every [`WRITE_EVERY`], and once more at
    /// the end. A sync of the file for each batch would slow down the batches' own syncs.
    fn write_file(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut newest = self.newest.subscribe();
        let file = self.file.clone();
        async move {
            while newest.changed().await.is_ok() {
                let signed = newest.borrow_and_update().clone();
                if let (Some(signed), Some(file)) = (signed, file.clone()) {
                    let write = move || {
                        if let Err(error) = write_whole(&file, signed.checkpoint.as_bytes()) {
                            warn!(%error, file = %file.display(), "the last checkpoint could not be kept");
                        }
                    };
                    drop(tokio::task::spawn_blocking(write).await);
                }
                // Returns early when the ledger has ended, so that the last checkpoint is written
                // at once. It waits on a clone, which does not mark the value as seen.
                let mut end = newest.clone();
                drop(tokio::time::timeout(WRITE_EVERY, end.wait_for(|_| false)).await);
            }
        }
    }

    /// The reason for which the ledger must stop; empty until one is found.
    pub(super) fn alarm(&self) -> Alarm {
        Arc::clone(&self.alarm)
    }

    /// Whether the replicas share a checkpoint.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Checks that the store's tree contains the shared checkpoint. Returns the server that a new
    /// connection leads to.
    pub(super) async fn check_shared(
        &self,
        ours: Option<&Signed>,
        through: Through<'_>,
    ) -> Result<Option<Server>, SharedError> {
        match &self.shared {
            Some(shared) => shared.check(ours, through).await,
            None => Ok(None),
        }
    }

    /// Checks that the store's tree contains the checkpoint of the file. Logs a warning if the file
    /// is missing although the log has leaves.
    pub(super) async fn check_file(
        &self,
        store: &Store,
        origin: &str,
        head: Option<Head>,
        succeeds: Option<&Succession>,
    ) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let named = |error: std::io::Error| format!("{}: {error}", file.display());
        make_directory_of(file).map_err(named)?;
        let Some(known) = read_checkpoint(file)? else {
            if let Some(head) = head.filter(|head| head.size > 0 && !self.of_new_log) {
                self.tell_missing(file, head);
            }
            return Ok(());
        };
        if let Some(succeeds) = succeeds.filter(|old| old.origin == known.origin) {
            return succeeded(&known, succeeds).map_err(|why| format!("{}: {why}", file.display()));
        }
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
        let contained = contains(store, head, kept).await;
        contained.map_err(|error| error.to_string())
    }

    fn tell_missing(&self, file: &Path, head: Head) {
        let (file, leaves) = (file.display(), head.size);
        if self.is_shared() {
            info!(
                %file, leaves,
                "the checkpoint file is missing although the log has leaves: only the checkpoint of \
                 [ledger.shared_checkpoint] tells whether the store was rewound before this start"
            );
        } else {
            warn!(
                %file, leaves,
                "the checkpoint file is missing although the log has leaves: this replica would not \
                 notice that the store was rewound before this start. This is expected at the first \
                 start of a new replica; otherwise find out who removed the file. With \
                 [ledger.shared_checkpoint] one checkpoint is remembered for all replicas"
            );
        }
    }

    pub(super) fn remember(&self, signed: &Signed) {
        self.newest.send_replace(Some(signed.clone()));
    }
}

/// Makes a start's checks on the path of a replica's own checkpoint, and on the file if it exists.
/// Creates nothing, and does not compare the checkpoint with the store. `made_before` is a
/// directory that the start creates earlier, with its parents.
pub fn check_checkpoint_file(file: &Path, made_before: Option<&Path>) -> Result<(), String> {
    match check_parent_or_makable(file, made_before) {
        Ok(true) => read_checkpoint(file).map(drop),
        Ok(false) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The checkpoint in a replica's file. `None` if there is no file.
fn read_checkpoint(file: &Path) -> Result<Option<Checkpoint>, String> {
    check_parent(file).map_err(|error| error.to_string())?;
    let read = read_private(file, MAX_NOTE_BYTES).map_err(|error| error.to_string())?;
    let known = read.map(|bytes| {
        unverified(&bytes).map_err(|error| {
            format!(
                "{}: not a checkpoint of this broker ({error}); without this file a rewound \
                 database is not detected, so find out who changed it before you remove it",
                file.display()
            )
        })
    });
    known.transpose()
}
