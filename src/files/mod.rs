//! Creates and opens the process's files: complete after a loss of power, and private.
//!
//! All files in which the process keeps state or its own secrets are created and opened here. Such
//! a file has mode 0600 and belongs to this process's user. New files get names that cannot be
//! guessed and are created exclusively. A symbolic link in the last part of a path is not followed.
//! Checks look at the opened file, so exchanging the file afterwards has no effect. Only
//! [`open_to_append`] creates files that a group may read.
//!
//! A file or directory that other users can access is [`FileError::Unfit`], with the command that
//! repairs it. Any other failure is [`FileError::Io`]; functions that return [`std::io::Error`]
//! pass both on in it. Files that an operator supplies are opened by those who read them:
//! [`crate::config`] accepts secrets of root's as well. Locking, and the content of the files, are
//! left to their users, such as [`crate::store`] and [`crate::ledger`].

mod directory;
mod error;
mod open;
mod private_directory;
mod write;

use std::path::{Path, PathBuf};

pub use directory::{
    check_parent, check_parent_or_makable, make_directories, make_directory_of, sync_name,
};
pub use error::FileError;
pub use open::{
    check_writable, create_private, open_lock, open_private, open_to_append, read_private,
};
pub use private_directory::PrivateDirectory;
pub use write::{NewFile, write_whole};

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

#[cfg(test)]
mod tests;
