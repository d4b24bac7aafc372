//! Directories of files: opens and creates them, and checks that no other user can exchange the
//! files in them.
//!
//! [`check_parent`] and [`check_parent_or_makable`] check the directory of a file that will be
//! written later. Links on the way to a directory are the operator's choice and are followed; links
//! at the directory itself are refused by [`super::PrivateDirectory`] only. A directory that other
//! users can write to is [`FileError::Unfit`]. `super::open` and `super::write` open files in the
//! directories.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fstat, lstat, open};
use rustix::process::geteuid;

use super::error::{FileError, quoted};

/// Write permissions of other users.
const OTHERS_WRITE: u32 = 0o022;

/// With this bit on a directory, only the owner of a file can remove or rename it.
const STICKY: u32 = 0o1000;

/// Splits a path into its directory and the file's name.
pub(super) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| {
        let what = format!("{} names no file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })?;
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    Ok((directory.unwrap_or(Path::new(".")), name))
}

/// Opens a directory. Links on the way to it are the operator's choice and are followed.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(FileError::io(path))
}

/// Refuses a directory in which other users could exchange this user's files.
pub(super) fn check_directory_of(directory: &OwnedFd, path: &Path) -> Result<(), FileError> {
    let found = fstat(directory).map_err(FileError::io(path))?;
    let us = geteuid().as_raw();
    if found.st_uid != us && found.st_uid != 0 {
        let problem = format!("belongs to user {}, not to user {us}", found.st_uid);
        let remedy = format!("chown {us} {}, or use another directory", quoted(path));
        return Err(FileError::unfit(path, problem, remedy));
    }
    if found.st_mode & OTHERS_WRITE != 0 && found.st_mode & STICKY == 0 {
        let mode = found.st_mode & 0o7777;
        return Err(FileError::unfit(
            path,
            format!("lets other users exchange the files in it (mode {mode:04o})"),
            format!("chmod go-w {}, or use another directory", quoted(path)),
        ));
    }
    Ok(())
}

/// Opens the directory of the file at `path`, and refuses it if other users can write to it.
/// Returns the directory, its path, and the file's name.
pub(super) fn open_checked_directory_of(
    path: &Path,
) -> Result<(OwnedFd, &Path, &OsStr), FileError> {
    let (parent, name) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let directory = open_directory(parent)?;
    check_directory_of(&directory, parent)?;
    Ok((directory, parent, name))
}

/// Creates the directory of a private file if only that directory is missing.
///
/// # Errors
///
/// The file system's error.
pub fn make_directory_of(path: &Path) -> io::Result<()> {
    let (directory, _) = split(path)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Creates a private directory and its missing parents.
///
/// # Errors
///
/// The file system's error.
pub fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// Refuses a path for a private file if other users could exchange files in its directory.
///
/// # Errors
///
/// [`FileError`].
pub fn check_parent(path: &Path) -> Result<(), FileError> {
    let (parent, _) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    check_directory_of(&open_directory(parent)?, parent)
}

/// Makes the checks of [`make_directory_of`] and [`check_parent`] without creating the directory.
/// Returns false if the directory is missing and can be created. `made_before` is a directory that
/// will be created earlier, with its missing parents.
///
/// # Errors
///
/// [`FileError`].
pub fn check_parent_or_makable(path: &Path, made_before: Option<&Path>) -> Result<bool, FileError> {
    let (parent, _) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    match open_directory(parent) {
        Err(error) if error.is_missing() => {
            let made = made_before.filter(|_| lstat(parent).is_err());
            let will_be_made = |path: &Path| {
                let is_named = !path.as_os_str().is_empty();
                is_named && lstat(path).is_err() && made.is_some_and(|made| made.starts_with(path))
            };
            if !parent.ancestors().take(2).any(will_be_made) {
                check_makable(parent, false)?;
            }
            Ok(false)
        }
        opened => check_directory_of(&opened?, parent).map(|()| true),
    }
}

/// Refuses a directory in which this process cannot create files.
pub(super) fn check_can_add_files(directory: &OwnedFd, path: &Path) -> Result<(), FileError> {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(directory, ".", access, AtFlags::empty()).map_err(|errno| {
        let us = geteuid().as_raw();
        let problem = format!("cannot be written to: {}", io::Error::from(errno));
        let remedy = format!("let user {us} write to it, or give another path");
        FileError::unfit(path, problem, remedy)
    })
}

/// Refuses a missing directory that this process could not create. `parents` says whether its
/// missing parents would be created, too.
pub(super) fn check_makable(path: &Path, parents: bool) -> Result<(), FileError> {
    const REMEDY: &str = "make the directory, or give another path";
    let cannot = |why: &dyn std::fmt::Display| {
        FileError::unfit(
            path,
            format!("is missing and cannot be made ({why})"),
            REMEDY,
        )
    };
    // Opening a link whose target is missing fails as if the link were missing, too.
    if lstat(path).is_ok() {
        return Err(cannot(&"a symbolic link of that name leads nowhere"));
    }
    let (parent, _) = split(path).map_err(|error| cannot(&error))?;
    match open_directory(parent) {
        Err(error) if parents && error.is_missing() => check_makable(parent, true),
        opened => {
            let above = opened.map_err(|error| cannot(&error))?;
            check_can_add_files(&above, parent).map_err(|error| cannot(&error))
        }
    }
}

/// Makes the name of a new file survive a loss of power.
///
/// # Errors
///
/// The file system's error for the directory.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let (directory, _) = split(path)?;
    Ok(rustix::fs::fsync(open_directory(directory)?)?)
}
