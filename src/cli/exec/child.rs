//! The command: started with the credential, told what we are told, waited for.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::Ended;
use super::deliver::Environment;
use crate::cli::{Failure, output};

/// How long a command may take to stop when it is told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit codes of shells for a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// A running command.
pub(super) struct Child(tokio::process::Child);

impl Child {
    /// Starts it; the exit code if it cannot be.
    pub(super) fn start(command: &[OsString], environment: &Environment) -> Result<Self, u8> {
        let (program, arguments) = command.split_first().ok_or(NOT_FOUND)?;
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        for name in &environment.remove {
            command.env_remove(name);
        }
        command.envs(environment.set());
        command.spawn().map(Self).map_err(|error| {
            let name = program.to_string_lossy();
            // Nothing is left to be done when even this cannot be written.
            drop(output::note(format!(
                "taskpass: cannot run {name}: {error}"
            )));
            match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            }
        })
    }

    /// Waits for its end, and passes signals on meanwhile.
    pub(super) async fn wait(&mut self) -> Result<Ended, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::unestablished);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut quit = listen(SignalKind::quit())?;
        let mut user1 = listen(SignalKind::user_defined1())?;
        let mut user2 = listen(SignalKind::user_defined2())?;
        // What is typed at a terminal reaches the command without us.
        let typed = std::io::stdin().is_terminal();
        loop {
            let received = tokio::select! {
                ended = self.0.wait() => return ended.map(outcome).map_err(Failure::unestablished),
                _ = terminate.recv() => Signal::TERM,
                _ = hangup.recv() => Signal::HUP,
                _ = interrupt.recv() => Signal::INT,
                _ = quit.recv() => Signal::QUIT,
                _ = user1.recv() => Signal::USR1,
                _ = user2.recv() => Signal::USR2,
            };
            if !(typed && [Signal::INT, Signal::QUIT].contains(&received)) {
                self.send(received);
            }
        }
    }

    /// Tells it to stop, and ends it if it does not.
    pub(super) async fn stop(&mut self) {
        self.send(Signal::TERM);
        if timeout(STOP_TIMEOUT, self.0.wait()).await.is_err() {
            // It ends with this process at the latest.
            drop(self.0.kill().await);
        }
    }

    fn send(&self, signal: Signal) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // Where it has just ended, there is nobody to tell.
            kill_process(pid, signal).ok();
        }
    }
}

fn outcome(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ended::Well,
        (Some(code), _) => Ended::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => {
            let signal = signal.and_then(|signal| u8::try_from(signal).ok());
            Ended::Code(signal.map_or(u8::MAX, |signal| signal.saturating_add(128)))
        }
    }
}
