//! Keeps other processes of the machine from reading this one.
//!
//! On Linux every process of the same user, this process's children included, can read a process's
//! environment and memory. [`deny_inspection`] prevents that, and core dumps. A process with the
//! capability to trace others can still read both; root has it outside containers. [`withhold`]
//! therefore removes secrets from the environment that the kernel shows: it executes the same
//! program again in the same process, without the secrets, and passes them on in memory.
//!
//! If the system refuses either call, it returns an error, and the program must not go on. Other
//! systems have no safe call for either; there both functions do nothing. `main` calls the first
//! for every command, and `taskpass exec` the second before it starts a program. [`crate::config`]
//! reads the withheld variables.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::OnceLock;

/// The variables that [`withhold`] removed from the environment.
static WITHHELD: OnceLock<BTreeMap<String, OsString>> = OnceLock::new();

/// Holds the number of the file descriptor through which [`withhold`] passes variables on.
pub const HANDOVER_VARIABLE: &str = "TASKPASS_WITHHELD_FD";

/// The value of a variable that [`withhold`] removed from the environment.
pub fn withheld(name: &str) -> Option<&'static OsString> {
    WITHHELD.get()?.get(name)
}

/// Keeps other processes of the same user from reading this process's memory and environment, and
/// the system from writing a core dump.
///
/// # Errors
///
/// The system refused the call.
#[cfg(target_os = "linux")]
pub fn deny_inspection() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Keeps other processes of the same user from reading this process's memory and environment.
///
/// # Errors
///
/// None: this system has no safe call for it, and the function does nothing.
#[cfg(not(target_os = "linux"))]
pub fn deny_inspection() -> io::Result<()> {
    Ok(())
}

/// Removes variables from the environment that the system shows of this process; [`withheld`]
/// returns them afterwards. Call this before anything else: if one of the variables is set, the
/// program executes itself again, and this function returns in the new execution.
///
/// # Errors
///
/// The program could not be executed again, or the variables that it passed on cannot be read.
#[cfg(not(target_os = "linux"))]
pub fn withhold(_: &[String]) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub use linux::withhold;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use rustix::fs::{MemfdFlags, memfd_create};
    use zeroize::Zeroizing;

    use super::{BTreeMap, HANDOVER_VARIABLE, OsString, WITHHELD, io};

    /// The name of the memory file that passes variables on.
    const NAME: &str = "taskpass-withheld";

    /// Removes variables from the environment that the system shows of this process; [`super::withheld`]
    /// returns them afterwards. Call this before anything else: if one of the variables is set, the
    /// program executes itself again, and this function returns in the new execution.
    ///
    /// # Errors
    ///
    /// The program could not be executed again, or the variables that it passed on cannot be read.
    pub fn withhold(names: &[String]) -> io::Result<()> {
        if let Some(descriptor) = std::env::var_os(HANDOVER_VARIABLE) {
            let taken = take_over(&descriptor)?;
            // `withhold` is called once, so nothing was stored before.
            WITHHELD.get_or_init(|| taken);
            return Ok(());
        }
        let values: BTreeMap<&str, OsString> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), std::env::var_os(name)?)))
            .collect();
        // Without /proc no other process can read the environment, and no variable is passed on.
        if values.is_empty() || !Path::new("/proc/self/fd").exists() {
            return Ok(());
        }
        Err(start_again(&values))
    }

    /// Returns only if the execution failed.
    fn start_again(values: &BTreeMap<&str, OsString>) -> io::Error {
        let handed = match hand_over(values) {
            Ok(handed) => handed,
            Err(error) => return error,
        };
        let mut arguments = std::env::args_os();
        let called = arguments.next().unwrap_or_else(|| "taskpass".into());
        let kept = std::env::vars_os()
            .filter(|(name, _)| !name.to_str().is_some_and(|name| values.contains_key(name)));
        // The path of a binary that was replaced on disk no longer exists; `/proc/self/exe` still
        // works.
        let path = std::env::current_exe().ok().filter(|path| path.exists());
        Command::new(path.unwrap_or_else(|| PathBuf::from("/proc/self/exe")))
            .arg0(called)
            .args(arguments)
            .env_clear()
            .envs(kept)
            .env(HANDOVER_VARIABLE, handed.as_raw_fd().to_string())
            .exec()
    }

    /// Writes the variables in the layout of an environment: `NAME=VALUE`, each ended by a zero
    /// byte. The descriptor stays open when the program is executed again.
    fn hand_over(values: &BTreeMap<&str, OsString>) -> io::Result<File> {
        let mut bytes = Zeroizing::new(Vec::new());
        for (name, value) in values {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        let mut file = File::from(memfd_create(NAME, MemfdFlags::empty())?);
        file.write_all(&bytes)?;
        Ok(file)
    }

    /// Reads the variables and empties the memory file, because the children of this process
    /// inherit the descriptor.
    fn take_over(descriptor: &OsString) -> io::Result<BTreeMap<String, OsString>> {
        let wrong = || {
            let what = format!("{HANDOVER_VARIABLE} is set by taskpass itself only: unset it");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        let number: u32 = descriptor
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(wrong)?;
        let path = PathBuf::from(format!("/proc/self/fd/{number}"));
        let target = std::fs::read_link(&path).map_err(|_| wrong())?;
        if !target
            .to_string_lossy()
            .starts_with(&format!("/memfd:{NAME}"))
        {
            return Err(wrong());
        }
        let mut file = File::options().read(true).write(true).open(&path)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.read_to_end(&mut bytes)?;
        file.set_len(0)?;
        bytes
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let at = entry.iter().position(|byte| *byte == b'=');
                let (name, value) = entry
                    .split_at_checked(at.ok_or_else(wrong)?)
                    .ok_or_else(wrong)?;
                let name = String::from_utf8(name.to_vec()).map_err(|_| wrong())?;
                let value = value.get(1..).unwrap_or_default();
                Ok((name, OsString::from_vec(value.to_vec())))
            })
            .collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_handed_over_is_taken_once_and_nothing_is_left() {
            let odd = OsString::from_vec(b"\xff=\n".to_vec());
            let values = BTreeMap::from([
                ("TOKEN", OsString::from("secret=1")),
                ("EMPTY", OsString::new()),
                ("ODD", odd),
            ]);
            let handed = hand_over(&values).unwrap();
            let number = OsString::from(handed.as_raw_fd().to_string());
            let taken = take_over(&number).unwrap();
            assert_eq!(taken.len(), 3);
            for (name, value) in &values {
                assert_eq!(taken.get(*name), Some(value), "{name}");
            }
            assert_eq!(handed.metadata().unwrap().len(), 0, "it is wiped");
            assert!(take_over(&number).unwrap().is_empty());
        }

        #[test]
        fn a_descriptor_that_something_else_set_is_refused_and_left_alone() {
            let mut other = tempfile::tempfile().unwrap();
            other.write_all(b"A=1\0").unwrap();
            for number in [
                other.as_raw_fd().to_string(),
                "0".into(),
                "999999".into(),
                "-1".into(),
                "../1".into(),
                String::new(),
            ] {
                assert!(take_over(&OsString::from(&number)).is_err(), "{number}");
            }
            assert_eq!(other.metadata().unwrap().len(), 4);
        }
    }
}
