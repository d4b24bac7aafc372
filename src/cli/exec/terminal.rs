//! The terminal from which this process was started.
//!
//! A terminal has one process group in its foreground. That group gets the signals that are typed,
//! and only that group may read. The command has its own group. It gets the terminal when it needs
//! it, if this process's group has it then.

use std::fs::File;

use rustix::process::{Pid, getpgrp, setpgid};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// The controlling terminal of this process.
pub(super) struct Terminal {
    tty: File,
    own_group: Pid,
}

impl Terminal {
    /// Opens the terminal. Returns `None` if there is none, as in a pipeline of a CI system.
    pub(super) fn controlling() -> Option<Self> {
        let opened = File::options().read(true).write(true).open("/dev/tty");
        let terminal = Self {
            tty: opened.ok()?,
            own_group: getpgrp(),
        };
        tcgetpgrp(&terminal.tty).ok().map(|_| terminal)
    }

    /// Whether `group` is in the foreground.
    pub(super) fn is_held_by(&self, group: Pid) -> bool {
        tcgetpgrp(&self.tty).is_ok_and(|holder| holder == group)
    }

    /// Puts `group` in the foreground if this process's group is there. Returns whether `group` is
    /// there now.
    pub(super) fn give_to(&self, group: Pid) -> bool {
        if self.is_held_by(self.own_group) {
            // Ignore the error: the terminal may be closed, or no process of the group may be left.
            tcsetpgrp(&self.tty, group).ok();
        }
        self.is_held_by(group)
    }

    /// Puts this process's group in the foreground again if `group` is there. At least one process
    /// of `group` must be left, for example one that ended and was not reaped.
    pub(super) fn take_from(&self, group: Pid) {
        if !self.is_held_by(group) {
            return;
        }
        // A background process that sets the foreground group is stopped by SIGTTOU. This process
        // therefore joins the foreground group for a moment. The first process of a session cannot
        // do this and does not need to: its end frees the terminal.
        if setpgid(None, Some(group)).is_err() {
            return;
        }
        tcsetpgrp(&self.tty, self.own_group).ok();
        if setpgid(None, Some(self.own_group)).is_err() {
            // No process of its former group is left, so it creates a new one.
            setpgid(None, None).ok();
        }
    }
}
