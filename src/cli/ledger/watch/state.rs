//! What a monitor keeps: the last checkpoint that it verified, as the log signed it. The file is
//! evidence by itself; whoever holds it can hold the log to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::cli::Failure;
use crate::cli::client::read_file;
use crate::clock::Timestamp;
use crate::files;
use crate::merkle::{Checkpoint, MAX_NOTE_BYTES, SignedCheckpoint, VerifierKey};

/// The last verified checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The signed note.
    pub(super) note: String,
    /// What it says.
    pub(super) head: Checkpoint,
    /// Since when nothing larger or newer was seen, by this machine's clock.
    pub(super) since: Timestamp,
}

/// Where it is kept.
#[derive(Debug)]
pub(super) struct State(pub(super) Option<PathBuf>);

impl State {
    /// What was kept. A file that the log's keys do not vouch for is another's: it is told, and
    /// never written to.
    pub(super) fn load(&self, keys: &[VerifierKey]) -> Result<Option<Kept>, Failure> {
        let Some(path) = &self.0 else {
            return Ok(None);
        };
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(path, &error)),
        };
        let bytes = read_file(path, MAX_NOTE_BYTES as u64)?;
        let signed = SignedCheckpoint::open(&bytes, keys).map_err(|why| {
            Failure::Usage(format!(
                "{} is not a checkpoint that these keys vouch for, and is left as it is: {why}",
                path.display()
            ))
        })?;
        let modified = metadata.modified().map_err(|e| unreadable(path, &e))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some(Kept {
            note: String::from_utf8_lossy(&bytes).into_owned(),
            head: signed.checkpoint().clone(),
            since: Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
        }))
    }

    /// Keeps a note instead, whole or not at all.
    pub(super) fn save(&self, note: &str) -> Result<(), Failure> {
        let Some(path) = &self.0 else {
            return Ok(());
        };
        files::write_whole(path, note.as_bytes()).map_err(|error| {
            Failure::Unestablished(format!("cannot keep {}: {error}", path.display()))
        })
    }

    /// A file beside the state with this ending.
    pub(super) fn beside(&self, ending: &str) -> PathBuf {
        let path = self.0.as_deref();
        files::beside(path.unwrap_or(Path::new("taskpass-watch")), ending)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Unestablished(format!("cannot read {}: {error}", path.display()))
}
