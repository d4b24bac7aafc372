//! The cache that calls of `credential-process` share: one file for each task, in a private
//! directory.
//!
//! The directory and its files must belong to this user, give other users no rights, and be no
//! links. This code neither reads files that another user could have placed there nor writes where
//! another user could read. A file is replaced as a whole, so that no reader sees a half-written
//! one. A lock of the kernel admits one call at a time for each task; it ends with its process.
//!
//! A directory or file that is not private is [`ClientError::Invalid`], and nothing is read or
//! written. `cli::aws::credential_process` calls this file.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::ClientError;
use crate::files::{FileError, PrivateDirectory};

/// How long a call waits for another one of the same task. SDKs give up after a minute.
const LOCK_TIMEOUT: Duration = Duration::from_secs(50);

/// The most bytes that are read from a file; cached sessions are shorter.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// The cache entry of one task, locked by this call.
pub(crate) struct CacheEntry {
    directory: PrivateDirectory,
    path: PathBuf,
    name: String,
    /// Locked until this is dropped.
    _lock: File,
}

impl CacheEntry {
    /// Locks the entry `key` in the directory `path`, which is created if it is missing. Waits for
    /// other calls.
    pub(crate) async fn lock(path: &Path, key: &str) -> Result<Self, ClientError> {
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
                return Err(ClientError::Unavailable(format!(
                    "another call has held the lock {} for too long",
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

    /// Reads the entry. `None` if there is none, or if another version wrote it.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, ClientError> {
        let Some(file) = self.directory.open_file(&self.name).map_err(unusable)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(&self.path, error))?;
        // An own file that does not parse comes from another version. It is replaced later.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Replaces the entry completely or not at all.
    pub(crate) fn write(&self, value: &impl Serialize) -> Result<(), ClientError> {
        let bytes = serde_json::to_vec(value).map_err(ClientError::unavailable)?;
        let replaced = self.directory.replace(&self.name, &bytes);
        replaced.map_err(unusable)
    }

    /// Removes the entry if it exists.
    pub(crate) fn clear(&self) -> Result<(), ClientError> {
        self.directory.remove(&self.name).map_err(unusable)
    }
}

/// The failure for a file or directory of the cache. One that other users can access is a usage
/// error.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that map_err requires"
)]
fn unusable(error: FileError) -> ClientError {
    match error {
        FileError::Unfit { .. } => ClientError::Invalid(format!(
            "{error}; or give another directory with --cache-dir"
        )),
        FileError::Io { .. } => ClientError::Unavailable(format!("cannot use {error}")),
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> ClientError {
    ClientError::Unavailable(format!("cannot use {}: {error}", path.display()))
}
