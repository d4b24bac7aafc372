//! The state of a monitor: the last checkpoint that it verified, as the log signed it. The file is
//! evidence: it proves that the log signed this checkpoint.
//!
//! [`StateFile`] loads and saves a [`KeptCheckpoint`]. A missing file is `None`. A file that is not
//! a checkpoint of the log's keys is [`AuditError::Input`] and stays unchanged. A file that cannot
//! be read or written, and one in which another process kept a larger or contradicting checkpoint,
//! is [`AuditError::Unavailable`]. [`super::Monitor`] calls this module; [`super::check`] compares
//! the kept checkpoint with the log.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::audit::AuditError;
use crate::clock::Timestamp;
use crate::files;
use crate::merkle::{Checkpoint, MAX_NOTE_BYTES, SignedCheckpoint, VerifierKey};

/// How long to wait for another monitor process that has locked the same directory.
const PATIENCE: Duration = Duration::from_secs(5);

/// The last verified checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct KeptCheckpoint {
    pub(crate) note: String,
    /// The checkpoint in the note.
    pub(crate) head: Checkpoint,
    /// The time, by this machine's clock, at which this checkpoint was kept. After a load it is the
    /// file's time of modification.
    pub(super) since: Timestamp,
}

/// The path of the state file; `None` keeps the state in memory only.
#[derive(Debug)]
pub(super) struct StateFile(pub(super) Option<PathBuf>);

impl StateFile {
    /// Reads the kept checkpoint. A file that the log's keys did not sign belongs to another
    /// program: it is an error, and the file is never overwritten.
    pub(super) fn load(&self, keys: &[VerifierKey]) -> Result<Option<KeptCheckpoint>, AuditError> {
        let Some(path) = &self.0 else {
            return Ok(None);
        };
        let opened = files::open_private(path).map_err(|error| match error {
            files::FileError::Unfit { .. } => AuditError::Input(error.to_string()),
            files::FileError::Io { .. } => AuditError::Unavailable(format!("cannot read {error}")),
        })?;
        let Some(file) = opened else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
        let mut bytes = Vec::new();
        let at_most = MAX_NOTE_BYTES as u64;
        file.take(at_most + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(path, &error))?;
        if bytes.len() as u64 > at_most {
            let path = path.display();
            return Err(AuditError::Input(format!(
                "{path} has more than {at_most} bytes"
            )));
        }
        let signed = SignedCheckpoint::open(&bytes, keys).map_err(|why| {
            AuditError::Input(format!(
                "{} is not a checkpoint that these keys signed, and stays unchanged: {why}",
                path.display()
            ))
        })?;
        let modified = metadata.modified().map_err(|e| unreadable(path, &e))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some(KeptCheckpoint {
            note: String::from_utf8_lossy(&bytes).into_owned(),
            head: signed.checkpoint().clone(),
            since: Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
        }))
    }

    /// Replaces the kept checkpoint completely or not at all. It does not replace a larger
    /// checkpoint that another monitor kept meanwhile, and does not overwrite a file that is not
    /// this log's.
    pub(super) fn save(
        &self,
        kept: &KeptCheckpoint,
        keys: &[VerifierKey],
    ) -> Result<(), AuditError> {
        let Some(path) = &self.0 else {
            return Ok(());
        };
        let _held = hold(path)?;
        let (new, there) = (&kept.head, self.load(keys)?);
        if let Some(old) = there.map(|there| there.head)
            && (old.size > new.size || (old.size == new.size && old.root != new.root))
        {
            return Err(AuditError::Unavailable(format!(
                "{} holds a head of {} leaves, root {}, that another watch kept; this one has {}, \
                 root {}",
                path.display(),
                old.size,
                old.root,
                new.size,
                new.root
            )));
        }
        files::write_whole(path, kept.note.as_bytes()).map_err(|error| {
            AuditError::Unavailable(format!("cannot keep {}: {error}", path.display()))
        })
    }

    /// The path of the state file with `ending` appended, for evidence. Without a state file it is
    /// `taskpass-watch` with `ending` in the working directory.
    pub(super) fn beside(&self, ending: &str) -> PathBuf {
        let path = self.0.as_deref();
        files::beside(path.unwrap_or(Path::new("taskpass-watch")), ending)
    }
}

/// Locks the state's directory against other monitors. `None` if the directory cannot be locked at
/// all: then only the check before writing protects the file.
fn hold(path: &Path) -> Result<Option<File>, AuditError> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let held = File::open(directory.unwrap_or(Path::new("."))).map_err(|e| unreadable(path, &e))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match held.try_lock() {
            Ok(()) => return Ok(Some(held)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(AuditError::Unavailable(format!(
                    "another process holds the directory of {}",
                    path.display()
                )));
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> AuditError {
    AuditError::Unavailable(format!("cannot read {}: {error}", path.display()))
}
