//! Creates and opens the process's files: complete after a loss of power, and private.
//!
//! All files in which the process keeps state or its own secrets are created and opened here. Such
//! a file has mode 0600 and belongs to this process's user. New files get names that cannot be
//! guessed and are created exclusively. A symbolic link in the last part of a path is not followed.
//! Checks look at the opened file, so exchanging the file afterwards has no effect. Only
//! [`open_to_append`] creates files that a group may read.
//!
//! A file or directory that other users can access is [`FileError::Unfit`], with the command that
//! repairs it. Any other failure is [`FileError::Io`]; functions that return [`io::Error`] pass
//! both on in it. Files that an operator supplies are opened by those who read them:
//! [`crate::config`] accepts secrets of root's as well. Locking, and the content of the files, are
//! left to their users, such as [`crate::store`] and [`crate::ledger`].

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Stat, accessat, fstat, lstat, open, openat, renameat,
    statat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// Permissions that other users must not have on a private file or directory.
const OTHERS: u32 = 0o077;

/// Write permissions of other users.
const OTHERS_WRITE: u32 = 0o022;

/// With this bit on a directory, only the owner of a file can remove or rename it.
const STICKY: u32 = 0o1000;

/// Flags for every open. Without `NONBLOCK`, opening a pipe would wait for its other end.
const CAREFUL: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// A file or directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Other users can access it, or it is of the wrong kind.
    #[error("{} {problem}: {remedy}", path.display())]
    Unfit {
        /// The file or directory.
        path: PathBuf,
        /// The problem, as the rest of a sentence that begins with the path.
        problem: String,
        /// The command or the change that repairs it.
        remedy: String,
    },
    /// The file system reported an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
}

impl FileError {
    fn io(path: &Path) -> impl Fn(Errno) -> Self + use<> {
        let path = path.to_owned();
        move |errno| Self::Io {
            path: path.clone(),
            source: errno.into(),
        }
    }

    fn unfit(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unfit {
            path: path.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether the file or directory does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The error for a link, or for another kind of file than `expected`.
    fn wrong_kind(path: &Path, found: FileType, expected: FileType) -> Self {
        if found == FileType::Symlink {
            let remedy = "give the path that the link leads to";
            return Self::unfit(path, "is a symbolic link, which is not followed", remedy);
        }
        let expected = match expected {
            FileType::Directory => "is not a directory",
            _ => "is not a regular file",
        };
        Self::unfit(path, expected, "move it away, or give another path")
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        let kind = match &error {
            FileError::Unfit { .. } => io::ErrorKind::PermissionDenied,
            FileError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Quotes `path` as one word of a shell command.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Refuses a file or directory of another kind or owner, or with one of the permissions in
/// `rights`.
fn check(found: &Stat, path: &Path, kind: FileType, rights: u32) -> Result<(), FileError> {
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

/// Refuses a directory in which other users could exchange this user's files.
fn check_directory_of(directory: &OwnedFd, path: &Path) -> Result<(), FileError> {
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

/// Splits a path into its directory and the file's name.
fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| {
        let what = format!("{} names no file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })?;
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    Ok((directory.unwrap_or(Path::new(".")), name))
}

/// Opens the directory of the file at `path`, and refuses it if other users can write to it.
/// Returns the directory, its path, and the file's name.
fn open_checked_directory_of(path: &Path) -> Result<(OwnedFd, &Path, &OsStr), FileError> {
    let (parent, name) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let directory = open_directory(parent)?;
    check_directory_of(&directory, parent)?;
    Ok((directory, parent, name))
}

/// Opens a directory. Links on the way to it are the operator's choice and are followed.
fn open_directory(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(FileError::io(path))
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
fn open_private_in(
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
fn check_in(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<bool, FileError> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => check(&found, path, FileType::RegularFile, OTHERS).map(|()| true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(FileError::io(path)(errno)),
    }
}

/// A name that starts like `name` and cannot be guessed.
fn unguessable(name: &OsStr) -> io::Result<OsString> {
    let mut random = [0; 16];
    SystemRandom::default()
        .fill(&mut random)
        .map_err(io::Error::other)?;
    let mut new = name.to_owned();
    new.push(format!(".new-{:032x}", u128::from_be_bytes(random)));
    Ok(new)
}

/// `path` with `ending` appended to its whole name: a path in the same directory.
#[must_use]
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Extracts the secret from a file's text: removes surrounding white space and the byte order mark
/// that Windows editors write first.
#[must_use]
pub fn secret_in(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
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

fn create_in(directory: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
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

/// Refuses a path for a private file if other users could exchange files in its directory.
///
/// # Errors
///
/// [`FileError`].
pub fn check_place(path: &Path) -> Result<(), FileError> {
    let (parent, _) = split(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    check_directory_of(&open_directory(parent)?, parent)
}

/// Makes the checks of [`make_directory_of`] and [`check_place`] without creating the directory.
/// Returns false if the directory is missing and can be created. `made_before` is a directory that
/// will be created earlier, with its missing parents.
///
/// # Errors
///
/// [`FileError`].
pub fn check_place_or_makable(path: &Path, made_before: Option<&Path>) -> Result<bool, FileError> {
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

/// Refuses a path that [`write_whole`] could not write, without writing. Returns whether the file
/// exists.
///
/// # Errors
///
/// [`FileError`].
pub fn check_writable(path: &Path) -> Result<bool, FileError> {
    let (directory, parent, name) = open_checked_directory_of(path)?;
    check_can_add_files(&directory, parent)?;
    check_in(&directory, name, path)
}

/// Refuses a directory in which this process cannot create files.
fn check_can_add_files(directory: &OwnedFd, path: &Path) -> Result<(), FileError> {
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
fn check_makable(path: &Path, parents: bool) -> Result<(), FileError> {
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

/// Creates a private directory and its missing parents.
///
/// # Errors
///
/// The file system's error.
pub fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// A file that is written under a temporary name, and renamed to its final name when it is
/// complete.
///
/// Dropping it earlier removes the temporary file.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    directory: OwnedFd,
    new: OsString,
    name: OsString,
    kept: bool,
}

impl NewFile {
    /// Begins a private file with the final path `path`.
    ///
    /// # Errors
    ///
    /// The file system's error, or [`FileError::Unfit`] if `path` exists and is not a regular file.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        let directory = open_directory(parent)?;
        if let Ok(found) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            let kind = FileType::from_raw_mode(found.st_mode);
            if kind != FileType::RegularFile {
                return Err(FileError::wrong_kind(path, kind, FileType::RegularFile).into());
            }
        }
        Self::begin_in(directory, name)
    }

    fn begin_in(directory: OwnedFd, name: &OsStr) -> io::Result<Self> {
        let new = unguessable(name)?;
        let file = create_in(&directory, &new)?;
        Ok(Self {
            file,
            directory,
            new,
            name: name.to_owned(),
            kept: false,
        })
    }

    /// The bytes written so far, from their beginning.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn reread(&mut self) -> io::Result<&File> {
        self.file.rewind()?;
        Ok(&self.file)
    }

    /// Renames the file to its final name so that it survives a loss of power.
    ///
    /// # Errors
    ///
    /// The file system's error. `path` then holds the former file, or the new one under a name that
    /// a loss of power may undo.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        renameat(&self.directory, &self.new, &self.directory, &self.name)?;
        self.kept = true;
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // If it cannot be removed, it remains as a private file.
            rustix::fs::unlinkat(&self.directory, &self.new, AtFlags::empty()).ok();
        }
    }
}

/// Writes a private file completely or not at all.
///
/// # Errors
///
/// The file system's error, or [`FileError::Unfit`] if other users can access or exchange the file.
/// `path` then holds the former file, or the new one under a name that a loss of power may undo.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let directory = open_directory(parent)?;
    check_directory_of(&directory, parent)?;
    check_in(&directory, name, path)?;
    let mut new = NewFile::begin_in(directory, name)?;
    new.write_all(bytes)?;
    new.keep()
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

/// An opened directory that is private to this user.
#[derive(Debug)]
pub struct PrivateDirectory {
    directory: OwnedFd,
    path: PathBuf,
}

impl PrivateDirectory {
    /// Opens the directory, and creates it if it is missing; `parents` says whether its missing
    /// parents are created, too.
    ///
    /// # Errors
    ///
    /// [`FileError`], also for a directory that other users can access.
    pub fn open_or_make(path: &Path, parents: bool) -> Result<Self, FileError> {
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(parents)
            .create(path);
        match made {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
            _ => {}
        }
        Self::open(path)
    }

    /// Opens the directory.
    ///
    /// # Errors
    ///
    /// [`FileError`], also for a directory that other users can access.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // With a trailing slash, a link would be followed.
        let path: PathBuf = path.components().collect();
        let path = if path.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(&path, flags, Mode::empty()).map_err(|errno| {
            let found = rustix::fs::lstat(&path).ok();
            let kind = found.map(|found| FileType::from_raw_mode(found.st_mode));
            match kind {
                Some(kind) if kind != FileType::Directory => {
                    FileError::wrong_kind(&path, kind, FileType::Directory)
                }
                _ => FileError::io(&path)(errno),
            }
        })?;
        let found = fstat(&directory).map_err(FileError::io(&path))?;
        check(&found, &path, FileType::Directory, OTHERS)?;
        Ok(Self { directory, path })
    }

    /// Makes the checks of [`Self::open_or_make`] with `parents`, without creating the directory.
    /// `None` if it is missing and can be created.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn open_or_check(path: &Path) -> Result<Option<Self>, FileError> {
        match Self::open(path) {
            Err(error) if error.is_missing() => check_makable(path, true).map(|()| None),
            opened => opened.map(Some),
        }
    }

    /// Refuses a directory in which this process cannot create files.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn check_can_add_files(&self) -> Result<(), FileError> {
        check_can_add_files(&self.directory, &self.path)
    }

    /// Refuses the directory if other users can write to its parent: they could exchange it.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn check_parent(&self) -> Result<(), FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = self.path.parent().unwrap_or(Path::new(".."));
        let above = if above.as_os_str().is_empty() {
            Path::new(".")
        } else {
            above
        };
        // Through the opened directory, because links on the way to it are the operator's choice.
        let parent = openat(&self.directory, "..", flags, Mode::empty());
        check_directory_of(&parent.map_err(FileError::io(above))?, above)
    }

    /// Opens a file in it for reading; `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`], also for a file that other users can access.
    pub fn open_file(&self, name: &str) -> Result<Option<File>, FileError> {
        let path = self.path.join(name);
        open_private_in(&self.directory, OsStr::new(name), &path, OFlags::RDONLY)
    }

    /// Opens a file in it for locking, and creates it if it is missing.
    ///
    /// # Errors
    ///
    /// [`FileError`], also for a file that other users can access.
    pub fn open_lock(&self, name: &str) -> Result<File, FileError> {
        let path = self.path.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = open_private_in(&self.directory, OsStr::new(name), &path, flags)?;
        file.ok_or_else(|| FileError::io(&path)(Errno::NOENT))
    }

    /// Creates an empty file in it unless the name exists. An existing file is not opened, because
    /// closing a file ends the locks that another part of this process holds on it.
    ///
    /// # Errors
    ///
    /// [`FileError`], also for a file that other users can access.
    pub fn make_file(&self, name: &str) -> Result<(), FileError> {
        if self.check_file(name)? {
            return Ok(());
        }
        let made = create_in(&self.directory, OsStr::new(name));
        made.map(drop).map_err(FileError::io(&self.path.join(name)))
    }

    /// Refuses a file in it that other users can access. Returns whether the file exists.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn check_file(&self, name: &str) -> Result<bool, FileError> {
        check_in(&self.directory, OsStr::new(name), &self.path.join(name))
    }

    /// Replaces a file in it completely or not at all. It does not wait until the file is on disk.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let failed = |source| FileError::Io {
            path: self.path.join(name),
            source,
        };
        let directory = self.directory.try_clone().map_err(failed)?;
        let mut new = NewFile::begin_in(directory, OsStr::new(name)).map_err(failed)?;
        new.write_all(bytes).map_err(failed)?;
        renameat(&new.directory, &new.new, &new.directory, &new.name)
            .map_err(|errno| failed(errno.into()))?;
        new.kept = true;
        Ok(())
    }

    /// Removes a file in it if the file exists.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(FileError::io(&self.path.join(name))(errno)),
        }
    }
}

#[cfg(test)]
mod tests;
