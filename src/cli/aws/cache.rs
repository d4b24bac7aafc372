//! Where the calls of `credential-process` find what an earlier one got: one file a task, in a
//! directory that nobody else can enter.
//!
//! The directory and its files must be ours, with no right for anybody else, and no links: what
//! somebody else could have put there is not read, and nothing is written where somebody else could
//! read it. A file is replaced as a whole, so no reader sees half of one. One call at a time works
//! on a task; the lock is the kernel's and goes with the process.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::cli::Failure;
use crate::config::{Environment as _, ProcessEnvironment};
use crate::files::{FileError, PrivateDirectory};

/// How long a call waits for the one that is at work; SDKs give up after a minute.
const LOCK_TIMEOUT: Duration = Duration::from_secs(50);

/// No file of ours is longer.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// The directory to use where none was named: the user's own for as long as the user is logged in,
/// or one of the user's name among temporary files.
pub(super) fn default_directory() -> Result<PathBuf, Failure> {
    let named = ProcessEnvironment
        .get("XDG_RUNTIME_DIR")
        .map_err(|_| Failure::Usage("XDG_RUNTIME_DIR is not text".into()))?;
    let named = named.map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(match named {
        Some(runtime) => runtime.join("taskpass"),
        None => std::env::temp_dir().join(format!("taskpass-{}", geteuid().as_raw())),
    })
}

/// The place of one task, which this call has to itself.
pub(super) struct Slot {
    directory: PrivateDirectory,
    path: PathBuf,
    name: String,
    /// Locked until this is dropped.
    _lock: File,
}

impl Slot {
    /// Waits for the place named `key` in `path`, which is made where it is missing.
    pub(super) async fn lock(path: &Path, key: &str) -> Result<Self, Failure> {
        let directory = PrivateDirectory::open_or_make(path, false).map_err(unusable)?;
        let lock_name = format!("{key}.lock");
        let lock_path = path.join(&lock_name);
        let lock = directory.open_lock(&lock_name).map_err(unusable)?;
        let waiting = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
        let lock = match timeout(LOCK_TIMEOUT, waiting).await {
            Ok(Ok(Ok(lock))) => lock,
            Ok(Ok(Err(error))) => return Err(failed(&lock_path, error)),
            Ok(Err(error)) => return Err(failed(&lock_path, error)),
            Err(_) => {
                return Err(Failure::Unestablished(format!(
                    "another call has held {} for too long",
                    lock_path.display()
                )));
            }
        };
        let name = format!("{key}.json");
        Ok(Self {
            directory,
            path: path.join(&name),
            name,
            _lock: lock,
        })
    }

    /// What is there.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        let Some(file) = self.directory.open_file(&self.name).map_err(unusable)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(&self.path, error))?;
        // Ours and unreadable: of another version. It is replaced.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Puts `value` there instead of what is there.
    pub(super) fn write(&self, value: &impl Serialize) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(value).map_err(Failure::unestablished)?;
        let replaced = self.directory.replace(&self.name, &bytes);
        replaced.map_err(unusable)
    }

    /// Leaves nothing there.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        self.directory.remove(&self.name).map_err(unusable)
    }
}

/// A file or directory that others can get at is refused; nothing is read from it or written to it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn unusable(error: FileError) -> Failure {
    match error {
        FileError::Unfit { .. } => {
            Failure::Usage(format!("{error}; --cache-dir names another directory"))
        }
        FileError::Io { .. } => Failure::Unestablished(format!("cannot use {error}")),
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Unestablished(format!("cannot use {}: {error}", path.display()))
}
