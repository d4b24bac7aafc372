//! Opens and creates single files, and checks their owner, kind and mode.
//!
//! `open_in` and `create_in` work within an opened directory and follow no link. The checks look at
//! the opened file. A file that other users can access is [`FileError::Unfit`]; only
//! [`open_to_append`] accepts, and creates, a file that its group may read. A missing file is
//! `None`. `super::write` replaces files.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::directory::{check_can_add_files, open_checked_directory_of, open_directory, split};
use super::error::{FileError, quoted};

/// Permissions that other users must not have on a private file or directory.
pub(super) const OTHERS: u32 = 0o077;

/// Flags for every open. Without `NONBLOCK`, opening a pipe would wait for its other end.
const CAREFUL: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Refuses a file or directory of another kind or owner, or with one of the permissions in
/// `rights`.
pub(super) fn check(
    found: &Stat,
    path: &Path,
    kind: FileType,
    rights: u32,
) -> Result<(), FileError> {
    let actual = FileType::from_raw_mode(found.st_mode);
    if actual != kind {
        return Err(FileError::wrong_kind(path, actual, kind));
    }
    let us = geteuid().as_raw();
    if found.st_uid != us {
        let problem = format!("belongs to user {}, not to user {us}", found.st_uid);
        let remedy = format!("chown {us} {}, or run as its owner", quoted(path));
        return Err(FileError::unfit(path, problem, remedy));
    }
    if found.st_mode & rights != 0 {
        let mode = found.st_mode & 0o7777;
        let private = match kind {
            FileType::Directory => "0700",
            _ => "0600",
        };
        return Err(FileError::unfit(
            path,
            format!("is open to other users (mode {mode:04o})"),
            format!("chmod {private} {}", quoted(path)),
        ));
    }
    Ok(())
}

/// Opens `name` in `directory`; `None` if it does not exist.
fn open_in(
    directory: &OwnedFd,
    name: &OsStr,
    path: &Path,
    flags: OFlags,
) -> Result<Option<File>, FileError> {
    match openat(directory, name, flags | CAREFUL, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT) => Ok(None),
        // A link (some systems report MLINK), or a pipe or socket without another end.
        Err(Errno::LOOP | Errno::MLINK) => Err(FileError::wrong_kind(
            path,
            FileType::Symlink,
            FileType::RegularFile,
        )),
        Err(Errno::NXIO) => Err(FileError::wrong_kind(
            path,
            FileType::Fifo,
            FileType::RegularFile,
        )),
        Err(errno) => Err(FileError::io(path)(errno)),
    }
}

/// Opens `name` in `directory`, and refuses a file that is not private to this user.
pub(super) fn open_private_in(
    directory: &OwnedFd,
    name: &OsStr,
    path: &Path,
    flags: OFlags,
) -> Result<Option<File>, FileError> {
    let Some(file) = open_in(directory, name, path, flags)? else {
        return Ok(None);
    };
    let found = fstat(&file).map_err(FileError::io(path))?;
    check(&found, path, FileType::RegularFile, OTHERS)?;
    Ok(Some(file))
}

/// Refuses an existing file that is not private to this user, without opening it. Returns whether
/// the file exists.
pub(super) fn check_in(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<bool, FileError> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => check(&found, path, FileType::RegularFile, OTHERS).map(|()| true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(FileError::io(path)(errno)),
    }
}

pub(super) fn create_in(directory: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Opens a private file for reading; `None` if it does not exist.
///
/// # Errors
///
/// [`FileError`], also for a file that other users can access.
pub fn open_private(path: &Path) -> Result<Option<File>, FileError> {
    let (directory, name) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let directory = match open_directory(directory) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened?,
    };
    open_private_in(&directory, name, path, OFlags::RDONLY)
}

/// Reads a private file; `None` if it does not exist.
///
/// # Errors
///
/// [`FileError`], also for a file that other users can access, or that is longer than `at_most`
/// bytes.
pub fn read_private(path: &Path, at_most: usize) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = open_private(path)? else {
        return Ok(None);
    };
    let failed = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    file.take((at_most as u64).saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > at_most {
        let why = format!("has more than {at_most} bytes");
        return Err(FileError::unfit(path, why, "give another path"));
    }
    Ok(Some(bytes))
}

/// Opens a private file for locking, and creates it if it does not exist.
///
/// # Errors
///
/// [`FileError`], also for a file that other users can access, and for a directory that they can
/// write to.
pub fn open_lock(path: &Path) -> Result<File, FileError> {
    let (directory, _, name) = open_checked_directory_of(path)?;
    let flags = OFlags::RDWR | OFlags::CREATE;
    let file = open_private_in(&directory, name, path, flags)?;
    file.ok_or_else(|| FileError::io(path)(Errno::NOENT))
}

/// Creates a private file that must not exist yet.
///
/// # Errors
///
/// The file system's error; `AlreadyExists` also for a link.
pub fn create_private(path: &Path) -> io::Result<File> {
    let (parent, name) = split(path)?;
    create_in(&open_directory(parent)?, name).map_err(Into::into)
}

/// Opens a file for appending, and creates it with mode 0640 if it does not exist: programs of its
/// group may read it.
///
/// # Errors
///
/// [`FileError`], also for a file that every user can write to, or that neither this user nor root
/// owns.
pub fn open_to_append(path: &Path) -> Result<File, FileError> {
    const SHARED: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP);
    let failed = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let (parent, name) = split(path).map_err(failed)?;
    let directory = open_directory(parent)?;
    let flags = OFlags::RDWR | OFlags::APPEND;
    let file = if let Some(file) = open_in(&directory, name, path, flags)? {
        file
    } else {
        let new = flags | OFlags::CREATE | OFlags::EXCL | CAREFUL;
        let file = openat(&directory, name, new, SHARED).map_err(FileError::io(path))?;
        rustix::fs::fsync(&directory).map_err(FileError::io(path))?;
        File::from(file)
    };
    let found = fstat(&file).map_err(FileError::io(path))?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind != FileType::RegularFile {
        return Err(FileError::wrong_kind(path, kind, FileType::RegularFile));
    }
    let us = geteuid().as_raw();
    if found.st_uid != us && found.st_uid != 0 {
        let problem = format!("belongs to user {}, not to user {us}", found.st_uid);
        let remedy = format!("chown {us} {}", quoted(path));
        return Err(FileError::unfit(path, problem, remedy));
    }
    if found.st_mode & 0o002 != 0 {
        let problem = "can be written by every user";
        let remedy = format!("chmod o-w {}", quoted(path));
        return Err(FileError::unfit(path, problem, remedy));
    }
    Ok(file)
}

/// Refuses a path that [`super::write_whole`] could not write, without writing. Returns whether the
/// file exists.
///
/// # Errors
///
/// [`FileError`].
pub fn check_writable(path: &Path) -> Result<bool, FileError> {
    let (directory, parent, name) = open_checked_directory_of(path)?;
    check_can_add_files(&directory, parent)?;
    check_in(&directory, name, path)
}
