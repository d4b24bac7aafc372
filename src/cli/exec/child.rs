//! The command: a process group of its own. The group gets each signal once, and has ended when
//! this process ends.
//!
//! Signals that reach this process are passed on to the whole group. Signals typed at a terminal
//! reach this process while its own group has the terminal, and reach the command's group directly
//! once that group has the terminal; never both. The command gets the terminal after it was stopped
//! because it read the terminal or set its modes.
//!
//! When the command has ended, processes that it left in its group get SIGTERM, and SIGKILL after a
//! grace period. Orphans become children of this process (as the first process of a container, or
//! as a "subreaper" of Linux) and are reaped here. This process does not wait for processes that
//! left the group, as daemons do; their credential ends with the task, too.
//!
//! A command that cannot be started is an exit code, 126 or 127, and a note on standard error.
//! [`super`] calls [`Child::run`]; `super::signals` has the signals and `super::terminal` the
//! terminal.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process_group,
    test_kill_process_group, wait, waitid,
};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::deliver::Environment;
use super::signals::{Signals, can_be_continued, exit_code, stop_this_process};
use super::terminal::Terminal;
use crate::cli::output;

/// How long processes may take to end after SIGKILL: one that waits for a disk can take long.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the group is checked while it ends: this process is not notified of every process that
/// ends in the group.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The exit codes of shells for a command that was not found, or that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// A running command, and the process group that it leads.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a separate fact about the group"
)]
pub(super) struct Child {
    /// The command's process and its group have the same number.
    group: Pid,
    /// How long the group may take to end after SIGTERM.
    grace: Duration,
    terminal: Option<Terminal>,
    /// The command's exit code, once it has ended.
    ended: Option<u8>,
    /// Whether no process of the group is left.
    gone: bool,
    /// Whether the group was sent SIGTERM.
    told_to_end: bool,
    /// Whether the group needs the terminal again when it is continued.
    wants_terminal: bool,
    /// Whether this process stopped, and has not yet noticed that it was continued.
    stopped: bool,
}

impl Child {
    /// Starts the command. Returns an exit code if it cannot be started.
    pub(super) fn start(
        command: &[OsString],
        environment: &Environment,
        grace: Duration,
    ) -> Result<Self, u8> {
        let (program, arguments) = command.split_first().ok_or(NOT_FOUND)?;
        adopt_orphans();
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        for name in &environment.remove {
            command.env_remove(name);
        }
        command.envs(environment.set());
        let started = command.spawn().map_err(|error| {
            let name = program.to_string_lossy();
            output::note(format!("taskpass: cannot run {name}: {error}"));
            match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            }
        })?;
        let group = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
        Ok(Self {
            group: group.ok_or(NOT_EXECUTABLE)?,
            grace,
            terminal: Terminal::controlling(),
            ended: None,
            gone: false,
            told_to_end: false,
            wants_terminal: false,
            stopped: false,
        })
    }

    /// Waits until the command ends, ends its group, and returns the exit code. Meanwhile it passes
    /// signals on. After a cancellation, [`Child::end_group`] can still be called.
    pub(super) async fn run(&mut self, signals: &mut Signals) -> u8 {
        loop {
            if let Some(code) = self.ended {
                self.end_group(signals).await;
                return code;
            }
            let signal = signals.next().await;
            self.receive(signal);
        }
    }

    /// Ends the group: sends SIGTERM, unless it was sent before, and SIGKILL after the grace
    /// period. The command itself may still be running.
    pub(super) async fn end_group(&mut self, signals: &mut Signals) {
        if !self.is_gone() && !self.told_to_end {
            self.send(Signal::TERM);
            // A stopped process ends only after it is continued.
            self.send(Signal::CONT);
        }
        if !self.is_gone_within(self.grace, signals).await {
            self.send(Signal::KILL);
            if !self.is_gone_within(KILL_TIMEOUT, signals).await {
                output::note("taskpass: processes of the command could not be ended");
            }
        }
    }

    async fn is_gone_within(&mut self, limit: Duration, signals: &mut Signals) -> bool {
        let limit = sleep(limit);
        tokio::pin!(limit);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.reap();
            if self.is_gone() {
                return true;
            }
            tokio::select! {
                () = &mut limit => return false,
                signal = signals.next() => self.receive(signal),
                _ = looks.tick() => {}
            }
        }
    }

    fn receive(&mut self, signal: Signal) {
        match signal {
            Signal::CHILD => self.reap(),
            Signal::TSTP if !can_be_continued() => {}
            Signal::TSTP => {
                self.send(Signal::TSTP);
                self.stop_with_it();
            }
            Signal::CONT => {
                self.stopped = false;
                if let Some(terminal) = &self.terminal
                    && self.wants_terminal
                {
                    terminal.give_to(self.group);
                }
                self.send(Signal::CONT);
            }
            other => self.send(other),
        }
    }

    /// Reaps every child that has ended, and acts on a stop of the command.
    fn reap(&mut self) {
        loop {
            self.take_terminal_at_end();
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) => {
                    if pid == self.group && self.ended.is_none() {
                        self.changed(status);
                    }
                }
                Err(Errno::INTR) => {}
                // No child has ended, or there are no children.
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Takes the terminal back when the command has ended, before its process is reaped.
    fn take_terminal_at_end(&mut self) {
        let Some(terminal) = &self.terminal else {
            return;
        };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if self.ended.is_none() && matches!(waitid(WaitId::Pid(self.group), look), Ok(Some(_))) {
            terminal.take_from(self.group);
        }
    }

    fn changed(&mut self, status: WaitStatus) {
        if let Some(signal) = status.stopping_signal() {
            self.command_stopped(signal);
        } else if let Some(signal) = status.terminating_signal() {
            self.ended = Some(exit_code(signal));
        } else if let Some(code) = status.exit_status() {
            self.ended = Some(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }

    fn command_stopped(&mut self, signal: i32) {
        let Some(terminal) = &self.terminal else {
            return;
        };
        if self.stopped {
            // It stopped together with this process, and is continued with it.
            return;
        }
        let uses_terminal = [Signal::TTIN.as_raw(), Signal::TTOU.as_raw()].contains(&signal);
        if uses_terminal {
            self.wants_terminal = true;
            if terminal.give_to(self.group) {
                self.send(Signal::CONT);
                return;
            }
        } else if !terminal.is_held_by(self.group) {
            // Another process stopped it on purpose and will continue it.
            return;
        }
        if can_be_continued() {
            terminal.take_from(self.group);
            self.stop_with_it();
        } else if !uses_terminal {
            // There is no shell that could continue it.
            self.send(Signal::CONT);
        }
    }

    fn stop_with_it(&mut self) {
        self.stopped = true;
        stop_this_process();
    }

    fn send(&mut self, signal: Signal) {
        if self.is_gone() {
            return;
        }
        // Ignore the error: the last process may just have ended.
        kill_process_group(self.group, signal).ok();
        self.told_to_end |= signal == Signal::TERM;
    }

    /// Whether no process of the group is left, including the command. From then on another group
    /// may have its number, so no signal is sent to it.
    fn is_gone(&mut self) -> bool {
        let reaped = self.ended.is_some();
        if reaped && !self.gone {
            self.gone = test_kill_process_group(self.group) == Err(Errno::SRCH);
        }
        self.gone
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Processes are left here only after an error of this process.
        self.send(Signal::KILL);
    }
}

/// Makes this process the parent of orphans of the command, if the system supports it.
fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpid, set_child_subreaper};
        // Ignore the error: without it, the end of orphans is only noticed later.
        set_child_subreaper(Some(getpid())).ok();
    }
}
