//! Attacks on files by another user of the machine, and files after a crash.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::geteuid;

use super::directory::open_directory;
use super::open::create_in;
use super::write::unguessable;
use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn open_to(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn names(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept");
    write_whole(&path, b"the first, longer one").unwrap();
    write_whole(&path, b"the second").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"the second");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(directory.path()), 1);
}

#[test]
fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("folder");
    std::fs::create_dir(&path).unwrap();
    assert!(write_whole(&path, b"anything").is_err());
    assert!(path.is_dir());
    assert_eq!(names(directory.path()), 1);
    let other = directory.path().join("dropped");
    drop(NewFile::begin(&other).unwrap());
    assert_eq!(names(directory.path()), 1, "an unfinished file remained");
}

#[test]
fn a_link_planted_at_a_target_is_refused_and_what_it_leads_to_stays() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "unharmed").unwrap();
    open_to(&victim, 0o600);
    let path = directory.path().join("state");
    symlink(&victim, &path).unwrap();
    let refused = [
        write_whole(&path, b"harm").unwrap_err().to_string(),
        NewFile::begin(&path).unwrap_err().to_string(),
        open_lock(&path).unwrap_err().to_string(),
        read_private(&path, 100).unwrap_err().to_string(),
        open_to_append(&path).unwrap_err().to_string(),
    ];
    for why in refused {
        assert!(why.contains("is a symbolic link"), "{why}");
    }
    let taken = create_private(&path).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    // A link without a target creates no file.
    let dangling = directory.path().join("dangling");
    symlink(directory.path().join("nowhere"), &dangling).unwrap();
    assert!(create_private(&dangling).is_err());
    assert!(open_lock(&dangling).is_err());
    assert!(open_to_append(&dangling).is_err());
    assert!(!directory.path().join("nowhere").exists());
    assert_eq!(std::fs::read(&victim).unwrap(), b"unharmed");
}

#[test]
fn links_planted_at_the_names_of_temporary_files_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "unharmed").unwrap();
    let path = directory.path().join("state");
    // An attacker can predict names made of the process's id.
    for ending in ["new", "part"] {
        let planted = beside(&path, &format!(".{ending}-{}", std::process::id()));
        symlink(&victim, planted).unwrap();
    }
    write_whole(&path, b"state").unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"unharmed");
    assert_eq!(std::fs::read(&path).unwrap(), b"state");
    // A planted name is never used, even if the attacker guessed it.
    let opened = open_directory(directory.path()).unwrap();
    let guessed = OsStr::new("guessed");
    symlink(&victim, directory.path().join(guessed)).unwrap();
    assert_eq!(create_in(&opened, guessed).unwrap_err(), Errno::EXIST);
    let (one, two) = (unguessable(guessed).unwrap(), unguessable(guessed).unwrap());
    assert_ne!(one, two);
    assert!(one.len() >= guessed.len() + 32);
}

#[test]
fn a_file_that_others_may_read_or_write_is_refused_with_the_command_that_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("it's state");
    std::fs::write(&path, "x").unwrap();
    for open in [0o644, 0o640, 0o620, 0o602, 0o604, 0o666] {
        open_to(&path, open);
        for why in [
            write_whole(&path, b"y").unwrap_err().to_string(),
            read_private(&path, 9).unwrap_err().to_string(),
            open_lock(&path).unwrap_err().to_string(),
        ] {
            assert!(why.contains(&format!("mode 0{open:o}")), "{why}");
            let remedy = format!(r"chmod 0600 '{}/it'\''s state'", directory.path().display());
            assert!(why.ends_with(&remedy), "{why}");
        }
    }
    open_to(&path, 0o600);
    assert_eq!(read_private(&path, 9).unwrap().unwrap(), b"x");
    assert!(
        read_private(&path, 0).is_err(),
        "a file longer than allowed"
    );
    assert!(
        read_private(&directory.path().join("none"), 9)
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_directory_in_which_others_could_exchange_the_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let parent = directory.path().join("shared");
    std::fs::create_dir(&parent).unwrap();
    let path = parent.join("state");
    for open in [0o770, 0o707, 0o777] {
        open_to(&parent, open);
        let why = write_whole(&path, b"x").unwrap_err().to_string();
        assert!(why.contains("chmod go-w"), "{why}");
        assert!(open_lock(&path).is_err());
    }
    for fine in [0o755, 0o700, 0o1777] {
        open_to(&parent, fine);
        write_whole(&path, b"x").unwrap();
    }
}

#[test]
fn a_private_directory_is_made_closed_and_refused_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("above/data");
    let made = PrivateDirectory::open_or_make(&path, true).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
    made.make_file("state").unwrap();
    made.make_file("state").unwrap();
    drop(made.open_lock("lock").unwrap());
    made.replace("cache", b"1").unwrap();
    for name in ["state", "lock", "cache"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        assert!(made.check_file(name).unwrap());
    }
    assert!(!made.check_file("other").unwrap());
    assert!(made.open_file("other").unwrap().is_none());
    made.remove("cache").unwrap();
    made.remove("cache").unwrap();
    assert_eq!(names(&path), 2);
    open_to(&path.join("state"), 0o640);
    assert!(made.make_file("state").is_err());
    assert!(made.open_file("state").is_err());

    for open in [0o755, 0o750, 0o711, 0o777, 0o1777] {
        open_to(&path, open);
        let why = PrivateDirectory::open_or_make(&path, true).unwrap_err();
        let remedy = format!("chmod 0700 {}", path.display());
        assert!(why.to_string().ends_with(&remedy), "{why}");
    }
    open_to(&path, 0o700);
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    for named in [link.clone(), link.join("")] {
        let why = PrivateDirectory::open_or_make(&named, true).unwrap_err();
        assert!(why.to_string().contains("is a symbolic link"), "{why}");
    }
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let why = PrivateDirectory::open_or_make(&file, false).unwrap_err();
    assert!(why.to_string().contains("is not a directory"), "{why}");
}

#[test]
fn what_belongs_to_another_user_is_refused() {
    if !geteuid().is_root() {
        // Only root can give a file to another user.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let of_another = |path: &Path| std::os::unix::fs::chown(path, Some(12_345), None).unwrap();
    let path = directory.path().join("state");
    write_whole(&path, b"x").unwrap();
    of_another(&path);
    for why in [
        write_whole(&path, b"y").unwrap_err().to_string(),
        open_lock(&path).unwrap_err().to_string(),
        open_to_append(&path).unwrap_err().to_string(),
        read_private(&path, 9).unwrap_err().to_string(),
    ] {
        assert!(
            why.contains("belongs to user 12345, not to user 0"),
            "{why}"
        );
        assert!(why.contains("chown 0"), "{why}");
    }
    let theirs = directory.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    open_to(&theirs, 0o700);
    of_another(&theirs);
    assert!(PrivateDirectory::open_or_make(&theirs, false).is_err());
    assert!(write_whole(&theirs.join("state"), b"x").is_err());
}

#[test]
fn lines_are_appended_to_no_file_that_every_user_can_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    open_to_append(&path).unwrap().write_all(b"one\n").unwrap();
    assert_eq!(mode(&path) & !0o027, 0o600 | (mode(&path) & 0o040));
    assert_eq!(mode(&path) & 0o007, 0);
    open_to_append(&path).unwrap().write_all(b"two\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    open_to(&path, 0o646);
    let why = open_to_append(&path).unwrap_err().to_string();
    assert!(why.contains("chmod o-w"), "{why}");
}

#[test]
fn the_directory_of_a_file_is_made_for_this_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/checkpoint");
    make_directory_of(&path).unwrap();
    make_directory_of(&path).unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert!(make_directory_of(&directory.path().join("no/such/place")).is_err());
    let deep = directory.path().join("a/b");
    make_directories(&deep).unwrap();
    make_directories(&deep).unwrap();
    assert_eq!((mode(&deep), mode(deep.parent().unwrap())), (0o700, 0o700));
}

#[test]
fn a_byte_order_mark_before_a_secret_is_no_part_of_it() {
    assert_eq!(secret_in("\u{feff}tpk1_secret\r\n"), "tpk1_secret");
    assert_eq!(secret_in(" secret\n"), "secret");
    assert_eq!(secret_in("\u{feff}\r\n"), "");
}

#[test]
fn a_directory_that_a_start_could_not_make_is_refused_and_none_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    std::fs::write(at("file"), "").unwrap();
    symlink(at("nowhere"), at("link")).unwrap();
    let check_at = |path: &str, made: Option<&Path>| check_parent_or_makable(&at(path), made);
    assert!(check_at("state", None).unwrap());
    assert!(!check_at("new/state", None).unwrap());
    for (path, says) in [
        (
            "new/deeper/state",
            "new/deeper is missing and cannot be made",
        ),
        ("link/state", "leads nowhere"),
        ("file/state", "Not a directory"),
    ] {
        let why = check_at(path, None).unwrap_err().to_string();
        assert!(why.contains(says), "{path}: {why}");
    }
    // A start creates the store's directory and its parents earlier.
    for made in ["new/deeper/data", "new/data"] {
        assert!(!check_at("new/deeper/state", Some(&at(made))).unwrap());
    }
    assert!(check_at("new/deeper/state", Some(&at("other/data"))).is_err());
    let makable = |path: &str| PrivateDirectory::open_or_check(&at(path));
    assert!(makable("new/deeper/data").unwrap().is_none());
    for path in ["file", "file/data", "link", "link/data"] {
        assert!(makable(path).is_err(), "{path}");
    }
    assert!(!check_writable(&at("state")).unwrap());
    assert!(check_writable(&at("new/state")).unwrap_err().is_missing());
    assert_eq!(names(directory.path()), 2);
}
