//! Writes files completely or not at all.
//!
//! [`NewFile`] has a temporary name that cannot be guessed until it is complete; [`write_whole`]
//! does all steps. If a step fails, the former file stays, and the temporary one is removed.
//! [`NewFile::keep`] returns after the file and its name are on disk.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, renameat, statat};

use super::directory::{check_directory_of, open_directory, split};
use super::error::FileError;
use super::open::{check_in, create_in};
use crate::crypto::random::SystemRandom;
use crate::ids::Random as _;

/// A name that starts like `name` and cannot be guessed.
pub(super) fn unguessable(name: &OsStr) -> io::Result<OsString> {
    let mut random = [0; 16];
    SystemRandom::default()
        .fill(&mut random)
        .map_err(io::Error::other)?;
    let mut new = name.to_owned();
    new.push(format!(".new-{:032x}", u128::from_be_bytes(random)));
    Ok(new)
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

    pub(super) fn begin_in(directory: OwnedFd, name: &OsStr) -> io::Result<Self> {
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
        self.rename()?;
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    /// Renames the file to its final name without waiting until it is on disk.
    pub(super) fn keep_unsynced(mut self) -> io::Result<()> {
        self.rename()
    }

    fn rename(&mut self) -> io::Result<()> {
        renameat(&self.directory, &self.new, &self.directory, &self.name)?;
        self.kept = true;
        Ok(())
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
