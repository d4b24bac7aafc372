//! Files that no endpoint may name: those with the broker's own secrets.
//!
//! [`SecretFiles`] identifies a file by device and inode, so another path, a symbolic link or a
//! hard link to it is the same file. It knows the files that the caller added, and the directories
//! of the system. A file that does not exist when it is added is not known; a directory stays
//! secret with files that are added to it later.
//!
//! [`SecretFiles::find`] fails if the file cannot be read. `config::endpoints` lists the files and
//! refuses a configuration whose endpoint names one.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories in which a system shows processes and devices as files, including the broker's
/// environment.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The broker's own secret files.
#[derive(Clone, Debug, Default)]
pub struct SecretFiles {
    /// The description of each file, by device and inode.
    known: BTreeMap<(u64, u64), &'static str>,
    /// Directories whose whole content is secret, as resolved paths, with their descriptions.
    directories: Vec<(PathBuf, &'static str)>,
}

impl SecretFiles {
    /// Adds a file with the description `what`. A missing file is ignored.
    pub fn add(&mut self, path: &Path, what: &'static str) {
        if let Ok(metadata) = std::fs::metadata(path) {
            self.known.insert((metadata.dev(), metadata.ino()), what);
        }
    }

    /// Adds a directory with all its content.
    pub fn add_directory(&mut self, path: &Path, what: &'static str) {
        if let Ok(path) = path.canonicalize() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            for entry in entries {
                self.add(&entry.path(), what);
            }
            self.directories.push((path, what));
        }
    }

    /// The description of the secret at `path`; `None` if it is not secret.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn find(&self, path: &Path) -> std::io::Result<Option<&'static str>> {
        let resolved = path.canonicalize()?;
        let metadata = std::fs::metadata(&resolved)?;
        if SYSTEM.iter().any(|system| resolved.starts_with(system)) {
            return Ok(Some("a file of the system"));
        }
        let within = self
            .directories
            .iter()
            .find(|(directory, _)| resolved.starts_with(directory));
        let known = self.known.get(&(metadata.dev(), metadata.ino()));
        Ok(known.copied().or(within.map(|(_, what)| *what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_is_known_by_any_path_to_it() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("sealing"), "secret").unwrap();
        std::fs::write(at("token"), "token").unwrap();
        std::os::unix::fs::symlink(at("sealing"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("link"), at("chain")).unwrap();
        std::fs::hard_link(at("sealing"), at("hard")).unwrap();
        std::fs::create_dir(at("data")).unwrap();
        std::fs::write(at("data").join("db"), "rows").unwrap();
        std::fs::hard_link(at("data").join("db"), at("hard-db")).unwrap();
        let mut secrets = SecretFiles::default();
        secrets.add(&at("sealing"), "the sealing keys");
        secrets.add(&at("absent"), "not there");
        secrets.add_directory(&at("data"), "the store");
        for (name, expected) in [
            ("sealing", Some("the sealing keys")),
            ("data/../sealing", Some("the sealing keys")),
            ("link", Some("the sealing keys")),
            ("chain", Some("the sealing keys")),
            ("hard", Some("the sealing keys")),
            ("data/db", Some("the store")),
            ("hard-db", Some("the store")),
            ("token", None),
        ] {
            assert_eq!(secrets.find(&at(name)).unwrap(), expected, "{name}");
        }
        assert!(secrets.find(&at("absent")).is_err());
        let environment = secrets.find(Path::new("/proc/self/environ"));
        assert!(matches!(environment, Ok(Some(_)) | Err(_)));
    }
}
