//! Where the calls of `credential-process` find what an earlier one got: one file a task, in a
//! directory that nobody else can enter.
//!
//! The directory and its files must be ours, with no right for anybody else, and no links: what
//! somebody else could have put there is not read, and nothing is written where somebody else could
//! read it. A file is replaced as a whole, so no reader sees half of one. One call at a time works
//! on a task; the lock is the kernel's and goes with the process.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdir, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::cli::Failure;
use crate::config::{Environment as _, ProcessEnvironment};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// How long a call waits for the one that is at work; SDKs give up after a minute.
const LOCK_TIMEOUT: Duration = Duration::from_secs(50);

/// No file of ours is longer.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// The rights of everybody but the owner.
const OTHERS: u32 = 0o077;

const NO_LINKS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

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
    directory: OwnedFd,
    path: PathBuf,
    name: String,
    /// Locked until this is dropped.
    _lock: File,
}

impl Slot {
    /// Waits for the place named `key` in `path`, which is made where it is missing.
    pub(super) async fn lock(path: &Path, key: &str) -> Result<Self, Failure> {
        let directory = private_directory(path)?;
        let lock_path = path.join(format!("{key}.lock"));
        let create = OFlags::RDWR | OFlags::CREATE;
        let lock = open_private(&directory, &lock_path, create)?
            .ok_or_else(|| failed(&lock_path, Errno::NOENT))?;
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
        let Some(file) = open_private(&self.directory, &self.path, OFlags::RDONLY)? else {
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
        let mut random = [0; 16];
        SystemRandom::default()
            .fill(&mut random)
            .map_err(Failure::unestablished)?;
        let new = format!("{}.{:032x}", self.name, u128::from_be_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | NO_LINKS;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(&self.directory, &new, flags, mode);
        let mut file = File::from(file.map_err(|error| failed(&self.path, error))?);
        let written = file.write_all(&bytes).and_then(|()| {
            Ok(renameat(
                &self.directory,
                &new,
                &self.directory,
                &self.name,
            )?)
        });
        written.map_err(|error| {
            // It is of no use to anybody; where it cannot be removed it is still ours alone.
            unlinkat(&self.directory, &new, AtFlags::empty()).ok();
            failed(&self.path, error)
        })
    }

    /// Leaves nothing there.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        match unlinkat(&self.directory, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(&self.path, error)),
        }
    }
}

/// Opens the directory, and makes it first where it is missing.
fn private_directory(path: &Path) -> Result<OwnedFd, Failure> {
    match mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(path, error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | NO_LINKS;
    let directory = match open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(not_private(path)),
        Err(error) => return Err(failed(path, error)),
    };
    check(&directory, path, FileType::Directory)?;
    Ok(directory)
}

/// Opens the file of this path's name in `directory`; none where there is none.
fn open_private(directory: &OwnedFd, path: &Path, flags: OFlags) -> Result<Option<File>, Failure> {
    let name = path.file_name().unwrap_or_default();
    // Without waiting: somebody's pipe would never open.
    let flags = flags | NO_LINKS | OFlags::NONBLOCK;
    let file = match openat(directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Err(not_private(path)),
        Err(error) => return Err(failed(path, error)),
    };
    check(&file, path, FileType::RegularFile)?;
    Ok(Some(File::from(file)))
}

/// What was opened is judged, not what the path leads to by now.
fn check(opened: &OwnedFd, path: &Path, kind: FileType) -> Result<(), Failure> {
    let found = fstat(opened).map_err(|error| failed(path, error))?;
    let ours = found.st_uid == geteuid().as_raw();
    let closed = found.st_mode & OTHERS == 0;
    if FileType::from_raw_mode(found.st_mode) == kind && ours && closed {
        return Ok(());
    }
    Err(not_private(path))
}

fn not_private(path: &Path) -> Failure {
    Failure::Usage(format!(
        "{} must be yours, closed to everybody else, and no link: nothing is read from it or \
         written to it; --cache-dir names another directory",
        path.display()
    ))
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Unestablished(format!("cannot use {}: {error}", path.display()))
}
