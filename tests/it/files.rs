//! Other users of the machine cannot access a broker's files, however it is started.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::configuration::{Configuration, small_tables};
use crate::support::process::{Ended, Launch};
use crate::support::random_bytes;

fn config() -> String {
    Configuration {
        server: "listen = \"127.0.0.1:0\"\ndrain_seconds = 0",
        checkpoint_file: "state/checkpoint",
        tables: &small_tables(),
        ..Configuration::default()
    }
    .text()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn open_to(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn sealing_key() -> String {
    format!("tpk1_{}", URL_SAFE_NO_PAD.encode(random_bytes(32)))
}

/// Adds the files of a small broker to a launch.
pub fn broker(launch: Launch) -> Launch {
    launch
        .config(config())
        .file("policies/none.cedar", "")
        .env("TASKPASS_SEALING_KEYS", sealing_key())
}

/// A broker started with a umask under which every user can read and write new files.
fn careless(sealing_key: &str) -> Launch {
    let program = env!("CARGO_BIN_EXE_taskpass");
    let script = format!("umask 0; exec {program} serve --config taskpass.toml");
    broker(Launch::program("/bin/sh", ["-c", &script])).env("TASKPASS_SEALING_KEYS", sealing_key)
}

fn refused(ended: &Ended, path: &Path, remedy: &str) {
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    let path = path.display().to_string();
    assert!(ended.stderr.contains(&path), "{path}: {}", ended.stderr);
    assert!(ended.stderr.contains(remedy), "{remedy}: {}", ended.stderr);
}

#[test]
fn no_file_of_a_broker_is_open_to_other_users_whatever_the_umask_says() {
    let key = sealing_key();
    let mut process = careless(&key).spawn();
    process.wait_for_output("serving");
    let directory = process.dir().to_owned();
    let data = directory.join("data");
    assert_eq!(mode(&data), 0o700);
    let files = below(&data);
    let names: Vec<_> = files.iter().filter_map(|file| file.file_name()).collect();
    for name in [
        "taskpass.sqlite",
        "taskpass.sqlite-wal",
        "taskpass.sqlite-shm",
        "lock",
    ] {
        assert!(
            names.iter().any(|there| *there == name),
            "{name}: {names:?}"
        );
    }
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    process.terminate();
    // The checkpoint's directory did not exist, and the broker created it.
    let state = directory.join("state");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("checkpoint")), 0o600);
    assert_eq!(below(&state).len(), 1, "no temporary file is left");
}

#[test]
fn what_other_users_can_get_at_is_refused_with_the_command_that_mends_it() {
    let key = sealing_key();
    let mut process = careless(&key).spawn();
    process.wait_for_output("serving");
    process.terminate();
    let directory = process.dir().to_owned();
    let data = directory.join("data");
    let again = || {
        let config = directory.join("taskpass.toml");
        Launch::taskpass(["serve", "--config"])
            .arg(config)
            .env("TASKPASS_SEALING_KEYS", &key)
    };
    let database = data.join("taskpass.sqlite");
    for (path, fine, open) in [
        (&data, 0o700, 0o755),
        (&data, 0o700, 0o710),
        (&database, 0o600, 0o644),
        (&data.join("lock"), 0o600, 0o620),
        (&directory.join("state/checkpoint"), 0o600, 0o604),
    ] {
        open_to(path, open);
        let remedy = format!("chmod 0{fine:o} {}", path.display());
        refused(&again().run(), path, &remedy);
        open_to(path, fine);
    }
    // Links that another user could have created. The broker must not change their targets.
    let victim = directory.join("victim");
    for planted in ["taskpass.sqlite-wal", "taskpass.sqlite-shm", "lock"] {
        let planted = data.join(planted);
        fs::remove_file(&planted).or_else(missing).unwrap();
        symlink(&victim, &planted).unwrap();
        refused(&again().run(), &planted, "is a symbolic link");
        assert!(!victim.exists());
        fs::remove_file(&planted).unwrap();
    }
    let moved = directory.join("moved");
    fs::rename(&data, &moved).unwrap();
    symlink(&moved, &data).unwrap();
    refused(&again().run(), &data, "is a symbolic link");
    fs::remove_file(&data).unwrap();
    fs::rename(&moved, &data).unwrap();
    let mut process = again().spawn();
    process.wait_for_output("serving");
    process.terminate();
}

/// Starts a broker whose configuration has `setting` in place of `usual`, and whose directory
/// `above` has this mode. Returns an error if it refuses.
fn starts_below(usual: &str, setting: &str, mode: u32) -> Result<(), (Ended, PathBuf)> {
    let key = sealing_key();
    let launch = || {
        let launch = broker(Launch::taskpass(["serve", "--config", "taskpass.toml"]));
        launch.env("TASKPASS_SEALING_KEYS", &key)
    };
    let usual_config = config();
    let config = usual_config.replace(usual, setting);
    assert_ne!(config, usual_config);
    let mut process = launch().config(&config).spawn();
    process.wait_for_output("serving");
    process.terminate();
    let directory = process.dir().to_owned();
    let above = directory.join("above");
    open_to(&above, mode);
    let again = Launch::taskpass(["serve", "--config"])
        .arg(directory.join("taskpass.toml"))
        .env("TASKPASS_SEALING_KEYS", &key);
    if mode & 0o022 == 0 || mode & 0o1000 != 0 {
        let mut process = again.spawn();
        process.wait_for_output("serving");
        process.terminate();
        return Ok(());
    }
    let ended = again.run();
    Err((ended, above))
}

#[test]
fn a_database_or_checkpoint_that_others_can_exchange_is_not_served() {
    let data = ("data_dir = \"data\"", "data_dir = \"above/in\"");
    let checkpoint = (
        "checkpoint_file = \"state/checkpoint\"",
        "checkpoint_file = \"above/checkpoint\"",
    );
    for (usual, setting) in [data, checkpoint] {
        for mode in [0o777, 0o770, 0o720] {
            let (ended, above) = starts_below(usual, setting, mode).unwrap_err();
            let remedy = format!("chmod go-w {}", above.display());
            refused(&ended, &above, &remedy);
        }
        // With the sticky bit only the owner can rename a file, and with 0755 others can only read.
        for mode in [0o1777, 0o755] {
            starts_below(usual, setting, mode).unwrap();
        }
    }
}

fn missing(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
