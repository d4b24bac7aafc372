//! The error of every function here: the path, the problem, and the command that repairs it.
//!
//! [`FileError`] separates a file that cannot be trusted from an error of the file system. Nothing
//! here reads or writes. The other files of this folder make the errors; callers print them.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

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
    pub(super) fn io(path: &Path) -> impl Fn(Errno) -> Self + use<> {
        let path = path.to_owned();
        move |errno| Self::Io {
            path: path.clone(),
            source: errno.into(),
        }
    }

    pub(super) fn unfit(
        path: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
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
    pub(super) fn wrong_kind(path: &Path, found: FileType, expected: FileType) -> Self {
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
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
