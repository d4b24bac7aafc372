//! Files that have to be there after a loss of power, whole.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// `path` with `ending` after its whole name: a file that stands beside it.
#[must_use]
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Writes a file whole or not at all, by way of one beside it whose name is this process's own.
///
/// # Errors
///
/// What the file system says. The file at `path` is then as it was, or is the new one though its
/// name may not outlive a loss of power.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path, &format!(".new-{}", std::process::id()));
    let replaced = replace(path, &new, bytes);
    if replaced.is_err() {
        drop(std::fs::remove_file(&new));
    }
    replaced
}

fn replace(path: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(new, path)?;
    sync_name(path)
}

/// Makes the name of a new file outlive a loss of power.
///
/// # Errors
///
/// What the file system says of the directory.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kept");
        write_whole(&path, b"the first, longer one").unwrap();
        write_whole(&path, b"the second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"the second");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        assert!(write_whole(&path, b"anything").is_err());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
