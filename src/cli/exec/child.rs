//! The command: started with the credential, told what we are told, waited for.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{self as signal, SignalKind};
use tokio::time::timeout;

use super::Ended;
use super::deliver::Environment;
use crate::cli::{Failure, output};

/// How long a command may take to stop when it is told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit codes of shells for a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// The signals that are passed on. From their making on they no longer end this process, so that
/// what is put somewhere for the command is always taken away again.
pub(super) struct Signals {
    terminate: signal::Signal,
    hangup: signal::Signal,
    interrupt: signal::Signal,
    quit: signal::Signal,
    user1: signal::Signal,
    user2: signal::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal::signal(kind).map_err(Failure::unestablished);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            user1: listen(SignalKind::user_defined1())?,
            user2: listen(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.user1.recv() => Signal::USR1,
            _ = self.user2.recv() => Signal::USR2,
        }
    }
}

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
    pub(super) async fn wait(&mut self, signals: &mut Signals) -> Result<Ended, Failure> {
        // What is typed at a terminal reaches the command without us.
        let typed = std::io::stdin().is_terminal();
        loop {
            let received = tokio::select! {
                ended = self.0.wait() => return ended.map(outcome).map_err(Failure::unestablished),
                received = signals.next() => received,
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
