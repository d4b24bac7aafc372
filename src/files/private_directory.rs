//! A directory that belongs to this process's user alone, such as that of SQLite's files.
//!
//! [`PrivateDirectory`] holds the opened directory, so exchanging it afterwards has no effect on
//! the files that are opened in it. A directory or file that other users can access is
//! [`FileError::Unfit`]. `crate::store` and `crate::client` keep their files in such directories.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;

use super::directory::{check_can_add_files, check_directory_of, check_makable};
use super::error::FileError;
use super::open::{OTHERS, check, check_in, create_in, open_private_in};
use super::write::NewFile;

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
        new.keep_unsynced().map_err(failed)
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
